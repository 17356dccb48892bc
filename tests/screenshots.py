"""The pictures of the documentation: `python -m tests.screenshots WORKSPACE`, about four minutes.

WORKSPACE: with a published nightly run, such as that of `shelfwise demo`. Needs Chromium. Writes the PNG files in
docs/images: the pages of a running service, and the report of the newest run.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, expect, sync_playwright

from offline.config import load
from serving.config import PlacementConfig, ServiceConfig
from serving.http.keys import Keys, new_key
from serving.release import list_releases
from serving.store import BulkStore, Pointer
from serving.store.embedded import connect_url
from tests import ROOT
from tests.serving.test_operator import PAGE
from tests.serving.test_service import ready, served
from tests.serving.test_storefront import OPEN
from tests.serving.test_storefront_page import CHROMIUM

IMAGES = ROOT / "docs" / "images"
DESK = ServiceConfig(merchandising=True, placements={"home": PlacementConfig(limit=12)}, poll_s=0.05)
MINUTES = 3
"""Minutes of traffic before the operator page has lines to draw."""


def main(workspace: Path) -> None:
    """Take all pictures."""
    config = load(None, workspace=workspace)
    newest = list_releases(config.releases)[0].path
    with connect_url(None, config.embedded) as url, sync_playwright() as playwright:
        with BulkStore(url) as store:
            store.set_pointer(Pointer(newest.name, str(newest)))
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        with served(url, OPEN.model_copy(update={"currency": "EUR"})) as client:
            ready(client)
            storefront(browser, str(client.base_url))
        key, line = new_key("operator", ["admin", "rank", "events"])
        with served(url, PAGE.model_copy(update={"releases": config.releases}), good=Keys(lines=line)) as client:
            client.headers["Authorization"] = f"Bearer {key}"
            ready(client)
            traffic(client)
            operator(browser, str(client.base_url), key)
        with served(url, DESK) as client:
            ready(client)
            merchandising(browser, client)
        report(browser, sorted(workspace.glob("runs/*/report.html"), key=lambda p: p.stat().st_mtime)[-1])
        browser.close()


def storefront(browser: Browser, address: str) -> None:
    """The page after three clicks, on a wide screen, in the dark theme with a comparison, and on a phone."""
    for name, width, height, scheme in (
        ("storefront", 1024, 720, "light"),
        ("storefront-dark", 1024, 720, "dark"),
        ("storefront-phone", 390, 1100, "light"),
    ):
        page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()  # type: ignore[arg-type]
        page.goto(f"{address}/storefront")
        expect(page.locator("#own .card")).to_have_count(24)
        for position in (1, 3, 5):
            page.locator("#own .card").nth(position).get_by_role("button", name="View").click()
            page.wait_for_timeout(600)
        if scheme == "dark":
            page.get_by_text("Compare with most popular").click()
            page.wait_for_timeout(600)
        page.evaluate("scrollTo(0, 0)")
        _save(page, name)


def traffic(client: httpx.Client) -> None:
    """Rankings and clicks for `MINUTES` minutes."""
    end = time.monotonic() + 60 * MINUTES
    while time.monotonic() < end:
        for n in range(20):
            items = client.post("/v1/recommend", json={"user_id": f"u{n:05d}", "limit": 10}).json()["items"]
            click = {"event": "click", "user_id": f"u{n:05d}", "item_id": items[n % len(items)]["item_id"]}
            client.post("/v1/events", json=click)
        time.sleep(1)


def operator(browser: Browser, address: str, key: str) -> None:
    """The operator page with its charts, the nightly run and the release."""
    page = browser.new_context(viewport={"width": 1280, "height": 1309}).new_page()
    page.goto(f"{address}/operator")
    page.get_by_label("This page needs a key").fill(key)
    page.get_by_role("button", name="Use key").click()
    expect(page.locator("article.release").first).to_be_visible()
    page.wait_for_timeout(1000)
    # The name of the machine that made the pictures says nothing about the page.
    page.locator("td", has_text=re.compile("^[^ ]+@[^ ]+$")).evaluate_all(
        "cells => cells.forEach(c => (c.textContent = 'nightly'))"
    )
    _save(page, "operator")


def merchandising(browser: Browser, client: httpx.Client) -> None:
    """The page of merchandisers with a rule that is not saved yet, and one that is."""
    weeks = {"boost": [{"when": {"attribute": "price", "lte": 40}, "by": 0.5}]}
    version = client.get("/v1/merchandising").json()["version"]
    body = {"version": version, "rules": weeks, "end": time.time() + 30 * 86400, "note": "bargain weeks"}
    client.put("/v1/merchandising/rules/bargains", json=body).raise_for_status()
    page = browser.new_context(viewport={"width": 1280, "height": 1180}).new_page()
    page.goto(f"{client.base_url}/merchandising")
    page.get_by_label("Shopper").fill("u00003")
    page.wait_for_timeout(1500)
    page.locator("#list li").nth(6).drag_to(page.locator("#list li").nth(1))
    expect(page.locator("#about")).to_contain_text("not saved yet")
    page.get_by_label("Note", exact=True).fill("we have too many")
    page.wait_for_timeout(500)
    _save(page, "merchandising")


def report(browser: Browser, file: Path) -> None:
    """The start of the report, and its feature importance."""
    page = browser.new_context(viewport={"width": 1100, "height": 1130}).new_page()
    page.goto(file.as_uri())
    _save(page, "report-verdict")
    page.get_by_role("heading", name="Feature importance").scroll_into_view_if_needed()
    page.evaluate("h => h.scrollIntoView()", page.get_by_role("heading", name="Feature importance").element_handle())
    page.wait_for_timeout(300)
    _save(page, "report-features")


def _save(page: Page, name: str) -> None:
    page.screenshot(path=IMAGES / f"{name}.png")
    page.context.close() if not name.startswith("report-v") else None
    print(IMAGES / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
