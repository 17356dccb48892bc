"""What the operator's page shows: the releases with their quality, what the gate said, and who changed what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from serving.records import Minute
from serving.release import Listed, list_releases, read_judgements, registry
from serving.store import Pointer

_AUDITED = 30
_NIGHTS = 60


class Night(Struct):
    """What the gate said of one night's release. at: ISO 8601, UTC. reasons: rule, verdict, message, sternest first.

    quality: by system: ndcg@10 on the night's test lists, its low and high. difference: of the live release then, with
    low and high, null where there was none. drift: the features that differ most between test lists and those learnt
    from, by PSI; drift_median: over all features, null where none was compared.
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
    """One release. state: live, pinned (and live), previous, or nothing. cut_off: Unix seconds, what its log covers.

    problem: why it cannot be used, else empty. night: its part in `Board.nights`, null where no gate judged it.
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
    """A promotion or rollback that was asked for. state: running, done or failed; error: why it failed, else empty."""

    action: str
    release: str
    by: str
    at: float
    state: str
    error: str = ""


class Board(Struct):
    """Everything of the page but the timeline. at: Unix seconds, the service's clock.

    live: by Redis. here: what this worker answers from. degraded: why Redis could not be asked, else empty.
    audit: changes of the live release, newest first, as `releases audit` prints them. change: the promotion or rollback
    asked for last, of whichever worker.
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
    """The minutes that were kept, oldest first."""

    minutes: list[Minute]


def board(
    root: Path | None, pointer: Pointer | None, here: str | None, at: float, degraded: str, change: Change | None
) -> Board:
    """The board as of now. root: the directory of the releases, None where none was ever loaded.

    pointer: the live release, None where Redis names none or is away. here: what this worker answers from.
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


def _row(listed: Listed, state: dict[str, str], nights: dict[str, Night]) -> ReleaseRow:
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
    """JSON; what is not a finite number is null."""
    return msgspec.json.encode(answer)
