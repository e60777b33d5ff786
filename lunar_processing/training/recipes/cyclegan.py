"""The published way to see into shadow: two generators, from dark to sunlit and back, and a critic for either side.

It learns from pictures that are not pairs. Dark ones are simulated ground in permanent shadow and darkened real images,
both seen by the model of the camera; sunlit ones are other real images and simulated scenes. Since the camera is
known, there are pairs too, and they are cheaper: the first part of the training is of pairs, in which the picture is
cleaned and stretched but the light stays where it is. It only makes a good start; what is chosen in the end comes from
the second part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lunar_processing.errors import ModelError
from lunar_processing.modelpack import Card
from lunar_processing.networks.cyclegan import MARGIN, SMOOTH_PX, Critic, Generator
from lunar_processing.simulate import scenes, sensor
from lunar_processing.training.data import Batch, Sampler, dice, mix
from lunar_processing.training.loop import Networks, State, Task
from lunar_processing.training.losses import Perceptual, adversarial, energy_distance, l1, ssim
from lunar_processing.training.recipes.darkness import darken
from lunar_processing.training.recipes.enhance import gaussian, lit
from lunar_processing.training.recipes.recipe import Lesson, Recipe, by_product

SIGNAL_DN = (1.5, 150.0)  # mean of the darkened picture, drawn evenly in its logarithm
LEVEL = 10.0  # DN at which is validated
SHADOWED = 0.5  # share of the dark pictures that are simulated ground in permanent shadow
ELSEWHERE = 1 << 40  # steps from which darkened pictures come, so that they are none of the sunlit ones

PAIRED = 0.8  # share of the training that is of pairs …
PAIRED_RATE = 10.0  # … and how much faster that learns
BACK_EVERY = 6  # steps of pairs: the generator of dark pictures has less to learn
RAMP = 0.1  # share of the training in which the word of the critics rises to what it is worth
AT_ONCE = 1  # pictures of each side in a step without pairs
REMEMBERED = 50  # earlier fakes that a critic is shown again
SURE = 0.9  # what a critic is told of the real ones
# Gaussian over which a dark picture and what comes back of it are averaged before they are compared, px. Noise is not
# ground: if it had to come back, the painter would hide it in the picture.
AVERAGED_PX = 2.0
PERCEIVED_PX = 64  # side of the part of a picture that is compared by its features
LOW, HIGH = 0.5, 99.5  # percentiles of it that become 0 and 1


@dataclass(frozen=True)
class Weights:
    """What counts how much. `l1`, `perceptual` and `ssim` make up a difference; cycle and identity are differences."""

    l1: float = 2.0
    perceptual: float = 1.0
    ssim: float = 1.0
    cycle: float = 10.0
    identity: float = 5.0
    adversarial: float = 1.0


WEIGHTS = Weights()


# ---- pictures ----------------------------------------------------------------------------------------------------


def stretched(images: Tensor) -> Tensor:
    """Pictures (B, 1, H, W) of any unit to about 0…1: two percentiles of what is left when noise is averaged, and a
    margin on either side.
    """
    share = torch.tensor([LOW / 100, HIGH / 100], device=images.device)
    low, high = torch.quantile(gaussian(images, SMOOTH_PX).flatten(1), share, dim=1).view(2, -1, 1, 1, 1)
    span = (high - low).clamp_min(1e-6)
    return (images - low + MARGIN * span) / ((1 + 2 * MARGIN) * span)


def two_sides(pictures: Sampler, size: int, seed: int) -> Sampler:
    """Batches of `dark`, what it is a picture of (`clean`), and `sunlit` pictures of other places (B, 1, H, W)."""

    def draw(step: int) -> Batch:
        sunlit, other = pictures(step)["image"], pictures(ELSEWHERE + step)
        light, valid = lit(other), other["valid"]
        shadowed = torch.rand(len(light), generator=dice(mix(seed, 6), step)) < SHADOWED
        count = int(shadowed.sum())
        if count:
            there = scenes.draw("psr", count, mix(mix(seed, 7), step), size=size)
            optics = sensor.Camera(**{**vars(sensor.IDEAL), "psf": there.camera.psf})
            seen = sensor.expose(there.ideal, optics).expected[:, None].clamp_min(0)  # the filter rings
            light, valid = light.clone(), valid.clone()
            light[shadowed] = seen / seen.mean(dim=(1, 2, 3), keepdim=True)
            valid[shadowed] = True
        low, high = map(math.log, SIGNAL_DN)
        signal = torch.exp(low + (high - low) * torch.rand(len(light), generator=dice(mix(seed, 8), step)))
        dark = darken(light, valid, signal, mix(mix(seed, 9), step))
        return {"dark": stretched(dark.noisy), "clean": stretched(dark.clean), "sunlit": stretched(sunlit)}

    return draw


class Memory(nn.Module):
    """Earlier fakes. A critic that saw only the newest would forget what it had learnt to tell."""

    pictures: Tensor
    filled: Tensor

    def __init__(self, size: int, count: int = REMEMBERED) -> None:
        super().__init__()
        self.register_buffer("pictures", torch.zeros(count, 1, size, size))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def exchange(self, fakes: Tensor) -> Tensor:
        """The same number of pictures: new ones, and once it is full every other time an old one for a new."""
        shown = []
        for fake in fakes.detach().float():
            filled, count = int(self.filled), len(self.pictures)
            if filled < count:
                self.pictures[filled] = fake
                self.filled += 1
                shown.append(fake)
                continue
            chance, place = torch.rand(2).tolist()
            number = int(place * count)
            shown.append(self.pictures[number].clone() if chance < 0.5 else fake)
            if chance < 0.5:
                self.pictures[number] = fake
        return torch.stack(shown)


# ---- the task ----------------------------------------------------------------------------------------------------


def task(lesson: Lesson, weights: Weights = WEIGHTS, features: Perceptual | None = None) -> Task:
    """Two generators and two critics; `features` are those of the perceptual loss, read from their file if None."""
    net = lesson.network
    if not isinstance(net, Generator):
        raise ModelError(
            "The recipe psr-cyclegan trains networks of the family 'cyclegan' alone.",
            "begin without --from, or with another.",
        )
    perceptual = features or Perceptual()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(lesson.seed, 5))
        critics = {"critic_sunlit": Critic(), "critic_dark": Critic()}
    networks: dict[str, nn.Module] = {
        "net": net,
        "back": deepcopy(net),
        **critics,
        "fakes_sunlit": Memory(lesson.size),
        "fakes_dark": Memory(lesson.size),
    }
    both = [*net.parameters(), *networks["back"].parameters()]
    optimisers: dict[str, torch.optim.Optimizer] = {
        "pairs": torch.optim.Adam(net.parameters(), PAIRED_RATE * lesson.rate),
        "pairs_back": torch.optim.Adam(networks["back"].parameters(), PAIRED_RATE * lesson.rate),
        "generators": torch.optim.Adam(both, lesson.rate, betas=(0.5, 0.999)),
        **{name: torch.optim.Adam(c.parameters(), lesson.rate, betas=(0.5, 0.999)) for name, c in critics.items()},
    }
    difference = partial(_difference, weights=weights, perceptual=perceptual)

    def step(batch: Batch, state: State) -> Mapping[str, Tensor]:
        perceptual.to(state.device)
        if state.done < PAIRED:
            return _step_of_pairs(networks, batch, state, difference)
        return _step_without_pairs(networks, batch, state, difference, weights)

    return Task(
        networks,
        optimisers,
        two_sides(lesson.batch, lesson.size, lesson.seed),
        step,
        validation(lesson, perceptual),
        ("distance", "low"),
        lesson.about,
    )


def _step_of_pairs(networks: Networks, batch: Batch, state: State, difference: partial[Tensor]) -> dict[str, Tensor]:
    with state.precision():
        made = networks["net"](batch["dark"])
    loss = difference(made, batch["clean"], state.step // 2 % len(made) if state.step % 2 == 0 else None, share=2.0)
    state.descend("pairs", loss)
    if state.step % BACK_EVERY == 0:
        with state.precision():
            darkened = networks["back"](batch["clean"])
        state.descend("pairs_back", difference(darkened, batch["dark"], None))
    return {"pairs": loss}


def _step_without_pairs(
    networks: Networks, batch: Batch, state: State, difference: partial[Tensor], weights: Weights
) -> dict[str, Tensor]:
    dark, sunlit = batch["dark"][:AT_ONCE], batch["sunlit"][:AT_ONCE]
    net, back = networks["net"], networks["back"]
    critics = {"sunlit": networks["critic_sunlit"], "dark": networks["critic_dark"]}
    for critic in critics.values():
        critic.requires_grad_(False)
    with state.precision():
        fakes = {"sunlit": net(dark), "dark": back(sunlit)}
        cycles = [
            (gaussian(back(fakes["sunlit"]).float(), AVERAGED_PX), gaussian(dark, AVERAGED_PX)),
            (net(fakes["dark"]), sunlit),
        ]
        same = [(net(sunlit), sunlit), (back(dark), dark)] if weights.identity else []
        words = {side: critics[side](fake) for side, fake in fakes.items()}
    turn = state.step % 4  # of four differences one is also seen by its features, and counts for all
    far = [difference(*pair, 0 if turn == k else None, share=4.0) for k, pair in enumerate([*cycles, *same])]
    losses = {"cycle": far[0] + far[1], "fooled": adversarial(words["sunlit"], True) + adversarial(words["dark"], True)}
    if same:
        losses["identity"] = far[2] + far[3]
    critical = weights.adversarial * min(1.0, (state.done - PAIRED) / RAMP)
    worth = {"cycle": weights.cycle, "identity": weights.identity, "fooled": critical}
    state.descend("generators", torch.stack([worth[name] * loss for name, loss in losses.items()]).sum())
    for side, critic in critics.items():
        critic.requires_grad_(True)
        fake = networks[f"fakes_{side}"].exchange(fakes[side])  # type: ignore[operator]
        with state.precision():
            real_word, fake_word = critic(batch[side][:AT_ONCE]), critic(fake)
        losses[f"critic_{side}"] = 0.5 * (
            adversarial(real_word, real=True, smooth=SURE) + adversarial(fake_word, real=False)
        )
        state.descend(f"critic_{side}", losses[f"critic_{side}"])
    return losses


def _difference(
    a: Tensor,
    b: Tensor,
    perceived: int | None,
    share: float = 1.0,
    *,
    weights: Weights,
    perceptual: Perceptual,
) -> Tensor:
    """Absolute, structural, and of the picture number `perceived`, if any, also by what its features are."""
    a, b = a.float(), b.float()
    total = weights.l1 * l1(a, b)
    if weights.ssim:
        total = total + weights.ssim * (1 - ssim(a, b))
    if weights.perceptual and perceived is not None:
        height, width = a.shape[-2:]
        row, col = (int(torch.rand(()) * (max(side - PERCEIVED_PX, 0) + 1)) for side in (height, width))
        part = (slice(perceived, perceived + 1), slice(None), slice(row, row + PERCEIVED_PX),
                slice(col, col + PERCEIVED_PX))  # fmt: skip
        total = total + share * weights.perceptual * perceptual(a[part].clamp(0, 1), b[part].clamp(0, 1))
    return total


# ---- validation --------------------------------------------------------------------------------------------------


def validation(lesson: Lesson, perceptual: Perceptual) -> Callable[[Networks], dict[str, float]]:
    """Structure kept, cycles closed, and how far the painted pictures lie from sunlit ones as a set, by their looks.

    That last number chooses what is kept; it is NaN as long as there were only pairs.
    """
    sunlit_looks: list[Tensor] = []

    def validate(networks: Networks) -> dict[str, float]:
        painted_looks: list[Tensor] = []
        back, again = networks["back"], bool(sunlit_looks)

        def measure(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
            light, count = lit(batch), len(batch["image"])
            sunlit = stretched(light)
            if not again:
                sunlit_looks.append(perceptual.looks(sunlit.clamp(0, 1)))
            dark = darken(light, batch["valid"], torch.full((count,), LEVEL), 0, sure=True)
            given = stretched(dark.noisy)
            painted = net(given)
            painted_looks.append(perceptual.looks(painted.clamp(0, 1)))
            found = {
                "ssim": ssim(painted, stretched(dark.clean)),
                "cycle_dark": l1(back(painted), given),
                "cycle_sunlit": l1(net(back(sunlit)), sunlit),
            }
            return {"windows": torch.tensor(float(count)), **{name: count * v.cpu() for name, v in found.items()}}

        numbers = by_product(lesson, measure, _per_window)(networks)
        apart = float(energy_distance(torch.cat(painted_looks), torch.cat(sunlit_looks)))
        begun = int(networks["fakes_sunlit"].filled) > 0  # type: ignore[arg-type]
        return {**numbers, "distance": apart if begun else math.nan, "distance_of_pairs": math.nan if begun else apart}

    return validate


def _per_window(sums: Mapping[str, float]) -> dict[str, float]:
    return {name: value / sums["windows"] for name, value in sums.items() if name != "windows"}


ABOUT = (
    "An illustration, not a measurement: paints what an image of permanent shadow could look like in sunlight, as in "
    "the published CycleGAN. Craters and rocks may be invented or lost, and it has no sigma; measure on psr-physics."
)
RECIPE = Recipe(
    name="psr-cyclegan",
    title="Permanent shadow painted as sunlit ground: an illustration",
    card=Card("", "enhance", "cyclegan", description=ABOUT, pixel_size_m=(0.5, 2.0), tile=1024, halo=128,
              output="illustration"),
    task=task,
    policy="moves",
    scenes="nac",
    batch=2,
    rate=1e-4,
    steps=4000,
    keep="float16",
    schedule="second-half",
    validations=10,
)  # fmt: skip
