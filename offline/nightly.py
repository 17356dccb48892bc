"""The night: from a data set to a published release, step by step, each reading and writing files of one run.

    checks -> windows -> encoder -> lists -> rows -> drift -> ranker -> evaluate -> release -> gate -> publish -> tidy

The pointer flips in `publish`. Until then nothing a shopper sees has changed. `docs/nights.md` says what each step
checks, how a night ends, and what to do then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features.custom import load as load_features
from features.log import F32, F64, I64, Kind, Lists
from features.reading import Words
from features.replay import Replay
from offline import column_slices, dataset, encoders, evaluate, evaluation, facts, guards, lists, publication
from offline.baselines import BASELINES, DEPTH
from offline.clustering import inverted_lists
from offline.columns import forget
from offline.config import Config
from offline.engine import LOCAL, Engine, Mates, cut
from offline.lists import Targets
from offline.log import LogFiles, histories
from offline.progress import OnProgress, unwatched
from offline.quarantine import DataError
from offline.rows import Asked, blocks
from offline.run import Run, Step, checksum, code, reserved, write_json
from offline.sources import BESIDE
from offline.windows import NAMES, Windows
from ranker import query_prior
from ranker.examination import examination
from ranker.train import RankerConfig, Trained, refit, train
from ranker.trees import Trees
from serving import release
from serving.manifest import MANIFEST
from serving.store import BulkStore, Pointer
from text_encoder.encoder import load
from text_encoder.text import attributes, item_texts

_DATA = ("items.parquet", "written_items.parquet", "erasures.parquet", *BESIDE)


class Night:
    """One nightly run over one data set. What several steps read is loaded once, when first asked for."""

    def __init__(
        self,
        config: Config,
        redis_url: str | None,
        learning_curve: bool = False,
        since: float | None = None,
        until: float | None = None,
        clock: Callable[[], float] = time.time,
        engine: Engine = LOCAL,
    ) -> None:
        """redis_url: where to publish; None makes the release and leaves the pointer alone.

        learning_curve: train on parts of the lists as well when evaluating. since, until: only the log from one moment
        up to, not including, the other, Unix seconds; None is all of it. clock: Unix seconds. engine: where parts of
        the work are done; what is made is the same. Raises DataError for a slice by a column that the data set, where
        it is there already, does not have.
        """
        self.since, self.until, self._clock, self.engine = since, until, clock, engine
        self.config = config
        self._redis_url = redis_url
        self.learning_curve = learning_curve
        if config.slices.columns and (config.data / "items.parquet").is_file():
            column_slices.check(config.data, self.log_files.event_columns, config.slices.columns)
        self.custom = load_features(config.features.custom)
        log = self.log_files.checksums()
        sections = config.model_dump(mode="json", include={"seed", "windows", "lists", "features", "encoder", "ranker"})
        data = {n: checksum(config.data / n) for n in _DATA if (config.data / n).exists()}
        own = [f.origin for f in self.custom]
        self.run = Run(
            config.runs,
            {
                "config": sections,
                "data": data,
                "log": log,
                "code": code(),
                "own": own,
                "since": since,
                "until": until,
                # Several together make another model of the same data; an engine by itself does not.
                **({"workers": engine.workers} if engine.workers > 1 else {}),
            },
        )

    def __call__(self) -> release.Release:
        """Do what is left to do; returns the release. Raises what a step raises, its files so far kept."""
        self.run.do(self.steps)
        return release.load(Path(self.json("release.json")["path"]), custom=self.custom)

    @property
    def steps(self) -> list[Step]:
        """The plan, in order."""
        log = ["windows.json", "encoder.json", "vectors.npy", "zero_shot.npy"]
        replayed = [*log, "lists.npz"]
        out = [
            Step(
                "checks",
                "Checking the data",
                ["statistics.json", "checks.json"],
                self._checks,
                lambda: guards.is_held_to(self, "checks.json"),
                [],
            ),
            Step("windows", "Reading the log", ["windows.json"], self._windows, reads=[]),
            Step(
                "encoder",
                "Fine-tuning the encoder",
                ["encoder", "vectors.npy", "zero_shot.npy", "encoder.json"],
                self._encoder,
                reads=["windows.json"],
            ),
            Step("lists", "Making query groups", ["lists.npz"], self._lists, reads=log),
            Step("rows", "Replaying into rows", ["rows.npy", "baselines.npy", "warm.npy"], self._rows, reads=replayed),
            Step(
                "drift",
                "Comparing features",
                ["drift.json"],
                self._drift,
                lambda: guards.is_held_to(self, "drift.json"),
                [*replayed, "rows.npy"],
            ),
            Step(
                "ranker",
                "Training the ranker",
                ["ranker.txt", "ranker.json", "valid_score.npy"],
                self._ranker,
                reads=[*replayed, "rows.npy"],
            ),
            Step(
                "evaluate",
                "Evaluating",
                ["evaluation.json", "report.html"],
                lambda p: evaluation.write(self, p),
                lambda: evaluation.is_as_asked(self),
                [*replayed, "rows.npy", "baselines.npy", "warm.npy", "ranker.txt", "ranker.json", "valid_score.npy"],
            ),
            Step(
                "release",
                "Making the release",
                ["release.json"],
                self._release,
                self._is_there,
                [*log, "encoder", "ranker.txt", "ranker.json", "lists.npz", "evaluation.json"],
            ),
        ]
        if self._redis_url is not None:
            out += [
                Step(
                    "gate",
                    "Comparing with the live one",
                    ["gate.json", "shadow.parquet"],
                    self._gate,
                    lambda: guards.is_judged(self),
                    [
                        *replayed,
                        "rows.npy",
                        "warm.npy",
                        "baselines.npy",
                        "ranker.txt",
                        "evaluation.json",
                        "release.json",
                        "drift.json",
                    ],
                ),
                Step(
                    "publish",
                    "Publishing",
                    ["published.json"],
                    self._publish,
                    self._is_live,
                    [*log, "release.json", "gate.json"],
                ),
                Step(
                    "tidy",
                    "Removing what is old",
                    ["removed.json"],
                    self._tidy,
                    reads=["published.json", "statistics.json"],
                ),
            ]
        return out

    def steps_to(self, last: str) -> list[Step]:
        """The steps up to one by name, without those that only guard what is published: what a study needs."""
        kept = [s for s in self.steps if s.name not in ("checks", "drift")]
        return kept[: [s.name for s in kept].index(last) + 1]

    @cached_property
    def log_files(self) -> LogFiles:
        """Where the log is."""
        return LogFiles.of(self.config.data, self.config.log, self.since, self.until)

    @cached_property
    def data(self) -> dataset.Dataset:
        """The data set, the log from `since` to `until`."""
        c = self.config
        return dataset.load(c.data, c.features.attributes, self.log_files, c.workspace)

    def forget(self) -> None:
        """Have what was read of the log's files leave memory."""
        histories = self.replay.histories
        forget(self.data.events, self.data.shown, histories.engagements, histories.shown)

    @cached_property
    def windows(self) -> Windows:
        """The time windows."""
        return Windows(**self.json("windows.json"))

    @cached_property
    def lists(self) -> Lists:
        """Query groups with gain, from the ranker's window on."""
        held = np.load(self.run.file("lists.npz"), allow_pickle=False)
        return Lists(**{f.name: held[f.name] for f in fields(Lists)})

    @cached_property
    def replay(self) -> Replay:
        """The log with the vectors as each encoder made them; neighbours and prior made anew evenly from the ranker's
        window on, and with each encoder."""
        begin, end, refreshes = self.windows.ranker, self.windows.end, self.config.lists.refreshes
        first, last = np.searchsorted(self.data.events.at, (begin, end))
        refresh = self.data.events.at[first + (last - first) * np.arange(refreshes) // refreshes]
        moments = self.json("encoder.json")["moments"]
        revised = tuple(zip(moments, map(_and_unknown, np.load(self.run.file("vectors.npy"))), strict=True))
        return Replay(
            self.data.catalogue,
            self.zero_shot,
            self.data.events,
            np.unique(np.append(refresh, moments)),
            self.custom,
            self.config.features.session_weight,
            revised,
            self._words,
            histories(self.data.events, self.config.workspace),
        )

    @property
    def _words(self) -> Words:
        """Of titles and descriptions alone: words that name a tag because it was entered would say what is known."""
        table = self.data.items
        given = [n for n in ("title", "description") if n in table.column_names]
        columns = {n: table[n].to_pylist() for n in given}
        return Words.of(item_texts(" ".join(f"{{{n}}}" for n in given), columns))

    @cached_property
    def is_logged(self) -> bool:
        """Whether query groups come from lists that were shown, or are rebuilt."""
        e, source = self.data.shown, self.config.lists.source
        if source != "auto":
            return source == "logged"
        return any(bool(((p.kind == Kind.IMPRESSION) & (p.request >= 0) & (p.item >= 0)).any()) for p in e.parts())

    def json(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run.file(name).read_text("utf-8"))
        return found

    @property
    def zero_shot(self) -> F32:
        """float32[n + 1, d]: the items by the encoder as it came."""
        return _and_unknown(np.load(self.run.file("zero_shot.npy"), allow_pickle=False))

    @property
    def vectors(self) -> F32:
        """float32[n, d]: the items by the last encoder, the one that is served."""
        made: F32 = np.load(self.run.file("vectors.npy"), mmap_mode="r", allow_pickle=False)[-1]
        return np.array(made)

    def _windows(self, on_progress: OnProgress) -> None:
        protocol = self.config.windows.protocol
        if protocol == "leave-last-out" and self.is_logged:
            raise DataError("protocol leave-last-out ranks what retrieval offers: set lists.source to rebuilt")
        if protocol == "given-lists" and not self.is_logged:
            raise DataError("protocol given-lists takes lists that were shown: set lists.source to logged")
        found = lists.bare(self.asked())
        if self.is_logged and not len(found):
            raise DataError("no list was logged, only what people did: set lists.source to rebuilt, or to auto")
        write_json(self.run.file("windows.json"), vars(Windows.split(found.at, found.user, self.config.windows)))

    def _encoder(self, on_progress: OnProgress) -> None:
        config = self.config.encoder
        encoder = load(config.model, template=config.template, max_tokens=config.max_tokens)
        table = self.data.items
        missing: list[object] = [None] * len(table)
        columns = {
            a: table[a].to_pylist() if a in table.column_names else missing
            for a in (*table.column_names, *attributes(config.template))
        } | {"attributes": self._attribute_words()}
        texts = item_texts(config.template, columns)
        encoder = encoder.capped(texts, config.token_percentile)
        events = self.data.events
        at = encoders.moments(events, self.windows, config.refreshes)
        found = encoders.made(
            encoder, texts, events, at, config, self.run.file("checkpoints"), on_progress, self.engine
        )
        found.encoder.save(self.run.file("encoder"))
        np.save(self.run.file("vectors.npy"), found.vectors, allow_pickle=False)
        np.save(self.run.file("zero_shot.npy"), found.zero_shot, allow_pickle=False)
        write_json(self.run.file("encoder.json"), found.facts)

    def _attribute_words(self) -> list[str | None]:
        """Each item's tags and texts beyond the standard columns, as words: what `{attributes}` in a template reads."""
        c = self.data.catalogue
        of_item = [c.tag_names[t].split("=", 1)[1] for t in c.tag.tolist()]
        return [", ".join(of_item[a:b]) or None for a, b in pairwise(c.tag_start[: len(c) + 1].tolist())]

    def _lists(self, on_progress: OnProgress) -> None:
        config = self.config.lists
        found = lists.chosen(
            self._learnt_from(), self.windows.kept(lists.bare(self._learnt_from()), config.most, self.config.seed)
        )
        if not self.is_logged:
            found = lists.rebuilt(self.replay, found, config.size, on_progress, self.engine)
        arrays = {f.name: np.asarray(getattr(found, f.name)) for f in fields(Lists)}
        np.savez(self.run.file("lists.npz"), allow_pickle=False, **arrays)

    def _learnt_from(self) -> Iterator[Lists]:
        """The lists from the ranker's window on that have a gain, some at a time."""
        for part in self.asked():
            yield part.take(np.flatnonzero((part.at >= self.windows.ranker) & evaluate.lists_with_gain(part)))

    def _rows(self, on_progress: OnProgress) -> None:
        lists, n = self.lists, len(self.lists)
        made = reserved(self.run.file("rows.npy"), (lists.rows, len(self.replay.features)))
        tested, warm = self.windows.lists("test", lists), np.empty(n, bool)
        whole = self.windows.protocol == "leave-last-out"
        asked = Asked(self.replay, lists, tested, self.zero_shot, self.config.seed, whole)
        best, none = [], np.empty((0, len(BASELINES), DEPTH), np.int32)
        for block in self.engine.map(blocks, asked, cut(lists.start, self.engine.parts)):
            end = block.first + len(block.warm)
            made[lists.start[block.first] : lists.start[end]] = block.rows
            warm[block.first : end] = block.warm
            best.append(block.best)
            self.forget()
            on_progress(end, n)
        made.flush()
        np.save(self.run.file("baselines.npy"), np.concatenate([none, *best]), allow_pickle=False)
        np.save(self.run.file("warm.npy"), warm, allow_pickle=False)

    def part(self, *windows: str, among: I64 | None = None) -> tuple[F32, Lists, I64]:
        """Rows and lists of some windows, and the numbers of their lists; only those of `among`, if given."""
        each = {window: self.windows.lists(window, self.lists) for window in windows}
        for window, numbers in each.items():
            if not len(numbers):
                raise DataError(
                    f"no list with a click or purchase falls into the {window} window: "
                    f"give it a larger share in `windows`, or import a longer log"
                )
        which: I64 = np.sort(np.concatenate(list(each.values())))
        if among is not None:
            which = np.intersect1d(which, among)
        inside = np.isin(np.arange(len(self.lists)), which)[self.lists.group]
        made: F32 = np.load(self.run.file("rows.npy"), mmap_mode="r", allow_pickle=False)
        return made[inside], self.lists.take(which), which

    def _ranker(self, on_progress: OnProgress) -> None:
        trained, valid_score = self.trained(on_progress=on_progress)
        self.run.file("ranker.txt").write_text(trained.model_text, "utf-8")
        np.save(self.run.file("valid_score.npy"), valid_score, allow_pickle=False)
        about = {f.name: f.about for f in self.replay.features}
        write_json(
            self.run.file("ranker.json"),
            {
                "trees": trained.best_iteration,
                "curve": trained.valid_curve,
                "refit": self.config.ranker.refit,
                "lists": trained.lists,
                "validation_lists": trained.valid_lists,
                "importance": [[name, about[name], gain] for name, gain in trained.importance.items()],
            },
        )

    def trained(
        self,
        among: I64 | None = None,
        changed: RankerConfig | None = None,
        kept: I64 | None = None,
        on_progress: OnProgress | None = None,
    ) -> tuple[Trained, F64]:
        """The ranker, and float64[rows], what the one that validation chose scores validation by, not having seen it.

        among: numbers of the lists it may learn from, all if None; validation chooses by all of its own. changed:
        settings instead of the night's. kept: numbers of the features it may read, ascending, all if None; the model
        then counts among these.
        """
        config, every = changed or self.config.ranker, [f.name for f in self.replay.features]
        if not self.is_logged:
            # Nobody saw a rebuilt list, so it has no positions to be biased by.
            config = config.model_copy(update={"position_debias": False})
        use = np.arange(len(every)) if kept is None else kept
        columns = [every[k] for k in use]
        x, learnt, _ = self.part("ranker", among=among)
        x_valid, valid, _ = self.part("validation")
        searched = sum(map(bool, learnt.query))
        x, x_valid = (query_prior.hidden(part, every, searched) for part in (x, x_valid))
        seen = looked_at(x, learnt, valid, every) if config.position_debias else None
        x, x_valid = (x, x_valid) if kept is None else (x[:, use], x_valid[:, use])
        lesson = {
            "rows": x,
            "gain": learnt.gain,
            "start": learnt.start,
            "valid_rows": x_valid,
            "valid_gain": valid.gain,
            "valid_start": valid.start,
            "names": columns,
            "config": config,
            "position": learnt.position if config.position_debias else None,
            "valid_looked_at": seen,
        }
        watched = on_progress or unwatched
        chosen = self.engine.train("lightgbm", _chosen, lesson, watched)
        valid_score = Trees.parse(chosen.model_text).score(x_valid)
        if not config.refit:
            return chosen, valid_score
        del x, x_valid, lesson
        x, learnt, _ = self.part("ranker", "validation", among=among)
        x = query_prior.hidden(x, every, searched)
        lesson = {
            "trained": chosen,
            "rows": x if kept is None else x[:, use],
            "gain": learnt.gain,
            "start": learnt.start,
            "names": columns,
            "config": config,
            "position": learnt.position if config.position_debias else None,
        }
        return self.engine.train("lightgbm", _grown_anew, lesson, watched), valid_score

    def looked_at(self, of: Lists, targets: Targets) -> F64:
        """float64[targets]: the chance that each was looked at where it stood; 1 where lists have no positions."""
        if not (self.is_logged and self.config.ranker.position_debias):
            return np.ones(len(targets.of))
        x, learnt, _ = self.part("ranker")
        # Of lists that were shown, the targets are their rows with a gain, in order.
        return looked_at(x, learnt, of, [f.name for f in self.replay.features])[of.gain > 0]

    def asked(self) -> Iterator[Lists]:
        """Every list that was logged, or a basket for which one is to be rebuilt, some at a time, in order of time."""
        if self.is_logged:
            return lists.logged_parts(self.data.shown, self.config.lists.attribution_s)
        return lists.basket_parts(self.data.events, -np.inf)

    def targets(self, tested: Lists) -> Targets:
        """What was engaged with in test lists."""
        if self.is_logged:
            return lists.targets(tested, tested)
        names = set(tested.request_ids)
        parts = lists.basket_parts(self.data.events, float(tested.at.min()))
        kept = (p.take(np.array([g for g, r in enumerate(p.request_ids) if r in names], np.int64)) for p in parts)
        return lists.targets(tested, lists.joined(kept))

    def window_facts(self) -> dict[str, Any]:
        # The last encoder, and a ranker grown anew, learn from more than their windows: from all before the test.
        until = {"encoder": self.json("encoder.json")["moments"][-1]}
        if self.config.ranker.refit:
            until["ranker"] = self.windows.bounds("validation")[1]
        return {
            name: {
                "from": facts.iso(self.windows.bounds(name)[0]),
                "to": facts.iso(until.get(name, self.windows.bounds(name)[1])),
                "lists": len(self.windows.lists(name, self.lists)) if name != "encoder" else None,
            }
            for name in NAMES
        }

    def _release(self, on_progress: OnProgress) -> None:
        encoder, judged, vectors = self.json("encoder.json"), self.json("evaluation.json"), self.vectors
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        cut_off = self.cut_off
        path = release.write(
            self.config.releases,
            items=replace(
                self.replay.items_at(cut_off), inverted=inverted_lists(_and_unknown(vectors), self.config.seed)
            ),
            model_text=self.run.file("ranker.txt").read_text("utf-8"),
            item_columns=self.data.items.append_column("embedding", embedding),
            encoder_dir=self.run.file("encoder"),
            cut_off=cut_off,
            window=self.window_facts(),
            metrics={s: by["all"][evaluate.PRIMARY] for s, by in judged["systems"].items()},
            parent=publication.parent(self),
            # The night's own time, not the clock's: made again from the same data, it is the same to the byte.
            created_at=cut_off,
            encoder_fingerprint=encoder["fingerprint"],
        )
        write_json(self.run.file("release.json"), {"path": str(path.resolve()), "id": path.name})

    def _is_there(self) -> bool:
        return (Path(self.json("release.json")["path"]) / MANIFEST).is_file()

    def _is_live(self) -> bool:
        return self.live == str(self.json("release.json")["id"])

    @property
    def cut_off(self) -> float:
        """Just after the last event of the log: the release's item state holds everything before it."""
        return float(np.nextafter(self.data.events.at[-1], np.inf))

    def pointer(self) -> Pointer | None:
        """The live release, None where there is none or none can be."""
        if self._redis_url is None:
            return None
        with BulkStore(self._redis_url) as store:
            return store.pointer()

    @property
    def live(self) -> str | None:
        """The id of the live release."""
        pointer = self.pointer()
        return pointer.id if pointer else None

    def _checks(self, on_progress: OnProgress) -> None:
        guards.check(self, self.until if self.until is not None else self._clock())

    def _drift(self, on_progress: OnProgress) -> None:
        guards.check_features(self)

    def _gate(self, on_progress: OnProgress) -> None:
        guards.judge(self, self.pointer())

    def _publish(self, on_progress: OnProgress) -> None:
        assert self._redis_url is not None
        with BulkStore(self._redis_url) as store:
            publication.publish(self, store, on_progress)

    def _tidy(self, on_progress: OnProgress) -> None:
        assert self._redis_url is not None
        with BulkStore(self._redis_url) as store:
            publication.tidy(self, store)


def _chosen(lesson: dict[str, Any], mates: Mates, on_progress: OnProgress) -> Trained:
    """`train` by a worker."""
    return train(**lesson, on_progress=on_progress, worker=mates.rank, network=mates.network)


def _grown_anew(lesson: dict[str, Any], mates: Mates, on_progress: OnProgress) -> Trained:
    """`refit` by a worker."""
    return refit(**lesson, worker=mates.rank, network=mates.network)


def looked_at(x: F32, learnt: Lists, valid: Lists, columns: Sequence[str]) -> F64:
    """float64[rows]: the chance that each validation row was looked at, by what the ranker's lists say of its place.

    x: the rows of `learnt`, whose clicks are held against those that item and taste make expect.
    """
    odds = x[:, columns.index("taste_click_odds")].astype(np.float64)
    seen = examination(learnt.position, learnt.gain > 0, 1.0 / (1.0 + np.exp(-odds)))
    # A row nobody saw stands below all others, as it does in training.
    return seen[np.where(valid.position < 0, len(seen) - 1, np.minimum(valid.position, len(seen) - 1))]


def _and_unknown(vectors: F32) -> F32:
    """float32[n + 1, d]: vectors, and the unknown item's."""
    return np.vstack([vectors, np.full((1, vectors.shape[1]), np.nan, np.float32)])
