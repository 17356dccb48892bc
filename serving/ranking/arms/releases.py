"""The releases of arms, loaded beside the live one, and which experiments a worker can serve."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from serving.config import ServiceConfig
from serving.experiments import ExperimentTable
from serving.ranking.follower import Follower
from serving.ranking.live import Live
from serving.store import Pointer


class ArmReleases:
    """The releases of the experiments that have not ended, each with item state that follows the events.

    A release that is live already is not loaded again. An experiment is served only if every release of its arms is
    loaded: otherwise nobody is in it, since the arms would no longer have their shares.
    """

    def __init__(
        self, config: ServiceConfig, table: ExperimentTable, follower: Follower, clock: Callable[[], float]
    ) -> None:
        """follower: of the live release. clock: returns Unix seconds."""
        self._table, self._main, self._clock = table, follower, clock
        releases = frozenset[str]().union(*(one.releases for one in config.experiments.values()))
        self._followers = {release: follower.of_arm(self._pointer_of(release)) for release in sorted(releases)}

    def _pointer_of(self, release: str) -> Callable[[], Pointer | None]:
        def pointer() -> Pointer | None:
            main = self._main.live
            if main is None or main.release.id == release or not self._wanted(release):
                return None
            return Pointer(release, str(main.release.path.parent / release))

        return pointer

    def _wanted(self, release: str) -> bool:
        now = self._clock()
        return any(release in one.config.releases and now < one.end for one in self._table.experiments)

    def live_of(self, release: str) -> Live | None:
        """A release, None while it is not loaded."""
        main = self._main.live
        return main if main is not None and main.release.id == release else self._followers[release].live

    @property
    def reads_attributes(self) -> bool:
        """True if attributes of users are features of any of these releases."""
        return any(one.live is not None and one.live.reads_attributes for one in self._followers.values())

    def usable(self, name: str) -> bool:
        """True if an experiment is not stopped, and this worker can serve all of its arms."""
        return not self._problem(name)

    def _problem(self, name: str) -> str:
        """Why an experiment is not served; empty if it is."""
        stops = self._main.stops
        if stops is not None and (stop := stops.stops.stopped.get(name)) is not None:
            return f"stopped by {stop.by} at {datetime.fromtimestamp(stop.at, UTC):%Y-%m-%d %H:%M:%S} UTC"
        for release in (None, *self._table.by_name[name].config.releases):
            live = self._main.live if release is None else self.live_of(release)
            if live is None:
                return "no release is loaded" if release is None else self._why_not_loaded(release)
            if why := live.arms.set_aside.get(name):
                return f"release {live.release.id} cannot serve it: {why}"
        return ""

    def _why_not_loaded(self, release: str) -> str:
        return self._followers[release].reason or f"release {release} is not loaded yet"

    def states(self, at: float) -> dict[str, str]:
        """State of each experiment by its name: that it runs, or why not. at: Unix seconds."""
        return {
            one.name: self._problem(one.name)
            or ("has ended" if at >= one.end else "has not started" if at < one.start else "running")
            for one in self._table.experiments
        }

    async def run(self) -> None:
        """Follow all releases until cancelled."""
        await asyncio.gather(*(one.run() for one in self._followers.values()))

    async def started(self, most_s: float = 60.0) -> None:
        """Wait until the releases are loaded, or cannot be."""
        if self._followers:
            with suppress(TimeoutError):
                async with asyncio.timeout(most_s):
                    await asyncio.gather(*(one.started.wait() for one in self._followers.values()))
