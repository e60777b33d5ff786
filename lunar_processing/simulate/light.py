"""Light on the ground: cast shadows of a sun that is a disc, reflectance, and the glimmer in permanent shadow.

Azimuths are degrees clockwise from the image's up direction to where the sun stands; shadows point the other way.
Incidence is in degrees from the vertical. Everything is (B, H, W), without a loop over pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lunar_processing.errors import ParameterError
from lunar_processing.simulate.terrain import Ground, Value, per_scene

SUN_RADIUS = 0.267  # degrees, seen from the Moon at 1 au
HIGHEST = 87.0  # degrees of elevation: no slope throws a shadow when the sun is higher
# Half the width in pixels over which the edge of a shadow fades, since a pixel is an area and not a point. Less than
# the distance to the nearest neighbour, so that lit slopes that look at the horizon just above it stay lit.
SOFT = 0.2
# Weights of z[+k] - z[-k], k = 1, 2, …, for the rise over a pixel, by how far they reach: least squares to the true
# derivative of waves from 2.3 px and from 2.15 px on, exact for planes.
DERIVATIVES = {
    4: (0.9645, -0.4299, 0.2267, -0.0712),
    7: (0.9875, -0.4758, 0.2975, -0.2028, 0.1414, -0.0944, 0.0346),
}
REACH = 4  # of these, where nothing else is asked for


# ---- shadows -----------------------------------------------------------------------------------------------------


def lit(
    height: Tensor, pixel_size: Value, sun_azimuth: Value, incidence: Value, sun_radius: float = SUN_RADIUS
) -> Tensor:
    """Share of the sun's disc that each pixel sees, (B, H, W) in 0…1.

    The grid is turned (sheared, so that rows or columns stay exact) until the sun stands at one end of each line.
    Walking away from it, a ray that grazes the highest ground so far falls by tan(elevation) a metre: the running
    maximum of height + distance · tan(elevation), less the latter, is how high the shadow reaches. Near that height a
    part of the sun is seen: the more gradually, the farther away the obstacle.
    """
    batch, rows, cols = height.shape
    device = height.device
    size = per_scene(pixel_size, batch, "pixel size", "m", 0, above=True).to(device)
    azimuth = torch.deg2rad(per_scene(sun_azimuth, batch, "sun azimuth", "°").to(device))
    zenith = per_scene(incidence, batch, "incidence", "°", low=0, high=89.9).to(device)
    n = max(rows, cols)
    lowest = height.amin(dim=(1, 2))[:, None, None]
    square = _square(height, n, lowest)

    away_col, away_row = -torch.sin(azimuth), torch.cos(azimuth)
    by_col = away_col.abs() >= away_row.abs()  # whether the walk goes from column to column
    major, minor = torch.where(by_col, away_col, away_row), torch.where(by_col, away_row, away_col)
    shear = (minor / major.abs())[:, None, None]
    pace = (size / major.abs())[:, None, None]  # metres a step

    turned, back, lap = _turn(n, shear, major > 0, by_col)
    walked = functional.grid_sample(square[:, None], turned, padding_mode="border", align_corners=True)[:, 0]
    elevation = torch.deg2rad((90 - zenith).clamp(max=HIGHEST))[:, None, None]
    # The lower limb decides who is in anyone's way: what hides it hides the first part of the disc.
    fall = torch.tan(elevation - math.radians(sun_radius))
    penumbra = 2 * math.radians(sun_radius) / torch.cos(elevation) ** 2  # in height, per metre from the obstacle
    # A line that leaves the image on one side goes on at the other: from lap to lap it starts anew, far above.
    new_lap = lap * (height.amax(dim=(1, 2))[:, None, None] - lowest + n * pace * fall.abs() + 1)
    horizon = _horizon(walked, new_lap, pace, fall)
    horizon[:, 0] = torch.maximum(horizon[:, 0], lowest - 100 * size[:, None, None] * (1 + fall.abs()))
    shadow, away = functional.grid_sample(horizon, back, padding_mode="border", align_corners=True).unbind(dim=1)
    fade = away * penumbra
    share = (square - shadow + 0.5 * fade) / (fade + 2 * SOFT * pace * torch.tan(elevation)) + 0.5
    return _disc(share.clamp_(0, 1))[:, :rows, :cols]


def _square(height: Tensor, n: int, lowest: Tensor) -> Tensor:
    """The image in the upper left corner of a square of n pixels; what is added lies too low to throw a shadow."""
    _, rows, cols = height.shape
    if rows == cols:
        return height
    padded = functional.pad(height - lowest, (0, n - cols, 0, n - rows), value=0.0)
    return padded + lowest


def _turn(n: int, shear: Tensor, forward: Tensor, by_col: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where to sample so that the light runs along the last axis, where to sample back, and the lap of each sample.

    Line u starts at u and moves `shear` sideways with each step r: at c = (u + shear·r) mod (n + 2) − 1. One pixel
    more on each side keeps neighbours of an edge pixel in its own lap.
    """
    device = shear.device
    period = n + 2
    step = torch.arange(n, device=device, dtype=torch.float32)
    line = torch.arange(period + 1, device=device, dtype=torch.float32)[:, None] + shear * step
    lap = torch.floor(line / period)
    side = (line - period * lap - 1) * (2 / (n - 1 or 1)) - 1
    ahead = torch.where(forward[:, None], step, n - 1 - step)  # the pixel of each step, and the step of each pixel
    along = (ahead * (2 / (n - 1 or 1)) - 1)[:, None, :].expand_as(side)
    flip = by_col[:, None, None]
    turned = torch.stack([torch.where(flip, along, side), torch.where(flip, side, along)], dim=-1)

    lane = torch.arange(n, device=device, dtype=torch.float32)[:, None] + 1 - shear * ahead[:, None, :]
    lane = lane - period * torch.floor(lane / period)  # of pixel (side, along)
    lane = torch.where(flip, lane, lane.transpose(1, 2)) * (2 / period) - 1
    pace = torch.where(flip, along[:, :n], along[:, :n].transpose(1, 2))
    return turned, torch.stack([pace, lane], dim=-1), lap * torch.sign(shear)


