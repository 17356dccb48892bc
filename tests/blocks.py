"""The code blocks of README and docs, and how each language is tested.

`sh` blocks run in page order, in one directory. `python` blocks run too, or are the file named in their title. `yaml`
blocks are configurations, and `json` blocks are the body of the request in their title (`POST /v1/rank`). `text` is
output. `html` is opened in a browser by `tests/serving/test_client_page.py`.
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
LANGUAGES = ("sh", "python", "yaml", "json", "html", "js", "php", "text")
_FENCE = re.compile(r'^([ \t]*)```(\w*)(?: title="([^"]*)")?[^\n`]*\n(.*?)^\1```[ \t]*$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block. page: relative to the root. line: of the opening fence, from 1. title: may be empty."""

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


class Terminal:
    """A directory in which the blocks of a page run as in a reader's terminal, but on a free port.

    quick: YAML settings that shorten training. Otherwise commands run as printed.
    """

    def __init__(self, directory: Path, quick: str = "", **environment: str) -> None:
        self.directory, self.port, self.quick = directory, free_port(), quick
        (directory / "quick.yaml").write_text(quick, "utf-8")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        inherited = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "SHELFWISE_KEYS")}
        self._environment = inherited | {"PATH": path, "PYTHONPATH": str(directory), "COLUMNS": "160", **environment}

    def shell(self, text: str, timeout: float = 600) -> str:
        """Standard output of a `sh` block. Raises AssertionError with all output if it fails."""
        script = self._here(text).replace("--port 8000", f"--port {self.port}")
        if self.quick:
            script = re.sub(
                r"shelfwise (nightly|evaluate|ablate)\b(?!.*--config)", r"shelfwise \1 --config quick.yaml", script
            )
            script = re.sub(r"(?m)^(shelfwise nightly --config (?!quick)(\S+))", r"cat quick.yaml >> \2; \1", script)
        return self._run(["bash", "-c", f"set -euo pipefail\nset -m\n{script}"], timeout)

    def python(self, text: str, timeout: float = 600) -> str:
        """Standard output of a `python` block, run as a separate program."""
        return self._run([sys.executable, "-c", self._here(text)], timeout)

    def _here(self, text: str) -> str:
        return text.replace("localhost:8000", f"localhost:{self.port}")

    def _run(self, command: Sequence[str], timeout: float) -> str:
        # In a session of its own, so that processes left in the background are killed with it.
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
                raise AssertionError(f"still running after {timeout} s\n{out}\n{err}") from None
        assert process.returncode == 0, f"exit status {process.returncode}\n{command[-1]}\n{out}\n{err}"
        return out

    @contextmanager
    def service(self) -> Iterator[str]:
        """Run a service on the directory's workspace; yields its address."""
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
    """The status of the response to a request such as `POST /v1/rank`. Retries while the service is busy (503).

    Raises AssertionError with the response for any other error.
    """
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
