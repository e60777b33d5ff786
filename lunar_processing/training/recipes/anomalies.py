"""Anomalies: a network that learns to tell things that were put into ordinary ground from the ground.

What is put there are things that nobody has named, random forms, and the simulator's objects. So the network has seen
objects like those that people look for (`KNOWN`), though never the same one twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lunar_processing.modelpack import Card
from lunar_processing.networks.multiscale import BLOCK, STRIDE, WINDOWS, foretelling, relief
from lunar_processing.simulate.objects import OBJECTS
from lunar_processing.simulate.stock import Stock
from lunar_processing.simulate.strange import Planted, joined, plant
from lunar_processing.training.data import Batch, dice, mix
from lunar_processing.training.loop import State, Task, to_device
from lunar_processing.training.recipes.recipe import Lesson, Recipe, by_product

UNNAMED, NAMED = 2.0, 3.0  # random forms and objects in a window that is learnt from, on average
KNOWN = tuple(name for name, kind in OBJECTS.items() if kind.young)  # no ridges and scarps, which are ordinary ground
FULL = 0.75  # of a window's side is the largest thing that it fits; the smallest is half of that
SEEN = 0.03  # of a thing's disc must be seen, or nobody can be asked to find it; a track is no more
LOOKS = 150  # batches that a population is
PERCENTAGES = (0.0, 1.0, 5.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.8, 99.9, 99.95, 99.99, 100.0)
RARE = 0.999  # of the windows of ordinary ground score lower than 1
UNKNOWN = -1.0  # in targets: neither strange nor ordinary


def task(lesson: Lesson, unnamed: float = UNNAMED, named: Sequence[str] = KNOWN, each: float = NAMED) -> Task:
    """Strange or not, for windows of each size and for pixels: cross entropies, one optimiser."""
    net = lesson.network
    put = partial(_put, shelf=Stock(named, lesson.seed), unnamed=unnamed, each=each)

    def step(batch: Batch, state: State) -> Mapping[str, Tensor]:
        image, planted = _planted(batch, mix(lesson.seed, state.step), put)
        with state.precision():
            windows, pixels = net.judged(image, batch["valid"])  # type: ignore[operator]
        found = wrong(windows.float(), pixels.float(), planted, batch["valid"])
        state.descend("net", found["windows"] + found["pixels"])
        return found

    def measure(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        image, planted = _planted(batch, 0, put)
        windows, pixels = network.judged(image, batch["valid"])  # type: ignore[operator]
        found = wrong(windows, pixels, planted, batch["valid"])
        count = torch.tensor(float(len(image)))
        return {"wrong": count * (found["windows"] + found["pixels"]).cpu(), "count": count}

    def mean(sums: Mapping[str, float]) -> dict[str, float]:
        return {"error": sums["wrong"] / sums["count"]}

    optimisers = {"net": torch.optim.AdamW(net.parameters(), lesson.rate, weight_decay=1e-4)}
    validate = by_product(lesson, measure, mean)
    return Task({"net": net}, optimisers, lesson.batch, step, validate, ("error", "low"), lesson.about)


def population(lesson: Lesson, network: nn.Module) -> dict[str, Any]:
    """How ordinary ground scores, as the percentages up to which its windows do.

    How a pixel is foretold is learnt from that ground, and scores are made to count from there (see
    `networks.multiscale`).
    """
    device = next(network.parameters()).device
    sampler = lesson.plain or lesson.batch
    batches = [to_device(sampler(number), device) for number in range(LOOKS)]
    levels = torch.tensor([0.5, RARE])

    def known(**values: Tensor) -> None:
        network.load_state_dict({**network.state_dict(), **values})

    with torch.inference_mode():
        known(foretelling=foretelling(relief(batch["image"], batch["valid"]) for batch in batches))
        found = [network.look(batch["image"], batch["valid"]) for batch in batches]  # type: ignore[operator]
        pixels = (functional.max_pool2d(one.pixels, STRIDE // BLOCK) for one in found)
        columns = [torch.cat([one.windows, p, one.surprise, one.lines], dim=1) for one, p in zip(found, pixels)]
        ordinary, rare = torch.quantile(_inner(columns, lesson), levels, dim=1)
        known(ordinary=ordinary, rare=rare)
        highest = _inner([network.together(one) for one in found], lesson).amax(dim=0)  # type: ignore[operator]
        level = torch.quantile(highest, levels)
        known(level=level)
        scores = torch.quantile((highest - level[0]) / (level[1] - level[0]), torch.tensor(PERCENTAGES) / 100)
    images = len(lesson.about.get("images", {}).get("train", ()))
    name = f"ground of the training: {images or 'simulated'} images"
    return {"population": {"name": name, "percentages": list(PERCENTAGES), "scores": scores.tolist()}}


def _inner(maps: Sequence[Tensor], lesson: Lesson) -> Tensor:
    """What sees no edge, of maps (N, C, H/16, W/16): (C, n) on the CPU."""
    inner = slice(4, -4) if lesson.size >= 12 * STRIDE else slice(None)
    return torch.cat([one[:, :, inner, inner].transpose(0, 1).flatten(1).cpu() for one in maps], dim=1)


def _planted(batch: Batch, seed: int, put: partial[Planted]) -> tuple[Tensor, Planted]:
    """The batch's images with things in them, on the batch's device, and what was planted, on the CPU."""
    image = batch["image"]
    planted = put(image[:, 0].cpu(), batch["sun_azimuth"].cpu(), batch["pixel_size"].cpu(), dice(seed, 3))
    filled = torch.where(batch["valid"].cpu(), planted.image[:, None], image.cpu())
    return filled.to(image.device), planted


def _put(
    image: Tensor, sun_azimuth: Tensor, pixel_size: Tensor, numbers: torch.Generator,
    shelf: Stock, unnamed: float, each: float,
) -> Planted:  # fmt: skip
    """Unnamed forms first, then objects of the shelf."""
    first = plant(image, sun_azimuth, pixel_size, numbers, unnamed)
    return joined(first, shelf.put(first.image, sun_azimuth, each, numbers))


def wrong(windows: Tensor, pixels: Tensor, planted: Planted, valid: Tensor) -> dict[str, Tensor]:
    """Cross entropy of the windows, mean over sizes, and of the pixels."""
    of_windows, of_pixels = (t.to(windows.device) for t in (window_targets(planted), pixel_targets(planted)))
    unseen = functional.max_pool2d((~valid).float(), 4, ceil_mode=True) > 0
    of_pixels = of_pixels.masked_fill(unseen[..., : of_pixels.shape[-2], : of_pixels.shape[-1]], UNKNOWN)
    return {
        "windows": torch.stack([_entropy(w, t) for w, t in zip(windows.unbind(1), of_windows.unbind(1))]).sum(),
        "pixels": _entropy(pixels, of_pixels),
    }


def _entropy(logits: Tensor, target: Tensor) -> Tensor:
    known = target != UNKNOWN
    loss = functional.binary_cross_entropy_with_logits(logits, target.clamp_min(0), reduction="none")
    return (loss * known).sum() / known.sum().clamp_min(1)


def pixel_targets(planted: Planted) -> Tensor:
    """(B, 1, H/4, W/4): 1 strange, 0 ordinary, UNKNOWN."""
    strange, unsure = (
        functional.max_pool2d(m.float()[:, None], 4, ceil_mode=True) for m in (planted.strange, planted.unsure)
    )
    return torch.where(strange > 0, 1.0, torch.where(unsure > 0, UNKNOWN, 0.0))


def window_targets(planted: Planted) -> Tensor:
    """(B, sizes, H/16, W/16): 1 where a cell lies on a thing that fits the window; 0 where there is none, or one too
    small for it; UNKNOWN beside a thing, on one that fits another size, and on one that can hardly be seen.
    """
    batch, height, width = planted.image.shape
    rows, cols = -(-height // STRIDE), -(-width // STRIDE)
    down = ((torch.arange(rows) + 0.5) * STRIDE - planted.row[:, None]).abs()
    right = ((torch.arange(cols) + 0.5) * STRIDE - planted.col[:, None]).abs()
    away = torch.maximum(down[:, :, None], right[:, None, :])[:, None]  # (n, 1, rows, cols)
    side = torch.tensor(WINDOWS)[None, :, None, None]
    across = planted.diameter_px[:, None, None, None]
    smallest, largest = torch.tensor(WINDOWS) == WINDOWS[0], torch.tensor(WINDOWS) == WINDOWS[-1]
    fits = ((across > FULL / 2 * side) | smallest[None, :, None, None]) & (
        (across <= FULL * side) | largest[None, :, None, None]
    )
    seen = (planted.seen >= SEEN)[:, None, None, None]
    on = fits & seen & (away <= torch.maximum(across / 2, torch.tensor(STRIDE / 2)))
    lost = across <= FULL / 8 * side  # in so large a window
    beside = (away < across / 2 + STRIDE) & ~(lost & seen)
    count = (batch, len(WINDOWS), rows, cols)
    strange = torch.zeros(count).index_add_(0, planted.scene, on.float()) > 0
    unsure = torch.zeros(count).index_add_(0, planted.scene, beside.float()) > 0
    here = _cells(planted.strange)  # a track fills little of its square
    return torch.where(strange & here, 1.0, torch.where(unsure | strange | _cells(planted.unsure), UNKNOWN, 0.0))


def _cells(mask: Tensor) -> Tensor:
    """(B, 1, H/16, W/16) bool: where a mask (B, H, W) has something in a cell or half a cell around it."""
    padded = functional.pad(mask.float()[:, None], (0, -mask.shape[2] % STRIDE, 0, -mask.shape[1] % STRIDE))
    return functional.max_pool2d(padded, 2 * STRIDE, STRIDE, STRIDE // 2) > 0


RECIPE = Recipe(
    name="anomalies",
    title="What is strange, in windows of 32 to 256 px",
    card=Card("", "anomalies", "multiscale", settings={"widths": (16, 32, 48, 64)}, pixel_size_m=(0.5, 1.5),
              tile=2944, halo=192, stride=STRIDE, window=64, windows=WINDOWS, output="scores"),
    task=task,
    policy="orbital",
    scenes="nac",
    size=256,
    batch=4,
    rate=2e-3,
    steps=4000,
    finish=population,
)  # fmt: skip
