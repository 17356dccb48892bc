"""Written items: new ones are ranked by text before any click, changes apply at once, withdrawn ones are left out."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.history import EMPTY, History
from features.log import Kind
from features.table import rows
from offline.data.collection import collect
from offline.data.dataset import load_dataset as load_data
from offline.data.schema import EVENTS_SCHEMA
from offline.data.written_items import read_written_items
from offline.training import embedding_worker
from offline.training.embedding_worker import Embedder, texts_of
from serving.api.decoding import Refusal, split_body
from serving.api.items import accept_item
from serving.ranking.overlay import Overlay
from serving.release.release import load_release
from serving.store import BulkStore, Pointer
from serving.store.written import BulkWrittenItems, ItemFields, decode_fields
from tests.serving.test_guard import counted
from tests.serving.test_release import CUT_OFF, planted_items, planted_model, publish
from tests.serving.test_service import (
    EVERY,
    FAST,
    clear,
    click,
    client,
    ranked,
    ready,
    refused,
    releases,
    running,
    served,
    until,
    url,
)
from text_encoder.reading import ReadTexts

__all__ = ["client", "releases", "running", "url"]
D = 16


class ColourEncoder:
    """Encodes only whether a text contains red or blue. Texts that contain neither have no vector."""

    template, dimension = "{title}. {category}. {attributes}", D

    def encode(self, texts: list[str]) -> np.ndarray:
        out = np.full((len(texts), D), np.nan, np.float32)
        for row, text in zip(out, texts, strict=True):
            if "red" in text.lower() or "blue" in text.lower():
                row[:] = 0.01
                row[int("red" in text.lower())] = 1
        return out


@pytest.fixture
def store(client: httpx.Client, url: str) -> Iterator[BulkStore]:
    with BulkStore(url) as store:
        yield store


@pytest.fixture
def embedder(store: BulkStore, monkeypatch: pytest.MonkeyPatch) -> Embedder:
    """An embedding worker with a `ColourEncoder`."""
    use_colours(monkeypatch)
    return Embedder(store, "worker", NoVectors())


class NoVectors:
    """A vector store that stays empty: a `ColourEncoder` has no base vectors."""

    def read(self, model: str, keys: Sequence[bytes], dimension: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((len(keys), dimension), np.nan, np.float32), np.zeros(len(keys), bool)

    def write(self, model: str, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        pass


def use_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the embedding worker encode with a `ColourEncoder`."""
    monkeypatch.setattr("text_encoder.encoder.load", lambda _: ColourEncoder())
    monkeypatch.setattr(
        embedding_worker, "read_texts", lambda encoder, texts, _: ReadTexts(encoder.encode(texts), [], len(texts), 0)
    )


def put(client: httpx.Client, *items: dict[str, Any]) -> None:
    answer = client.put("/v1/items", json=list(items))
    assert (answer.status_code, answer.json()) == (202, {"accepted": len(items), "rejected": []})


def known(client: httpx.Client, item: str) -> dict[str, Any]:
    answer = client.get(f"/v1/items/{item}")
    return dict(answer.json()) if answer.status_code == 200 else {}


def read(client: httpx.Client, embedder: Embedder, item: str) -> None:
    """Wait until the worker has encoded the item and the service knows it."""
    until(lambda: embedder.step() or known(client, item).get("vector"))
    until(lambda: known(client, item).get("vector"))


def test_a_new_item_is_ranked_by_its_text_before_any_click(client: httpx.Client, embedder: Embedder) -> None:
    """For a user who clicked red items, the new red item ranks above the new blue one."""
    put(client, {"item_id": "new-a", "title": "A Red cap"}, {"item_id": "new-b", "title": "A Blue cap"})
    read(client, embedder, "new-b")
    client.post("/v1/events", json=[click("red-01"), click("red-03")])
    alike = ["new-a", "new-b", "red-05", "blue-04"]
    order = ranked(client, user_id="u", candidates=alike)
    assert order.index("new-a") < order.index("new-b")
    near = client.get("/v1/similar/new-a?limit=10").json()["items"]
    assert all(i["item_id"].startswith("red") and i["cosine"] > 0.5 for i in near)
    assert sorted(ranked(client)) == sorted([*EVERY, "new-a", "new-b"])


