"""The tree scorer is bit-identical to LightGBM: same leaf for every input, and same sum."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.model_text import ModelTextError
from ranker.trees import Trees

FEATURES = 5
Z = float(np.float32(1e-35))
FLOAT32_MAX = float(np.finfo(np.float32).max)

# Values at which a comparison can go wrong: near LightGBM's zero, and at the limits of float32 and float64.
THRESHOLDS = [0.0, -0.0, Z, -Z, Z / 2, -Z / 2, 1e-300, FLOAT32_MAX, -FLOAT32_MAX, 1e300, -1e300, np.inf, -np.inf]
THRESHOLDS += [0.1, 1.0, -1.0, 16777217.0, 1.0 + 2**-40, float(np.float32(0.1)), 1e-40]
VALUES = [np.nan, np.inf, -np.inf, 0.0, -0.0, Z, -Z, Z / 2, -Z / 2, 2 * Z, -2 * Z, 1e-40, 1e-300, FLOAT32_MAX, 1e301]
VALUES += [0.1, float(np.float32(0.1)), 1.0, -1.0, -0.5, 0.5, 3.9, 31.0, 32.0, 63.0, 64.0, 95.0, 2.0**31, 2.0**33, 1e18]


def model_text(trees: list[str], features: int = FEATURES, **header: object) -> str:
    """LightGBM's model text of the given trees; `header` replaces fields of the header."""
    fields: dict[str, object] = {
        "version": "v4",
        "num_class": 1,
        "num_tree_per_iteration": 1,
        "label_index": 0,
        "max_feature_idx": features - 1,
        "objective": "lambdarank",
        "feature_names": " ".join(f"f{n}" for n in range(features)),
        "feature_infos": " ".join(["[-9:9]"] * features),
        "tree_sizes": " ".join(str(len(tree)) for tree in trees),
    }
    lines = [f"{key}={value}" for key, value in (fields | header).items()]
    return "tree\n" + "\n".join(lines) + "\n\n" + "".join(trees) + "end of trees\n\nfeature_importances:\n"


def tree_text(number: int, leaves: int, **fields: Any) -> str:
    base: dict[str, Any] = {"num_leaves": leaves, "num_cat": 0, "is_linear": 0, "shrinkage": 1}
    lines = [f"Tree={number}"]
    for key, value in (base | fields).items():
        lines.append(
            f"{key}={str(value) if np.isscalar(value) else ' '.join(repr(v) for v in np.asarray(value).tolist())}"
        )
    return "\n".join(lines) + "\n\n\n"


def random_tree(rng: np.random.Generator, number: int, leaves: int) -> str:
    """A random tree, grown by splitting random leaves, with splits of every kind."""
    nodes = leaves - 1
    left, right = np.zeros(nodes, int), np.zeros(nodes, int)
    parent_of: dict[int, tuple[np.ndarray, int] | None] = {0: None}
    for node in range(nodes):
        leaf = int(rng.integers(node + 1))
        if (side := parent_of[leaf]) is not None:
            side[0][side[1]] = node
        left[node], right[node] = ~leaf, ~(node + 1)
        parent_of[leaf], parent_of[node + 1] = (left, node), (right, node)
    category = rng.random(nodes) < 0.2
    threshold = np.where(rng.random(nodes) < 0.5, rng.choice(THRESHOLDS, nodes), rng.normal(size=nodes))
    sets = [rng.integers(0, 2**32, rng.integers(1, 4)) for _ in range(category.sum())]
    threshold[category] = np.arange(len(sets))
    decision = np.where(category, 1, 2 * rng.integers(0, 2, nodes)) + 4 * rng.integers(0, 3, nodes)
    sizes = np.cumsum([0, *(len(s) for s in sets)])
    cats = {"cat_boundaries": sizes, "cat_threshold": np.concatenate(sets)} if sets else {}
    return tree_text(
        number,
        leaves,
        num_cat=len(sets),
        split_feature=rng.integers(0, FEATURES, nodes),
        split_gain=np.ones(nodes),
        threshold=threshold,
        decision_type=decision,
        left_child=left,
        right_child=right,
        leaf_value=rng.normal(size=leaves) * 10.0 ** rng.integers(-6, 3, leaves),
        leaf_weight=np.ones(leaves),
        leaf_count=np.ones(leaves, int),
        internal_value=rng.normal(size=nodes).round(4),
        internal_weight=np.ones(nodes),
        internal_count=np.ones(nodes, int),
        **cats,
    )


