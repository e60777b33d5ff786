"""What a trained rock model's outputs mean: which are rocks, how large and how high, and in what light it works.

Found on simulated scenes of seeds that neither training nor evaluation uses, by the tool itself, and written into the
model's card. Diameters are corrected so that small rocks and large ones, under a high sun and a low one, come out right
in the median.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lunar_processing.errors import ModelError
from lunar_processing.evaluate.rocks import Stones, match, scores, tally
from lunar_processing.modelpack import Card, find_pack, write_card
from lunar_processing.simulate.scenes import SceneRecipe
from lunar_processing.tools import evaluate_rocks as scenes
from lunar_processing.tools.evaluate_rocks import Scene
from lunar_processing.tools.job import Options
from lunar_processing.tools.network import MIDDLES
from lunar_processing.tools.rocks import CLEAR, POINTS, Wishes, segment_rocks
from lunar_processing.training.recipes.rocks import WIDE
from lunar_processing.vector import read_layer

SEED = 520_000
THRESHOLDS = (0.25, 0.35, 0.5)
LEAST_SCORES = np.arange(0.3, 0.86, 0.05)
LOW_SUN = 70.0  # degrees of incidence
SIZES = np.array([2.2, 2.7, 3.3, 4.2, 5.5, 8.0, 99.0])  # px: limits of the classes that are made right
HEIGHTS = np.array([20.0, 85.0])  # degrees of incidence, between which a straight line makes them right
FEW = 25  # pairs that say nothing yet
QUANTILES = np.array([0.02, 0.1, 0.25, 0.45, 0.65, 0.8, 0.9, 0.96, 0.99])
SMALLEST = 2.2  # px: pairs of smaller true rocks do not tell how large rocks are
LOWEST_F1 = {"3-5 px": 0.6, "5 px and more": 0.75}  # less is not called working …
LARGEST_BIAS = 0.12  # … nor are diameters that are more wrong than this in the median, as a share


@dataclass(frozen=True)
class Effort:
    """Scenes for thresholds and sizes, for each point of the limits, and their side in px."""

    scenes: int = 64
    each: int = 12
    size: int = 256


# To try it out: the numbers mean nothing.
SMALL = Effort(2, 1, 96)
GROUND = replace(WIDE, incidence_deg=(20.0, 83.0), signal_dn=(150.0, 2400.0), rock_share=(5e-3, 4e-2))
# Without a rock: what is found there is wrong.
BARE = replace(GROUND, rock_share=(1e-9, 1e-8), blocks=0.0)
# As many scenes reflect by another law than those that were learnt from, and are rougher: what a model has not
# learnt from makes it see smaller rocks, and real ground is nothing that it has learnt from.
STRANGE = replace(GROUND, photometry="hapke", hurst=(0.6, 0.8), slope_deg=(1.0, 5.0), crater_density=(0.02, 0.12))
MIXTURE = ((GROUND, 0.4), (STRANGE, 0.4), (BARE, 0.2))
LIMITS: Mapping[str, tuple[Sequence[float], Callable[[float], SceneRecipe]]] = {
    "incidence_deg": ((10, 20, 30, 45, 60, 70, 75, 80, 84), lambda v: replace(STRANGE, incidence_deg=(v, v))),
    "noise": ((40, 80, 160, 400), lambda v: replace(STRANGE, signal_dn=(v, v), incidence_deg=(40.0, 70.0))),
}


def calibrate(folder: Path, effort: Effort | None = None) -> Card:
    """Find out how the model in a folder is to be read, and write it into its card."""
    effort = effort or Effort()
    card = find_pack(str(folder)).card
    if card.output != MIDDLES:
        raise ModelError(
            f"Model {card.id} gives no middles of rocks: there is nothing to find out.",
            "name the folder of a model that `lunar train rocks-orbital` made.",
        )
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        tried_on = place / "model"  # the model itself keeps its card until the end
        shutil.copytree(folder, tried_on, ignore=shutil.ignore_patterns("training*"))
        made = [scene for number, (recipe, share) in enumerate(MIXTURE)
                for scene in _draw(recipe, math.ceil(share * effort.scenes), effort, place, 100 * number)]  # fmt: skip
        tried = [_read(tried_on, made, threshold) for threshold in THRESHOLDS]
        _, reading = max(tried, key=lambda one: one[0])
        _write(tried_on, reading, {})
        return _write(folder, reading, _limits(tried_on, effort, place))


def _draw(recipe: SceneRecipe, count: int, effort: Effort, place: Path, number: int) -> list[Scene]:
    return scenes.draw(recipe, count, effort.size, SEED + number, place)


def _write(folder: Path, reading: Mapping[str, Any], works: Mapping[str, Any]) -> Card:
    card = replace(find_pack(str(folder)).card, reading=reading, works=works)
    write_card(folder, card)
    return card


# ---- which, how large, how high ----------------------------------------------------------------------------------


def _read(folder: Path, made: Sequence[Scene], threshold: float) -> tuple[float, dict[str, Any]]:
    """How good it gets with a threshold, and the reading that makes it so."""
    _write(folder, {"threshold": threshold, "edge": 0.0}, {})
    found = [_points(folder, scene) for scene in made]
    pairs = np.concatenate([_pairs(scene, some) for scene, some in zip(made, found)])
    ruler = _ruler(pairs)
    quality, least = max((_quality(made, found, ruler, least), float(least)) for least in LEAST_SCORES)
    return quality, {
        "threshold": threshold,
        "least_score": round(least, 2),
        "diameter_px": [[round(float(v), 3) for v in knot] for knot in ruler.sizes],
        "incidence": [[round(float(v), 3) for v in knot] for knot in ruler.heights],
        "edge": round(_shadow_edge(pairs, ruler), 3),
    }


def _points(folder: Path, scene: Scene) -> dict[str, np.ndarray]:
    """Columns of the rocks that the tool finds: sample, line, diam_eq_px, shadow_len_m, score."""
    out = scene.path.with_suffix(".gpkg")
    options = Options(scene.path, model=str(folder), overwrite=True, pixel_size=scene.pixel_size,
                      sun_azimuth=scene.azimuth)  # fmt: skip
    segment_rocks(options, Wishes(str(out), incidence=scene.incidence))
    fields = read_layer(f"{out}|layername={POINTS}").fields
    wanted = ("sample", "line", "diam_eq_px", "shadow_len_m", "score")
    return {name: np.asarray(fields[name], float) for name in wanted}


def _stones(found: Mapping[str, np.ndarray], scene: Scene, diameter: np.ndarray, least: float = 0.0) -> Stones:
    keep = found["score"] >= least
    col, row = found["sample"][keep], found["line"][keep]
    nothing = np.full(int(keep.sum()), np.nan)
    height, width = scene.pixels.shape
    return Stones(col, row, diameter[keep], nothing, keep[keep]).inside(width, height, scenes.EDGE)


def _pairs(scene: Scene, found: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n, 5) of matched rocks: diameter true and found, height true, shadow found, all px; tangent of incidence."""
    partner = match(scene.true, _stones(found, scene, found["diam_eq_px"]))
    both = np.flatnonzero((partner >= 0) & scene.true.fair & (scene.true.diameter >= SMALLEST))
    same = partner[both]
    shadow = found["shadow_len_m"][same] / scene.pixel_size
    tangent = np.full(len(both), np.tan(np.radians(scene.incidence)))
    return np.stack([scene.true.diameter[both], found["diam_eq_px"][same], scene.true.height[both], shadow, tangent], 1)


