"""The ground: fractal regolith, craters of all ages, boulders. Heights and lengths in metres, images (B, H, W).

Positions are continuous image coordinates in pixels, (0.5, 0.5) is the centre of the first. A scene's numbers are drawn
on the CPU, so that the same seed puts the same craters and rocks on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Union

import torch
from torch import Tensor
from torch.nn import functional

from lunar_processing.errors import ParameterError
from lunar_processing.simulate.stamp import Spots, cover, highest, take, total

Value = Union[float, Tensor]

REACH = 2.0  # of a crater's ejecta that is felt in height, in crater radii
MIDDLE = 0.01  # squared distance in radii up to which the middle of a crater is level
RAY_REACH = 5.0  # of bright ejecta, in crater radii
# What diffusion makes of a crater whose depth is 0.14 and whose rim 0.035 of its diameter (Pike 1977: 0.036): `profile`
# fitted to the numerical solution, within 3 % of the depth. Age is κt over the radius squared; degradation the share
# of the depth that is gone; depth, rim and blunt in diameters; spread: how much wider than it was.
WEAR = {
    "age": (0.0, 0.001, 0.003, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 1.0),
    "degradation": (0.0, 0.005, 0.015, 0.050, 0.100, 0.199, 0.379, 0.589, 0.785, 1.0),
    "depth": (0.14, 0.1395, 0.1385, 0.1363, 0.1392, 0.1259, 0.1041, 0.0802, 0.0585, 0.05),
    "rim": (0.035, 0.0365, 0.0399, 0.0568, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1),
    "blunt": (0.0, 0.0172, 0.0352, 0.0943, 0.2159, 0.2307, 0.2473, 0.2598, 0.2683, 0.27),
    "spread": (1.0, 0.999, 0.996, 0.987, 0.98, 0.985, 1.021, 1.112, 1.302, 1.5),
}
YOUNG = 0.012  # degradation up to which ejecta are bright
OLDEST = 0.4  # age at which a crater is lost
# A crater's age is the oldest possible times u^exponent, u even in 0…1; between these diameters in m the exponent goes
# from the first to the second. Fitted to NAC images: of a few metres most craters are fresh, of tens most are old.
AGES_M, AGES = (3.0, 15.0), (1.8, 0.9)
STEEPEST = 0.63  # slope (32 degrees, at which regolith slides) beyond which ground is not brighter still
CONCENTRIC = 0.45  # diameter of the inner crater over that of the outer (Quaide & Oberbeck 1968: target of two layers)
LAYERED_M = 60.0  # above this diameter a crater is too deep for the layer of regolith to shape its floor
SIMPLE, FLAT_FLOORED, NESTED = 0, 1, 2
FLOOR = {SIMPLE: 1.0, FLAT_FLOORED: 0.7, NESTED: 0.45}  # how deep, of the depth of a bowl, the floor lies


@dataclass(frozen=True)
class Ground:
    """A batch of surfaces: height (B, H, W) in m, normal albedo (B, H, W), pixel size (B,) in m."""

    height: Tensor
    albedo: Tensor
    pixel_size: Tensor

    def __post_init__(self) -> None:
        if self.height.ndim != 3 or 0 in self.height.shape:
            raise ParameterError(
                f"Heights have the shape {tuple(self.height.shape)}.", "give scenes as (batch, rows, columns)."
            )
        if self.albedo.shape != self.height.shape or self.pixel_size.shape != self.height.shape[:1]:
            raise ParameterError(
                f"Heights {tuple(self.height.shape)}, albedo {tuple(self.albedo.shape)} and pixel sizes "
                f"{tuple(self.pixel_size.shape)} do not belong together.",
                "give heights and albedo one shape, and one pixel size a scene.",
            )
        per_scene(self.pixel_size, len(self.pixel_size), "pixel size", "m", low=0, above=True)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Scenes, rows, columns."""
        batch, height, width = self.height.shape
        return batch, height, width

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return self.height.device


