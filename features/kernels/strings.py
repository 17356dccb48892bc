"""Many strings in two arrays, with a compiled lookup of their positions.

A million ids in a Python list and a dict take 140 MB of each process, and every lookup is several dependent reads from
scattered memory. As arrays they can be a file that processes share, and many are looked up in a quarter of the time,
because the reads for different strings overlap.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from features.arrays import I32, I64
from features.kernels.compiled import compiled

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]


class StringSequence(Sequence[str]):
    """Sequence of strings that is indexed like a list: negative indices count from the end, a slice gives a list.

    Subclasses define `_text`.
    """

    @abstractmethod
    def _text(self, i: int) -> str:
        """String i, 0 to below the length."""

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = i + len(self) if i < 0 else i
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self._text(i)


class Strings(StringSequence):
    """Many strings in two arrays: string i is `text[start[i]:start[i + 1]]` in UTF-8, decoded on access.

    start: int64[n + 1]. text: uint8[bytes]. Lone surrogates are kept, as three bytes each.
    """

    def __init__(self, start: I64, text: U8) -> None:
        # Read-only and writable arrays are two types to numba; those of a release are read-only.
        self.start, self.text = start.view(), text.view()
        self.start.flags.writeable = self.text.flags.writeable = False

    @classmethod
    def of(cls, strings: Sequence[str]) -> Strings:
        """Encode a sequence of strings."""
        encoded = [s.encode("utf-8", "surrogatepass") for s in strings]
        start = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(e) for e in encoded], out=start[1:])
        return cls(start, np.frombuffer(b"".join(encoded), np.uint8))

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The two arrays, by their names in a release."""
        return {f"{name}_start": self.start, f"{name}_text": self.text}

    def part(self, begin: int, end: int) -> Strings:
        """Strings `begin` up to, not including, `end`, sharing the arrays."""
        return Strings(self.start[begin : end + 1], self.text)

    def at(self, rows: I32) -> list[str]:
        """The strings at these positions, from 0; several times faster than one after the other."""
        text, first, end = self.text.data, self.start[rows].tolist(), self.start[rows + 1].tolist()
        return [str(text[a:b], "utf-8", "surrogatepass") for a, b in zip(first, end, strict=True)]

    def __len__(self) -> int:
        return len(self.start) - 1

    def _text(self, i: int) -> str:
        return self.text[self.start[i] : self.start[i + 1]].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        text, start = self.text.tobytes(), self.start.tolist()
        return (text[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(start))


@compiled
def _hash(text: U8, first: int, end: int) -> np.uint64:
    """64-bit FNV-1a, mixed as in SplitMix64, because the high bits of FNV depend little on the last bytes."""
    h = np.uint64(0xCBF29CE484222325)
    for k in range(first, end):
        h = np.uint64(h ^ np.uint64(text[k])) * np.uint64(0x100000001B3)
    h = np.uint64(h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = np.uint64(h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.uint64(h ^ (h >> np.uint64(31)))


@compiled
def _hashes(start: I64, text: U8) -> U64:
    out = np.empty(len(start) - 1, np.uint64)
    for i in range(len(out)):
        out[i] = _hash(text, start[i], start[i + 1])
    return out


def hashes(strings: Strings) -> U64:
    """uint64[n]: a hash of each string, the same on every machine; a billion strings collide with probability 1/40."""
    return _hashes(strings.start, strings.text)


@compiled
def _first_slot(h: np.uint64, slots: int) -> np.int64:
    return np.int64(((h & np.uint64(0xFFFFFFFF)) * np.uint64(slots)) >> np.uint64(32))


@compiled
def _probe(slot: U64, start: I64, text: U8, h: np.uint64, query: U8, first: int, end: int) -> np.int64:
    """The slot of a string, or the empty slot where it would be inserted."""
    low, high = np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFF00000000)
    at = _first_slot(h, len(slot))
    while slot[at] != 0:
        if slot[at] & high == h & high:
            row = np.int64(slot[at] & low) - 1
            if start[row + 1] - start[row] == end - first:
                same = True
                for k in range(end - first):
                    if text[start[row] + k] != query[first + k]:
                        same = False
                        break
                if same:
                    return at
        at = np.int64((at + 1) % len(slot))
    return at


@compiled
def _fill_slots(start: I64, text: U8) -> U64:
    slot = np.zeros(2 * len(start), np.uint64)  # at most half full, which keeps probes short
    for row in range(len(start) - 1):
        h = _hash(text, start[row], start[row + 1])
        at = _probe(slot, start, text, h, text, start[row], start[row + 1])
        slot[at] = (h & np.uint64(0xFFFFFFFF00000000)) | np.uint64(row + 1)
    return slot


@compiled
def _find_all(slot: U64, start: I64, text: U8, query: U8, end: I64, skip: int) -> tuple[I32, int]:
    """(positions, a meaningless value that keeps the early reads from being optimised away).

    Nearly all of the time is spent waiting for memory. Looked up one after another, each string would wait three times.
    So first every slot is read, then every start, then every text, in loops short enough that the processor has many
    reads in flight.
    """
    count = len(end)
    out, h, likely = np.empty(count, np.int32), np.empty(count, np.uint64), np.empty(count, np.int64)
    first, touched = 0, 0
    for i in range(count):
        h[i] = _hash(query, first + skip, end[i])
        first = end[i]
    for i in range(count):
        likely[i] = np.int64(slot[_first_slot(h[i], len(slot))] & np.uint64(0xFFFFFFFF))
    for i in range(count):
        likely[i] = start[likely[i] - (likely[i] > 0)]
    for i in range(count):
        if likely[i] < len(text):
            touched ^= text[likely[i]]
    first = 0
    for i in range(count):
        at = _probe(slot, start, text, h[i], query, first + skip, end[i])
        out[i] = np.int32(np.int64(slot[at] & np.uint64(0xFFFFFFFF)) - 1)
        first = end[i]
    return out, touched


@compiled
def _ends(text: U8, count: int) -> I64:
    """int64[count]: end of each of `count` strings, a zero byte before each; empty if a string contains a zero."""
    out = np.empty(count, np.int64)
    found = 0
    for k in range(1, len(text)):
        if text[k] == 0:
            found += 1
            if found == count:
                return np.empty(0, np.int64)
            out[found - 1] = k
    out[found] = len(text)
    return out


@dataclass(frozen=True)
class StringIndex:
    """Index of many strings: the position of each, and of equal strings that of the last.

    slot: uint64[2n + 2], open addressing: upper half of the string's hash and its position + 1, or 0 if empty.
    """

    strings: Strings
    slot: U64

    @classmethod
    def of(cls, given: Sequence[str]) -> StringIndex:
        """Build the index; takes about 0.1 us per string of `Strings`, which others are first made into."""
        strings = given if isinstance(given, Strings) else Strings.of(given)
        return cls(strings, _fill_slots(strings.start, strings.text))

    def find(self, strings: Iterable[str]) -> I32:
        """int32: the position of each string, `-1` if it is not in the index."""
        queries = strings if isinstance(strings, list) else list(strings)
        if not queries:
            return np.empty(0, np.int32)
        joined = ("\0" + "\0".join(queries)).encode("utf-8", "surrogatepass")
        text = np.frombuffer(joined, np.uint8)
        end = _ends(text, len(queries))
        if len(end) != len(queries):  # a string holds the separator itself
            end = np.cumsum([1 + len(s.encode("utf-8", "surrogatepass")) for s in queries])
        return self.find_bytes(text, end, 1)

    def find_bytes(self, text: U8, end: I64, skip: int) -> I32:
        """`find` for strings in UTF-8 that are stored in one array, each after `skip` other bytes.

        text: uint8[bytes], read-only. end: int64[n], ascending by at least `skip`: string i is
        `text[end[i - 1] + skip : end[i]]`, the first from 0.
        """
        return _find_all(self.slot, self.strings.start, self.strings.text, text, end, skip)[0]
