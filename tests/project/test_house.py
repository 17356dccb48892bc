"""Import rules: which subpackages may import which, only through `__init__`; and what the service never loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests import ROOT

TOP: dict[str, set[str]] = {
    "features": set(),
    "ranker": set(),
    "text_encoder": {"features"},
    "serving": {"features", "ranker"},
    "offline": {"features", "ranker", "text_encoder", "serving"},
}
_BELOW_TRAINING = {"runtime", "config", "data", "evaluation"}
OFFLINE: dict[str, set[str]] = {
    "runtime": set(),
    "config": {"runtime"},
    "data": {"runtime", "config"},
    "simulation": {"runtime", "config"},
    "ingest": {"runtime", "config", "data"},
    "evaluation": {"runtime", "config", "data"},
    "training": _BELOW_TRAINING,
    "nightly": _BELOW_TRAINING | {"training"},
    "studies": _BELOW_TRAINING | {"training", "nightly"},
    "exports": {"runtime", "config", "data"},
    "experiments": {"runtime", "config", "data", "evaluation"},
    "earnings": _BELOW_TRAINING | {"experiments"},
    "cli": _BELOW_TRAINING
    | {"training", "nightly", "studies", "exports", "experiments", "earnings", "simulation", "ingest"},
}
"""Subpackages of `offline/`, and the subpackages each may import."""
SERVING: dict[str, set[str]] = {
    "clock": set(),
    "lock": set(),
    "kernels": set(),
    "store": {"lock"},
    "rules": set(),
    "config": {"rules"},
    "copies": set(),
    "merchandising": {"copies", "rules", "store"},
    "experiments": {"api", "config", "copies", "rules", "store"},
    "api": {"config", "rules", "store"},
    "release": {"lock", "store"},
    "records": {"api", "config", "store"},
    "writes": {"api", "config", "experiments", "records", "store"},
    "ranking": {"api", "config", "experiments", "merchandising", "records", "release", "rules", "store", "writes"},
    "compile": {"kernels", "ranking", "release", "store"},
    "http": {"api", "config", "ranking", "records"},
    "pages": {"api", "config", "http", "merchandising", "ranking", "records", "release", "rules", "store"},
    "app": {"api", "clock", "config", "http", "lock", "pages", "ranking", "records", "release", "store"},
}
"""Subpackages of `serving/` and files outside subpackages, and what each may import."""
FEATURES: dict[str, set[str]] = {
    "kernels": {"arrays"},
    "text": {"arrays", "catalogue", "kernels"},
    "companions": {"arrays", "catalogue", "history", "kernels", "log", "neighbours", "text"},
    "linear": {"arrays", "kernels", "log", "neighbours"},
    "sequence": {"arrays", "kernels", "text"},
}
"""Subpackages of `features/`, and what each may import. Files outside subpackages may import all of them."""
SUBPACKAGES = {"offline": OFFLINE, "serving": SERVING, "features": FEATURES}
HEAVY = {"ray", "torch", "transformers", "sentence_transformers", "pandas", "lightgbm"}
MOST_FILES, FEW_FILES = 20, 12


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import in a file, at any level. The name is empty for `import module`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def files(top: str) -> list[Path]:
    """The files of a top-level package, without the clients, which are separate packages."""
    return [p for p in sorted((ROOT / top).rglob("*.py")) if "clients" not in p.parts]


def subpackage_of(top: str, path: Path) -> str:
    """The subpackage of a path, or the name of a file outside subpackages."""
    return path.relative_to(ROOT / top).parts[0].removesuffix(".py")


def subpackage_imports(top: str, path: Path) -> Iterator[tuple[str, str, str]]:
    """(subpackage, module, name) of a file's imports from other subpackages of its top-level package."""
    own = subpackage_of(top, path)
    for module, name in imports(path):
        parts = module.split(".")
        if parts[0] != top:
            continue
        subpackage = parts[1] if len(parts) > 1 else name
        if subpackage and subpackage != own:
            yield subpackage, module, name


@pytest.mark.parametrize("top", TOP)
def test_a_top_level_package_imports_only_what_it_may(top: str) -> None:
    """features and ranker import no other package, text_encoder imports features, serving both, and offline all."""
    for path in files(top):
        imported = {m.split(".")[0] for m, _ in imports(path)} & set(TOP) - {top}
        assert imported <= TOP[top], f"{path.relative_to(ROOT)} imports {imported - TOP[top]}"


