"""Masked-language warm-up (BERT: Devlin et al., 2019): first the encoder guesses hidden words of the shop's texts."""

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

HIDDEN_SHARE = 0.15
RATE = 5e-5
BATCH = 32


class Guess(nn.Module):
    """Hidden states to a score of each word, through the model's own word embeddings."""

    def __init__(self, transformer: Any, seed: int) -> None:
        """seed: of its own weights, which come with no model."""
        super().__init__()
        words: Tensor = transformer.get_input_embeddings().weight
        self._words = [words]  # in a list: shared, not a parameter of this module
        width = words.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.turn = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(len(words)))

    def forward(self, hidden: Tensor) -> Tensor:
        """float32[m, words] from float32[m, width]."""
        return nn.functional.linear(self.turn(hidden), self._words[0], self.bias)


def hide(ids: Tensor, special: Tensor, mask: int, words: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """(ids with some hidden, bool of those to guess): of 15%, 8 in 10 are masked, 1 is another word, 1 is left.

    ids: int64[b, t]. special: bool[b, t], places never hidden (padding, begin, end).
    """
    chosen = (torch.rand(ids.shape, generator=draw) < HIDDEN_SHARE) & ~special
    how = torch.rand(ids.shape, generator=draw)
    out = torch.where(chosen & (how < 0.8), torch.full_like(ids, mask), ids)
    other = torch.randint(words, ids.shape, generator=draw)
    return torch.where(chosen & (how >= 0.9), other, out), chosen


def warm_up(
    encoder: Encoder,
    texts: list[str],
    config: EncoderConfig,
    file: Path | None,
    clock: Clock,
    on_texts: Callable[[int], None],
) -> Encoder:
    """The encoder after `warm_up_epochs` passes over the texts, or what half the time left allows; the given one stays.

    texts: "" is skipped. file: keeps the weights once done, so that it is done once. Raises `ValueError` for a model
    whose tokenizer knows no mask.
    """
    if encoder.model.tokenizer.mask_token_id is None:
        raise ValueError("encoder.warm_up_epochs: this model's tokenizer has no mask token; set it to 0")
    warm = replace(encoder, model=copy.deepcopy(encoder.model).eval())
    kept = checkpoint.read(file) if file else None
    if kept:
        warm.transformer.load_state_dict(kept[0])
        return warm
    guess = Guess(warm.transformer, config.seed).to(warm.model.device)
    parameters = [*warm.transformer.parameters(), *guess.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    known = list(dict.fromkeys(text for text in texts if text.strip()))
    # Of like length, so that padding costs little.
    order = np.argsort(warm.token_counts(known), kind="stable")
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    torch_draw = torch.Generator().manual_seed(config.seed)
    draw = np.random.default_rng([config.seed, 1])
    end_s = (clock.elapsed_s + clock.budget_s) / 2
    for _ in range(config.warm_up_epochs):
        for number in draw.permutation(len(batches)):
            if clock.elapsed_s + clock.reserve_s >= end_s:
                break
            _step(warm, guess, optimizer, [known[i] for i in batches[number]], torch_draw)
            on_texts(len(batches[number]))
    if file:
        checkpoint.write(file, warm.transformer.state_dict(), {})
    return warm


def _step(
    warm: Encoder, guess: Guess, optimizer: torch.optim.Optimizer, batch: list[str], draw: torch.Generator
) -> float:
    features = warm.tokens(batch)
    device = features["input_ids"].device
    ids = features["input_ids"].cpu()
    special = torch.isin(ids, torch.tensor(warm.model.tokenizer.all_special_ids))
    features["input_ids"], chosen = (
        part.to(device) for part in hide(ids, special, warm.model.tokenizer.mask_token_id, len(guess.bias), draw)
    )
    if not bool(chosen.any()):
        return 0.0
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        hidden = warm.transformer(**features).last_hidden_state
        scores = guess(hidden[chosen])
    loss = nn.functional.cross_entropy(scores.float(), ids.to(device)[chosen])
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())