def random_model(seed: int, leaves: list[int]) -> str:
    rng = np.random.default_rng(seed)
    return model_text([random_tree(rng, number, count) for number, count in enumerate(leaves)])


def random_linear_model(seed: int, leaves: list[int]) -> str:
    """A random model as `random_model`, whose leaves are linear functions of 0 to 3 features; the first of 1 to 3."""
    rng = np.random.default_rng(seed)
    trees = []
    for number, count in enumerate(leaves):
        terms = [rng.integers(0, FEATURES, rng.integers(leaf == 0, 4)).tolist() for leaf in range(count)]
        fields = {
            "leaf_const": " ".join(repr(v) for v in rng.normal(size=count).tolist()),
            "num_features": " ".join(str(len(t)) for t in terms),
            "leaf_features": "".join("".join(f"{f} " for f in t) + " " for t in terms),
            "leaf_coeff": "".join("".join(f"{v!r} " for v in rng.normal(size=len(t)).tolist()) + " " for t in terms),
        }
        linear = "".join(f"{name}={value}\n" for name, value in fields.items())
        trees.append(random_tree(rng, number, count).replace("is_linear=0\n", f"is_linear=1\n{linear}"))
    return model_text(trees)


@st.composite
def hostile_texts(draw: st.DrawFn, text: str) -> str:
    """A model text with one to three changes: a number replaced, added or removed, or a line removed or repeated."""
    numbers = st.sampled_from(["0", "1", "-1", "2147483647", "-99", "900000", "1e308", "-1e308", "1e31", "nan", "inf"])
    numbers |= st.sampled_from(["-inf", "1_0", "٣", "0.5", "", "1e999", "9" * 30]) | st.integers(-50, 50).map(str)
    lines = text.split("\n")
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from([n for n, line in enumerate(lines) if "=" in line]))
        name, _, values = lines[at].partition("=")
        parts = values.split(" ")
        place = draw(st.integers(0, len(parts) - 1))
        change = draw(st.sampled_from(["replace"] * 6 + ["add", "remove", "remove line", "repeat line"]))
        if change == "remove line":
            del lines[at]
        elif change == "repeat line":
            lines.insert(at, lines[at])
        else:
            parts[place : place + (change != "add")] = [] if change == "remove" else [draw(numbers)]
            lines[at] = f"{name}={' '.join(parts)}"
    return "\n".join(lines)


def edge_case_rows(seed: int, n: int, dtype: type[np.floating[Any]], text: str) -> np.ndarray:
    """Rows of special values, of the model's thresholds and the floats next to them, and of ordinary numbers."""
    rng = np.random.default_rng(seed)
    thresholds = [float(t) for line in re.findall(r"^threshold=(.*)$", text, re.M) for t in line.split()]
    with np.errstate(over="ignore", under="ignore"):
        near = np.array([*VALUES, *thresholds]).astype(dtype)
        near = np.concatenate([near, np.nextafter(near, dtype(np.inf)), np.nextafter(near, dtype(-np.inf))])
        rows = rng.choice(near, (n, FEATURES))
        rows = np.where(rng.random(rows.shape) < 0.3, rng.normal(size=rows.shape).astype(dtype), rows)
    if rng.random() < 0.5:  # a feature with the same value in all rows
        rows[:, rng.integers(FEATURES)] = rng.choice(near)
    return rows.astype(dtype)


