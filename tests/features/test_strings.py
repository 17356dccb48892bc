"""Strings stored as arrays, and the lookup of their positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.kernels.strings import StringIndex, Strings

any_text = st.text(st.characters(), max_size=20) | st.sampled_from(["", "\0", "a\0b", "\ud800", "é", "a", "ab", "b"])


@settings(deadline=None)
@given(st.lists(any_text))
def test_strings_are_decoded_as_they_were_encoded(strings: list[str]) -> None:
    """Includes empty strings, separators and lone surrogates; by index, from the end and by slice."""
    packed = Strings.of(strings)
    assert list(packed) == strings
    assert [packed[i] for i in range(len(packed))] == strings
    assert packed[::-1] == strings[::-1]
    assert packed.at(np.arange(len(packed), dtype=np.int32)[::-1]) == strings[::-1]
    with pytest.raises(IndexError):
        packed[len(strings)]


@settings(deadline=None)
@given(st.lists(any_text), st.lists(any_text))
def test_find_agrees_with_a_dict(strings: list[str], others: list[str]) -> None:
    """Of equal strings the last position is found, and `-1` for a string that is not in the index."""
    position = dict(zip(strings, range(len(strings)), strict=True))
    queries = others + strings
    found = StringIndex.of(Strings.of(strings)).find(iter(queries))
    assert found.dtype == np.int32
    assert found.tolist() == [position.get(s, -1) for s in queries]


@settings(deadline=None)
@given(st.lists(any_text), st.integers(0, 20))
def test_strings_are_found_in_one_array_after_other_bytes(strings: list[str], skip: int) -> None:
    """Redis records have this form: a header of `skip` bytes, then the string."""
    records = [bytes(skip) + s.encode("utf-8", "surrogatepass") for s in strings]
    end = np.cumsum([len(r) for r in records], dtype=np.int64)
    places = StringIndex.of(Strings.of(strings))
    found = places.find_bytes(np.frombuffer(b"".join(records), np.uint8), end, skip)
    np.testing.assert_array_equal(found, places.find(strings))


def test_many_similar_ids_are_distinguished_with_short_probes() -> None:
    """Numbered ids are the worst case for hashes; each takes one of 200,002 slots."""
    ids = [f"sku-{k:08d}" for k in range(100_000)]
    places = StringIndex.of(Strings.of(ids))
    np.testing.assert_array_equal(places.find(ids), np.arange(len(ids)))
    assert (places.find([f"{i}x" for i in ids[:1000]]) == -1).all()
    # The table is half full and probes are short. A run of 60 full slots has a probability of about 1e-6 with a perfect
    # hash.
    empty = np.flatnonzero(places.slot == 0)
    assert len(empty) == len(ids) + 2
    assert np.diff(empty).max() <= 60


def test_arrays_are_never_written_to() -> None:
    """A release's arrays are shared between processes."""
    start, text = np.array([0, 1]), np.frombuffer(b"a", np.uint8).copy()
    packed = Strings(start, text)
    assert not packed.start.flags.writeable
    assert start.flags.writeable
