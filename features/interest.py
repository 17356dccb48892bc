"""The user tower: no weights of its own, a weighted mean over the vectors of the user's list.

The encoder is trained through `weights` and the service pools with them, so what is trained is what is served.
"""

from __future__ import annotations

import numpy as np

from features.log import F32, F64, I8, Kind

AGE_HALF_LIFE_S = 14 * 86400.0
"""An engagement this old weighs half as much as one just now."""

_KIND_WEIGHT = np.zeros(len(Kind), np.float32)
_KIND_WEIGHT[[Kind.VIEW, Kind.CLICK, Kind.CART, Kind.PURCHASE, Kind.RATING]] = (1.0, 1.0, 2.0, 3.0, 1.0)


def weights(kind: I8, age_s: F64) -> F32:
    """float32, like `kind`: how much each engagement counts towards interest; impressions 0, a fresh purchase 3.

    age_s: seconds from the engagement to the moment of reading, at least 0.
    """
    out: F32 = (_KIND_WEIGHT[kind] * np.exp2(-age_s / AGE_HALF_LIFE_S)).astype(np.float32)
    return out
