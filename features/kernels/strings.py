"""Many strings as two arrays, and the place of any of them found in compiled code.

A million ids in a Python list and a dict are 140 MB of each process, and each is found by several reads all over
memory, one waiting for the other. As arrays they may be a file that processes share, and many are found in a quarter
of the time, as the reads of one do not wait for those of another.
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


class Texts(Sequence[str]):
    """Strings by number, as a list gives them: from the end below 0, a list of them for a slice. `_text` says one."""

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


class Strings(Texts):
    """Many strings in two arrays: string i is `text[start[i]:start[i + 1]]` in UTF-8. Decoded when asked for.

    start: int64[n + 1]. text: uint8[bytes]. Lone surrogates are kept, as their three bytes.
    """

    def __init__(self, start: I64, text: U8) -> None:
        # Read-only and writable arrays are two types to numba; a release's are read-only.
        self.start, self.text = start.view(), text.view()
        self.start.flags.writeable = self.text.flags.writeable = False

    @classmethod
    def of(cls, strings: Sequence[str]) -> Strings:
        """The same strings as arrays."""
        encoded = [s.encode("utf-8", "surrogatepass") for s in strings]
        start = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(e) for e in encoded], out=start[1:])
        return cls(start, np.frombuffer(b"".join(encoded), np.uint8))

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The two arrays, under the names a release gives them."""
        return {f"{name}_start": self.start, f"{name}_text": self.text}

    def part(self, begin: int, end: int) -> Strings:
        """Strings `begin` up to, not including, `end`, of the same arrays."""
        return Strings(self.start[begin : end + 1], self.text)

    def __len__(self) -> int:
        return len(self.start) - 1

    def _text(self, i: int) -> str:
        return self.text[self.start[i] : self.start[i + 1]].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        text, start = self.text.tobytes(), self.start.tolist()
        return (text[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(start))


@compiled
def _hash(text: U8, first: int, end: int) -> np.uint64:
    """FNV-1a of 64 bits, then mixed as in SplitMix64, as FNV's own high bits know little of the last bytes."""
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
    """uint64[n]: a hash of each string, the same on every machine; two of a billion meet once in forty tries."""
    return _hashes(strings.start, strings.text)


@compiled
def _home(h: np.uint64, slots: int) -> np.int64:
    return np.int64(((h & np.uint64(0xFFFFFFFF)) * np.uint64(slots)) >> np.uint64(32))


@compiled
def _probed(slot: U64, start: I64, text: U8, h: np.uint64, given: U8, first: int, end: int) -> np.int64:
    """The slot where a string stands, or the empty one where it would."""
    low, high = np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFF00000000)
    at = _home(h, len(slot))
    while slot[at] != 0:
        if slot[at] & high == h & high:
            row = np.int64(slot[at] & low) - 1
            if start[row + 1] - start[row] == end - first:
                same = True
                for k in range(end - first):
                    if text[start[row] + k] != given[first + k]:
                        same = False
                        break
                if same:
                    return at
        at = np.int64((at + 1) % len(slot))
    return at


@compiled
def _filled(start: I64, text: U8) -> U64:
    slot = np.zeros(2 * len(start), np.uint64)  # at most half full: few are met on the way
    for row in range(len(start) - 1):
        h = _hash(text, start[row], start[row + 1])
        at = _probed(slot, start, text, h, text, start[row], start[row + 1])
        slot[at] = (h & np.uint64(0xFFFFFFFF00000000)) | np.uint64(row + 1)
    return slot


@compiled
def _found(slot: U64, start: I64, text: U8, given: U8, end: I64, skip: int) -> tuple[I32, int]:
    """(places, nothing of use).

    Memory is the whole cost. One string after the other, each would wait three times; so first every slot is read,
    then every start, then every text, in loops so short that the processor has many reads under way at once.
    """
    count = len(end)
    out, h, likely = np.empty(count, np.int32), np.empty(count, np.uint64), np.empty(count, np.int64)
    first, touched = 0, 0
    for i in range(count):
        h[i] = _hash(given, first + skip, end[i])
        first = end[i]
    for i in range(count):
        likely[i] = np.int64(slot[_home(h[i], len(slot))] & np.uint64(0xFFFFFFFF))
    for i in range(count):
        likely[i] = start[likely[i] - (likely[i] > 0)]
    for i in range(count):
        if likely[i] < len(text):
            touched ^= text[likely[i]]
    first = 0
    for i in range(count):
        at = _probed(slot, start, text, h[i], given, first + skip, end[i])
        out[i] = np.int32(np.int64(slot[at] & np.uint64(0xFFFFFFFF)) - 1)
        first = end[i]
    return out, touched


@compiled
def _ends(text: U8, count: int) -> I64:
    """Where each of `count` strings ends that stand behind a zero each; another number of them where one holds zero."""
    out = np.empty(count, np.int64)
    seen = 0
    for k in range(1, len(text)):
        if text[k] == 0:
            seen += 1
            if seen == count:
                return np.empty(0, np.int64)
            out[seen - 1] = k
    out[seen] = len(text)
    return out


@dataclass(frozen=True)
class Places:
    """Where each of many strings stands among them; of equal ones, the last.

    slot: uint64[2n + 2], open addressing: the upper half of the string's hash and its place + 1, or 0 for none.
    """

    strings: Strings
    slot: U64

    @classmethod
    def of(cls, strings: Strings) -> Places:
        """Made in a tenth of a microsecond a string."""
        return cls(strings, _filled(strings.start, strings.text))

    def find(self, strings: Iterable[str]) -> I32:
        """int32: the place of each string, `-1` for one that is not among them."""
        given = strings if isinstance(strings, list) else list(strings)
        if not given:
            return np.empty(0, np.int32)
        joined = ("\0" + "\0".join(given)).encode("utf-8", "surrogatepass")
        text = np.frombuffer(joined, np.uint8)
        end = _ends(text, len(given))
        if len(end) != len(given):  # a string holds the separator itself
            end = np.cumsum([1 + len(s.encode("utf-8", "surrogatepass")) for s in given])
        return self.find_bytes(text, end, 1)

    def find_bytes(self, text: U8, end: I64, skip: int) -> I32:
        """The same for strings in UTF-8 that stand in one text, each after `skip` bytes of something else.

        text: uint8[bytes], read-only. end: int64[n], ascending by at least `skip`: string i is
        `text[end[i - 1] + skip : end[i]]`, the first from 0.
        """
        return _found(self.slot, self.strings.start, self.strings.text, text, end, skip)[0]
