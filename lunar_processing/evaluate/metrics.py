"""How good scores are: named functions on arrays. Higher scores are stranger, likelier, better.

`score` (n,) are finite numbers, `positive` (n,) bool, `weight` (n,) how much each counts (default 1). Where objects are
seen by several windows, each window weighs 1 over their number, so that an object counts once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn


class Curve(NamedTuple):
    """Precision and recall at falling thresholds; ties share a point."""

    precision: np.ndarray
    recall: np.ndarray
    threshold: np.ndarray


def base_rate(positive: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Share of positives: the average precision of a scorer that knows nothing."""
    return float(np.average(positive, weights=weight))


def average_precision(score: np.ndarray, positive: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Area under the precision–recall curve as a sum of steps, without interpolation; NaN without a positive."""
    if not positive.any():
        return float("nan")
    return float(sklearn.average_precision_score(positive, score, sample_weight=weight))


def precision_recall(score: np.ndarray, positive: np.ndarray, weight: np.ndarray | None = None) -> Curve:
    """The precision–recall curve from the strictest threshold to the loosest."""
    precision, recall, threshold = sklearn.precision_recall_curve(positive, score, sample_weight=weight)
    return Curve(precision[-2::-1], recall[-2::-1], threshold[::-1])


def precision_at_all(score: np.ndarray, positive: np.ndarray, weight: np.ndarray | None = None) -> float:
    """PaTR: precision at the highest threshold that returns every positive; NaN without a positive."""
    if not positive.any():
        return float("nan")
    returned = score >= score[positive].min()
    return float(np.average(positive[returned], weights=None if weight is None else weight[returned]))


def saving(score: np.ndarray, positive: np.ndarray, weight: np.ndarray | None = None) -> float:
    """EoMV: PaTR over the base rate, by how much the list to look through shrinks if nothing may be missed."""
    return precision_at_all(score, positive, weight) / base_rate(positive, weight)


class Separation(NamedTuple):
    """Two-sample Kolmogorov–Smirnov test: largest distance of the two distributions, and its p."""

    distance: float
    p: float


def separation(first: np.ndarray, second: np.ndarray) -> Separation:
    """How far two samples of independent scores are from having one distribution; NaN where one is empty."""
    if not len(first) or not len(second):
        return Separation(float("nan"), float("nan"))
    found = stats.ks_2samp(first, second, method="asymp")
    return Separation(float(found.statistic), float(found.pvalue))


def found_among_top(score: np.ndarray, thing: np.ndarray, top: int = 100) -> float:
    """Share of things of which a window is among the `top` highest scores; `thing` is a number, below 0: none.

    Of equal scores the later ones are taken, and first those without a thing: a tie never helps.
    """
    numbers = np.unique(thing[thing >= 0])
    if not len(numbers):
        return float("nan")
    order = np.lexsort((thing >= 0, -score))[:top]
    return len(np.unique(thing[order][thing[order] >= 0])) / len(numbers)


def average_precision_as_published(score: np.ndarray, label: np.ndarray) -> float:
    """Average precision where the image is appended once for each label, with that one label positive each time.

    So the evaluation of Lesnikowski et al. (2024) in effect counts: `label` (n,) is True for the window of each label.
    With L labels each of their windows is a negative L − 1 times, and a perfect scorer reaches 1 / L. To compare with
    numbers that were published, and with nothing else.
    """
    count = int(label.sum())
    if count == 0:
        return float("nan")
    again = np.flatnonzero(label)
    return average_precision(
        np.concatenate([score, score[again]]),
        np.concatenate([np.zeros(len(score), bool), np.ones(count, bool)]),
        np.concatenate([np.where(label, count - 1, count), np.ones(count)]).astype(float),
    )
