"""The JavaScript client in a shop's page: a real Chromium, another origin, a real service and Valkey."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from features.log import Kind
from serving.http.keys import new_key
from serving.store import BulkStore, Pointer
from tests import ROOT
from tests.running import Process, delivered, emptied, engagements, process
from tests.serving.test_service import FAST, ready, releases, served, until, url

__all__ = ["releases", "url"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CLIENT = ROOT / "serving" / "clients" / "javascript"
KEY, LINE = new_key("web", ["rank", "events"])
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]
SHELF = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A shop</title><link rel="icon" href="data:,">
<style>body { margin: 0 } #shelf { height: 400px; overflow: auto } #shelf > * { height: 200px }</style>
<div id="shelf"></div>"""
TAGGED = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A shop with GA4</title>
<link rel="icon" href="data:,">
<script>
  window.dataLayer = [];
  function gtag() { dataLayer.push(arguments); }
  gtag("event", "view_item_list", { item_list_id: "home", items: [{ item_id: "red-01" }, { item_id: "blue-02" }] });
</script>
<script type="module" src="/tag.js" data-shelfwise="SERVICE" data-key="KEY" data-user="u-tag"></script>
<script>
  dataLayer.push({ event: "select_item", ecommerce: { item_list_id: "home", items: [{ item_id: "red-01" }] } });
  const cart = () => gtag("event", "add_to_cart", { items: [{ item_id: "red-01", quantity: 2 }] });
  addEventListener("load", () => setTimeout(cart));
</script>"""


class Shop:
    """The shop's own web server. pages: HTML by path."""

    def __init__(self) -> None:
        self.pages = {"/shelf": SHELF}

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(handler) -> None:
                if handler.path.startswith("/shelfwise/"):
                    handler.path = handler.path.removeprefix("/shelfwise")
                page = self.pages.get(handler.path)
                if page is None:
                    super().do_GET()
                    return
                handler.send_response(200)
                handler.send_header("content-type", "text/html; charset=utf-8")
                handler.end_headers()
                handler.wfile.write(page.encode())

            def log_message(handler, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(CLIENT)))
        self.port = self._server.server_address[1]
        self.origin = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    shop = Shop()
    yield shop
    shop.close()


@pytest.fixture(scope="module")
def service(url: str, releases: list[Path], shop: Shop) -> Iterator[Process]:
    """The service with keys, which allows the shop's origin."""
    with BulkStore(url) as store:
        store.set_pointer(Pointer(releases[0].name, str(releases[0])))
    with process(url, keys=LINE, cors_origins=(shop.origin,)) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser, url: str) -> Iterator[BrowserContext]:
    emptied(url)
    context = browser.new_context(viewport={"width": 800, "height": 600})
    yield context
    context.close()


def opened(context: BrowserContext, origin: str, address: str, key: str | None = KEY, **options: Any) -> Page:
    """A page with a client as `shop`, and the refused events as `refused`."""
    page = context.new_page()
    page.goto(f"{origin}/shelf")
    page.evaluate(
        """async ([url, key, options]) => {
          const { Shelfwise } = await import("/shelfwise.js");
          window.refused = [];
          window.shop = new Shelfwise({ url, key, ...options, onRefused: (...event) => refused.push(event) });
        }""",
        [address, key, {"everyMs": 20} | options],
    )
    return page


def test_a_page_of_an_allowed_origin_ranks_and_tracks(
    context: BrowserContext, shop: Shop, service: Process, url: str
) -> None:
    """An item of a list is clicked, and the next list uses it. With a key, so the browser sends a preflight request."""
    page = opened(context, shop.origin, service.address, user="u-page")
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    shelf = page.evaluate(
        """async () => {
          const shelf = await shop.recommend({ limit: 12 });
          const list = document.querySelector("#shelf");
          list.replaceChildren(...shelf.items.map((item) => {
            const card = document.createElement("div");
            card.dataset.itemId = card.textContent = item.item_id;
            return card;
          }));
          shop.observe(list, shelf, { clicks: true });
          return shelf;
        }"""
    )
    ids = [item["item_id"] for item in shelf["items"]]
    red = next(i for i in ids if i.startswith("red"))
    page.locator(f'[data-item-id="{red}"]').click()
    assert page.evaluate("shop.flush()") is True
    (click,) = [e for e in delivered(url) if e.kind == Kind.CLICK]
    assert (click.user_id, click.item_id, click.request_id) == ("u-page", red, shelf["request_id"])
    assert click.position == ids.index(red)
    assert click.device == "desktop"
    assert click.session_id is not None
    ranked = page.evaluate(f"shop.rank({{candidates: {ids}}})")
    assert ranked["items"][0]["item_id"].startswith("red")
    assert page.evaluate("shop.similar('red-01', {limit: 2}).then((a) => a.items.length)") == 2
    error = page.evaluate("shop.rank({limit: 0}).catch((e) => [e.name, e.status, e.code, e.field, e.requestId.length])")
    assert error == ["ShelfwiseError", 422, "invalid-field", "limit", 32]
    assert [text for text in errors if "422" not in text] == []


