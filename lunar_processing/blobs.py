"""From strips of an image to whole objects: what a seam cuts is put together again.

`BlobFinder` makes objects of a mask: they are 8-connected. Their moments are sums, which add up across seams; their
outlines are pieces, which are joined when an object is complete. Only objects that touch the last row are kept waiting.

`MiddleFinder` makes objects of a network's opinion where rocks are and where their middles: rocks that touch fall
apart. It keeps the last rows until all that has its middle in them has been seen whole.
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
# Columns of the table of sums: n, Σcol, Σrow, Σcol², Σcol·row, Σrow², Σscore, Σkind, touches an edge
SUMS = 9


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
    kind: np.ndarray  # (n,) mean over the object of the number of each pixel's class
    tip: np.ndarray  # (n,) px from the centroid to the tip of its shadow, down the light; NaN where none is known

    def where(self, keep: np.ndarray) -> Blobs:
        """Those of the objects."""
        return Blobs(*(getattr(self, name)[keep] for name in Blobs.__dataclass_fields__))


class BlobFinder:
    """Takes strips from top to bottom; `add` and `finish` give the objects that are complete by then."""

    def __init__(self, width: int, height: int, outlines: bool = True) -> None:
        self._width, self._height = width, height
        self._outlines = outlines
        self._open = np.zeros((0, SUMS))
        self._open_shapes: list[list[shapely.Geometry]] = []
        self._bottom = np.full(width, -1)  # which open object each pixel of the last row belongs to
        self._bottom_valid = np.ones(width, bool)

    def add(self, window: Window, kind: np.ndarray, score: np.ndarray, valid: np.ndarray) -> Blobs:
        """The next full-width strip: the number of a pixel's class, 0 outside of objects, score and validity (H, W)."""
        labels, count = ndimage.label(kind != 0, EIGHT)
        sums = self._sums(labels, count, window, kind, score, valid)
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

    def _sums(
        self, labels: np.ndarray, count: int, window: Window, kind: np.ndarray, score: np.ndarray, valid: np.ndarray
    ) -> np.ndarray:
        rows, cols = np.nonzero(labels)
        which = labels[rows, cols] - 1
        edge = self._at_edge(rows + window.row, cols) | ndimage.binary_dilation(~valid, EIGHT)[rows, cols]
        edge |= (rows == 0) & ~self._valid_above(cols)
        x, y = cols + 0.5, rows + window.row + 0.5
        values = (np.ones(len(x)), x, y, x * x, x * y, y * y, score[rows, cols], kind[rows, cols], edge)
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
    n, x, y, xx, xy, yy, score, kind, edge = table.T
    n = np.maximum(n, 1)
    col, row = x / n, y / n
    covariance = np.stack([xx / n - col * col, xy / n - col * row, xy / n - col * row, yy / n - row * row], axis=1)
    covariance = covariance.reshape(-1, 2, 2) + np.eye(2) / 12
    drawn = np.full(len(table), None, dtype=object)
    if outlines:
        drawn[:] = [_multipolygon(p) for p in pieces]
    tip = np.full(len(table), np.nan)
    return Blobs(n.astype(int), col, row, covariance, score / n, edge > 0, drawn, kind / n, tip)


def _multipolygon(pieces: list[shapely.Geometry]) -> shapely.MultiPolygon:
    joined = shapely.union_all(pieces) if len(pieces) > 1 else pieces[0]
    return joined if isinstance(joined, shapely.MultiPolygon) else shapely.MultiPolygon([joined])


def concatenate(parts: Iterator[Blobs] | list[Blobs]) -> Blobs:
    """Objects of several strips together, from top to bottom and left to right."""
    parts = list(parts)
    joined = [np.concatenate([getattr(p, name) for p in parts]) for name in Blobs.__dataclass_fields__]
    everything = Blobs(*joined)
    order = np.lexsort((everything.col, everything.row))
    return everything.where(order)


