"""Enhance: sunlit images made dark by the model of the camera; the network gives back what fell on the detector."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from lunar_processing.modelpack import Card
from lunar_processing.simulate import sensor
from lunar_processing.training import losses
from lunar_processing.training.data import Batch, dice, mix, percentiles
from lunar_processing.training.loop import State, Task
from lunar_processing.training.recipes.recipe import Lesson, Recipe, by_product

SIGNAL_DN = (3.0, 60.0)  # mean of the darkened image, drawn evenly in its logarithm
FAINT = 0.02  # light that even shadow has, as a share of the image's range: nothing has no noise


def darken(batch: Batch, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A dark noisy image and its truth (B, 1, H, W), both in the noisy image's range, as the tool will give it."""
    generator = dice(seed, 1)
    light = batch["image"][:, 0].clamp_min(0) + FAINT
    low, high = map(math.log, SIGNAL_DN)
    signal = torch.exp(low + (high - low) * torch.rand(len(light), generator=generator))
    camera = sensor.sample_cameras(len(light), generator, {"table": (1.0, 1.0), "dropped": (0.0, 0.0)})
    local = torch.Generator(light.device).manual_seed(mix(seed, 2))
    recorded = sensor.degrade(light, signal.to(light.device), camera, local)
    noisy = sensor.calibrate(recorded)
    bottom, top = percentiles(noisy)
    span = (top - bottom).clamp_min(1e-6)
    return ((noisy - bottom) / span)[:, None], ((recorded.expected - bottom) / span)[:, None]


def task(lesson: Lesson) -> Task:
    """A network from noisy to clean, one optimiser, mean absolute error."""
    net = lesson.network

    def step(batch: Batch, state: State) -> Mapping[str, torch.Tensor]:
        noisy, clean = darken(batch, mix(lesson.seed, state.step))
        with state.precision():
            guess = net(noisy)[:, :1]
        loss = losses.l1(guess, clean, batch["valid"])
        state.descend("net", loss)
        return {"l1": loss}

    optimisers = {"net": torch.optim.AdamW(net.parameters(), lesson.rate, weight_decay=1e-4)}
    return Task({"net": net}, optimisers, lesson.batch, step, by_product(lesson, errors, decibels), ("psnr", "high"),
                lesson.about)  # fmt: skip


def errors(net: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Squared errors of the restored and of the noisy image; the same darkness for every network."""
    noisy, clean = darken(batch, 0)
    span = (clean.amax(dim=(1, 2, 3), keepdim=True) - clean.amin(dim=(1, 2, 3), keepdim=True)).clamp_min(1e-6)
    count = torch.tensor(float(len(clean)))
    return {
        "restored": count * losses.l2(net(noisy)[:, :1] / span, clean / span, batch["valid"]).cpu(),
        "noisy": count * losses.l2(noisy / span, clean / span, batch["valid"]).cpu(),
        "windows": count,
    }


def decibels(sums: Mapping[str, float]) -> dict[str, float]:
    """Peak signal to noise of the restored image, and how much it gained over the noisy one."""
    restored, noisy = (10 * math.log10(sums["windows"] / max(sums[k], 1e-12)) for k in ("restored", "noisy"))
    return {"psnr": restored, "gain_db": restored - noisy}


RECIPE = Recipe(
    name="enhance",
    title="Images of permanent shadow, freed of noise",
    card=Card("", "enhance", "unet", settings={"channels": 16, "depth": 3, "outputs": 1, "residual": True},
              tile=512, halo=64),
    task=task,
    policy="moves",
    scenes="nac",
)  # fmt: skip