def test_a_page_of_an_origin_that_is_not_allowed_reads_nothing_and_keeps_its_events(
    context: BrowserContext, shop: Shop, service: Process, url: str
) -> None:
    """The same page under http://localhost has another origin, which is not in `cors_origins`."""
    page = opened(context, f"http://localhost:{shop.port}", service.address, user="u")
    assert page.evaluate("shop.recommend().catch((e) => [e.status, e.code])") == [0, "unreachable"]
    page.evaluate("shop.track({event: 'click', item_id: 'red-01'})")
    assert page.evaluate("shop.flush()") is False
    assert page.evaluate("shop.counts.waiting") == 1
    assert delivered(url) == []


def test_an_item_visible_by_half_for_a_second_is_one_impression(
    context: BrowserContext, shop: Shop, service: Process, url: str
) -> None:
    """Twelve items of 200 px in a window of 400 px: two at first, none while scrolling past, two more at the end."""
    page = opened(context, shop.origin, service.address, user="u-see")
    page.evaluate(
        """() => {
          const list = document.querySelector("#shelf");
          shop.observe(list, { request_id: "r-see" });
          list.innerHTML = Array.from({ length: 12 }, (_, n) => `<div data-item-id="i${n}">${n}</div>`).join("");
        }"""
    )

    def seen() -> list[tuple[str, int | None]]:
        page.evaluate("shop.flush()")
        assert {e.request_id for e in delivered(url)} <= {"r-see"}
        return [(e.item_id, e.position) for e in delivered(url)]

    assert seen() == []
    page.wait_for_timeout(1600)
    assert seen() == [("i0", 0), ("i1", 1)]
    for top in range(0, 2001, 400):
        page.evaluate(f"document.querySelector('#shelf').scrollTop = {top}")
        page.wait_for_timeout(100)
    page.wait_for_timeout(1600)
    assert sorted(seen()) == [("i0", 0), ("i1", 1), ("i10", 10), ("i11", 11)]
    page.evaluate("document.querySelector('#shelf').scrollTop = 0")
    page.wait_for_timeout(1600)
    assert len(seen()) == 4


@pytest.mark.parametrize("key", [KEY, None], ids=["with a key, by fetch", "without a key, by a beacon"])
def test_queued_events_are_delivered_when_the_page_is_closed(
    context: BrowserContext, shop: Shop, service: Process, url: str, key: str | None
) -> None:
    """40 events are queued for an hour; the shopper leaves the page, and they are delivered."""
    with served(url, FAST.model_copy(update={"cors_origins": (shop.origin,)})) as open_to_all:
        ready(open_to_all)
        address = service.address if key else str(open_to_all.base_url)
        page = opened(context, shop.origin, address, key, user="u-leave", everyMs=3_600_000, batch=1000)
        page.evaluate("shop.recommend()")
        sent = page.evaluate("Array.from({length: 40}, (_, n) => shop.track({event: 'click', item_id: `i${n}`}))")
        assert delivered(url) == []
        page.evaluate(
            """(beacon) => {  // allow only this way, and count its uses
              const way = (beacon ? navigator.sendBeacon.bind(navigator) : window.fetch.bind(window));
              const counted = (...given) => (localStorage.ways = Number(localStorage.ways ?? 0) + 1, way(...given));
              window.fetch = beacon ? () => Promise.reject(new TypeError()) : counted;
              navigator.sendBeacon = beacon ? counted : null;
            }""",
            key is None,
        )
        page.goto("about:blank")
        until(lambda: len(delivered(url)) == 40)
        assert sorted(e.event_id for e in delivered(url)) == sorted(sent)
        page.goto(f"{shop.origin}/shelf")
        assert page.evaluate("localStorage.ways") == "1"  # although the page was hidden as well as closed


def test_events_a_closed_tab_could_not_send_are_sent_by_the_next_page(
    context: BrowserContext, shop: Shop, service: Process, url: str
) -> None:
    """The page cannot send requests, and its tab is closed: the next page sends the events once, with their ids."""
    page = opened(context, shop.origin, service.address, user="u-first")
    page.evaluate("() => { window.fetch = () => Promise.reject(new TypeError('no network')); }")
    sent = page.evaluate("[1, 2, 3].map((n) => shop.track({event: 'purchase', item_id: `i${n}`}))")
    page.wait_for_timeout(200)
    page.close()
    assert delivered(url) == []
    page = opened(context, shop.origin, service.address, user="u-second")
    # Events of another tab are taken over when they are 30 s old. Make them older instead of waiting.
    page.evaluate(
        """() => Object.keys(localStorage).filter((key) => key.includes(" http")).forEach((key) => {
          const left = JSON.parse(localStorage[key]);
          localStorage[key] = JSON.stringify({ ...left, at: left.at - 31_000 });
        })"""
    )
    page.reload()
    page = opened(context, shop.origin, service.address, user="u-third")
    until(lambda: page.evaluate("shop.counts.waiting") == 0 and len(delivered(url)) == 3)
    assert sorted(e.event_id for e in delivered(url)) == sorted(sent)
    assert {e.user_id for e in delivered(url)} == {"u-first"}
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.includes(' http')).length") == 0