# ---- things that touch: told apart by their middles ---------------------------------------------------------------

ROOM = 64  # px: an object and its shadow reach no further than this from its middle, or are cut there
DARK = 0.35  # probability from which on a pixel counts as shadow: a narrow one never reaches a half
DIP = 0.85  # two summits are one object if the way between them does not fall below this share of the lower one


class MiddleFinder:
    """Takes strips from top to bottom, as `BlobFinder` does; the same objects wherever the seams are.

    A pixel is of a thing where its probability is above `threshold`, and belongs to the summit of `middle` that it
    climbs to. `away` is the direction (column, row) of light in the image, of length 1, along which shadows are
    measured; None where it is not known. The area of a thing is the sum of its probabilities.
    """

    def __init__(
        self,
        width: int,
        height: int,
        threshold: float,
        away: tuple[float, float] | None = None,
        outlines: bool = True,
    ) -> None:
        self._height, self._threshold, self._away, self._outlines = height, threshold, away, outlines
        self._layers = np.zeros((3, 0, width), np.float32)
        self._valid = np.zeros((0, width), bool)
        self._done = 0  # rows whose summits have been handed out

    def add(self, window: Window, layers: np.ndarray, valid: np.ndarray) -> Blobs:
        """The next full-width strip: (3, H, W) probability, nearness to a middle, probability of shadow; validity."""
        self._layers = np.concatenate([self._layers, layers], axis=1)
        self._valid = np.concatenate([self._valid, valid])
        last = window.bottom == self._height
        whole = self._height if last else max(self._done, window.bottom - ROOM)
        found = self._between(self._done, whole, window.bottom - len(self._valid))
        self._done = whole
        keep = min(len(self._valid), window.bottom - whole + ROOM)
        self._layers, self._valid = self._layers[:, -keep:].copy(), self._valid[-keep:].copy()
        return found

    def _between(self, first: int, end: int, top: int) -> Blobs:
        """The objects whose summits lie in these rows; what is kept begins at row `top`."""
        probability, middle, shadow = self._layers
        mask = (probability > self._threshold) & self._valid
        rows, cols = np.nonzero(mask)
        summit = _summits(middle, mask, rows, cols)
        keep = (rows[summit] + top >= first) & (rows[summit] + top < end)
        rows, cols, summit = rows[keep], cols[keep], summit[keep]
        own, which = np.unique(summit, return_inverse=True)
        labels = np.zeros(mask.shape, np.int32)
        labels[rows, cols] = which + 1
        weight = probability[rows, cols].astype(np.float64)
        edge = ndimage.binary_dilation(~self._valid, EIGHT)[rows, cols]
        edge |= (rows + top == 0) | (rows + top == self._height - 1) | (cols == 0) | (cols == mask.shape[1] - 1)
        x, y = cols + 0.5, rows + top + 0.5
        values = (np.ones(len(x)), x, y, x * x, x * y, y * y, weight, weight * weight, edge)
        table = np.stack([np.bincount(which, v, len(own)) for v in values], axis=1)
        drawn = np.full(len(own), None, dtype=object)
        if self._outlines:
            drawn[:] = _outlines(labels, len(own), top)
        area, squares = table[:, 6], table[:, 7]
        plain = _blobs(table[:, [0, 1, 2, 3, 4, 5, 6, 0, 8]], [], False)
        tip = self._tips(plain.col, plain.row - top, labels, shadow)
        return Blobs(
            area,
            plain.col,
            plain.row,
            plain.covariance,
            squares / np.maximum(area, 1e-9),
            plain.edge,
            drawn,
            plain.kind,
            tip,
        )

    def _tips(self, col: np.ndarray, row: np.ndarray, labels: np.ndarray, shadow: np.ndarray) -> np.ndarray:
        """How far from the centroids the shadows end; NaN where nothing casts one, or it runs out of sight."""
        if self._away is None or not len(col):
            return np.full(len(col), np.nan)
        steps = np.arange(0, ROOM, 0.25)
        x, y = (start[:, None] - 0.5 + steps * way for start, way in zip((col, row), self._away))
        dark = ndimage.map_coordinates(shadow, [y, x], order=1, mode="constant")
        at = np.rint([y, x]).astype(int)
        inside = (at >= 0).all(axis=0) & (at[0] < labels.shape[0]) & (at[1] < labels.shape[1])
        at = np.where(inside, at, 0)
        own = inside & (labels[at[0], at[1]] == np.arange(1, len(col) + 1)[:, None])
        # Between a rock and its shadow a pixel may be neither.
        covered = ndimage.binary_closing(np.pad(own | (dark > DARK), ((0, 0), (4, 4))), np.ones((1, 7)))[:, 4:-4]
        body = own.cumsum(axis=1)
        left = ~covered & (body == body[:, -1:])  # a notch in the rock itself is no end
        end = np.where(left.any(axis=1), left.argmax(axis=1), len(steps) - 1)
        cast = ((dark > DARK) & ~own & (np.arange(len(steps)) < end[:, None])).any(axis=1)
        seen = np.take_along_axis(inside, end[:, None], axis=1)[:, 0] & left.any(axis=1)
        return np.where(cast & seen, steps[end], np.nan)

    def finish(self) -> Blobs:
        """Nothing is left: the last strip gives the last objects."""
        return _blobs(np.zeros((0, SUMS)), [], False)


