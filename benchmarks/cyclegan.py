"""The painter of shadows beside methods that add nothing, and what each part of its loss is good for. Prints JSON.

python -m benchmarks.cyclegan measure --real DIR       SSIM, LPIPS, distance from sunlit ground as a set of looks
python -m benchmarks.cyclegan ablation --real DIR      equal short trainings with parts left out
python -m benchmarks.cyclegan draw --real DIR          the picture of the manual

`measure` takes the scenes of `lunar evaluate psr`, which nothing was learnt from. The *distance* asks nothing of single
pixels: windows of what a method made and windows of sunlit ground elsewhere, each stretched between its own
percentiles, are points in the space of LPIPS-weighted features of VGG16, and the energy distance of the two clouds is
taken. As a scale: that of sunlit ground of other products. The features come from `lunar fetch-features`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lunar_processing.evaluate import restoration
from lunar_processing.modelpack import read_pack
from lunar_processing.tools import evaluate_psr as psr
from lunar_processing.tools.illustration import ILLUSTRATION, illustrate
from lunar_processing.tools.shadow import restore
from lunar_processing.tools.train import Wishes, train_model
from lunar_processing.training.data import SPLITS
from lunar_processing.training.losses import Perceptual, energy_distance
from lunar_processing.training.recipes import RECIPES, cyclegan

REPOSITORY = Path(__file__).resolve().parent.parent
MODELS = REPOSITORY / "models"
PICTURE = REPOSITORY / "docs" / "images" / "psr_cyclegan.jpg"
OURS, PHYSICS, TRUTH = "psr-cyclegan", "psr-physics", "what is there"
LEVELS = (2.0, 5.0, 10.0, 20.0, 50.0)  # DN, mean
SIDE = 384  # of the middle of a scene that is darkened and restored, px; its own middle of 256 px is measured
WINDOW = 128
SETTLED = (psr.BOUND, psr.STRIPELESS, TRUTH, PHYSICS, OURS)  # the others are the classical methods
DRAWN_AT = 5.0  # DN
SHOWN = (psr.INPUT, "Gaussian, told its sigma", PHYSICS, OURS, TRUTH)
LEFT_OUT = {  # name → (weights of the loss, settings of the network) that differ
    "everything": ({}, {}),
    "no perceptual loss": ({"perceptual": 0.0}, {}),
    "no SSIM": ({"ssim": 0.0}, {}),
    "no identity": ({"identity": 0.0}, {}),
    "no attention": ({}, {"attention": False}),
}


def main() -> int:
    """Run one of them; 1 where the painter is not ahead of every classical method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(BENCHMARKS))
    parser.add_argument("--real", type=Path, required=True, help="folder of real images, nac_cdr")
    parser.add_argument("--model", type=Path, default=MODELS / OURS, help=f"folder (default models/{OURS})")
    parser.add_argument("--part", default="validation", choices=("validation", "test"), help="products to measure on")
    parser.add_argument("--levels", type=float, nargs="+", default=LEVELS, help="mean signals, DN")
    parser.add_argument("--steps", type=int, default=140, help="length of each training of the ablation")
    given = parser.parse_args()
    facts = BENCHMARKS[given.name](given)
    print(json.dumps(facts, indent=1))
    return 0 if facts.get("ahead", True) else 1


# ---- beside other methods ----------------------------------------------------------------------------------------


def measure(given: argparse.Namespace) -> dict:
    """Means over the scenes for each method and level, and whether the painter is ahead of all classical methods."""
    perceptual = Perceptual()
    wishes = psr.Wishes(part=given.part)
    real = psr.read_scenes(given.real, SPLITS["nac_cdr"][given.part])
    scenes = [*real, *psr.draw_scenes(psr.DRAWN, psr.DRAWN_PX, psr.DRAWN_SEED)]
    sunlit = [_looks(perceptual, scene.light) for scene in psr.read_scenes(given.real, SPLITS["nac_cdr"]["train"])]
    numbers: dict[str, dict[str, dict[float, list[float]]]] = {name: {} for name in ("ssim", "lpips")}
    looks: dict[str, dict[float, list[torch.Tensor]]] = {}
    for level in given.levels:
        for scene in scenes:
            part, made = _restored(scene, level, wishes, given.model)
            span = restoration.span_of(part.truth)
            lpips, points = _perceived(perceptual, made)
            for method, image in made.items():
                told = {"ssim": restoration.ssim(image, part.truth, span), "lpips": lpips[method]}
                for name, value in told.items():
                    numbers[name].setdefault(method, {}).setdefault(level, []).append(value)
                looks.setdefault(method, {}).setdefault(level, []).append(points[method])
            print(f"{scene.name} at {level:g} DN", file=sys.stderr)
    everywhere = torch.cat(sunlit)
    told = {
        name: {m: [round(float(np.mean(some)), 4) for some in found.values()] for m, found in methods.items()}
        for name, methods in numbers.items()
    }
    told["distance"] = {
        method: [round(float(energy_distance(torch.cat(found[level]), everywhere)), 4) for level in given.levels]
        for method, found in looks.items()
    }
    scale = energy_distance(torch.cat(sunlit[::2]), torch.cat(sunlit[1::2]))
    leads = {name: _lead(rows, 1 if name == "ssim" else -1) for name, rows in told.items()}
    ahead = all(lead > 0 for name in ("ssim", "distance") for lead in leads[name])
    return {
        "levels_dn": list(given.levels),
        **told,
        "distance_of_sunlit_products": round(float(scale), 4),
        "leads": leads,
        "ahead": ahead,
    }


