"""Place on a body: which world an image shows, where its pixels lie there, and how many metres they are wide.

Worlds are told apart by the axes of their ellipsoid and coordinate systems by what they do to coordinates, never
by their codes: a GeoTIFF or a shapefile loses the code of a lunar coordinate system, but never its numbers.
Angles are degrees, lengths metres, longitudes east positive within -180 … 180.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from affine import Affine
from pyproj import CRS, Proj, Transformer
from pyproj.exceptions import CRSError, ProjError

from lunar_processing.errors import ParameterError, PlanetError
from lunar_processing.grid import Grid


@dataclass(frozen=True)
class Body:
    """A world, with the semi-axes in metres on which lengths are measured: `a` equatorial, `b` polar."""

    name: str
    a: float
    b: float


BODIES = {
    "Moon": Body("Moon", 1_737_400.0, 1_737_400.0),
    "Mercury": Body("Mercury", 2_440_530.0, 2_438_260.0),
    "Mars": Body("Mars", 3_396_190.0, 3_376_200.0),
    "Vesta": Body("Vesta", 285_000.0, 229_000.0),
    "Ceres": Body("Ceres", 482_000.0, 446_000.0),
    "Earth": Body("Earth", 6_378_137.0, 6_356_752.314245),
}

LARGEST = 1e9  # metres: larger than the Sun
# Ranges in metres of the equatorial and the polar semi-axis of the ellipsoids and spheres in use for a body. The gaps
# keep out neighbours in size: Enceladus (252.1 km; 256.6 by 248.3) beside the 255 km sphere of Vesta, Callisto
# (2410.3 km) beside Mercury.
_AXES = (
    ("Moon", (1_735_000, 1_739_500), (1_735_000, 1_739_500)),
    ("Mercury", (2_437_000, 2_442_000), (2_437_000, 2_442_000)),
    ("Mars", (3_373_000, 3_399_000), (3_373_000, 3_399_000)),
    ("Vesta", (254_500, 290_000), (254_500, 290_000)),
    ("Vesta", (275_000, 290_000), (222_000, 235_000)),
    ("Ceres", (468_000, 490_000), (445_000, 490_000)),
    ("Earth", (6_350_000, 6_384_000), (6_350_000, 6_384_000)),
)


def body_of(wkt: str | None) -> Body | None:
    """The body of a coordinate system, with the axes it uses there.

    None without a coordinate system, or with one that is tied to no body (a local, engineering one). A body that
    is none of `BODIES` is called "unknown".
    """
    if wkt is None:
        return None
    ellipsoid = _base(_parse(wkt)).ellipsoid
    if ellipsoid is None:
        return None
    a, b = float(ellipsoid.semi_major_metre), float(ellipsoid.semi_minor_metre)
    if not (1 <= a <= LARGEST and 1 <= b <= LARGEST):
        raise PlanetError(
            f"The coordinate system is of a body with axes of {a:g} and {b:g} m.",
            "fetch the image again, for its label is damaged; or put the right one in with gdal_edit.py -a_srs.",
        )
    return Body(_name_by_axes(a, b), a, b)


def resolve_body(wkt: str | None, named: str | None) -> Body | None:
    """The body to measure on: the named one, or that of the coordinate system.

    Where both are the same world, the axes of the coordinate system hold. An image on the Earth is refused unless
    the Earth was named: nearly always, its coordinate system is wrong.
    """
    found = body_of(wkt)
    if named is not None:
        chosen = _body_named(named)
        return found if found is not None and found.name == chosen.name else chosen
    if found is not None and found.name == "Earth":
        raise PlanetError(
            f"The image is on the Earth by its coordinate system ({_parse(wkt or '').name}).",
            "if that coordinate system is wrong, name the body, as in --body Moon; "
            "to work on the Earth all the same: --body Earth.",
        )
    return found


def same_place(wkt_a: str | None, wkt_b: str | None) -> bool:
    """Whether two coordinate systems give every point of the same body the same coordinates.

    Compared by their effect: the names of methods and parameters differ between formats that mean the same.
    """
    if wkt_a is None or wkt_b is None:
        return wkt_a is wkt_b
    if wkt_a == wkt_b:
        return True
    body_a, body_b = body_of(wkt_a), body_of(wkt_b)
    if body_a is None or body_b is None:
        return body_a is body_b and _parse(wkt_a).equals(_parse(wkt_b))
    if not np.allclose((body_a.a, body_a.b), (body_b.a, body_b.b), rtol=1e-8, atol=0):
        return False
    lon, lat = (angle.ravel() for angle in np.meshgrid(np.arange(-175.0, 180, 25), np.arange(-85.0, 90, 10)))
    here = np.array(_to_geographic(wkt_a, body_a).transform(lon, lat, direction="INVERSE"))
    there = np.array(_to_geographic(wkt_b, body_b).transform(lon, lat, direction="INVERSE"))
    seen = np.isfinite(here)
    if not seen.any() or not np.array_equal(seen, np.isfinite(there)):
        return False
    here, there = here[seen], there[seen]
    return bool(np.allclose(here, there, rtol=1e-9, atol=1e-9 * np.median(np.abs(here))))


def lonlat(
    grid: Grid, col: np.ndarray | float, row: np.ndarray | float, body: Body | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of continuous image coordinates, in degrees.

    Latitudes are planetocentric where the coordinate system says so, else planetographic; on a sphere they are the
    same. NaN without a coordinate system on a body, and for pixels that look past the body's limb.
    """
    x, y = grid.xy(col, row)
    body = _measured_on(grid.wkt, body)
    if body is None or grid.wkt is None:
        return np.full(x.shape, np.nan), np.full(x.shape, np.nan)
    lon, lat = _geodetic(grid.wkt, body, x, y)
    lon = np.where(_beyond_the_poles(lat), np.nan, lon)
    lat = np.where(_beyond_the_poles(lat), np.nan, np.clip(lat, -90, 90))
    if _is_planetocentric(grid.wkt):
        slope = np.radians(lat)
        lat = np.asarray(np.degrees(np.arctan2(body.b**2 * np.sin(slope), body.a**2 * np.cos(slope))))
    return lon, lat


