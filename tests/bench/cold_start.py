"""Time until a new container can rank: `python -m tests.bench.cold_start`, from `shelfwise serve` to the first 200.

A made-up release of 20,000 items with a model of 500 trees, and a real Valkey. The service starts with an empty cache
of kernels, as in a new container: first without compiled kernels (`ready_s_before`), then with those that
`python -m serving.compile` makes when the image is built (`ready_s`), and once more with the cache this left
(`ready_s_again`). Each time is the median of `--times` starts, except the first, which takes as long as it takes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serving.kernels import SHIPPED
from serving.store import BulkStore, Pointer
from serving.store.embedded import connect_url
from tests import ROOT
from tests.bench.assemble import train_model
from tests.bench.made_up import made_up_items
from tests.bench.memory import write_release_with


class Started(NamedTuple):
    """A service that is ready. port: of its API on this machine. ready_s: seconds from the start of the command.

    log: file with everything it prints. pid: of the process that was started, whose children are the workers.
    """

    port: int
    ready_s: float
    log: Path
    pid: int

    @property
    def address(self) -> str:
        """URL of its API."""
        return f"http://127.0.0.1:{self.port}"


def compile_kernels(folder: Path, *options: str) -> float:
    """Run the command of the image that compiles the kernels; returns its seconds."""
    began = time.monotonic()
    command = [sys.executable, "-W", "error", "-m", "serving.compile", str(folder), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT, env=_environment(ROOT / "unused", None))
    return time.monotonic() - began


@contextmanager
def started(
    url: str,
    work: Path,
    cache: Path | None,
    compiled: Path | None,
    prefix: str = "sw",
    placements: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Started]:
    """The service, started with `shelfwise serve` and ready.

    cache: Numba's cache of kernels; None for that of this process. compiled: the folder of compiled kernels, if any.
    prefix: of the keys in Redis. placements: that section. settings: those of the section `serving`, besides the port.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config, log = work / f"shelfwise-{port}.yaml", work / f"service-{port}.log"
    sections = {"redis": {"prefix": prefix}, "serving": {"port": port} | settings, "placements": placements or {}}
    config.write_text(json.dumps(sections), "utf-8")
    command = [sys.executable, "-m", "offline.cli", "serve", "--config", str(config), "--workspace", str(work)]
    with log.open("wb") as out:
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdout=out, stderr=out, cwd=ROOT, env=_environment(cache, compiled) | {"REDIS_URL": url}
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}")
            yield Started(port, time.monotonic() - began, log, process.pid)
        except Exception:
            print(log.read_text("utf-8", "replace")[-4000:], file=sys.stderr)
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _environment(cache: Path | None, compiled: Path | None) -> dict[str, str]:
    if cache is None:
        return dict(os.environ)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", SHIPPED))}
    kernels = {} if compiled is None else {SHIPPED: str(compiled)}
    return kept | {"NUMBA_CACHE_DIR": str(cache)} | kernels


def _wait(process: subprocess.Popen[bytes], address: str, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"{address}/health/ready", timeout=5).close()
            return
        except OSError as e:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the service is not ready: {e}") from e
        time.sleep(0.02)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cold_start", description=__doc__)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--trees", type=int, default=500)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, connect_url(None, Path(folder) / "valkey") as url:
        work = Path(folder)
        items = made_up_items(np.random.default_rng(0), options.items, 10 * options.items)
        text = train_model(items, options.items, options.trees, 40)
        release = write_release_with(work / "releases", items, text, time.time())
        with BulkStore(url) as store:
            store.set_pointer(Pointer(release.name, str(release)))
        compile_s = compile_kernels(work / "kernels")
        print(f"compiled in {compile_s:.1f} s", file=sys.stderr)

        def ready(cache: str, compiled: Path | None) -> float:
            with started(url, work, work / cache, compiled, workers=options.workers, poll_s=0.1) as service:
                print(f"{cache}: ready in {service.ready_s:.2f} s", file=sys.stderr)
                return service.ready_s

        before = ready("empty", None)
        after = statistics.median(ready(f"new{n}", work / "kernels") for n in range(options.times))
        again = statistics.median(ready("new0", work / "kernels") for _ in range(options.times))
        size = sum(p.stat().st_size for p in (work / "kernels").rglob("*") if p.is_file())
    figures = {"ready_s": after, "ready_s_before": before, "ready_s_again": again, "compile_s": compile_s}
    rounded = {name: round(value, 2) for name, value in figures.items()}
    print(json.dumps(rounded | {"ratio": round(after / before, 3), "kernels_mb": round(size / 1e6, 1)}))


if __name__ == "__main__":
    main()
