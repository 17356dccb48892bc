"""The demo's last act: the service answers for one shopper, three clicks come in, and it answers again."""

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

_SHOWN = 10
_CLICKS = 3
_STARTS_WITHIN_S = 60.0
_DID = {"view": "viewed", "click": "clicked", "cart": "put in your cart", "purchase": "bought", "rating": "rated"}


class ServiceDown(RuntimeError):
    """The service of the demo does not answer; the message says where, why, and where its log is."""


def show(config: Config, redis_url: str, release_id: str, report: Path, port: int, stay: bool) -> None:
    """Print one shopper's list before and after three clicks, side by side, with reasons; then where to look on.

    stay: keep serving until interrupted.
    """
    data = dataset.load_dataset(config.data, log=config.log)
    with _service(config, redis_url, port, release_id) as address:
        user = _shopper(data)
        shelf = list(data.catalogue.item_ids[: config.serving.max_candidates])
        before = _rank(address, user, shelf, None)
        clicked, theme = _three_alike(data, [r["item_id"] for r in before])
        first = _rank(address, user, shelf, _SHOWN)
        _post(address, "/v1/events", [{"event": "click", "user_id": user, "item_id": i} for i in clicked])
        second = _rank(address, user, shelf, _SHOWN)
        _print(data, user, clicked, theme, before, first, second)
        print(f"report: {report}")
        print(f"service: {address} (API: {address}/docs)", flush=True)
        print(f"storefront: {address}/storefront (click, and watch the shelf move)", flush=True)
        if stay:
            print("serving until you press Ctrl-C", flush=True)
            with _reading(config, redis_url):
                _wait()
        else:
            print(f"the service has stopped; start it again: shelfwise serve --workspace {config.workspace}")


def _wait() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return


@contextmanager
def _reading(config: Config, redis_url: str) -> Iterator[None]:
    """An embedding worker as its own process, so that a product added on the page is ranked by its text."""
    command = [sys.executable, "-m", "offline.cli", "embed", "--workspace", str(config.workspace)]
    with (config.workspace / "embed.log").open("wb") as out:
        process = subprocess.Popen(command, env={**os.environ, "REDIS_URL": redis_url}, stdout=out, stderr=out)
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


@contextmanager
def _service(config: Config, redis_url: str, port: int, release_id: str) -> Iterator[str]:
    """The service as its own process, as in earnest; its address once it answers from the release."""
    address = f"http://{config.serving.host}:{port}"
    log = config.workspace / "service.log"
    where = ["--workspace", str(config.workspace), "--port", str(port)]
    command = [sys.executable, "-m", "offline.cli", "serve", "--storefront", *where]
    with log.open("wb") as out, progress_bar("Starting the service"):
        process = subprocess.Popen(command, env={**os.environ, "REDIS_URL": redis_url}, stdout=out, stderr=out)
    try:
        with progress_bar("Loading the release"):
            _ready(process, address, release_id, log.name)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def _ready(process: subprocess.Popen[bytes], address: str, release_id: str, log: str) -> None:
    deadline, said = time.monotonic() + _STARTS_WITHIN_S, "it does not answer"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health/ready", timeout=2) as answer:
                if json.load(answer)["release"] == release_id:
                    return
        except urllib.error.HTTPError as e:
            with e:
                said = e.read().decode(errors="replace")
        except OSError as e:
            said = str(e)
        time.sleep(0.2)
    raise ServiceDown(f"the service did not come up at {address}: {said}; see {log}, or take another --port")


def _post(address: str, path: str, body: Any) -> Any:
    request = urllib.request.Request(
        address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _rank(address: str, user: str, candidates: Sequence[str], limit: int | None) -> list[dict[str, Any]]:
    asked = {"user_id": user, "candidates": candidates, "explain": limit is not None}
    answer = _post(address, "/v1/rank", asked if limit is None else asked | {"limit": limit})
    found: list[dict[str, Any]] = answer["items"]
    return found


def _shopper(data: dataset.Dataset) -> str:
    """A shopper of whom something is known but not much, so that three clicks matter: about eight engagements."""
    engaged = np.bincount(data.events.user[data.events.kind != Kind.IMPRESSION], minlength=data.events.n_users)
    return data.events.user_ids[int(np.argmin(np.abs(engaged - 8)))]


def _three_alike(data: dataset.Dataset, ranked: Sequence[str]) -> tuple[list[str], str]:
    """Three items alike in category and a tag, from below the first places, and what they share, in words."""
    catalogue = data.catalogue
    alike: dict[tuple[int, int], list[str]] = {}
    for item in catalogue.rows(ranked)[_SHOWN:].tolist():
        for tag in _tags(data, item):
            alike.setdefault((int(catalogue.category[item]), tag), []).append(catalogue.item_ids[item])
    if not alike:
        return list(ranked[-_CLICKS:]), "any"
    on_top = Counter(catalogue.category[catalogue.rows(ranked)[:_SHOWN]].tolist())
    # What the first places show least of, and of that the largest group.
    category, tag = max(alike, key=lambda k: (len(alike[k]) >= _CLICKS, -on_top[k[0]], len(alike[k])))
    names = (*catalogue.category_names, "no category")
    return alike[category, tag][:_CLICKS], f"{names[category]}, {catalogue.tag_names[tag].split('=', 1)[1]}"


def _tags(data: dataset.Dataset, item: int) -> list[int]:
    start = data.catalogue.tag_start
    found: list[int] = data.catalogue.tag[start[item] : start[item + 1]].tolist()
    return found


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
    place = {r["item_id"]: k for k, r in enumerate(ranked, 1)}
    out.print(Text(f"\nShopper {user} clicks three products ({theme}):", style="bold"))
    for item in clicked:
        out.print(Text(f"  {title[item]} (was at place {place[item]})"))
    out.print()
    table = Table(header_style="bold")
    for column, ratio in (("", 1), ("before", 8), ("after", 10), ("why now", 14)):
        table.add_column(column, ratio=ratio)
    for k, (was, now) in enumerate(zip(first, second, strict=True), 1):
        after = title[now["item_id"]] + _moved(place[now["item_id"]], k)
        table.add_row(str(k), Text(title[was["item_id"]]), Text(after), Text(_why(now)), end_section=True)
    out.print(table)


def _moved(was: int, now: int) -> str:
    return "" if was <= now else f" (up from {was})"


def _why(item: dict[str, Any]) -> str:
    because = item.get("because")
    raised = [r["text"] for r in item.get("reasons") or () if r["contribution"] > 0]
    similar = [f"because you {_DID[because['event']]} {because['title']}"] if because else []
    return "; ".join(raised[:2] + similar)
