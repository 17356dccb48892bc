"""The configuration: one frozen value, read from a YAML file at the entry point and passed down.

Sections that belong to another package are declared there. The address of Redis may contain a password and
comes from the environment only: `REDIS_URL` or `REDIS_URL_FILE`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from features.bounds import COLUMN_NAME, COLUMN_TEXT, COLUMNS
from features.columns import Column
from features.log import ATTRIBUTION_S
from features.neighbours import SESSION_WEIGHT
from offline.config import fields
from offline.config.checks import CheckConfig
from offline.config.earnings import EarningsConfig
from offline.config.evaluation import SliceConfig
from offline.config.imports import AttributeKind, ImportConfig
from offline.config.publication import GateConfig, RetentionConfig
from offline.config.sequence import SequenceConfig
from offline.config.simulation import SimulateConfig
from offline.config.windows import WindowConfig
from ranker.train import RankerConfig
from serving.config import (
    EXPERIMENTS,
    PLACEMENTS,
    Experiments,
    Placements,
    ServiceConfig,
    ServingConfig,
    check_experiments,
)
from text_encoder.config import EncoderConfig


class ConfigError(ValueError):
    """The configuration is not valid. The message names each wrong key, its value and the values allowed."""


class ListConfig(BaseModel):
    """Query groups: the logged lists, or lists rebuilt with retrieval for a log without impressions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["auto", "logged", "rebuilt"] = Field(
        "auto",
        description="Source of the lists. logged: lists from logged impressions. rebuilt: lists that retrieval would "
        "have offered. auto: logged once there are enough for every window (`window_lists`), until then both.",
    )
    window_lists: int = Field(
        100,
        ge=2,
        le=1_000_000,
        description="With `source: auto`, rebuilt lists go on until the logged lists give each window for training, "
        "validation and test at least this many lists with an action.",
    )
    attribution_s: float = Field(
        ATTRIBUTION_S,
        gt=0,
        le=90 * 86400,
        description="Seconds after a list within which an action is attributed to it, in labels as in features.",
    )
    size: int = Field(100, ge=2, le=5000, description="Candidates per rebuilt list.")
    most: int = Field(
        12_000,
        ge=10,
        le=10_000_000,
        description="Maximum number of lists for training the ranker. Beyond it, lists are sampled uniformly.",
    )
    refreshes: int = Field(
        12,
        ge=1,
        le=1000,
        description="Number of times neighbours and priors are recomputed over the log, from past events only.",
    )


class RedisConfig(BaseModel):
    """The data in Redis. Its address may contain a password, and comes from `REDIS_URL` or `REDIS_URL_FILE`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefix: str = Field(
        "sw",
        pattern=r"^[A-Za-z0-9._-]{1,32}$",
        description="First part of every key, up to the colon. Shops that share a Redis need different prefixes; with "
        "another prefix, the store is empty.",
    )


class UserColumnConfig(BaseModel):
    """An attribute of users, and its feature."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["number", "category", "flag"] = Field(
        "number", description="number; category: a text; flag: true or false."
    )
    values: tuple[Annotated[str, Field(min_length=1, max_length=COLUMN_TEXT)], ...] = Field(
        (),
        max_length=1000,
        examples=[["AT", "DE", "CH"]],
        description="Values of a category that features tell apart, similar ones next to each other. All others are "
        "one further value.",
    )

    @model_validator(mode="after")
    def _values_of_category(self) -> Self:
        if self.type == "category" and not self.values:
            raise ValueError("a category needs `values`, such as [AT, DE, CH]")
        if self.type != "category" and self.values:
            raise ValueError(f"a {self.type} has no `values`: remove them, or set `type: category`")
        if len(set(self.values)) < len(self.values):
            raise ValueError("`values` has a value twice")
        return self


class RequestColumnConfig(UserColumnConfig):
    """A column that requests send with their candidates, and its features."""

    per: Literal["candidate", "request"] = Field(
        "candidate", description="Whether each candidate has a value, or the request as a whole."
    )


ColumnName = Annotated[str, Field(pattern=COLUMN_NAME)]


class FeatureConfig(BaseModel):
    """Attributes of items and users, weights, columns of requests, and custom features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attributes: dict[str, AttributeKind] = Field(
        default={},
        examples=[{"size": "number", "released": "date"}],
        description="Type of each item attribute. An attribute not listed is read by its column's type. `value` is a "
        "number for objectives, such as a margin, and not a feature.",
    )
    request: dict[ColumnName, RequestColumnConfig] = Field(
        default={},
        max_length=COLUMNS,
        examples=[
            {"bm25": {"type": "number"}, "country": {"type": "category", "per": "request", "values": ["AT", "DE"]}}
        ],
        description="Columns that requests send with their candidates, such as a search engine's score, by name. A new "
        "release uses them as features.",
    )
    user: dict[ColumnName, UserColumnConfig] = Field(
        default={},
        max_length=COLUMNS,
        examples=[{"age": {"type": "number"}, "country": {"type": "category", "values": ["AT", "DE"]}}],
        description="Attributes of users that are features, by name: of the imported users, and written with "
        "`PUT /v1/users`.",
    )
    seeds: bool = Field(
        False,
        description="Find what goes with each item, for features of the items that a request names (`items`). It is "
        "also done if a placement requires `items`, or has a source that needs it.",
    )
    session_weight: float = Field(
        SESSION_WEIGHT,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="Weight of two items in the same session for finding neighbours, relative to two items of the same "
        "user. 0: sessions are ignored.",
    )
    custom: tuple[str, ...] = Field(
        (),
        examples=[["shop_features:margin"]],
        description="Custom features, as module:function. See docs/features.md.",
    )

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of requests and then the attributes of users, in the order of the configuration."""
        return (
            *(Column(name, c.type, c.per, c.values) for name, c in self.request.items()),
            *(Column(name, c.type, "user", c.values) for name, c in self.user.items()),
        )


