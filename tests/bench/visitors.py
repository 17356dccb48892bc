"""The simulated shop's people before a real service: they ask it for lists over HTTP, look, and click what they like.

What they want is known here alone; the service sees requests and events. Every list is written into a journal before
anything is done with it. Whatever else happens follows from the journal and the seed, so a day that was cut off goes on
after its last list, and what had been sent before is sent once more, which is harmless: event ids are the same.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import numpy as np

from features.arrays import F64, I32
from features.decay import HALF_LIFE_NAMES, ItemState
from features.log import Kind
from offline.config.simulation import SimulateConfig
from offline.simulation.dataset import LogWriter, open_shop
from offline.simulation.products import DAY_US
from offline.simulation.shop import DEVICES_IN_USE, DayLog, ListRequests

K = 10
"""Places from the top that quality is measured on."""
_TREND = HALF_LIFE_NAMES.index("7d")
_EVENTS = 1000


class Line(msgspec.Struct, frozen=True):
    """One list of the journal. n: its number in the day. items: as they were shown. ndcg: of each order, see `Arms`."""

    n: int
    user: int
    at_us: int
    request_id: str
    release: str
    items: list[str]
    ndcg: dict[str, float]


class Arms(NamedTuple):
    """Two services that are sent the same events: what `live` answers is shown, what `kept` answers only compared."""

    live: httpx.Client
    kept: httpx.Client


class Played(NamedTuple):
    """A day: its lists, and how many events were sent, clicks and purchases among them."""

    lines: list[Line]
    events: int
    clicks: int
    purchases: int


class Visitors:
    """The shop's people, and what the shop has counted of them."""

    def __init__(self, config: SimulateConfig, clock: Path) -> None:
        """clock: the file that tells the services what time it is. The days of the log have passed."""
        self.config, self.clock = config, clock
        self.shop = open_shop(config)
        self.book = LogWriter(self.shop.stock, config.users, None)
        self.ids: list[str] = self.shop.stock.table["item_id"].to_pylist()
        self._row = {item: row for row, item in enumerate(self.ids)}
        # For the order by popularity alone; one category is as good as none.
        self._counts = ItemState.empty(np.zeros(len(self.ids) + 1, np.int32), 1)
        self._waiting: list[tuple[int, str, dict[str, Any], tuple[int, int]]] = []
        for day in range(config.days):
            log = self.shop.day(day)
            self.book.add(log)
            self._counts.apply(log.item, log.kind, log.at_us / 1e6)

    def begins_us(self, day: int) -> int:
        """Unix microseconds of a day's midnight; day 0 is the first of the log."""
        return self.shop.opening_us + day * DAY_US

    def arrivals(self, day: int) -> list[dict[str, Any]]:
        """Items put out for the first time on a day, as PUT /v1/items takes them."""
        there = self.shop.stock.available_us
        new = np.flatnonzero((there >= self.begins_us(day - 1)) & (there < self.begins_us(day)))
        return [_written(row) for row in self.shop.stock.table.take(new).to_pylist()]

    def day(
        self, day: int, journal: Path, arms: Arms | None, on_progress: Callable[[int, int], None] | None = None
    ) -> Played:
        """Play a day. arms: None for one that is over, whose journal is whole."""
        kept = {line.n: line for line in read_journal(journal)}
        self._seeded(day, 0)
        lists, searches = self.shop.coming(day)
        logs, lines = [searches], []
        self._happen(searches, None)
        with journal.open("ab") as out:
            for n in range(len(lists.user)):
                asked = lists[n : n + 1]
                self._send(int(asked.at_us[0]), arms)
                if n in kept:
                    line = kept[n]
                else:
                    assert arms is not None, f"{journal} ends before list {n}"
                    line = self._answered(day, n, asked, arms)
                    out.write(msgspec.json.encode(line) + b"\n")
                    out.flush()
                self._seeded(day, 1 + n)
                item = np.array([[self._row[i] for i in line.items]], np.int32)
                log = DayLog.merged(self.shop.shown(day, asked, n, item, np.full(item.shape, np.nan)))
                self._happen(log, line.request_id)
                logs.append(log)
                lines.append(line)
                if on_progress:
                    on_progress(n + 1, len(lists.user))
        self._send(self.begins_us(day + 1), arms)
        whole = DayLog.merged(logs)
        self.shop.count(lists, whole)
        did = np.bincount(whole.kind, minlength=len(Kind))
        return Played(lines, len(whole.kind), int(did[Kind.CLICK]), int(did[Kind.PURCHASE]))

    def _seeded(self, day: int, part: int) -> None:
        """Chance of its own for each list: what people do does not hang on where the day was cut off."""
        self.shop.rng = np.random.default_rng([self.config.seed, 100 + day, part])
        self.shop.device_rng = np.random.default_rng([self.config.seed, 100 + day, part, 1])

    def _answered(self, day: int, n: int, asked: ListRequests, arms: Arms) -> Line:
        """What the services answer to one request, and how good each order is."""
        page, at_us = int(asked.page[0]), int(asked.at_us[0])
        offered = self.shop.offered(day, page)
        worth: F64 = self.shop.would(day, asked, offered[None]).expected_gain[0]
        answers = [self._ask(arm, asked, offered) for arm in arms]
        popular = self._counts.engaged(at_us / 1e6, _TREND)[offered]
        orders = {
            name: np.array([self._row[i["item_id"]] for i in answer["items"]], np.int32)
            for name, answer in zip(Arms._fields, answers, strict=True)
        } | {"popularity": offered[np.argsort(-popular, kind="stable")]}
        ndcg = {name: _ndcg(order, offered, worth) for name, order in orders.items()}
        first = answers[0]
        shown = [i["item_id"] for i in first["items"]]
        return Line(n, int(asked.user[0]), at_us, first["request_id"], first["release"], shown, ndcg)

    def _ask(self, arm: httpx.Client, asked: ListRequests, offered: I32) -> dict[str, Any]:
        """The front page is recommended; a department's page names what stands there."""
        body = {"user_id": self.book.user_ids(asked.user)[0].as_py(), "limit": self.config.list_length}
        if asked.device[0] >= 0:
            body["device"] = DEVICES_IN_USE[asked.device[0]]
        route = "/v1/recommend"
        if asked.page[0] >= 0:
            route, body["candidates"] = "/v1/rank", [self.ids[row] for row in offered.tolist()]
        answer: dict[str, Any] = arm.post(route, json=body).raise_for_status().json()
        assert not answer["degraded"], "a list was ranked without the shopper's history: Redis is too slow"
        return answer

    def _happen(self, log: DayLog, request_id: str | None) -> None:
        """Keep events until their time comes."""
        self.book.add(log)
        for k, event in enumerate(self.book.events_table(log).to_pylist()):
            at_us = int(log.at_us[k])
            told = {name: value for name, value in event.items() if value is not None} | {"timestamp": at_us}
            if "request_id" in told:
                told["request_id"] = request_id
            of = int(log.item[k]), int(log.kind[k])
            heapq.heappush(self._waiting, (at_us, event["event_id"], told, of))

    def _send(self, until_us: int, arms: Arms | None) -> None:
        """Move the clock, and tell the services what happened up to then."""
        due = []
        while self._waiting and self._waiting[0][0] <= until_us:
            due.append(heapq.heappop(self._waiting))
        counted = np.array([[*of, at] for at, _, _, of in due], np.int64).reshape(-1, 3)
        self._counts.apply(counted[:, 0].astype(np.int32), counted[:, 1].astype(np.int8), counted[:, 2] / 1e6)
        if arms is None:
            return
        set_clock(self.clock, until_us / 1e6)
        for first in range(0, len(due), _EVENTS):
            told = [event for _, _, event, _ in due[first : first + _EVENTS]]
            for arm in arms:
                answer = arm.post("/v1/events", json=told).raise_for_status().json()
                assert not answer["rejected"], answer["rejected"]