def predicted(text: str, rows: np.ndarray) -> np.ndarray:
    """Scores of LightGBM itself."""
    return np.asarray(lgb.Booster(model_str=text).predict(rows, raw_score=True, num_threads=1))


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    leaves=st.lists(st.sampled_from([1, 2, 3, 4, 8, 31, 32, 33, 63, 64, 65, 100]), min_size=1, max_size=6),
    n=st.sampled_from([1, 7, 31, 32, 33, 100]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_scores_are_bit_identical_to_lightgbm(seed: int, leaves: list[int], n: int, dtype: type) -> None:
    """With every kind of split, missing type, default direction and special value."""
    text = random_model(seed, leaves)
    rows = edge_case_rows(seed, n, dtype, text)
    trees, expected = Trees.parse(text), predicted(text, rows)
    np.testing.assert_array_equal(trees.traverse(rows), expected)
    np.testing.assert_array_equal(trees.score(rows), expected)


@pytest.mark.parametrize("leaves", [[255] * 8, [128, 129, 256, 257], [4] * 3000, [1] * 50, [1, 31, 1, 2]])
def test_large_and_small_trees_are_exact(leaves: list[int]) -> None:
    """Trees of 255 leaves, thousands of trees, and trees of a single leaf."""
    text = random_model(1, leaves)
    rows = edge_case_rows(2, 64, np.float32, text)
    np.testing.assert_array_equal(Trees.parse(text).score(rows), predicted(text, rows))


def training_data(seed: int, n: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, FEATURES)).astype(np.float32)
    rows[:, 1] = rng.integers(0, 70, n)
    rows[:, 2] = np.where(rng.random(n) < 0.5, 0, rows[:, 2])
    rows[rng.random(rows.shape) < 0.15] = np.nan
    filled = np.nan_to_num(rows)
    target = filled[:, 0] + (filled[:, 1] % 3 == 0) + np.sin(4 * filled[:, 2]) + np.isnan(rows[:, 3])
    return rows, (np.digitize(target + rng.normal(size=n), [0, 1, 2])).astype(np.int32)


