"""Data quality steps of a run: checks of the data before training, and of feature drift."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from offline.nightly import checks, statistics
from offline.nightly.artefacts import Artefacts
from offline.nightly.checks import Finding
from offline.runtime import ChecksFailed, DataError, OnProgress

FINDINGS = ("checks.json", "drift.json")


def check_data(a: Artefacts, on_progress: OnProgress) -> None:
    """Write `statistics.json` and `checks.json`.

    Raises ChecksFailed if a check fails; `checks.json` is written in any case.
    """
    inputs, config = a.inputs, a.inputs.config
    now = inputs.until if inputs.until is not None else inputs.clock()
    try:
        events = inputs.data.events
        if not len(events):
            raise DataError(f"{config.data / 'events.parquet'}: no events; import a log")
    except DataError as e:
        _write(a, "checks.json", [Finding("schema", checks.STOP, str(e))])
        raise ChecksFailed(f"{checks.FAILED}\n  schema: {e}") from e
    until = inputs.until if inputs.until is not None else float(np.nextafter(events.at[-1], np.inf))
    counts = statistics.data_statistics(inputs.data, until, now + config.checks.future_s)
    previous = checks.last_statistics(config.statistics, a.run.directory.name, until)
    findings = checks.check_disk(a.run.directory, _last_bytes(a.run.directory), config.checks)
    findings += checks.check_statistics(counts, previous, config.checks, now)
    a.write_json("statistics.json", counts)
    _write(a, "checks.json", findings)
    checks.raise_if_stopped(findings, a.file("checks.json"))


def check_features(a: Artefacts, on_progress: OnProgress) -> None:
    """Write `drift.json`: the drift of each feature between the training and the test lists of the judged kind.

    Logged and rebuilt lists differ in every feature of the list. If no training list is of the judged kind, nothing is
    compared, and there is a finding. Raises ChecksFailed if too many features drifted; the file is written in any case.
    """
    numbers = a.windows.lists("ranker", a.lists)
    numbers = numbers[a.logged[numbers] == (a.judged_kind == "logged")]
    if len(numbers):
        learned, tested = a.rows_of(numbers).rows, a.window_rows("test").rows
        drift = statistics.feature_drift(learned, tested, [f.name for f in a.replay.features])
        findings = checks.check_drift(drift, a.inputs.config.checks)
    else:
        drift = {}
        findings = [Finding("feature_drift", checks.WARN, f"not checked: no training list is {a.judged_kind} yet")]
    _write(a, "drift.json", findings, drift)
    checks.raise_if_stopped(findings, a.file("drift.json"))


def is_current(a: Artefacts, name: str) -> bool:
    """True if a findings file, one of `FINDINGS`, was written with the limits of this configuration."""
    return bool(a.json(name)["limits"] == a.inputs.config.checks.model_dump(mode="json"))


def _write(a: Artefacts, name: str, findings: list[Finding], drift: dict[str, float] | None = None) -> None:
    a.write_json(
        name,
        {
            "limits": a.inputs.config.checks.model_dump(mode="json"),
            "findings": [f._asdict() for f in findings],
            **({"drift": drift} if drift is not None else {}),
        },
    )


def _last_bytes(directory: Path) -> int:
    """Size of the largest other run minus the size of this one, in bytes."""

    def size(path: Path) -> int:
        return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())

    others = [size(p) for p in directory.parent.iterdir() if p.is_dir() and p != directory]
    return max(0, max(others, default=0) - size(directory))
