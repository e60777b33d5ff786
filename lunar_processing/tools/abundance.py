"""Rock abundance: the share of the searched ground that lies under rocks, cell by cell."""

from __future__ import annotations

import math

import numpy as np
import shapely
from rasterio.features import rasterize

from lunar_processing import planet
from lunar_processing.errors import ParameterError
from lunar_processing.grid import PIXEL_SPACE, Grid
from lunar_processing.tools.counted import Area, Ground, Limit, Study

MOST_CELLS = 1_000_000
CELLS = 30  # across the area, about, where no size of a cell is asked for
FINER = 8  # steps of a cell, to see how much of it was searched
COVERED = 0.5  # share of a cell that must have been searched
DOTS = 256  # points that stand for the ground under a rock
CHUNK = 5_000  # rocks whose points are held at once


def abundance(
    grid: Grid, ground: Ground, shape: shapely.Geometry, x: np.ndarray, y: np.ndarray, covers: np.ndarray
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


def _dots(ground: Ground, x: np.ndarray, y: np.ndarray, covers: np.ndarray) -> np.ndarray:
    """Points (n, DOTS, 2) on the map, evenly over the ground under each rock, as seeds in a sunflower."""
    number = np.arange(DOTS)
    radius, angle = np.sqrt((number + 0.5) / DOTS), number * math.pi * (3 - math.sqrt(5))
    reach = np.sqrt(covers / np.pi)[:, None]
    return ground.moved(x, y, reach * radius * np.sin(angle), reach * radius * np.cos(angle))


def cells(study: Study, ground: Ground, area: Area, limit: Limit) -> Grid:
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
