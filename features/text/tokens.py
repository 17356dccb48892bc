"""The words of a text: one tokenizer for titles, tags and queries."""

from __future__ import annotations

import re
import unicodedata

WORD_CHARACTERS = 40
"""Longer words are truncated to this many characters."""
_APOSTROPHES = re.compile("['’ʼ`]")
_ACCENTS = re.compile("[̀-ͯ]")
_WORD = re.compile(r"[^\W_]+")


def tokenize(text: str) -> list[str]:
    """The words of a text in order: letters and digits, without case, accents and apostrophes.

    "Kids' Café-crème" gives kids, cafe, creme. Text without spaces is one word, up to the next punctuation mark.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _ACCENTS.sub("", unicodedata.normalize("NFKD", text)))
    return [word[:WORD_CHARACTERS] for word in _WORD.findall(_APOSTROPHES.sub("", text.casefold()))]
