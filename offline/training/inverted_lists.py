"""Centres of a catalogue's inverted lists: k-means over a sample of the item vectors. Offline only."""

from __future__ import annotations

import numpy as np

from features.arrays import F32
from features.text.inverted_lists import EXACT_UP_TO, InvertedLists

_SAMPLE = 50
"""Items sampled per list. Larger samples hardly move the centres."""


def build_inverted_lists(vectors: F32, seed: int, above: int = EXACT_UP_TO) -> InvertedLists | None:
    """Inverted lists of a catalogue, or None unless more than `above` of its items have a vector.

    vectors: float32[n + 1, d], the last row for the unknown item, NaN rows for missing vectors. Builds `4 * sqrt(n)`
    lists. On one machine the same vectors and seed give the same lists.
    """
    known = np.flatnonzero(np.isfinite(vectors[:-1]).all(axis=1))
    if len(known) <= above:
        return None
    from sklearn.cluster import MiniBatchKMeans  # takes a second to import, and only large catalogues need it

    count = max(int(4 * len(known) ** 0.5), 1)
    rng = np.random.default_rng(seed)
    count = min(count, len(known))
    sample = np.sort(rng.choice(known, min(len(known), _SAMPLE * count), replace=False))
    settings = {"batch_size": 8192, "max_iter": 10, "n_init": 1, "init": "random", "reassignment_ratio": 0.0}
    kmeans = MiniBatchKMeans(count, random_state=seed, max_no_improvement=None, **settings).fit(vectors[sample])
    return InvertedLists.assigned(vectors, kmeans.cluster_centers_.astype(np.float32))
