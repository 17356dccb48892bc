"""Runs `shelfwise` as `python -m offline.cli`."""

from offline.cli import main

main()
