"""Taste factors: a short vector for each item and one for each user's taste; their product is in log odds of a click.

A factor starts from the item's description: its text, tags, category, brand and numbers. EM over the behaviour of all
users then learns the directions in which tastes differ, how much they differ and how they correlate; learns which parts
of a description predict how users respond to an item; and moves an item away from its description where its own clicks
say so. A user's taste is the mean of a normal posterior given everything they were shown. Unlike a sum over clicked
items, it does not count a click twice if two attributes of the item explain it.

Factorisation with a prior from attributes, fitted by EM: Agarwal and Chen, KDD 2009 (regression-based latent factor
models).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I32, I64
from features.catalogue import Catalogue
from features.kernels.compiled import compiled
from features.prior import standardize
from features.text.implied_tags import AttributeValues

DIMENSIONS = 64
MAX_USERS = 5000
"""Number of users that factors are fitted to, the most recently shown; 16 KiB of memory each for segments."""
_NUMBER_VARIANCE, _TEXT_VARIANCE = 0.05, 0.5
"""Prior variance of taste, in squared log odds, due to a number and to the text."""
_CHUNK_ITEMS = 4096
_BATCH_USERS = 256
"""Users whose tastes are solved together; 64 KiB of memory each."""
_EM_ROUNDS = 8
_FIRST_ITEM_ROUND = 2
"""EM iterations, and the first one that updates items: before it, tastes are too uncertain to move items."""
_PRIOR_USERS = 30.0
"""Shrinkage of the covariance of tastes toward the identity, in users."""
_PRIOR_PRECISION = 30.0
"""Initial precision, in squared log odds, of an item's factor around its description."""
_PRIOR_ITEMS = 30.0
"""Shrinkage of later estimates of that precision toward it, in items."""
_RIDGE = 10.0
"""Penalty of the ridge regression of factors on descriptions."""


class Evidence(NamedTuple):
    """One user's observed minus expected clicks on the items they were shown. Items may repeat.

    item: int32[s] catalogue rows. residual: float64[s], clicked (1 or 0) minus the click probability. curvature:
    float64[s], click probability times its complement.
    """

    item: I32
    residual: F64
    curvature: F64


@compiled
def taste_posterior_mean(
    factor: F32,
    centre: F32,
    log_share: F32,
    item: I32,
    residual: F64,
    curvature: F64,
    expected_clicks: float,
    elsewhere: I32,
) -> F64:
    """float64[d]: the posterior mean of a user's taste.

    factor: float32[n + 1, d]. centre, log_share: of `features.segments`; if empty, the prior is normal around 0 with
    unit covariance. item, residual, curvature: float64[s], as in `Evidence`. expected_clicks: the expected number of
    clicks on all of these. elsewhere: int32[e], items engaged with that are not among the stored impressions. Each
    of them is compared with the shop's average click, which is the origin, and weighs as much as a click on a stored
    impression.
    """
    d = factor.shape[1]
    pull = np.zeros(d)
    for s in range(len(item)):
        for k in range(d):
            pull[k] += residual[s] * factor[item[s], k]
    for s in range(len(elsewhere)):
        for k in range(d):
            pull[k] += factor[elsewhere[s], k]
    precision = _posterior_precision(factor, item, curvature, expected_clicks, len(elsewhere))
    _cholesky_in_place(precision)
    if len(centre):
        pull = pull + _segment_mean(precision, pull, centre, log_share)
    return _solve_upper(precision, _solve_lower(precision, pull))


@compiled
def _posterior_precision(factor: F32, item: I32, curvature: F64, expected_clicks: float, elsewhere: int) -> F64:
    """float64[d, d]: lower triangle of the precision of the posterior with a normal prior of unit covariance."""
    d = factor.shape[1]
    precision, mean = np.zeros((d, d)), np.zeros(d)
    total = 0.0
    x = np.empty(d)
    for s in range(len(item)):
        for k in range(d):
            x[k] = factor[item[s], k]
            mean[k] += curvature[s] * x[k]
        total += curvature[s]
        for k in range(d):
            c = curvature[s] * x[k]
            for j in range(k + 1):
                precision[k, j] += c * x[j]
    # Remove what all shown items have in common: that is the user's eagerness, not their taste.
    scale = 1.0 + elsewhere / max(expected_clicks, 1.0)
    for k in range(d):
        for j in range(k + 1):
            precision[k, j] = scale * (precision[k, j] - mean[k] * mean[j] / (1.0 + total))
        precision[k, k] += 1.0
    return precision


