"""The documentation site: complete, with the service's own API, and without requests to other hosts."""

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
    """The site, built in strict mode, which fails for broken links or anchors and for pages outside the nav."""
    path = tmp_path_factory.mktemp("site") / "site"
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return path


class _FetchedUrls(html.parser.HTMLParser):
    """Collects addresses that a page makes a browser fetch. Links do not count, because a reader follows them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.found.append(attributes.get("src") or "")
        if tag == "link" and attributes.get("rel") != "canonical":
            self.found.append(attributes.get("href") or "")


def pages(site: Path) -> Iterator[Path]:
    yield from site.rglob("*.html")


def test_no_page_fetches_anything_from_other_hosts(site: Path) -> None:
    """For privacy, no font, script, style or image comes from another host."""
    for path in pages(site):
        parser = _FetchedUrls()
        parser.feed(path.read_text("utf-8"))
        assert parser.found, path
        assert [a for a in parser.found if re.match(r"(https?:)?//", a)] == [], path
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", style.read_text("utf-8")), style


def test_every_page_is_in_the_search_index(site: Path) -> None:
    """Each Markdown file and notebook of docs, and the API page, is in the search index."""
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    known = {entry["location"].split("#")[0] or "index.html" for entry in index["docs"]}
    files = [p.relative_to(ROOT / "docs") for p in (ROOT / "docs").rglob("*") if p.suffix in (".md", ".ipynb")]
    missing = [str(p) for p in files if str(p.with_suffix(".html")) not in known]
    assert missing == []
    assert "api.html" in known


def test_the_api_page_has_every_route_and_schema_of_the_service(site: Path) -> None:
    """The page is generated from the service's OpenAPI schema when the site is built."""
    spec = create_app(ServiceConfig(), "redis://127.0.0.1:1").openapi()
    assert json.loads((site / "openapi.json").read_text("utf-8")) == spec
    page = re.sub(r"<[^>]+>", "", (site / "api.html").read_text("utf-8"))
    for path, verbs in spec["paths"].items():
        assert all(f"{verb.upper()} {path}" in page for verb in verbs)
    fields = {
        f for form in ("RankRequest", "EventIn", "ItemIn") for f in spec["components"]["schemas"][form]["properties"]
    }
    assert all(f in page for f in fields)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without logging requests."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
def test_the_site_works_in_a_browser_without_other_hosts(site: Path, browser: Browser) -> None:
    """Every request goes to the site's host, search works, and no page is wider than a phone."""
    handler = functools.partial(QuietHandler, directory=str(site))
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
        # Locate by text, because search highlights words in the heading, which changes its accessible name.
        page.locator(".md-search-result__link", has_text="Moving from Metarank").first.click()
        page.wait_for_url(re.compile(r"/metarank\.html"))
        context.close()
        server.shutdown()
    assert elsewhere == []
