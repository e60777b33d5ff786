"""Frozen features: what a classifier that was trained on ImageNet sees in an image. Never trained, only looked through.

    look = features("efficientnet-lite0")
    maps, pooled = look(images)  # (N, 1, H, W) in -1…1

`vgg16` and `efficientnet-lite0` lie where `lunar fetch-features` put them. `inception` is that of the Fréchet
Inception Distance; no package brings its weights, so that they are read from a file of the user.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lunar_processing.errors import ModelError, ParameterError
from lunar_processing.networks.encoders import MEAN, SPREAD, EfficientNetLite0
from lunar_processing.networks.inception import Inception
from lunar_processing.training.losses import Perceptual, digest, features_file, load_features

LITE0 = "efficientnet-lite0.safetensors"
# SHA-256 as `losses.digest` makes it.
LITE0_SHA256 = "d76f4729f4d8f18465ca11c2d669a348810902b8403abb745f581c4a5ea4a8dc"
INCEPTION_CURE = (
    "make it once of pytorch-fid's pt_inception-2015-12-05-6726825d.pth with torch.load(FILE, weights_only=True) and "
    "save_file of safetensors.torch, and name it."
)


class Seen(NamedTuple):
    """Feature maps (N, C, h, w) from fine to coarse, and one vector (N, F) of the whole image."""

    maps: list[Tensor]
    pooled: Tensor


class Features(nn.Module):
    """Images (N, 1 or 3, H, W) in -1…1 → `Seen`.

    `title` is how distances by these features are named. `widths` are the channels of the maps, `size` the length of
    the pooled vector. Sides must be multiples of `step` px. Gradients go through to the images, never to the weights.
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        title: str,
        see: nn.Module,
        levels: tuple[Sequence[float], Sequence[float]],
        widths: Sequence[int],
        step: int,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.title, self.see, self.head, self.widths, self.step = title, see, head, tuple(widths), step
        self.size = self.widths[-1] if head is None else int(head[0].out_channels)  # type: ignore[index]
        for name, level in zip(("centre", "spread"), levels):
            # Of grey levels 0…1, as images are -1…1.
            value = torch.tensor(level).view(1, 3, 1, 1) * 2 - (1 if name == "centre" else 0)
            self.register_buffer(name, value)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Seen:
        """All levels."""
        height, width = images.shape[-2:]
        if height % self.step or width % self.step:
            raise ParameterError(
                f"{self.title} cannot look at images of {width} × {height} px.",
                f"make their sides multiples of {self.step} px.",
            )
        maps = self.see((images.float().expand(-1, 3, -1, -1) - self.centre) / self.spread)
        last = maps[-1] if self.head is None else self.head(maps[-1])
        return Seen(maps, last.mean(dim=(2, 3)))

    def train(self, mode: bool = True) -> Features:
        """Its normalisation by batches stays as it was learnt, whatever a training around it says."""
        return super().train(False)


class _Stages(nn.Module):
    """One map after each stage."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        seen = []
        for stage in self.stages:
            x = stage(x)
            seen.append(x)
        return seen


def features(name: str, path: Path | None = None) -> Features:
    """Features by their name; `path` names their file where it is not in its usual place."""
    if name not in FEATURES:
        raise ParameterError(f"There are no features {name!r}.", f"choose of {', '.join(FEATURES)}.")
    return FEATURES[name](path)


def _vgg16(path: Path | None) -> Features:
    # The convolutions of the perceptual loss, without its weights of channels.
    stages = Perceptual(load_features(path)).stages
    return Features("VGG16", _Stages(list(stages)), (MEAN, SPREAD), (64, 128, 256, 512, 512), 16)


def _lite0(path: Path | None) -> Features:
    weights = load_lite0(path)
    net = EfficientNetLite0(blocks=len(EfficientNetLite0.BLOCKS))
    head = nn.Sequential(nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280, eps=0.001), nn.ReLU6())
    _fill(net, weights)
    normed = {f"1.{name}": weights[f"_bn1.{name}"] for name in ("weight", "bias", "running_mean", "running_var")}
    _fill(head, {"0.weight": weights["_conv_head.weight"], **normed})
    blocks = list(net._blocks)
    stages = [nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6(), blocks[0])]
    stages += [nn.Sequential(*blocks[a:b]) for a, b in ((1, 3), (3, 5), (5, 11), (11, 16))]
    return Features("EfficientNet-Lite0", _Stages(stages), net.LEVELS, (16, 24, 40, 112, 320), 32, head)


def _inception(path: Path | None) -> Features:
    if path is None:
        raise ParameterError("The features of Inception are read from a file of yours.", INCEPTION_CURE)
    net = Inception()
    _fill(net, _read(path, INCEPTION_CURE))
    return Features("Inception", net, ((0.5,) * 3, (0.5,) * 3), (64, 192, 768, 2048), 1)


FEATURES: dict[str, Callable[[Path | None], Features]] = {
    "vgg16": _vgg16,
    "efficientnet-lite0": _lite0,
    "inception": _inception,
}


def lite0_file() -> Path:
    """Where EfficientNet-Lite0 lies: beside the features of VGG16."""
    return features_file().with_name(LITE0)


def load_lite0(path: Path | None = None) -> dict[str, Tensor]:
    """The weights of EfficientNet-Lite0, refused unless they are the known ones."""
    cure = "get them with `lunar fetch-features efficientnet-lite0`."
    path = path or lite0_file()
    weights = _read(path, cure)
    if digest(weights) != LITE0_SHA256:
        raise ModelError(f"{path} does not hold EfficientNet-Lite0: its checksum is another.", cure)
    return weights


def _read(path: Path, cure: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"The features are not in {path}.", cure)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read ({error}).", cure) from error


def _fill(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Take all that the network has, by name; what else is in there is left alone."""
    wanted = net.state_dict()
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name not in weights or weights[name].shape != tensor.shape:
            raise ModelError(f"These weights are of another network: {name} does not fit.", "name the right file.")
    net.load_state_dict({name: weights.get(name, tensor) for name, tensor in wanted.items()})


@torch.inference_mode()
def pooled(look: Features, images: Tensor, batch: int = 64) -> Tensor:
    """Vectors (N, F) of many images, in float32 on the CPU; images (N, H, W) uint8 or (N, 1, H, W) in -1…1."""
    found = []
    for part in images.split(batch):
        whole = part[:, None].float() / 127.5 - 1 if part.dtype == torch.uint8 else part
        found.append(look(whole.to(look.centre.device)).pooled.cpu())
    return torch.cat(found)
