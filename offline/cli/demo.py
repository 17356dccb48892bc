"""The last part of the demo: rank for one shopper, send three clicks, and rank again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from features.log import Kind
from offline.config import Config
from offline.data import dataset
from offline.runtime import progress_bar

SHOP = """\
# The configuration of the demo: the placements that its storefront shows. All keys are in docs/configuration.md.
serving:
  currency: EUR
placements:
  product:                     # the page of a product
    requires: [items]
    sources: {goes_with: 2, bought_together: 1, similar: 1}
    limit: 12
  cart:
    requires: [items]
    sources: {goes_with: 2, bought_together: 2, next: 1}
    limit: 12
  search:
    requires: [query]
    limit: 24
"""
_SHOWN = 10
_CLICKS = 3
_STARTS_WITHIN_S = 60.0
_VERBS = {"view": "viewed", "click": "clicked", "cart": "put in your cart", "purchase": "bought", "rating": "rated"}


class ServiceDown(RuntimeError):
    """The demo's service does not respond. The message has its address, the reason and its log file."""


def write_shop(workspace: Path) -> Path:
    """Write the configuration of the demo into its workspace, unless it is there, and return its path."""
    path = workspace / "shop.yaml"
    workspace.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(SHOP, "utf-8")
    return path


def show(config: Config, file: Path, redis_url: str, release_id: str, report: Path, port: int, stay: bool) -> None:
    """Print one shopper's list before and after three clicks, side by side, with reasons; then the addresses to visit.

    file: of the configuration. stay: keep serving until interrupted.
    """
    data = dataset.load_dataset(config.data, log=config.log)
    with _service(config, file, redis_url, port, release_id) as address:
        user = _shopper(data)
        candidates = list(data.catalogue.item_ids[: config.serving.max_candidates])
        before = _rank(address, user, candidates, None)
        clicked, theme = _similar_items(data, [r["item_id"] for r in before])
        first = _rank(address, user, candidates, _SHOWN)
        _post(address, "/v1/events", [{"event": "click", "user_id": user, "item_id": i} for i in clicked])
        second = _rank(address, user, candidates, _SHOWN)
        _print(data, user, clicked, theme, before, first, second)
        print(f"report: {report}")
        print(f"service: {address} (API: {address}/docs)", flush=True)
        print(f"storefront: {address}/storefront (click products and watch the ranking change)", flush=True)
        if stay:
            print("serving until you press Ctrl-C", flush=True)
            with _embedding_worker(config, file, redis_url):
                _wait()
        else:
            again = f"shelfwise serve --storefront --workspace {config.workspace} --config {file}"
            print(f"the service has stopped; start it again with: {again}")


def _wait() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return


def _where(config: Config, file: Path) -> list[str]:
    return ["--workspace", str(config.workspace), "--config", str(file)]


@contextmanager
def _embedding_worker(config: Config, file: Path, redis_url: str) -> Iterator[None]:
    """Run an embedding worker as a separate process, so that the service can rank products added on the storefront."""
    command = [sys.executable, "-m", "offline.cli", "embed", *_where(config, file)]
    with (config.workspace / "embed.log").open("wb") as out:
        process = subprocess.Popen(command, env={**os.environ, "REDIS_URL": redis_url}, stdout=out, stderr=out)
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


@contextmanager
def _service(config: Config, file: Path, redis_url: str, port: int, release_id: str) -> Iterator[str]:
    """Run the service as a separate process, as in production. Yields its address once it has loaded the release."""
    address = f"http://{config.serving.host}:{port}"
    log = config.workspace / "service.log"
    where = [*_where(config, file), "--port", str(port)]
    command = [sys.executable, "-m", "offline.cli", "serve", "--storefront", *where]
    with log.open("wb") as out, progress_bar("Starting the service"):
        process = subprocess.Popen(command, env={**os.environ, "REDIS_URL": redis_url}, stdout=out, stderr=out)
    try:
        with progress_bar("Loading the release"):
            _wait_until_ready(process, address, release_id, log.name)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, release_id: str, log: str) -> None:
    deadline, reason = time.monotonic() + _STARTS_WITHIN_S, "no response"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health/ready", timeout=2) as answer:
                if json.load(answer)["release"] == release_id:
                    return
        except urllib.error.HTTPError as e:
            with e:
                reason = e.read().decode(errors="replace")
        except OSError as e:
            reason = str(e)
        time.sleep(0.2)
    raise ServiceDown(f"the service did not start at {address}: {reason}; see {log}, or use another --port")


