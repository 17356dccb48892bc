"""The text encoders of a night: one for each stretch of the log, each fine-tuned on what came before its stretch.

An interest score must not be a label the encoder was told, yet an encoder that stops learning where the ranker begins
knows a fraction of what there is to know. So it is made anew at a few moments, as neighbours and priors are: a row is
scored by the last one made before it, and the last of all, made before the test, is judged there and served.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from features.arrays import F32, I32
from features.log import Events
from offline.data import Windows
from offline.runtime import LOCAL, DataError, Engine, OnProgress, WorkerGroup
from text_encoder.config import EncoderConfig
from text_encoder.encoder import Encoder
from text_encoder.examples import Examples, examples
from text_encoder.group import ALONE, Workers
from text_encoder.texts import BudgetSpent, EncodedTexts, encode_texts
from text_encoder.train import FineTuned, fine_tune
from text_encoder.trainer import Clock

_TRUSTED = 10.0
"""Examples with an item as their target at which its tuned vector counts for half. 3 to 10 did alike on two shops; the
rarest items are served best by 10."""


class Encoders(NamedTuple):
    """What came of it. encoder: the last. vectors: float32[k, n, d], the items by each, NaN without text; zero_shot:
    float32[n, d] likewise, by the encoder as it came. facts: for the report, moments among them."""

    encoder: Encoder
    vectors: F32
    zero_shot: F32
    facts: dict[str, Any]


def refresh_moments(events: Events, windows: Windows, refreshes: int) -> list[float]:
    """Ascending: the beginning of the ranker's window, and `refreshes` later ones, the last where the test begins.

    Evenly by events. With leave-last-out, where tests lie at all times, up to the end of the log.
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
    events: Events,
    at: Sequence[float],
    config: EncoderConfig,
    directory: Path,
    on_progress: OnProgress,
    engine: Engine = LOCAL,
) -> Encoders:
    """An encoder for each moment, fine-tuned from `encoder` on the events strictly before it; its vectors `shrunk`.

    texts: one an item of the catalogue. directory: of checkpoints, from which a killed night goes on. The budget is for
    all: the catalogue is read once, and what time is left is shared by numbers of examples. Raises DataError where
    reading alone takes longer.
    """
    begun = time.monotonic()
    # Frozen, all are the same.
    moments_learnt = at[-1:] if config.mode == "frozen" else at
    learnt = [examples(events, moment, most=config.most_examples) for moment in moments_learnt]
    try:
        reading = encode_texts(encoder, list(texts), directory, Clock(config.budget_s), lambda _: None, engine.map)
        left_s = max(config.budget_s - (time.monotonic() - begun), 1.0)
        asked = EncoderJob(encoder, texts, learnt, config, directory, reading, left_s)
        found = engine.train("torch", _fine_tune, asked, on_progress)
    except BudgetSpent as e:
        raise DataError(str(e)) from e
    vectors = np.stack(
        [shrink_by_count(f.vectors, f.zero_shot, part.target) for f, part in zip(found, learnt, strict=True)]
    )
    if len(found) < len(at):
        vectors = np.repeat(vectors, len(at), axis=0)
    return Encoders(found[-1].encoder, vectors, found[-1].zero_shot, _facts(found, learnt, at, config))


class EncoderJob(NamedTuple):
    """What the workers of a training share: as in `made`; what was read of the texts, and the seconds that are left."""

    encoder: Encoder
    texts: Sequence[str]
    learnt: Sequence[Examples]
    config: EncoderConfig
    directory: Path
    reading: EncodedTexts
    left_s: float


def _fine_tune(asked: EncoderJob, mates: WorkerGroup, on_progress: OnProgress) -> list[FineTuned]:
    """One for each of `asked.learnt`; all but the last without their encoder, which nobody needs."""
    begun, found = time.monotonic(), []
    group = Workers() if mates.size > 1 else ALONE
    for k, part in enumerate(asked.learnt):
        left_s = max(asked.left_s - (time.monotonic() - begun), 1.0)
        share = (len(part) + 1) / sum(len(later) + 1 for later in asked.learnt[k:])
        step = asked.config.model_copy(update={"budget_s": left_s * share})

        def advance(done: int, total: int, k: int = k) -> None:
            on_progress(int(1000 * (k + done / max(total, 1))), 1000 * len(asked.learnt))

        found.append(fine_tune(asked.encoder, asked.texts, part, step, asked.directory, advance, asked.reading, group))
    return [*(replace(f, encoder=asked.encoder) for f in found[:-1]), found[-1]]


def shrink_by_count(tuned: F32, zero_shot: F32, target: I32) -> F32:
    """float32[n, d], unit length: tuned vectors drawn back to how they came, the more the less was learnt of the item.

    `normalise((1 - s) * zero_shot + s * tuned)` with s = k / (k + `_TRUSTED`), k the examples with the item as their
    target: what a tuned map says of items it never saw chosen is a guess. tuned, zero_shot: float32[n, d], unit length,
    NaN without text, which stays. target: int32[examples], rows of the two.
    """
    count = np.bincount(target, minlength=len(tuned)).astype(np.float32)[:, None]
    mixed = zero_shot + (tuned - zero_shot) * (count / (count + np.float32(_TRUSTED)))
    length = np.linalg.norm(mixed, axis=1, keepdims=True)
    # Opposite vectors may cancel; then there is no middle, and the tuned one stands.
    out: F32 = np.where(length == 0, tuned, mixed / np.where(length == 0, 1, length)).astype(np.float32)
    return out


def _facts(
    found: Sequence[FineTuned], learnt: Sequence[Examples], at: Sequence[float], config: EncoderConfig
) -> dict[str, Any]:
    last = found[-1]
    return {
        "model": config.model,
        "mode": config.mode,
        "stopped_by": last.stopped_by,
        "examples": len(learnt[-1]),
        "fingerprint": last.encoder.fingerprint,
        "best_epoch": last.best_epoch,
        "moments": list(at),
        "made": [
            {"examples": len(part), "best_epoch": f.best_epoch, "stopped_by": f.stopped_by}
            for part, f in zip(learnt, found, strict=True)
        ],
        "curve": [
            {"epoch": e.epoch, "loss": e.loss, "recall@50": e.recall_at_50, "ndcg@10": e.ndcg_at_10}
            for e in last.epochs
        ],
    }
