"""The source of the query groups of a run: logged lists, rebuilt lists, or both.

A shop that imported its purchases has no logged lists, and a few after its first day online. Three lists cannot be
split into windows, and a test on eight cannot tell a good release from a bad one. With `lists.source: auto`, rebuilt
lists therefore go on until the logged lists carry each window by themselves.

A window is carried by 100 lists with an action (`lists.window_lists`), of 30 users, at 30 times. Intervals are
bootstraps over users, and with fewer than about 30 clusters they are too narrow (Cameron, Gelbach and Miller 2008).
Lists of one time are mostly one job or one test. If most actions of the log belong to a logged list, rebuilt lists
would only be a few late purchases, so a shop that has always logged its lists uses these alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from features.arrays import Bool
from features.log import Lists
from offline.config import Config, WindowConfig
from offline.data import WINDOWS, Windows, query_groups
from offline.runtime import DataError

LEAST_USERS = 30
LEAST_TIMES = 30

Kind = Literal["logged", "rebuilt"]


class ListSource(NamedTuple):
    """The source of the query groups, and the reason for it.

    notice: the reason as a sentence for the report and the console; None if there was nothing to decide.
    """

    kind: Literal["logged", "rebuilt", "mixed"]
    reason: str
    notice: str | None = None


class Support(NamedTuple):
    """Numbers of lists with an action in a window, of their users, and of their times."""

    lists: int
    users: int
    times: int

    @classmethod
    def of(cls, lists: Lists | query_groups.ListKeys, chosen: Bool) -> Support:
        """Of the chosen lists. chosen: bool[lists]."""
        return cls(int(chosen.sum()), len(np.unique(lists.user[chosen])), len(np.unique(lists.at[chosen])))

    def lack(self, least: int) -> str | None:
        """The data missing for the window to be carried, in words; None if it is carried. least: number of lists."""
        for number, needed, what in (
            (self.lists, least, "logged lists with an action"),
            (self.users, LEAST_USERS, "users with such a list"),
            (self.times, LEAST_TIMES, "different times of such lists"),
        ):
            if number < needed:
                return f"{number:,} of {needed:,} {what}"
        return None


def choose(keys: query_groups.ListKeys, unlogged: Iterable[int], config: Config) -> ListSource:
    """The source of the lists for `lists.source: auto`.

    keys: of the logged lists. unlogged: numbers of baskets with an action that belongs to no logged list, in parts.
    They are read only as far as needed.
    """
    logged, least, protocol = int(keys.has_gain.sum()), config.lists.window_lists, config.windows.protocol
    if not logged:
        reason = "no logged list has an action" if len(keys.at) else "the log has no lists"
        notice = f"Lists were rebuilt, because none of the {len(keys.at):,} logged lists has an action."
        return ListSource("rebuilt", reason, notice if len(keys.at) else None)
    if protocol != "time-split":
        # The other protocols are defined for one kind of lists.
        kind: Kind = "rebuilt" if protocol == "leave-last-out" and _exceeds(unlogged, logged) else "logged"
        return ListSource(kind, f"windows.protocol is {protocol}")
    lack = _lack(keys, config.windows, least)
    if lack is None:
        return ListSource("logged", f"each window has at least {least:,} logged lists with an action")
    if not _exceeds(unlogged, logged):
        return ListSource("logged", "most actions belong to a logged list")
    noun = "list" if logged == 1 else "lists"
    return ListSource(
        "mixed",
        lack,
        f"Rebuilt lists go on: the {logged:,} logged {noun} with an action cannot carry each window alone ({lack}; "
        "lists.window_lists). The report and the gate judge both kinds apart.",
    )


def _exceeds(counts: Iterable[int], limit: int) -> bool:
    """True if the counts add up to more than the limit. Reads no further than needed."""
    total = 0
    for count in counts:
        total += count
        if total > limit:
            return True
    return False


def _lack(keys: query_groups.ListKeys, config: WindowConfig, least: int) -> str | None:
    """The data that the logged lists lack to be split into windows by themselves; None if they carry each."""
    try:
        windows = Windows.split(keys.at, keys.user, config)
    except DataError:
        times = len(np.unique(keys.at))
        return f"with {times:,} different {'time' if times == 1 else 'times'} they cannot be split into windows"
    return _first_lack(windows, keys, least)


def split_both(lists: Lists, keys: query_groups.ListKeys, config: Config) -> Windows:
    """Windows of logged and rebuilt lists.

    By time, the logged lists are the latest, and the shares of all lists would put them all into the test window. As
    soon as they are enough for the ranker, validation and test windows to be carried, the last two are therefore cut by
    the logged lists alone: each has its share of them, and at least `lists.window_lists`. The ranker then learns from
    all rebuilt lists before, and from the other logged ones.

    lists: time and user of all query groups. keys: of the logged lists. Raises DataError for too few different times.
    """
    windows, least = Windows.split(lists.at, lists.user, config.windows), config.lists.window_lists
    at = np.sort(keys.at[keys.has_gain])
    tested, valid = (max(least, round(share * len(at))) for share in (config.windows.test, config.windows.validation))
    if len(at) < tested + valid + least:
        return windows
    later = replace(windows, validation=float(at[-tested - valid]), test=float(at[-tested]))
    in_order = later.ranker < later.validation < later.test
    return later if in_order and _first_lack(later, keys, least) is None else windows


def _first_lack(windows: Windows, keys: query_groups.ListKeys, least: int) -> str | None:
    """The data missing in the first of the windows that logged lists do not carry; None if they carry all."""
    for name in WINDOWS[1:]:
        begin, end = windows.bounds(name)
        support = Support.of(keys, keys.has_gain & (keys.at >= begin) & (keys.at < end))
        if lack := support.lack(least):
            return f"the {name} window has {lack}"
    return None


def judged_kind(lists: Lists, tested: Bool, logged: Bool, least: int) -> Kind:
    """The kind of test lists that the gate and the headline figures of the report use.

    Means over both kinds would depend on their shares. Logged lists are what users saw, so they decide as soon as they
    carry the test window; until then, the kind with more lists decides. tested, logged: bool[lists].
    """
    shown, rebuilt = tested & logged, tested & ~logged
    if Support.of(lists, shown).lack(least) is None:
        return "logged"
    return "logged" if shown.sum() > rebuilt.sum() else "rebuilt"
