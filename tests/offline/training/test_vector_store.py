"""Vector store: what was written is read back, and what is damaged or half-written is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offline.training import vector_store
from offline.training.vector_store import VectorStore

DAY = 86_400.0
MODEL = "ab12"


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def keys(*numbers: int) -> np.ndarray:
    """uint8[n, 16], as `tidy` takes them."""
    return np.frombuffer(b"".join(map(key, numbers)), np.uint8).reshape(-1, 16)


def vectors(*numbers: int) -> np.ndarray:
    return np.array([[n, n + 0.5, -n] for n in numbers], np.float32).reshape(-1, 3)


def add(store: VectorStore, *numbers: int, model: str = MODEL) -> None:
    store.write(model, [key(n) for n in numbers], vectors(*numbers))


def found(store: VectorStore, *numbers: int, model: str = MODEL) -> list[int]:
    """The numbers that the store knows. Checks their vectors, and that the others have NaN."""
    read, known = store.read(model, [key(n) for n in numbers], 3)
    np.testing.assert_array_equal(read[known], vectors(*np.array(numbers)[known].tolist()))
    assert np.isnan(read[~known]).all()
    return [number for number, is_known in zip(numbers, known, strict=True) if is_known]


def segments(folder: Path) -> list[Path]:
    return sorted((folder / MODEL).glob("*.arrow"))


@pytest.mark.parametrize("where", [lambda folder: folder, lambda folder: folder.as_uri()], ids=["path", "uri"])
def test_written_vectors_are_read_back_by_model_and_key(tmp_path: Path, where: Callable[[Path], Path | str]) -> None:
    store = VectorStore(where(tmp_path))
    assert found(store, 1) == []
    add(store, 1, 2)
    add(store, 3)
    again = VectorStore(where(tmp_path))
    assert found(again, 3, 9, 1, 1) == [3, 1, 1]
    assert found(again, 1, model="cd34") == []
    assert found(again) == []


def test_large_writes_are_split_into_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_store, "SEGMENT_ROWS", 2)
    store = VectorStore(tmp_path)
    add(store, *range(5))
    assert len(segments(tmp_path)) == 3
    assert found(store, *range(6)) == list(range(5))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.none() | st.integers(1, 255))
def test_a_segment_that_was_cut_off_or_changed_anywhere_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: float, flip: int | None
) -> None:
    """As after a kill or a power failure during a write. Other segments are read, and its texts can be added again."""
    store = VectorStore(tmp_path)
    for path in segments(tmp_path):
        path.unlink()
    add(store, 1, 2)
    (path,) = segments(tmp_path)
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    if flip is None:
        path.write_bytes(content[:at])
    else:
        content[at] ^= flip
        path.write_bytes(content)
    add(store, 3)
    assert found(store, 1, 2, 3) == [3]
    assert "damaged segments of text vectors: 1. Their texts are read again" in " ".join(
        capsys.readouterr().err.split()
    )
    add(store, 1, 2)
    assert found(store, 1, 2, 3) == [1, 2, 3]
    assert store.tidy({MODEL: keys(1, 2, 3)}, DAY) == 0
    assert found(store, 1, 2, 3) == [1, 2, 3]
    assert "damaged" in capsys.readouterr().err
    assert len(segments(tmp_path)) == 1, "the damaged segment is deleted and the others are merged"


def test_a_file_that_did_not_get_its_name_is_not_read_and_is_deleted_after_a_day(tmp_path: Path) -> None:
    """A process that is killed while it writes leaves such a file."""
    store = VectorStore(tmp_path)
    add(store, 1)
    (path,) = segments(tmp_path)
    left_over = path.rename(path.with_name(f".{path.name}.new"))
    assert found(store, 1) == []
    store.tidy({}, DAY)
    assert left_over.exists(), "another process may be writing it"
    os.utime(left_over, (0, 0))
    store.tidy({}, DAY)
    assert not left_over.exists()


def test_only_old_vectors_that_no_text_uses_are_deleted(tmp_path: Path) -> None:
    """On day 0, texts 1 and 2 are written, on day 20, text 3. On day 31, a run still uses text 1."""
    now = 0.0
    store = VectorStore(tmp_path, lambda: now)
    add(store, 1, 2)
    add(store, 1, model="old encoder")
    now = 20 * DAY
    add(store, 3)
    assert store.tidy({MODEL: keys(1)}, 30 * DAY) == 0
    assert len(segments(tmp_path)) == 1, "small segments are merged"
    now = 31 * DAY
    assert store.tidy({MODEL: keys(1)}, 30 * DAY) == 2, "text 2, and the vector of the old encoder"
    assert found(store, 1, 2, 3) == [1, 3]
    assert store.rows("old encoder") == 0
    before = segments(tmp_path)
    assert store.tidy({MODEL: keys(1)}, 30 * DAY) == 0
    assert segments(tmp_path) == before, "nothing to do"


def test_vectors_that_two_processes_wrote_are_kept_once(tmp_path: Path) -> None:
    times = iter([1.0, 2.0, 3.0, 3.0])
    store = VectorStore(tmp_path, lambda: next(times))
    add(store, 1, 2)
    add(store, 2, 3)
    assert store.rows(MODEL) == 4
    VectorStore(tmp_path, lambda: 3.0).tidy({MODEL: keys(1, 2, 3)}, DAY)
    assert store.rows(MODEL) == 3
    assert found(store, 1, 2, 3) == [1, 2, 3]


def test_segments_that_another_process_merges_during_a_read_are_found(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    for number in range(4):
        add(store, number)
    reading = store._segments(MODEL, 3)
    next(reading)
    assert VectorStore(tmp_path).tidy({}, DAY) == 0
    seen = {k.as_py() for segment in reading for k in segment.rows["key"]}
    assert seen == {key(n) for n in range(4)}
