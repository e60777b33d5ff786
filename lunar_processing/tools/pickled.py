"""Read arrays out of files that were written by pickle, without unpickling them.

The operations of a pickle are read one by one, and only those few are followed that make dictionaries, lists, numbers
and arrays. Nothing is imported and nothing called but the few functions below that stand for what a file names.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lunar_processing.errors import ModelError

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_VALUES = {"BINUNICODE", "BININT", "BININT1", "BININT2", "BINBYTES", "SHORT_BINBYTES", "LONG1"}


class _Empty:
    """An array that is told its shape and its bytes later."""

    array: np.ndarray | None = None


@dataclass(frozen=True)
class _Part:
    """A part of a storage, whose bytes come after the pickles."""

    kind: str
    key: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


# Names that may be called: what stands for their result
_MAKERS: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray _reconstruct": lambda *_: _Empty(),
    "numpy ndarray": lambda *_: _Empty(),
    "numpy dtype": lambda kind, *_: kind,
    "collections OrderedDict": lambda: {},
    "torch._utils _rebuild_tensor_v2": lambda storage, offset, shape, stride, *_: _Part(
        storage[1], storage[2], offset, shape, stride
    ),
}
# Kinds of storage, which are only named
_STORAGES = {"torch FloatStorage": "<f4", "torch LongStorage": "<i8"}


def read_arrays(written: bytes) -> Any:
    """Nested dictionaries of float32 arrays out of a pickle of protocol 2 or 3; anything else in it is refused."""
    return _plain(_follow(io.BytesIO(written)))


def read_state(written: bytes) -> dict[str, np.ndarray]:
    """Name → float32 array out of a state dict that torch wrote as it did before version 1.6; other kinds are left out.

    Such a file is five pickles: a mark, two facts, the names with the places of their numbers, and the order of the
    storages, whose bytes follow.
    """
    file = io.BytesIO(written)
    _mark, _version, _facts, parts, keys = (_follow(file) for _ in range(5))
    kinds = {part.key: part.kind for part in parts.values()}
    storages = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        kind = np.dtype(kinds[key])
        storages[key] = np.frombuffer(file.read(count * kind.itemsize), kind)
    return {name: _cut(storages[part.key], part) for name, part in parts.items() if part.kind == "<f4"}


def _cut(storage: np.ndarray, part: _Part) -> np.ndarray:
    last = part.offset + sum((side - 1) * step for side, step in zip(part.shape, part.stride))
    if min((part.offset, *part.stride)) < 0 or last >= len(storage):
        raise ModelError("The file of weights names numbers that are not in it.", "fetch it again.")
    strides = [step * storage.itemsize for step in part.stride]
    return np.lib.stride_tricks.as_strided(storage[part.offset :], part.shape, strides, writeable=False)


def _follow(written: io.BytesIO) -> Any:
    """What one pickle says, from where the file is read to its end."""
    stack: list[Any] = []
    marks: list[int] = []
    memory: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        place = marks.pop()
        taken = stack[place:]
        del stack[place:]
        return taken

    argument: Any
    for operation, argument, _ in pickletools.genops(written):
        name = operation.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memory[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memory[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name == "GLOBAL" and argument in _MAKERS:
            stack.append(_MAKERS[argument])
        elif name == "GLOBAL" and argument in _STORAGES:
            stack.append(_STORAGES[argument])
        elif name == "REDUCE":
            arguments, maker = stack.pop(), stack.pop()
            stack.append(maker(*arguments))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], _Empty):
                stack[-1].array = _array(state)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name == "SETITEMS":
            items = since_mark()
            stack[-1].update(zip(items[::2], items[1::2]))
        elif name == "APPENDS":
            items = since_mark()
            stack[-1].extend(items)
        elif name not in ("PROTO", "STOP", "BINPERSID"):  # a storage is what its name says: it stays on the stack
            raise ModelError(f"The file of weights asks for {name} {argument or ''}, which arrays do not need.")
    return stack.pop()


def _array(state: tuple[Any, ...]) -> np.ndarray:
    _version, shape, kind, fortran, raw = state
    if kind != "f4":
        raise ModelError(f"The file of weights holds {kind!r}, not float32.", "fetch it again.")
    return np.frombuffer(raw, "<f4").reshape(shape, order="F" if fortran else "C")


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return tree.array if isinstance(tree, _Empty) else tree
