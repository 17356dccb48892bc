"""Vector store: processes that write and merge at the same time, and are killed with SIGKILL at any moment."""

from __future__ import annotations

import multiprocessing
import time
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from offline.training.vector_store import VectorStore

MODEL = "ab12"
BLOCK, DIMENSION = 400, 64
DAY = 86_400.0


def opened(where: Path) -> VectorStore:
    """A store whose clock stands still, so that two processes that write one block write the same segment."""
    return VectorStore(where, lambda: 0.0)


def keys(block: int) -> list[bytes]:
    return [n.to_bytes(16, "big") for n in range(block * BLOCK, (block + 1) * BLOCK)]


def vectors(block: int) -> np.ndarray:
    """float32[BLOCK, DIMENSION]: the number of the text times 1 to DIMENSION."""
    texts = np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.float32)
    return texts[:, None] * np.arange(1, DIMENSION + 1, dtype=np.float32)


def write_forever(where: str, done: Connection) -> None:
    """Write one block after the other, and merge segments after every third. Sends the number of each written block."""
    store = opened(Path(where))
    for block in count():
        store.write(MODEL, keys(block), vectors(block))
        done.send(block)
        if block % 3 == 2:
            store.tidy({}, DAY)


def known_blocks(where: Path, blocks: int) -> set[int]:
    """Numbers of the blocks that the store knows, of the first `blocks`. Every vector that is read is the true one."""
    out = set()
    store = opened(where)
    every = [key for block in range(blocks) for key in keys(block)]
    read, known = store.read(MODEL, every, DIMENSION)
    for block in range(blocks):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        assert known[part].all() or not known[part].any(), "a segment is read as a whole or not at all"
        if known[part].all():
            np.testing.assert_array_equal(read[part], vectors(block))
            out.add(block)
        else:
            assert np.isnan(read[part]).all()
    return out


def received(done: Connection) -> set[int]:
    """All numbers that a process has sent, also one that was killed since."""
    out = set()
    try:
        while done.poll():
            out.add(done.recv())
    except (EOFError, OSError):
        pass
    return out


@pytest.mark.slow
def test_whenever_writers_are_killed_what_was_written_is_read_and_nothing_wrong(tmp_path: Path) -> None:
    """Two processes write the same blocks. One is killed a little later in every round, then the other.

    It goes on until ten kills have left an unfinished file, so that they fell into a write.
    """
    spawn = multiprocessing.get_context("forkserver")
    spawn.set_forkserver_preload([__name__])
    unfinished, rounds = 0, 0
    while unfinished < 10:
        assert rounds < 200, "no kill falls into a write"
        where = tmp_path / f"round {rounds}"
        pipes = [spawn.Pipe(duplex=False) for _ in range(2)]
        writers = [spawn.Process(target=write_forever, args=(str(where), send), daemon=True) for _, send in pipes]
        for writer, (_, send) in zip(writers, pipes, strict=True):
            writer.start()
            send.close()  # or reading from a writer that failed would wait for ever
        written: list[set[int]] = [{receive.recv()} for receive, _ in pipes]
        time.sleep(rounds * 0.0007)
        assert all(writer.is_alive() for writer in writers), "neither fails because of the other"
        for number, writer in enumerate(writers):
            writer.kill()
            writer.join()
            written[number] |= received(pipes[number][0])
            # The second process still writes and merges during the first look.
            assert written[number] <= known_blocks(where, max(set().union(*written)) + 2)
        unfinished += len([p for p in (where / MODEL).iterdir() if p.name.startswith(".")])
        blocks = max(set().union(*written)) + 2
        store = opened(where)
        for block in set(range(blocks)) - known_blocks(where, blocks):
            store.write(MODEL, keys(block), vectors(block))
        store.tidy({}, DAY)
        assert known_blocks(where, blocks) == set(range(blocks)), "what was lost is written again"
        rounds += 1
