"""The site of the pages to read: whole, in the nav, of the service's own API, and fetching nothing from elsewhere."""

from __future__ import annotations

import functools
import html.parser
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from serving.app import create_app
from serving.config import ServiceConfig
from tests import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a broken link, an anchor that is not there or a page outside the nav ends it."""
    made = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(made)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return made


class _Fetched(html.parser.HTMLParser):
    """Addresses that a page makes a browser fetch: not links, which a reader follows."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.found.append(of.get("src") or "")
        if tag == "link" and of.get("rel") != "canonical":
            self.found.append(of.get("href") or "")


def pages(site: Path) -> Iterator[Path]:
    yield from site.rglob("*.html")


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    """No font, script, style or picture of another host: who reads is nobody's business."""
    for path in pages(site):
        parser = _Fetched()
        parser.feed(path.read_text("utf-8"))
        assert parser.found, path
        assert [a for a in parser.found if re.match(r"(https?:)?//", a)] == [], path
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", style.read_text("utf-8")), style


def test_every_page_is_in_the_nav_and_can_be_found(site: Path) -> None:
    """Each Markdown file and notebook of docs, and the API, is a page that search knows."""
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    known = {entry["location"].split("#")[0] or "index.html" for entry in index["docs"]}
    files = [p.relative_to(ROOT / "docs") for p in (ROOT / "docs").rglob("*") if p.suffix in (".md", ".ipynb")]
    missing = [str(p) for p in files if str(p.with_suffix(".html")) not in known]
    assert missing == []
    assert "api.html" in known


def test_the_api_page_has_every_route_and_form_of_the_service(site: Path) -> None:
    """It is written from the service's own OpenAPI while the site is built."""
    spec = create_app(ServiceConfig(), "redis://127.0.0.1:1").openapi()
    assert json.loads((site / "openapi.json").read_text("utf-8")) == spec
    page = re.sub(r"<[^>]+>", "", (site / "api.html").read_text("utf-8"))
    for path, verbs in spec["paths"].items():
        assert all(f"{verb.upper()} {path}" in page for verb in verbs)
    fields = {
        f for form in ("RankRequest", "EventIn", "ItemIn") for f in spec["components"]["schemas"][form]["properties"]
    }
    assert all(f in page for f in fields)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files, without a line for each."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here: apt-get install chromium")
def test_the_site_reads_well_in_a_browser_and_asks_nobody_else(site: Path, browser: Browser) -> None:
    """Served as it lies there: every request goes to its own host, search finds, a phone need not scroll sideways."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        context = browser.new_context(viewport={"width": 390, "height": 844})
        page, elsewhere = context.new_page(), []
        page.on(
            "request", lambda r: elsewhere.append(r.url) if not r.url.startswith((home, "data:", "blob:")) else None
        )
        for path in sorted(pages(site)):
            page.goto(home + str(path.relative_to(site)))
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 390, f"{path.name} is {wide} wide"
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(home)
        page.get_by_role("textbox", name="Search").first.click()
        page.keyboard.type("metarank", delay=20)
        # By its text: what search marks in a heading is of another name to a browser.
        page.locator(".md-search-result__link", has_text="Moving from Metarank").first.click()
        page.wait_for_url(re.compile(r"/metarank\.html"))
        context.close()
        server.shutdown()
    assert elsewhere == []
