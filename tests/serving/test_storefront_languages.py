"""The storefront page of a shop whose products are described in Chinese and other languages, in headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from features.text.vocabulary import Vocabulary
from serving.store import BulkStore, Pointer
from serving.store.embedded import connect_url
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_service import ready, served
from tests.serving.test_storefront import OPEN
from tests.serving.test_storefront_page import CHROMIUM, browser, page, shelf

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]
__all__ = ["browser", "page"]

OTHERS = {"ja": "木製ダイニングチェア", "th": "เก้าอี้ไม้สัก", "hi": "लकड़ी की कुर्सी", "ar": "كرسي خشبي"}
TITLES = (
    [f"红色实木餐椅 {k}号" for k in range(12)] + [f"蓝色陶瓷马克杯 {k}号" for k in range(24)] + list(OTHERS.values())
)
CATEGORIES = ["家具", "餐厨"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    items = planted_items(40)
    model = planted_model(planted_items())
    catalogue = replace(items.catalogue, titles=TITLES, category_names=CATEGORIES, brand_names=["禾洛", "林陌"])
    vectors = (items.vectors.code * items.vectors.scale[:, None]).astype(np.float32)
    items = replace(items, catalogue=catalogue, words=Vocabulary.build(catalogue, vectors))
    release: Path = publish(tmp_path_factory.mktemp("releases"), items=items, model_text=model)
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url:
        with BulkStore(url) as store:
            store.set_pointer(Pointer(release.name, str(release)))
        with served(url, OPEN) as client:
            ready(client)
            yield str(client.base_url)


def titles(page: Page, which: str = "own") -> list[str]:
    return list(page.eval_on_selector_all(f"#{which} .title", "all => all.map(title => title.textContent)"))


def test_titles_categories_and_brands_are_shown(page: Page) -> None:
    assert set(titles(page)) < set(TITLES)
    assert page.get_by_label("Category").first.locator("option").all_inner_texts() == ["All", *sorted(CATEGORIES)]
    assert any(name in page.locator("#own .about").first.inner_text() for name in CATEGORIES)


@pytest.mark.parametrize("query", ["餐椅", "椅", "实木的餐椅", "餐椅 红色", "ＲＥＤ餐椅"])
def test_a_chinese_query_moves_the_chairs_up(page: Page, query: str) -> None:
    page.get_by_role("searchbox").fill(query)
    expect(page.locator("#said")).to_contain_text(f"24 products for “{query}”")
    assert all("餐椅" in title for title in titles(page)[:12])
    assert f'matches "{query}"' in page.locator("#own .why").first.inner_text()


@pytest.mark.parametrize(("query", "language"), [("チェア", "ja"), ("เก้าอี้", "th"), ("कुर्सी", "hi"), ("كُرسي", "ar")])
def test_queries_in_other_languages_find_their_product(page: Page, query: str, language: str) -> None:
    page.get_by_label("Compare with most popular").check()
    page.get_by_role("searchbox").fill(query)
    expect(page.locator("#said")).to_contain_text(f"products for “{query}”")
    assert titles(page)[0] == OTHERS[language]
    # The order by popularity has only titles with all words.
    expect(page.locator("#popular > li")).to_have_count(1)
    assert titles(page, "popular") == [OTHERS[language]]


def test_words_that_no_product_has_are_reported(page: Page) -> None:
    page.get_by_role("searchbox").fill("手机")
    expect(page.locator("#searched")).to_contain_text("No product contains a word of “手机”")


def test_letters_typed_for_characters_are_not_searched_for(page: Page) -> None:
    """An input method shows "canyi" until 餐椅 is chosen. Enter and Escape belong to it until then."""
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.post_data or "") if r.url.endswith("/v1/recommend") else None)
    page.get_by_role("searchbox").focus()
    keyboard = page.context.new_cdp_session(page)
    for typed in ("can", "canyi"):
        keyboard.send(
            "Input.imeSetComposition", {"text": typed, "selectionStart": len(typed), "selectionEnd": len(typed)}
        )
    page.wait_for_timeout(500)  # longer than the page waits for more letters
    assert asked == []
    keyboard.send("Input.insertText", {"text": "餐椅"})
    expect(page.locator("#said")).to_contain_text("24 products for “餐椅”")
    assert page.get_by_role("searchbox").input_value() == "餐椅"
    assert all("canyi" not in body for body in asked)
    assert len(shelf(page)) == 24
