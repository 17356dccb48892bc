"""The operator's page in headless Chromium, against a real service and Valkey."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from serving.http.keys import Keys, new_key
from serving.records.timeline import KEPT, Record
from serving.release import registry
from serving.release.judgements import write_judgement
from serving.store import BulkStore
from tests.serving.test_operator import AT, DRIFT, EVALUATION, PAGE, gate
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_service import ready, served
from tests.serving.test_storefront_page import CHROMIUM, HOSTILE, browser, url
from tests.serving.test_timeline import N_FRESHNESS, N_LATENCY

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]
__all__ = ["browser", "url"]
KEY, LINE = new_key("boss", ["admin"])


@pytest.fixture
def root(url: str, tmp_path: Path) -> Path:
    """Three releases: two were published one after the other; the gate kept the third back, with a hostile reason."""
    items = planted_items()
    three = [publish(tmp_path, model_text=planted_model(items, sign=sign)).name for sign in (1.0, -1.0, 2.0)]
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        raw.flushall()
        for k, release in enumerate(three):
            verdict, message = ("keep", f"worse {HOSTILE}") if k == 2 else ("promote", "not worse")
            judgement = gate(release, three[k - 1] if k else None, verdict, message)
            write_judgement(tmp_path, judgement, EVALUATION, DRIFT, AT + k * 86400.0)
        for release in three[:2]:
            registry.promote(tmp_path, store, release, "passed the nightly gate", action="publish")
    return tmp_path


@pytest.fixture
def address(url: str, root: Path) -> Iterator[str]:
    with served(url, PAGE, good=Keys(lines=LINE)) as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        ready(client)
        fill(url, float(client.get("/v1/operator/board").json()["at"]))
        yield str(client.base_url)


def fill(url: str, now: float) -> None:
    """Ninety minutes of 600 rankings each at 1 to 2 ms; in one minute, a quarter of the rankings were degraded."""
    with redis.Redis.from_url(url) as raw:
        for k in range(90):
            latency = [0.0, 600.0 * k] + [0.0] * (N_LATENCY - 2)
            degraded = 150.0 if k >= 60 else 0.0
            freshness = [0.0, 30.0 * k] + [0.0] * (N_FRESHNESS - 2)
            record = Record(now - 60 * (90 - k), "a", 600.0 * k, degraded, 300.0 * k, 0, latency, freshness)
            raw.xadd("sw:timeline", {"l": msgspec.json.encode(record)}, maxlen=KEPT)


@contextmanager
def opened(browser: Browser, address: str, errors: list[str] | None = None, **how: Any) -> Iterator[Page]:
    """The page with a key entered and the board shown."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 1000}} | how))
    page = context.new_page()
    if errors is not None:
        page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{address}/operator")
    page.get_by_label("This page needs a key").fill(KEY)
    page.get_by_role("button", name="Use key").click()
    expect(page.locator("article.release")).to_have_count(3)
    yield page
    context.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    errors: list[str] = []
    with opened(browser, address, errors) as page:
        yield page
    assert errors == []


