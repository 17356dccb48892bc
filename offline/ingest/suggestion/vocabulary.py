"""Words of column names, file names and cells in several languages, and the concepts they stand for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from features.log import GA4, KINDS
from features.text.tokens import MARKS
from offline.config import DROP

_LETTERS = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe"})
_BRACKETS = re.compile(r"[(\[{（［【].*?[)\]}）］】]")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SEPARATOR = rf"(?:(?![{MARKS}])[\W_])+"
"""Not the marks of a word, such as the vowel signs of Thai."""
_SEPARATORS = re.compile(rf"{_SEPARATOR}|(?<=\D)(?=\d)")
_LINKS = ("", "s", "n", "e", "en", "es", "er")
"""Letters between the parts of a compound: `Kunde-n-nummer`."""
_UNSPACED = re.compile("[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]{2,}")
"""Words of Chinese, Japanese and Korean."""
_SHORTEST = 3
_SHORT_ENDS = frozenset({"id", "nr", "no", "ts", "am", "ab"})


class Name(NamedTuple):
    """Meaning of a name. concepts: of its words. unknown: number of other words. level: number at its end."""

    concepts: frozenset[str]
    unknown: int = 0
    level: int | None = None


@cache
def _data() -> Mapping[str, Mapping[str, str] | str]:
    out: Mapping[str, Mapping[str, str] | str] = yaml.safe_load(
        (Path(__file__).parent / "words.yaml").read_text("utf-8")
    )
    return out


def fold(text: str) -> str:
    """Text in lower case, with full-width forms narrowed and accents of Latin letters removed."""
    out = []
    for letter in unicodedata.normalize("NFKC", text).casefold().translate(_LETTERS):
        base = unicodedata.normalize("NFD", letter)
        out.append(base[0] if base[0].isascii() else letter)
    return "".join(out)


@cache
def _concept_of() -> Mapping[str, str]:
    """Concept by folded word. A word of several concepts has the first."""
    out: dict[str, str] = {}
    concepts = _data()["concepts"]
    assert isinstance(concepts, dict)
    for concept, words in concepts.items():
        for word in words.split():
            out.setdefault(fold(word).replace("_", ""), concept)
    return out


@cache
def _set(key: str) -> frozenset[str]:
    words = _data()[key]
    assert isinstance(words, str)
    return frozenset(map(fold, words.split()))


@cache
def understand(name: str) -> Name:
    """Concepts of a column's or a file's name. Text in brackets is ignored, unless it is all there is."""
    plain = _BRACKETS.sub(" ", unicodedata.normalize("NFKC", name))
    if not plain.strip():
        plain = name
    tokens = [fold(t) for t in _SEPARATORS.split(_CAMEL.sub(" ", plain)) if t]
    level = None
    if len(tokens) > 1 and tokens[-1].isdigit():
        level = int(tokens.pop())
    known: set[str] = set()
    unknown = 0
    whole = _concept_of().get("".join(tokens))
    if whole is not None:
        return Name(frozenset({whole}), 0, level)
    for token in tokens:
        stem = next(
            (t for t in (token, token[:-1], token[:-2]) if t in _concept_of() and len(t) >= _stem(t, token)), ""
        )
        if stem:
            known.add(_concept_of()[stem])
        elif token not in _set("fillers") and not token.isdigit():
            parts, rest = _split(token)
            known |= parts
            unknown += rest
    return Name(frozenset(known), unknown, level)


def _stem(stem: str, token: str) -> int:
    """Least number of letters of a word that may have other endings: `titles`, `заказа`."""
    return 1 if stem == token else 4


def _split(token: str) -> tuple[set[str], int]:
    """Concepts of the parts of a compound, and 1 if there are other parts.

    A script with spaces has compounds of known words only; Chinese and Japanese names may have unknown parts.
    """
    words, spaced = _concept_of(), token.isascii()
    best: list[tuple[int, int, list[str]] | None] = [(0, 0, []), *([None] * len(token))]
    for end in range(1, len(token) + 1):
        options = []
        if not spaced and (before := best[end - 1]):
            options.append((before[0] + 1, before[1], before[2]))
        for start in range(end):
            if (before := best[start]) is None:
                continue
            for link in _LINKS if spaced and start else ("",):
                word = token[start:end].removeprefix(link) if link else token[start:end]
                if link and not token[start:end].startswith(link):
                    continue
                short = spaced and len(word) < _SHORTEST and not (end == len(token) and word in _SHORT_ENDS)
                if word in words and not short:
                    options.append((before[0] + len(link), before[1] + 1, [*before[2], words[word]]))
        best[end] = min(options, key=lambda o: o[:2], default=None)
    found = best[-1]
    if found is None or not found[2]:
        return set(), 1
    return set(found[2]), int(not spaced and found[0] > 0)


def _phrase(word: str) -> str:
    return re.sub(_SEPARATOR, "_", fold(word)).strip("_")


@cache
def _kinds() -> Mapping[str, str]:
    kinds = _data()["kinds"]
    assert isinstance(kinds, dict)
    return {**{_phrase(w): kind for kind, words in kinds.items() for w in words.split()}, **GA4}


def kind_of(name: str) -> str | None:
    """Event kind of an event name, `drop` for what shoppers do otherwise or undo, None if it is not known."""
    phrase = _phrase(name)
    if phrase in KINDS:
        return phrase
    words = {phrase, phrase.replace("_", ""), *phrase.split("_")}
    if words & _set("others") or is_cancelled(name) or phrase.startswith(("remove", "unlike", "un_")):
        return DROP
    for exact in (phrase, phrase.replace("_", "")):
        if exact in _kinds():
            return _kinds()[exact]
    kinds = {_kinds()[word] for word in words if word in _kinds()}
    return kinds.pop() if len(kinds) == 1 else None


def is_cancelled(word: str) -> bool:
    """True if a status, or one of its words, says that nothing was bought after all."""
    phrase = _phrase(word)
    words = {phrase, *phrase.split("_")}
    negated = {"not", "non", "nicht", "no", "un"} & words
    # Scripts without spaces write `キャンセル確定` for a cancellation that is confirmed.
    inside = any(part in phrase for part in _set("cancelled") if _UNSPACED.fullmatch(part))
    return (bool(words & _set("cancelled")) or inside) and not negated


def is_not_sold(word: str) -> bool:
    """True if a product's status says that it is not for sale."""
    return _phrase(word) in _set("not_sold")


def is_nobody(word: str) -> bool:
    """True if a text stands for a missing shopper."""
    return fold(word.strip()) in _set("nobody")


def is_not_a_product(item_id: str) -> bool:
    """True if an item ID names postage, a fee, a discount or the like."""
    return _phrase(item_id) in _set("not_products")
