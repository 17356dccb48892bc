"""Append-only arrays in temporary files, memory-mapped once complete, for loading a log one span of time at a time.

Also encodes IDs as numbers and removes duplicates. Memory use depends on the last days of the log only, not on its
length.
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
"""Duplicates within this time are dropped, as the service does with incoming events."""
ID_LIFETIME_US = 100 * DAY_US
"""After this time without an occurrence, the ID of a list or session counts as a new one."""


class AppendOnlyArrays:
    """Append-only arrays in unnamed temporary files, which disappear with the arrays or the process."""

    def __init__(self, scratch: Path, types: Mapping[str, type]) -> None:
        """scratch: directory for the files. types: NumPy type of each array, by name."""
        self._types, self._stack = types, ExitStack()
        self._files = {n: self._stack.enter_context(tempfile.TemporaryFile(dir=scratch)) for n in types}  # noqa: SIM115

    def append(self, **arrays: NDArray[Any]) -> None:
        """Append rows to each array given."""
        for name, array in arrays.items():
            self._files[name].write(np.ascontiguousarray(array, self._types[name]).data)

    def mapped(self) -> dict[str, NDArray[Any]]:
        """The arrays, memory-mapped. They outlive this object. Nothing can be appended after this call."""
        out: dict[str, NDArray[Any]] = {}
        for name, dtype in self._types.items():
            file = self._files[name]
            file.flush()
            rows = file.tell() // np.dtype(dtype).itemsize
            # A plain ndarray is pickled as numbers; a memmap would be pickled as its file.
            out[name] = np.memmap(file, dtype, "r", shape=(rows,)).view(np.ndarray) if rows else np.empty(0, dtype)
        return out

    def __enter__(self) -> AppendOnlyArrays:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


class AppendOnlyStrings:
    """Append-only `features.kernels.strings.Strings` in temporary files. See `AppendOnlyArrays`."""

    def __init__(self, scratch: Path) -> None:
        self._arrays = AppendOnlyArrays(scratch, {"start": np.int64, "text": np.uint8})
        self._arrays.append(start=np.zeros(1, np.int64))
        self._end = 0

    def append(self, strings: Strings) -> None:
        """Append strings."""
        self._arrays.append(start=self._end + strings.start[1:], text=strings.text)
        self._end += int(strings.start[-1])

    def mapped(self) -> Strings:
        """The strings, memory-mapped. See `AppendOnlyArrays.mapped`."""
        return Strings(**self._arrays.mapped())

    def __enter__(self) -> AppendOnlyStrings:
        return self

    def __exit__(self, *error: object) -> None:
        self._arrays.__exit__()


def release_pages(*arrays: object) -> None:
    """Release the resident pages of memory-mapped arrays. They are read from disk again when accessed.

    arrays: arrays, or objects with arrays as attributes. Arrays that are not memory-mapped are ignored.
    """
    for array in arrays:
        if hasattr(array, "__dict__") and not isinstance(array, np.ndarray):
            release_pages(*vars(array).values())
        base: Any = array
        while base is not None and not isinstance(base, mmap.mmap):
            base = getattr(base, "base", None)
        if base is not None and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)


def to_strings(array: pa.Array | pa.ChunkedArray) -> Strings:
    """Arrow strings as `Strings`. A null becomes an empty string."""
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    array = pc.fill_null(array.cast(pa.large_string()), "")
    if not len(array):
        return Strings(np.zeros(1, np.int64), np.empty(0, np.uint8))
    _, offsets, text = array.buffers()
    start = np.frombuffer(offsets, np.int64, len(array) + 1, 8 * array.offset)
    return Strings(start - start[0], np.frombuffer(text or b"", np.uint8)[start[0] : start[-1]])


class IdEncoder:
    """Encodes IDs as numbers, in order of first appearance. IDs unseen for `ID_LIFETIME_US` get a new number.

    Only hashes of the IDs are kept.
    """

    def __init__(self) -> None:
        self.count = 0
        self._key, self._number, self._last_seen = np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, np.int64)

    def encode(self, ids: pa.Array, at: int) -> tuple[I32, Strings]:
        """(int32, the number of each ID, `-1` for null; the new IDs in the order of their numbers).

        ids: strings. at: Unix microseconds; must not decrease from call to call.
        """
        encoded = ids.dictionary_encode()
        key = hashes(to_strings(encoded.dictionary))
        index = np.searchsorted(self._key, key)
        known = index < len(self._key)
        known[known] = self._key[index[known]] == key[known]
        number = np.full(len(key) + 1, -1, np.int32)
        number[:-1][known] = self._number[index[known]]
        new = np.flatnonzero(~known)
        number[new] = np.arange(self.count, self.count + len(new), dtype=np.int32)
        self.count += len(new)
        self._last_seen[index[known]] = at
        self._add(key[new], number[new], at)
        code = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
        return number[code], to_strings(encoded.dictionary.take(pa.array(new)))

    def _add(self, key: U64, number: I32, at: int) -> None:
        kept = self._last_seen >= at - ID_LIFETIME_US
        keys = np.concatenate((self._key[kept], key))
        order = np.argsort(keys, kind="stable")
        self._key = keys[order]
        self._number = np.concatenate((self._number[kept], number))[order]
        self._last_seen = np.concatenate((self._last_seen[kept], np.full(len(key), at)))[order]


class Deduplicator:
    """Finds the rows of a log that are not duplicates of a row within `DUPLICATE_WINDOW_US` before."""

    def __init__(self) -> None:
        self._key, self._at = np.empty(0, np.uint64), np.empty(0, np.int64)

    def is_first(self, key: U64, at: I64) -> NDArray[np.bool_]:
        """bool, like `key`: True for the first occurrence of a key.

        at: Unix microseconds, ascending within a call and from call to call.
        """
        out = np.zeros(len(key), np.bool_)
        out[np.unique(key, return_index=True)[1]] = True
        if len(at):
            recent = self._at >= at[0] - DUPLICATE_WINDOW_US
            self._key, self._at = self._key[recent], self._at[recent]
            out &= ~np.isin(key, self._key)
            self._key, self._at = np.append(self._key, key[out]), np.append(self._at, at[out])
        return out
