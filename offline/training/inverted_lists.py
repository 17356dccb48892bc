"""Where a catalogue's inverted lists have their centres: k-means over a sample of the item vectors, offline alone."""

from __future__ import annotations

import numpy as np

from features.arrays import F32
from features.text.inverted_lists import EXACT_UP_TO, InvertedLists

_SAMPLE = 50
"""Items drawn for each list; more of them move the centres little."""


def build_inverted_lists(vectors: F32, seed: int, above: int = EXACT_UP_TO) -> InvertedLists | None:
    """The lists of a catalogue with more than `above` items that have text; None for a smaller one.

    vectors: float32[n + 1, d], NaN rows missing. `4 * sqrt(n)` lists. On one machine the same vectors and seed give
    the same lists.
    """
    known = np.flatnonzero(np.isfinite(vectors[:-1]).all(axis=1))
    if len(known) <= above:
        return None
    from sklearn.cluster import MiniBatchKMeans  # a second to import, and only a large catalogue needs it

    count = max(int(4 * len(known) ** 0.5), 1)
    rng = np.random.default_rng(seed)
    count = min(count, len(known))
    drawn = np.sort(rng.choice(known, min(len(known), _SAMPLE * count), replace=False))
    settings = {"batch_size": 8192, "max_iter": 10, "n_init": 1, "init": "random", "reassignment_ratio": 0.0}
    means = MiniBatchKMeans(count, random_state=seed, max_no_improvement=None, **settings).fit(vectors[drawn])
    return InvertedLists.assigned(vectors, means.cluster_centers_.astype(np.float32))
