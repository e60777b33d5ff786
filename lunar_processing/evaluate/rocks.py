"""How well rocks are found: one-to-one matches, and what they say. Functions on arrays; lengths in pixels.

A found rock and a true one may be the same if their centres lie no further apart than half the true diameter (1.5 px at
the least), and one is at most twice as large as the other. The nearest pairs, as a share of what is allowed, are taken
first, and nothing is taken twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

NEAREST = 1.5  # px: centres so close may always be the same
SIZE_RATIO = 2.0


@dataclass(frozen=True)
class Stones:
    """Rocks of one image: centres in continuous image coordinates, diameters, heights; columns (n,).

    `fair`: whether it can be asked for, if true (lit, not hidden, not at the edge), or held against someone, if found.
    """

    col: np.ndarray
    row: np.ndarray
    diameter: np.ndarray
    height: np.ndarray
    fair: np.ndarray

    def __len__(self) -> int:
        return len(self.col)

    def inside(self, width: int, height: int, margin: float) -> Stones:
        """Fair only where they are not at the edge of their image."""
        away = (self.col > margin) & (self.col < width - margin) & (self.row > margin) & (self.row < height - margin)
        return replace(self, fair=self.fair & away)


def match(true: Stones, found: Stones) -> np.ndarray:
    """For each true rock the row of the found one that it is, or -1."""
    partner = np.full(len(true), -1)
    if not len(true) or not len(found):
        return partner
    reach = np.maximum(NEAREST, true.diameter / 2)
    near = cKDTree(np.stack([found.col, found.row], 1)).query_ball_point(np.stack([true.col, true.row], 1), reach)
    one = np.repeat(np.arange(len(true)), [len(some) for some in near])
    other = np.array([k for some in near for k in some], int)
    ratio = found.diameter[other] / true.diameter[one]
    alike = (ratio <= SIZE_RATIO) & (ratio >= 1 / SIZE_RATIO)
    one, other, ratio = one[alike], other[alike], ratio[alike]
    away = np.hypot(found.col[other] - true.col[one], found.row[other] - true.row[one]) / reach[one]
    taken = np.zeros(len(found), bool)
    for k in np.lexsort((other, one, away + 0.5 * np.abs(np.log2(ratio)))):
        if partner[one[k]] < 0 and not taken[other[k]]:
            partner[one[k]] = other[k]
            taken[other[k]] = True
    return partner


@dataclass(frozen=True)
class Tally:
    """What was matched in some images, pooled."""

    true: np.ndarray  # diameters of true rocks that can be asked for
    hit: np.ndarray  # whether each was found
    found: np.ndarray  # diameters of found rocks that count
    right: np.ndarray  # whether each is a true rock, of whatever size and light
    pairs: np.ndarray  # (n, 4): true and found diameter, true and found height (NaN where unknown)
    hidden: int  # true rocks that nobody can see


def tally(images: Sequence[tuple[Stones, Stones]]) -> Tally:
    """Match true and found rocks image by image."""
    parts = [_tally(true, found) for true, found in images]
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in ("true", "hit", "found", "right")}
    return Tally(**joined, pairs=np.concatenate([p.pairs for p in parts]), hidden=sum(p.hidden for p in parts))


def _tally(true: Stones, found: Stones) -> Tally:
    partner = match(true, found)
    right = np.zeros(len(found), bool)
    right[partner[partner >= 0]] = True
    both = np.flatnonzero((partner >= 0) & true.fair)
    same = partner[both]
    pairs = np.stack([true.diameter[both], found.diameter[same], true.height[both], found.height[same]], axis=1)
    fair = true.fair
    return Tally(true.diameter[fair], partner[fair] >= 0, found.diameter[found.fair], right[found.fair], pairs,
                 int((~fair).sum()))  # fmt: skip


def scores(some: Tally, low: float, high: float = np.inf) -> dict[str, float]:
    """Recall, precision and F1 of rocks of these diameters, and the error of the diameters of those that are matched.

    Recall is of true rocks of the class, precision of found rocks that say they are of it. `diameter_error` is the
    median of |found / true - 1|, `diameter_bias` the median of found / true - 1. NaN where there is nothing to tell.
    """
    asked, said = ((d >= low) & (d < high) for d in (some.true, some.found))
    recall, precision = _share(some.hit[asked]), _share(some.right[said])
    pairs = some.pairs[(some.pairs[:, 0] >= low) & (some.pairs[:, 0] < high)]
    off = pairs[:, 1] / pairs[:, 0] - 1
    tall = pairs[:, 3] / pairs[:, 2] - 1
    tall = tall[np.isfinite(tall)]
    return {
        "true": int(asked.sum()),
        "found": int(said.sum()),
        "recall": recall,
        "precision": precision,
        "f1": _f1(recall, precision),
        "diameter_error": _median(np.abs(off)),
        "diameter_bias": _median(off),
        "height_error": _median(np.abs(tall)),
        "height_bias": _median(tall),
        "heights": len(tall),
    }


def _f1(recall: float, precision: float) -> float:
    """0 where nothing is found of what is there; NaN where nothing is there."""
    both = recall + precision
    return 2 * recall * precision / both if both > 0 else recall if np.isnan(recall) else 0.0


def _share(yes: np.ndarray) -> float:
    return float(yes.mean()) if len(yes) else float("nan")


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")
