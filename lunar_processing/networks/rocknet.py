"""Rocks from orbit: fine detail at half the resolution, in four times the channels, and shadows from further away.

A rock of three pixels needs every pixel, but not one feature map a pixel: the first layer puts squares of 2 × 2 pixels
side by side as channels, the last one takes them apart again. Nothing is lost, and each step costs a quarter.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

CELL = 8  # px: what the coarsest level divides; brightness around is taken over cells of this size
BRIGHTEST = 4.0  # times the brightness of nearly all there is: a broken pixel must not blind all around it


class RockNet(nn.Module):
    """(N, 1, H, W) → (N, outputs + 1, H, W), any size: logits of the classes, and how near a rock's middle a pixel is.

    The last channel is a logit too: 1 in the middle of a rock, 0 at its rim, so that rocks that touch fall apart. The
    network sees the image as it is and against its surroundings of 5 × 5 cells: brightness less their mean, in units
    of their spread. So a dim scene with long shadows and a bright one with short ones look alike to it. A pixel sees
    no further than 72 px; tiles agree if they begin at multiples of CELL.
    """

    def __init__(self, channels: int = 32, outputs: int = 3) -> None:
        super().__init__()
        fine, mid, wide = channels, channels * 3 // 2, channels * 2
        self.enter = nn.Sequential(nn.PixelUnshuffle(2), _conv(8, fine), _conv(fine, fine))
        self.down = nn.Sequential(_conv(fine, mid, 2), _conv(mid, mid))
        self.deep = nn.Sequential(_conv(mid, wide, 2), _conv(wide, wide), _conv(wide, wide))
        self.from_deep, self.from_mid = nn.Conv2d(wide, mid, 1), nn.Conv2d(mid, fine, 1)
        self.join_mid = _conv(mid, mid)
        self.join_fine = nn.Sequential(_conv(fine, fine), _conv(fine, fine))
        self.leave = nn.Sequential(nn.Conv2d(fine, 4 * (outputs + 1), 1), nn.PixelShuffle(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sizes that CELL does not divide are filled up by their own edge, and cut again."""
        height, width = x.shape[-2:]
        x = x.clamp(-BRIGHTEST, BRIGHTEST)
        x = functional.pad(x, (0, -width % CELL, 0, -height % CELL), mode="replicate")
        fine = self.enter(torch.cat([x, against_surroundings(x)], dim=1))
        mid = self.down(fine)
        mid = self.join_mid(mid + _twice(self.from_deep(self.deep(mid))))
        fine = self.join_fine(fine + _twice(self.from_mid(mid)))
        return self.leave(fine)[..., :height, :width]


def against_surroundings(x: torch.Tensor) -> torch.Tensor:
    """Brightness less the mean around, in units of the spread around, cut at ± 8."""
    # Less its middle first: a small spread on a large brightness would drown in rounding.
    x = x - 0.5
    cells = functional.avg_pool2d(torch.cat([x, x * x], dim=1), CELL)
    # At the image's edge only what there is counts.
    around = functional.avg_pool2d(cells, 5, 1, 2, count_include_pad=False)
    mean, square = around[:, :1], around[:, 1:]
    spread = (square - mean * mean).clamp_min(0).sqrt() + 0.02
    mean, spread = (functional.interpolate(part, scale_factor=float(CELL)) for part in (mean, spread))
    return ((x - mean) / spread).clamp(-8, 8)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _twice(x: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(x, scale_factor=2.0)
