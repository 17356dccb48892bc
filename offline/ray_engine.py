"""The engine `ray`: parts as tasks of a Ray cluster. Ray is imported here and nowhere else, once it is asked for.

A task whose machine dies is run again elsewhere by Ray; being a pure function of its part, it gives the same blocks.
Bits of sums hang on how many threads share them, so a worker takes as many as the process that drives the night.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

from threadpoolctl import threadpool_info, threadpool_limits

from offline.engine import Block, EngineError, Part, Shared
from offline.run import code

_RETRIES = 10
"""Times a part is begun again because its machine or process was lost."""
_PARTS_A_SLOT = 2
"""Parts for each task that the cluster runs at once: so few that each pays for catching up with the log, so many that a
lost machine loses little."""


class _Threads(NamedTuple):
    """Threads of linear algebra and of torch, 0 where that is not loaded."""

    blas: int
    torch: int

    @classmethod
    def here(cls) -> _Threads:
        blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        torch = sys.modules.get("torch")
        return cls(max(blas, default=1), torch.get_num_threads() if torch else 0)

    def hold(self) -> None:
        """Use as many in this process."""
        threadpool_limits(self.blas, user_api="blas")
        if self.torch:
            torch = importlib.import_module("torch")
            if torch.get_num_threads() != self.torch:
                torch.set_num_threads(self.torch)


@functools.cache
def _code() -> str:
    return code()


_shared: dict[str, Any] = {}
"""What the parts of the last step share, as this worker has unpacked it."""


def _work(
    function: Callable[[Shared, Part], Iterable[Block]], shared: Sequence[Any], part: Part, threads: _Threads, of: str
) -> list[Block]:
    """The blocks of one part, on a worker. shared: a reference, in a list so that it comes as one. of: the code."""
    ray = _imported()
    if of != _code():
        raise EngineError(
            f"node {ray.util.get_node_ip_address()} has another version of Shelfwise than the night that runs: "
            "install the same one on every machine of the cluster"
        )
    threads.hold()
    key = shared[0].hex()
    if key not in _shared:
        _shared.clear()
        _shared[key] = ray.get(shared[0])
    return list(function(_shared[key], part))


class Ray:
    """A Ray cluster that this process is connected to. Made by `connected`."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._threads = _Threads.here()

    @property
    def _cpus(self) -> float:
        """CPUs a task asks for: as many as it has threads, if any machine has as many."""
        most = max(node["Resources"].get("CPU", 1.0) for node in self._ray.nodes() if node["Alive"])
        return float(min(most, max(self._threads)))

    @property
    def parts(self) -> int:
        """See `Engine`."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1.0) / self._cpus)) * _PARTS_A_SLOT

    def map(
        self, function: Callable[[Shared, Part], Iterable[Block]], shared: Shared, parts: Sequence[Part]
    ) -> Generator[Block, None, None]:
        """See `Engine`; blocks come part by part."""
        work = self._ray.remote(_work).options(num_cpus=self._cpus, max_retries=_RETRIES)
        held = [self._ray.put(shared)]
        started = (work.remote(function, held, part, self._threads, _code()) for part in parts)
        # So many at once that no slot waits, and no more: what is done waits in memory for those before it.
        ahead = deque(islice(started, 2 * self.parts))
        try:
            while ahead:
                blocks = self._got(ahead[0])
                ahead.popleft()
                ahead.extend(islice(started, 1))
                yield from blocks
        finally:
            for task in ahead:
                self._ray.cancel(task, force=True)

    def _got(self, task: Any) -> Any:
        """What a task gave. Raises what it raised, or EngineError where Ray lost it for good."""
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as e:
            raise (e.cause or e) from e
        except self._ray.exceptions.RayError as e:
            raise EngineError(
                f"Ray could not finish a part ({type(e).__name__}): {e}. What is finished is kept: start again, with "
                "`ray status` showing nodes that have room"
            ) from e


def _imported() -> Any:
    # Read when Ray is imported: no statistics of use are sent anywhere, and GPUs stay as they are seen.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as e:
        raise EngineError(
            f"--engine ray needs Ray, which cannot be imported ({e}): `pip install 'shelfwise[ray]'` here and on "
            "every machine of the cluster, or leave --engine out"
        ) from e


@contextmanager
def connected(address: str | None = None, own: Sequence[str] = ()) -> Iterator[Ray]:
    """The engine, while the block runs.

    address: of a cluster as `ray start` names it, "auto" for the one this machine belongs to; None starts Ray on this
    machine alone, and stops it. own: features of the user's own as `module:function`, whose modules the workers are
    sent. Raises EngineError where Ray is not installed or there is no such cluster.
    """
    ray = _imported()
    for name in {spec.partition(":")[0] for spec in own} & set(sys.modules):
        ray.cloudpickle.register_pickle_by_value(sys.modules[name])
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address is None:
        quiet["include_dashboard"] = False
    try:
        ray.init(address=address or "local", **quiet)
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise EngineError(
            f"--ray-address {address}: no Ray cluster answers there ({e}). Start one with `ray start --head`, join "
            "machines with `ray start --address ...`, or leave --ray-address out to use this machine alone"
        ) from e
    try:
        yield Ray(ray)
    finally:
        ray.shutdown()
