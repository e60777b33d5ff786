"""The smallest crater that an enhanced image still shows, measured: planted in simulated shadow, noised, enhanced.

A crater counts as seen where the light that it changes, as far as the enhanced image gives it back, is more than
what 98 of 100 enhanced images without the crater show there by error alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lunar_processing.simulate import light, scenes, sensor, terrain
from lunar_processing.training.data import mix
from lunar_processing.training.recipes.darkness import darken

SIGNALS = (1.0, 2.0, 3.5, 6.0, 10.0, 20.0, 50.0, 120.0)  # DN
DIAMETERS = (3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 36.0, 54.0)  # px
WORN = 0.2  # share of a crater's depth that is gone
SIDE, SCENES = 192, 8
FALSE_ALARM, RECALL = 0.02, 0.5


class Planted(NamedTuple):
    """Light (B, 1, H, W) without and with craters, and the corners of their windows: (n, 3) scene, row, column."""

    without: Tensor
    with_them: Tensor
    corners: Tensor
    side: int


@torch.no_grad()
def measure(net: nn.Module, seed: int = 0) -> dict[str, list[float]]:
    """For each signal to noise the diameter in px from which on half of the craters are seen; NaN is left out."""
    table: dict[str, list[float]] = {"signal_to_noise": [], "diameter_px": [], "signal_dn": []}
    planted = [plant(diameter, mix(seed, number)) for number, diameter in enumerate(DIAMETERS)]
    for number, signal in enumerate(SIGNALS):
        seen = [recall(net, p, signal, mix(seed, 100 + number)) for p in planted]
        size = smallest([share for share, _ in seen])
        if math.isfinite(size):
            table["signal_to_noise"].append(round(sum(clear for _, clear in seen) / len(seen), 3))
            table["diameter_px"].append(round(size, 2))
            table["signal_dn"].append(signal)
    return table


def smallest(recalls: list[float]) -> float:
    """Diameter at which recall rises above a half and stays there, between the measured ones by straight lines."""
    if recalls[-1] < RECALL:
        return math.nan
    first = max((i for i, r in enumerate(recalls) if r < RECALL), default=-1) + 1
    if first == 0:
        return DIAMETERS[0]
    share = (RECALL - recalls[first - 1]) / (recalls[first] - recalls[first - 1])
    return DIAMETERS[first - 1] + share * (DIAMETERS[first] - DIAMETERS[first - 1])


def plant(diameter: float, seed: int) -> Planted:
    """Scenes in permanent shadow, with worn craters of one diameter (px) on a grid and without."""
    made = scenes.draw("psr", SCENES, seed, size=SIDE)
    ground = terrain.Ground(made.ground.height, made.ground.albedo, torch.ones(SCENES))
    side = 2 * math.ceil(diameter) + 2
    places = torch.arange(8, SIDE - side - 8 + 1, side + 4)
    row, col = (x.flatten() for x in torch.meshgrid(places, places, indexing="ij"))
    each = len(row)
    scene = torch.arange(SCENES).repeat_interleave(each)
    middle = side / 2
    craters = terrain.crater_table(
        scene, (col.repeat(SCENES) + middle).float(), (row.repeat(SCENES) + middle).float(),
        torch.full((SCENES * each,), diameter), degradation=WORN,
    )  # fmt: skip
    glow = light.draw_glow(SCENES, scenes.generator(seed))
    optics = sensor.Camera(**{**vars(sensor.IDEAL), "psf": 0.51})
    images = [light.shadow_light(g, glow) for g in (ground, terrain.stamp_craters(ground, craters))]
    images = [sensor.expose(1e6 * image, optics).expected[:, None].clamp_min(0) for image in images]
    corners = torch.stack([scene, row.repeat(SCENES), col.repeat(SCENES)], dim=1)
    mean = images[0].mean(dim=(1, 2, 3), keepdim=True)
    return Planted(images[0] / mean, images[1] / mean, corners, side)


def recall(net: nn.Module, planted: Planted, signal: float, seed: int) -> tuple[float, float]:
    """Share of the craters that are seen at a mean signal in DN, and the signal to noise there."""
    level = torch.full((len(planted.without),), signal)
    valid = torch.ones_like(planted.without, dtype=torch.bool)
    found, clear = [], 0.0
    for image, number in ((planted.without, 0), (planted.with_them, 1)):
        dark = darken(image, valid, level * image.mean(dim=(1, 2, 3)), mix(seed, number), sure=True)
        scale = dark.clean.mean(dim=(1, 2, 3), keepdim=True) / image.mean(dim=(1, 2, 3), keepdim=True)
        error = net(dark.noisy, dark.slope)[:, :1] / scale - planted.without
        found.append(_projected(error, planted.with_them - planted.without, planted))
        clear = float((dark.clean / (1 + dark.slope.view(-1, 1, 1, 1) * dark.clean).sqrt()).mean())
    by_error, by_crater = found
    limit = torch.quantile(by_error, 1 - FALSE_ALARM)
    return float((by_crater > limit).float().mean()), clear


def _projected(image: Tensor, change: Tensor, planted: Planted) -> Tensor:
    """How much of each crater's change an image holds: 1 for all of it, (n,)."""
    windows = [_cut(x, planted) for x in (image, change)]
    ours, theirs = (w - w.mean(dim=(1, 2), keepdim=True) for w in windows)
    return (ours * theirs).sum(dim=(1, 2)) / (theirs**2).sum(dim=(1, 2)).clamp_min(1e-12)


def _cut(image: Tensor, planted: Planted) -> Tensor:
    """The window of each crater, (n, side, side)."""
    scene, row, col = planted.corners.T[:, :, None, None]
    reach = torch.arange(planted.side)
    return image[scene, 0, row + reach[:, None], col + reach]
