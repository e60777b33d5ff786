"""See into shadow: averages as far as the noise of each place calls for, corrects what the average lost, and says
how wrong it may still be.

The network works in units of the image's own dark noise, so one network serves every exposure and every unit. All it
computes is local: nothing depends on the tile, and a scene that straddles the edge of a shadow has no seam.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

NAC_SLOPE = 0.018  # of the variance, per unit of dark noise: 1.97 / (64 e⁻/DN) · 1 / 1.7 DN
RELIEF = 0.15  # expected contrast of ground: what there is beside noise
PASSED = (60.0, 120.0)  # signal to noise from where, and up to where, the input takes over from the network
KNOTS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # signal to noise at which sigma is calibrated


class ShadowNet(nn.Module):
    """(N, 1, H, W) signal above black in units of the dark noise → (N, 2, H, W) signal and its sigma; any size.

    `slope`, one number or (N,): noise variance is 1 + slope · signal. Widths are those at 1/2, 1/4 and 1/8 of the
    resolution. A pixel sees 64 pixels in each direction; tiles must begin at multiples of 8.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 96), deep: int = 2) -> None:
        super().__init__()
        half, quarter, eighth = widths
        self.enter = nn.Conv2d(9, half, 3, padding=1)
        self.to_quarter = nn.Conv2d(half, quarter, 2, stride=2)
        self.quarter_in = _Block(quarter)
        self.to_eighth = nn.Conv2d(quarter, eighth, 2, stride=2)
        self.eighth = nn.Sequential(*(_Block(eighth) for _ in range(deep)))
        self.from_eighth = nn.Conv2d(eighth, quarter, 1)
        self.quarter_out = _Block(quarter)
        self.from_quarter = nn.Conv2d(quarter, half, 1)
        self.half_out = _Block(half)
        self.leave = nn.Conv2d(half, 12, 3, padding=1)
        for weight in self.leave.parameters():  # it begins by averaging, and corrects nothing
            nn.init.zeros_(weight)
        # Measured on images that nothing was learnt from.
        self.sigma_factor: Tensor
        self.register_buffer("sigma_factor", torch.ones(len(KNOTS)))

    def forward(self, x: Tensor, slope: float | Tensor = NAC_SLOPE) -> Tensor:
        """Signal and sigma, in the unit of the input."""
        height, width = x.shape[-2:]
        given = functional.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
        pixels = functional.pixel_unshuffle(given, 2)  # (N, 4, H/2, W/2): all that follows is at half the resolution
        near, middle, far = averages(pixels)
        noise = self._noise(near, slope)
        dark = torch.minimum(middle, far).clamp_min(0)
        scale = (noise**2 + (RELIEF * dark) ** 2).sqrt()
        features = [pixels - far, near - far, middle - far]
        seen = [3 * torch.asinh(f / (3 * scale)) for f in features]
        seen += [(noise / scale), torch.log(noise / (noise + dark)) / 3, torch.asinh(far / noise - near / noise) / 3]
        shown = torch.cat(seen, dim=1).contiguous(memory_format=torch.channels_last)  # a third faster on a CPU
        correction, log_sigma, weights = self._features(shown).split(4, dim=1)
        weights = weights.softmax(dim=1)
        bases = (pixels, near, middle, far)
        mixed = sum(w * base for w, base in zip(weights.split(1, dim=1), bases))
        signal_to_noise = near / noise
        sigma = scale * torch.exp(log_sigma.clamp(-6, 3)) * self._calibrated(signal_to_noise)
        passed = _rise(signal_to_noise, *PASSED)
        enhanced = torch.lerp(mixed + correction * scale, pixels, passed)
        sigma = torch.lerp(sigma, noise, passed)
        both = torch.stack([enhanced, sigma], dim=1).flatten(0, 1)
        return functional.pixel_shuffle(both, 2).unflatten(0, (-1, 2))[:, :, 0, :height, :width]

    def _features(self, x: Tensor) -> Tensor:
        half = torch.relu(self.enter(x))
        quarter = self.quarter_in(torch.relu(self.to_quarter(half)))
        eighth = self.eighth(torch.relu(self.to_eighth(quarter)))
        quarter = self.quarter_out(quarter + _twice(self.from_eighth(eighth)))
        return self.leave(self.half_out(half + _twice(self.from_quarter(quarter))))

    @staticmethod
    def _noise(signal: Tensor, slope: float | Tensor) -> Tensor:
        rise = torch.as_tensor(slope, dtype=signal.dtype, device=signal.device).reshape(-1, 1, 1, 1)
        return (1 + rise * signal.clamp_min(0)).sqrt()

    def _calibrated(self, signal_to_noise: Tensor) -> Tensor:
        """The factor of sigma, linear between knots that are one octave apart."""
        place = torch.log2(signal_to_noise.clamp(KNOTS[0], KNOTS[-1]) / KNOTS[0])
        low = place.long().clamp_max(len(KNOTS) - 2)
        factor = self.sigma_factor
        return torch.lerp(factor[low], factor[low + 1], place - low)


class _Block(nn.Module):
    """Two convolutions that change what is there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x)))


def averages(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means over about 1.5, 3 and 8 px (Gaussian sigma), (N, 1, H/2, W/2) each."""
    half = pixels.mean(dim=1, keepdim=True)
    quarter = functional.avg_pool2d(half, 2)
    eighth = functional.avg_pool2d(quarter, 2)
    near, middle, far = _smooth(half), _smooth(quarter), _smooth(_smooth(eighth))
    size = half.shape[-2:]
    middle, far = (functional.interpolate(a, size, mode="bilinear", align_corners=False) for a in (middle, far))
    return near, middle, far


def _smooth(x: Tensor) -> Tensor:
    """Weights 1 2 1 along both axes."""
    x = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    x = (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 4
    return (x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]) / 4


def _twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def _rise(x: Tensor, low: float, high: float) -> Tensor:
    """0 below `low`, 1 above `high`, smooth and even in the logarithm between."""
    t = (torch.log(x.clamp_min(1e-6) / low) / math.log(high / low)).clamp(0, 1)
    return t * t * (3 - 2 * t)
