"""What of an encoder is trained: a projection over cached vectors, or its upper layers over cached activations.

A tower gives vectors of items and takes back their gradient; the loop in `train.py` knows no more of it. On a CPU the
text passes are the whole cost, so a tower makes few: each distinct item once a batch, and the layers below the
trained ones once in all.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from features.arrays import F32, I64
from text_encoder.encoder import CPU_BATCH, CUDA_BATCH, Bend, Encoder
from text_encoder.group import ALONE, Group, add_up, share
from text_encoder.lora import adapt, merge

CACHE_BYTES = 4 * 1024**3
"""Room for cached activations in memory; a catalogue that needs more has its lower layers run again each time."""


_SPREAD = 3.0
"""Of a hidden layer's first weights. Numbers of a unit vector are small: without it no unit would leave the linear."""


class Tower(Protocol):
    """Vectors of items, their gradient, and the encoder that comes out."""

    parameters: dict[str, Tensor]
    reads_text: bool
    """Whether a gradient costs a reading of the item's text."""

    def vectors(self, rows: I64) -> Tensor:
        """float32[m, d]: the vectors of some items; where texts are read, as of when each was read last."""

    def backward(self, rows: I64, gradient: Tensor) -> None:
        """Takes the gradient of some items' vectors, float32[m, d], down to the parameters.

        Where no text is read, these are the items that `vectors` was asked for last.
        """

    def refresh(self, on_texts: Callable[[int], None]) -> Tensor:
        """float32[n, d]: the vectors of all items, up to date; 0 for an item without text."""

    def encoder(self) -> Encoder:
        """The encoder with the parameters as they stand."""


class Projection:
    """`normalize(v + v @ R + relu(v @ inner + bias) @ outer)` over cached unit vectors.

    `R` and `outer` are zero at first: where it starts it changes nothing.
    """

    reads_text = False

    def __init__(self, base: Encoder, cached: Tensor, hidden: int, seed: int, group: Group = ALONE) -> None:
        """hidden: width of the hidden layer, 0 for a linear map. seed: of its first weights. group: whose gradients
        are averaged."""
        self._base, self._cached, self._group = base, cached, group
        d = cached.shape[1]
        draw = torch.Generator().manual_seed(seed)
        self.parameters: dict[str, Tensor] = {"residual": torch.zeros(d, d, requires_grad=True)}
        if hidden:
            inner = torch.randn(d, hidden, generator=draw) * (_SPREAD / math.sqrt(d))
            self.parameters |= {
                "inner": inner.requires_grad_(),
                "bias": torch.zeros(hidden, requires_grad=True),
                "outer": torch.zeros(hidden, d, requires_grad=True),
            }
        self._last = cached

    def _project(self, vectors: Tensor) -> Tensor:
        p = self.parameters
        out = vectors + vectors @ p["residual"]
        if "inner" in p:
            out = out + nn.functional.relu(vectors @ p["inner"] + p["bias"]) @ p["outer"]
        return nn.functional.normalize(out, dim=1)

    def vectors(self, rows: I64) -> Tensor:
        """All of them up to date: here that costs nothing."""
        self._last = self._project(self._cached[torch.from_numpy(rows)])
        return self._last.detach()

    def backward(self, rows: I64, gradient: Tensor) -> None:
        """See `Tower`."""
        self._last.backward(gradient / self._group.size)  # type: ignore[no-untyped-call]
        add_up(self.parameters.values(), self._group)

    def refresh(self, on_texts: Callable[[int], None]) -> Tensor:
        """See `Tower`; no text is read. An item without text stays 0."""
        with torch.no_grad():
            return self._project(self._cached) * (self._cached != 0).any(dim=1, keepdim=True)

    def encoder(self) -> Encoder:
        """See `Tower`."""
        found: dict[str, F32] = {name: parameter.detach().numpy() for name, parameter in self.parameters.items()}
        matrix = np.eye(self._cached.shape[1], dtype=np.float32) + found.pop("residual")
        return self._base.projected(matrix, Bend(**found) if found else None)