def test_the_current_state_of_an_item_is_returned(client: httpx.Client, embedder: Embedder) -> None:
    assert refused(client.get("/v1/items/new"), 404)["field"] == "item_id"
    assert known(client, "red-01")["in_release"]
    put(client, {"item_id": "new", "title": "Red", "price": 3})
    until(lambda: known(client, "new").get("live"))
    found = known(client, "new")
    assert (found["in_release"], found["vector"], found["title"], found["price"]) == (False, False, "Red", 3)
    read(client, embedder, "new")
    assert abs(known(client, "new")["changed_at"] - time.time()) < 60


def test_an_item_written_as_released_keeps_its_vector(client: httpx.Client, embedder: Embedder) -> None:
    """The released item has no title: writing null changes nothing, so nothing is encoded."""
    before = client.get("/v1/similar/red-01?limit=10").json()
    put(client, {"item_id": "red-01", "title": None})
    until(lambda: known(client, "red-01").get("changed_at"))
    for _ in range(3):
        embedder.step()
    assert embedder.encoded == 0
    assert known(client, "red-01")["vector"]
    assert client.get("/v1/similar/red-01?limit=10").json() == before


def test_clicks_on_a_new_item_are_kept_after_later_writes(client: httpx.Client, embedder: Embedder, url: str) -> None:
    put(client, {"item_id": "new", "title": "Red"})
    read(client, embedder, "new")
    client.post("/v1/events", json=[click("new", user=f"u{n}") for n in range(30)])
    time.sleep(0.3)
    before = client.post("/v1/rank", json={"candidates": ["new", "blue-00"], "explain": True}).json()["items"]
    put(client, {"item_id": "newer", "title": "Blue"})
    until(lambda: known(client, "newer").get("live"))
    after = client.post("/v1/rank", json={"candidates": ["new", "blue-00"], "explain": True}).json()["items"]
    scores = [{i["item_id"]: i["score"] for i in items} for items in (before, after)]
    assert scores[0] == pytest.approx(scores[1], abs=0.05), "a later write must keep the counts"


def test_a_withdrawn_item_is_in_no_result_until_it_is_restored(client: httpx.Client) -> None:
    for item, back in (("red-01", {"available": True}), ("blue-00", {"available": True, "price": 2})):
        assert client.delete(f"/v1/items/{item}").status_code == 202
        assert client.delete(f"/v1/items/{item}").status_code == 202
        until(lambda item=item: item not in ranked(client))
        assert ranked(client, candidates=[item, "red-03"]) == ["red-03"]
        near = client.get("/v1/similar/red-03?limit=19").json()["items"]
        assert item not in [i["item_id"] for i in near]
        assert known(client, item)["available"] is False
        put(client, {"item_id": item} | back)
        until(lambda item=item: item in ranked(client))


def test_a_change_takes_effect_and_keeps_the_other_fields(client: httpx.Client) -> None:
    put(client, {"item_id": "red-01", "price": 123.5})
    until(lambda: known(client, "red-01")["price"] == 123.5)
    put(client, {"item_id": "red-01", "title": "Renamed"})
    until(lambda: known(client, "red-01")["title"] == "Renamed")
    assert known(client, "red-01")["price"] == 123.5
    put(client, {"item_id": "red-01", "price": None})
    until(lambda: known(client, "red-01")["price"] is None)


def test_a_restarted_worker_and_the_next_release_have_the_written_items(
    client: httpx.Client, embedder: Embedder, url: str, store: BulkStore, releases: list[Path]
) -> None:
    put(client, {"item_id": "new", "title": "Red"}, {"item_id": "red-01", "available": False})
    read(client, embedder, "new")
    with served(url) as again:
        ready(again)
        assert set(ranked(again)) == {*EVERY, "new"} - {"red-01"}
    store.set_pointer(Pointer(releases[1].name, str(releases[1])))
    until(lambda: client.get("/health/ready").json()["release"] == releases[1].name)
    assert set(ranked(client)) == {*EVERY, "new"} - {"red-01"}
    assert known(client, "new")["vector"]


