"""Co-occurrence neighbours: items that the same users engaged with, top-K per item, a release artefact.

Cosine over users, `sum_u w_ui w_uj / (|i| |j|)`, so a popular item is no one's neighbour by popularity alone. A user's
weight on an item fades with age, users are capped at their newest items (uncapped, the heaviest users are 280 times the
work and no more signal), and impressions never count: items shown in one list compete, which would make likes look
opposed. (Recency-weighted item kNN: Sarwar et al., WWW 2001; cosine with shrinkage as in Dacrema et al., RecSys 2019.)
"""

from __future__ import annotations

from dataclasses import dataclass

from features.log import F32, I32


@dataclass(frozen=True)
class Neighbours:
    """The K nearest of every item by co-occurrence.

    item: int32[n + 1, K], best first, `-1` where there are fewer. weight: float32[n + 1, K] in (0, 1], 0 where none.
    The last row, the unknown item, has none.
    """

    item: I32
    weight: F32