def per_scene(
    value: Value,
    batch: int,
    name: str,
    unit: str = "",
    low: float = -math.inf,
    high: float = math.inf,
    above: bool = False,
) -> Tensor:
    """One number for all scenes, or one a scene, as a tensor (B,) in [low, high]; `above` leaves out `low` itself."""
    numbers = torch.as_tensor(value, dtype=torch.float32).reshape(-1)
    if len(numbers) not in (1, batch):
        raise ParameterError(
            f"There are {len(numbers)} values of {name} for {batch} scenes.", "give one for all, or one a scene."
        )
    wrong = ~torch.isfinite(numbers) | (numbers > high) | ((numbers <= low) if above else (numbers < low))
    if bool(wrong.any()):
        bad = float(numbers[wrong][0])
        least = f"more than {low:g}" if above else f"{low:g} or more"
        most = f", at most {high:g}" if high < math.inf else ""
        raise ParameterError(f"A {name} of {bad:g} {unit} is not possible.".replace("  ", " "), f"give {least}{most}.")
    return numbers.expand(batch)


# ---- regolith ----------------------------------------------------------------------------------------------------


def flat(
    shape: tuple[int, int, int], pixel_size: Value, albedo: Value = 0.12, device: torch.device | str = "cpu"
) -> Ground:
    """A plain of one albedo."""
    batch = _checked(shape)[0]
    size = per_scene(pixel_size, batch, "pixel size", "m", 0, above=True).to(device)
    grey = per_scene(albedo, batch, "albedo", low=0, high=1, above=True).to(device)
    return Ground(torch.zeros(shape, device=device), grey[:, None, None].expand(shape).clone(), size)


