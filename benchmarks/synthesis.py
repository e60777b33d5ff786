"""Whether made-up pictures help a detector that has few real ones to learn from. Prints JSON.

python -m benchmarks.synthesis useful --patches SET --model small-bodies

A small U-Net learns to find rocks, by the recipe `rocks`, where simulated rocks are planted on ground: on a few real
patches of one product; on these and on made-up ones; on made-up ones alone; and on these and the real ones that the
generator has learnt from, which is more than made-up ones can hold. It is measured on rocks that are planted on the
ground of a product that neither the U-Net nor the generator has seen. All is repeated with other few patches.

SET: the patches that the generator learnt from, of `lunar patches`; those of its products that are kept aside are the
ground to measure on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lunar_processing.networks import FAMILIES
from lunar_processing.tools.evaluate_synthesis import Wishes, pictures
from lunar_processing.training.augment import POLICIES, augment
from lunar_processing.training.data import Batch, Picture, crops, dice, mix, percentiles, stack
from lunar_processing.training.loop import Plan, train
from lunar_processing.training.patches import load_patches
from lunar_processing.training.recipes import RECIPES, Lesson
from lunar_processing.training.recipes.rocks import ROCK, SHADOW, count, overlap, plant

ARMS = ("few real", "few real, and made", "made alone", "few real, and more real")
SIDE, BATCH = 64, 16
CHANNELS = 8  # of the U-Net at its finest level
POOL = 640  # patches with rocks that an arm learns from
TESTED = 256
FEWEST = 12  # px of rocks in a patch that is kept
INCIDENCE = (55.0, 80.0)  # degrees, of the sun that rocks are drawn under
PIXEL_M = 0.5
RECIPE = RECIPES["rocks"]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("useful",))
    parser.add_argument("--patches", type=Path, required=True, help="what the generator learnt from")
    parser.add_argument("--model", default="small-bodies", help="the generator, by id or folder; or made-up pictures")
    parser.add_argument("--product", default="M134022629", help="of which the few real patches are")
    parser.add_argument("--unseen", default="M1229577647", help="product on whose ground is measured")
    parser.add_argument("--few", type=int, default=16, help="real patches to learn from (default 16)")
    parser.add_argument("--made", type=int, default=320, help="made-up, or further real ones (default 320)")
    parser.add_argument("--steps", type=int, default=300, help="of each training (default 300)")
    parser.add_argument("--repeat", type=int, default=3, help="times, with other few patches (default 3)")
    given = parser.parse_args()
    json.dump(useful(given), sys.stdout, indent=1)
    print()
    return 0


def useful(given: argparse.Namespace) -> dict:
    """Overlap of rock pixels by arm: each time, mean and spread; and what made-up pictures add."""
    parts = load_patches(given.patches, SIDE)
    made = pictures(given.model, Wishes(count=max(100, given.made)))[: given.made].astype(np.float32) / 255
    unseen = np.stack([p.image for p in parts["validation"] if p.product == given.unseen])
    tested = with_rocks([unseen], TESTED, seed=77)
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for time in range(given.repeat):
        few, more = _few(parts["train"], given, np.random.default_rng([given.few, time]))
        for arm, ground in zip(ARMS, ([few], [few, made], [made], [few, more])):
            learnt = with_rocks(ground, POOL, seed=mix(1, time))
            found[arm].append(_measured(_taught(learnt, tested, given.steps, seed=time), tested))
    gain = [b["iou"] - a["iou"] for a, b in zip(found[ARMS[0]], found[ARMS[1]])]
    return {
        **{name: getattr(given, name) for name in ("few", "made", "steps", "repeat", "product", "unseen")},
        "model": str(given.model),
        "arms": {arm: {n: _summed([one[n] for one in each]) for n in each[0]} for arm, each in found.items()},
        "gain_of_made": _summed(gain),
    }


def _summed(values: Sequence[float]) -> dict:
    return {"mean": float(np.mean(values)), "spread": float(np.std(values)), "each": list(values)}


def _few(
    real: Sequence[Picture], given: argparse.Namespace, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A few patches of one product, and others of all that the generator learnt from."""
    here = np.array([p.product == given.product for p in real])
    few = random.choice(np.flatnonzero(here), given.few, replace=False)
    more = random.choice(np.setdiff1d(np.arange(len(real)), few), given.made, replace=False)
    return np.stack([real[n].image for n in few]), np.stack([real[n].image for n in more])


