"""Objects planted in a real image of the Moon: its own ground, its own light, one thing more.

    planted = plant(image, thing_table("pit", 0, col=300, row=200, size_m=40), 0.5, sun_azimuth=77, incidence=76)
    planted.image, planted.mask, planted.touched

The thing is rendered on gently rough ground under the image's own sun, finer than the image's pixels, once with and
once without it. The ratio of the two is what it does to the light: shadow, lit walls, bright rays. The image's light
above its own black is multiplied by it, so that the texture of the real ground runs on through rays and slopes. Where
the thing changes most, in deep shadow and on metal, the texture under it is no longer seen: it fades there, and noise
as strong as the image's own is added instead.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple, Union

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lunar_processing.errors import ParameterError
from lunar_processing.simulate import light
from lunar_processing.simulate.objects import OBJECTS, Things, place
from lunar_processing.simulate.stamp import moved
from lunar_processing.simulate.terrain import REACH, Craters, Ground, diffuse, fractal, stamp_craters

Thing = Union[Things, Craters]

TOUCHED = 0.05  # share by which the light changes, from which on a pixel counts as touched
MASKED = 0.25  # share of a pixel that the thing covers, from which on the pixel is its own
SCATTER = 0.004  # light from slopes around, as in the recipes of scenes; the image's own black has the rest
SLOPE, HURST = 0.01, 0.9  # of the ground that the thing stands on: rough enough for ragged edges of shadows
PSF = 0.5  # px, sigma: the lens, which the image has been through and the thing has not
BRIGHTEST = 12.0  # times the ground: what is brighter burns out in any product
FINEST_M, MOST_FINE = 0.12, 1600  # size of the rendered pixels where this gives no more than so many on a side
DARKEST = 0.1  # of the median, at most: black
FEATHER = 12  # px at the edge of the rendered square over which it fades out


class Planted(NamedTuple):
    """An image (H, W) of the type it had, where the thing is, and where it changed the light; both bool."""

    image: np.ndarray
    mask: np.ndarray
    touched: np.ndarray


def plant(
    image: np.ndarray, thing: Thing, pixel_size: float, sun_azimuth: float, incidence: float, seed: int = 0
) -> Planted:
    """One object or crater (a table of one row, place in px of the image) put into an image (H, W), linear in light.

    The sun's azimuth is in degrees clockwise from the image's up; incidence from the vertical. Whole numbers stay whole
    numbers, within 1 and the largest of the image: 0 often means that there is no data.
    """
    if len(thing) != 1:
        raise ParameterError(f"{len(thing)} objects are not one.", "plant one after the other.")
    numbers = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        ratio, mask = rendered(thing, pixel_size, sun_azimuth, incidence, numbers)
    half = ratio.shape[0] // 2
    top, left = math.floor(float(thing.row[0])) - half, math.floor(float(thing.col[0])) - half
    rows, cols = (slice(max(0, at), min(at + 2 * half + 1, side)) for at, side in zip((top, left), image.shape))
    if rows.start >= rows.stop or cols.start >= cols.stop:
        raise ParameterError("The object lies outside the image.", "choose another place.")
    part = np.s_[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
    result = image.astype(np.float32)
    black, noise = darkness(image)
    changed = lit_by(torch.from_numpy(result[rows, cols]), torch.from_numpy(ratio[part]), black, noise, numbers)
    result[rows, cols] = changed.numpy()
    if image.dtype.kind in "iu":
        result = np.clip(np.rint(result), 1, image.max())
    where, touched = np.zeros(image.shape, bool), np.zeros(image.shape, bool)
    where[rows, cols] = mask[part]
    touched[rows, cols] = (np.abs(ratio[part] - 1) > TOUCHED) | mask[part]
    return Planted(result.astype(image.dtype), where, touched)


def darkness(image: np.ndarray) -> tuple[float, float]:
    """What an image shows where there is no light, and the sd of its noise there, both in its own unit."""
    # An image without shadows does not show its black; products are stretched from near it.
    black = min(float(np.quantile(image, 0.005)), DARKEST * float(np.median(image)))
    middle = image[1:-1, 1:-1].astype(np.float32)
    around = (image[:-2, 1:-1].astype(np.float32) + image[2:, 1:-1] + image[1:-1, :-2] + image[1:-1, 2:]) / 4
    # In the dullest hundredth of all places there is hardly anything but noise.
    rough = _box(torch.from_numpy((middle - around) ** 2), 9) / 1.25
    return black, math.sqrt(float(np.quantile(rough.numpy()[::5, ::5], 0.01)))


def rendered(
    thing: Thing,
    pixel_size: float,
    sun_azimuth: float,
    incidence: float,
    numbers: torch.Generator,
    finest: float = FINEST_M,
) -> tuple[np.ndarray, np.ndarray]:
    """By what factor the light changes in a square of odd side around the object's pixel, and where it is."""
    half = _half(thing, pixel_size, incidence)
    side = 2 * half + 1
    fine = int(np.clip(math.ceil(pixel_size / finest), 1, max(1, MOST_FINE // side)))
    step = pixel_size / fine
    shape = (1, side * fine, side * fine)
    rough = SLOPE * step ** (HURST - 1)  # the slope of a metre, felt from pixel to pixel
    height = diffuse(fractal(shape, step, rough, HURST, numbers), step, step**2)
    bare = Ground(height, torch.full(shape, 0.12), torch.tensor([step]))
    at = [(half + float(x) % 1) * fine for x in (thing.col[0], thing.row[0])]
    here = _at(thing, *at)
    full, covers = _put(bare, here)
    with_it, without = (_pixels(_shine(ground, sun_azimuth, incidence), fine) for ground in (full, bare))
    ratio = (with_it / without.clamp(min=1e-6)).clamp(0, BRIGHTEST)
    covered = functional.avg_pool2d(covers.float()[:, None], fine)[0, 0]
    return (1 + (ratio - 1) * _feather(side)).numpy(), (covered > min(MASKED, 0.5 * float(covered.max()))).numpy()


def _half(thing: Thing, pixel_size: float, incidence: float) -> int:
    """Half the side in px of the square that holds all that the object changes, its shadow included."""
    size, reach = _extent(thing)
    coarse = max(pixel_size / 2, 2 * reach / 256)
    side = 2 * math.ceil(reach / coarse) + 1
    flat = Ground(torch.zeros(1, side, side), torch.full((1, side, side), 0.12), torch.tensor([coarse]))
    ground, _ = _put(flat, _at(thing, side / 2, side / 2))
    shadow = float(ground.height.max()) * math.tan(math.radians(min(incidence, 88.0)))
    return math.ceil((max(reach, size / 2 + shadow)) / pixel_size) + FEATHER


def _extent(thing: Thing) -> tuple[float, float]:
    """Its size, and how far from its middle it changes the ground, in m."""
    if isinstance(thing, Craters):
        return float(thing.diameter_m[0]), 1.5 * REACH * float(thing.diameter_m[0]) / 2
    kind = list(OBJECTS.values())[int(thing.kind[0]) - 1]
    return float(thing.size_m[0]), kind.reach * float(thing.size_m[0]) / 2


def _put(ground: Ground, thing: Thing) -> tuple[Ground, Tensor]:
    """The ground with the thing, and where it is, (1, H, W) bool."""
    if isinstance(thing, Craters):
        with_it = stamp_craters(ground, thing)
        return with_it, (with_it.height - ground.height) < -0.01 * float(thing.diameter_m[0])
    with_it, kinds = place(ground, thing)
    return with_it, kinds > 0


def _at(thing: Thing, col: float, row: float) -> Thing:
    alone = moved(thing, "cpu")
    return replace(alone, scene=torch.zeros(1).long(), col=torch.tensor([col]), row=torch.tensor([row]))


def _shine(ground: Ground, sun_azimuth: float, incidence: float) -> Tensor:
    shone, _ = light.sunlit(ground, sun_azimuth, incidence)
    return shone + SCATTER * ground.albedo


def _pixels(fine_light: Tensor, fine: int) -> Tensor:
    """What pixels of the image's own size see of it through the lens, (side, side)."""
    return diffuse(functional.avg_pool2d(fine_light[:, None], fine)[:, 0], 1.0, PSF**2 / 2)[0]


def _feather(side: int) -> Tensor:
    """1 inside, 0 at the edge of a square."""
    to_edge = torch.minimum(torch.arange(side), side - 1 - torch.arange(side)).float()
    ramp = (to_edge / FEATHER).clamp(0, 1)
    return torch.minimum(ramp[:, None], ramp[None])


def lit_by(image: Tensor, ratio: Tensor, black: float, noise: float, numbers: torch.Generator) -> Tensor:
    """An image (H, W) whose light above black changes by a factor, and where it changes much, grain of this sd."""
    signal, below = (image - black).clamp(min=0), (image - black).clamp(max=0)
    # 0 where the thing changes nothing, 1 from a factor of 2 on, either way.
    hidden = (torch.log2(ratio.clamp(min=0.01)).abs()).clamp(0, 1)
    smooth = diffuse(signal[None], 1.0, 4.5)[0]
    new = torch.lerp(signal, smooth, hidden) * ratio
    grain = (
        noise * torch.sqrt(hidden * torch.maximum(ratio, torch.ones(()))) * torch.randn(signal.shape, generator=numbers)
    )
    return new + below + black + grain


def _box(image: Tensor, side: int) -> Tensor:
    return functional.avg_pool2d(image[None, None], side, 1)[0, 0]
