"""The configuration: one frozen value, read from a YAML file at the edge and handed down.

Each section is declared beside the code that obeys it. Secrets come from the environment alone: `REDIS_URL`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from features.neighbours import SESSION_WEIGHT
from offline.config.checks import CheckConfig
from offline.config.evaluation import SliceConfig
from offline.config.imports import AttributeKind, ImportConfig
from offline.config.publication import GateConfig, RetentionConfig
from offline.config.simulation import SimulateConfig
from offline.config.windows import WindowConfig
from ranker.train import RankerConfig
from serving.config import ServiceConfig
from text_encoder.config import EncoderConfig


class ConfigError(ValueError):
    """The configuration cannot be used; the message names each key, what it holds, and what it may hold."""


class ListConfig(BaseModel):
    """Query groups: the lists that were shown, or lists rebuilt where none was logged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["auto", "logged", "rebuilt"] = Field("auto", description="auto: logged where impressions are")
    attribution_s: float = Field(86400.0, gt=0, le=90 * 86400, description="an action this late is still the list's")
    size: int = Field(100, ge=2, le=5000, description="candidates of a rebuilt list")
    most: int = Field(12_000, ge=10, le=10_000_000, description="lists kept, drawn evenly, where there are more")
    refreshes: int = Field(
        12, ge=1, le=1000, description="times neighbours and priors are made anew over the log, always from the past"
    )


class FeatureConfig(BaseModel):
    """Features: how they are made, and those beyond what every shop has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attributes: dict[str, AttributeKind] = Field(
        default={}, description="how an item's attribute is read; one not named here is read by its column's type"
    )
    session_weight: float = Field(
        SESSION_WEIGHT,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="what two items of one visit count for as neighbours, against two of one user; 0: nothing",
    )
    custom: tuple[str, ...] = Field((), description="features of your own as module:function; see docs/features.md")


class Config(BaseModel):
    """Everything that can be set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workspace: Path = Field(
        Path("workspace"),
        description="where data, runs, releases and the embedded Valkey live; from the current directory if relative",
    )
    log: str | None = Field(
        None,
        description="where the log's day partitions are: a directory, or a URI as s3://bucket/shop; null: in the data",
    )
    seed: int = Field(17, ge=0, lt=2**31, description="everything drawn at random follows from it")
    sources: ImportConfig | None = Field(None, alias="import", description="what `shelfwise import` reads")
    simulate: SimulateConfig = Field(default_factory=lambda: SimulateConfig.model_validate({}))
    windows: WindowConfig = Field(default_factory=lambda: WindowConfig.model_validate({}))
    lists: ListConfig = Field(default_factory=lambda: ListConfig.model_validate({}))
    slices: SliceConfig = Field(default_factory=lambda: SliceConfig.model_validate({}))
    features: FeatureConfig = Field(default_factory=lambda: FeatureConfig.model_validate({}))
    encoder: EncoderConfig = Field(default_factory=lambda: EncoderConfig.model_validate({}))
    ranker: RankerConfig = Field(default_factory=lambda: RankerConfig.model_validate({}))
    checks: CheckConfig = Field(default_factory=lambda: CheckConfig.model_validate({}))
    gate: GateConfig = Field(default_factory=lambda: GateConfig.model_validate({}))
    retention: RetentionConfig = Field(default_factory=lambda: RetentionConfig.model_validate({}))
    serving: ServiceConfig = Field(default_factory=lambda: ServiceConfig.model_validate({}))

    @property
    def data(self) -> Path:
        """Where the imported or simulated data set is."""
        return self.workspace / "data"

    @property
    def runs(self) -> Path:
        """Where nightly runs keep what they make."""
        return self.workspace / "runs"

    @property
    def releases(self) -> Path:
        """Where releases are."""
        return self.workspace / "releases"

    @property
    def statistics(self) -> Path:
        """Where nights keep what their data looked like."""
        return self.workspace / "statistics"

    @property
    def redis(self) -> Path:
        """Where the embedded Valkey keeps its data."""
        return self.workspace / "redis"


def redis_url() -> str | None:
    """The address of Redis from the environment, None for the embedded one."""
    return os.environ.get("REDIS_URL") or None


def load(path: Path | None, **changes: Any) -> Config:
    """The configuration in a YAML file, or the defaults; `changes` that are not None replace top-level keys.

    Relative paths are taken from the current directory, not from the file's. Raises ConfigError for a file that cannot
    be read or is not YAML, and for every key that is unknown, given twice, of the wrong type or out of range.
    """
    content = {} if path is None else _read(path)
    where = path or "configuration"
    if wrong := [f"{where}: {sentence}" for sentence in _flags(content, ())]:
        raise ConfigError("\n".join(wrong))
    try:
        return Config.model_validate({**content, **{k: v for k, v in changes.items() if v is not None}})
    except ValidationError as e:
        raise ConfigError("\n".join(f"{where}: {_sentence(error)}" for error in _causes(e.errors()))) from e


