"""What is strange in an image: a score for each window, and the most anomalous places as ranked points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import shapely

from lunar_processing.classical import anomalies as classical
from lunar_processing.errors import ImageError, ParameterError
from lunar_processing.grid import Grid, Window
from lunar_processing.modelpack import Pack
from lunar_processing.pipeline import Progress, Step, each, run
from lunar_processing.raster.writer import Band, RasterWriter, check_rasters
from lunar_processing.tools.chips import check_folder, write_chips
from lunar_processing.tools.job import Job, Options, Report, Result, ground_size, refuse_input_as_output, result, start
from lunar_processing.tools.network import anomaly_step, heat_step
from lunar_processing.vector import Layer, check_targets, target, write_layers

DEFAULT = "anomaly-multiscale"  # where it is installed and knows such images, else:
FALLBACK = "pca"
POINTS = "anomalies"
SMALLEST_WINDOW = 8  # px; in less there is nothing to tell apart
CORE = 1024  # side of what one tile answers for, px; a multiple of the stride
FIT_WINDOWS = 20_000  # more sharpen the statistics of a method no further


@dataclass(frozen=True)
class Wishes:
    """Where to write what (None: not wanted), and which windows become points."""

    points: str
    scores: str | None = None
    heat: str | None = None
    chips: str | None = None
    top: int = 50
    percentile: float = 0.0
    min_distance: float | None = None

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ParameterError(f"The {self.top} highest scores are no points.", "give --top 1 or more.")
        if not 0 <= self.percentile < 100:
            raise ParameterError(f"There is no window above percentile {self.percentile}.", "give 0 up to below 100.")
        if self.min_distance is not None and not 0 <= self.min_distance < math.inf:
            raise ParameterError(f"A distance of {self.min_distance} is not possible.", "give 0 or more.")


@dataclass(frozen=True)
class _Method:
    """A scorer of windows, ready for this image; `heat` maps its error to pixels where it can.

    `population` says how scores are spread over other images: its name, percentages, the scores up to which they lie.
    """

    step: Step
    windows: tuple[int, ...]
    facts: Mapping[str, Any]
    heat: Step | None = None
    population: Mapping[str, Any] = field(default_factory=dict)

    @property
    def window(self) -> int:
        """Side in px of the smallest."""
        return min(self.windows)


def score_anomalies(options: Options, wishes: Wishes, report: Report | None = None) -> Result:
    """Score all windows of an image and write the strangest as points."""
    there = target(wishes.points)
    refuse_input_as_output(options, there.path, wishes.scores, wishes.heat)
    check_rasters([wishes.scores, wishes.heat], options.overwrite)
    check_folder(wishes.chips, options.overwrite)
    with start("anomalies", options, report) as job, ExitStack() as stack:
        check_targets([(POINTS, there)], options.overwrite, job.image.grid.wkt)
        method = _method(job)
        model = str(method.facts["id"])
        job.announce(model)
        rasters = _rasters(job, wishes, method, stack)
        scores = _Scores(job.image.grid.coarsen(method.step.stride), method.windows)
        looks = _looks(job, 2 if wishes.heat and method.heat else 1)
        timing = run(job.image, method.step, [scores.take], looks[0], job.report.cancelled)
        if wishes.heat and method.heat:
            sink = rasters["heat"]
            run(job.image, method.heat, [lambda _w, v, _ok: sink.append(v)], looks[1], job.report.cancelled)
        job.stage("finish")(0, 1)
        peaks = _peaks(job, scores, wishes, method)
        peaks["chip"] = np.array(write_chips(job, wishes.chips, peaks), dtype=object)
        counts = {
            "points": len(peaks["rank"]),
            "windows": int(np.isfinite(scores.values).sum()),
            "valid_px": timing.valid_px,
            "masked_px": timing.masked_px,
        }
        parameters: dict[str, Any] = {
            "top": wishes.top,
            "percentile": wishes.percentile,
            "min_distance": wishes.min_distance,
        }
        parameters.update(window=list(method.windows), stride=method.step.stride)
        record = job.record(method.facts, parameters, counts)
        if "scores" in rasters:
            bands = [scores.values, scores.percentiles(), *([scores.sides] if len(method.windows) > 1 else [])]
            rasters["scores"].append(np.stack(bands).astype(np.float32))
        for writer in rasters.values():
            writer.finish({"LUNAR_PROVENANCE": record})
        write_layers([(_layer(job, peaks, method, record), there)], options.overwrite)
        for writer in rasters.values():
            writer.publish()
        job.stage("finish")(1, 1)
        outputs = {"points": there.path, "scores": wishes.scores, "heat": wishes.heat, "chips": wishes.chips}
        return result(job, outputs, counts, model, timing)


def _looks(job: Job, count: int) -> list[Progress]:
    """Progress of each of `count` passes over the image, as one stage that never goes back."""
    tell = job.stage("work")

    def look(number: int, done: int, total: int) -> None:
        tell(number * total + done, count * total)

    return [partial(look, number) for number in range(count)]


# ---- the method --------------------------------------------------------------------------------------------------


def _method(job: Job) -> _Method:
    name = job.choose(DEFAULT, FALLBACK, whole_window=True)
    if name not in classical.METHODS:
        return _network(job.pack(name, "anomalies"), job)
    method = classical.METHODS[name]
    window = _fitting(job, method.window)
    stride = window // 2
    sample = _sample(job, window)
    if not any(known.mean() >= classical.ENOUGH_VALID for known in sample[1]):
        raise _no_window(job, window)
    state = method.fit(*sample)
    halo = (window - stride) // 2

    def score(pixels: np.ndarray, valid: np.ndarray, _origin: tuple[int, int]) -> np.ndarray:
        shape = [(n - window) // stride + 1 for n in pixels.shape]
        scores = method.score(_cut(pixels, window), _cut(valid, window), state)
        return scores.reshape(1, *shape).astype(np.float32)

    step = Step(name, each(score), tile=CORE + 2 * halo, halo=halo, stride=stride, align=stride)
    return _Method(step, (window,), {"id": name}, _heat_step(name, state, window))


def _network(pack: Pack, job: Job) -> _Method:
    card = pack.card
    facts = {"id": card.id, "sha256": card.sha256}
    return _Method(
        anomaly_step(pack, job), card.windows or (card.window,), facts, heat_step(pack, job), card.population
    )


def _fitting(job: Job, window: int) -> int:
    """The method's window, or on a narrow strip the largest power of two that fits into it."""
    side = min(job.image.grid.width, job.image.grid.height)
    if side >= window * classical.ENOUGH_VALID or side < SMALLEST_WINDOW:
        return window
    fitting = 2 ** int(np.log2(side))
    job.warn(
        f"The image is only {side} px across: windows of {fitting} px are scored instead of {window} px. "
        "So small a window knows little of texture."
    )
    return fitting


