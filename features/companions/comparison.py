"""Comparison of candidates with the items on the page or in the cart (the seeds): the values of features."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from features.arrays import F32, F64, I32
from features.catalogue import Catalogue
from features.companions.scores import seed_scores
from features.companions.tables import Companions
from features.kernels.compiled import compiled
from features.neighbours import Neighbours
from features.text.vectors import Vectors


class SeedRow(IntEnum):
    """Rows of `compare`. TOGETHER, GOES_WITH and FOLLOWING are two each: sum and maximum over the seeds."""

    TEXT_MAX = 0
    TEXT_MEAN = 1
    SAME_CATEGORY = 2
    PRICE = 3
    CO_OCCURRENCE = 4
    TOGETHER = 5
    GOES_WITH = 7
    FOLLOWING = 9


ROWS = 11


@compiled
def _attributes(cosines: F32, code: I32, missing: int, price: F64, candidates: I32, seeds: I32) -> F64:
    """float64[4, c]: the first four rows of `compare`. Sums run in the order of the seeds, however many candidates."""
    out = np.full((4, len(candidates)), np.nan)
    known, total = 0, 0.0
    for s in range(len(seeds)):
        if np.isfinite(price[seeds[s]]):
            known += 1
            total += np.log1p(max(price[seeds[s]], 0.0))
    usual = total / known if known else np.nan
    for c in range(len(candidates)):
        if candidates[c] < 0:
            continue
        with_text, with_category, alike = 0, 0, 0
        largest, sum_of = -2.0, 0.0
        own = code[candidates[c]]
        for s in range(len(seeds)):
            cosine = cosines[s, c]
            if not np.isnan(cosine):
                with_text += 1
                sum_of += cosine
                largest = max(largest, np.float64(cosine))
            other = code[seeds[s]]
            if other != missing:
                with_category += 1
                alike += own == other
        if with_text:
            out[0, c], out[1, c] = largest, sum_of / with_text
        if own != missing and with_category:
            out[2, c] = alike / with_category
        if np.isfinite(price[candidates[c]]):
            out[3, c] = np.log1p(max(price[candidates[c]], 0.0)) - usual
    return out


def compare(
    companions: Companions, neighbours: Neighbours, vectors: Vectors, catalogue: Catalogue, candidates: I32, seeds: I32
) -> F64:
    """float64[ROWS, c]: each candidate compared with the seeds; all NaN without seeds or for an unknown candidate.

    Largest and mean cosine of the texts; share of the seeds in the candidate's category; log(1 + price) minus its mean
    over the seeds; sum of the co-occurrence with the seeds; sum and maximum of the weights in each table of companions,
    NaN if it has nothing for any seed. candidates: int32[c], `-1` unknown. seeds: int32[s], known.
    """
    out = np.full((ROWS, len(candidates)), np.nan)
    if not len(seeds):
        return out
    cosines = vectors.interest(candidates, seeds, np.empty((0, vectors.code.shape[1])))
    missing = len(catalogue.category_names)
    out[:4] = _attributes(cosines, catalogue.category, missing, catalogue.price, candidates, seeds)
    amount = np.ones(len(seeds))
    out[SeedRow.CO_OCCURRENCE] = neighbours.scores(candidates, seeds, amount)[0]
    for row, table in (
        (SeedRow.TOGETHER, companions.together),
        (SeedRow.GOES_WITH, companions.goes_with),
        (SeedRow.FOLLOWING, companions.following),
    ):
        # Computed in any case, so that the first request compiles all there is to compile.
        scores = seed_scores(table, candidates, seeds, amount)
        out[row : row + 2] = scores if (table.item[seeds, 0] >= 0).any() else np.nan
    out[:, candidates < 0] = np.nan
    return out
