"""Objects of the simulator that are rendered once, as finely as `simulate.plant` does, and put into many images.

    shelf = Stock(("probe", "pit"), seed=0)
    planted = shelf.put(images, sun_azimuth, each=3.0, generator=dice(0, 0))

To render an object finely takes a tenth of a second, to put it into an image a thousandth. Turned by right angles and
mirrored, an object suits eight directions of the sun; one is chosen that suits the image's to a few degrees. Ordinary
worn craters are on the shelf, too, and count as ground: nobody shall learn what planting looks like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lunar_processing.simulate.objects import FORM, OBJECTS, Things, thing_table
from lunar_processing.simulate.plant import TOUCHED, lit_by, rendered
from lunar_processing.simulate.strange import DARKEST_SHARE, Planted, ceiling, told
from lunar_processing.simulate.terrain import Craters, crater_table

EACH_KIND = 60  # objects of a kind
ORDINARY = 1.0  # worn craters in an image, on average
CRATER_M, WEAR = (5.0, 25.0), (0.2, 0.6)  # their diameter and degradation
FINEST_M = 0.2  # of the rendered pixels
LARGEST_PX = 200  # across
NEAR_SUN = 10.0  # degrees between the sun of an object and that of its image, at most
INCIDENCE = (45.0, 86.0)  # degrees


class Kept(NamedTuple):
    """What an object does to the light around its middle: by which factor, and which pixels are its own."""

    ratio: Tensor
    mask: Tensor


@dataclass(frozen=True)
class _Choice:
    """An object of the shelf, in one of its eight attitudes, at a place of an image."""

    number: int
    way: int
    scene: int
    col: float
    row: float


class Stock:
    """Object k is a function of (seed, k), and rendered when it is wanted first."""

    def __init__(self, names: Sequence[str], seed: int = 0, each_kind: int = EACH_KIND) -> None:
        numbers = torch.rand(7, (len(names) + 1) * each_kind, generator=torch.Generator().manual_seed(seed))
        self.kinds = [name for name in (*names, "") for _ in range(each_kind)]  # "": an ordinary crater
        self.pixel_size = 0.5 + 0.5 * numbers[0] ** 2
        self.incidence = INCIDENCE[0] + (INCIDENCE[1] - INCIDENCE[0]) * numbers[1] ** 0.7
        self.sun = 45 * numbers[2]
        limits = torch.tensor([OBJECTS[kind].size_m if kind else CRATER_M for kind in self.kinds])
        metres = limits[:, 0] * (limits[:, 1] / limits[:, 0]) ** numbers[3]
        self.size_m = torch.minimum(metres, LARGEST_PX * self.pixel_size)
        self.named = torch.tensor([bool(kind) for kind in self.kinds])
        self._numbers = numbers[4:]
        self._seed = seed
        self._kept: dict[int, Kept] = {}
        quarters = 90.0 * torch.arange(4)
        self._suns = torch.cat([self.sun[:, None] - quarters, -self.sun[:, None] - quarters], dim=1)

    def __getitem__(self, number: int) -> Kept:
        if number not in self._kept:
            where = (float(self.pixel_size[number]), float(self.sun[number]), float(self.incidence[number]))
            dice = torch.Generator().manual_seed(self._seed * 100_003 + number)
            with torch.inference_mode():
                ratio, mask = rendered(self._thing(number, dice), *where, dice, FINEST_M)
            self._kept[number] = _cropped(ratio, mask)
        return self._kept[number]

    def put(self, image: Tensor, sun_azimuth: Tensor, each: float, generator: torch.Generator) -> Planted:
        """Images (B, H, W), black near 0, with `each` objects in each on average. Azimuths are (B,), NaN: at random."""
        batch = len(image)
        numbers = torch.rand(batch, 4, generator=generator)
        azimuth = torch.where(sun_azimuth.isnan(), 360 * numbers[:, 0], sun_azimuth)
        # Black may lie below 0, the darkest pixel of an image without shadows; and what is bright ends somewhere.
        black, noise = -0.3 * numbers[:, 1] ** 2, 0.002 + 0.02 * numbers[:, 2] ** 2
        changed, factor = image.clone(), torch.ones_like(image)
        extent = torch.zeros_like(image, dtype=torch.bool)
        chosen = self._choices(azimuth, image.shape, each, generator)  # type: ignore[arg-type]
        for one in chosen:
            kept = Kept(*(_turned(part, one.way) for part in self[one.number]))
            here, there = _overlap(one, kept.ratio.shape, image.shape[1:])
            ratio, ground = kept.ratio[there].float(), changed[one.scene][here]
            changed[one.scene][here] = lit_by(
                ground, ratio, float(black[one.scene]), float(noise[one.scene]), generator
            )
            factor[one.scene][here] *= ratio
            if self.kinds[one.number]:
                extent[one.scene][here] |= kept.mask[there]
        bright = image - black[:, None, None]
        dark = bright < DARKEST_SHARE * bright.mean(dim=(1, 2), keepdim=True)
        things = [one for one in chosen if self.kinds[one.number]]
        col, row = (
            torch.tensor([getattr(one, name) for one in things], dtype=torch.float32) for name in ("col", "row")
        )
        scene, which = (torch.tensor([getattr(one, name) for one in things]).long() for name in ("scene", "number"))
        where = scene, col, row, (self.size_m / self.pixel_size)[which]
        return told(torch.minimum(changed, ceiling(image, numbers[:, 3])), factor, extent, dark, where)

    def _choices(
        self, azimuth: Tensor, shape: tuple[int, int, int], each: float, generator: torch.Generator
    ) -> list[_Choice]:
        """Objects that suit the sun of their image, anywhere in it."""
        chosen = []
        for wanted, named in ((each if self.named.any() else 0.0, True), (ORDINARY, False)):
            counts = torch.poisson(torch.full((shape[0],), float(wanted)), generator=generator)
            for scene, count in enumerate(counts.int().tolist()):
                off = ((self._suns - azimuth[scene] + 180) % 360 - 180).abs()
                suits = (off < NEAR_SUN) & (self.named == named)[:, None]
                number, way = suits.nonzero(as_tuple=True)
                random = torch.rand(3, count, generator=generator)
                for pick, x, y in random.T.tolist() if len(number) else ():
                    index = int(pick * len(number))
                    chosen.append(_Choice(int(number[index]), int(way[index]), scene, x * shape[2], y * shape[1]))
        return chosen

    def _thing(self, number: int, dice: torch.Generator) -> Things | Craters:
        form, size = torch.rand(FORM, generator=dice), float(self.size_m[number])
        turn, wear, oval = self._numbers[:, number].tolist()
        if self.kinds[number]:
            return thing_table(self.kinds[number], 0, 0.0, 0.0, size, 360 * turn, form[None])
        degradation = WEAR[0] + (WEAR[1] - WEAR[0]) * wear
        return crater_table(
            0, 0.0, 0.0, size, degradation=degradation, axis_ratio=0.85 + 0.15 * oval, azimuth=360 * turn
        )


def _cropped(ratio: np.ndarray, mask: np.ndarray) -> Kept:
    """As much around the middle as it changes, in half precision."""
    half = ratio.shape[0] // 2
    rows, cols = np.nonzero((np.abs(ratio - 1) > TOUCHED / 5) | mask)
    reach = int(max(np.abs(rows - half).max(initial=1), np.abs(cols - half).max(initial=1)))
    part = np.s_[half - reach : half + reach + 1, half - reach : half + reach + 1]
    return Kept(torch.from_numpy(ratio[part]).half(), torch.from_numpy(mask[part].copy()))


def _turned(part: Tensor, way: int) -> Tensor:
    """`way` % 4 quarter turns, anticlockwise; from 4 on mirrored first. So the sun is where `Stock._suns` says."""
    return torch.rot90(part.flip(-1) if way >= 4 else part, way % 4, (-2, -1))


def _overlap(
    one: _Choice, size: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where in the image the object lies, and which part of the object that is."""
    here, there = [], []
    for middle, across, side in zip((one.row, one.col), size, shape):
        first = math.floor(middle) - across // 2
        start, stop = max(0, first), min(side, first + across)
        here.append(slice(start, stop))
        there.append(slice(start - first, stop - first))
    return (here[0], here[1]), (there[0], there[1])
