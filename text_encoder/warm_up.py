"""Masked-language-model training on the item texts before fine-tuning (BERT: Devlin et al., 2019)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from text_encoder import checkpoint
from text_encoder.config import EncoderConfig
from text_encoder.encoder import Encoder
from text_encoder.trainer import Clock

MASKED_SHARE = 0.15
LEARNING_RATE = 5e-5
BATCH_SIZE = 32


class LanguageModelHead(nn.Module):
    """Hidden states to a score of each token in the vocabulary, using the model's input embeddings."""

    def __init__(self, transformer: Any, seed: int) -> None:
        """seed: initialises the weights of the head, which pretrained encoders do not include."""
        super().__init__()
        embeddings: Tensor = transformer.get_input_embeddings().weight
        self._embeddings = [embeddings]  # in a list, so that it is not registered as a parameter of this module
        width = embeddings.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(len(embeddings)))

    def forward(self, hidden: Tensor) -> Tensor:
        """float32[m, vocabulary] from float32[m, width]."""
        return nn.functional.linear(self.transform(hidden), self._embeddings[0], self.bias)


def mask_tokens(
    ids: Tensor, special: Tensor, mask: int, vocabulary_size: int, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(ids with masked tokens, bool mask of the tokens to predict).

    15% of the tokens are to be predicted. Of these, 80% are replaced by the mask token and 10% by a random token; 10%
    do not change. ids: int64[b, t]. special: bool[b, t], tokens that are never selected (padding, begin, end).
    """
    selected = (torch.rand(ids.shape, generator=draw) < MASKED_SHARE) & ~special
    action = torch.rand(ids.shape, generator=draw)
    out = torch.where(selected & (action < 0.8), torch.full_like(ids, mask), ids)
    random_ids = torch.randint(vocabulary_size, ids.shape, generator=draw)
    return torch.where(selected & (action >= 0.9), random_ids, out), selected


def warm_up(
    encoder: Encoder,
    texts: list[str],
    config: EncoderConfig,
    file: Path | None,
    clock: Clock,
    on_texts: Callable[[int], None],
) -> Encoder:
    """A copy of the encoder, trained for `warm_up_epochs` epochs on the texts or until half of the time left is used.

    texts: blank texts are skipped. file: stores the trained weights; if it exists, they are loaded instead of trained.
    Raises `ValueError` for a model whose tokenizer has no mask token.
    """
    if encoder.model.tokenizer.mask_token_id is None:
        raise ValueError("encoder.warm_up_epochs: the tokenizer of this model has no mask token; set it to 0")
    warm = replace(encoder, model=copy.deepcopy(encoder.model).eval())
    saved = checkpoint.read(file) if file else None
    if saved:
        warm.transformer.load_state_dict(saved[0])
        return warm
    head = LanguageModelHead(warm.transformer, config.seed).to(warm.model.device)
    parameters = [*warm.transformer.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    # Batches of similar lengths need little padding.
    order = np.argsort(warm.token_counts(distinct), kind="stable")
    batches = [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]
    torch_draw = torch.Generator().manual_seed(config.seed)
    draw = np.random.default_rng([config.seed, 1])
    end_s = (clock.elapsed_s + clock.budget_s) / 2
    for _ in range(config.warm_up_epochs):
        for number in draw.permutation(len(batches)):
            if clock.elapsed_s + clock.reserve_s >= end_s:
                break
            _step(warm, head, optimizer, [distinct[i] for i in batches[number]], torch_draw)
            on_texts(len(batches[number]))
    if file:
        checkpoint.write(file, warm.transformer.state_dict(), {})
    return warm


def _step(
    warm: Encoder, head: LanguageModelHead, optimizer: torch.optim.Optimizer, batch: list[str], draw: torch.Generator
) -> float:
    features = warm.tokens(batch)
    device = features["input_ids"].device
    ids = features["input_ids"].cpu()
    special = torch.isin(ids, torch.tensor(warm.model.tokenizer.all_special_ids))
    features["input_ids"], selected = (
        tensor.to(device)
        for tensor in mask_tokens(ids, special, warm.model.tokenizer.mask_token_id, len(head.bias), draw)
    )
    if not bool(selected.any()):
        return 0.0
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        hidden = warm.transformer(**features).last_hidden_state
        scores = head(hidden[selected])
    loss = nn.functional.cross_entropy(scores.float(), ids.to(device)[selected])
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())
