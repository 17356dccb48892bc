"""The configuration: one frozen value, read from a YAML file at the edge and handed down.

Each section is declared beside the code that obeys it. Secrets come from the environment alone: `REDIS_URL`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from ranker.train import RankerConfig

from offline.simulate import SimulateConfig
from offline.sources import ImportConfig
from offline.windows import WindowConfig
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


class Config(BaseModel):
    """Everything that can be set."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    workspace: Path = Field(Path("workspace"), description="where data, runs, releases and the embedded Valkey live")
    seed: int = Field(17, ge=0, lt=2**31, description="everything drawn at random follows from it")
    sources: ImportConfig | None = Field(None, alias="import", description="what `shelfwise import` reads")
    simulate: SimulateConfig = Field(default_factory=lambda: SimulateConfig.model_validate({}))
    windows: WindowConfig = Field(default_factory=lambda: WindowConfig.model_validate({}))
    lists: ListConfig = Field(default_factory=lambda: ListConfig.model_validate({}))
    encoder: EncoderConfig = Field(default_factory=lambda: EncoderConfig.model_validate({}))
    ranker: RankerConfig = Field(default_factory=lambda: RankerConfig.model_validate({}))
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
    def redis(self) -> Path:
        """Where the embedded Valkey keeps its data."""
        return self.workspace / "redis"


def redis_url() -> str | None:
    """The address of Redis from the environment, None for the embedded one."""
    return os.environ.get("REDIS_URL") or None


def load(path: Path | None, **changes: Any) -> Config:
    """The configuration in a YAML file, or the defaults; `changes` replace top-level keys.

    Raises ConfigError for a file that is missing or not YAML, and for every key that is unknown, of the wrong type or
    out of range, all at once.
    """
    content: Any = {}
    if path is not None:
        try:
            content = yaml.safe_load(path.read_text("utf-8")) or {}
        except FileNotFoundError as e:
            raise ConfigError(f"{path}: no such file; leave --config out to use the defaults") from e
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path}: not YAML: {' '.join(str(e).split())}") from e
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: holds a {type(content).__name__}; keys and values are expected, as `seed: 17`")
    try:
        return Config.model_validate({**content, **{k: v for k, v in changes.items() if v is not None}})
    except ValidationError as e:
        lines = [f"{path or 'configuration'}: {_sentence(error)}" for error in e.errors()]
        raise ConfigError("\n".join(lines)) from e


def _sentence(error: ErrorDetails) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key}: no such key; {_known(error['loc'][:-1])}"
    held = error["input"]
    shown = "" if isinstance(held, Mapping) else f" is {held!r}"
    return f"{key}{shown}: {error['msg']}{_range(error['loc'])}"


def _section(loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    model: type[BaseModel] = Config
    for part in loc:
        found = next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None)
        inner = found.annotation if found else None
        options = [o for o in (inner, *getattr(inner, "__args__", ())) if isinstance(o, type)]
        models = [o for o in options if issubclass(o, BaseModel)]
        if not models:
            return None
        model = models[0]
    return model


def _known(loc: tuple[int | str, ...]) -> str:
    model = _section(loc)
    return f"known here: {', '.join(f.alias or n for n, f in model.model_fields.items())}" if model else "remove it"


def _range(loc: tuple[int | str, ...]) -> str:
    """What the field may hold, where its declaration bounds it on both sides, and what it is for."""
    model = _section(loc[:-1])
    field = next((f for n, f in model.model_fields.items() if loc[-1] in (n, f.alias)), None) if model else None
    if field is None:
        return ""
    bounds = {b: getattr(m, b) for m in field.metadata for b in ("gt", "ge", "lt", "le") if hasattr(m, b)}
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    allowed = " and ".join(f"{signs[b]} {v:g}" for b, v in bounds.items() if v is not None)
    return f" (allowed: {allowed}; {field.description})" if allowed else f" ({field.description})"
