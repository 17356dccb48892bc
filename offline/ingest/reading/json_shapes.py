"""Shapes of JSON files: lines, an array, an object that holds a list, bulk lines, and lines of Python literals."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from offline.runtime import DataError

MAX_LINE = 16 * 2**20
_SAMPLE = 2**22
_WHOLE = 2**30
"""Largest object that is read at once: one object around the list of records."""

Shape = Literal["lines", "array", "object", "bulk", "literals"]
_BULK = frozenset({"index", "create", "update", "delete"})
_LINES = (".jsonl", ".ndjson")
_OF_A_RECORD = re.compile(r"(?:.*[^a-z])?(?:id|sku|handle|slug|title|event|event_?name|event_?type)|.*(?:Id|ID|Sku)")
"""Keys that a record has, and an object around a list of records has not."""


def find_shape(path: Path) -> Shape:
    """The shape of a UTF-8 JSON file, from its beginning.

    A file of one object is one record if its name or a key says so, such as an ID, else an object around a list.
    """
    with path.open("rb") as file:
        start = file.read(_SAMPLE).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        return "array"
    first, _, rest = start.partition(b"\n")
    value = _decode(first)
    if isinstance(value, dict) and path.suffix.lower() in _LINES and not _is_bulk(value):
        return "lines"
    if value is None:
        return "literals" if _literal(first) is not None else "object" if _is_open(first) else "lines"
    if isinstance(value, dict) and not rest.strip() and _records(value) is not None:
        return "object"
    return "bulk" if isinstance(value, dict) and _is_bulk(value) else "lines"


def _is_bulk(value: Mapping[str, Any]) -> bool:
    """True if an object is the action line of a bulk file."""
    if len(value) != 1 or next(iter(value)) not in _BULK:
        return False
    inner = next(iter(value.values()))
    return isinstance(inner, dict) and ("_id" in inner or "_index" in inner)


def _is_open(line: bytes) -> bool:
    """True if a line only begins an object, as in a pretty-printed file."""
    return line.lstrip().startswith(b"{") and not line.rstrip().endswith(b"}")


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _literal(line: bytes) -> Any:
    try:
        value = ast.literal_eval(line.decode("utf-8").strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, dict) else None


def _records(value: Mapping[str, Any]) -> list[Any] | None:
    """The longest list of objects in an object, at most three levels down. None if there is none, or in a record."""
    if any(_OF_A_RECORD.fullmatch(key) and not isinstance(inner, dict | list) for key, inner in value.items()):
        return None
    found: list[list[Any]] = []

    def look(inner: Any, depth: int) -> None:
        if isinstance(inner, list) and inner and all(isinstance(x, dict) for x in inner):
            found.append(inner)
        elif isinstance(inner, dict) and depth < 3:
            for child in inner.values():
                look(child, depth + 1)

    for child in value.values():
        look(child, 1)
    return max(found, key=len, default=None)


def sample_records(path: Path, shape: Shape, most: int) -> list[dict[str, Any]]:
    """The first objects of a file; fewer if its beginning holds fewer. Lines that cannot be read are skipped."""
    if shape == "object":
        return [r for r in _read_object(path) if isinstance(r, dict)][:most]
    if shape == "array":
        return _of_array(path, most)
    out: list[dict[str, Any]] = []
    for line in _lines(path):
        value = _literal(line) if shape == "literals" else _decode(line)
        if isinstance(value, dict):
            out.append(value)
        if len(out) >= most:
            break
    return out


def _of_array(path: Path, most: int) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        text = file.read(_SAMPLE).decode("utf-8-sig", "ignore")
    decoder, at, out = json.JSONDecoder(), text.find("[") + 1, list[dict[str, Any]]()
    while len(out) < most:
        at += len(text[at : at + 1000]) - len(text[at : at + 1000].lstrip(" \t\r\n,"))
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        if isinstance(value, dict):
            out.append(value)
    return out


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE):
            yield line.removeprefix(b"\xef\xbb\xbf")


def _read_object(path: Path) -> list[Any]:
    if path.stat().st_size > _WHOLE:
        raise DataError(f"{path.name}: one object of {path.stat().st_size:,} bytes. Export JSON lines instead.")
    text = path.read_text("utf-8-sig", "replace")
    try:
        value = json.loads(text)
    except RecursionError:
        raise DataError(f"{path.name}: is nested too deeply.") from None
    except ValueError:
        return _concatenated(path.name, text)
    if isinstance(value, dict):
        return _records(value) or [value]
    return value if isinstance(value, list) else []


def _concatenated(name: str, text: str) -> list[Any]:
    """Objects that follow one another without commas, each over several lines."""
    decoder, at, out = json.JSONDecoder(), 0, []
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError as error:
            line = text.count("\n", 0, at) + 1
            raise DataError(f"{name}, line {line}: is not valid JSON ({error}). Export the file again.") from None
        out.append(value)
    return out


def to_lines(path: Path, shape: Shape, to: Path) -> Path:
    """Write the records of an object, of bulk lines or of Python literals as JSON lines.

    Lines that cannot be read stay as they are, so that reading reports them. A bulk document gets the fields of its
    action line as `_id`, `_index` and `_action`.
    """
    with to.open("wb") as out:
        for line in _converted(path, shape):
            out.write(line + b"\n")
    return to


def _converted(path: Path, shape: Shape) -> Iterator[bytes]:
    if shape == "object":
        yield from (_encode(record) for record in _read_object(path))
    elif shape == "literals":
        for line in _lines(path):
            value = _literal(line)
            yield line.rstrip(b"\r\n") if value is None else _encode(value)
    else:
        yield from _documents(path)


def _documents(path: Path) -> Iterator[bytes]:
    action: dict[str, Any] | None = None
    for line in _lines(path):
        value = _decode(line)
        if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in _BULK and action is None:
            name, inner = next(iter(value.items()))
            inner = inner if isinstance(inner, dict) else {}
            action = {"_action": name, **{k: v for k, v in inner.items() if k in ("_id", "_index")}}
            if name == "delete":
                yield _encode(action)
                action = None
        elif isinstance(value, dict):
            yield _encode({**(action or {}), **value})
            action = None
        elif line.strip():
            yield line.rstrip(b"\r\n")


def _encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "replace")
