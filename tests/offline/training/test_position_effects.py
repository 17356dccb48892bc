"""Examination probabilities where only some of the lists were shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from offline.training.position_effects import examination_probability
from tests.worlds import make_lists


def test_rebuilt_lists_have_no_position_effect_and_do_not_change_that_of_logged_ones() -> None:
    """200 lists of two items, clicked at the top; the expected click rate of every item is a half.

    A rebuilt list gets 1 for all items. A row without a position in a logged list gets the value of the last position.
    """
    logged = make_lists([float(k) for k in range(200)], [0] * 200, [[1, 2]] * 200)
    logged = replace(logged, position=np.tile([0, 1], 200).astype(np.int16), gain=np.tile([1, 0], 200).astype(np.int8))
    rows = np.zeros((400, 1), np.float32)  # a logit of 0 is a probability of a half
    asked = make_lists([0.0, 1.0], [0, 0], [[1, 2, 3], [1, 2, 3]])
    asked = replace(asked, position=np.array([0, 1, -1, -1, -1, -1], np.int16))
    top, second, unknown, *rebuilt = examination_probability(rows, logged, asked, ["taste_click_logit"]).tolist()
    assert rebuilt == [1.0, 1.0, 1.0]
    assert top == 1.0
    # Observed clicks are twice the expected ones at the top and none below: (0 + 20) / (100 + 20), relative to
    # (200 + 20) / (100 + 20) at the top, with a prior of 20 clicks.
    assert second == unknown == max(0.1, 20 / 220)
    both = replace(logged, position=np.where(np.arange(400) < 200, logged.position, -1).astype(np.int16))
    assert examination_probability(rows, both, asked, ["taste_click_logit"])[3:].tolist() == rebuilt
