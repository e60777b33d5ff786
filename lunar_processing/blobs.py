"""From strips of a mask to whole objects: what a seam cuts is put together again.

Objects are 8-connected. Their moments are sums, which add up across seams; their outlines are pieces, which are
joined when an object is complete. Only objects that touch the last row seen are kept waiting.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from rasterio.features import shapes
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lunar_processing.grid import Window

EIGHT = np.ones((3, 3), int)
# Columns of the table of sums: n, Σcol, Σrow, Σcol², Σcol·row, Σrow², Σscore, touches an edge
SUMS = 8


@dataclass(frozen=True)
class Blobs:
    """Complete objects, one row each; coordinates are continuous image coordinates of centroids, lengths px."""

    area: np.ndarray  # (n,) px
    col: np.ndarray  # (n,)
    row: np.ndarray  # (n,)
    covariance: np.ndarray  # (n, 2, 2) px², of col and row, a pixel's own extent included
    score: np.ndarray  # (n,) mean over the object
    edge: np.ndarray  # (n,) bool: touches the edge of the image or an invalid pixel
    outline: np.ndarray  # (n,) shapely MultiPolygon in image coordinates, or None


class BlobFinder:
    """Takes strips from top to bottom; `add` and `finish` give the objects that are complete by then."""

    def __init__(self, width: int, height: int, outlines: bool = True) -> None:
        self._width, self._height = width, height
        self._outlines = outlines
        self._open = np.zeros((0, SUMS))
        self._open_shapes: list[list[shapely.Geometry]] = []
        self._bottom = np.full(width, -1)  # which open object each pixel of the last row belongs to
        self._bottom_valid = np.ones(width, bool)

    def add(self, window: Window, mask: np.ndarray, score: np.ndarray, valid: np.ndarray) -> Blobs:
        """The next full-width strip: mask and validity (H, W) bool, score (H, W)."""
        labels, count = ndimage.label(mask, EIGHT)
        sums = self._sums(labels, count, window, score, valid)
        self._mark_cut_off(valid[0])
        known = len(self._open)
        whole = _unite(known, count, *_touching(self._bottom, labels[0]))
        table = np.zeros((whole.max() + 1 if len(whole) else 0, SUMS))
        np.add.at(table, whole, np.concatenate([self._open, sums]))
        pieces = self._merge_shapes(labels, window, whole, len(table))
        waiting = np.zeros(len(table), bool)
        below = labels[-1] > 0
        waiting[whole[known + labels[-1][below] - 1]] = True
        number = np.cumsum(waiting) - 1
        self._bottom = np.full(self._width, -1)
        self._bottom[below] = number[whole[known + labels[-1][below] - 1]]
        self._bottom_valid = valid[-1]
        self._open = table[waiting]
        self._open_shapes = [p for p, keep in zip(pieces, waiting) if keep]
        done = [p for p, keep in zip(pieces, waiting) if not keep]
        return _blobs(table[~waiting], done, self._outlines)

    def finish(self) -> Blobs:
        """The objects at the lower edge."""
        table, pieces = self._open, self._open_shapes
        self._open, self._open_shapes = np.zeros((0, SUMS)), []
        return _blobs(table, pieces, self._outlines)

    def _sums(self, labels: np.ndarray, count: int, window: Window, score: np.ndarray, valid: np.ndarray) -> np.ndarray:
        rows, cols = np.nonzero(labels)
        which = labels[rows, cols] - 1
        edge = self._at_edge(rows + window.row, cols) | ndimage.binary_dilation(~valid, EIGHT)[rows, cols]
        edge |= (rows == 0) & ~self._valid_above(cols)
        x, y = cols + 0.5, rows + window.row + 0.5
        values = (np.ones(len(x)), x, y, x * x, x * y, y * y, score[rows, cols], edge)
        return np.stack([np.bincount(which, v, count) for v in values], axis=1) if count else np.zeros((0, SUMS))

    def _at_edge(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        return (rows == 0) | (rows == self._height - 1) | (cols == 0) | (cols == self._width - 1)

    def _valid_above(self, cols: np.ndarray) -> np.ndarray:
        return ~ndimage.binary_dilation(~self._bottom_valid, np.ones(3))[cols]

    def _mark_cut_off(self, first_row_valid: np.ndarray) -> None:
        """Objects of the last row that border on invalid pixels of the new one lie at an edge."""
        beside = ndimage.binary_dilation(~first_row_valid, np.ones(3)) & (self._bottom >= 0)
        self._open[self._bottom[beside], -1] += 1

    def _merge_shapes(
        self, labels: np.ndarray, window: Window, whole: np.ndarray, count: int
    ) -> list[list[shapely.Geometry]]:
        pieces: list[list[shapely.Geometry]] = [[] for _ in range(count)]
        known = len(self._open)
        for i, old in enumerate(self._open_shapes):
            pieces[whole[i]] += old
        if self._outlines:
            place = Affine.translation(window.col, window.row)
            for geometry, label in shapes(labels.astype(np.int32), labels > 0, connectivity=4, transform=place):
                rings = geometry["coordinates"]
                pieces[whole[known + int(label) - 1]].append(shapely.Polygon(rings[0], rings[1:]))
        return pieces


def _touching(above: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (open object above, label below) that touch, also at corners."""
    pairs = []
    for shift in (-1, 0, 1):
        a = above[max(0, -shift) : len(above) - max(0, shift)]
        b = below[max(0, shift) : len(below) - max(0, -shift)]
        both = (a >= 0) & (b > 0)
        pairs.append(np.stack([a[both], b[both] - 1]))
    joined = np.concatenate(pairs, axis=1)
    return joined[0], joined[1]


def _unite(known: int, new: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each of `known` + `new` pieces the number of the whole it belongs to."""
    total = known + new
    if not total:
        return np.zeros(0, int)
    graph = coo_array((np.ones(len(a)), (a, known + b)), shape=(total, total))
    return connected_components(graph, directed=False)[1]


def _blobs(table: np.ndarray, pieces: list[list[shapely.Geometry]], outlines: bool) -> Blobs:
    n, x, y, xx, xy, yy, score, edge = table.T
    n = np.maximum(n, 1)
    col, row = x / n, y / n
    covariance = np.stack([xx / n - col * col, xy / n - col * row, xy / n - col * row, yy / n - row * row], axis=1)
    covariance = covariance.reshape(-1, 2, 2) + np.eye(2) / 12
    drawn = np.full(len(table), None, dtype=object)
    if outlines:
        drawn[:] = [_multipolygon(p) for p in pieces]
    return Blobs(n.astype(int), col, row, covariance, score / n, edge > 0, drawn)


def _multipolygon(pieces: list[shapely.Geometry]) -> shapely.MultiPolygon:
    joined = shapely.union_all(pieces) if len(pieces) > 1 else pieces[0]
    return joined if isinstance(joined, shapely.MultiPolygon) else shapely.MultiPolygon([joined])


def concatenate(parts: Iterator[Blobs] | list[Blobs]) -> Blobs:
    """Objects of several strips together, from top to bottom and left to right."""
    parts = list(parts)
    joined = [np.concatenate([getattr(p, name) for p in parts]) for name in Blobs.__dataclass_fields__]
    everything = Blobs(*joined)
    order = np.lexsort((everything.col, everything.row))
    return Blobs(*(getattr(everything, name)[order] for name in Blobs.__dataclass_fields__))
