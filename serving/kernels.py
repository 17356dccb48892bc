"""Kernels compiled before a service starts, so that a new container is ready in seconds.

numba caches a kernel for the name and the features of one processor, so a cache made on the machine that builds an
image is useless on most others. `python -m serving.compile` compiles for named levels instead, and a service uses the
highest level that its processor has. Kernels give the same bits at every level: they reorder and fuse no operations.

The environment variables must be set before numba is imported, so this file imports nothing of ours.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from llvmlite import binding

log = logging.getLogger(__name__)

SHIPPED = "SHELFWISE_KERNELS"
"""Environment variable: the folder written by `python -m serving.compile`."""
MANIFEST = "kernels.json"
_CACHE, _NAME, _FEATURES = "NUMBA_CACHE_DIR", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"

_V2 = ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")
_V3 = (*_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni")
LEVELS: Mapping[str, tuple[str, ...]] = {"x86-64-v4-vnni": _V4, "x86-64-v3": _V3}
"""Levels and the processor features each requires, the fastest first. The first is level 4 of the x86-64 psABI with the
instruction for four bytes (Ice Lake, Zen 4 and later); the second is level 3 (Haswell, Zen and later)."""


class KernelsError(RuntimeError):
    """The kernels in the folder of `SHELFWISE_KERNELS` cannot be used; the message says why and what to do."""


def environment(level: str) -> dict[str, str]:
    """The variables that make numba compile for a level."""
    # Without the last feature, LLVM splits the registers of 512 bits that `features/kernels/dots.py` fills.
    features = [*(f"+{name}" for name in LEVELS[level]), "-prefer-256-bit"]
    return {_NAME: level.removesuffix("-vnni"), _FEATURES: ",".join(features)}


def supported(features: Mapping[str, bool] | None = None) -> list[str]:
    """The levels that a processor has, the fastest first. features: of LLVM; defaults to those of this machine."""
    if features is None:
        try:
            features = dict(binding.get_host_cpu_features()) if platform.machine() in ("x86_64", "AMD64") else {}
        except RuntimeError:  # LLVM cannot query this processor
            features = {}
    return [level for level, required in LEVELS.items() if all(features.get(name) for name in required)]


def use_shipped() -> str | None:
    """Use the kernels in the folder of `SHELFWISE_KERNELS`, and return their level; None if there are none to use.

    Sets the environment of this process and its workers, and copies the kernels into `NUMBA_CACHE_DIR`, because numba
    uses no cache that it cannot write to. Call it before numba is imported. If the processor has none of the levels, or
    a processor is named in the environment, kernels are compiled as if none were shipped, with a warning. Raises
    KernelsError if the folder is incomplete, belongs to another installation, or if no cache is named.
    """
    if not (folder := os.environ.get(SHIPPED)):
        return None
    compiled = _levels(Path(folder))
    if _NAME in os.environ or _FEATURES in os.environ:
        log.warning(
            "kernels are compiled for the processor of %s and %s before the service is ready; unset them to use those "
            "in %s",
            _NAME,
            _FEATURES,
            folder,
        )
        return None
    level = next((level for level in supported() if level in compiled), None)
    if level is None:
        log.warning(
            "this processor has none of the levels %s of the kernels in %s, so kernels are compiled before the service "
            "is ready",
            ", ".join(compiled),
            folder,
        )
        return None
    if not (cache := os.environ.get(_CACHE)):
        raise KernelsError(f"{SHIPPED} is set without {_CACHE}: set {_CACHE} to a folder that the service can write to")
    _copy(Path(folder), Path(cache))
    os.environ.update(environment(level))
    return level


def manifest(levels: list[str]) -> str:
    """The text of `kernels.json`: the levels, the installation they were compiled for, and a random number."""
    return json.dumps({"levels": levels, "installation": _installation(), "build": uuid.uuid4().hex}) + "\n"


def _installation() -> dict[str, str]:
    """The state that the kernels depend on: numba finds a kernel by the path of its source file and by its own version.

    It compares the source of a kernel, but not of the kernels that this one calls, which may be in other files.
    """
    root = Path(__file__).parent.parent
    sources = hashlib.sha256()
    for path in sorted(p for top in ("features", "ranker") for p in (root / top).rglob("*.py")):
        sources.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return {
        "path": str(root),
        "python": platform.python_version(),
        "numba": importlib.metadata.version("numba"),
        "sources": sources.hexdigest(),
    }


def _levels(folder: Path) -> list[str]:
    try:
        content = json.loads((folder / MANIFEST).read_text("utf-8"))
        levels, installation = list(content["levels"]), dict(content["installation"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise KernelsError(
            f"{folder / MANIFEST} cannot be read ({e}): run `python -m serving.compile {folder}`, or unset {SHIPPED}"
        ) from e
    for name, value in _installation().items():
        if installation.get(name) != value:
            raise KernelsError(
                f"{folder} has kernels of another installation, with {name} {installation.get(name)!r} and not "
                f"{value!r}: run `python -m serving.compile` with a new folder, or unset {SHIPPED}"
            )
    return levels


def _copy(folder: Path, cache: Path) -> None:
    """Copy the kernels, unless this build of them was copied before. Other processes may be reading the cache."""
    done = cache / MANIFEST
    if done.is_file() and done.read_bytes() == (folder / MANIFEST).read_bytes():
        return
    # An index names data files, so it is copied after them, and the manifest last.
    order = {".nbi": 1, ".json": 2}
    for path in sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: order.get(p.suffix, 0)):
        target = cache / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        shutil.copyfile(path, partial)
        partial.replace(target)
