"""Text encoders of a nightly run, one per refresh moment, each fine-tuned on the events before its moment.

An encoder must not be trained on the label that its interest score helps to predict. But an encoder whose training
stops where the ranker's window begins misses most of the evidence in the log. So the encoder is refit at a few moments,
as the neighbours and priors are, and each row is scored by the last encoder trained before it. The last encoder is
trained on everything before the test; it is evaluated on the test lists, and it is the one that is served.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from features.arrays import F16, F32, I32
from features.log import Events
from features.retention import DEFAULT_RETENTION, Retention
from offline.data import Windows
from offline.runtime import LOCAL, Engine, OnProgress, WorkerGroup
from text_encoder.config import EncoderConfig
from text_encoder.examples import Examples, examples

if TYPE_CHECKING:
    from text_encoder.encoder import Encoder
    from text_encoder.train import FineTuned

_HALF_WEIGHT_EXAMPLES = 10.0
"""Training examples at which an item's tuned vector gets half the weight. Values from 3 to 10 performed alike on two
shops; 10 is best for the rarest items."""


class Encoders(NamedTuple):
    """Encoders of a nightly run, as returned by `train_encoders`.

    encoder: the last one. vectors: float32[k, n, d], item vectors by each of the k encoders in float16 precision, NaN
    for an item without text. word_vectors: float16[1 + k, w, d], of the words of the catalogue, by the encoder before
    fine-tuning and by each of the k; NaN for a word that was not read. facts: for the report, including the moments.
    """

    encoder: Encoder
    vectors: F32
    word_vectors: F16
    facts: dict[str, Any]


class Words(NamedTuple):
    """The words of a catalogue. base: float16[w, d], their base vectors (`Encoder.base_vectors`); NaN if not read."""

    names: Sequence[str]
    base: F16


def refresh_moments(events: Events, windows: Windows, refreshes: int) -> list[float]:
    """Moments at which an encoder is trained: Unix seconds, ascending.

    The first is the start of the ranker's window. `refreshes` later ones follow, with equal numbers of events between
    them; the last is the start of the test. With leave-last-out, where test lists occur throughout the log, they are
    spread up to the end of the log, and the start of the test is added. Equal moments are merged.
    """
    if not refreshes:
        return [windows.ranker]
    until = windows.end if windows.protocol == "leave-last-out" else windows.test
    first, last = np.searchsorted(events.at, (windows.ranker, until)).tolist()
    inner = events.at[first + (last - first) * np.arange(1, refreshes) // refreshes].tolist() if last > first else []
    return sorted({windows.ranker, windows.test, *inner})


def train_encoders(
    encoder: Encoder,
    texts: Sequence[str],
    zero_shot: F32,
    words: Words,
    events: Events,
    at: Sequence[float],
    config: EncoderConfig,
    directory: Path,
    on_progress: OnProgress,
    engine: Engine = LOCAL,
    retention: Retention = DEFAULT_RETENTION,
) -> Encoders:
    """Fine-tune `encoder` once for each moment `at`, on the events strictly before it.

    texts: one per item of the catalogue. zero_shot: float32[n, d], their vectors by `encoder`, NaN for an item without
    text. words: of the catalogue. directory: for checkpoints, from which a killed nightly run resumes. The vectors are
    shrunk by `shrink_by_count`. `config.budget_s` covers all encoders: it is divided in proportion to the numbers of
    examples. retention: of the users' histories.
    """
    # A frozen encoder is the same at every moment.
    moments = at[-1:] if config.mode == "frozen" else at
    example_sets = [examples(events, moment, most=config.most_examples, retention=retention) for moment in moments]
    job = EncoderJob(encoder, texts, zero_shot, words, example_sets, config, directory)
    tuned, word_vectors = zip(*engine.train("torch", _fine_tune, job, on_progress), strict=True)
    vectors = np.stack(
        [shrink_by_count(t.vectors, t.zero_shot, part.target) for t, part in zip(tuned, example_sets, strict=True)]
    )
    # As stored in Redis, so that a release, its Parquet file and Redis hold the same vectors.
    vectors = vectors.astype(np.float16).astype(np.float32)
    if len(tuned) < len(at):
        vectors, word_vectors = np.repeat(vectors, len(at), axis=0), word_vectors * len(at)
    of_words = np.stack([_word_vectors(encoder, words, encoder), *word_vectors])
    return Encoders(tuned[-1].encoder, vectors, of_words, _facts(tuned, example_sets, at, config))


class EncoderJob(NamedTuple):
    """Input shared by the training workers.

    example_sets: one for each encoder. The rest as in `train_encoders`.
    """

    encoder: Encoder
    texts: Sequence[str]
    zero_shot: F32
    words: Words
    example_sets: Sequence[Examples]
    config: EncoderConfig
    directory: Path


def _fine_tune(job: EncoderJob, workers: WorkerGroup, on_progress: OnProgress) -> list[tuple[FineTuned, F16]]:
    """One result for each of `job.example_sets`, and the word vectors by its encoder.

    Only the last includes its encoder; the others are not needed.
    """
    from text_encoder.group import ALONE, Workers
    from text_encoder.train import fine_tune

    started, tuned, words = time.thread_time(), [], []
    group = Workers() if workers.size > 1 else ALONE
    for k, part in enumerate(job.example_sets):
        left_s = max(job.config.budget_s - (time.thread_time() - started), 1.0)
        share = (len(part) + 1) / sum(len(later) + 1 for later in job.example_sets[k:])
        config = job.config.model_copy(update={"budget_s": left_s * share})

        def advance(done: int, total: int, k: int = k) -> None:
            on_progress(int(1000 * (k + done / max(total, 1))), 1000 * len(job.example_sets))

        tuned.append(fine_tune(job.encoder, job.texts, part, config, job.directory, advance, job.zero_shot, group))
        words.append(_word_vectors(tuned[-1].encoder, job.words, job.encoder))
        if k + 1 < len(job.example_sets):
            tuned[-1] = replace(tuned[-1], encoder=job.encoder)
    return list(zip(tuned, words, strict=True))


def _word_vectors(encoder: Encoder, words: Words, untrained: Encoder) -> F16:
    """float16[w, d]: vectors of words by an encoder. Only one whose layers were trained reads the words again."""
    if encoder.base_fingerprint == untrained.base_fingerprint:
        vectors = encoder.from_base(words.base.astype(np.float32))
    else:
        read: list[bool] = np.asarray(np.isfinite(words.base).all(axis=1)).tolist()
        vectors = encoder.encode([name if known else "" for name, known in zip(words.names, read, strict=True)])
    return vectors.astype(np.float16)


def shrink_by_count(tuned: F32, zero_shot: F32, target: I32) -> F32:
    """float32[n, d], unit length: tuned vectors shrunk towards the zero-shot vectors by example count.

    `normalise((1 - s) * zero_shot + s * tuned)` with s = k / (k + `_HALF_WEIGHT_EXAMPLES`), where k is the number of
    examples that have the item as their target: for an item that was never a target, the tuned vector is a guess.
    tuned, zero_shot: float32[n, d], unit length, NaN for an item without text, which stays NaN. target:
    int32[examples], row numbers of the two.
    """
    count = np.bincount(target, minlength=len(tuned)).astype(np.float32)[:, None]
    mixed = zero_shot + (tuned - zero_shot) * (count / (count + np.float32(_HALF_WEIGHT_EXAMPLES)))
    length = np.linalg.norm(mixed, axis=1, keepdims=True)
    # Opposite vectors may cancel out. The mixture then has no direction, and the tuned vector is used.
    out: F32 = np.where(length == 0, tuned, mixed / np.where(length == 0, 1, length)).astype(np.float32)
    return out


def _facts(
    tuned: Sequence[FineTuned], example_sets: Sequence[Examples], at: Sequence[float], config: EncoderConfig
) -> dict[str, Any]:
    last = tuned[-1]
    return {
        "model": config.model,
        "mode": config.mode,
        "stopped_by": last.stopped_by,
        "examples": len(example_sets[-1]),
        "fingerprint": last.encoder.fingerprint,
        "best_epoch": last.best_epoch,
        "moments": list(at),
        "made": [
            {"examples": len(part), "best_epoch": t.best_epoch, "stopped_by": t.stopped_by}
            for part, t in zip(example_sets, tuned, strict=True)
        ],
        "curve": [
            {"epoch": e.epoch, "loss": e.loss, "recall@50": e.recall_at_50, "ndcg@10": e.ndcg_at_10}
            for e in last.epochs
        ],
    }
