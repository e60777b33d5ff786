"""Inception v3 as the Fréchet Inception Distance was published with it: its features, not its classifier.

Parameters bear the names of torchvision's `Inception3`, as those of the package pytorch-fid. It differs from
torchvision's network in the pooling of its branches, which leaves out the edge, and in the last block, where the
largest is taken instead of the mean; and images are made 299 × 299 first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 299  # px


class Inception(nn.Module):
    """(N, 3, H, W) in -1…1 → four maps of 64, 192, 768 and 2048 channels; the mean of the last is what FID compares."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = _Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = _Unit(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _A(192, 32), _A(256, 64), _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b, self.Mixed_6c = _C(128), _C(160)
        self.Mixed_6d, self.Mixed_6e = _C(160), _C(192)
        self.Mixed_7a = _D()
        self.Mixed_7b, self.Mixed_7c = _E(1280, _mean), _E(2048, _largest)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Any size; it is interpolated."""
        x = functional.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        seen = [functional.max_pool2d(x, 3, stride=2)]
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(seen[-1]))
        seen.append(functional.max_pool2d(x, 3, stride=2))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(seen[-1]))))
        seen.append(self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))))
        return [*seen, self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(seen[-1])))]


class _Unit(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | str = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


def _mean(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _largest(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, stride=1, padding=1)


class _A(nn.Module):
    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Unit(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = _Unit(inputs, 48, 1), _Unit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Unit(inputs, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = _Unit(64, 96, 3, padding=1), _Unit(96, 96, 3, padding=1)
        self.branch_pool = _Unit(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_mean(x))], 1)


class _B(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = _Unit(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Unit(inputs, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = _Unit(64, 96, 3, padding=1), _Unit(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), three, functional.max_pool2d(x, 3, stride=2)], 1)


class _C(nn.Module):
    def __init__(self, narrow: int) -> None:
        super().__init__()
        flat: dict = {"kernel": (1, 7), "padding": "same"}
        high: dict = {"kernel": (7, 1), "padding": "same"}
        self.branch1x1 = _Unit(768, 192, 1)
        self.branch7x7_1 = _Unit(768, narrow, 1)
        self.branch7x7_2, self.branch7x7_3 = _Unit(narrow, narrow, **flat), _Unit(narrow, 192, **high)
        self.branch7x7dbl_1 = _Unit(768, narrow, 1)
        self.branch7x7dbl_2, self.branch7x7dbl_3 = _Unit(narrow, narrow, **high), _Unit(narrow, narrow, **flat)
        self.branch7x7dbl_4, self.branch7x7dbl_5 = _Unit(narrow, narrow, **high), _Unit(narrow, 192, **flat)
        self.branch_pool = _Unit(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_mean(x))], 1)


class _D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = _Unit(768, 192, 1), _Unit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Unit(768, 192, 1)
        self.branch7x7x3_2 = _Unit(192, 192, (1, 7), padding="same")
        self.branch7x7x3_3 = _Unit(192, 192, (7, 1), padding="same")
        self.branch7x7x3_4 = _Unit(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, functional.max_pool2d(x, 3, stride=2)], 1)


class _E(nn.Module):
    def __init__(self, inputs: int, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = _Unit(inputs, 320, 1)
        self.branch3x3_1 = _Unit(inputs, 384, 1)
        self.branch3x3_2a = _Unit(384, 384, (1, 3), padding="same")
        self.branch3x3_2b = _Unit(384, 384, (3, 1), padding="same")
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Unit(inputs, 448, 1), _Unit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Unit(384, 384, (1, 3), padding="same")
        self.branch3x3dbl_3b = _Unit(384, 384, (3, 1), padding="same")
        self.branch_pool = _Unit(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(once), self.branch3x3_2b(once)]
        parts += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice), self.branch_pool(self.pool(x))]
        return torch.cat(parts, 1)
