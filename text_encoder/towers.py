"""Trainable parts of an encoder: a projection of cached vectors, or the upper layers on cached activations.

A tower returns the vectors of items and propagates their gradient to its parameters. The training loop in `trainer.py`
only uses this interface. On a CPU, almost all of the time is spent on forward and backward passes over texts. A tower
therefore encodes each distinct item once per batch, and runs the layers below the trained ones only once.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from features.arrays import F32, I64
from text_encoder.encoder import Encoder, HiddenLayer
from text_encoder.errors import EncoderError
from text_encoder.group import ALONE, Group, own_rows, sum_gradients
from text_encoder.lora import adapt, merge

CPU_BATCH = 32
"""Larger batches are slower on a CPU, because the activations no longer fit into its cache."""
CUDA_BATCH = 512

CACHE_BYTES = 4 * 1024**3
"""Memory limit of the cached activations. If the catalogue needs more, the lower layers run in every pass."""


_INITIAL_SCALE = 3.0
"""Scale of the initial hidden layer weights. The components of unit vectors are small, so with ordinary weights all
hidden units would stay close to linear."""


class Tower(Protocol):
    """A trainable part of an encoder: vectors of items, their backward pass, and the trained encoder."""

    parameters: dict[str, Tensor]
    reads_text: bool
    """True if a backward pass needs a forward pass over the texts of the items."""

    def vectors(self, rows: I64) -> Tensor:
        """float32[m, d]: vectors of the given items. If `reads_text`, these are from the last forward pass of each."""

    def backward(self, rows: I64, gradient: Tensor) -> None:
        """Backpropagates the gradient of the items' vectors, float32[m, d], to the parameters.

        Unless `reads_text`, the items must be those of the last call of `vectors`.
        """

    def refresh(self, on_texts: Callable[[int], None]) -> Tensor:
        """float32[n, d]: current vectors of all items; 0 for an item without text."""

    def encoder(self) -> Encoder:
        """The encoder with the current parameters."""


class Projection:
    """Tower `normalize(v + v @ R + relu(v @ inner + bias) @ outer)` on cached unit vectors v.

    `R` and `outer` are initially zero, so at first the projection has no effect.
    """

    reads_text = False

    def __init__(self, base: Encoder, cached: Tensor, hidden: int, seed: int, group: Group = ALONE) -> None:
        """hidden: width of the hidden layer, 0 for a linear projection. seed: for its initial weights. group: the
        workers whose gradients are averaged."""
        self._base, self._cached, self._group = base, cached, group
        d = cached.shape[1]
        draw = torch.Generator().manual_seed(seed)
        self.parameters: dict[str, Tensor] = {"residual": torch.zeros(d, d, requires_grad=True)}
        if hidden:
            inner = torch.randn(d, hidden, generator=draw) * (_INITIAL_SCALE / math.sqrt(d))
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
        """See `Tower`. The vectors are always current."""
        self._last = self._project(self._cached[torch.from_numpy(rows)])
        return self._last.detach()

    def backward(self, rows: I64, gradient: Tensor) -> None:
        """See `Tower`."""
        self._last.backward(gradient / self._group.size)  # type: ignore[no-untyped-call]
        sum_gradients(self.parameters.values(), self._group)

    def refresh(self, on_texts: Callable[[int], None]) -> Tensor:
        """See `Tower`. Needs no pass over the texts."""
        with torch.no_grad():
            return self._project(self._cached) * (self._cached != 0).any(dim=1, keepdim=True)

    def encoder(self) -> Encoder:
        """See `Tower`."""
        weights: dict[str, F32] = {name: parameter.detach().numpy() for name, parameter in self.parameters.items()}
        matrix = np.eye(self._cached.shape[1], dtype=np.float32) + weights.pop("residual")
        return self._base.projected(matrix, HiddenLayer(**weights) if weights else None)


class _CachedLayer(nn.Module):
    """Replaces a layer below the trained ones and returns cached activations."""

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
    raise EncoderError(f"this model does not have its {count} layers in a list; use mode 'projection' or 'full'")


class _StopForward(Exception):
    """Ends a forward pass once the activations to cache are known, as the output of the upper layers is not needed."""


class UpperLayers:
    """Tower that trains the top layers of the transformer, on cached activations of the layers below, or all layers.

    The loss gives the gradient of the vectors from the last forward pass of each item. `backward` then runs a new
    forward pass over the texts, chunk by chunk, to backpropagate this gradient (as in GradCache: Gao et al., 2021).
    Memory use is that of one chunk, regardless of the batch size. The new vectors replace the old ones, so every vector
    was computed within the last epoch.
    """

    reads_text = True

    def __init__(
        self,
        base: Encoder,
        cached: Tensor,
        texts: list[str],
        n_layers: int | None,
        lora_rank: int | None = None,
        seed: int = 0,
        group: Group = ALONE,
    ) -> None:
        """n_layers: number of top layers to train, None for all layers and the word embeddings. lora_rank: if given,
        train adapters of this rank instead. group: the workers among which the texts are divided; every text always
        goes to the same worker.
        """
        self._group = group
        model = copy.deepcopy(base.model).eval()
        # Dropout stays off: with few epochs its noise does more harm than good, and runs are reproducible.
        self._encoder = replace(base, model=model)
        self._cached, self._texts = cached.clone(), texts
        self._rows = own_rows(np.array([row for row, text in enumerate(texts) if text.strip()], np.int64), group)
        transformer = self._encoder.transformer
        model.requires_grad_(False)
        self._chunk_size = CUDA_BATCH if model.device.type == "cuda" else CPU_BATCH
        self._length = np.zeros(len(texts), np.int64)
        self._length[self._rows] = self._encoder.token_counts([texts[row] for row in self._rows])
        self._cached_layer, self._hidden = _CachedLayer(), np.empty((0, 0), np.float16)
        self._n_lower, self._layers = 0, nn.ModuleList()
        if n_layers is None:
            top: nn.Module = transformer
        else:
            count = int(transformer.config.num_hidden_layers)
            if not 1 <= n_layers <= count:
                raise EncoderError(f"n_layers is {n_layers}, expected 1 to {count}, the number of layers of this model")
            self._layers, self._n_lower = _layers(transformer, count), count - n_layers
            top = nn.ModuleList(list(self._layers)[self._n_lower :])
        named = adapt(top, lora_rank, seed) if lora_rank else dict(top.named_parameters())
        self.parameters: dict[str, Tensor] = {n: p for n, p in named.items() if not n.startswith("pooler.")}
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def cache_lower_layers(self, on_texts: Callable[[int], None]) -> None:
        """Fills the cache of activations, unless all layers are trained or `CACHE_BYTES` is too small."""
        width = int(self._encoder.transformer.config.hidden_size)
        self._start = np.concatenate(([0], np.cumsum(self._length)))
        if self._n_lower == 0 or self._start[-1] * width * 2 > CACHE_BYTES:
            return
        # Half precision halves the size of the cache. It changes vectors by less than 2e-3, as checked by a test.
        hidden = np.empty((int(self._start[-1]), width), np.float16)

        def store(_: nn.Module, __: object, out: Any) -> None:
            self._cached_layer.as_tuple = isinstance(out, tuple)
            state = out[0] if self._cached_layer.as_tuple else out
            hidden[self._cache_rows(chunk)] = state[self._mask].to("cpu", torch.float16).numpy()
            raise _StopForward

        handle = self._layers[self._n_lower - 1].register_forward_hook(store)
        try:
            with torch.no_grad():
                for chunk in self._chunks(self._rows):
                    with contextlib.suppress(_StopForward):
                        self._forward(chunk)
                    on_texts(len(chunk))
        finally:
            handle.remove()
        self._hidden = hidden

    def _cache_rows(self, rows: I64) -> I64:
        """int64: cache rows of the tokens of the given items, item by item."""
        return np.concatenate([np.arange(self._start[row], self._start[row + 1]) for row in rows])

    def _chunks(self, rows: I64) -> list[I64]:
        """The items in chunks of similar length, which need little padding."""
        rows = rows[np.argsort(-self._length[rows], kind="stable")]
        return [rows[start : start + self._chunk_size] for start in range(0, len(rows), self._chunk_size)]

    def _forward(self, rows: I64) -> Tensor:
        features = self._encoder.tokens([self._texts[row] for row in rows])
        self._mask = features["attention_mask"].bool()
        if not len(self._hidden):
            return self._encoder.forward(features)
        with self._cached_activations(rows):
            return self._encoder.forward(features)

    @contextlib.contextmanager
    def _cached_activations(self, rows: I64) -> Iterator[None]:
        """Replaces the lower layers by their cached activations."""
        hidden = torch.zeros(*self._mask.shape, self._hidden.shape[1], device=self._mask.device)
        hidden[self._mask] = torch.from_numpy(self._hidden[self._cache_rows(rows)]).to(hidden)
        self._cached_layer.hidden = hidden
        lower = list(self._layers[: self._n_lower])
        for i in range(self._n_lower):
            self._layers[i] = self._cached_layer
        try:
            yield
        finally:
            for i, layer in enumerate(lower):
                self._layers[i] = layer

    def vectors(self, rows: I64) -> Tensor:
        """See `Tower`."""
        return self._cached[torch.from_numpy(rows)]

    def backward(self, rows: I64, gradient: Tensor) -> None:
        """See `Tower`. Runs a forward pass over the texts of the items."""
        index = np.full(len(self._texts), -1, np.int64)
        index[rows] = np.arange(len(rows))
        vectors = torch.zeros_like(gradient)
        for chunk in self._chunks(own_rows(rows, self._group)):
            out = self._forward(chunk)
            out.backward(gradient[torch.from_numpy(index[chunk])].to(out.device))  # type: ignore[no-untyped-call]
            vectors[torch.from_numpy(index[chunk])] = out.detach().cpu()
        self._cached[torch.from_numpy(rows)] = self._group.all_reduce(vectors)
        sum_gradients(self.parameters.values(), self._group)

    def refresh(self, on_texts: Callable[[int], None]) -> Tensor:
        """See `Tower`. Runs a forward pass over the whole catalogue, once per epoch."""
        cached = torch.zeros_like(self._cached)
        with torch.no_grad():
            for chunk in self._chunks(self._rows):
                cached[torch.from_numpy(chunk)] = self._forward(chunk).cpu()
                on_texts(len(chunk))
        self._cached = self._group.all_reduce(cached)
        return self._cached

    def refresh_s(self) -> float:
        """Estimated duration of `refresh` in seconds, from the time for the chunk of median length."""
        chunks = self._chunks(self._rows)
        if not chunks:
            return 0.0
        started = time.thread_time()
        with torch.no_grad():
            self._forward(chunks[len(chunks) // 2])
        return (time.thread_time() - started) * len(chunks)

    def encoder(self) -> Encoder:
        """See `Tower`. Adapters are merged."""
        model = copy.deepcopy(self._encoder.model)
        merge(model)
        return replace(self._encoder, model=model)
