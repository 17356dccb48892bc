"""The tables of earnings, stored with the releases.

`shelfwise earnings` writes them, and the operator's page reads them.
"""

from __future__ import annotations

from pathlib import Path

EARNINGS = "earnings.json"


def read_earnings(root: Path) -> bytes | None:
    """The tables as JSON, which docs/earnings.md describes; None if there are none.

    root: the directory of the releases. The file is replaced whole, so that it is never read in part.
    """
    try:
        return (root / EARNINGS).read_bytes()
    except FileNotFoundError:
        return None
