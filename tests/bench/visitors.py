"""The shoppers of the simulated shop in front of a real service: they request lists over HTTP and click what they like.

Their tastes are known only here; the service sees requests and events. Every list is written to a journal before anyone
acts on it. Everything else follows from the journal and the seed, so an interrupted day continues after its last list.
Events already sent are sent again, which is harmless because their IDs are the same.
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
from offline.simulation.day_log import DEVICES_IN_USE, DayLog, ListRequests
from offline.simulation.products import DAY_US
from ranker.examination import power_law
from tests.bench.effects import CONTROL, EFFECTS, EXPERIMENT, Effect

K = 10
"""Number of top positions for ndcg."""
_TREND = HALF_LIFE_NAMES.index("7d")
_EVENTS = 1000


class Line(msgspec.Struct, frozen=True):
    """One list of the journal. n: its number on that day. items: as shown. ndcg: of each order, see `Arms`.

    arm: of the experiment, as the service has assigned it; None without one. expected: clicks of the list by the hidden
    truth, as in the control, and with the effect of the experiment.
    """

    n: int
    user: int
    at_us: int
    request_id: str
    release: str
    items: list[str]
    ndcg: dict[str, float]
    arm: str | None = None
    expected: tuple[float, float] = (0.0, 0.0)


class Arms(NamedTuple):
    """Two services that get the same events. Responses of `live` are shown, those of `kept` are only compared."""

    live: httpx.Client
    kept: httpx.Client


class Played(NamedTuple):
    """A day: its lists, and the number of events sent, with clicks and purchases among them."""

    lines: list[Line]
    events: int
    clicks: int
    purchases: int


class Visitors:
    """The shoppers, and the shop's event counts."""

    def __init__(
        self, config: SimulateConfig, clock: Path, effect: str = CONTROL, placement: str | None = None
    ) -> None:
        """clock: the file with the current time for the services. The days of the log are in the past.

        effect: of the arm of the experiment, a name in `tests.bench.effects`. placement: of every request.
        """
        self.config, self.clock = config, clock
        self._effect, self._placement = EFFECTS[effect], placement
        self.shop = open_shop(config)
        self.book = LogWriter(self.shop.stock, config.users, None)
        self.ids: list[str] = self.shop.stock.table["item_id"].to_pylist()
        self._row = {item: row for row, item in enumerate(self.ids)}
        # Only for the popularity order, so one category is enough.
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
        """Items that are first available on a day, in the format of PUT /v1/items."""
        available_us = self.shop.stock.available_us
        new = np.flatnonzero((available_us >= self.begins_us(day - 1)) & (available_us < self.begins_us(day)))
        return [_as_item(row) for row in self.shop.stock.table.take(new).to_pylist()]

    def day(
        self, day: int, journal: Path, arms: Arms | None, on_progress: Callable[[int, int], None] | None = None
    ) -> Played:
        """Play a day. arms: None for a day that is over, whose journal is complete."""
        recorded = {line.n: line for line in read_journal(journal)}
        self._seed(day, 0)
        lists, searches = self.shop.coming(day)
        logs, lines = [searches], []
        self._queue(searches, None)
        with journal.open("ab") as out:
            for n in range(len(lists.user)):
                request = lists[n : n + 1]
                self._send(int(request.at_us[0]), arms)
                if n in recorded:
                    line = recorded[n]
                else:
                    assert arms is not None, f"{journal} ends before list {n}"
                    line = self._serve_list(day, n, request, arms)
                    out.write(msgspec.json.encode(line) + b"\n")
                    out.flush()
                self._seed(day, 1 + n)
                item = np.array([[self._row[i] for i in line.items]], np.int32)
                if self._sees(line, day):
                    odds = self._odds(line, day)
                    log = DayLog.merged(self.shop.shown(day, request, n, item, np.full(item.shape, np.nan), odds=odds))
                    self._queue(log, line.request_id)
                    logs.append(log)
                lines.append(line)
                if on_progress:
                    on_progress(n + 1, len(lists.user))
        self._send(self.begins_us(day + 1), arms)
        day_log = DayLog.merged(logs)
        self.shop.count(lists, day_log)
        counts = np.bincount(day_log.kind, minlength=len(Kind))
        return Played(lines, len(day_log.kind), int(counts[Kind.CLICK]), int(counts[Kind.PURCHASE]))

    def _seed(self, day: int, part: int) -> None:
        """Seed each list separately, so that behaviour does not depend on where the day was interrupted."""
        self.shop.rng = np.random.default_rng([self.config.seed, 100 + day, part])
        self.shop.device_rng = np.random.default_rng([self.config.seed, 100 + day, part, 1])

    def _of(self, line: Line) -> Effect:
        return EFFECTS[CONTROL] if line.arm in (None, CONTROL) else self._effect

    def _odds(self, line: Line, day: int) -> float:
        return float(self._of(line).odds_at(float(day - self.config.days)))

    def _sees(self, line: Line, day: int) -> bool:
        """True if the list reaches the shopper. Drawn apart, so that a list that does is as without the effect."""
        draw = np.random.default_rng([self.config.seed, 100 + day, 1 + line.n, 2]).random()
        return bool(draw >= self._of(line).unseen)

    def _expected_clicks(self, day: int, request: ListRequests, shown: I32) -> tuple[float, float]:
        """Expected clicks of a list: as in the control, and with the effect."""
        examined = power_law(len(shown), self.config.position_bias)
        odds = float(self._effect.odds_at(float(day - self.config.days)))
        plain, changed = (
            float((self.shop.would(day, request, shown[None], odds=o).click[0] * examined).sum()) for o in (0.0, odds)
        )
        return plain, changed * (1.0 - self._effect.unseen)

    def _serve_list(self, day: int, n: int, request: ListRequests, arms: Arms) -> Line:
        """The responses of the services to one request, and the quality of each order."""
        page, at_us = int(request.page[0]), int(request.at_us[0])
        offered = self.shop.offered(day, page)
        expected_gain: F64 = self.shop.would(day, request, offered[None]).expected_gain[0]
        responses = [self._ask(arm, request, offered) for arm in arms]
        popular = self._counts.engaged(at_us / 1e6, _TREND)[offered]
        orders = {
            name: np.array([self._row[i["item_id"]] for i in response["items"]], np.int32)
            for name, response in zip(Arms._fields, responses, strict=True)
        } | {"popularity": offered[np.argsort(-popular, kind="stable")]}
        ndcg = {name: _ndcg(order, offered, expected_gain) for name, order in orders.items()}
        first = responses[0]
        shown = [i["item_id"] for i in first["items"]]
        arm = first.get("experiments", {}).get(EXPERIMENT)
        expected = self._expected_clicks(day, request, orders["live"])
        return Line(n, int(request.user[0]), at_us, first["request_id"], first["release"], shown, ndcg, arm, expected)

    def _ask(self, arm: httpx.Client, request: ListRequests, offered: I32) -> dict[str, Any]:
        """The front page is recommended. A department's page sends its items as candidates."""
        body = {"user_id": self.book.user_ids(request.user)[0].as_py(), "limit": self.config.list_length}
        if request.device[0] >= 0:
            body["device"] = DEVICES_IN_USE[request.device[0]]
        if self._placement is not None:
            body["placement"] = self._placement
        route = "/v1/recommend"
        if request.page[0] >= 0:
            route, body["candidates"] = "/v1/rank", [self.ids[row] for row in offered.tolist()]
        response: dict[str, Any] = arm.post(route, json=body).raise_for_status().json()
        assert not response["degraded"], "a list was ranked without the shopper's history: Redis is too slow"
        return response

    def _queue(self, log: DayLog, request_id: str | None) -> None:
        """Queue events until their time."""
        self.book.add(log)
        for k, event in enumerate(self.book.events_table(log).to_pylist()):
            at_us = int(log.at_us[k])
            record = {name: value for name, value in event.items() if value is not None} | {"timestamp": at_us}
            if "request_id" in record:
                record["request_id"] = request_id
            item_and_kind = int(log.item[k]), int(log.kind[k])
            heapq.heappush(self._waiting, (at_us, event["event_id"], record, item_and_kind))

    def _send(self, until_us: int, arms: Arms | None) -> None:
        """Advance the clock, and send the events up to then to the services."""
        due = []
        while self._waiting and self._waiting[0][0] <= until_us:
            due.append(heapq.heappop(self._waiting))
        counted = np.array([[*item_and_kind, at] for at, _, _, item_and_kind in due], np.int64).reshape(-1, 3)
        self._counts.apply(counted[:, 0].astype(np.int32), counted[:, 1].astype(np.int8), counted[:, 2] / 1e6)
        if arms is None:
            return
        set_clock(self.clock, until_us / 1e6)
        for first in range(0, len(due), _EVENTS):
            batch = [event for _, _, event, _ in due[first : first + _EVENTS]]
            for arm in arms:
                response = arm.post("/v1/events", json=batch).raise_for_status().json()
                assert not response["rejected"], response["rejected"]


