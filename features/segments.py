"""Segments: the kinds of shoppers there are, each a point among tastes around which its shoppers' own lie.

Tastes come in crowds, and a normal prior knows their spread alone. A mixture of normals knows the crowds: who shows a
little of one is expected to share the rest of it, whatever he was not shown. Where shoppers are few, or alike all the
way, the centres stay near the origin and nothing is changed.

Learned by EM from the evidence itself, not from estimates of tastes: Bishop, Pattern Recognition and Machine Learning,
chapter 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64
from features.taste import Evidence, iter_posteriors

SEGMENTS = 16
_SHOPPERS = 20
"""Shoppers for each segment at least: fewer make fewer segments."""
_STARTS, _SORTINGS, _ROUNDS = 4, 20, 20
"""Beginnings tried by k-means, rounds of it, and rounds of EM from the best of them."""
_PRIOR_SHOPPERS = 10.0
"""Shoppers' worth of evidence for a centre at the origin."""


class Segments(NamedTuple):
    """centre: float32[k, d], the mean taste of each segment, whose variance within is 1; k is 0 where there are none.

    log_share: float32[k], logarithm of the share of shoppers who are of it.
    """

    centre: F32
    log_share: F32

    @classmethod
    def none(cls) -> Segments:
        """No segments: everybody's taste lies around the origin."""
        return cls(np.empty((0, 0), np.float32), np.empty(0, np.float32))


def fit_segments(factor: F32, evidence: Sequence[Evidence]) -> Segments:
    """The segments of these shoppers, the same from the same evidence. factor: of `features.taste.factors`."""
    evidence = [e for e in evidence if len(e.item)]
    k, d = min(SEGMENTS, len(evidence) // _SHOPPERS), factor.shape[1]
    if k < 2 or not d:
        return Segments.none()
    covariance, mean = np.empty((len(evidence), d, d), np.float32), np.empty((len(evidence), d))
    done = 0
    for found, taste in iter_posteriors(factor.astype(np.float64), evidence):
        covariance[done : done + len(found)] = found
        mean[done : done + len(found)] = taste
        done += len(found)
    draw = np.random.default_rng(0)
    _, centre, size = min((_assign(mean, k, draw) for _ in range(_STARTS)), key=lambda found: found[0])
    log_share = _log_share(size)
    for _ in range(_ROUNDS):
        # What the mean of a shopper's posterior gains by a prior around each centre.
        gained = (covariance.reshape(-1, d) @ centre.T.astype(np.float32)).reshape(-1, d, k)
        log = mean @ centre.T + 0.5 * np.einsum("kd,udk->uk", centre, gained) - 0.5 * (centre**2).sum(axis=1)
        log += log_share
        member = np.exp(log - log.max(axis=1, keepdims=True))
        member /= member.sum(axis=1, keepdims=True)
        size = member.sum(axis=0)
        centre = (member.T @ mean + np.einsum("uk,udk->kd", member, gained)) / (size + _PRIOR_SHOPPERS)[:, None]
        log_share = _log_share(size)
    return Segments(centre.astype(np.float32), log_share.astype(np.float32))


def _log_share(size: F64) -> F64:
    """Of each segment by the shoppers in it, and one more, so that none has a share of 0."""
    out: F64 = np.log((size + 1.0) / (size + 1.0).sum())
    return out


def _assign(points: F64, k: int, draw: np.random.Generator) -> tuple[float, F64, F64]:
    """(sum of squared distances, float64[k, d] centres, float64[k] points of each), by k-means from a drawn beginning.

    The beginning: points far from one another (k-means++, Arthur and Vassilvitskii, SODA 2007).
    """
    centre = points[[draw.integers(len(points))]]
    apart = ((points - centre[0]) ** 2).sum(axis=1)
    while len(centre) < k:
        total = apart.sum()
        new = points[draw.choice(len(points), p=apart / total if total > 0 else None)]
        centre = np.vstack([centre, new])
        apart = np.minimum(apart, ((points - new) ** 2).sum(axis=1))
    for _ in range(_SORTINGS):
        distance = (centre**2).sum(axis=1) - 2 * points @ centre.T
        near = distance.argmin(axis=1)
        size = np.bincount(near, minlength=k).astype(np.float64)
        for j in np.flatnonzero(size):
            centre[j] = points[near == j].mean(axis=0)
    return float(distance.min(axis=1).sum()), centre, size
