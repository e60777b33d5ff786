"""Make an image easier to see, without a trained network: the entries of METHODS.

Every entry is fitted once on a survey of the image and then applied to tiles:

    method = METHODS["destripe-nlm"]
    state = method.fit(patches, profiles)          # patches: [(pixels, valid)], profiles: see stripes.py, or None
    enhanced = method.apply(pixels, valid, state, origin=(col, row))

`pixels` and `valid` are a tile with at least `halo` pixels around its core, cores starting at multiples of `align`;
`origin` is where the tile's first pixel lies in the image. The result is float32 of the same shape, NaN where invalid;
in the core it does not depend on how the image was cut into tiles. Nothing is drawn that is not in the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from skimage.restoration import denoise_nl_means

from lunar_processing.classical.around import between, blur, to_blocks, wide_blur, wide_halo
from lunar_processing.classical.noise import Noise, Patches, fit_noise, sigma_at
from lunar_processing.classical.stripes import Origin, Profiles, destripe


@dataclass(frozen=True)
class Method:
    """One way to enhance: what it needs around a tile, and its two functions."""

    title: str
    description: str
    halo: int
    align: int
    needs_profiles: bool
    in_input_units: bool  # else the result runs from 0 to 1
    fit: Callable[[Patches, Profiles | None], object]
    apply: Callable[..., np.ndarray]  # (pixels, valid, state, origin=(col, row)) -> float32


# ---- stretch -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """Robust smallest and largest value of the image (0.5 % and 99.5 %), image units."""

    low: float
    high: float


def fit_range(patches: Patches, profiles: Profiles | None = None) -> Range:
    """The range that holds 99 % of the valid pixels."""
    values = [pixels[valid] for pixels, valid in patches if valid.any()]
    if not values:
        return Range(0.0, 1.0)
    # As 32-bit numbers, for that is what is stretched: two that differ less than these can tell are one.
    low, high = np.percentile(np.concatenate(values).astype(np.float64), (0.5, 99.5)).astype(np.float32)
    return Range(float(low), float(high) if high > low else float(low) + 1.0)


def stretch(pixels: np.ndarray, valid: np.ndarray, state: Range, origin: Origin = (0, 0)) -> np.ndarray:
    """The robust range laid on 0 … 1, clipped; order of brightness kept."""
    return np.where(valid, _unit(pixels, state), np.nan).astype(np.float32)


def _unit(pixels: np.ndarray, state: Range) -> np.ndarray:
    return np.clip((pixels.astype(np.float32) - np.float32(state.low)) / np.float32(state.high - state.low), 0, 1)


# ---- CLAHE ---------------------------------------------------------------------------------------------------

CLAHE_BLOCK = 128
CLAHE_BINS = 256
CLAHE_CLIP = 3.0  # a bin may hold so many times the mean; the rest is shared among all
CLAHE_ENOUGH = 0.25  # a block with less than this share of valid pixels leans on the whole image's histogram


@dataclass(frozen=True)
class Equaliser:
    """The image's range and its own mapping of grey levels (BINS,), for blocks with little of their own."""

    range: Range
    mapping: np.ndarray


def fit_clahe(patches: Patches, profiles: Profiles | None = None) -> Equaliser:
    """The range and the histogram of the whole sample."""
    limits = fit_range(patches)
    counts = np.zeros(CLAHE_BINS)
    for pixels, valid in patches:
        counts += np.bincount(_bins(_root(pixels[valid], limits)), minlength=CLAHE_BINS)
    return Equaliser(limits, _mapping(counts[None])[0])


def clahe(pixels: np.ndarray, valid: np.ndarray, state: Equaliser, origin: Origin = (0, 0)) -> np.ndarray:
    """Contrast-limited equalisation in blocks of 128 px that are fixed to the image, mappings blended between them."""
    unit = _root(pixels, state.range)
    mappings, trust = _block_mappings(_bins(unit), valid, state, origin)
    # Between bin centres the mapping is interpolated too, so that smooth ground stays smooth.
    place = np.clip(unit * CLAHE_BINS - 0.5, 0, CLAHE_BINS - 1)
    level = np.minimum(place.astype(np.int64), CLAHE_BINS - 2)
    part = place - level
    low_row, high_row, down = between(origin[1], pixels.shape[0], CLAHE_BLOCK, mappings.shape[0])
    low_col, high_col, across = between(origin[0], pixels.shape[1], CLAHE_BLOCK, mappings.shape[1])
    total = np.zeros(pixels.shape, np.float32)
    weight = np.zeros(pixels.shape, np.float32)
    for row, near_row in ((low_row, 1 - down), (high_row, down)):
        for col, near_col in ((low_col, 1 - across), (high_col, across)):
            block = row[:, None], col[None, :]
            share = (near_row[:, None] * near_col[None, :]).astype(np.float32) * trust[block]
            here = mappings[(*block, level)]
            total += share * (here + part * (mappings[(*block, level + 1)] - here))
            weight += share
    return np.where(valid, total / np.where(weight > 0, weight, 1), np.nan).astype(np.float32)


