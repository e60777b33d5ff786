"""From a model's card to a step of the pipeline: normalise as the card says, predict, give back units or classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lunar_processing.backends import torch_device
from lunar_processing.classical.noise import dark_noise
from lunar_processing.errors import ModelError
from lunar_processing.modelpack import Card, Pack
from lunar_processing.pipeline import Apply, Step
from lunar_processing.tools.loaded import loaded, network_step
from lunar_processing.tools.shadow import camera_noise

if TYPE_CHECKING:
    import torch

    from lunar_processing.tools.job import Job


def enhance_step(pack: Pack, job: Job) -> Step:
    """(enhanced, sigma) in input units; a network of one output has no opinion on sigma and gives NaN."""
    low, high = limits(pack.card, job)

    def units(output: torch.Tensor, _valid: torch.Tensor) -> torch.Tensor:
        import torch

        enhanced = output[:, :1] * (high - low) + low
        sigma = output[:, 1:2] * (high - low) if output.shape[1] > 1 else torch.full_like(enhanced, float("nan"))
        return torch.cat([enhanced, sigma], dim=1)

    return _step(pack, job, units, bands=2)


COARSEST = 64  # px, of the maps of a network
MIDDLES = "middles"  # output of a rock model whose last channel says how near a pixel is to a rock's middle


def rock_step(pack: Pack, job: Job) -> Step:
    """(class, score) for each pixel: 1 where a rock class is the likeliest, and the rock classes' probability. Of a
    model with several rock classes the class is the number of the likeliest one in its card.

    A model with middles gives (class, score, middle, shadow), and 2 where a shadow is the likeliest.
    """
    if pack.card.output == MIDDLES:
        return _middle_step(pack, job)
    rock = list(rock_classes(pack.card))
    if not rock:
        raise ModelError(
            f"Model {pack.card.id} names no rock class among {list(pack.card.classes)}.", "name one in its card."
        )

    def classes(output: torch.Tensor, _valid: torch.Tensor) -> torch.Tensor:
        import torch

        if output.shape[1] != len(pack.card.classes):
            raise ModelError(
                f"Model {pack.card.id} has {output.shape[1]} outputs, its card names {len(pack.card.classes)} classes.",
                "correct its card, or install the model again.",
            )
        likely = output.softmax(dim=1)
        best = likely.argmax(dim=1, keepdim=True)
        if len(rock) == 1:
            best = best == rock[0]
        return torch.cat([best.to(likely.dtype), likely[:, rock].sum(dim=1, keepdim=True)], dim=1)

    return _step(pack, job, classes, bands=2, fill=0.0)


def rock_classes(card: Card) -> dict[int, str]:
    """Number in the card → name, of those classes that are rocks."""
    return {i: name for i, name in enumerate(card.classes) if "rock" in name or "boulder" in name}


def _middle_step(pack: Pack, job: Job) -> Step:
    names = list(pack.card.classes)
    if names != ["ground", "rock", "shadow"]:
        raise ModelError(
            f"Model {pack.card.id} gives middles; its classes are {names}, not ground, rock, shadow.",
            "correct its card.",
        )
    threshold = float(pack.card.reading.get("threshold", 0.5))

    def parts(output: torch.Tensor, _valid: torch.Tensor) -> torch.Tensor:
        import torch
        from torch.nn.functional import avg_pool2d

        if output.shape[1] != len(names) + 1:
            raise ModelError(
                f"Model {pack.card.id} has {output.shape[1]} outputs, not one for each class and one for the middles.",
                "correct its card, or install the model again.",
            )
        ground, rock, shadow = output[:, :-1].softmax(dim=1).split(1, dim=1)
        # Smoothed, so that a large rock has one summit.
        middle = avg_pool2d(output[:, -1:].sigmoid() * rock, 3, 1, 1)
        kind = torch.where(rock > threshold, 1.0, torch.where(shadow > ground, 2.0, 0.0))
        return torch.cat([kind, rock, middle, shadow], dim=1)

    return _step(pack, job, parts, bands=4, fill=0.0)


def anomaly_step(pack: Pack, job: Job) -> Step:
    """A score for each window: the network's own (of one size, or of several), or its mean squared error of
    reconstruction.
    """
    card = pack.card
    kinds: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "score": lambda output, valid: output,
        "scores": lambda output, valid: _of_seen_windows(output, valid, card),
        "reconstruction": lambda error, valid: _window_mean(error, valid, card.window, card.stride),
    }
    if card.output not in kinds:
        raise ModelError(
            f"Model {card.id} gives {card.output!r}; an anomaly model gives {' or '.join(kinds)}.", "correct its card."
        )
    return _step(pack, job, kinds[card.output], bands=len(card.windows) or 1, error=card.output == "reconstruction")


def heat_step(pack: Pack, job: Job) -> Step | None:
    """Where in the windows the strangeness is, for each pixel; None of a network that cannot say."""
    if not hasattr(loaded(pack, job.device)[0], "heat"):
        return None
    step = _step(pack, job, lambda output, valid: output.masked_fill(~valid, float("nan")), bands=1, ask="heat")
    return replace(step, stride=1)


def limits(card: Card, job: Job) -> tuple[float, float]:
    """What becomes 0 and 1 for the network, in input units."""
    wanted = card.normalisation
    if wanted.kind == "range":
        return wanted.low, wanted.high
    if wanted.kind == "noise":
        noise = camera_noise(job.image)
        return noise.black, noise.black + dark_noise(noise)
    low, high = job.image.survey.percentile(wanted.low), job.image.survey.percentile(wanted.high)
    return (low, high) if high > low else (low, low + 1.0)


def _step(
    pack: Pack,
    job: Job,
    finish: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    bands: int,
    fill: float = float("nan"),
    error: bool = False,
    ask: str = "forward",
) -> Step:
    card = pack.card
    apply = _predict(pack, job, finish, error, ask)
    return network_step(card, job.device, apply, bands, stride=card.stride, align=_grid(card), fill=fill)


def _grid(card: Card) -> int:
    """Px at whose multiples tiles begin: a network's coarse maps then lie on one grid in all tiles of an image."""
    return math.lcm(card.stride, math.gcd(card.tile - 2 * card.halo, COARSEST))


