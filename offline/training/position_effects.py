"""Position effects: how likely each place of a list was looked at, estimated from the ranker's own lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from features.arrays import F32, F64
from features.log import Lists
from ranker.examination import fit_examination


def examination_probability(rows: F32, learned: Lists, lists: Lists, names: Sequence[str]) -> F64:
    """float64[rows of `lists`], in (0, 1]: the chance that each row was looked at where it stood.

    rows: float32, of `learned`, the lists it is estimated from: their clicks are compared with those that item and
    taste make expect. names: of the features. A row that was not shown counts like the place looked at least, as in
    training.
    """
    logit = rows[:, names.index("taste_click_logit")].astype(np.float64)
    seen = fit_examination(learned.position, learned.gain > 0, 1.0 / (1.0 + np.exp(-logit)))
    last = len(seen) - 1
    return seen[np.where(lists.position < 0, last, np.minimum(lists.position, last))]
