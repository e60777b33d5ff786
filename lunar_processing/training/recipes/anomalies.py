"""Anomalies: an autoencoder of ordinary ground; what it cannot rebuild is strange."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from lunar_processing.modelpack import Card
from lunar_processing.training import losses
from lunar_processing.training.data import Batch
from lunar_processing.training.loop import State, Task
from lunar_processing.training.recipes.recipe import Lesson, Recipe, by_product


def task(lesson: Lesson) -> Task:
    """A network that rebuilds its input, one optimiser, mean absolute error."""
    net = lesson.network

    def step(batch: Batch, state: State) -> Mapping[str, torch.Tensor]:
        with state.precision():
            rebuilt = net(batch["image"])
        loss = losses.l1(rebuilt, batch["image"], batch["valid"])
        state.descend("net", loss)
        return {"l1": loss}

    def error(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        wrong = losses.l2(network(batch["image"]), batch["image"], batch["valid"]).cpu()
        count = torch.tensor(float(len(batch["image"])))
        return {"wrong": count * wrong, "windows": count}

    def mean(sums: Mapping[str, float]) -> dict[str, float]:
        return {"error": sums["wrong"] / sums["windows"]}

    optimisers = {"net": torch.optim.AdamW(net.parameters(), lesson.rate, weight_decay=1e-4)}
    validate = by_product(lesson, error, mean)
    return Task({"net": net}, optimisers, lesson.batch, step, validate, ("error", "low"), lesson.about)


RECIPE = Recipe(
    name="anomalies",
    title="What is strange: an autoencoder without skips, error of reconstruction",
    card=Card("", "anomalies", "unet", settings={"channels": 8, "depth": 4, "outputs": 1, "skips": False},
              tile=512, halo=16, stride=32, window=64, output="reconstruction"),
    task=task,
    policy="orbital",
    scenes="nac",
)  # fmt: skip