@pytest.mark.parametrize(
    "options",
    [
        {"num_leaves": 31},
        {"num_leaves": 63, "min_data_in_leaf": 1},
        {"num_leaves": 255, "min_data_in_leaf": 1},
        {"zero_as_missing": True},
        {"use_missing": False},
        {"min_data_in_leaf": 10**6},
        {"boosting": "dart"},
        {"objective": "regression", "boost_from_average": True},
        {"objective": "binary"},
        {"data_sample_strategy": "goss", "extra_trees": True},
    ],
    ids=str,
)
def test_models_trained_by_lightgbm_get_its_scores(options: dict[str, Any]) -> None:
    """Bit-identical scores and the same order, with NaN and a categorical feature."""
    rows, gain = training_data(3)
    settings_ = {
        "objective": "lambdarank",
        "verbosity": -1,
        "num_threads": 1,
        "min_data_in_leaf": 5,
        "max_cat_to_onehot": 8,
    }
    label = np.minimum(gain, 1) if options.get("objective") == "binary" else gain
    data = lgb.Dataset(rows, label, group=[50] * (len(rows) // 50), categorical_feature=[1])
    text = lgb.train(settings_ | options, data, 15).model_to_string()
    other, _ = training_data(4)
    other[:20, 0], other[20:40, 1] = np.inf, [-3, -0.5, 69.9, 1e6] * 5
    score, expected = Trees.parse(text).score(other), predicted(text, other)
    np.testing.assert_array_equal(score, expected)
    np.testing.assert_array_equal(np.argsort(score, kind="stable"), np.argsort(expected, kind="stable"))


def stump(**fields: Any) -> str:
    """A tree with one node: 1.0 if feature 0 <= 0.5, else 2.0. NaN goes right (decision_type 8)."""
    node: dict[str, Any] = {
        "split_feature": [0],
        "threshold": [0.5],
        "decision_type": [8],
        "left_child": [-1],
        "right_child": [-2],
        "leaf_value": [1.0, 2.0],
        "internal_value": [1.75],
    }
    return tree_text(0, 2, **(node | fields))


def chain(nodes: int) -> str:
    """A tree in which every right child is a leaf, so that node n is at level n + 1."""
    return tree_text(
        0,
        nodes + 1,
        split_feature=[0] * nodes,
        threshold=[0.5] * nodes,
        decision_type=[8] * nodes,
        left_child=[*range(1, nodes), -1],
        right_child=[-n - 2 for n in range(nodes)],
        leaf_value=[0.0] * (nodes + 1),
        internal_value=[0.0] * nodes,
    )


def column(*values: float, dtype: type[np.floating[Any]] = np.float32) -> np.ndarray:
    rows = np.zeros((len(values), FEATURES), dtype)
    rows[:, 0] = values
    return rows


def test_a_row_equal_to_the_threshold_goes_left() -> None:
    """0.5 <= 0.5 goes left, the next larger float right, and NaN in the node's default direction."""
    trees = Trees.parse(model_text([stump()]))
    assert trees.score(column(0.5, np.nextafter(np.float32(0.5), np.float32(1)), np.nan)).tolist() == [1.0, 2.0, 2.0]


def test_a_float32_row_is_compared_with_the_float64_threshold() -> None:
    """float32(0.1) is greater than the float64 0.1, so it goes right."""
    trees = Trees.parse(model_text([stump(threshold=[0.1])]))
    assert float(np.float32(0.1)) > 0.1
    assert trees.score(column(0.1)).tolist() == [2.0]
    assert trees.score(column(0.1, dtype=np.float64)).tolist() == [1.0]


def test_scoring_works_without_rows_and_without_trees() -> None:
    """Without rows there are no scores. Without trees all scores are 0."""
    assert Trees.parse(model_text([stump()])).score(column()).shape == (0,)
    assert Trees.parse(model_text([])).score(column(1, 2)).tolist() == [0.0, 0.0]
    assert Trees.parse(model_text([])).contributions(column(1)).tolist() == [[0.0] * (FEATURES + 1)]


def test_the_score_of_a_row_does_not_depend_on_other_rows() -> None:
    """Single rows, other orders, other memory layouts and read-only arrays give the same bits and are not modified."""
    text = random_model(9, [31, 63, 8, 100])
    trees, rows = Trees.parse(text), edge_case_rows(9, 77, np.float32, random_model(9, [31, 63, 8, 100]))
    before, scores = rows.copy(), trees.score(rows)
    single = np.concatenate([trees.score(rows[n : n + 1]) for n in range(len(rows))])
    np.testing.assert_array_equal(single, scores)
    np.testing.assert_array_equal(trees.score(rows[::-1]), scores[::-1])
    np.testing.assert_array_equal(trees.score(np.asfortranarray(rows)), scores)
    rows.flags.writeable = False
    np.testing.assert_array_equal(trees.score(rows), scores)
    np.testing.assert_array_equal(rows, before)


def test_scoring_in_several_chunks_gives_the_scores_of_traverse() -> None:
    """More rows than fit into one chunk, with category columns."""
    text = random_model(5, [31] * 40)
    rows = np.tile(edge_case_rows(5, 1000, np.float32, text), (4, 1))
    trees = Trees.parse(text)
    np.testing.assert_array_equal(trees.score(rows), trees.traverse(rows))


def test_a_contribution_is_the_change_of_the_expected_value_at_each_step() -> None:
    """The expected value at the root is 1.75. Going left to 1.0 changes it by 1.0 - 1.75, due to feature 0."""
    contributions = Trees.parse(model_text([stump()])).contributions(column(0.0))
    assert contributions.tolist() == [[1.0 - 1.75, 0.0, 0.0, 0.0, 0.0, 1.75]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from([1, 2, 31, 70]), min_size=1, max_size=5))
def test_contributions_add_up_to_the_score(seed: int, leaves: list[int]) -> None:
    text = random_model(seed, leaves)
    trees, rows = Trees.parse(text), edge_case_rows(seed, 20, np.float32, text)
    np.testing.assert_allclose(trees.contributions(rows).sum(axis=1), trees.score(rows), atol=1e-9)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (np.zeros((2, 4), np.float32), r"shape \(2, 4\), the model expects \(n, 5\)"),
        (np.zeros(5, np.float32), r"shape \(5,\), the model expects \(n, 5\)"),
        (np.zeros((2, 5), np.int64), "int64, expected float32 or float64"),
        (np.zeros((2, 5), np.float16), "float16, expected float32 or float64"),
        (np.zeros((2, 5), ">f4"), ">f4|expected float32 or float64"),
        (np.full((2, 5), "x", object), "object, expected float32 or float64"),
    ],
)
def test_rows_of_the_wrong_shape_or_type_are_rejected(rows: Any, sentence: str) -> None:
    trees = Trees.parse(model_text([stump()]))
    for method in (trees.score, trees.traverse, trees.contributions):
        with pytest.raises(ValueError, match=sentence):
            method(rows)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "begins with ''"),
        ("<html>", "begins with '<html>', expected 'tree'"),
        (model_text([stump()]).replace("end of trees", ""), "cut off"),
        (model_text([stump()], version="v9"), "version=v9"),
        (model_text([stump()], num_class=3), "num_class=3: only models with one output"),
        (model_text([stump()], num_tree_per_iteration=2), "num_tree_per_iteration=2"),
        (model_text([stump(is_linear=1)]), "tree 0: leaf_const is missing"),
        (model_text([stump()], tree_sizes="1 2"), "tree_sizes lists 2 trees, but the text contains 1"),
        (model_text([stump()], feature_names="a b"), "header: feature_names has 2 names for max_feature_idx=4"),
        (model_text([stump(split_feature=[7])]), "split_feature 7 is outside the model's 5 features"),
        (model_text([stump(split_feature=[-1])]), "split_feature -1 is outside"),
        (model_text([stump(left_child=[5])]), "left_child points outside its 1 nodes and 2 leaves"),
        (model_text([stump(left_child=[0])]), "do not form one tree"),
        (model_text([stump(left_child=[-2])]), "do not form one tree"),
        (model_text([stump(threshold=["nan"])]).replace("'", ""), "threshold contains nan"),
        (model_text([stump(leaf_value=["inf", 1])]).replace("'", ""), "tree 0: leaf_value contains inf"),
        (model_text([stump(leaf_value=[1e308, 1])]), "tree 0: leaf_value contains 1e\\+308, expected numbers from"),
        (
            model_text([stump(internal_value=[-2e30])]),
            "tree 0: internal_value contains -2e\\+30, expected numbers from",
        ),
        (
            model_text([stump(left_child=["0_0"])]).replace("'", ""),
            "tree 0: left_child contains '0_0', expected numbers",
        ),
        (model_text([chain(600)]), "tree 0: left_child and right_child make it more than 512 levels deep"),
        (model_text([stump(leaf_value=[1.0])]), "leaf_value has 1 values, expected 2"),
        (model_text([stump(threshold=["0,5"])]), "tree 0: threshold contains .*0,5.*, expected numbers"),
        (model_text([stump(decision_type=[12])]), "decision_type 12 is unknown"),
        (model_text([stump(num_leaves=10**9)]), "num_leaves=1000000000 is outside 1 to 131072"),
        (model_text([stump(num_cat=-1)]), "num_cat=-1 is negative"),
        (model_text([stump(decision_type=[1])]), "cat_boundaries is missing"),
        (
            model_text(
                [stump(decision_type=[1], num_cat=1, cat_boundaries=[0, 1], cat_threshold=[3], threshold=[4.0])]
            ),
            "refers to a set outside num_cat=1",
        ),
        (
            model_text([stump(decision_type=[1], num_cat=1, cat_boundaries=[1, 1], cat_threshold=[3])]),
            "cat_boundaries or cat_threshold is damaged",
        ),
    ],
)
def test_an_invalid_text_is_rejected_with_the_tree_and_field(text: str, sentence: str) -> None:
    with pytest.raises(ModelTextError, match=sentence):
        Trees.parse(text)


