"""Kernels compiled before the service starts: for which processors, complete, and with the same bits."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from features.companions import Companions
from serving import kernels
from serving.compile import compile_kernels as compile_in_process
from serving.store import BulkStore, Pointer
from serving.store.embedded import connect_url
from tests import ROOT
from tests.bench.cold_start import compile_kernels, started
from tests.serving.test_release import CUT_OFF, planted_items, planted_model, publish
from tests.serving.test_service import until

LEVELS = list(kernels.LEVELS)
AVX2 = dict.fromkeys(kernels.LEVELS["x86-64-v3"], True)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one kernel, for all levels, and an environment that names it and an empty cache."""
    folder = tmp_path / "kernels"
    (folder / "ranker_1").mkdir(parents=True)
    (folder / "ranker_1" / "k.1.nbc").write_bytes(b"code")
    (folder / "ranker_1" / "k.nbi").write_bytes(b"index")
    (folder / "kernels.json").write_text(kernels.manifest(LEVELS), "utf-8")
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        monkeypatch.setenv(name, "")  # so that it is restored after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("SHELFWISE_KERNELS", str(folder))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(kernels, "supported", lambda: ["x86-64-v3"])
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_processor_has_a_level_if_it_has_every_feature_of_it() -> None:
    """The level with AVX-512 needs 6 more features than that with AVX2; without one of them it is not supported."""
    newest = AVX2 | dict.fromkeys(kernels.LEVELS["x86-64-v4-vnni"], True)
    assert len(newest) - len(AVX2) == 6
    assert kernels.supported(newest) == ["x86-64-v4-vnni", "x86-64-v3"]
    assert kernels.supported(newest | {"avx512vnni": False}) == ["x86-64-v3"]
    assert kernels.supported(AVX2 | {"fma": False}) == []


def test_a_service_uses_the_fastest_level_of_its_processor(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "supported", lambda: LEVELS)
    assert kernels.use_shipped() == "x86-64-v4-vnni"
    assert os.environ["NUMBA_CPU_NAME"] == "x86-64-v4"
    assert "+avx512vnni" in os.environ["NUMBA_CPU_FEATURES"].split(",")


def test_a_level_that_was_not_compiled_is_not_used(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor also has AVX-512, but the folder has only kernels with AVX2."""
    monkeypatch.setattr(kernels, "supported", lambda: LEVELS)
    (shipped / "kernels.json").write_text(kernels.manifest(["x86-64-v3"]), "utf-8")
    assert kernels.use_shipped() == "x86-64-v3"
    assert "avx512" not in os.environ["NUMBA_CPU_FEATURES"]


def test_kernels_are_copied_once_and_replace_those_of_an_earlier_image(shipped: Path, tmp_path: Path) -> None:
    """The second start copies nothing; a start with another build replaces the file of the first."""
    cache = tmp_path / "cache"
    kernels.use_shipped()
    assert files(cache) == files(shipped)
    (cache / "ranker_1" / "k.nbi").write_bytes(b"index with a kernel compiled here")
    again(shipped)
    assert (cache / "ranker_1" / "k.nbi").read_bytes() == b"index with a kernel compiled here"
    (shipped / "kernels.json").write_text(kernels.manifest(LEVELS), "utf-8")
    again(shipped)
    assert files(cache) == files(shipped)


def again(shipped: Path) -> None:
    """A start in a new process, whose environment names no processor yet."""
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        del os.environ[name]
    assert kernels.use_shipped() == "x86-64-v3"


def test_without_a_folder_nothing_changes(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHELFWISE_KERNELS")
    assert kernels.use_shipped() is None
    assert "NUMBA_CPU_NAME" not in os.environ
    assert not (tmp_path / "cache").exists()


def test_a_processor_without_a_level_compiles_with_a_warning(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "supported", list)
    with caplog.at_level(logging.WARNING):
        assert kernels.use_shipped() is None
    assert "has none of the levels x86-64-v4-vnni, x86-64-v3" in caplog.text
    assert "NUMBA_CPU_NAME" not in os.environ


def test_a_processor_named_in_the_environment_is_kept_with_a_warning(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    with caplog.at_level(logging.WARNING):
        assert kernels.use_shipped() is None
    assert "unset them to use those in" in caplog.text
    assert os.environ["NUMBA_CPU_NAME"] == "generic"


@pytest.mark.parametrize("text", [None, "[]", '{"levels": 1}'])
def test_an_incomplete_folder_is_refused(shipped: Path, text: str | None) -> None:
    """`kernels.json` is written last, so a folder without it is incomplete."""
    (shipped / "kernels.json").unlink()
    if text is not None:
        (shipped / "kernels.json").write_text(text, "utf-8")
    with pytest.raises(kernels.KernelsError, match=r"kernels\.json cannot be read"):
        kernels.use_shipped()


@pytest.mark.parametrize("name", ["path", "python", "numba", "sources"])
def test_kernels_of_another_installation_are_refused(shipped: Path, name: str) -> None:
    """numba would not find them, or would use a kernel that contains another kernel as it was before an update."""
    content = json.loads((shipped / "kernels.json").read_text("utf-8"))
    content["installation"][name] = "other"
    (shipped / "kernels.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(kernels.KernelsError, match=f"another installation, with {name} 'other' and not"):
        kernels.use_shipped()


def test_a_folder_without_a_cache_to_copy_it_to_is_refused(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    with pytest.raises(kernels.KernelsError, match="set NUMBA_CACHE_DIR to a folder that the service can write to"):
        kernels.use_shipped()


def test_kernels_are_not_compiled_into_a_folder_with_files(shipped: Path) -> None:
    """A kernel that is already there would not be compiled again, and so not be listed for the other levels."""
    with pytest.raises(kernels.KernelsError, match="is not empty"):
        compile_in_process(shipped, LEVELS)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image has: the kernels for all levels."""
    folder = tmp_path_factory.mktemp("image") / "kernels"
    compile_kernels(folder)
    return folder


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    items = planted_items()
    items = replace(items, companions=Companions.none(len(items.catalogue)))
    return publish(tmp_path_factory.mktemp("releases"), items, model_text=planted_model(items))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, release: Path) -> Iterator[str]:
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url:
        with BulkStore(url) as store:
            store.set_pointer(Pointer(release.name, str(release)))
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_a_service_with_the_kernels_of_the_image_compiles_none(
    compiled: Path, url: str, tmp_path: Path, level: str
) -> None:
    """Not when it starts, and not for any kind of request: its cache has the files of the image and no others."""
    if level not in kernels.supported():
        pytest.skip(f"this processor does not have level {level}")
    folder, cache = tmp_path / "kernels", tmp_path / "cache"
    shutil.copytree(compiled, folder)
    (folder / "kernels.json").write_text(kernels.manifest([level]), "utf-8")
    with started(url, tmp_path, cache, folder) as service, httpx.Client(base_url=service.address) as client:
        use(client)
    assert files(cache) == files(folder)


