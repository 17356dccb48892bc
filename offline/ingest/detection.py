"""Recognises files in a known layout, which can be imported without configuration."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from offline.config import ImportConfig
from offline.ingest.presets import bind, find_preset, load_presets
from offline.ingest.reading import Peek, find_files, peek
from offline.runtime import DataError


def detect(path: Path, preset: str | None = None) -> tuple[ImportConfig, list[str]]:
    """Import configuration for a folder or file that a preset fits, and what was decided: the preset, files left out.

    preset: name of the only one to try. Raises DataError if none fits, or two fit equally well.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder.")
    folder = path if path.is_dir() else path.parent
    said: list[str] = []
    with TemporaryDirectory(prefix="shelfwise-peek-") as directory:
        peeks: list[Peek] = []
        for file in find_files(path):
            try:
                peeks += peek(file, Path(directory))
            except DataError as error:
                said.append(f"left out: {error}")
        found = find_preset(peeks, preset)
    if found is None:
        raise DataError(_unknown(path, peeks, preset, said))
    said.insert(0, f"preset {found.preset.name}: {found.preset.title}")
    others = [p for p in found.others if not _is_annotation(p)]
    said += [f"left out: {p.name} (not part of the preset)" for p in others]
    config = bind(found, folder)
    if others and not config.items:
        from_events = any(source.items_from_events for source in config.events)
        have = "only what the events tell of them" if from_events else "only their IDs"
        names = " or ".join(p.name for p in others[:3])
        said.append(
            f"no table describes the items, so they will have {have}. If {names} does, map it:"
            f" `shelfwise import {path} --suggest > shop.yaml`, then `shelfwise import --config shop.yaml`"
        )
    return config, said


def _is_annotation(found: Peek) -> bool:
    return found.source.stem in ("truth", "propensities")


def _unknown(path: Path, peeks: list[Peek], preset: str | None, said: list[str]) -> str:
    listed = "; ".join(f"{p.name} ({', '.join(list(p.columns)[:8])})" for p in peeks[:12]) or "nothing"
    what = f"the preset {preset} does not fit" if preset else "no preset fits"
    reasons = "".join(f" {text}." for text in said[:3])
    names = ", ".join(p.name for p in load_presets())
    return (
        f"{path}: {what} (found: {listed}).{reasons} Presets: {names}."
        f" For other files, `shelfwise import {path} --suggest > shop.yaml` suggests a mapping. Review it, then run"
        " `shelfwise import --config shop.yaml`."
    )