def grid_around(crs: str, lon: float, lat: float, pixel_size: float, width: int, height: int) -> Grid:
    """A north-up grid in a coordinate system (any name or WKT), centred on a place, whose pixels there are squares.

    `pixel_size` is in metres on the ground. Longitude and latitude as in `lonlat`, on a sphere.
    """
    wkt = _parse(crs).to_wkt()
    body = body_of(wkt)
    if body is None or body.name == "Earth":
        where = "no body" if body is None else "the Earth"
        raise PlanetError(f"{_parse(crs).name} lies on {where}.", "name one of the Moon, as IAU_2015:30135.")
    if not (-360 <= lon <= 360 and -90 <= lat <= 90):
        raise PlanetError(f"There is no place at longitude {lon:g}, latitude {lat:g}.", "give degrees, latitude ±90.")
    x, y = _to_geographic(wkt, body).transform(lon, lat, direction="INVERSE")
    if not (np.isfinite(x) and np.isfinite(y)):
        raise PlanetError(
            f"{_parse(crs).name} does not reach longitude {lon:g}, latitude {lat:g}.",
            "choose another --centre, or another --crs.",
        )
    step = pixel_size / (_metres_per_unit(wkt) or math.radians(1) * body.a)
    first = Grid(wkt, Affine(step, 0, x - step / 2, 0, -step, y + step / 2), 1, 1)
    size = metres_per_pixel(first, 0.5, 0.5, body)  # a map's own scale changes from place to place
    if size is None or not np.isfinite(size).all():
        raise PlanetError(f"{_parse(crs).name} has no scale there.", "choose another --centre, or another --crs.")
    across, down = (step * pixel_size / float(metres[0]) for metres in size)
    return Grid(wkt, Affine(across, 0, x - across * width / 2, 0, -down, y + down * height / 2), width, height)


def map_of(body: Body, lowest: float, highest: float) -> str:
    """WKT of a coordinate system for all between two latitudes: polar stereographic if all is within 30° of a pole,
    else longitude and latitude.
    """
    pole = 90 if lowest >= 60 else -90 if highest <= -60 else None
    if body == BODIES["Moon"]:  # by their names, which people know
        return _parse({90: "IAU_2015:30130", -90: "IAU_2015:30135", None: "IAU_2015:30100"}[pole]).to_wkt("WKT2_2019")
    axes = {"a": body.a, "b": body.b}
    system = {"proj": "longlat", **axes} if pole is None else {"proj": "stere", "lat_0": pole, "lon_0": 0, **axes}
    return CRS.from_dict(system).to_wkt("WKT2_2019")


def is_angular(wkt: str) -> bool:
    """Whether map coordinates are degrees."""
    return _metres_per_unit(wkt) is None


def from_centre(lon: np.ndarray, lat: np.ndarray, body: Body) -> np.ndarray:
    """Metres from the centre of the body, (n, 3): between near places, straight lines are their distances."""
    return _cartesian(np.asarray(lon, float), np.asarray(lat, float), body)