def taste_variance(
    factor: F32, candidates: I32, item: I32, curvature: F64, expected_clicks: float, elsewhere: int
) -> F64:
    """float64[c]: variance of the log odds that a user's taste adds to each candidate; 0 for an unknown item.

    Arguments as in `taste_posterior_mean`; elsewhere: the number of those items. Segments are left out: within one, the
    variance is the same, and how they differ is part of the prior of unit covariance.
    """
    lower = _posterior_precision(factor, item, curvature, float(expected_clicks), elsewhere)
    covariance = np.linalg.inv(np.tril(lower) + np.tril(lower, -1).T)
    rows = factor[candidates].astype(np.float64)
    out: F64 = np.maximum(((rows @ covariance) * rows).sum(axis=1), 0.0)
    return out


@compiled
def _segment_mean(lower: F64, pull: F64, centre: F32, log_share: F32) -> F64:
    """float64[d]: mean of the centres, weighted by the probability that the user belongs to each segment."""
    d = len(pull)
    weight, mean, x = np.empty(len(centre)), np.zeros(d), np.empty(d)
    for s in range(len(centre)):
        weight[s] = log_share[s]
        for k in range(d):
            x[k] = pull[k] + centre[s, k]
            weight[s] -= 0.5 * centre[s, k] * centre[s, k]
        x = _solve_lower(lower, x)
        for k in range(d):
            weight[s] += 0.5 * x[k] * x[k]
    weight = np.exp(weight - weight.max())
    weight /= weight.sum()
    for s in range(len(centre)):
        for k in range(d):
            mean[k] += weight[s] * centre[s, k]
    return mean


@compiled
def _cholesky_in_place(a: F64) -> None:
    """Overwrite the lower triangle of `a`, a positive definite matrix, with its Cholesky factor."""
    for k in range(len(a)):
        for j in range(k + 1):
            total = a[k, j]
            for i in range(j):
                total -= a[k, i] * a[j, i]
            a[k, j] = np.sqrt(max(total, 1e-12)) if j == k else total / a[j, j]


@compiled
def _solve_lower(lower: F64, b: F64) -> F64:
    """Solve `lower x = b`."""
    x = b.copy()
    for k in range(len(b)):
        for i in range(k):
            x[k] -= lower[k, i] * x[i]
        x[k] /= lower[k, k]
    return x


@compiled
def _solve_upper(lower: F64, b: F64) -> F64:
    """Solve `lower' x = b`."""
    x = b.copy()
    for k in range(len(b) - 1, -1, -1):
        for i in range(k + 1, len(b)):
            x[k] -= lower[i, k] * x[i]
        x[k] /= lower[k, k]
    return x


def taste_logit(factor: F32, candidates: I32, taste: F64 | None, rate: F64, bounds: tuple[float, float]) -> F32:
    """float32[2, c]: see `Moment.taste_logits`. rate: float64[c], click rates, clipped to `bounds`."""
    own = np.full(len(candidates), np.nan) if taste is None else logits(factor, candidates, taste)
    return _add_rate_logit(own.astype(np.float32), rate, *bounds)


@compiled
def _add_rate_logit(own: F32, rate: F64, least: float, most: float) -> F32:
    out = np.empty((2, len(own)), np.float32)
    for c in range(len(own)):
        bounded = least if rate[c] < least else most if rate[c] > most else rate[c]
        out[0, c] = own[c]
        out[1, c] = np.log(bounded / (1.0 - bounded)) + (0.0 if np.isnan(own[c]) else np.float64(own[c]))
    return out


@compiled
def logits(factor: F32, candidates: I32, taste: F64) -> F64:
    """float64, like `candidates`: log odds that a taste adds to each item; NaN for an unknown item."""
    out = np.full(len(candidates), np.nan)
    for c in range(len(candidates)):
        if candidates[c] >= 0:
            total = 0.0
            for k in range(len(taste)):
                total += factor[candidates[c], k] * taste[k]
            out[c] = total
    return out