def _restored(
    scene: psr.Scene, level: float, wishes: psr.Wishes, model: Path, wanted: tuple[str, ...] = ()
) -> tuple[psr.Case, dict[str, np.ndarray]]:
    """The middle of a darkened scene, and what all methods, or those `wanted`, make of it."""
    top, left = ((side - min(side, SIDE)) // 2 for side in scene.light.shape)
    scene = scene._replace(light=scene.light[top : top + SIDE, left : left + SIDE], boxes=None)
    case = psr.darkened(scene, level, wishes)
    inner = psr.middle(scene.light.shape, wishes)
    part = psr._cut(case, inner)
    made: dict[str, np.ndarray] = {}
    for name, method in psr.restorers(lambda text: None).items():
        if wanted and name not in wanted:
            continue
        made[name] = method(part)[0] if name in psr.SLOW else method(case)[0][inner]
    painter = read_pack(model)
    assert painter.card.output == ILLUSTRATION
    made[OURS] = psr._levelled(illustrate(painter, case.recorded, case.noise)[inner].astype(float), part.truth)
    if (MODELS / PHYSICS).is_dir():
        made[PHYSICS] = restore(read_pack(MODELS / PHYSICS), case.recorded, case.noise)[0][inner].astype(float)
    return part, {**made, TRUTH: part.truth}


def _lead(rows: dict[str, list[float]], sign: int) -> list[float]:
    """By how much the painter is better than the best classical method, at each level."""
    others = [row for method, row in rows.items() if method not in SETTLED]
    return [round(min(sign * (ours - v) for v in theirs), 4) for ours, theirs in zip(rows[OURS], zip(*others))]


def _shown(image: np.ndarray) -> torch.Tensor:
    """As one would look at it: between its own percentiles, (1, 1, H, W)."""
    low, high = np.percentile(image, (0.5, 99.5))
    return torch.from_numpy(((image - low) / max(high - low, 1e-9)).clip(0, 1)).float()[None, None]


@torch.no_grad()
def _perceived(perceptual: Perceptual, made: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """LPIPS of each method from what is there, mean over the windows, and the points of its windows."""
    far, points = [], []
    for windows in zip(*(_windows(image) for image in made.values())):
        apart, look = torch.zeros(len(made)), []
        for seen, head in perceptual.features(torch.cat([_shown(window) for window in windows])):
            apart += ((seen - seen[-1:]) ** 2 * head).sum(dim=1).mean(dim=(1, 2))  # the last is what is there
            look.append((seen * head.sqrt()).mean(dim=(2, 3)))
        far.append(apart)
        points.append(torch.cat(look, dim=1))
    together = torch.stack(points, dim=1)  # (methods, windows, F)
    return dict(zip(made, torch.stack(far).mean(dim=0).tolist())), dict(zip(made, together))


@torch.no_grad()
def _looks(perceptual: Perceptual, image: np.ndarray) -> torch.Tensor:
    """Points of the windows of an image, each stretched for itself."""
    return torch.cat([perceptual.looks(_shown(window)) for window in _windows(image)])


def _windows(image: np.ndarray) -> Iterator[np.ndarray]:
    for row in range(0, image.shape[0] - WINDOW + 1, WINDOW):
        for col in range(0, image.shape[1] - WINDOW + 1, WINDOW):
            yield image[row : row + WINDOW, col : col + WINDOW]


# ---- what is left out --------------------------------------------------------------------------------------------


def ablation(given: argparse.Namespace) -> dict:
    """What equal trainings measure on the validation products: SSIM, cycles, distance as a set, at 10 DN."""
    found = {}
    for name, (weights, settings) in LEFT_OUT.items():
        task = partial(cyclegan.task, weights=replace(cyclegan.WEIGHTS, **weights))
        RECIPES[OURS] = replace(cyclegan.RECIPE, task=task, validations=2)
        with tempfile.TemporaryDirectory() as folder:
            asked = Wishes(OURS, (str(given.real),), Path(folder) / OURS, split="nac_cdr", simulated=0.25,
                           steps=given.steps, settings=settings, device="cpu")  # fmt: skip
            measured = train_model(asked).outcome.measured
        found[name] = {k: round(v, 4) for k, v in measured.items() if "/" not in k and v == v}
        print(name, found[name], file=sys.stderr)
    RECIPES[OURS] = cyclegan.RECIPE
    return {"steps": given.steps, **found}


# ---- a picture ---------------------------------------------------------------------------------------------------


def draw(given: argparse.Namespace) -> dict:
    """A simulated scene and a product in shadow: as recorded, by other methods, painted, and as it is."""
    from matplotlib import pyplot as plt

    wishes = psr.Wishes(part=given.part)
    real = psr.read_scenes(given.real, SPLITS["nac_cdr"][given.part])[0]
    scenes = [real, *psr.draw_scenes(1, psr.DRAWN_PX, psr.DRAWN_SEED)]
    drawn, places = plt.subplots(len(scenes), len(SHOWN), figsize=(3.0 * len(SHOWN), 3.2 * len(scenes)))
    for row, scene in zip(places, scenes):
        _, made = _restored(scene, DRAWN_AT, wishes, given.model, SHOWN)
        for place, name in zip(row, SHOWN):
            place.imshow(_shown(made[name])[0, 0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            place.set_title(f"{name}: illustration" if name == OURS else name, fontsize=9)
            place.axis("off")
    drawn.tight_layout()
    drawn.savefig(PICTURE, dpi=60, pil_kwargs={"quality": 70})
    return {"picture": str(PICTURE)}


BENCHMARKS = {"measure": measure, "ablation": ablation, "draw": draw}

if __name__ == "__main__":
    sys.exit(main())