def jacobian(
    grid: Grid,
    col: np.ndarray | float,
    row: np.ndarray | float,
    body: Body | None = None,
    pixel_size: float | None = None,
) -> np.ndarray | None:
    """Ground vectors of one pixel at n image coordinates: (n, 2, 2) metres.

    `[:, :, 0]` is (east, north) of one step along a row of the image (column + 1), `[:, :, 1]` that of one step
    down (row + 1). Right at the poles, in degree pixels, and in rotated or south-up images, for it is measured on
    the body. Without a place on a body, the units of a local coordinate system give the size, else `pixel_size`
    (metres, square pixels, up is north); None where there is neither.
    """
    col, row = np.broadcast_arrays(np.atleast_1d(np.asarray(col, float)), np.atleast_1d(np.asarray(row, float)))
    col, row = col.ravel(), row.ravel()
    body = _measured_on(grid.wkt, body)
    if body is None or grid.wkt is None:
        return _flat_jacobian(grid, len(col), pixel_size)
    step_col, step_row = _steps(grid, body)
    d_col = np.array([0, step_col, -step_col, 0, 0])[:, None]
    d_row = np.array([0, 0, 0, step_row, -step_row])[:, None]
    lon, lat = _geodetic(grid.wkt, body, *grid.xy(col + d_col, row + d_row))
    at, right, left, below, above = _cartesian(lon, lat, body)
    moves = np.stack([_difference(at, right, left) / step_col, _difference(at, below, above) / step_row], axis=-1)
    moves[_beyond_the_poles(lat[0])] = np.nan
    return np.stack([np.einsum("nk,nkm->nm", unit, moves) for unit in _east_north(lon[0], lat[0])], axis=1)