def use(client: httpx.Client) -> None:
    """Send every kind of request, before and after an item is written."""
    events = [
        {"event": kind, "user_id": "u", "item_id": item}
        for kind in ("impression", "click", "cart", "purchase")
        for item in ("red-01", "blue-02", "unknown")
    ]
    assert client.post("/v1/events", json=events).status_code == 202
    rules = {
        "filter": {"not": {"attribute": "category", "in": ["green"]}},
        "cap": [{"attribute": "category", "most": 2}],
        "diversity": {"lambda": 0.5},
    }
    for item in ("new", "red-01"):
        for query in ("", "red thing"):
            for extra in ({}, {"explain": True}, {"rules": rules, "explain": True}):
                body = {"user_id": "u", "limit": 5, "query": query, **extra}
                for route, more in (
                    ("rank", {"candidates": ["red-01", "blue-02", "new", "nowhere"]}),
                    ("rank", {}),
                    ("rank", {"items": ["red-01", "new"]}),
                    ("recommend", {}),
                    ("recommend", {"items": ["red-01", "new"]}),
                ):
                    answer = client.post(f"/v1/{route}", json=body | more, timeout=60)
                    assert answer.status_code == 200, answer.text
        assert client.get("/v1/similar/blue-02", params={"limit": 3}).status_code == 200
        written = client.put("/v1/items", json=[{"item_id": item, "title": "A red thing", "price": 2}])
        assert written.status_code == 202, written.text
        until(lambda item=item: client.get(f"/v1/items/{item}").json()["live"], 30)
        assert client.post("/v1/events", json=events).status_code == 202
        time.sleep(0.5)  # a few polls of the stream, so that the events are applied to the written items


BITS = """
import hashlib, sys
from pathlib import Path
import numpy as np
from features.context import Context
from features.history import History
from features.table import rows
from serving.release.release import load_release
release, hashed = load_release(Path(sys.argv[1])), hashlib.sha256()
n, at = len(release.items.catalogue), float(sys.argv[2])
for seed in range(20):
    rng = np.random.default_rng(seed)
    engaged, shown = rng.integers(0, n, seed).astype(np.int32), rng.integers(0, n, 2 * seed).astype(np.int32)
    kind = rng.integers(1, 5, seed).astype(np.int8)
    ages = [np.sort(rng.uniform(0, 1e6, k)) for k in (seed, 2 * seed)]
    history = History(engaged, kind, at - ages[0], shown, at - ages[1])
    for query in ("", "red thing"):
        table = rows(release.items, history, np.arange(n, dtype=np.int32), at, Context(query=query))
        scores, parts = release.trees.score(table), release.trees.contributions(table)
        hashed.update(table.tobytes() + scores.tobytes() + parts.tobytes())
print(hashed.hexdigest())
"""


@pytest.mark.slow
def test_every_level_gives_the_same_bits_as_this_processor(compiled: Path, release: Path, tmp_path: Path) -> None:
    """Feature rows, scores and explanations of 20 users, with and without a query."""
    shutil.copytree(compiled, tmp_path / "cache")
    environments = [{}, *(kernels.environment(level) for level in kernels.supported())]
    command = [sys.executable, "-c", BITS, str(release), str(CUT_OFF + 60)]
    hashes = [
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")} | environment,
        ).stdout
        for environment in environments
    ]
    assert len(hashes) >= 2
    assert len(set(hashes)) == 1