def _summits(height: np.ndarray, mask: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """For each pixel of the mask the number of the pixel that it climbs to, in steps to the highest neighbour."""
    number = np.full((mask.shape[0] + 2, mask.shape[1] + 2), -1, np.int64)
    number[rows + 1, cols + 1] = np.arange(len(rows))
    high = height[rows, cols].astype(np.float64)
    beside = np.stack([number[rows + 1 + dr, cols + 1 + dc] for dr, dc in _STEPS], axis=1)
    tall = np.where(beside >= 0, high[beside], -np.inf)
    up = beside[np.arange(len(rows)), tall.argmax(axis=1)] if len(rows) else np.zeros(0, np.int64)
    summit = _followed(up)
    return _joined(summit, high, beside)[summit]


_STEPS = [(0, 0), *((dr, dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1) if (dr, dc) != (0, 0))]


def _followed(up: np.ndarray) -> np.ndarray:
    """Where each pixel ends that goes up again and again."""
    while (further := up[up]) is not None and (further != up).any():
        up = further
    return up


def _joined(summit: np.ndarray, high: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """For each pixel, as a summit, the summit that it is a part of: between them the ground hardly dips."""
    here = np.repeat(summit[:, None], beside.shape[1], axis=1)
    there = np.where(beside >= 0, summit[beside], -1)
    lower = (there >= 0) & ((high[here] < high[there]) | ((high[here] == high[there]) & (here > there)))
    one, other = here[lower], there[lower]
    pixel, step = np.nonzero(lower)
    saddle = np.minimum(high[pixel], high[beside[pixel, step]])
    small = saddle >= DIP * high[one]
    one, other, saddle = one[small], other[small], saddle[small]
    order = np.lexsort((other, saddle))  # the highest way is written last
    up = np.arange(len(summit))
    up[one[order]] = other[order]
    return _followed(up)


def _outlines(labels: np.ndarray, count: int, top: int) -> list[shapely.MultiPolygon]:
    pieces: list[list[shapely.Geometry]] = [[] for _ in range(count)]
    place = Affine.translation(0, top)
    for geometry, label in shapes(labels, labels > 0, connectivity=4, transform=place):
        rings = geometry["coordinates"]
        pieces[int(label) - 1].append(shapely.Polygon(rings[0], rings[1:]))
    return [_multipolygon(p) for p in pieces]
