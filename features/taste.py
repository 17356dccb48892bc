"""Taste factors: each item a short vector, a shopper's taste another, and their product is in log odds of a click.

A factor begins as what text, tags, category, brand and numbers say of the item. What all shoppers did then says which
directions of it people differ in, how much, and which go together; what of a description tells what people see in an
item; and moves an item away from its description where its own clicks say so. A user's taste is the mean of a normal
posterior over all he was shown at once: unlike a sum of what was clicked, it does not count twice what two attributes
of the same items explain.

Factorisation with a prior from attributes, learned by EM: Agarwal and Chen, KDD 2009 (regression-based latent factor
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
LEARNERS = 5000
"""Shoppers that factors are learned from at one time, the most lately active; 16 KiB of memory each for segments."""
_NUMBER, _TEXT = 0.05, 0.5
"""Variance of taste, in squared log odds, that a number and the text make before anything is learned."""
_CHUNK = 4096
_AT_ONCE = 256
"""Shoppers whose tastes are solved together; 64 KiB of memory each."""
_ROUNDS = 8
_ITEMS_FROM = 2
"""Rounds of learning, and the first in which items move: earlier, nothing is known of people to move them by."""
_PRIOR_SHOPPERS = 30.0
"""Shoppers' worth of evidence that the description's own directions count for."""
_PRIOR_EVIDENCE = 30.0
"""Precision, in squared log odds, with which an item stays where its description puts it, before that is learned."""
_PRIOR_ITEMS = 30.0
"""Items' worth of evidence that this first precision counts for."""
_RIDGE = 10.0
"""Of the regression of factors on descriptions."""


class Evidence(NamedTuple):
    """What one shopper did with what he was shown: the evidence of his taste. Rows may repeat an item.

    item: int32[s] rows of the catalogue. residual: float64[s], clicked less the chance of it. curvature: float64[s],
    chance times its complement.
    """

    item: I32
    residual: F64
    curvature: F64


@compiled
def taste_posterior_mean(
    factor: F32, centre: F32, log_share: F32, item: I32, residual: F64, curvature: F64, chance: float, elsewhere: I32
) -> F64:
    """float64[d]: the posterior mean of a user's taste.

    factor: float32[n + 1, d]. centre, log_share: of `features.segments`; without any, the prior is normal around 0 with
    unit covariance. item, residual, curvature: float64[s], of `Evidence`. chance: the clicks that were expected of all
    of these. elsewhere: int32[e], items engaged with that no remembered list showed; each stands against the shop's
    usual click, which is the origin, and weighs as a click within the remembered lists does.
    """
    d = factor.shape[1]
    precision, pull, mean = np.zeros((d, d)), np.zeros(d), np.zeros(d)
    total = 0.0
    x = np.empty(d)
    for s in range(len(item)):
        for k in range(d):
            x[k] = factor[item[s], k]
            pull[k] += residual[s] * x[k]
            mean[k] += curvature[s] * x[k]
        total += curvature[s]
        for k in range(d):
            c = curvature[s] * x[k]
            for j in range(k + 1):
                precision[k, j] += c * x[j]
    for s in range(len(elsewhere)):
        for k in range(d):
            pull[k] += factor[elsewhere[s], k]
    # What is common to all he was shown is his eagerness, not his taste.
    scale = 1.0 + len(elsewhere) / max(chance, 1.0)
    for k in range(d):
        for j in range(k + 1):
            precision[k, j] = scale * (precision[k, j] - mean[k] * mean[j] / (1.0 + total))
        precision[k, k] += 1.0
    _cholesky_in_place(precision)
    if len(centre):
        pull = pull + _segment_mean(precision, pull, centre, log_share)
    return _solve_upper(precision, _solve_lower(precision, pull))


@compiled
def _segment_mean(lower: F64, pull: F64, centre: F32, log_share: F32) -> F64:
    """float64[d]: the mean of the centres, each by the chance that the user is of that segment."""
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
    """Puts the Cholesky factor of `a`, positive definite, its lower triangle given, in its place."""
    for k in range(len(a)):
        for j in range(k + 1):
            total = a[k, j]
            for i in range(j):
                total -= a[k, i] * a[j, i]
            a[k, j] = np.sqrt(max(total, 1e-12)) if j == k else total / a[j, j]


@compiled
def _solve_lower(lower: F64, b: F64) -> F64:
    """The x of `lower x = b`."""
    x = b.copy()
    for k in range(len(b)):
        for i in range(k):
            x[k] -= lower[k, i] * x[i]
        x[k] /= lower[k, k]
    return x


