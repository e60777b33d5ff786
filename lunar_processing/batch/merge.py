"""All products of a batch as one GeoPackage on one map: each thing once, what was searched, which image lies where.

What lies on a body is brought onto one map of it: that of the images where they share one, else polar stereographic or
longitude and latitude. What two images show is one thing: the finest image's stays in the layer, the others go to the
layer `…_seen_again`, with the id it has there. What has no place stays apart, in the pixels of its image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

import lunar_processing
from lunar_processing import planet
from lunar_processing.errors import LunarError
from lunar_processing.grid import PIXEL_SPACE, Grid
from lunar_processing.provenance import versions
from lunar_processing.tools.anomalies import POINTS as ANOMALIES
from lunar_processing.tools.rocks import AREA
from lunar_processing.tools.rocks import POINTS as ROCKS
from lunar_processing.vector import Layer, Target, read_layer, write_layers

LAYERS = {"rocks": ROCKS, "anomalies": ANOMALIES}
AGAIN, UNPLACED, PRODUCTS = "_seen_again", "_without_place", "products"
# Two rocks of different images are one if their middles are no further apart than half a diameter, or so many pixels
# where they are small, and one is at most so many times as large as the other.
NEAR_PX, LIKE = 2.0, 1.5
PIECES = 64  # of a straight edge, which is curved on another map

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Merged:
    """What was written; counts of things, of those seen again, and square metres searched."""

    path: Path
    body: str
    counts: Mapping[str, Any]
    pixel_size: float | None  # the coarsest, metres


def merge(entries: Sequence[Entry], products: Path, tool: str, out: Path) -> tuple[list[Merged], list[str]]:
    """One file for each body there is (nearly always one), and warnings."""
    warnings: list[str] = []
    groups: dict[str, list[_Product]] = {}
    for entry in sorted(entries, key=lambda entry: str(entry["product"])):
        try:
            product = _Product.read(entry, products, tool)
        except LunarError as error:
            warnings.append(f"{entry['product']} is not in the merged file: {error}")
            continue
        groups.setdefault(product.body.name if product.body else "", []).append(product)
    placed = [name for name in groups if name]
    home = placed[0] if placed else ""  # what has no place goes with the first
    merged = []
    for name in placed or list(groups):
        path = out / ("merged.gpkg" if len(placed) <= 1 else f"merged_{name}.gpkg")
        strays = groups.get("", []) if name and name == home else []
        merged.append(_merge(groups[name], strays, tool, path, warnings))
    return merged, warnings


# ---- one product -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Product:
    entry: Entry
    body: planet.Body | None
    wkt: str | None
    found: Layer | None  # rocks or anomalies
    area: Layer | None

    @classmethod
    def read(cls, entry: Entry, products: Path, tool: str) -> _Product:
        if tool not in LAYERS:
            body = planet.BODIES.get(str(entry.get("body")))
            return cls(entry, body if entry.get("outline") else None, None, None, None)
        file = products / entry["outputs"]["rocks" if tool == "rocks" else "points"]
        found = read_layer(f"{file}|layername={LAYERS[tool]}")
        whose = np.full(len(found.geometry), str(entry["product"]), dtype=object)
        found = replace(found, fields={"product": whose, **found.fields})
        area = read_layer(f"{file}|layername={AREA}") if tool == "rocks" else None
        # A coordinate system of the Earth, which the user has said to be wrong, places nothing here.
        body = planet.body_of(found.wkt)
        known = body is not None and body.name != "Earth" and entry.get("outline")
        return cls(entry, body if known else None, found.wkt if known else None, found, area)


def _merge(group: list[_Product], strays: list[_Product], tool: str, path: Path, warnings: list[str]) -> Merged:
    body = group[0].body
    layers: list[Layer] = []
    sizes = [float(p.entry["pixel_size"]) for p in [*group, *strays] if p.entry.get("pixel_size")]
    record = _record([*group, *strays], tool, max(sizes, default=None))
    counts: dict[str, Any] = {"products": len(group) + len(strays)}
    if body is None:
        strays = group
    else:
        wkt = _map(group, body)
        if tool in LAYERS:
            things = _things(group, wkt, body, record)
            layers += things
            counts |= {"things": len(things[0].geometry), "seen again": len(things[1].geometry)}
        if tool == "rocks":
            area, square_metres = _searched(group, wkt, body, record, warnings)
            layers.append(area)
            counts["searched_m2"] = square_metres
        layers.append(_footprints(group, wkt, body, record, warnings))
    apart = [p.found for p in strays if p.found is not None]
    if apart:
        layers.append(_joined(f"{LAYERS[tool]}{UNPLACED}", apart, None, "In pixels of their images", record))
        counts["without place"] = len(layers[-1].geometry)
    for ending in ("", "-wal", "-shm", "-journal"):
        path.with_name(f"{path.name}{ending}").unlink(missing_ok=True)
    write_layers([(layer, Target(path, layer.name, "GPKG")) for layer in layers])
    return Merged(path, body.name if body else "", counts, max(sizes, default=None))


def _map(group: list[_Product], body: planet.Body) -> str:
    """The map that all share, or one that suits where they lie."""
    shared = list(dict.fromkeys(p.wkt for p in group if p.wkt))
    if shared and all(planet.same_place(shared[0], other) for other in shared[1:]):
        return shared[0]
    latitudes = [lat for p in group for _, lat in p.entry["outline"]]
    return planet.map_of(body, min(latitudes), max(latitudes))


# ---- things ------------------------------------------------------------------------------------------------------


def _things(group: list[_Product], wkt: str, body: planet.Body, record: str) -> list[Layer]:
    """Each thing once, and those that were seen again."""
    name = group[0].found.name if group[0].found else ""
    parts = [_on_map(p.found, wkt, body) for p in group if p.found is not None]
    every = _joined(name, parts, wkt, "", record)
    of = np.repeat(np.arange(len(parts)), [len(part.geometry) for part in parts])
    pixel = np.array([p.entry.get("pixel_size") or np.nan for p in group], float)[of]
    first = same_things(every, of, pixel, body)
    seen = np.bincount(first, minlength=len(first))[first] if len(first) else first
    ids = np.arange(1, len(first) + 1)
    fields = {"merged_id": ids, **every.fields, "seen_in": seen}
    unique = first == np.arange(len(first))
    once = replace(every, geometry=every.geometry[unique], fields={k: v[unique] for k, v in fields.items()})
    again = {**{k: v[~unique] for k, v in fields.items()}, "same_as": ids[first][~unique]}
    text = "Seen in a finer image too, where same_as is its merged_id"
    return [
        replace(once, description="Each once, from all products"),
        replace(every, name=f"{name}{AGAIN}", geometry=every.geometry[~unique], fields=again, description=text),
    ]


def same_things(layer: Layer, of: np.ndarray, pixel: np.ndarray, body: planet.Body) -> np.ndarray:
    """For each thing the number of the one that stands for it, itself where it is the only or the best.

    `of` is the number of its image, `pixel` the size of that image's pixels in metres. Things are the same if each is
    the other's nearest in its image, near enough and alike in size.
    """
    n = len(of)
    itself = np.arange(n)
    lon, lat = (layer.fields[name].astype(float) for name in ("lon", "lat"))
    size, reach = _size_and_reach(layer, pixel)
    known = np.flatnonzero(np.isfinite(lon) & np.isfinite(lat) & np.isfinite(reach))
    if len(known) < 2 or len(set(of.tolist())) < 2:
        return itself
    places = planet.from_centre(lon[known], lat[known], body)
    pairs = known[cKDTree(places).query_pairs(float(reach[known].max()), output_type="ndarray")]
    pairs = pairs[of[pairs[:, 0]] != of[pairs[:, 1]]]
    xyz = np.full((n, 3), np.nan)
    xyz[known] = places
    apart = np.linalg.norm(xyz[pairs[:, 0]] - xyz[pairs[:, 1]], axis=1)
    ratio = size[pairs].max(axis=1) / np.maximum(size[pairs].min(axis=1), 1e-9)
    fits = (apart <= reach[pairs].max(axis=1)) & (ratio <= LIKE)
    pairs, apart = pairs[fits], apart[fits]
    both = _nearest(pairs, apart, of) & _nearest(pairs[:, ::-1], apart, of)
    pairs = pairs[both]
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, group = connected_components(graph, directed=False)
    # The finest image's, then the surest; NaN sizes of pixels come last.
    order = np.lexsort((itself, -layer.fields["score"].astype(float), np.nan_to_num(pixel, nan=np.inf), group))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    best = order[starts]
    return best[group]


def _size_and_reach(layer: Layer, pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Metres: how large each thing is, and how far away its picture in another image may be."""
    if "diam_eq_m" in layer.fields:
        size = layer.fields["diam_eq_m"].astype(float)
        return size, np.fmax(size / 2, NEAR_PX * pixel)
    window = layer.fields["window_m"].astype(float)
    return np.ones(len(window)), window / 2


