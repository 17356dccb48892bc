"""The error for a text encoder that cannot be loaded or trained as configured."""

from __future__ import annotations


class EncoderError(ValueError):
    """The model or its settings cannot be used. The message says why and what to do."""
