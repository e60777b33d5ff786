"""What a network that knows the camera wants to be told of an image: its black level, its noise, its stripes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lunar_processing.backends import torch_device
from lunar_processing.classical import noise as noises
from lunar_processing.classical.around import blur
from lunar_processing.classical.noise import Noise, dark_noise
from lunar_processing.classical.stripes import Profiles, offsets
from lunar_processing.modelpack import Pack
from lunar_processing.pipeline import Step
from lunar_processing.tools.loaded import loaded, network_step

if TYPE_CHECKING:
    from lunar_processing.raster.image import Image

# The least and the most noise that a Narrow Angle Camera has after its calibration, DN² and DN: read-out and photons,
# and at most companding by the coarser table and some pattern of columns, all times what taking out the echo adds.
NAC_LEAST, NAC_MOST = (2.0, 0.03), (8.0, 0.13)
FILL_SIGMA = 4.0  # px, of the mean that stands where nothing was seen


def camera_noise(image: Image) -> Noise:
    """The noise of an image as it tells itself, within what its camera has where the label names it.

    Values in a calibrated unit have no light at 0; of others the black level is looked for.
    """
    product = image.product
    calibrated = bool(image.unit) and "raw" not in image.unit.lower() and image.dtype.kind == "f"
    noise = noises.fit_noise(image.survey.patches, 0.0 if calibrated else None)
    side = {"NACL": "left", "NACR": "right"}.get(product.instrument or "")
    if not (side and product.exposure_ms and image.unit == "I/F"):
        return noise
    from lunar_processing.simulate.sensor import RESPONSIVITY  # which needs torch, and most images do not

    unit = 1.0 / (RESPONSIVITY[side] * product.exposure_ms)  # I/F of a DN
    # The pixels of a map are means of several: they may have less noise than the camera.
    return of_camera(noise, image.survey.percentile(50), unit, as_taken=not image.grid.georeferenced)


def of_camera(noise: Noise, signal: float, unit: float = 1.0, as_taken: bool = True) -> Noise:
    """Measured noise within the limits of the Narrow Angle Camera; a DN is `unit` units of the image.

    At the typical `signal` it stays what was measured, if that can be: an image of one brightness says how noisy it is
    there, and nothing of how noise grows with light.
    """
    (least_a, least_b), (most_a, most_b) = NAC_LEAST if as_taken else (0.0, 0.0), NAC_MOST
    signal = max(signal - noise.black, 0.0)
    b = min(max(noise.b, least_b * unit), most_b * unit)
    a = noise.a + (noise.b - b) * signal
    return replace(noise, a=min(max(a, least_a * unit**2), most_a * unit**2), b=b)


def shadow_step(pack: Pack, noise: Noise, profiles: Profiles, level: float, device: str) -> Step:
    """(enhanced, sigma) in input units; `level` stands far from anything that was seen."""
    import torch

    where, card = torch_device(device), pack.card
    _, network = loaded(pack, device)
    unit = dark_noise(noise)
    slope = noise.b / unit

    @torch.inference_mode()
    def apply(pixels: np.ndarray, valid: np.ndarray, origins: Sequence[tuple[int, int]]) -> np.ndarray:
        flat = np.stack([without_stripes(p, v, profiles, o, level) for p, v, o in zip(pixels, valid, origins)])
        x = torch.from_numpy((flat - np.float32(noise.black)) / np.float32(unit)).to(where)[:, None]
        output = network(x, torch.full((len(x),), slope, device=where)).float().cpu().numpy()
        output *= np.float32(unit)
        output[:, 0] += np.float32(noise.black)
        return np.asarray(output)

    return network_step(card, device, apply, bands=2, align=8)


def without_stripes(
    pixels: np.ndarray, valid: np.ndarray, profiles: Profiles, origin: tuple[int, int], level: float
) -> np.ndarray:
    """A tile less the offsets of its columns and rows, float32; where nothing was seen, the mean of what is around."""
    height, width = pixels.shape
    flat = pixels.astype(np.float32)
    flat -= _part(profiles.columns, origin[0], width)[None, :]
    flat -= _part(profiles.rows, origin[1], height)[:, None]
    if valid.all():
        return flat
    around = blur(flat, valid, FILL_SIGMA)
    return np.where(valid, flat, np.where(np.isfinite(around), around, np.float32(level)))


def restore(
    pack: Pack, pixels: np.ndarray, noise: Noise | None = None, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """A valid image (H, W) in memory, whose 0 is no light, enhanced, and its sigma; as the tool does it."""
    valid = np.ones(pixels.shape, bool)
    noise = noise or noises.fit_noise(windows_of(pixels), 0.0)
    step = shadow_step(pack, noise, offsets(pixels, valid, noise), float(np.median(pixels)), device)
    halo = step.halo
    wide = [(halo, halo + -n % 8) for n in pixels.shape]
    made = step.apply(np.pad(pixels, wide)[None], np.pad(valid, wide)[None], [(-halo, -halo)])[0]
    inner = np.s_[halo : halo + pixels.shape[0], halo : halo + pixels.shape[1]]
    return made[0][inner], made[1][inner]


def windows_of(pixels: np.ndarray, side: int = 256) -> list[tuple[np.ndarray, np.ndarray]]:
    """The windows of an image in memory, as a survey has them."""
    rows, cols = (range(0, n, side) for n in pixels.shape)
    parts = [pixels[r : r + side, c : c + side] for r in rows for c in cols]
    return [(part, np.ones(part.shape, bool)) for part in parts]


def _part(profile: np.ndarray, start: int, length: int) -> np.ndarray:
    """What a tile covers of a profile, float32; beyond the image 0."""
    place = np.arange(start, start + length)
    inside = (place >= 0) & (place < len(profile))
    return np.where(inside, profile[np.clip(place, 0, len(profile) - 1)], 0).astype(np.float32)
