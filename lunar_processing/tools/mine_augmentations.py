"""MineAug: find the variations that suit a set of images, by measurement instead of by taste."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lunar_processing.devices import choose_device
from lunar_processing.draft import Draft
from lunar_processing.errors import Cancelled, DataError, ParameterError
from lunar_processing.evaluate.synthesis import frechet
from lunar_processing.tools import job as jobs
from lunar_processing.tools.patches import Wishes as Cut
from lunar_processing.tools.patches import evenly, patches_of
from lunar_processing.training.augment import CANDIDATES, KEPT, LITTLE, Scored, mine, mined
from lunar_processing.training.data import dice
from lunar_processing.training.features import features, pooled
from lunar_processing.training.patches import PARTS


@dataclass(frozen=True)
class Wishes:
    """Which images, and by which features; at most `count` patches are looked at.

    `images`: prepared sets of patches, or what `lunar patches` takes. Of a set only what is learnt from is used.
    """

    images: Sequence[str]
    features: str = "efficientnet-lite0"
    keep: int = KEPT
    size: int = 64
    count: int = 1000
    band: int | None = None
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= len(CANDIDATES):
            raise ParameterError(f"--keep {self.keep} is not possible.", f"give 1 to {len(CANDIDATES)}.")
        if self.count < 64:
            raise ParameterError(f"--count {self.count} is too few to be compared.", "give 64 or more.")


def mine_augmentations(wishes: Wishes, report: jobs.Report | None = None) -> dict[str, Any]:
    """Score all candidates; what was found, for people and for programs."""
    report = report or jobs.Report()
    whole = patches_of(Cut(wishes.images, Path(), wishes.size, band=wishes.band, seed=wishes.seed), report)
    learnt = whole.of(np.array([fact["part"] == PARTS[0] for fact in whole.facts]))
    chosen = learnt.of(evenly([fact["product"] for fact in learnt.facts], wishes.count, wishes.seed))
    eye = features(wishes.features).to(choose_device(wishes.device))
    images = torch.from_numpy(chosen.images)[:, None].float() / 255
    looked = [0]

    def look(some: Tensor) -> np.ndarray:
        report.progress("look", looked[0], 1 + len(CANDIDATES))
        if report.cancelled():
            raise Cancelled("The run was cancelled; nothing was written.")
        looked[0] += 1
        return pooled(eye, 2 * some - 1).numpy()

    scored = mine(images, look, frechet, dice(wishes.seed, 0))
    best = mined(scored, wishes.keep)
    return {
        "distance": f"FD-{eye.title}",
        "images": len(images),
        "kept": list(best),
        "policy": {name: dict(CANDIDATES[name]) for name in best},
        "candidates": [_facts(one, best) for one in scored],
    }


def _facts(one: Scored, best: Sequence[str]) -> dict[str, Any]:
    why = "kept" if one.name in best else "changes little" if not one.changes else "farther"
    return {"name": one.name, "distance": one.distance, "change": one.change, "verdict": why}


def save(facts: Mapping[str, Any], path: Path, overwrite: bool) -> None:
    """The findings as JSON, complete or not at all."""
    with Draft(path, overwrite) as draft:
        draft.path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        draft.publish()


def kept_in(said: Sequence[str]) -> tuple[str, ...]:
    """Names of variations, of which one may be a file that `save` wrote."""
    names: list[str] = []
    for word in said:
        if not word.endswith(".json"):
            names.append(word)
            continue
        try:
            names += json.loads(Path(word).read_text(encoding="utf-8"))["kept"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{word} does not say which variations to take ({error}).", "write it with `lunar mine-augmentations`."
            ) from error
    return tuple(names)


def in_words(facts: Mapping[str, Any]) -> str:
    """A table for people."""
    lines = [f"  {'candidate':<16} {facts['distance']:>22} {'change':>8}"]
    lines += [
        f"  {one['name']:<16} {one['distance']:>22.3f} {one['change']:>8.3f}  {one['verdict']}"
        for one in facts["candidates"]
    ]
    lines.append(
        f"  kept: {', '.join(facts['kept'])} (of {facts['images']} images; a change of {LITTLE} is too little)"
    )
    return "\n".join(lines)
