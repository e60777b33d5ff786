"""A judge of craters: a small network that learns from labelled images and is then shown restored ones, all alike.

    judge = teach(images, boxes, steps=400, seed=0)
    col, row, score = judge.find(image)
    share = survival(judge, image, sigma, errors, found)

Images are (H, W) float, of any brightness: each is seen relative to its surroundings. Boxes are (n, 3): column and row
of the middle, and diameter, in px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional

SIDE, BATCH = 128, 8
SURROUNDINGS = 16.0  # px, sigma
APART = 5  # px between the middles of two craters
NEAR, NEAR_PX = 0.35, 4  # diameters within which a middle is the right one, and px, at least


@dataclass(frozen=True)
class Judge:
    """A taught network and the score from which on it calls something a crater."""

    network: nn.Module
    threshold: float

    def find(self, image: np.ndarray, threshold: float | None = None) -> np.ndarray:
        """Column, row and score (n, 3) of what looks like a crater."""
        return _peaks(_heat(self.network, image), self.threshold if threshold is None else threshold)


def teach(images: Sequence[np.ndarray], boxes: Sequence[np.ndarray], steps: int = 400, seed: int = 0) -> Judge:
    """Learn craters from images and their boxes; the threshold is where precision and recall there meet."""
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    seen = [seen_as(image) for image in images]
    truth = [_spots(image.shape, box) for image, box in zip(images, boxes)]
    network = _network()
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(steps):
        x, y = _batch(seen, truth, random)
        heat = network(x)
        # Nearly all pixels are no crater: those that are count as much together.
        loss = functional.binary_cross_entropy_with_logits(heat, y, pos_weight=torch.tensor(8.0))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    network.eval()
    torch.set_rng_state(before)
    return Judge(network, _threshold(network, images, boxes))


def matched(found: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes (m,) are found, and which findings (n,) are of a box."""
    if not len(found) or not len(boxes):
        return np.zeros(len(boxes), bool), np.zeros(len(found), bool)
    distance = np.hypot(found[:, None, 0] - boxes[None, :, 0], found[:, None, 1] - boxes[None, :, 1])
    near = distance <= np.maximum(NEAR * boxes[None, :, 2], NEAR_PX)
    return near.any(axis=0), near.any(axis=1)


def survival(
    judge: Judge, image: np.ndarray, sigma: np.ndarray, errors: Sequence[np.ndarray], found: np.ndarray
) -> np.ndarray:
    """Share of the images that may be the true one in which each finding is still seen, (n,).

    Such an image is the estimate and an error: `errors`, each (H, W) in sigmas, are those of the same method elsewhere.
    Errors of neighbours go together and make false craters; sigma of a pixel knows nothing of it.
    """
    col, row = found[:, 0].astype(int), found[:, 1].astype(int)
    seen = [_heat(judge.network, image + sigma * error) > judge.threshold for error in errors]
    return np.mean([ndimage.maximum_filter(there, 2 * NEAR_PX + 1)[row, col] for there in seen], axis=0)


def seen_as(image: np.ndarray) -> np.ndarray:
    """An image relative to its surroundings, of spread 1, float32."""
    around = ndimage.gaussian_filter(image.astype(np.float64), SURROUNDINGS)
    contrast = (image - around) / np.maximum(around, 0.05 * max(float(np.mean(image)), 1e-12))
    return np.clip(contrast / max(float(contrast.std()), 1e-9), -4, 4).astype(np.float32)


def _network() -> nn.Module:
    """At half the resolution, which is enough for craters of 8 px; sees 32 px around."""
    layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
    widths = [4, 16, 16, 24, 24, 24]
    for reach, before, after in zip((1, 1, 2, 4, 8), widths, widths[1:]):
        layers += [nn.Conv2d(before, after, 3, padding=reach, dilation=reach), nn.BatchNorm2d(after), nn.ReLU()]
    layers += [nn.Conv2d(24, 1, 1), nn.Upsample(scale_factor=2, mode="bilinear")]
    return nn.Sequential(*layers)


def _spots(shape: tuple[int, ...], boxes: np.ndarray) -> np.ndarray:
    """1 in the middle fifth of each crater, 2 px at least."""
    rows, cols = np.indices(shape)
    spots = np.zeros(shape, np.float32)
    for col, row, diameter in boxes:
        radius = max(0.1 * diameter, 2.0)
        r0, r1, c0, c1 = (int(v) for v in (row - radius, row + radius + 2, col - radius, col + radius + 2))
        part = np.s_[max(r0, 0) : max(r1, 0), max(c0, 0) : max(c1, 0)]
        spots[part][np.hypot(rows[part] - row, cols[part] - col) <= radius] = 1
    return spots


def _batch(seen: Sequence[np.ndarray], truth: Sequence[np.ndarray], random: np.random.Generator) -> tuple:
    pairs = []
    for _ in range(BATCH):
        k = int(random.integers(len(seen)))
        side = min(SIDE, *seen[k].shape)
        row, col = (int(random.integers(n - side + 1)) for n in seen[k].shape)
        turns, flip = int(random.integers(4)), int(random.integers(2))
        parts = (a[row : row + side, col : col + side] for a in (seen[k], truth[k]))
        pairs.append([np.rot90(p[:, ::-1] if flip else p, turns).copy() for p in parts])
    x, y = (torch.from_numpy(np.stack(some))[:, None] for some in zip(*pairs))
    return x, y


@torch.inference_mode()
def _heat(network: nn.Module, image: np.ndarray) -> np.ndarray:
    height, width = image.shape
    even = np.pad(seen_as(image), ((0, height % 2), (0, width % 2)), mode="edge")
    heat: np.ndarray = network(torch.from_numpy(even)[None, None]).sigmoid()[0, 0].numpy()
    return ndimage.gaussian_filter(heat[:height, :width], 1.0)


def _peaks(heat: np.ndarray, threshold: float) -> np.ndarray:
    row, col = np.nonzero((heat == ndimage.maximum_filter(heat, 2 * APART + 1)) & (heat > threshold))
    return np.column_stack([col, row, heat[row, col]])


def _threshold(network: nn.Module, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> float:
    """Where the harmonic mean of precision and recall is highest on what it was taught with."""
    heats = [_heat(network, image) for image in images]
    marks = []
    for threshold in np.linspace(0.1, 0.9, 17):
        pairs = [matched(_peaks(heat, threshold), box) for heat, box in zip(heats, boxes)]
        recall = float(np.concatenate([a for a, _ in pairs]).mean())
        hits = np.concatenate([b for _, b in pairs])
        precision = float(hits.mean()) if len(hits) else 0.0
        marks.append((2 * precision * recall / max(precision + recall, 1e-9), float(threshold)))
    return max(marks)[1]