@pytest.mark.parametrize("top", SUBPACKAGES)
def test_a_subpackage_imports_only_what_it_may(top: str) -> None:
    """These are the import rules of docs/architecture.md; files outside subpackages are listed there too."""
    for path in files(top):
        own = subpackage_of(top, path)
        if own == "__init__" or (top == "features" and own not in FEATURES):
            continue
        imported = {subpackage for subpackage, _, _ in subpackage_imports(top, path)}
        assert own in SUBPACKAGES[top], f"{path.relative_to(ROOT)} is in an unknown subpackage"
        assert imported <= SUBPACKAGES[top][own], f"{path.relative_to(ROOT)} imports {imported - SUBPACKAGES[top][own]}"


@pytest.mark.parametrize("subpackages", SUBPACKAGES.values(), ids=SUBPACKAGES)
def test_subpackages_have_no_import_cycle(subpackages: dict[str, set[str]]) -> None:
    """Raises CycleError for a cycle."""
    assert set(TopologicalSorter(subpackages).static_order()) >= set(subpackages)


@pytest.mark.parametrize("top", TOP)
def test_files_have_no_import_cycle(top: str) -> None:
    """There are no import cycles between files, including imports for type checkers."""
    known = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files(top)}
    graph = {}
    for module, path in known.items():
        named = {m if f"{m}.{n}" not in known else f"{m}.{n}" for m, n in imports(path)}
        # A subpackage's __init__ imports its files, which may import one another directly.
        graph[module] = {m for m in named if m in known and m != module and not module.startswith(f"{m}.")}
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("top", ["offline", "serving"])
def test_other_subpackages_import_only_exported_names(top: str) -> None:
    """Other subpackages may import only names in `__all__` of a subpackage's `__init__`."""
    for path in files(top):
        for subpackage, module, name in subpackage_imports(top, path):
            init = ROOT / top / subpackage / "__init__.py"
            if init.is_file():
                assert module == f"{top}.{subpackage}", f"{path.relative_to(ROOT)} imports {module}, not its __init__"
                assert name in public(init), f"{path.relative_to(ROOT)}: {top}.{subpackage} does not export {name}"


def public(init: Path) -> set[str]:
    """The names in `__all__` of a subpackage."""
    for node in ast.parse(init.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def test_subpackages_are_small() -> None:
    """No subpackage has more than 20 files, and at most 4 have more than 12."""
    count = {
        folder.relative_to(ROOT): len([p for p in folder.glob("*.py") if p.name != "__init__.py"])
        for top in TOP
        for folder in [ROOT / top, *(p.parent for p in (ROOT / top).rglob("__init__.py"))]
    }
    assert max(count.values()) <= MOST_FILES
    assert sum(n > FEW_FILES for n in count.values()) <= 4, {str(f): n for f, n in count.items() if n > FEW_FILES}


@pytest.mark.parametrize("top", ["offline", "serving"])
def test_every_subpackage_has_a_docstring(top: str) -> None:
    """The `__init__` of every subpackage has a docstring of more than 40 characters and at most 20 lines."""
    for subpackage in SUBPACKAGES[top]:
        init = ROOT / top / subpackage / "__init__.py"
        if init.is_file():
            docstring = ast.get_docstring(ast.parse(init.read_text("utf-8"))) or ""
            assert len(docstring) > 40, subpackage
            assert len(docstring.splitlines()) <= 20, subpackage


@pytest.mark.parametrize("top", ["features", "ranker", "serving"])
def test_serving_code_imports_nothing_heavy(top: str) -> None:
    """Except train.py, and booster.py for models that our own trees cannot score."""
    for path in files(top):
        heavy = HEAVY & {m.split(".")[0] for m, _ in imports(path)}
        assert not heavy or path.name in ("train.py", "booster.py"), f"{path.relative_to(ROOT)} imports {heavy}"


@pytest.mark.parametrize("module", ["serving.app", "serving.ranking", "offline.cli", "offline.config"])
def test_importing_the_service_loads_nothing_heavy(module: str) -> None:
    """Workers start without torch, transformers, pandas and LightGBM."""
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {HEAVY!r}))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert process.stdout.strip() == "[]"
