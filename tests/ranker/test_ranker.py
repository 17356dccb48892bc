"""Ranker training: learns a planted order, removes position bias, stops early, and is reproducible."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from ranker.metrics import score_lists, tie_break
from ranker.train import RankerConfig, Trained, refit, train
from ranker.trees import Trees

NAMES = ("noise", "taste", "price", "kind")
SIZE = 20
SMALL = RankerConfig(trees=30, leaves=7, min_data_in_leaf=10, early_stopping_rounds=10, position_debias=False)


def world(seed: int, lists: int = 120) -> dict[str, Any]:
    """Lists in which gain increases with `taste` and decreases if `price` is missing; `noise` and `kind` are noise."""
    rng = np.random.default_rng(seed)
    n = lists * SIZE
    rows = rng.normal(size=(n, 4)).astype(np.float32)
    rows[:, 3] = rng.integers(0, 4, n)
    rows[rng.random(n) < 0.3, 2] = np.nan
    utility = 2 * rows[:, 1] - 1.5 * np.isnan(rows[:, 2]) + 0.3 * rng.normal(size=n)
    gain = np.digitize(utility, [2.0, 3.0, 4.0]).astype(np.int8)
    return {"rows": rows, "gain": gain, "start": np.arange(0, n + 1, SIZE), "utility": utility}


def trained(config: RankerConfig = SMALL, seed: int = 0, **changes: Any) -> Trained:
    fit, valid = world(seed), world(seed + 1)
    arrays = {key: fit[key] for key in ("rows", "gain", "start")}
    arrays |= {f"valid_{key}": valid[key] for key in ("rows", "gain", "start")}
    return train(**(arrays | {"names": NAMES, "config": config} | changes))


def test_refit_trains_the_chosen_number_of_trees_on_the_given_lists() -> None:
    """On the original lists it gives the original model; on more lists a new one with the same number of trees."""
    chosen, fit, valid = trained(), world(0), world(1)
    same = refit(chosen, fit["rows"], fit["gain"], fit["start"], NAMES, SMALL)
    assert Trees.parse(same.model_text).score(valid["rows"]).tolist() == pytest.approx(
        Trees.parse(chosen.model_text).score(valid["rows"]).tolist(), rel=1e-12
    )
    start = np.concatenate([fit["start"], fit["start"][-1] + valid["start"][1:]])
    rows, gain = np.vstack([fit["rows"], valid["rows"]]), np.concatenate([fit["gain"], valid["gain"]])
    more = refit(chosen, rows, gain, start, NAMES, SMALL)
    assert (more.best_iteration, more.model_text.count("Tree=")) == (chosen.best_iteration, chosen.best_iteration)
    assert more.lists == chosen.lists + chosen.valid_lists
    assert more.valid_curve == chosen.valid_curve
    assert more.model_text != chosen.model_text


def test_refit_with_debiasing_needs_positions() -> None:
    fit, debiased = world(0), SMALL.model_copy(update={"position_debias": True})
    with pytest.raises(ValueError, match="position_debias is set but position is missing"):
        refit(trained(), fit["rows"], fit["gain"], fit["start"], NAMES, debiased)


def test_the_model_ranks_unseen_lists_by_the_planted_taste() -> None:
    """ndcg@10 is above 0.9 (about 0.4 for a random order), and the two planted features are the most important."""
    result, new = trained(), world(99)
    scores = Trees.parse(result.model_text).score(new["rows"])
    ties = tie_break(np.arange(len(scores)), new["start"])
    assert np.nanmean(score_lists("ndcg@10", scores, new["gain"], new["start"], ties)) > 0.9
    assert list(result.importance)[:2] == ["taste", "price"]
    assert set(result.importance) == set(NAMES)


def test_validation_decides_how_many_trees_are_kept() -> None:
    """The text contains the trees up to the maximum of the validation curve."""
    result = trained(SMALL.model_copy(update={"trees": 200, "learning_rate": 0.5, "early_stopping_rounds": 5}))
    assert result.best_iteration == 1 + int(np.argmax(result.valid_curve))
    assert result.model_text.count("\nTree=") == result.best_iteration
    assert len(result.valid_curve) == result.best_iteration + 5 < 200


def test_the_validation_curve_is_the_ndcg_of_the_served_scores() -> None:
    """LightGBM's ndcg@10 at the best tree equals that of `score_lists` on the scores of the text, with few ties."""
    result, valid = trained(), world(1)
    scores = Trees.parse(result.model_text).score(valid["rows"])
    ties = tie_break(np.arange(len(scores)), valid["start"])
    expected = np.nanmean(score_lists("ndcg@10", scores, valid["gain"], valid["start"], ties))
    assert result.valid_curve[result.best_iteration - 1] == pytest.approx(expected, abs=5e-3)


