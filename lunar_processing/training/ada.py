"""Adaptive discriminator augmentation (Karras et al. 2020): a critic sees its few images varied, as often as it must.

Both the real images and the made ones are varied before the critic sees them, and gradients go through. As long as each
variation is left out often enough, the generator does not learn to make varied images. How often, is steered by how
sure the critic is of the real ones.
"""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional

EVERY = 4  # steps after which the share is changed
SHIFT = 0.125  # of the side
ZOOM = 0.2  # standard deviation, in octaves
LIGHT = 0.2  # standard deviation of brightness, the range being 2
CONTRAST = 0.5  # standard deviation, in octaves


class Adaptive(nn.Module):
    """How often each variation is applied, 0…1, so that the mean sign of the critic's word on real images is `target`.

    `thousands` of images are shown until it could have gone from 0 to 1. It remembers in buffers, as a training that
    is resumed needs it.
    """

    share: Tensor
    signs: Tensor

    def __init__(self, target: float = 0.6, thousands: float = 500.0) -> None:
        super().__init__()
        self.target, self.thousands = target, thousands
        self.register_buffer("share", torch.zeros((), dtype=torch.float64))
        self.register_buffer("signs", torch.zeros(2, dtype=torch.float64))  # their sum, and of how many

    def forward(self, images: Tensor) -> Tensor:
        """Images varied as often as is called for now."""
        return vary(images, float(self.share))

    @torch.no_grad()
    def hear(self, logits: Tensor, images: int, step: int) -> None:
        """What the critic says of so many real images; every few steps the share follows."""
        self.signs += torch.stack([logits.sign().double().sum(), torch.tensor(float(logits.numel()))]).to(self.signs)
        if step % EVERY == EVERY - 1:
            too_sure = torch.sign(self.signs[0] / self.signs[1] - self.target)
            self.share.add_(too_sure * images * EVERY / (1000 * self.thousands)).clamp_(0, 1)
            self.signs.zero_()


def vary(images: Tensor, share: float) -> Tensor:
    """Images (N, 1, S, S) in -1…1; each variation with a probability of `share`, drawn anew for each image.

    Mirrored, turned, moved by whole pixels, zoomed, rotated, stretched, moved; brighter or darker, more or less
    contrast. What comes in from outside is a reflection.
    """
    if share <= 0:
        return images
    count, side = len(images), images.shape[-1]
    images = _warped(images, _moves(count, side, share).to(images.device))
    light = LIGHT * _sometimes(torch.randn(count), share).to(images.device)
    factor = torch.exp2(CONTRAST * _sometimes(torch.randn(count), share)).to(images.device)
    return (images + light.view(-1, 1, 1, 1)) * factor.view(-1, 1, 1, 1)


def _sometimes(values: Tensor, share: float) -> Tensor:
    """Values (…, N), 0 where they are left out."""
    return values * (torch.rand(values.shape[-1]) < share)


def _moves(count: int, side: int, share: float) -> Tensor:
    """Where each pixel comes from: (N, 3, 3) on (x, y, 1), the picture being -1…1."""
    mirror = 1 - 2 * _sometimes(torch.randint(2, (count,)).float(), share)
    quarters = _sometimes(torch.randint(4, (count,)).float(), share)
    pixels = torch.round(_sometimes(2 * torch.rand(2, count) - 1, share).T * SHIFT * side) * 2 / side
    # Rotated before and after it is stretched; that either happens has the probability of the others.
    rotated = 1 - math.sqrt(1 - share)
    before, after = (_sometimes(math.pi * (2 * torch.rand(count) - 1), rotated) for _ in range(2))
    zoomed, stretched = (torch.exp2(ZOOM * _sometimes(torch.randn(count), share)) for _ in range(2))
    shift = 2 * SHIFT * _sometimes(torch.randn(2, count), share).T
    one = torch.ones(count)
    steps = [
        _scaled(mirror, one),
        _turned((math.pi / 2) * quarters),
        _shifted(pixels),
        _scaled(zoomed, zoomed),
        _turned(before),
        _scaled(stretched, 1 / stretched),
        _turned(after),
        _shifted(shift),
    ]
    return reduce(torch.matmul, steps)


def _warped(images: Tensor, moves: Tensor) -> Tensor:
    """Only those that move are computed."""
    moved = (moves - torch.eye(3, device=moves.device)).abs().amax(dim=(1, 2)) > 1e-6
    if not moved.any():
        return images
    chosen = moved.nonzero()[:, 0]
    grid = functional.affine_grid(moves[chosen, :2], [len(chosen), *images.shape[1:]], align_corners=False)
    there = functional.grid_sample(images[chosen], grid, padding_mode="reflection", align_corners=False)
    return images.index_copy(0, chosen, there.to(images.dtype))


def _turned(angle: Tensor) -> Tensor:
    cos, sin, none, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([cos, -sin, none, sin, cos, none, none, none, one], dim=1).view(-1, 3, 3)


def _scaled(x: Tensor, y: Tensor) -> Tensor:
    none, one = torch.zeros_like(x), torch.ones_like(x)
    return torch.stack([x, none, none, none, y, none, none, none, one], dim=1).view(-1, 3, 3)


def _shifted(by: Tensor) -> Tensor:
    whole = torch.eye(3).repeat(len(by), 1, 1)
    whole[:, :2, 2] = by
    return whole
