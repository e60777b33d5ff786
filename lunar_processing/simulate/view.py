"""What a camera on a lander sees of the ground: a landscape with rocks and a black sky."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lunar_processing.errors import ParameterError
from lunar_processing.simulate.light import law_of, shade, slopes, towards_sun
from lunar_processing.simulate.terrain import Ground, Value, per_scene

SKY = 3


class View(NamedTuple):
    """What a camera on a mast sees.

    radiance: (B, H, W), I/F, 0 in the sky. where: (B, H, W, 2), column and row of the ground that each pixel shows,
    NaN in the sky. distance: (B, H, W) in m along the ground, infinite in the sky.
    """

    radiance: Tensor
    where: Tensor
    distance: Tensor

    def of(self, truth: Tensor, sky: int = 0) -> Tensor:
        """A map of whole numbers on the ground (B, H, W), as the camera sees it."""
        _, rows, cols = truth.shape
        there = torch.nan_to_num(self.where).floor().long()
        col, row = there[..., 0].clamp(0, cols - 1), there[..., 1].clamp(0, rows - 1)
        seen = truth.flatten(1).gather(1, (row * cols + col).flatten(1)).view(self.distance.shape)
        return torch.where(torch.isfinite(self.distance), seen, torch.full_like(seen, sky))


def perspective(
    ground: Ground,
    seen_sun: Tensor,
    sun_azimuth: Value,
    incidence: Value,
    camera_height: Value = 1.5,
    pitch: Value = -12.0,
    heading: Value = 0.0,
    fov: Value = 50.0,
    size: tuple[int, int] = (256, 256),
    at: tuple[float, float] = (0.5, 0.97),
    photometry: str = "lunar-lambert",
    steps: int = 640,
) -> View:
    """The ground as a camera on a lander sees it, a pinhole without roll.

    camera_height in m above the ground at `at` (column and row as shares of the scene); pitch in degrees, negative
    looks down; heading clockwise from the image's up; fov across, in degrees. `seen_sun` is `lit` of the ground.

    Along each compass direction the ground is walked once, away from the camera. What it sees there are the places
    that stand higher in its view than all before: where their running maximum passes the height of a pixel.
    """
    if min(size) < 2 or not all(0 <= share <= 1 for share in at):
        raise ParameterError(f"A view of {size} px from {at} is not possible.", "give 2 px or more, and shares of 0…1.")
    batch, device = ground.shape[0], ground.device
    tall = per_scene(camera_height, batch, "camera height", "m", 0, above=True).to(device)
    down = torch.deg2rad(per_scene(pitch, batch, "pitch", "°", low=-80, high=45)).to(device)
    turn = torch.deg2rad(per_scene(heading, batch, "heading", "°")).to(device)
    wide = torch.deg2rad(per_scene(fov, batch, "field of view", "°", low=1, high=120)).to(device)
    start = torch.tensor([at[0] * ground.shape[2], at[1] * ground.shape[1]], device=device)

    rays = _rays(down, wide, size)
    walk = _look_along(ground, start, tall, turn, rays, 2 * size[1], steps)
    metres, hit = _first_met(walk, rays)
    course = rays.bearing + turn[:, None, None]
    where = _walk(start, course, metres, ground)
    east, south = slopes(ground)
    layers = torch.stack([east, south, ground.albedo, seen_sun], dim=1)
    east, south, albedo, sun_share = _sample(layers, where).unbind(dim=1)
    eye = _back_to_camera(course, rays.rise)
    radiance = shade(east, south, albedo, eye, towards_sun(ground, sun_azimuth, incidence), law_of(photometry))
    return View(
        radiance * sun_share * hit,
        torch.where(hit[..., None], where, torch.full((), math.nan, device=device)),
        torch.where(hit, metres, torch.full((), math.inf, device=device)),
    )


class _Rays(NamedTuple):
    """Where pixels look, (B, H, W): radians clockwise from where the camera heads, and the tangent of the elevation."""

    bearing: Tensor
    rise: Tensor


def _rays(down: Tensor, wide: Tensor, size: tuple[int, int]) -> _Rays:
    rows, cols = size
    half = torch.tan(wide / 2)[:, None]
    right = ((torch.arange(cols, device=wide.device) + 0.5) * 2 / cols - 1) * half
    above = (1 - (torch.arange(rows, device=wide.device) + 0.5) * 2 / rows)[None] * (rows / cols * half)
    tilt = down[:, None, None]
    ahead = torch.cos(tilt) - above[:, :, None] * torch.sin(tilt)
    up = torch.sin(tilt) + above[:, :, None] * torch.cos(tilt)
    bearing = torch.atan2(right[:, None, :].expand_as(ahead + right[:, None, :]), ahead)
    return _Rays(bearing, up / torch.hypot(ahead, right[:, None, :]))


class _Lanes(NamedTuple):
    """The ground along compass directions `first`…`last` (B,), at distances (B, steps) in m that grow with themselves.

    skyline: (B, lanes, steps), tangent of the highest elevation met so far.
    """

    first: Tensor
    last: Tensor
    distance: Tensor
    skyline: Tensor


def _look_along(
    ground: Ground, start: Tensor, tall: Tensor, turn: Tensor, rays: _Rays, lanes: int, steps: int
) -> _Lanes:
    batch, device = len(tall), tall.device
    first, last = rays.bearing.amin(dim=(1, 2)), rays.bearing.amax(dim=(1, 2))
    bearing = first[:, None] + (last - first)[:, None] * torch.linspace(0, 1, lanes, device=device)
    far, near = math.hypot(*ground.shape[1:]) * ground.pixel_size, 0.3 * tall
    distance = near[:, None] * (far / near)[:, None] ** torch.linspace(0, 1, steps, device=device)
    foot = _sample(ground.height[:, None], start.expand(batch, 1, 1, 2))[:, 0, 0, 0]
    place = _walk(start, (bearing + turn[:, None])[:, :, None], distance[:, None, :], ground)
    heights = _sample(ground.height[:, None], place)[:, 0]
    rises = (heights - (foot + tall)[:, None, None]) / distance[:, None, :]
    rises = torch.where(_inside(place, ground), rises, torch.full_like(rises, -1e3))
    return _Lanes(first, last, distance, torch.cummax(rises, dim=2).values)


def _first_met(lanes: _Lanes, rays: _Rays) -> tuple[Tensor, Tensor]:
    """Where the skyline of its lane first reaches each pixel, (B, H, W) in m, and whether it does."""
    batch, count, steps = lanes.skyline.shape
    size, device = rays.rise.shape, rays.rise.device
    first, last = lanes.first[:, None, None], lanes.last[:, None, None]
    lane = ((rays.bearing - first) / (last - first) * (count - 1)).round().long().clamp(0, count - 1)
    lane = (lane + torch.arange(batch, device=device)[:, None, None] * count).flatten()
    # One search for all: each lane's heights lie above those of the lane before.
    lines, rise = lanes.skyline.reshape(-1, steps), rays.rise.flatten()
    offset = torch.arange(len(lines), device=device, dtype=torch.float64) * 1e4
    rising = (lines.double().clamp(-2e3, 2e3) + offset[:, None]).flatten()
    found = torch.searchsorted(rising, rise.double().clamp(-1e3, 1e3) + offset[lane]) - lane * steps
    step = found.clamp(1, steps - 1)
    before, after = lines.flatten()[lane * steps + step - 1], lines.flatten()[lane * steps + step]
    share = ((rise - before) / (after - before).clamp(min=1e-6)).clamp(0, 1)
    own = torch.arange(batch, device=device)[:, None, None].expand(size).flatten()
    metres = torch.lerp(lanes.distance[own, step - 1], lanes.distance[own, step], share)
    return metres.view(size), (found < steps).view(size)


def _walk(start: Tensor, course: Tensor, metres: Tensor, ground: Ground) -> Tensor:
    """Image coordinates (…, 2) so many metres from the start on a course in radians clockwise from up."""
    pixels = metres / ground.pixel_size[:, None, None]
    return torch.stack([start[0] + pixels * torch.sin(course), start[1] - pixels * torch.cos(course)], dim=-1)


def _sample(layers: Tensor, place: Tensor) -> Tensor:
    """Layers (B, C, H, W) at image coordinates (B, h, w, 2), between pixels by bilinear interpolation."""
    extent = torch.tensor([layers.shape[3], layers.shape[2]], device=layers.device)
    return functional.grid_sample(layers, place * (2 / extent) - 1, padding_mode="border", align_corners=False)


def _inside(place: Tensor, ground: Ground) -> Tensor:
    _, rows, cols = ground.shape
    col, row = place.unbind(dim=-1)
    return (col >= 0) & (col <= cols) & (row >= 0) & (row <= rows)


def _back_to_camera(course: Tensor, rise: Tensor) -> Tensor:
    """Unit vectors (3, B, H, W) from what a pixel sees to the camera: right, down, up in the ground's image."""
    level = torch.rsqrt(1 + rise * rise)
    return torch.stack([-level * torch.sin(course), level * torch.cos(course), -level * rise])