def test_a_new_encoder_encodes_earlier_written_items_again(
    client: httpx.Client, embedder: Embedder, store: BulkStore, tmp_path: Path
) -> None:
    put(client, {"item_id": "new", "title": "Red"})
    read(client, embedder, "new")
    other = publish(tmp_path, encoder_fingerprint="cafe", model_text=planted_model(planted_items()))
    store.set_pointer(Pointer(other.name, str(other)))
    assert embedder.step() == 1
    assert np.isfinite(store.read_vectors("cafe", ["new"], D)).all()


def test_a_write_left_unfinished_by_one_worker_is_taken_over_by_another(
    client: httpx.Client, store: BulkStore, monkeypatch: pytest.MonkeyPatch, embedder: Embedder
) -> None:
    put(client, {"item_id": "new", "title": "Red"})
    assert [c[1:] for c in BulkWrittenItems(store).claim("dead", 10, 0, 10_000)] == [("new", "put")]
    assert embedder.step() == 1, "a new worker encodes items without a vector"
    put(client, {"item_id": "newer", "title": "Red"})
    assert [c[1] for c in BulkWrittenItems(store).claim("dead", 10, 0, 10_000) if c[2] == "put"] == ["newer"]
    assert embedder.step() == 0
    monkeypatch.setattr(embedding_worker, "_ORPHANED_MS", 0)
    assert embedder.step() >= 1
    assert np.isfinite(store.read_vectors("f00d", ["newer"], D)).all()


BAD: list[tuple[Any, str | None, str]] = [
    ({"title": "t"}, "item_id", "Object missing required field `item_id`"),
    ({"item_id": ""}, "item_id", "Expected `str` of length >= 1"),
    ({"item_id": "a\u0000"}, "item_id", r"'a\x00' contains a control character"),
    ({"item_id": "i", "price": -1}, "price", "Expected `float` >= 0.0"),
    ({"item_id": "null"}, "item_id", "'null' stands for a missing ID"),
    ({"item_id": "i", "title": "t" * 100_001}, "title", "Expected `str` of length <= 100000"),
    ({"item_id": "i", "attributes": {"title": "x"}}, "attributes", "'title' is reserved for a field of the item"),
    (
        {"item_id": "i", "attributes": {" x": 1}},
        "attributes",
        "' x' is not a valid name: use 1 to 64 characters, without control characters or surrounding spaces",
    ),
    (
        {"item_id": "i", "available_from": "9999-12-31T23:59:59-23:59"},
        "available_from",
        "9999-12-31T23:59:59-23:59 is not between 1700-01-01 and 2200-01-01; use `available` to withdraw an item",
    ),
    (
        {"item_id": "i", "available_from": "soon"},
        "available_from",
        "'soon' is not ISO 8601, such as 2025-01-31T12:00:00Z",
    ),
    ({"item_id": "i", "colour": "red"}, "colour", "Object contains unknown field `colour`"),
    ({"item_id": "i", "group_id": "undefined"}, "group_id", "'undefined' stands for a missing ID"),
    (
        {"item_id": "i", "attributes": {"x": {}}},
        "attributes[...]",
        "Expected `bool | float | str | array | null`, got `object`",
    ),
    (7, None, "Expected `object`, got `int`"),
]


def test_invalid_items_are_rejected_individually(client: httpx.Client) -> None:
    body = b"\n".join(json.dumps(i).encode() for i in [{"item_id": "red-01"}, *(bad for bad, _, _ in BAD), "{"])
    answer = client.put("/v1/items", content=body, headers={"Content-Type": "application/x-ndjson"}).json()
    assert answer["accepted"] == 1
    found = [(r["index"], r["field"], r["message"]) for r in answer["rejected"]]
    assert found[:-1] == [(n, field, why) for n, (_, field, why) in enumerate(BAD, start=1)]
    assert refused(client.put("/v1/items", json=[{"title": "t"}]), 422)["detail"] == BAD[0][2]


def test_the_number_of_written_items_is_limited(url: str, releases: list[Path]) -> None:
    clear(url)
    with served(url, FAST.model_copy(update={"written_items": 2, "max_items": 3}), releases[0]) as one:
        ready(one)
        put(one, {"item_id": "a"}, {"item_id": "b"})
        put(one, {"item_id": "a", "price": 1})
        assert refused(one.put("/v1/items", json={"item_id": "c"}), 503)["type"].endswith("too-many-written-items")
        document = refused(one.put("/v1/items", json=[{"item_id": "c"}] * 4), 413)
        assert document["detail"] == "4 items in one request; the maximum is 3"


