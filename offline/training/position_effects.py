"""Position effects: the examination probability of each position, estimated from the lists the ranker learns from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from features.arrays import F32, F64
from features.log import Lists
from ranker.examination import fit_examination


def examination_probability(rows: F32, learned: Lists, lists: Lists, names: Sequence[str]) -> F64:
    """float64[rows of `lists`], in (0, 1]: examination probability of each row at the position where it was shown.

    It is estimated from the lists `learned`, by comparing their clicks with the clicks expected from item and taste.
    rows: float32[rows of `learned`, features]. names: of the features. A row that was not shown gets the probability
    of the deepest position, as in training. In a list without any position, such as a rebuilt one, every row gets 1.
    """
    logit = rows[:, names.index("taste_click_logit")].astype(np.float64)
    examined = fit_examination(learned.position, learned.gain > 0, 1.0 / (1.0 + np.exp(-logit)))
    last = len(examined) - 1
    was_shown = np.zeros(len(lists), bool)
    was_shown[lists.group[lists.position >= 0]] = True
    probability = examined[np.where(lists.position < 0, last, np.minimum(lists.position, last))]
    return np.where(was_shown[lists.group], probability, 1.0)
