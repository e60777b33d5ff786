"""The published variational autoencoders: the error of reconstruction, and how far the latent vector strays.

The authors sum over pixels and windows; here the same sums are divided by the number of both, so that the bound on the
gradient's norm means the same for every batch. Adam does not see the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lunar_processing.modelpack import Card
from lunar_processing.networks.vae import Rebuilt
from lunar_processing.training.data import Batch
from lunar_processing.training.loop import State, Task
from lunar_processing.training.recipes.recipe import Lesson, Recipe, by_product

ERRORS: dict[str, Callable[[Tensor], Tensor]] = {"l1": Tensor.abs, "l2": Tensor.square}


def terms(rebuilt: Rebuilt, image: Tensor, error: str) -> tuple[Tensor, Tensor]:
    """Error of reconstruction and Kullback–Leibler divergence from the standard normal, nats, means over pixels."""
    wrong = ERRORS[error](rebuilt.image - image).mean()
    mean, log_variance = rebuilt.mean, rebuilt.log_variance
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
    return wrong, divergence / image.numel()


def task(lesson: Lesson, error: str, beta: float) -> Task:
    """One optimiser down error + β · divergence."""
    net = lesson.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def step(batch: Batch, state: State) -> Mapping[str, Tensor]:
        image = _whole(batch).clamp(0, 1).contiguous(memory_format=torch.channels_last)
        with state.precision():
            rebuilt = net(image)
        wrong, divergence = terms(Rebuilt(*(part.float() for part in rebuilt)), image, error)
        state.descend("net", wrong + beta * divergence)
        return {error: wrong, "divergence": divergence}

    def measure(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        image = batch["image"].clamp(0, 1)
        wrong, divergence = terms(network.rebuild(image), image, error)  # type: ignore[operator]
        count = torch.tensor(float(len(image)))
        return {"error": count * wrong.cpu(), "divergence": count * divergence.cpu(), "windows": count}

    def finish(sums: Mapping[str, float]) -> dict[str, float]:
        wrong, divergence = (sums[name] / sums["windows"] for name in ("error", "divergence"))
        return {"loss": wrong + beta * divergence, error: wrong, "divergence": divergence}

    optimisers = {"net": torch.optim.Adam(net.parameters(), lesson.rate)}
    validate = by_product(lesson, measure, finish)
    return Task({"net": net}, optimisers, lesson.batch, step, validate, ("loss", "low"), lesson.about)


def _whole(batch: Batch) -> Tensor:
    """The windows without a gap, which is what black borders are; all, where there are not two for a statistic."""
    whole = batch["valid"].flatten(1).all(dim=1)
    return batch["image"][whole] if int(whole.sum()) > 1 else batch["image"]


# The published pixels are those of 8-bit images, divided by 255. Here an image is stretched between two percentiles and
# held to 0…1, which is what such an image is, but for its rounding.
RECIPES = (
    Recipe(
        name="vae-2024",
        title="The variational autoencoder of Lesnikowski, Bickel and Angerhausen (2024)",
        card=Card("", "anomalies", "vae", settings={"latent": 256, "hidden": 256, "score": "sum", "weight": 4.0},
                  pixel_size_m=(0.5, 1.5), tile=256, halo=0, stride=64, window=64, output="score"),
        task=partial(task, error="l1", beta=4.0),
        policy="moves",
        scenes="nac",
        scene=256,
        size=64,
        batch=128,
        keep="int8",
    ),
    Recipe(
        name="vae-2020",
        title="The variational autoencoder of Lesnikowski, Bickel and Angerhausen (2020)",
        card=Card("", "anomalies", "vae", settings={"latent": 64, "hidden": 0, "stride": 32, "score": "reconstruction"},
                  pixel_size_m=(0.5, 1.5), tile=288, halo=16, stride=32, window=64, output="score"),
        task=partial(task, error="l2", beta=1.0),
        policy="moves",
        scenes="nac",
        scene=256,
        size=64,
        batch=128,
    ),
)  # fmt: skip