def test_two_tabs_with_one_storage_send_each_event_once(
    context: BrowserContext, shop: Shop, service: Process, url: str
) -> None:
    """100 events from each tab, at the same time."""
    tabs = [opened(context, shop.origin, service.address, user=f"u-tab{n}") for n in range(2)]
    for n in range(10):
        for tab in tabs:
            tab.evaluate(f"for (let n = 0; n < 10; n++) shop.track({{event: 'view', item_id: `i${{n}}-{n}`}})")
    for tab in tabs:
        assert tab.evaluate("shop.flush()") is True
    ids = [e.event_id for e in delivered(url)]
    assert len(ids) == len(set(ids)) == 200


def test_a_shop_with_ga4_needs_only_the_script_tag(
    context: BrowserContext, shop: Shop, service: Process, url: str
) -> None:
    """Events pushed before, while and after the client loads, in both forms, are tracked with the list's request id."""
    shop.pages["/ga4"] = TAGGED.replace("SERVICE", service.address).replace("KEY", KEY)
    page = context.new_page()
    page.goto(f"{shop.origin}/ga4")
    page.wait_for_function("window.shelfwise && dataLayer.length === 3")
    assert page.evaluate("shelfwise.flush()") is True
    found = delivered(url)
    assert [(e.kind, e.item_id, e.position, e.value) for e in found] == [
        (Kind.IMPRESSION, "red-01", 0, None),
        (Kind.IMPRESSION, "blue-02", 1, None),
        (Kind.CLICK, "red-01", None, None),
        (Kind.CART, "red-01", None, 2.0),
    ]
    assert len({e.request_id for e in found}) == 1
    assert {e.user_id for e in found} == {"u-tag"}


def test_a_killed_service_loses_no_event_of_a_page_and_counts_none_twice(
    context: BrowserContext, shop: Shop, service: Process, url: str
) -> None:
    """2,000 events; SIGKILL after about 600 and about 1,200 were delivered."""
    page = opened(context, shop.origin, service.address, everyMs=5, batch=10, queue=2000)
    page.evaluate(
        """() => {
          window.sent = [];
          const more = setInterval(() => {
            for (let n = 0; n < 20; n++) {
              if (sent.length === 2000) return clearInterval(more);
              const [user_id, item_id] = [`u${sent.length % 40}`, `i${sent.length % 7}`];
              sent.push(shop.track({ event: "click", user_id, item_id }));
            }
          }, 5);
        }"""
    )
    for killed in (600, 1200):
        until(lambda killed=killed: len(delivered(url)) >= killed, 60)
        service.kill()
        service.start()
    for _ in range(60):
        if page.evaluate("shop.flush()"):
            break
        time.sleep(0.5)
    sent = page.evaluate("sent")
    assert len(set(sent)) == 2000
    assert sorted(e.event_id for e in delivered(url)) == sorted(sent)
    assert [engagements(url, f"u{n}") for n in range(40)] == [50] * 40
    counts = page.evaluate("shop.counts")
    assert counts["accepted"] + counts["duplicates"] == 2000
    assert (counts["waiting"], counts["rejected"], counts["turnedAway"]) == (0, 0, 0)
    assert page.evaluate("refused") == []


def test_a_shoppers_clock_that_is_an_hour_ahead_is_corrected(
    context: BrowserContext, shop: Shop, service: Process, url: str
) -> None:
    """The service rejects an event in the future; the page reads the time from that response, and sends it again."""
    context.add_init_script("const now = Date.now; Date.now = () => now() + 3_600_000;")
    page = opened(context, shop.origin, service.address, user="u-clock")
    page.evaluate("shop.track({event: 'click', item_id: 'red-01'})")
    until(lambda: page.evaluate("shop.counts.waiting") == 0)
    (event,) = delivered(url)
    assert abs(event.at - time.time()) < 30
    assert page.evaluate("[shop.counts.accepted, refused.length]") == [1, 0]


BLOCKS = re.findall(r"```html\n(.*?)```", (CLIENT.parents[2] / "docs" / "clients.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["script tag", "module"])
def test_code_blocks_of_the_guide_work_in_a_page(
    context: BrowserContext, shop: Shop, service: Process, url: str, block: str
) -> None:
    """Pasted into a page as printed, except for the address and a key: clicks and GA4 events are delivered."""
    pasted = block.replace("http://localhost:8000", service.address)
    pasted = pasted.replace("></script>", f' data-key="{KEY}"></script>').replace('" });', f'", key: "{KEY}" }});')
    shop.pages["/guide"] = SHELF + pasted
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{shop.origin}/guide")
    if "tag.js" in block:
        page.wait_for_function("window.shelfwise")
        page.evaluate("dataLayer.push({event: 'view_item', ecommerce: {items: [{item_id: 'red-01'}]}})")
    else:
        page.locator("[data-item-id]").first.click()
    page.goto("about:blank")
    until(lambda: len(delivered(url)) == 1)
    assert errors == []
