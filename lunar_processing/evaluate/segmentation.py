"""How well classes of pixels are found: intersection over union, from counts of pixels.

counts = sum(confusion(true, said, 4) for true, said in pairs)
shares(counts)                     # per class
together(counts, (1, 2))           # of two classes taken as one
pooled(counts)                     # of all classes in one count, as some published numbers are
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def confusion(true: np.ndarray, said: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of each true class (rows) that are said to be of each class (columns).

    Pixels whose truth is none of the classes, as 255 for unknown, do not count.
    """
    known = true < classes
    pairs = true[known].astype(np.int64) * classes + said[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def shares(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of each class; NaN of a class that is not there."""
    return np.array([_share(counts, (k,)) for k in range(len(counts))])


def mean_share(counts: np.ndarray) -> float:
    """Mean intersection over union of the classes that are there."""
    return float(np.nanmean(shares(counts)))


def together(counts: np.ndarray, classes: Sequence[int]) -> float:
    """Intersection over union of several classes taken as one: which of them is said does not matter."""
    return _share(counts, classes)


def pooled(counts: np.ndarray) -> float:
    """Right pixels of all classes over the sum of the classes' unions: frequent classes decide."""
    right = float(np.trace(counts))
    return right / (2 * float(counts.sum()) - right)


def _share(counts: np.ndarray, classes: Sequence[int]) -> float:
    some = list(classes)
    if not counts[some].sum():
        return float("nan")
    both = counts[np.ix_(some, some)].sum()
    return float(both / (counts[some].sum() + counts[:, some].sum() - both))
