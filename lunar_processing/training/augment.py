"""Variations of a batch that leave it true: the sun's direction, the pixel size, masks and validity go along.

    batch = augment(batch, POLICIES["orbital"], dice(seed, step))

A policy is data: how often each variation is applied, and how strongly. Where the choice should be made by
measurement instead of by taste, `mine` makes it among CANDIDATES.

Batches are those of `data.stack`; images are 0…1. What comes from outside the picture is invalid: MIDDLE in the
image, UNKNOWN in the mask. A batch of images alone, which cannot say what is invalid, is continued by its reflection.
Masks follow by nearest neighbour, images bilinearly; flips and right angles are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lunar_processing.errors import ParameterError
from lunar_processing.training.data import MIDDLE, UNKNOWN, Batch

# name → (how often, how strongly); what the strength means is said at each variation.
Policy = Mapping[str, tuple[float, float]]

POLICIES: dict[str, Policy] = {
    "none": {},
    # Seen from above there is no up: every direction of the sun is as likely as any other.
    "orbital": {
        "flip_horizontal": (0.5, 1.0),
        "flip_vertical": (0.5, 1.0),
        "turn": (0.75, 1.0),
        "rotate": (0.3, 180.0),
        "zoom": (0.3, 1.25),
        "contrast": (0.5, 0.25),
        "brightness": (0.5, 0.1),
        "noise": (0.3, 0.03),
        "cut_out": (0.1, 0.3),
    },
    # Seen from a lander the sky is above and the light comes from anywhere.
    "lander": {
        "flip_horizontal": (0.5, 1.0),
        "rotate": (0.2, 10.0),
        "zoom": (0.3, 1.2),
        "contrast": (0.5, 0.3),
        "brightness": (0.5, 0.15),
        "noise": (0.3, 0.03),
    },
    # The same for images of any camera, which are the aim where only renders are there to learn from.
    "ground": {
        "flip_horizontal": (0.5, 1.0),
        "rotate": (0.3, 10.0),
        "zoom": (0.4, 1.4),
        "contrast": (0.5, 0.3),
        "brightness": (0.5, 0.1),
        "noise": (0.4, 0.05),
        "gamma": (0.5, 1.6),
        "shade": (0.4, 0.5),
    },
    # Of the published rock networks, as their report says and as their program does.
    "published": {"flip_horizontal": (0.2, 1.0), "contrast": (0.5, 0.25), "brightness": (0.5, 0.1)},
    "published-slip": {"flip_horizontal": (0.8, 1.0), "contrast": (0.5, 0.25), "brightness": (0.5, 0.1)},
    # For a network that restores brightness: only what moves, never what changes it.
    "moves": {"flip_horizontal": (0.5, 1.0), "flip_vertical": (0.5, 1.0), "turn": (0.75, 1.0)},
}


def augment(batch: Batch, policy: Policy, generator: torch.Generator) -> Batch:
    """Apply each variation of the policy, in the order of AUGMENTATIONS, to a random part of the samples."""
    unknown = [name for name in policy if name not in AUGMENTATIONS]
    if unknown:
        raise ParameterError(f"There is no augmentation {unknown[0]!r}.", f"choose of {', '.join(AUGMENTATIONS)}.")
    for name, vary in AUGMENTATIONS.items():
        often, strength = policy.get(name, (0.0, 0.0))
        count = len(batch["image"])
        # Drawn on the CPU and always, so that devices and policies do not shift one another's numbers.
        chosen = torch.rand(count, generator=generator) < often
        amounts = torch.rand(count, 3, generator=generator)
        if chosen.any():
            batch = vary(batch, chosen, amounts, strength)
    return batch


# ---- exact moves -------------------------------------------------------------------------------------------------


def flip_horizontal(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """Left becomes right."""
    return _move(batch, chosen, lambda x: x.flip(-1), lambda azimuth: -azimuth)


def flip_vertical(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """Up becomes down."""
    return _move(batch, chosen, lambda x: x.flip(-2), lambda azimuth: 180 - azimuth)


def turn(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """By 90°, 180° or 270° counter-clockwise; squares only."""
    quarters = 1 + (amounts[:, 0] * 3).long().clamp_max(2)
    for count in (1, 2, 3):
        batch = _move(
            batch,
            chosen & (quarters == count),
            lambda x, k=count: x.rot90(k, (-2, -1)),
            lambda azimuth, k=count: azimuth - 90 * k,
        )
    return batch


def _move(batch: Batch, chosen: Tensor, move: Callable[..., Tensor], sun: Callable[..., Tensor]) -> Batch:
    moved = dict(batch)
    for name, values in batch.items():
        if values.dim() >= 3:
            moved[name] = torch.where(_per_sample(chosen, values), move(values), values)
    if "sun_azimuth" in batch:
        there = chosen.to(batch["sun_azimuth"].device)
        moved["sun_azimuth"] = torch.where(there, sun(batch["sun_azimuth"]) % 360, batch["sun_azimuth"])
    return moved


# ---- moves between pixels ----------------------------------------------------------------------------------------


def rotate(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """Clockwise by up to ± `strength` degrees."""
    angle = torch.deg2rad((2 * amounts[:, 0] - 1) * strength)
    cos, sin = angle.cos(), angle.sin()
    return _warp(batch, chosen, torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2))


def shear(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """Columns by up to ± `strength` times the row."""
    matrix = torch.eye(2).repeat(len(chosen), 1, 1)
    matrix[:, 0, 1] = (2 * amounts[:, 0] - 1) * strength
    return _warp(batch, chosen, matrix)


def zoom(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """Larger or smaller by up to `strength`; the pixel size goes along."""
    return _zoom(batch, chosen, strength ** (2 * amounts[:, 0] - 1))


def zoom_in(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """Larger by up to `strength`."""
    return _zoom(batch, chosen, strength ** amounts[:, 0])


def zoom_out(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """Smaller by up to `strength`."""
    return _zoom(batch, chosen, strength ** -amounts[:, 0])


def _zoom(batch: Batch, chosen: Tensor, factor: Tensor) -> Batch:
    matrix = torch.eye(2)[None] * factor[:, None, None]
    zoomed = _warp(batch, chosen, matrix)
    if "pixel_size" in batch:
        here = torch.where(chosen, factor, torch.ones(())).to(batch["pixel_size"].device)
        zoomed["pixel_size"] = batch["pixel_size"] / here
    return zoomed


def translate(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """By up to ± `strength` of the side, in both directions."""
    return _translate(batch, chosen, (2 * amounts[:, :2] - 1) * strength)


def translate_x(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """To the right or left by up to `strength` of the side."""
    return _translate(batch, chosen, (2 * amounts[:, :2] - 1) * torch.tensor([strength, 0.0]))


def translate_y(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """Up or down by up to `strength` of the side."""
    return _translate(batch, chosen, (2 * amounts[:, :2] - 1) * torch.tensor([0.0, strength]))


def _translate(batch: Batch, chosen: Tensor, shift: Tensor) -> Batch:
    return _warp(batch, chosen, torch.eye(2).repeat(len(chosen), 1, 1), shift)


def _warp(batch: Batch, chosen: Tensor, matrix: Tensor, shift: Tensor | None = None) -> Batch:
    """Move what is at (x, y) from the middle to matrix · (x, y) + shift · side; x to the right, y downwards."""
    image = batch["image"]
    height, width = image.shape[-2:]
    device = image.device
    back = torch.linalg.inv(matrix).to(device)
    offset = torch.zeros(len(chosen), 2) if shift is None else shift
    # grid_sample asks where each pixel comes from, in units of half the side.
    half = torch.tensor([width / 2, height / 2], device=device)
    linear = back * half[None, None, :] / half[None, :, None]
    origin = -(linear @ (2 * offset.to(device))[:, :, None])
    grid = functional.affine_grid(
        torch.cat([linear, origin], dim=2), [len(image), 1, height, width], align_corners=False
    )

    alone = "valid" not in batch and "mask" not in batch

    def sampled(values: Tensor, mode: str) -> Tensor:
        outside = "reflection" if alone else "zeros"
        return functional.grid_sample(values.float(), grid, mode=mode, padding_mode=outside, align_corners=False)

    inside = sampled(torch.ones_like(image[:, :1]), "nearest") > 0.5
    warped = dict(batch)
    for name, values in batch.items():
        if values.dim() < 3:
            continue
        if name == "valid":
            moved = (sampled(values, "nearest") > 0.5) & inside
        elif values.is_floating_point():
            # Around MIDDLE, so that the edge does not fade into black.
            moved = (sampled(values - MIDDLE, "bilinear") + MIDDLE).to(values.dtype)
        else:
            outside = UNKNOWN if name == "mask" else 0
            moved = sampled(values.unflatten(0, (-1, 1)) if values.dim() == 3 else values, "nearest").round()
            moved = moved.to(values.dtype).view_as(values)
            moved = torch.where(inside if values.dim() == 4 else inside[:, 0], moved, outside)
        warped[name] = torch.where(_per_sample(chosen, values), moved, values)
    if "sun_azimuth" in batch:
        warped["sun_azimuth"] = _turned_sun(batch["sun_azimuth"], chosen, matrix)
    return warped


def _turned_sun(azimuth: Tensor, chosen: Tensor, matrix: Tensor) -> Tensor:
    """Clockwise from up: the direction (sin, -cos) in x to the right, y downwards."""
    radians = torch.deg2rad(azimuth)
    x, y = (matrix.to(azimuth.device) @ torch.stack([radians.sin(), -radians.cos()], dim=1)[:, :, None])[:, :, 0].T
    return torch.where(chosen.to(azimuth.device), torch.rad2deg(torch.atan2(x, -y)) % 360, azimuth)


# ---- brightness --------------------------------------------------------------------------------------------------


def contrast(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """Stretch around the middle by a factor of 1 ± `strength`."""
    factor = 1 + (2 * amounts[:, 0] - 1) * strength
    return _shine(batch, chosen, lambda image: (image - MIDDLE) * _per_sample(factor, image) + MIDDLE)


def brightness(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """Lighter or darker by up to ± `strength`."""
    amount = (2 * amounts[:, 0] - 1) * strength
    return _shine(batch, chosen, lambda image: image + _per_sample(amount, image))


def noise(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """Gaussian noise of a standard deviation of up to `strength`."""
    image = batch["image"]
    # The field is drawn where the batch is; its seed comes from the policy's own numbers.
    local = torch.Generator(image.device).manual_seed(int(amounts.double().sum() * (1 << 40)))
    field = torch.randn(image.shape, generator=local, device=image.device)
    return _shine(batch, chosen, lambda image: image + field * _per_sample(amounts[:, 0] * strength, image))


def gamma(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """To the power of 1 / `strength` to `strength`, between black and white."""
    power = strength ** (2 * amounts[:, 0] - 1)
    return _shine(batch, chosen, lambda image: image.clamp_min(0) ** _per_sample(power, image))


def shade(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """Light that falls off in some direction by up to `strength` from edge to edge, as that of a low lamp."""
    height, width = batch["image"].shape[-2:]
    angle = 2 * torch.pi * amounts[:, 0]
    down = (torch.arange(height) + 0.5)[:, None] / height - 0.5
    across = (torch.arange(width) + 0.5)[None] / width - 0.5
    slope = down * torch.sin(angle)[:, None, None] + across * torch.cos(angle)[:, None, None]
    light = (1 + strength * amounts[:, 1, None, None] * slope)[:, None]
    return _shine(batch, chosen, lambda image: image * light.to(image.device))


def cut_out(batch: Batch, chosen: Tensor, amounts: Tensor, strength: float) -> Batch:
    """Hide a square of up to `strength` of the side: nothing is seen there, and nothing is asked."""
    image = batch["image"]
    height, width = image.shape[-2:]
    side = amounts[:, 2] * strength * min(height, width)
    top, left = amounts[:, 0] * (height - side), amounts[:, 1] * (width - side)
    rows = torch.arange(height)[None, :, None]
    cols = torch.arange(width)[None, None, :]

    def between(x: Tensor, low: Tensor) -> Tensor:
        return (x >= low[:, None, None]) & (x < (low + side)[:, None, None])

    hole = (between(rows, top) & between(cols, left) & chosen[:, None, None])[:, None].to(image.device)
    cut = {**batch, "image": image.masked_fill(hole, MIDDLE)}
    if "valid" in batch:
        cut["valid"] = batch["valid"] & ~hole
    if "mask" in batch:
        cut["mask"] = batch["mask"].masked_fill(hole[:, 0], UNKNOWN)
    return cut


def _shine(batch: Batch, chosen: Tensor, change: Callable[[Tensor], Tensor]) -> Batch:
    """Change the image where it is valid; what was never seen stays MIDDLE."""
    image = batch["image"]
    where = _per_sample(chosen, image)
    if "valid" in batch:
        where = where & batch["valid"]
    return {**batch, "image": torch.where(where, change(image), image)}


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, …) on the other's device."""
    return values.to(like.device).view(-1, *[1] * (like.dim() - 1))