def test_unsupported_kinds_of_lightgbm_models_are_rejected_by_name() -> None:
    """Linear trees and several classes, as written by LightGBM."""
    rows, gain = training_data(1, 400)
    rows = np.nan_to_num(rows)
    quiet = {"verbosity": -1, "num_threads": 1}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"linear_tree": True, "objective": "regression"}, "linear_tree"),
        ({"objective": "multiclass", "num_class": 4}, "num_class=4"),
    ]
    for options, sentence in cases:
        text = lgb.train(quiet | options, lgb.Dataset(rows, gain), 3).model_to_string()
        with pytest.raises(ModelTextError, match=sentence):
            Trees.parse(text)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 20), st.integers(0, 10**6), st.integers(0, 30), st.text("0123456789-=. \nainf", max_size=6))
def test_a_damaged_text_is_rejected_or_scored_but_never_crashes(seed: int, at: int, cut: int, inserted: str) -> None:
    """After removing and inserting any characters, the text is rejected or `score` and `traverse` agree."""
    text = random_model(seed, [3, 9, 40])
    at %= len(text)
    damaged = text[:at] + inserted + text[at + cut :]
    rows = edge_case_rows(seed, 5, np.float32, text)
    try:
        trees = Trees.parse(damaged)
    except ModelTextError:
        return
    if len(trees.names) == FEATURES:
        np.testing.assert_array_equal(trees.score(rows), trees.traverse(rows))


def test_scoring_needs_neither_lightgbm_nor_pandas() -> None:
    """The service imports `ranker.trees`, which must not import the packages used in training."""
    code = "import sys, ranker.trees; print([m for m in ('lightgbm', 'pandas', 'sklearn') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("leaves", [31, 63, 255])
def test_models_of_production_size_are_exact(leaves: int) -> None:
    """1,000 trees, 500 rows."""
    text = random_model(leaves, [leaves] * 1000)
    rows = edge_case_rows(7, 500, np.float32, text)
    np.testing.assert_array_equal(Trees.parse(text).score(rows), predicted(text, rows))
