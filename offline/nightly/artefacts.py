"""Artefacts of a nightly run: the files of its directory, typed, and what is derived from them."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import F32, F64, I32, I64, Bool
from features.log import Lists
from features.replay import Replay
from offline.data import Windows, release_pages
from offline.nightly.inputs import Inputs
from offline.nightly.run import Run
from offline.runtime import DataError, write_json
from offline.training import WindowRows, make_replay
from ranker.trees import Trees


class Artefacts:
    """What one run has made so far. Files are read when first asked for; a step may ask only for what it declares."""

    def __init__(self, inputs: Inputs, run: Run) -> None:
        self.inputs, self.run = inputs, run

    def file(self, name: str) -> Path:
        """The path of a file of the run."""
        return self.run.file(name)

    def json(self, name: str) -> dict[str, Any]:
        """The contents of a JSON file."""
        found: dict[str, Any] = json.loads(self.file(name).read_text("utf-8"))
        return found

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file, whole or not at all."""
        write_json(self.file(name), value)

    def array(self, name: str, mapped: bool = False) -> np.ndarray:
        """An array of the run. mapped: read from the disk page by page, read-only."""
        found: np.ndarray = np.load(self.file(name), mmap_mode="r" if mapped else None, allow_pickle=False)
        return found

    def create_array(self, name: str, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float32]]:
        """float32[shape], memory-mapped and zero: a new file whose place on the disk is taken at once.

        Raises OSError where there is no room; a mapping that finds none later would kill the process without a word.
        """
        path = self.file(name)
        made = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        with path.open("r+b") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(1, path.stat().st_size))
        return made

    def save(self, name: str, array: np.ndarray) -> None:
        """Write an array."""
        np.save(self.file(name), array, allow_pickle=False)

    @cached_property
    def windows(self) -> Windows:
        """The time windows."""
        return Windows(**self.json("windows.json"))

    @cached_property
    def lists(self) -> Lists:
        """Query groups with gain, from the ranker's window on."""
        held = np.load(self.file("lists.npz"), allow_pickle=False)
        return Lists(**{f.name: held[f.name] for f in fields(Lists)})

    def save_lists(self, lists: Lists) -> None:
        """Write the query groups."""
        arrays = {f.name: np.asarray(getattr(lists, f.name)) for f in fields(Lists)}
        np.savez(self.file("lists.npz"), allow_pickle=False, **arrays)

    @property
    def zero_shot(self) -> F32:
        """float32[n, d]: item vectors of the encoder before fine-tuning, NaN without text."""
        return self.array("zero_shot.npy")

    @property
    def vectors(self) -> F32:
        """float32[n, d]: item vectors of the last encoder, the one that is served."""
        return np.array(self.array("vectors.npy", mapped=True)[-1])

    @cached_property
    def replay(self) -> Replay:
        """The log, ready to be replayed with the vectors of each encoder."""
        return make_replay(
            self.inputs.data,
            self.windows,
            self.array("vectors.npy"),
            self.zero_shot,
            self.json("encoder.json")["moments"],
            self.inputs.config,
            self.inputs.custom,
        )

    def release_pages(self) -> None:
        """Let pages of the mapped log leave this process's memory."""
        histories = self.replay.histories
        release_pages(self.inputs.data.events, self.inputs.data.shown, histories.engagements, histories.shown)

    def window_rows(self, *windows: str, among: I64 | None = None) -> WindowRows:
        """Rows and lists of some windows; only lists whose numbers are in `among`, if given.

        Raises DataError for a window without a list.
        """
        each = {window: self.windows.lists(window, self.lists) for window in windows}
        for window, numbers in each.items():
            if not len(numbers):
                raise DataError(
                    f"no list with a click or purchase falls into the {window} window: "
                    "give it a larger share in `windows`, or import a longer log"
                )
        which: I64 = np.sort(np.concatenate(list(each.values())))
        if among is not None:
            which = np.intersect1d(which, among)
        inside = np.isin(np.arange(len(self.lists)), which)[self.lists.group]
        return WindowRows(self.array("rows.npy", mapped=True)[inside], self.lists.take(which), which)

    @property
    def baselines(self) -> I32:
        """int32[test lists, BASELINES, DEPTH]: the items each baseline puts first."""
        return self.array("baselines.npy")

    @property
    def warm(self) -> Bool:
        """bool[lists]: whether anything was known of the user."""
        return self.array("warm.npy")

    @property
    def valid_score(self) -> F64:
        """float64[validation rows]: scores by the ranker that had not seen validation."""
        return self.array("valid_score.npy")

    @property
    def model_text(self) -> str:
        """The ranker, as LightGBM writes it."""
        return self.file("ranker.txt").read_text("utf-8")

    @property
    def trees(self) -> Trees:
        """The ranker."""
        return Trees.parse(self.model_text)

    @property
    def release_id(self) -> str:
        """The id of the release."""
        return str(self.json("release.json")["id"])

    @property
    def release_path(self) -> Path:
        """The directory of the release."""
        return Path(self.json("release.json")["path"])
