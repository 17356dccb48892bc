"""The reference page of the configuration, made from the models: every key with type, range, default and example.

`make reference` writes it to docs/configuration.md.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import yaml
from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from offline.config import fields
from offline.config.configuration import Config
from serving.rules import Condition, Rules, Variants

_INTRODUCTION = """\
# Configuration

The settings of all commands are in one YAML file, which `--config shop.yaml` names. Every key has a default except
those marked *required*, so a file contains only what differs. An unknown key, a wrong type or a value out of range is
an error that names the key and the values allowed. Relative paths start at the current directory.

The address of Redis is not in the file, because it may contain a password: set the environment variable `REDIS_URL`,
such as `redis://:PASSWORD@HOST:6379/0`, or `REDIS_URL_FILE` to the path of a file with it. Without either, commands use
an embedded Valkey in the workspace.

Except for `import`, the example of a section has all its keys. Where a default is `null` or empty, the example has
another value, to show the form."""

_GUIDES = {
    "redis": "See [several shops on one Redis](serving.md#several-shops-on-one-redis).",
    "import": "See [importing data](data.md).",
    "simulate": "`shelfwise simulate` and `shelfwise demo` use it.",
    "windows": "See [evaluation](evaluation.md#metrics-and-intervals).",
    "lists": "See [query groups](nights.md#query-groups).",
    "slices": "See [slices](evaluation.md#slices).",
    "features": "See [features](features.md).",
    "encoder": "See [the text encoder](text_encoder.md) for models by name, the checks of a model, and training metrics"
    " in TensorBoard, Weights & Biases and MLflow.",
    "sequence": "See [the sequence model](features.md#sequence-model).",
    "ranker": "`shelfwise tune` finds values for your data.",
    "checks": "See [data checks](nights.md#data-checks).",
    "gate": "See [the gate](nights.md#the-gate).",
    "earnings": "See [earnings](earnings.md).",
    "retention": "See [day partitions](data.md#day-partitions) for `log_days`.",
    "placements": "See [placements](placements.md).",
    "experiments": "See [experiments](experiments.md).",
    "serving": "See [serving](serving.md).",
}
"""The guide of each section."""

_EXAMPLES = {
    "import": """\
import:
  tables:
    products: {files: products.csv}
    orders: {files: orders.csv.gz}
  items:
    - from: products
      columns: {item_id: sku, title: name, colours: {path: colours, split: "|"}}
  events:
    - from: orders
      columns: {event: {value: purchase}, user_id: customer, item_id: sku, timestamp: ordered_at}
""",
    "placements": """\
placements:
  home:
    sources: {co_occurrence: 2, popular: 1}
    requires: []
    rules: {}
    limit: 12
    explore: 0.1
    objective: {outcomes: {purchase: 1}, value: margin, weight: 0.3, floor: 0.2}
  search:
    requires: [query]
    rules:
      cap: [{attribute: brand, most: 2}]
""",
    "experiments": """\
placements: {home: {}, search: {}}
experiments:
  ranking-june:
    placements: [home, search]
    unit: user
    layer: ranking
    traffic: 0.5
    offset: 0.0
    salt: ranking-june
    start: 2026-06-01T00:00Z
    end: 2026-06-29T00:00Z
    where: {attribute: country, in: [DE, AT]}
    interleave: false
    arms:
      control: {share: 1}
      new: {share: 1, release: 20260601-0123456789}
      margin: {share: 1, objective: {value: margin, weight: 0.3}}
      varied: {share: 1, rules: {cap: [{attribute: brand, most: 2}]}}
      explored: {share: 1, explore: 0.1}
      holdout: {share: 0.2, order: popularity}
