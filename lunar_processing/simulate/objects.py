"""What is strange on the Moon, and what people left there: shapes to put on the ground, each with its mask.

`OBJECTS` names them. Each is a function of metres along and across the thing, its size, and eight random numbers, to
what it does to the ground: height in m to add, by how much it outshines the ground, and where the thing itself is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lunar_processing.errors import ParameterError
from lunar_processing.simulate.stamp import Spots, cover, highest, take, total
from lunar_processing.simulate.terrain import Ground, Value, per_scene

FORM = 8  # random numbers that make each thing itself
RIM = 0.036  # height of a fresh rim over the diameter, Pike 1977
BRIGHTEST = 0.9  # albedo of bare metal and foil; nothing outshines it


class Effect(NamedTuple):
    """What a thing does to each pixel: height in m, share by which albedo grows, and whether the thing is there."""

    height: Tensor
    brightness: Tensor
    inside: Tensor


class Site(NamedTuple):
    """Pixels as a thing sees them: metres along and across it, its size in m, its random numbers 0…1."""

    along: Tensor
    across: Tensor
    size: Tensor
    form: Callable[[int], Tensor]

    @property
    def radius(self) -> Tensor:
        """Distance from the middle over half the size."""
        return torch.hypot(self.along, self.across) * (2 / self.size)

    @property
    def angle(self) -> Tensor:
        """Around the middle, in radians."""
        return torch.atan2(self.across, self.along)


class Kind(NamedTuple):
    """How things of a kind look and what they are.

    Sizes in m; `reach` is how far they change the ground, in halves of their size; young ones are younger than craters.
    """

    shape: Callable[[Site], Effect]
    size_m: tuple[float, float]
    reach: float
    young: bool
    what: str


@dataclass(frozen=True)
class Things:
    """A table of objects, ordered by scene; columns (n,), `form` (n, 8).

    `kind` is 1 + place in OBJECTS, the value in the mask; size is the length or diameter in m, azimuth that of the
    long axis in degrees clockwise from up.
    """

    scene: Tensor
    kind: Tensor
    col: Tensor
    row: Tensor
    size_m: Tensor
    azimuth: Tensor
    form: Tensor

    def __len__(self) -> int:
        return len(self.scene)

    @property
    def names(self) -> list[str]:
        """What each is called."""
        return [list(OBJECTS)[kind - 1] for kind in self.kind.tolist()]


def _step(x: Tensor) -> Tensor:
    """0 below 0, 1 above 1, smooth between."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def _ragged(site: Site, amount: float) -> Tensor:
    """Distance in halves of the size, of an outline that is anything but a circle."""
    a = site.angle
    wave = torch.cos(2 * a + 6.3 * site.form(0)) + 0.7 * torch.cos(3 * a + 6.3 * site.form(1))
    wave = wave + 0.5 * torch.cos(5 * a + 6.3 * site.form(2)) + 0.3 * torch.cos(9 * a + 6.3 * site.form(3))
    return site.radius * (1 + amount * wave)


def _lumps(site: Site, metres: Tensor) -> Tensor:
    """Lumps of about this width, -1…1, from waves in seven directions that never come together again."""
    k = 2 * math.pi / metres
    total = torch.zeros_like(site.along)
    for i in range(7):
        turn, fine = math.pi / 7 * i + 0.15 * (i % 3), 0.62 + 0.137 * ((3 * i) % 7)
        wave = math.cos(turn) * site.along + math.sin(turn) * site.across
        total = total + torch.sin(k * fine * wave + 6.3 * site.form(i) + 1.3 * i)
    return (total / 3).clamp(-1, 1)


def _rubble(site: Site, metres: Tensor, share: float = 0.6) -> Tensor:
    """Blocks up to this wide, each of its own height 0…1 with steep sides, in a `share` of all places."""
    u, v = site.along / metres, site.across / metres
    # Bent twice, so that nothing shows of the squares in which blocks are dealt.
    u, v = u + 0.5 * torch.sin(1.1 * v + 6.3 * site.form(0)), v + 0.5 * torch.sin(1.3 * u + 6.3 * site.form(1))
    u, v = u + 0.2 * torch.sin(2.9 * v + 6.3 * site.form(2)), v + 0.2 * torch.sin(3.1 * u + 6.3 * site.form(3))
    cell_u, cell_v = torch.floor(u), torch.floor(v)
    deal = torch.frac(torch.sin(cell_u * 12.9898 + cell_v * 78.233 + 40 * site.form(4)) * 43758.547).abs()
    tall = torch.clamp((deal - (1 - share)) / share, min=0)
    away = 2 * torch.maximum((u - cell_u - 0.5).abs(), (v - cell_v - 0.5).abs())
    return tall * torch.clamp((0.5 + 0.5 * tall - away) * 4, 0, 1)


