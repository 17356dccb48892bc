"""Runs: rankings of the test lists by another system, read from a file and compared like any other system.

A run is a TREC run (`qid Q0 docid rank score tag`), or CSV or Parquet with `request_id`, `item_id`, and `score` or
`rank`. Higher scores and lower ranks are better. In a TREC run the score decides, as in trec_eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from features.arrays import F64, I32, I64
from features.log import Lists
from offline.evaluation.baselines import DEPTH, order_of
from offline.runtime import DataError
from ranker.metrics import tie_break

_TREC = ("request_id", "q0", "item_id", "rank", "score", "tag")


class OrderedRun(NamedTuple):
    """A run as an order of the test lists.

    order: int32[lists, DEPTH], items best first, `-1` after the last. note: what did not match, and the ties.
    """

    order: I32
    note: str


def run_name(path: Path) -> str:
    """The name of a run among the systems of an evaluation: its file name without extensions."""
    return path.name.partition(".")[0]


def read_run(path: Path) -> pd.DataFrame:
    """`request_id`, `item_id` and `score` (float64, higher is better) of each row of a run.

    The suffix decides: `.parquet`, `.csv` or `.csv.gz`; any other file is a TREC run. Raises DataError, naming file and
    row, for a file that cannot be read, a missing column, and a score that is not a finite number; FileNotFoundError
    if there is no such file.
    """
    rows = _read(path)
    value = next((name for name in ("score", "rank") if name in rows), None)
    if value is None or not {"request_id", "item_id"} <= set(rows):
        raise DataError(
            f"{path}: has columns {', '.join(map(str, rows))}; a run needs request_id, item_id, and score or rank"
        )
    missing = np.flatnonzero(rows[["request_id", "item_id"]].isna().any(axis=1))
    if len(missing):
        raise DataError(f"{path}: row {missing[0] + 1} has no request_id or no item_id")
    score = pd.to_numeric(rows[value], errors="coerce").to_numpy(np.float64)
    wrong = np.flatnonzero(~np.isfinite(score))
    if len(wrong):
        raise DataError(f"{path}: row {wrong[0] + 1}: {value} {rows[value].iloc[wrong[0]]!r} is not a finite number")
    ids = {name: rows[name].astype(str) for name in ("request_id", "item_id")}
    return pd.DataFrame({**ids, "score": -score if value == "rank" else score})


def _read(path: Path) -> pd.DataFrame:
    try:
        if path.name.endswith(".parquet"):
            rows: pd.DataFrame = pq.read_table(path).to_pandas()
            return rows
        if path.name.endswith((".csv", ".csv.gz")):
            return pd.read_csv(path, dtype=str, keep_default_na=False)
        lines = path.read_text("utf-8").splitlines()
    except (pa.ArrowInvalid, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read as a run: {e}") from e
    fields = [line.split() for line in lines]
    wrong = next((k for k, row in enumerate(fields) if len(row) != len(_TREC)), None)
    if wrong is not None:
        raise DataError(
            f"{path}: row {wrong + 1} has {len(fields[wrong])} fields; a TREC run has six "
            "(qid Q0 docid rank score tag); if IDs have blanks, use CSV or Parquet"
        )
    return pd.DataFrame(fields, columns=list(_TREC))


def order_run(path: Path, lists: Lists, item_ids: Sequence[str], whole_catalogue: bool) -> OrderedRun:
    """The order of the test lists in a run.

    Items of a list that the run lacks come last; an item outside its list is ignored, but counts with
    `whole_catalogue`, where baselines rank all items too. Equal scores are ordered as for our own systems: at random,
    always in the same way. Raises DataError like `read_run`, for an item that occurs twice in a list, and if no list of
    the run is a test list.
    """
    run = read_run(path)
    group = pd.Index(lists.request_ids).get_indexer(pd.Index(run["request_id"])).astype(np.int64)
    tested = group >= 0
    if not tested.any():
        example = f"{run['request_id'].iloc[0]!r}" if len(run) else "none: it is empty"
        raise DataError(
            f"{path}: no list of the run is a test list (its first: {example}; the first test list: "
            f"{lists.request_ids[0]!r}); `shelfwise evaluate --lists FILE` writes the test lists"
        )
    other_lists = run["request_id"][~tested].nunique()
    item = pd.Index(item_ids).get_indexer(pd.Index(run["item_id"])).astype(np.int64)
    key, score = (group << 32 | item)[tested & (item >= 0)], run["score"].to_numpy()[tested & (item >= 0)]
    _check_once(path, key, lists, item_ids)
    listed = lists.group.astype(np.int64) << 32 | lists.item
    inside = np.isin(key, listed)
    outside = int((tested & (item < 0)).sum()) + (0 if whole_catalogue else int((~inside).sum()))
    missing_lists = len(lists) - len(np.unique(group[tested]))
    missing = len(listed) - int(inside.sum())
    order = _order_own(key, score, len(lists)) if whole_catalogue else _order_lists(key, score, listed, lists)
    counts = {
        "lists of the run are no test lists, ignored": other_lists,
        "test lists are missing, ordered at random": 0 if whole_catalogue else missing_lists,
        "test lists are missing, with no item found": missing_lists if whole_catalogue else 0,
        "items are not in their list, ignored": outside,
        "items of the lists are missing, ranked last": 0 if whole_catalogue else missing,
        "items have the score of another one in their list, ordered at random": _count_ties(key, score),
    }
    said = [f"{n:,} {what}" for what, n in counts.items() if n]
    ranked = f"{run_name(path)} ({path.name}): ranks {len(lists) - missing_lists:,} of {len(lists):,} test lists"
    return OrderedRun(order, "; ".join([ranked, *said]) + ".")


def _check_once(path: Path, key: I64, lists: Lists, item_ids: Sequence[str]) -> None:
    distinct, count = np.unique(key, return_counts=True)
    if (count > 1).any():
        twice = int(distinct[count > 1][0])
        request, item = lists.request_ids[twice >> 32], item_ids[twice & 0xFFFFFFFF]
        raise DataError(f"{path}: item {item!r} of list {request!r} occurs twice; keep one row for each item of a list")


def _count_ties(key: I64, score: F64) -> int:
    """Number of rows whose score another row of the same list has."""
    return int(pd.DataFrame({"list": key >> 32, "score": score}).duplicated(keep=False).sum())


def _order_lists(key: I64, score: F64, listed: I64, lists: Lists) -> I32:
    """The items of each list by the scores of the run; those without one last."""
    by_key = np.argsort(key)
    place = np.minimum(np.searchsorted(key[by_key], listed), max(len(key) - 1, 0))
    found = by_key[place] if len(key) else np.zeros(len(listed), np.int64)
    known = key[found] == listed if len(key) else np.zeros(len(listed), bool)
    scores = np.full(len(listed), np.nan)  # NaN ranks last
    scores[known] = score[found[known]]
    return order_of(scores, lists.item, lists.start, tie_break(lists.item, lists.start))


def _order_own(key: I64, score: F64, n: int) -> I32:
    """The items that the run has for each of n lists."""
    by_key = np.argsort(key)
    item = (key[by_key] & 0xFFFFFFFF).astype(np.int32)
    start = np.searchsorted(key[by_key] >> 32, np.arange(n + 1)).astype(np.int64)
    if not len(item):
        return np.full((n, DEPTH), -1, np.int32)
    return order_of(score[by_key], item, start, tie_break(item, start))


def write_lists(path: Path, lists: Lists, item_ids: Sequence[str], user_ids: Sequence[str]) -> None:
    """Write lists for another system to rank, without what users did: one row per item, as Parquet.

    Columns: request_id, user_id, at (UTC), item_id, and position (the shown one; -1 in rebuilt lists).
    """
    group = lists.group
    at = pa.array((lists.at[group] * 1e6).astype(np.int64), pa.timestamp("us", "UTC"))
    table = pa.table(
        {
            "request_id": np.array(lists.request_ids, object)[group],
            "user_id": np.array(user_ids, object)[lists.user[group]],
            "at": at,
            "item_id": np.array(item_ids, object)[lists.item],
            "position": lists.position,
        }
    )
    pq.write_table(table, path)