def fit_factors(
    catalogue: Catalogue, values: AttributeValues, vectors: F32, clicks: F64, evidence: Sequence[Evidence]
) -> F32:
    """float32[n + 1, d <= 64]: the factor of each item, 0 for the unknown one; d is 0 if no user was shown anything.

    values: of the catalogue's items. vectors: float32[n + 1, d'] of their texts; a coordinate that is not finite counts
    as missing. clicks: float64[n + 1], clicks per item; the mean factor weighted by them becomes the origin.
    evidence: one entry per user.
    """
    evidence = [_aggregate_by_item(e) for e in evidence if len(e.item)]
    if not evidence:
        return np.empty((len(catalogue) + 1, 0), np.float32)
    factor = _expectation_maximization(_describe_items(catalogue, values, vectors), evidence)
    weight = clicks[:-1] + 1.0
    factor -= (weight[:, None] * factor[:-1]).sum(axis=0) / weight.sum()
    factor[-1] = 0.0
    return factor.astype(np.float32)


def _expectation_maximization(described: F64, evidence: Sequence[Evidence]) -> F64:
    """float64[n + 1, d]: factors in coordinates in which tastes have unit covariance."""
    d, factor, by_item = described.shape[1], described.copy(), _EvidenceByItem.by(evidence)
    description = described[by_item.items]
    regression = np.linalg.solve(description.T @ description + _RIDGE * np.eye(d), description.T)
    initial, precision = described, _PRIOR_PRECISION * np.eye(d)
    for k in range(_EM_ROUNDS):
        tastes = _user_posteriors(factor, evidence)
        if k >= _FIRST_ITEM_ROUND:
            factor, precision = _update_items(described, by_item, tastes, precision)
            # Move all descriptions by the part of the items' moves that a regression on descriptions predicts.
            described = described + initial @ (regression @ (factor - described)[by_item.items])
        root = _matrix_square_root((tastes.total + _PRIOR_USERS * np.eye(d)) / (len(evidence) + _PRIOR_USERS))
        inverse_root = np.linalg.inv(root)
        factor, described, precision = factor @ root, described @ root, inverse_root @ precision @ inverse_root.T
    return factor


def _aggregate_by_item(evidence: Evidence) -> Evidence:
    """The same evidence, summed to one row per item."""
    item, row = np.unique(evidence.item, return_inverse=True)
    return Evidence(
        item.astype(np.int32),
        np.bincount(row, evidence.residual).astype(np.float64),
        np.bincount(row, evidence.curvature).astype(np.float64),
    )


class _Posteriors(NamedTuple):
    """Posteriors of the tastes of all users.

    mean: float64[users, d], mean of each posterior. covariance: float64[d, d], mean of the posterior covariances,
    weighted by evidence. total: float64[d, d], sum of the expected outer products of tastes.
    """

    mean: F64
    covariance: F64
    total: F64


def iter_posteriors(factor: F64, evidence: Sequence[Evidence]) -> Iterator[tuple[F64, F64]]:
    """Yield the covariances float64[u, d, d] and means float64[u, d] of taste posteriors, a batch of users at a time.

    The prior is normal around 0 with unit covariance.
    """
    d = factor.shape[1]
    for first in range(0, len(evidence), _BATCH_USERS):
        batch = evidence[first : first + _BATCH_USERS]
        precision, pull = np.empty((len(batch), d, d)), np.empty((len(batch), d))
        for u, e in enumerate(batch):
            x = factor[e.item]
            weighted = e.curvature @ x
            precision[u] = (x * e.curvature[:, None]).T @ x - np.outer(weighted, weighted) / (1.0 + e.curvature.sum())
            pull[u] = e.residual @ x
        covariance: F64 = np.linalg.inv(precision + np.eye(d)).astype(np.float64)
        yield covariance, (covariance @ pull[:, :, None])[:, :, 0]


def _user_posteriors(factor: F64, evidence: Sequence[Evidence]) -> _Posteriors:
    d, begin = factor.shape[1], 0
    mean, weight = np.empty((len(evidence), d)), np.array([e.curvature.sum() for e in evidence])
    covariance, total = np.zeros((d, d)), np.zeros((d, d))
    for batch_covariance, batch_mean in iter_posteriors(factor, evidence):
        batch = slice(begin, begin + len(batch_covariance))
        mean[batch] = batch_mean
        covariance += np.tensordot(weight[batch], batch_covariance, axes=1)
        total += batch_covariance.sum(axis=0)
        begin = batch.stop
    return _Posteriors(mean, covariance / max(weight.sum(), 1e-300), total + mean.T @ mean)


