"""The shoppers of the simulated shop in front of a running service: they request lists and act on what they are shown.

Their tastes are known only here; the service sees requests and events. The days after the log pass one after the other,
by the clock file of the service.
"""

from __future__ import annotations

import heapq
import http.client
import json
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from features.log import Kind
from offline.config import SimulateConfig
from offline.runtime import DataError, OnProgress, no_progress
from offline.simulation.dataset import LogWriter, open_shop
from offline.simulation.day_log import DEVICES_IN_USE, DayLog, ListRequests
from offline.simulation.products import DAY_US

_BATCH = 1000
_TIMEOUT_S = 60


class Visits(NamedTuple):
    """Counts of a visit. first, days: number of the first day after the log, from 0, and number of days."""

    first: int
    days: int
    lists: int
    clicks: int
    purchases: int


def visit(
    config: SimulateConfig, address: str, days: int, clock: Path, placement: str, on_progress: OnProgress = no_progress
) -> Visits:
    """Play the next days after the log: those that the clock file has not reached yet.

    config: of the simulated data set that the live release was made from, with at least as many days `ahead`. address:
    of the service, such as http://localhost:8000. clock: `serving.clock_file`. placement: of every request. Raises
    DataError if no days are left, and if the service cannot be reached or refuses a call.
    """
    visitors = _Visitors(config, address, clock, placement)
    first = visitors.first_day()
    last = first + days
    if last > config.days + config.ahead:
        raise DataError(
            f"simulate.ahead is {config.ahead}: the simulated shop has {config.days + config.ahead - first} days left, "
            f"not {days}; set a larger one before `shelfwise simulate`"
        )
    lists, counts = 0, np.zeros(len(Kind), np.int64)
    try:
        for number, day in enumerate(range(first, last)):
            on_progress(number, days)
            log = visitors.day(day)
            lists += log[0]
            counts += np.bincount(log[1].kind, minlength=len(Kind))
        on_progress(days, days)
    finally:
        visitors.close()
    return Visits(first - config.days, days, lists, int(counts[Kind.CLICK]), int(counts[Kind.PURCHASE]))


class _Visitors:
    """The shoppers, and their connection to the service."""

    def __init__(self, config: SimulateConfig, address: str, clock: Path, placement: str) -> None:
        self.config, self.clock, self.placement = config, clock, placement
        where = urlsplit(address if "//" in address else f"//{address}")
        self.address = address
        self._connection = http.client.HTTPConnection(
            where.hostname or "localhost", where.port or 80, timeout=_TIMEOUT_S
        )
        self.shop = open_shop(config)
        self.book = LogWriter(self.shop.stock, config.users, None)
        self.ids: list[str] = self.shop.stock.table["item_id"].to_pylist()
        self._row = {item: row for row, item in enumerate(self.ids)}
        self._waiting: list[tuple[int, str, dict[str, Any]]] = []
        for day in range(config.days):
            self.book.add(self.shop.day(day))

    def close(self) -> None:
        self._connection.close()

    def first_day(self) -> int:
        """The first day that the clock has not reached."""
        try:
            now_us = float(self.clock.read_text("ascii")) * 1e6
        except (OSError, ValueError):
            return self.config.days
        return max(self.config.days, int(-(-(now_us - self.shop.opening_us) // DAY_US)))

    def day(self, day: int) -> tuple[int, DayLog]:
        """Play a day; (number of lists, its events)."""
        self._seed(day, 0)
        lists, searches = self.shop.coming(day)
        logs = [searches]
        self._queue(searches, None)
        for n in range(len(lists.user)):
            request = lists[n : n + 1]
            self._send_events(int(request.at_us[0]))
            answer = self._ask(day, request)
            self._seed(day, 1 + n)
            item = np.array([[self._row[i["item_id"]] for i in answer["items"]]], np.int32)
            log = DayLog.merged(self.shop.shown(day, request, n, item, np.full(item.shape, np.nan)))
            self._queue(log, answer["request_id"])
            logs.append(log)
        self._send_events(self.shop.opening_us + (day + 1) * DAY_US)
        merged = DayLog.merged(logs)
        self.shop.count(lists, merged)
        return len(lists.user), merged

    def _seed(self, day: int, part: int) -> None:
        """Seed each list apart, so that a day does not depend on the days before it."""
        self.shop.rng = np.random.default_rng([self.config.seed, 100 + day, part])
        self.shop.device_rng = np.random.default_rng([self.config.seed, 100 + day, part, 1])

    def _ask(self, day: int, request: ListRequests) -> dict[str, Any]:
        """The answer to a request. The front page is recommended; a department's page sends its items as candidates."""
        body: dict[str, Any] = {
            "user_id": self.book.user_ids(request.user)[0].as_py(),
            "limit": self.config.list_length,
            "placement": self.placement,
        }
        if request.device[0] >= 0:
            body["device"] = DEVICES_IN_USE[request.device[0]]
        page, route = int(request.page[0]), "/v1/recommend"
        if page >= 0:
            route, body["candidates"] = "/v1/rank", [self.ids[row] for row in self.shop.offered(day, page).tolist()]
        answer: dict[str, Any] = self._post(route, body)
        return answer

    def _queue(self, log: DayLog, request_id: str | None) -> None:
        """Queue events until their time."""
        self.book.add(log)
        for at_us, event in zip(log.at_us.tolist(), self.book.events_table(log).to_pylist(), strict=True):
            record = {name: value for name, value in event.items() if value is not None} | {"timestamp": at_us}
            if "request_id" in record:
                record["request_id"] = request_id
            heapq.heappush(self._waiting, (at_us, event["event_id"], record))

    def _send_events(self, until_us: int) -> None:
        """Advance the clock, and send the events up to then."""
        due = []
        while self._waiting and self._waiting[0][0] <= until_us:
            due.append(heapq.heappop(self._waiting)[2])
        new = self.clock.with_suffix(".new")
        new.write_text(repr(until_us / 1e6), "ascii")
        new.replace(self.clock)
        for first in range(0, len(due), _BATCH):
            rejected = self._post("/v1/events", due[first : first + _BATCH])["rejected"]
            if rejected:
                raise DataError(f"{self.address} rejected an event: {rejected[0]}")

    def _post(self, route: str, body: Any) -> Any:
        try:
            self._connection.request("POST", route, json.dumps(body), {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as e:
            raise DataError(f"{self.address}: cannot be reached ({e}); start it with `shelfwise serve`") from e
        if response.status not in (200, 202):
            raise DataError(
                f"{self.address}{route}: status {response.status}: {content[:300].decode('utf-8', 'replace')}"
            )
        return json.loads(content)
