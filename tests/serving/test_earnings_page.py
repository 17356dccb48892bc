"""The operator's page of earnings in headless Chromium, against a real service and Valkey."""

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

from offline.earnings import publish
from serving.http.keys import Keys
from serving.release import registry
from serving.store import BulkStore
from tests.offline.earnings.test_holdouts import settings
from tests.offline.earnings.test_page import HOSTILE, planted
from tests.serving.test_operator import PAGE
from tests.serving.test_operator_page import KEY, LINE
from tests.serving.test_release import planted_items, planted_model
from tests.serving.test_release import publish as publish_release
from tests.serving.test_service import ready, served
from tests.serving.test_storefront_page import CHROMIUM, browser, url

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]
__all__ = ["browser", "url"]


@pytest.fixture(scope="module")
def root(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A live release, and the tables of a planted log beside it."""
    root = tmp_path_factory.mktemp("releases")
    release = publish_release(root, model_text=planted_model(planted_items()))
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        raw.flushall()
        registry.promote(root, store, release.name, "passed the nightly gate", action="publish")
    log = planted().earnings(
        tmp_path_factory.mktemp("data"), settings(margin="margin")._replace(currency="EUR"), **MARGIN
    )
    publish(log, root)
    return root


MARGIN = {"margin": [4.0, 5.0, None, None]}


@pytest.fixture(scope="module")
def address(url: str, root: Path) -> Iterator[str]:
    with served(url, PAGE, good=Keys(lines=LINE)) as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        ready(client)
        yield str(client.base_url)


@contextmanager
def opened(browser: Browser, address: str, **how: Any) -> Iterator[Page]:
    """The page of earnings, reached from the operator's page with a key; no script may fail."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 1000}} | how))
    page, errors = context.new_page(), list[str]()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{address}/operator")
    page.get_by_label("This page needs a key").fill(KEY)
    page.get_by_role("button", name="Use key").click()
    page.get_by_role("link", name="Earnings").click()
    expect(page.locator("#placements tbody tr")).to_have_count(3)
    yield page
    context.close()
    assert errors == []


def test_the_api_needs_scope_admin_and_says_how_to_make_the_tables(address: str, root: Path) -> None:
    """401 without a key; with one, 404 until `shelfwise earnings` has run."""
    with httpx.Client(base_url=address) as client:
        assert client.get("/v1/operator/earnings").status_code == 401
        client.headers["Authorization"] = f"Bearer {KEY}"
        assert client.get("/v1/operator/earnings").json()["schema"] == 1
        file, away = root / "earnings.json", root / "away"
        file.rename(away)
        answer = client.get("/v1/operator/earnings")
        away.rename(file)
    assert answer.status_code == 404
    assert "shelfwise earnings" in answer.json()["remedy"]


def test_incremental_and_last_touch_are_apart_with_what_each_means(browser: Browser, address: str) -> None:
    """Of six treated users, each bought four times for 20 + 1 more than a held one; see `planted`."""
    with opened(browser, address) as page:
        estimate = page.locator(".estimate", has_text="incremental revenue")
        expect(estimate.locator(".headline")).to_have_text("+504.00 EUR")
        expect(estimate).to_contain_text("More was bought because of these lists.")
        expect(estimate).to_contain_text("6 treated users × +84.00 EUR per user")
        expect(estimate.locator("svg polyline").first).to_be_attached()
        expect(page.locator("#incremental")).to_contain_text("Holdout: held, 6 users.")
        expect(page.locator("#touch-about")).to_contain_text("Lists are credited with 1,224 EUR")
        expect(page.locator("#touch figure")).to_have_count(4)
        row = page.locator("#placements tbody tr", has_text="cart")
        paid = [10 + k + 20 * (k % 2) for k in range(12)] * 2
        margin = f"{sum(v - 6 * round(v / 10) for v in paid):.2f} EUR"  # pieces of 10 that cost 6
        expect(row.locator("td")).to_have_text(["cart", "24", "12", "0", "0", "24", "612.00 EUR", margin])
        expect(page.locator("#arms tbody tr")).to_have_count(4)
        expect(page.locator("#notes")).to_contain_text("Days after 2024-10-05 are not complete")


def test_hostile_names_are_shown_as_text(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        expect(page.locator("#placements")).to_contain_text(HOSTILE)
        assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_no_serious_violation_and_the_page_fits_the_screen(
    browser: Browser, address: str, scheme: str, width: int
) -> None:
    how: dict[str, Any] = {"color_scheme": scheme, "viewport": {"width": width, "height": 844}, "bypass_csp": True}
    with opened(browser, address, **how) as page:
        page.get_by_text("Show as table").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        violations = Axe().run(page).response["violations"]
    serious = [(v["id"], v["nodes"][0]["html"]) for v in violations if v["impact"] in ("serious", "critical")]
    assert serious == []
