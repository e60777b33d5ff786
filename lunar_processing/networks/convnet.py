"""The smallest network that is one: a stack of 3×3 convolutions. The ruler the pipeline is measured with."""

from __future__ import annotations

import torch
from torch import nn


class ConvNet(nn.Sequential):
    """(N, 1, H, W) → (N, outputs, H, W); a pixel sees `depth` pixels in each direction."""

    def __init__(self, channels: int = 16, depth: int = 3, outputs: int = 1) -> None:
        widths = [1] + [channels] * (depth - 1) + [outputs]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(widths, widths[1:])):
            layers.append(nn.Conv2d(before, after, 3, padding=1))
            if i < depth - 1:
                layers.append(nn.ReLU())
        super().__init__(*layers)


class Identity(nn.Module):
    """Returns what it is given: what remains is the cost, and the honesty, of the way around a network."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, H, W) → the same."""
        return x
