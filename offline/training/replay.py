"""Builds the replay of a run: the log, the vectors of each encoder, and the moments at which statistics are refit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from features.arrays import F32
from features.moment import Feature
from features.replay import Replay
from features.sequence import SequenceModel
from features.text.implied_tags import ItemWords
from offline.config import Config
from offline.data import Dataset, Windows, user_histories
from text_encoder.text import item_texts


def make_replay(
    data: Dataset,
    windows: Windows,
    vectors: F32,
    zero_shot: F32,
    moments: Sequence[float],
    config: Config,
    custom: tuple[Feature, ...] = (),
    word_vectors: NDArray[np.floating] | None = None,
    sequence_models: Sequence[SequenceModel] = (),
) -> Replay:
    """The replay of a data set's log.

    vectors: float32[k, n, d], item vectors by the encoders trained at `moments` (Unix seconds). zero_shot:
    float32[n, d], used before the first of them. Neighbours, prior and taste factors are refit at each of `moments`,
    and `config.lists.refreshes` times at equal numbers of events from the start of the ranker's window. custom: the
    user's own features. word_vectors: float[1 + k, w, d], of the vocabulary's words by the encoder of `zero_shot` and
    by those trained at `moments`, NaN for words that were not read. sequence_models: the sequence model of each of
    `moments`; empty if there is none.
    """
    at, refreshes = data.events.at, config.lists.refreshes
    first, last = np.searchsorted(at, (windows.ranker, windows.end))
    refresh = at[first + (last - first) * np.arange(refreshes) // refreshes]
    return Replay(
        data.catalogue,
        with_unknown(zero_shot),
        data.events,
        np.unique(np.append(refresh, moments)),
        custom,
        config.features.session_weight,
        tuple(zip(moments, map(with_unknown, vectors), strict=True)),
        _title_and_description_words(data),
        user_histories(data.events, config.workspace, config.serving.retention, data.merges, data.event_key),
        config.lists.attribution_s,
        config.serving.retention,
        config.features.columns,
        config.needs_companions,
        () if word_vectors is None else tuple(word_vectors),
        tuple(zip(moments, sequence_models, strict=True)) if sequence_models else (),
    )


def with_unknown(vectors: F32) -> F32:
    """float32[n + 1, d]: the vectors and a last row of NaN for the unknown item."""
    return np.vstack([vectors, np.full((1, vectors.shape[1]), np.nan, np.float32)])


def _title_and_description_words(data: Dataset) -> ItemWords:
    """Words of titles and descriptions. Words of tags are left out: they would only repeat the tags to be implied."""
    columns = {n: data.items[n].to_pylist() for n in ("title", "description") if n in data.items.column_names}
    return ItemWords.of(item_texts(" ".join(f"{{{n}}}" for n in columns), columns))