def _root(pixels: np.ndarray, state: Range) -> np.ndarray:
    """Square root of the stretched brightness: gives shadow its share of the grey levels, as photon noise would."""
    return np.sqrt(_unit(pixels, state))


def _bins(unit: np.ndarray) -> np.ndarray:
    return np.minimum((unit * CLAHE_BINS).astype(np.int64), CLAHE_BINS - 1)


def _block_mappings(
    bins: np.ndarray, valid: np.ndarray, state: Equaliser, origin: Origin
) -> tuple[np.ndarray, np.ndarray]:
    """Mappings (block rows, block columns, BINS) and how far each is to be trusted (block rows, block columns)."""
    blocks, known = to_blocks(bins, valid, CLAHE_BLOCK, origin)
    rows, cols = blocks.shape[:2]
    number = np.arange(rows * cols).reshape(rows, cols, 1, 1) * CLAHE_BINS
    counts = np.bincount((blocks + number)[known], minlength=rows * cols * CLAHE_BINS)
    counts = counts.reshape(rows * cols, CLAHE_BINS)
    trust = np.clip(counts.sum(1, keepdims=True) / (CLAHE_ENOUGH * CLAHE_BLOCK**2), 0, 1)
    own = trust * _mapping(counts) + (1 - trust) * state.mapping
    shape = (rows, cols)
    return own.reshape(*shape, CLAHE_BINS).astype(np.float32), (trust.reshape(shape) + 1e-3).astype(np.float32)


def _mapping(counts: np.ndarray) -> np.ndarray:
    """Histograms (n, BINS) to rising mappings (n, BINS) onto 0 … 1, no steeper than the clip limit allows."""
    total = np.maximum(counts.sum(1, keepdims=True), 1)
    share = counts / total
    limit = CLAHE_CLIP / CLAHE_BINS
    for _ in range(4):  # what is cut off lifts others over the limit; a few rounds settle it
        excess = np.maximum(share - limit, 0).sum(1, keepdims=True)
        share = np.minimum(share, limit) + excess / CLAHE_BINS
    rising = np.cumsum(share, 1) - share / 2
    return np.clip(rising, 0, 1)


# ---- Retinex -------------------------------------------------------------------------------------------------

RETINEX_SIGMAS = (4.0, 16.0, 48.0)


@dataclass(frozen=True)
class RetinexState:
    """Level of no light, the smallest signal taken at face value, and the range of the result over the survey."""

    black: float
    softening: float
    range: Range


def fit_retinex(patches: Patches, profiles: Profiles | None = None) -> RetinexState:
    """The noise sets how deep into the dark ratios are taken seriously."""
    noise = fit_noise(patches)
    limits = fit_range(patches)
    softening = max(2 * float(sigma_at(noise, noise.black)), 1e-3 * (limits.high - limits.low))
    raw = RetinexState(noise.black, softening, Range(0, 1))
    spread = fit_range([(_log_ratio(pixels, valid, raw, (0, 0)), valid) for pixels, valid in patches])
    least = 0.01  # a hundredth of contrast fills the range at most: rounding must not be blown up into a picture
    spare = max(least - (spread.high - spread.low), 0) / 2
    return RetinexState(noise.black, softening, Range(spread.low - spare, spread.high + spare))


def retinex(pixels: np.ndarray, valid: np.ndarray, state: RetinexState, origin: Origin = (0, 0)) -> np.ndarray:
    """Multi-scale Retinex: logarithm of each pixel over its surroundings at 4, 16 and 48 px, on 0 … 1."""
    return stretch(_log_ratio(pixels, valid, state, origin), valid, state.range)


def _log_ratio(pixels: np.ndarray, valid: np.ndarray, state: RetinexState, origin: Origin) -> np.ndarray:
    signal = np.maximum(pixels.astype(np.float32) - np.float32(state.black), 0) + np.float32(state.softening)
    log = np.log(np.where(valid, signal, 1))
    total = np.zeros(pixels.shape, np.float32)
    for sigma in RETINEX_SIGMAS:
        around = wide_blur(signal, valid, sigma, origin)
        total += log - np.log(np.where(valid & np.isfinite(around), around, 1))
    return np.where(valid, total / len(RETINEX_SIGMAS), 0)


