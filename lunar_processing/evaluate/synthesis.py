"""How good made-up images are as a set, by features of each image: (N, F) arrays, real and made.

No distance here is *the* FID or KID: that depends on whose features they are, and figures by different features cannot
be compared. Whoever prints a number names them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg, stats

SUBSETS, SUBSET = 100, 1000  # as published with the kernel distance
NEIGHBOUR = 3  # of improved precision and recall
NEAR = 1.0  # per cent of the real images have a neighbour as near


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of the two normal distributions that have the means and covariances of the samples.

    |μ_a - μ_b|² + tr(A + B - 2 (A B)^½), by the triangles of the samples: exact also for fewer samples than features.
    With fewer it is too large; compare only numbers of equally many samples.
    """
    means = a.mean(axis=0, dtype=float), b.mean(axis=0, dtype=float)
    roots = [np.asarray(np.linalg.qr((x - m) / np.sqrt(len(x) - 1), mode="r")) for x, m in zip((a, b), means)]
    common = linalg.svdvals(roots[0] @ roots[1].T).sum()
    return float(((means[0] - means[1]) ** 2).sum() + sum((r**2).sum() for r in roots) - 2 * common)


class Kernel(NamedTuple):
    """Squared maximum mean discrepancy: its mean over random subsets, and their standard deviation."""

    mean: float
    spread: float


def kernel(a: np.ndarray, b: np.ndarray, subsets: int = SUBSETS, size: int = SUBSET, seed: int = 0) -> Kernel:
    """Kernel distance with (x·y / F + 1)³, unbiased: about 0, on either side, for samples of one distribution."""
    random, size = np.random.default_rng(seed), min(size, len(a), len(b))
    found = []
    for _ in range(subsets):
        x, y = (some[random.choice(len(some), size, replace=False)].astype(float) for some in (a, b))
        xx, yy, xy = (_cubic(p, q) for p, q in ((x, x), (y, y), (x, y)))
        inside = sum(k.sum() - np.trace(k) for k in (xx, yy)) / (size * (size - 1))
        found.append(inside - 2 * xy.mean())
    return Kernel(float(np.mean(found)), float(np.std(found)))


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


class Cover(NamedTuple):
    """Share of made images that could be real, and share of the real ones that could be made, 0…1."""

    precision: float
    recall: float


def precision_recall(real: np.ndarray, made: np.ndarray, neighbour: int = NEIGHBOUR) -> Cover:
    """Improved precision and recall (Kynkäänniemi et al. 2019): who lies in a ball of the others.

    The ball of a sample reaches to its `neighbour`-th nearest of its own kind. Compare only numbers of equally many
    samples.
    """
    between = _distances(real, made)
    balls = [np.partition(_distances(x, x), neighbour, axis=1)[:, neighbour] for x in (real, made)]
    return Cover(
        float((between <= balls[0][:, None]).any(axis=0).mean()), float((between <= balls[1]).any(axis=1).mean())
    )


class Copies(NamedTuple):
    """How near made images come to those that were learnt from.

    `made` and `real`: median distance to the nearest one learnt from; `real` are images of which nothing was learnt.
    `likely_nearer`: how likely a made image is nearer than a real one, 0.5 without copying. `near`: share of made
    images nearer than all but `NEAR` per cent of the real ones. `nearest` (made,): which one it is; `distance` (made,).
    """

    made: float
    real: float
    likely_nearer: float
    near: float
    nearest: np.ndarray
    distance: np.ndarray


def copies(learnt: np.ndarray, made: np.ndarray, unseen: np.ndarray) -> Copies:
    """Compare made and unseen real images by their distance to the nearest that was learnt from."""
    apart = _distances(made, learnt)
    nearest = apart.argmin(axis=1)
    distance, usual = apart.min(axis=1), _distances(unseen, learnt).min(axis=1)
    nearer = 1 - stats.mannwhitneyu(distance, usual).statistic / (len(distance) * len(usual))
    near = float((distance < np.percentile(usual, NEAR)).mean())
    return Copies(float(np.median(distance)), float(np.median(usual)), float(nearer), near, nearest, distance)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean, (len(a), len(b)); by a product of matrices, about a common middle for the sake of precision."""
    middle = a.mean(axis=0, dtype=float)
    a, b = a - middle, b - middle
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))
