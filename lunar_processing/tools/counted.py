"""What counts: rocks with diameters, the ground they lie on, the area they were looked for in, and from what size on.

Lengths and areas are those on the ground, never those of a map: in metres, or in pixels where no scale is known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from lunar_processing import planet, sizes
from lunar_processing.draft import is_there
from lunar_processing.errors import DataError, ParameterError, PlanetError
from lunar_processing.grid import PIXEL_SPACE, Grid
from lunar_processing.tools.job import SCALE_TOLERANCE, Report
from lunar_processing.tools.rocks import AREA, COMPLETE_PX, POINTS, beside
from lunar_processing.vector import Layer, layers_of, read_layer

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


@dataclass
class Study:
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
class Ground:
    """How map coordinates become lengths: metres (`unit` "m"), or pixels ("px") where no scale is known."""

    wkt: str | None
    body: planet.Body | None
    pixel_size: float | None  # metres, where known
    unit: str

    @property
    def per(self) -> float:
        """What a density is for: a km², or a px²."""
        return 1e6 if self.unit == "m" else 1.0

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
class Rocks:
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


def read_rocks(study: Study) -> tuple[Rocks, Ground]:
    """The rocks that have a diameter, and the ground they lie on."""
    wishes = study.wishes
    text = _layer_of_rocks(wishes.rocks)
    layer = read_layer(text)
    if "Point" not in layer.geometry_type:
        raise DataError(
            f"{text} holds {layer.geometry_type} and no points.", "give the layer of points that `lunar rocks` writes."
        )
    told = _said(layer)
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
    rocks = Rocks(layer, source, name, shapely.get_x(points), shapely.get_y(points), values[good], covers, edge, told)
    study.info(f"{len(rocks.diameter)} rocks of {source.name}, diameters from the field {name} in {unit}.")
    return rocks, ground


def _layer_of_rocks(text: str) -> str:
    """The layer of rocks of a file of several: the one of that name, or the only one of points."""
    if "|" in text:
        return text
    points = [name for name, kind in layers_of(text).items() if "Point" in kind] if is_there(Path(text)) else []
    chosen = POINTS if POINTS in points else points[0] if len(points) == 1 else None
    return f"{text}|layername={chosen}" if chosen and text.lower().endswith(".gpkg") else text


def _said(layer: Layer) -> Mapping[str, Any]:
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


def _ground(study: Study, layer: Layer, told: Mapping[str, Any], unit: str) -> Ground:
    """The scale: of the coordinate system, else of the pixels."""
    wishes = study.wishes
    body = planet.resolve_body(layer.wkt, wishes.body)
    in_crs = planet.jacobian(Grid(layer.wkt, PIXEL_SPACE, 1, 1), 0.0, 0.0, body) is not None
    recorded = told.get("parameters", {}).get("pixel_size") or _pixel_size_of(layer)
    if wishes.pixel_size and recorded and abs(wishes.pixel_size / recorded - 1) > SCALE_TOLERANCE:
        study.warn(f"The pixel size {wishes.pixel_size:g} m is used as asked; the layer tells of {recorded:.4g} m.")
    size = wishes.pixel_size or recorded
    if in_crs or size or (unit != "px" and _is_number(wishes.area)):
        return Ground(layer.wkt, body if in_crs else None, size, "m")
    if unit != "px":
        raise DataError(
            f"Diameters are in {unit}, but the layer has neither a coordinate system nor a known pixel size: its area "
            "cannot be measured.",
            "give --pixel-size in metres, or the --area as a number in m².",
        )
    study.warn("No scale is known: sizes are in pixels and counts for a px². Give metres with --pixel-size.")
    return Ground(layer.wkt, None, None, "px")


def _pixel_size_of(layer: Layer) -> float | None:
    """Metres of a pixel, from two fields of `lunar rocks`."""
    if not {"diam_eq_m", "diam_eq_px"} <= set(layer.fields):
        return None
    ratio = layer.fields["diam_eq_m"] / np.where(layer.fields["diam_eq_px"] > 0, layer.fields["diam_eq_px"], np.nan)
    return float(np.nanmedian(ratio)) if np.isfinite(ratio).any() else None


def _factor(unit: str, ground: Ground) -> float:
    if unit != "px":
        return {"m": 1.0, "km": 1000.0}[unit]
    if ground.unit == "px":
        return 1.0
    if ground.pixel_size is None:
        raise DataError("Diameters are in pixels of unknown size.", "give --pixel-size in metres.")
    return ground.pixel_size


# ---- the searched area -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Area:
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


def read_area(study: Study, rocks: Rocks, ground: Ground) -> Area:
    """The searched area: as a number, from the layer that is named, or from the one beside the rocks."""
    text = study.wishes.area
    if text is not None and _is_number(text):
        value = float(text)
        if value <= 0:
            raise ParameterError(f"A searched area of {value:g} {ground.unit}² is not possible.", "give more than 0.")
        study.warn(
            f"The searched area is a number ({value:g} {ground.unit}²): whether the rocks lie in it cannot be checked, "
            "and there is neither a raster of abundance nor an outline for other programs."
        )
        return Area(value, None, f"{value:g} {ground.unit}², as given")
    layer, path = _area_layer(text, rocks, study.wishes)
    shape = _outline(study, layer)
    wkt = layer.wkt
    _same_world(rocks.layer, layer, study.wishes)
    fine = _finer(shape) if ground.body else shape
    measured = ground.area_of(fine, wkt)
    if not measured > 0:
        raise PlanetError(
            f"The searched area of {layer.name} lies beyond the edge of its map.",
            "assign it the right coordinate system.",
        )
    value, source = _believed(study, layer, measured, ground)
    if ground.body and wkt and rocks.layer.wkt and not planet.same_place(wkt, rocks.layer.wkt):
        fine = _on_map_of(rocks.layer.wkt, wkt, ground, fine, measured)
    study.info(f"Searched area: {area_in_words(value, ground.unit)}, {source}.")
    return Area(value, fine, source, path)


def _area_layer(text: str | None, rocks: Rocks, wishes: Wishes) -> tuple[Layer, Path]:
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


def _outline(study: Study, layer: Layer) -> shapely.Geometry:
    """All polygons of a layer as one; what overlaps counts once."""
    valid = shapely.is_valid(layer.geometry)
    if not valid.all():
        study.warn(f"{int((~valid).sum())} polygons of {layer.name} cross themselves; they were put right.")
    whole = shapely.union_all(np.where(valid, layer.geometry, shapely.make_valid(layer.geometry)))
    polygons = [part for part in shapely.get_parts(whole) if isinstance(part, shapely.Polygon)]
    if not polygons:
        raise DataError(f"The searched area of {layer.name} is zero.", "give a layer of polygons with an area.")
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


def _believed(study: Study, layer: Layer, measured: float, ground: Ground) -> tuple[float, str]:
    """The area that `lunar rocks` counted pixel by pixel, if the outline still has it; else that of the outline."""
    name = "area_m2" if ground.unit == "m" else "valid_px"
    recorded = float(np.nansum(layer.fields[name].astype(float))) if name in layer.fields else 0.0
    if recorded <= 0:
        return measured, f"measured on the ground from the polygons of {layer.name}"
    if abs(measured / recorded - 1) <= SAME_AREA and len(layer.geometry) == 1:
        return recorded, f"as the field {name} of {layer.name} says, which its outline confirms"
    study.warn(
        f"The field {name} of {layer.name} says {area_in_words(recorded, ground.unit)}, but its polygons have "
        f"{area_in_words(measured, ground.unit)}: they were edited or joined, and what they have is used."
    )
    return measured, f"measured on the ground from the polygons of {layer.name}, not from its field {name}"


def _on_map_of(wkt: str, own: str, ground: Ground, shape: shapely.Geometry, area: float) -> shapely.Geometry:
    body = ground.body
    assert body is not None
    moved = shapely.transform(shape, lambda xy: np.stack(planet.reproject(own, wkt, body, xy[:, 0], xy[:, 1]), axis=-1))
    if not abs(ground.area_of(moved, wkt) / area - 1) < SAME_AREA / 10:
        raise PlanetError(
            "The searched area does not lie in one piece on the map of the rocks.",
            "reproject rocks and area to one coordinate system, as IAU_2015:30135 near the south pole.",
        )
    return moved


def area_in_words(value: float, unit: str) -> str:
    """An area with a unit that suits its size."""
    if unit == "px":
        return f"{value:,.0f} px²".replace(",", " ")
    return f"{value / 1e6:.4g} km²" if value >= 1e4 else f"{value:.4g} m²"


# ---- what counts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """The rocks that count (as a mask of all), and how many do not and why."""

    chosen: np.ndarray
    diameter: np.ndarray  # of the chosen ones
    outside: int
    on_edge: int


def count(study: Study, rocks: Rocks, area: Area) -> Counted:
    """Choose the rocks whose middle lies in the area and, if so asked, whose size is known for sure."""
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
    return Counted(chosen, rocks.diameter[chosen], outside, on_edge)


def _refuse_strangers(rocks: Rocks, area: Area) -> None:
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
class Limit:
    """The diameter from which on counts are complete, why that one, and where the counts themselves peak."""

    value: float
    source: str
    roll_off: float | None


def completeness(study: Study, rocks: Rocks, counted: Counted, ground: Ground) -> Limit:
    """From which diameter on the counts are taken for complete; never from below what the layer was cut off at."""
    peak = sizes.roll_off(counted.diameter)
    pixel = 1.0 if ground.unit == "px" else ground.pixel_size
    left_out = float(rocks.told.get("parameters", {}).get("min_diameter") or 0.0)
    asked, unit = study.wishes.min_diameter, ground.unit
    if asked is not None:
        limit = Limit(asked, "as asked", peak)
        if pixel and asked < COMPLETE_PX * pixel * 0.999:
            study.warn(f"Below {COMPLETE_PX} px ({COMPLETE_PX * pixel:.3g} {unit}) counts are rarely complete.")
    elif pixel:
        limit = Limit(COMPLETE_PX * pixel, f"{COMPLETE_PX} px", peak)
    else:
        smallest = float(counted.diameter.min()) if len(counted.diameter) else 1.0
        limit = Limit(peak or smallest, "where the counts peak" if peak else "the smallest rock", peak)
        study.warn(
            f"The pixel size is not known, so neither is where counts become complete: {limit.value:.3g} {unit} is "
            f"taken, {limit.source}. Give --pixel-size or --min-diameter."
        )
    if left_out > limit.value:
        study.warn(f"Rocks below {left_out:g} {unit} were left out of the layer: counts are complete from there on.")
        limit = Limit(left_out, "what the layer holds", peak)
    if (study.wishes.max_diameter or math.inf) <= limit.value:
        raise ParameterError(
            f"The largest diameter is not above {limit.value:.3g} {unit}, where counts become complete.",
            "give a larger --max-diameter.",
        )
    if peak and peak > 1.2 * limit.value:
        study.warn(
            f"The counts peak at {peak:.3g} {unit}, above the limit of {limit.value:.3g} {unit} from which they are "
            f"fitted: rocks may be missing there. Compare with --min-diameter {peak:.3g}."
        )
    return limit
