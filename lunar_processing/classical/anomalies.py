"""Which windows of an image are unlike the rest, without a trained network: the entries of METHODS, and `merge`.

    method = METHODS["pca"]
    state = method.fit(windows, valid)           # sampled windows (n, w, w) of the image itself
    scores = method.score(windows, valid, state) # (n,) float32, higher is stranger, NaN under 50 % valid pixels
    peaks = merge(grid_of_scores, x, y, top=100, min_distance=64)

Both methods look at windows after taking away their own brightness and half of their own contrast, because without it
every score mostly measures contrast. The sample is of the image itself: "strange"
means rare in this image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WINDOW = 64  # px
ENOUGH_VALID = 0.5  # a window with a smaller share of valid pixels is not judged
COMPONENTS = 192
MOST_WINDOWS = 6000  # used in a fit
STRANGE_SHARE = 0.05  # of the fitted windows, these most unlike the rest are left out of the final fit
GAUSSIAN_MAD = 1.4826
FARTHEST = 12.0  # normalised brightness is held within this


@dataclass(frozen=True)
class Method:
    """One way to score windows."""

    title: str
    description: str
    window: int
    fit: Callable[[np.ndarray, np.ndarray], object]
    score: Callable[..., np.ndarray]  # (windows, valid, state) -> (n,) float32
    residual: Callable[..., np.ndarray] | None = None  # the same -> (n, w, w), where in each window the score is


def cut_windows(
    patches: Sequence[tuple[np.ndarray, np.ndarray]], window: int = WINDOW, stride: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Windows (n, w, w) float32 and their validity from a survey's patches; at most 6,000, evenly thinned."""
    step = stride or window // 2
    places = [
        (i, row, col)
        for i, (pixels, _) in enumerate(patches)
        for row in range(0, pixels.shape[0] - window + 1, step)
        for col in range(0, pixels.shape[1] - window + 1, step)
    ]
    if len(places) > MOST_WINDOWS:
        places = [places[i] for i in np.linspace(0, len(places) - 1, MOST_WINDOWS).astype(int)]
    windows = np.zeros((len(places), window, window), np.float32)
    valid = np.zeros(windows.shape, bool)
    for n, (i, row, col) in enumerate(places):
        pixels, known = patches[i]
        windows[n] = pixels[row : row + window, col : col + window]
        valid[n] = known[row : row + window, col : col + window]
    return windows, valid


def normalise(windows: np.ndarray, valid: np.ndarray, typical: float) -> tuple[np.ndarray, np.ndarray]:
    """Windows (n, w·w) less their median, over their contrast; 0 where invalid. Also that contrast, (n,), image units.

    The contrast is the geometric mean of the window's own spread (1.48 · median absolute deviation, at least a
    twentieth of the typical one) and the spread that is `typical` of the image: half-way between forgetting how strong
    a thing is, and seeing nothing but that. Median and deviation are taken on every second pixel of every second row:
    four times quicker, and as good. Values are held within ±12, or a single glint would outweigh all form.
    """
    count, size = windows.shape[:2]
    flat = windows.reshape(count, size * size).astype(np.float32, copy=False)
    centre, spread = _centre_and_spread(windows, valid)
    spread = np.sqrt(np.maximum(spread, np.float32(typical / 20))) * np.float32(np.sqrt(typical))
    result = np.clip((flat - centre[:, None]) / spread[:, None], -FARTHEST, FARTHEST)
    if not valid.all():
        result[~valid.reshape(count, -1)] = 0
    return result, spread


