"""A run directory: named steps and the files they make. A killed run continues after the last finished step.

The directory is named by a digest of everything the result depends on, so the same data and configuration always use
the same directory. A step runs again if its files are not what it wrote, or if its inputs are not what it read. A lock
allows one run at a time under a root; the system releases it when the process dies.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from offline.runtime import OnProgress, checksum, console, progress_bar, write_json
from serving.lock import locked

_INPUTS = "inputs.json"
"""Everything the result of a run depends on."""


class Step(NamedTuple):
    """One step: `work` reads `reads` and writes `makes`, file or directory names in the run.

    holds: returns False if the effects of the step outside the run are gone; the finished step then runs again. reads:
    None for everything that earlier steps make.
    """

    name: str
    title: str
    makes: Sequence[str]
    work: Callable[[OnProgress], None]
    holds: Callable[[], bool] = lambda: True
    reads: Sequence[str] | None = None


class Planned(NamedTuple):
    """A step of a plan. done: True if nothing is left to do.

    seconds, peak_mb: cost of the step in this run, else in the newest run that finished it; None if there is none.
    """

    name: str
    title: str
    done: bool
    seconds: float | None
    peak_mb: float | None


class Run:
    """The record of one run: finished steps with their files, durations and peak memory."""

    def __init__(self, root: Path, inputs: Mapping[str, Any]) -> None:
        """inputs: everything the result depends on, as JSON values; its digest names the directory under `root`."""
        text = json.dumps(inputs, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self._root = root
        self.inputs: dict[str, Any] = json.loads(text)
        self.directory = root / digest
        self._record = self.directory / "steps.json"
        self.finished = _read(self._record)

    def file(self, name: str) -> Path:
        """The path of a file of this run."""
        return self.directory / name

    def do(self, steps: Sequence[Step]) -> None:
        """Run the steps in order, skipping finished ones as described in `Step`.

        Raises Locked while another process runs under the same root, RuntimeError if a step does not make its files,
        and whatever a step raises.
        """
        with locked(self._root / "lock"):
            self.directory.mkdir(parents=True, exist_ok=True)
            for partial_file in self.directory.glob(".*"):  # left by a killed run
                partial_file.unlink()
            if not self.file(_INPUTS).is_file():  # the directory is named by their digest, so they never change
                write_json(self.file(_INPUTS), self.inputs)
            self.finished = _read(self._record, warn=True)
            sums: dict[str, str] = {}
            for step in resolve_reads(steps):
                if not self._is_finished(step, sums):
                    self._do(step, sums)

    def _do(self, step: Step, sums: dict[str, str]) -> None:
        start = time.perf_counter()
        _reset_peak_memory()
        with progress_bar(step.title) as on_progress:
            step.work(on_progress)
        if missing := [name for name in step.makes if not self.file(name).exists()]:
            raise RuntimeError(f"step {step.name!r} finished without writing {self.file(missing[0])}")
        sums |= {name: checksum(self.file(name)) for name in step.makes}
        facts = {
            "seconds": time.perf_counter() - start,
            "peak_mb": _peak_memory_mb(),
            "read": {name: self._sum(name, sums) for name in step.reads or ()},
            "made": {name: sums[name] for name in step.makes},
        }
        self.finished = {**self.finished, step.name: facts}
        write_json(self._record, self.finished)

    def plan(self, steps: Sequence[Step]) -> list[Planned]:
        """The steps in order, and what `do` would run now. Changes nothing, and takes no lock."""
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

    def with_other_inputs(self, step: str) -> Iterator[dict[str, Any]]:
        """The inputs of the other runs that have finished a step, newest first."""
        for path in self._other_records():
            inputs = path.with_name(_INPUTS)  # missing in runs made before inputs were stored
            if step in _read(path) and inputs.is_file():
                yield json.loads(inputs.read_text("utf-8"))

    def _last_records(self) -> list[dict[str, dict[str, Any]]]:
        """Records of the other runs, newest first."""
        return [_read(p) for p in self._other_records()]

    def _other_records(self) -> list[Path]:
        paths = [p for p in self._root.glob("*/steps.json") if p != self._record]
        return sorted(paths, key=lambda p: p.stat().st_mtime, reverse=True)

    def _sum(self, name: str, sums: dict[str, str]) -> str:
        """Checksum of a file of the run, computed once; empty if the file does not exist."""
        if name not in sums:
            sums[name] = checksum(self.file(name)) if self.file(name).exists() else ""
        return sums[name]

    def _is_finished(self, step: Step, sums: dict[str, str]) -> bool:
        facts = self.finished.get(step.name, {})
        written, read = facts.get("made"), facts.get("read")
        if not isinstance(written, dict) or set(written) != set(step.makes):
            return False
        if not isinstance(read, dict) or set(read) != set(step.reads or ()):
            return False
        return all(self._sum(name, sums) == recorded for name, recorded in {**written, **read}.items()) and step.holds()


def resolve_reads(steps: Sequence[Step]) -> list[Step]:
    """The steps with `reads` filled in. Raises ValueError for a step that reads what no earlier step makes."""
    out: list[Step] = []
    available: list[str] = []
    for step in steps:
        reads = tuple(available) if step.reads is None else tuple(step.reads)
        if missing := [name for name in reads if name not in available]:
            raise ValueError(f"step {step.name!r} reads {missing[0]!r}, which no earlier step makes")
        out.append(step._replace(reads=reads))
        available += step.makes
    return out


def _reset_peak_memory() -> None:
    """Reset the peak memory counter of this process, where the system supports it (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_mb() -> float:
    """Peak resident memory in MB since `_reset_peak_memory`, or of the whole process without that support."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def _read(record: Path, warn: bool = False) -> dict[str, dict[str, Any]]:
    """The contents of a record; empty if it is missing or damaged. warn: print a warning if it is damaged."""
    if not record.exists():
        return {}
    try:
        steps = json.loads(record.read_bytes())
        if isinstance(steps, dict) and all(isinstance(step, dict) for step in steps.values()):
            return steps
    except ValueError:
        pass
    if warn:
        console.print(f"{record} is damaged; all steps run again", markup=False, soft_wrap=True)
    return {}
