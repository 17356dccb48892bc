"""Test of the sample ratio: whether the arms have as many units as their shares say.

If not, units were lost or counted twice in one arm, and no difference between the arms means anything. The test is the
sequential multinomial test of Lindon and Malek ("Anytime-valid inference for multinomial count data", NeurIPS 2022,
arXiv 2011.03567 of 2020): the Bayes factor of a mixture of Dirichlet priors around the shares against the shares
themselves. It may be looked at after every unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln, logsumexp  # type: ignore[import-untyped]

from features.arrays import F64, I64

LEVEL = 0.01
"""Probability of a false alarm, however often one looks."""
CONCENTRATIONS = (100.0, 1_000.0, 10_000.0, 100_000.0)
"""Weights of the priors, in units, which are equally likely. Of two equal arms, deviations of about 5, 1.6, 0.5 and
0.16 percentage points: a small shop can find only large ones, a large shop finds small ones."""


class SampleRatio(NamedTuple):
    """The result. units: by arm. shares: expected, sum 1. p: always valid, the smallest up to now; 1 without units.

    since: the first look with an alarm, None without one.
    """

    units: tuple[int, ...]
    shares: tuple[float, ...]
    p: float
    since: int | None

    @property
    def alarm(self) -> bool:
        """True if the counts do not fit the shares."""
        return self.since is not None


def log_bayes_factor(
    counts: I64 | F64, shares: Sequence[float] | F64, concentrations: Sequence[float] = CONCENTRATIONS
) -> F64:
    """float64[looks]: log of the Bayes factor against the shares.

    counts: [looks, arms], units so far. shares: of the arms, positive.
    """
    expected = np.asarray(shares, np.float64) / np.sum(shares)
    x, each = np.asarray(counts, np.float64), []
    for weight in concentrations:
        prior = weight * expected
        of_arms = (gammaln(prior + x) - gammaln(prior) - x * np.log(expected)).sum(axis=-1)
        each.append(gammaln(weight) - gammaln(weight + x.sum(axis=-1)) + of_arms)
    out: F64 = logsumexp(each, axis=0) - np.log(len(each))
    return out


def sample_ratio(counts: I64 | F64, shares: Sequence[float] | F64, level: float = LEVEL) -> SampleRatio:
    """The test after the last of the looks. counts, shares: as in `log_bayes_factor`; no look is no alarm."""
    total = float(np.sum(shares))
    fractions = tuple(float(s) / total for s in shares)
    if not len(counts):
        return SampleRatio((0,) * len(fractions), fractions, 1.0, None)
    p = np.minimum.accumulate(np.minimum(1.0, np.exp(-np.maximum(log_bayes_factor(counts, shares), 0.0))))
    alarms = np.flatnonzero(p <= level)
    return SampleRatio(
        tuple(round(float(c)) for c in counts[-1]), fractions, float(p[-1]), int(alarms[0]) if len(alarms) else None
    )
