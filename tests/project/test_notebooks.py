"""Notebooks run from top to bottom on a simulated shop, and say what they are committed with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
QUICK = "encoder: {max_tokens: 16, refreshes: 0, epochs: 2}\nranker: {trees: 60, min_data_in_leaf: 20}\n"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose workspace holds a night."""
    directory = tmp_path_factory.mktemp("notebooks")
    (directory / "quick.yaml").write_text(QUICK, "utf-8")
    shelfwise = str(Path(sys.executable).parent / "shelfwise")
    for command in (
        ["simulate", "--items", "80", "--users", "80", "--days", "10", "--seed", "3"],
        ["nightly", "--config", "quick.yaml", "--no-publish"],
    ):
        subprocess.run([shelfwise, *command], cwd=directory, check=True)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path: Path, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of its own, every cell; a plot for each that is committed, and a verdict at the end."""
    from nbclient import NotebookClient

    monkeypatch.setenv("SHELFWISE_CONFIG", str(shop / "quick.yaml"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    held = nbformat.read(path, as_version=4)
    committed = [pictures(cell) for cell in held.cells]
    ran = NotebookClient(held, timeout=600, resources={"metadata": {"path": str(shop)}}).execute()
    assert [pictures(cell) for cell in ran.cells] == committed
    assert sum(committed) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_committed_whole_and_without_a_trace_of_where_it_ran(path: Path) -> None:
    """Every code cell has run, in order and without error; no path of the machine is in it."""
    held = nbformat.read(path, as_version=4)
    code = [c for c in held.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert not [o for c in code for o in c.outputs if o.output_type == "error"]
    text = path.read_text("utf-8")
    assert str(Path.home()) + os.sep not in text
    assert str(ROOT) not in text


def pictures(cell: nbformat.NotebookNode) -> int:
    """How many plots a cell shows."""
    return sum("image/png" in o.get("data", {}) for o in cell.get("outputs", []))