def _heat_step(name: str, state: Any, window: int) -> Step | None:
    residual = classical.METHODS[name].residual
    if residual is None:
        return None
    halo = window // 2

    def heat(pixels: np.ndarray, valid: np.ndarray, _origin: tuple[int, int]) -> np.ndarray:
        error = residual(_cut(pixels, window), _cut(valid, window), state)
        return _lay_over(error, pixels.shape)[None]

    return Step(name, each(heat), tile=CORE + 2 * halo, halo=halo, align=halo)


def _cut(pixels: np.ndarray, window: int) -> np.ndarray:
    """All windows at a stride of half a window, in reading order, (n, window, window)."""
    stride = window // 2
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (window, window))[::stride, ::stride]
    return windows.reshape(-1, window, window)


def _lay_over(windows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The mean of overlapping windows at each pixel they cover."""
    total, count = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    side = windows.shape[-1]
    stride = side // 2
    across = (shape[1] - side) // stride + 1
    for i, window in enumerate(windows):
        row, col = (stride * k for k in divmod(i, across))
        place = np.s_[row : row + side, col : col + side]
        known = np.isfinite(window)
        total[place] += np.where(known, window, 0)
        count[place] += known
    return np.divide(total, count, out=np.full(shape, np.nan, np.float32), where=count > 0)


def _sample(job: Job, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows from all over the image to learn from what is normal in it."""
    pixels, valid = [], []
    for patch, ok in job.image.survey.patches:
        if min(patch.shape) >= window:
            pixels.append(_cut(patch, window))
            valid.append(_cut(ok, window))
    if not pixels:
        return _padded(job, window)
    windows, known = np.concatenate(pixels).astype(np.float32), np.concatenate(valid)
    every = -(-len(windows) // FIT_WINDOWS)
    return windows[::every], known[::every]


def _padded(job: Job, window: int) -> tuple[np.ndarray, np.ndarray]:
    """An image smaller than a window is one window, padded with nothing."""
    patch = job.image.read(Window(0, 0, window, window))
    return patch.pixels[None].astype(np.float32), patch.valid[None]


# ---- from scores to points ---------------------------------------------------------------------------------------


class _Scores:
    """The highest score at each place and the side of its window, gathered from strips; a strip of 52,224 × 5,064 px
    makes a million.
    """

    def __init__(self, grid: Grid, windows: tuple[int, ...]) -> None:
        self.windows = np.array(windows, np.float32)
        self.values = np.full((grid.height, grid.width), np.nan, np.float32)
        self.sides = np.full((grid.height, grid.width), self.windows[0], np.float32)

    def take(self, window: Window, values: np.ndarray, _valid: np.ndarray) -> None:
        rows = slice(window.row, window.bottom)
        known = np.where(np.isnan(values), -np.inf, values)
        self.values[rows] = np.where(np.isnan(values).all(axis=0), np.nan, known.max(axis=0))
        self.sides[rows] = self.windows[known.argmax(axis=0)]

    def percentiles(self) -> np.ndarray:
        return classical.percentiles(self.values)


def _peaks(job: Job, scores: _Scores, wishes: Wishes, method: _Method) -> dict[str, np.ndarray]:
    """Ranked points as columns: overlapping windows, of whatever sizes, count once, with the size that fits best."""
    if not np.isfinite(scores.values).any():
        raise _no_window(job, method.window)
    stride = method.step.stride
    percentiles = scores.percentiles()
    strange = np.where(percentiles >= wishes.percentile, scores.values, np.nan)
    cols = _middle(np.arange(strange.shape[1]), stride, job.image.grid.width)
    rows = _middle(np.arange(strange.shape[0]), stride, job.image.grid.height)
    if wishes.min_distance is None:
        found = classical.merge(strange, cols, rows, wishes.top, scores.sides)
    else:
        across, down = ground_size(job) or (job.pixel_size or 1.0,) * 2
        found = classical.merge(strange, cols * across, rows * down, wishes.top, wishes.min_distance)
    col, row = cols[found.col], rows[found.row]
    jacobian = job.jacobian(col, row)
    side = np.full(len(col), np.nan) if jacobian is None else np.sqrt(np.abs(np.linalg.det(jacobian)))
    window = scores.sides[found.row, found.col]
    return {
        "rank": np.arange(1, len(col) + 1),
        "score": found.score,
        "percentile": percentiles[found.row, found.col],
        "known_pct": _among_known(found.score, method.population),
        "window_px": window.astype(np.int32),
        "window_m": side * window,
        **job.places(col, row),
    }


def _among_known(scores: np.ndarray, population: Mapping[str, Any]) -> np.ndarray:
    """Percentage of the windows of a known population that score no higher; NaN without one."""
    if not population:
        return np.full(len(scores), np.nan)
    result: np.ndarray = np.interp(scores, population["scores"], population["percentages"])
    return result


def _no_window(job: Job, window: int) -> ImageError:
    side = min(job.image.grid.width, job.image.grid.height)
    if side < SMALLEST_WINDOW:
        return ImageError(
            f"{job.image.path.name} is only {side} px across; a window needs {window} px, at the least "
            f"{SMALLEST_WINDOW} px.",
            "use a larger part of the image.",
        )
    return ImageError(
        f"No window of {window} px in {job.image.path.name} has enough valid pixels.",
        "use a larger part of the image, or check its nodata value with `lunar info`.",
    )


def _middle(cells: np.ndarray, stride: int, size: int) -> np.ndarray:
    """Centres of cells in pixels; the last cell may reach over the edge, its centre must not."""
    return (cells * stride + np.minimum((cells + 1) * stride, size)) / 2


def _layer(job: Job, peaks: dict[str, np.ndarray], method: _Method, record: str) -> Layer:
    grid, n = job.image.grid, len(peaks["rank"])
    fields = {
        **peaks,
        "model": np.full(n, str(method.facts["id"]), dtype=object),
        "population": np.full(n, "this image", dtype=object),
        "known": np.full(n, method.population.get("name", ""), dtype=object),
        "reviewed": np.zeros(n, np.int32),
        "label": np.full(n, "", dtype=object),
    }
    points = shapely.points(*grid.xy(peaks["sample"], peaks["line"]))
    return Layer(POINTS, points, fields, grid.wkt, "Point", "Most anomalous places, ranked", record)


def _rasters(job: Job, wishes: Wishes, method: _Method, stack: ExitStack) -> dict[str, RasterWriter]:
    """The rasters that are wanted, opened before the work so that a bad path costs no time."""
    grid = job.image.grid
    several = len(method.windows) > 1
    window = "window, of the size that fits best," if several else f"{method.window} px window"
    places: dict[str, tuple[str | None, Callable[[], Grid], list[Band]]] = {
        "scores": (
            wishes.scores,
            lambda: grid.coarsen(method.step.stride),
            [
                Band("score", f"anomaly of the {window} around this cell; higher is stranger"),
                Band("percentile", "share of this image's windows that score no higher", "%"),
                *([Band("window", "side of the window that fits best", "px")] if several else []),
            ],
        ),
        "heat": (wishes.heat, lambda: grid, [Band("heat", "anomaly of this pixel; higher is stranger")]),
    }
    if wishes.heat and method.heat is None:
        raise ParameterError(
            f"The method {method.facts['id']} scores whole windows and cannot say where in them.",
            f"leave out --heat, or use --model {FALLBACK}.",
        )
    return {
        name: stack.enter_context(
            RasterWriter(path, place(), bands, overwrite=job.options.overwrite, file_format=job.options.file_format)
        )
        for name, (path, place, bands) in places.items()
        if path
    }
