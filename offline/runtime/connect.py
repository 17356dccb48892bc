"""The engine by its name, as a person asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from offline.runtime.engine import LOCAL, Engine
from offline.runtime.errors import Failure


@contextmanager
def open_engine(name: str, ray_address: str | None, ray_workers: int = 1, own: Sequence[str] = ()) -> Iterator[Engine]:
    """The engine of that name, `local` or `ray`, while the block runs.

    ray_address, ray_workers, own: see `ray_engine.connected`. Raises Failure for another name, or for options that the
    engine does not take, and EngineError where Ray is not installed or its cluster cannot be reached.
    """
    if name not in ("local", "ray"):
        raise Failure(f"--engine {name}: no such engine; known: local, ray")
    if name == "local":
        if ray_address is not None or ray_workers > 1:
            raise Failure("--ray-address and --ray-workers go with --engine ray; the engine is local")
        yield LOCAL
        return
    from offline.runtime.ray_engine import connected  # needs packages that a host which only serves does not have

    with connected(ray_address, own, ray_workers) as engine:
        yield engine