def _horizon(walked: Tensor, new_lap: Tensor, pace: Tensor, fall: Tensor) -> Tensor:
    """How high the shadow of all that comes before reaches at each sample, and how far away it begins, in m."""
    step = torch.arange(walked.shape[2], device=walked.device, dtype=torch.float32)
    lift = torch.addcmul(new_lap, step, pace * fall)
    highest, where = torch.cummax(walked + lift, dim=2)
    before = functional.pad(highest[..., :-1], (1, 0), value=-1e9)
    away = (step[1:] - where[..., :-1]) * pace
    return torch.stack([before.sub_(lift), functional.pad(away, (1, 0))], dim=1)


def _disc(height: Tensor) -> Tensor:
    """Area of a disc above a chord, as a share, where the chord leaves `height` of its diameter to be seen.

    The cubic is within 0.012 of (acos(x) − x√(1−x²))/π.
    """
    return height * height * (3 - 2 * height)


# ---- reflectance -------------------------------------------------------------------------------------------------


class Photometry(NamedTuple):
    """How ground reflects: a function of μ0, μ and phase (degrees) that is 1 at μ0 = μ = 1, phase 0; its parameters."""

    function: Callable[..., Tensor]
    parameters: dict[str, float]
    source: str


def lambert(mu0: Tensor, mu: Tensor, phase: Tensor) -> Tensor:
    """The same brightness from all sides."""
    return mu0


def lommel_seeliger(mu0: Tensor, mu: Tensor, phase: Tensor) -> Tensor:
    """Single scattering in a dark layer, 2·μ0/(μ0 + μ)."""
    return 2 * mu0 / (mu0 + mu).clamp(min=1e-6)


