"""Rocks: a class for each pixel, learnt from masks, from simulated scenes, and from rocks planted into real images.

Two recipes. `rocks` learns from a user's own masks. `rocks-orbital` is the shipped model: three parts of simulated
scenes, in which everything is known, and one part of real images, into which simulated rocks are planted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lunar_processing.modelpack import Card
from lunar_processing.networks.rocknet import RockNet
from lunar_processing.simulate import light, scenes
from lunar_processing.simulate.scenes import SceneRecipe
from lunar_processing.simulate.terrain import Ground, draw_rocks, stamp_rocks
from lunar_processing.training import losses
from lunar_processing.training.data import MIDDLE, UNKNOWN, Batch, Picture, Sampler, crops, dice, mix, percentiles
from lunar_processing.training.loop import State, Task
from lunar_processing.training.recipes.recipe import Lesson, Recipe, by_product

# Rocks are a few pixels in a thousand: without weight the best network for a while is one that sees none.
WEIGHT = 5.0
# The same for a network whose probabilities are summed to areas, and so should not be far from true.
GENTLE = 2.0
ROCK, SHADOW = 1, 2  # classes of masks; a mask need not mark shadows
REACH = 12  # px: how far inside a rock is told from further inside


def task(lesson: Lesson) -> Task:
    """A network of logits, one optimiser."""
    net = lesson.network

    def step(batch: Batch, state: State) -> Mapping[str, Tensor]:
        labels = batch["mask"].masked_fill(~batch["valid"][:, 0], UNKNOWN)
        with state.precision():
            output = net(batch["image"])
        judge = _judge_middles if isinstance(net, RockNet) else _judge_classes
        found = judge(output.float(), labels, batch)
        state.descend("net", torch.stack(list(found.values())).sum())
        return found

    optimisers = {"net": torch.optim.AdamW(net.parameters(), lesson.rate, weight_decay=1e-4)}
    return Task({"net": net}, optimisers, lesson.batch, step, by_product(lesson, count, overlap), ("iou", "high"),
                lesson.about)  # fmt: skip


def _judge_classes(logits: Tensor, labels: Tensor, _batch: Batch) -> dict[str, Tensor]:
    weights = torch.ones(logits.shape[1], device=logits.device)
    weights[1:] = WEIGHT
    return {"cross_entropy": losses.cross_entropy(logits, labels, weights), "dice": losses.dice(logits, labels)}


def _judge_middles(output: Tensor, labels: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Rock against all else, shadow against lit ground where the truth knows, and the middles of rocks."""
    log_p, middle = output[:, :-1].log_softmax(dim=1), output[:, -1]
    known, rock = labels != UNKNOWN, labels == ROCK
    # Who draws rocks does not draw shadows: only a truth that says so calls unmarked ground lit.
    told = batch.get("shadows", torch.zeros(len(labels), dtype=torch.bool, device=labels.device))[:, None, None]
    ground = torch.where(told, log_p[:, 0], torch.logaddexp(log_p[:, 0], log_p[:, SHADOW]))
    right = torch.where(rock, log_p[:, ROCK], torch.where(labels == SHADOW, log_p[:, SHADOW], ground))
    weight = torch.where(rock, GENTLE, 1.0) * known
    p = log_p[:, ROCK].exp() * known
    overlap = (2 * (p * rock).sum() + 1) / ((p + rock.float()).sum() + 1)
    near = functional.max_pool2d(rock[:, None].float(), 3, 1, 1)[:, 0] * known
    truth = batch["middle"][:, 0].clamp(0, 1) if "middle" in batch else middles(rock.long())
    found = functional.binary_cross_entropy_with_logits(middle, truth, near)
    return {
        "cross_entropy": -(right * weight).sum() / weight.sum().clamp_min(1),
        "dice": 0.5 * (1 - overlap),
        "middles": 0.3 * found * near.numel() / near.sum().clamp_min(1),
    }


