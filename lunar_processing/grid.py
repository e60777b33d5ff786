"""Place: where the pixels of an image lie, as one small frozen value.

Image coordinates are continuous and count from 0: (0, 0) is the outer corner of the first pixel, (0.5, 0.5) its
centre, (width, height) the outer corner of the last. A coordinate system travels as WKT2 text. An image without
one lies where QGIS draws it: x = column, y = -row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from affine import Affine

from lunar_processing.errors import GridError

PIXEL_SPACE = Affine(1.0, 0.0, 0.0, 0.0, -1.0, 0.0)


class Window(NamedTuple):
    """A rectangle of pixels; it may reach over the edge of the image."""

    col: int
    row: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """Column after the last."""
        return self.col + self.width

    @property
    def bottom(self) -> int:
        """Row after the last."""
        return self.row + self.height

    def clip(self, width: int, height: int) -> Window:
        """The part inside an image of `width` × `height`; empty windows have a size of 0."""
        col, row = min(max(self.col, 0), width), min(max(self.row, 0), height)
        right, bottom = max(min(self.right, width), col), max(min(self.bottom, height), row)
        return Window(col, row, right - col, bottom - row)

    def grow(self, halo: int) -> Window:
        """The window with `halo` more pixels on each side."""
        return Window(self.col - halo, self.row - halo, self.width + 2 * halo, self.height + 2 * halo)


class Tile(NamedTuple):
    """What is computed at once: `outer` goes in, and after cropping the halo `core` comes out."""

    core: Window
    outer: Window


@dataclass(frozen=True)
class Grid:
    """Size and place of an image: `transform` maps image coordinates to map coordinates of `wkt`."""

    wkt: str | None
    transform: Affine
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise GridError(f"A grid of {self.width} × {self.height} pixels has no pixels.", "give 1 × 1 or more.")
        if abs(self.transform.determinant) < 1e-300 or not all(map(math.isfinite, self.transform)):
            raise GridError(
                f"The geotransform {tuple(self.transform)[:6]} is degenerate: it maps an area to a line.",
                "repair it with gdal_edit.py -a_ullr.",
            )

    @property
    def georeferenced(self) -> bool:
        """Whether map coordinates mean a place on a body."""
        return self.wkt is not None

    @property
    def window(self) -> Window:
        """The whole image."""
        return Window(0, 0, self.width, self.height)

    def xy(self, col: np.ndarray | float, row: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Map coordinates of continuous image coordinates."""
        col, row = np.asarray(col, float), np.asarray(row, float)
        t = self.transform
        return t.a * col + t.b * row + t.c, t.d * col + t.e * row + t.f

    def colrow(self, x: np.ndarray | float, y: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Continuous image coordinates of map coordinates."""
        t = self.transform
        # Subtracting the origin first keeps the digits that a general inverse loses far from it.
        dx, dy = np.asarray(x, float) - t.c, np.asarray(y, float) - t.f
        return (t.e * dx - t.b * dy) / t.determinant, (t.a * dy - t.d * dx) / t.determinant

    def crop(self, window: Window) -> Grid:
        """The grid of a part of the image."""
        moved = self.transform @ Affine.translation(window.col, window.row)
        return replace(self, transform=moved, width=window.width, height=window.height)

    def coarsen(self, stride: int) -> Grid:
        """The grid of one value for each `stride` × `stride` pixels; the last ones may reach over the edge."""
        if stride < 1:
            raise GridError(f"A stride of {stride} pixels is not possible.", "give 1 or more.")
        return replace(
            self,
            transform=self.transform @ Affine.scale(stride),
            width=-(-self.width // stride),
            height=-(-self.height // stride),
        )

    def footprint(self) -> np.ndarray:
        """The four corners as map coordinates, shape (4, 2), in image order from the upper left."""
        x, y = self.xy(np.array([0, self.width, self.width, 0]), np.array([0, 0, self.height, self.height]))
        return np.stack([x, y], axis=1)

    def tile_rows(self, tile: int, halo: int, align: int = 1) -> Iterator[list[Tile]]:
        """Rows of tiles from top to bottom whose cores cover every pixel once.

        `tile` is the largest size that goes in, halo included; cores start at multiples of `align`. All tiles of an
        image have one size: as few as can be, sharing the image evenly, so that little hangs over its edges.
        """
        core = (tile - 2 * halo) // align * align
        if halo < 0 or align < 1 or core < 1:
            raise GridError(
                f"A tile of {tile} px with a halo of {halo} px and steps of {align} px leaves nothing to compute.",
                "use a larger tile or a smaller halo.",
            )
        wide, high = (_shared(length, core, align) for length in (self.width, self.height))
        for row in range(0, self.height, high):
            yield [
                Tile(
                    Window(col, row, wide, high).clip(self.width, self.height),
                    Window(col, row, wide, high).grow(halo),
                )
                for col in range(0, self.width, wide)
            ]


def _shared(length: int, most: int, align: int) -> int:
    """Side of the cores that share a length: as few as may be, none above `most`, each a multiple of `align`."""
    each = -(-length // -(-length // most))
    return -(-each // align) * align
