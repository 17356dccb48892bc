"""The house: which room may know which, and what the service never loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT: dict[str, set[str]] = {
    "features": set(),
    "ranker": set(),
    "text_encoder": {"features"},
    "serving": {"features", "ranker"},
    "offline": {"features", "ranker", "text_encoder", "serving"},
}
HEAVY = {"torch", "transformers", "sentence_transformers", "pandas", "lightgbm"}


def imports(path: Path) -> Iterator[str]:
    """Top-level names of everything a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    """features and ranker import nothing of ours, text_encoder features, serving both; offline all."""
    for path in sorted((ROOT / room).rglob("*.py")):
        ours = {m for m in imports(path) if m in MAY_IMPORT and m != room}
        assert ours <= MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {ours - MAY_IMPORT[room]}"


@pytest.mark.parametrize("room", ["features", "ranker", "serving"])
def test_what_serves_names_nothing_heavy(room: str) -> None:
    """No torch, transformers, pandas or LightGBM in what serves; but to train, and for a model we cannot score."""
    for path in sorted((ROOT / room).rglob("*.py")):
        heavy = HEAVY & set(imports(path))
        assert not heavy or path.name in ("train.py", "booster.py"), f"{path.relative_to(ROOT)} imports {heavy}"


@pytest.mark.parametrize("module", ["serving.app", "serving.live", "offline.cli", "offline.config"])
def test_importing_the_service_loads_nothing_heavy(module: str) -> None:
    """A worker's memory and start are free of torch, transformers, pandas and LightGBM."""
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {HEAVY!r}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"
