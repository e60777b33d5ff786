"""How many of what size: tables, distributions with their intervals, and how well they fit. Functions on arrays.

Diameters are lengths in any one unit, greater than 0. N(D) is the number of diameters of at least D. A fit describes
the diameters from `d_min` on as a sample, whatever the area; below `d_min` it says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import chi2

FEWEST = 10  # diameters below which a fit would say more than is known
SHAPES = (0.05, 50.0)  # Weibull shapes that are looked at; the smallest is a power law in all but name
REPLICATES = (49, 499)  # fewest and most samples that are drawn for a goodness of fit
DRAWN = 2_000_000  # diameters drawn for it, at most, unless that would be fewer than the fewest samples
PEAK_BINS = 10  # per decade, to see where counts roll off
PEAK_FEWEST = 50  # diameters below which a peak of the counts is chance


# ---- counting ----------------------------------------------------------------------------------------------------


def poisson_interval(count: np.ndarray | float, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The exact central interval of the mean of a Poisson count (Garwood 1936); it holds at least the confidence."""
    count = np.asarray(count, float)
    tail = (1 - confidence) / 2
    low = np.where(count > 0, chi2.ppf(tail, 2 * np.maximum(count, 1)) / 2, 0.0)
    return low, chi2.ppf(1 - tail, 2 * (count + 1)) / 2


def bin_edges(diameters: np.ndarray, anchor: float, per_decade: float) -> np.ndarray:
    """Edges at even steps of log D that hold all diameters; `anchor` is one of them. Empty without diameters."""
    if not len(diameters):
        return np.empty(0)
    steps = np.log10(np.array([diameters.min(), diameters.max()]) / anchor) * per_decade
    first, last = math.floor(steps[0] + 1e-9), math.floor(steps[1] + 1e-9) + 1
    return anchor * 10 ** (np.arange(first, last + 1) / per_decade)


def table(diameters: np.ndarray, edges: np.ndarray, area: float, confidence: float = 0.95) -> dict[str, np.ndarray]:
    """Counts by bin, each with its Poisson interval and for a unit of area.

    `cumulative` is N(d_low); `differential` the number in the bin for a unit of diameter and area; `r` that number
    times the cube of the bin's geometric middle, the relative (R) plot of the crater community.
    """
    low, high = edges[:-1], edges[1:]
    count = np.histogram(diameters, edges)[0] if len(edges) else np.empty(0, int)
    cumulative = count[::-1].cumsum()[::-1]
    middle = np.sqrt(low * high)
    columns: dict[str, np.ndarray] = {"d_low": low, "d_high": high, "d_mid": middle}
    for name, values, unit in (
        ("count", count, 1),
        ("cumulative", cumulative, 1),
        ("cumulative_density", cumulative / area, area),
        ("differential", count / (area * (high - low)), area * (high - low)),
        ("r", count * middle**3 / (area * (high - low)), area * (high - low) / middle**3),
    ):
        bounds = poisson_interval(cumulative if "cumulative" in name else count, confidence)
        columns |= {name: values, f"{name}_lower": bounds[0] / unit, f"{name}_upper": bounds[1] / unit}
    return columns


def roll_off(diameters: np.ndarray) -> float | None:
    """Where the counts in even steps of log D have their peak, as the upper edge of that step (maximum curvature).

    Smaller objects are missed, or are truly rarer; which of the two, the counts cannot tell. None where the counts
    only rise towards the smallest, or are too few to tell.
    """
    if len(diameters) < PEAK_FEWEST:
        return None
    edges = bin_edges(diameters, float(diameters.min()), PEAK_BINS)
    count = np.histogram(diameters, edges)[0].astype(float)
    peak = int(count.argmax())
    # A peak must stand out of the chance of the counts below it, or it is none.
    if not peak or count[peak] - count[0] < 3 * math.sqrt(count[peak] + count[0]):
        return None
    return float(edges[peak + 1])


