"""Language of a catalogue: whether the encoder that was trained on English text suits it.

A text is foreign if more than a quarter of its letters are not Latin, or if it has more of the short words that are
frequent in some other language, such as "und" and "para", than of those of English. It is English if it has more
English ones. Other texts, such as a brand and a number, say nothing. A catalogue is not English if at least a fifth of
the texts that say something, and one in twenty of all, are foreign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from features.text.tokens import fold, tokenize

SAMPLE = 2_000
"""Texts that are looked at, at even intervals."""
_CHARACTERS = 1_000
"""Characters that are read of each text."""
_FOREIGN_LETTERS = 0.25
_FOREIGN_TEXTS = 0.2
_FOREIGN_OF_ALL = 0.05


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


_ENGLISH = _words("the and for with of is this that from to are your it you on by as at be or can")
_FOREIGN = _words(
    # Folded, and without words that English also has: die, van, met, per, pro, do, com.
    "und der das mit fur von ein eine einen aus ist nicht auch zum zur oder wird sind bei",  # German
    "les des une est pour avec dans sur vous aux et du qui",  # French
    "los las una para con por del que mas su es",  # Spanish
    "il della di che gli nel alla piu sono dei delle",  # Italian
    "uma nao voce dos seu em ao pela",  # Portuguese
    "het een voor niet zijn ook deze naar uw wordt",  # Dutch
    "nie jest dla sie oraz przez na",  # Polish
    "je jsou ktery pri nebo ze",  # Czech
    "och att som med ett inte pa av og til ikke det af",  # Swedish, Danish, Norwegian
    "ja ei etta seka kuin ovat",  # Finnish
    "ve bir icin ile bu olarak cok",  # Turkish
    "va cua cho voi cac la mot",  # Vietnamese
    "dan yang dengan untuk dari ini",  # Indonesian, Malay
    "egy az hogy nem si pentru cu este din",  # Hungarian, Romanian
)


class Languages(NamedTuple):
    """Numbers of texts by language: read, English and foreign. The others say nothing."""

    texts: int
    english: int
    foreign: int

    @property
    def is_english(self) -> bool:
        """True if the catalogue is in English, which one without words is as well."""
        judged = self.english + self.foreign
        return self.foreign < max(_FOREIGN_TEXTS * judged, _FOREIGN_OF_ALL * self.texts, 1)


def languages(texts: Sequence[str]) -> Languages:
    """Count the languages of a sample of texts; blank ones are left out."""
    rows = np.linspace(0, len(texts) - 1, min(SAMPLE, len(texts))).astype(np.int64).tolist()
    sample = [text for text in (texts[row][:_CHARACTERS] for row in rows) if text.strip()]
    signs = [_sign(text) for text in sample]
    return Languages(len(sample), signs.count(1), signs.count(-1))


def _sign(text: str) -> int:
    """1 for English, -1 for foreign, 0 if the text does not say."""
    letters = [letter for letter in fold(text) if letter.isalpha()]
    if sum(not _is_latin(letter) for letter in letters) > _FOREIGN_LETTERS * len(letters):
        return -1
    words = tokenize(text)
    english, foreign = sum(word in _ENGLISH for word in words), sum(word in _FOREIGN for word in words)
    return (english > foreign) - (english < foreign)


def _is_latin(letter: str) -> bool:
    return letter < "\u0250" or "\u1e00" <= letter < "\u1f00"
