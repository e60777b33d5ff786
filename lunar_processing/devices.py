"""Where to compute, and how to be kind to its memory."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import lru_cache, partial

import numpy as np
from numpy.typing import DTypeLike

from lunar_processing.errors import DeviceError

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's mallopt


@lru_cache(None)
def keep_memory() -> None:
    """Keep freed memory for the next batch instead of giving it back to the system after each layer.

    glibc returns every block over 32 MiB at once, and the system then clears its pages anew for the next one: on a
    small network that took three quarters of the processor's time. It does so always with what a thread other than
    the first holds in a store of its own: there is one store for all of them. Elsewhere this does nothing.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(_TRIM_THRESHOLD, 1 << 30)
            libc.mallopt(_ARENA_MAX, 1)


def tidy_memory() -> None:
    """Give back what lies free between what is in use. It costs a moment, which is why it is not done always."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def memory_apart(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array of zeros outside of the one store, given back when it goes.

    What stays for long between what comes and goes would leave holes there.
    """
    size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
    pages = mmap.mmap(-1, size) if os.name == "nt" else mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype, math.prod(shape)).reshape(shape)


def lanes_of(device: str) -> int:
    """How many batches of a network to compute at once on this device.

    Two on a processor: reading, packing and what is done between two networks on one core alone then take the time of
    one lane, not of all the cores that wait for each other in a network. More lanes would cost memory.
    """
    import torch

    return min(2, torch.get_num_threads()) if device == "cpu" else 1


@contextlib.contextmanager
def side_by_side(lanes: int) -> Iterator[Executor]:
    """So many threads, which share torch's between them; what still waits when the block is left is not begun."""
    if lanes == 1:  # whatever computes there takes what it wants, and need not be torch
        pool, restore = ThreadPoolExecutor(1, "lane"), lambda: None
    else:
        import torch

        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(lanes, "lane", torch.set_num_threads, (max(1, threads // lanes),))
        restore = partial(torch.set_num_threads, threads)  # the last to set it has set it for new threads, too
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        restore()


def choose_device(name: str = "auto") -> str:
    """The device to compute on: `cuda`, `mps` or `cpu`; `auto` takes the fastest there is."""
    import torch

    there: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": lambda: hasattr(torch.backends, "mps") and torch.backends.mps.is_available(),
        "cpu": lambda: True,
    }
    if name == "auto":
        return next(device for device, is_there in there.items() if is_there())
    if name not in there:
        raise DeviceError(f"There is no device {name!r}.", f"choose auto, {', '.join(there)}.")
    if not there[name]():
        raise DeviceError(f"The device {name!r} is not on this machine.", "choose --device auto or cpu.")
    return name
