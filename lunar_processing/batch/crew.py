"""Who does the work: this process, processes of this machine, or the workers of a Dask scheduler anywhere.

    for task, entry in entries(tasks, Crew(workers=4), cancelled):
        journal.write(entry)

A worker has one product at a time, so that it is known what it died of. Dask replaces the worker, and the product is
given to another; what has brought down two is reported as failed, and the rest goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lunar_processing.batch.work import do, failed
from lunar_processing.errors import Cancelled, DeviceError, ParameterError

Task = Mapping[str, Any]
Entry = dict[str, Any]
LOOK_UP = 0.2  # seconds between looks whether the run was cancelled
ROOM = 2 << 30  # bytes a worker should have, of the default number of workers
TRIES = 2  # of a product whose worker dies
PATIENCE = "10s"  # for a scheduler to answer
GRACE = 5.0  # seconds in which Dask itself replaces a worker that has died
DEADLY = (
    "Two workers died of this product: it needs more memory than they have, or crashes a library.",
    "run the tool on it alone to see why, or give workers more --memory, and --resume.",
)
SHARE = 0.9  # of the machine's memory that the workers may take together
LOST = "start the scheduler again, and go on with --resume."
SETTINGS = {
    "distributed.scheduler.allowed-failures": 0,  # who tries again is we, for we know which product it was
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.worker.daemon": True,
    "distributed.admin.low-level-log-length": 0,
    "logging": {"distributed": "critical"},
}


@dataclass(frozen=True)
class Crew:
    """`workers` 0: this process; None: as many as suit the machine. `memory` in bytes each, None: their share."""

    workers: int | None = None
    memory: int | None = None
    address: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise ParameterError(f"{self.workers} workers are not possible.", "give --workers 1 or more, or 0.")
        if self.memory is not None and self.memory < 256 << 20:
            raise ParameterError("So little memory is too little for a worker.", "give --memory 0.25 (GB) or more.")


def entries(tasks: Iterable[Task], crew: Crew, cancelled: Callable[[], bool]) -> Iterator[tuple[Task, Entry]]:
    """Each task with what came of it, in the order in which they are finished."""
    return _here(tasks, cancelled) if crew.workers == 0 and not crew.address else _by_dask(tasks, crew, cancelled)


def _here(tasks: Iterable[Task], cancelled: Callable[[], bool]) -> Iterator[tuple[Task, Entry]]:
    for task in tasks:
        if cancelled():
            raise Cancelled("The run was cancelled.")
        yield task, do(task)


def _by_dask(tasks: Iterable[Task], crew: Crew, cancelled: Callable[[], bool]) -> Iterator[tuple[Task, Entry]]:
    waiting = deque(tasks)
    if not waiting:
        return
    with _hands(crew) as hands:
        strikes: Counter[str] = Counter()
        while waiting or hands.running:
            if cancelled():
                raise Cancelled("The run was cancelled.")
            for worker in hands.free()[: len(waiting)]:
                hands.send(waiting.popleft(), worker)
            for task, entry in hands.news():
                strikes[task["name"]] += entry is None
                if entry is not None:
                    yield task, entry
                elif strikes[task["name"]] < TRIES:
                    waiting.appendleft(task)
                else:
                    yield task, failed(task, "worker", *DEADLY)


class _Hands:
    """The workers of a scheduler. Each has one product or none, so that it is known what a worker died of."""

    def __init__(self, client: Any, cluster: Any = None) -> None:
        self._client, self._cluster = client, cluster
        self._gpus = len(_gpus()) if cluster else 0
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._missed: dict[Any, float] = {}
        self.running: dict[Any, tuple[Task, str]] = {}

    def send(self, task: Task, worker: str) -> None:
        # Never taken from an earlier run's memory: the files may have changed.
        future = self._client.submit(_do, task, self._gpus, pure=False, workers=[worker], allow_other_workers=False)
        self.running[future] = (task, worker)
        future.add_done_callback(self._done.put)

    def free(self) -> list[str]:
        """Workers that have nothing to do; they may come and go."""
        busy = {worker for _, worker in self.running.values()}
        return [worker for worker in self._alive() if worker not in busy]

    def news(self) -> Iterator[tuple[Task, Entry | None]]:
        """What came of products since the last look; None where the worker has died."""
        with contextlib.suppress(queue.Empty):
            future = self._done.get(timeout=LOOK_UP)
            if future in self.running:
                task, _ = self.running.pop(future)
                yield task, _entry_of(task, future)
                return
        alive = set(self._alive())
        for future, (task, worker) in list(self.running.items()):
            if worker not in alive and not future.done():
                del self.running[future]
                future.cancel()
                yield task, None
        self._revive()

    def _alive(self) -> list[str]:
        try:
            return list(self._client.nthreads())
        except (OSError, TimeoutError) as error:
            raise DeviceError("The connection to the Dask scheduler was lost.", LOST) from error

    def _revive(self) -> None:
        """Start again a process that has died just as it began, which Dask overlooks."""
        for nanny in self._cluster.workers.values() if self._cluster else ():
            if nanny.is_alive():
                self._missed.pop(nanny, None)
            elif time.monotonic() - self._missed.setdefault(nanny, time.monotonic()) > GRACE:
                del self._missed[nanny]
                self._cluster.loop.add_callback(nanny.instantiate)


def _do(task: Task, gpus: int) -> Entry:
    """In a worker; where there are several GPUs, each worker takes one for itself before anything has seen them."""
    from distributed import get_worker

    if gpus > 1:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", str(int(str(get_worker().name)) % gpus))
    return do(task)


def _entry_of(task: Task, future: Any) -> Entry | None:
    from distributed import KilledWorker

    if future.status in ("cancelled", "lost"):
        raise DeviceError("The connection to the Dask scheduler was lost.", LOST)
    error = future.exception()
    if error is None:
        entry: Entry = future.result()
        return entry
    if isinstance(error, KilledWorker):
        return None
    what = f"A worker could not take this product: {type(error).__name__}: {error}."
    return failed(task, "worker", what[:1000], "install the same engine on all machines.")


# ---- Dask --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _hands(crew: Crew) -> Iterator[_Hands]:
    """A client of the scheduler at the address, or of one of our own with processes of this machine."""
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        raise ParameterError(
            "Several products at a time need the package distributed.",
            'pip install "lunar-processing[batch]", or do one after another with --workers 0.',
        ) from None
    with dask.config.set(SETTINGS), contextlib.ExitStack() as stack:
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        if crew.address:
            yield _Hands(stack.enter_context(_scheduler_at(crew.address)))
            return
        workers = crew.workers or usual_workers(crew.device)
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=crew.memory or int(SHARE * _memory() / workers),
            dashboard_address=None,
            env=_environment(),
            silence_logs=logging.CRITICAL,
        )
        stack.enter_context(cluster)
        yield _Hands(stack.enter_context(Client(cluster, set_as_default=False)), cluster)


def _scheduler_at(address: str) -> Any:
    from distributed import Client

    try:
        return Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise DeviceError(
            f"There is no Dask scheduler at {address} ({error}).", "check --dask, as tcp://HOST:8786."
        ) from error


def usual_workers(device: str) -> int:
    """One for each GPU where those compute, else one for each core that has memory enough."""
    gpus = len(_gpus()) if device in ("auto", "cuda") else 0
    return gpus or max(1, min(_cores(), int(SHARE * _memory() // ROOM)))


def _environment() -> dict[str, str]:
    """Of workers: one thread each, for there are as many of them as cores."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**one, "DASK_LOGGING__DISTRIBUTED": "critical"}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if not program:
        return []
    told = subprocess.run([program, "-L"], capture_output=True, text=True, check=False, timeout=30)
    return [line for line in told.stdout.splitlines() if line.startswith("GPU ")]


def _memory() -> int:
    """Bytes that this process may use, of the machine or of its container."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)
