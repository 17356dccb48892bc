"""An encoder so small that reading a text takes almost no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from text_encoder.encoder import load


def tiny_encoder(path: Path) -> Path:
    """Write a BERT with one layer, 32 dimensions, random weights and the tokenizer of the packaged model."""
    load("minilm").save(path.with_name("minilm"))
    tokenizer = AutoTokenizer.from_pretrained(path.with_name("minilm"))
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
