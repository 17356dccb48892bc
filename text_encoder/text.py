"""Item text: a template over attributes, so what the encoder reads is a line of the config.

A prompt that a model asks for ("passage: ") is part of the template, and so part of the encoder's fingerprint.
"""

from __future__ import annotations

import datetime
import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

DEFAULT_TEMPLATE = "{title}. {brand}. {category}. {description}"

MAX_CHARACTERS = 10_000
"""An attribute is cut here: far above what any encoder reads, far below what would stall the tokenizer."""

_SEPARATORS = " \t\n.,;:!?|/-–—·"
_ENDS = ".,;:!?"


class _Piece(NamedTuple):
    before: str
    attribute: str


class _Template(NamedTuple):
    prefix: str
    pieces: tuple[_Piece, ...]
    suffix: str


def _parse(template: str) -> _Template:
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"text template {template!r}: {error}; attributes stand in braces, as in {{title}}") from None
    pieces, literal, prefix = [], "", None
    for text, attribute, spec, conversion in parsed:
        literal += text
        if attribute is None:
            continue
        if spec or conversion or not re.fullmatch(r"[^\W\d][\w -]*", attribute):
            raise ValueError(
                f"text template {template!r}: '{attribute}' is no plain attribute name; "
                "write {name}, without index, format or conversion"
            )
        if prefix is None:
            prefix, literal = literal, ""
        pieces.append(_Piece(literal, attribute))
        literal = ""
    if prefix is None:
        raise ValueError(f"text template {template!r} names no attribute; use for instance {DEFAULT_TEMPLATE!r}")
    return _Template(prefix, tuple(pieces), literal)


def attributes(template: str) -> tuple[str, ...]:
    """The attributes a template names, in order, each once; `ValueError` for a template that cannot be read."""
    return tuple(dict.fromkeys(piece.attribute for piece in _parse(template).pieces))


def _plain(value: str) -> str:
    # A lone surrogate (broken UTF-16 somewhere upstream) would stop the tokenizer.
    return " ".join(value[:MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8").replace("\0", " ").split())


def _number(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.6g}"


def _words(value: object) -> str:
    """One attribute as text, "" where it is missing."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]")  # nanoseconds would turn into a plain number
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    # pandas' own missing values, told by name so that pandas need not be loaded.
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(float(value))
    if isinstance(value, datetime.date):
        return value.isoformat()[:10]
    if isinstance(value, Iterable) and not isinstance(value, bytes | Mapping):
        return _plain(", ".join(word for word in map(_words, value) if word))
    raise TypeError(f"{type(value).__name__} {str(value)[:60]!r}: expected text, a number, a date or a list of these")


def _join(template: _Template, words: Sequence[str]) -> str:
    out = ""
    for piece, word in zip(template.pieces, words, strict=True):
        if not word:
            continue
        before = piece.before if out else piece.before.lstrip(_SEPARATORS)
        # "Hammer!" + ". " + "Acme" reads "Hammer! Acme": the attribute brought its own full stop.
        if out and out[-1] in _ENDS and before[:1] in tuple(_ENDS):
            before = before[1:]
        out += before + word
    return f"{template.prefix}{out}{template.suffix}".strip() if out else ""


def item_texts(template: str, columns: Mapping[str, Sequence[object]]) -> list[str]:
    """The text of every item: `template` with its attributes filled in, "" for an item that has none of them.

    template: attributes in braces, `{{` for a brace. What stands before the first attribute begins every text. What
    stands between two goes with the one after it, and vanishes when that is missing; so does its punctuation at the
    beginning of a text. columns: attribute name to one value an item: text, number, date, or a list of these (joined by
    ", "). None, NaN, infinity, NA, NaT, blank text and the empty list are missing. White space is folded.

    Raises `ValueError` for a template that cannot be read or names an unknown attribute, and for columns of unequal
    length; `TypeError`, naming attribute and row, for a value that is none of these.
    """
    parsed = _parse(template)
    unknown = [p.attribute for p in parsed.pieces if p.attribute not in columns]
    if unknown:
        raise ValueError(
            f"text template {template!r}: unknown attribute '{unknown[0]}'; the items have {', '.join(sorted(columns))}"
        )
    lengths = {piece.attribute: len(columns[piece.attribute]) for piece in parsed.pieces}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"text template {template!r}: columns of unequal length: {lengths}")
    filled = []
    for piece in parsed.pieces:
        words = []
        for row, value in enumerate(columns[piece.attribute]):
            try:
                words.append(_words(value))
            except TypeError as error:
                raise TypeError(f"attribute '{piece.attribute}', row {row}: {error}") from None
        filled.append(words)
    return [_join(parsed, words) for words in zip(*filled, strict=True)]
