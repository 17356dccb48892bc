"""The command line, one module per group of commands. `app.py` registers them all."""

from __future__ import annotations

from offline.cli.app import main

__all__ = ["main"]
