"""Offsets of whole columns and lines, told from the ground: measured over the whole image, and taken off.

What a line adds to its pixels shows in the difference to the next line, averaged over all columns. Three things make
that difference: offsets, which are independent from line to line; what noise is left of the average, likewise; and
relief of the ground, which goes on from line to line, so that the sum of its differences is a random walk. How much
there is of each is found by likelihood, and the offsets are then what is expected of them, given the differences.
The same for columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import linalg, optimize

from lunar_processing.classical.noise import Noise, dark_noise, sigma_at

Origin = tuple[int, int]

BLOCK = 16  # px: calm and rough ground are told apart in squares of this side
HALF = 128  # px: odd and even strips so wide share no terrain
FEWEST = 16  # differences between lines
SURE = 2.0  # nats by which offsets must explain the differences better than none do
FARTHEST = 16.0  # from 1, of the logarithm of a factor of variance
HIDDEN = 1e6  # times the usual variance, where a line has next to no valid pixel


@dataclass(frozen=True)
class Profiles:
    """Offsets of whole columns and rows, image units; one value a column, one a row; their sum is 0."""

    columns: np.ndarray  # (width,)
    rows: np.ndarray  # (height,)


class StripeSums:
    """Gathers differences between lines in one pass over an image, in full-width strips from top to bottom.

    Calm dark ground, where noise and relief are small, weighs most: the weight of a square of 16 px is the inverse of
    the mean squared difference in it, or of the variance that noise alone would give.
    """

    def __init__(self, width: int, height: int, noise: Noise) -> None:
        self._unit = _unit(noise)
        self._noise = Noise(
            noise.a / self._unit**2, noise.b / self._unit, noise.black / self._unit, noise.least / self._unit**2
        )
        self._columns = np.zeros((2, len(_Sums._fields), max(width - 1, 0)))
        self._rows = np.zeros((2, len(_Sums._fields), max(height - 1, 0)))
        self._pixels = np.zeros((0, width), np.float32)
        self._valid = np.zeros((0, width), bool)
        self._row = 0  # image row of the first row kept, at the edge of a block

    def add(self, pixels: np.ndarray, valid: np.ndarray) -> None:
        """The next rows (rows, width), directly below the last ones."""
        fresh = np.where(valid, pixels, 0).astype(np.float32) / np.float32(self._unit)
        self._pixels = np.concatenate([self._pixels, fresh])
        self._valid = np.concatenate([self._valid, valid])
        self._sum((len(self._pixels) - 1) // BLOCK * BLOCK)  # the last row waits for the one below it

    def profiles(self) -> Profiles:
        """The offsets of all columns and rows; nothing can be added after that."""
        self._sum(len(self._pixels))
        return Profiles(_expected(self._columns) * self._unit, _expected(self._rows) * self._unit)

    def _sum(self, count: int) -> None:
        if count <= 0:
            return
        pixels, valid, noise = self._pixels, self._valid, self._noise
        with ThreadPoolExecutor(2) as pool:  # numpy lets go of the interpreter
            across = pool.submit(_differences, pixels[:count].T, valid[:count].T, noise, self._row)
            down = pool.submit(_differences, pixels[: count + 1], valid[: count + 1], noise, 0)
        self._columns += across.result()
        self._rows[:, :, self._row : self._row + down.result().shape[2]] = down.result()
        self._pixels, self._valid = pixels[count:], valid[count:]
        self._row += count


def _unit(noise: Noise) -> float:
    """About the noise where there is no light, and a power of two, by which nothing is rounded.

    In other units the squares of what is measured in very large or small numbers would leave float32.
    """
    return float(2.0 ** round(math.log2(max(dark_noise(noise), 1e-38))))


def offsets(pixels: np.ndarray, valid: np.ndarray, noise: Noise) -> Profiles:
    """Offsets of an image that is wholly in memory; see `StripeSums`."""
    sums = StripeSums(pixels.shape[1], pixels.shape[0], noise)
    sums.add(pixels, valid)
    return sums.profiles()


def destripe(pixels: np.ndarray, valid: np.ndarray, profiles: Profiles | None, origin: Origin) -> np.ndarray:
    """Pixels less the offset of their column and of their row (float64, 0 where invalid)."""
    level = np.where(valid, pixels, 0).astype(np.float64)
    if profiles is not None:
        level -= np.where(valid, _along(profiles.columns, origin[0], pixels.shape[1])[None, :], 0)
        level -= np.where(valid, _along(profiles.rows, origin[1], pixels.shape[0])[:, None], 0)
    return level


def _along(profile: np.ndarray, start: int, length: int) -> np.ndarray:
    """The part of a profile that a tile covers; beyond the image 0."""
    part = np.zeros(length)
    first, last = max(start, 0), min(start + length, len(profile))
    if last > first:
        part[first - start : last - start] = profile[first:last]
    return part


# ---- differences between lines -----------------------------------------------------------------------------------


class _Sums(NamedTuple):
    """Of pairs of pixels, with weights w: Σ w · difference, Σ w, and Σ w² · variance, that of noise and of relief."""

    difference: np.ndarray
    weight: np.ndarray
    noise: np.ndarray
    relief: np.ndarray


def _differences(pixels: np.ndarray, valid: np.ndarray, noise: Noise, first: int) -> np.ndarray:
    """(2, fields of `_Sums`, lines - 1) of the pixels (lines, samples), for the even and the odd strips of samples.

    Blocks begin at the first line and at the first sample; `first` is where that sample lies in the image.
    """
    lines, samples = pixels.shape
    rows, cols = (-(-n // BLOCK) for n in (lines - 1, samples))
    known = _blocks(valid[1:] & valid[:-1], rows, cols)
    step = _blocks(np.diff(pixels, axis=0), rows, cols)
    if not valid.all():
        step *= known
    count, total = _sum_of_samples(known), _sum_of_samples(step)
    pairs = np.maximum(count.sum(1), 1e-9)
    level = _sum_of_samples(_blocks(pixels[:-1], rows, cols) * known).sum(1) / pairs
    square = _sum_of_samples(step * step).sum(1) / pairs
    quiet = 2 * sigma_at(noise, level).astype(np.float64) ** 2
    relief = np.maximum(square - quiet, 0)
    weight = (1 / (quiet + relief))[:, None]
    told = _Sums(weight * total, weight * count, weight**2 * count * quiet[:, None],
                 weight**2 * count * relief[:, None])  # fmt: skip
    odd = (np.arange(cols) * BLOCK + first) // HALF % 2 == 1
    halves = [np.stack([values[..., part].sum(-1).ravel()[: lines - 1] for values in told]) for part in (~odd, odd)]
    return np.stack(halves)


def _blocks(values: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Lines and samples as float32 (rows, BLOCK, cols, BLOCK), filled up with 0."""
    full = np.zeros((rows * BLOCK, cols * BLOCK), np.float32)
    full[: values.shape[0], : values.shape[1]] = values
    return full.reshape(rows, BLOCK, cols, BLOCK)


