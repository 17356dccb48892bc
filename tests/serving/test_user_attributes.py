"""Attributes of users: written through the service, used by the next ranking, logged, replayed, expired and erased."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from features.bounds import COLUMNS
from features.columns import Column, table
from features.context import Context
from features.history import EMPTY
from features.log import Kind
from features.moment import Items
from features.retention import Retention
from features.table import features, rows
from offline.data import LogFiles, collect, list_columns, load_dataset, logged_lists
from offline.data.imported import PROFILES_FILE, UserAttributes
from offline.data.schema import EVENTS_SCHEMA
from offline.evaluation.skew import compare_rows
from serving.store import REFUSED, TOO_MANY, WRITES, AttributeWrite, BulkStore, Event, Pointer, Store, UserLimits
from serving.store.attributes import write_command
from tests.offline.data.test_collection import data
from tests.serving.test_columns import IDS, LOGGED, before_events, emptied_store, fitted, logging_service, ranked
from tests.serving.test_release import CUT_OFF, planted_items, publish
from tests.serving.test_service import ready, served, until, url

__all__ = ["data", "url"]
DECLARED = (
    Column("bm25", "number"),
    Column("age", "number", "user"),
    Column("country", "category", "user", ("AT", "DE")),
)
AT = CUT_OFF + 50.0


def items() -> Items:
    return before_events(DECLARED)


def model() -> str:
    """Trees that prefer dear items for users from DE, and cheap ones for others."""
    rng, them, table_, label = np.random.default_rng(1), items(), [], []
    every, price = np.arange(len(IDS), dtype=np.int32), them.catalogue.price[:-1]
    for _ in range(60):
        country, age = rng.choice(["AT", "DE"]), float(rng.integers(18, 80))
        sent = table(DECLARED, {}, {"country": str(country), "age": age})
        table_.append(rows(them, EMPTY, every, CUT_OFF, Context(columns=sent)))
        label.append(price * (1.0 if country == "DE" else -0.3))
    return fitted(them, table_, label, leaves=15, trees=30)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("releases"), items(), model_text=model())


@pytest.fixture(scope="module")
def running(url: str, release: Path) -> Iterator[httpx.Client]:
    with logging_service(url, release) as client:
        yield client


@pytest.fixture
def store(running: httpx.Client, url: str) -> Iterator[BulkStore]:
    """The store of the service, with empty logs."""
    with emptied_store(running, url, "sw:served", f"sw:{WRITES}", "sw:erased") as store:
        yield store


def put(client: httpx.Client, user: str, **attributes: Any) -> httpx.Response:
    return client.put(f"/v1/users/{user}", json={"attributes": attributes})


PRICE = dict(zip(IDS, planted_items().catalogue.price.tolist(), strict=False))
DEAR, CHEAP = max(PRICE, key=PRICE.__getitem__), min(PRICE, key=PRICE.__getitem__)


def best(client: httpx.Client, user: str) -> str:
    """The better of the dearest and the cheapest item for a user."""
    return next(iter(ranked(client, {"user_id": user, "candidates": [DEAR, CHEAP]})))


def test_an_attribute_is_a_feature_of_the_user() -> None:
    of_user = {f.name: f for f in features(items()) if f.group == "user attributes"}
    assert list(of_user) == ["user_age", "user_country"]
    assert (of_user["user_country"].unit, of_user["user_age"].missing) == ("0 AT, 1 DE, 2 other", "the user has no age")
    assert of_user["user_age"].reasons is None, "it is the same for every candidate"


def test_the_next_ranking_uses_what_was_written(running: httpx.Client) -> None:
    """Writes merge, null clears one attribute, and other users are not affected."""
    assert put(running, "ann", country="DE", age=40).status_code == 202
    assert best(running, "ann") == DEAR
    put(running, "ann", country="AT")
    assert best(running, "ann") == CHEAP
    assert best(running, "someone else") == best(running, "nobody")
    put(running, "ann", country=None, age=None)
    assert best(running, "ann") == best(running, "nobody")


def test_columns_of_a_request_are_not_attributes(running: httpx.Client) -> None:
    """A request cannot tell the country of its user: the attribute of the same name is another column."""
    put(running, "eva", country="DE")
    by_attribute = ranked(running, {"user_id": "eva"})
    told = ranked(running, {"user_id": "eva", "columns": {"country": "AT"}})
    assert told == pytest.approx(by_attribute, abs=1e-9)


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"attributes": {"age": "old"}}, "attributes.age", "'old' is not a number"),
        ({"attributes": {"country": True}}, "attributes.country", "true is not a text"),
        ({"attributes": {"age": 1e16}}, "attributes.age", "is not between"),
        ({"attributes": {"x": [1]}}, "attributes[...]", "got `array`"),
        ({"attributes": {f"a{k}": k for k in range(COLUMNS + 1)}}, "attributes", "51 attributes in one write"),
        ({"attributes": {"a\u0001": 1}}, "attributes.a\u0001", "without control characters"),
        ({"attributes": {"note": "a\u0000b"}}, "attributes.note", "contains a control character"),
        ({"country": "AT"}, "country", "unknown field"),
        ({}, "attributes", "missing required field"),
    ],
)
def test_invalid_attributes_are_refused_with_their_field(
    running: httpx.Client, store: BulkStore, body: dict[str, Any], field: str, message: str
) -> None:
    answer = running.put("/v1/users/bob", json=body)
    assert answer.status_code == 422
    assert (answer.json()["field"], message in answer.json()["detail"]) == (field, True), answer.json()
    assert store.length(WRITES) == 0


def test_a_user_has_a_maximum_number_of_attributes(running: httpx.Client) -> None:
    """Over all writes; one that exceeds it changes nothing."""
    assert put(running, "max", **{f"a{k}": k for k in range(COLUMNS)}).status_code == 202
    answer = put(running, "max", a0=100, more=1)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:shelfwise:problem:too-many-attributes")
    assert put(running, "max", a0=100).status_code == 202


def test_served_lists_replay_to_the_bit_with_the_attributes_of_their_time(
    running: httpx.Client, store: BulkStore, data: Path, release: Path
) -> None:
    """The night reads what each list was ranked with, however the attributes have changed since.

    The first two lists have the same attributes, and only the second has columns of its request.
    """
    pq.write_table(EVENTS_SCHEMA.empty_table(), data / "events.parquet")
    put(running, "kim", age=0.1 + 0.2, country="DE")
    ranked(running, {"user_id": "kim", "candidates": IDS[:4]})
    for age in [0.1 + 0.2, 33.3, None]:
        put(running, "kim", age=age, country="DE" if age else None)
        ranked(running, {"user_id": "kim", "candidates": IDS[:4], "columns": {"bm25": 1.0}})
    ranked(running, {"user_id": "new", "candidates": IDS[:4]})
    until(lambda: store.length("served") == 5)
    collect(data, store)
    assert store.length(WRITES) == 0, "collected writes are removed from Redis"
    found = compare_rows(data, release.parent)
    assert (found.lists, [f.name for f in found.features if f.differ]) == (5, [])
    assert found.missing_columns == {"bm25": 2}

    dataset = load_dataset(data)
    lists = logged_lists(dataset.shown)
    values = list_columns(LogFiles.of(data), lists, dataset.catalogue.item_ids, DECLARED, dataset.events.user_ids)
    of_list = values[:, lists.start[:-1]].T
    none = np.nan
    expected = [[none, 0.1 + 0.2, 1], [1, 0.1 + 0.2, 1], [1, 33.3, 1], [1, none, none], [none, none, none]]
    np.testing.assert_array_equal(of_list, np.array(expected, np.float32))
    assert pq.read_schema(next((data / "attributes").glob("date=*/*.parquet"))).names == ["user_id", "at", "attributes"]


def test_lists_that_the_service_did_not_rank_have_the_attributes_as_of_their_time(data: Path) -> None:
    """Imported attributes hold from the beginning, a write from just after its time, and a cleared one is missing."""
    shown = [
        {
            "event_id": f"e{n}",
            "event": "impression",
            "user_id": "ann",
            "item_id": IDS[0],
            "timestamp": at,
            "position": 0,
        }
        | {"request_id": f"r{n}"}
        for n, at in enumerate(pa.array([10, 20, 30, 40], pa.timestamp("s", "UTC")).to_pylist())
    ]
    pq.write_table(pa.Table.from_pylist(shown, EVENTS_SCHEMA), data / "events.parquet")
    profiles = {"user_id": ["ann", "bob"], "age": [20.0, 30.0], "country": ["AT", None], "tags": [["x"], None]}
    pq.write_table(pa.table(profiles), data / PROFILES_FILE)
    folder = data / "attributes/date=1970-01-01"
    folder.mkdir(parents=True)
    writes = {
        "user_id": ["ann", "bob", "ann"],
        "at": pa.array([20, 1, 30], pa.timestamp("s", "UTC")).cast(pa.timestamp("us", "UTC")),
        "attributes": ['{"age":21.5}', '{"age":99}', '{"country":null}'],
    }
    pq.write_table(pa.table(writes), folder / "part-1.parquet")
    dataset = load_dataset(data)
    lists = logged_lists(dataset.shown)
    values = list_columns(LogFiles.of(data), lists, dataset.catalogue.item_ids, DECLARED[1:], dataset.events.user_ids)
    np.testing.assert_array_equal(values, np.array([[20, 20, 21.5, 21.5], [0, 0, 0, np.nan]], np.float32))
    known = UserAttributes(LogFiles.of(data))
    known.advance(np.inf)
    assert known.state == {"ann": {"age": 21.5, "country": None}, "bob": {"age": 99}}


def test_an_erased_user_has_no_attributes_anywhere(
    running: httpx.Client, store: BulkStore, data: Path, url: str
) -> None:
    """Neither in Redis, in the log, nor in the imported file; and those written later are kept."""
    pq.write_table(EVENTS_SCHEMA.empty_table(), data / "events.parquet")
    pq.write_table(pa.table({"user_id": ["gone", "stays"], "age": [1.0, 2.0]}), data / PROFILES_FILE)
    put(running, "gone", country="DE")
    put(running, "stays", country="DE")
    collect(data, store)
    put(running, "gone", country="AT")
    assert running.delete("/v1/users/gone").status_code == 202
    with redis.Redis.from_url(url) as raw:
        assert not raw.exists("sw:{gone}:a")
    put(running, "gone", age=50)
    collect(data, store)
    log = pa.concat_tables(pq.read_table(p, partitioning=None) for p in (data / "attributes").glob("date=*/*.parquet"))
    assert sorted(map(tuple, log.select(["user_id", "attributes"]).to_pandas().to_numpy().tolist())) == [
        ("gone", '{"age":50.0}'),
        ("stays", '{"country":"DE"}'),
    ]
    assert pq.read_table(data / PROFILES_FILE)["user_id"].to_pylist() == ["stays"]


def test_attributes_expire_with_the_user(url: str) -> None:
    """A write or an event renews them; readers of an expired user find none."""
    kept_s = 1000.0
    with redis.Redis.from_url(url) as raw, BulkStore(url, limits=UserLimits(Retention(kept_s, kept_s))) as store:
        write(store, AttributeWrite("ttl", AT, {"age": 1.0}))
        key = "sw:{ttl}:a"
        day = 86400
        assert kept_s + day - 5 <= raw.ttl(key) <= kept_s + day
        raw.expire(key, 10)
        store.write([Event("e", Kind.CLICK, "ttl", IDS[0], AT)], AT)
        assert kept_s + day - 5 <= raw.ttl(key) <= kept_s + day
        assert raw.zscore("sw:users", raw.zrange("sw:users", -1, -1)[0]) >= AT + kept_s


def write(store: BulkStore, attributes: AttributeWrite) -> int:
    """The reply of the script that `Store.write_attributes` runs."""
    return int(store.run(write_command(store.layout, attributes, store._limits))[0])


def test_new_users_are_refused_beyond_the_maximum_of_users(url: str) -> None:
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        count = raw.zcount("sw:users", AT, "+inf")
        store._limits = UserLimits(most=count + 1)
        assert write(store, AttributeWrite("last", AT, {"age": 1.0})) == 1
        assert write(store, AttributeWrite("refused", AT, {"age": 1.0})) == REFUSED
        assert write(store, AttributeWrite("last", AT, {f"a{k}": 1.0 for k in range(COLUMNS)})) == TOO_MANY
        assert not raw.exists("sw:{refused}:a")


async def read(url: str, user: str) -> dict[str, Any]:
    store = Store(url, 1.0)
    try:
        return (await store.read_user(user, reads_attributes=True)).decoded_attributes() or {}
    finally:
        await store.close()


def test_a_night_adds_the_attributes_of_the_log_and_changes_none(url: str) -> None:
    """Not even one that was cleared since: it stays so."""
    with BulkStore(url) as store:
        write(store, AttributeWrite("night", AT, {"country": "DE", "age": None}))
        before = store.length(WRITES)
        assert store.seed_attributes([AttributeWrite("night", AT, {"country": "AT", "age": 7, "store": "x"})]) == 0
        assert store.length(WRITES) == before
    assert asyncio.run(read(url, "night")) == {"country": "DE", "store": "x"}


def test_a_release_without_attributes_reads_none(url: str, tmp_path: Path) -> None:
    """Its lists have no attributes in the log, so that the night takes those as of their time."""
    plain = publish(tmp_path)
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        before = store.pointer()
        store.set_pointer(Pointer(plain.name, str(plain)))
        with served(url, LOGGED, plain, clock=time.time) as client:
            ready(client)
            put(client, "pat", country="DE")
            answer = client.post("/v1/rank", json={"user_id": "pat", "candidates": IDS[:2]}).json()["request_id"]
            until(lambda: any(answer.encode() in f[b"l"] for _, f in raw.xrange("sw:served")))
        assert before is not None
        store.set_pointer(before)
        (entry,) = [f[b"l"] for _, f in raw.xrange("sw:served") if answer.encode() in f[b"l"]]
        assert b"user_attributes" not in entry
        assert json.loads(raw.hget("sw:{pat}:a", "country")) == "DE"