def _predict(
    pack: Pack,
    job: Job,
    finish: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    error: bool,
    ask: str = "forward",
) -> Apply:
    import torch

    device = torch_device(job.device)
    network, answer = loaded(pack, job.device, ask)
    knows_gaps = getattr(network, "sees_validity", False)
    low, high = limits(pack.card, job)
    # Where nothing was seen the network gets the middle of its range, the least remarkable value there is, unless its
    # card asks for another.
    unseen = float(pack.card.reading.get("unseen", 0.5))

    @torch.inference_mode()
    def apply(pixels: np.ndarray, valid: np.ndarray, _origins: Sequence[tuple[int, int]]) -> np.ndarray:
        if pixels.dtype == np.float64:  # its numbers may be too small or too alike for float32
            x = torch.from_numpy(((pixels - low) / (high - low)).astype(np.float32)).to(device)[:, None]
        else:
            x = torch.from_numpy(pixels.astype(np.float32)).to(device)[:, None].sub_(low).div_(high - low)
        seen, gaps = torch.from_numpy(valid).to(device)[:, None], not valid.all()
        if gaps:
            x.masked_fill_(~seen, unseen)
        x = x.contiguous(memory_format=torch.channels_last)
        output = answer(x, seen) if gaps and knows_gaps else answer(x)
        output = (output - x) ** 2 if error else output
        values: np.ndarray = finish(output, seen).float().cpu().numpy()
        _check_reach(pack.card, pixels.shape[-2:], values.shape[-2:], pack.card.stride if ask == "forward" else 1)
        return values

    return apply


def _check_reach(card: Card, given: tuple[int, ...], made: tuple[int, ...], stride: int) -> None:
    """What is left of a tile without its halo must have values."""
    if any(m < (g - 2 * card.halo) // stride for g, m in zip(given, made)):
        raise ModelError(
            f"Model {card.id} makes {made[1]} × {made[0]} values of {given[1]} × {given[0]} px: too few for a halo of "
            f"{card.halo} px and a stride of {stride} px.",
            "correct tile, halo, stride and window in its card.",
        )


def _window_mean(error: torch.Tensor, valid: torch.Tensor, window: int, stride: int) -> torch.Tensor:
    """Mean over the valid pixels of each window; NaN where fewer than half are valid."""
    from torch.nn.functional import avg_pool2d

    seen = avg_pool2d(valid.float(), window, stride)
    mean = avg_pool2d(error.masked_fill(~valid, 0.0), window, stride) / seen.clamp_min(1e-6)
    return mean.masked_fill(seen < 0.5, float("nan"))


def _of_seen_windows(scores: torch.Tensor, valid: torch.Tensor, card: Card) -> torch.Tensor:
    """Scores of windows of several sizes; NaN where fewer than half of a window's pixels are valid."""
    import torch
    from torch.nn.functional import avg_pool2d

    if bool(valid.all()) and min(valid.shape[-2:]) >= max(card.windows):
        return scores
    seen = avg_pool2d(pad_to(valid.float(), card.stride), card.stride)
    shares = []
    for side in card.windows:
        cells = side // card.stride + 1  # odd, around the cell
        shares.append(avg_pool2d(seen, cells, 1, cells // 2))
    return scores.masked_fill(torch.cat(shares, dim=1) < 0.5, float("nan"))


def pad_to(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Sides filled up with zeros to a multiple."""
    from torch.nn.functional import pad

    height, width = x.shape[-2:]
    return pad(x, (0, -width % multiple, 0, -height % multiple))
