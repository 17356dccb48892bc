"""The catalogue read once: a vector of every item, kept with the checkpoints, within the budget or said why not."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from features.arrays import F32
from text_encoder import checkpoint
from text_encoder.encoder import Encoder
from text_encoder.trainer import Clock

_PARTS = 10
_SMALLEST_PART = 1024

BLOCK = 512
"""Texts to a block: a whole number of batches on any device."""


class BudgetSpent(RuntimeError):
    """The catalogue could not be read within the budget, and an item without a vector cannot be ranked by its text."""


@dataclass(frozen=True)
class EncodedTexts:
    """Vectors of all items.

    vectors: float32[n, d], 0 for an item without text. readable: bool[n], which have text. seconds: reading took, in
    all runs.
    """

    vectors: Tensor
    readable: np.ndarray
    seconds: float

    def with_missing(self, vectors: Tensor) -> F32:
        """float32[n, d]: vectors of all items, NaN for one without text."""
        return np.where(self.readable[:, None], vectors.numpy(), np.float32(np.nan))


class BlockMap(Protocol):
    """How blocks of texts come to be read, here or elsewhere: what `function(shared, part)` yields, part after part."""

    def __call__(
        self, function: Callable[[Encoder, list[str]], Iterable[F32]], shared: Encoder, parts: Sequence[list[str]]
    ) -> Generator[F32, None, None]:
        """function: of a module, and pure."""


def map_serially(
    function: Callable[[Encoder, list[str]], Iterable[F32]], shared: Encoder, parts: Sequence[list[str]]
) -> Generator[F32, None, None]:
    """Reads blocks here, one after the other."""
    for part in parts:
        yield from function(shared, part)


def _encode_block(encoder: Encoder, texts: list[str]) -> Iterator[F32]:
    return encoder.batches(texts)


def encode_texts(
    encoder: Encoder,
    texts: list[str],
    directory: Path | None,
    clock: Clock | None,
    on_texts: Callable[[int], None],
    over_blocks: BlockMap = map_serially,
) -> EncodedTexts:
    """The catalogue read, longest texts first, each distinct one once; what is read is kept in `directory`, ten times.

    The catalogue is cut into blocks of whole batches, whoever reads them: so who does is in no bit of a vector. clock:
    None reads on whatever it takes. Raises `BudgetSpent` when the budget ends before the last tenth.
    """
    readable = np.array([bool(text.strip()) for text in texts], bool)
    known = list(dict.fromkeys(text for text in texts if text.strip()))
    known = [known[i] for i in np.argsort(-encoder.token_counts(known), kind="stable")]
    file = directory / f"vectors-{_digest(encoder.fingerprint, known)}.safetensors" if directory else None
    kept = checkpoint.read(file) if file else None
    # One more, of zeros, for items without text.
    vectors = kept[0]["vectors"] if kept else torch.zeros(len(known) + 1, encoder.dimension)
    held = vectors.numpy()
    done, before_s = (int(kept[1]["read"]), float(kept[1]["seconds"])) if kept else (0, 0.0)
    on_texts(done)
    watch = Clock(float("inf"))
    watch.spent_before(before_s)
    saved, tenth = done, max(_SMALLEST_PART, -(-len(known) // _PARTS))
    blocks = [known[start : start + BLOCK] for start in range(done, len(known), BLOCK)]
    with contextlib.closing(over_blocks(_encode_block, encoder, blocks)) as found:
        for batch in found:
            held[done : done + len(batch)] = batch
            done += len(batch)
            on_texts(len(batch))
            if done < len(known) and (done % BLOCK or done < saved + tenth):
                continue
            saved = done
            if file:
                checkpoint.write(file, {"vectors": vectors}, {"read": done, "seconds": watch.elapsed_s})
            # One tenth at least has been read, so calling again always gets further.
            if done < len(known) and clock and clock.over:
                raise BudgetSpent(_refusal(done, known, encoder, clock))
    row = {text: i for i, text in enumerate(known)}
    return EncodedTexts(vectors[[row.get(text, len(known)) for text in texts]], readable, watch.elapsed_s)


def _refusal(done: int, known: list[str], encoder: Encoder, clock: Clock) -> str:
    tokens = encoder.token_counts(known)
    needed = clock.elapsed_s * tokens.sum() / tokens[:done].sum()
    return (
        f"encoder.budget_s is {clock.budget_s:g}, and reading took all of it: {done:,} of {len(known):,} texts were "
        f"read in {clock.elapsed_s:.0f} s, all need about {needed:.0f} s and training comes on top; raise "
        "encoder.budget_s, lower encoder.max_tokens, or take a smaller model. Another run of the same goes on from "
        "what was read"
    )


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]
