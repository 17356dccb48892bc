"""Rankings of the test lists by another system: formats, and what does not match."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.log import Lists
from offline.data import query_groups
from offline.evaluation.runs import order_run, read_run, run_name, write_lists
from offline.evaluation.systems import judge
from offline.runtime import DataError
from tests.worlds import make_lists

IDS = [f"i{k}" for k in range(10)]
LISTS = replace(make_lists([0.0, 60.0], [0, 1], [[0, 1, 2], [3, 4]]), request_ids=["a", "b"])
ROWS = pd.DataFrame(
    {"request_id": list("aaabb"), "item_id": ["i0", "i1", "i2", "i3", "i4"], "score": [1, 3, 2, 0.5, 9]}
)
BEST_FIRST = [[1, 2, 0], [4, 3, -1]]
"""By the scores above: 3, 2 and 1 in list a; 9 and .5 in list b."""


def write(directory: Path, name: str, rows: pd.DataFrame = ROWS) -> Path:
    path = directory / name
    if name.endswith(".parquet"):
        rows.to_parquet(path)
    elif ".csv" in name:
        rows.to_csv(path, index=False)
    else:
        lines = [f"{r.request_id} Q0 {r.item_id} {k} {r.score} other\n" for k, r in enumerate(rows.itertuples())]
        path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("name", ["bm25.run", "bm25.csv", "bm25.csv.gz", "bm25.parquet"])
def test_a_run_orders_each_list_by_score_in_every_format(tmp_path: Path, name: str) -> None:
    """In a TREC run the score decides, not the rank, which is the row number here."""
    found = order_run(write(tmp_path, name), LISTS, IDS, whole_catalogue=False)
    assert found.order[:, :3].tolist() == BEST_FIRST
    assert found.note == f"bm25 ({name}): ranks 2 of 2 test lists."
    assert run_name(tmp_path / name) == "bm25"


def test_a_run_may_have_ranks_instead_of_scores(tmp_path: Path) -> None:
    """The lowest rank is the best."""
    ranks = ROWS.assign(rank=[3, 1, 2, 2, 1]).drop(columns="score")
    assert order_run(write(tmp_path, "r.csv", ranks), LISTS, IDS, False).order[:, :3].tolist() == BEST_FIRST


def test_what_does_not_match_is_said_and_equal_scores_are_ordered_as_ours(tmp_path: Path) -> None:
    """List c is no test list, b is missing; i9 is not in list a, i2 is not ranked, and i0 and i1 have equal scores."""
    rows = pd.DataFrame({"request_id": list("aaac"), "item_id": ["i0", "i1", "i9", "i0"], "score": [1, 1, 5, 1]})
    found = order_run(write(tmp_path, "r.csv", rows), LISTS, IDS, False)
    assert found.note == (
        "r (r.csv): ranks 1 of 2 test lists; 1 lists of the run are no test lists, ignored; "
        "1 test lists are missing, ordered at random; 1 items are not in their list, ignored; "
        "3 items of the lists are missing, ranked last; "
        "2 items have the score of another one in their list, ordered at random."
    )
    assert found.order[0, 2] == 2
    assert set(found.order[0, :2].tolist()) == {0, 1}
    assert set(found.order[1, :2].tolist()) == {3, 4}


def test_with_the_whole_catalogue_items_outside_the_list_count(tmp_path: Path) -> None:
    """As the baselines do when each user's last basket is the test. A list without a row has no item."""
    rows = pd.DataFrame({"request_id": list("aa"), "item_id": ["i9", "i1"], "score": [5, 1]})
    found = order_run(write(tmp_path, "r.csv", rows), LISTS, IDS, True)
    assert found.order[:, :2].tolist() == [[9, 1], [-1, -1]]
    assert found.note == "r (r.csv): ranks 1 of 2 test lists; 1 test lists are missing, with no item found."


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS.drop(columns="score"), r"has columns request_id, item_id; a run needs request_id, item_id, and score"),
        (ROWS.assign(score=["1", "2", "x", "3", "4"]), r"row 3: score 'x' is not a finite number"),
        (
            ROWS.assign(request_id="z"),
            r"no list of the run is a test list \(its first: 'z'; the first test list: 'a'\)",
        ),
        (pd.concat([ROWS, ROWS.tail(1)]), r"item 'i4' of list 'b' occurs twice"),
    ],
)
def test_a_run_that_cannot_be_used_is_an_error_with_its_place(tmp_path: Path, rows: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        order_run(write(tmp_path, "r.csv", rows), LISTS, IDS, False)


def test_a_trec_run_with_a_blank_in_an_id_is_an_error_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "r.run").write_text("a Q0 i0 1 1.0 t\na Q0 red rug 2 .5 t\n")
    with pytest.raises(DataError, match="row 2 has 7 fields; a TREC run has six"):
        read_run(tmp_path / "r.run")


def test_a_run_is_compared_with_the_ranker_pair_by_pair(tmp_path: Path) -> None:
    """i1 and i4 were clicked: the run has both first (ndcg 1), the ranker both last (1/log2(4) and 1/log2(3))."""
    lists: Lists = replace(LISTS, gain=np.array([0, 1, 0, 0, 1], np.int8))
    other = order_run(write(tmp_path, "bm25.run"), lists, IDS, False).order
    ranker = np.full_like(other, -1)
    ranker[:, :3] = [[0, 2, 1], [3, 4, -1]]
    whole, targets = {"all": np.ones(2, bool)}, query_groups.find_targets(lists, lists)
    vectors = np.eye(10, dtype=np.float32)
    found = judge({"bm25": other, "ranker": ranker}, lists, targets, whole, {}, np.ones(10), vectors, seed=1)
    (compared,) = [c for c in found["comparisons"] if c["b"] == "bm25"]
    assert compared["a"] == "ranker"
    assert compared["difference"] == pytest.approx((1 / np.log2(4) + 1 / np.log2(3)) / 2 - 1)
    assert found["systems"]["bm25"]["all"]["ndcg@10"] == 1.0


def test_the_test_lists_are_written_without_what_users_did(tmp_path: Path) -> None:
    write_lists(tmp_path / "lists.parquet", LISTS, IDS, ["u", "v"])
    table = pd.read_parquet(tmp_path / "lists.parquet")
    assert list(table.columns) == ["request_id", "user_id", "at", "item_id", "position"]
    assert table[["request_id", "user_id", "item_id"]].to_numpy().tolist() == [
        ["a", "u", "i0"],
        ["a", "u", "i1"],
        ["a", "u", "i2"],
        ["b", "v", "i3"],
        ["b", "v", "i4"],
    ]
    assert (table["at"].diff().dt.total_seconds().max(), str(table["at"].dt.tz)) == (60.0, "UTC")
