"""Rocks: from an image to points with diameters, outlines, and the area that was searched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from rasterio.features import shapes

from lunar_processing.blobs import BlobFinder, Blobs, MiddleFinder, concatenate
from lunar_processing.classical import rocks as classical
from lunar_processing.classical.noise import fit_noise, sigma_at
from lunar_processing.errors import ParameterError
from lunar_processing.grid import Grid, Window
from lunar_processing.modelpack import Card
from lunar_processing.pipeline import Step, Timing, each, run
from lunar_processing.raster.writer import Band, RasterWriter, check_rasters
from lunar_processing.tools.job import Job, Options, Report, Result, refuse_input_as_output, result, start
from lunar_processing.tools.network import MIDDLES, rock_classes, rock_step
from lunar_processing.vector import Layer, Target, check_targets, target, write_layers

DEFAULT = "rocks-orbital"  # where it is installed and knows such images, else:
FALLBACK = "shadow-pairs"
POINTS, OUTLINES, AREA = "rocks", "rock_outlines", "searched_area"
NODATA = 255
# The searched area is drawn from at most so many cells, so that its outline stays a layer and not a second image;
# its area in square metres is counted from the pixels themselves.
AREA_CELLS = 1 << 22
# Places at which the size of a pixel is taken to count the searched area, over the whole image.
AREA_SCALES = 1 << 17
# Smaller rocks are found only now and then: about four pixels is where catalogues begin to be complete.
COMPLETE_PX = 4
# Shadows shorter than this share of the diameter, from the middle, tell of no height.
CLEAR = 0.75
# Below this confidence an estimated sun direction is a guess.
TRUSTED_SUN = 0.5


@dataclass(frozen=True)
class Wishes:
    """Where to write what; None means: not wanted. Sizes in metres, or in pixels where the scale is unknown."""

    points: str
    outlines: str | None = None
    area: str | None = None
    mask: str | None = None
    min_diameter: float = 0.0
    incidence: float | None = None  # of the sun, degrees from the vertical; None: as the label says

    def __post_init__(self) -> None:
        if self.incidence is not None and not 0 <= self.incidence < 90:
            raise ParameterError(f"An incidence of {self.incidence}° is not possible.", "give 0 to less than 90.")
        if not 0 <= self.min_diameter < math.inf:
            raise ParameterError(f"A smallest diameter of {self.min_diameter} is not possible.", "give 0 or more.")


def segment_rocks(options: Options, wishes: Wishes, report: Report | None = None) -> Result:
    """Find the rocks of an image and write them."""
    targets = _targets(wishes)
    refuse_input_as_output(options, wishes.mask, *(t.path for t in targets.values()))
    check_rasters([wishes.mask], options.overwrite)
    with start("rocks", options, report) as job, ExitStack() as stack:
        check_targets(list(targets.items()), options.overwrite, job.image.grid.wkt)
        method = _method(job)
        job.announce(str(method.model["id"]))
        light = _light(job, wishes, method)
        for doubt in _doubts(job, light, method.card):
            job.warn(doubt)
        finder = _Finder(job, method, light, outlines=OUTLINES in targets)
        area = _SearchedArea(job)
        sinks = [finder.take, area.take]
        writer = None
        if wishes.mask:
            writer = stack.enter_context(_mask_writer(job, wishes.mask, method))
            sinks.append(_mask_sink(writer))
        timing = run(job.image, method.step, sinks, job.stage("work"), job.report.cancelled)
        rocks = _Rocks.measured(job, finder.blobs(), method, light, wishes.min_diameter)
        counts = _counts(job, rocks, area, timing)
        parameters = {**method.parameters, **light.facts(), "min_diameter": wishes.min_diameter}
        record = job.record(method.model, parameters, counts)
        job.stage("finish")(0, 1)
        if writer:
            writer.finish({"LUNAR_PROVENANCE": record})
        write_layers(_layers(job, rocks, area, targets, record), options.overwrite)
        if writer:
            writer.publish()
        job.stage("finish")(1, 1)
        outputs = {name: t.path for name, t in targets.items()} | ({"mask": wishes.mask} if wishes.mask else {})
        return result(job, outputs, counts, str(method.model["id"]), timing)


def beside(points: str, layer: str) -> str:
    """Where a further layer goes: into the same GeoPackage, or to a file beside where a file holds one layer."""
    there = target(points)
    if there.driver == "GPKG":
        return f"{there.path}|layername={layer}"
    suffix = {OUTLINES: "outlines", AREA: "area"}[layer]
    return str(there.path.with_name(f"{there.path.stem}_{suffix}{there.path.suffix}"))


def _targets(wishes: Wishes) -> dict[str, Target]:
    wanted = {POINTS: wishes.points, OUTLINES: wishes.outlines, AREA: wishes.area}
    return {name: target(text) for name, text in wanted.items() if text is not None}


# ---- the method --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Method:
    """The step that gives (class, score, …) for each pixel, what it is called, and what it was told.

    `card` is that of a trained model, None for a classical method.
    """

    step: Step
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    card: Card | None = None

    @property
    def middles(self) -> bool:
        """Whether the step also tells where the middles of rocks are, and their shadows."""
        return self.card is not None and self.card.output == MIDDLES

    @property
    def kinds(self) -> dict[int, str]:
        """Number → name of the classes of rocks that the step tells apart; one, if it does not."""
        known = rock_classes(self.card) if self.card else {}
        return known if len(known) > 1 else {1: "rock"}


def _method(job: Job) -> _Method:
    name = job.choose(DEFAULT, FALLBACK)
    if name not in classical.METHODS:
        pack = job.pack(name, "rocks")
        return _Method(rock_step(pack, job), {"id": pack.card.id, "sha256": pack.card.sha256}, {}, pack.card)
    method = classical.METHODS[name]
    sun, source = _sun(job)
    state = method.fit(job.image.survey.patches)

    def find(pixels: np.ndarray, valid: np.ndarray, origin: tuple[int, int]) -> np.ndarray:
        mask, score = method.apply(pixels.astype(np.float32), valid, sun, state, origin=origin)
        return np.stack([mask.astype(np.float32), score])

    step = Step(name, each(find), bands=2, tile=1024, halo=method.halo, fill=0.0)
    return _Method(step, {"id": name}, {"sun_azimuth": round(sun, 2), "sun_azimuth_source": source})


def _sun(job: Job) -> tuple[float, str]:
    """Where the sun stands: as the user says, else the label, else estimated from the image, and then said so."""
    if job.options.sun_azimuth is not None:
        return job.options.sun_azimuth % 360, "given"
    if job.image.product.sun_azimuth_deg is not None:
        return job.image.product.sun_azimuth_deg, "label"
    azimuth, confidence = classical.estimate_sun(job.image.survey.patches)
    trust = "" if confidence >= TRUSTED_SUN else " This is little more than a guess."
    job.warn(
        f"The sun's direction is not given; estimated from the image: {azimuth:.0f}° clockwise from up "
        f"(confidence {confidence:.2f}).{trust} Give it with --sun-azimuth to be sure."
    )
    return azimuth, f"estimated, confidence {confidence:.2f}"


@dataclass(frozen=True)
class _Light:
    """Where the sun stands, degrees, as far as it is known without guessing: what shadows are measured with."""

    azimuth: float | None
    incidence: float | None

    def away(self) -> tuple[float, float] | None:
        """The direction of light in the image (column, row), of length 1."""
        if self.azimuth is None:
            return None
        return -math.sin(math.radians(self.azimuth)), math.cos(math.radians(self.azimuth))

    def facts(self) -> dict[str, Any]:
        """For provenance."""
        return {"incidence": self.incidence} if self.incidence is not None else {}


def _light(job: Job, wishes: Wishes, method: _Method) -> _Light:
    product = job.image.product
    azimuth = job.options.sun_azimuth if job.options.sun_azimuth is not None else product.sun_azimuth_deg
    incidence = wishes.incidence if wishes.incidence is not None else product.incidence_deg
    if method.middles and (azimuth is None or incidence is None):
        missing = " and ".join(
            name for name, value in (("direction", azimuth), ("incidence", incidence)) if value is None
        )
        job.info(f"The sun's {missing} is not known: heights of rocks stay empty (--sun-azimuth, --incidence).")
    return _Light(azimuth, incidence)


def _doubts(job: Job, light: _Light, card: Card | None) -> Iterator[str]:
    """What the card does not vouch for."""
    if card is None or not card.works:
        return
    noise = fit_noise(job.image.survey.patches)
    ground = job.image.survey.percentile(50)
    share = float(sigma_at(noise, ground)) / max(ground - noise.black, 1e-30)
    facts = {
        "incidence_deg": (light.incidence, "an incidence of {:.3g}°"),
        "noise": (share, "noise of {:.2g} of the ground's brightness"),
    }
    for name, (value, words) in facts.items():
        low, high = card.works.get(name, (-math.inf, math.inf))
        if value is not None and not low <= value <= high:
            yield (
                f"The image has {words.format(value)}; {card.id} was measured to work at {low:g} to {high:g}: many "
                "rocks may be missed or wrong."
            )


class _Finder:
    """Collects rocks from strips of (class, score, …)."""

    def __init__(self, job: Job, method: _Method, light: _Light, outlines: bool) -> None:
        grid = job.image.grid
        self._least, self._kinds = 0.0, list(method.kinds)
        self._found: list[Blobs] = []
        self._finder: BlobFinder | MiddleFinder = BlobFinder(grid.width, grid.height, outlines)
        if method.middles and method.card:
            reading = method.card.reading
            self._least = float(reading.get("least_score", 0.0))
            self._finder = MiddleFinder(
                grid.width, grid.height, float(reading.get("threshold", 0.5)), light.away(), outlines
            )

    def take(self, window: Window, values: np.ndarray, valid: np.ndarray) -> None:
        if isinstance(self._finder, MiddleFinder):
            found = self._finder.add(window, values[1:], valid)
        else:
            rock = np.isin(values[0], self._kinds) & valid
            found = self._finder.add(window, np.where(rock, values[0], 0), values[1], valid)
        self._found.append(found.where(found.score >= self._least))

    def blobs(self) -> Blobs:
        return concatenate([*self._found, self._finder.finish()])


# ---- from pixels to metres ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rocks:
    """Rocks with their sizes; `in_metres` is False where no scale is known and the m fields are empty."""

    blobs: Blobs
    fields: dict[str, np.ndarray]
    in_metres: bool

    @classmethod
    def measured(cls, job: Job, blobs: Blobs, method: _Method, light: _Light, min_diameter: float) -> _Rocks:
        jacobian = job.jacobian(blobs.col, blobs.row)
        in_metres = jacobian is not None
        # Without a scale an image is measured as if its pixels were squares of size 1, rows pointing south.
        ground = jacobian if jacobian is not None else np.broadcast_to(np.diag([1.0, -1.0]), (len(blobs.col), 2, 2))
        diameter_px = _diameter_px(blobs, method.card, light)
        pixel_area = np.abs(np.linalg.det(ground))
        area = np.pi / 4 * diameter_px**2 * pixel_area
        major, minor, azimuth = _axes(ground @ blobs.covariance @ ground.swapaxes(1, 2))
        diameter = diameter_px * np.sqrt(pixel_area)
        if method.middles:  # an ellipse of the rock's own area
            stretch = diameter / np.sqrt(np.maximum(major * minor, 1e-30))
            major, minor = major * stretch, minor * stretch
        shadow, height = _heights(blobs, diameter, ground, method, light)
        metres = {"diam_eq_m": diameter, "major_m": major, "minor_m": minor, "orient_deg": azimuth, "area_m2": area}
        metres |= {"shadow_len_m": shadow, "height_m": height}
        if not in_metres:
            metres |= {name: np.full(len(area), np.nan) for name in metres if name != "orient_deg"}
        fields = {
            "rock_id": np.arange(1, len(area) + 1),
            **_kinds(blobs, method),
            **metres,
            "diam_eq_px": diameter_px,
            "score": blobs.score,
            "edge": blobs.edge.astype(np.int32),
            **job.places(blobs.col, blobs.row),
            "model": np.full(len(area), str(method.model["id"]), dtype=object),
        }
        return cls(blobs, fields, in_metres)._at_least(min_diameter)

    def _at_least(self, diameter: float) -> _Rocks:
        size = self.fields["diam_eq_m"] if self.in_metres else self.fields["diam_eq_px"]
        keep = size >= diameter
        blobs = self.blobs.where(keep)
        fields = {name: values[keep] for name, values in self.fields.items()}
        fields["rock_id"] = np.arange(1, len(blobs.area) + 1)
        return _Rocks(blobs, fields, self.in_metres)


def _kinds(blobs: Blobs, method: _Method) -> dict[str, np.ndarray]:
    """The class that most of a rock is of, where there are several."""
    if len(method.kinds) == 1:
        return {}
    numbers = np.array(list(method.kinds))
    nearest = np.abs(blobs.kind[:, None] - numbers).argmin(axis=1)
    return {"class": np.array(list(method.kinds.values()), dtype=object)[nearest]}


def _diameter_px(blobs: Blobs, card: Card | None, light: _Light) -> np.ndarray:
    """Of circles of the same area, corrected as the card says: what looked so large, in such light, was that large.

    Beyond what was measured the correction stays what it is there, as a share.
    """
    seen = 2 * np.sqrt(blobs.area / np.pi)
    diameter, reading = seen, card.reading if card else {}
    if reading.get("diameter_px"):
        was, true = np.array(reading["diameter_px"], float).T
        diameter = seen * np.interp(seen, was, true / was)
    if reading.get("incidence") and light.incidence is not None:
        diameter = diameter * np.interp(light.incidence, *np.array(reading["incidence"], float).T)
    return diameter


def _heights(
    blobs: Blobs, diameter: np.ndarray, ground: np.ndarray, method: _Method, light: _Light
) -> tuple[np.ndarray, np.ndarray]:
    """Length of the shadow from the rock's middle, and height of the rock; NaN where they cannot be known.

    The edge that throws the tip of the shadow lies behind the middle, by a share of the diameter that the card tells.
    A shadow that hardly comes out from under its rock tells of the rock's width and not of its height.
    """
    away = light.away()
    nothing = np.full(len(diameter), np.nan)
    if not method.middles or method.card is None or away is None:
        return nothing, nothing
    length = blobs.tip * np.hypot(*np.moveaxis(ground @ np.array(away), -1, 0))
    if light.incidence is None or not 0 < light.incidence < 90:
        return length, nothing
    behind = float(method.card.reading.get("edge", 0.0))
    height = np.maximum(length - behind * diameter, 0) / math.tan(math.radians(light.incidence))
    return length, np.where((height > 0) & (length >= CLEAR * diameter), height, np.nan)


def _axes(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Long and short axis of the ellipses with these moments (east, north), and the long one's azimuth 0–180°."""
    values, vectors = np.linalg.eigh(covariance)
    minor, major = 4 * np.sqrt(np.maximum(values, 0)).T
    azimuth = np.degrees(np.arctan2(vectors[:, 0, 1], vectors[:, 1, 1])) % 180
    return major, minor, azimuth