class Config(BaseModel):
    """All settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workspace: Path = Field(
        Path("workspace"),
        description="Directory for data, runs, releases and the embedded Valkey. A relative path starts at the "
        "current directory.",
    )
    log: str | None = Field(
        None,
        examples=["s3://bucket/shop"],
        description="Location of the log's day partitions: a directory, or a URI such as s3://bucket/shop. null: the "
        "data directory.",
    )
    vectors: str | None = Field(
        None,
        examples=["s3://bucket/vectors"],
        description="Location of the store of text vectors: a directory, or a URI such as s3://bucket/vectors. Nightly "
        "runs, studies and the embedding worker read only texts that it lacks. Give each workspace its own. null: the "
        "directory vectors in the workspace.",
    )
    seed: int = Field(17, ge=0, lt=2**31, description="Seed of every random draw.")
    sources: ImportConfig | None = Field(
        None, alias="import", description="Source files that `shelfwise import` reads."
    )
    simulate: SimulateConfig = Field(default_factory=lambda: SimulateConfig.model_validate({}))
    windows: WindowConfig = Field(default_factory=lambda: WindowConfig.model_validate({}))
    lists: ListConfig = Field(default_factory=lambda: ListConfig.model_validate({}))
    slices: SliceConfig = Field(default_factory=lambda: SliceConfig.model_validate({}))
    features: FeatureConfig = Field(default_factory=lambda: FeatureConfig.model_validate({}))
    encoder: EncoderConfig = Field(default_factory=lambda: EncoderConfig.model_validate({}))
    sequence: SequenceConfig = Field(default_factory=lambda: SequenceConfig.model_validate({}))
    ranker: RankerConfig = Field(default_factory=lambda: RankerConfig.model_validate({}))
    checks: CheckConfig = Field(default_factory=lambda: CheckConfig.model_validate({}))
    gate: GateConfig = Field(default_factory=lambda: GateConfig.model_validate({}))
    earnings: EarningsConfig = Field(default_factory=lambda: EarningsConfig.model_validate({}))
    retention: RetentionConfig = Field(default_factory=lambda: RetentionConfig.model_validate({}))
    redis: RedisConfig = Field(default_factory=lambda: RedisConfig.model_validate({}))
    placements: Placements = Field(
        default={},
        max_length=PLACEMENTS,
        description="Settings of the lists of each placement, a named spot in the shop, by its name.",
    )
    experiments: Experiments = Field(
        default={},
        max_length=EXPERIMENTS,
        description="Experiments by name: arms that are shown to different users at the same time.",
    )
    serving: ServingConfig = Field(default_factory=lambda: ServingConfig.model_validate({}))

    @property
    def service(self) -> ServiceConfig:
        """The settings of the service: those of `serving`, the placements and the experiments."""
        currency = self.serving.currency or (self.sources and self.sources.currency)
        others = {"currency": currency, "placements": self.placements, "experiments": self.experiments}
        return ServiceConfig.model_validate({**dict(self.serving), **others})

    @field_validator("experiments")
    @classmethod
    def _fit_together(cls, experiments: Experiments, info: ValidationInfo) -> Experiments:
        return check_experiments(experiments, info.data.get("placements", {}))

    @property
    def attribution_s(self) -> float:
        """Seconds after a list within which earnings and experiments count an action."""
        return self.earnings.attribution_s or self.lists.attribution_s

    @property
    def needs_companions(self) -> bool:
        """True if releases have tables of what goes with each item, and the features that read them."""
        return self.features.seeds or any(placement.needs_companions for placement in self.placements.values())

    @property
    def data(self) -> Path:
        """Directory of the imported or simulated data set."""
        return self.workspace / "data"

    @property
    def vector_store(self) -> Path | str:
        """Location of the store of text vectors: a directory or a URI."""
        return self.workspace / "vectors" if self.vectors is None else self.vectors

    @property
    def runs(self) -> Path:
        """Directory of the artefacts of nightly runs."""
        return self.workspace / "runs"

    @property
    def releases(self) -> Path:
        """Directory of the releases."""
        return self.workspace / "releases"

    @property
    def statistics(self) -> Path:
        """Directory of the data statistics of nightly runs."""
        return self.workspace / "statistics"

    @property
    def embedded(self) -> Path:
        """Directory of the embedded Valkey's data."""
        return self.workspace / "redis"