# ---- destripe and denoise ------------------------------------------------------------------------------------

NLM_PATCH = 5
NLM_DISTANCE = 6
NLM_STRENGTH = 0.7  # times the noise: how unlike a patch may be and still be averaged in

NLM_FILL_SIGMA = 2.0  # invalid pixels are filled with the Gaussian mean of the valid ones around them


@dataclass(frozen=True)
class Cleaner:
    """The noise model and the offsets to remove (None: no profiles were given, nothing to remove)."""

    noise: Noise
    profiles: Profiles | None = field(default=None, repr=False)


def fit_cleaner(patches: Patches, profiles: Profiles | None = None) -> Cleaner:
    """The noise model of the image, with its stripes."""
    return Cleaner(fit_noise(patches), profiles)


def destripe_nlm(pixels: np.ndarray, valid: np.ndarray, state: Cleaner, origin: Origin = (0, 0)) -> np.ndarray:
    """Offsets removed, then non-local means on pixels whose noise is made equal everywhere; image units."""
    # A rim of invalid pixels: else the edge of the image would be mirrored in one tile and not in another.
    rim = NLM_DISTANCE + NLM_PATCH // 2
    known = np.pad(valid, rim)
    level = destripe(pixels, valid, state.profiles, origin)
    steady = np.pad(stabilise(level, state.noise), rim)
    filled = np.where(known, steady, np.nan_to_num(blur(steady, known, NLM_FILL_SIGMA)))
    smooth = denoise_nl_means(
        filled,
        patch_size=NLM_PATCH,
        patch_distance=NLM_DISTANCE,
        h=NLM_STRENGTH,
        sigma=1.0,
        fast_mode=True,
        preserve_range=True,
    )
    smooth = smooth[rim:-rim, rim:-rim]
    return np.where(valid, unstabilise(smooth, state.noise), np.nan).astype(np.float32)


def stabilise(signal: np.ndarray, noise: Noise) -> np.ndarray:
    """Values whose noise has sigma 1 everywhere: (2 / b) · (sqrt(a + b · s) - sqrt(a)), written so that b may be 0.

    Below black the curve goes on as its tangent, so that negative noise survives.
    """
    above = signal - noise.black
    dark = np.sqrt(max(noise.a, noise.least))
    return 2 * above / (np.sqrt(dark**2 + noise.b * np.maximum(above, 0)) + dark)


def unstabilise(steady: np.ndarray, noise: Noise) -> np.ndarray:
    """The inverse of `stabilise`."""
    dark = np.sqrt(max(noise.a, noise.least))
    return noise.black + dark * steady + noise.b / 4 * np.maximum(steady, 0) ** 2


METHODS: dict[str, Method] = {
    "stretch": Method(
        title="Percentile stretch",
        description="Lays the brightness between the 0.5 and the 99.5 percentile of the image on 0 to 1.",
        halo=0,
        align=1,
        needs_profiles=False,
        in_input_units=False,
        fit=fit_range,
        apply=stretch,
    ),
    "clahe": Method(
        title="Local contrast (CLAHE)",
        description="Evens out the histogram around each place, with limited contrast: shows relief in light and in "
        "shade at once. Brightness can no longer be compared from place to place.",
        halo=CLAHE_BLOCK * 3 // 2,
        align=1,
        needs_profiles=False,
        in_input_units=False,
        fit=fit_clahe,
        apply=clahe,
    ),
    "retinex": Method(
        title="Multi-scale Retinex",
        description="Logarithm of each pixel over its surroundings at 4, 16 and 48 px: takes the slow changes of light "
        "away and keeps the relief. Noise of dark regions becomes visible.",
        halo=wide_halo(max(RETINEX_SIGMAS)),
        align=1,
        needs_profiles=False,
        in_input_units=False,
        fit=fit_retinex,
        apply=retinex,
    ),
    "destripe-nlm": Method(
        title="Destripe and non-local means",
        description="Removes offsets of columns and rows, then averages alike patches as far as the noise of the image "
        "itself calls for it. Keeps the units of the image and invents nothing.",
        halo=16,
        align=1,
        needs_profiles=True,
        in_input_units=True,
        fit=fit_cleaner,
        apply=destripe_nlm,
    ),
}
DEFAULT = "destripe-nlm"