def pit(site: Site) -> Effect:
    """A collapse pit: walls too steep to stand in light, a funnel around, a floor with rubble."""
    r = _ragged(site, 0.04)
    depth = site.size * (0.35 + 0.4 * site.form(4))
    hole = _step((1.0 - r) / 0.12)
    funnel = _step((1.35 - r) / 0.5)
    height = -depth * (0.92 * hole + 0.08 * funnel) + 0.02 * depth * hole * _lumps(site, site.size / 6)
    return Effect(height, 0.0 * r, r < 1.0)


def irregular_mare_patch(site: Site) -> Effect:
    """A patch of smooth mounds that stand in a lower, rougher, brighter floor with a sharp, winding edge."""
    r = _ragged(site, 0.16)
    floor = _step((1.0 - r) / 0.06)
    mounds = _step(2.5 * _lumps(site, site.size / (2.5 + 2 * site.form(4))) - 0.3)
    depth = 2.0 + 5.0 * site.form(5)
    rough = 0.5 * _rubble(site, 3.5 + 0 * site.size) + 0.8 * _rubble(site, 8.0 + 0 * site.size, 0.3)
    low = floor * (1 - mounds)
    return Effect(-depth * low + rough * low, (0.1 + 0.2 * site.form(6)) * low, r < 1.0)


def rockfall(site: Site) -> Effect:
    """A boulder at the lower end of the track that it rolled and bounced."""
    width = site.size * (0.03 + 0.03 * site.form(0)) + 1.5  # of the boulder, m
    bend = 0.03 * site.size * torch.sin(4 * site.along / site.size + 6.3 * site.form(1))
    y = site.across - bend
    x = site.along
    half = site.size / 2
    on = (x > -half) & (x < half - width / 2)
    bounce = 0.5 + 0.5 * torch.cos(2 * math.pi * x / (2.2 * width) + 6.3 * site.form(2))
    v = y / (0.5 * width)
    groove = torch.clamp(1 - v * v, min=0) * (0.4 + 0.6 * bounce) - 0.35 * torch.exp(-(((v.abs() - 1.3) / 0.3) ** 2))
    fades = _step((x + half) / (0.3 * site.size))  # higher up it is older, or the boulder was faster
    w = ((x - half + width / 2) ** 2 + 1.3 * y * y) / (0.5 * width) ** 2
    w = w * (1 + 0.2 * torch.cos(3 * torch.atan2(y, x - half + width / 2) + 6.3 * site.form(3)))
    stone = w < 1
    height = torch.where(on, -0.22 * width * groove * fades, 0 * x)
    height = torch.where(stone, 0.65 * width * torch.clamp(1.8 * (1 - w), 0, 1), height)
    return Effect(height, torch.where(stone, 0.25, 0.0), stone | (on & (v.abs() < 1.2)))


def rover_track(site: Site) -> Effect:
    """Two ruts side by side; the soil they turned up is darker."""
    gauge, wheel = 1.4 + 0.8 * site.form(0), 0.35 + 0.25 * site.form(1)
    bend = 0.06 * site.size * torch.sin(5 * site.along / site.size + 6.3 * site.form(2))
    v = ((site.across - bend).abs() - gauge / 2).abs() / wheel
    on = (site.along.abs() < site.size / 2) & (v < 2)
    rut = torch.exp(-v * v)
    return Effect(
        torch.where(on, -0.08 * rut, 0 * v),
        torch.where(on, -(0.12 + 0.15 * site.form(3)) * rut, 0 * v),
        on & (v < 1.3),
    )


