"""A run directory: named steps, each with the files it made; killed anywhere, it goes on after the last finished step.

The directory's name is a digest of everything the result depends on, so the same data and configuration always meet
the same directory, and other ones never do. Within it a step is done again when its files are not what it made, or what
it reads is not what it read. One run at a time under one root: a lock, given back by whoever is killed.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from offline.runtime import OnProgress, checksum, console, progress_bar, write_json
from serving.lock import locked


class Step(NamedTuple):
    """One step: `work` reads `reads` and writes `makes`, file or directory names in the run.

    holds: whether what it brought about outside the run is still so; a finished step of which that is not true is done
    again. reads: None for all that earlier steps make.
    """

    name: str
    title: str
    makes: Sequence[str]
    work: Callable[[OnProgress], None]
    holds: Callable[[], bool] = lambda: True
    reads: Sequence[str] | None = None


class Planned(NamedTuple):
    """A step of a plan. done: nothing is left to do. seconds, peak_mb: what it took last time, here or in the newest
    run that has done it; None where none has."""

    name: str
    title: str
    done: bool
    seconds: float | None
    peak_mb: float | None


class Run:
    """The record of one run: which steps are finished, what they made, how long they took, how much memory."""

    def __init__(self, root: Path, inputs: Mapping[str, Any]) -> None:
        """inputs: everything the result depends on, as JSON values; its digest names the directory under `root`."""
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:12]
        self._root = root
        self.directory = root / digest
        self._record = self.directory / "steps.json"
        self.finished = _read(self._record)

    def file(self, name: str) -> Path:
        """The path of a file of this run."""
        return self.directory / name

    def do(self, steps: Sequence[Step]) -> None:
        """Run the steps in order, leaving out those that are finished: see `Step`.

        Raises Locked while another process is at work under the same root, what a step raises, and RuntimeError where
        a step did not make what it was to make.
        """
        with locked(self._root / "lock"):
            self.directory.mkdir(parents=True, exist_ok=True)
            for half in self.directory.glob(".*"):  # what a killed run was about to write
                half.unlink()
            self.finished = _read(self._record, said=True)
            sums: dict[str, str] = {}
            for step in resolve_reads(steps):
                if not self._is_finished(step, sums):
                    self._do(step, sums)

    def _do(self, step: Step, sums: dict[str, str]) -> None:
        begun = time.perf_counter()
        _reset_peak_memory()
        with progress_bar(step.title) as on_progress:
            step.work(on_progress)
        if missing := [name for name in step.makes if not self.file(name).exists()]:
            raise RuntimeError(f"step {step.name!r} is over, but {self.file(missing[0])} is not there")
        sums |= {name: checksum(self.file(name)) for name in step.makes}
        facts = {
            "seconds": time.perf_counter() - begun,
            "peak_mb": _peak_memory_mb(),
            "read": {name: self._sum(name, sums) for name in step.reads or ()},
            "made": {name: sums[name] for name in step.makes},
        }
        self.finished = {**self.finished, step.name: facts}
        write_json(self._record, self.finished)

    def plan(self, steps: Sequence[Step]) -> list[Planned]:
        """What `do` would do now, in order. Changes nothing, and takes no lock."""
        last = self._last_records()
        out: list[Planned] = []
        stale: set[str] = set()
        sums: dict[str, str] = {}
        for step in resolve_reads(steps):
            done = not stale & set(step.reads or ()) and self._is_finished(step, sums)
            stale |= set() if done else set(step.makes)
            took = next((r[step.name] for r in (self.finished, *last) if step.name in r), {})
            out.append(Planned(step.name, step.title, done, took.get("seconds"), took.get("peak_mb")))
        return out

    def _last_records(self) -> list[dict[str, dict[str, Any]]]:
        """Records of the other runs, newest first."""
        paths = [p for p in self._root.glob("*/steps.json") if p != self._record]
        return [_read(p) for p in sorted(paths, key=lambda p: p.stat().st_mtime, reverse=True)]

    def _sum(self, name: str, sums: dict[str, str]) -> str:
        """The checksum of a file of the run, computed once; empty where there is none."""
        if name not in sums:
            sums[name] = checksum(self.file(name)) if self.file(name).exists() else ""
        return sums[name]

    def _is_finished(self, step: Step, sums: dict[str, str]) -> bool:
        facts = self.finished.get(step.name, {})
        made, read = facts.get("made"), facts.get("read")
        if not isinstance(made, dict) or set(made) != set(step.makes):
            return False
        if not isinstance(read, dict) or set(read) != set(step.reads or ()):
            return False
        return all(self._sum(name, sums) == found for name, found in {**made, **read}.items()) and step.holds()


def resolve_reads(steps: Sequence[Step]) -> list[Step]:
    """The steps with what each reads named. Raises ValueError for one that reads what none before it makes."""
    out: list[Step] = []
    made: list[str] = []
    for step in steps:
        reads = tuple(made) if step.reads is None else tuple(step.reads)
        if unmade := [name for name in reads if name not in made]:
            raise ValueError(f"step {step.name!r} reads {unmade[0]!r}, which no step before it makes")
        out.append(step._replace(reads=reads))
        made += step.makes
    return out


def _reset_peak_memory() -> None:
    """Have the system count this process's peak memory from here on, where it can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_mb() -> float:
    """Peak resident memory in MB since `_forget_peak`, or of the whole process where that is all that is known."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def _read(record: Path, said: bool = False) -> dict[str, dict[str, Any]]:
    """What a record holds; nothing where there is none, or where it is damaged, which is said if asked for."""
    if not record.exists():
        return {}
    try:
        found = json.loads(record.read_bytes())
        if isinstance(found, dict) and all(isinstance(step, dict) for step in found.values()):
            return found
    except ValueError:
        pass
    if said:
        console.print(f"{record} is damaged: every step of the run is done again", markup=False, soft_wrap=True)
    return {}
