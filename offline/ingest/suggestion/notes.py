"""YAML with comments: values that carry a note for the reader of a draft."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

_LINE = 110


@dataclass(frozen=True)
class Noted:
    """A value and the comment that is printed beside it, or above it if it is long or has parts."""

    value: Any
    note: str


def to_yaml(value: Any, indent: int = 0) -> list[str]:
    """Lines of YAML for dicts, lists and scalars, some of them `Noted`."""
    return list(_lines(value, " " * indent))


def _lines(value: Any, pad: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _entry(f"{pad}{scalar(key)}:", inner, pad)
        return
    for inner in value:
        note, plain = _parts(inner)
        yield from (f"{pad}# {line}" for line in note)
        if not isinstance(plain, dict):
            yield f"{pad}- {_flow(plain)}"
            continue
        # The first key follows the dash; comments above it go above the dash.
        started = False
        for line in _lines(plain, pad + "  "):
            if started or line.strip().startswith("#"):
                yield line if started else line[2:]
            else:
                started = True
                yield f"{pad}- {line.strip()}"


def _entry(start: str, value: Any, pad: str) -> Iterator[str]:
    note, plain = _parts(value)
    line = "" if _has_notes(plain) else f"{start} {_flow(plain)}"
    if not isinstance(plain, dict | list) or (line and len(line) <= _LINE):
        if len(note) == 1 and len(line) + len(note[0]) <= _LINE:
            yield f"{line}  # {note[0]}"
            return
        yield from (f"{pad}# {text}" for text in note)
        yield line
        return
    yield from (f"{pad}# {text}" for text in note)
    yield start
    yield from _lines(plain, pad + "  ")


def _parts(value: Any) -> tuple[list[str], Any]:
    return (wrap(value.note), value.value) if isinstance(value, Noted) else ([], value)


def _has_notes(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(v, Noted) or _has_notes(v) for v in inner)


def wrap(text: str) -> list[str]:
    """A comment as lines of readable length."""
    out, line = list[str](), ""
    for word in one_line(text).split(" "):
        if line and len(line) + len(word) > _LINE - 5:
            out.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return [*out, line] if line else out


def one_line(text: str) -> str:
    """Text on one line, with characters that YAML cannot hold replaced."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def scalar(value: Any) -> str:
    """A value as one line of YAML."""
    return yaml.safe_dump(value, width=10**9, allow_unicode=True).removesuffix("\n").removesuffix("\n...")


def _flow(value: Any) -> str:
    """A value on one line, also a dict or list."""
    if not isinstance(value, dict | list):
        return scalar(value)
    flow = yaml.safe_dump(value, width=10**9, allow_unicode=True, default_flow_style=True, sort_keys=False)
    return str(flow).strip()