def lunar_lambert(mu0: Tensor, mu: Tensor, phase: Tensor, a: float, b: float, c: float) -> Tensor:
    """2L·μ0/(μ0 + μ) + (1 − L)·μ0 with L = 1 + a·phase + b·phase² + c·phase³, within 0…1."""
    share = (1 + phase * (a + phase * (b + phase * c))).clamp(0, 1)
    return mu0 * (2 * share / (mu0 + mu).clamp(min=1e-6) + (1 - share))


def hapke(
    mu0: Tensor, mu: Tensor, phase: Tensor, w: float, b: float, c: float, h: float, b0: float, theta: float
) -> Tensor:
    """Hapke's bidirectional reflectance over that at zenith sun and nadir view.

    w single-scattering albedo; b, c of the two-lobed Henyey-Greenstein function; h, b0 width and height of the
    shadow-hiding opposition surge; theta mean slope in degrees of roughness smaller than a pixel (Hapke 1984).
    """
    value = _hapke(mu0, mu, phase, w, b, c, h, b0, theta)
    one, zero = torch.ones((), device=mu0.device), torch.zeros((), device=mu0.device)
    return value / _hapke(one, one, zero, w, b, c, h, b0, theta)


PHOTOMETRY: dict[str, Photometry] = {
    "lambert": Photometry(lambert, {}, "Lambert 1760"),
    "lommel-seeliger": Photometry(
        lommel_seeliger, {}, "Seeliger 1887; Hapke 2012, Theory of Reflectance and Emittance Spectroscopy"
    ),
    "lunar-lambert": Photometry(
        lunar_lambert,
        {"a": -0.019, "b": 2.42e-4, "c": -1.46e-6},
        "McEwen 1996, LPSC 27, 841; numbers as in USGS ISIS LunarLambertMcEwen",
    ),
    "hapke": Photometry(
        hapke,
        {"w": 0.25, "b": 0.24, "c": 0.2, "h": 0.06, "b0": 1.6, "theta": 23.4},
        "middle of Sato et al. 2014, JGR Planets 119, 1775, WAC, 643 nm; numbers unverified",
    ),
}


def reflectance(
    ground: Ground,
    sun_azimuth: Value,
    incidence: Value,
    photometry: str = "lunar-lambert",
    view: tuple[float, float, float] = (0.0, 0.0, 1.0),
    reach: int = REACH,
) -> Tensor:
    """I/F (B, H, W) of ground that sees the whole sun; `view` points to the camera: right, down, up in the image.

    `reach`: pixels on either side that slopes are taken from, one of `DERIVATIVES`.
    """
    law = law_of(photometry)
    sun = towards_sun(ground, sun_azimuth, incidence)
    eye = torch.tensor(view, device=ground.device, dtype=torch.float32)
    if not float(eye.norm()) > 0 or view[2] <= 0:
        raise ParameterError(f"A view from {view} is not from above.", "give a direction whose third part is positive.")
    eye = (eye / eye.norm())[:, None, None, None]
    return shade(*slopes(ground, reach), ground.albedo, eye, sun, law)


def sunlit(
    ground: Ground,
    sun_azimuth: Value,
    incidence: Value,
    photometry: str = "lunar-lambert",
    sun_radius: float = SUN_RADIUS,
    reach: int = REACH,
) -> tuple[Tensor, Tensor]:
    """I/F of ground in the sun, black in the shadows, and the share of the sun that each pixel sees."""
    seen = lit(ground.height, ground.pixel_size, sun_azimuth, incidence, sun_radius)
    return reflectance(ground, sun_azimuth, incidence, photometry, reach=reach) * seen, seen


@dataclass(frozen=True)
class Glow:
    """What lights permanent shadow: K lit slopes around, (B, K) each, and how bright it is there, (B,).

    `azimuth` and `incidence` as of a sun; `share` adds up to 1; `strength` is the light on flat ground over that of a
    sun in the zenith: 1e-5 to 1e-3.
    """

    azimuth: Tensor
    incidence: Tensor
    share: Tensor
    strength: Tensor


GLOW_RADIUS = 9.0  # degrees: half the height of a lit wall as its floor sees it
STRENGTH = (1e-5, 1e-3)  # Mahanti et al. 2018, Siegler et al. 2015 for scattered light in polar craters


