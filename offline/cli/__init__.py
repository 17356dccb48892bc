"""The command line: one file per group of commands; `app.py` lists them all."""

from __future__ import annotations

from offline.cli.app import main

__all__ = ["main"]
