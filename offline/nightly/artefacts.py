"""Typed access to the files of a run directory, and values derived from them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from features.arrays import F32, F64, I32, I64, Bool
from features.log import Lists
from features.replay import Replay
from features.sequence import SequenceModel
from features.text.vectors import Vectors
from features.text.vocabulary import Vocabulary
from offline.data import Windows, release_pages
from offline.evaluation import ScoredLists, served_scores
from offline.nightly.inputs import Inputs
from offline.nightly.list_source import Kind, judged_kind
from offline.nightly.run import Run
from offline.runtime import DataError, write_json
from offline.training import WindowRows, make_replay
from ranker.calibration import Outcome, OutcomeMap
from ranker.trees import Trees


class Artefacts:
    """Artefacts of one run. Files are read on first access; a step may access only the files it declares."""

    def __init__(self, inputs: Inputs, run: Run) -> None:
        self.inputs, self.run = inputs, run

    def file(self, name: str) -> Path:
        """The path of a file of the run."""
        return self.run.file(name)

    def json(self, name: str) -> dict[str, Any]:
        """The contents of a JSON file."""
        value: dict[str, Any] = json.loads(self.file(name).read_text("utf-8"))
        return value

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file atomically."""
        write_json(self.file(name), value)

    def array(self, name: str, mapped: bool = False) -> np.ndarray:
        """Load an array. mapped: memory-map it read-only."""
        array: np.ndarray = np.load(self.file(name), mmap_mode="r" if mapped else None, allow_pickle=False)
        return array

    def create_array(self, name: str, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float32]]:
        """Create a zeroed, memory-mapped float32 array whose disk space is reserved at once.

        Raises OSError if the disk is full. Without the reservation, a later write to the mapping would kill the process
        without an error message.
        """
        path = self.file(name)
        array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        with path.open("r+b") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(1, path.stat().st_size))
        return array

    def save(self, name: str, array: np.ndarray) -> None:
        """Save an array."""
        np.save(self.file(name), array, allow_pickle=False)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the catalogue, without word vectors."""
        return Vocabulary.without_vectors(self.inputs.data.catalogue)

    @cached_property
    def windows(self) -> Windows:
        """The time windows."""
        return Windows(**self.json("windows.json"))

    @cached_property
    def lists(self) -> Lists:
        """Query groups with gain, from the start of the ranker window."""
        arrays = np.load(self.file("lists.npz"), allow_pickle=False)
        return Lists(**{f.name: arrays[f.name] for f in fields(Lists)})

    @cached_property
    def logged(self) -> Bool:
        """bool[lists]: True for a logged list, False for a rebuilt one."""
        logged: Bool = np.load(self.file("lists.npz"), allow_pickle=False)["logged"]
        return logged

    def save_lists(self, lists: Lists, logged: Bool) -> None:
        """Write the query groups. logged: bool[lists], as in `logged`."""
        arrays = {f.name: np.asarray(getattr(lists, f.name)) for f in fields(Lists)}
        np.savez(self.file("lists.npz"), allow_pickle=False, logged=logged, **arrays)

    @cached_property
    def judged_kind(self) -> Kind:
        """The kind of test lists that metrics, gate and drift are of. Other test lists are evaluated apart."""
        tested = np.isin(np.arange(len(self.lists)), self.windows.lists("test", self.lists))
        return judged_kind(self.lists, tested, self.logged, self.inputs.config.lists.window_lists)

    def test_lists(self, kind: Kind) -> I64:
        """int64, ascending: numbers of the test lists of a kind."""
        numbers = self.windows.lists("test", self.lists)
        chosen: I64 = numbers[self.logged[numbers] == (kind == "logged")]
        return chosen

    @property
    def zero_shot(self) -> F32:
        """float32[n, d]: item vectors of the encoder before fine-tuning; NaN for items without text."""
        return self.array("zero_shot.npy")

    @property
    def vectors(self) -> F32:
        """float32[n, d]: item vectors of the last encoder, which is the one served."""
        return np.array(self.array("vectors.npy", mapped=True)[-1])

    @cached_property
    def replay(self) -> Replay:
        """The log as a `Replay`, with the item vectors of each encoder."""
        return make_replay(
            self.inputs.data,
            self.windows,
            self.array("vectors.npy"),
            self.zero_shot,
            self.json("encoder.json")["moments"],
            self.inputs.config,
            self.inputs.custom,
            self.array("word_vectors.npy", mapped=True),
            self.sequence_models,
        )

    @property
    def sequence_models(self) -> list[SequenceModel]:
        """The sequence model of each moment of `encoder.json`; none if none is trained."""
        with np.load(self.file("sequence.npz"), allow_pickle=False) as arrays:
            parts = [arrays[name] for name in ("weights", "code", "scale", "tower")]
        return [SequenceModel(w, Vectors(code, scale), tower) for w, code, scale, tower in zip(*parts, strict=True)]

    def save_sequence_models(self, models: Sequence[SequenceModel]) -> None:
        """Write the sequence models."""
        np.savez(
            self.file("sequence.npz"),
            allow_pickle=False,
            weights=np.array([model.weights for model in models], np.float32),
            code=np.array([model.items.code for model in models], np.int8),
            scale=np.array([model.items.scale for model in models], np.float32),
            tower=np.array([model.tower for model in models], np.float32),
        )

    def release_pages(self) -> None:
        """Drop the pages of the mapped log from this process's memory."""
        histories = self.replay.histories
        release_pages(self.inputs.data.events, self.inputs.data.shown, histories.engagements, histories.shown)

    def window_rows(self, *windows: str, among: I64 | None = None) -> WindowRows:
        """Feature rows and lists of some windows, restricted to the list numbers in `among` if given.

        Of the test window, the lists of the judged kind. Raises DataError if a window has no lists.
        """
        by_window = {
            window: self.test_lists(self.judged_kind) if window == "test" else self.windows.lists(window, self.lists)
            for window in windows
        }
        for window, numbers in by_window.items():
            if not len(numbers):
                raise DataError(
                    f"the {window} window has no list with a click or purchase; "
                    "give it a larger share in `windows`, or import a longer log"
                )
        selected: I64 = np.sort(np.concatenate(list(by_window.values())))
        return self.rows_of(selected if among is None else np.intersect1d(selected, among))

    def rows_of(self, numbers: I64) -> WindowRows:
        """Feature rows and lists with these numbers, ascending."""
        is_selected = np.isin(np.arange(len(self.lists)), numbers)[self.lists.group]
        return WindowRows(self.array("rows.npy", mapped=True)[is_selected], self.lists.take(numbers), numbers)

    def baselines_of(self, tested: I64) -> I32:
        """int32[lists, BASELINES, DEPTH]: top items of each baseline. tested: numbers of test lists, ascending."""
        chosen = np.isin(self.windows.lists("test", self.lists), tested)
        best: I32 = self.array("baselines.npy")[chosen]
        return best

    @property
    def warm(self) -> Bool:
        """bool[lists]: whether the user had engaged with an item or seen a list before."""
        return self.array("warm.npy")

    @property
    def valid_score(self) -> F64:
        """float64[validation rows]: scores of the ranker trained without the validation window."""
        return self.array("valid_score.npy")

    def served_valid_score(self) -> F64:
        """float64[validation rows]: `published_score` as the service would have given them."""
        rows, lists, _ = self.rows_of(self.windows.lists("validation", self.lists))
        return served_scores(self.published_before_refit, rows, lists, self.published_score)

    @property
    def trees_before_refit(self) -> Trees:
        """The ranker that was not trained on the validation window, parsed."""
        return Trees.parse(self.file("before_refit.txt").read_text("utf-8"))

    @property
    def maps(self) -> dict[Outcome, OutcomeMap]:
        """The map from scores to probabilities of each outcome that has one."""
        return msgspec.convert(self.json("calibration.json")["maps"], dict[Outcome, OutcomeMap])

    def save_scored(self, scored: ScoredLists) -> None:
        """Write the scored test lists."""
        arrays = {f.name: np.asarray(getattr(scored.lists, f.name)) for f in fields(Lists)}
        np.savez(self.file("scored.npz"), allow_pickle=False, score=scored.score, warm=scored.warm, **arrays)

    @cached_property
    def scored(self) -> ScoredLists:
        """A sample of the shown test lists, with and without gain, as scored by the ranker."""
        arrays = np.load(self.file("scored.npz"), allow_pickle=False)
        lists = Lists(**{f.name: arrays[f.name] for f in fields(Lists)})
        return ScoredLists(lists, arrays["score"], arrays["warm"])

    @property
    def model_text(self) -> str:
        """The trained ranker in LightGBM's text format."""
        return self.file("ranker.txt").read_text("utf-8")

    @property
    def trees(self) -> Trees:
        """The trained ranker, parsed."""
        return Trees.parse(self.model_text)

    @property
    def published_text(self) -> str:
        """The ranker of the release, trained or a simple order, in LightGBM's text format."""
        return self.file("published.txt").read_text("utf-8")

    @property
    def published(self) -> Trees:
        """The ranker of the release, parsed."""
        return Trees.parse(self.published_text)

    @property
    def published_before_refit(self) -> Trees:
        """The ranker of the release before it was trained on the validation window; a simple order is not."""
        return self.trees_before_refit if self.simple_order is None else self.published

    @property
    def published_score(self) -> F64:
        """float64[validation rows]: scores of `published_before_refit`."""
        return self.array("published_score.npy")

    @property
    def simple_order(self) -> str | None:
        """The order of the release if its ranker is a simple order, None if it is trained."""
        order: str | None = self.json("choice.json")["simple_order"]
        return order

    @property
    def release_id(self) -> str:
        """The ID of the release."""
        return str(self.json("release.json")["id"])

    @property
    def release_path(self) -> Path:
        """The directory of the release."""
        return Path(self.json("release.json")["path"])
