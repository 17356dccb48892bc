"""The live release: promote, roll back, pin, the audit log, and the removal of old releases."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from offline.config.publication import RetentionConfig
from offline.nightly import retention
from serving.lock import locked
from serving.release import read_owner, registry
from serving.release.manifest import ReleaseError, read_manifest
from serving.store import BulkStore, Pointer
from serving.store.embedded import connect_url
from tests.running import audit_lines
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_service import FAST, ready, served

KEPT = RetentionConfig(releases=2, runs=2)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture
def store(url: str) -> Iterator[BulkStore]:
    with BulkStore(url) as store:
        store.run([["FLUSHALL"]])
        yield store


@pytest.fixture
def three(tmp_path: Path, store: BulkStore) -> list[str]:
    """IDs of three releases, published one after another; the third is live."""
    items = planted_items()
    paths = [publish(tmp_path, model_text=planted_model(items, sign=sign)) for sign in (1.0, -1.0, 2.0)]
    for path in paths:
        registry.publish(tmp_path, store, read_manifest(path), path)
    return [p.name for p in paths]


def live(store: BulkStore) -> str | None:
    pointer = store.pointer()
    return pointer.id if pointer else None


def test_each_rollback_goes_one_step_back_in_the_history_of_live_releases(
    tmp_path: Path, store: BulkStore, three: list[str]
) -> None:
    """Published 1, 2, 3: the rollbacks go to 2, then to 1, then fail."""
    assert live(store) == three[2]
    assert registry.rollback(tmp_path, store, "worse").id == three[1]
    assert registry.rollback(tmp_path, store, "worse").id == three[0] == live(store)
    with pytest.raises(ReleaseError, match="there is no release to roll back to"):
        registry.rollback(tmp_path, store, "worse")
    assert registry.promote(tmp_path, store, three[2], "better after all").id == three[2]
    assert registry.previous_release(tmp_path, three[2]) == three[0], (
        "the release it replaced last, not the one before its first publication"
    )


def test_every_change_is_recorded_in_the_audit_file_and_in_redis(
    tmp_path: Path, store: BulkStore, three: list[str]
) -> None:
    registry.rollback(tmp_path, store, "clicks fell")
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(n["action"], n["release"], n["before"]) for n in lines] == [
        ("publish", three[0], None),
        ("publish", three[1], three[0]),
        ("publish", three[2], three[1]),
        ("rollback", three[1], three[2]),
    ]
    assert lines[-1]["reason"] == "clicks fell"
    assert all("@" in line["by"] and line["at"] for line in lines)
    assert [json.loads(line) for line in audit_lines(store)] == lines
    with (tmp_path / "audit.jsonl").open("a") as file:
        file.write('{"half of a line')
    registry.unpin(tmp_path, store, "")
    assert len(registry.release_history(tmp_path)) == 5, "a line that was cut off does not affect later ones"


def test_a_rollback_is_reported_until_the_release_is_promoted_again(
    tmp_path: Path, store: BulkStore, three: list[str]
) -> None:
    assert registry.last_rollback(tmp_path, three[2]) is None
    registry.rollback(tmp_path, store, "worse")
    line = registry.last_rollback(tmp_path, three[2])
    assert line is not None
    assert line["reason"] == "worse"
    registry.promote(tmp_path, store, three[2], "sure")
    assert registry.last_rollback(tmp_path, three[2]) is None


def test_pinning_and_unpinning_keep_the_same_release_live(tmp_path: Path, store: BulkStore, three: list[str]) -> None:
    registry.promote(tmp_path, store, three[0], "known good", action="pin")
    pinned = Pointer(three[0], str((tmp_path / three[0]).resolve()), pinned=True, owner=read_owner(tmp_path))
    assert store.pointer() == pinned
    assert registry.unpin(tmp_path, store, "fine").id == three[0]
    assert store.pointer() == Pointer(pinned.id, pinned.path, owner=pinned.owner)


def test_simultaneous_rollbacks_go_back_one_step_each(
    tmp_path: Path, store: BulkStore, url: str, three: list[str]
) -> None:
    """Published 1, 2, 3: two rollbacks that wait for the same lock end at 1, as if one had followed the other."""

    def roll_back(_: int) -> str:
        with BulkStore(url) as own:
            return registry.rollback(tmp_path, own, "worse").id

    with ThreadPoolExecutor(2) as pool:
        with locked(tmp_path / "lock"):
            running = [pool.submit(roll_back, k) for k in range(2)]
            time.sleep(0.5)  # both have started and wait
        assert {r.result() for r in running} == set(three[:2])
    assert live(store) == three[0]


def test_a_promotion_is_refused_if_another_one_came_first(tmp_path: Path, store: BulkStore, three: list[str]) -> None:
    registry.promote(tmp_path, store, three[0], "", replaces=three[2])
    with pytest.raises(ReleaseError, match=f"{three[0]} is live now, not {three[2]}: someone else has changed it"):
        registry.promote(tmp_path, store, three[1], "", replaces=three[2])
    assert live(store) == three[0]


def test_a_damaged_or_unknown_release_is_not_promoted(tmp_path: Path, store: BulkStore, three: list[str]) -> None:
    file = tmp_path / three[0] / "arrays" / "price.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ReleaseError, match=r"price\.npy has SHA-256 .* copy the release again"):
        registry.promote(tmp_path, store, three[0], "")
    with pytest.raises(ReleaseError, match="is not a release"):
        registry.promote(tmp_path, store, "20200101-0000000000", "")
    assert live(store) == three[2]


def test_old_releases_are_removed_with_their_vectors_except_the_live_and_the_previous_one(
    tmp_path: Path, store: BulkStore, three: list[str]
) -> None:
    """Two are kept. 1 is live and 2 was live before it, so both stay, whether or not they are among the newest two."""
    items = planted_items()
    other = publish(tmp_path, model_text=planted_model(items, sign=3.0), encoder_fingerprint="other")
    d = read_manifest(other).dimension
    fingerprint = read_manifest(tmp_path / three[0]).encoder_fingerprint
    for name in ("other", fingerprint):
        store.write_vectors(name, ["i000"], np.ones((1, d), np.float32))
    registry.promote(tmp_path, store, three[1], "")
    registry.promote(tmp_path, store, three[0], "")
    (tmp_path / ".making-killed").mkdir()
    retention.remove_old(tmp_path, store, KEPT)
    left = {p.name for p in tmp_path.iterdir()}
    assert {three[0], three[1]} <= left
    assert not [name for name in left if name.startswith(".")], "nothing incomplete or partly removed is left"
    assert np.isfinite(store.read_vectors(fingerprint, ["i000"], d)).all()
    vectors = store.read_vectors("other", ["i000"], d)
    assert np.isfinite(vectors).all() == (other.name in left), (
        "vectors are removed with the last release that uses them"
    )
    assert retention.remove_old(tmp_path, store, KEPT) == []


def test_an_interrupted_removal_is_completed(tmp_path: Path, store: BulkStore, three: list[str]) -> None:
    """The release is already renamed, but its vectors and its files still exist."""
    removed = publish(tmp_path, model_text=planted_model(planted_items(), sign=3.0), encoder_fingerprint="other")
    d = read_manifest(removed).dimension
    store.write_vectors("other", ["i000"], np.ones((1, d), np.float32))
    removed.rename(tmp_path / f".removed-{removed.name}")
    retention.remove_old(tmp_path, store, RetentionConfig(releases=10))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert np.isnan(store.read_vectors("other", ["i000"], d)).all()


def test_old_runs_are_removed_but_not_the_current_one(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "own"):
        (tmp_path / name).mkdir()
        time.sleep(0.01)
    (tmp_path / "lock").write_text("")
    assert set(retention.remove_runs(tmp_path, tmp_path / "own", KEPT)) == {"a", "b"}
    assert {p.name for p in tmp_path.iterdir()} == {"c", "own", "lock"}


def test_a_rollback_reaches_every_worker_within_five_seconds_without_a_failed_request(
    tmp_path: Path, store: BulkStore, url: str, three: list[str]
) -> None:
    def release_of(client: httpx.Client) -> str:
        answer = client.post("/v1/rank", json={"user_id": "u", "candidates": ["i000", "i001"]})
        assert answer.status_code == 200
        return str(answer.json()["release"])

    with served(url, FAST) as one, served(url, FAST) as two:
        ready(one)
        ready(two)
        assert release_of(one) == release_of(two) == three[2]
        registry.rollback(tmp_path, store, "worse")
        end = time.monotonic() + 5
        while {release_of(one), release_of(two)} != {three[1]}:
            assert time.monotonic() < end
            time.sleep(0.02)
