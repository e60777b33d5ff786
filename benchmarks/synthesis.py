"""Whether made-up pictures help a detector that has few real ones to learn from. Prints JSON.

python -m benchmarks.synthesis rocks --patches SET --model small-bodies
python -m benchmarks.synthesis anomalies --patches SET --model small-bodies --real DIR

Each detector learns four times: from a few real patches of one product; from these and made-up ones; from made-up ones
alone; from these and the real ones that the generator has learnt from, which is more than made-up ones can hold. It is
measured on the ground of a product that neither it nor the generator has seen. All is repeated with other few patches.

rocks      a small U-Net, by the recipe `rocks`, where simulated rocks are planted on patches: overlap of rock pixels
anomalies  the density of frozen features (EfficientNet-Lite0) of ordinary ground: average precision on planted things

SET: the patches that the generator learnt from, of `lunar patches`; those of its products that are kept aside are the
ground that rocks are planted on to measure. DIR: the real images of development (nac_cdr).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch.nn import functional

from lunar_processing.evaluate.planted import KINDS, Facts, Strip
from lunar_processing.evaluate.ranking import measure, over_kinds
from lunar_processing.networks import FAMILIES
from lunar_processing.tools.evaluate_anomalies import Scorer, compare, planted
from lunar_processing.tools.evaluate_synthesis import Wishes, pictures
from lunar_processing.training.augment import POLICIES, augment
from lunar_processing.training.data import Batch, Picture, crops, dice, mix, percentiles, stack
from lunar_processing.training.features import Features, features
from lunar_processing.training.loop import Plan, train
from lunar_processing.training.patches import load_patches
from lunar_processing.training.recipes import RECIPES, Lesson
from lunar_processing.training.recipes.rocks import ROCK, SHADOW, count, overlap, plant

ARMS = ("few real", "few real, and made", "made alone", "few real, and more real")
SIDE, BATCH = 64, 16
CHANNELS = 8  # of the U-Net at its finest level
POOL = 320  # patches with rocks that an arm learns from
TESTED = 128
FEWEST = 12  # px of rocks in a patch that is kept
INCIDENCE = (55.0, 80.0)  # degrees, of the sun that rocks are drawn under
PIXEL_M = 0.5
STEP, CHANNELS_SEEN = 32, 64  # px that the features need; channels of the levels 1/4 and 1/8
RECIPE = RECIPES["rocks"]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(BENCHMARKS))
    parser.add_argument("--patches", type=Path, required=True, help="what the generator learnt from")
    parser.add_argument("--real", type=Path, help="folder of real images, nac_cdr: for anomalies")
    parser.add_argument("--model", default="small-bodies", help="the generator, by id or folder; or made-up pictures")
    parser.add_argument("--product", default="M134022629", help="of which the few real patches are")
    parser.add_argument(
        "--unseen", nargs="+", default=["M1229577647", "phobos"], help="products on whose ground rocks are looked for"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="leave others out (default: all)")
    parser.add_argument("--few", type=int, default=8, help="real patches to learn from (default 8)")
    parser.add_argument("--made", type=int, default=320, help="made-up, or further real ones (default 320)")
    parser.add_argument("--steps", type=int, default=200, help="of each training for rocks (default 200)")
    parser.add_argument("--strips", type=int, default=27, help="images with a strange thing in each (default 27)")
    parser.add_argument("--repeat", type=int, default=1, help="times, with other few patches (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the first time (default 0)")
    given = parser.parse_args()
    json.dump(BENCHMARKS[given.name](given), sys.stdout, indent=1)
    print()
    return 0


def _grounds(given: argparse.Namespace) -> Iterator[tuple[int, str, list[np.ndarray]]]:
    """What each arm learns from, each time: patches (n, S, S) in 0…1."""
    real = load_patches(given.patches, SIDE)["train"]
    made = pictures(given.model, Wishes(count=max(100, given.made)))[: given.made].astype(np.float32) / 255
    for time in range(given.seed, given.seed + given.repeat):
        few, more = _few(real, given, np.random.default_rng([given.few, time]))
        for arm, ground in zip(ARMS, ([few], [few, made], [made], [few, more])):
            if arm in given.arms:
                yield time, arm, ground


def _told(given: argparse.Namespace, found: Mapping[str, Sequence[Mapping[str, float]]]) -> dict:
    """All numbers by arm: each time, mean and spread."""
    return {
        **{name: getattr(given, name) for name in ("name", "few", "made", "steps", "seed", "repeat", "product")},
        "model": str(given.model),
        "arms": {arm: {n: _summed([one[n] for one in each]) for n in each[0]} for arm, each in found.items()},
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


# ---- rocks -------------------------------------------------------------------------------------------------------


def rocks(given: argparse.Namespace) -> dict:
    """Overlap of rock pixels (intersection over union) on the ground of each product."""
    aside = load_patches(given.patches, SIDE)["validation"]
    tested = {
        name: with_rocks([np.stack([p.image for p in aside if p.product == name])], TESTED, seed=77)
        for name in given.unseen
    }
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in given.arms}
    for time, arm, ground in _grounds(given):
        network = _taught(with_rocks(ground, POOL, seed=mix(1, time)), given.steps, seed=time)
        found[arm].append({name: _measured(network, some)["iou"] for name, some in tested.items()})
        print(f"{time} {arm}: {found[arm][-1]}", file=sys.stderr, flush=True)
    return _told(given, found)


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


def _taught(learnt: Sequence[Picture], steps: int, seed: int) -> torch.nn.Module:
    """The network after the last step: none is chosen by what it is measured on."""
    torch.manual_seed(mix(seed, 0))
    network = FAMILIES[RECIPE.card.family](**{**RECIPE.card.settings, "channels": CHANNELS})
    drawn = crops(learnt, SIDE, BATCH, seed)

    def varied(step: int) -> Batch:
        return augment(drawn(step), POLICIES[RECIPE.policy], dice(mix(seed, 1), step))

    lesson = Lesson(RECIPE, network, varied, learnt[:BATCH], SIDE, RECIPE.rate, seed)
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


# ---- anomalies ---------------------------------------------------------------------------------------------------


def anomalies(given: argparse.Namespace) -> dict:
    """Average precision, mean over the kinds of things, by the distance from ordinary features."""
    if given.real is None:
        raise SystemExit("name the real images with --real")
    eye = features("efficientnet-lite0")
    strips = [_even(strip) for strip in planted(given.real, "validation", given.strips)]
    seen = {id(strip.image): _seen(eye, strip.image[None])[0] for strip in strips}
    scorers: dict[str, Scorer | str] = {}
    for time, arm, ground in _grounds(given):
        ordinary = np.concatenate([_seen(eye, patches).reshape(-1, CHANNELS_SEEN) for patches in ground])
        density = LedoitWolf().fit(ordinary)
        scorers[f"{arm}/{time}"] = partial(_distance, density, seen)
    measured = measure(compare(strips, scorers, surroundings=False))
    found = {
        arm: [
            {"average_precision": over_kinds(measured[f"{arm}/{time}"], "ap"), **_of_kinds(measured[f"{arm}/{time}"])}
            for time in range(given.seed, given.seed + given.repeat)
        ]
        for arm in given.arms
    }
    return _told(given, found)


def _even(strip: Strip) -> Strip:
    """Cut to whole cells, and stretched as patches are."""
    high, wide = (side // STEP * STEP for side in strip.image.shape)
    image = strip.image[:high, :wide].astype(np.float32)
    low, top = np.percentile(image, (0.5, 99.5))
    parts = {name: getattr(strip, name)[:high, :wide] for name in ("valid", "mask", "touched")}
    return replace(strip, image=np.clip((image - low) / (top - low), 0, 1), **parts, terrain={})


@torch.inference_mode()
def _seen(eye: Features, images: np.ndarray) -> np.ndarray:
    """Features (n, h, w, C) of cells of 8 px of images (n, H, W) in 0…1: of two levels, side by side."""
    found = []
    for part in torch.from_numpy(np.ascontiguousarray(images)).split(16):
        fine, coarse = eye(2 * part[:, None] - 1).maps[1:3]
        found.append(torch.cat([functional.avg_pool2d(fine, 2), coarse], dim=1).movedim(1, -1).numpy())
    return np.concatenate(found)


def _distance(
    density: LedoitWolf, seen: Mapping[int, np.ndarray], image: np.ndarray, valid: np.ndarray, facts: Facts
) -> np.ndarray:
    """Squared distance of Mahalanobis of each cell of 8 px."""
    there = seen[id(image)]
    found: np.ndarray = density.mahalanobis(there.reshape(-1, CHANNELS_SEEN)).reshape(there.shape[:2])
    return found


def _of_kinds(numbers: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {kind: found["ap"] for kind, found in numbers.items() if kind in KINDS}


BENCHMARKS: dict[str, Callable[[argparse.Namespace], dict]] = {"rocks": rocks, "anomalies": anomalies}


if __name__ == "__main__":
    sys.exit(main())
