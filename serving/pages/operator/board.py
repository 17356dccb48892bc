"""Data of the operator's page: releases with their quality and gate verdicts, and the audit log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from serving.records import Minute
from serving.release import ListedRelease, list_releases, read_judgements, registry
from serving.store import Pointer

_AUDITED = 30
_NIGHTS = 60


class Night(Struct):
    """Gate verdict on the release of one nightly run. at: ISO 8601, UTC.

    reasons: (rule, verdict, message), strictest first. quality: [ndcg@10 on the run's test lists, low, high] by
    system. difference: [difference from the release that was live, low, high], null if there was none. drift: PSI
    between test and training lists, for the features that differ most. drift_median: median PSI over all features, null
    if none was compared.
    """

    at: str
    release: str
    verdict: str
    live: str | None
    reasons: list[list[str]]
    quality: dict[str, list[float | None]]
    difference: list[float | None] | None
    drift: dict[str, float]
    drift_median: float | None


class ReleaseRow(Struct):
    """One release. state: live, pinned (live and pinned), previous, or empty. cut_off: end of its data, Unix seconds.

    problem: why it cannot be used, empty if it can. night: its entry in `Board.nights`, null if no gate judged it.
    """

    release: str
    state: str
    cut_off: float | None
    items: int | None
    megabytes: float | None
    ndcg: float | None
    problem: str
    night: Night | None


class Change(Struct):
    """A requested promotion or rollback. state: running, done or failed. error: why it failed, empty otherwise."""

    action: str
    release: str
    by: str
    at: float
    state: str
    error: str = ""


class Board(Struct):
    """All data of the page except the timeline. at: the service's clock, Unix seconds.

    live: the live release according to Redis. here: the release this worker serves. degraded: why Redis is unavailable,
    empty otherwise. audit: changes of the live release, newest first, as `releases audit` prints them. change: the
    latest promotion or rollback requested from any worker.
    """

    at: float
    live: str | None
    here: str | None
    degraded: str
    releases: list[ReleaseRow]
    nights: list[Night]
    audit: list[dict[str, Any]]
    change: Change | None


class Shown(Struct):
    """The stored minutes of the timeline, oldest first."""

    minutes: list[Minute]


def board(
    root: Path | None, pointer: Pointer | None, here: str | None, at: float, degraded: str, change: Change | None
) -> Board:
    """Build the board. root: directory of the releases, None if no release has been loaded.

    pointer: the live release, None if there is none or Redis is unavailable. here: the release this worker serves. at:
    Unix seconds.
    """
    if root is None:
        return Board(at, None, here, degraded, [], [], [], change)
    nights = [_night(line) for line in read_judgements(root)][-_NIGHTS:]
    by_release = {n.release: n for n in nights}
    live = pointer.id if pointer else None
    state = {}
    if pointer is not None:
        if before := registry.previous_release(root, pointer.id):
            state[before] = "previous"
        state[pointer.id] = "pinned" if pointer.pinned else "live"
    rows = [_row(r, state, by_release) for r in list_releases(root)]
    return Board(at, live, here, degraded, rows, nights, registry.release_history(root)[: -_AUDITED - 1 : -1], change)


def _row(listed: ListedRelease, state: dict[str, str], nights: dict[str, Night]) -> ReleaseRow:
    m = listed.manifest
    if m is None:
        return ReleaseRow(listed.path.name, "", None, None, None, None, listed.problem, None)
    ndcg = m.metrics.get("ranker")
    size = sum(f.bytes for f in m.files.values()) / 1e6
    return ReleaseRow(
        m.id,
        state.get(m.id, ""),
        m.cut_off,
        m.items,
        size,
        ndcg if isinstance(ndcg, float) else None,
        "",
        nights.get(m.id),
    )


def _night(line: dict[str, Any]) -> Night:
    d = line.get("figures", {}).get("all")
    difference = None if d is None else [d.get("difference"), d.get("low"), d.get("high")]
    return Night(
        line["at"],
        line["candidate"],
        line["verdict"],
        line.get("live"),
        line.get("reasons", []),
        line.get("quality", {}),
        difference,
        line.get("drift", {}),
        line.get("drift_median"),
    )


def encoded(answer: Board | Shown | Change) -> bytes:
    """Encode as JSON. Numbers that are not finite become null."""
    return msgspec.json.encode(answer)