def redis_url() -> str | None:
    """URL of Redis from the variable `REDIS_URL`, or from the file that `REDIS_URL_FILE` names; None for the embedded
    Valkey.

    Raises ConfigError if both are set, or if the file cannot be read or is empty.
    """
    url, file = os.environ.get("REDIS_URL"), os.environ.get("REDIS_URL_FILE")
    if not file:
        return url or None
    if url:
        raise ConfigError("REDIS_URL and REDIS_URL_FILE are both set: unset one of them")
    try:
        content = Path(file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"cannot read the address of Redis in REDIS_URL_FILE ({file!r}): {e}") from e
    if not content:
        raise ConfigError(f"REDIS_URL_FILE names {file!r}, which is empty: write redis://HOST:6379/0 into it")
    return content


def load(path: Path | None, **changes: Any) -> Config:
    """Read the configuration from a YAML file, or return the defaults without one.

    changes: replace top-level keys; a value of None changes nothing. Relative paths start at the current directory, not
    at the file's. Raises ConfigError for a file that cannot be read or is not YAML, and for every key that is unknown,
    duplicated, of the wrong type or out of range.
    """
    content = {} if path is None else _read(path)
    where = path or "configuration"
    if errors := [f"{where}: {message}" for message in _boolean_errors(content, ())]:
        raise ConfigError("\n".join(errors))
    try:
        return Config.model_validate({**content, **{k: v for k, v in changes.items() if v is not None}})
    except ValidationError as e:
        raise ConfigError("\n".join(f"{where}: {_message(error)}" for error in _leaf_errors(e.errors()))) from e


class _Loader(yaml.SafeLoader):
    """Safe YAML loader that raises for duplicate keys instead of keeping the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
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
    # ValueError: a date that does not exist. RecursionError: nesting too deep, as in a malicious file.
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: not YAML: {_shortened(' '.join(str(e).split()), 300)}") from e
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: contains a {type(content).__name__}; expected keys and values, such as `seed: 17`")
    return content


def _boolean_errors(content: Mapping[Any, Any], at: tuple[int | str, ...]) -> Iterator[str]:
    """A message for each boolean in a numeric field, where pydantic accepts it as 1 or 0. In YAML, yes is a boolean."""
    for key, value in content.items():
        field = _field((*at, key))
        if isinstance(value, Mapping):
            yield from _boolean_errors(value, (*at, key))
        elif isinstance(value, bool) and field and fields.number_type(field):
            yield f"{_key((*at, key))} is {value}; expected {_expected(field)}"


def _leaf_errors(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """The errors without those of a list whose entries have errors of their own."""
    parents = {e["loc"][:k] for e in errors for k in range(len(e["loc"]))}
    return [e for e in errors if e["type"] != "too_short" or e["loc"] not in parents]


def _message(error: ErrorDetails) -> str:
    loc, kind, field = error["loc"], error["type"], _field(error["loc"])
    about = f" ({field.description})" if field and field.description else ""
    if kind in ("extra_forbidden", "invalid_key"):
        return f"{_key((*loc[:-1], str(loc[-1])))}: no such key; {_valid_keys(loc[:-1])}"
    if kind == "missing":
        return f"{_key(loc)} is missing{about}"
    if kind == "value_error":
        return f"{_key(loc)}: {error['msg'].removeprefix('Value error, ')}{about}"
    subject = f"{_key(loc)} is {_shortened(repr(error['input']), 100)}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{subject}; expected keys and values; {_valid_keys(loc)}"
    if kind == "too_short":
        return f"{subject}; at least {error['ctx']['min_length']} needed{about}"
    if field and fields.number_type(field):
        return f"{subject}; expected {_expected(field)}"
    reason = error["msg"].removesuffix(" for <class 'pathlib.Path'>")
    return f"{subject}; {reason.replace('Input should be', 'expected').replace('Input is', 'this is')}{about}"


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _key(loc: tuple[int | str, ...]) -> str:
    """A location as a key, such as import.events[0].path."""
    parts = (part for part in loc if part != "[key]")  # pydantic's mark of an error in the key of a mapping
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


def _field(loc: tuple[int | str, ...]) -> FieldInfo | None:
    """The declaration of the field at a location; None for an unknown key."""
    model: type[BaseModel] | None = Config
    field, is_name = None, False
    for part in loc:
        # A number in a location is a list index; an entry has the declaration of its list, or of its mapping.
        if isinstance(part, int) or is_name:
            is_name = False
            continue
        field = fields.names(model).get(part) if model else None
        model = fields.section(field)
        is_name = fields.is_mapping(field)
    return field


def _valid_keys(loc: tuple[int | str, ...]) -> str:
    model = fields.section(_field(loc)) if loc else Config
    return f"valid keys: {', '.join(fields.names(model))}" if model else "remove it"


def _expected(field: FieldInfo) -> str:
    """The type, range and description of a numeric field, in words."""
    return f"{fields.number_range(field)} ({field.description})"
