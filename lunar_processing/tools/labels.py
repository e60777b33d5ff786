"""What people drew, as a mask on the grid of an image: from rasters, polygons, and points with a diameter.

A mask holds the class of each pixel: 0 ground, 1 … things, UNKNOWN (255) where nobody has said.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import shapely
from pyproj import CRS, Transformer
from rasterio.features import rasterize

from lunar_processing import planet
from lunar_processing.errors import DataError, PlanetError
from lunar_processing.grid import Grid
from lunar_processing.raster.image import RASTERS, open_image
from lunar_processing.tools.job import Job
from lunar_processing.training.data import UNKNOWN
from lunar_processing.vector import Layer, read_layer

VECTORS = (".gpkg", ".shp", ".fgb", ".geojson", ".json")
# Names of a diameter in the tables of people and of `lunar rocks`; those in metres come first.
DIAMETERS_M = ("diam_eq_m", "diameter_m", "diam_m", "diameter", "diam", "d_m")
DIAMETERS_PX = ("diam_eq_px", "diameter_px", "diam_px")


def find_labels(image: Path, labels: str, alone: bool) -> str:
    """The labels of one image: a file for all, or the one of the same name in a folder."""
    if not Path(labels).is_dir():
        if Path(labels.partition("|")[0]).suffix.lower() in VECTORS or alone:
            return labels
        raise DataError(
            f"{labels} is a raster of one image, but there are several images.",
            "give a folder with a mask of the same name for each image, or a vector layer for all.",
        )
    named = [p for p in sorted(Path(labels).iterdir()) if p.stem == image.stem and p.resolve() != image.resolve()]
    found = [p for p in named if p.suffix.lower() in RASTERS + VECTORS]
    if not found:
        raise DataError(
            f"{labels} has no labels for {image.name}.", f"name them {image.stem}.tif, .png, .gpkg or .shp, or leave "
            "the image out."
        )  # fmt: skip
    return str(found[0])


def mask_of(job: Job, labels: str, classes: Sequence[str], area: str | None = None) -> np.ndarray:
    """The mask (H, W) uint8 of an open image. Only `area`, a polygon layer, was looked through, where it is given."""
    vector = Path(labels.partition("|")[0]).suffix.lower() in VECTORS
    mask = _drawn(job, read_layer(labels)) if vector else _painted(job, Path(labels), len(classes))
    highest = int(mask[mask != UNKNOWN].max(initial=0))
    if highest >= len(classes):
        values = ", ".join(map(str, np.unique(mask[mask != UNKNOWN])))
        raise DataError(
            f"{labels} holds the values {values}; the model knows {len(classes)} classes: {', '.join(classes)}.",
            "name one for each value from 0 with --classes, for example ground,rock.",
        )
    if area is not None:
        searched = _pixels(job, read_layer(area), area)
        mask[rasterize_shapes(searched, mask.shape) == 0] = UNKNOWN
    return mask


def rasterize_shapes(shapes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """1 where the middle of a pixel lies in one of the shapes in image coordinates, else 0."""
    if not len(shapes):
        return np.zeros(shape, np.uint8)
    # Image coordinates are those of rasterio's identity transform.
    inside: np.ndarray = rasterize(((s, 1) for s in shapes), shape, dtype="uint8")
    return inside


# ---- rasters -----------------------------------------------------------------------------------------------------


def _painted(job: Job, path: Path, classes: int) -> np.ndarray:
    grid = job.image.grid
    with open_image(path) as drawn:
        if (drawn.grid.width, drawn.grid.height) != (grid.width, grid.height):
            raise DataError(
                f"The mask {path} has {drawn.grid.width} × {drawn.grid.height} pixels, its image "
                f"{job.image.path.name} has {grid.width} × {grid.height}.",
                "bring it onto the image's grid, for example with gdalwarp -r near -te … -ts …",
            )
        if grid.georeferenced and drawn.grid.georeferenced and not _same_ground(grid, drawn.grid):
            raise DataError(
                f"The mask {path} does not lie where its image {job.image.path.name} lies.",
                "warp it onto the image's grid, for example with gdalwarp -r near -te …",
            )
        # Black borders are nothing special in a mask: read what is stored, and trust only its own nodata.
        painted = drawn.stored()
    values, valid = painted.pixels, painted.valid
    if values.dtype.kind == "f" and (values[valid] % 1).any():
        raise DataError(f"The mask {path} holds fractions, not classes.", "give whole numbers: 0 ground, 1 rock.")
    there = set(np.unique(values[valid]).tolist())
    if there <= {0, 255}:  # black and white, as painted
        values = np.where(values == 255, 1, values)
    if there and (min(there) < 0 or max(there) > UNKNOWN):
        raise DataError(f"The mask {path} holds {min(there):g} … {max(there):g}, not classes.", "give 0, 1, 2 …")
    return np.where(valid, values, UNKNOWN).astype(np.uint8)


def _same_ground(a: Grid, b: Grid) -> bool:
    if not planet.same_place(a.wkt, b.wkt):
        return False
    col, row = a.colrow(*b.footprint().T)
    return bool(
        np.allclose(col, [0, a.width, a.width, 0], atol=0.5) and np.allclose(row, [0, 0, a.height, a.height], atol=0.5)
    )


# ---- vectors -----------------------------------------------------------------------------------------------------


def _drawn(job: Job, layer: Layer) -> np.ndarray:
    shapes = _pixels(job, layer, layer.name)
    if len(shapes) and shapely.get_dimensions(shapes).max() == 0:
        shapes = _discs(job, layer, shapes)
    flat = shapely.get_dimensions(shapes) == 1
    if flat.any():
        raise DataError(f"The layer {layer.name} holds lines.", "draw polygons, or points with a diameter.")
    grid = job.image.grid
    return rasterize_shapes(shapes[shapely.intersects(shapes, shapely.box(0, 0, grid.width, grid.height))],
                            (grid.height, grid.width))  # fmt: skip


def _pixels(job: Job, layer: Layer, name: str) -> np.ndarray:
    """The shapes of a layer in image coordinates, refused where they lie on another body."""
    grid, shapes = job.image.grid, layer.geometry
    if grid.georeferenced and layer.wkt and not planet.same_place(grid.wkt, layer.wkt):
        here, there = planet.body_of(grid.wkt), planet.body_of(layer.wkt)
        if (here and here.name) != (there and there.name):
            raise PlanetError(
                f"The labels {name} lie on {there.name if there else 'an unknown body'}, the image "
                f"{job.image.path.name} on {here.name if here else 'an unknown body'}.",
                "give the layer its true coordinate system (a GeoJSON without one counts as Earth).",
            )
        way = Transformer.from_crs(CRS.from_wkt(layer.wkt), CRS.from_wkt(str(grid.wkt)), always_xy=True)
        shapes = shapely.transform(shapes, lambda xy: np.stack(way.transform(xy[:, 0], xy[:, 1]), axis=1))
    return shapely.transform(shapes, lambda xy: np.stack(grid.colrow(xy[:, 0], xy[:, 1]), axis=1))


def overlaps(job: Job, labels: str) -> bool:
    """Whether anything of a vector layer lies in the image."""
    if Path(labels.partition("|")[0]).suffix.lower() not in VECTORS:
        return True
    grid = job.image.grid
    shapes = _pixels(job, read_layer(labels), labels)
    return bool(shapely.intersects(shapes, shapely.box(0, 0, grid.width, grid.height)).any())


def _discs(job: Job, layer: Layer, points: np.ndarray) -> np.ndarray:
    names = {field.lower(): field for field in layer.fields}
    col, row = shapely.get_x(points), shapely.get_y(points)
    in_metres = next((names[n] for n in DIAMETERS_M if n in names), None)
    in_pixels = next((names[n] for n in DIAMETERS_PX if n in names), None)
    jacobian = job.jacobian(col, row)
    if in_metres and jacobian is not None:
        metres = np.sqrt(np.abs(np.linalg.det(jacobian)))
        diameters = np.asarray(layer.fields[in_metres], float) / metres
    elif in_pixels:
        diameters = np.asarray(layer.fields[in_pixels], float)
    else:
        raise DataError(
            f"The points of {layer.name} have no diameter that can be used.",
            f"give them a field {DIAMETERS_M[0]} (and the image a pixel size) or {DIAMETERS_PX[0]}, or draw polygons.",
        )
    discs: np.ndarray = shapely.buffer(points, np.nan_to_num(diameters) / 2)
    return discs[~shapely.is_empty(discs)]
