"""The house: which room may import which, through which face, and what the service never loads."""

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
    "cli": _BELOW_TRAINING | {"training", "nightly", "studies", "simulation", "ingest"},
}
"""Rooms of `offline/`, and those each may import."""
SERVING: dict[str, set[str]] = {
    "clock": set(),
    "lock": set(),
    "store": {"lock"},
    "rules": set(),
    "config": {"rules"},
    "api": {"config", "rules", "store"},
    "release": {"lock", "store"},
    "records": {"api", "store"},
    "ranking": {"api", "config", "records", "release", "rules", "store"},
    "http": {"api", "config", "ranking", "records"},
    "pages": {"api", "config", "http", "ranking", "records", "release", "rules", "store"},
    "app": {"api", "clock", "config", "http", "pages", "ranking", "records", "store"},
}
"""Rooms of `serving/`, and the files beside them."""
FEATURES: dict[str, set[str]] = {"kernels": {"arrays"}, "text": {"arrays", "catalogue", "kernels"}}
"""Rooms of `features/`; files of its own may import both."""
ROOMS = {"offline": OFFLINE, "serving": SERVING, "features": FEATURES}
HEAVY = {"torch", "transformers", "sentence_transformers", "pandas", "lightgbm"}
MOST_FILES, FEW_FILES = 20, 12


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of everything a file imports, wherever in it; the name is empty for `import module`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def files(top: str) -> list[Path]:
    """The files of a top-level package; clients are packages of their own."""
    return [p for p in sorted((ROOT / top).rglob("*.py")) if "clients" not in p.parts]


def room_of(top: str, path: Path) -> str:
    """The room, or the file beside rooms, that a path belongs to."""
    return path.relative_to(ROOT / top).parts[0].removesuffix(".py")


def imported_rooms(top: str, path: Path) -> Iterator[tuple[str, str, str]]:
    """(room, module, name) of what a file imports from other rooms of its top-level package."""
    own = room_of(top, path)
    for module, name in imports(path):
        parts = module.split(".")
        if parts[0] != top:
            continue
        room = parts[1] if len(parts) > 1 else name
        if room and room != own:
            yield room, module, name


@pytest.mark.parametrize("top", TOP)
def test_a_top_level_package_imports_only_what_it_may(top: str) -> None:
    """features and ranker import nothing of ours, text_encoder features, serving both; offline all."""
    for path in files(top):
        ours = {m.split(".")[0] for m, _ in imports(path)} & set(TOP) - {top}
        assert ours <= TOP[top], f"{path.relative_to(ROOT)} imports {ours - TOP[top]}"


@pytest.mark.parametrize("top", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(top: str) -> None:
    """The arrows of docs/architecture.md; a file that is in no room is named there too."""
    for path in files(top):
        own = room_of(top, path)
        if own == "__init__" or (top == "features" and own not in FEATURES):
            continue
        found = {room for room, _, _ in imported_rooms(top, path)}
        assert own in ROOMS[top], f"{path.relative_to(ROOT)} is in no room"
        assert found <= ROOMS[top][own], f"{path.relative_to(ROOT)} imports {found - ROOMS[top][own]}"


@pytest.mark.parametrize("rooms", ROOMS.values(), ids=ROOMS)
def test_no_room_is_above_itself(rooms: dict[str, set[str]]) -> None:
    """Raises CycleError for a circle."""
    assert set(TopologicalSorter(rooms).static_order()) >= set(rooms)


@pytest.mark.parametrize("top", TOP)
def test_no_file_imports_itself_through_others(top: str) -> None:
    """Files have no circle either; imports for type checkers alone count."""
    known = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files(top)}
    graph = {}
    for module, path in known.items():
        named = {m if f"{m}.{n}" not in known else f"{m}.{n}" for m, n in imports(path)}
        # A face imports its room, whose files may import one another past it.
        graph[module] = {m for m in named if m in known and m != module and not module.startswith(f"{m}.")}
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("top", ["offline", "serving"])
def test_rooms_are_entered_by_their_face(top: str) -> None:
    """What another room imports is in `__all__` of the room's `__init__`; everything else is private to it."""
    for path in files(top):
        for room, module, name in imported_rooms(top, path):
            face = ROOT / top / room / "__init__.py"
            # Ray is imported where it is asked for, by the engine alone.
            if face.is_file():
                assert module == f"{top}.{room}", f"{path.relative_to(ROOT)} imports {module}, past its face"
                assert name in public(face), f"{path.relative_to(ROOT)}: {top}.{room} does not export {name}"


def public(face: Path) -> set[str]:
    """Names in `__all__` of a room."""
    for node in ast.parse(face.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def test_a_room_is_a_room_and_not_a_street() -> None:
    """No room has more than 20 files, and few have more than 12."""
    count = {
        folder.relative_to(ROOT): len([p for p in folder.glob("*.py") if p.name != "__init__.py"])
        for top in TOP
        for folder in [ROOT / top, *(p.parent for p in (ROOT / top).rglob("__init__.py"))]
    }
    assert max(count.values()) <= MOST_FILES
    assert sum(n > FEW_FILES for n in count.values()) <= 4, {str(f): n for f, n in count.items() if n > FEW_FILES}


@pytest.mark.parametrize("top", ["offline", "serving"])
def test_every_room_says_what_it_is_for(top: str) -> None:
    """Its face opens with a docstring of a sentence at least, and twenty lines at most."""
    for room in ROOMS[top]:
        face = ROOT / top / room / "__init__.py"
        if face.is_file():
            said = ast.get_docstring(ast.parse(face.read_text("utf-8"))) or ""
            assert len(said) > 40, room
            assert len(said.splitlines()) <= 20, room


@pytest.mark.parametrize("top", ["features", "ranker", "serving"])
def test_what_serves_names_nothing_heavy(top: str) -> None:
    """No torch, transformers, pandas or LightGBM in what serves; but to train, and for a model we cannot score."""
    for path in files(top):
        heavy = HEAVY & {m.split(".")[0] for m, _ in imports(path)}
        assert not heavy or path.name in ("train.py", "booster.py"), f"{path.relative_to(ROOT)} imports {heavy}"


@pytest.mark.parametrize("module", ["serving.app", "serving.ranking", "offline.cli", "offline.config"])
def test_importing_the_service_loads_nothing_heavy(module: str) -> None:
    """A worker's memory and start are free of torch, transformers, pandas and LightGBM."""
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {HEAVY!r}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"
