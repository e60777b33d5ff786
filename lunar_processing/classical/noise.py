"""How noisy a pixel is, what can still be seen there, and what cannot: saturation, the noise floor, shadow.

The model of the noise is that of a light-counting camera: variance = a + b · s, where s is the signal above the
black level. It is fitted on sampled windows of the image itself, so no calibration is needed; on ground that is rough
down to the single pixel it can only give an upper bound, because roughness of that size looks like noise.

`pixels` are (H, W) in the units of the image, `valid` is bool of the same shape. A survey's `patches` are pairs of
both, 256 × 256 or smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lunar_processing.classical.around import blur

Patches = Sequence[tuple[np.ndarray, np.ndarray]]

BLOCK = 8  # side of the blocks in which noise is measured, px
LOW_QUANTILE = 0.10  # the calmest tenth of the blocks of a brightness has the least texture in it …
LOW_QUANTILE_OF_WHITE = 0.795  # … and this is what the calmest tenth gives on pure noise of sigma 1
TOLERANCE = 1.1  # a class's variance is measured to about a tenth
ROSE = 5.0  # signal to noise at which a thing is reliably seen (Rose 1948)
SMALLEST_PX = 3.0  # nothing smaller than this is called resolved, however bright the light
LARGEST_PX = 512.0
CRATER_CONTRAST = 0.3  # brightness swing of a fresh small crater's walls over the ground around, low sun
LOCAL_SIGMA = 2.0  # Gaussian over which "the signal here" is taken, px
HALO = 8


@dataclass(frozen=True)
class Noise:
    """variance(s) = a + b · (s - black), s in image units; never below the `least` variance (rounding)."""

    a: float
    b: float
    black: float
    least: float


def dark_noise(noise: Noise) -> float:
    """Standard deviation where there is no light: the unit in which networks for shadow compute."""
    return math.sqrt(max(noise.a, noise.least))


def fit_noise(patches: Patches, black: float | None = None) -> Noise:
    """Fit the noise model to sampled windows; `black` is the level of no light where the caller knows it.

    In blocks of 8 × 8 the mean and the noise are measured, the noise as 1.25 times the mean magnitude of the kernel
    [1 -2 1; -2 4 -2; 1 -2 1] / 6, which does not see slopes, columns or rows (Immerkær 1996). Of each brightness only
    the calmest tenth counts. A line with a, b >= 0 is then laid through these by least squares. Clipped pixels have no
    noise and say nothing of it.
    """
    clipped = saturation_level(patches)
    if clipped is not None:
        patches = [(pixels, valid & (pixels < clipped)) for pixels, valid in patches]
    mean, sigma, step = _measure(patches)
    least = max(step * step / 12, 1e-30)
    if len(mean) == 0:
        return Noise(least, 0.0, 0.0 if black is None else float(black), least)
    level, variance, weight = _calm(mean, sigma)
    black = _black_level(mean, float(np.sqrt(variance[0]))) if black is None else float(black)
    a, b = _line(level - black, np.maximum(variance, least), weight)
    return Noise(a, b, black, least)


def sigma_at(noise: Noise, signal: np.ndarray | float) -> np.ndarray:
    """Standard deviation of the noise at a signal, both in image units, float32."""
    above = np.maximum(np.asarray(signal, np.float64) - noise.black, 0)
    return np.sqrt(np.maximum(noise.a + noise.b * above, noise.least)).astype(np.float32)


def local_mean(pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The signal at each pixel: Gaussian mean of sigma 2 px over valid pixels, NaN where there are none. Halo 8."""
    return blur(pixels, valid, LOCAL_SIGMA)


