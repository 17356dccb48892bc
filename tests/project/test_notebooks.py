"""Notebooks run from top to bottom on a simulated shop, and are committed with their output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
QUICK = """
encoder: {max_tokens: 16, refreshes: 0, epochs: 2}
ranker: {trees: 60, min_data_in_leaf: 20}
features: {custom: ["my_features:cheap"]}
"""
CUSTOM = """
from features.custom import feature


@feature(about="negative price", unit="money", missing="no price")
def cheap(m):
    return -m.items.catalogue.price[m.candidates]
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose workspace has a nightly run, with a custom feature."""
    directory = tmp_path_factory.mktemp("notebooks")
    (directory / "quick.yaml").write_text(QUICK, "utf-8")
    (directory / "my_features.py").write_text(CUSTOM, "utf-8")
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
    """Every cell runs in a new kernel and gives as many plots as are committed; there are at least three."""
    from nbclient import NotebookClient

    monkeypatch.setenv("SHELFWISE_CONFIG", str(shop / "quick.yaml"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    notebook = nbformat.read(path, as_version=4)
    committed = [count_plots(cell) for cell in notebook.cells]
    executed = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(shop)}}).execute()
    assert [count_plots(cell) for cell in executed.cells] == committed
    assert sum(committed) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_committed_with_all_output_and_no_local_paths(path: Path) -> None:
    """Every code cell has run, in order and without error, and the output has no path of the machine."""
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert not [o for c in code for o in c.outputs if o.output_type == "error"]
    text = path.read_text("utf-8")
    assert str(Path.home()) + os.sep not in text
    assert str(ROOT) not in text


def count_plots(cell: nbformat.NotebookNode) -> int:
    """Number of plots in the output of a cell."""
    return sum("image/png" in o.get("data", {}) for o in cell.get("outputs", []))
