"""Arrays in files that grow at their ends and are then mapped: what a log becomes, a span of time after the other.

Also the numbers that ids get on the way. What is held in memory is of the last days, whatever the length of the log.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.arrays import I32, I64, U64
from features.kernels.strings import Strings, hashes
from offline.data.partitions import DAY_US

DUPLICATE_WINDOW_US = 2 * DAY_US
"""What is told again within this time counts once, as at the service's own door."""
ID_LIFETIME_US = 100 * DAY_US
"""The id of a list or a visit that was not met for so long is another one's when it comes again."""


class AppendOnlyArrays:
    """Arrays that grow at their ends, in files without a name: they go with the arrays, or with a killed process."""

    def __init__(self, scratch: Path, types: Mapping[str, type]) -> None:
        """scratch: a directory on the disk that is to hold them. types: of each array by its name."""
        self._types, self._stack = types, ExitStack()
        self._files = {n: self._stack.enter_context(tempfile.TemporaryFile(dir=scratch)) for n in types}  # noqa: SIM115

    def append(self, **arrays: NDArray[Any]) -> None:
        """Rows at the end of each array named."""
        for name, array in arrays.items():
            self._files[name].write(np.ascontiguousarray(array, self._types[name]).data)

    def mapped(self) -> dict[str, NDArray[Any]]:
        """The arrays, their files mapped, to be read also once this is closed; nothing can be added any more."""
        out: dict[str, NDArray[Any]] = {}
        for name, kind in self._types.items():
            file = self._files[name]
            file.flush()
            rows = file.tell() // np.dtype(kind).itemsize
            # A plain view: what is sent to another process goes as numbers, not as a file.
            out[name] = np.memmap(file, kind, "r", shape=(rows,)).view(np.ndarray) if rows else np.empty(0, kind)
        return out

    def __enter__(self) -> AppendOnlyArrays:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


class AppendOnlyStrings:
    """Strings, as `features.kernels.strings.Strings` has them, that grow at their end: see `Growing`."""

    def __init__(self, scratch: Path) -> None:
        self._arrays = AppendOnlyArrays(scratch, {"start": np.int64, "text": np.uint8})
        self._arrays.append(start=np.zeros(1, np.int64))
        self._end = 0

    def append(self, strings: Strings) -> None:
        self._arrays.append(start=self._end + strings.start[1:], text=strings.text)
        self._end += int(strings.start[-1])

    def mapped(self) -> Strings:
        return Strings(**self._arrays.mapped())

    def __enter__(self) -> AppendOnlyStrings:
        return self

    def __exit__(self, *error: object) -> None:
        self._arrays.__exit__()


def release_pages(*arrays: object) -> None:
    """Have the pages of mapped files that were read leave this process's memory; the disk, or its cache, has them.

    arrays: mapped or not, or objects whose attributes are.
    """
    for array in arrays:
        if hasattr(array, "__dict__") and not isinstance(array, np.ndarray):
            release_pages(*vars(array).values())
        held: Any = array
        while held is not None and not isinstance(held, mmap.mmap):
            held = getattr(held, "base", None)
        if held is not None and hasattr(mmap, "MADV_DONTNEED"):
            held.madvise(mmap.MADV_DONTNEED)


def to_strings(array: pa.Array | pa.ChunkedArray) -> Strings:
    """Texts of Arrow as ours; a null is an empty one."""
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    array = pc.fill_null(array.cast(pa.large_string()), "")
    if not len(array):
        return Strings(np.zeros(1, np.int64), np.empty(0, np.uint8))
    _, offsets, text = array.buffers()
    start = np.frombuffer(offsets, np.int64, len(array) + 1, 8 * array.offset)
    return Strings(start - start[0], np.frombuffer(text or b"", np.uint8)[start[0] : start[-1]])


class IdEncoder:
    """Numbers for ids in order of first appearance, known by their hashes; those not met for long are forgotten."""

    def __init__(self) -> None:
        self.count = 0
        self._key, self._number, self._met = np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, np.int64)

    def of(self, ids: pa.Array, at: int) -> tuple[I32, Strings]:
        """int32: each id's number, `-1` for null; and the new ids, in the order of their numbers.

        ids: text. at: Unix microseconds, not descending from call to call.
        """
        coded = ids.dictionary_encode()
        key = hashes(to_strings(coded.dictionary))
        place = np.searchsorted(self._key, key)
        there = place < len(self._key)
        there[there] = self._key[place[there]] == key[there]
        number = np.full(len(key) + 1, -1, np.int32)
        number[:-1][there] = self._number[place[there]]
        fresh = np.flatnonzero(~there)
        number[fresh] = np.arange(self.count, self.count + len(fresh), dtype=np.int32)
        self.count += len(fresh)
        self._met[place[there]] = at
        self._take_in(key[fresh], number[fresh], at)
        code = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
        return number[code], to_strings(coded.dictionary.take(pa.array(fresh)))

    def _take_in(self, key: U64, number: I32, at: int) -> None:
        kept = self._met >= at - ID_LIFETIME_US
        together = np.concatenate((self._key[kept], key))
        order = np.argsort(together, kind="stable")
        self._key = together[order]
        self._number = np.concatenate((self._number[kept], number))[order]
        self._met = np.concatenate((self._met[kept], np.full(len(key), at)))[order]


class Deduplicator:
    """Which rows of a log say for the first time what they say, within `ONCE_WITHIN_US`."""

    def __init__(self) -> None:
        self._key, self._at = np.empty(0, np.uint64), np.empty(0, np.int64)

    def first(self, key: U64, at: I64) -> NDArray[np.bool_]:
        """bool, like `key`: whether it is the first. at: Unix microseconds, ascending within and between calls."""
        out = np.zeros(len(key), np.bool_)
        out[np.unique(key, return_index=True)[1]] = True
        if len(at):
            recent = self._at >= at[0] - DUPLICATE_WINDOW_US
            self._key, self._at = self._key[recent], self._at[recent]
            out &= ~np.isin(key, self._key)
            self._key, self._at = np.append(self._key, key[out]), np.append(self._at, at[out])
        return out