@dataclass(frozen=True)
class _Ruler:
    """How diameters are corrected: knots (found, true) in px, and knots (degrees of incidence, factor)."""

    sizes: np.ndarray
    heights: np.ndarray

    def corrected(self, diameter: np.ndarray, incidence: np.ndarray | float) -> np.ndarray:
        """As the tool does it."""
        factor = np.interp(diameter, self.sizes[:, 0], self.sizes[:, 1] / self.sizes[:, 0])
        corrected: np.ndarray = diameter * factor * np.interp(incidence, *self.heights.T)
        return corrected


def _ruler(pairs: np.ndarray) -> _Ruler:
    """Makes the median of found / true 1 in each class of sizes, and under each sun as far as a line can."""
    heights = np.array([[0.0, 1.0], [90.0, 1.0]])
    if len(pairs) < 50:
        return _Ruler(np.array([[1.0, 1.0], [2.0, 2.0]]), heights)
    true, found, incidence = pairs[:, 0], pairs[:, 1], np.degrees(np.arctan(pairs[:, 4]))
    # Quantiles of what is found become those of what is there; then what is left is taken off.
    sizes = np.stack([np.quantile(found, QUANTILES), np.quantile(true, QUANTILES)], axis=1)
    sizes = sizes[np.concatenate([[True], np.diff(sizes[:, 0]) > 1e-3])]
    for _ in range(4):
        ratio = _Ruler(sizes, heights).corrected(found, incidence) / true
        middle, left = _medians(true, ratio, SIZES)
        sizes[:, 1] /= np.interp(np.log(sizes[:, 1]), np.log(middle), left)
        sizes[:, 1] = np.maximum.accumulate(sizes[:, 1])
        ratio = _Ruler(sizes, np.array([[0.0, 1.0]])).corrected(found, incidence) / true
        heights = _line(incidence[true >= 3], ratio[true >= 3])
    return _Ruler(sizes, heights)


