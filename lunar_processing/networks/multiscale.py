"""What is strange at four sizes at once: a small pyramid that looks at ground freed of its own brightness and contrast.

An image goes in, scores come out: how strange each window of 32, 64, 128 and 256 px is, on one grid, and (`heat`) how
strange each pixel. All are trained by one measure, so that they can be compared across sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

WINDOWS = (32, 64, 128, 256)  # px
STRIDE = 16  # px between neighbouring scores
BLOCK = 4  # px: the network sees blocks of 4 × 4
AROUND = 7  # surroundings are measured in squares of 16 px, over 7 × 7 squares
FARTHEST = 8.0  # normalised brightness is held within this
DULLEST = 0.01  # mean deviation that ground has at least, as a share of the image's range: less is noise
TYPICAL = 0.08  # mean deviation of ordinary ground, likewise


class Strangeness(NamedTuple):
    """Logits: of windows (N, 4, H/16, W/16), of pixels (N, 1, H/4, W/4)."""

    windows: Tensor
    pixels: Tensor


class MultiScale(nn.Module):
    """In training (N, 1, H, W) → `Strangeness`; in evaluation → scores of windows (N, 4, H/16, W/16), sides rounded up.

    Scores count from the median of ordinary ground, 0, to what one window in a thousand of it reaches, 1, for each size
    on its own: or only things of those sizes would be found at which ground is often odd. No score depends on a pixel
    farther than 192 px away.
    """

    sees_validity = True
    ordinary: Tensor
    rare: Tensor

    def __init__(self, widths: Sequence[int] = (16, 32, 48, 64)) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.stem = nn.Sequential(_layer(BLOCK**2, first), _layer(first, first))  # a value in 4 px
        self.eighth = nn.Sequential(_layer(first, second, 2), _layer(second, second))
        self.sixteenth = nn.Sequential(_layer(second, third, 2), _layer(third, third))
        self.coarse = nn.Sequential(_layer(third, fourth, 2), _layer(fourth, fourth))
        self.from_coarse = nn.Conv2d(fourth, third, 1)
        self.sixteenth_back = _layer(third, third)
        self.from_sixteenth = nn.Conv2d(third, second, 1)
        self.eighth_back = _layer(second, second)
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in (second, third, fourth, fourth))
        self.pixel_head = nn.Conv2d(first, 1, 1)
        self.pixel_context = nn.Conv2d(second, 1, 1)
        # Logits of ordinary ground, for windows of each size and for pixels: the median, and what 1 in 1000 reaches.
        self.register_buffer("ordinary", torch.zeros(len(WINDOWS) + 1))
        self.register_buffer("rare", torch.ones(len(WINDOWS) + 1))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Strangeness | Tensor:
        """What a loss needs in training, scores in evaluation. `valid` is a mask of the pixels that were seen."""
        found = self.look(x, valid)
        return found if self.training else self._scores(found.windows, slice(None, -1))

    def heat(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Scores of pixels, (N, 1, H, W)."""
        height, width = x.shape[-2:]
        coarse = self._scores(self.look(x, valid).pixels, slice(-1, None))
        fine = functional.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False)
        return fine[..., :height, :width]

    def _scores(self, logits: Tensor, which: slice) -> Tensor:
        ordinary, rare = (of[which, None, None] for of in (self.ordinary, self.rare))
        return (logits - ordinary) / (rare - ordinary)

    def look(self, x: Tensor, valid: Tensor | None = None) -> Strangeness:
        """Windows and pixels from one look."""
        fine = self.stem(relief(x, valid))
        eighth = self.eighth(fine)
        sixteenth = self.sixteenth(eighth)
        coarse = self.coarse(sixteenth)
        sixteenth = self.sixteenth_back(sixteenth + _twice(self.from_coarse(coarse)))
        eighth = self.eighth_back(eighth + _twice(self.from_sixteenth(sixteenth)))
        small, medium, large, largest = self.heads
        windows = [
            functional.max_pool2d(small(eighth), 2),
            medium(sixteenth),
            _twice(large(coarse)),
            _twice(largest(functional.avg_pool2d(coarse, 3, stride=1, padding=1, count_include_pad=False))),
        ]
        rows, cols = (-(-side // STRIDE) for side in x.shape[-2:])
        return Strangeness(
            torch.cat(windows, dim=1)[..., :rows, :cols],
            self.pixel_head(fine) + _twice(self.pixel_context(eighth)),
        )


def relief(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Ground without its own brightness and half of its own contrast, (N, 16, H/4, W/4): pixels of 4 × 4 blocks.

    From each pixel the mean around is taken, and what is left is divided by the geometric mean of the deviation around
    and that of ordinary ground: half-way between forgetting how strong a thing is, and seeing nothing but that. Mean
    and deviation are taken over the valid blocks within some 60 px. Blocks with a gap become 0, the mean. Sides are
    filled up to multiples of 32 with nothing seen.
    """
    height, width = x.shape[-2:]
    fill = (0, -width % 32, 0, -height % 32)
    if any(fill):
        valid = torch.ones_like(x, dtype=torch.bool) if valid is None else valid
        x, valid = functional.pad(x, fill), functional.pad(valid, fill)
    blocks = functional.pixel_unshuffle(x, BLOCK).contiguous(memory_format=torch.channels_last)  # faster from here on
    seen, count = torch.ones(()), torch.ones(())
    if valid is not None:
        seen = (functional.avg_pool2d(valid.to(x.dtype), BLOCK) > 0.999).to(x.dtype)  # blocks without a gap
        blocks, count = blocks * seen, _around(seen).clamp_min(1e-6)
    blocks = blocks - _finer(_around(_thinned(blocks)) / count) * seen
    spread = (_around(_thinned(blocks).abs()) / count).clamp_min(DULLEST).mul(TYPICAL).sqrt()
    return blocks.mul_(_finer(1 / spread)).clamp_(-FARTHEST, FARTHEST)


def _thinned(blocks: Tensor) -> Tensor:
    """Every second pixel of every second row."""
    return blocks.unflatten(1, (BLOCK, BLOCK))[:, ::2, ::2].flatten(1, 2)


def _around(blocks: Tensor) -> Tensor:
    """The mean within some 60 px, one for 16 × 16 px."""
    squares = functional.avg_pool2d(blocks.mean(dim=1, keepdim=True), 4)
    return functional.avg_pool2d(squares, AROUND, 1, AROUND // 2, count_include_pad=False)


def _finer(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _twice(x: Tensor) -> Tensor:
    """Each value for four."""
    return functional.interpolate(x, scale_factor=2, mode="nearest")
