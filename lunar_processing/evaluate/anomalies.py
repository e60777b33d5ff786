"""The report on scorers of anomalies: one chapter for each set of strips, in tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from lunar_processing.evaluate import metrics, report
from lunar_processing.evaluate.planted import KINDS, Strip
from lunar_processing.evaluate.ranking import STRIDE, TOP, Measured, Sample, chips, over_kinds

IN_DETAIL = 3  # scorers of which everything is shown
NEIGHBOURS = 2048  # of the highest patches are laid out in a plane
LANES = ("ap", "improvement", "patr", "eomv", "ks", "ks_p", f"found_in_top_{TOP}", "ap_as_published")
MEANINGS = {
    "ap": "Average precision; the largest of each column is bold",
    "improvement": "Average precision over that of chance, the base rate",
    "patr": "PaTR: precision at the threshold that returns every positive patch",
    "eomv": "EoMV: PaTR over the base rate",
    "ks": "Kolmogorov–Smirnov distance of things (their home patches) and background (patches that do not overlap)",
    "ks_p": "Its p; background patches of repeated images are not independent, so p is too small",
    f"found_in_top_{TOP}": f"Share of things with a patch among the {TOP} highest",
    "ap_as_published": "Average precision as the paper's evaluation counts: perfect is 1 / number of things",
}


def chapter(
    name: str, made: Sample, strips: Sequence[Strip], facts: Mapping[str, Any], shown: Sequence[str]
) -> list[str]:
    """One set of strips in tables and figures; figures are of the scorers that are `shown`."""
    measured: Measured = facts["scorers"]
    kinds = list(measured["random"])
    counts = {kind: measured["random"][kind] for kind in kinds}
    parts = [
        report.heading(f"{name.capitalize()} strips"),
        report.text(
            f"{len(strips)} strips, {len(made):,} patches that count; {facts['distinct_background']:,} background "
            "patches are distinct and do not overlap."
        ),
        report.table(
            ["", *kinds],
            [
                ["things", *(int(counts[kind]["things"]) for kind in kinds)],
                ["background patches a thing", *(counts[k]["background"] / counts[k]["things"] for k in kinds)],
                ["base rate", *(counts[kind]["base_rate"] for kind in kinds)],
            ],
        ),
    ]
    parts.append(report.figure(gallery(strips), "The first things of each kind, and decoys, 96 px around them."))
    for lane in LANES:
        rows = [
            [scorer, *(numbers[kind][lane] for kind in kinds), over_kinds(numbers, lane)]
            for scorer, numbers in measured.items()
        ]
        head = ["", *kinds, "mean of kinds"]
        parts += [report.text(MEANINGS[lane] + "."), report.table(head, rows, best=lane != "ks_p")]
    alarms = facts["false_alarms"]
    parts += [
        report.text(f"What the {TOP} highest background patches hold, and how much of all background does."),
        report.table(["", *next(iter(alarms.values()))], [[who, *found.values()] for who, found in alarms.items()]),
    ]
    return parts + _figures(made, strips, measured, shown)


def gallery(strips: Sequence[Strip], each: int = 3, side: int = 96) -> Any:
    """A figure of the first things of each kind that lie in the strips, and of decoys, 96 px around them."""
    cut: list[np.ndarray] = []
    names: list[str] = []
    for kind in [*KINDS, ""]:
        lying = ((strip, target) for strip in strips for target in strip.targets if target.kind == kind)
        for strip, target in islice(lying, each):
            row, col = (
                int(np.clip(at - side / 2, 0, n - side)) for at, n in zip((target.row, target.col), strip.image.shape)
            )
            cut.append(strip.image[row : row + side, col : col + side])
            names.append(kind or "decoy")
    return report.sheets({"": (np.stack(cut), names)}, across=9)


def _figures(made: Sample, strips: Sequence[Strip], measured: Measured, shown: Sequence[str]) -> list[str]:
    panels = {
        kind: {
            scorer: _precision_over_recall(made.about(None if kind == "all" else list(KINDS).index(kind)), scorer)
            for scorer in shown
        }
        for kind in measured["random"]
    }
    parts = [report.figure(report.curves(panels, ("recall", "precision")), "Precision over recall.")]
    for scorer in shown[:IN_DETAIL]:
        score = made.scores[scorer]
        background = score[made.thing < 0]
        of_kinds = {
            kind: (background, score[made.home & (made.kind == number)])
            for number, kind in enumerate(KINDS)
            if (made.kind == number).any()
        }
        top = np.argsort(-score, kind="stable")
        drawn = np.random.default_rng(0).choice(len(made), min(16, len(made)), replace=False)
        sheet = {
            f"top 16 of {scorer}": _chips(made, strips, top[:16]),
            "16 random patches": _chips(made, strips, drawn),
        }
        parts += [
            report.heading(scorer),
            report.figure(report.distributions(of_kinds, ("background", "things")), f"Scores of {scorer}."),
            report.figure(report.sheets(sheet), "The strangest patches beside random ones."),
            report.figure(_embedded(made, strips, top[:NEIGHBOURS]), f"t-SNE of its top {NEIGHBOURS} patches."),
            report.figure(_map(made, strips, scorer), "A strip and the scores of its patches."),
        ]
    return parts


def _precision_over_recall(part: Sample, scorer: str) -> tuple[np.ndarray, np.ndarray]:
    curve = metrics.precision_recall(part.scores[scorer], part.thing >= 0, part.weight)
    return curve.recall, curve.precision


def _chips(made: Sample, strips: Sequence[Strip], which: np.ndarray) -> tuple[np.ndarray, list[str]]:
    cut = [chips(strips[made.strip[i]], made.row[i], made.col[i]) for i in which]
    return np.stack(cut), [_name(made, i) for i in which]


def _name(made: Sample, i: int) -> str:
    if made.kind[i] >= 0:
        return list(KINDS)[made.kind[i]]
    return "decoy" if made.decoy[i] else "background"


def _embedded(made: Sample, strips: Sequence[Strip], which: np.ndarray) -> Any:
    """The patches in a plane where alike ones lie together, by their pixels freed of brightness and contrast."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    cut, names = _chips(made, strips, which)
    flat = cut[:, ::2, ::2].reshape(len(cut), -1).astype(np.float32)
    flat = (flat - flat.mean(1, keepdims=True)) / np.maximum(flat.std(1, keepdims=True), 1e-6)
    few = PCA(min(32, len(flat)), svd_solver="randomized", random_state=0).fit_transform(flat)
    perplexity = min(30, max(2, len(few) // 4))
    plane = TSNE(2, perplexity=perplexity, init="pca", random_state=0, max_iter=500).fit_transform(few)
    return report.embedding(plane, names)


def _map(made: Sample, strips: Sequence[Strip], scorer: str) -> Any:
    """The strip of the middle: what lies there and how it was scored."""
    number = len(strips) // 2
    strip, here = strips[number], made.strip == number
    values = np.full([-(-side // STRIDE) for side in strip.image.shape], np.nan)
    values[made.row[here] + 1, made.col[here] + 1] = made.scores[scorer][here]
    marks = [(target.col, target.row, target.kind or "decoy") for target in strip.targets]
    return report.maps(strip.image, {scorer: values}, marks)
