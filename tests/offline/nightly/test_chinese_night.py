"""A Chinese shop from its exported tables to its served lists: import, nightly run, queries and tags."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
import yaml

from features.text import tokens
from features.text.implied_tags import AttributeValues, ItemWords
from offline.config import Config, load
from offline.config.simulation import SimulateConfig
from offline.ingest import import_data, suggest
from offline.nightly import Night
from offline.simulation import simulate
from serving.release import Release
from serving.store import BulkStore
from serving.store.embedded import connect_url
from tests.serving.test_service import FAST, ready, served
from text_encoder import multilingual

pytestmark = pytest.mark.slow

SHOP = SimulateConfig(
    items=120, users=150, days=10, new_items_per_day=1, language="zh", end=datetime(2024, 6, 1, tzinfo=UTC)
)
KINDS = {"view": "浏览", "click": "点击", "cart": "加购", "purchase": "购买"}


def write(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="gb18030") as file:
        csv.writer(file).writerows([header, *rows])


def export(source: Path, folder: Path) -> None:
    """Tables as a Chinese shop exports them: GB18030, Chinese names of columns and events, no shown lists."""
    folder.mkdir()
    items, events = (pq.read_table(source / f"{name}.parquet").to_pylist() for name in ("items", "events"))
    write(
        folder / "商品.csv",
        ["商品编号", "商品名称", "类目", "品牌", "价格", "标签", "商品描述"],
        [
            [
                row["item_id"],
                row["title"],
                row["category"] or "",
                row["brand"] or "",
                "暂无" if row["price"] is None else f"￥{row['price']:,.2f}",
                "|".join(row["tags"]),
                row["description"] or "",
            ]
            for row in items
        ],
    )
    write(
        folder / "用户行为.csv",
        ["用户编号", "商品编号", "行为类型", "行为时间"],
        [
            [row["user_id"], row["item_id"], KINDS[row["event"]], f"{row['timestamp']:%Y-%m-%d %H:%M:%S}"]
            for row in events
            if row["event"] in KINDS
        ],
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The imported export, with the suggested mapping."""
    place = tmp_path_factory.mktemp("chinese")
    simulate(SHOP, place / "simulated")
    export(place / "simulated", place / "export")
    config = load(
        None,
        workspace=place / "shop",
        ranker={"trees": 40, "min_data_in_leaf": 20},
        encoder={"epochs": 3, "budget_s": 120, "max_tokens": 32},
        lists={"size": 24},
        **yaml.safe_load(suggest(place / "export")),
    )
    assert config.sources is not None
    import_data(config.sources, config.data, datetime(2026, 6, 1, tzinfo=UTC))
    return config


@pytest.fixture(scope="module")
def url(config: Config) -> Iterator[str]:
    with connect_url(None, config.embedded) as url:
        yield url


@pytest.fixture(scope="module")
def release(config: Config, url: str) -> Release:
    return Night(config, url)()


def test_the_catalogue_is_not_english_and_gets_the_multilingual_encoder(config: Config, release: Release) -> None:
    """If its package is installed. Otherwise the run says how to install it and uses the English one."""
    (texts,) = (config.workspace / "runs").glob("*/texts.json")
    expected = "multilingual" if multilingual.is_installed() else "minilm"
    assert json.loads(texts.read_text())["model"] == expected


def test_words_of_titles_and_tags_are_in_the_vocabulary(release: Release) -> None:
    assert release.items.words is not None
    names = set(release.items.words.names)
    title = release.items.catalogue.titles[0]
    assert set(tokens.tokenize(title)) <= names
    assert release.manifest.tokens == tokens.VERSION


def test_tags_are_read_from_texts(config: Config, release: Release) -> None:
    catalogue = release.items.catalogue
    items = pq.read_table(config.data / "items.parquet").sort_by("item_id").to_pylist()
    words = ItemWords.of([f"{row['title']} {row['description'] or ''}" for row in items])
    entered, implied = AttributeValues.of(catalogue), AttributeValues.of(catalogue, words)
    assert len(implied.value) > len(entered.value)


def test_queries_find_the_products_with_their_words(release: Release, url: str) -> None:
    """Each query is a kind of product. All products of the kind come first."""
    titles = dict(zip(release.items.catalogue.item_ids, release.items.catalogue.titles, strict=True))
    kinds = [
        k for k in ("背包", "台灯", "靠垫", "拼图", "围巾", "花盆", "茶壶") if any(k in t for t in titles.values())
    ]
    assert len(kinds) >= 3
    with BulkStore(url) as store:
        assert store.pointer() is not None
    with served(url, FAST) as client:
        ready(client)
        for kind in kinds:
            found = _recommended(client, kind)
            count = min(sum(kind in title for title in titles.values()), 5)
            assert all(kind in titles[item] for item in found[:count]), (kind, [titles[i] for i in found])


def _recommended(client: httpx.Client, query: str) -> list[str]:
    answer = client.post("/v1/recommend", json={"user_id": "新用户", "query": query, "limit": 10})
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]
