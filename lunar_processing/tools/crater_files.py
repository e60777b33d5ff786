"""Files that crater-counting programs read: `.diam` and `.scc` of Craterstats, the shapefiles of OpenCraterTool.

The layout is that of the sample files and readers of Craterstats 3.2 and of what OpenCraterTool 0.3 writes and reads.
They say "crater" for whatever is counted; diameters are in km, areas in km², places in degrees. No age follows from
rocks: their sizes tell of breaking, not of time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import shapely

from lunar_processing.planet import Body
from lunar_processing.vector import Layer

CORNERS = 36  # of the circle that stands for a rock
TAG = "standard"  # what OpenCraterTool calls an object that counts


@dataclass(frozen=True)
class Catalogue:
    """Rocks in their searched area: metres, square metres, degrees."""

    name: str
    body: Body
    diameter: np.ndarray
    lon: np.ndarray
    lat: np.ndarray
    area: float
    complete: float


def diam(catalogue: Catalogue) -> str:
    """The text of a `.diam` file."""
    return "\n".join(
        [
            "# Diameters of rocks, not craters, in the layout of Craterstats",
            f"# complete from {catalogue.complete / 1000:.9f} km",
            "# area, km^2",
            f"area = {catalogue.area / 1e6:.12f}",
            "#",
            "# diameter in km, fraction, lon and lat in degrees",
            "crater = {diameter, fraction, lon, lat",
            *_rows(catalogue),
            "}",
        ]
    )


def scc(catalogue: Catalogue, outline: shapely.Geometry | None) -> str:
    """The text of a `.scc` file; `outline` is the searched area in longitude and latitude."""
    body = catalogue.body
    axes = {"a": body.a, "b": body.a, "c": body.b}
    name = _one_word(catalogue.name)
    return "\n".join(
        [
            "# Spatial crater count",
            "#",
            "# Rocks, not craters: no age follows from them",
            f"# complete from {catalogue.complete / 1000:.9f} km",
            "#",
            "# Ellipsoid axes:",
            *(f"{axis}_axis_radius = {length / 1000:.6f} <km>" for axis, length in axes.items()),
            f"coordinate_system_name = {body.name}",
            "#",
            "# area_shapes:",
            *(_boundary(outline) if outline is not None else ()),
            "# area_info:",
            "sub_area = {name, area, perimeter",
            f"{name}\t{catalogue.area / 1e6:.12f}\t{0:.6f}",
            "}",
            "#",
            f"Total_area = {catalogue.area / 1e6:.12f} <km^2>",
            "#",
            "# crater_diameters:",
            "crater = {diam, fraction, lon, lat, topo_scale_factor",
            *(f"{row}\t1" for row in _rows(catalogue)),
            "}",
        ]
    )


def circle(diameter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """East and north (n, CORNERS) of polygons that have the area of circles of these diameters."""
    angle = np.arange(CORNERS) * 2 * math.pi / CORNERS
    radius = diameter[:, None] / 2 * math.sqrt(2 * math.pi / (CORNERS * math.sin(2 * math.pi / CORNERS)))
    return radius * np.sin(angle), radius * np.cos(angle)


def craters(catalogue: Catalogue, circles: np.ndarray, wkt: str | None) -> Layer:
    """The layer …_CRATER: circles, as OpenCraterTool draws and measures them."""
    fields = {
        "Diam_km": catalogue.diameter / 1000,
        "x_coord": catalogue.lon,
        "y_coord": catalogue.lat,
        "tag": np.full(len(circles), TAG, dtype=object),
    }
    return Layer("craters", circles, fields, wkt, "Polygon", "Rocks as circles")


def areas(catalogue: Catalogue, parts: np.ndarray, area: np.ndarray, wkt: str | None) -> Layer:
    """The layer …_AREA: a feature for each part of the searched area, with its square metres, in km²."""
    names = np.array([f"{_one_word(catalogue.name)}_{i}" for i in range(1, len(parts) + 1)], dtype=object)
    return Layer("areas", parts, {"area": area / 1e6, "area_name": names}, wkt, "Polygon", "Searched area")


def _rows(catalogue: Catalogue) -> Iterator[str]:
    for diameter, lon, lat in zip(catalogue.diameter, catalogue.lon, catalogue.lat):
        yield f"{diameter / 1000:.9f}\t1\t{lon:.12f}\t{lat:.12f}"


def _boundary(outline: shapely.Geometry) -> Iterator[str]:
    """Rings in turn, outer ones ("ext") before their holes ("int"), closed."""
    yield "unit_boundary = {vertex, sub_area, tag, lon, lat"
    vertex = 0
    rings = [
        (ring, tag)
        for polygon in shapely.get_parts(outline)
        for ring, tag in [(polygon.exterior, "ext"), *((hole, "int") for hole in polygon.interiors)]
    ]
    for number, (ring, tag) in enumerate(rings, 1):
        for lon, lat in shapely.get_coordinates(ring):
            vertex += 1
            yield f"{vertex}\t{number}\t{tag}\t{lon:.12f}\t{lat:.12f}"
    yield "}"
    yield "#"


def _one_word(name: str) -> str:
    """Names of areas end at a blank."""
    return re.sub(r"[^\w.-]+", "_", name) or "area"
