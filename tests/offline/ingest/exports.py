"""Imports small exports that are written in the tests, with the preset that their shape selects."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import yaml

from offline.data import imported
from offline.ingest.detection import detect
from offline.ingest.importer import ImportSummary, import_data

NOW = datetime(2026, 6, 1, tzinfo=UTC)


class Imported(NamedTuple):
    """A data set. items and users: by ID. rows: the events.

    events: (kind, user, item, value) in the order of time. left_out and quarantined: counts by reason of all tables.
    """

    preset: str
    items: Mapping[str, Mapping[str, Any]]
    users: Mapping[str, Mapping[str, Any]]
    rows: list[dict[str, Any]]
    summary: ImportSummary

    @property
    def events(self) -> list[tuple[str, str, str, float | None]]:
        return [(r["event"], r["user_id"], r["item_id"], r["value"]) for r in self.rows]

    @property
    def left_out(self) -> dict[str, int]:
        return dict(sum((Counter(source.left_out) for source in self.summary.sources), Counter[str]()))

    @property
    def quarantined(self) -> dict[str, int]:
        return dict(sum((Counter(source.quarantined) for source in self.summary.sources), Counter[str]()))


def lines(*records: Mapping[str, Any]) -> str:
    """Records as JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in records)


def import_export(folder: Path, files: Mapping[str, str | bytes]) -> Imported:
    """Import files, given as name to contents, as `shelfwise import FOLDER` does."""
    source, to = folder / "export", folder / "data"
    source.mkdir()
    for name, text in files.items():
        (source / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    config, said = detect(source)
    # What `--suggest` prints of a preset is the preset.
    assert type(config).model_validate(yaml.safe_load(yaml.safe_dump(dict(config.to_mapping())))) == config
    summary = import_data(config, to, NOW)

    def table(name: str) -> list[dict[str, Any]]:
        return pq.read_table(to / name).to_pylist() if (to / name).exists() else []

    return Imported(
        said[0].removeprefix("preset ").split(":")[0],
        {row["item_id"]: row for row in table("items.parquet")},
        {row["user_id"]: row for row in table(imported.PROFILES_FILE)},
        table("events.parquet"),
        summary,
    )
