"""`python -m offline.cli` is the `shelfwise` command."""

from offline.cli import main

main()