@compiled
def _solve_upper(lower: F64, b: F64) -> F64:
    """The x of `lower' x = b`."""
    x = b.copy()
    for k in range(len(b) - 1, -1, -1):
        for i in range(k + 1, len(b)):
            x[k] -= lower[i, k] * x[i]
        x[k] /= lower[k, k]
    return x


def taste_logit(factor: F32, candidates: I32, taste: F64 | None, rate: F64, bounds: tuple[float, float]) -> F32:
    """float32[2, c]: see `Moment.taste_logits`. rate: float64[c], click rates; the nearer of `bounds` beyond."""
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
    """float64, like `candidates`: log odds that a taste adds to each; NaN for an unknown item."""
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
    """float32[n + 1, d <= 64]: the factor of each item, 0 for the unknown one; d is 0 where nobody was shown anything.

    values: of its items. vectors: float32[n + 1, d'] of their texts; a coordinate that is not finite counts as missing.
    clicks: float64[n + 1], how much of the shop's clicks each item has: their mean is the origin. evidence: one a
    shopper.
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
    d, factor, told = described.shape[1], described.copy(), _EvidenceByItem.by(evidence)
    description = described[told.items]
    regression = np.linalg.solve(description.T @ description + _RIDGE * np.eye(d), description.T)
    first, precision = described, _PRIOR_EVIDENCE * np.eye(d)
    for k in range(_ROUNDS):
        tastes = _user_posteriors(factor, evidence)
        if k >= _ITEMS_FROM:
            factor, precision = _update_items(described, told, tastes, precision)
            # What the items tell in common of what lies between factor and description is the description's to say.
            described = described + first @ (regression @ (factor - described)[told.items])
        turn = _matrix_square_root((tastes.total + _PRIOR_SHOPPERS * np.eye(d)) / (len(evidence) + _PRIOR_SHOPPERS))
        back = np.linalg.inv(turn)
        factor, described, precision = factor @ turn, described @ turn, back @ precision @ back.T
    return factor


def _aggregate_by_item(evidence: Evidence) -> Evidence:
    """The same with one row an item."""
    item, row = np.unique(evidence.item, return_inverse=True)
    return Evidence(
        item.astype(np.int32),
        np.bincount(row, evidence.residual).astype(np.float64),
        np.bincount(row, evidence.curvature).astype(np.float64),
    )


class _Posteriors(NamedTuple):
    """What is known of the learners' tastes: float64[users, d], the mean of each posterior.

    covariance: float64[d, d], mean of the posteriors', each weighed by its evidence. total: float64[d, d], the sum of
    the expected outer products.
    """

    mean: F64
    covariance: F64
    total: F64


def iter_posteriors(factor: F64, evidence: Sequence[Evidence]) -> Iterator[tuple[F64, F64]]:
    """Some shoppers at a time: float64[u, d, d] and float64[u, d], covariance and mean of their tastes' posteriors.

    The prior is normal around 0 with unit covariance.
    """
    d = factor.shape[1]
    for first in range(0, len(evidence), _AT_ONCE):
        some = evidence[first : first + _AT_ONCE]
        precision, pull = np.empty((len(some), d, d)), np.empty((len(some), d))
        for u, e in enumerate(some):
            x = factor[e.item]
            weighted = e.curvature @ x
            precision[u] = (x * e.curvature[:, None]).T @ x - np.outer(weighted, weighted) / (1.0 + e.curvature.sum())
            pull[u] = e.residual @ x
        covariance: F64 = np.linalg.inv(precision + np.eye(d)).astype(np.float64)
        yield covariance, (covariance @ pull[:, :, None])[:, :, 0]


def _user_posteriors(factor: F64, evidence: Sequence[Evidence]) -> _Posteriors:
    d, done = factor.shape[1], 0
    mean, weight = np.empty((len(evidence), d)), np.array([e.curvature.sum() for e in evidence])
    covariance, total = np.zeros((d, d)), np.zeros((d, d))
    for found, taste in iter_posteriors(factor, evidence):
        some = slice(done, done + len(found))
        mean[some] = taste
        covariance += np.tensordot(weight[some], found, axes=1)
        total += found.sum(axis=0)
        done = some.stop
    return _Posteriors(mean, covariance / max(weight.sum(), 1e-300), total + mean.T @ mean)


class _EvidenceByItem(NamedTuple):
    """The evidence of all learners, item by item: int64[m], the items that were shown, in order.

    start: int64[m + 1] into the rest. user: int64[rows], which learner. residual, curvature: float64[rows].
    """

    items: I64
    start: I64
    user: I64
    residual: F64
    curvature: F64

    @classmethod
    def by(cls, evidence: Sequence[Evidence]) -> _EvidenceByItem:
        """From one for each learner."""
        item, residual, curvature = (np.concatenate(column) for column in zip(*evidence, strict=True))
        order = np.argsort(item, kind="stable")
        items, first = np.unique(item[order], return_index=True)
        user = np.repeat(np.arange(len(evidence)), [len(e.item) for e in evidence])
        return cls(items.astype(np.int64), np.append(first, len(item)), user[order], residual[order], curvature[order])


def _update_items(described: F64, told: _EvidenceByItem, tastes: _Posteriors, precision: F64) -> tuple[F64, F64]:
    """Each item where its shoppers' tastes and its description put it; without evidence, where its description does.

    Also the precision with which items stay where they are described, as learned from how far these have moved. The
    covariance of tastes is everybody's mean: each shopper's own costs d times the time and gave worse factors.
    """
    d, out = described.shape[1], described.copy()
    apart = _PRIOR_ITEMS / _PRIOR_EVIDENCE * np.eye(d)
    for i, begin, end in zip(told.items, told.start[:-1], told.start[1:], strict=True):
        mean, curvature = tastes.mean[told.user[begin:end]], told.curvature[begin:end]
        covariance = np.linalg.inv(
            precision + (mean * curvature[:, None]).T @ mean + curvature.sum() * tastes.covariance
        )
        out[i] = covariance @ (told.residual[begin:end] @ mean + precision @ described[i])
        apart += covariance + np.outer(out[i] - described[i], out[i] - described[i])
    return out, np.linalg.inv(apart / (len(told.items) + _PRIOR_ITEMS)).astype(np.float64)


def _matrix_square_root(a: F64) -> F64:
    """The symmetric square root of a positive definite matrix."""
    value, direction = np.linalg.eigh(a)
    out: F64 = (direction * np.sqrt(np.maximum(value, 0.0))) @ direction.T
    return out


def _describe_items(catalogue: Catalogue, values: AttributeValues, vectors: F32) -> F64:
    """float64[n + 1, d]: the main directions of what is known of items, scaled so that taste has unit variance."""
    n = len(catalogue)
    total, square = np.zeros(0), np.zeros((0, 0))
    for chunk in _description_chunks(catalogue, values, vectors):
        total = total + chunk.sum(axis=0) if total.size else chunk.sum(axis=0).astype(np.float64)
        square = square + chunk.T @ chunk if square.size else (chunk.T @ chunk).astype(np.float64)
    mean = total / max(n, 1)
    value, direction = np.linalg.eigh(square - n * np.outer(mean, mean))
    kept = direction[:, ::-1][:, : min(DIMENSIONS, int((value > 1e-9 * max(value[-1], 1e-300)).sum()))]
    out = np.vstack(
        [
            *((chunk - mean) @ kept for chunk in _description_chunks(catalogue, values, vectors)),
            np.zeros((1, kept.shape[1])),
        ]
    )
    return np.asarray(out, np.float64)


def _description_chunks(catalogue: Catalogue, values: AttributeValues, vectors: F32) -> Iterator[F32]:
    """float32[rows, k] of all items in order, `_CHUNK` at a time: values had or not, numbers, text."""
    n, d = len(catalogue), vectors.shape[1]
    start, value, amount, share = values
    numbers = standardize(catalogue.numbers) * np.sqrt(_NUMBER)
    text = np.where(np.isfinite(vectors), vectors, 0).astype(np.float32)
    spread = float(((text[:n] - text[:n].mean(axis=0)) ** 2).sum() / max(n, 1)) if n else 0.0
    text *= np.float32(np.sqrt(_TEXT / spread)) if spread > 0 else np.float32(0)
    for first in range(0, n, _CHUNK):
        last = min(first + _CHUNK, n)
        out = np.zeros((last - first, len(share) + numbers.shape[1] + d), np.float32)
        owner = np.repeat(np.arange(last - first), np.diff(start[first : last + 1]))
        held = slice(start[first], start[last])
        out[owner, value[held]] = np.sqrt(share[value[held]]) * amount[held]
        out[:, len(share) : len(share) + numbers.shape[1]] = numbers[first:last]
        out[:, len(share) + numbers.shape[1] :] = text[first:last]
        yield out