def draw_glow(batch: int, generator: torch.Generator, slopes_around: int = 3) -> Glow:
    """Light from some slopes 10 to 40 degrees above the horizon, at least half of it from one."""
    random = torch.rand(3, batch, slopes_around, generator=generator)
    share = random[2] ** 2 + 1e-3
    share[:, 0] = share.sum(dim=1)
    low, high = STRENGTH
    return Glow(
        360 * random[0],
        50 + 30 * random[1],
        share / share.sum(dim=1, keepdim=True),
        low * (high / low) ** torch.rand(batch, generator=generator),
    )


def shadow_light(ground: Ground, glow: Glow, photometry: str = "lunar-lambert") -> Tensor:
    """I/F (B, H, W) of ground in permanent shadow: low, soft light from several sides, soft shadows."""
    total = torch.zeros_like(ground.height)
    flat_ground = torch.zeros_like(ground.pixel_size)
    for k in range(glow.azimuth.shape[1]):
        azimuth, incidence, share = glow.azimuth[:, k], glow.incidence[:, k], glow.share[:, k].to(ground.device)
        light, _ = sunlit(ground, azimuth, incidence, photometry, GLOW_RADIUS)
        total = total + share[:, None, None] * light
        flat_ground = flat_ground + share * torch.cos(torch.deg2rad(incidence)).to(ground.device)
    return total * (glow.strength.to(ground.device) / flat_ground)[:, None, None]


# ---- parts -------------------------------------------------------------------------------------------------------


def shade(east: Tensor, south: Tensor, albedo: Tensor, eye: Tensor, sun: Tensor, law: Photometry) -> Tensor:
    """I/F of ground with these slopes and albedo (B, H, W); `eye`, `sun`: unit vectors (3, …), right, down, up."""
    length = torch.rsqrt(1 + east * east + south * south)
    mu0 = ((sun[2] - east * sun[0] - south * sun[1]) * length).clamp(min=0)
    mu = ((eye[2] - east * eye[0] - south * eye[1]) * length).clamp(min=0.02)
    phase = torch.rad2deg(torch.arccos((sun * eye).sum(dim=0).clamp(-1, 1)))
    return albedo * law.function(mu0, mu, phase, **law.parameters)


def slopes(ground: Ground, reach: int = REACH) -> tuple[Tensor, Tensor]:
    """Rise over run to the right and down, from so many pixels on either side.

    With 4, true to a tenth for waves of 2.4 px and longer; with 7, for 2.25 px: from the next pixels alone a slope of
    2.4 px would keep a fifth, and the scene would be blurred before the camera sees it. Real images are as crisp as
    their point spread lets them be.
    """
    z = functional.pad(ground.height[:, None], (reach,) * 4, mode="replicate")[:, 0]
    z.div_(ground.pixel_size[:, None, None])
    across, along = z[:, reach:-reach], z[:, :, reach:-reach]
    weights = DERIVATIVES[reach]
    return _derivative(across, 2, ground.shape[2], weights), _derivative(along, 1, ground.shape[1], weights)


def _derivative(z: Tensor, axis: int, length: int, weights: tuple[float, ...]) -> Tensor:
    reach = len(weights)
    slope = torch.zeros_like(z.narrow(axis, 0, length))
    for k, weight in enumerate(weights, 1):
        slope.add_(z.narrow(axis, reach + k, length), alpha=weight)
        slope.sub_(z.narrow(axis, reach - k, length), alpha=weight)
    return slope


def law_of(name: str) -> Photometry:
    """The photometry of this name."""
    if name not in PHOTOMETRY:
        raise ParameterError(f"There is no photometry {name!r}.", f"choose one of {', '.join(PHOTOMETRY)}.")
    return PHOTOMETRY[name]


