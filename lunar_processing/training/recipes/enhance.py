"""Enhance: pictures made dark by the model of the camera; the network gives back the light, and how wrong it may be.

Light comes from the user's sunlit images and, for a part of each batch, from simulated ground in permanent shadow.
What the network is given is what the tool will give it: calibrated, freed of most of its stripes, in units of its own
dark noise as the image itself tells it, which is too high where the ground is rough and the light is good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lunar_processing.errors import ModelError
from lunar_processing.modelpack import Card, Normalisation
from lunar_processing.networks.shadow import KNOTS, ShadowNet
from lunar_processing.simulate import scenes, sensor
from lunar_processing.training.data import Batch, Sampler, dice, mix, windows
from lunar_processing.training.loop import State, Task, to_device
from lunar_processing.training.recipes import resolvable
from lunar_processing.training.recipes.darkness import Dark, darken, over
from lunar_processing.training.recipes.recipe import Lesson, Recipe, by_product

SIGNAL_DN = (1.2, 300.0)  # mean of the darkened image, drawn evenly in its logarithm
LEVELS = (2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # DN at which is validated
SHADOWED = 0.3  # share of a batch that is simulated ground in permanent shadow
FAINT = 0.02  # light that even shadow has, as a share of the mean: nothing has no noise
CALIBRATED = 8  # simulated windows beside each batch of validation windows, to calibrate sigma on
EDGE = 0.15  # share of the pictures of which a part lies in the sun, up to 100 times as bright
BLURS = (0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # px, of the Gaussians to compare with
INTERVALS = ((0.6827, 1.0), (0.95, 1.96))  # share of the errors that should lie within so many sigmas


def lit(batch: Batch) -> Tensor:
    """The light of pictures (B, 1, H, W): never negative, never none."""
    light = batch["image"].clamp_min(0) * batch["valid"]
    mean = light.mean(dim=(1, 2, 3), keepdim=True)
    return light / mean.clamp_min(1e-6) + FAINT


def with_shadow(pictures: Sampler, size: int, seed: int) -> Sampler:
    """Batches of which a part is replaced by simulated ground in permanent shadow, and a part straddles its edge."""

    def draw(step: int) -> Batch:
        batch = pictures(step)
        light, valid = lit(batch), batch["valid"]
        count = round(SHADOWED * len(light))
        if count:
            shadowed = simulated(count, mix(mix(seed, 3), step), size)
            light = torch.cat([shadowed, light[count:]])
            valid = torch.cat([torch.ones_like(shadowed, dtype=torch.bool), valid[count:]])
        return {"light": _straddling(light, dice(mix(seed, 4), step)), "valid": valid}

    return draw


def simulated(count: int, seed: int, size: int) -> Tensor:
    """Light of simulated ground in permanent shadow as the optics show it, mean 1 (count, 1, size, size)."""
    there = scenes.draw("psr", count, seed, size=size)
    optics = sensor.Camera(**{**vars(sensor.IDEAL), "psf": there.camera.psf})
    seen = sensor.expose(there.ideal, optics).expected[:, None].clamp_min(0)  # the filter rings
    return seen / seen.mean(dim=(1, 2, 3), keepdim=True)


def task(lesson: Lesson) -> Task:
    """A network from noisy to clean and its sigma, one optimiser, likelihood."""
    net = lesson.network
    if not isinstance(net, ShadowNet):
        raise ModelError(
            "The recipe enhance trains networks of the family 'shadow' alone.", "begin without --from, or with another."
        )
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on a CPU
    low, high = map(math.log, SIGNAL_DN)

    def step(batch: Batch, state: State) -> Mapping[str, Tensor]:
        seed = mix(lesson.seed, state.step)
        light = batch["light"]
        signal = torch.exp(low + (high - low) * torch.rand(len(light), generator=dice(seed, 3)))
        brighter = light.mean(dim=(1, 2, 3)).cpu()  # above 1 where a part lies in the sun
        dark = darken(light, batch["valid"], signal * brighter.clamp_min(1.0), seed)
        with state.precision():
            guess = net(dark.noisy, dark.slope)
        loss = likelihood(guess, dark)
        state.descend("net", loss)
        error = functional.l1_loss(guess[:, :1], dark.clean).detach()
        return {"likelihood": loss, "l1": error}

    optimisers = {"net": torch.optim.AdamW(net.parameters(), lesson.rate, weight_decay=1e-4)}
    batch = with_shadow(lesson.batch, lesson.size, lesson.seed)
    return Task({"net": net}, optimisers, batch, step, by_product(lesson, errors, decibels), ("psnr", "high"),
                lesson.about)  # fmt: skip


def likelihood(guess: Tensor, dark: Dark) -> Tensor:
    """-log p of the truth under a normal distribution; pixels of large sigma weigh more, pictures all the same.

    Without the weight a network gives up what is hard and lives from what is easy (Seitzer et al. 2022).
    """
    sigma = guess[:, 1:].float().clamp_min(1e-3)
    unlikely = torch.log(sigma) + 0.5 * ((guess[:, :1].float() - dark.clean) / sigma) ** 2
    weight = sigma.detach() * dark.known
    return ((unlikely * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3)).clamp_min(1e-6)).mean()


# ---- validation --------------------------------------------------------------------------------------------------


def errors(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """At each level: squared errors over the squared range of the truth, of the network and of Gaussians; coverage."""
    light = lit(batch)
    found = {"windows": torch.tensor(float(len(light)))}
    for number, level in enumerate(LEVELS):
        dark = darken(light, batch["valid"], torch.full((len(light),), level), number, sure=True)
        span = (dark.clean.amax(dim=(2, 3), keepdim=True) - dark.clean.amin(dim=(2, 3), keepdim=True)).clamp_min(1e-6)

        def squared(guess: Tensor, dark: Dark = dark, span: Tensor = span) -> Tensor:
            return over(((guess - dark.clean) / span) ** 2, dark.known).sum().cpu()

        guess = net(dark.noisy, dark.slope)
        off = (guess[:, :1] - dark.clean).abs() / guess[:, 1:]
        found[f"restored@{level:g}"] = squared(guess[:, :1])
        found |= {f"blurred@{level:g}@{s:g}": squared(gaussian(dark.noisy, s)) for s in BLURS}
        for name, (_, width) in zip(("narrow", "wide"), INTERVALS):
            found[f"{name}@{level:g}"] = over((off < width).float(), dark.known).sum().cpu()
    return found


def decibels(sums: Mapping[str, float]) -> dict[str, float]:
    """Peak signal to noise of each level and how far above the best Gaussian; the mean of both; coverage in %."""
    count = sums["windows"]
    said: dict[str, float] = {}
    for level in (f"{level:g}" for level in LEVELS):
        said[f"psnr_{level}dn"] = _db(sums[f"restored@{level}"] / count)
        best = max(_db(sums[f"blurred@{level}@{s:g}"] / count) for s in BLURS)
        said[f"gain_{level}dn"] = said[f"psnr_{level}dn"] - best
        said[f"cover68_{level}dn"] = 100 * sums[f"narrow@{level}"] / count
        said[f"cover95_{level}dn"] = 100 * sums[f"wide@{level}"] / count
    for name in ("psnr", "gain"):
        said[name] = sum(said[f"{name}_{level:g}dn"] for level in LEVELS) / len(LEVELS)
    return said


def calibrate(lesson: Lesson, net: nn.Module) -> dict[str, Any]:
    """Set the factors of sigma so that intervals hold on the validation pictures; what the network measures then."""
    assert isinstance(net, ShadowNet)
    net.sigma_factor.fill_(1.0)
    place, off = _misses(lesson, net)
    for number in range(len(KNOTS)):
        near = (place - number).abs() < 0.5 if 0 < number < len(KNOTS) - 1 else (place - number).abs() < 1.5
        if int(near.sum()) > 1000:
            net.sigma_factor[number] = widening(off[near].cpu().numpy())
    factors = {"signal_to_noise": list(KNOTS), "sigma_factor": [round(float(f), 4) for f in net.sigma_factor]}
    with torch.no_grad():
        measured = by_product(lesson, errors, decibels)({lesson.recipe.main: net})
    # Windows smaller than the larger craters are those of a trial: nothing is told of them.
    table = {"resolvable": resolvable.measure(net, lesson.seed)} if lesson.size >= 96 else {}
    return {**measured, **factors, **table}


@torch.no_grad()
def _misses(lesson: Lesson, net: ShadowNet) -> tuple[Tensor, Tensor]:
    """For pixels of validation products and of simulated shadow: octave of signal to noise, and error in sigmas."""
    places, offs = [], []
    device = next(net.parameters()).device
    size = lesson.size
    lights = [(lit(p), p["valid"]) for some in windows(lesson.validation, size, most=16).values() for p in some]
    for k in range(len(lights)):  # as many again
        light = simulated(CALIBRATED, mix(mix(lesson.seed, 5), k), size)
        lights.append((light, torch.ones_like(light, dtype=torch.bool)))
    for light, valid in lights:
        here = to_device({"light": light, "valid": valid}, device)
        for number, level in enumerate((1.4, *LEVELS, 200.0)):
            dark = darken(here["light"], here["valid"], torch.full((len(light),), level), 100 + number)
            guess = net(dark.noisy, dark.slope)
            near = gaussian(dark.noisy, 1.5)
            noise = (1 + dark.slope.view(-1, 1, 1, 1) * near.clamp_min(0)).sqrt()
            some = dark.known & (torch.rand(dark.known.shape, device=device) < 0.25)
            places.append(torch.log2((near / noise).clamp_min(1e-3) / KNOTS[0])[some])
            offs.append(((guess[:, :1] - dark.clean).abs() / guess[:, 1:])[some])
    return torch.cat(places), torch.cat(offs)


def widening(off: np.ndarray) -> float:
    """The factor of sigma under which the intervals hold, from errors in sigmas, none of them negative.

    Errors of shadow have longer tails than a normal distribution, so no factor suits both intervals: it is the mean, in
    the logarithm, of what the two call for.
    """
    return float(np.exp(np.mean([np.log(np.quantile(off, share) / width) for share, width in INTERVALS])))


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """Blurred by a Gaussian (B, 1, H, W); the edge goes on as it is."""
    reach = int(3 * sigma + 1)
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=image.device) / sigma) ** 2)
    bell = bell / bell.sum()
    padded = functional.pad(image, (reach,) * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(padded, bell.view(1, 1, -1, 1)), bell.view(1, 1, 1, -1))


# ---- small pieces ------------------------------------------------------------------------------------------------


def _straddling(light: Tensor, generator: torch.Generator) -> Tensor:
    """Some pictures get a straight edge beyond which they lie in the sun."""
    count, _, height, width = light.shape
    chosen, angle, place, bright, soft = torch.rand(5, count, 1, 1, 1, generator=generator).to(light.device)
    x = torch.linspace(-0.5, 0.5, width, device=light.device).view(1, 1, 1, -1)
    y = torch.linspace(-0.5, 0.5, height, device=light.device).view(1, 1, -1, 1)
    across = x * torch.cos(2 * math.pi * angle) + y * torch.sin(2 * math.pi * angle) + 0.6 * (place - 0.5)
    sun = torch.sigmoid(across * width / (0.3 + 3 * soft)) * 10 ** (0.5 + 1.5 * bright)
    return torch.where(chosen < EDGE, light * (1 + sun), light)


def _db(squared: float) -> float:
    return -10 * math.log10(max(squared, 1e-12))


ABOUT = (
    "Estimates the light in permanent shadow and its own error, learnt through the model of the Narrow Angle Camera. "
    "Assumed: calibrated values proportional to light, 0 for none where the unit is known; noise that is the variance "
    "a + b * signal, read from the image, with the spectrum that taking out the echo leaves. Units are kept."
)
RECIPE = Recipe(
    name="enhance",
    title="Permanent shadow, by the physics of the camera",
    card=Card("", "enhance", "shadow", description=ABOUT, settings={"widths": [32, 48, 64], "deep": 2},
              normalisation=Normalisation("noise", 0.5, 100.0), pixel_size_m=(0.5, 2.0), tile=1152, halo=64, stride=1),
    task=task,
    policy="moves",
    scenes="nac",
    steps=8000,
    finish=calibrate,
    keep="float16",
)  # fmt: skip
