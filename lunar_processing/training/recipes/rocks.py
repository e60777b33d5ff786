"""Rocks: a class for each pixel, learnt from masks. Cross entropy, with rocks counting more, and Dice."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from lunar_processing.modelpack import Card
from lunar_processing.training import losses
from lunar_processing.training.data import UNKNOWN, Batch
from lunar_processing.training.loop import State, Task
from lunar_processing.training.recipes.recipe import Lesson, Recipe, by_product

# Rocks are a few pixels in a thousand: without weight the best network for a while is one that sees none.
WEIGHT = 5.0


def task(lesson: Lesson) -> Task:
    """A network of logits, one optimiser."""
    net = lesson.network

    def step(batch: Batch, state: State) -> Mapping[str, torch.Tensor]:
        labels = batch["mask"].masked_fill(~batch["valid"][:, 0], UNKNOWN)
        with state.precision():
            logits = net(batch["image"])
        weights = torch.ones(logits.shape[1], device=logits.device)
        weights[1:] = WEIGHT
        found = {"cross_entropy": losses.cross_entropy(logits, labels, weights), "dice": losses.dice(logits, labels)}
        state.descend("net", found["cross_entropy"] + found["dice"])
        return found

    optimisers = {"net": torch.optim.AdamW(net.parameters(), lesson.rate, weight_decay=1e-4)}
    return Task({"net": net}, optimisers, lesson.batch, step, by_product(lesson, count, overlap), ("iou", "high"),
                lesson.about)  # fmt: skip


def count(net: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Pixels of rock classes that are right, missed, or seen where there is none."""
    known = (batch["mask"] != UNKNOWN) & batch["valid"][:, 0]
    said = net(batch["image"]).argmax(dim=1)
    rock, seen = (batch["mask"] > 0) & known, (said > 0) & known
    same = rock & (said == batch["mask"])
    return {"right": same.sum(), "true": rock.sum(), "seen": seen.sum(), "either": (rock | seen).sum()}


def overlap(sums: Mapping[str, float]) -> dict[str, float]:
    """Intersection over union, precision and recall of rock pixels; NaN where there is no rock."""

    def share(of: str) -> float:
        return sums["right"] / sums[of] if sums[of] else float("nan")

    if not sums["true"]:
        return {"iou": float("nan"), "precision": float("nan"), "recall": float("nan")}
    return {"iou": share("either"), "precision": share("seen"), "recall": share("true")}


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
