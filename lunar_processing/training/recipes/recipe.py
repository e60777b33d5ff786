"""What a recipe says, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lunar_processing.modelpack import Card
from lunar_processing.training.data import Batch, Picture, Sampler, windows
from lunar_processing.training.loop import Networks, Task, to_device


@dataclass(frozen=True)
class Recipe:
    """How a model of one kind is trained.

    `card` is that of a new model, without id and numbers. `policy` names the augmentation, `scenes` the recipe of
    simulated scenes that may be mixed in; with `scene`, windows are cut from scenes of that side, px, so that a window
    may be dull or bright in its scene. `keep` is how matrices are kept, see `save_pack`.
    `schedule` names how the learning rate falls, see `loop.SCHEDULES`. `task` turns a lesson into
    what the loop trains; `main` is the name of its network that the model consists of. `steps` is the length without a
    time limit; so often it is validated. `finish` is what is done to the best
    network at the end, and returns what it measures then.

    A recipe of `patches` learns from a prepared set of them, `fewest` at the least. `options` are its own settings.
    `clip` bounds the norm of each optimiser's gradient.

    A recipe that makes its own truth has a `sampler`, which is given unlabelled real pictures (none is possible), the
    size and number of windows, a seed and a device; and a `validation`, which makes pictures of a size to validate on.
    """

    name: str
    title: str
    card: Card
    task: Callable[[Lesson], Task]
    policy: str
    scenes: str
    labels: bool = False
    main: str = "net"
    size: int = 128
    batch: int = 16
    rate: float = 1e-3
    steps: int = 2000
    scene: int = 0
    validations: int = 10
    keep: str = "float32"
    schedule: str = "cosine"
    sampler: Callable[[Sequence[Picture], int, int, int, str], Sampler] | None = None
    validation: Callable[[int], list[Picture]] | None = None
    finish: Callable[[Lesson, nn.Module], Mapping[str, Any]] | None = None
    patches: bool = False
    fewest: int = 1
    clip: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lesson:
    """A network, batches to learn from (varied already), and pictures of other products to validate on.

    `options` are those of the recipe, as far as the user does not want others. `plain` are windows of the real images,
    not varied; of simulated ones where there are no others.
    """

    recipe: Recipe
    network: nn.Module
    batch: Sampler
    validation: Sequence[Picture]
    size: int
    rate: float
    seed: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    plain: Sampler | None = None


Measure = Callable[[nn.Module, Batch], Mapping[str, torch.Tensor]]


def by_product(
    lesson: Lesson, measure: Measure, finish: Callable[[Mapping[str, float]], Mapping[str, float]]
) -> Callable[[Networks], dict[str, float]]:
    """A validation: sums of `measure` over the windows of each product, finished to numbers, mean over products.

    Numbers of single products are named NUMBER/PRODUCT. NaN says that a product cannot tell, and is left out.
    """
    there = windows(lesson.validation, lesson.size)

    def validate(networks: Networks) -> dict[str, float]:
        network = networks[lesson.recipe.main]
        device = next(network.parameters()).device
        found: dict[str, dict[str, float]] = {}
        for product, parts in there.items():
            sums: dict[str, float] = {}
            for part in parts:
                for name, value in measure(network, to_device(part, device)).items():
                    sums[name] = sums.get(name, 0.0) + float(value)
            found[product] = dict(finish(sums))
        numbers = {f"{name}/{product}": value for product, ones in found.items() for name, value in ones.items()}
        return {**_means(found), **numbers}

    return validate


def _means(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for ones in found.values() for name in ones)
    told = {name: [ones[name] for ones in found.values() if ones[name] == ones[name]] for name in names}
    return {name: sum(values) / len(values) if values else float("nan") for name, values in told.items()}
