"""Reading of many texts: only those that the store lacks, with the vectors of `encode` bit for bit, also in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from text_encoder import reading
from text_encoder.batches import Batch
from text_encoder.encoder import Encoder, load
from text_encoder.reading import read_texts

TEXTS = [f"lamp number {k}" + " for the garden" * (k % 3) for k in range(40)] + ["", "lamp number 0"]


class InMemory:
    """A store in a dictionary. written: number of vectors of each write."""

    def __init__(self) -> None:
        self.vectors: dict[tuple[str, bytes], np.ndarray] = {}
        self.written: list[int] = []

    def read(self, model: str, keys: Sequence[bytes], dimension: int) -> tuple[np.ndarray, np.ndarray]:
        missing = np.full(dimension, np.nan, np.float32)
        found = [self.vectors.get((model, key), missing) for key in keys]
        return np.array(found, np.float32).reshape(-1, dimension), np.array([(model, k) in self.vectors for k in keys])

    def write(self, model: str, keys: Sequence[bytes], vectors: np.ndarray) -> None:
        self.vectors |= {(model, key): vector for key, vector in zip(keys, vectors, strict=True)}
        self.written.append(len(keys))


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return load("minilm", max_tokens=16)


@pytest.fixture(scope="module")
def full(minilm: Encoder) -> InMemory:
    """A store with all of `TEXTS`. Tests may add to it, but not count what it has."""
    store = InMemory()
    assert read_texts(minilm, TEXTS, store).read == 40
    return store


def test_only_new_and_changed_texts_are_read_and_all_vectors_are_those_of_a_reading_from_nothing(
    minilm: Encoder, full: InMemory
) -> None:
    """Two of 40 texts are changed, one is added, and one is gone: three are read."""
    texts = ["chair", "a garden chair", *TEXTS[3:], "a garden chair of wood"]
    found = read_texts(minilm, texts, full)
    assert (found.read, found.unread, full.written[-1]) == (3, 0, 3)
    np.testing.assert_array_equal(found.vectors, read_texts(minilm, texts, InMemory()).vectors)
    np.testing.assert_array_equal(found.vectors, minilm.encode(texts))
    assert np.isnan(found.vectors[texts.index("")]).all()


def test_a_projection_and_another_template_need_no_reading_and_other_weights_do(
    minilm: Encoder, full: InMemory
) -> None:
    projected = minilm.projected(np.random.default_rng(0).normal(size=(384, 384)).astype(np.float32))
    found = read_texts(projected, TEXTS, full)
    assert found.read == 0
    np.testing.assert_array_equal(found.vectors, projected.encode(TEXTS))
    other = load("minilm", template="{title}, {brand}", max_tokens=16)
    assert read_texts(other, TEXTS, full).read == 0
    weights = other.model.state_dict()
    weights["0.model.encoder.layer.0.output.dense.bias"][0] += 1e-3
    changed = Encoder(other.model, other.template, other.max_tokens)
    assert read_texts(changed, TEXTS[:2], full).read == 2


def test_with_another_maximum_only_the_texts_that_it_cuts_differently_are_read(full: InMemory) -> None:
    """From 16 tokens to 24: all other texts have less than 16 tokens."""
    long = load("minilm", max_tokens=24)
    cut = "a lamp of brass and glass for the garden, the house, the hall, the stairs and the bath"
    assert read_texts(load("minilm", max_tokens=16), [cut], full).read == 1
    assert read_texts(long, [*TEXTS, cut], full).read == 1


class Killed(Exception):
    """Simulates the end of the process."""


def killed_after(parts: int) -> reading.BatchMap:
    """A map that ends the process after some parts."""

    def over_batches(function: object, shared: Encoder, made: Sequence[list[Batch]]) -> Iterator[np.ndarray]:
        yield from reading.map_serially(reading._read_part, shared, made[:parts])
        raise Killed

    return over_batches  # type: ignore[return-value]


def test_an_interrupted_reading_keeps_what_it_has_read(minilm: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one batch: 32 of up to 16 tokens. After the first part, the rest is read."""
    monkeypatch.setattr(reading, "_PART_BATCHES", 1)
    store = InMemory()
    with pytest.raises(Killed):
        read_texts(minilm, TEXTS, store, over_batches=killed_after(1))
    first = sum(store.written)
    assert 0 < first < 40
    again = read_texts(minilm, TEXTS, store)
    assert again.read == 40 - first
    np.testing.assert_array_equal(again.vectors, minilm.encode(TEXTS))


def test_beyond_the_time_limit_texts_have_no_vector_until_the_next_reading(minilm: Encoder) -> None:
    """The texts come in the given order: the window of the last 8 is read first, as one batch."""
    store, order = InMemory(), np.arange(len(TEXTS))[::-1]
    texts = [f"lamp {k}" for k in range(len(TEXTS))]
    part = read_texts(minilm, texts, store, order=order, limit_s=0, window=8)
    assert (part.read, part.unread) == (8, len(texts) - 8)
    assert np.isfinite(part.vectors[-8:]).all()
    assert np.isnan(part.vectors[:-8]).all()
    rest = read_texts(minilm, texts, store, order=order)
    assert (rest.read, rest.unread) == (len(texts) - 8, 0)
    np.testing.assert_array_equal(rest.vectors, minilm.encode(texts))


def test_the_remaining_time_is_announced_and_progress_counts_known_texts(
    minilm: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_ESTIMATE_S", 0.0)
    store, said, progress = InMemory(), list[str](), list[tuple[int, int]]()
    read_texts(minilm, TEXTS[:10], store)
    read_texts(minilm, TEXTS, store, announce=said.append, on_progress=lambda *done: progress.append(done))
    assert said[0] == "10 of 40 texts are known; reading 30"
    assert [s.split(" takes about ")[0] for s in said[1:]] == ["10 of 30 are read; reading the remaining texts"], said
    assert progress[0] == (10, 40)
    assert progress[-1] == (40, 40)


@pytest.mark.parametrize(("seconds", "said"), [(89.4, "89 s"), (90, "2 min"), (5399, "90 min"), (9000, "2.5 h")])
def test_durations_are_rounded(seconds: float, said: str) -> None:
    assert reading._duration(seconds) == said