def _nearest(pairs: np.ndarray, apart: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Which pairs are, of all pairs of their first with things of the second's image, the closest."""
    order = np.lexsort((apart, of[pairs[:, 1]], pairs[:, 0]))
    first, image = pairs[order, 0], of[pairs[order, 1]]
    new = (np.diff(first, prepend=-1) != 0) | (np.diff(image, prepend=-1) != 0)
    nearest = np.zeros(len(pairs), bool)
    nearest[order[new]] = True
    return nearest


def _joined(name: str, parts: list[Layer], wkt: str | None, description: str, record: str) -> Layer:
    """Layers of one kind as one; a field that one of them lacks is empty there."""
    names = list(dict.fromkeys(field for part in parts for field in part.fields))
    fields = {field: np.concatenate([_column(part, field) for part in parts]) for field in names}
    geometry = np.concatenate([part.geometry for part in parts])
    return Layer(name, geometry, fields, wkt, parts[0].geometry_type, description, record)


def _column(part: Layer, field: str) -> np.ndarray:
    if field in part.fields:
        return part.fields[field]
    return np.full(len(part.geometry), np.nan)


# ---- on one map --------------------------------------------------------------------------------------------------


def _on_map(layer: Layer | None, wkt: str, body: planet.Body) -> Layer:
    """A layer in another coordinate system; as it is where that is its own."""
    assert layer is not None
    if layer.wkt is None or planet.same_place(layer.wkt, wkt):
        return replace(layer, wkt=wkt)
    source = layer.wkt

    def move(xy: np.ndarray) -> np.ndarray:
        return np.stack(planet.reproject(source, wkt, body, xy[:, 0], xy[:, 1]), axis=-1)

    geometry = layer.geometry
    if len(geometry) and "Polygon" in layer.geometry_type:
        geometry = np.array([_finer(shape) for shape in geometry], dtype=object)
    moved = shapely.transform(geometry, move)
    if planet.is_angular(wkt) and "Polygon" in layer.geometry_type:
        moved = np.array([split_at_antimeridian(shape) for shape in moved], dtype=object)
    return replace(layer, geometry=moved, wkt=wkt)


def _finer(shape: shapely.Geometry) -> shapely.Geometry:
    left, low, right, high = shape.bounds
    return shapely.segmentize(shape, max(right - left, high - low, 1e-12) / PIECES)


def split_at_antimeridian(shape: shapely.Geometry) -> shapely.MultiPolygon:
    """A shape in degrees, cut where it crosses 180°; empty if it goes around a pole, for it is no shape in degrees."""
    pieces = []
    for polygon in shapely.get_parts(shape):
        unrolled = [np.array(ring.coords) for ring in (polygon.exterior, *polygon.interiors)]
        for xy in unrolled:
            xy[:, 0] = np.unwrap(xy[:, 0], period=360)
        if any(abs(xy[0, 0] - xy[-1, 0]) > 180 for xy in unrolled):
            return shapely.MultiPolygon()
        middle = unrolled[0][:, 0].mean()
        for xy in unrolled[1:]:
            xy[:, 0] += 360 * np.round((middle - xy[:, 0].mean()) / 360)
        whole = shapely.make_valid(shapely.Polygon(unrolled[0], unrolled[1:]))
        for turn in (-360, 0, 360):
            inside = shapely.intersection(whole, shapely.box(turn - 180, -90, turn + 180, 90))
            pieces.append(shapely.transform(inside, lambda xy, turn=turn: xy - [turn, 0]))
    found = shapely.get_parts(shapely.union_all(pieces)) if pieces else []
    return shapely.MultiPolygon([piece for piece in found if isinstance(piece, shapely.Polygon)])


# ---- what was searched -------------------------------------------------------------------------------------------


def _searched(
    group: list[_Product], wkt: str, body: planet.Body, record: str, warnings: list[str]
) -> tuple[Layer, float]:
    """The searched areas as one, and its square metres: those of all images, less what several have in common."""
    shapes, measured = [], []
    for product in group:
        area = _on_map(product.area, wkt, body)
        shape = shapely.union_all(area.geometry)
        if shape.is_empty and product.entry["counts"].get("valid_px"):
            warnings.append(f"The searched area of {product.entry['product']} goes around a pole: it is not drawn.")
        shapes.append(shape)
        measured.append(float(np.nansum(area.fields["area_m2"].astype(float))))
    union = shapely.union_all(np.array(shapes, dtype=object))
    drawn = np.array([_square_metres(shape, wkt, body) for shape in shapes])
    # Pixels were counted, outlines are drawn: the counts hold, less the share that overlaps by the outlines.
    common = _square_metres(union, wkt, body) / drawn.sum() if drawn.sum() > 0 else 1.0
    total = float(sum(measured)) * min(common, 1.0)
    parts = [part for part in shapely.get_parts(union) if isinstance(part, shapely.Polygon)]
    fields = {
        "area_m2": np.array([total]),
        "valid_px": np.array([sum(int(p.entry["counts"].get("valid_px", 0)) for p in group)]),
        "products": np.array([len(group)]),
    }
    outline = np.array([shapely.MultiPolygon(parts)], dtype=object)
    text = "The area that was searched in any of the products"
    return Layer(AREA, outline, fields, wkt, "MultiPolygon", text, record), round(total, 3)


def _square_metres(shape: shapely.Geometry, wkt: str, body: planet.Body) -> float:
    """On the ground; each part in a plane of its own, for they may lie anywhere on the body."""
    total = 0.0
    for part in shapely.get_parts(shape):
        if not isinstance(part, shapely.Polygon) or part.is_empty:
            continue
        point = part.representative_point()
        lon, lat = planet.lonlat(Grid(wkt, PIXEL_SPACE, 1, 1), point.x, -point.y, body)
        place = (float(lon), float(lat))
        plane = shapely.transform(
            part, lambda xy, place=place: planet.equal_area(wkt, body, xy[:, 0], xy[:, 1], *place)
        )
        total += float(plane.area) if math.isfinite(plane.area) else 0.0
    return total


def _footprints(group: list[_Product], wkt: str, body: planet.Body, record: str, warnings: list[str]) -> Layer:
    """Where each image lies, and what came of it."""
    degrees = planet.map_of(body, -90.0, 90.0)
    ring = [shapely.Polygon(p.entry["outline"]) for p in group]
    shapes = np.array([shapely.MultiPolygon([polygon]) for polygon in ring], dtype=object)
    layer = Layer(PRODUCTS, shapes, {}, degrees, "MultiPolygon", "Outlines of the images", record)
    if planet.is_angular(wkt):
        moved = np.array([split_at_antimeridian(shape) for shape in shapes], dtype=object)
    else:  # corner by corner: between 179° and -179° there is no way in degrees

        def move(xy: np.ndarray) -> np.ndarray:
            return np.stack(planet.reproject(degrees, wkt, body, xy[:, 0], xy[:, 1]), axis=-1)

        moved = shapely.transform(shapes, move)
    lost = [str(p.entry["product"]) for p, shape in zip(group, moved) if shape.is_empty]
    if lost:
        warnings.append(f"{len(lost)} images go around a pole and are not drawn, as {lost[0]}.")

    def column(read: Any, kind: Any = object) -> np.ndarray:
        return np.array([read(p.entry) for p in group], dtype=kind)

    fields = {
        "product": column(lambda e: e["product"]),
        "product_id": column(lambda e: e.get("product_id")),
        "found": column(lambda e: e["counts"].get("rocks", e["counts"].get("points", 0)), int),
        "valid_px": column(lambda e: e["counts"].get("valid_px", 0), int),
        "pixel_size_m": column(lambda e: e.get("pixel_size") or np.nan, float),
        "model": column(lambda e: e.get("model")),
        "warnings": column(lambda e: "\n".join(e.get("warnings", []))),
        "path": column(lambda e: e["path"]),
    }
    return replace(layer, geometry=moved, fields=fields, wkt=wkt)


def _record(group: list[_Product], tool: str, pixel_size: float | None) -> str:
    """What made the merged layers: the inputs of all products."""
    entries = [p.entry for p in group]
    models = sorted({str(e.get("model")) for e in entries})
    facts = {
        "tool": f"batch {tool}",
        "engine": f"lunar_processing {lunar_processing.__version__}",
        "inputs": [{**f, "product_id": e.get("product_id")} for e in entries for f in e["inputs"]],
        "model": {"id": models[0] if len(models) == 1 else ", ".join(models)},
        "parameters": {} if pixel_size is None else {"pixel_size": pixel_size},
        "versions": versions(),
    }
    return json.dumps(facts, ensure_ascii=False, sort_keys=True)
