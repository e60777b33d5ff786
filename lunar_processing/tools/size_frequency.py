"""Rock sizes: from points with diameters and the searched area to what is published of them.

A table of counts with Poisson intervals, most likely distributions with theirs, a figure, a raster of rock abundance,
and files that crater-counting programs read. Lengths and areas are those on the ground: of the metres, or of the
pixels where no scale is known.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from rasterio.features import rasterize

from lunar_processing import planet, provenance, sizes
from lunar_processing.draft import Draft, check_destination
from lunar_processing.errors import Cancelled, DataError, OutputError, ParameterError, PlanetError
from lunar_processing.grid import PIXEL_SPACE, Grid
from lunar_processing.raster.writer import Band, RasterWriter, check_rasters
from lunar_processing.tools import crater_files
from lunar_processing.tools.job import SCALE_TOLERANCE, Report
from lunar_processing.tools.rocks import AREA, COMPLETE_PX, POINTS, beside
from lunar_processing.tools.size_figure import Picture, draw
from lunar_processing.vector import Layer, check_targets, layers_of, read_layer, target, write_layers

# Fields that hold a diameter, and its unit, in the order in which they are believed.
FIELDS = {"diam_eq_m": "m", "diameter_m": "m", "diam_m": "m", "diam_km": "km", "diam_eq_px": "px"}
UNITS = ("m", "km", "px")
EDGES = ("exclude", "count")
# The area written with an outline holds if the outline still has it to this share; else the outline was edited.
SAME_AREA = 0.01
# Sides of an area are cut into so many pieces along its extent before it is measured, for straight lines on a map
# are curved on the ground.
PIECES = 512
MANY_ON_EDGE = 0.05  # share of the rocks that touch the image's edge from which on it is worth a word
MOST_CELLS = 1_000_000
CELLS = 30  # across the area, about, where no size of a cell is asked for
FINER = 8  # steps of a cell, to see how much of it was searched
COVERED = 0.5  # share of a cell that must have been searched
DOTS = 64  # points that stand for the ground under a rock
CHUNK = 20_000  # rocks whose points are held at once


@dataclass(frozen=True)
class Wishes:
    """What to count and how; None means: find out. Lengths in metres, or in pixels where no scale is known."""

    rocks: str
    folder: Path
    area: str | None = None
    diameter_field: str | None = None
    unit: str | None = None
    min_diameter: float | None = None
    max_diameter: float | None = None
    edge: str = "exclude"
    pixel_size: float | None = None
    body: str | None = None
    bins: float = 10.0
    cell: float | None = None
    confidence: float = 0.95
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("min_diameter", "max_diameter", "pixel_size", "cell"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ParameterError(
                    f"{name.replace('_', ' ').capitalize()} {value} is not possible.", "give more than 0."
                )
        if self.min_diameter and self.max_diameter and self.max_diameter <= self.min_diameter:
            raise ParameterError("The largest diameter is not above the smallest.", "give a larger --max-diameter.")
        if self.edge not in EDGES:
            raise ParameterError(
                f"There is no way {self.edge!r} with rocks on the edge.", f"choose {' or '.join(EDGES)}."
            )
        if self.unit is not None and self.unit not in UNITS:
            raise ParameterError(f"There is no unit {self.unit!r}.", f"choose one of {', '.join(UNITS)}.")
        if not 1 <= self.bins <= 100:
            raise ParameterError(f"{self.bins:g} bins a decade are not possible.", "give 1 to 100.")
        if not 0.5 <= self.confidence < 1:
            raise ParameterError(f"A confidence of {self.confidence:g} is not possible.", "give 0.5 to 0.999.")


@dataclass(frozen=True)
class Done:
    """What was made and what it says, as `lunar rocksizefrequency --json` prints it."""

    facts: Mapping[str, Any]
    outputs: Mapping[str, str]


def size_frequency(wishes: Wishes, report: Report | None = None) -> Done:
    """Count, fit, draw and write; all files appear together."""
    report, started = report or Report(), time.perf_counter()
    report.progress("read", 0, 1)
    study = _Study(wishes, report)
    rocks, ground = _rocks(study)
    files = _files(wishes, rocks)
    _check(files, wishes.overwrite, ground.wkt)
    area = _area(study, rocks, ground)
    counted = _counted(study, rocks, area)
    report.progress("read", 1, 1)
    limit = _limit(study, rocks, counted, ground)
    facts = _facts(study, counted, area, limit, ground)
    columns = _columns(counted, area, limit, wishes)
    report.progress("fit", 2, 2)
    report.progress("finish", 0, 1)
    outputs = _write(study, files, rocks, ground, area, counted, limit, facts, columns, time.perf_counter() - started)
    report.progress("finish", 1, 1)
    seconds = round(time.perf_counter() - started, 3)
    return Done({"outputs": outputs, **facts, "seconds": seconds, "warnings": study.warnings}, outputs)


@dataclass
class _Study:
    """What is asked, and what is said about it on the way."""

    wishes: Wishes
    report: Report
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Tell the user now, and everyone who reads the results later."""
        self.warnings.append(message)
        self.report.log("warning", message)

    def info(self, message: str) -> None:
        """Tell the user."""
        self.report.log("info", message)