def descent_stage(site: Site) -> Effect:
    """The lower half of a lander: a body with eight sides on four legs, in ground that its engine swept."""
    body, span = 0.46 * site.size, site.size
    a, b = site.along.abs(), site.across.abs()
    octagon = torch.maximum(torch.maximum(a, b), (a + b) / math.sqrt(2)) / (body / 2)
    on_body = octagon < 1
    leg = (torch.minimum(a, b) < 0.05 * span) & (torch.maximum(a, b) < span / 2)
    pad = (torch.minimum(a, b) ** 2 + (torch.maximum(a, b) - 0.46 * span) ** 2) < (0.08 * span) ** 2
    r = site.radius
    tall = 0.33 * site.size
    height = torch.where(on_body, tall, torch.where(leg | pad, tall * (1.2 - r).clamp(0.15, 0.8), 0 * r))
    swept = (0.1 + 0.15 * site.form(0)) * torch.exp(-((r / 4) ** 2)) * (1 + 0.3 * torch.cos(3 * site.angle))
    metal = 1.5 + 2.5 * site.form(1)
    inside = on_body | leg | pad
    return Effect(height, torch.where(inside, metal, swept), inside)


def probe(site: Site) -> Effect:
    """A small robot: a box with a mast, a bright spot with a shadow, in lightly swept ground."""
    a, b = site.along.abs() / (site.size / 2), site.across.abs() / (site.size / 2 * (0.6 + 0.4 * site.form(0)))
    box = torch.maximum(a, b) < 1
    r = site.radius
    mast = r < 0.25
    height = torch.where(box, site.size * (0.5 + 0.3 * site.form(1)), 0 * r) + torch.where(mast, 0.4 * site.size, 0 * r)
    swept = 0.12 * torch.exp(-((r / 3) ** 2))
    return Effect(height, torch.where(box, 1.0 + 3.0 * site.form(2), swept), box)


def impact_scar(site: Site) -> Effect:
    """Where a spent stage hit: a shallow crater with a mound, dark around, bright rays like a butterfly's wings."""
    r, angle = site.radius, site.angle
    height = _fresh_bowl(r, 0.09) * site.size + 0.02 * site.size * torch.exp(-((r / 0.25) ** 2))
    wings = (
        _step((r - 0.7) / 0.6) * torch.cos(2 * angle) ** 2 * (0.6 + 0.4 * torch.cos(11 * angle + 6.3 * site.form(0)))
    )
    fade = _step((5 - r) / 4)
    dark = -(0.12 + 0.12 * site.form(1)) * _step((2.4 - r) / 1.5)
    return Effect(height, (0.2 + 0.3 * site.form(2)) * wings * fade + dark, r < 1.1)


def fresh_crater(site: Site) -> Effect:
    """A crater of today with bright rays and blocks on its rim."""
    r = _ragged(site, 0.015)
    angle = site.angle
    rays = torch.floor(6 + 8 * site.form(4))
    wave = 0.5 + 0.3 * torch.cos(rays * angle + 6.3 * site.form(5)) + 0.2 * torch.cos((rays + 4) * angle)
    fade = _step((6 - r) / 5) ** 2
    near = _step((2.0 - r) / 1.0)
    blocks = 0.025 * site.size * _rubble(site, 0.05 * site.size, 0.12) * near
    blocks = blocks * _step((r - 0.6) / 0.3)
    bright = (0.3 + 0.5 * site.form(6)) * (near + (1 - near) * fade * wave)
    return Effect(_fresh_bowl(r, 0.2) * site.size + blocks, bright, r < 1.1)


def blocky_outcrop(site: Site) -> Effect:
    """Bedrock that breaks through: a ledge in angular blocks."""
    r = torch.hypot(site.along * (2 / site.size), site.across * (2 / site.size) * (1.6 + 1.4 * site.form(4)))
    edge = _step((1.0 - r * (1 + 0.15 * torch.cos(5 * site.angle + 6.3 * site.form(5)))) / 0.5)
    width = 3.0 + 4.0 * site.form(6)
    blocks = _rubble(site, width, 0.75)
    height = edge * (0.04 * site.size * edge + 0.45 * width * blocks)
    return Effect(height, (0.15 + 0.25 * site.form(7)) * edge * blocks, r < 0.9)


