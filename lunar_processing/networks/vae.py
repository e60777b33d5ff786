"""The two published autoencoders of lunar anomalies: arXiv 2001.04634, and IEEE JSTARS 10.1109/JSTARS.2024.3369101.

Both look at windows of 64 × 64 pixels, pass them through four convolutions to 128 maps of 16 × 16, through a latent
vector, and back. That of 2020 goes straight from the maps to the latent vector; that of 2024 has fully connected layers
on both sides of it, in which nearly all of its 17 million weights lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lunar_processing.errors import ModelError


class Rebuilt(NamedTuple):
    """Windows (N, 1, w, w) as they are understood, and the latent normal distribution of each, (N, latent)."""

    image: Tensor
    mean: Tensor
    log_variance: Tensor


# Squared error of reconstruction (N,), latent mean (N, latent), weight → score (N,), larger is stranger.
SCORES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "reconstruction": lambda error, mean, weight: error,
    "latent": lambda error, mean, weight: mean.norm(dim=1),
    "sum": lambda error, mean, weight: error + weight * mean.square().sum(dim=1),
}


class VAE(nn.Module):
    """Tiles (N, 1, H, W) → `Rebuilt` windows in training, in evaluation (N, 1, rows, columns), one score a window.

    Windows of `window` pixels lie `stride` pixels apart; what is left at the right and the bottom is not looked at.
    Pixels are 0…1 and held there, as an 8-bit image divided by 255 holds them. In evaluation the latent vector is its
    mean, so that a window always gets the same score. `hidden` is the width of the fully connected layers around the
    latent vector, 0 for none. `seen` is the share of a window's pixels that must be valid for it to get a score: 1, as
    published, leaves out black borders, and what is less than a window at an edge.
    """

    sees_validity = True  # may be told which pixels are valid

    def __init__(
        self,
        latent: int = 256,
        hidden: int = 256,
        channels: Sequence[int] = (16, 32, 64, 128),
        window: int = 64,
        stride: int = 64,
        score: str = "sum",
        weight: float = 4.0,
        seen: float = 1.0,
    ) -> None:
        super().__init__()
        if score not in SCORES:
            raise ModelError(f"There is no score {score!r} of an autoencoder.", f"choose {', '.join(SCORES)}.")
        self.window, self.stride, self.score, self.weight = window, stride, score, weight
        self.least = seen - 0.5 / window**2  # half a pixel less, for what sums lose
        maps, side = channels[-1], window // 4
        narrow = hidden or latent
        self.encoder = nn.Sequential(*_convolutions(channels), nn.Flatten(), *_layer(maps * side**2, hidden))
        self.mean = nn.Linear(hidden or maps * side**2, latent)
        self.log_variance = nn.Linear(hidden or maps * side**2, latent)
        self.decoder = nn.Sequential(
            *_layer(latent, hidden),
            *_layer(narrow, maps * side**2),
            nn.Unflatten(1, (maps, side, side)),
            *_transposed(channels),
        )

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Rebuilt | Tensor:
        """What a loss needs in training, scores in evaluation."""
        return self.rebuild(self._windows(x)) if self.training else self.scores(x, valid)

    def rebuild(self, x: Tensor) -> Rebuilt:
        """Windows through the latent vector: a random one in training, its mean in evaluation."""
        seen = self.encoder(x)
        mean, log_variance = self.mean(seen), self.log_variance(seen)
        noise = torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else 0.0
        return Rebuilt(self.decoder(mean + noise), mean, log_variance)

    def scores(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """One score for each window of the tiles; NaN where too few of its pixels are valid.

        Gaps are filled with the mean of their window and count no error; the error of the others stands for them.
        """
        rows, columns = ((side - self.window) // self.stride + 1 for side in x.shape[-2:])
        one = self._windows(x)
        if valid is None:
            found = self._judge(one)
        else:
            seen = cut(valid.to(x.dtype), self.window, self.stride).reshape(one.shape)
            fill = (one * seen).mean(dim=(1, 2, 3)) / _share(seen)
            found = self._judge(torch.where(seen > 0, one, fill[:, None, None, None]), seen)
            found = found.masked_fill(seen.mean(dim=(1, 2, 3)) < self.least, float("nan"))
        return found.reshape(-1, 1, rows, columns)

    def _windows(self, x: Tensor) -> Tensor:
        return cut(x.clamp(0, 1), self.window, self.stride).reshape(-1, 1, self.window, self.window)

    def _judge(self, one: Tensor, seen: Tensor | None = None) -> Tensor:
        mean = self.mean(self.encoder(one))
        error = (self.decoder(mean) - one).square()
        error = error.sum(dim=(1, 2, 3)) if seen is None else (error * seen).sum(dim=(1, 2, 3)) / _share(seen)
        return SCORES[self.score](error, mean, self.weight)


def _share(seen: Tensor) -> Tensor:
    """Of each window, never 0."""
    return seen.mean(dim=(1, 2, 3)).clamp_min(1e-6)


def cut(x: Tensor, window: int, stride: int) -> Tensor:
    """(N, 1, H, W) → the windows (N, rows, columns, window, window)."""
    return x[:, 0].unfold(1, window, stride).unfold(2, window, stride)


def _convolutions(channels: Sequence[int]) -> list[nn.Module]:
    """Down to a quarter of the side."""
    layers: list[nn.Module] = []
    for before, after, stride in zip((1, *channels), channels, (1, 2, 1, 2)):
        layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return layers


def _transposed(channels: Sequence[int]) -> list[nn.Module]:
    """The same way back; the last layer may say anything, as the authors' does."""
    layers: list[nn.Module] = []
    for before, after, stride in zip(channels[::-1], (*channels[-2::-1], 1), (2, 1, 2, 1)):
        layers += [nn.ConvTranspose2d(before, after, 3, stride, padding=1, output_padding=stride - 1)]
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
    return layers[:-2]


def _layer(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()] if outputs else []