# ---- the ground --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ground:
    """How map coordinates become lengths: metres (`unit` "m"), or pixels ("px") where no scale is known."""

    wkt: str | None
    body: planet.Body | None
    pixel_size: float | None  # metres, where known
    unit: str

    def jacobian(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """East and north of a step in map x and of one in map -y, (n, 2, 2)."""
        size = self.pixel_size if self.unit == "m" else 1.0
        found = planet.jacobian(Grid(self.wkt, PIXEL_SPACE, 1, 1), x, -np.asarray(y, float), self.body, size)
        assert found is not None  # for there is a coordinate system, or a size of pixels
        return found

    def moved(self, x: np.ndarray, y: np.ndarray, east: np.ndarray, north: np.ndarray) -> np.ndarray:
        """Map coordinates (n, k, 2) of places (n, k) lengths east and north of n map coordinates."""
        steps = np.linalg.solve(self.jacobian(x, y), np.stack(np.broadcast_arrays(east, north), axis=1))
        return np.stack([x[:, None] + steps[:, 0], y[:, None] - steps[:, 1]], axis=-1)

    def area_of(self, shape: shapely.Geometry, wkt: str | None) -> float:
        """The area on the ground of a shape in map coordinates of `wkt`."""
        if self.body is None or wkt is None:
            flat = replace(self, wkt=wkt).jacobian(np.zeros(1), np.zeros(1))
            return float(shape.area * abs(np.linalg.det(flat[0])))
        inside = shape.representative_point()
        lon, lat = planet.lonlat(Grid(wkt, PIXEL_SPACE, 1, 1), inside.x, -inside.y, self.body)
        body, place = self.body, (float(lon), float(lat))
        plane = shapely.transform(shape, lambda xy: planet.equal_area(wkt, body, xy[:, 0], xy[:, 1], *place))
        return float(plane.area) if np.isfinite(plane.area) else math.nan

    def lonlat(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Degrees; NaN without a place on a body."""
        return planet.lonlat(Grid(self.wkt, PIXEL_SPACE, 1, 1), x, -np.asarray(y, float), self.body)


# ---- the rocks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rocks:
    """Rocks as they were given, those without a diameter left out; `diameter` and `covers` in units of the ground."""

    layer: Layer
    source: Path
    field: str
    x: np.ndarray
    y: np.ndarray
    diameter: np.ndarray
    covers: np.ndarray
    edge: np.ndarray
    told: Mapping[str, Any]  # the provenance of the layer

    @property
    def product(self) -> str:
        """The images that the rocks were found in."""
        return _names(self.layer, "product_id") or self.source.stem

    @property
    def model(self) -> str:
        """What found the rocks; empty where that is not known."""
        return _names(self.layer, "model") or str(self.told.get("model", {}).get("id", ""))


def _names(layer: Layer, name: str) -> str:
    found = sorted({str(value) for value in layer.fields.get(name, ()) if value is not None})
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _rocks(study: _Study) -> tuple[_Rocks, _Ground]:
    wishes = study.wishes
    text = _layer_of_rocks(wishes.rocks)
    layer = read_layer(text)
    if "Point" not in layer.geometry_type:
        raise DataError(
            f"{text} holds {layer.geometry_type} and no points.", "give the layer of points that `lunar rocks` writes."
        )
    told = _told(layer)
    name, unit = _diameter_field(wishes, layer)
    ground = _ground(study, layer, told, unit)
    values = layer.fields[name].astype(float) * _factor(unit, ground)
    good = np.isfinite(values) & (values > 0)
    if not good.all():
        study.warn(f"{int((~good).sum())} of {len(good)} rocks have no diameter in the field {name!r}: left out.")
    layer = replace(layer, geometry=layer.geometry[good], fields={k: v[good] for k, v in layer.fields.items()})
    points = shapely.centroid(layer.geometry)  # multipoints too
    covers = np.pi / 4 * values[good] ** 2
    if ground.unit == "m" and name == "diam_eq_m" and "area_m2" in layer.fields:
        measured = layer.fields["area_m2"].astype(float)
        covers = np.where(np.isfinite(measured), measured, covers)
    edge = layer.fields.get("edge", np.zeros(len(values[good]))).astype(float) > 0
    source = Path(text.partition("|")[0])
    rocks = _Rocks(layer, source, name, shapely.get_x(points), shapely.get_y(points), values[good], covers, edge, told)
    study.info(f"{len(rocks.diameter)} rocks of {source.name}, diameters from the field {name} in {unit}.")
    return rocks, ground


def _layer_of_rocks(text: str) -> str:
    """The layer of rocks of a file of several: the one of that name, or the only one of points."""
    if "|" in text:
        return text
    points = [name for name, kind in layers_of(text).items() if "Point" in kind] if Path(text).exists() else []
    chosen = POINTS if POINTS in points else points[0] if len(points) == 1 else None
    return f"{text}|layername={chosen}" if chosen and text.lower().endswith(".gpkg") else text


def _told(layer: Layer) -> Mapping[str, Any]:
    try:
        told = json.loads(layer.metadata or "{}")
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _diameter_field(wishes: Wishes, layer: Layer) -> tuple[str, str]:
    """Name and unit of the field with diameters."""
    numeric = [name for name, values in layer.fields.items() if values.dtype.kind in "fiu"]
    if wishes.diameter_field is not None:
        if wishes.diameter_field not in numeric:
            raise ParameterError(
                f"The layer {layer.name} has no field of numbers {wishes.diameter_field!r}.",
                f"choose one of {', '.join(numeric) or 'another layer, for this one has none'}.",
            )
        ending = wishes.diameter_field.lower().rpartition("_")[2]
        return wishes.diameter_field, wishes.unit or (ending if ending in UNITS else "m")
    there = {name.lower(): name for name in numeric}
    known = [there[name] for name in FIELDS if name in there]
    for name in known:
        if not len(layer.geometry) or np.isfinite(layer.fields[name].astype(float)).any():
            return name, wishes.unit or FIELDS[name.lower()]
    have = ", ".join(layer.fields) or "none"
    raise DataError(
        f"The layer {layer.name} has no field with diameters that is known: it has {have}.",
        "name it with --diameter-field, and its unit with --unit.",
    )


def _ground(study: _Study, layer: Layer, told: Mapping[str, Any], unit: str) -> _Ground:
    """The scale: of the coordinate system, else of the pixels."""
    wishes = study.wishes
    body = planet.resolve_body(layer.wkt, wishes.body)
    in_crs = planet.jacobian(Grid(layer.wkt, PIXEL_SPACE, 1, 1), 0.0, 0.0, body) is not None
    recorded = told.get("parameters", {}).get("pixel_size") or _pixel_size_of(layer)
    if wishes.pixel_size and recorded and abs(wishes.pixel_size / recorded - 1) > SCALE_TOLERANCE:
        study.warn(f"The pixel size {wishes.pixel_size:g} m is used as asked; the layer tells of {recorded:.4g} m.")
    size = wishes.pixel_size or recorded
    if in_crs or size or (unit != "px" and _is_number(wishes.area)):
        return _Ground(layer.wkt, body if in_crs else None, size, "m")
    if unit != "px":
        raise DataError(
            f"Diameters are in {unit}, but the layer has neither a coordinate system nor a known pixel size: its area "
            "cannot be measured.",
            "give --pixel-size in metres, or the --area as a number in m².",
        )
    study.warn("No scale is known: sizes are in pixels and counts for a px². Give metres with --pixel-size.")
    return _Ground(layer.wkt, None, None, "px")


def _pixel_size_of(layer: Layer) -> float | None:
    """Metres of a pixel, from two fields of `lunar rocks`."""
    if not {"diam_eq_m", "diam_eq_px"} <= set(layer.fields):
        return None
    ratio = layer.fields["diam_eq_m"] / np.where(layer.fields["diam_eq_px"] > 0, layer.fields["diam_eq_px"], np.nan)
    return float(np.nanmedian(ratio)) if np.isfinite(ratio).any() else None


def _factor(unit: str, ground: _Ground) -> float:
    if unit != "px":
        return {"m": 1.0, "km": 1000.0}[unit]
    if ground.unit == "px":
        return 1.0
    if ground.pixel_size is None:
        raise DataError("Diameters are in pixels of unknown size.", "give --pixel-size in metres.")
    return ground.pixel_size


# ---- the searched area -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Area:
    """The searched area in units of the ground, its shape on the map of the rocks (None: not known), and from where."""

    value: float
    shape: shapely.Geometry | None
    source: str
    path: Path | None = None


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and math.isfinite(float(text))
    except ValueError:
        return False


def _area(study: _Study, rocks: _Rocks, ground: _Ground) -> _Area:
    text = study.wishes.area
    if text is not None and _is_number(text):
        value = float(text)
        if value <= 0:
            raise ParameterError(f"A searched area of {value:g} {ground.unit}² is not possible.", "give more than 0.")
        study.warn(
            f"The searched area is a number ({value:g} {ground.unit}²): whether the rocks lie in it cannot be checked, "
            "and there is neither a raster of abundance nor an outline for other programs."
        )
        return _Area(value, None, f"{value:g} {ground.unit}², as given")
    layer, path = _area_layer(text, rocks, study.wishes)
    shape = _outline(study, layer)
    wkt = layer.wkt
    _same_world(rocks.layer, layer, study.wishes)
    fine = _finer(shape) if ground.body else shape
    measured = ground.area_of(fine, wkt)
    if not measured > 0:
        raise DataError(f"The searched area of {layer.name} is zero.", "give a layer of polygons with an area.")
    value, source = _believed(study, layer, measured, ground)
    if ground.body and wkt and rocks.layer.wkt and not planet.same_place(wkt, rocks.layer.wkt):
        fine = _on_map_of(rocks.layer.wkt, wkt, ground, fine, measured)
    study.info(f"Searched area: {_area_in_words(value, ground.unit)}, {source}.")
    return _Area(value, fine, source, path)


def _area_layer(text: str | None, rocks: _Rocks, wishes: Wishes) -> tuple[Layer, Path]:
    if text is None:
        text = beside(wishes.rocks, AREA) if rocks.source.suffix.lower() in (".gpkg", ".shp", ".fgb") else ""
        path, _, name = text.partition("|layername=")
        if not Path(path).is_file() or (name and name not in layers_of(path)):
            raise ParameterError(
                "The searched area is not known, and no density can be had without it.",
                "give --area: a layer of polygons, or a number in m²; `lunar rocks --area-layer` writes one.",
            )
    layer = read_layer(text)
    if "Polygon" not in layer.geometry_type:
        raise DataError(f"{text} holds {layer.geometry_type} and no polygons.", "give --area as a layer of polygons.")
    if not len(layer.geometry):
        raise DataError(f"{text} holds no polygon.", "give --area as a layer of polygons, or a number in m².")
    return layer, Path(text.partition("|")[0])


def _outline(study: _Study, layer: Layer) -> shapely.Geometry:
    """All polygons of a layer as one; what overlaps counts once."""
    valid = shapely.is_valid(layer.geometry)
    if not valid.all():
        study.warn(f"{int((~valid).sum())} polygons of {layer.name} cross themselves; they were put right.")
    whole = shapely.union_all(np.where(valid, layer.geometry, shapely.make_valid(layer.geometry)))
    polygons = [part for part in shapely.get_parts(whole) if isinstance(part, shapely.Polygon)]
    if whole.area < (1 - 1e-9) * float(shapely.area(layer.geometry).sum()) and valid.all():
        study.warn(f"Polygons of {layer.name} overlap; ground under several is counted once.")
    return shapely.MultiPolygon(polygons)


def _same_world(rocks: Layer, area: Layer, wishes: Wishes) -> None:
    if (rocks.wkt is None) != (area.wkt is None):
        without = "rocks" if rocks.wkt is None else "searched area"
        raise PlanetError(f"The layer of the {without} has no coordinate system.", "assign it the one that it is in.")
    here, there = planet.body_of(rocks.wkt), planet.body_of(area.wkt)
    names = [body.name if body else "no body" for body in (here, there)]
    if names[0] != names[1] and wishes.body is None:
        raise PlanetError(
            f"The rocks are on {names[0]}, the searched area on {names[1]}.",
            "give the area in a coordinate system of the same body; if one is wrong, assign the right one.",
        )


def _finer(shape: shapely.Geometry) -> shapely.Geometry:
    x0, y0, x1, y1 = shape.bounds
    return shapely.segmentize(shape, max(x1 - x0, y1 - y0) / PIECES)


def _believed(study: _Study, layer: Layer, measured: float, ground: _Ground) -> tuple[float, str]:
    """The area that `lunar rocks` counted pixel by pixel, if the outline still has it; else that of the outline."""
    name = "area_m2" if ground.unit == "m" else "valid_px"
    recorded = float(np.nansum(layer.fields[name].astype(float))) if name in layer.fields else 0.0
    if recorded <= 0:
        return measured, f"measured on the ground from the polygons of {layer.name}"
    if abs(measured / recorded - 1) <= SAME_AREA and len(layer.geometry) == 1:
        return recorded, f"as the field {name} of {layer.name} says, which its outline confirms"
    study.warn(
        f"The field {name} of {layer.name} says {_area_in_words(recorded, ground.unit)}, but its polygons have "
        f"{_area_in_words(measured, ground.unit)}: they were edited or joined, and what they have is used."
    )
    return measured, f"measured on the ground from the polygons of {layer.name}, not from its field {name}"


def _on_map_of(wkt: str, own: str, ground: _Ground, shape: shapely.Geometry, area: float) -> shapely.Geometry:
    body = ground.body
    assert body is not None
    moved = shapely.transform(shape, lambda xy: np.stack(planet.reproject(own, wkt, body, xy[:, 0], xy[:, 1]), axis=-1))
    if not abs(ground.area_of(moved, wkt) / area - 1) < SAME_AREA / 10:
        raise PlanetError(
            "The searched area does not lie in one piece on the map of the rocks.",
            "reproject rocks and area to one coordinate system, as IAU_2015:30135 near the south pole.",
        )
    return moved


def _area_in_words(value: float, unit: str) -> str:
    if unit == "px":
        return f"{value:,.0f} px²".replace(",", " ")
    return f"{value / 1e6:.4g} km²" if value >= 1e4 else f"{value:.4g} m²"


# ---- what counts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counted:
    """The rocks that count (as a mask of all), and how many do not and why."""

    chosen: np.ndarray
    diameter: np.ndarray  # of the chosen ones
    outside: int
    on_edge: int


def _counted(study: _Study, rocks: _Rocks, area: _Area) -> _Counted:
    inside = np.ones(len(rocks.x), bool)
    if area.shape is not None:
        shapely.prepare(area.shape)
        inside = shapely.intersects_xy(area.shape, rocks.x, rocks.y)
        if len(inside) and not inside.any():
            _refuse_strangers(rocks, area)
    outside = int((~inside).sum())
    if outside:
        study.warn(f"{outside} of {len(inside)} rocks have their middle outside the searched area: not counted.")
    on_edge = int((inside & rocks.edge).sum())
    chosen = inside & ~rocks.edge if study.wishes.edge == "exclude" else inside
    what = "not counted" if study.wishes.edge == "exclude" else "counted with the part that is seen"
    if on_edge:
        study.info(f"{on_edge} rocks touch the image's edge or nodata, so that their size is not known: {what}.")
    if on_edge > MANY_ON_EDGE * max(inside.sum(), 1):
        study.warn(
            f"{on_edge / inside.sum():.0%} of the rocks touch the image's edge or nodata ({what}); by about half of "
            "that the density is uncertain, more for large rocks."
        )
    if not chosen.any():
        study.warn("No rock is counted: the density has an upper limit only, and there is nothing to fit or to draw.")
    return _Counted(chosen, rocks.diameter[chosen], outside, on_edge)


def _refuse_strangers(rocks: _Rocks, area: _Area) -> None:
    """An area that holds no rock is a result; one that lies elsewhere is a mistake."""
    searched = shapely.box(rocks.x.min(), rocks.y.min(), rocks.x.max(), rocks.y.max())
    if AREA in layers_of(rocks.source):
        searched = shapely.union_all(read_layer(f"{rocks.source}|layername={AREA}").geometry)
    if area.shape is not None and not shapely.intersects(shapely.box(*area.shape.bounds), searched):
        raise DataError(
            "The rocks and the searched area do not overlap.",
            "check that both are of one image, and that each has its right coordinate system.",
        )


# ---- what is complete --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Limit:
    """The diameter from which on counts are complete, why that one, and where the counts themselves peak."""

    value: float
    source: str
    roll_off: float | None


def _limit(study: _Study, rocks: _Rocks, counted: _Counted, ground: _Ground) -> _Limit:
    peak = sizes.roll_off(counted.diameter)
    pixel = 1.0 if ground.unit == "px" else ground.pixel_size
    left_out = float(rocks.told.get("parameters", {}).get("min_diameter") or 0.0)
    asked, unit = study.wishes.min_diameter, ground.unit
    if asked is not None:
        limit = _Limit(asked, "as asked", peak)
        if pixel and asked < COMPLETE_PX * pixel * 0.999:
            study.warn(f"Below {COMPLETE_PX} px ({COMPLETE_PX * pixel:.3g} {unit}) counts are rarely complete.")
    elif pixel:
        limit = _Limit(COMPLETE_PX * pixel, f"{COMPLETE_PX} px", peak)
    else:
        smallest = float(counted.diameter.min()) if len(counted.diameter) else 1.0
        limit = _Limit(peak or smallest, "where the counts peak" if peak else "the smallest rock", peak)
        study.warn(
            f"The pixel size is not known, so neither is where counts become complete: {limit.value:.3g} {unit} is "
            f"taken, {limit.source}. Give --pixel-size or --min-diameter."
        )
    if left_out > limit.value:
        study.warn(f"Rocks below {left_out:g} {unit} were left out of the layer: counts are complete from there on.")
        limit = _Limit(left_out, "what the layer holds", peak)
    if peak and peak > 1.2 * limit.value:
        study.warn(
            f"The counts peak at {peak:.3g} {unit}, above the limit of {limit.value:.3g} {unit} from which they are "
            f"fitted: rocks may be missing there. Compare with --min-diameter {peak:.3g}."
        )
    return limit


# ---- the numbers -------------------------------------------------------------------------------------------------


def _facts(study: _Study, counted: _Counted, area: _Area, limit: _Limit, ground: _Ground) -> dict[str, Any]:
    """All that is known about sizes, for programs."""
    wishes, d, unit = study.wishes, counted.diameter, ground.unit
    complete = int((d >= limit.value).sum())
    low, high = (float(bound) for bound in sizes.poisson_interval(complete, wishes.confidence))
    per = _per(ground)
    return {
        "counts": {
            "rocks": len(counted.chosen),
            "counted": len(d),
            "complete": complete,
            "outside": counted.outside,
            "on_edge": counted.on_edge,
        },
        "unit": unit,
        "area": {"value": area.value, "unit": f"{unit}2", "source": area.source},
        "min_diameter": {"value": limit.value, "source": limit.source, "peak_of_counts": limit.roll_off},
        "confidence": wishes.confidence,
        "density": {
            "of_at_least": limit.value,
            "per": "km2" if unit == "m" else "px2",
            "value": complete / area.value * per,
            "lower": low / area.value * per,
            "upper": high / area.value * per,
        },
        **_fits(study, d, limit.value),
    }


def _per(ground: _Ground) -> float:
    """What a density is for: a km², or a px²."""
    return 1e6 if ground.unit == "m" else 1.0


def _fits(study: _Study, d: np.ndarray, d_min: float) -> dict[str, Any]:
    wishes, d_max = study.wishes, study.wishes.max_diameter or math.inf
    if d_max <= d_min:
        raise ParameterError(
            f"The largest diameter {d_max:g} is not above {d_min:.3g}, where counts become complete.",
            "give a larger --max-diameter.",
        )
    study.report.progress("fit", 0, 2)
    power = sizes.fit_power_law(d, d_min, d_max, wishes.confidence)
    if power is None:
        why = (
            f"{int(((d >= d_min) & (d <= d_max)).sum())} rocks of complete size are too few for a fit: "
            f"{sizes.FEWEST} of different sizes are needed"
        )
        study.warn(f"{why}. The counts stand without one.")
        return {"power_law": None, "weibull": None, "no_fit": why}
    distance, chance = sizes.kolmogorov(d, power)
    fits: dict[str, Any] = {"power_law": {**asdict(power), "ks_distance": distance, "ks_p": chance}}
    study.report.progress("fit", 1, 2)
    if study.report.cancelled():
        raise Cancelled("The run was cancelled.")
    weibull = sizes.fit_weibull(d, d_min, wishes.confidence)
    if weibull is not None:
        fits["weibull"] = asdict(weibull)
        if weibull.is_power_law:
            study.info("No Weibull distribution fits better than the power law.")
        else:
            distance, chance = sizes.kolmogorov(d, weibull)
            fits["weibull"] |= {"ks_distance": distance, "ks_p": chance}
        if math.isinf(d_max):
            fits["aic_power_law_minus_weibull"] = 2 * (weibull.log_likelihood - power.log_likelihood) - 2
    for name, fit in fits.items():
        if isinstance(fit, dict) and fit.get("ks_p", 1) < 0.05:
            law = {"power_law": "A power law", "weibull": "A Weibull distribution"}[name]
            study.warn(f"{law} does not describe these rocks (p = {fit['ks_p']:.3f}).{_in_steps(d[d >= d_min])}")
    return fits


def _in_steps(d: np.ndarray) -> str:
    """A word where sizes come in steps, to which no smooth distribution fits."""
    few = len(np.unique(np.round(d, 6))) < len(d) / 2
    return " Their sizes come in steps, as those of whole pixels do, which can be the reason." if few else ""


def _columns(counted: _Counted, area: _Area, limit: _Limit, wishes: Wishes) -> dict[str, np.ndarray]:
    edges = sizes.bin_edges(counted.diameter, limit.value, wishes.bins)
    columns = sizes.table(counted.diameter, edges, area.value, wishes.confidence)
    return {**columns, "complete": (columns["d_low"] >= limit.value * (1 - 1e-9)).astype(int)}


# ---- the raster of abundance -------------------------------------------------------------------------------------


def abundance(
    grid: Grid, ground: _Ground, shape: shapely.Geometry, x: np.ndarray, y: np.ndarray, covers: np.ndarray
) -> np.ndarray:
    """The share of the searched ground in each cell of a grid that lies under rocks; NaN where little was searched."""
    fine = grid.transform @ grid.transform.scale(1 / FINER)
    size = (grid.height * FINER, grid.width * FINER)
    hit = rasterize([(shape, 1)], size, transform=fine, dtype="uint8")
    searched = hit.reshape(grid.height, FINER, grid.width, FINER).mean(axis=(1, 3))
    row, col = np.mgrid[: grid.height, : grid.width] + 0.5
    scale = ground.pixel_size if ground.unit == "m" else 1.0
    cell = planet.pixel_area(grid, col.ravel(), row.ravel(), ground.body, scale)
    assert cell is not None
    under = np.zeros(grid.height * grid.width)
    for first in range(0, len(x), CHUNK):
        some = slice(first, first + CHUNK)
        dots = _dots(ground, x[some], y[some], covers[some])
        dot_col, dot_row = (np.floor(place).astype(int) for place in grid.colrow(dots[..., 0], dots[..., 1]))
        on = (dot_col >= 0) & (dot_col < grid.width) & (dot_row >= 0) & (dot_row < grid.height)
        share = np.broadcast_to(covers[some, None] / DOTS, on.shape)
        np.add.at(under, (dot_row * grid.width + dot_col)[on], share[on])
    ground_area = cell.reshape(searched.shape) * searched
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.minimum(under.reshape(searched.shape) / ground_area, 1.0)
    return np.where(searched >= COVERED, share, np.nan).astype(np.float32)


def _dots(ground: _Ground, x: np.ndarray, y: np.ndarray, covers: np.ndarray) -> np.ndarray:
    """Points (n, DOTS, 2) on the map, evenly over the ground under each rock, as seeds in a sunflower."""
    number = np.arange(DOTS)
    radius, angle = np.sqrt((number + 0.5) / DOTS), number * math.pi * (3 - math.sqrt(5))
    reach = np.sqrt(covers / np.pi)[:, None]
    return ground.moved(x, y, reach * radius * np.sin(angle), reach * radius * np.cos(angle))


def _cells(study: _Study, ground: _Ground, area: _Area, limit: _Limit) -> Grid:
    """Cells that are squares on the ground in the middle of the area, at even numbers of the map."""
    assert area.shape is not None
    x0, y0, x1, y1 = area.shape.bounds
    size = study.wishes.cell or _round_size(max(math.sqrt(area.value) / CELLS, 5 * limit.value))
    middle = ground.jacobian(np.array([(x0 + x1) / 2]), np.array([(y0 + y1) / 2]))[0]
    across, down = size / np.linalg.norm(middle, axis=0)
    first, last = (math.floor(x0 / across), math.floor(y0 / down)), (math.ceil(x1 / across), math.ceil(y1 / down))
    width, height = max(last[0] - first[0], 1), max(last[1] - first[1], 1)
    if width * height > MOST_CELLS:
        raise ParameterError(
            f"Cells of {size:g} {ground.unit} make a raster of {width} × {height}.", "give a larger --cell."
        )
    study.info(f"Rock abundance in cells of {size:g} {ground.unit}.")
    step = PIXEL_SPACE.scale(across, down)
    return Grid(
        ground.wkt, PIXEL_SPACE.translation(first[0] * across, last[1] * down) @ PIXEL_SPACE @ step, width, height
    )


def _round_size(size: float) -> float:
    """1, 2 or 5 times a power of ten, not below."""
    power = 10 ** math.floor(math.log10(size))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= size * 0.999))


# ---- the files ---------------------------------------------------------------------------------------------------


def _files(wishes: Wishes, rocks: _Rocks) -> dict[str, Path]:
    """What may be written, by what it is."""
    stem = rocks.source.stem
    return {
        "table": wishes.folder / f"{stem}_sizes.csv",
        "fits": wishes.folder / f"{stem}_sizes.json",
        "figure": wishes.folder / f"{stem}_sizes.png",
        "drawing": wishes.folder / f"{stem}_sizes.svg",
        "abundance": wishes.folder / f"{stem}_abundance.tif",
        "diam": wishes.folder / f"{stem}.diam",
        "scc": wishes.folder / f"{stem}.scc",
        "craters": wishes.folder / f"{stem}_CRATER.shp",
        "areas": wishes.folder / f"{stem}_AREA.shp",
    }


def _check(files: Mapping[str, Path], overwrite: bool, wkt: str | None) -> None:
    """Refuse before the work what could not be written."""
    folder = files["table"].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error.strerror}.", "write somewhere else.") from error
    check_rasters([files["abundance"]], overwrite)
    for name in ("table", "fits", "figure", "drawing", "diam", "scc"):
        check_destination(files[name], overwrite)
    check_targets([(name, target(files[name])) for name in ("craters", "areas")], overwrite)


def _write(
    study: _Study,
    files: Mapping[str, Path],
    rocks: _Rocks,
    ground: _Ground,
    area: _Area,
    counted: _Counted,
    limit: _Limit,
    facts: dict[str, Any],
    columns: dict[str, np.ndarray],
    seconds: float,
) -> dict[str, str]:
    """Every file that can be had; those of an earlier run that cannot are not left beside the new ones."""
    wishes = study.wishes
    chosen = counted.chosen
    x, y = rocks.x[chosen], rocks.y[chosen]
    texts = {"table": _csv(columns, ground)}
    layers = []
    if ground.body is not None:
        catalogue = crater_files.Catalogue(
            rocks.source.stem, ground.body, counted.diameter, *ground.lonlat(x, y), area.value, limit.value, area.shape
        )
        if len(x):
            outline = area.shape and shapely.transform(area.shape, lambda xy: np.stack(ground.lonlat(*xy.T), axis=-1))
            texts |= {"diam": crater_files.diam(catalogue), "scc": crater_files.scc(catalogue, outline)}
        if area.shape is not None:
            circles = shapely.polygons(ground.moved(x, y, *crater_files.circle(counted.diameter)))
            layers = _shapefiles(study, files, catalogue, ground, area, circles)
    else:
        study.info("Without a place on a body nothing is written for crater-counting programs.")
    record = _record(study, rocks, area, facts, seconds)
    texts["fits"] = json.dumps(
        _plain({**facts, "warnings": study.warnings, "provenance": json.loads(record)}), indent=2
    )
    with ExitStack() as stack:
        drafts = {name: stack.enter_context(Draft(files[name], wishes.overwrite)) for name in texts}
        for name, text in texts.items():
            drafts[name].path.write_text(f"{text}\n", encoding="utf-8")
        if len(x):
            picture = Picture(columns, facts, ground.unit, rocks.product, rocks.model, counted.diameter, record)
            for name in ("figure", "drawing"):
                drafts[name] = stack.enter_context(Draft(files[name], wishes.overwrite))
                draw(picture, drafts[name].path)
        writer = None
        if area.shape is not None:
            large = counted.diameter >= limit.value
            grid = _cells(study, ground, area, limit)
            share = abundance(grid, ground, area.shape, x[large], y[large], rocks.covers[chosen][large])
            band = Band("abundance", f"share of the ground under rocks of {limit.value:.4g} {ground.unit} and more", "")
            writer = stack.enter_context(RasterWriter(files["abundance"], grid, [band], overwrite=wishes.overwrite))
            writer.append(share[None])
            writer.finish({provenance.TAG: record})
        if study.report.cancelled():
            raise Cancelled("The run was cancelled.")
        for draft in drafts.values():
            draft.flush()
        write_layers([(replace(layer, metadata=record), target(files[name])) for name, layer in layers], True)
        for draft in drafts.values():
            draft.publish()
        if writer:
            writer.publish()
    made = [*drafts, *(["abundance"] if writer else []), *(name for name, _ in layers)]
    _remove_stale(files, made)
    return {name: str(files[name]) for name in files if name in made}


def _shapefiles(
    study: _Study,
    files: Mapping[str, Path],
    catalogue: crater_files.Catalogue,
    ground: _Ground,
    area: _Area,
    circles: np.ndarray,
) -> list[tuple[str, Layer]]:
    """The pair of OpenCraterTool, where a shapefile can keep the coordinate system."""
    try:
        check_targets([("craters", target(files["craters"]))], True, ground.wkt)
    except OutputError as error:
        study.warn(f"The pair of shapefiles is not written. {error.message}")
        return []
    parts = shapely.get_parts(area.shape)
    each = np.array([ground.area_of(part, ground.wkt) for part in parts])
    return [
        ("craters", crater_files.craters(catalogue, circles, ground.wkt)),
        ("areas", crater_files.areas(catalogue, parts, each * area.value / each.sum(), ground.wkt)),
    ]


def _remove_stale(files: Mapping[str, Path], made: list[str]) -> None:
    """What an earlier run wrote and this one did not would be believed about the same rocks."""
    for name, path in files.items():
        if name not in made:
            parts = [path.with_suffix(s) for s in (".shx", ".dbf", ".prj", ".cpg", ".qix", ".provenance.json")]
            for old in [path, *(parts if path.suffix == ".shp" else [])]:
                old.unlink(missing_ok=True)


def _record(study: _Study, rocks: _Rocks, area: _Area, facts: Mapping[str, Any], seconds: float) -> str:
    paths = {rocks.source, *([area.path] if area.path else [])}
    said = {k: v for k, v in asdict(study.wishes).items() if k not in ("folder", "overwrite", "rocks")}
    said |= {"layer": rocks.layer.name, "diameter_field": rocks.field, "area": area.source}
    said["min_diameter"] = facts["min_diameter"]["value"]
    model = {"id": "maximum likelihood", "rocks": rocks.model, "product": rocks.product}
    inputs = [provenance.file_facts(path) for path in sorted(paths)]
    return provenance.record("rocksizefrequency", inputs, model, said, "cpu", facts["counts"], seconds, study.warnings)


def _csv(columns: Mapping[str, np.ndarray], ground: _Ground) -> str:
    """The table for people and programs: densities for a km² (px²), the differential one also for a metre (pixel)."""
    per, unit = _per(ground), ground.unit
    area = "km2" if unit == "m" else "px2"
    names = {"cumulative_density": f"cumulative_per_{area}", "differential": f"differential_per_{area}_{unit}"}
    shown: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        kind = next((start for start in names if name.startswith(start)), None)
        if kind:
            shown[name.replace(kind, names[kind])] = values * per
        else:
            shown[f"{name}_{unit}" if name.startswith("d_") else name] = values
    rows = [",".join(f"{value:.10g}" for value in row) for row in zip(*shown.values())]
    return "\n".join([",".join(shown), *rows])


def _plain(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def in_words(done: Done) -> str:
    """The result for a person."""
    facts, unit = done.facts, done.facts["unit"]
    density, counts = facts["density"], facts["counts"]
    lines = [f"  {name}: {path}" for name, path in done.outputs.items()]
    lines.append(
        f"  {counts['complete']} rocks of {density['of_at_least']:.3g} {unit} and more in "
        f"{_area_in_words(facts['area']['value'], unit)}: {density['value']:.4g} "
        f"({density['lower']:.4g} to {density['upper']:.4g}) per {density['per']}"
    )
    power, weibull = facts.get("power_law"), facts.get("weibull")
    if power:
        lines.append(
            f"  power law: N ~ D^-{power['exponent']:.3f} ({power['low']:.3f} to {power['high']:.3f}), "
            f"p = {power['ks_p']:.3f}"
        )
    if weibull and not weibull["is_power_law"]:
        lines.append(
            f"  Weibull: shape {weibull['shape']:.3f} ({weibull['shape_low']:.3f} to {weibull['shape_high']:.3f}), "
            f"scale {weibull['scale']:.3g} {unit}, p = {weibull['ks_p']:.3f}"
        )
    return "\n".join([*lines, *([f"  no fit: {facts['no_fit']}"] if "no_fit" in facts else [])])