def fractal(
    shape: tuple[int, int, int],
    pixel_size: Value,
    rms_slope: Value,
    hurst: Value,
    generator: torch.Generator,
    grain: Value = 0.0,
) -> Tensor:
    """Self-affine heights (B, H, W) in m on the generator's device.

    Amplitudes fall as k^-(hurst + 1). `rms_slope` is that of profiles along rows and columns from one pixel to the
    next (a number, not degrees), as expected over many scenes. `grain` adds heights that differ from pixel to pixel, of
    this sd in pixels: what is smaller than a pixel, pebbles and craterlets. Opposite edges fit together.
    """
    batch, height, width = _checked(shape)
    device = generator.device
    size = per_scene(pixel_size, batch, "pixel size", "m", 0, above=True).to(device)
    slope = per_scene(rms_slope, batch, "rms slope", low=0, high=2).to(device)
    rough = per_scene(hurst, batch, "Hurst exponent", low=0, high=1).to(device)
    fy, fx = torch.fft.fftfreq(height, device=device)[:, None], torch.fft.rfftfreq(width, device=device)[None]
    ln_k = 0.5 * torch.log((fx**2 + fy**2).clamp(min=1e-12))
    ln_k[0, 0] = 1e3  # the mean of a scene is nobody's business: exp(-1000) = 0
    amplitude = torch.exp(-(rough + 1)[:, None, None] * ln_k)
    # What a wave adds to the mean square step between neighbours; those of the first and last column of a half
    # spectrum are their own conjugates and count half.
    step = 2 * (torch.sin(math.pi * fx) ** 2 + torch.sin(math.pi * fy) ** 2)
    share = torch.full((width // 2 + 1,), 4.0, device=device)
    share[0] = 1.0
    if width % 2 == 0:
        share[-1] = 1.0
    expected = (amplitude**2).flatten(1) @ (step * share).flatten() / (height * width) ** 2
    scale = slope * size / expected.clamp(min=1e-30).sqrt()
    fine = per_scene(grain, batch, "grain", "px", low=0, high=1).to(device) * size * math.sqrt(height * width / 2)
    amplitude = torch.hypot(amplitude * scale[:, None, None], fine[:, None, None])
    noise = torch.randn((batch, height, width // 2 + 1, 2), generator=generator, device=device)
    spectrum = torch.view_as_complex(noise.mul_(amplitude[..., None]))
    return torch.fft.irfft2(spectrum, s=(height, width))


def mottled(shape: tuple[int, int, int], contrast: Value, generator: torch.Generator, coarse: int = 4) -> Tensor:
    """Factors around 1 by which albedo varies, smooth over some `coarse` pixels, sd `contrast` from scene to scene."""
    batch, height, width = _checked(shape)
    small = (batch, -(-height // coarse) + 1, -(-width // coarse) + 1)
    field = fractal(small, 1.0, 0.3, 0.5, generator)
    field = field / field.flatten(1).std(dim=1).clamp(min=1e-9)[:, None, None]
    wide = functional.interpolate(
        field[:, None], size=(small[1] * coarse, small[2] * coarse), mode="bilinear", align_corners=False
    )[:, 0, :height, :width]
    amount = per_scene(contrast, batch, "albedo contrast", low=0, high=1).to(field.device)
    return (1 + amount[:, None, None] * wide).clamp_(0.4, 2.5)


def brighten_slopes(ground: Ground, amount: Tensor) -> Ground:
    """The ground with an albedo greater by `amount` (B,) × slope²: where soil slides it lays bare brighter soil."""
    z = functional.pad(ground.height[:, None], (1,) * 4, mode="replicate")[:, 0] / ground.pixel_size[:, None, None]
    across, along = z[:, 1:-1, 2:] - z[:, 1:-1, :-2], z[:, 2:, 1:-1] - z[:, :-2, 1:-1]
    steep = (across.square_().add_(along.square_()) / 4).clamp_(max=STEEPEST**2)
    return replace(ground, albedo=torch.addcmul(ground.albedo, ground.albedo * amount[:, None, None], steep))


def diffuse(height: Tensor, pixel_size: Value, kappa_t: Value) -> Tensor:
    """Heights after `kappa_t` m² of topographic diffusion, ∂z/∂t = κ∇²z: a Gaussian of σ = √(2κt); edges stay level.

    On the Moon κ ≈ 5.5 m²/Myr at crater sizes of 800 m to 5 km (Fassett & Thomson 2014).
    """
    batch = height.shape[0]
    size = per_scene(pixel_size, batch, "pixel size", "m", 0, above=True)
    sigma = torch.sqrt(2 * per_scene(kappa_t, batch, "diffusion", "m²", low=0)) / size
    reach = max(1, math.ceil(4 * float(sigma.max())))
    lag = torch.arange(-reach, reach + 1, dtype=torch.float32, device=sigma.device)
    # The share of a Gaussian that falls on each pixel: right for narrow ones, too.
    edge = (sigma.clamp(min=1e-4) * math.sqrt(2))[:, None]
    taps = torch.erf((lag + 0.5) / edge) - torch.erf((lag - 0.5) / edge)
    taps = (taps / taps.sum(dim=1, keepdim=True)).to(height.device)
    result = height[None]
    for axis in (0, 1):
        kernel = taps.view(batch, 1, -1, 1) if axis == 0 else taps.view(batch, 1, 1, -1)
        pad = (0, 0, reach, reach) if axis == 0 else (reach, reach, 0, 0)
        result = functional.conv2d(functional.pad(result, pad, mode="replicate"), kernel, groups=batch)
    return result[0]


# ---- craters -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Craters:
    """A table of craters, ordered by scene; all columns (n,).

    Depth is of the middle below the ground around; degradation 0 fresh … 1 erased; `brightness` is by how much fresh
    ejecta outshine the ground at the rim; `rays` is 0 for an even halo; `kind` is SIMPLE, FLAT_FLOORED or NESTED.
    """

    scene: Tensor
    col: Tensor
    row: Tensor
    diameter_m: Tensor
    depth_m: Tensor
    degradation: Tensor
    axis_ratio: Tensor
    azimuth: Tensor
    brightness: Tensor
    rays: Tensor
    kind: Tensor

    def __len__(self) -> int:
        return len(self.scene)


def crater_table(
    scene: Value,
    col: Value,
    row: Value,
    diameter_m: Value,
    depth_m: Value | None = None,
    degradation: Value = 0.0,
    axis_ratio: Value = 1.0,
    azimuth: Value = 0.0,
    brightness: Value = 0.0,
    rays: Value = 0.0,
    kind: Value = SIMPLE,
) -> Craters:
    """Craters as given, ordered by scene; without further words fresh, round, simple and without halo."""
    diameter = torch.as_tensor(diameter_m, dtype=torch.float32).reshape(-1)
    n = len(diameter)
    age = per_scene(degradation, n, "degradation", low=0, high=1)
    depth = crater_depth(diameter, age) if depth_m is None else depth_m
    return Craters(
        scene=torch.as_tensor(scene).reshape(-1).long().expand(n),
        col=per_scene(col, n, "column", "px"),
        row=per_scene(row, n, "row", "px"),
        diameter_m=per_scene(diameter, n, "crater diameter", "m", 0, above=True),
        depth_m=per_scene(depth, n, "crater depth", "m", low=0),
        degradation=age,
        axis_ratio=per_scene(axis_ratio, n, "axis ratio", low=0.2, high=1),
        azimuth=per_scene(azimuth, n, "azimuth", "°"),
        brightness=per_scene(brightness, n, "brightness", low=0, high=5),
        rays=per_scene(rays, n, "number of rays", low=0, high=40),
        kind=torch.as_tensor(kind).reshape(-1).long().expand(n),
    )


def crater_depth(diameter_m: Tensor, degradation: Tensor, fresh: Value | None = None) -> Tensor:
    """Depth in m: 0.2 of the diameter when fresh, 0.14 below some 300 m, less by the share that is gone.

    Simple craters: 0.196 (Pike 1977); below 400 m 0.13 to 0.17 (Daubar et al. 2014; Stopar et al. 2017).
    """
    if fresh is None:
        fresh = 0.14 + 0.06 * torch.sigmoid((diameter_m - 400) / 60)
    return diameter_m * fresh * (1 - degradation)


def worn(column: str, value: Tensor, by: str = "degradation") -> Tensor:
    """A column of `WEAR` at values of another, between its rows by straight lines."""
    at = torch.tensor(WEAR[by], device=value.device)
    of = torch.tensor(WEAR[column], device=value.device)
    row = torch.searchsorted(at, value.clamp(at[0], at[-1]).contiguous(), right=True).clamp(1, len(at) - 1)
    share = (value.clamp(at[0], at[-1]) - at[row - 1]) / (at[row] - at[row - 1])
    return torch.lerp(of[row - 1], of[row], share)


def cumulative(diameter_m: Tensor, density: Tensor, equilibrium_m: Tensor) -> Tensor:
    """Craters larger than a diameter per m²: density · D^-2 in equilibrium, steeper (D^-3) above its diameter."""
    return density * diameter_m**-2 * torch.clamp(equilibrium_m / diameter_m, max=1.0)


def draw_craters(
    shape: tuple[int, int, int],
    pixel_size: Value,
    density: Value,
    equilibrium_m: Value,
    generator: torch.Generator,
    smallest_px: float = 2.0,
    largest_px: float | None = None,
    concentric: float = 0.03,
) -> Craters:
    """Craters by production and equilibrium, also those outside whose ejecta or floor reach into the scene.

    density: c of N(>D) = c·D^-2, 0.02 to 0.1; equilibrium_m: above this diameter few craters have been erased, (B,).
    Ages run up to that at which a crater is lost; craters too large for equilibrium are fresher.
    """
    batch, height, width = _checked(shape)
    size = per_scene(pixel_size, batch, "pixel size", "m", 0, above=True)
    c = per_scene(density, batch, "crater density", low=0, high=1)
    turn = per_scene(equilibrium_m, batch, "equilibrium diameter", "m", 0, above=True)
    largest = float(max(height, width)) if largest_px is None else largest_px
    if not 0 < smallest_px < largest:
        raise ParameterError(
            f"Craters of {smallest_px:g} to {largest:g} px are not possible.", "give a smaller and a larger diameter."
        )
    steps = max(1, math.ceil(4 * math.log2(largest / smallest_px)))
    edges = torch.logspace(math.log2(smallest_px), math.log2(largest), steps + 1, base=2.0)
    above = cumulative(edges[None] * size[:, None], c[:, None], turn[:, None]) * size[:, None] ** 2  # per pixel
    reach = edges[1:] * REACH / 2
    area = (height + 2 * reach) * (width + 2 * reach)
    count = torch.poisson((above[:, :-1] - above[:, 1:]) * area, generator=generator).long()
    cell = torch.repeat_interleave(count.flatten())
    scene, band = torch.div(cell, steps, rounding_mode="floor"), cell % steps
    number = len(cell)
    random = torch.rand(10, number, generator=generator)
    low, high = above[scene, band], above[scene, band + 1]
    fall = torch.log(low / high) / math.log(edges[1] / edges[0])  # the local power law
    diameter_px = edges[band] * (1 - random[0] * (1 - high / low)) ** (-1 / fall)
    diameter = diameter_px * size[scene]
    oldest = OLDEST * torch.clamp(turn[scene] / diameter, max=1.0)
    larger = (torch.log(diameter / AGES_M[0]) / math.log(AGES_M[1] / AGES_M[0])).clamp(0, 1)
    degradation = worn("degradation", random[1] ** (AGES[0] + (AGES[1] - AGES[0]) * larger) * oldest, by="age")
    # Tens of metres across fresh craters are shallower still (Stopar et al. 2017; compared with NAC images).
    fresh = (0.08 + 0.06 * random[2]) + 0.07 * torch.sigmoid((diameter - 300) / 80)
    young = degradation < YOUNG
    layered = (diameter < LAYERED_M) & (diameter_px > 6)
    nested = (random[6] < concentric) & layered
    flat_floored = (random[6] > 0.9) & layered
    return Craters(
        scene=scene,
        col=random[3] * (width + 2 * reach[band]) - reach[band],
        row=random[4] * (height + 2 * reach[band]) - reach[band],
        diameter_m=diameter,
        depth_m=crater_depth(diameter, degradation, fresh),
        degradation=degradation,
        axis_ratio=1 - 0.15 * random[5] ** 2,
        azimuth=180 * random[7],
        brightness=torch.where(young, (0.03 + 0.35 * random[8] ** 3) * (1 - degradation / YOUNG), torch.zeros(())),
        rays=torch.where(random[9] < 0.5, 0.0, torch.floor(5 + 8 * random[9])),
        kind=nested * NESTED + flat_floored * FLAT_FLOORED,
    )


def stamp_craters(ground: Ground, craters: Craters) -> Ground:
    """The ground after these impacts: bowls, rims, ejecta; haloes and rays of the fresh ones."""
    height = ground.height
    if not len(craters):
        return ground
    nested = take(craters, craters.kind == NESTED)
    if len(nested):
        height = height + _bowls(ground, _inner(nested))
    bright = take(craters, (craters.brightness > 0) & _wider(craters, ground, 3.0))
    albedo = ground.albedo * (1 + _rays(ground, bright)) if len(bright) else ground.albedo
    return replace(ground, height=height + _bowls(ground, craters), albedo=albedo)


def profile(q: Tensor, depth: Tensor, rim: Tensor, blunt: Tensor, floor: Tensor, lift: Tensor) -> Tensor:
    """Height across a crater at squared distance q from its middle, in radii.

    Inside a parabola from -depth to the rim at q = 1, cut by a floor at -floor; outside the rim falls to nothing at
    REACH radii as (REACH²/q − 1)/(REACH² − 1), within 0.05 of r^-3. `blunt` rounds the edge where both meet, as
    diffusion does: the lower of the two, and still lower by blunt/2 where they are equal. `lift` brings all to
    zero at REACH.
    """
    q = q.clamp(MIDDLE, REACH**2)
    inside = torch.maximum(q * (depth + rim) - depth, -floor)
    outside = torch.reciprocal_(q).sub_(1 / REACH**2).mul_(rim * (REACH**2 / (REACH**2 - 1)))
    gap = inside - outside
    edge = torch.sqrt_(torch.addcmul(blunt**2, gap, gap))
    return inside.add_(outside).sub_(edge).mul_(0.5).add_(lift)


def _bowls(ground: Ground, craters: Craters) -> Tensor:
    """What craters add to the height."""
    spread = worn("spread", craters.degradation)
    radius = spread * craters.diameter_m / (2 * ground.pixel_size[craters.scene])
    spots = cover(craters.scene, craters.col, craters.row, REACH * radius / craters.axis_ratio.sqrt(), ground.shape)
    depth, rim, blunt = (worn(name, craters.degradation) for name in ("depth", "rim", "blunt"))
    floor = torch.tensor([FLOOR[kind] for kind in sorted(FLOOR)], device=ground.device)[craters.kind]
    floor = torch.lerp(floor, torch.ones_like(floor), craters.degradation)  # the old are bowls again
    end = (REACH**2 - 1) * depth + REACH**2 * rim  # of the parabola at REACH
    lift = 0.5 * (torch.sqrt(end**2 + blunt**2) - end)
    middle = profile(torch.full_like(depth, MIDDLE), depth, rim, blunt, depth * floor, lift)
    size = -craters.depth_m / middle  # the middle shall lie as deep as the table says
    columns = (size * value for value in (depth, rim, blunt, depth * floor, lift))
    heights = profile(_elliptic(spots, radius, craters.axis_ratio, craters.azimuth), *map(spots.of, columns))
    return total(spots, heights, ground.shape)


def _inner(craters: Craters) -> Craters:
    """The small crater on the floor of a concentric one."""
    diameter = CONCENTRIC * craters.diameter_m
    return replace(
        craters,
        diameter_m=diameter,
        depth_m=0.1 * diameter * (1 - craters.degradation),
        degradation=craters.degradation,
        kind=torch.zeros_like(craters.kind),
    )


def _rays(ground: Ground, craters: Craters) -> Tensor:
    """By which share of itself albedo grows: all of `brightness` up to the rim, falling to nothing at RAY_REACH."""
    radius = craters.diameter_m / (2 * ground.pixel_size[craters.scene])
    spots = cover(craters.scene, craters.col, craters.row, RAY_REACH * radius, ground.shape)
    r = torch.sqrt(_elliptic(spots, radius, craters.axis_ratio, craters.azimuth))
    fade = torch.clamp((RAY_REACH - r) / (RAY_REACH - 1), 0, 1) ** 2
    rays = spots.of(craters.rays)
    angle = torch.atan2(spots.down, spots.right) + spots.of(craters.azimuth)
    # Two waves that do not fit together: rays of uneven length and width.
    wave = 0.5 + 0.25 * (torch.cos(rays * angle) + torch.cos((0.6 * rays).floor() * angle + 1.7))
    beyond = torch.clamp(r - 1, 0, 1) * (rays > 0)
    return total(spots, spots.of(craters.brightness) * fade * (1 - beyond * (1 - wave)), ground.shape)


def _wider(craters: Craters, ground: Ground, pixels: float) -> Tensor:
    return craters.diameter_m > pixels * ground.pixel_size[craters.scene]


def _elliptic(spots: Spots, radius: Tensor, axis_ratio: Tensor, azimuth: Tensor) -> Tensor:
    """Squared distance from the centre in radii, (U, 8, 8), where the ellipse has the area of the circle.

    `azimuth` is that of the long axis, degrees clockwise from up.
    """
    angle = torch.deg2rad(azimuth)
    along, across = axis_ratio / radius**2, 1 / (axis_ratio * radius**2)
    sin, cos = torch.sin(angle), torch.cos(angle)
    xx = spots.of(along * sin**2 + across * cos**2)
    yy = spots.of(along * cos**2 + across * sin**2)
    xy = spots.of(2 * (across - along) * sin * cos)
    q = spots.right * (xy * spots.down)
    return q.add_(xx * spots.right**2).add_(yy * spots.down**2)


# ---- rocks -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rocks:
    """A table of rocks, ordered by scene; columns (n,), `shape` (n, 8).

    The diameter is that of a circle of the same area as the outline seen from above; the height is above the ground,
    what lies below is buried. `azimuth` of the long axis in degrees clockwise from up. `shape` holds random numbers
    0…1: size and phase of the outline's third and fourth wave, tilt and direction of two broken faces.
    """

    scene: Tensor
    col: Tensor
    row: Tensor
    diameter_m: Tensor
    height_m: Tensor
    axis_ratio: Tensor
    azimuth: Tensor
    brightness: Tensor
    shape: Tensor

    def __len__(self) -> int:
        return len(self.scene)


def rock_table(
    scene: Value,
    col: Value,
    row: Value,
    diameter_m: Value,
    height_m: Value | None = None,
    axis_ratio: Value = 1.0,
    azimuth: Value = 0.0,
    brightness: Value = 0.0,
    shape: Value = 0.0,
) -> Rocks:
    """Rocks as given, ordered by scene; without further words half as high as wide, round, all of one shape."""
    diameter = torch.as_tensor(diameter_m, dtype=torch.float32).reshape(-1)
    n = len(diameter)
    form = torch.as_tensor(shape, dtype=torch.float32)
    return Rocks(
        scene=torch.as_tensor(scene).reshape(-1).long().expand(n),
        col=per_scene(col, n, "column", "px"),
        row=per_scene(row, n, "row", "px"),
        diameter_m=per_scene(diameter, n, "rock diameter", "m", 0, above=True),
        height_m=per_scene(0.5 * diameter if height_m is None else height_m, n, "rock height", "m", 0, above=True),
        axis_ratio=per_scene(axis_ratio, n, "axis ratio", low=0.2, high=1),
        azimuth=per_scene(azimuth, n, "azimuth", "°"),
        brightness=per_scene(brightness, n, "brightness", low=-0.9, high=5),
        shape=form if form.ndim == 2 else form.expand(n, 8),
    )


def draw_rocks(
    shape: tuple[int, int, int],
    pixel_size: Value,
    cover_share: Value,
    exponent: Value,
    generator: torch.Generator,
    smallest_px: float = 1.5,
    largest_px: float = 16.0,
    craters: Craters | None = None,
    blocks: float = 0.015,
) -> Rocks:
    """Rocks by a power law N(>D) ∝ D^-exponent, even over the scene and in crowds around fresh craters.

    cover_share: of the ground under the rocks that lie evenly, (B,); exponent 3 to 5 (2.1 to 5), (B,).
    blocks: of the area of a crowd (2.5 radii of a fresh crater) under its own rocks.
    """
    batch, height, width = _checked(shape)
    size = per_scene(pixel_size, batch, "pixel size", "m", 0, above=True)
    share = per_scene(cover_share, batch, "share of ground under rocks", low=0, high=0.5)
    power = per_scene(exponent, batch, "exponent of rock sizes", low=2.1, high=6)
    if not 0 < smallest_px < largest_px:
        raise ParameterError(
            f"Rocks of {smallest_px:g} to {largest_px:g} px are not possible.", "give a smaller and a larger diameter."
        )
    count = torch.poisson(
        share * height * width / _mean_area(power, smallest_px, largest_px), generator=generator
    ).long()
    scene = torch.repeat_interleave(count)
    place = torch.rand(2, len(scene), generator=generator)
    col, row = place[0] * width, place[1] * height
    most = torch.full((len(scene),), largest_px)
    if craters is not None and blocks > 0:
        crowd = _crowds(craters, size, power, smallest_px, blocks, generator)
        scene, col, row, most = (torch.cat(pair) for pair in zip((scene, col, row, most), crowd))
        order = torch.argsort(scene, stable=True)
        scene, col, row, most = scene[order], col[order], row[order], most[order].clamp(max=largest_px)
    random = torch.rand(4, len(scene), generator=generator)
    form = torch.rand(len(scene), 8, generator=generator)
    rest = (smallest_px / most.clamp(min=smallest_px * 1.01)) ** power[scene]
    diameter = smallest_px * (1 - random[0] * (1 - rest)) ** (-1 / power[scene]) * size[scene]
    return Rocks(
        scene=scene,
        col=col,
        row=row,
        diameter_m=diameter,
        height_m=diameter * (0.3 + 0.4 * random[1]),  # about half the diameter; the less, the deeper it lies
        axis_ratio=0.55 + 0.4 * random[2],  # 0.6 to 0.8, some more or less
        azimuth=180 * random[3],
        brightness=0.3 * form[:, 0],
        shape=form,
    )


def stamp_rocks(ground: Ground, rocks: Rocks, first: int = 0) -> tuple[Ground, Tensor]:
    """The ground with rocks on it, and whose pixel is whose: (B, H, W) int32, `first` + row of the table + 1, or 0."""
    ids = torch.zeros(ground.shape, dtype=torch.int32, device=ground.device)
    if not len(rocks):
        return ground, ids
    radius = rocks.diameter_m / (2 * ground.pixel_size[rocks.scene])
    spots = cover(rocks.scene, rocks.col, rocks.row, 1.45 * radius / rocks.axis_ratio.sqrt() + 1, ground.shape)
    inside, top = _stone(spots, rocks, radius)
    number = (spots.owner[:, None, None] + (first + 1)).to(torch.int32)
    ids = highest(spots, inside * number, ground.shape)
    height = ground.height + highest(spots, top * inside, ground.shape)
    bright = highest(spots, spots.of(1 + rocks.brightness) * inside, ground.shape)
    albedo = torch.where(bright > 0, ground.albedo * bright, ground.albedo)
    return replace(ground, height=height, albedo=albedo), ids


def _stone(spots: Spots, rocks: Rocks, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Whether pixels lie on a stone, and how high it is there: steep sides, a blunt top, two faces broken off."""
    angle = torch.deg2rad(rocks.azimuth)
    sin, cos = spots.of(torch.sin(angle)), spots.of(torch.cos(angle))
    third, fourth = 0.35 * rocks.shape[:, 0], 0.3 * rocks.shape[:, 1]
    # Waves in the outline add to its area; the radius makes up for it, so that the area is that of the circle.
    radius = radius / torch.sqrt(1 + (third**2 + fourth**2) / 2)
    long, short = radius / rocks.axis_ratio.sqrt(), radius * rocks.axis_ratio.sqrt()
    x = (spots.right * sin - spots.down * cos) / spots.of(long)
    y = (spots.right * cos + spots.down * sin) / spots.of(short)
    q = x * x + y * y
    safe = q.clamp(min=1e-6)
    phase3, phase4 = 2 * math.pi * rocks.shape[:, 2], 2 * math.pi * rocks.shape[:, 3]
    c2, s2 = (x * x - y * y) / safe, 2 * x * y / safe
    r = torch.sqrt(safe)
    c3, s3 = (c2 * x - s2 * y) / r, (s2 * x + c2 * y) / r
    wave = spots.of(third * torch.cos(phase3)) * c3 + spots.of(third * torch.sin(phase3)) * s3
    wave = wave + spots.of(fourth * torch.cos(phase4)) * (c2 * c2 - s2 * s2)
    wave = wave + spots.of(fourth * torch.sin(phase4)) * (2 * c2 * s2)
    w = q * (1 + wave)
    top = torch.clamp(1.6 * (1 - w), 0, 1)
    for tilt, direction in ((4, 5), (6, 7)):
        turn = 2 * math.pi * rocks.shape[:, direction]
        steep = 0.2 + 0.7 * rocks.shape[:, tilt]
        face = 1.3 - spots.of(steep * torch.cos(turn)) * x - spots.of(steep * torch.sin(turn)) * y
        top = torch.minimum(top, face.clamp_(min=0.3))
    return w < 1, top * spots.of(rocks.height_m)


def _mean_area(power: Tensor, smallest: float, largest: float) -> Tensor:
    """Mean area of rocks of a power law between two diameters, in their unit squared."""
    ratio = smallest / largest
    return math.pi / 4 * smallest**2 * power / (power - 2) * (1 - ratio ** (power - 2)) / (1 - ratio**power)


def _crowds(
    craters: Craters, size: Tensor, power: Tensor, smallest: float, blocks: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scene, column, row and largest diameter in px of rocks that fresh craters threw out."""
    diameter = craters.diameter_m / size[craters.scene]
    hosts = take(craters, (craters.degradation < 0.15) & (diameter > 8 * smallest))
    radius = hosts.diameter_m / (2 * size[hosts.scene])
    rich = blocks * torch.rand(len(hosts), generator=generator) * 2 * (1 - hosts.degradation / 0.15)
    most = (0.1 * 2 * radius).clamp(min=smallest * 1.2)  # the largest block is about a tenth of its crater
    area = _mean_area(power[hosts.scene], smallest, 1.0e3)
    count = torch.poisson(rich * math.pi * (2.5 * radius) ** 2 / area, generator=generator).long()
    owner = torch.repeat_interleave(count)
    random = torch.rand(2, len(owner), generator=generator)
    # Even in radius from 0.5 R outwards: crowded at the rim, thin outside; then out to 3.5 R.
    away = radius[owner] * (0.5 + 3.0 * random[0] ** 1.7)
    angle = 2 * math.pi * random[1]
    return (
        hosts.scene[owner],
        hosts.col[owner] + away * torch.cos(angle),
        hosts.row[owner] + away * torch.sin(angle),
        most[owner],
    )


def _checked(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise ParameterError(f"Scenes of the shape {tuple(shape)} are not possible.", "give (batch, rows, columns).")
    return shape
