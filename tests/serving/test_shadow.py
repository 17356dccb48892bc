"""Shadow scoring: lists are also scored by the shadow release, logged and compared, without affecting responses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from features.columns import Column, Scalar, Sent, table
from features.context import Context
from features.history import EMPTY
from features.table import rows
from offline.config.publication import RetentionConfig
from offline.data.collection import collect
from offline.evaluation.shadow import compare_shadow, to_json
from offline.nightly.retention import remove_old
from offline.runtime.errors import DataError
from serving.ranking.live import Live
from serving.ranking.shadow import agreement
from serving.records.served import Served, decode_served
from serving.release import list_releases, registry
from serving.release.manifest import ReleaseError
from serving.release.release import load_release
from serving.store import SERVED, BulkStore, Pointer
from tests.offline.data.test_collection import data
from tests.serving.test_columns import before_events, fitted
from tests.serving.test_guard import counted
from tests.serving.test_release import CUT_OFF, publish
from tests.serving.test_service import EVERY, FAST, click, ready, releases, served, until, url

__all__ = ["data", "releases", "url"]
ALL = FAST.model_copy(update={"shadow_share": 1.0})


@pytest.fixture
def store(url: str) -> Iterator[BulkStore]:
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        raw.flushall()
        yield store


def shadowed(client: httpx.Client, release: Path | None) -> None:
    until(lambda: client.get("/health/ready").json()["shadow"] == (release and release.name))


def test_both_scores_of_every_list_are_logged_and_the_live_release_answers(
    store: BulkStore, url: str, releases: list[Path], data: Path
) -> None:
    """The second release has the opposite preferences of the first, so the correlation of the scores is negative. The
    shopper clicks the top item of the live release, which is therefore right on every list."""
    registry.promote(releases[0].parent, store, releases[0].name, "a test")
    registry.start_shadow(releases[0].parent, store, releases[1].name, "a test")
    with served(url, ALL.model_copy(update={"explore": 0.5})) as client:
        ready(client)
        shadowed(client, releases[1])
        for n in range(6):
            user = f"u{n}"
            client.post("/v1/events", json=click("red-01", user))
            answer = client.post("/v1/rank", json={"user_id": user, "candidates": EVERY, "limit": 12}).json()
            assert answer["release"] == releases[0].name
            first = max(answer["items"], key=lambda item: (item["score"], -EVERY.index(item["item_id"])))["item_id"]
            assert first.startswith("red")
            client.post("/v1/events", json=click(first, user, request_id=answer["request_id"]))
        until(lambda: store.length(SERVED) == 6)
        assert counted(client)["shelfwise_shadow_total", "scored"] == 6
    for _, entry in store.entries("sw:served", b"l"):
        record = decode_served(entry)
        assert record.shadow is not None
        assert record.shadow.release == releases[1].name
        score = np.frombuffer(record.shadow.score)
        assert len(score) == len(record.item_ids) == 12
        assert score[record.scores.argmax()] == score.min(), (
            "the top item of the live release has the lowest score in the other"
        )
        assert record.shadow.correlation is not None
        assert record.shadow.correlation < 0
        assert record.shadow.ms > 0 < record.shadow.live_ms
    with pytest.raises(DataError, match=r"no list was scored by a shadow release\. Start one"):
        compare_shadow(data)
    collect(data, store)
    comparison = compare_shadow(data)
    assert (comparison.release, comparison.live, comparison.lists) == (releases[1].name, (releases[0].name,), 6)
    assert comparison.correlation[2] < 0
    assert comparison.quality is not None
    assert comparison.quality.live == 1.0, "the click is at the first position of each list"
    assert comparison.quality.difference.high < 0
    assert comparison.worth["live"].value > 0, "half of the lists had adjacent items swapped at random"
    json.dumps(to_json(comparison))
    with pytest.raises(DataError, match="no list was scored by another"):
        compare_shadow(data, "another")


LIVE = (Column("bm25", "number"), Column("country", "category", "request", ("AT", "DE")))
SHADOW = (
    Column("in_stock", "flag"),
    Column("margin", "number"),
    Column("store", "category", "request", ("vienna", "graz")),
    Column("age", "number", "user"),
    Column("country", "category", "user", ("AT", "DE")),
)


def sum_of_columns(declared: tuple[Column, ...]) -> str:
    """Trees for the sum of the columns, each of which is 0 or 1."""
    rng, them, tables, labels = np.random.default_rng(1), before_events(declared), [], []
    every, of_all = np.arange(len(EVERY), dtype=np.int32), np.array([c.per != "candidate" for c in declared])
    for _ in range(60):
        sent = rng.integers(0, 2, (len(declared), len(EVERY))).astype(np.float32)
        sent[of_all] = sent[of_all, :1]
        tables.append(rows(them, EMPTY, every, CUT_OFF, Context(columns=sent)))
        labels.append(sent.sum(axis=0, dtype=np.float64))
    return fitted(them, tables, labels, leaves=15, trees=30)


def scored_by(release: Path, record: Served, sent: Sent, user: Mapping[str, Scalar]) -> np.ndarray:
    """float64[k]: scores of the list of a user without history. sent: columns, with values in the order of the list."""
    loaded = load_release(release)
    items, context = loaded.items, Context(columns=table(loaded.items.columns, sent, user, strict=False))
    return loaded.trees.score(rows(items, EMPTY, items.catalogue.rows(record.item_ids), record.at, context))


def test_a_shadow_release_is_scored_with_the_columns_that_it_declares(
    store: BulkStore, url: str, tmp_path: Path
) -> None:
    """The releases have no column in common: both have a country, but one that of the request, one that of the user.

    A value that is missing, or that is a text where the shadow release has a number, is missing for it alone.
    """
    live, shadow = (publish(tmp_path, before_events(c), model_text=sum_of_columns(c)) for c in (LIVE, SHADOW))
    store.set_pointer(Pointer(live.name, str(live)))
    store.set_shadow(Pointer(shadow.name, str(shadow)))
    ids = [EVERY[k] for k in (7, 2, 11, 4)]
    sent: dict[str, list[Scalar]] = {"bm25": [1.0, 0.0, 1.0, None], "in_stock": [False, True, None, True]}
    known: dict[str, Scalar] = {"age": 1.0, "country": "DE"}
    cases: list[tuple[str, dict[str, Any], dict[str, Scalar]]] = [
        ("known", {**sent, "margin": [1.0, 0.0, 0.5, 1.0], "store": "graz", "country": "AT"}, known),
        ("new", {**sent, "margin": ["high", 1.0, None, 0.0], "store": 7.5, "country": "AT"}, {}),
        ("known", {}, known),
        ("new", {}, {}),
    ]
    with served(url, ALL) as client:
        ready(client)
        shadowed(client, shadow)
        assert client.put("/v1/users/known", json={"attributes": known}).status_code == 202
        for user_id, columns, _ in cases:
            body = {"user_id": user_id, "candidates": ids, "columns": columns}
            assert client.post("/v1/rank", json=body).status_code == 200
        until(lambda: store.length(SERVED) == len(cases))
        assert counted(client)["shelfwise_shadow_total", "scored"] == len(cases)
    found = []
    for (_, columns, user), (_, entry) in zip(cases, store.entries("sw:served", b"l"), strict=True):
        record = decode_served(entry)
        assert (record.release, record.degraded, record.shadow and record.shadow.release) == (
            live.name,
            False,
            shadow.name,
        )
        order = [ids.index(i) for i in record.item_ids]
        of_list = {name: [v[k] for k in order] if isinstance(v, list) else v for name, v in columns.items()}
        assert record.scores.tolist() == scored_by(live, record, of_list, {}).tolist()
        assert record.shadow is not None
        score = np.frombuffer(record.shadow.score)
        assert score.tolist() == scored_by(shadow, record, of_list, user).tolist()
        found.append(dict(zip(record.item_ids, score.tolist(), strict=True)))
    first = [found[0][ids[k]] for k in (0, 1, 3)]
    assert first == pytest.approx([0 + 1 + 3, 1 + 0 + 3, 1 + 1 + 3], abs=0.5), "in_stock + margin + store, age, country"
    assert len({tuple(scores.values()) for scores in found}) == len(cases)


def test_a_failing_shadow_release_affects_neither_responses_nor_the_log(
    store: BulkStore, url: str, releases: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.set_pointer(Pointer(releases[0].name, str(releases[0])))
    store.set_shadow(Pointer(releases[1].name, str(releases[1])))
    rank = Live.rank

    def fail(self: Live, *arguments: object, **more: object) -> object:
        if self.release.id == releases[1].name:
            raise ValueError("a bug")
        return rank(self, *arguments, **more)  # type: ignore[arg-type]

    with served(url, ALL) as client:
        ready(client)
        shadowed(client, releases[1])
        monkeypatch.setattr(Live, "rank", fail)
        for _ in range(3):
            assert client.post("/v1/rank", json={"user_id": "u", "candidates": EVERY}).status_code == 200
        until(lambda: store.length(SERVED) == 3)
        assert counted(client)["shelfwise_shadow_total", "failed"] == 3
    assert all(decode_served(entry).shadow is None for _, entry in store.entries("sw:served", b"l"))


def test_lists_beyond_the_capacity_for_shadow_scoring_are_logged_without_it_and_counted(
    store: BulkStore, url: str, releases: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shadow scoring pauses for nine times the scoring time, 32 lists can wait, and no list is lost when the worker
    stops."""
    store.set_pointer(Pointer(releases[0].name, str(releases[0])))
    store.set_shadow(Pointer(releases[1].name, str(releases[1])))
    rank = Live.rank

    def slow(self: Live, *arguments: object, **more: object) -> object:
        if self.release.id == releases[1].name:
            time.sleep(0.3)
        return rank(self, *arguments, **more)  # type: ignore[arg-type]

    with served(url, ALL) as client:
        ready(client)
        shadowed(client, releases[1])
        monkeypatch.setattr(Live, "rank", slow)
        for _ in range(50):
            client.post("/v1/rank", json={"candidates": EVERY})
        dropped = counted(client)["shelfwise_shadow_total", "dropped"]
        assert 0 < dropped <= 50 - 32
    # A batch interrupted at the end is written again; `collect` keeps one record per request.
    assert len({decode_served(entry).request_id for _, entry in store.entries("sw:served", b"l")}) == 50