class _Given(nn.Module):
    """Stands in for the layers below the trained ones: hands out activations instead of computing them."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.empty(0)
        self.as_tuple = False

    def forward(self, *_: object, **__: object) -> object:
        return (self.hidden,) if self.as_tuple else self.hidden


def _layers(model: nn.Module, count: int) -> nn.ModuleList:
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"this model keeps its {count} layers in no list; train it with mode 'projection' or 'full'")


class _Enough(Exception):
    """The activations wanted have been seen; what the layers above would make of them is not needed."""


class UpperLayers:
    """The top layers of the transformer, over cached activations of those below them; all of it where none is below.

    The loss gives the gradient of vectors as they were read last; then texts are read, chunk by chunk, to take it
    further down (as GradCache does: Gao et al., 2021): memory is that of one chunk, whatever the batch. What came out
    takes the old vector's place, so no vector is older than an epoch's steps.
    """

    reads_text = True

    def __init__(
        self,
        base: Encoder,
        cached: Tensor,
        texts: list[str],
        trained: int | None,
        rank: int | None = None,
        seed: int = 0,
        group: Group = ALONE,
    ) -> None:
        """trained: layers from the top, None for all and the word embeddings. rank: train adapters of that rank.

        group: the workers that share the reading of texts, each always the same ones.
        """
        self._group = group
        model = copy.deepcopy(base.model).eval()
        # Dropout stays off: with so few passes its noise costs more than it saves, and a run repeats exactly.
        self._encoder = replace(base, model=model)
        self._cached, self._texts = cached.clone(), texts
        self._rows = share(np.array([row for row, text in enumerate(texts) if text.strip()], np.int64), group)
        transformer = self._encoder.transformer
        model.requires_grad_(False)
        self._chunk = CUDA_BATCH if model.device.type == "cuda" else CPU_BATCH
        self._length = np.zeros(len(texts), np.int64)
        self._length[self._rows] = self._encoder.token_counts([texts[row] for row in self._rows])
        self._given, self._hidden = _Given(), np.empty((0, 0), np.float16)
        self._below, self._layers = 0, nn.ModuleList()
        if trained is None:
            top: nn.Module = transformer
        else:
            count = int(transformer.config.num_hidden_layers)
            if not 1 <= trained <= count:
                raise ValueError(f"n_layers {trained}: this model has {count}; 1 to {count} can be trained")
            self._layers, self._below = _layers(transformer, count), count - trained
            top = nn.ModuleList(list(self._layers)[self._below :])
        named = adapt(top, rank, seed) if rank else dict(top.named_parameters())
        self.parameters: dict[str, Tensor] = {n: p for n, p in named.items() if not n.startswith("pooler.")}
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def read_below(self, on_texts: Callable[[int], None]) -> None:
        """Fills the cache of activations; nothing where no layer is below or there is no room for it."""
        width = int(self._encoder.transformer.config.hidden_size)
        self._start = np.concatenate(([0], np.cumsum(self._length)))
        if self._below == 0 or self._start[-1] * width * 2 > CACHE_BYTES:
            return
        # Half precision halves the cache and moves a vector's numbers by less than 2e-3, which a test holds it to.
        hidden = np.empty((int(self._start[-1]), width), np.float16)

        def keep(_: nn.Module, __: object, out: Any) -> None:
            self._given.as_tuple = isinstance(out, tuple)
            state = out[0] if self._given.as_tuple else out
            hidden[self._places(chunk)] = state[self._mask].to("cpu", torch.float16).numpy()
            raise _Enough

        handle = self._layers[self._below - 1].register_forward_hook(keep)
        try:
            with torch.no_grad():
                for chunk in self._chunks(self._rows):
                    with contextlib.suppress(_Enough):
                        self._forward(chunk)
                    on_texts(len(chunk))
        finally:
            handle.remove()
        self._hidden = hidden

    def _places(self, rows: I64) -> I64:
        """int64: where the activations of these items stand in the cache, one after another."""
        return np.concatenate([np.arange(self._start[row], self._start[row + 1]) for row in rows])

    def _chunks(self, rows: I64) -> list[I64]:
        """By length, so that padding costs little."""
        rows = rows[np.argsort(-self._length[rows], kind="stable")]
        return [rows[start : start + self._chunk] for start in range(0, len(rows), self._chunk)]

    def _forward(self, rows: I64) -> Tensor:
        features = self._encoder.tokens([self._texts[row] for row in rows])
        self._mask = features["attention_mask"].bool()
        if not len(self._hidden):
            return self._encoder.forward(features)
        with self._shortcut(rows):
            return self._encoder.forward(features)

    @contextlib.contextmanager
    def _shortcut(self, rows: I64) -> Iterator[None]:
        """The lower layers replaced by their cached activations."""
        hidden = torch.zeros(*self._mask.shape, self._hidden.shape[1], device=self._mask.device)
        hidden[self._mask] = torch.from_numpy(self._hidden[self._places(rows)]).to(hidden)
        self._given.hidden = hidden
        lower = list(self._layers[: self._below])
        for i in range(self._below):
            self._layers[i] = self._given
        try:
            yield
        finally:
            for i, layer in enumerate(lower):
                self._layers[i] = layer

    def vectors(self, rows: I64) -> Tensor:
        """See `Tower`."""
        return self._cached[torch.from_numpy(rows)]

    def backward(self, rows: I64, gradient: Tensor) -> None:
        """See `Tower`; the texts are read for it."""
        place = np.full(len(self._texts), -1, np.int64)
        place[rows] = np.arange(len(rows))
        read = torch.zeros_like(gradient)
        for chunk in self._chunks(share(rows, self._group)):
            out = self._forward(chunk)
            out.backward(gradient[torch.from_numpy(place[chunk])].to(out.device))  # type: ignore[no-untyped-call]
            read[torch.from_numpy(place[chunk])] = out.detach().cpu()
        self._cached[torch.from_numpy(rows)] = self._group.total(read)
        add_up(self.parameters.values(), self._group)

    def refresh(self, on_texts: Callable[[int], None]) -> Tensor:
        """See `Tower`; the one full pass over the catalogue an epoch costs."""
        cached = torch.zeros_like(self._cached)
        with torch.no_grad():
            for chunk in self._chunks(self._rows):
                cached[torch.from_numpy(chunk)] = self._forward(chunk).cpu()
                on_texts(len(chunk))
        self._cached = self._group.total(cached)
        return self._cached

    def encoder(self) -> Encoder:
        """See `Tower`; adapters are folded in."""
        model = copy.deepcopy(self._encoder.model)
        merge(model)
        return replace(self._encoder, model=model)
