"""The reference of mappings in docs/data.md: it names every key of the models, and each example is valid."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from offline.config import ImportConfig
from offline.config.imports import Column, EventSource, ItemSource, TableConfig, UserSource
from tests import ROOT

PAGE = (ROOT / "docs" / "data.md").read_text("utf-8")
EVENTS: Mapping[str, Any] = {"from": "log", "items_from_events": True}
MODELS: Mapping[str, Mapping[type[BaseModel], Mapping[str, Any]]] = {
    "Keys of `import`:": {ImportConfig: {"events": [EVENTS]}},
    "Keys of a table:": {TableConfig: {"files": "a.csv"}},
    "Keys of a source:": {ItemSource: {"from": "a"}, EventSource: {"from": "a"}, UserSource: {"from": "a"}},
    "A value in `columns` is a path, or an object:": {Column: {"path": "a"}},
}
"""Models by the sentence above the table of their keys, each with what it needs besides."""
INSTEAD: Mapping[str, tuple[str, ...]] = {"sql": ("files", "path"), "first": ("path",), "value": ("path",)}
"""Keys that stand in place of others, which are needed otherwise."""


def rows(title: str) -> Iterator[tuple[list[str], list[str], str]]:
    """Keys and examples of the rows of a table, and the cell between them."""
    table = PAGE[PAGE.index(title) + len(title) :].strip().split("\n\n")[0]
    for line in table.splitlines()[2:]:
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        keys, examples = (re.findall(r"`([^`]+)`", cell) for cell in (cells[0], cells[-2]))
        yield keys, examples, cells[1]


def examples(title: str) -> Iterator[tuple[str, str, str]]:
    """(key, example, cell between them): one example for each key, or several for one."""
    for keys, values, between in rows(title):
        assert len(keys) in (1, len(values)), f"{keys} have the examples {values}"
        for key, value in zip(keys * len(values) if len(keys) == 1 else keys, values, strict=True):
            yield key, value, between


def name_of(model: type[BaseModel], field: str) -> str:
    return model.model_fields[field].alias or field


@pytest.mark.parametrize("title", MODELS)
def test_every_key_of_a_mapping_is_in_the_reference_and_no_other(title: str) -> None:
    written = {key for keys, _, _ in rows(title) for key in keys}
    assert written == {name_of(model, field) for model in MODELS[title] for field in model.model_fields}


@pytest.mark.parametrize("title", MODELS)
def test_every_key_has_a_valid_example(title: str) -> None:
    """With what the model needs besides; a key `for` items is one of the source of items, and so on."""
    for key, example, between in examples(title):
        for model, besides in MODELS[title].items():
            kind = model.__name__.removesuffix("Source").lower() + "s"
            if title == "Keys of a source:" and between != "all" and kind not in between:
                with pytest.raises(ValidationError, match="Extra inputs"):
                    model.model_validate({**besides, key: yaml.safe_load(example)})
                continue
            needed = {k: v for k, v in besides.items() if k not in INSTEAD.get(key, ())}
            if key == "rates":
                needed["currency"] = "EUR"
            model.model_validate({**needed, key: yaml.safe_load(example)})
