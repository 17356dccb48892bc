"""The reference page of the configuration is complete, and current."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from offline.config import fields, reference
from offline.config.configuration import Config
from tests import ROOT


def declarations(model: type[BaseModel] = Config, at: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field of the configuration with its path."""
    for key, field in fields.names(model).items():
        path = f"{at}.{key}".removeprefix(".")
        yield path, field
        if part := fields.section(field):
            yield from declarations(part, path)


def test_the_committed_page_is_the_one_made_from_the_models() -> None:
    """If this fails, run `make reference`."""
    assert (ROOT / "docs" / "configuration.md").read_text("utf-8") == reference.page()


def test_every_key_has_a_description() -> None:
    """A section may have the docstring of its model instead."""
    without = [p for p, f in declarations() if not f.description and not (fields.section(f) or BaseModel).__doc__]
    assert without == []


def test_every_key_without_a_default_to_show_has_an_example() -> None:
    """The form of a value cannot be seen from null or an empty list. Imports have an example of the whole section."""
    empty = [
        path
        for path, field in declarations()
        if not path.startswith("import") and not fields.section(field) and not field.examples
        if not field.is_required() and field.get_default() in (None, (), {}, "")
    ]
    assert empty == []


def test_a_key_shows_type_range_and_default() -> None:
    """`serving.port` is an integer from 1 to 65535, 8000 by default; `gate.mode` is one of three words."""
    lines = reference.page().splitlines()
    assert "| `port` | whole number >= 1 and &lt;= 65535 | `8000` | TCP port to listen on. |" in lines
    (mode,) = [line for line in lines if line.startswith("| `mode` | `auto`")]
    assert mode.split(" | ")[1:3] == [", ".join(f"`{m}`" for m in ("auto", "ask", "shadow")), "`auto`"]
