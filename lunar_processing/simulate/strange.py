"""Things that nobody has a name for, to teach a network what strange is without telling it what to look for.

A thing is a random composition of relief and brightness: blocks and hollows of any outline, rings, grooves and walls,
rows, rubble, patches, halos, rays. `plant` puts things into images as they would look there: ground is rendered with
and without them under the sun of each image, and the image is multiplied by the ratio. Ordinary craters and rocks are
planted in the same way, so that nobody learns what planting looks like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from lunar_processing.simulate import light
from lunar_processing.simulate.objects import BRIGHTEST, Effect
from lunar_processing.simulate.stamp import Spots, cover, highest, total
from lunar_processing.simulate.terrain import Ground, draw_craters, draw_rocks, flat, stamp_craters, stamp_rocks

NUMBERS = 64  # random numbers that make each form itself
REACH = 2.6  # how far a form changes the ground, in its radii
SIZES_PX = (4.0, 160.0)  # diameters, drawn by their logarithm
DARKEST_SHARE = 0.2  # of the mean light: in darker places nothing can be seen
VISIBLE = 0.07  # change of the logarithm of brightness that counts as one


@dataclass(frozen=True)
class Planted:
    """Images with things in them.

    image: (B, H, W), in the range of the given ones. strange: (B, H, W) bool, pixels of things. unsure: bool, pixels
    of things that can hardly be seen. Of each thing (n,): its image, middle and diameter in px, and the share of it
    that can be seen.
    """

    image: Tensor
    strange: Tensor
    unsure: Tensor
    scene: Tensor
    col: Tensor
    row: Tensor
    diameter_px: Tensor
    seen: Tensor


@dataclass(frozen=True)
class Forms:
    """A table of unnamed things: which scene, where (px), radius in px, direction in radians, numbers (n, NUMBERS)."""

    scene: Tensor
    col: Tensor
    row: Tensor
    radius: Tensor
    angle: Tensor
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.scene)


def plant(
    image: Tensor,
    sun_azimuth: Tensor,
    pixel_size: Tensor,
    generator: torch.Generator,
    unnamed: float = 1.0,
) -> Planted:
    """Images (B, H, W), black near 0, with `unnamed` forms in each on average.

    sun_azimuth: degrees clockwise from up; pixel_size: m; both (B,), NaN is drawn at random. Everything is computed
    on the CPU.
    """
    batch = len(image)
    numbers = torch.rand(batch, 8, generator=generator)
    azimuth = torch.where(sun_azimuth.isnan(), 360 * numbers[:, 0], sun_azimuth + 30 * (numbers[:, 0] - 0.5))
    size = torch.where(pixel_size.isnan(), 0.5 + 0.7 * numbers[:, 1] ** 2, pixel_size)
    incidence = 45 + 41 * numbers[:, 2] ** 0.7
    plain = flat(image.shape, size)  # type: ignore[arg-type]
    forms = _draw_forms(image.shape, unnamed, generator)  # type: ignore[arg-type]
    ground, inside = _place_forms(_ordinary(plain, generator), forms)
    scatter = (0.004 + 0.016 * numbers[:, 3])[:, None, None]

    def seen(ground: Ground) -> Tensor:
        return light.sunlit(ground, azimuth, incidence)[0] + scatter * ground.albedo

    level = seen(Ground(plain.height[:, :9, :9], plain.albedo[:, :9, :9], size))[:, 4:5, 4:5]
    ratio = _soften(seen(ground) / level, 0.4 + 0.25 * numbers[:, 4])
    # Black may lie below 0, the darkest pixel of an image without shadows; and what is bright ends somewhere.
    black = -0.3 * (numbers[:, 5] ** 2)[:, None, None]
    planted = torch.minimum((image - black).clamp_min(0) * ratio + black, ceiling(image, numbers[:, 6]))
    dark = image - black < DARKEST_SHARE * (image - black).mean(dim=(1, 2), keepdim=True)
    return told(planted, ratio, inside, dark, (forms.scene, forms.col, forms.row, 2 * forms.radius))


def ceiling(image: Tensor, numbers: Tensor) -> Tensor:
    """Brighter than this nothing is, (B, 1, 1); numbers: (B,), 0…1."""
    return torch.maximum((1.05 + 1.5 * numbers**2)[:, None, None], image.amax(dim=(1, 2), keepdim=True))


def told(
    image: Tensor, ratio: Tensor, extent: Tensor, dark: Tensor, things: tuple[Tensor, Tensor, Tensor, Tensor]
) -> Planted:
    """Images with what is to be said of the things in them, (B, H, W) each.

    ratio: by what factor things change the light; extent: where they are; dark: where nothing can be seen. things:
    scene, column, row, diameter in px, (n,) each.
    """
    visible = extent & (torch.log(ratio.clamp_min(0.02)).abs() > VISIBLE) & ~dark
    near = functional.max_pool2d(functional.max_pool2d(visible.float(), (5, 1), 1, (2, 0)), (1, 5), 1, (0, 2)) > 0
    return Planted(image, extent & near, extent & ~near, *things, _share_seen(visible, *things))


def joined(first: Planted, second: Planted) -> Planted:
    """The things of both; the image is the second's, which was made of the first's."""
    strange = first.strange | second.strange
    both = {
        name: torch.cat([getattr(first, name), getattr(second, name)])
        for name in ("scene", "col", "row", "diameter_px", "seen")
    }
    return Planted(second.image, strange, (first.unsure | second.unsure) & ~strange, **both)


def _ordinary(plain: Ground, generator: torch.Generator) -> Ground:
    """A few craters and rocks, such as lie everywhere."""
    batch = len(plain.pixel_size)
    few = 10 ** (-3.3 + 1.5 * torch.rand(batch, generator=generator))
    craters = draw_craters(plain.shape, plain.pixel_size, few, 30.0, generator, smallest_px=3.0)
    share = 10 ** (-6 + 2.5 * torch.rand(batch, generator=generator))
    rocks = draw_rocks(plain.shape, plain.pixel_size, share, 3.0, generator, craters=craters, blocks=0.002)
    return stamp_rocks(stamp_craters(plain, craters), rocks)[0]


def _soften(image: Tensor, sigma: Tensor) -> Tensor:
    """A lens of so many pixels, (B,)."""
    lag = torch.arange(-2, 3)
    taps = torch.exp(-0.5 * (lag / sigma[:, None]) ** 2)
    taps = (taps / taps.sum(1, keepdim=True))[:, None, None]
    batch = len(image)
    across = functional.conv2d(functional.pad(image[None], (2, 2, 2, 2), mode="replicate"), taps, groups=batch)
    return functional.conv2d(across, taps.transpose(2, 3), groups=batch)[0]


def _share_seen(visible: Tensor, scene: Tensor, col: Tensor, row: Tensor, diameter: Tensor) -> Tensor:
    """Visible pixels in the square around each thing, over those of its disc, up to 1."""
    height, width = visible.shape[1:]
    sums = functional.pad(visible.to(torch.int32).cumsum(1).cumsum(2), (1, 0, 1, 0))
    half = (diameter / 2).clamp_min(1.5)
    left, right = ((col + sign * half).round().clamp(0, width).long() for sign in (-1, 1))
    top, bottom = ((row + sign * half).round().clamp(0, height).long() for sign in (-1, 1))
    count = sums[scene, bottom, right] - sums[scene, top, right] - sums[scene, bottom, left] + sums[scene, top, left]
    return (count / (math.pi * half**2)).clamp(max=1)


# ---- things without a name ---------------------------------------------------------------------------------------


def _draw_forms(shape: tuple[int, int, int], each: float, generator: torch.Generator) -> Forms:
    batch, height, width = shape
    scene = torch.repeat_interleave(torch.poisson(torch.full((batch,), float(each)), generator=generator).long())
    n = len(scene)
    random = torch.rand(4, n, generator=generator)
    low, high = SIZES_PX
    radius = 0.5 * low * (high / low) ** random[0]
    return Forms(
        scene,
        random[1] * width,
        random[2] * height,
        radius,
        2 * math.pi * random[3],
        torch.rand(n, NUMBERS, generator=generator),
    )


def _place_forms(ground: Ground, forms: Forms) -> tuple[Ground, Tensor]:
    """The ground with the forms, and where they are, (B, H, W) bool."""
    spots = cover(forms.scene, forms.col, forms.row, REACH * forms.radius + 1, ground.shape)
    if not len(spots.owner):
        return ground, torch.zeros(ground.shape, dtype=torch.bool)
    effect = _form(forms, spots, ground.pixel_size)
    albedo = (ground.albedo * (1 + total(spots, effect.brightness, ground.shape)).clamp_min(0.2)).clamp(0.01, BRIGHTEST)
    inside = highest(spots, effect.inside.to(torch.int32), ground.shape) > 0
    return replace(ground, height=ground.height + total(spots, effect.height, ground.shape), albedo=albedo), inside


def _form(forms: Forms, spots: Spots, pixel_size: Tensor) -> Effect:
    """What the forms do to each pixel: a sum of parts, each of which a form has or has not."""
    number = iter(range(NUMBERS))

    def rand(low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * spots.of(forms.numbers[:, next(number)])

    def has(share: float) -> Tensor:
        return (rand() < share).float()

    sin, cos = spots.of(torch.sin(forms.angle)), spots.of(torch.cos(forms.angle))
    radius = spots.of(forms.radius)
    u, v = (spots.right * cos + spots.down * sin) / radius, (spots.down * cos - spots.right * sin) / radius
    metres = radius * spots.of(pixel_size[forms.scene])
    sign = torch.where(rand() < 0.55, 1.0, -1.0)
    # Outline: from a diamond over an ellipse to a box, long or round, smooth or ragged; 1 at its edge.
    power, slim = 2 ** rand(0.2, 3.5), 1 + 2.5 * rand() ** 2
    a, b = u.abs() + 1e-4, (v * slim).abs() + 1e-4
    outline = (a**power + b**power) ** (1 / power)
    turn = torch.atan2(v, u)
    ragged = torch.cos(2 * turn + 6.3 * rand()) + 0.7 * torch.cos(3 * turn + 6.3 * rand()) + 0.4 * torch.cos(7 * turn)
    outline = outline * (1 + 0.2 * (rand() - 0.4).clamp_min(0) * ragged)
    inside = outline < 1
    body = _rise((1 - outline) / 10 ** rand(-1.3, -0.1)) * sign * 10 ** rand(-1.6, -0.1)
    height = has(0.55) * body
    middle, thin = rand(0.3, 0.95), rand(0.04, 0.2)
    height = height + has(0.25) * sign * rand(-0.15, 0.15) * torch.exp(-(((outline - middle) / thin) ** 2))
    # Grooves or walls, one to three side by side, that bend, and may come and go.
    bend = v - rand(-0.3, 0.3) * torch.sin(rand(1, 5) * u + 6.3 * rand())
    gap, width = rand(0.2, 0.8), rand(0.03, 0.15)
    comes = 1 - has(0.4) * (0.5 + 0.5 * torch.cos(rand(6, 30) * u))
    lane = torch.exp(-((bend / width) ** 2))
    pair = torch.exp(-(((bend.abs() - gap) / width) ** 2))
    lanes = (u.abs() < 1) * comes * (has(0.6) * lane + has(0.5) * pair)
    lined = has(0.3)
    deep = rand(-0.6, 0.6) * width
    height = height + lined * deep * lanes
    # Blocks in rows, or at random.
    grid = rand(4, 14)
    rows = (torch.cos(grid * u) * torch.cos(grid * v)).clamp_min(0)
    deal = torch.frac(torch.sin(torch.floor(grid * u) * 12.9898 + torch.floor(grid * v) * 78.233) * 43758.547).abs()
    edge = 2 * torch.maximum((torch.frac(grid * u + 99) - 0.5).abs(), (torch.frac(grid * v + 99) - 0.5).abs())
    blocks = ((deal - 0.5) * 2).clamp_min(0) * ((1 - edge) * 4).clamp(0, 1)
    height = height + inside * (has(0.12) * rand(0.02, 0.15) * rows + has(0.25) * rand(0.1, 0.8) / grid * blocks)
    # Brightness: of the thing, of its lines, of a halo, of rays.
    patch = has(0.4) * (torch.exp(rand(-0.5, 1.3)) - 1) * _rise((1 - outline) / 10 ** rand(-1.3, -0.3))
    r = torch.hypot(u, v)
    halo = has(0.25) * rand(-0.25, 0.4) * torch.exp(-((r / rand(1.0, 3.0)) ** 2))
    arms = torch.floor(rand(2, 12))
    rays = has(0.2) * rand(-0.3, 0.6) * (0.5 + 0.5 * torch.cos(arms * turn + 6.3 * rand())) ** 2
    rays = rays * _rise((REACH - r) / REACH) * _rise((r - 0.6) / 0.4)
    brightness = patch + halo + rays + lined * has(0.5) * rand(-0.35, 0.5) * lanes
    strange = inside | (lined * lanes > 0.3) & (r < 1.2) | (rays.abs() > 0.1) | (halo.abs() > 0.12)
    fade = _rise((REACH - r) / 0.5)
    return Effect(height * metres * fade, brightness * fade, strange)


def _rise(x: Tensor) -> Tensor:
    """0 below 0, 1 above 1, smooth between."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)