def with_rocks(grounds: Sequence[np.ndarray], number: int, seed: int) -> list[Picture]:
    """So many patches with rocks in them, as many on each of the grounds (n, S, S) in 0…1."""
    share = -(-number // len(grounds))
    kept = [_with_rocks(ground, share, mix(seed, k)) for k, ground in enumerate(grounds)]
    return [picture for some in kept for picture in some][:number]


def _with_rocks(ground: np.ndarray, number: int, seed: int) -> list[Picture]:
    found: list[Picture] = []
    for turn in itertools.count():
        order = np.random.default_rng([seed, turn]).permutation(max(len(ground), BATCH)) % len(ground)
        found += [p for p in _planted(ground[order], mix(seed, turn)) if np.count_nonzero(p.mask == ROCK) >= FEWEST]
        if len(found) >= number:
            break
    return found[:number]


def _planted(ground: np.ndarray, seed: int) -> list[Picture]:
    image = torch.from_numpy(ground)[:, None]
    sun = torch.rand(2, len(image), generator=dice(seed, 0))
    batch: Batch = {
        "image": image - image.amin(dim=(2, 3), keepdim=True),
        "valid": torch.ones_like(image, dtype=torch.bool),
        "mask": torch.zeros(len(image), SIDE, SIDE, dtype=torch.long),
        "sun_azimuth": 360 * sun[0],
        "pixel_size": torch.full((len(image),), PIXEL_M),
        "incidence": INCIDENCE[0] + (INCIDENCE[1] - INCIDENCE[0]) * sun[1],
    }
    made = plant(batch, seed)
    low, high = percentiles(made["image"][:, 0])  # (B, 1, 1)
    stretched = (made["image"][:, 0] - low) / (high - low).clamp_min(1e-6)
    mask = made["mask"].masked_fill(made["mask"] == SHADOW, 0)
    valid = np.ones((SIDE, SIDE), bool)
    return [
        Picture(str(k), "rocks", one.numpy(), valid, truth.numpy().astype(np.uint8))
        for k, (one, truth) in enumerate(zip(stretched, mask))
    ]


def _taught(learnt: Sequence[Picture], tested: Sequence[Picture], steps: int, seed: int) -> torch.nn.Module:
    """The network after the last step: none is chosen by what it is measured on."""
    torch.manual_seed(mix(seed, 0))
    network = FAMILIES[RECIPE.card.family](**{**RECIPE.card.settings, "channels": CHANNELS})
    drawn = crops(learnt, SIDE, BATCH, seed)

    def varied(step: int) -> Batch:
        return augment(drawn(step), POLICIES[RECIPE.policy], dice(mix(seed, 1), step))

    lesson = Lesson(RECIPE, network, varied, tested[:BATCH], SIDE, RECIPE.rate, seed)
    later = itertools.count()  # is better
    task = replace(RECIPE.task(lesson), validate=lambda networks: {"iou": float(next(later))})
    with tempfile.TemporaryDirectory() as folder:
        outcome = train(task, Plan(steps=steps, seed=seed, device="cpu", average=0.98, validations=1), Path(folder))
    return outcome.best[RECIPE.main].eval()


@torch.inference_mode()
def _measured(network: torch.nn.Module, tested: Sequence[Picture]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for first in range(0, len(tested), BATCH):
        for name, value in count(network, stack(tested[first : first + BATCH])).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return overlap(sums)


if __name__ == "__main__":
    sys.exit(main())
