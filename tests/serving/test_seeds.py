"""Lists for the items that a request names, over HTTP: sources, features, their log, releases and written items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from features.companions import Companions
from features.context import Context
from features.history import EMPTY
from features.moment import Items
from features.neighbours import Neighbours
from features.table import FEATURES_OF_SEEDS, names, rows
from offline.cli.app import app
from offline.data import LogFiles, collect, list_seeds, load_dataset
from offline.data.schema import EVENTS_SCHEMA
from offline.evaluation.outcomes import served_score, served_scores
from offline.evaluation.skew import compare_rows
from offline.runtime import Failure
from serving.config import PlacementConfig
from serving.ranking.live import Live
from serving.ranking.overlay import Overlay
from serving.release.manifest import ReleaseError
from serving.release.release import load_release
from serving.store import BulkStore, ItemFields, Pointer
from tests.offline.data.test_collection import data
from tests.serving.test_columns import IDS, before_events, emptied_store, fitted
from tests.serving.test_placements import logged
from tests.serving.test_recommend import ids, recommended
from tests.serving.test_release import CUT_OFF, planted_model, publish
from tests.serving.test_service import FAST, ready, served, url
from tests.worlds import make_lists

__all__ = ["data", "url"]
N = len(IDS)
AT = CUT_OFF + 100
PLACEMENTS: dict[str, PlacementConfig] = {
    "page": PlacementConfig(sources={"bought_together": 1.0}, requires=("items",)),
    "pinned": PlacementConfig.model_validate({"rules": {"pin": [{"item_id": "red-01", "position": 0}]}}),
}


def row_of(item_id: str) -> int:
    return IDS.index(item_id)


def table(pairs: dict[str, list[str]]) -> Neighbours:
    """Items that go with an item, with weights 1, 1/2, 1/3."""
    item, weight = np.full((N + 1, 3), -1, np.int32), np.zeros((N + 1, 3), np.float32)
    for seed, others in pairs.items():
        item[row_of(seed), : len(others)] = [row_of(other) for other in others]
        weight[row_of(seed), : len(others)] = 1 / np.arange(1, len(others) + 1)
    return Neighbours(item, weight)


def items() -> Items:
    """Before any event. With red-01, blue-04, blue-02 and red-09 are bought; after it, red-03 comes next."""
    together = table({"red-01": ["blue-04", "blue-02", "red-09"], "red-03": ["blue-08"]})
    companions = Companions(together, table({"red-01": ["blue-04"]}), table({"red-01": ["red-03"]}), typical())
    return replace(before_events(()), companions=companions)


def typical() -> np.ndarray:
    return np.append(np.full(N, 9e5), np.nan).astype(np.float32)


def model() -> str:
    """Trees that prefer what is bought together with the items of the request."""
    them, every, tables, labels = items(), np.arange(N, dtype=np.int32), [], []
    column = names(them).index("seed_together")
    for k in range(40):
        part = rows(
            them, EMPTY, every, CUT_OFF, Context(seeds=np.array([row_of(["red-01", "red-03"][k % 2])], np.int32))
        )
        tables.append(part)
        labels.append(part[:, column].astype(np.float64))
    return fitted(them, tables, labels, leaves=7, trees=20)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("releases"), items(), model_text=model())


@pytest.fixture(scope="module")
def running(url: str, release: Path) -> Iterator[httpx.Client]:
    """A service that logs all feature rows."""
    config = FAST.model_copy(update={"log_rows_share": 1.0, "placements": PLACEMENTS})
    with BulkStore(url) as store:
        store.set_pointer(Pointer(release.name, str(release)))
    with served(url, config, release, clock=lambda: AT) as client:
        ready(client)
        yield client


@pytest.fixture
def store(running: httpx.Client, url: str) -> Iterator[BulkStore]:
    with emptied_store(running, url, "sw:served") as store:
        yield store


def test_a_page_has_what_is_bought_together_with_its_item(running: httpx.Client) -> None:
    """Best first, as the trees have learned; not the item itself; and each item names its source."""
    answer = recommended(running, user_id="u", placement="page", items=["red-01"])
    assert ids(answer) == ["blue-04", "blue-02", "red-09"]
    assert {source for item in answer["items"] for source in item["sources"]} == {"bought_together"}


def test_the_answer_says_which_items_fill_in_for_what_is_not_known(running: httpx.Client) -> None:
    """Nothing goes with red-05: items with similar text are in the list. Half of the turns, for one item of two."""
    answer = recommended(running, user_id="u", placement="page", items=["red-05"], limit=5)
    assert {tuple(item["sources"]) for item in answer["items"]} == {("fallback_text",)}
    both = recommended(running, user_id="u", placement="page", items=["red-01", "red-05"], limit=20)
    named = {item["item_id"]: item["sources"] for item in both["items"]}
    assert "bought_together" in named["blue-04"]
    assert not {"red-01", "red-05"} & set(named)
    unknown = recommended(running, user_id="u", placement="page", items=["nobody knows"])
    assert {tuple(item["sources"]) for item in unknown["items"]} <= {("fallback_popular",)}


def test_items_of_a_request_are_never_recommended_not_even_pinned(running: httpx.Client) -> None:
    """But ranked like the others, if they are among the candidates of /v1/rank."""
    plain = recommended(running, user_id="u", placement="pinned", limit=20)
    assert ids(plain)[0] == "red-01"
    on_page = recommended(running, user_id="u", placement="pinned", items=["red-01", "red-03"], limit=20)
    assert not {"red-01", "red-03"} & set(ids(on_page))
    ranked = recommended(running, "rank", user_id="u", items=["red-01"], candidates=["red-01", "blue-04"])
    assert sorted(ids(ranked)) == ["blue-04", "red-01"]


def test_the_command_line_ranks_for_the_items_of_a_page(
    running: httpx.Client, url: str, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the service, without the items themselves; an item that does not exist is an error."""
    monkeypatch.setenv("REDIS_URL", url)
    arguments = ["rank", "u", "--workspace", str(tmp_path), "--limit", "4", "--items", "red-01"]
    found = CliRunner().invoke(app, [*arguments, "--items", "red-03"])
    assert found.exit_code == 0, found.output
    order = list(dict.fromkeys(word for word in found.output.split() if word in IDS))  # also in the titles
    candidates = [i for i in IDS if i not in ("red-01", "red-03")]
    asked = {"user_id": "u", "items": ["red-01", "red-03"], "candidates": candidates, "limit": 4}
    assert order == ids(recommended(running, "rank", **asked))
    unknown = CliRunner().invoke(app, [*arguments, "--items", "mug-99"])
    assert isinstance(unknown.exception, Failure)
    assert "item 'mug-99' does not exist" in str(unknown.exception)


