"""The engine `ray`: runs parts as tasks on a Ray cluster. Only this module imports Ray, and only when it is used.

If a machine fails, Ray runs its tasks again elsewhere. A task is a pure function of its part, so it yields the same
blocks. Floating-point sums depend on the number of threads, so workers use as many threads as the driver process.
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
"""Restarts of a part or a training after a machine or process is lost."""
_PARTS_PER_SLOT = 2
"""Parts per concurrent task. With fewer parts, less of the log is replayed more than once. With more parts, a lost
machine loses less work."""


class _Threads(NamedTuple):
    """Number of threads of BLAS and of torch. torch is 0 if it is not imported."""

    blas: int
    torch: int

    @classmethod
    def current(cls) -> _Threads:
        """The numbers of threads of this process."""
        blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        torch = sys.modules.get("torch")
        return cls(max(blas, default=1), torch.get_num_threads() if torch else 0)

    def apply(self) -> None:
        """Set the numbers of threads of this process."""
        threadpool_limits(self.blas, user_api="blas")
        if self.torch:
            torch = importlib.import_module("torch")
            if torch.get_num_threads() != self.torch:
                torch.set_num_threads(self.torch)


@functools.cache
def _code_version() -> str:
    return source_digest()


_shared: dict[str, Any] = {}
"""Shared data of the last step in this worker process, by object reference."""


def _run_part(
    function: Callable[[Shared, Part], Iterable[Block]],
    shared: Sequence[Any],
    part: Part,
    threads: _Threads,
    code_version: str,
) -> list[Block]:
    """The blocks of one part, computed on a worker."""
    return list(function(_load_shared(shared, threads, code_version), part))


def _load_shared(shared: Sequence[Any], threads: _Threads, code_version: str) -> Any:
    """Set up this worker process and return the shared data.

    shared: a list with the object reference, because Ray resolves references that are passed directly. code_version: of
    the driver process. Raises EngineError if this machine has another version.
    """
    ray = _import_ray()
    if code_version != _code_version():
        raise EngineError(
            f"node {ray.util.get_node_ip_address()} runs a different version of Shelfwise than the nightly run: "
            "install the same version on every machine of the cluster"
        )
    threads.apply()
    key = shared[0].hex()
    if key not in _shared:
        _shared.clear()
        _shared[key] = ray.get(shared[0])
    return _shared[key]


def _train(job: dict[str, Any]) -> Any:
    """Run the training function on a worker and return its result."""
    train = importlib.import_module("ray.train")
    context, network = train.get_context(), {}
    rank, size = context.get_world_rank(), context.get_world_size()
    if job["library"] == "lightgbm" and size > 1:
        network = importlib.import_module("ray.train.lightgbm").get_network_params()
        # LightGBM looks for its own address in the list, and the only loopback address it recognises is 127.0.0.1.
        network["machines"] = re.sub(r"\b127\.\d+\.\d+\.\d+", "127.0.0.1", network["machines"])
    shared = _load_shared(job["shared"], job["threads"], job["code"])
    return job["function"](shared, WorkerGroup(rank, size, network), no_progress)


class Ray:
    """A Ray cluster that this process is connected to. Created by `connected`."""

    def __init__(self, ray: Any, workers: int = 1) -> None:
        """workers: number of workers that train a model."""
        self._ray, self.workers = ray, workers
        self._threads = _Threads.current()

    @property
    def _cpus(self) -> float:
        """CPUs reserved per task: one per thread, at most the CPUs of the largest machine."""
        most = max(node["Resources"].get("CPU", 1.0) for node in self._ray.nodes() if node["Alive"])
        return float(min(most, max(self._threads)))

    @property
    def parts(self) -> int:
        """See `Engine`."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1.0) / self._cpus)) * _PARTS_PER_SLOT

    def map(
        self, function: Callable[[Shared, Part], Iterable[Block]], shared: Shared, parts: Sequence[Part]
    ) -> Generator[Block, None, None]:
        """See `Engine`. Blocks are returned once their part is complete."""
        run_part = self._ray.remote(_run_part).options(num_cpus=self._cpus, max_retries=_RETRIES)
        reference = [self._ray.put(shared)]
        tasks = (run_part.remote(function, reference, part, self._threads, _code_version()) for part in parts)
        # Enough tasks that no slot is idle, and no more: results stay in memory until those before them are read.
        submitted = deque(islice(tasks, 2 * self.parts))
        try:
            while submitted:
                blocks = self._result(submitted[0])
                submitted.popleft()
                submitted.extend(islice(tasks, 1))
                yield from blocks
        finally:
            for task in submitted:
                self._ray.cancel(task, force=True)

    def train(
        self,
        library: Library,
        function: Callable[[Shared, WorkerGroup, OnProgress], Result],
        shared: Shared,
        on_progress: OnProgress,
    ) -> Result:
        """See `Engine`. The workers are those of Ray Train; if one is lost, all start again."""
        train = importlib.import_module("ray.train")
        job = {
            "library": library,
            "function": function,
            "shared": [self._ray.put(shared)],
            "threads": self._threads,
            "code": _code_version(),
        }
        scaling = train.ScalingConfig(num_workers=self.workers, resources_per_worker={"CPU": self._cpus})
        lost: Exception | None = None
        for attempt in range(_RETRIES + 1):
            with tempfile.TemporaryDirectory(prefix="shelfwise-ray-") as directory:
                run = train.RunConfig(name=f"{library}-{attempt}", storage_path=directory)
                try:
                    result: Result = (
                        _trainer(library)(_train, train_loop_config=job, scaling_config=scaling, run_config=run)
                        .fit()
                        .return_value
                    )
                    return result
                except train.TrainingFailedError as e:
                    self._raise_worker_error(e)
                    lost = e
        raise EngineError(
            f"Ray lost training workers {_RETRIES + 1} times; check the nodes with `ray status`. Last error: {lost}"
        ) from lost

    def _raise_worker_error(self, error: Any) -> None:
        """Raise the exception of the training function; return if a worker or its machine was lost."""
        raised = [getattr(e, "_base_exc", e) for e in getattr(error, "worker_failures", {}).values()]
        # Ray Train's errors, unlike Ray's, have no common base class.
        own = [e for e in raised if type(e).__module__.partition(".")[0] != "ray"]
        # If a worker is lost during an all-reduce, the others raise connection errors.
        if own and len(own) == len(raised) and not any("gloo" in str(e).lower() or "Socket" in str(e) for e in own):
            raise own[0] from error

    def _result(self, task: Any) -> Any:
        """The result of a task. Raises the task's exception, or EngineError if Ray gave up on the task."""
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as e:
            raise (e.cause or e) from e
        except self._ray.exceptions.RayError as e:
            raise EngineError(
                f"Ray could not finish a part ({type(e).__name__}): {e}. Finished steps are kept: check with "
                "`ray status` that nodes have free resources, and start again"
            ) from e


