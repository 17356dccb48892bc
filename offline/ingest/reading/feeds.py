"""XML feeds: each repeated element becomes a row of JSON, with repeated children as lists.

An attribute `id` is the key `@id`; the text of an element that has attributes or children is the key `text`. Namespaces
are dropped. Entities are not expanded and nothing is fetched from the network.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from lxml import etree

from offline.runtime import DataError

_RECORDS = frozenset({"item", "entry", "offer", "product", "category"})
"""Elements that are records even if a feed has only one."""
MOST_DEPTH = 40
MOST_ELEMENTS = 100_000
"""Elements of one record, which is kept in memory."""
_SAMPLE = 20_000

Path_ = tuple[str, ...]


def _local(tag: Any) -> str:
    return str(tag).rsplit("}", 1)[-1]


def _events(path: Path) -> Iterator[tuple[str, etree._Element]]:
    try:
        with path.open("rb") as file:
            # `huge_tree=False` bounds the whole file: 256 levels, 10 MB a text, and entities that multiply.
            parser = etree.iterparse(
                file, events=("start", "end"), resolve_entities=False, no_network=True, huge_tree=False, load_dtd=False
            )
            yield from cast(Iterator[tuple[str, etree._Element]], parser)
    except etree.XMLSyntaxError as error:
        raise DataError(f"{path.name}: is not valid XML ({error}). Export the file again.") from None


def record_paths(path: Path) -> list[Path_]:
    """Paths of the elements that are records: the outermost elements that repeat within one parent."""
    children: list[Counter[str]] = [Counter()]
    names: list[str] = []
    repeated: set[Path_] = set()
    nested: set[Path_] = set()
    for i, (event, element) in enumerate(_events(path)):
        if event == "start":
            name = _local(element.tag)
            names.append(name)
            if len(names) > MOST_DEPTH:
                raise DataError(f"{path.name}: is nested more than {MOST_DEPTH} levels deep.")
            children[-1][name] += 1
            if len(names) > 1 and (children[-1][name] > 1 or name in _RECORDS):
                repeated.add(tuple(names))
            children.append(Counter())
        else:
            if len(element) or element.attrib:
                nested.add(tuple(names))
            names.pop()
            children.pop()
            element.clear()
        if i > _SAMPLE and repeated & nested:
            break
    found = repeated & nested
    return sorted(p for p in found if not any(p[:n] in found for n in range(1, len(p))))


def records(path: Path, record: Path_) -> Iterator[dict[str, Any]]:
    """The elements at one path as objects, in the order of the file."""
    names: list[str] = []
    inside = 0
    for event, element in _events(path):
        if event == "start":
            names.append(_local(element.tag))
            inside = inside + 1 if len(names) > len(record) else 0
            if inside > MOST_ELEMENTS:
                raise DataError(f"{path.name}: a record has more than {MOST_ELEMENTS:,} elements.")
            continue
        here = tuple(names)
        names.pop()
        if here == record:
            value = _value(element)
            yield value if isinstance(value, dict) else {"text": value}
            element.clear()
            while (before := element.getprevious()) is not None:
                cast(Any, before.getparent()).remove(before)
        elif here[: len(record)] != record:
            element.clear()


def _value(element: etree._Element) -> Any:
    out: dict[str, Any] = {f"@{_local(k)}": v for k, v in element.attrib.items()}
    for child in element:
        if not isinstance(child.tag, str):
            continue
        name, value = _local(child.tag), _value(child)
        if name not in out:
            out[name] = value
        elif isinstance(out[name], list):
            out[name].append(value)
        else:
            out[name] = [out[name], value]
    text = (element.text or "").strip()
    if not out:
        return text or None
    if text:
        out["text"] = text
    return out


def to_lines(path: Path, record: Path_, to: Path) -> Path:
    """Write the elements at one path as JSON lines."""
    with to.open("w", encoding="utf-8") as out:
        for value in records(path, record):
            out.write(json.dumps(value, ensure_ascii=False) + "\n")
    return to
