"""The engine `ray`: parts as tasks of a Ray cluster. Ray is imported here and nowhere else, once it is asked for.

A task whose machine dies is run again elsewhere by Ray; being a pure function of its part, it gives the same blocks.
Bits of sums hang on how many threads share them, so a worker takes as many as the process that drives the night.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

from threadpoolctl import threadpool_info, threadpool_limits

from offline.runtime.engine import Block, EngineError, Library, Part, Result, Shared, WorkerGroup
from offline.runtime.files import source_digest
from offline.runtime.progress import OnProgress, no_progress

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
    return source_digest()


_shared: dict[str, Any] = {}
"""What the parts of the last step share, as this worker has unpacked it."""


def _work(
    function: Callable[[Shared, Part], Iterable[Block]], shared: Sequence[Any], part: Part, threads: _Threads, of: str
) -> list[Block]:
    """The blocks of one part, on a worker."""
    return list(function(_unpacked(shared, threads, of), part))


def _unpacked(shared: Sequence[Any], threads: _Threads, of: str) -> Any:
    """What a worker is to read, this process made ready for it. shared: a reference, in a list so that it comes as one.

    of: the code that the night runs. Raises EngineError where this machine has another.
    """
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
    return _shared[key]


def _train(asked: dict[str, Any]) -> Any:
    """A worker's side of a training: what the function returns."""
    train = importlib.import_module("ray.train")
    context, network = train.get_context(), {}
    rank, size = context.get_world_rank(), context.get_world_size()
    if asked["library"] == "lightgbm" and size > 1:
        network = importlib.import_module("ray.train.lightgbm").get_network_params()
        # LightGBM knows itself by the addresses of its interfaces, and of all the loopback's that is this one.
        network["machines"] = re.sub(r"\b127\.\d+\.\d+\.\d+", "127.0.0.1", network["machines"])
    of = (asked["shared"], asked["threads"], asked["code"])
    return asked["function"](_unpacked(*of), WorkerGroup(rank, size, network), no_progress)


class Ray:
    """A Ray cluster that this process is connected to. Made by `connected`."""

    def __init__(self, ray: Any, workers: int = 1) -> None:
        """workers: of a training."""
        self._ray, self.workers = ray, workers
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

    def train(
        self,
        library: Library,
        function: Callable[[Shared, WorkerGroup, OnProgress], Result],
        shared: Shared,
        on_progress: OnProgress,
    ) -> Result:
        """See `Engine`: workers of Ray Train. A group that lost one begins anew."""
        train = importlib.import_module("ray.train")
        asked = {
            "library": library,
            "function": function,
            "shared": [self._ray.put(shared)],
            "threads": self._threads,
            "code": _code(),
        }
        scaling = train.ScalingConfig(num_workers=self.workers, resources_per_worker={"CPU": self._cpus})
        lost: Exception | None = None
        for attempt in range(_RETRIES + 1):
            with tempfile.TemporaryDirectory(prefix="shelfwise-ray-") as place:
                run = train.RunConfig(name=f"{library}-{attempt}", storage_path=place)
                try:
                    found: Result = (
                        _trainer(library)(_train, train_loop_config=asked, scaling_config=scaling, run_config=run)
                        .fit()
                        .return_value
                    )
                    return found
                except train.TrainingFailedError as e:
                    self._raise_own(e)
                    lost = e
        raise EngineError(
            f"Ray lost workers of a training {_RETRIES + 1} times, see `ray status`; the last time: {lost}"
        ) from lost

    def _raise_own(self, error: Any) -> None:
        """Raises what a worker raised; returns where a worker or its machine was lost."""
        raised = [getattr(e, "_base_exc", e) for e in getattr(error, "worker_failures", {}).values()]
        # Ray Train's own errors, unlike Ray's, have no base of their own.
        own = [e for e in raised if type(e).__module__.partition(".")[0] != "ray"]
        # Workers that lose one of theirs in the middle of a sum say so as well.
        if own and len(own) == len(raised) and not any("gloo" in str(e).lower() or "Socket" in str(e) for e in own):
            raise own[0] from error

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


def _trainer(library: Library) -> Any:
    """The trainer of Ray Train whose workers can speak with one another."""
    if library == "lightgbm":
        return importlib.import_module("ray.train.lightgbm").LightGBMTrainer
    torch = importlib.import_module("ray.train.torch")
    return functools.partial(torch.TorchTrainer, torch_config=torch.TorchConfig(backend="gloo"))


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
def connected(address: str | None = None, own: Sequence[str] = (), workers: int = 1) -> Iterator[Ray]:
    """The engine, while the block runs.

    address: of a cluster as `ray start` names it, "auto" for the one this machine belongs to; None starts Ray on this
    machine alone, and stops it. own: features of the user's own as `module:function`, whose modules the workers are
    sent. workers: of a training. Raises EngineError where Ray is not installed or there is no such cluster.
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
        yield Ray(ray, workers)
    finally:
        ray.shutdown()
