"""Text encoding of a file: from its byte order mark, else by decoding all of it, else guessed from its letters."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import charset_normalizer

from offline.runtime import DataError

_CHUNK = 2**20
_SAMPLE = 2**16
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_LEGACY = ("cp932", "gb18030", "euc_jp", "euc_kr", "big5", "cp1251", "cp1253", "cp1250", "cp1252")
"""Encodings that a guess may choose, those that reject more byte sequences first."""
_CENTRAL_EUROPEAN = re.compile(r"[a-z\u00b3][\u00b9\u00b3\u00bf\u00be\u00bc\u00a3\u00a5\u00aa][a-z]|\bz\u00b3(?!\w)")
"""Letters of cp1250 (such as Polish l with stroke) that are signs in cp1252: between letters, or in a currency."""
_KANA = frozenset(map(chr, range(0x3041, 0x3100)))


class Encoding(NamedTuple):
    """name: a Python codec. wrong: bytes that are not valid in it, which are read as U+FFFD."""

    name: str
    wrong: int = 0

    @property
    def is_utf8(self) -> bool:
        """True if the bytes can be read as UTF-8 without conversion."""
        return self.name in ("utf-8", "utf-8-sig") and not self.wrong


def detect_encoding(path: Path) -> Encoding:
    """The encoding of a text file. UTF-8 if all of the file is; else the likeliest of the legacy encodings."""
    with path.open("rb") as file:
        start = file.read(4096)
    for mark, name in _MARKS:
        if start.startswith(mark):
            return Encoding(name)
    zeros = start.count(0)
    if zeros > len(start) // 4:
        return Encoding("utf-16-le" if start[1::2].count(0) >= start[::2].count(0) else "utf-16-be")
    valid, wrong = _count_utf8(path)
    if not wrong:
        return Encoding("utf-8")
    # Some broken characters in a text that is UTF-8 elsewhere.
    if valid > 9 * wrong:
        return Encoding("utf-8", wrong)
    return Encoding(_guess(path))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _count_utf8(path: Path) -> tuple[int, int]:
    """Non-ASCII characters that are valid UTF-8, and invalid sequences."""
    valid = wrong = 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for chunk in (*_chunks(path), b""):
        text = decoder.decode(chunk, final=not chunk)
        if not text.isascii():
            bad = text.count("\ufffd")
            wrong += bad
            valid += sum(c > "\x7f" for c in text[:_SAMPLE]) - text[:_SAMPLE].count("\ufffd")
    return valid, wrong


def _guess(path: Path) -> str:
    lines: list[bytes] = []
    size = 0
    with path.open("rb") as file:
        for line in file:
            if not line.isascii():
                lines.append(line)
                size += len(line)
            if size > _SAMPLE:
                break
    sample = b"".join(lines)
    possible = [name for name in _LEGACY if _decodes(path, name)]
    if "cp932" in possible:
        letters = [c for c in sample.decode("cp932", "ignore") if c > "\x7f"]
        if sum(c in _KANA for c in letters) * 10 > len(letters):
            return "cp932"
    best = charset_normalizer.from_bytes(sample, cp_isolation=possible).best() if possible else None
    if best is not None and best.encoding in ("cp1250", "cp1252") and "cp1252" in possible:
        return "cp1250" if _CENTRAL_EUROPEAN.search(sample.decode("cp1252", "ignore")) else "cp1252"
    if best is not None:
        return best.encoding
    return possible[-1] if possible else "latin-1"


def _decodes(path: Path, name: str) -> bool:
    decoder = codecs.getincrementaldecoder(name)()
    try:
        for chunk in (*_chunks(path), b""):
            decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError:
        return False
    return True


def to_utf8(path: Path, encoding: str, to: Path) -> Path:
    """Convert a file to UTF-8. Invalid bytes become U+FFFD. Raises DataError for an unknown encoding."""
    try:
        decoder = codecs.getincrementaldecoder(encoding)("replace")
    except LookupError:
        raise DataError(f"{encoding!r} is not a text encoding; use utf-8, latin-1, cp1252, ...") from None
    with to.open("wb") as out:
        for chunk in (*_chunks(path), b""):
            out.write(decoder.decode(chunk, final=not chunk).encode("utf-8", "replace"))
    return to