def test_the_same_input_gives_the_same_text_and_threads_do_not_change_the_trees() -> None:
    first = trained()
    assert trained().model_text == first.model_text
    other = trained(SMALL.model_copy(update={"threads": 2}))
    trees_only = [text.model_text.partition("\nparameters:")[0] for text in (first, other)]
    assert trees_only[0] == trees_only[1]
    assert trained(SMALL.model_copy(update={"seed": 5})).model_text != first.model_text


def test_training_does_not_modify_its_inputs() -> None:
    fit = world(0)
    before = {key: value.copy() for key, value in fit.items()}
    trained(rows=fit["rows"], gain=fit["gain"], start=fit["start"])
    for key, value in before.items():
        np.testing.assert_array_equal(fit[key], value)


def test_lists_without_gain_are_left_out_and_counted() -> None:
    """Leaving them out does not change the trees, because they contain no pairs to train on."""
    fit = world(0)
    rows = np.vstack([fit["rows"], np.full((3 * SIZE, 4), 1e6, np.float32)])
    gain = np.concatenate([fit["gain"], np.zeros(3 * SIZE, np.int8)])
    start = np.arange(0, len(gain) + 1, SIZE)
    extended, original = trained(rows=rows, gain=gain, start=start), trained()
    assert extended.lists_without_gain == original.lists_without_gain + 3
    assert extended.lists == original.lists == 120 - original.lists_without_gain
    assert extended.model_text == original.model_text


def biased_lists(seed: int, lists: int, price_first: float) -> dict[str, Any]:
    """Clicks on items that are examined and liked. The shop ranks by `price`, which users like slightly less.

    price_first: how strongly the shown order depends on price; 0 is a random order.
    """
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(lists, SIZE, 4)).astype(np.float32)
    order = np.argsort(-(price_first * rows[:, :, 2] + 0.5 * rng.normal(size=(lists, SIZE))), axis=1)
    position = np.argsort(order, axis=1).astype(np.int16)
    utility = rows[:, :, 1] - 0.5 * rows[:, :, 2]
    liked = rng.random((lists, SIZE)) < 1 / (1 + np.exp(-2 * utility))
    examined = rng.random((lists, SIZE)) < 1 / (1 + position)
    gain = (liked & examined).astype(np.int8).ravel()
    flat = {"rows": rows.reshape(-1, 4), "gain": gain, "start": np.arange(0, lists * SIZE + 1, SIZE)}
    return flat | {"position": position.ravel(), "utility": utility.ravel()}


def test_position_debiasing_brings_scores_closer_to_the_true_utility() -> None:
    """Expensive items are clicked because they are on top. With positions, this is not mistaken for utility.

    The validation lists were shown in random order. Early stopping would otherwise be affected by the same bias.
    """
    fit, valid, new = biased_lists(0, 800, 1.0), biased_lists(1, 300, 0.0), biased_lists(2, 200, 1.0)
    correlation = {}
    for debias in (False, True):
        config = RankerConfig(trees=60, leaves=7, early_stopping_rounds=60, position_debias=debias, learning_rate=0.1)
        text = train(
            fit["rows"],
            fit["gain"],
            fit["start"],
            valid["rows"],
            valid["gain"],
            valid["start"],
            NAMES,
            config,
            position=fit["position"],
        ).model_text
        correlation[debias] = np.corrcoef(Trees.parse(text).score(new["rows"]), new["utility"])[0, 1]
    assert correlation[True] > correlation[False] + 0.05