def set_clock(file: Path, at: float) -> None:
    """Let the services know that it is now `at`, Unix seconds."""
    new = file.with_suffix(".new")
    new.write_text(repr(at), "ascii")
    new.replace(file)


def read_journal(journal: Path) -> list[Line]:
    """The lists of a journal; a line that was cut off is cut away."""
    if not journal.exists():
        return []
    whole = journal.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        with journal.open("r+b") as file:
            file.truncate(end)
    return [msgspec.json.decode(line, type=Line) for line in whole[:end].splitlines()]


def _ndcg(order: I32, offered: I32, worth: F64) -> float:
    """ndcg@10 with expected gains as they are, against the best order of all that may stand on the page."""
    place = {row: k for k, row in enumerate(offered.tolist())}
    assert len(set(order.tolist()) & set(place)) == len(order), "not distinct items of this page"
    return _dcg(worth[[place[row] for row in order[:K].tolist()]]) / _dcg(np.sort(worth)[::-1][:K])


def _dcg(gain: F64) -> float:
    return float((gain / np.log2(np.arange(2, len(gain) + 2))).sum())


def _written(row: dict[str, Any]) -> dict[str, Any]:
    plain = {k: v for k, v in row.items() if v is not None}
    of_ours = ("item_id", "title", "description", "category", "brand", "price")
    out = {k: plain[k] for k in of_ours if k in plain}
    if "available_from" in plain:
        out["available_from"] = plain["available_from"].isoformat()
    return out | {"attributes": {k: v for k, v in plain.items() if k not in (*of_ours, "available_from")}}


def sent(arms: Sequence[httpx.Client], items: Sequence[dict[str, Any]]) -> None:
    """Write new items through each service."""
    for arm in arms if items else ():
        answer = arm.put("/v1/items", content=json.dumps(items)).raise_for_status().json()
        assert not answer["rejected"], answer["rejected"]