AUGMENTATIONS: dict[str, Callable[[Batch, Tensor, Tensor, Any], Batch]] = {
    "flip_horizontal": flip_horizontal,
    "flip_vertical": flip_vertical,
    "turn": turn,
    "rotate": rotate,
    "shear": shear,
    "zoom": zoom,
    "translate": translate,
    "contrast": contrast,
    "brightness": brightness,
    "noise": noise,
    "cut_out": cut_out,
    # At the end, so that those before draw the numbers that they always drew.
    "gamma": gamma,
    "shade": shade,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "zoom_in": zoom_in,
    "zoom_out": zoom_out,
}


# ---- MineAug: which variations suit a set of images (IEEE 10196052) -------------------------------------------------

# Always applied, as strongly as published where that was said.
CANDIDATES: dict[str, Policy] = {
    "flip_horizontal": {"flip_horizontal": (1.0, 1.0)},
    "flip_vertical": {"flip_vertical": (1.0, 1.0)},
    "turn": {"turn": (1.0, 1.0)},
    "rotate": {"rotate": (1.0, 15.0)},
    "shear": {"shear": (1.0, 0.2)},
    "affine": {"rotate": (1.0, 15.0), "shear": (1.0, 0.2)},
    "translate_x": {"translate_x": (1.0, 0.25)},
    "translate_y": {"translate_y": (1.0, 0.25)},
    "translate": {"translate": (1.0, 0.25)},
    "zoom_in": {"zoom_in": (1.0, 1.2)},
    "zoom_out": {"zoom_out": (1.0, 1.25)},
    "brightness": {"brightness": (1.0, 0.2)},
    "contrast": {"contrast": (1.0, 0.5)},
    "gamma": {"gamma": (1.0, 2.0)},
    "shade": {"shade": (1.0, 0.6)},
    "noise": {"noise": (1.0, 0.1)},
}
KEPT = 3  # so many of the candidates
LITTLE = 0.02  # mean squared change, images being -1…1, up to which a candidate changes nothing worth having