def set_clock(file: Path, at: float) -> None:
    """Set the time of the services to `at`, Unix seconds."""
    new = file.with_suffix(".new")
    new.write_text(repr(at), "ascii")
    new.replace(file)


def read_journal(journal: Path) -> list[Line]:
    """The lists of a journal. An incomplete last line is removed."""
    if not journal.exists():
        return []
    content = journal.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with journal.open("r+b") as file:
            file.truncate(end)
    return [msgspec.json.decode(line, type=Line) for line in content[:end].splitlines()]


def _ndcg(order: I32, offered: I32, expected_gain: F64) -> float:
    """ndcg@10 of expected gains, relative to the best order of everything that may be on the page."""
    position = {row: k for k, row in enumerate(offered.tolist())}
    assert len(set(order.tolist()) & set(position)) == len(order), (
        "the order has repeated items, or items of another page"
    )
    return _dcg(expected_gain[[position[row] for row in order[:K].tolist()]]) / _dcg(np.sort(expected_gain)[::-1][:K])


def _dcg(gain: F64) -> float:
    return float((gain / np.log2(np.arange(2, len(gain) + 2))).sum())


def _as_item(row: dict[str, Any]) -> dict[str, Any]:
    values = {k: v for k, v in row.items() if v is not None}
    standard = ("item_id", "title", "description", "category", "brand", "price")
    out = {k: values[k] for k in standard if k in values}
    if "available_from" in values:
        out["available_from"] = values["available_from"].isoformat()
    return out | {"attributes": {k: v for k, v in values.items() if k not in (*standard, "available_from")}}


def write_items(arms: Sequence[httpx.Client], items: Sequence[dict[str, Any]]) -> None:
    """Write new items through each service."""
    for arm in arms if items else ():
        response = arm.put("/v1/items", content=json.dumps(items)).raise_for_status().json()
        assert not response["rejected"], response["rejected"]