def _post(address: str, path: str, body: Any) -> Any:
    request = urllib.request.Request(
        address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _rank(address: str, user: str, candidates: Sequence[str], limit: int | None) -> list[dict[str, Any]]:
    body = {"user_id": user, "candidates": candidates, "explain": limit is not None}
    answer = _post(address, "/v1/rank", body if limit is None else body | {"limit": limit})
    items: list[dict[str, Any]] = answer["items"]
    return items


def _shopper(data: dataset.Dataset) -> str:
    """A shopper with about eight engagements: they have a history, but short enough for three clicks to matter."""
    engaged = np.bincount(data.events.user[data.events.kind != Kind.IMPRESSION], minlength=data.events.n_users)
    return data.events.user_ids[int(np.argmin(np.abs(engaged - 8)))]


def _similar_items(data: dataset.Dataset, ranked: Sequence[str]) -> tuple[list[str], str]:
    """Three items below the first places that share a category and a tag, and the names of the two."""
    catalogue = data.catalogue
    groups: dict[tuple[int, int], list[str]] = {}
    for item in catalogue.rows(ranked)[_SHOWN:].tolist():
        for tag in _tags(data, item):
            groups.setdefault((int(catalogue.category[item]), tag), []).append(catalogue.item_ids[item])
    if not groups:
        return list(ranked[-_CLICKS:]), "any"
    top_categories = Counter(catalogue.category[catalogue.rows(ranked)[:_SHOWN]].tolist())
    # Prefer groups of three or more, then the category least shown in the first places, then the largest group.
    category, tag = max(groups, key=lambda k: (len(groups[k]) >= _CLICKS, -top_categories[k[0]], len(groups[k])))
    names = (*catalogue.category_names, "no category")
    return groups[category, tag][:_CLICKS], f"{names[category]}, {catalogue.tag_names[tag].split('=', 1)[1]}"


def _tags(data: dataset.Dataset, item: int) -> list[int]:
    start = data.catalogue.tag_start
    tags: list[int] = data.catalogue.tag[start[item] : start[item + 1]].tolist()
    return tags


def _print(
    data: dataset.Dataset,
    user: str,
    clicked: Sequence[str],
    theme: str,
    ranked: Sequence[dict[str, Any]],
    first: Sequence[dict[str, Any]],
    second: Sequence[dict[str, Any]],
) -> None:
    out = Console()
    catalogue = data.catalogue
    title = dict(zip(catalogue.item_ids, catalogue.titles, strict=True))
    position = {r["item_id"]: k for k, r in enumerate(ranked, 1)}
    out.print(Text(f"\nShopper {user} clicks three products ({theme}):", style="bold"))
    for item in clicked:
        out.print(Text(f"  {title[item]} (was at position {position[item]})"))
    out.print()
    table = Table(header_style="bold")
    for column, ratio in (("", 1), ("before", 8), ("after", 10), ("why now", 14)):
        table.add_column(column, ratio=ratio)
    for k, (was, now) in enumerate(zip(first, second, strict=True), 1):
        after = title[now["item_id"]] + _moved(position[now["item_id"]], k)
        table.add_row(str(k), Text(title[was["item_id"]]), Text(after), Text(_why(now)), end_section=True)
    out.print(table)


def _moved(was: int, now: int) -> str:
    return "" if was <= now else f" (up from {was})"


def _why(item: dict[str, Any]) -> str:
    because = item.get("because")
    reasons = [r["text"] for r in item.get("reasons") or () if r["contribution"] > 0]
    similar = [f"because you {_VERBS[because['event']]} {because['title']}"] if because else []
    return "; ".join(reasons[:2] + similar)