def test_nothing_is_shadow_scored_with_a_share_of_0_after_stopping_or_once_the_release_is_live(
    store: BulkStore, url: str, releases: list[Path]
) -> None:
    root = releases[0].parent
    registry.promote(root, store, releases[0].name, "a test")
    with pytest.raises(ReleaseError, match=r"is live: choose another one for shadow scoring"):
        registry.start_shadow(root, store, releases[0].name, "a test")
    with pytest.raises(ReleaseError, match="no release is in shadow"):
        registry.stop_shadow(root, store, "a test")
    registry.start_shadow(root, store, releases[1].name, "why")
    assert registry.release_history(root)[-1] | {"at": "", "by": ""} == {
        "at": "",
        "action": "shadow",
        "release": releases[1].name,
        "before": None,
        "by": "",
        "reason": "why",
    }
    with served(url, ALL.model_copy(update={"shadow_share": 0.0})) as client:
        ready(client)
        shadowed(client, releases[1])
        client.post("/v1/rank", json={"candidates": EVERY})
    with served(url, ALL) as client:
        ready(client)
        shadowed(client, releases[1])
        registry.stop_shadow(root, store, "done")
        shadowed(client, None)
        client.post("/v1/rank", json={"candidates": EVERY})
        registry.start_shadow(root, store, releases[1].name, "again")
        shadowed(client, releases[1])
        registry.promote(root, store, releases[1].name, "it is better")
        assert store.shadow() is None, "a release that becomes live leaves the shadow"
        until(lambda: client.get("/health/ready").json()["release"] == releases[1].name)
        client.post("/v1/rank", json={"candidates": EVERY})
    assert [decode_served(entry).shadow for _, entry in store.entries("sw:served", b"l")] == [None] * 3


