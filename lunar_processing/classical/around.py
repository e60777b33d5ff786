"""What surrounds a pixel, measured over valid pixels only, the same whatever tile the pixel is seen in.

Arrays are (H, W); `valid` is a bool array of the same shape. What lies outside the array counts as invalid, so a
caller that hands in enough halo gets the same value at a pixel from every tile. `origin` is the (column, row) of the
array's first pixel in the whole image: coarse grids are aligned to the image with it, never to the tile.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

REACH = 3.0  # Gaussians end at this many sigmas


def blur(pixels: np.ndarray, valid: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean of the valid pixels around each pixel, float32; NaN where there are none. Halo: 3 sigma + 1."""
    weight = valid.astype(np.float32)
    total = ndimage.gaussian_filter(
        np.where(valid, pixels, 0).astype(np.float32), sigma, mode="constant", truncate=REACH
    )
    if valid.all():
        return _divide(total, _edge_weight(valid.shape, sigma))
    return _divide(total, ndimage.gaussian_filter(weight, sigma, mode="constant", truncate=REACH))


def wide_blur(pixels: np.ndarray, valid: np.ndarray, sigma: float, origin: tuple[int, int]) -> np.ndarray:
    """As `blur`, for large sigmas: computed on a coarser grid aligned to the image. Halo: `wide_halo(sigma)`."""
    factor = coarseness(sigma)
    if factor == 1:
        return blur(pixels, valid, sigma)
    total, count = coarsen(pixels, valid, factor, origin)
    smooth = ndimage.gaussian_filter(total, sigma / factor, mode="constant", truncate=REACH)
    weight = ndimage.gaussian_filter(count, sigma / factor, mode="constant", truncate=REACH)
    fine_total = refine(smooth, factor, origin, pixels.shape)
    fine_weight = refine(weight, factor, origin, pixels.shape)
    return _divide(fine_total, fine_weight)


def coarseness(sigma: float) -> int:
    """By how much a blur of this sigma may be coarsened without harm: a power of two, at most sigma / 4."""
    return int(2 ** max(0, np.floor(np.log2(sigma / 4)))) if sigma >= 8 else 1


def wide_halo(sigma: float) -> int:
    """Pixels around a tile that `wide_blur` looks at."""
    factor = coarseness(sigma)
    return int(np.ceil(REACH * sigma)) + 3 * factor


def coarsen(
    pixels: np.ndarray, valid: np.ndarray, factor: int, origin: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the valid pixels in blocks of `factor` × `factor` that are aligned to the image."""
    padded, weight = to_blocks(np.where(valid, pixels, 0).astype(np.float32), valid, factor, origin)
    return padded.sum((2, 3), dtype=np.float64), weight.sum((2, 3), dtype=np.float64)


def to_blocks(
    pixels: np.ndarray, valid: np.ndarray, factor: int, origin: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and validity as (block rows, block columns, factor, factor); what the blocks lack is invalid.

    There is always one ring of blocks more than the pixels need, so that a pixel at the edge of the image lies between
    the same blocks whether or not the caller has padded the tile.
    """
    before = (origin[1] % factor + factor, origin[0] % factor + factor)
    after = tuple(-(n + b) % factor + factor for n, b in zip(pixels.shape, before))
    pad = ((before[0], after[0]), (before[1], after[1]))

    def cut(array: np.ndarray) -> np.ndarray:
        array = np.pad(array, pad)
        rows, cols = array.shape[0] // factor, array.shape[1] // factor
        return array.reshape(rows, factor, cols, factor).swapaxes(1, 2)

    return cut(pixels), cut(valid)


def refine(blocks: np.ndarray, factor: int, origin: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Block values back on the pixels of the tile: bilinear between the centres of the blocks."""
    low_row, high_row, part_row = between(origin[1], shape[0], factor, blocks.shape[0])
    low_col, high_col, part_col = between(origin[0], shape[1], factor, blocks.shape[1])
    rows = blocks[low_row] + part_row[:, None] * (blocks[high_row] - blocks[low_row])
    return rows[:, low_col] + part_col * (rows[:, high_col] - rows[:, low_col])


def between(start: int, length: int, factor: int, blocks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel of an axis: the blocks (of `to_blocks`) on either side, and its place between their centres."""
    first = start // factor - 1
    place = (np.arange(start, start + length) + 0.5) / factor - 0.5 - first
    low = np.floor(place).astype(np.int64)
    return np.clip(low, 0, blocks - 1), np.clip(low + 1, 0, blocks - 1), place - low


def _edge_weight(shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """What `blur` of an all-valid mask gives, without blurring: it separates."""
    rows, cols = (
        ndimage.gaussian_filter1d(np.ones(n, np.float32), sigma, mode="constant", truncate=REACH) for n in shape
    )
    return rows[:, None] * cols[None, :]


def _divide(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    # A weight this small comes from valid pixels at the very edge of the kernel: too little to call a mean.
    enough = weight > 1e-6
    return np.where(enough, total / np.where(enough, weight, 1), np.nan).astype(np.float32)
