"""Where to compute, and how to be kind to its memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable
from functools import lru_cache

from lunar_processing.errors import DeviceError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


@lru_cache(None)
def keep_memory() -> None:
    """Keep freed memory for the next batch instead of giving it back to the system after each layer.

    glibc returns every block over 32 MiB at once, and the system then clears its pages anew for the next one: on a
    small network that took three quarters of the processor's time. Elsewhere this does nothing.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(_TRIM_THRESHOLD, 1 << 30)


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