def test_an_item_that_would_become_too_large_keeps_what_it_has(client: httpx.Client) -> None:
    """After 3 x 3 texts of 50,000 bytes, a fourth write would pass 500,000. Other items, smaller texts and withdrawal
    are still accepted."""

    def texts(first: int, size: int = 50_000) -> dict[str, Any]:
        return {"item_id": "new", "attributes": {f"t{first + k}": "x" * size for k in range(3)}}

    put(client, {"item_id": "new", "title": "A Red cap"})
    for first in (0, 3, 6):
        put(client, texts(first))
    answer = client.put("/v1/items", json=[{"item_id": "red-01", "price": 5}, texts(9), texts(9)]).json()
    assert (answer["accepted"], [r["index"] for r in answer["rejected"]]) == (1, [1, 2])
    # "a:t0" and a text in quotes: 4 + 50,002 bytes of each of 9; "a:t9", "a:t10" and "a:t11": 4 + 5 + 5 + 3 x 50,002.
    # The title: 5 + 11.
    total = 9 * 50_006 + 14 + 3 * 50_002 + 16
    assert answer["rejected"][0]["message"] == (
        f"item 'new' would have 12 attributes and {total:,} bytes; the maximum is 100 attributes and 500,000 bytes; no "
        "field of it was written"
    )
    document = refused(client.put("/v1/items", json=texts(9)), 422)
    assert (document["title"], "no field of it" in document["detail"]) == ("No valid item", True)
    many = {"item_id": "many", "attributes": {f"b{k}": k for k in range(100)}}
    put(client, many, texts(0, 10))
    document = refused(client.put("/v1/items", json={"item_id": "many", "attributes": {"c": 1}}), 422)
    assert "'many' would have 101 attributes" in document["detail"]
    put(client, texts(9), {"item_id": "many", "available": False})


