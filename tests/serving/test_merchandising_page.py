"""The page of merchandisers in headless Chromium, against a real service and Valkey."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from features.log import Kind
from serving.config import ServiceConfig
from serving.http.keys import Keys, new_key
from serving.store import BulkStore, Event, Pointer
from tests.serving.test_release import CUT_OFF
from tests.serving.test_service import FAST, ready, served, until
from tests.serving.test_storefront_page import CHROMIUM, HOSTILE, browser, release, url

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]
__all__ = ["browser", "release", "url"]
API = "/v1/merchandising"
PAGE = ServiceConfig.model_validate(
    {**dict(FAST), "merchandising": True, "placements": {"home": {"limit": 8}, "cart": {"limit": 4}}}
)
(KEY, LINE), (READ_KEY, READ_LINE) = new_key("ann", ["merchandise", "rank"]), new_key("bob", ["merchandise:read"])


@pytest.fixture(scope="module")
def service(url: str, release: Path) -> Iterator[httpx.Client]:
    """A service in which `u` clicked blue-00, whose title would run a script if it were parsed as markup."""
    with BulkStore(url) as store, redis.Redis.from_url(url) as raw:
        raw.flushall()
        store.write([Event("e", Kind.CLICK, "u", "blue-00", CUT_OFF)], CUT_OFF)
        store.set_pointer(Pointer(release.name, str(release)))
        with served(url, PAGE, clock=lambda: CUT_OFF + 60, good=Keys(lines=f"{LINE}\n{READ_LINE}")) as client:
            client.headers["Authorization"] = f"Bearer {KEY}"
            ready(client)
            yield client


@contextmanager
def opened(browser: Browser, service: httpx.Client, key: str = KEY, **how: Any) -> Iterator[Page]:
    """The page with a key entered and the list of the home page shown."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 1000}} | how))
    page, errors = context.new_page(), list[str]()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{service.base_url}/merchandising")
    page.get_by_label("This page needs a key").fill(key)
    page.get_by_role("button", name="Use key").click()
    expect(page.locator("#list li")).to_have_count(8)
    yield page
    context.close()
    assert errors == []


def live(service: httpx.Client, placement: str = "home") -> list[str]:
    answer = service.post("/v1/recommend", json={"placement": placement, "shown": False}).json()
    return [item["item_id"] for item in answer["items"]]


def shown(page: Page) -> list[str | None]:
    return [li.get_attribute("data-item") for li in page.locator("#list li").all()]


def test_a_pin_is_previewed_before_it_is_saved_and_can_be_undone(browser: Browser, service: httpx.Client) -> None:
    before = live(service)
    with opened(browser, service) as page:
        assert shown(page) == before
        fourth = page.locator("#list li").nth(3)
        fourth.get_by_role("spinbutton").fill("1")
        fourth.get_by_role("spinbutton").press("Tab")
        expect(page.locator("#about")).to_contain_text("4 moved or new; not saved yet")
        assert shown(page) == [before[3], *before[:3], *before[4:]]
        expect(page.locator("#list li").first).to_contain_text("pinned by this rule")
        assert live(service) == before, "a draft is not live"
        page.get_by_label("Note", exact=True).fill("we have too many")
        page.get_by_role("button", name="Save").click()
        expect(page.locator("#history tr").first).to_contain_text("we have too many")
        until(lambda: live(service)[0] == before[3], 5)
        expect(page.locator("#rules .rule").first).to_contain_text(f"pin-{before[3]} active")
        page.get_by_role("button", name="Undo version").click()
        page.get_by_role("dialog").get_by_label("Note for the history").fill("sold out")
        page.get_by_role("dialog").get_by_role("button", name="Restore").click()
        expect(page.locator("#history tr").first).to_contain_text("sold out")
        expect(page.locator("#rules")).to_contain_text("No rules yet")
        until(lambda: live(service) == before, 5)
        expect(page.locator("#history tr").first).to_contain_text("ann")


def test_the_preview_of_a_product_page_leaves_out_its_items(browser: Browser, service: httpx.Client) -> None:
    with opened(browser, service) as page:
        first, second, *_ = shown(page)
        page.get_by_label("Items on the page").fill(f"{first}, {second},")
        expect(page.locator(f'#list li[data-item="{first}"]')).to_have_count(0)
        expect(page.locator("#list li")).to_have_count(8)
        assert second not in shown(page)


def test_products_are_pinned_by_dragging_and_hidden_by_a_value_of_the_catalogue(
    browser: Browser, service: httpx.Client
) -> None:
    with opened(browser, service) as page:
        page.get_by_label("Shopper").fill("u")
        expect(page.locator('#list li[data-item="blue-00"]')).to_contain_text(HOSTILE)
        assert page.evaluate("window.hacked") is None
        before = shown(page)
        page.locator("#list li").nth(5).drag_to(page.locator("#list li").nth(1))
        expect(page.locator("#list li").nth(1)).to_have_attribute("data-item", before[5] or "")
        page.get_by_role("button", name="Discard").click()
        expect(page.locator("#list li").nth(5)).to_have_attribute("data-item", before[5] or "")
        page.get_by_role("button", name="New rule").focus()
        page.keyboard.press("Enter")
        page.get_by_label("Name", exact=True).fill("no-w")
        page.locator("#kind").select_option("hide")
        page.locator("#attribute").select_option("brand")
        assert page.locator("#values option").count() == 4, "the four brands are offered"
        page.get_by_label("Value", exact=True).fill("w")
        page.get_by_label("Value", exact=True).press("Enter")
        expect(page.locator("#gone")).to_contain_text("Not in the list any more")
        page.locator("#rule-placement").select_option("cart")
        page.get_by_role("button", name="Save").click()
        expect(page.locator("#others")).to_be_visible()
        page.get_by_text("Rules of other lists").click()
        expect(page.locator("#other-rules")).to_contain_text("hides brand w")
        page.get_by_role("button", name="Edit no-w").click()
        expect(page.locator("#chosen")).to_contain_text("w")
        body = service.get(API).json()
        service.delete(f"{API}/rules/no-w", params={"version": body["version"]}).raise_for_status()
        page.get_by_role("button", name="Save").click()
        expect(page.locator("#problem")).to_contain_text("Someone else has changed the rules meanwhile")


def test_a_key_that_may_only_read_sees_the_list_and_no_way_to_change_it(
    browser: Browser, service: httpx.Client
) -> None:
    with opened(browser, service, READ_KEY) as page:
        expect(page.get_by_role("button", name="New rule")).to_be_hidden()
        expect(page.locator("#list button")).to_have_count(0)
        assert page.locator("#shoppers option").count() == 0


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_axe_finds_no_serious_violation_and_the_page_fits_the_screen(
    browser: Browser, service: httpx.Client, width: int, scheme: str
) -> None:
    how: dict[str, Any] = {"color_scheme": scheme, "viewport": {"width": width, "height": 844}, "bypass_csp": True}
    with opened(browser, service, **how) as page:
        page.locator("#list li").nth(2).get_by_role("button").click()
        expect(page.locator("#about")).to_contain_text("not saved yet")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        violations = Axe().run(page).response["violations"]
        page.locator("#kind").select_option("boost")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        violations += Axe().run(page).response["violations"]
    serious = [(v["id"], v["nodes"][0]["html"]) for v in violations if v["impact"] in ("serious", "critical")]
    assert serious == []