def ridge(site: Site) -> Effect:
    """A wrinkle ridge: a broad swell with a narrow crest that wanders along it."""
    width = 0.08 * site.size
    y = site.across - 0.05 * site.size * torch.sin(7 * site.along / site.size + 6.3 * site.form(0))
    crest = y - 0.35 * width * torch.sin(17 * site.along / site.size + 6.3 * site.form(1))
    ends = _step((site.size / 2 - site.along.abs()) / (0.25 * site.size))
    tall = width * (0.12 + 0.12 * site.form(2))
    height = tall * ends * (0.6 * torch.exp(-((y / width) ** 2)) + 0.4 * torch.exp(-((crest / (0.3 * width)) ** 2)))
    return Effect(height, 0 * y, (y.abs() < width) & (ends > 0.1))


def scarp(site: Site) -> Effect:
    """A lobate scarp: ground pushed over ground, steep on one side, gentle on the other."""
    lobes = 0.05 * site.size * torch.cos(12 * site.along / site.size + 6.3 * site.form(0)).abs()
    y = site.across - lobes
    width = 0.05 * site.size
    ends = _step((site.size / 2 - site.along.abs()) / (0.2 * site.size))
    tall = width * (0.3 + 0.4 * site.form(1))
    height = tall * ends * _step(0.5 - y / width) * _step((y + 0.45 * site.size) / (0.4 * site.size))
    return Effect(height, 0.06 * ends * torch.exp(-((y / width) ** 2)), (y.abs() < width) & (ends > 0.1))


def _fresh_bowl(r: Tensor, depth: float) -> Tensor:
    """A new crater in diameters: parabola, rim, ejecta that end at 2.5 radii."""
    q = (r * r).clamp(min=1e-4)
    return torch.minimum((depth + RIM) * q - depth, RIM * torch.clamp((6.25 / q - 1) / 5.25, min=0))


OBJECTS: dict[str, Kind] = {
    "pit": Kind(pit, (12.0, 70.0), 1.6, True, "collapse pit with a shadowed floor"),
    "irregular mare patch": Kind(
        irregular_mare_patch, (40.0, 160.0), 1.6, True, "smooth mounds in a bright, rough floor"
    ),
    "rockfall": Kind(rockfall, (40.0, 160.0), 1.15, True, "boulder at the end of its track"),
    "rover track": Kind(rover_track, (20.0, 90.0), 1.1, True, "two dark ruts"),
    "descent stage": Kind(descent_stage, (4.0, 10.0), 8.0, True, "lower half of a lander on four legs"),
    "probe": Kind(probe, (1.5, 4.0), 7.0, True, "small robot lander or rover"),
    "impact scar": Kind(impact_scar, (12.0, 40.0), 5.5, True, "crater of a spent rocket stage with two-tone rays"),
    "fresh crater": Kind(fresh_crater, (8.0, 50.0), 6.5, True, "crater with bright rays and blocks"),
    "blocky outcrop": Kind(blocky_outcrop, (15.0, 60.0), 1.3, True, "bedrock in angular blocks"),
    "ridge": Kind(ridge, (100.0, 300.0), 1.15, False, "wrinkle ridge"),
    "scarp": Kind(scarp, (80.0, 250.0), 1.15, False, "lobate scarp"),
}


def thing_table(
    kind: str | Sequence[str],
    scene: Value,
    col: Value,
    row: Value,
    size_m: Value,
    azimuth: Value = 0.0,
    form: Value = 0.5,
) -> Things:
    """Objects as given, ordered by scene."""
    size = torch.as_tensor(size_m, dtype=torch.float32).reshape(-1)
    n = len(size)
    names = [kind] * n if isinstance(kind, str) else list(kind)
    numbers = torch.as_tensor(form, dtype=torch.float32)
    return Things(
        scene=torch.as_tensor(scene).reshape(-1).long().expand(n),
        kind=torch.tensor([kind_number(name) for name in names]),
        col=per_scene(col, n, "column", "px"),
        row=per_scene(row, n, "row", "px"),
        size_m=per_scene(size, n, "size of an object", "m", 0, above=True),
        azimuth=per_scene(azimuth, n, "azimuth", "°"),
        form=numbers if numbers.ndim == 2 else numbers.expand(n, FORM),
    )


def kind_number(name: str) -> int:
    """The value in the mask of a kind of object."""
    if name not in OBJECTS:
        raise ParameterError(f"There is no object {name!r}.", f"choose from {', '.join(OBJECTS)}.")
    return list(OBJECTS).index(name) + 1