def test_an_item_too_large_from_an_earlier_version_does_not_stop_the_others(
    client: httpx.Client, store: BulkStore, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not used, counted and reported; it can be withdrawn, and collection continues without it."""
    before = counted(client)["shelfwise_items_oversized_total", ""]
    big, wide = {f"a:{k}": "9" * 50_000 for k in range(11)}, {f"a:{k}": 1 for k in range(1001)}
    for key, fields in (("big", big), ("wide", wide)):
        store.client.hset(f"sw:i:{key}", mapping={"at": time.time(), "title": '"A Red cap"'} | fields)
        store.client.zadd("sw:items", {key: time.time()})
        store.client.xadd("sw:item-changes", {"i": key, "w": "put"})
    put(client, {"item_id": "small", "title": "A Blue cap"})
    until(lambda: known(client, "small").get("live"))
    assert not known(client, "big")["live"]
    assert counted(client)["shelfwise_items_oversized_total", ""] >= before + 1
    assert collect(data, store).items == 1
    assert "written item 'big' is not used: it has 11 attributes and 550,050 bytes" in caplog.text
    assert "written item 'wide' is not used: it has 1003 attributes; the maximum is 100" in caplog.text
    assert client.delete("/v1/items/big").status_code == 202
    refused(client.put("/v1/items", json={"item_id": "wide", "price": 1}), 422)
    assert collect(data, store).items == 2, "small and the withdrawn big"


def test_writes_that_are_too_large_together_with_earlier_ones_replace_them(
    client: httpx.Client, store: BulkStore, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The earlier write was collected, and deleted from Redis when every release contained it."""
    put(client, {"item_id": "b", "price": 3, "attributes": {f"t{k}": "x" * 50_000 for k in range(9)}})
    collect(data, store)
    BulkWrittenItems(store).drop(["b"])
    put(client, {"item_id": "b", "attributes": {f"u{k}": "x" * 50_000 for k in range(9)}})
    collect(data, store)
    assert sorted(read_written_items(data)["b"].fields) == [f"a:u{k}" for k in range(9)]
    assert "item 'b' would have 18 attributes" in caplog.text


def test_an_overlay_of_new_items_does_not_change_rows_of_the_release() -> None:
    """Rows of the release's items are bit-identical with and without new items."""
    base = planted_items()
    written = {
        "x": ItemFields(CUT_OFF, {"category": "red", "price": 3.0, "a:net weight": 0.5, "a:hue": "red"}),
        "y": ItemFields(CUT_OFF, {"category": "never seen", "a:net weight": "heavy", "a:hue": ["blue", "green"]}),
    }
    items = Overlay(written, {"x": np.ones(D, np.float32)}).over(base, base.state)
    every = np.arange(20, dtype=np.int32)
    seen = History(
        np.array([3, 4], np.int32),
        np.array([Kind.CLICK, Kind.CART], np.int8),
        CUT_OFF - np.array([1.0, 2.0]),
        np.array([3, 9], np.int32),
        CUT_OFF - np.array([3.0, 4.0]),
    )
    for history in (EMPTY, seen):
        for known_rows in (every, np.append(every, np.int32(-1))):
            expected = rows(base, history, known_rows, CUT_OFF + 5)
            assert rows(items, history, known_rows, CUT_OFF + 5).tobytes() == expected.tobytes()
    c = items.catalogue
    assert c.rows(["x", "y", "z"]).tolist() == [20, 21, -1]
    assert (c.category[20:22].tolist(), c.price[20]) == ([1, 2], 3.0)
    assert [c.tag_names[t] for t in c.tag[c.tag_start[20] : c.tag_start[22]]] == ["hue=red", "hue=blue"]
    assert np.isnan(c.numbers[21, 0])
    np.testing.assert_allclose(
        items.numbers[20, 0], (0.5 - base.catalogue.numbers[:20].mean()) / base.catalogue.numbers[:20].std()
    )
    assert np.isfinite(items.prior[20])
    assert np.isnan(items.prior[21]), "without a vector it has no similar items"


def test_counts_stay_with_their_items_when_items_are_added() -> None:
    base = planted_items()
    one = Overlay({"x": ItemFields(CUT_OFF, {})}, {}).over(base, base.state)
    one.state.apply(np.array([20, 3, -1], np.int32), np.full(3, Kind.CLICK, np.int8), np.full(3, CUT_OFF))
    two = Overlay({"x": ItemFields(CUT_OFF, {}), "y": ItemFields(CUT_OFF, {})}, {}).over(base, one.state)
    for row in (20, 3, -1):
        item = np.array([row], np.int32)
        np.testing.assert_array_equal(two.state.of_items(item, CUT_OFF), one.state.of_items(item, CUT_OFF))
        np.testing.assert_array_equal(two.state.of_categories(item, CUT_OFF), one.state.of_categories(item, CUT_OFF))
    assert two.state.of_items(np.array([20], np.int32), CUT_OFF)[0, Kind.CLICK, 0] == 1.0
    assert not two.state.of_items(np.array([21], np.int32), CUT_OFF).any()
    np.testing.assert_array_equal(two.state.of_shop(CUT_OFF), one.state.of_shop(CUT_OFF))


def test_the_text_of_an_item_uses_written_fields_over_those_of_the_catalogue(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pq.write_table(
        pa.table(
            {
                "item_id": ["a", "b"],
                "title": ["Cap", "Hat"],
                "category": ["Head", None],
                "style": [["plain"], ["wide"]],
                "embedding": [[1.0], [2.0]],
            }
        ),
        path,
    )
    written = {
        "b": ItemFields(0, {"category": "Sun"}),
        "new": ItemFields(0, {"title": "Sock", "a:style": ["warm", "long"], "a:size": 3.0}),
        "bare": ItemFields(0, {}),
    }
    found = texts_of("{title}. {category}. {attributes}", written, path)
    assert found.now == {"b": "Hat. Sun. wide", "new": "Sock. long, warm", "bare": ""}
    assert found.released == {"b": "Hat. wide"}
    assert {i: v.tolist() for i, v in found.vectors.items()} == {"b": [2.0]}


values = st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("item_id", "title", "category", "price", "available", "available_from", "attributes"),
            values | st.dictionaries(st.sampled_from(["net weight", "hue", "x"]), values),
        ),
    )
)
def test_any_written_item_is_refused_or_can_be_added_to_an_overlay(given_: dict[str, Any]) -> None:
    base = planted_items()
    for part in split_body(json.dumps(given_, allow_nan=False, default=str).encode() if _is_json(given_) else b"{}", 9):
        with contextlib.suppress(Refusal):
            item_id, fields = accept_item(part, CUT_OFF)
            held = decode_fields({k.encode(): v for k, v in fields.items()})
            items = Overlay({item_id: held}, {}).over(base, base.state)
            found = rows(items, EMPTY, items.catalogue.rows([item_id]), CUT_OFF + 1)
            assert not np.isinf(found).any()


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def test_an_overlay_copies_the_read_only_arrays_of_a_release(releases: list[Path]) -> None:
    release = load_release(releases[0])
    state = release.items.state.copy()
    over = Overlay({"red-01": ItemFields(CUT_OFF, {"price": 1.0})}, {}).over(release.items, state)
    assert over.catalogue.price[int(over.catalogue.rows(["red-01"])[0])] == 1.0
    assert replace(over, state=state).catalogue is over.catalogue
    assert release.items.catalogue.price[int(release.items.catalogue.rows(["red-01"])[0])] != 1.0


