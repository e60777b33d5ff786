"""Patches of strips with things in them, and all their scores in one ranking.

Scores are compared on *patches* of 64 × 64 px at a stride of 32 px, whatever windows a scorer looks at:

- a patch scores as high as the highest value of the score map whose cell has its middle inside the patch;
- a patch is positive if it holds at least half as much of a thing as the patch that holds most of it;
- patches that touch a thing (or its shadow, or its rays) and are not positive are left out;
- all others are background. So is a *decoy*, an ordinary worn crater that was planted in the very same way: who finds
  decoys strange has found the planting, not the thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from lunar_processing.errors import DataError
from lunar_processing.evaluate import metrics
from lunar_processing.evaluate.planted import KINDS, WINDOW, Strip

STRIDE = 32  # px between patches
FIRST = (WINDOW - STRIDE) // 2  # px: patches then lie around the cells of a score map with the same stride
HOLDS = 0.5  # of the most that any patch holds of a thing
BACKGROUND, LEFT_OUT = -1, -2  # of a patch, instead of the number of a thing
TOP = 100  # patches that somebody looks at


# ---- patches -----------------------------------------------------------------------------------------------------


def patch_starts(side: int) -> np.ndarray:
    """First pixel of each patch along a side of the image; all patches lie inside."""
    return np.arange(FIRST, side - WINDOW + 1, STRIDE)


def owners(strip: Strip) -> tuple[np.ndarray, np.ndarray]:
    """Of each patch (rows, cols): the number of the thing it is positive for, BACKGROUND or LEFT_OUT; and homes.

    A home (bool) is the one patch that holds most of a thing, and of equal ones that nearest to its middle.
    """
    found = np.full((len(patch_starts(strip.image.shape[0])), len(patch_starts(strip.image.shape[1]))), BACKGROUND)
    homes = np.zeros(found.shape, bool)
    things = [i for i, target in enumerate(strip.targets) if target.kind]
    for number in things:
        found[_count(strip.touched == number + 1) > 0] = LEFT_OUT
    found[_count(~strip.valid) > 0] = LEFT_OUT
    for number in things:
        held = _count(strip.mask == number + 1)
        if held.max(initial=0) == 0:
            continue
        positive = held >= HOLDS * held.max()
        found[positive] = number
        target = strip.targets[number]
        rows, cols = (patch_starts(side) + WINDOW / 2 for side in strip.image.shape)
        away = np.hypot(rows[:, None] - target.row, cols[None] - target.col)
        best = np.where(held == held.max(), -away, -np.inf)
        homes[np.unravel_index(int(best.argmax()), best.shape)] = True
    return found, homes


def patch_scores(score: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """What each patch of an image of this shape is worth on a score map; NaN where nothing was judged.

    The map has one value for each s × s px of the image, s being the smallest number that gives its size: the whole
    image (s = 1) or the score raster of the tool. A patch gets the highest value whose cell has its middle inside it.
    """
    stride = _stride(score.shape, shape)
    for axis, side in enumerate(shape):
        score = _highest(np.moveaxis(score, axis, 0), stride, side)
        score = np.moveaxis(score, 0, axis)
    return score


def chips(strip: Strip, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """The pixels of patches, (n, 64, 64)."""
    windows = np.lib.stride_tricks.sliding_window_view(strip.image, (WINDOW, WINDOW))
    return windows[FIRST + STRIDE * rows, FIRST + STRIDE * cols]


def holding(where: np.ndarray) -> np.ndarray:
    """The share of each patch (rows, cols) that is True."""
    return _count(where) / WINDOW**2


def _count(where: np.ndarray) -> np.ndarray:
    sums = np.pad(where.astype(np.int32).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows, cols = (patch_starts(side) for side in where.shape)
    ends = (rows + WINDOW)[:, None], (cols + WINDOW)[None]
    return sums[ends] - sums[rows[:, None], ends[1]] - sums[ends[0], cols[None]] + sums[rows[:, None], cols[None]]


def _stride(size: tuple[int, ...], shape: tuple[int, int]) -> int:
    for stride in range(1, min(shape) + 1):
        if all(-(-side // stride) == n for side, n in zip(shape, size)):
            return stride
    raise DataError(
        f"A score map of {size[1]} × {size[0]} does not fit an image of {shape[1]} × {shape[0]} px.",
        "give one value for each pixel, or for each s × s pixels, rounded up.",
    )


def _highest(values: np.ndarray, stride: int, side: int) -> np.ndarray:
    """Along the first axis, the highest value whose cell has its middle inside each patch."""
    middles = (np.arange(len(values)) + 0.5) * stride
    found = []
    for start in patch_starts(side):
        inside = np.flatnonzero((middles > start) & (middles < start + WINDOW))
        if not len(inside):  # cells are larger than patches
            inside = np.array([min(int((start + WINDOW / 2) // stride), len(values) - 1)])
        found.append(np.fmax.reduce(values[inside], axis=0))
    return np.stack(found) if found else np.zeros((0, *values.shape[1:]))


# ---- all patches of many strips ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """All patches of some strips that count, and their scores; columns (n,).

    thing: which one a patch is positive for, counted over all strips, or BACKGROUND; kind: place in KINDS, or
    BACKGROUND; home: the one patch of each thing; decoy: holds a worn crater that was planted; weight: 1, and for
    positives 1 over the patches of the thing; strip, row, col: where it lies. apart: patches that do not overlap.
    terrain: name → whether a patch has it; only what is known of all strips. scores: scorer → (n,), finite.
    """

    thing: np.ndarray
    kind: np.ndarray
    home: np.ndarray
    decoy: np.ndarray
    weight: np.ndarray
    strip: np.ndarray
    row: np.ndarray
    col: np.ndarray
    terrain: Mapping[str, np.ndarray]
    scores: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.thing)

    @property
    def apart(self) -> np.ndarray:
        """Every second patch of every second row: these do not overlap."""
        return (self.row % 2 == 0) & (self.col % 2 == 0)

    def about(self, kind: int | None) -> Sample:
        """The patches of one kind of thing (None: of all kinds), and all background."""
        chosen = (self.kind == BACKGROUND) | (self.kind == kind if kind is not None else True)
        columns: dict[str, Any] = {
            f.name: getattr(self, f.name)[chosen] for f in fields(self) if f.name not in ("terrain", "scores")
        }
        columns["terrain"], columns["scores"] = (
            {name: values[chosen] for name, values in named.items()} for named in (self.terrain, self.scores)
        )
        return Sample(**columns)


TERRAIN_SHARE = {"fresh rim": 0.05, "rubble": 0.02, "shadow edge": 0.02, "bright spot": 0.005, "compression": 0.5}


def sample(strips: Iterable[Strip], score: Callable[[Strip], Mapping[str, np.ndarray]]) -> Sample:
    """All patches of the strips, scored: `score` gives for a strip the score map of each scorer.

    Scores are counted from the median of their own strip and in units of its median absolute deviation: within a strip
    the order stays, and strips of dull and of rich ground can be ranked together, as for a user who has only one.
    """
    tables: list[dict[str, np.ndarray]] = []
    things = 0
    for number, strip in enumerate(strips):
        owner, home = owners(strip)
        maps = {f"score {name}": in_own_spread(patch_scores(m, strip.image.shape)) for name, m in score(strip).items()}
        kinds = np.array([list(KINDS).index(t.kind) if t.kind else BACKGROUND for t in strip.targets], int)
        decoys = [i + 1 for i, target in enumerate(strip.targets) if not target.kind]
        row, col = np.nonzero(owner != LEFT_OUT)
        of = owner[row, col]
        positive = of >= 0
        each = np.bincount(of[positive], minlength=len(kinds))
        terrain = {name: holding(where) > TERRAIN_SHARE[name] for name, where in strip.terrain.items()}
        tables.append(
            {
                "thing": np.where(positive, of + things, BACKGROUND),
                "kind": np.where(positive, kinds[of] if len(kinds) else BACKGROUND, BACKGROUND),
                "home": home[row, col] & positive,
                "decoy": holding(np.isin(strip.mask, decoys))[row, col] > 0,
                "weight": np.where(positive, 1 / np.maximum(each[of] if len(kinds) else 1, 1), 1.0),
                "strip": np.full(len(row), number),
                "row": row,
                "col": col,
                **{name: values[row, col] for name, values in maps.items()},
                **{f"terrain {name}": values[row, col] for name, values in terrain.items()},
            }
        )
        things += len(kinds)
    if not tables:
        raise DataError("There are no strips to score.", "give one or more.")
    known = set.intersection(*(set(table) for table in tables))
    whole = {name: np.concatenate([table[name] for table in tables]) for name in tables[0] if name in known}

    def named(what: str) -> dict[str, np.ndarray]:
        return {name[len(what) + 1 :]: values for name, values in whole.items() if name.startswith(f"{what} ")}

    columns = {name: values for name, values in whole.items() if name.split(" ")[0] not in ("score", "terrain")}
    return Sample(**columns, terrain=named("terrain"), scores=named("score"))


def in_own_spread(scores: np.ndarray) -> np.ndarray:
    """Scores from their median on, in units of 1.48 times their median absolute deviation; NaN becomes the lowest.

    Where more than half of the scores are equal their standard deviation takes its place.
    """
    known = np.isfinite(scores)
    if not known.any():
        return np.zeros(scores.shape)
    middle = float(np.median(scores[known]))
    spread = 1.4826 * float(np.median(np.abs(scores[known] - middle))) or float(scores[known].std()) or 1.0
    return (np.where(known, scores, scores[known].min()) - middle) / spread


# ---- what they are worth ------------------------------------------------------------------------------------------

Measured = dict[str, dict[str, dict[str, float]]]


def measure(made: Sample) -> Measured:
    """Scorer → kind of thing, or `all` → what was measured: see the docs for each number."""
    parts = {name: made.about(number) for number, name in enumerate(KINDS) if (made.kind == number).any()}
    parts["all"] = made.about(None)
    return {
        scorer: {kind: _measure(part, part.scores[scorer]) for kind, part in parts.items()} for scorer in made.scores
    }


def over_kinds(numbers: Mapping[str, Mapping[str, float]], lane: str) -> float:
    """The mean of one number over the kinds of things."""
    return float(np.mean([found[lane] for kind, found in numbers.items() if kind != "all"]))


def _measure(part: Sample, score: np.ndarray) -> dict[str, float]:
    positive, weight = part.thing >= 0, part.weight
    precision, chance = metrics.average_precision(score, positive, weight), metrics.base_rate(positive, weight)
    homes, background = score[part.home], score[part.apart & ~positive]
    apart = metrics.separation(homes, background)
    return {
        "ap": precision,
        "base_rate": chance,
        "improvement": precision / chance,
        "patr": metrics.precision_at_all(score, positive, weight),
        "eomv": metrics.saving(score, positive, weight),
        "ks": apart.distance,
        "ks_p": apart.p,
        f"found_in_top_{TOP}": metrics.found_among_top(score, part.thing, TOP),
        "ap_as_published": metrics.average_precision_as_published(
            score[part.home | ~positive], part.home[part.home | ~positive]
        ),
        "things": int(part.home.sum()),
        "background": int((~positive).sum()),
    }


def false_alarms(made: Sample, top: int = TOP) -> dict[str, dict[str, float]]:
    """Scorer → what → share of its highest background patches that hold it: decoys, and terrain that is known.

    `all background` is the share that chance would find.
    """
    background = made.thing < 0
    kinds = {name: has for name, has in {"decoy": made.decoy, **made.terrain}.items() if has.any()}
    plain = ~np.any(list(kinds.values()), axis=0) if kinds else np.ones(len(made), bool)
    kinds["none of these"] = plain
    places = np.flatnonzero(background)
    found = {"all background": {name: float(has[places].mean()) for name, has in kinds.items()}}
    for scorer, score in made.scores.items():
        highest = places[np.argsort(-score[places], kind="stable")[:top]]
        found[scorer] = {name: float(has[highest].mean()) for name, has in kinds.items()}
    return found


def distinct(made: Sample, strips: Sequence[Strip]) -> int:
    """How many background patches there are that neither overlap nor show the same ground again."""
    first = {name: number for number, name in reversed([(i, strip.facts.name) for i, strip in enumerate(strips)])}
    return int((made.apart & (made.thing < 0) & np.isin(made.strip, list(first.values()))).sum())
