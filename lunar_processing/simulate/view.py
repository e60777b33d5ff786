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
    batch = ground.shape[0]
    rows, cols = size
    device = ground.device
    tall = per_scene(camera_height, batch, "camera height", "m", 0, above=True).to(device)
    down = torch.deg2rad(per_scene(pitch, batch, "pitch", "°", low=-80, high=45)).to(device)[:, None, None]
    turn = torch.deg2rad(per_scene(heading, batch, "heading", "°")).to(device)
    wide = torch.deg2rad(per_scene(fov, batch, "field of view", "°", low=1, high=120)).to(device)
    if min(size) < 2 or not all(0 <= share <= 1 for share in at):
        raise ParameterError(f"A view of {size} px from {at} is not possible.", "give 2 px or more, and shares of 0…1.")

    # Directions of pixels: ahead, right, up of the camera's own level frame.
    right = ((torch.arange(cols, device=device) + 0.5) * 2 / cols - 1) * torch.tan(wide / 2)[:, None]
    above = (1 - (torch.arange(rows, device=device) + 0.5) * 2 / rows)[None] * (
        rows / cols * torch.tan(wide / 2)[:, None]
    )
    ahead = torch.cos(down) - above[:, :, None] * torch.sin(down)
    up = torch.sin(down) + above[:, :, None] * torch.cos(down)
    bearing = torch.atan2(right[:, None, :].expand_as(ahead + right[:, None, :]), ahead)
    rise = up / torch.hypot(ahead, right[:, None, :])  # tangent of elevation

    # The walk: `lanes` compass directions, distances that grow with themselves.
    lanes = 2 * cols
    first, last = bearing.amin(dim=(1, 2)), bearing.amax(dim=(1, 2))
    lane_bearing = first[:, None] + (last - first)[:, None] * torch.linspace(0, 1, lanes, device=device)
    far = math.hypot(*ground.shape[1:]) * ground.pixel_size
    near = 0.3 * tall
    distance = near[:, None] * (far / near)[:, None] ** torch.linspace(0, 1, steps, device=device)
    start = torch.tensor([at[0] * ground.shape[2], at[1] * ground.shape[1]], device=device)
    foot = _sample(ground.height[:, None], start.expand(batch, 1, 1, 2))[:, 0, 0, 0]
    course = lane_bearing + turn[:, None]
    place = _walk(start, course[:, :, None], distance[:, None, :], ground)
    heights = _sample(ground.height[:, None], place)[:, 0]
    inside = _inside(place, ground)
    rises = (heights - (foot + tall)[:, None, None]) / distance[:, None, :]
    skyline = torch.cummax(torch.where(inside, rises, torch.full_like(rises, -1e3)), dim=2).values

    # The first step at which the skyline of its lane reaches each pixel.
    lane = ((bearing - first[:, None, None]) / (last - first)[:, None, None] * (lanes - 1)).round().long()
    lane = (lane.clamp(0, lanes - 1) + torch.arange(batch, device=device)[:, None, None] * lanes).flatten()
    lines = skyline.reshape(-1, steps)
    offset = torch.arange(len(lines), device=device, dtype=torch.float64) * 1e4
    rising = (lines.double().clamp(-2e3, 2e3) + offset[:, None]).flatten()
    sought = rise.flatten().double().clamp(-1e3, 1e3) + offset[lane]
    found = torch.searchsorted(rising, sought) - lane * steps
    hit = (found < steps).view(batch, rows, cols)
    step = found.clamp(1, steps - 1)
    before, after = lines.flatten()[lane * steps + step - 1], lines.flatten()[lane * steps + step]
    share = ((rise.flatten() - before) / (after - before).clamp(min=1e-6)).clamp(0, 1)
    own = torch.arange(batch, device=device)[:, None, None].expand(batch, rows, cols).flatten()
    metres = torch.lerp(distance[own, step - 1], distance[own, step], share).view(batch, rows, cols)
    where = _walk(start, bearing + turn[:, None, None], metres, ground)

    east, south = slopes(ground)
    layers = torch.stack([east, south, ground.albedo, seen_sun], dim=1)
    east, south, albedo, sun_share = _sample(layers, where).unbind(dim=1)
    eye = _back_to_camera(bearing + turn[:, None, None], rise)
    radiance = shade(east, south, albedo, eye, towards_sun(ground, sun_azimuth, incidence), law_of(photometry))
    nowhere = torch.full((), math.nan, device=device)
    return View(
        radiance * sun_share * hit,
        torch.where(hit[..., None], where, nowhere),
        torch.where(hit, metres, torch.full((), math.inf, device=device)),
    )


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