def test_without_a_key_nothing_is_shown(browser: Browser, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/operator")
    expect(page.get_by_label("This page needs a key")).to_be_visible()
    expect(page.locator("#notice")).to_contain_text("API key required")
    expect(page.locator("#board")).to_be_hidden()
    page.get_by_label("This page needs a key").fill("swk_boss_wrong")
    page.get_by_role("button", name="Use key").click()
    expect(page.locator("#notice")).to_contain_text("the key is not valid")
    expect(page.locator("#board")).to_be_hidden()
    page.context.close()


def test_each_release_is_shown_with_its_quality_interval_and_gate_verdict(page: Page, root: Path) -> None:
    before, live = registry.lineage(root)
    article = page.locator("article.release", has=page.locator(".state.live"))
    expect(article).to_have_count(1)
    expect(article.locator("h3")).to_have_text(f"{live} live")
    expect(article).to_contain_text("ndcg@10 0.4500 [0.4300, 0.4700]")
    expect(article).to_contain_text(f"+0.0100 [−0.0100, +0.0300] compared with {before}")
    article.get_by_text("The gate passed it").click()
    expect(article.locator("li")).to_have_text(["quality passed not worse"])
    expect(page.locator("article.release", has=page.locator(".state.previous")).locator("h3")).to_contain_text(before)


def test_hostile_text_is_shown_as_text(page: Page) -> None:
    page.get_by_text("The gate kept the live release").click()
    expect(page.locator("li.keep")).to_contain_text(HOSTILE)
    assert page.evaluate("window.hacked") is None


def test_latency_freshness_degraded_share_quality_and_drift_are_plotted(page: Page) -> None:
    """600 rankings of 1 to 2 ms per minute: median 1.5 ms, 10 per second; in one minute 150 of 600 are degraded."""
    for title in (
        "Latency of rankings",
        "Rankings and events",
        "Degraded and failed rankings",
        "Freshness",
        "Quality of each nightly release",
        "Compared with the release that was live",
        "Feature drift",
    ):
        expect(page.locator("figure.plot", has_text=title).locator("svg polyline").first).to_be_attached()
    latency = page.locator("figure.plot", has_text="Latency of rankings")
    expect(latency.locator(".latest")).to_have_text("p99 2.0 ms · median 1.5 ms")
    rates = page.locator("figure.plot", has_text="Rankings and events")
    expect(rates.locator(".latest")).to_contain_text("rankings 10")
    degraded = page.locator("figure.plot", has_text="Degraded and failed rankings")
    assert "range from 0% to 25%" in (degraded.locator("svg").get_attribute("aria-label") or "")
    drift = page.locator("figure.plot", has_text="Feature drift")
    expect(drift.locator(".latest")).to_have_text("maximum 9.00 · median 4.50")
    latency.get_by_text("Show as table").click()
    expect(latency.locator("tr").nth(1)).to_contain_text("1.5 ms")


def test_a_rollback_needs_a_confirmation_with_a_reason(page: Page, root: Path) -> None:
    """The button opens a dialog that says what will happen; cancelled or without a reason, nothing changes."""
    before, live = registry.lineage(root)
    page.get_by_role("button", name="Roll back").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(f"All workers switch from {live} to {before} within seconds")
    dialog.get_by_role("button", name="Cancel").click()
    assert registry.lineage(root) == [before, live]
    page.get_by_role("button", name="Roll back").click()
    dialog.get_by_role("button", name="Roll back").click()
    expect(dialog).to_be_visible()  # a reason is required
    dialog.get_by_label("Reason for the audit log").fill("prices were wrong")
    dialog.get_by_role("button", name="Roll back").click()
    expect(page.locator("#now")).to_contain_text(f"Live: {before}")
    expect(page.locator("#change")).to_contain_text("is done")
    expect(page.locator("#audit tr").first).to_contain_text("prices were wrong")
    expect(page.locator("#audit tr").first).to_contain_text("boss@")


def test_a_release_the_gate_kept_back_can_be_promoted_by_keyboard_after_a_warning(page: Page, root: Path) -> None:
    kept = next(r.name for r in root.iterdir() if r.is_dir() and r.name not in registry.lineage(root))
    button = page.get_by_role("button", name=f"Promote {kept}")
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("The gate did not pass it")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("checked by hand")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#now")).to_contain_text(f"Live: {kept}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_serious_violation_and_the_page_fits_the_screen(
    browser: Browser, address: str, scheme: str, width: int
) -> None:
    how: dict[str, Any] = {"color_scheme": scheme, "viewport": {"width": width, "height": 844}, "bypass_csp": True}
    with opened(browser, address, **how) as page:
        page.get_by_text("The gate passed it").first.click()
        page.get_by_text("Show as table").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        violations = Axe().run(page).response["violations"]
        page.get_by_role("button", name="Roll back").click()
        violations += Axe().run(page).response["violations"]
    serious = [(v["id"], v["nodes"][0]["html"]) for v in violations if v["impact"] in ("serious", "critical")]
    assert serious == []
