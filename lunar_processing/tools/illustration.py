"""A picture to look at, painted by a network that was trained to please the eye: no unit, no sigma, no measurement.

Such a network judges by the whole picture. So range, statistics and what its places look at are taken once, from
samples of all of the image that lies in shadow; then every tile is painted alike, and there is no seam.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lunar_processing.backends import predictor, torch_device
from lunar_processing.classical.around import blur
from lunar_processing.classical.noise import Noise
from lunar_processing.classical.stripes import Profiles, offsets
from lunar_processing.modelpack import Card, Pack
from lunar_processing.networks.cyclegan import MARGIN, SMOOTH_PX
from lunar_processing.pipeline import Step
from lunar_processing.tools.loaded import network_step
from lunar_processing.tools.shadow import windows_of, without_stripes

ILLUSTRATION = "illustration"  # what the card of such a model says of its output
NOTICE = "ILLUSTRATION, not a measurement: painted by a network that may invent or lose craters and rocks"
UNIT = "display, 0–1"
SAMPLES = 16  # windows of the image that the network looks at first
BEYOND = 3.0  # of the range: brighter or darker than anything the network knows

# (pixels, validity, where it starts), as a survey or a tile has them
Part = tuple[np.ndarray, np.ndarray, tuple[int, int]]


def illustration_step(
    pack: Pack, profiles: Profiles, parts: Sequence[Part], level: float, sunlit: float | None, device: str
) -> Step:
    """(picture 0…1, NaN for its sigma). `parts` are samples of the image; from `sunlit` on nothing counts as shadow.

    `level` stands far from anything that was seen.
    """
    import torch

    where, card = torch_device(device), pack.card
    flat = [(without_stripes(p, v, profiles, o, level), v) for p, v, o in parts]
    low, high = range_of(flat, card, sunlit)
    network = pack.network(where)

    def given(tiles: Iterable[np.ndarray]) -> torch.Tensor:
        scaled = (np.stack(list(tiles)) - np.float32(low)) / np.float32(high - low)
        return torch.from_numpy(scaled.clip(-BEYOND, BEYOND).astype(np.float32)).to(where)[:, None]

    with torch.inference_mode():
        network.look(given(_samples(flat, sunlit)))  # type: ignore[operator]
    answer = predictor(network, device)

    @torch.inference_mode()
    def apply(pixels: np.ndarray, valid: np.ndarray, origins: Sequence[tuple[int, int]]) -> np.ndarray:
        tiles = (without_stripes(p, v, profiles, o, level) for p, v, o in zip(pixels, valid, origins))
        painted = answer(given(tiles)).float().clamp(0, 1).cpu().numpy()
        return np.concatenate([painted, np.full_like(painted, np.nan)], axis=1)

    return network_step(card, device, apply, bands=2, align=8)


def illustrate(pack: Pack, pixels: np.ndarray, noise: Noise, device: str = "cpu") -> np.ndarray:
    """A valid image (H, W) in memory, painted as the tool does it, 0…1."""
    valid = np.ones(pixels.shape, bool)
    profiles = offsets(pixels, valid, noise)
    side = 256
    places = [(col, row) for row in range(0, pixels.shape[0], side) for col in range(0, pixels.shape[1], side)]
    parts = [(p, v, place) for (p, v), place in zip(windows_of(pixels, side), places)]
    step = illustration_step(pack, profiles, parts, float(np.median(pixels)), None, device)
    halo = step.halo
    wide = [(halo, halo + -n % 8) for n in pixels.shape]
    made = step.apply(np.pad(pixels, wide, mode="edge")[None], np.pad(valid, wide)[None], [(-halo, -halo)])[0, 0]
    return np.asarray(made[halo : halo + pixels.shape[0], halo : halo + pixels.shape[1]])


def range_of(parts: Sequence[tuple[np.ndarray, np.ndarray]], card: Card, sunlit: float | None) -> tuple[float, float]:
    """What becomes 0 and 1: two percentiles of the light in shadow, averaged over its noise, and a margin around."""
    light = np.concatenate([blur(pixels, valid, SMOOTH_PX)[valid] for pixels, valid in parts])
    light = light[np.isfinite(light)]
    if sunlit is not None and (light < sunlit).any():
        light = light[light < sunlit]
    low, high = np.percentile(light, (card.normalisation.low, card.normalisation.high))
    margin = MARGIN * float(high - low) or 0.5
    return float(low) - margin, float(high) + margin


def _samples(parts: Sequence[tuple[np.ndarray, np.ndarray]], sunlit: float | None) -> list[np.ndarray]:
    """At most SAMPLES windows of one size: the largest there is, the fullest of shadow first."""
    largest = max((pixels.shape for pixels, _ in parts), key=lambda shape: shape[0] * shape[1])
    alike = [(pixels, valid) for pixels, valid in parts if pixels.shape == largest]
    shadow = [(valid if sunlit is None else valid & (pixels < sunlit)).mean() for pixels, valid in alike]
    order = sorted(range(len(alike)), key=lambda k: -round(shadow[k], 1))  # those as full as one another stay in order
    return [alike[k][0] for k in order[:SAMPLES]]
