"""Segments: clusters of users in taste space, used as a mixture prior on tastes.

Tastes form clusters, and a single normal prior knows only their overall spread. A mixture of normals knows the
clusters: a user who shows part of a cluster's taste is expected to share the rest of it, including what they were never
shown. With few users, or users without clusters, the centres stay near the origin and have no effect.

Fitted by EM to the evidence itself rather than to estimated tastes: Bishop, Pattern Recognition and Machine Learning,
chapter 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64
from features.taste import Evidence, iter_posteriors

SEGMENTS = 16
_MIN_USERS = 20
"""Minimum number of users per segment; with few users there are fewer segments."""
_KMEANS_STARTS, _KMEANS_ROUNDS, _EM_ROUNDS = 4, 20, 20
"""Starts of k-means, iterations of each, and iterations of EM from the best of them."""
_PRIOR_USERS = 10.0
"""Shrinkage of each centre toward the origin, in users."""


class Segments(NamedTuple):
    """Components of the mixture prior on tastes.

    centre: float32[k, d], mean taste of each segment, with unit variance within; k is 0 without segments.
    log_share: float32[k], logarithm of each segment's share of the users.
    """

    centre: F32
    log_share: F32

    @classmethod
    def none(cls) -> Segments:
        """No segments: the prior is centred at the origin for every user."""
        return cls(np.empty((0, 0), np.float32), np.empty(0, np.float32))


def fit_segments(factor: F32, evidence: Sequence[Evidence]) -> Segments:
    """Fit segments to the evidence of these users; deterministic. factor: from `features.taste.fit_factors`."""
    evidence = [e for e in evidence if len(e.item)]
    k, d = min(SEGMENTS, len(evidence) // _MIN_USERS), factor.shape[1]
    if k < 2 or not d:
        return Segments.none()
    covariance, mean = np.empty((len(evidence), d, d), np.float32), np.empty((len(evidence), d))
    begin = 0
    for batch_covariance, batch_mean in iter_posteriors(factor.astype(np.float64), evidence):
        covariance[begin : begin + len(batch_covariance)] = batch_covariance
        mean[begin : begin + len(batch_covariance)] = batch_mean
        begin += len(batch_covariance)
    rng = np.random.default_rng(0)
    _, centre, size = min((_kmeans(mean, k, rng) for _ in range(_KMEANS_STARTS)), key=lambda fit: fit[0])
    log_share = _log_share(size)
    for _ in range(_EM_ROUNDS):
        # Shift of each user's posterior mean by a prior around each centre.
        shift = (covariance.reshape(-1, d) @ centre.T.astype(np.float32)).reshape(-1, d, k)
        log = mean @ centre.T + 0.5 * np.einsum("kd,udk->uk", centre, shift) - 0.5 * (centre**2).sum(axis=1)
        log += log_share
        membership = np.exp(log - log.max(axis=1, keepdims=True))
        membership /= membership.sum(axis=1, keepdims=True)
        size = membership.sum(axis=0)
        centre = (membership.T @ mean + np.einsum("uk,udk->kd", membership, shift)) / (size + _PRIOR_USERS)[:, None]
        log_share = _log_share(size)
    return Segments(centre.astype(np.float32), log_share.astype(np.float32))


def _log_share(size: F64) -> F64:
    """Log share of users per segment; one is added to each size, so that no share is 0."""
    out: F64 = np.log((size + 1.0) / (size + 1.0).sum())
    return out


def _kmeans(points: F64, k: int, rng: np.random.Generator) -> tuple[float, F64, F64]:
    """k-means: the sum of squared distances, the centres float64[k, d], and the number of points of each float64[k].

    Starts from points that are far apart (k-means++, Arthur and Vassilvitskii, SODA 2007).
    """
    centre = points[[rng.integers(len(points))]]
    squared_distance = ((points - centre[0]) ** 2).sum(axis=1)
    while len(centre) < k:
        total = squared_distance.sum()
        point = points[rng.choice(len(points), p=squared_distance / total if total > 0 else None)]
        centre = np.vstack([centre, point])
        squared_distance = np.minimum(squared_distance, ((points - point) ** 2).sum(axis=1))
    for _ in range(_KMEANS_ROUNDS):
        distance = (centre**2).sum(axis=1) - 2 * points @ centre.T
        nearest = distance.argmin(axis=1)
        size = np.bincount(nearest, minlength=k).astype(np.float64)
        for j in np.flatnonzero(size):
            centre[j] = points[nearest == j].mean(axis=0)
    return float(distance.min(axis=1).sum()), centre, size
