"""Darkness: light seen by the model of the camera, as the tool for enhancement hands it to a network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lunar_processing.simulate import sensor
from lunar_processing.training.data import dice, mix

BURNT = 3200.0  # DN above which the detector may have been full
# What differs from the camera itself: destriping has been done, and left this much of the offsets of lines and columns
# at most; often it leaves less. A network that was taught with less invented more where there is nothing to see.
LEFT = {"row": (0.03, 0.8), "pattern_left": (0.0, 0.08), "table": (1.0, 1.0), "dropped": (0.0, 0.0)}
ROUGH = 0.08  # of the signal: how much relief may pass for noise when noise is measured in the image
DOUBT = 0.1  # standard deviation of the logarithm of measured noise
# Standard deviation of errors of the black level, and of slow offsets of rows that destriping leaves: nothing in an
# image tells of them, sigma must.
ZERO_DN = 0.2


class Dark(NamedTuple):
    """Noisy and clean (B, 1, H, W) in units of the dark noise, slope of the variance (B,), and where truth is known."""

    noisy: Tensor
    clean: Tensor
    slope: Tensor
    known: Tensor


def darken(light: Tensor, valid: Tensor, signal: Tensor, seed: int, sure: bool = False) -> Dark:
    """Light (B, 1, H, W) ≥ 0 of any unit, seen by a camera that gets `signal` DN (B,) of it on average.

    `sure`: the noise is known as it is, not as an image tells it; for validation.
    """
    generator = dice(seed, 1)
    count = len(light)
    camera = sensor.sample_cameras(count, generator, LEFT)
    doubts = torch.randn(3, count, generator=generator) * (0.0 if sure else 1.0)
    rough = ROUGH * torch.rand(count, generator=generator) * (torch.rand(count, generator=generator) < 0.6)
    local = torch.Generator(light.device).manual_seed(mix(seed, 2))
    ideal = light[:, 0] * (signal.to(light.device) / light.mean(dim=(1, 2, 3))).view(-1, 1, 1)
    recorded = sensor.degrade(ideal, ideal.mean(dim=(1, 2)), camera, local)
    noisy, clean = sensor.calibrate(recorded)[:, None], ideal[:, None]

    there = doubts.to(light.device)
    known = valid & (clean < BURNT)
    share = torch.as_tensor(camera.echo).to(light.device)
    rise = (1 + share) / (1 - share) / torch.as_tensor(camera.gain).to(light.device)  # taking the echo out adds noise
    mean = over(clean, known)
    dark = (over((noisy - clean) ** 2, known) - rise * mean).clamp_min(0.5)
    dark = dark + (0.0 if sure else 1.0) * (rough.to(light.device) * mean) ** 2
    unit = dark.sqrt() * torch.exp(DOUBT * there[0])
    slope = rise / unit * torch.exp(2 * DOUBT * there[1])
    zero, unit = (ZERO_DN * there[2]).view(-1, 1, 1, 1), unit.view(-1, 1, 1, 1)
    return Dark((noisy + zero) / unit, clean / unit, slope, known)


def over(values: Tensor, known: Tensor) -> Tensor:
    """Mean over the known pixels of each picture (B,)."""
    return (values * known).sum(dim=(1, 2, 3)) / known.sum(dim=(1, 2, 3)).clamp_min(1)