""",
}
"""Examples of sections that cannot be made from the defaults and examples of their keys."""


def page() -> str:
    """The reference page, in Markdown. The same models give the same bytes."""
    sections = {key: field for key, field in fields.names(Config).items() if fields.section(field)}
    blocks = [_INTRODUCTION, "## Top level", _table(Config, "")]
    for key, field in sections.items():
        model = fields.section(field)
        assert model is not None
        where = _path("", key, field)
        blocks += [f"## {where}", f"{_about(model)} {_GUIDES[key]}", _table(model, where), _example(key, model)]
        for path, part in _parts(model, where):
            blocks += [f"### {path}", _about(part), _table(part, path)]
    return "\n\n".join(blocks) + "\n"


def _about(model: type[BaseModel]) -> str:
    """The first paragraph of a model's docstring, as one line."""
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


def _parts(model: type[BaseModel], at: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """The models inside a section, with the path of each, such as `import.items[]`; each model once."""
    seen: set[type[BaseModel]] = {model}
    waiting = [(model, at)]
    for parent, path in waiting:
        for key, field in fields.names(parent).items():
            for part in (o for o in fields.options(field.annotation) if _is_model(o) and o not in seen):
                seen.add(part)
                where = _path(path, key, field)
                waiting.append((part, where))
                yield where, part


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _path(at: str, key: str, field: FieldInfo) -> str:
    """The path of a field, with `[]` after a list and `.NAME` after a mapping."""
    origins = [get_origin(o) for o in fields.options(field.annotation)]
    return f"{at}.{key}".removeprefix(".") + ("[]" if tuple in origins else ".NAME" if dict in origins else "")


def _table(model: type[BaseModel], at: str) -> str:
    """Key, type with range, default, and description of each field."""
    rows = [
        f"| `{key}` | {_type(field, _path(at, key, field))} | {_default(field)} | {_description(field)} |"
        for key, field in fields.names(model).items()
    ]
    return "\n".join(["| key | type and range | default | description |", "|---|---|---|---|", *rows])


def _description(field: FieldInfo) -> str:
    model = fields.section(field)
    return _escaped(field.description or (_about(model) if model else ""))


def _escaped(text: str) -> str:
    """Text for the cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _type(field: FieldInfo, path: str) -> str:
    if fields.number_type(field) and get_origin(field.annotation) not in (tuple, dict):
        return _escaped(fields.number_range(field).partition(" ")[2])
    return _escaped(_type_name(field.annotation, path))


_NAMES = {
    str: "text",
    bool: "`true` or `false`",
    int: "whole number",
    float: "number",
    Path: "path",
    date: "date",
    AwareDatetime: "date and time",
    type(None): "`null`",
}


def _type_name(annotation: Any, path: str) -> str:
    """A type in words, with a link to the section of a model."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(inner[0], path)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(o, path) for o in inner)
    if origin is tuple:
        return f"list of {_type_name(inner[0], path)}"
    if origin is dict:
        return f"mapping of {_type_name(inner[0], path)} to {_type_name(inner[1], path)}"
    if annotation is Rules:
        return "[rules](rules.md)"
    if annotation is Condition:
        return "[condition](rules.md#conditions)"
    if annotation is Variants:
        return "[variants](variants.md)"
    if _is_model(annotation):
        return f"section [`{path}`](#{_anchor(path)})"
    return _NAMES[annotation]


def _anchor(heading: str) -> str:
    """The anchor of a heading in the documentation site."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    if fields.section(field):
        return ""
    return _escaped(f"`{_flow(_plain(field.get_default(call_default_factory=True)))}`")


def _plain(value: Any) -> Any:
    """A default as JSON values."""
    return msgspec.to_builtins(value) if isinstance(value, Rules | Variants) else to_jsonable_python(value)


def _flow(value: Any) -> str:
    """A value as YAML in one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def _example(key: str, model: type[BaseModel]) -> str:
    """A YAML block of the section with every key: the example of a field, else its default."""
    text = _EXAMPLES.get(key)
    if text is None:
        lines = (f"  {name}: {_flow(_example_value(field))}\n" for name, field in fields.names(model).items())
        text = f"{key}:\n{''.join(lines)}"
    return f"```yaml\n{text}```"


def _example_value(field: FieldInfo) -> Any:
    return field.examples[0] if field.examples else _plain(field.get_default(call_default_factory=True))


if __name__ == "__main__":
    print(page(), end="")