def _trainer(library: Library) -> Any:
    """The Ray Train class whose workers can communicate, for a library."""
    if library == "lightgbm":
        return importlib.import_module("ray.train.lightgbm").LightGBMTrainer
    torch = importlib.import_module("ray.train.torch")
    return functools.partial(torch.TorchTrainer, torch_config=torch.TorchConfig(backend="gloo"))


def _import_ray() -> Any:
    # Ray reads these at import: do not send usage statistics, and do not hide GPUs from workers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as e:
        raise EngineError(
            f"--engine ray needs Ray, which cannot be imported ({e}): run `pip install 'shelfwise[ray]'` here and on "
            "every machine of the cluster, or leave --engine out"
        ) from e


@contextmanager
def connected(address: str | None = None, own: Sequence[str] = (), workers: int = 1) -> Iterator[Ray]:
    """Connect to a Ray cluster for the duration of the block.

    address: of a cluster, as `ray start` prints it; "auto" for the cluster of this machine. None starts Ray on this
    machine and stops it at the end. own: custom features as `module:function`; their modules are sent to the workers.
    workers: number of workers that train a model. Raises EngineError if Ray is not installed or no cluster answers.
    """
    ray = _import_ray()
    for name in {spec.partition(":")[0] for spec in own} & set(sys.modules):
        ray.cloudpickle.register_pickle_by_value(sys.modules[name])
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address is None:
        options["include_dashboard"] = False
    try:
        ray.init(address=address or "local", **options)
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise EngineError(
            f"--ray-address {address}: no Ray cluster answers ({e}). Start one with `ray start --head`, join "
            "machines with `ray start --address ...`, or leave --ray-address out to use this machine alone"
        ) from e
    try:
        yield Ray(ray, workers)
    finally:
        ray.shutdown()
