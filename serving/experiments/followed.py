"""The stop switch as one worker follows it, with a copy beside the releases for workers that start without Redis."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec

from serving.copies import write_copy
from serving.experiments.stops import NO_STOPS, Stops

log = logging.getLogger(__name__)

FILE = "experiments.json"
_DECODE = msgspec.json.Decoder(Stops)
_UNKNOWN = (
    "it is not known which experiments are stopped: Redis has not answered since this worker started, and there is no "
    "copy on disk"
)


class FollowedStops:
    """The newest stops that this worker has read. While Redis is unavailable, they stay as they are.

    problem: why they may be out of date, for operators; empty if nothing is wrong.
    """

    def __init__(self) -> None:
        self.stops = NO_STOPS
        self.problem = _UNKNOWN
        self._read, self._copied, self._copy_failed = False, False, False

    def follow(self, stops: Stops | None) -> None:
        """Use what Redis has. stops: None if it did not answer."""
        if stops is None:
            if self._read:
                self._report("Redis is unavailable: experiments are stopped and resumed as when it last answered")
            return
        if self.stops.changes and not stops.changes:
            # An emptied Redis must not start an experiment that was stopped because it did harm.
            self._report("Redis has lost which experiments are stopped; those of before stay so: stop them again")
            return
        if stops != self.stops:
            names = ", ".join(stops.stopped) or "none"
            log.info("stopped experiments: %s", names)
            self._copied = False
        self.stops, self._read = stops, True
        self._report("")

    def refuse(self, problem: str) -> None:
        """Keep what is known, since what Redis has cannot be read. problem: why."""
        self._report(f"{problem}; experiments are stopped as before")

    def read_copy(self, root: Path) -> None:
        """Use the copy in a directory of releases, if Redis has not answered yet."""
        file = root / FILE
        if self._read or self.stops is not NO_STOPS or not file.is_file():
            return
        try:
            self.stops = _DECODE.decode(file.read_bytes())
        except (OSError, msgspec.MsgspecError) as e:
            log.warning("%s, which has the stopped experiments, cannot be used: %s", file, e)
            return
        self._report("Redis has not answered since this worker started: experiments are stopped as in a copy on disk")

    async def copy(self, root: Path) -> None:
        """Write the copy, if Redis has something new."""
        if self._copied or not self._read:
            return
        self._copied = True
        try:
            await asyncio.to_thread(write_copy, root / FILE, msgspec.json.encode(self.stops))
        except OSError as e:
            if not self._copy_failed:
                log.warning("%s: no copy of the stopped experiments is kept: %s", root / FILE, e)
            self._copy_failed = True

    def _report(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("%s", problem)
        self.problem = problem