class _Loader(yaml.SafeLoader):
    """YAML without its habit of letting the last of two equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _read(path: Path) -> Mapping[Any, Any]:
    try:
        content = yaml.load(path.read_text("utf-8"), _Loader)
    except FileNotFoundError as e:
        raise ConfigError(f"{path}: no such file; leave --config out to use the defaults") from e
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: byte {e.start} is not UTF-8; save the file as UTF-8") from e
    # A ValueError is a date that no calendar has; a RecursionError a file made to hurt.
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: not YAML: {_shortened(' '.join(str(e).split()), 300)}") from e
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: holds a {type(content).__name__}; keys and values are expected, as `seed: 17`")
    return content


def _flags(content: Mapping[Any, Any], at: tuple[int | str, ...]) -> Iterator[str]:
    """A sentence for each true or false (in YAML also yes, no, on, off) where a number belongs: not a 1 or a 0."""
    for key, value in content.items():
        field = _field((*at, key))
        if isinstance(value, Mapping):
            yield from _flags(value, (*at, key))
        elif isinstance(value, bool) and field and _number(field):
            yield f"{_key((*at, key))} is {value}; expected {_expected(field)}"


def _causes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """The errors, without those that only say that an entry of a list has one."""
    entries = {e["loc"][:k] for e in errors for k in range(len(e["loc"]))}
    return [e for e in errors if e["type"] != "too_short" or e["loc"] not in entries]


def _sentence(error: ErrorDetails) -> str:
    loc, kind, field = error["loc"], error["type"], _field(error["loc"])
    about = f" ({field.description})" if field and field.description else ""
    if kind in ("extra_forbidden", "invalid_key"):
        return f"{_key((*loc[:-1], str(loc[-1])))}: no such key; {_known(loc[:-1])}"
    if kind == "missing":
        return f"{_key(loc)} is missing{about}"
    if kind == "value_error":
        return f"{_key(loc)}: {error['msg'].removeprefix('Value error, ')}{about}"
    held = f"{_key(loc)} is {_shortened(repr(error['input']), 100)}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{held}; expected keys and values; {_known(loc)}"
    if kind == "too_short":
        return f"{held}; needs at least {error['ctx']['min_length']} entries{about}"
    if field and _number(field):
        return f"{held}; expected {_expected(field)}"
    said = error["msg"].removesuffix(" for <class 'pathlib.Path'>")
    return f"{held}; {said.replace('Input should be', 'expected').replace('Input is', 'this is')}{about}"


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _key(loc: tuple[int | str, ...]) -> str:
    """A key as it is written: import.events[0].path."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _field(loc: tuple[int | str, ...]) -> FieldInfo | None:
    """The declaration of a key."""
    model: type[BaseModel] | None = Config
    field = None
    for part in loc:
        # A number in a location is the place in a list, whose declaration is the list's.
        if isinstance(part, int):
            continue
        field = next((f for n, f in model.model_fields.items() if part == (f.alias or n)), None) if model else None
        model = _section(field)
    return field


def _section(field: FieldInfo | None) -> type[BaseModel] | None:
    """The section that a key opens, alone or as the entries of a list; None where it holds a value."""
    if field is None:
        return None
    return next((o for o in _options(field.annotation) if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _options(annotation: Any) -> list[Any]:
    return [annotation, *(o for inner in get_args(annotation) for o in _options(inner))]


def _known(loc: tuple[int | str, ...]) -> str:
    model = _section(_field(loc)) if loc else Config
    return f"known here: {', '.join(f.alias or n for n, f in model.model_fields.items())}" if model else "remove it"


def _number(field: FieldInfo) -> str | None:
    """What a numeric field holds, in words."""
    options = _options(field.annotation)
    if bool in options or str in options:
        return None
    return "a whole number" if int in options else "a number" if float in options else None


def _expected(field: FieldInfo) -> str:
    """What a numeric field may hold, and what it is for."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = {s: getattr(m, b) for m in field.metadata for b, s in signs.items() if getattr(m, b, None) is not None}
    allowed = " and ".join(f"{s} {v:g}" if isinstance(v, float) else f"{s} {v}" for s, v in bounds.items())
    finite = " that is finite" if any(getattr(m, "allow_inf_nan", True) is False for m in field.metadata) else ""
    null = ", or null" if type(None) in _options(field.annotation) else ""
    return f"{_number(field)}{finite}{' ' if allowed else ''}{allowed}{null} ({field.description})"