def _centre_and_spread(windows: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(windows) == 0:
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    sample, known = (array[:, ::2, ::2].reshape(len(windows), -1) for array in (windows, valid))
    if known.all():
        centre = _median(sample)
        return centre, GAUSSIAN_MAD * _median(np.abs(sample - centre[:, None]))
    sample = np.where(known, sample, np.nan)
    centre = _nan_median(sample)
    return centre, GAUSSIAN_MAD * _nan_median(np.abs(sample - centre[:, None]))


def _median(rows: np.ndarray) -> np.ndarray:
    """The upper of the two middle values of each row: one partial sort instead of two."""
    middle = rows.shape[1] // 2
    return np.partition(rows, middle, axis=1)[:, middle]


def _nan_median(rows: np.ndarray) -> np.ndarray:
    rows = np.sort(rows, axis=1)  # NaN last
    known = np.isfinite(rows).sum(1)
    value = np.take_along_axis(rows, np.minimum(known // 2, rows.shape[1] - 1)[:, None], 1)[:, 0]
    return np.where(known > 0, value, 0).astype(np.float32)


def _judged(valid: np.ndarray) -> np.ndarray:
    return valid.mean((1, 2)) >= ENOUGH_VALID


def _typical_spread(windows: np.ndarray, valid: np.ndarray) -> float:
    """The median window's spread, image units; never 0."""
    judged = _judged(valid)
    _, spread = _centre_and_spread(windows[judged], valid[judged])
    typical = float(np.median(spread)) if judged.any() else 0.0
    return max(typical, 1e-6 * float(np.abs(windows).max(initial=0)), 1e-12)


# ---- principal components ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Components:
    """The mean window (w·w,) and the axes (w·w, k) along which ordinary windows vary."""

    mean: np.ndarray
    axes: np.ndarray
    typical_spread: float


def fit_pca(windows: np.ndarray, valid: np.ndarray) -> Components:
    """Principal components of the wholly valid windows; the strangest twentieth is left out of a second fit."""
    typical = _typical_spread(windows, valid)
    whole = valid.all((1, 2))
    if whole.sum() < 2:
        whole = _judged(valid)
    data, _ = normalise(windows[whole], valid[whole], typical)
    if len(data) < 2:
        size = windows.shape[1] * windows.shape[2]
        return Components(np.zeros(size, np.float32), np.zeros((size, 0), np.float32), typical)
    keep = np.ones(len(data), bool)
    # As many axes as the sample can tell apart: each needs a good many windows, or the strange learn themselves.
    number = int(np.clip(len(data) // 12, 1, min(COMPONENTS, data.shape[1])))
    for _ in range(2):
        mean, axes = _principal_axes(data[keep], number)
        error = _residual(data, mean, axes)
        keep = error <= np.quantile(error, 1 - STRANGE_SHARE)
    return Components(mean, axes, typical)


def score_pca(windows: np.ndarray, valid: np.ndarray, state: Components) -> np.ndarray:
    """Mean squared difference between a normalised window and its reconstruction, over its valid pixels."""
    scores = np.full(len(windows), np.nan, np.float32)
    judged = np.flatnonzero(_judged(valid))
    for some in np.array_split(judged, max(1, -(-len(judged) // 1024))):  # stays in the cache, and bounds memory
        if len(some) == 0:
            continue
        data, _ = normalise(windows[some], valid[some], state.typical_spread)
        whole = valid[some].all((1, 2))
        scores[some] = _residual(data, state.mean, state.axes)
        if not whole.all():
            part = some[~whole]
            scores[part] = _residual_of_valid(data[~whole], valid[part].reshape(len(part), -1), state)
    return scores


def residual_pca(windows: np.ndarray, valid: np.ndarray, state: Components) -> np.ndarray:
    """Squared difference between normalised windows and their reconstructions, (n, w, w); NaN where not judged."""
    known = valid.reshape(len(valid), -1)
    data, _ = normalise(windows, valid, state.typical_spread)
    centred = np.where(known, data - state.mean, 0)
    squared = (centred - (centred @ state.axes) @ state.axes.T) ** 2
    squared[~known | ~_judged(valid)[:, None]] = np.nan
    return squared.reshape(windows.shape).astype(np.float32)


def _principal_axes(data: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and leading axes by a randomised range finder with a fixed seed and two power iterations."""
    mean = data.mean(0)
    centred = data - mean
    start = np.random.default_rng(0).standard_normal((centred.shape[1], number + 16)).astype(np.float32)
    basis = start
    for _ in range(3):
        basis, _ = np.linalg.qr(centred.T @ (centred @ basis))
    small = centred @ basis
    _, vectors = np.linalg.eigh((small.T @ small).astype(np.float64))
    axes = basis @ vectors[:, ::-1][:, :number].astype(np.float32)
    return mean.astype(np.float32), np.ascontiguousarray(axes, dtype=np.float32)


def _residual(data: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Mean squared residual without making the reconstruction: by Pythagoras."""
    centred = data - mean
    explained = centred @ axes
    total = np.einsum("ij,ij->i", centred, centred) - np.einsum("ij,ij->i", explained, explained)
    return np.maximum(total, 0) / data.shape[1]


def _residual_of_valid(data: np.ndarray, known: np.ndarray, state: Components) -> np.ndarray:
    """For windows with gaps: gaps are filled with the mean window, the residual is taken over valid pixels."""
    centred = np.where(known, data - state.mean, 0)
    left = centred - (centred @ state.axes) @ state.axes.T
    return (left**2 * known).sum(1) / known.sum(1)


# ---- texture statistics --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texture:
    """Centre (f,) and whitening matrix (f, f) of the features of ordinary windows."""

    centre: np.ndarray
    whitening: np.ndarray
    typical_spread: float
    brightness: tuple[float, float]  # median and spread of the windows' own medians, image units


FEATURES = (
    "brightness",
    "contrast",
    "standard deviation",
    "gradient energy",
    "Laplacian energy",
    "anisotropy",
    "shadow fraction",
    "bright fraction",
    "largest",
    "smallest",
    "largest Laplacian",
    "skewness",
)
FULL_SHARE = 0.95  # of the windows are kept in each round of the robust covariance
SHRINKAGE = 0.05


def fit_mahalanobis(windows: np.ndarray, valid: np.ndarray) -> Texture:
    """Centre and covariance of the features, from which the windows farthest off are dropped in three rounds."""
    typical = _typical_spread(windows, valid)
    judged = _judged(valid)
    count = len(FEATURES)
    if judged.sum() < 2:
        return Texture(np.zeros(count), np.eye(count), typical, (0.0, 1.0))
    medians = np.array([np.median(w[v]) for w, v in zip(windows[judged], valid[judged])], np.float64)
    middle = float(np.median(medians))
    brightness = (middle, max(GAUSSIAN_MAD * float(np.median(np.abs(medians - middle))), typical / 20))
    features = _features(windows[judged], valid[judged], typical, brightness)
    keep = np.ones(len(features), bool)
    for _ in range(4):
        centre, whitening = _whitening(features[keep])
        distance = np.linalg.norm((features - centre) @ whitening, axis=1)
        keep = distance <= np.quantile(distance, FULL_SHARE)
    return Texture(centre, whitening, typical, brightness)


def score_mahalanobis(windows: np.ndarray, valid: np.ndarray, state: Texture) -> np.ndarray:
    """Mahalanobis distance of a window's texture features from those of ordinary windows."""
    scores = np.full(len(windows), np.nan, np.float32)
    judged = np.flatnonzero(_judged(valid))
    for some in np.array_split(judged, max(1, -(-len(judged) // 512))):
        if len(some) == 0:
            continue
        features = _features(windows[some], valid[some], state.typical_spread, state.brightness)
        scores[some] = np.linalg.norm((features - state.centre) @ state.whitening, axis=1)
    return scores


def _whitening(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centre = np.median(features, 0)
    covariance = np.cov(features - centre, rowvar=False) + 1e-9 * np.eye(features.shape[1])
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance)
    return centre, vectors / np.sqrt(np.maximum(values, 1e-12))


def _features(windows: np.ndarray, valid: np.ndarray, typical: float, brightness: tuple[float, float]) -> np.ndarray:
    """(n, FEATURES) float64. Energies as logarithms, so that their spread is even from dull to rich ground."""
    count, size = windows.shape[:2]
    flat, spread = normalise(windows, valid, typical)
    image, known = flat.reshape(count, size, size), valid.reshape(count, -1)
    share = known.mean(1, dtype=np.float64)
    right, down = np.diff(image, axis=2)[:, :-1], np.diff(image, axis=1)[:, :, :-1]
    inner = _inner(valid)
    right, down = right * inner, down * inner
    laplacian = 4 * image[:, 1:-1, 1:-1] - image[:, :-2, 1:-1] - image[:, 2:, 1:-1]
    laplacian = (laplacian - image[:, 1:-1, :-2] - image[:, 1:-1, 2:]) * _inner(valid, both=True)
    xx, yy, xy = (
        np.einsum("nij,nij->n", a, b) / flat.shape[1] for a, b in ((right, right), (down, down), (right, down))
    )
    energy = xx + yy + 1e-6
    square = np.einsum("ij,ij->i", flat, flat) / flat.shape[1] / share
    cube = np.einsum("ij,ij,ij->i", flat, flat, flat) / flat.shape[1] / share
    # The window's own median, back from the normalised values: pixel = median + spread · value.
    middle = (
        windows.reshape(count, -1)[np.arange(count), known.argmax(1)] - spread * flat[np.arange(count), known.argmax(1)]
    )
    columns = (
        np.arctan((middle - brightness[0]) / brightness[1] / 3) * 3,
        np.log(spread),
        np.log(square + 1e-3),
        np.log(energy),
        np.log(np.einsum("nij,nij->n", laplacian, laplacian) / flat.shape[1] + 1e-6),
        np.hypot(xx - yy, 2 * xy) / energy,
        np.sqrt((flat < -4).mean(1) / share),
        np.sqrt((flat > 4).mean(1) / share),
        np.log1p(np.maximum(flat.max(1), 0)),
        np.log1p(np.maximum(-flat.min(1), 0)),
        np.log1p(np.abs(laplacian).max((1, 2))),
        np.cbrt(cube),
    )
    return np.stack([np.asarray(c, np.float64) for c in columns], axis=1)


def _inner(valid: np.ndarray, both: bool = False) -> np.ndarray:
    """Where differences touch valid pixels only: to the right and below, or on all four sides."""
    if both:
        across = valid[:, 1:-1, :-2] & valid[:, 1:-1, 2:]
        return valid[:, 1:-1, 1:-1] & across & valid[:, :-2, 1:-1] & valid[:, 2:, 1:-1]
    return valid[:, :-1, :-1] & valid[:, :-1, 1:] & valid[:, 1:, :-1]


METHODS: dict[str, Method] = {
    "pca": Method(
        title="Principal components",
        description="How badly a window is rebuilt from the patterns that are common in the image. Finds what has an "
        "unusual shape: fresh craters, boulders, pits, things that people left.",
        window=WINDOW,
        fit=fit_pca,
        score=score_pca,
        residual=residual_pca,
    ),
    "mahalanobis": Method(
        title="Texture statistics",
        description="How far a window's brightness, contrast, roughness, direction, shadow and extremes lie from those "
        "of the image, all together. Quick, and easy to explain.",
        window=WINDOW,
        fit=fit_mahalanobis,
        score=score_mahalanobis,
    ),
}
DEFAULT = "pca"


# ---- from scores to places -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peaks:
    """The strangest places, strangest first; `row` and `col` index the grid of scores."""

    row: np.ndarray  # (n,) int
    col: np.ndarray  # (n,) int
    x: np.ndarray  # (n,) where the column lies, in the unit that `merge` was given
    y: np.ndarray  # (n,) where the row lies
    score: np.ndarray  # (n,)
    percentile: np.ndarray  # (n,) 0 … 100 among all the image's windows


def merge(scores: np.ndarray, x: np.ndarray, y: np.ndarray, top: int, min_distance: float | np.ndarray) -> Peaks:
    """The `top` highest scores of a grid (rows, cols), none too near to a higher one.

    `x` (cols,) and `y` (rows,) are where the columns and rows of the grid lie, rising. `min_distance`, in their unit,
    is one for all, or the side of each cell's window (rows, cols): then windows that overlap are one place. NaN is
    no window. Of equal scores the upper, then the left one wins.
    """
    side = np.broadcast_to(np.asarray(min_distance, float), scores.shape)
    widest = float(side.max(initial=0))
    flat = scores.ravel()
    order = np.argsort(np.where(np.isnan(flat), np.inf, -flat), kind="stable")[: np.count_nonzero(~np.isnan(flat))]
    free = np.ones(scores.shape, bool)
    taken: list[tuple[int, int]] = []
    for index in order:
        if len(taken) == top:
            break
        row, col = divmod(int(index), scores.shape[1])
        if free[row, col]:
            taken.append((row, col))
            reach = (side[row, col] + widest) / 2
            rows, cols = (_around(line, line[i], reach) for line, i in ((y, row), (x, col)))
            free[rows, cols] &= (
                np.hypot(x[cols] - x[col], (y[rows] - y[row])[:, None]) >= (side[row, col] + side[rows, cols]) / 2
            )
    rows_taken, cols_taken = (np.array([place[i] for place in taken], np.int64) for i in (0, 1))
    return Peaks(
        rows_taken,
        cols_taken,
        x[cols_taken],
        y[rows_taken],
        scores[rows_taken, cols_taken],
        percentiles(scores)[rows_taken, cols_taken],
    )


def _around(line: np.ndarray, centre: float, reach: float) -> slice:
    """Which of these rising positions lie within reach."""
    return slice(int(np.searchsorted(line, centre - reach)), int(np.searchsorted(line, centre + reach, side="right")))


def percentiles(scores: np.ndarray) -> np.ndarray:
    """Of each score, the share in percent of the image's windows that score no higher; float32, NaN stays NaN."""
    known = ~np.isnan(scores)
    ordered = np.sort(scores[known])
    result = np.full(scores.shape, np.nan, np.float32)
    result[known] = 100.0 * np.searchsorted(ordered, scores[known], side="right") / max(len(ordered), 1)
    return result
