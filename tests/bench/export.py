"""An export for many users: `python -m tests.bench.export`. Speed, memory, and the same bytes after a SIGKILL.

A child process exports the lists of all users of a made-up shop. A second one is killed when a third of the files are
there, and a third one continues it. Ends with one line of JSON:

users, items; files: written
users_per_s: of the child that was not interrupted, per core, since it uses one
cpu_ms_per_user: the same as CPU time
peak_mb: resident memory at most, of which base_mb before the export, with the release and the log loaded
same_bytes: whether the interrupted export has the same files
reused: files that the third child did not make again
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from features.history import Histories
from offline.data import Storage
from offline.exports import Destination, Export, Shoppers, write_export
from serving.ranking import Live
from serving.release import load_release
from tests.bench.assemble import train_model
from tests.bench.made_up import AT, made_up_events, made_up_items
from tests.bench.memory import write_release_with


def peak_mb() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_child(release: Path, users: int, to: Path) -> dict[str, Any]:
    """Export in this process."""
    live = Live.of(load_release(release))
    live.warm()
    log = made_up_events(np.random.default_rng(1), 40 * users, users, len(live.items.catalogue))
    row = np.arange(users, dtype=np.int32)
    order = np.argsort(log.user_ids)
    shoppers = Shoppers([log.user_ids[k] for k in order], row[order], Histories.of(log), {}, len(log))
    base, cpu, began = peak_mb(), time.process_time(), time.perf_counter()
    done = write_export(Export(live, shoppers, AT, limit=20, size=500), Destination(Storage.of(to)))
    return {
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "base_mb": base,
        "peak_mb": peak_mb(),
        **done._asdict(),
    }


def start(release: Path, users: int, to: Path) -> subprocess.Popen[str]:
    """An export in a child process."""
    arguments = ["--child", str(release), str(to), "--users", str(users)]
    return subprocess.Popen([sys.executable, "-m", "tests.bench.export", *arguments], stdout=subprocess.PIPE, text=True)


def finished(child: subprocess.Popen[str]) -> dict[str, Any]:
    """The figures of a child. Raises SystemExit if it failed."""
    output = child.communicate()[0]
    if child.returncode:
        raise SystemExit(f"the export failed with status {child.returncode}")
    out: dict[str, Any] = json.loads(output.splitlines()[-1])
    return out


def kill_after(child: subprocess.Popen[str], to: Path, files: int) -> None:
    """Kill a child as soon as it has written this many files."""
    while len(list(to.glob("part-*"))) < files:
        if child.poll() is not None:
            raise SystemExit("the export ended before it could be killed")
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.communicate()


def digest(folder: Path) -> str:
    """SHA-256 of the names and bytes of all files."""
    out = sha256()
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):  # what the killed process had not finished
            out.update(path.name.encode() + sha256(path.read_bytes()).digest())
    return out.hexdigest()


def main() -> None:
    """Measure, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000, help="users to export for")
    parser.add_argument("--items", type=int, default=20_000, help="items in the catalogue")
    parser.add_argument("--trees", type=int, default=500, help="trees of the model, 31 leaves each")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_child(options.child[0], options.users, options.child[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        items = made_up_items(np.random.default_rng(0), options.items, 10 * options.items)
        model = train_model(items, options.items, options.trees, 40)
        release = write_release_with(work / "releases", items, model, AT)
        del items
        whole = finished(start(release, options.users, work / "whole"))
        kill_after(start(release, options.users, work / "killed"), work / "killed", max(1, whole["files"] // 3))
        again = finished(start(release, options.users, work / "killed"))
        same = digest(work / "whole") == digest(work / "killed")
    figures = {
        "users": whole["users"],
        "items": options.items,
        "files": whole["files"],
        "users_per_s": round(whole["users"] / whole["seconds"], 1),
        "cpu_ms_per_user": round(whole["cpu_s"] / whole["users"] * 1e3, 2),
        "peak_mb": round(whole["peak_mb"]),
        "base_mb": round(whole["base_mb"]),
        "same_bytes": same,
        "reused": again["reused"],
    }
    print(json.dumps(figures))
    if not same or not again["reused"]:
        raise SystemExit("the interrupted export has other files")


if __name__ == "__main__":
    main()