def _line(incidence: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Knots (degrees, factor) of a straight line through the medians of the scenes, each of which has one incidence."""
    suns, number, counts = np.unique(incidence, return_inverse=True, return_counts=True)
    if len(suns) < 8:
        return np.stack([HEIGHTS, np.ones(len(HEIGHTS))], axis=1)
    middles = np.array([np.median(ratio[number == k]) for k in range(len(suns))])
    slope, start = np.polyfit(suns, np.log(middles), 1, w=np.sqrt(counts))
    return np.stack([HEIGHTS, np.exp(-(start + slope * HEIGHTS))], axis=1)


def _medians(where: np.ndarray, values: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians of place and value in each class that has enough; one class of all if none has."""
    parts = [(where >= low) & (where < high) for low, high in zip(limits, limits[1:])]
    parts = [part for part in parts if part.sum() >= FEW] or [np.ones(len(where), bool)]
    return np.array([np.median(where[part]) for part in parts]), np.array([np.median(values[part]) for part in parts])


def _quality(made: Sequence[Scene], found: Sequence[Mapping[str, np.ndarray]], ruler: _Ruler, least: float) -> float:
    """F1 of small rocks and of larger ones, and the precision of what is smaller still, together."""
    images = [(s.true, _stones(f, s, ruler.corrected(f["diam_eq_px"], s.incidence), least))
              for s, f in zip(made, found)]  # fmt: skip
    pooled = tally(images)
    specks = scores(pooled, 0, 3)["precision"]
    return sum(np.nan_to_num([specks, *(scores(pooled, *limits)["f1"] for limits in scenes.CLASSES.values())]))


def _shadow_edge(pairs: np.ndarray, ruler: _Ruler) -> float:
    """How far behind the middle the edge lies that throws the tip, in diameters.

    Under a lower sun relief cuts shadows short or draws them out: that tells of the ground, and not of the edge.
    """
    incidence = np.degrees(np.arctan(pairs[:, 4]))
    diameter = ruler.corrected(pairs[:, 1], incidence)
    clear = (pairs[:, 0] >= 3) & (pairs[:, 3] >= CLEAR * diameter) & (incidence < LOW_SUN)
    if clear.sum() < FEW:
        return 0.0
    return float(np.clip(np.median((pairs[:, 3] - pairs[:, 2] * pairs[:, 4])[clear] / diameter[clear]), 0.0, 0.5))


# ---- where it works ----------------------------------------------------------------------------------------------


def _limits(folder: Path, effort: Effort, place: Path) -> dict[str, list[float]]:
    """Name → the range in which enough is found, of incidence in degrees and of noise as a share of the ground."""
    works: dict[str, list[float]] = {}
    for number, (name, (values, recipe)) in enumerate(LIMITS.items(), 1):
        good = []
        for value in values:
            made = _draw(recipe(value), effort.each, effort, place, number)
            pooled = tally([(s.true, _all(folder, s)) for s in made])
            told = {c: scores(pooled, *limits) for c, limits in scenes.CLASSES.items()}
            found = all(not told[c]["f1"] < least for c, least in LOWEST_F1.items())
            if found and not any(abs(one["diameter_bias"]) > LARGEST_BIAS for one in told.values()):
                good.append(value if name != "noise" else float(np.median([s.noise for s in made])))
        if good:
            works[name] = [0.0 if name == "noise" else float(min(good)), float(f"{max(good):.3g}")]
    return works


def in_words(card: Card) -> str:
    """What was found, for people."""
    reading = ", ".join(f"{name} {value}" for name, value in card.reading.items() if name != "diameter_px")
    works = "; ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in card.works.items())
    return f"  {card.id}: {reading}\n  works at: {works or 'nothing that was tried'}"


def _all(folder: Path, scene: Scene) -> Stones:
    found = _points(folder, scene)
    return _stones(found, scene, found["diam_eq_px"])
