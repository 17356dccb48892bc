"""The storefront page's files and API, over real HTTP and a real Valkey."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import redis
from pydantic import ValidationError

from features.log import Kind
from serving.config import ServiceConfig
from serving.http.keys import Keys, new_key
from serving.pages.storefront.page import FILES
from serving.store import BulkStore, Event
from serving.store.embedded import connect_url
from tests.serving.test_recommend import AT, IDS, released, shop
from tests.serving.test_release import columns, planted_items, planted_model, publish
from tests.serving.test_service import FAST, ready, served

OPEN = FAST.model_copy(update={"storefront": True})
PAGE = Path("serving/pages/storefront")
__all__ = ["released"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str, released: Path) -> Iterator[httpx.Client]:
    """A shop in which `u}%` bought red-07 and clicked red-01, and `v` clicked blue-02 three times."""
    done = [("u}%", "red-07", Kind.PURCHASE), ("u}%", "red-01", Kind.CLICK), *[("v", "blue-02", Kind.CLICK)] * 3]
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        raw.flushall()
        store.write([Event(f"e{k}", kind, u, i, AT - 10 * k - 1) for k, (u, i, kind) in enumerate(done)], AT)
    with served(url, OPEN, released, lambda: AT) as client:
        ready(client)
        yield client


def popular(client: httpx.Client, **request: Any) -> list[str]:
    answer = client.post("/v1/storefront/popular", json=request)
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def test_the_page_and_its_list_of_shoppers_are_off_by_default(url: str, released: Path) -> None:
    with served(url, FAST, released, lambda: AT) as client:
        assert client.get("/storefront").status_code == 404
        assert client.get("/v1/storefront/shop").status_code == 404


def test_every_file_of_the_page_has_its_content_type_and_a_strict_policy(client: httpx.Client) -> None:
    kinds = {
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".svg": "image/svg+xml",
        ".js": "text/javascript; charset=utf-8",
    }
    for name in FILES:
        kind = kinds[Path(name).suffix]
        answer = client.get("/storefront" if name == "index.html" else f"/storefront/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_no_other_file_is_served(client: httpx.Client) -> None:
    for name in ("page.py", "..%2Fapp.py", "../app.py", "shop.py"):
        assert client.get(f"/storefront/{name}").status_code == 404


def test_the_page_is_smaller_than_150_kilobytes_and_loads_nothing_from_elsewhere() -> None:
    files = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in (".html", ".js", ".css", ".svg")}
    assert set(files) == set(FILES)
    assert sum(map(len, files.values())) < 150_000
    for name, content in files.items():
        rest = content.replace(b"http://www.w3.org/2000/svg", b"")  # a namespace, which is not fetched
        for never in (b"http:", b"https:", b"innerHTML", b"eval("):
            assert never not in rest, name


def test_a_product_has_its_own_picture_if_its_origin_is_configured(url: str, tmp_path: Path) -> None:
    """The origin is scheme, host and port of the address: other ones are not shown, whatever they look like."""
    origin, items = "https://cdn.shop.test", shop()
    addresses = {
        "red-01": f"{origin}/mug.jpg?w=300",
        "red-03": f"{origin}.evil.test/mug.jpg",
        "red-05": f"{origin}@evil.test/mug.jpg",
        "red-07": "http://cdn.shop.test/mug.jpg",
        "blue-00": "https://[",
        "blue-02": "javascript:alert(1)",
    }
    table = columns(items)
    urls = pa.array([addresses.get(i) for i in table["item_id"].to_pylist()], pa.string())
    release = publish(
        tmp_path / "releases",
        items=items,
        model_text=planted_model(planted_items()),
        item_columns=table.append_column("image_url", urls),
    )
    allowed = OPEN.model_copy(update={"image_origins": (origin,), "currency": "EUR"})
    with served("redis://127.0.0.1:1/0", allowed, release, lambda: AT) as client:
        ready(client)
        policy = client.get("/storefront").headers["content-security-policy"]
        assert f"img-src 'self' {origin};" in policy
        found = client.post("/v1/storefront/products", json={"candidates": [*addresses, "red-09"]}).json()
        assert {p["item_id"]: p["image_url"] for p in found if p["image_url"]} == {"red-01": addresses["red-01"]}
        assert len(found) == 7
        assert client.get("/v1/storefront/shop").json()["currency"] == "EUR"
    with served("redis://127.0.0.1:1/0", OPEN, release, lambda: AT) as client:
        ready(client)
        found = client.post("/v1/storefront/products", json={"candidates": list(addresses)}).json()
        assert {p["image_url"] for p in found} == {None}


@pytest.mark.parametrize("origin", ["https://cdn.shop.test/path", "cdn.shop.test", "https://x; script-src *", "*"])
def test_an_origin_of_pictures_is_a_scheme_a_host_and_a_port(origin: str) -> None:
    with pytest.raises(ValidationError, match="image_origins"):
        ServiceConfig(image_origins=(origin,))


def test_the_shop_has_its_categories_prices_and_known_shoppers(client: httpx.Client) -> None:
    shop = client.get("/v1/storefront/shop").json()
    assert shop["categories"] == ["blue", "red"]
    assert 1 <= shop["price"][0] < shop["price"][1] <= 9
    assert [(s["user_id"], s["engagements"], s["likes"]) for s in shop["shoppers"]] == [
        ("v", 3, ["blue"]),
        ("u}%", 2, ["red"]),
    ]


def test_products_are_in_the_requested_order_without_unknown_ones(client: httpx.Client) -> None:
    found = client.post("/v1/storefront/products", json={"candidates": ["red-03", "no such", "blue-02"]}).json()
    assert [(p["item_id"], p["title"], p["category"], p["brand"]) for p in found] == [
        ("red-03", "A red-03 thing", "red", "y"),
        ("blue-02", "A blue-02 thing", "blue", "x"),
    ]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", sorted(IDS)),
        (" ", sorted(IDS)),
        ("RED-0 thing", [i for i in IDS if i.startswith("red-0")]),
        ("ＲＥＤ-0", [i for i in IDS if i.startswith("red-0")]),
        ("<script>", []),
        ("\x00", []),
        ("红", []),
    ],
)
def test_search_finds_titles_that_contain_every_word(client: httpx.Client, words: str, found: list[str]) -> None:
    assert client.get("/v1/storefront/search", params={"words": words}).json() == found


def test_popular_items_are_ordered_by_engagements(client: httpx.Client) -> None:
    answer = client.post("/v1/storefront/popular", json={}).json()
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["degraded"] is False
    # blue-18 is not on sale until tomorrow.
    assert {item["item_id"] for item in answer["items"]} == set(IDS) - {"blue-18"}


def test_rules_apply_to_popular_items(client: httpx.Client) -> None:
    only = {"filter": {"attribute": "category", "eq": "red"}, "cap": [{"attribute": "brand", "most": 2}]}
    assert len(found := popular(client, rules=only)) == 4  # two brands, two each
    assert all(item.startswith("red") for item in found)
    pinned = popular(client, rules={"pin": [{"item_id": "red-05", "position": 0}]}, limit=3)
    assert pinned[0] == "red-05"
    assert len(pinned) == 3
    assert popular(client, candidates=["no such", "red-01", "red-01"]) == ["red-01"]


def test_an_invalid_rule_or_field_and_too_many_candidates_are_refused_by_name(client: httpx.Client) -> None:
    rules = {"filter": {"attribute": "colour", "eq": "red"}}
    answer = client.post("/v1/storefront/popular", json={"rules": rules})
    assert (answer.status_code, answer.json()["field"]) == (422, "rules.filter.attribute")
    assert client.post("/v1/storefront/products", json={"candidates": [1]}).status_code == 422
    for route in ("products", "popular"):
        many = client.post(f"/v1/storefront/{route}", json={"candidates": ["red-01"] * (OPEN.max_candidates + 1)})
        assert (many.status_code, many.json()["title"]) == (413, "Too many candidates")


def test_without_redis_the_shop_has_no_shoppers(released: Path) -> None:
    with served("redis://127.0.0.1:1/0", OPEN, released, lambda: AT) as client:
        ready(client)
        assert client.get("/v1/storefront/shop").json()["shoppers"] == []


def test_with_keys_the_page_is_public_but_its_api_is_not(url: str, released: Path) -> None:
    key, line = new_key("page", ["rank", "events"])
    with served(url, OPEN, released, lambda: AT, Keys(None, line)) as client:
        ready(client)
        assert client.get("/storefront").status_code == 200
        assert client.get("/v1/storefront/shop").status_code == 401
        headers = {"Authorization": f"Bearer {key}"}
        assert client.get("/v1/storefront/shop", headers=headers).status_code == 200