# ---- the searched area -------------------------------------------------------------------------------------------


class _SearchedArea:
    """Counts what was searched, in pixels and square metres, and draws its outline on a coarser grid."""

    def __init__(self, job: Job) -> None:
        grid = job.image.grid
        self._job, self._grid = job, grid
        self._cell = max(1, int(np.ceil(np.sqrt(grid.width * grid.height / AREA_CELLS))))
        self._square = max(1, math.ceil(math.sqrt(grid.width * grid.height / AREA_SCALES)))
        coarse = grid.coarsen(self._cell)
        self._valid = np.zeros((coarse.height, coarse.width))
        self.pixels = 0
        self._area = 0.0

    def take(self, window: Window, _values: np.ndarray, valid: np.ndarray) -> None:
        self.pixels += int(valid.sum())
        self._add_area(window, valid)
        rows = np.arange(window.row, window.bottom) // self._cell
        cols = np.arange(0, self._grid.width) // self._cell
        across = np.add.reduceat(valid, np.flatnonzero(np.diff(cols, prepend=-1)), axis=1)
        np.add.at(self._valid, rows, across)

    def area_m2(self) -> float | None:
        """Square metres of valid pixels; None without a scale."""
        return self._area if self._job.pixel_size is not None else None

    def outline(self) -> shapely.MultiPolygon:
        """The footprint minus what is not valid, in image coordinates."""
        high, wide = (np.bincount(np.arange(size) // self._cell) for size in (self._grid.height, self._grid.width))
        possible = np.outer(high, wide)
        searched = (self._valid >= 0.5 * possible).astype(np.uint8)
        pieces = [shapely.Polygon(g["coordinates"][0], g["coordinates"][1:]) for g, _ in shapes(searched, searched > 0)]
        image = shapely.box(0, 0, self._grid.width, self._grid.height)
        whole = shapely.intersection(shapely.union_all(_scaled(pieces, self._cell)), image)
        polygons = [p for p in shapely.get_parts(whole) if isinstance(p, shapely.Polygon)]
        return shapely.MultiPolygon(polygons)

    def _add_area(self, window: Window, valid: np.ndarray) -> None:
        """One scale for each small square of a strip, at the middle of the pixels that are valid there.

        There it is exact as far as the scale changes evenly: also for degrees at a pole, where a row is many times
        smaller than another of its strip, and on a map of the whole body.
        """
        if self._job.pixel_size is None or not valid.any():
            return
        tops, lefts = (np.arange(0, size, self._square) for size in valid.shape)
        in_rows, in_cols = np.add.reduceat(valid, lefts, axis=1), np.add.reduceat(valid, tops, axis=0)
        counts = np.add.reduceat(in_rows, tops, axis=0)
        some = counts > 0
        counts = counts[some]
        col = np.add.reduceat(in_cols * (np.arange(self._grid.width) + 0.5), lefts, axis=1)[some] / counts
        row = np.add.reduceat(in_rows * (np.arange(window.height)[:, None] + 0.5), tops, axis=0)[some] / counts
        row += window.row
        jacobian = self._job.jacobian(col, row)
        if jacobian is not None:
            placed = np.isfinite(jacobian).all(axis=(1, 2))  # what lies past a pole or the limb has no size
            self._area += float((counts[placed] * np.abs(np.linalg.det(jacobian[placed]))).sum())


def _scaled(pieces: list[shapely.Geometry], factor: int) -> np.ndarray:
    return shapely.transform(np.array(pieces, dtype=object), lambda xy: xy * factor)


# ---- the files ---------------------------------------------------------------------------------------------------


def _mask_writer(job: Job, path: str, method: _Method) -> RasterWriter:
    names = ["ground", "rock", *(["shadow"] if method.middles else [])]
    several = method.card is not None and len(method.kinds) > 1
    if method.card and several:
        names = list(method.card.classes)
    meaning = ", ".join(f"{k} {name}" for k, name in enumerate(names))
    # Where numbers mean something else than usual, the name of the band says so wherever it is shown.
    band = Band(f"class: {meaning}" if several else "class", f"{meaning}, 255 no data")
    return RasterWriter(
        path,
        job.image.grid,
        [band],
        dtype="uint8",
        nodata=NODATA,
        overwrite=job.options.overwrite,
        file_format=job.options.file_format,
        categorical=True,
    )


def _mask_sink(writer: RasterWriter) -> Any:
    def take(_window: Window, values: np.ndarray, valid: np.ndarray) -> None:
        writer.append(np.where(valid, values[0], NODATA).astype(np.uint8)[None])

    return take


def _counts(job: Job, rocks: _Rocks, area: _SearchedArea, timing: Timing) -> dict[str, Any]:
    small = int((rocks.fields["diam_eq_px"] < COMPLETE_PX).sum())
    if small:
        job.warn(
            f"{small} of {len(rocks.blobs.area)} rocks are smaller than {COMPLETE_PX} px: below that the count is "
            "not complete; leave them out of size-frequency work."
        )
    if not len(rocks.blobs.area):
        job.info("No rock was found; the layers are complete and empty.")
    searched = area.area_m2()
    return {
        "rocks": len(rocks.blobs.area),
        "rocks_below_4_px": small,
        "valid_px": timing.valid_px,
        "masked_px": timing.masked_px,
        "searched_m2": None if searched is None else round(searched, 3),
    }


def _layers(
    job: Job, rocks: _Rocks, area: _SearchedArea, targets: Mapping[str, Target], record: str
) -> list[tuple[Layer, Target]]:
    grid = job.image.grid
    made = {POINTS: lambda: _points(grid, rocks, record)}
    made[OUTLINES] = lambda: _outlines(grid, rocks, record)
    made[AREA] = lambda: _area(job, area, record)
    return [(made[name](), there) for name, there in targets.items()]


def _points(grid: Grid, rocks: _Rocks, record: str) -> Layer:
    points = shapely.points(*grid.xy(rocks.blobs.col, rocks.blobs.row))
    return Layer(POINTS, points, rocks.fields, grid.wkt, "Point", "Rocks with their diameters", record)


def _outlines(grid: Grid, rocks: _Rocks, record: str) -> Layer:
    shown = ("rock_id", "class", "diam_eq_m", "diam_eq_px", "score", "edge")
    fields = {name: rocks.fields[name] for name in shown if name in rocks.fields}
    return Layer(
        OUTLINES, on_map(grid, rocks.blobs.outline), fields, grid.wkt, "MultiPolygon", "Outlines of rocks", record
    )


def _area(job: Job, area: _SearchedArea, record: str) -> Layer:
    metres = area.area_m2()
    fields = {
        "area_m2": np.array([np.nan if metres is None else metres]),
        "valid_px": np.array([area.pixels]),
        "product_id": np.array([job.product_id], dtype=object),
    }
    outline = np.array([area.outline()], dtype=object)
    description = "The area that was searched: footprint minus what is not valid"
    return Layer(AREA, on_map(job.image.grid, outline), fields, job.image.grid.wkt, "MultiPolygon", description, record)


def on_map(grid: Grid, shapes_in_image: np.ndarray) -> np.ndarray:
    """Geometries from image to map coordinates."""
    if not len(shapes_in_image):
        return shapes_in_image
    return shapely.transform(shapes_in_image, lambda xy: np.stack(grid.xy(xy[:, 0], xy[:, 1]), axis=1))