def test_recommendations_include_new_items_but_not_withdrawn_ones(client: httpx.Client, embedder: Embedder) -> None:
    put(client, {"item_id": "new", "title": "Red"})
    read(client, embedder, "new")
    client.delete("/v1/items/red-01")
    until(lambda: "red-01" not in ranked(client))
    client.post("/v1/events", json=[click("red-01"), click("red-03")])
    found = client.post("/v1/recommend", json={"user_id": "u", "limit": 21}).json()["items"]
    assert "new" in [i["item_id"] for i in found]
    assert "red-01" not in [i["item_id"] for i in found]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set with two items and an empty log."""
    table = pa.table(
        {
            "item_id": ["a", "b"],
            "title": ["Cap", "Hat"],
            "price": [1.0, 2.0],
            "available_from": pa.array([0, 0], pa.timestamp("us", "UTC")),
            "style": [["plain"], ["wide"]],
            "size": pa.array([1, 2], pa.int64()),
        }
    )
    pq.write_table(table, tmp_path / "items.parquet")
    pq.write_table(EVENTS_SCHEMA.empty_table(), tmp_path / "events.parquet")
    return tmp_path


def test_the_collected_catalogue_has_the_written_items(client: httpx.Client, store: BulkStore, data: Path) -> None:
    """Changed values and new rows; values that do not fit their column, and unknown columns, are left out."""
    put(client, {"item_id": "b", "price": 9, "attributes": {"style": "tall", "size": 2.5, "weight": 3}})
    put(client, {"item_id": "c", "title": "Sock", "available_from": 1_700_000_000, "attributes": {"size": 7}})
    assert collect(data, store).items == 2
    put(client, {"item_id": "b", "title": "Bonnet"})
    collect(data, store)
    rows_ = {r["item_id"]: r for r in load_data(data).items.to_pylist()}
    assert rows_["a"]["price"] == 1.0
    assert (rows_["b"]["price"], rows_["b"]["title"], rows_["b"]["style"], rows_["b"]["size"]) == (
        9,
        "Bonnet",
        ["tall"],
        2,
    )
    assert (rows_["c"]["title"], rows_["c"]["size"], rows_["c"]["price"]) == ("Sock", 7, None)
    assert rows_["c"]["available_from"].timestamp() == 1_700_000_000


def test_writes_that_every_release_includes_are_deleted_from_redis(
    client: httpx.Client, store: BulkStore, data: Path, tmp_path: Path
) -> None:
    """A later release includes the changed item, so its write is deleted; a withdrawn and a new item are kept."""
    put(client, {"item_id": "red-01", "price": 2}, {"item_id": "red-03", "available": False}, {"item_id": "new"})
    later = time.time() + 60
    publish(tmp_path / "releases", cut_off=later, created_at=later, model_text=planted_model(planted_items()))
    collect(data, store, tmp_path / "releases")
    assert sorted(BulkWrittenItems(store).ids()) == ["new", "red-03"]
    held, _ = BulkWrittenItems(store).fields(["red-01", "red-03", "new"])
    assert [bool(fields) for fields in held] == [False, True, True]