def test_a_release_in_shadow_is_not_removed(store: BulkStore, releases: list[Path], tmp_path: Path) -> None:
    import shutil

    for path in releases:
        shutil.copytree(path, tmp_path / path.name)
    newest = sorted(p.name for p in releases)
    store.set_pointer(Pointer(newest[1], str(tmp_path / newest[1])))
    store.set_shadow(Pointer(newest[0], str(tmp_path / newest[0])))
    assert remove_old(tmp_path, store, RetentionConfig(releases=2)) == []


def test_a_release_of_an_arm_is_not_removed(store: BulkStore, releases: list[Path], tmp_path: Path) -> None:
    """Of two releases, of which one is kept and the newer one is live, the other one goes unless an arm has it."""
    import shutil

    for path in releases:
        shutil.copytree(path, tmp_path / path.name)
    listed = [r.path.name for r in list_releases(tmp_path)]
    store.set_pointer(Pointer(listed[0], str(tmp_path / listed[0])))
    assert remove_old(tmp_path, store, RetentionConfig.model_construct(releases=1), listed[1:]) == []
    assert remove_old(tmp_path, store, RetentionConfig.model_construct(releases=1)) == listed[1:]


scores = hnp.arrays(np.float64, st.integers(2, 30), elements=st.integers(-5, 5).map(float))


@given(live=scores, seed=st.integers(0, 99))
def test_agreement_is_spearmans_correlation(live: np.ndarray, seed: int) -> None:
    """Equal to SciPy's, with mean ranks for ties. Equal scores have correlation 1 and overlap 1."""
    other = np.random.default_rng(seed).permutation(live)
    correlation, overlap = agreement(live, other)
    if len(np.unique(live)) == 1:
        assert correlation is None
    else:
        assert correlation == pytest.approx(spearmanr(live, other).statistic)
        with_itself, overlap_with_itself = agreement(live, live)
        assert with_itself == pytest.approx(1.0)
        assert overlap_with_itself == 1.0
    assert 0 <= overlap <= 1


def test_a_withdrawn_item_ranks_last_and_is_left_out_of_the_correlation() -> None:
    """12 items. The other release has withdrawn the first of the live release's top ten, so 9 of them remain in its
    own."""
    live = -np.arange(12.0)
    correlation, overlap = agreement(live, np.append(np.nan, live[1:]))
    assert correlation == pytest.approx(1.0)
    assert overlap == 0.9
    assert agreement(live, np.full(12, np.nan))[0] is None