class _EvidenceByItem(NamedTuple):
    """The evidence of all users, grouped by item.

    items: int64[m], the items that were shown, ascending. start: int64[m + 1], first row of each item in the other
    arrays. user: int64[rows], index of the user. residual, curvature: float64[rows].
    """

    items: I64
    start: I64
    user: I64
    residual: F64
    curvature: F64

    @classmethod
    def by(cls, evidence: Sequence[Evidence]) -> _EvidenceByItem:
        """Group the evidence of each user by item."""
        item, residual, curvature = (np.concatenate(column) for column in zip(*evidence, strict=True))
        order = np.argsort(item, kind="stable")
        items, first = np.unique(item[order], return_index=True)
        user = np.repeat(np.arange(len(evidence)), [len(e.item) for e in evidence])
        return cls(items.astype(np.int64), np.append(first, len(item)), user[order], residual[order], curvature[order])


def _update_items(described: F64, by_item: _EvidenceByItem, tastes: _Posteriors, precision: F64) -> tuple[F64, F64]:
    """Posterior means of the item factors, and the new precision of factors around their descriptions.

    An item without evidence stays at its description. The precision is estimated from how far the others moved. All
    items use one covariance of tastes, the mean over users: using each user's own takes d times as long and gave worse
    factors.
    """
    d, out = described.shape[1], described.copy()
    scatter = _PRIOR_ITEMS / _PRIOR_PRECISION * np.eye(d)
    for i, begin, end in zip(by_item.items, by_item.start[:-1], by_item.start[1:], strict=True):
        mean, curvature = tastes.mean[by_item.user[begin:end]], by_item.curvature[begin:end]
        covariance = np.linalg.inv(
            precision + (mean * curvature[:, None]).T @ mean + curvature.sum() * tastes.covariance
        )
        out[i] = covariance @ (by_item.residual[begin:end] @ mean + precision @ described[i])
        scatter += covariance + np.outer(out[i] - described[i], out[i] - described[i])
    return out, np.linalg.inv(scatter / (len(by_item.items) + _PRIOR_ITEMS)).astype(np.float64)


def _matrix_square_root(a: F64) -> F64:
    """The symmetric square root of a positive definite matrix."""
    value, direction = np.linalg.eigh(a)
    out: F64 = (direction * np.sqrt(np.maximum(value, 0.0))) @ direction.T
    return out


def _describe_items(catalogue: Catalogue, values: AttributeValues, vectors: F32) -> F64:
    """float64[n + 1, d]: principal components of item descriptions, scaled so that taste has unit variance."""
    n = len(catalogue)
    total, square = np.zeros(0), np.zeros((0, 0))
    for chunk in _description_chunks(catalogue, values, vectors):
        total = total + chunk.sum(axis=0) if total.size else chunk.sum(axis=0).astype(np.float64)
        square = square + chunk.T @ chunk if square.size else (chunk.T @ chunk).astype(np.float64)
    mean = total / max(n, 1)
    value, direction = np.linalg.eigh(square - n * np.outer(mean, mean))
    components = direction[:, ::-1][:, : min(DIMENSIONS, int((value > 1e-9 * max(value[-1], 1e-300)).sum()))]
    out = np.vstack(
        [
            *((chunk - mean) @ components for chunk in _description_chunks(catalogue, values, vectors)),
            np.zeros((1, components.shape[1])),
        ]
    )
    return np.asarray(out, np.float64)


def _description_chunks(catalogue: Catalogue, values: AttributeValues, vectors: F32) -> Iterator[F32]:
    """float32[rows, k] of all items in order, `_CHUNK_ITEMS` at a time: indicators of values, numbers, text."""
    n, d = len(catalogue), vectors.shape[1]
    start, value, amount, share = values
    numbers = standardize(catalogue.numbers) * np.sqrt(_NUMBER_VARIANCE)
    text = np.where(np.isfinite(vectors), vectors, 0).astype(np.float32)
    spread = float(((text[:n] - text[:n].mean(axis=0)) ** 2).sum() / max(n, 1)) if n else 0.0
    text *= np.float32(np.sqrt(_TEXT_VARIANCE / spread)) if spread > 0 else np.float32(0)
    for first in range(0, n, _CHUNK_ITEMS):
        last = min(first + _CHUNK_ITEMS, n)
        out = np.zeros((last - first, len(share) + numbers.shape[1] + d), np.float32)
        owner = np.repeat(np.arange(last - first), np.diff(start[first : last + 1]))
        entries = slice(start[first], start[last])
        out[owner, value[entries]] = np.sqrt(share[value[entries]]) * amount[entries]
        out[:, len(share) : len(share) + numbers.shape[1]] = numbers[first:last]
        out[:, len(share) + numbers.shape[1] :] = text[first:last]
        yield out