def draw_things(
    shape: tuple[int, int, int],
    pixel_size: Value,
    each: float,
    kinds: Sequence[str],
    generator: torch.Generator,
    margin_px: int = 0,
    of_each_kind: int = 0,
) -> Things:
    """On average `each` objects a scene, of these kinds, anywhere in it but for `margin_px` at its edges.

    `of_each_kind` of them are sure to be there, wherever that makes more than `each`. An object larger than 0.8 of a
    scene is made as large as that.
    """
    batch, height, width = shape
    size = per_scene(pixel_size, batch, "pixel size", "m", 0, above=True)
    if not 0 <= each <= 100:
        raise ParameterError(f"{each} objects a scene are not possible.", "give 0 to 100.")
    numbers = torch.tensor([kind_number(name) for name in kinds], dtype=torch.long)
    sure = of_each_kind * len(numbers)
    chance = max(0.0, float(each) - sure) if len(numbers) else 0.0
    count = sure + torch.poisson(torch.full((batch,), chance), generator=generator).long()
    scene = torch.repeat_interleave(count)
    n = len(scene)
    random = torch.rand(5, n, generator=generator)
    kind = numbers[(random[0] * len(numbers)).long()] if n else torch.zeros(0, dtype=torch.long)
    place = random[2:4]
    if sure:
        nth = torch.arange(n) - (count.cumsum(0) - count)[scene]
        across = math.ceil(math.sqrt(sure))
        square = _squares(batch, across, generator)[:, scene, nth.clamp(max=sure - 1)]
        kind = torch.where(nth < sure, numbers[nth % len(numbers)], kind)
        place = torch.where(nth < sure, (square + place) / across, place)
    limits = torch.tensor([k.size_m for k in OBJECTS.values()])[kind - 1].reshape(n, 2)
    drawn = limits[:, 0] * (limits[:, 1] / limits[:, 0]) ** random[1]
    inner_h, inner_w = height - 2 * margin_px, width - 2 * margin_px
    return Things(
        scene=scene,
        kind=kind,
        col=margin_px + place[0] * inner_w,
        row=margin_px + place[1] * inner_h,
        size_m=torch.minimum(drawn, 0.8 * min(inner_h, inner_w) * size[scene]),
        azimuth=360 * random[4],
        form=torch.rand(n, FORM, generator=generator),
    )


def _squares(batch: int, across: int, generator: torch.Generator) -> Tensor:
    """Column and row (2, B, across²) of the squares of each scene, shuffled: what lies in two of them does not meet."""
    number = torch.rand(batch, across**2, generator=generator).argsort(dim=1)
    return torch.stack([number % across, torch.div(number, across, rounding_mode="floor")])


def place(ground: Ground, things: Things, young: bool | None = None) -> tuple[Ground, Tensor]:
    """The ground with these objects and where they are, (B, H, W) uint8: 0 or their kind.

    `young` True or False takes only those that came after, or before, the craters.
    """
    mask = torch.zeros(ground.shape, dtype=torch.int32, device=ground.device)
    height, albedo = ground.height, ground.albedo
    for number in sorted(set(things.kind.tolist())):
        kind = list(OBJECTS.values())[number - 1]
        if young is not None and kind.young != young:
            continue
        some = take(things, things.kind == number)
        spots = cover(
            some.scene,
            some.col,
            some.row,
            kind.reach * some.size_m / (2 * ground.pixel_size[some.scene]) + 1,
            ground.shape,
        )
        if not len(spots.owner):
            continue
        effect = kind.shape(_site(ground, some, spots))
        height = height + total(spots, effect.height, ground.shape)
        gain = 1 + total(spots, effect.brightness + torch.zeros_like(effect.height), ground.shape)
        albedo = (albedo * gain).clamp(0.01, BRIGHTEST)
        mask = torch.maximum(mask, highest(spots, effect.inside.to(torch.int32) * number, ground.shape))
    return replace(ground, height=height, albedo=albedo), mask.to(torch.uint8)


def _site(ground: Ground, things: Things, spots: Spots) -> Site:
    angle = torch.deg2rad(things.azimuth)
    size = ground.pixel_size[things.scene]
    sin, cos = spots.of(torch.sin(angle) * size), spots.of(torch.cos(angle) * size)
    along = spots.right * sin - spots.down * cos
    across = spots.right * cos + spots.down * sin
    return Site(along, across, spots.of(things.size_m), lambda i: spots.of(things.form[:, i]))