def test_rows_that_were_not_shown_get_the_deepest_position() -> None:
    """A negative position means that the row was not shown."""
    position = np.tile(np.arange(SIZE, dtype=np.int16), 120)
    not_shown = np.where(position >= SIZE - 5, np.int16(-1), position)
    deepest = np.where(position >= SIZE - 5, np.int16(SIZE - 6), position)
    config = SMALL.model_copy(update={"position_debias": True})
    assert trained(config, position=not_shown).model_text == trained(config, position=deepest).model_text


def test_infinite_and_missing_values_can_be_trained_on_and_scored() -> None:
    """Infinities, a column of NaN only, and a category."""
    fit = world(0)
    rows = fit["rows"].copy()
    rows[::7, 1], rows[::11, 1] = np.inf, -np.inf
    rows[:, 0] = np.nan
    result = trained(rows=rows, categorical=("kind",))
    assert np.isfinite(Trees.parse(result.model_text).score(rows)).all()


def test_progress_is_reported_after_each_tree() -> None:
    calls: list[tuple[int, int]] = []
    result = trained(on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n + 1, 30) for n in range(len(result.valid_curve))]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rows": np.zeros((2400, 4))}, r"^rows are float64\[2400, 4\], expected float32\[n, 4\]"),
        ({"valid_rows": np.zeros((5, 3), np.float32)}, r"^valid_rows are float32\[5, 3\]"),
        ({"start": np.array([0, 5])}, r"^start is \[0 5\]..., expected integers rising from 0 to 2400"),
        ({"start": np.array([0.0, 2400.0])}, "^start is .* expected integers rising"),
        ({"gain": np.zeros(2400, np.int8)}, "^gain: none of the 120 lists has a gain above 0"),
        ({"valid_gain": np.zeros(2400, np.int8)}, "^valid_gain: none of the 120 lists"),
        ({"gain": np.full(2400, 4, np.int8)}, r"^gain\[0\] is 4, expected 0 to 3 \(label_gain\)"),
        ({"gain": np.full(2400, -1, np.int8)}, r"^gain\[0\] is -1"),
        ({"gain": np.zeros(2400)}, "^gain is float64"),
        ({"names": ("a", "a", "b", "c")}, "'a' occurs twice"),
        ({"names": ("a b", "c", "d", "e")}, "'a b': must not be empty or contain white space"),
        ({"names": ('a"', "c", "d", "e")}, "must not be empty or contain white space or any of"),
        ({"names": ("", "c", "d", "e")}, "feature name ''"),
        ({"categorical": ("colour",)}, "categorical contains 'colour', which is not a feature"),
        ({"config": RankerConfig()}, "position_debias is set but position is missing"),
        (
            {"config": RankerConfig(), "position": np.zeros(3, np.int16)},
            r"position is int16\[3\], expected int16\[2400\]",
        ),
    ],
)
def test_invalid_arguments_are_rejected_by_name(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        trained(**changes)


def test_a_list_too_long_for_lightgbm_is_rejected_with_its_number() -> None:
    rows = np.zeros((10_021, 4), np.float32)
    gain = np.ones(10_021, np.int8)
    with pytest.raises(ValueError, match="list 1 has 10001 rows, but LightGBM allows 10000"):
        trained(rows=rows, gain=gain, start=np.array([0, 20, 10_021]))


@pytest.mark.parametrize(
    "setting",
    [
        {"trees": 0},
        {"leaves": 256},
        {"learning_rate": 0},
        {"label_gain": (0, 3, 1)},
        {"label_gain": (1, 2)},
        {"tree": 5},
    ],
    ids=str,
)
def test_invalid_settings_are_rejected_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(setting))):
        RankerConfig(**setting)


def test_lightgbm_is_only_imported_when_training_starts() -> None:
    code = "import sys, ranker.train; print('lightgbm' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
