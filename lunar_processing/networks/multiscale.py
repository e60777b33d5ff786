"""What is strange at four sizes at once: a small pyramid that looks at ground freed of its own brightness and contrast.

An image goes in, scores come out: how strange each window of 32, 64, 128 and 256 px is, on one grid, and (`heat`) how
strange each pixel. All are trained by one measure, so that they can be compared across sizes. A second opinion knows
nothing but ground: how little pixels are foretold by those around them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
AROUND_PX, HOLE_PX = 9, 3  # a pixel is foretold from a square around it, without the nearest
LEAST = 1e-4  # of what is left over; below there is noise only
NEAR = 0.85  # share of the smallest window in what a place is worth; the rest is the strangest window's
LOUD = 3.0  # how much surprise counts where it is rarer than one place in a thousand


class Strangeness(NamedTuple):
    """Logits: of windows (N, 4, H/16, W/16), of pixels (N, 1, H/4, W/4); and how little cells of 16 px are foretold, as
    the logarithm of what is left over in their most surprising 8 px, (N, 1, H/16, W/16).
    """

    windows: Tensor
    pixels: Tensor
    surprise: Tensor


class MultiScale(nn.Module):
    """In training (N, 1, H, W) → `Strangeness`; in evaluation → scores of windows (N, 4, H/16, W/16), sides rounded up.

    Logits and surprise count from the median of ordinary ground, 0, to what one place in a thousand of it reaches, 1,
    for each size on its own: or only things of those sizes would be found at which ground is often odd. How strange a
    place is, is then told by what it looks like from near, and by the surprise; which size fits, by the window that
    counts most. The highest score of all sizes counts from 0 to 1 likewise. No score depends on a pixel farther than
    192 px away.
    """

    sees_validity = True
    ordinary: Tensor
    rare: Tensor
    level: Tensor
    foretelling: Tensor

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
        # Of ordinary ground: windows of each size, pixels, surprise; the median, and what 1 in 1000 reaches.
        self.register_buffer("ordinary", torch.zeros(len(WINDOWS) + 2))
        self.register_buffer("rare", torch.ones(len(WINDOWS) + 2))
        self.register_buffer("level", torch.tensor([0.0, 1.0]))  # the same two of the highest score of all sizes
        self.register_buffer("foretelling", in_blocks(torch.zeros(AROUND_PX, AROUND_PX)))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Strangeness | Tensor:
        """What a loss needs in training, scores in evaluation. `valid` is a mask of the pixels that were seen."""
        found = self.look(x, valid)
        return found if self.training else (self.together(found) - self.level[0]) / (self.level[1] - self.level[0])

    def together(self, found: Strangeness) -> Tensor:
        """Scores of windows, before they count from 0 to 1: that which fits gets what the place is worth."""
        sizes = self._counted(found.windows, slice(None, len(WINDOWS)))
        surprise = self._counted(found.surprise, slice(-1, None))
        best = sizes.amax(dim=1, keepdim=True)
        place = NEAR * sizes[:, :1] + (1 - NEAR) * best + LOUD * (surprise - 1).clamp_min(0)
        return place + sizes - best

    def heat(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Scores of pixels, (N, 1, H, W)."""
        height, width = x.shape[-2:]
        coarse = self._counted(self.look(x, valid).pixels, slice(-2, -1))
        fine = functional.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False)
        return fine[..., :height, :width]

    def _counted(self, found: Tensor, which: slice) -> Tensor:
        ordinary, rare = (of[which, None, None] for of in (self.ordinary, self.rare))
        return (found - ordinary) / (rare - ordinary)

    def look(self, x: Tensor, valid: Tensor | None = None) -> Strangeness:
        """Windows, pixels and surprise from one look."""
        blocks, seen = _ground(x, valid)
        fine = _known(self.stem, blocks, seen)
        eighth = _known(self.eighth, fine, seen)
        sixteenth = _known(self.sixteenth, eighth, seen)
        coarse = _known(self.coarse, sixteenth, seen)
        sixteenth = self.sixteenth_back(_kept(sixteenth + _twice(self.from_coarse(coarse)), seen))
        eighth = self.eighth_back(_kept(eighth + _twice(self.from_sixteenth(sixteenth)), seen))
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
            self._surprise(blocks, seen)[..., :rows, :cols],
        )

    def _surprise(self, blocks: Tensor, seen: Tensor | None) -> Tensor:
        left = functional.conv2d(blocks, self.foretelling, padding=1).square_().mean(dim=1, keepdim=True)
        gaps = torch.zeros_like(left) if seen is None else 1 - seen
        beside_a_gap = functional.max_pool2d(functional.pad(gaps, (1, 1, 1, 1), value=1.0), 3, 1) > 0
        left = left.masked_fill(beside_a_gap, 0.0)
        cells = functional.avg_pool2d(left, 2)
        return functional.max_pool2d(cells, STRIDE // (2 * BLOCK)).add(LEAST).log()


def in_blocks(kernel: Tensor) -> Tensor:
    """A convolution of pixels (k, k), of which no side is above 9, as one of blocks: (16, 16, 3, 3)."""
    reach = len(kernel) // 2
    result = torch.zeros(BLOCK**2, BLOCK**2, 3, 3)
    phases = [(row, col) for row in range(BLOCK) for col in range(BLOCK)]
    for to, (row, col) in enumerate(phases):
        for down in range(-reach, reach + 1):
            for right in range(-reach, reach + 1):
                block_row, of_row = divmod(row + down, BLOCK)
                block_col, of_col = divmod(col + right, BLOCK)
                of = phases.index((of_row, of_col))
                result[to, of, 1 + block_row, 1 + block_col] = kernel[reach + down, reach + right]
    return result


def foretelling(grounds: Iterable[Tensor]) -> Tensor:
    """What a pixel is less what its surroundings foretell, by least squares, as a convolution of blocks.

    grounds: relief of ordinary ground, (N, 16, H/4, W/4) each.
    """
    known = torch.ones(AROUND_PX, AROUND_PX, dtype=torch.bool)
    inner = slice((AROUND_PX - HOLE_PX) // 2, (AROUND_PX + HOLE_PX) // 2)
    known[inner, inner] = False
    of, to = torch.zeros(()), torch.zeros(())
    for ground in grounds:
        pixels = functional.pixel_shuffle(ground, BLOCK)[:, 0]
        cut = pixels.unfold(1, AROUND_PX, 5).unfold(2, AROUND_PX, 5).reshape(-1, AROUND_PX, AROUND_PX).double()
        around, middle = cut[:, known], cut[:, AROUND_PX // 2, AROUND_PX // 2]
        of, to = of + around.T @ around, to + around.T @ middle
    kernel = torch.zeros(AROUND_PX, AROUND_PX)
    kernel[known] = -torch.linalg.solve(of + 1e-2 * torch.eye(len(of), device=of.device), to).float()
    kernel[AROUND_PX // 2, AROUND_PX // 2] = 1
    return in_blocks(kernel)


def relief(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Ground without its own brightness and half of its own contrast, (N, 16, H/4, W/4): pixels of 4 × 4 blocks.

    From each pixel the mean around is taken, and what is left is divided by the geometric mean of the deviation around
    and that of ordinary ground: half-way between forgetting how strong a thing is, and seeing nothing but that. Mean
    and deviation are taken over the valid blocks within some 60 px. Blocks with a gap become 0, the mean. Sides are
    filled up to multiples of 32 with nothing seen.
    """
    return _ground(x, valid)[0]


def _ground(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The relief, and which blocks have no gap: 1, else 0; None where there is no gap at all."""
    height, width = x.shape[-2:]
    fill = (0, -width % 32, 0, -height % 32)
    if any(fill):
        valid = torch.ones_like(x, dtype=torch.bool) if valid is None else valid
        x, valid = functional.pad(x, fill), functional.pad(valid, fill)
    blocks = functional.pixel_unshuffle(x, BLOCK).contiguous(memory_format=torch.channels_last)  # faster from here on
    seen, count = torch.ones((), device=x.device), torch.ones((), device=x.device)
    if valid is not None:
        seen = (functional.avg_pool2d(valid.to(x.dtype), BLOCK) > 0.999).to(x.dtype)
        blocks, count = blocks * seen, _around(seen).clamp_min(1e-6)
    blocks = blocks - _finer(_around(_thinned(blocks)) / count) * seen
    spread = (_around(_thinned(blocks).abs()) / count).clamp_min(DULLEST).mul(TYPICAL).sqrt()
    return blocks.mul_(_finer(1 / spread)).clamp_(-FARTHEST, FARTHEST), None if valid is None else seen


def _thinned(blocks: Tensor) -> Tensor:
    """Every second pixel of every second row."""
    return blocks.unflatten(1, (BLOCK, BLOCK))[:, ::2, ::2].flatten(1, 2)


def _around(blocks: Tensor) -> Tensor:
    """The mean within some 60 px, one for 16 × 16 px."""
    squares = functional.avg_pool2d(blocks.mean(dim=1, keepdim=True), 4)
    return functional.avg_pool2d(squares, AROUND, 1, AROUND // 2, count_include_pad=False)


def _finer(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)


def _known(layers: nn.Module, x: Tensor, seen: Tensor | None) -> Tensor:
    """The layers in turn, each of which sees 0 in gaps, as beyond the edge of an image."""
    for layer in layers.children():
        x = _kept(layer(x), seen)
    return x


def _kept(x: Tensor, seen: Tensor | None) -> Tensor:
    """What was seen of it, else 0."""
    return x if seen is None else x * functional.adaptive_max_pool2d(seen, x.shape[-2:])


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _twice(x: Tensor) -> Tensor:
    """Each value for four."""
    return functional.interpolate(x, scale_factor=2, mode="nearest")
