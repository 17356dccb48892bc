"""The items of a request over HTTP: what is accepted, refused, required, counted and logged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pyarrow.parquet as pq
import pytest

from features.bounds import SEEDS as MOST
from offline.data import LogFiles, collect
from offline.data.schema import SEEDS, SERVED_SCHEMA
from serving.config import PlacementConfig
from serving.records import Served, decode_served
from serving.store import BulkStore, Pointer
from serving.store.embedded import connect_url
from tests.offline.data.test_collection import data
from tests.serving.test_placements import logged
from tests.serving.test_recommend import AT, IDS, recommended, shop
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_service import FAST, ready, refused, served

__all__ = ["data"]
PLACED = FAST.model_copy(update={"placements": {"cart": PlacementConfig(requires=("items",))}})


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    release = publish(tmp_path_factory.mktemp("releases"), items=shop(), model_text=planted_model(planted_items()))
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url, BulkStore(url) as store:
        store.set_pointer(Pointer(release.name, str(release)))
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with served(url, PLACED, clock=lambda: AT) as client:
        ready(client)
        yield client


def unknown(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    (line,) = [line for line in lines if line.startswith("shelfwise_unknown_request_items_total ")]
    return float(line.split()[1])


@pytest.mark.parametrize("route", ["rank", "recommend"])
def test_the_log_has_the_items_of_a_request_each_once_and_clean(client: httpx.Client, url: str, route: str) -> None:
    """In the order of the request, also those that the catalogue has not, of which there are two."""
    before = unknown(client)
    sent = [" red-03", "gone", "red-01", "red-03", "Caf\u0065\u0301"]
    answer = recommended(client, route, user_id="u", items=sent)
    assert logged(url, answer["request_id"]).items == ["red-03", "gone", "red-01", "Caf\u00e9"]
    assert unknown(client) == before + 2


def test_a_list_without_items_has_no_field_for_them_in_the_log(client: httpx.Client, url: str) -> None:
    answer = recommended(client, user_id="u", items=[])
    assert b"items" not in msgspec.msgpack.encode(logged(url, answer["request_id"])).replace(b"item_ids", b"")


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        (["red-01"] * (MOST + 1), "items", f"length <= {MOST}"),
        ("red-01", "items", "got `str`"),
        (None, "items", "got `null`"),
        ([3], "items[0]", "got `int`"),
        ([""], "items[0]", "length >= 1"),
        (["red-01", "  "], "items[1]", "is blank"),
        (["red-01", "undefined"], "items[1]", "'undefined'"),
        (["a\u0000b"], "items[0]", "control character"),
        (["x" * 300], "items[0]", "length <= 256"),
    ],
)
@pytest.mark.parametrize("route", ["rank", "recommend"])
def test_items_that_are_no_ids_are_refused(
    client: httpx.Client, route: str, given: Any, field: str, message: str
) -> None:
    problem = refused(client.post(f"/v1/{route}", json={"user_id": "u", "items": given}), 422)
    assert (problem["field"], message in problem["detail"]) == (field, True), problem


def test_as_many_items_as_allowed_are_accepted(client: httpx.Client) -> None:
    recommended(client, user_id="u", items=[f"no-{k}" for k in range(MOST)])


def test_a_placement_that_requires_items_refuses_a_request_without_any(client: httpx.Client) -> None:
    """Unknown items are items: the page cannot know what the catalogue lacks."""
    without: list[dict[str, Any]] = [{}, {"items": []}]
    for asked in without:
        problem = refused(client.post("/v1/recommend", json={"placement": "cart", **asked}), 422)
        assert problem["field"] == "items"
        assert problem["detail"] == "placement 'cart' requires `items`, and the request has none"
        assert problem["remedy"] == "Send the `items`, or remove `items` from `placements.cart.requires`."
    assert recommended(client, placement="cart", items=["nobody knows"])["placement"] == "cart"


def test_collected_files_have_a_column_of_items_only_if_a_list_has_some(
    client: httpx.Client, url: str, data: Path
) -> None:
    """Files with and without it are read together."""
    with BulkStore(url) as store:
        logged(url, recommended(client, user_id="u")["request_id"])
        collect(data, store)
        logged(url, recommended(client, user_id="u")["request_id"])
        collect(data, store)
        files = set((data / "served").glob("date=*/*.parquet"))
        plain = max(files, key=lambda path: path.name)
        assert pq.read_schema(plain) == SERVED_SCHEMA
        with_items = recommended(client, user_id="u", items=IDS[:2])["request_id"]
        logged(url, with_items)
        collect(data, store)
    (new,) = set((data / "served").glob("date=*/*.parquet")) - files
    assert pq.read_schema(new) == SERVED_SCHEMA.append(SEEDS)
    read = LogFiles.of(data).read_served(("request_id", "items")).to_pylist()
    assert {row["request_id"]: row["items"] for row in read}[with_items] == IDS[:2]
    assert sum(row["items"] is None for row in read) >= 1


def test_a_record_of_an_older_version_has_no_items() -> None:
    old = Served("r", AT, "release", "rank", ["a"], b"")
    assert decode_served(msgspec.msgpack.encode(old)).items == []
