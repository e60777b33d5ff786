"""EfficientNet-Lite0 for tests: that of its package where it was fetched, else one that never learnt anything.

The second tells sets apart too, if not as people would.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lunar_processing.networks.encoders import EfficientNetLite0
from lunar_processing.training import features
from lunar_processing.training.losses import digest


def lite0(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make features of this name possible."""
    if features.lite0_file().is_file():
        return
    torch.manual_seed(0)
    net = EfficientNetLite0(blocks=len(EfficientNetLite0.BLOCKS))
    head = {"_conv_head": nn.Conv2d(320, 1280, 1, bias=False), "_bn1": nn.BatchNorm2d(1280)}
    weights = {**net.state_dict(), **{f"{k}.{n}": v for k, part in head.items() for n, v in part.state_dict().items()}}
    weights = {name: value for name, value in weights.items() if not name.endswith("tracked")}
    monkeypatch.setenv("LUNAR_FEATURES", str(folder / "vgg16.safetensors"))
    monkeypatch.setattr(features, "LITE0_SHA256", digest(weights))
    save_file(weights, features.lite0_file())