def _sum_of_samples(blocks: np.ndarray) -> np.ndarray:
    """(rows, BLOCK, cols), float64."""
    return np.asarray(blocks @ np.ones(BLOCK, np.float32), np.float64)


# ---- offsets -----------------------------------------------------------------------------------------------------


def _expected(halves: np.ndarray) -> np.ndarray:
    """Offsets of n lines, expected from the sums of the n - 1 differences between them, (2, fields, n - 1).

    What the two halves do not agree on tells how much noise and fine relief there is; what they have in common, how
    large the offsets are. Where none explain the differences as well, all are 0.
    """
    lines = halves.shape[2] + 1
    one, other = (_mean(_Sums(*half)) for half in halves)
    if np.count_nonzero(one.seen & other.seen) < FEWEST:  # nothing to check the offsets against
        return np.zeros(lines)
    unlike = _Mean(one.step - other.step, one.noise + other.noise, one.relief + other.relief, one.seen & other.seen)
    unlike = _settled(unlike)
    noise, walk = _fitted(lambda noise, walk: _spread(noise * unlike.noise, walk * unlike.relief), unlike.step, (1, 1))
    every = _settled(_mean(_Sums(*halves.sum(0))))
    left = noise * every.noise
    usual = float(np.median(every.noise))

    def spread(stripes: float, walk: float) -> np.ndarray:
        return _spread(left + stripes * usual, walk * every.relief)

    stripes, along = _fitted(spread, every.step, (10, max(walk, 1e-3)))
    none = optimize.minimize_scalar(
        lambda log: _unlikely(spread(0, np.exp(log)), every.step), bounds=(-FARTHEST, FARTHEST), method="bounded"
    ).fun
    if none - _unlikely(spread(stripes, along), every.step) < SURE:
        return np.zeros(lines)
    pull = linalg.solveh_banded(spread(stripes, along), every.step)
    return np.asarray(-stripes * usual / 2 * np.diff(pull, prepend=0, append=0))


class _Mean(NamedTuple):
    """Mean differences between lines (n - 1,), variances that noise and relief give them, and where there are any."""

    step: np.ndarray
    noise: np.ndarray
    relief: np.ndarray
    seen: np.ndarray


def _mean(sums: _Sums) -> _Mean:
    seen = sums.weight > 0
    weight = np.where(seen, sums.weight, 1)
    return _Mean(sums.difference / weight, sums.noise / weight**2, sums.relief / weight**2, seen)


def _settled(mean: _Mean) -> _Mean:
    """Where nothing was seen, anything may be; and nowhere is there no relief at all."""
    noise, relief = np.median(mean.noise[mean.seen]), np.median(mean.relief[mean.seen])
    small = 1e-3 * max(noise, 1e-30)
    return mean._replace(
        step=np.where(mean.seen, mean.step, 0),
        noise=np.where(mean.seen, np.maximum(mean.noise, small), noise),
        relief=np.where(mean.seen, np.maximum(mean.relief, small), HIDDEN * max(noise, relief, small)),
    )


def _spread(white: np.ndarray, walk: np.ndarray) -> np.ndarray:
    """Covariance of differences between lines as scipy wants it banded, (2, n - 1).

    `white`: what is independent from line to line has half of it as its variance; given, as `walk`, per difference.
    """
    half = white / 2
    line = np.concatenate([half[:1], (half[1:] + half[:-1]) / 2, half[-1:]])
    return np.stack([np.concatenate([[0], -line[1:-1]]), walk + line[:-1] + line[1:]])


def _unlikely(spread: np.ndarray, step: np.ndarray) -> float:
    """-log p of the differences, but for a constant."""
    root = linalg.cholesky_banded(spread)
    return float(np.log(root[1]).sum() + 0.5 * step @ linalg.cho_solve_banded((root, False), step))


def _fitted(
    spread: Callable[[float, float], np.ndarray], step: np.ndarray, begin: Sequence[float]
) -> tuple[float, float]:
    """The two factors under which the differences are most likely."""
    start = np.log(begin)
    found = optimize.minimize(
        lambda logs: _unlikely(spread(*np.exp(np.clip(logs, -FARTHEST, FARTHEST))), step),
        start,
        method="Nelder-Mead",
        options={"xatol": 0.02, "fatol": 0.02, "maxiter": 200, "initial_simplex": start + [[0, 0], [-3, 0], [0, -2]]},
    )
    first, second = np.exp(np.clip(found.x, -FARTHEST, FARTHEST))
    return float(first), float(second)