def towards_sun(ground: Ground, sun_azimuth: Value, incidence: Value) -> Tensor:
    """Unit vectors (3, B, 1, 1): right, down, up."""
    batch = ground.shape[0]
    azimuth = torch.deg2rad(per_scene(sun_azimuth, batch, "sun azimuth", "°")).to(ground.device)
    zenith = torch.deg2rad(per_scene(incidence, batch, "incidence", "°", low=0, high=89.9)).to(ground.device)
    flat = torch.sin(zenith)
    return torch.stack([flat * torch.sin(azimuth), -flat * torch.cos(azimuth), torch.cos(zenith)])[:, :, None, None]


def _hapke(
    mu0: Tensor, mu: Tensor, phase: Tensor, w: float, b: float, c: float, h: float, b0: float, theta: float
) -> Tensor:
    g = torch.deg2rad(phase)
    cos_g = torch.cos(g)
    lobes = (1 + c) / 2 * _lobe(cos_g, b) + (1 - c) / 2 * _lobe(-cos_g, b)  # back to the sun, and onwards
    surge = b0 / (1 + torch.tan(g / 2) / h)
    mu0_e, mu_e, rough = _rough(mu0, mu, cos_g, math.radians(theta))
    scattered = (1 + surge) * lobes + _many(mu0_e, w) * _many(mu_e, w) - 1
    return w / 4 * mu0_e / (mu0_e + mu_e).clamp(min=1e-6) * scattered * rough


def _lobe(cos_g: Tensor, b: float) -> Tensor:
    """Henyey-Greenstein, brightest at cos_g = 1."""
    return (1 - b * b) / (1 - 2 * b * cos_g + b * b) ** 1.5


def _many(x: Tensor, w: float) -> Tensor:
    """Chandrasekhar's H of multiple scattering as in Hapke 1981, within 4 %."""
    return (1 + 2 * x) / (1 + 2 * x * math.sqrt(1 - w))


def _rough(mu0: Tensor, mu: Tensor, cos_g: Tensor, theta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Effective cosines and the shadowing factor of roughness with a mean slope of `theta` radians (Hapke 1984)."""
    if theta <= 0:
        return mu0, mu, mu0.new_ones(())
    mu0, mu = mu0.clamp(1e-4, 1), mu.clamp(1e-4, 1)
    tan = math.tan(theta)
    chi = 1 / math.sqrt(1 + math.pi * tan**2)
    # The formulas are the same for both directions, with the more inclined one first.
    low, high = torch.minimum(mu0, mu), torch.maximum(mu0, mu)
    sin_low, sin_high = torch.sqrt(1 - low * low), torch.sqrt(1 - high * high)
    cos_psi = ((cos_g - low * high) / (sin_low * sin_high).clamp(min=1e-6)).clamp(-1, 1)
    psi = torch.arccos(cos_psi)
    half = (1 - cos_psi) / 2  # sin² of half of psi
    first = [torch.exp(-2 / math.pi / tan * m / s.clamp(min=1e-6)) for m, s in ((low, sin_low), (high, sin_high))]
    second = [torch.exp(-((m / s.clamp(min=1e-6) / tan) ** 2) / math.pi) for m, s in ((low, sin_low), (high, sin_high))]
    below = 2 - first[0] - psi / math.pi * first[1]
    low_e = chi * (low + sin_low * tan * (second[0] - half * second[1]) / below)
    high_e = chi * (high + sin_high * tan * (cos_psi * second[0] + half * second[1]) / below)
    eta_low = chi * (low + sin_low * tan * second[0] / (2 - first[0]))
    eta_high = chi * (high + sin_high * tan * second[1] / (2 - first[1]))
    sun_lower = mu0 <= mu
    mu0_e, mu_e = torch.where(sun_lower, low_e, high_e), torch.where(sun_lower, high_e, low_e)
    eta_0, eta = torch.where(sun_lower, eta_low, eta_high), torch.where(sun_lower, eta_high, eta_low)
    f = torch.exp(-2 * torch.tan((psi / 2).clamp(max=1.55)))
    shadow = mu_e / eta * mu0 / eta_0 * chi / (1 - f + f * chi * high / eta_high)
    return mu0_e, mu_e, shadow
