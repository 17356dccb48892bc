"""The sequence model in torch, for training; `features.sequence` serves its weights.

An item is its text vector through a small network, plus an embedding of its ID that counts the more, the more often the
item was seen. In training the ID is dropped at random, so that the text alone has to place items that are new.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from features.arrays import F32
from features.sequence import AGES, HEADS, INNER, KINDS, LAYOUT, LENGTH, SCALE, TOWER, WIDTH, SequenceModel
from features.text.vectors import Vectors

_ID_SCALE = 2.4
"""Factor of the ID embedding next to the unit vector from the text."""
_DROPPED_IDS = 0.3
"""Share of the items of a batch that are read by their text alone."""
_DROPOUT = 0.3
_PART = 65_536
"""Items whose embeddings are computed at a time."""
_TOWER_PARTS = ("tower", "tower_in", "tower_bias", "tower_out")


class SequenceNetwork(nn.Module):
    """Embeddings of items, and one causal transformer block over the engagements of users."""

    def __init__(self, vectors: F32, seed: int) -> None:
        """vectors: float32[n, d], text vectors of items, NaN for an item without text."""
        super().__init__()
        draw = torch.Generator().manual_seed(seed)

        def matrix(rows: int, columns: int, deviation: float | None = None) -> nn.Parameter:
            scale = 1 / math.sqrt(rows) if deviation is None else deviation
            return nn.Parameter(torch.randn(rows, columns, generator=draw) * scale)

        def layer(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.cat((matrix(rows, columns).detach(), torch.zeros(1, columns))))

        n, d = vectors.shape
        self.tower, self.tower_in = matrix(d, WIDTH), matrix(d, TOWER)
        self.tower_bias, self.tower_out = nn.Parameter(torch.zeros(TOWER)), nn.Parameter(torch.zeros(TOWER, WIDTH))
        self.id = matrix(n, WIDTH, 0.02)
        self.kind = matrix(KINDS, WIDTH, 0.02)
        self.query, self.key_value, self.output = matrix(WIDTH, WIDTH), matrix(WIDTH, 2 * WIDTH), matrix(WIDTH, WIDTH)
        self.distance, self.age = nn.Parameter(torch.zeros(HEADS, LENGTH)), nn.Parameter(torch.zeros(HEADS, AGES))
        self.inner, self.outer = layer(WIDTH, INNER), layer(INNER, WIDTH)
        norm = torch.stack((torch.ones(WIDTH), torch.zeros(WIDTH)))
        self.norm1, self.norm2, self.norm3 = (nn.Parameter(norm.clone()) for _ in range(3))
        self.direction = nn.Parameter(torch.eye(WIDTH))
        self.use(vectors, np.zeros(n, np.float32))

    def use(self, vectors: F32, id_share: F32) -> None:
        """Set the text vectors, float32[n, d], and how much the ID of each item counts, float32[n], 0 to 1.

        Vectors are read by batch, so they may be in a mapped file.
        """
        self.vectors = vectors
        self.id_share = torch.from_numpy(id_share.astype(np.float32))[:, None]

    def optimizers(self, rate: float) -> list[torch.optim.Optimizer]:
        """Adam. Of the IDs, only those of a batch are updated: a catalogue may have a million."""
        others = [parameter for name, parameter in self.named_parameters() if name != "id"]
        return [torch.optim.Adam(others, lr=rate), torch.optim.SparseAdam([self.id], lr=rate)]

    def items(self, rows: Tensor) -> Tensor:
        """float32[m, WIDTH], unit length: embeddings of items; 0 for one without text that was never seen."""
        x, share = torch.from_numpy(self.vectors[rows.numpy()]), self.id_share[rows]
        has_text = x.isfinite().all(dim=1, keepdim=True)
        x = x.nan_to_num()
        hidden = functional.relu(x @ self.tower_in + self.tower_bias)
        text = functional.normalize(x @ self.tower + hidden @ self.tower_out, dim=1) * has_text
        if self.training:
            share = share * (torch.rand(len(rows), 1) >= _DROPPED_IDS)
        return functional.normalize(text + _ID_SCALE * share * functional.embedding(rows, self.id, sparse=True), dim=1)

    def users(self, item: Tensor, kind: Tensor, age: Tensor, real: Tensor) -> Tensor:
        """float32[b, t, WIDTH], unit length: what is expected after each engagement.

        item: float32[b, t, WIDTH], oldest first. kind: int64[b, t]. age: int64[b, t, t], age bucket of engagement j at
        the time of what follows engagement i. real: bool[b, t], False for padding, which is at the end.
        """
        b, t, _ = item.shape
        x = self._drop(SCALE * item + self.kind[kind])
        normal = self._norm(x, self.norm1)
        query, both = (normal @ self.query).view(b, t, HEADS, -1).transpose(1, 2), normal @ self.key_value
        key, value = (part.reshape(b, t, HEADS, -1).transpose(1, 2) for part in (both[..., :WIDTH], both[..., WIDTH:]))
        step = torch.arange(t)
        distance = (step[:, None] - step).clamp(0, LENGTH - 1)
        score = query @ key.transpose(2, 3) / math.sqrt(WIDTH // HEADS)
        score = score + self.distance[:, distance] + self.age[:, age].transpose(0, 1)
        seen = (step[:, None] >= step) & real[:, None, None, :]
        weight = self._drop(score.masked_fill(~seen, -1e9).softmax(-1))
        x = x + self._drop((weight @ value).transpose(1, 2).reshape(b, t, WIDTH) @ self.output)
        hidden = functional.relu(self._norm(x, self.norm2) @ self.inner[:-1] + self.inner[-1])
        x = x + self._drop(hidden @ self.outer[:-1] + self.outer[-1])
        return functional.normalize(self._norm(x, self.norm3) @ self.direction, dim=-1)

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, _DROPOUT, self.training)

    @staticmethod
    def _norm(x: Tensor, weights: Tensor) -> Tensor:
        return functional.layer_norm(x, (WIDTH,), weights[0], weights[1])

    def export(self) -> SequenceModel:
        """The model as it is served."""
        self.eval()
        with torch.no_grad():
            n = len(self.vectors)
            rows = torch.cat([self.items(torch.arange(k, min(k + _PART, n))) for k in range(0, n, _PART)]).numpy()
            weights, tower = (
                torch.cat([getattr(self, name).detach().reshape(-1) for name in names]).numpy()
                for names in ([name for name, _ in LAYOUT], _TOWER_PARTS)
            )
        unknown = np.zeros((1, WIDTH), np.float32)
        return SequenceModel(weights, Vectors.quantise(np.concatenate((rows, unknown))), tower)
