"""The code blocks of README and docs, and how each language of them is held to what it says.

`sh` runs, in the order of the page, in one directory. `python` runs too, or is the file that its title names. `yaml` is
a configuration of ours, `json` the body of the call that its title names (`POST /v1/rank`). `text` is output; `html` is
opened in a browser by `tests/serving/test_client_page.py`.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("sh", "python", "yaml", "json", "html", "text")
_FENCE = re.compile(r'^([ \t]*)```(\w*)(?: title="([^"]*)")?[^\n`]*\n(.*?)^\1```[ \t]*$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block. page: relative to the root. line: of its fence, from 1. title: empty where it has none."""

    page: str
    line: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    page = path.read_text("utf-8")
    name = str(path.relative_to(ROOT))
    return [
        Block(name, page.count("\n", 0, found.start()) + 1, found[2], found[3] or "", found[4])
        for found in _FENCE.finditer(page)
    ]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Desk:
    """A directory in which the blocks of a page run, as at a reader's terminal, but on a port that is free.

    quick: settings, as YAML, for whatever trains, so that it is over sooner; all else of a command is as printed.
    """

    def __init__(self, directory: Path, quick: str = "", **environment: str) -> None:
        self.directory, self.port, self.quick = directory, free_port(), quick
        (directory / "quick.yaml").write_text(quick, "utf-8")
        here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        held = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "SHELFWISE_KEYS")}
        self._environment = held | {"PATH": here, "PYTHONPATH": str(directory), "COLUMNS": "160", **environment}

    def shell(self, text: str, timeout: float = 600) -> str:
        """What a `sh` block prints to standard output. Raises AssertionError, with all it said, where it fails."""
        script = self._here(text).replace("--port 8000", f"--port {self.port}")
        if self.quick:
            script = re.sub(
                r"shelfwise (nightly|evaluate|ablate)\b(?!.*--config)", r"shelfwise \1 --config quick.yaml", script
            )
            script = re.sub(r"(?m)^(shelfwise nightly --config (?!quick)(\S+))", r"cat quick.yaml >> \2; \1", script)
        return self._run(["bash", "-c", f"set -euo pipefail\nset -m\n{script}"], timeout)

    def python(self, text: str, timeout: float = 600) -> str:
        """What a `python` block prints, run as a program of its own."""
        return self._run([sys.executable, "-c", self._here(text)], timeout)

    def _here(self, text: str) -> str:
        return text.replace("localhost:8000", f"localhost:{self.port}")

    def _run(self, command: Sequence[str], timeout: float) -> str:
        # Of its own session, so that nothing it left in the background outlives it.
        with subprocess.Popen(
            command,
            cwd=self.directory,
            env=self._environment,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                raise AssertionError(f"not over after {timeout} s\n{out}\n{err}") from None
        assert process.returncode == 0, f"exit status {process.returncode}\n{command[-1]}\n{out}\n{err}"
        return out

    @contextmanager
    def service(self) -> Iterator[str]:
        """A service that answers from the directory's workspace; yields its address."""
        address = f"http://127.0.0.1:{self.port}"
        with (self.directory / "service.log").open("w") as log:
            process = subprocess.Popen(
                ["shelfwise", "serve", "--port", str(self.port)],
                cwd=self.directory,
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        try:
            for _ in range(1200):
                assert process.poll() is None, (self.directory / "service.log").read_text()
                try:
                    urllib.request.urlopen(f"{address}/health/ready", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def send(address: str, call: str, body: str) -> int:
    """The status that a call, as `POST /v1/rank`, is answered with; sent again where the service says it is busy."""
    verb, path = call.split()
    request = urllib.request.Request(address + path, body.encode(), {"Content-Type": "application/json"}, method=verb)
    for _ in range(20):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise AssertionError(f"{error.code}: {error.read().decode()}") from error
            time.sleep(1)
    return 503