def metres_per_pixel(
    grid: Grid,
    col: np.ndarray | float,
    row: np.ndarray | float,
    body: Body | None = None,
    pixel_size: float | None = None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Metres on the ground along a row and down a column of one pixel, at n image coordinates; or None."""
    ground = jacobian(grid, col, row, body, pixel_size)
    if ground is None:
        return None
    along, down = np.moveaxis(np.linalg.norm(ground, axis=1), -1, 0)
    return along, down


def pixel_area(
    grid: Grid,
    col: np.ndarray | float,
    row: np.ndarray | float,
    body: Body | None = None,
    pixel_size: float | None = None,
) -> np.ndarray | None:
    """Square metres of ground in one pixel, at n image coordinates; or None."""
    ground = jacobian(grid, col, row, body, pixel_size)
    return None if ground is None else np.abs(np.linalg.det(ground))


def equal_area(wkt: str, body: Body, x: np.ndarray, y: np.ndarray, lon: float, lat: float) -> np.ndarray:
    """Map coordinates as metres east and north of a place, in a plane where every area is true: (n, 2).

    Lengths are true near the place only. `lon` and `lat` (geodetic) are of that place; what is on no body is inf.
    """
    plane = Proj({"proj": "laea", "lat_0": lat, "lon_0": lon, "a": body.a, "b": body.b})
    return np.stack(plane(*_geodetic(wkt, body, np.asarray(x, float), np.asarray(y, float))), axis=-1)


def reproject(wkt: str, to: str, body: Body, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Map coordinates of one coordinate system in another of the same body; inf where that one does not reach."""
    geodetic = _to_geographic(wkt, body).transform(np.asarray(x, float), np.asarray(y, float))
    there_x, there_y = _to_geographic(to, body).transform(*geodetic, direction="INVERSE")
    return np.asarray(there_x), np.asarray(there_y)


def wkt_for(wkt: str, driver: str) -> str:
    """The coordinate system as that format ("GPKG", "ESRI Shapefile", "FlatGeobuf", "GTiff") keeps it for QGIS.

    Codes other than EPSG's and ESRI's are left out for vector files: GDAL writes IAU_2015 codes into a GeoPackage
    as those of an authority "IAU", which nobody knows, and QGIS then takes the layer for one without a coordinate
    system. Nothing is lost, for QGIS finds the code again by the parameters.
    """
    if driver == "GTiff":
        return wkt
    try:
        return CRS.from_json_dict(_without_foreign_codes(_parse(wkt).to_json_dict())).to_wkt()
    except CRSError:
        return wkt


def place_in_words(wkt: str | None, body: Body | None = None) -> str:
    """What will be measured and how, in one sentence for a person."""
    if wkt is None:
        return "No coordinate system: places are columns and rows."
    name = _parse(wkt).name
    body = _measured_on(wkt, body)
    if body is None:
        unit = _metres_per_unit(wkt)
        sizes = "sizes are taken from its units" if unit else "sizes are in pixels"
        return f"{name}: a local coordinate system on no body; no longitude and latitude, {sizes}."
    km = [f"{axis / 1000:.10g} km" for axis in (body.a, body.b)]
    axes = f"radius {km[0]}" if body.a == body.b else f"semi-axes {km[0]} and {km[1]}"
    world = "a body not known by its size" if body.name == "unknown" else body.name
    return f"{name}: on {world}, {axes}."


def _name_by_axes(a: float, b: float) -> str:
    for name, (a_low, a_high), (b_low, b_high) in _AXES:
        if a_low <= a <= a_high and b_low <= b <= b_high:
            return name
    return "unknown"


def _body_named(name: str) -> Body:
    for known, body in BODIES.items():
        if known.lower() == name.strip().lower():
            return body
    raise ParameterError(f"The body {name!r} is not known.", f"name one of {', '.join(BODIES)}.")


def _measured_on(wkt: str | None, body: Body | None) -> Body | None:
    """The given body in place of the coordinate system's own, where that has one."""
    own = body_of(wkt)
    return own if own is None or body is None else body


@lru_cache(maxsize=64)
def _parse(wkt: str) -> CRS:
    try:
        return CRS.from_user_input(wkt)
    except CRSError as error:
        raise PlanetError(
            f"The coordinate system cannot be understood: {' '.join(wkt.split())[:120]}…",
            "assign the right one, for example with gdal_edit.py -a_srs IAU_2015:30135 IMAGE.",
        ) from error


def _horizontal(crs: CRS) -> CRS:
    """The part that places points, without heights and without a shift to another datum."""
    if crs.is_compound:
        return _horizontal(crs.sub_crs_list[0])
    if crs.is_bound and crs.source_crs is not None:
        return _horizontal(crs.source_crs)
    return crs


def _base(crs: CRS) -> CRS:
    """The longitudes and latitudes under a projection or a rotated pole."""
    crs = _horizontal(crs)
    while (under := crs.source_crs) is not None:
        crs = _horizontal(under)
    return crs


@lru_cache(maxsize=64)
def _to_geographic(wkt: str, body: Body) -> Transformer:
    """From map coordinates (x, y) to geodetic longitude and latitude in degrees on the given body."""
    source = _on_body(_horizontal(_parse(wkt)).to_json_dict(), body)
    target = {
        "type": "GeographicCRS",
        "name": body.name,
        "datum": _datum(body),
        "coordinate_system": {
            "subtype": "ellipsoidal",
            "axis": [
                {"name": "Longitude", "abbreviation": "lon", "direction": "east", "unit": "degree"},
                {"name": "Latitude", "abbreviation": "lat", "direction": "north", "unit": "degree"},
            ],
        },
    }
    try:
        if _parse(wkt).is_geocentric:
            raise ProjError("x, y and z from the centre of the body are no map coordinates")
        return Transformer.from_crs(CRS.from_json_dict(source), CRS.from_json_dict(target), always_xy=True)
    except (CRSError, ProjError) as error:
        if body.a == body.b:  # PROJ refuses UTM on a sphere, but not on one flattened by a tenth of a millimetre
            return _to_geographic(wkt, replace(body, b=body.b * (1 - 1e-10)))
        raise PlanetError(
            f"Longitude and latitude cannot be computed in the coordinate system {_parse(wkt).name}.",
            "warp the image to an equirectangular or polar stereographic coordinate system of the body.",
        ) from error


def _on_body(crs: Any, body: Body) -> Any:
    """A coordinate system as JSON, with its datums replaced by the body's and its axes as x, y.

    The codes go, for they would bring the old ellipsoid back. Rasters store x first whatever the order of the
    axes; PROJ puts only (north, east) right by itself, not the (north, west) of planetographic systems.
    """
    if not isinstance(crs, dict):
        return crs
    changed = {key: _on_body(value, body) for key, value in crs.items() if key not in ("id", "ids")}
    for key in ("datum", "datum_ensemble"):
        old = changed.pop(key, None)
        if old is not None:
            changed["datum"] = _datum(body, old.get("prime_meridian"))
    axes = changed.get("axis")
    if axes and axes[0]["direction"] in ("north", "south") and axes[1]["direction"] in ("east", "west"):
        changed["axis"] = [axes[1], axes[0], *axes[2:]]
    return changed


def _without_foreign_codes(crs: Any) -> Any:
    if isinstance(crs, list):
        return [_without_foreign_codes(part) for part in crs]
    if not isinstance(crs, dict):
        return crs
    kept = {key: _without_foreign_codes(value) for key, value in crs.items() if key != "ids"}
    code = crs.get("id")
    if code is not None and code.get("authority") not in ("EPSG", "ESRI"):
        del kept["id"]
    return kept


def _datum(body: Body, prime_meridian: Any = None) -> dict[str, Any]:
    if body.a == body.b:
        ellipsoid: dict[str, Any] = {"name": body.name, "radius": body.a}
    else:
        ellipsoid = {"name": body.name, "semi_major_axis": body.a, "semi_minor_axis": body.b}
    return {
        "type": "GeodeticReferenceFrame",
        "name": body.name,
        "ellipsoid": ellipsoid,
        "prime_meridian": prime_meridian or {"name": "Reference Meridian", "longitude": 0},
    }


def _is_planetocentric(wkt: str) -> bool:
    system = _base(_parse(wkt)).coordinate_system
    return system is not None and system.name == "spherical"


def _geodetic(wkt: str, body: Body, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and geodetic latitude; NaN where the projection has none. A cylinder goes on beyond its poles."""
    lon, lat = (np.asarray(angle, float) for angle in _to_geographic(wkt, body).transform(x, y))
    lost = ~(np.isfinite(lon) & np.isfinite(lat))
    lon = np.where(lost, np.nan, (np.where(lost, 0.0, lon) + 180) % 360 - 180)
    return lon, np.where(lost, np.nan, lat)


def _beyond_the_poles(lat: np.ndarray) -> np.ndarray:
    """Whether a latitude is impossible by more than the rounding of pixel sizes in labels (about 30 m)."""
    return np.abs(lat) > 90.001


def _cartesian(lon: np.ndarray, lat: np.ndarray, body: Body) -> np.ndarray:
    """Metres from the centre of the body, shape (..., 3). Unlike degrees, these are smooth at the poles."""
    lon, lat = np.radians(lon), np.radians(lat)
    normal = body.a**2 / np.hypot(body.a * np.cos(lat), body.b * np.sin(lat))
    across, up = normal * np.cos(lat), normal * (body.b / body.a) ** 2 * np.sin(lat)
    return np.stack([across * np.cos(lon), across * np.sin(lon), up], axis=-1)


def _steps(grid: Grid, body: Body) -> tuple[float, float]:
    """Pixels to go along a row and down a column to measure them: about a ten-thousandth of the body's radius.

    Not half a pixel: within some metres of a pole, PROJ's polar stereographic is good to centimetres only, and
    pixels of several degrees are too bent.
    """
    axis = _horizontal(_parse(grid.wkt or "")).axis_info[0]
    angular = _metres_per_unit(grid.wkt) is None
    metres_per_unit = axis.unit_conversion_factor * (body.a if angular else 1.0)
    t = grid.transform
    length = 1e-4 * body.a / metres_per_unit
    return length / math.hypot(t.a, t.d), length / math.hypot(t.b, t.e)


def _difference(centre: np.ndarray, after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Half the way from before to after; where one of them is off the map, the way to the other."""
    both = (after - before) / 2
    one = np.where(np.isfinite(after), after - centre, centre - before)
    return np.where(np.isfinite(both), both, one)


def _east_north(lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors to the east and to the north, shape (n, 3) each."""
    lon, lat = np.radians(lon), np.radians(lat)
    zero = np.zeros_like(lon)
    east = np.stack([-np.sin(lon), np.cos(lon), zero], axis=-1)
    north = np.stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)], axis=-1)
    return east, north


def _flat_jacobian(grid: Grid, n: int, pixel_size: float | None) -> np.ndarray | None:
    unit = _metres_per_unit(grid.wkt)
    if unit is not None:
        t = grid.transform
        one = unit * np.array([[t.a, t.b], [t.d, t.e]])
    elif pixel_size is not None:
        if not (math.isfinite(pixel_size) and pixel_size > 0):
            raise PlanetError(f"A pixel of {pixel_size} m has no size.", "give a --pixel-size above 0.")
        one = np.diag([pixel_size, -pixel_size])
    else:
        return None
    return np.broadcast_to(one, (n, 2, 2)).copy()


def _metres_per_unit(wkt: str | None) -> float | None:
    """Metres in one map unit; None for angles and nameless units."""
    if wkt is None:
        return None
    axes = _horizontal(_parse(wkt)).to_json_dict().get("coordinate_system", {}).get("axis", [])
    unit = axes[0].get("unit") if axes else None
    if unit == "metre":
        return 1.0
    if isinstance(unit, dict) and unit.get("type") == "LinearUnit":
        return float(unit["conversion_factor"]) or None  # GDAL writes 0 for an unknown unit
    return None
