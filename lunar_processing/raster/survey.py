"""One look over a whole image by sample, so that every tile is stretched and judged alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lunar_processing.errors import NothingValid
from lunar_processing.grid import Window

if TYPE_CHECKING:
    from lunar_processing.raster.image import Image

BLOCK = 256  # side of a sampled window, px
WINDOWS = 128  # about 8 Mpx: percentiles of 0.1 % are then good to a few parts in ten thousand
QUANTILES = np.linspace(0.0, 1.0, 1001)


@dataclass(frozen=True)
class Survey:
    """What a sample of at most `WINDOWS` windows of `BLOCK`² pixels says of an image, valid pixels only."""

    windows: tuple[Window, ...]
    patches: tuple[tuple[np.ndarray, np.ndarray], ...]
    quantiles: np.ndarray
    valid_fraction: float

    def percentile(self, percent: float) -> float:
        """The value below which `percent` % of the valid pixels lie, in physical units."""
        return float(np.interp(percent / 100.0, QUANTILES, self.quantiles))

    @property
    def low(self) -> float:
        """Robust minimum: 0.5 %."""
        return self.percentile(0.5)

    @property
    def high(self) -> float:
        """Robust maximum: 99.5 %."""
        return self.percentile(99.5)

    @property
    def constant(self) -> bool:
        """Whether all sampled pixels have one value."""
        return bool(self.quantiles[0] == self.quantiles[-1])


def survey(image: Image) -> Survey:
    """Sample an image evenly; the same image always gives the same sample."""
    kept, patches, pixels, looked, valid = [], [], [], 0, 0
    for window in _spread(image):
        looked += window.width * window.height
        if image.certainly_empty(window):
            continue
        patch = image.read(window)
        valid += int(patch.valid.sum())
        if patch.valid.any():
            kept.append(window)
            patches.append((patch.pixels, patch.valid))
            pixels.append(patch.pixels[patch.valid])
        if len(kept) == WINDOWS:
            break
    if not kept:
        raise NothingValid(
            f"{image.path.name} holds no valid pixel: all are nodata, special values or black border.",
            "check the nodata value with `lunar info`, or choose another band with --band.",
        )
    quantiles = np.quantile(np.concatenate(pixels), QUANTILES).astype(float)
    return Survey(tuple(kept), tuple(patches), quantiles, valid / looked)


def _spread(image: Image) -> Iterator[Window]:
    """All windows of the image, those first that spread a small sample evenly over it."""
    across, down = -(-image.grid.width // BLOCK), -(-image.grid.height // BLOCK)
    total = across * down
    # A golden-ratio walk visits every window once and never bunches, however soon it is stopped.
    step = _coprime_near(total * 0.6180339887, total)
    for i in range(total):
        row, col = divmod(i * step % total, across)
        yield Window(col * BLOCK, row * BLOCK, BLOCK, BLOCK).clip(image.grid.width, image.grid.height)


def _coprime_near(wanted: float, total: int) -> int:
    step = max(1, round(wanted))
    while np.gcd(step, total) != 1:
        step += 1
    return step
