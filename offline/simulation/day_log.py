"""The events of a day of the simulated shop, and the requests for lists that they come from."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from features.arrays import F64, I8, I16, I32, I64
from features.log import KINDS, Kind
from offline.simulation.shoppers import Mood

DEVICES_IN_USE = ("mobile", "desktop", "app", "tablet", "smart tv")


@dataclass(frozen=True)
class DayLog:
    """Events of one day, sorted by (time, event name, item).

    visit: session number. utility, propensity: NaN except for impressions. propensity: probability of the item to be at
    its position; NaN without exploration. device: index into `DEVICES_IN_USE`, `-1` for none. query: of an impression,
    index into `Searches.texts`, `-1` for none.
    """

    kind: I8
    user: I32
    item: I32
    at_us: I64
    request: I64
    position: I16
    value: F64
    visit: I64
    utility: F64
    propensity: F64
    device: I8
    query: I32

    @classmethod
    def merged(cls, parts: list[DayLog]) -> DayLog:
        """Concatenate and sort parts of a day."""
        columns = [np.concatenate([getattr(p, name) for p in parts]) for name in (f.name for f in fields(cls))]
        kind, _, item, at_us, request, *_ = columns
        by_name = np.argsort(np.argsort(KINDS))[kind]
        order = np.lexsort((request, item, by_name, at_us))
        return cls(*(c[order] for c in columns))

    @classmethod
    def without_list(
        cls, kind: Kind, requests: ListRequests, item: I32, at_us: I64, value: F64 | None = None
    ) -> DayLog:
        """Events outside of any list, of the shoppers, sessions and devices of requests. value: of a purchase."""
        nan = np.full(len(item), np.nan)
        return cls(
            kind=np.full(len(item), kind, np.int8),
            user=requests.user,
            item=item,
            at_us=at_us,
            request=np.full(len(item), -1),
            position=np.full(len(item), -1, np.int16),
            value=nan if value is None else value,
            visit=requests.visit,
            utility=nan,
            propensity=nan,
            device=requests.device,
            query=np.full(len(item), -1, np.int32),
        )


@dataclass(frozen=True)
class ListRequests:
    """Requests for lists, or sessions, which are represented by their first request, on the front page.

    visit: session number. page: department, `-1` for the front page. device: as in `DayLog`.
    """

    user: I32
    at_us: I64
    visit: I64
    page: I32
    mood: Mood
    device: I8

    def __getitem__(self, rows: NDArray[np.intp] | slice) -> ListRequests:
        mood = Mood(self.mood.department[rows], self.mood.use[rows])
        return ListRequests(
            self.user[rows], self.at_us[rows], self.visit[rows], self.page[rows], mood, self.device[rows]
        )