def test_the_evaluation_scores_lists_as_the_service_does_with_its_bonuses(tmp_path: Path) -> None:
    """The same to the bit, for lists with a query, with items, with both, and with neither, of trees that know none."""
    live = Live.of(load_release(publish(tmp_path, items(), model_text=planted_model(items()))))
    trees, every = live.release.trees, np.arange(N, dtype=np.int32)
    contexts = [
        Context(0, query, seeds=np.array(seeds, np.int32))
        for query in ("", "red 09")
        for seeds in ([], [row_of("red-01")])
    ]
    tables, expected = [], []
    for context in contexts:
        ranking = live.rank(EMPTY, None, AT, None, context)
        tables.append(rows(live.items, EMPTY, every, AT, context))
        expected.append(ranking.score[np.argsort(ranking.item)])
        np.testing.assert_array_equal(served_score(trees, tables[-1], context), expected[-1])
    assert len({tuple(score) for score in expected}) == 4
    lists = make_lists([AT] * 4, [0] * 4, [every.tolist()] * 4)
    lists = replace(lists, query=[c.query for c in contexts], seeds=np.array([[-1], [row_of("red-01")]] * 2, np.int32))
    np.testing.assert_array_equal(served_scores(trees, np.vstack(tables), lists), np.concatenate(expected))


def test_without_items_nothing_is_of_their_sources(running: httpx.Client) -> None:
    answer = recommended(running, user_id="u", limit=20)
    found = {source for item in answer["items"] for source in item["sources"]}
    assert not found & {"similar", "bought_together", "goes_with", "next", "buy_again"}
    with_items = recommended(running, user_id="u", limit=20, items=["red-01"])
    more = {source for item in with_items["items"] for source in item["sources"]}
    assert {"similar", "bought_together", "goes_with", "next"} <= more - found
    assert recommended(running, user_id="u", limit=20, items=[])["items"] == answer["items"]


def test_an_explanation_names_the_items_of_the_request(running: httpx.Client) -> None:
    answer = recommended(running, user_id="u", placement="page", items=["red-01"], explain=True)
    assert answer["items"][0]["reasons"][0]["text"] == "often bought with this"


def test_the_log_replays_items_of_requests_to_the_bit(
    running: httpx.Client, url: str, store: BulkStore, data: Path, release: Path
) -> None:
    """Served rows equal replayed rows, and the night reads for each list what its request named."""
    pq.write_table(EVENTS_SCHEMA.empty_table(), data / "events.parquet")
    asked: list[tuple[str, dict[str, Any], list[int]]] = [
        ("rank", {"candidates": IDS[:7], "items": ["red-01", "red-03"]}, [row_of("red-01"), row_of("red-03")]),
        ("rank", {"candidates": [*IDS[::-1], "unknown"], "items": ["gone", "red-03"]}, [row_of("red-03")]),
        ("recommend", {"items": ["red-01"], "query": "red"}, [row_of("red-01")]),
        ("rank", {"candidates": IDS[:5], "items": ["gone"]}, []),
        ("rank", {"candidates": IDS[:5]}, []),
    ]
    expected = {
        recommended(running, route, user_id="u", limit=3, **request)["request_id"]: seeds
        for route, request, seeds in asked
    }
    *_, last = expected
    logged(url, last)
    collect(data, store)
    found = compare_rows(data, release.parent)
    assert [f.name for f in found.features if f.differ] == []
    assert found.lists == len(asked)
    assert {f.name for f in FEATURES_OF_SEEDS} <= {f.name for f in found.features}

    catalogue = load_dataset(data).catalogue
    lists = replace(make_lists(list(range(6)), [0] * 6, [[0]] * 6), request_ids=[*expected, "another"])
    seeds = replace(lists, seeds=list_seeds(LogFiles.of(data), lists, catalogue))
    assert [seeds.seeds_of(g).tolist() for g in range(6)] == [*expected.values(), []]
    plain = lists.take(np.array([3, 4, 5]))
    assert list_seeds(LogFiles.of(data), plain, catalogue).size == 0