@dataclass(frozen=True)
class Scored:
    """A candidate: how far it takes a set of images away from itself, and how much it changes each."""

    name: str
    distance: float
    change: float

    @property
    def changes(self) -> bool:
        """Whether it changes anything worth having."""
        return self.change > LITTLE


def mine(
    images: Tensor,
    look: Callable[[Tensor], Any],
    distance: Callable[[Any, Any], float],
    generator: torch.Generator,
    names: Sequence[str] = tuple(CANDIDATES),
) -> list[Scored]:
    """Score candidates on images (N, 1, H, W) in 0…1, the best first; those that change little come last.

    Each is applied to all images; `look` makes features of images, `distance` compares those of two sets. Good is what
    changes every image but not the set: such copies are new and could be real.
    """
    before = look(images)
    scored = []
    for name in names:
        varied = vary(images, name, generator)
        change = float(((2 * varied - 2 * images) ** 2).mean())
        scored.append(Scored(name, distance(before, look(varied)), change))
    return sorted(scored, key=lambda one: (not one.changes, one.distance))


def mined(scored: Sequence[Scored], keep: int = KEPT) -> tuple[str, ...]:
    """The names of the best of those that change anything."""
    return tuple([one.name for one in scored if one.changes][:keep])


def vary(images: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """All images (N, 1, H, W) in 0…1, varied by one of the candidates; within 0…1 again, as images are."""
    check_candidates([name])
    return augment({"image": images}, CANDIDATES[name], generator)["image"].clamp(0, 1)


def one_of(batch: Batch, names: Sequence[str], generator: torch.Generator) -> Batch:
    """Each sample as it is or varied by one of the candidates, equally often.

    Over a training this is the set with a varied copy of it for each name.
    """
    check_candidates(names)
    which = torch.randint(1 + len(names), (len(batch["image"]),), generator=generator)
    for number, name in enumerate(names, start=1):
        varied = augment(batch, CANDIDATES[name], generator)
        batch = {
            key: torch.where(_per_sample(which == number, values), varied[key], values) for key, values in batch.items()
        }
    return batch


def multiplied(images: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """The same of images alone (N, 1, H, W), within 0…1."""
    return one_of({"image": images}, names, generator)["image"].clamp(0, 1)


def check_candidates(names: Sequence[str]) -> None:
    """Refuse what is none of CANDIDATES."""
    unknown = [name for name in names if name not in CANDIDATES]
    if unknown:
        raise ParameterError(f"There is no candidate {unknown[0]!r}.", f"choose of {', '.join(CANDIDATES)}.")
