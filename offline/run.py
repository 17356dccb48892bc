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

from offline.progress import OnProgress, bar


class Step(NamedTuple):
    """One step: `work` reads the files of earlier steps and writes `makes`, file or directory names in the run."""

    name: str
    title: str
    makes: Sequence[str]
    work: Callable[[OnProgress], None]


class Run:
    """The record of one run: which steps are finished, what they made, how long they took, how much memory."""

    def __init__(self, root: Path, inputs: Mapping[str, Any]) -> None:
        """inputs: everything the result depends on, as JSON values; its digest names the directory under `root`."""
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:12]
        self.directory = root / digest
        self.directory.mkdir(parents=True, exist_ok=True)
        self._record = self.directory / "steps.json"
        self.finished: dict[str, dict[str, Any]] = {}
        if self._record.exists():
            self.finished = json.loads(self._record.read_text("utf-8"))

    def file(self, name: str) -> Path:
        """The path of a file of this run."""
        return self.directory / name

    def do(self, steps: Sequence[Step]) -> None:
        """Run the steps in order, leaving out finished ones whose files are still what they made."""
        still = True
        for step in steps:
            if still and self._is_finished(step):
                continue
            still = False
            begun = time.perf_counter()
            with bar(step.title) as on_progress:
                step.work(on_progress)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
            self.finished[step.name] = {
                "seconds": time.perf_counter() - begun,
                "peak_mb": peak,
                "made": {name: checksum(self.file(name)) for name in step.makes},
            }
            write_json(self._record, self.finished)

    def _is_finished(self, step: Step) -> bool:
        made = self.finished.get(step.name, {}).get("made")
        if made is None or set(made) != set(step.makes):
            return False
        return all(self.file(name).exists() and checksum(self.file(name)) == found for name, found in made.items())


def checksum(path: Path) -> str:
    """SHA-256 of a file, or of a directory's file names and contents."""
    digest = hashlib.sha256()
    for p in sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]:
        with p.open("rb") as f:
            digest.update(f"{p.relative_to(path)}\0{hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(value, indent=1), "utf-8")
    os.replace(aside, path)  # noqa: PTH105  # the one call that is atomic on every platform
