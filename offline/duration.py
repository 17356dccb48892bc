"""A time as a person writes it on the command line."""

from __future__ import annotations

import re

from offline.quarantine import DataError


def seconds(budget: str) -> float:
    """Seconds of a time such as `90s`, `10m`, `1h30m` or `90`. Raises DataError for anything else, and for none."""
    found = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s?)?", budget.strip(), re.ASCII)
    total = sum(int(part) * unit for part, unit in zip(found.groups("0"), (3600, 60, 1), strict=True)) if found else 0
    if total <= 0:
        raise DataError(f"budget {budget[:50]!r} is no time; expected one such as 90s, 10m or 1h30m")
    return float(total)