# ---- distributions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PowerLaw:
    """N(D) ∝ D^-exponent from `d_min` to `d_max` (inf: without an end); `low` and `high` bound the exponent."""

    exponent: float
    low: float
    high: float
    d_min: float
    d_max: float
    n: int
    log_likelihood: float

    def survival(self, diameter: np.ndarray, exponent: float | None = None) -> np.ndarray:
        """The share of the diameters from d_min to d_max that are at least so large."""
        rate = self.exponent if exponent is None else exponent
        x = np.log(np.clip(np.asarray(diameter, float), self.d_min, self.d_max) / self.d_min)
        return 1 - _exponential_cdf(x, rate, math.log(self.d_max / self.d_min))


@dataclass(frozen=True)
class Weibull:
    """N(D) ∝ exp(-(D/scale)^shape) from `d_min` on; pairs bound shape and scale.

    `is_power_law` says that no Weibull distribution fits better than the power law that it becomes for a shape of 0;
    the scale then means nothing and is 0.
    """

    shape: float
    shape_low: float
    shape_high: float
    scale: float
    scale_low: float
    scale_high: float
    d_min: float
    n: int
    log_likelihood: float
    is_power_law: bool

    def survival(self, diameter: np.ndarray) -> np.ndarray:
        """The share of the diameters from d_min on that are at least so large."""
        d = np.maximum(np.asarray(diameter, float), self.d_min)
        return np.exp((self.d_min / self.scale) ** self.shape - (d / self.scale) ** self.shape)


def fit_power_law(
    diameters: np.ndarray, d_min: float, d_max: float = math.inf, confidence: float = 0.95
) -> PowerLaw | None:
    """The most likely power law; None for fewer than `FEWEST` diameters, or where all are one.

    Without an upper end the interval is exact (n / exponent is a gamma variable), with one by profile likelihood.
    """
    x = np.log(_within(diameters, d_min, d_max) / d_min)
    n, end = len(x), math.log(d_max / d_min)
    if n < FEWEST or np.ptp(x) <= 0:
        return None
    mean = float(x.mean())

    def likelihood(rate: float) -> float:
        return n * (_log_normaliser(rate, end) - rate * mean) - float(x.sum()) - n * math.log(d_min)

    rate = float(_rate(np.array([mean]), end)[0])
    if math.isinf(end):
        tail = (1 - confidence) / 2
        low, high = (float(chi2.ppf(p, 2 * n)) / (2 * n) * rate for p in (tail, 1 - tail))
    else:
        low, high = _profile_bounds(likelihood, rate, 1 / (math.sqrt(n) * mean), (-1e3 / end, 1e3 / end), confidence)
    return PowerLaw(rate, low, high, d_min, d_max, n, likelihood(rate))


def fit_weibull(diameters: np.ndarray, d_min: float, confidence: float = 0.95) -> Weibull | None:
    """The most likely Weibull distribution of what is cut off below d_min, with intervals by profile likelihood."""
    x = np.log(_within(diameters, d_min, math.inf) / d_min)
    n = len(x)
    if n < FEWEST or np.ptp(x) <= 0:
        return None
    constant = -float(x.sum()) - n * math.log(d_min)

    def of_shape(shape: float) -> float:  # with the best scale for it, which has a closed form
        spread = float(np.expm1(shape * x).mean())
        return n * (math.log(shape / spread) - 1) + shape * float(x.sum()) + constant

    def of_both(shape: float, scale: float) -> float:  # scale in units of d_min
        over = float(np.expm1(shape * x).sum()) / scale**shape if shape * math.log(scale) > -600 else math.inf
        return n * (math.log(shape) - shape * math.log(scale)) + shape * float(x.sum()) - over + constant

    shape = float(_shape(x[None])[0])
    best = of_shape(shape)
    if shape <= SHAPES[0]:
        bounds = _profile_bounds(of_shape, SHAPES[0], 0.1, SHAPES, confidence)
        return Weibull(0.0, 0.0, bounds[1], 0.0, 0.0, math.nan, d_min, n, best, True)
    low, high = _profile_bounds(of_shape, shape, 0.1 * shape, SHAPES, confidence)
    scale = float(np.expm1(shape * x).mean()) ** (1 / shape)

    def of_scale(log_scale: float) -> float:
        found = minimize_scalar(
            lambda log_shape: -of_both(math.exp(log_shape), math.exp(log_scale)),
            bounds=(math.log(SHAPES[0]), math.log(SHAPES[1])),
            method="bounded",
            options={"xatol": 1e-6},
        )
        return -float(found.fun)

    limits = (math.log(scale) - 200, math.log(scale) + 20)
    near, far = _profile_bounds(of_scale, math.log(scale), 0.1, limits, confidence, best)
    bottom = 0.0 if near <= limits[0] or low <= SHAPES[0] else math.exp(near) * d_min
    low = 0.0 if low <= SHAPES[0] else low
    return Weibull(shape, low, high, scale * d_min, bottom, math.exp(far) * d_min, d_min, n, best, False)


