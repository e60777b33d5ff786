"""Who does the work: this process, processes of this machine, or the workers of a Dask scheduler anywhere.

    for task, entry in entries(tasks, Crew(workers=4), cancelled):
        journal.write(entry)

Only one task a worker is on its way, so that a worker that dies takes one product with it. Dask replaces the worker and
gives the product to another; what has brought down two is reported as failed, and the rest goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lunar_processing.batch.work import do, failed
from lunar_processing.errors import Cancelled, DeviceError, ParameterError

Task = Mapping[str, Any]
Entry = dict[str, Any]
LOOK_UP = 0.2  # seconds between looks whether the run was cancelled
ROOM = 2 << 30  # bytes a worker should have, of the default number of workers
SHARE = 0.9  # of the machine's memory that the workers may take together
LOST = "start the scheduler again, and go on with --resume."
SETTINGS = {
    "distributed.scheduler.allowed-failures": 1,  # a product is tried twice
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
        try:
            entry = do(task)
        except Cancelled:
            raise
        except Exception as error:  # the rest must go on
            entry = _unexpected(task, error)
        yield task, entry


def _by_dask(tasks: Iterable[Task], crew: Crew, cancelled: Callable[[], bool]) -> Iterator[tuple[Task, Entry]]:
    waiting = iter(tasks)
    first = next(waiting, None)
    if first is None:
        return
    with _client(crew) as client:
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        running: dict[Any, Task] = {}

        gpus = 0 if crew.address else len(_gpus())

        def send(task: Task) -> None:
            # Never taken from an earlier run's memory: the files may have changed.
            future = client.submit(_do, task, gpus, pure=False, retries=1)
            running[future] = task
            future.add_done_callback(done.put)

        send(first)
        while running:
            _fill(running, waiting, send, _width(client))  # workers may come and go
            try:
                future = done.get(timeout=LOOK_UP)
            except queue.Empty:
                if cancelled():
                    raise Cancelled("The run was cancelled.") from None
                continue
            task = running.pop(future)
            yield task, _entry_of(task, future)


def _fill(running: Mapping[Any, Task], waiting: Iterator[Task], send: Callable[[Task], None], width: int) -> None:
    while len(running) < width:
        task = next(waiting, None)
        if task is None:
            return
        send(task)


def _width(client: Any) -> int:
    """How many tasks can be done at once now."""
    return max(1, sum(client.nthreads().values()))


def _do(task: Task, gpus: int) -> Entry:
    """In a worker; where there are several GPUs, each worker takes one for itself before anything has seen them."""
    from distributed import get_worker

    if gpus > 1:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", str(int(str(get_worker().name)) % gpus))
    return do(task)


def _entry_of(task: Task, future: Any) -> Entry:
    from distributed import KilledWorker

    if future.status == "cancelled" or future.status == "lost":
        raise DeviceError("The connection to the Dask scheduler was lost.", LOST)
    error = future.exception()
    if error is None:
        entry: Entry = future.result()
        return entry
    if isinstance(error, KilledWorker):
        return failed(
            task,
            "worker",
            "Two workers died of this product: it needs more memory than they have, or crashes a library.",
            "run the tool on it alone to see why, or give workers more --memory, and --resume.",
        )
    return _unexpected(task, error)


def _unexpected(task: Task, error: BaseException) -> Entry:
    kind = type(error).__name__
    if isinstance(error, MemoryError):
        return failed(task, "memory", "There was not enough memory.", "use fewer workers, and --resume.")
    return failed(task, "error", f"The engine failed unexpectedly, twice: {kind}: {error}.", "report it.")


# ---- Dask --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _client(crew: Crew) -> Iterator[Any]:
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
            yield stack.enter_context(_scheduler_at(crew.address))
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
        yield stack.enter_context(Client(cluster, set_as_default=False))


def _scheduler_at(address: str) -> Any:
    from distributed import Client

    try:
        return Client(address, timeout="10s", set_as_default=False)
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
