"""Two rasters, told apart: what their tags say, and where their values differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio

from lunar_processing.errors import ImageError

ROWS = 512  # that are compared at once


def tags_of(path: Path) -> dict[str, str]:
    """The tags of a raster file."""
    try:
        with rasterio.open(path) as dataset:
            return dict(dataset.tags())
    except rasterio.errors.RasterioError as error:
        raise ImageError(f"{path} is not a raster that can be read ({error}).", "check the path.") from error


def bands_of(path: Path) -> list[str]:
    """What the bands are called."""
    with rasterio.open(path) as dataset:
        return [name or str(number) for number, name in zip(dataset.indexes, dataset.descriptions)]


def differences(path: Path, other: Path) -> list[str]:
    """In words, what is not the same in two rasters: size, place, type, and values band by band."""
    with rasterio.open(path) as one, rasterio.open(other) as two:
        for what in ("shape", "count", "dtypes", "transform", "crs", "nodatavals"):
            a, b = getattr(one, what), getattr(two, what)
            if a != b and not (what == "nodatavals" and np.array_equal(np.array(a, float), np.array(b, float), True)):
                return [f"{what}: {a}, now {b}"]
        return [text for number in one.indexes if (text := _in_band(one, two, number))]


def _in_band(one: rasterio.DatasetReader, two: rasterio.DatasetReader, number: int) -> str:
    count, most = 0, 0.0
    for row in range(0, one.height, ROWS):
        window = rasterio.windows.Window(0, row, one.width, min(ROWS, one.height - row))
        a, b = (dataset.read(number, window=window).astype(np.float64) for dataset in (one, two))
        other = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        count += int(other.sum())
        apart = np.abs(a - b)[other]
        most = max(most, float(np.nanmax(apart, initial=0.0)))
    name = one.descriptions[number - 1] or str(number)
    share = 100 * count / (one.width * one.height)
    return f"band {name}: {count} pixels ({share:.3g} %) differ, by at most {most:.6g}" if count else ""