def kolmogorov(
    diameters: np.ndarray, fit: PowerLaw | Weibull, seed: int = 0, pixel: float | None = None
) -> tuple[float, float]:
    """The Kolmogorov–Smirnov distance of a fit to its own diameters, and how often chance gives a larger one.

    By drawing samples from the fit and fitting each anew, for a fit to the same diameters is closer than one that was
    known before (Clauset et al. 2009). A share below 0.05: the distribution is none of the data's. Where the
    diameters are those of circles of whole pixels, of `pixel` width each, so are those that are drawn.
    """
    d_max = fit.d_max if isinstance(fit, PowerLaw) else math.inf
    x = np.sort(np.log(_within(diameters, fit.d_min, d_max) / fit.d_min))[None]
    count = int(np.clip(DRAWN // x.size, *REPLICATES))
    random = np.random.default_rng(seed).random((count, x.size))
    end = math.log(d_max / fit.d_min)
    if isinstance(fit, PowerLaw):
        distance = _distance(x, _exponential_cdf(x, fit.exponent, end))
        drawn = np.sort(_in_pixels(_exponential_quantile(random, fit.exponent, end), fit.d_min, pixel), axis=1)
        rates = _rate(np.minimum(drawn, end).mean(axis=1), end)[:, None]
        chance = _distance(drawn, _exponential_cdf(np.minimum(drawn, end), rates, end))
    else:
        distance = _distance(x, _weibull_cdf(x, np.array([fit.shape])))
        drawn = np.log1p(-np.log1p(-random) * (fit.scale / fit.d_min) ** fit.shape) / fit.shape
        drawn = np.sort(_in_pixels(drawn, fit.d_min, pixel), axis=1)
        chance = _distance(drawn, _weibull_cdf(drawn, _shape(drawn)))
    return float(distance[0]), float((1 + (chance >= distance[0] - 1e-12).sum()) / (1 + count))


def in_whole_pixels(diameters: np.ndarray, pixel: float) -> bool:
    """Whether all are diameters of circles of whole pixels, as those of rocks in a mask are."""
    area = np.pi / 4 * (np.asarray(diameters) / pixel) ** 2
    return bool(len(area) and (np.abs(area - np.round(area)) < 0.01 * np.maximum(area, 1) ** 0.5).all())


def _in_pixels(x: np.ndarray, d_min: float, pixel: float | None) -> np.ndarray:
    """log(D / d_min) of the circles of whole pixels next to these, none below d_min."""
    if pixel is None:
        return x
    area = np.pi / 4 * (np.exp(x) * d_min / pixel) ** 2
    smallest = math.ceil(np.pi / 4 * (d_min / pixel) ** 2 - 1e-9)
    whole = np.maximum(np.round(area), smallest)
    return np.log(np.sqrt(whole * 4 / np.pi) * pixel / d_min)


# ---- exponentials: a power law is one in log D --------------------------------------------------------------------


def _within(diameters: np.ndarray, d_min: float, d_max: float) -> np.ndarray:
    diameters = np.asarray(diameters, float)
    return diameters[(diameters >= d_min) & (diameters <= d_max)]


def _log_normaliser(rate: float, end: float) -> float:
    """log of rate / (1 - exp(-rate × end)), also for a rate of 0 and below."""
    if math.isinf(end):
        return math.log(rate)
    if abs(rate * end) < 1e-6:
        return -math.log(end) + rate * end / 2
    if rate < 0:  # turned around, so that nothing overflows
        return math.log(-rate / -math.expm1(rate * end)) + rate * end
    return math.log(rate / -math.expm1(-rate * end))


def _exponential_cdf(x: np.ndarray, rate: np.ndarray | float, end: float) -> np.ndarray:
    if math.isinf(end):
        return -np.expm1(-rate * x)
    rate = np.where(np.abs(rate) * end < 1e-9, 1e-9 / end, rate)
    return np.asarray(
        np.where(
            rate > 0,
            np.expm1(-np.abs(rate) * x) / np.expm1(-np.abs(rate) * end),
            1 - np.expm1(-np.abs(rate) * (end - x)) / np.expm1(-np.abs(rate) * end),
        )
    )


def _exponential_quantile(share: np.ndarray, rate: float, end: float) -> np.ndarray:
    if math.isinf(end):
        return -np.log1p(-share) / rate
    if rate < 0:
        return end - _exponential_quantile(1 - share, -rate, end)
    rate = max(rate, 1e-9 / end)
    return -np.log1p(share * np.expm1(-rate * end)) / rate


def _rate(mean: np.ndarray, end: float) -> np.ndarray:
    """The rates of exponentials between 0 and `end` that have these means: the most likely ones."""
    if math.isinf(end):
        return 1 / mean
    low, high = np.full(mean.shape, -1e3 / end), np.maximum(2 / mean, 1e3 / end)
    for _ in range(80):
        middle = (low + high) / 2
        turned = np.abs(middle) * end
        with np.errstate(over="ignore"):
            side = 1 / np.maximum(turned, 1e-12) - 1 / np.expm1(np.maximum(turned, 1e-12))
        expected = end * np.where(turned < 1e-5, 0.5 - middle * end / 12, np.where(middle > 0, side, 1 - side))
        low, high = np.where(expected > mean, middle, low), np.where(expected > mean, high, middle)
    return (low + high) / 2


# ---- Weibull distributions, cut off at d_min, in log(D / d_min) ---------------------------------------------------


def _shape(x: np.ndarray) -> np.ndarray:
    """The most likely shapes of samples x (m, n), by bisection of the slope of the profile likelihood."""
    mean = x.mean(axis=1)
    low, high = np.full(len(x), math.log(SHAPES[0])), np.full(len(x), math.log(SHAPES[1]))
    for _ in range(40):
        middle = (low + high) / 2
        shape = np.exp(middle)[:, None]
        grown = np.exp(shape * (x - x.max(axis=1, keepdims=True)))  # no shape may overflow
        spread = (grown - np.exp(-shape * x.max(axis=1, keepdims=True))).mean(axis=1)
        slope = 1 / shape[:, 0] - (grown * x).mean(axis=1) / spread + mean
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
    found = np.exp((low + high) / 2)
    return np.where(found <= SHAPES[0] * 1.001, SHAPES[0], found)


def _weibull_cdf(x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """With the scale that suits each sample (m, n) best."""
    grown = np.expm1(shape[:, None] * x)
    return -np.expm1(-grown / grown.mean(axis=1, keepdims=True))


def _distance(x: np.ndarray, cdf: np.ndarray) -> np.ndarray:
    """Kolmogorov's distance of each sorted sample (m, n) to its distribution."""
    n = x.shape[1]
    steps = np.arange(n + 1) / n
    return np.maximum((steps[1:] - cdf).max(axis=1), (cdf - steps[:-1]).max(axis=1))


# ---- intervals ---------------------------------------------------------------------------------------------------


def _profile_bounds(
    likelihood: Callable[[float], float],
    best: float,
    step: float,
    limits: tuple[float, float],
    confidence: float,
    top: float | None = None,
) -> tuple[float, float]:
    """Where twice the log-likelihood has fallen by the quantile of chi-square; a limit, where it does not."""
    top = likelihood(best) if top is None else top
    fall = float(chi2.ppf(confidence, 1)) / 2

    def left(value: float) -> float:
        return likelihood(value) - top + fall

    found = []
    for sign, limit in zip((-1, 1), limits):
        inner, outer, stride = best, best, step
        while outer != limit:
            inner, outer = outer, best + sign * stride
            stride *= 2
            outer = max(outer, limit) if sign < 0 else min(outer, limit)
            if left(outer) < 0:
                break
        found.append(brentq(left, inner, outer, xtol=1e-10) if left(outer) < 0 else limit)
    return found[0], found[1]
