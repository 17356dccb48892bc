"""The words of a text, in any script: one tokenizer for titles, tags, queries and the search of the storefront page.

Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese put no spaces between words, or also attach what other languages
write as words of their own. Runs of these scripts give each character and each pair of neighbouring characters, as
Lucene's CJK analysis does. This found more than any segmenter tried, and depends on no dictionary whose next version
would split the same text differently (docs/decisions.md).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import add

VERSION = 2
"""Changed with every change to the words of a text. A release records the version that made its vocabulary."""

WORD_CHARACTERS = 40
"""Longer words are truncated to this many characters."""

_BLOCKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17DD),  # Khmer
    (0x3005, 0x3007),
    (0x3021, 0x31FF),  # kana, bopomofo
    (0xA9E0, 0xA9FF),  # Myanmar extended B
    (0xAA60, 0xAA7F),  # Myanmar extended A
)
"""Blocks of the scripts that are read by characters and pairs, bounds included; they also have marks and symbols."""
_LETTERS = (
    "\u1100-\u11ff\ua960-\ua97f\uac00-\ud7ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
"""Blocks of letters alone: Hangul, Chinese characters, and additions to kana."""


def _ranges(numbers: Iterable[int]) -> str:
    """A character class of a regular expression, without its brackets. numbers: code points, ascending."""
    out = []
    for _, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        block = [number for _, number in group]
        out.append(f"\\U{block[0]:08x}-\\U{block[-1]:08x}")
    return "".join(out)


_FIRST = 0x300
# No marks or digits between the scripts of plane 1 and the variation selectors of plane 14, which are dropped.
_CATEGORIES = tuple(map(unicodedata.category, map(chr, range(_FIRST, 0x20000))))


def _of_categories(*names: str) -> Iterator[int]:
    """Code points of these general categories, ascending."""
    return (number for number, name in enumerate(_CATEGORIES, _FIRST) if name in names)


MARKS = _ranges(_of_categories("Mn", "Mc", "Me"))
"""Vowel signs, viramas, tones and other marks, which belong to the letter before them, as the inside of a character
class. `\\w` does not match them."""
_UNSPACED = _LETTERS + _ranges(n for first, last in _BLOCKS for n in range(first, last + 1) if chr(n).isalnum())
_WORD = re.compile(rf"((?:[^\W_{_UNSPACED}][{MARKS}]*)+)|((?:[{_UNSPACED}][{MARKS}]*)+)")
"""A word, or a run of a script without spaces."""
_ASCII_WORD = re.compile("[0-9a-z]+")
_MARK = re.compile(f"[{MARKS}]")
_CHARACTER = re.compile(rf"[{_UNSPACED}][{MARKS}]*")

_DROPPED = re.compile(
    "['’ʼ`\u05f3\u05f4"  # apostrophes, geresh and gershayim
    "\u0300-\u036f"  # accents of Latin, Greek and Cyrillic letters
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"  # Hebrew points
    "\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0640"  # Arabic signs
    "\u093c"  # the nukta of Devanagari, which many leave out
    "\u00ad\u200c-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ufe00-\ufe0f\U000e0100-\U000e01ef]"  # invisible
)
"""Characters that are left out, because some write them and others do not."""

_VARIANTS = {
    # Lucene's normalisation of Arabic, Persian and Hindi: letters that are typed for one another.
    **str.maketrans({"ى": "ي", "ی": "ي", "ې": "ي", "ک": "ك", "ة": "ه", "ۀ": "ه", "ە": "ه", "ँ": "ं"}),
    # Digits of all scripts.
    **{number: str(unicodedata.digit(chr(number))) for number in _of_categories("Nd")},
}


def fold(text: str) -> str:
    """A text without case, accents, vowel points, apostrophes and invisible characters, in Unicode NFKC.

    Digits of all scripts are 0 to 9. The rest is compared: "Café" and "cafe", "ﾗﾝﾌﾟ" and "ランプ", "٣٠" and "30".
    """
    if text.isascii():
        return text.lower().replace("'", "").replace("`", "")
    # Decomposed, the accents are characters of their own. Case folding may undo the normal form.
    text = _DROPPED.sub("", unicodedata.normalize("NFKD", text)).casefold()
    return unicodedata.normalize("NFKC", text.translate(_VARIANTS))


def tokenize(text: str) -> list[str]:
    """The words of a text in order, folded. Scripts without spaces give characters and pairs of them, see `is_part`.

    "Kids' Café-crème" gives kids, cafe, creme; "红木椅 2" gives 红, 红木, 木, 木椅, 椅, 2. A character includes its
    marks, as in "ที่".
    """
    folded = fold(text)
    if folded.isascii():
        return _cut(_ASCII_WORD.findall(folded), WORD_CHARACTERS)
    out: list[str] = []
    for word, run in _WORD.findall(folded):
        if word:
            out.append(word[:WORD_CHARACTERS])
            continue
        found = list(run) if _MARK.search(run) is None else _cut(_CHARACTER.findall(run), WORD_CHARACTERS // 2)
        parts = [""] * (2 * len(found) - 1)
        parts[::2], parts[1::2] = found, map(add, found, found[1:])
        out += parts
    return out


def _cut(words: list[str], most: int) -> list[str]:
    return [word[:most] for word in words]


def is_part(word: str) -> bool:
    """True if a word is a character, or a pair of them, of a script without spaces."""
    return not word.isascii() and _CHARACTER.match(word) is not None


def is_pair(word: str) -> bool:
    """True if a word is a pair of characters of a script without spaces."""
    return is_part(word) and _CHARACTER.fullmatch(word) is None
