"""Select an engine by name, from the command-line options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from offline.runtime.engine import LOCAL, Engine
from offline.runtime.errors import Failure


@contextmanager
def open_engine(name: str, ray_address: str | None, ray_workers: int = 1, own: Sequence[str] = ()) -> Iterator[Engine]:
    """The engine called `name`, `local` or `ray`, for the duration of the block.

    ray_address, ray_workers, own: see `ray_engine.connected`. Raises Failure for an unknown name and for options
    that the engine does not accept, and EngineError if Ray is not installed or its cluster cannot be reached.
    """
    if name not in ("local", "ray"):
        raise Failure(f"--engine {name}: no such engine; use local or ray")
    if name == "local":
        if ray_address is not None or ray_workers > 1:
            raise Failure("--ray-address and --ray-workers need --engine ray; the engine is local")
        yield LOCAL
        return
    from offline.runtime.ray_engine import connected  # its packages are not installed on hosts that only serve

    with connected(ray_address, own, ray_workers) as engine:
        yield engine