def middles(parts: Tensor) -> Tensor:
    """How far inside its rock a pixel lies, 1 for the innermost: from numbered rocks (B, H, W), 0 is ground."""
    there = parts > 0
    inside = there.clone()
    for axis in (1, 2):  # where two rocks touch, both have a rim
        n = parts.shape[axis]
        one, other = parts.narrow(axis, 0, n - 1), parts.narrow(axis, 1, n - 1)
        rim = (one != other) & (one > 0) & (other > 0)
        inside.narrow(axis, 0, n - 1).logical_and_(~rim)
        inside.narrow(axis, 1, n - 1).logical_and_(~rim)
    depth = losses.distance(~inside[:, None], REACH)[:, 0] * inside
    _, number = torch.unique(parts, return_inverse=True)
    deepest = torch.zeros(int(number.max()) + 1, device=parts.device)
    deepest.scatter_reduce_(0, number.flatten(), depth.flatten(), "amax")
    deepest = deepest[number]
    return torch.where(inside, depth / deepest.clamp_min(1.0), 0.0)


def count(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Pixels of rock classes that are right, missed, or seen where there is none."""
    known = (batch["mask"] != UNKNOWN) & batch["valid"][:, 0]
    said = net(batch["image"])
    said = said[:, :-1].argmax(dim=1) if isinstance(net, RockNet) else said.argmax(dim=1)
    mask = batch["mask"]
    if isinstance(net, RockNet):  # its shadows are no rocks, nor are those of a mask
        said, mask = (x.masked_fill(x == SHADOW, 0) for x in (said, mask))
    rock, seen = (mask > 0) & known, (said > 0) & known
    same = rock & (said == mask)
    return {"right": same.sum(), "true": rock.sum(), "seen": seen.sum(), "either": (rock | seen).sum()}


def overlap(sums: Mapping[str, float]) -> dict[str, float]:
    """Intersection over union, precision and recall of rock pixels; NaN where there is no rock."""

    def share(of: str) -> float:
        return sums["right"] / sums[of] if sums[of] else float("nan")

    if not sums["true"]:
        return {"iou": float("nan"), "precision": float("nan"), "recall": float("nan")}
    return {"iou": share("either"), "precision": share("seen"), "recall": share("true")}


# ---- the shipped model: what it learns from ----------------------------------------------------------------------

# Every light and every pixel size that it is meant for, and a little more.
WIDE = SceneRecipe(
    pixel_size_m=(0.3, 2.0),
    incidence_deg=(8.0, 86.0),
    slope_deg=(0.5, 6.0),
    hurst=(0.75, 1.0),
    grain=(1e-4, 4e-2),
    tilt_deg=(0.0, 8.0),
    crater_density=(0.02, 0.15),
    equilibrium_m=(10.0, 60.0),
    smallest_crater_px=1.0,
    rock_share=(2e-3, 5e-2),
    rock_exponent=(2.3, 4.5),
    smallest_rock_px=1.0,
    largest_rock_px=28.0,
    blocks=0.05,
    signal_dn=(40.0, 2400.0),
    camera={"psf": (0.42, 0.6), "smear": (0.0, 0.4), "flat": (0.0, 0.003), "column": (0.1, 0.4),
            "pattern_left": (0.0, 0.1), "table": (0.0, 1.0)},
)  # fmt: skip
MOONS: Sequence[SceneRecipe] = (
    WIDE,
    replace(WIDE, smallest_rock_px=2.0, rock_share=(1e-3, 3e-2)),
    replace(WIDE, rock_share=(1e-2, 8e-2), rock_exponent=(2.2, 3.5), crater_density=(0.01, 0.06)),  # rocks that touch
    replace(WIDE, rock_share=(1e-9, 1e-8), blocks=0.0, slope_deg=(1.0, 8.0), crater_density=(0.05, 0.3)),  # none
)
POOL = 4  # batches of scenes that are made together …
AGAIN = 3  # … and seen so often, each time turned, stretched and mixed anew: making them costs more than learning
PLANTED = 0.25  # share of each batch that is real ground with planted rocks
BRIGHT_SPOTS = 0.3  # share of the images that get bright spots without a shadow
VISIBLE = 0.15  # of a rock must see the sun, or nobody can say that it is there
SMALLEST = 2.0  # px: a smaller rock is neither asked for nor forbidden


def sampler(pictures: Sequence[Picture], size: int, batch: int, seed: int, device: str = "cpu") -> Sampler:
    """Batches for `rocks-orbital`; `pictures` are real images in which hardly any rock is, with their sun, if known.

    Their masks are 0, and UNKNOWN where there may be a rock.
    """
    lit = [_from_black(p) for p in pictures if p.sun_azimuth == p.sun_azimuth and p.incidence == p.incidence]
    real = crops(lit, size, round(PLANTED * batch * POOL), seed) if lit else None
    planted = round(PLANTED * batch * POOL) if real else 0

    @lru_cache(maxsize=1)
    def pool(number: int) -> Batch:
        parts = [moons(size, batch * POOL - planted, mix(seed, 2 * number), device)]
        if real:
            ground = {name: values.to(device) for name, values in real(number).items()}
            parts.append(_stretched(plant(ground, mix(seed, 2 * number + 1))))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def draw(step: int) -> Batch:
        number, turn = divmod(step, POOL * AGAIN)
        order = torch.randperm(batch * POOL, generator=dice(mix(seed, number), turn // POOL))
        chosen = order[turn % POOL * batch :][:batch]
        some = {name: values[chosen.to(values.device)] for name, values in pool(number).items()}
        return bright_spots(some, dice(mix(seed, 3), step))

    return draw


def moons(size: int, batch: int, seed: int, device: str = "cpu", recipes: Sequence[SceneRecipe] = MOONS) -> Batch:
    """Simulated scenes, of each recipe alike, with the middles of their rocks, and their shadows marked."""
    shares = [batch // len(recipes) + (k < batch % len(recipes)) for k in range(len(recipes))]
    drawn = [
        _truth(scenes.draw(recipe, n, mix(seed, k), device, size))
        for k, (recipe, n) in enumerate(zip(recipes, shares))
        if n
    ]
    return {name: torch.cat([part[name] for part in drawn]) for name in drawn[0]}


def _from_black(picture: Picture) -> Picture:
    """Brightness counted from the darkest pixel, so that it can be multiplied."""
    return replace(picture, image=picture.image - picture.image[picture.valid].min())


def _stretched(batch: Batch) -> Batch:
    """Each window between its own percentiles, as a tool would stretch an image of this size."""
    low, high = percentiles(batch["image"][:, 0])
    stretched = (batch["image"] - low[:, None]) / (high - low).clamp_min(1e-6)[:, None]
    return {**batch, "image": torch.where(batch["valid"], stretched, MIDDLE)}


def _truth(made: scenes.Scenes) -> Batch:
    parts = made.rock_id.long()
    rocks = made.rocks
    diameter = rocks.diameter_m / made.pixel_size[rocks.scene]
    truth = {
        "image": made.image[:, None],
        "valid": torch.ones_like(made.image, dtype=torch.bool)[:, None],
        "mask": _mask(parts, made.lit, diameter),
        "middle": middles(parts)[:, None],
        "shadows": torch.ones(len(made), dtype=torch.bool, device=parts.device),
        "sun_azimuth": made.sun_azimuth.float(),
        "pixel_size": made.pixel_size.float(),
    }
    return _stretched(truth)


def _mask(parts: Tensor, lit: Tensor, diameter_px: Tensor) -> Tensor:
    """0 lit ground, ROCK, SHADOW, and UNKNOWN on rocks that are too small or lie in shadow."""
    area = torch.bincount(parts.flatten(), minlength=len(diameter_px) + 1).clamp_min(1)
    light = torch.bincount(parts.flatten(), lit.flatten().double(), minlength=len(diameter_px) + 1) / area
    shows = torch.ones(len(area), dtype=torch.bool, device=parts.device)
    shows[1:] = (light[1:] >= VISIBLE) & (diameter_px >= SMALLEST)
    mask = torch.where(lit < 0.5, SHADOW, 0)
    return torch.where(parts > 0, torch.where(shows[parts], ROCK, UNKNOWN), mask)


def plant(ground: Batch, seed: int) -> Batch:
    """Simulated rocks on real images (B, 1, H, W), under the sun of each: faces, shadows and sizes are exact.

    The image, 0 where it is black, is multiplied by the light of a plain with rocks over that of the plain without, as
    the lens blurs it.
    """
    image, mask = ground["image"], ground["mask"]
    generator = torch.Generator().manual_seed(seed)
    margin = 16
    shape = (len(image), image.shape[-2] + 2 * margin, image.shape[-1] + 2 * margin)
    pixel = ground["pixel_size"].cpu().nan_to_num(1.0)
    share = 1e-5 * (2e-2 / 1e-5) ** torch.rand(len(image), generator=generator)
    power = 2.3 + 2.2 * torch.rand(len(image), generator=generator)
    rocks = draw_rocks(shape, pixel, share, power, generator, smallest_px=1.0, largest_px=24.0)
    plain = Ground(torch.zeros(shape), torch.full(shape, 0.12), pixel)
    stony, parts = stamp_rocks(plain, rocks)
    azimuth, incidence = ground["sun_azimuth"].cpu(), ground["incidence"].cpu()
    scattered = 0.012 * 0.12
    bare = light.sunlit(plain, azimuth, incidence)[0] + scattered
    seen, lit = light.sunlit(stony, azimuth, incidence)
    ratio = functional.conv2d(((seen + scattered) / bare)[:, None], _lens(), padding=2)
    inner = slice(margin, -margin)
    ratio, parts, lit = ratio[:, :, inner, inner], parts[:, inner, inner].long(), lit[:, inner, inner]
    truth = _mask(parts, lit, rocks.diameter_m / pixel[rocks.scene])
    return {
        "image": torch.where(ground["valid"], image * ratio, image),
        "valid": ground["valid"],
        "mask": torch.where(parts > 0, truth, torch.where((truth == SHADOW) & (mask == 0), SHADOW, mask)),
        "middle": middles(parts)[:, None],
        "shadows": torch.zeros(len(image), dtype=torch.bool),
        "sun_azimuth": ground["sun_azimuth"],
        "pixel_size": ground["pixel_size"],
    }


def _lens(sigma: float = 0.5) -> Tensor:
    """The camera's blur, 5 × 5."""
    x = torch.arange(-2.0, 3.0)
    bell = torch.exp(-0.5 * (x / sigma) ** 2)
    bell = bell / bell.sum()
    return (bell[:, None] * bell)[None, None]


def bright_spots(batch: Batch, generator: torch.Generator) -> Batch:
    """Here and there a bright spot of a pixel or three without a shadow: it is no rock."""
    image = batch["image"]
    many, height, width = len(image), *image.shape[-2:]
    chosen = torch.rand(many, generator=generator) < BRIGHT_SPOTS
    spots = torch.rand(many, 12, 4, generator=generator)
    rows, cols = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    added = torch.zeros(many, 1, height, width)
    for k in torch.nonzero(chosen)[:, 0].tolist():
        for row, col, strength, size in spots[k].tolist():
            away = (rows - row * height) ** 2 + (cols - col * width) ** 2
            added[k, 0] += (0.1 + 0.6 * strength) * torch.exp(-0.5 * away / (0.5 + 1.2 * size) ** 2)
    return {**batch, "image": image + added.to(image.device) * batch["valid"]}


class _Band(NamedTuple):
    name: str
    incidence: tuple[float, float]


BANDS = (_Band("10-40", (10.0, 40.0)), _Band("40-65", (40.0, 65.0)), _Band("65-80", (65.0, 80.0)),
         _Band("80-85", (80.0, 85.0)))  # fmt: skip


def validation(size: int, seed: int = 77_000) -> list[Picture]:
    """Simulated pictures to choose the best network by: other seeds, rougher ground, four heights of the sun."""
    found = []
    for k, band in enumerate(BANDS):
        recipe = replace(WIDE, incidence_deg=band.incidence, hurst=(0.7, 0.85), slope_deg=(1.0, 5.0))
        made = moons(size, 8, seed + k, recipes=(recipe,))
        mask = made["mask"].masked_fill(made["mask"] == SHADOW, 0)
        for number, (image, truth) in enumerate(zip(made["image"], mask)):
            pixels = image[0].numpy()
            valid = made["valid"][number, 0].numpy()
            found.append(Picture(f"{band.name}-{number}", f"simulated {band.name}", pixels, valid,
                                 truth.numpy().astype("uint8")))  # fmt: skip
    return found


RECIPE = Recipe(
    name="rocks",
    title="Rocks in images from above, as a class for each pixel",
    card=Card("", "rocks", "unet", settings={"channels": 16, "depth": 3, "outputs": 2}, classes=("ground", "rock"),
              tile=512, halo=64),
    task=task,
    policy="orbital",
    scenes="rocks",
    labels=True,
)  # fmt: skip

ORBITAL = Recipe(
    name="rocks-orbital",
    title="Rocks from orbit",
    card=Card("", "rocks", "rocknet", settings={"channels": 32, "outputs": 3}, classes=("ground", "rock", "shadow"),
              pixel_size_m=(0.3, 2.0), tile=1024, halo=72, output="middles"),
    task=task,
    policy="orbital",
    scenes="rocks",
    sampler=sampler,
    validation=validation,
    size=192,
    batch=8,
    rate=3e-3,
    steps=1900,
)  # fmt: skip
