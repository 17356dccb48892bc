"""A run directory: named steps, each with the files it made; killed anywhere, it goes on after the last finished step.

The directory's name is a digest of everything the result depends on, so the same data and configuration always meet
the same directory, and other ones never do.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from offline.progress import OnProgress, bar, console


class Step(NamedTuple):
    """One step: `work` reads the files of earlier steps and writes `makes`, file or directory names in the run.

    holds: whether what it brought about outside the run is still so; a finished step of which that is not true is done
    again.
    """

    name: str
    title: str
    makes: Sequence[str]
    work: Callable[[OnProgress], None]
    holds: Callable[[], bool] = lambda: True


class Run:
    """The record of one run: which steps are finished, what they made, how long they took, how much memory."""

    def __init__(self, root: Path, inputs: Mapping[str, Any]) -> None:
        """inputs: everything the result depends on, as JSON values; its digest names the directory under `root`."""
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:12]
        self.directory = root / digest
        self.directory.mkdir(parents=True, exist_ok=True)
        self._record = self.directory / "steps.json"
        self.finished = _read(self._record)

    def file(self, name: str) -> Path:
        """The path of a file of this run."""
        return self.directory / name

    def do(self, steps: Sequence[Step]) -> None:
        """Run the steps in order, leaving out finished ones whose files are still what they made.

        From the first that is not, every later one runs again, in this call or the next. Raises what a step raises,
        and RuntimeError where a step did not make what it was to make.
        """
        done = 0
        while done < len(steps) and self._is_finished(steps[done]):
            done += 1
        if done == len(steps):
            return
        # Forgotten before the first is run: killed in between, what later steps made would be taken for up to date.
        self._remember({s.name: self.finished[s.name] for s in steps[:done]})
        for step in steps[done:]:
            begun = time.perf_counter()
            with bar(step.title) as on_progress:
                step.work(on_progress)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
            if missing := [name for name in step.makes if not self.file(name).exists()]:
                raise RuntimeError(f"step {step.name!r} is over, but {self.file(missing[0])} is not there")
            made = {name: checksum(self.file(name)) for name in step.makes}
            seconds = time.perf_counter() - begun
            self._remember({**self.finished, step.name: {"seconds": seconds, "peak_mb": peak, "made": made}})

    def _remember(self, finished: dict[str, dict[str, Any]]) -> None:
        if finished != self.finished:
            write_json(self._record, finished)
            self.finished = finished

    def _is_finished(self, step: Step) -> bool:
        made = self.finished.get(step.name, {}).get("made")
        if not isinstance(made, dict) or set(made) != set(step.makes):
            return False
        same = all(self.file(name).exists() and checksum(self.file(name)) == found for name, found in made.items())
        return same and step.holds()


def _read(record: Path) -> dict[str, dict[str, Any]]:
    """What a record holds; nothing where there is none, or where it is damaged, which is said."""
    if not record.exists():
        return {}
    try:
        found = json.loads(record.read_bytes())
        if isinstance(found, dict) and all(isinstance(step, dict) for step in found.values()):
            return found
    except ValueError:
        pass
    console.print(f"{record} is damaged: every step of the run is done again", markup=False, soft_wrap=True)
    return {}


def checksum(path: Path) -> str:
    """SHA-256 of a file, or of a directory's file names and contents."""
    digest = hashlib.sha256()
    for p in sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]:
        with p.open("rb") as f:
            digest.update(f"{p.relative_to(path)}\0{hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def code() -> str:
    """SHA-256 of our own source: another version may make other things of the same data."""
    here = Path(__file__).parent.parent
    rooms = ("features", "text_encoder", "ranker", "serving", "offline")
    digest = hashlib.sha256()
    for path in sorted(p for room in rooms for p in (here / room).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(json.dumps(value, indent=1), "utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
