"""Team draft: one list from those of two arms, and which of them chose each item.

Source: Radlinski, Kurup and Joachims (2008), How does clickthrough data reflect retrieval quality?, section 5.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Draft(NamedTuple):
    """A list of two arms. item_ids: best first. teams: 0 or 1, like `item_ids`: the arm that chose the item; None for
    an item at a fixed position, which neither chose."""

    item_ids: list[str]
    teams: list[int | None]


def draft(
    lists: Sequence[Sequence[str]], limit: int, rng: np.random.Generator, fixed: Mapping[int, str] | None = None
) -> Draft:
    """Mix two lists of up to `limit` items: the arm with fewer items so far chooses next, and a coin decides if both
    have equally many. It chooses its best item that is not in the list yet.

    fixed: items by the position at which both lists have them, such as those of pins; they belong to no arm. If one arm
    has no item left, the other one chooses the rest.
    """
    fixed = fixed or {}
    out, teams = list[str](), list[int | None]()
    taken, next_item, count = set(fixed.values()), [0, 0], [0, 0]
    while len(out) < limit:
        if len(out) in fixed:
            out.append(fixed[len(out)])
            teams.append(None)
            continue
        for team in (0, 1):
            while next_item[team] < len(lists[team]) and lists[team][next_item[team]] in taken:
                next_item[team] += 1
        left = [team for team in (0, 1) if next_item[team] < len(lists[team])]
        if not left:
            break
        turn = int(rng.integers(2)) if count[0] == count[1] else int(count[1] < count[0])
        team = turn if turn in left else left[0]
        item_id = lists[team][next_item[team]]
        out.append(item_id)
        teams.append(team)
        taken.add(item_id)
        count[team] += 1
    # A fixed position beyond the end of the drafted items: these close up, as a pin does in a short list.
    for position in sorted(p for p in fixed if p >= len(out) and len(out) < limit and fixed[p] not in out):
        out.append(fixed[position])
        teams.append(None)
    return Draft(out[:limit], teams[:limit])