def test_a_release_keeps_companions_and_one_without_has_no_file_for_them(tmp_path: Path, release: Path) -> None:
    loaded, them = load_release(release).items.companions, items().companions
    assert loaded is not None
    assert them is not None
    for name in ("together", "goes_with", "following"):
        np.testing.assert_array_equal(getattr(loaded, name).item, getattr(them, name).item)
        np.testing.assert_array_equal(getattr(loaded, name).weight, getattr(them, name).weight)
    np.testing.assert_array_equal(loaded.repurchase_s, them.repurchase_s)
    plain = load_release(publish(tmp_path, before_events(())))
    assert plain.items.companions is None
    assert not [name for name in plain.manifest.files if "together" in name or "repurchase" in name]


def test_a_release_with_a_companion_outside_the_catalogue_is_refused(tmp_path: Path) -> None:
    wrong = table({})
    wrong.item[0, 0] = N
    bad = replace(items(), companions=Companions(wrong, table({}), table({}), typical()))
    with pytest.raises(ReleaseError, match=r"goes_with_item|together_item"):
        publish(tmp_path, bad, model_text=model())


def test_nothing_goes_with_a_written_item_until_the_next_release(release: Path) -> None:
    """As a seed, items with similar text fill in; as a candidate, it goes with none. Its interval is that of others."""
    live = Live.of(load_release(release))
    vector = live.items.vectors.pooled(np.array([row_of("red-05")], np.int32), np.ones(1)).astype(np.float32)
    written = {"new": ItemFields(CUT_OFF + 1, {"title": "New", "category": "red"})}
    live = live.with_overlay(Overlay(written, {"new": vector}))
    new = live.items.catalogue.rows(["new"])
    assert new.tolist() == [N]
    found = live.retriever.candidates_now(EMPTY, AT, 10, None, Context(seeds=new))
    assert N not in found.item.tolist()
    assert len(found.item) == 10
    table_ = rows(live.items, EMPTY, np.array([N, row_of("blue-04")], np.int32), AT, Context(seeds=new))
    assert np.isnan(table_[:, names(live.items).index("seed_together")]).all()
    as_candidate = rows(live.items, EMPTY, new, AT, Context(seeds=np.array([row_of("red-01")], np.int32)))
    assert as_candidate[0, names(live.items).index("seed_together")] == 0.0
    assert live.items.companions is not None
    assert live.items.companions.repurchase_s[N] == 9e5


def test_a_ranker_that_learned_no_lists_with_items_adds_a_bonus_for_what_goes_with_them(tmp_path: Path) -> None:
    """What is bought together with red-01 comes first, and the parts of the explanation add up to the score."""
    live = Live.of(load_release(publish(tmp_path, items(), model_text=planted_model(items()))))
    assert not live.release.knows_seeds
    context = Context(seeds=np.array([row_of("red-01")], np.int32))
    plain, with_seeds = (live.rank(EMPTY, IDS, AT, None, c) for c in (Context(), context))
    assert plain.seed_bonus is None
    assert with_seeds.item_ids[0] == "blue-04"
    assert with_seeds.seed_bonus is not None
    score_of = dict(zip(plain.item_ids, plain.score.tolist(), strict=True))
    for item_id, score, bonus in zip(with_seeds.item_ids, with_seeds.score, with_seeds.seed_bonus, strict=True):
        assert score == pytest.approx(score_of[item_id] + bonus)
    parts = live.explain(with_seeds.first(2), EMPTY, 3, context)
    for part, score in zip(parts, with_seeds.score.tolist(), strict=False):
        assert part.base + sum(r.contribution for r in part.reasons) + part.others == pytest.approx(score)
    assert ("items", "goes with this") in {(r.feature, r.text) for r in parts[0].reasons}


def test_a_ranker_that_learned_them_or_a_release_without_tables_adds_none(tmp_path: Path, release: Path) -> None:
    context = Context(seeds=np.array([row_of("red-01")], np.int32))
    without = publish(tmp_path, before_events(()), model_text=planted_model(before_events(())))
    for path in (release, without):
        live = Live.of(load_release(path))
        assert live.rank(EMPTY, IDS, AT, None, context).seed_bonus is None