def resolvable_px(noise: Noise, mean: np.ndarray, contrast: float = CRATER_CONTRAST) -> np.ndarray:
    """Diameter in pixels of the smallest thing that can be seen at each local mean; NaN where not even 512 px can.

    Rose's criterion: a disc of diameter d and contrast c stands out when  c · s · sqrt(pi/4 · d²) / sigma >= 5,
    with s the signal above black and sigma the noise of one pixel. So d = 5 · sigma / (c · s · sqrt(pi/4)), and never
    less than 3 px. It speaks of the raw pixels: no filter, however clever, sees much beyond it.
    """
    signal = np.maximum(np.asarray(mean, np.float64) - noise.black, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = ROSE * sigma_at(noise, mean) / (contrast * signal * np.sqrt(np.pi / 4))
    return np.where(size <= LARGEST_PX, np.maximum(size, SMALLEST_PX), np.nan).astype(np.float32)


def below_noise_floor(noise: Noise, mean: np.ndarray, sigma: np.ndarray | None = None) -> np.ndarray:
    """Where the local signal above black is smaller than the noise of a single pixel (bool; NaN means False).

    `sigma`: that noise, where the caller has it.
    """
    return np.asarray(mean) - noise.black < (sigma_at(noise, mean) if sigma is None else sigma)


def saturation_level(patches: Patches) -> float | None:
    """The level at which the image is clipped, or None: pixels at or above it have lost their true value.

    Clipped are the pixels at the very top of the range of an integer image, or a pile-up at the largest value of
    any image: at least 1 in 20,000 pixels, and 4 times more than in the hundredth of the range just below.
    """
    values = [pixels[valid] for pixels, valid in patches if valid.any()]
    if not values:
        return None
    flat = np.concatenate(values)
    top, bottom = flat.max(), flat.min()
    if flat.dtype.kind in "iu" and top == np.iinfo(flat.dtype).max:
        return float(top)
    at_top = int(np.count_nonzero(flat == top))
    near = float(top) - max((float(top) - float(bottom)) / 100, 4 * _grey_step(flat))
    just_below = int(np.count_nonzero((flat >= near) & (flat < top)))
    piled = top > bottom and at_top >= max(16, flat.size / 20_000) and at_top > 4 * just_below
    return float(top) if piled else None


def sunlit_level(patches: Patches, noise: Noise) -> float | None:
    """The local mean that parts sunlit ground from shadow, or None where the image is all of one kind.

    The logarithms of the means of blocks are split in two (Otsu). The split is believed only when each side holds at
    least 2 % of the blocks, the sides differ at least fivefold in brightness, and few blocks lie between them.
    """
    mean, _, _ = _measure(patches)
    if len(mean) < 64:
        return None
    signal = np.log(np.maximum(mean - noise.black, max(float(sigma_at(noise, noise.black)), 1e-30) / 2))
    counts, edges = np.histogram(signal, 64)
    cut = _otsu(counts)
    dark, bright = signal[signal < edges[cut]], signal[signal >= edges[cut]]
    if min(len(dark), len(bright)) < 0.02 * len(signal):
        return None
    low, high = np.median(dark), np.median(bright)
    if high - low < np.log(5):
        return None
    third = (high - low) / 3
    between = np.count_nonzero((signal > low + third) & (signal < high - third))
    if between > 0.5 * min(len(dark), len(bright)):
        return None
    return float(np.exp((low + high) / 2) + noise.black)


def _measure(patches: Patches) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and noise of every wholly valid block, and the step between grey levels (0 for continuous values)."""
    means, sigmas, step = [], [], 0.0
    for pixels, valid in patches:
        if min(pixels.shape) < BLOCK + 2:
            continue
        step = max(step, _grey_step(pixels[valid]))
        mean, sigma, whole = _blocks(pixels.astype(np.float64), valid)
        means.append(mean[whole])
        sigmas.append(sigma[whole])
    if not means:
        return np.zeros(0), np.zeros(0), step
    return np.concatenate(means), np.concatenate(sigmas), step


def _grey_step(values: np.ndarray) -> float:
    """The step between grey levels where the values visibly have one, else 0: rounding is noise too."""
    levels = np.unique(values[:: max(1, len(values) // 16384)])
    if len(levels) < 2 or len(levels) > 4096:
        return 0.0
    return float(np.diff(levels.astype(np.float64)).min())


def _blocks(pixels: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    down = pixels[:-2] - 2 * pixels[1:-1] + pixels[2:]
    response = np.abs(down[:, :-2] - 2 * down[:, 1:-1] + down[:, 2:]) / 6
    rows_known = valid[:-2] & valid[1:-1] & valid[2:]
    known = rows_known[:, :-2] & rows_known[:, 1:-1] & rows_known[:, 2:]
    cut = tuple(n // BLOCK * BLOCK for n in response.shape)
    shape = (cut[0] // BLOCK, BLOCK, cut[1] // BLOCK, BLOCK)

    def tiled(array: np.ndarray) -> np.ndarray:
        return array[: cut[0], : cut[1]].reshape(shape)

    mean = tiled(pixels[1:-1, 1:-1]).mean((1, 3))
    return mean, 1.2533 * tiled(response).mean((1, 3)), np.asarray(tiled(known).all((1, 3)))


def _calm(mean: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Brightness classes of equal number: level and variance of their calmest tenth, and number of blocks."""
    order = np.argsort(mean, kind="stable")
    classes = np.array_split(order, int(np.clip(len(mean) // 60, 1, 32)))
    calm = np.array([np.quantile(sigma[c], LOW_QUANTILE) for c in classes])
    # The level is that of the calm blocks: a class that spans a shadow's edge has its calm ones in the shadow.
    level = np.array([mean[c][sigma[c] <= limit].mean() for c, limit in zip(classes, calm)])
    return level, (calm / LOW_QUANTILE_OF_WHITE) ** 2, np.array([len(c) for c in classes], float)


def _line(signal: np.ndarray, variance: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """The highest line a + b · signal, a, b >= 0, that stays below all classes (but for the error of measuring them).

    Texture only ever lifts a class above the noise, so the noise is the lower envelope. The best line touches two
    classes, or one and an axis: all such lines are tried.
    """
    x, y = np.maximum(signal, 0), variance * TOLERANCE
    rise = (y[None, :] - y[:, None]) / np.where(x[None, :] > x[:, None], x[None, :] - x[:, None], np.inf)
    b = np.concatenate([np.maximum(rise, 0).ravel(), np.zeros(len(x)), y / np.maximum(x, 1e-30)])
    a = np.concatenate([(y[:, None] - np.maximum(rise, 0) * x[:, None]).ravel(), y, np.zeros(len(x))])
    lines = a[:, None] + b[:, None] * x
    allowed = (a >= 0) & (lines <= y * (1 + 1e-9)).all(1)
    # Nearness is counted in ratios, so that the few dark classes have their say beside the many bright ones.
    nearness = (np.log(np.maximum(lines, 1e-6 * y) / y) * weight).sum(1)
    best = np.argmax(np.where(allowed, nearness, -np.inf))
    return float(a[best]), float(b[best])


def _black_level(mean: np.ndarray, sigma: float) -> float:
    """The level of no light: where the darkest blocks pile up, if they are far darker than most; else zero.

    Calibrated images have no light at 0. Raw ones have an offset that shows only where there is shadow.
    """
    lowest = float(np.quantile(mean, 0.002))
    typical = float(np.median(mean))
    piled = np.count_nonzero(mean < lowest + 3 * sigma) >= max(8, 0.005 * len(mean))
    if lowest <= 0 or (piled and lowest < 0.35 * typical):
        return lowest
    return 0.0


def _otsu(counts: np.ndarray) -> int:
    """Index of the first bin of the upper class."""
    n = counts.cumsum()
    m = (counts * np.arange(len(counts))).cumsum()
    below, above = n[:-1], n[-1] - n[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = m[:-1] / below - (m[-1] - m[:-1]) / above
    return int(np.argmax(np.nan_to_num(below * above * gap**2))) + 1
