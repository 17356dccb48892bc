"""The README is true: its commands run as printed, in order, in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from offline.config import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def test_the_first_screen_names_make_targets_that_exist() -> None:
    """`make demo` and `make test` are targets of the Makefile."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = re.findall(r"^make (\S+)", BLOCKS[0], re.MULTILINE)
    assert named == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)


def test_files_named_in_the_tree_exist() -> None:
    """The tree in reading order names files that are there."""
    tree = README.split("in reading order")[1]
    room = ""
    for line in tree.splitlines():
        if found := re.match(r"(\w+)/", line):
            room = found[1]
        for name in re.findall(r"\b(\w+\.py)\b", line):
            assert (ROOT / room / name).is_file(), f"{room}/{name}"


def test_the_mapping_in_the_docs_is_a_configuration() -> None:
    """The example's mapping, and the excerpt shown of it, are accepted."""
    excerpt = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/data.md").read_text("utf-8"), re.DOTALL)[0]
    whole = load(ROOT / "docs/examples/online_retail.yaml")
    assert whole.sources is not None
    shown = whole.sources.events[0].columns
    assert all(f"{ours}: {theirs}" in excerpt for ours, theirs in shown.items())


@pytest.mark.slow
def test_the_commands_run_as_printed(tmp_path: Path) -> None:
    """Simulate, night, rank, similar, releases; then serve and its calls: each succeeds and says what it should."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {k: v for k, v in os.environ.items() if k != "REDIS_URL"} | {"PATH": path}
    said = []
    for block in BLOCKS[1:3]:
        script = f"set -euo pipefail\nset -m\n{block}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout)
    assert "ranker" in said[0]
    assert "live" in said[0]
    answers = said[1]
    assert answers.count('"degraded":false') >= 2
    assert '"accepted":1' in answers
    assert '"reasons":[{' in answers
    assert '"sources":["' in answers
    assert '"removed":[{"rule":"rules.filter"' in answers
