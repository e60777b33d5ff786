"""A small U-Net: look from further and further away, then come back to the pixels with what was seen.

Batch normalisation, because statistics taken over a tile, as other normalisations do, would show the tiles' seams.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class UNet(nn.Module):
    """(N, inputs, H, W) → (N, outputs, H, W), any size; a pixel sees about 2^(depth + 3) pixels in each direction.

    `residual` adds the first input channel to every output: the network then says what is to be changed. Without
    `skips` everything has to pass through the coarsest level, as in an autoencoder.
    """

    def __init__(
        self,
        channels: int = 16,
        depth: int = 3,
        inputs: int = 1,
        outputs: int = 2,
        residual: bool = False,
        skips: bool = True,
    ) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(depth + 1)]
        self.depth, self.residual, self.skips = depth, residual, skips
        self.down = nn.ModuleList(_block(a, b) for a, b in zip([inputs, *widths], widths))
        self.widen = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in widths[:-1])
        self.up = nn.ModuleList(_block(2 * w if skips else w, w) for w in widths[:-1])
        self.head = nn.Conv2d(channels, outputs, 1)
        if residual:  # it begins by changing nothing
            for weight in self.head.parameters():
                nn.init.zeros_(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sizes that the coarsest level does not divide are filled up by their own edge, and cut again."""
        height, width = x.shape[-2:]
        step = 2**self.depth
        given = functional.pad(x, (0, -width % step, 0, -height % step), mode="replicate")
        seen, y = [], given
        for level, block in enumerate(self.down):
            y = block(functional.max_pool2d(y, 2) if level else y)
            seen.append(y)
        for level in reversed(range(self.depth)):
            y = self.widen[level](y)
            y = self.up[level](torch.cat([y, seen[level]], dim=1) if self.skips else y)
        y = self.head(y)
        return (y + given[:, :1] if self.residual else y)[..., :height, :width]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        layers += [nn.Conv2d(before, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
