"""A nightly run: from a data set to a published release, step by step.

    checks -> windows -> texts -> encoder -> sequence -> lists -> rows -> drift -> ranker -> choice -> probabilities
           -> evaluate -> release -> gate -> publish -> tidy

Each step reads and writes files of one run directory. Shoppers see no change until `publish` moves the pointer to the
live release. `docs/nights.md` describes the checks and the gate, `docs/operations.md` the exit statuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from offline.config import Config
from offline.nightly import choice, evaluate, gate, publish, quality, steps
from offline.nightly.artefacts import Artefacts
from offline.nightly.inputs import Inputs
from offline.nightly.run import Run, Step
from offline.runtime import OnProgress
from serving.release import Release, load_release

_LOG = ("windows.json", "encoder.json", "vectors.npy", "word_vectors.npy", "zero_shot.npy", "sequence.npz")
_REPLAYED = (*_LOG, "lists.npz")
_RANKED = (*_REPLAYED, "rows.npy", "baselines.npy", "warm.npy", "ranker.txt")
_CHOSEN = ("published.txt", "published_score.npy", "choice.json")


class Night:
    """One nightly run over one data set: its plan and its artefacts."""

    def __init__(self, config: Config, redis_url: str | None = None, **options: Any) -> None:
        """See `Inputs.of` for redis_url, options, and the errors raised."""
        self.inputs = Inputs.of(config, redis_url, **options)
        self.run = Run(config.runs, self.inputs.digest)
        self.artefacts = Artefacts(self.inputs, self.run)

    def __call__(self) -> Release:
        """Run the unfinished steps and return the release. If a step raises, the files of finished steps are kept."""
        self.run.do(self.steps)
        return load_release(self.artefacts.release_path, custom=self.inputs.custom)

    @property
    def steps(self) -> list[Step]:
        """All steps, in order."""
        plan = [
            self._step(
                "checks",
                "Checking the data",
                ["statistics.json", "checks.json"],
                quality.check_data,
                [],
                partial(quality.is_current, name="checks.json"),
            ),
            self._step("windows", "Reading the log", ["windows.json"], steps.split_windows, []),
            self._step(
                "texts",
                "Reading item texts",
                ["zero_shot.npy", "words.npy", "texts.json", "text_keys.npy"],
                steps.read_item_texts,
                [],
            ),
            self._step(
                "encoder",
                "Fine-tuning the encoder",
                ["encoder", "vectors.npy", "word_vectors.npy", "encoder.json"],
                steps.train_encoders,
                ["windows.json", "zero_shot.npy", "words.npy", "texts.json"],
            ),
            self._step(
                "sequence",
                "Training the sequence model",
                ["sequence.npz"],
                steps.train_sequence_models,
                ["encoder.json", "vectors.npy"],
            ),
            self._step("lists", "Building query groups", ["lists.npz"], steps.make_query_groups, _LOG),
            self._step(
                "rows",
                "Computing feature rows",
                ["rows.npy", "baselines.npy", "warm.npy"],
                steps.replay_rows,
                _REPLAYED,
            ),
            self._step(
                "drift",
                "Checking feature drift",
                ["drift.json"],
                quality.check_features,
                [*_REPLAYED, "rows.npy"],
                partial(quality.is_current, name="drift.json"),
            ),
            self._step(
                "ranker",
                "Training the ranker",
                ["ranker.txt", "before_refit.txt", "ranker.json", "valid_score.npy"],
                steps.train_ranker,
                [*_REPLAYED, "rows.npy"],
            ),
            self._step(
                "choice",
                "Choosing the ranker to publish",
                ["published.txt", "published_score.npy", "choice.json"],
                choice.choose_ranker,
                [*_REPLAYED, "rows.npy", "warm.npy", "ranker.txt", "valid_score.npy"],
                choice.is_current,
            ),
            self._step(
                "probabilities",
                "Estimating probabilities",
                ["calibration.json", "scored.npz"],
                steps.estimate_probabilities,
                [*_REPLAYED, "rows.npy", "warm.npy", "before_refit.txt", *_CHOSEN],
            ),
            self._step(
                "evaluate",
                "Evaluating",
                ["evaluation.json", "report.html"],
                evaluate.write_evaluation,
                [*_RANKED, *_CHOSEN, "before_refit.txt", "ranker.json", "calibration.json", "scored.npz"],
                evaluate.is_current,
            ),
            self._step(
                "release",
                "Writing the release",
                ["release.json"],
                steps.make_release,
                [*_REPLAYED, "encoder", "published.txt", "choice.json", "calibration.json", "evaluation.json"],
                steps.is_released,
            ),
        ]
        if self.inputs.redis_url is not None:
            plan += [
                self._step(
                    "gate",
                    "Comparing with the live release",
                    ["gate.json", "shadow.parquet"],
                    gate.judge_release,
                    [*_RANKED, *_CHOSEN, "evaluation.json", "release.json", "drift.json"],
                    gate.is_current,
                ),
                self._step(
                    "publish",
                    "Publishing",
                    ["published.json"],
                    publish.publish,
                    [*_LOG, "release.json", "gate.json"],
                    publish.is_live,
                ),
                self._step(
                    "tidy",
                    "Removing old releases and runs",
                    ["removed.json"],
                    publish.tidy,
                    ["published.json", "statistics.json", "texts.json", "text_keys.npy"],
                ),
            ]
        return plan

    def _step(
        self,
        name: str,
        title: str,
        makes: Sequence[str],
        work: Callable[[Artefacts, OnProgress], None],
        reads: Sequence[str],
        is_current: Callable[[Artefacts], bool] | None = None,
    ) -> Step:
        done = partial(is_current, self.artefacts) if is_current else lambda: True
        return Step(name, title, makes, partial(work, self.artefacts), done, reads)

    def run_to(self, last: str) -> Artefacts:
        """Run the unfinished steps up to `last`, which is what a study needs.

        Skips the data checks, which only guard publication.
        """
        plan = [s for s in self.steps if s.name not in ("checks", "drift")]
        self.run.do(plan[: [s.name for s in plan].index(last) + 1])
        return self.artefacts

    def budget_of_last_run(self) -> float | None:
        """`encoder.budget_s` of the newest run that has a ranker and differs from this one in nothing else.

        None if there is no such run, or if this one has an encoder already.
        """
        if "encoder" in self.run.finished:
            return None
        for inputs in self.run.with_other_inputs("ranker"):
            budget = inputs["config"]["encoder"]["budget_s"]
            encoder = {**self.run.inputs["config"]["encoder"], "budget_s": budget}
            if inputs == {**self.run.inputs, "config": {**self.run.inputs["config"], "encoder": encoder}}:
                return float(budget)
        return None
