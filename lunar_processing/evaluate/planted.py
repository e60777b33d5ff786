"""Images of the Moon with a few strange things at known places: what scorers of anomalies are measured on.

A *strip* is an image with its facts and its truth. `plant_strips` makes strips of real images: each image again and
again, mirrored and turned, each time with one thing of the simulator in it, under the image's own sun. `drawn_strips`
makes strips that are simulated from the ground up, with a few things in each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy import fft

from lunar_processing.errors import DataError, ParameterError
from lunar_processing.simulate import light, scenes, sensor
from lunar_processing.simulate.objects import FORM, Things, place, thing_table
from lunar_processing.simulate.plant import TOUCHED, plant
from lunar_processing.simulate.scenes import RECIPES
from lunar_processing.simulate.terrain import Craters, Ground, crater_table

WINDOW = 64  # px, of the patches that are judged; things lie so far from the edge and from one another

# What is planted: sizes in m, drawn by their logarithm. None is larger than a third of a real image.
KINDS: dict[str, tuple[float, float]] = {
    "descent stage": (4.0, 10.0),
    "probe": (2.5, 3.5),
    "rover track": (20.0, 90.0),
    "rockfall": (40.0, 100.0),
    "fresh crater": (8.0, 40.0),
    "pit": (12.0, 60.0),
    "irregular mare patch": (40.0, 100.0),
    "blocky outcrop": (15.0, 60.0),
}
SHALLOW = 5  # which of the random numbers of an irregular mare patch says how deep it is
DECOY_M, DECOY_WEAR = (5.0, 25.0), (0.2, 0.6)  # diameter and degradation of decoys
DECOYS = 2  # in each strip
SHADE = 0.3  # of the median above black: darker pixels are shadow, where nothing can be seen
TRIES = 40  # places looked at for each thing; the first that is sunlit is taken


@dataclass(frozen=True)
class Facts:
    """What is known of an image: whose it is, metres per pixel, and the sun in degrees (azimuth clockwise from up)."""

    name: str
    product: str
    pixel_size: float
    sun_azimuth: float
    incidence: float
    simulated: bool = False


@dataclass(frozen=True)
class Target:
    """A thing in a strip: its kind (empty: a decoy), middle in px, size in m."""

    kind: str
    col: float
    row: float
    size_m: float


@dataclass(frozen=True)
class Strip:
    """An image (H, W), where it is valid, and what is in it.

    mask: uint8, 0 or 1 + number of the target whose pixel it is; touched: the same, for all that it changed.
    terrain: what else is known of pixels, by name: bool (H, W), where a false alarm can be explained.
    """

    image: np.ndarray
    valid: np.ndarray
    facts: Facts
    targets: tuple[Target, ...] = ()
    mask: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    touched: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    terrain: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("mask", "touched"):
            if not getattr(self, name).size:
                object.__setattr__(self, name, np.zeros(self.image.shape, np.uint8))


# ---- real images with things in them -----------------------------------------------------------------------------


def plant_strips(grounds: Sequence[Strip], count: int, seed: int = 0) -> Iterator[Strip]:
    """`count` strips, each one of the real images with one thing, or none, and some decoys.

    Kinds and images take turns, so that each kind meets each image equally often: after 9 × the number of images all
    have met. Strip k is a function of (seed, k).
    """
    if not grounds:
        raise DataError("There is no image to plant anything in.", "give one or more.")
    for number in range(count):
        which, kind = meeting(number, len(grounds))
        random = np.random.default_rng([seed, number])
        ground = turned(grounds[which], int(random.integers(8)))
        yield plant_strip(ground, (kind,) if kind else (), random)


def meeting(number: int, images: int) -> tuple[int, str]:
    """Which image a strip is made of, and of what kind the thing in it is; in every ninth there is none."""
    turn, which = divmod(number, images)
    return which, [*KINDS, ""][(turn + which) % (len(KINDS) + 1)]


def plant_strip(ground: Strip, kinds: Sequence[str], random: np.random.Generator, decoys: int = DECOYS) -> Strip:
    """A real image with a thing of each kind and some decoys, none of which touch."""
    strip = ground
    for kind in [*kinds, *[""] * decoys]:
        strip = _with(strip, kind, random)
    return strip


def turned(strip: Strip, way: int) -> Strip:
    """A strip without things in one of its eight attitudes, and its sun with it.

    `way` % 4 is the number of quarter turns, anticlockwise; from 4 on the image is mirrored first.
    """
    if strip.targets:
        raise ParameterError("Only a strip without things can be turned.", "turn it first.")

    def move(array: np.ndarray) -> np.ndarray:
        array = array[:, ::-1] if way >= 4 else array
        return np.ascontiguousarray(np.rot90(array, way % 4))

    azimuth = -strip.facts.sun_azimuth if way >= 4 else strip.facts.sun_azimuth
    return Strip(
        move(strip.image),
        move(strip.valid),
        replace(strip.facts, sun_azimuth=(azimuth - 90 * (way % 4)) % 360),
        terrain={name: move(values) for name, values in strip.terrain.items()},
    )


def _with(strip: Strip, kind: str, random: np.random.Generator) -> Strip:
    facts, number = strip.facts, len(strip.targets) + 1
    low, high = KINDS[kind] if kind else DECOY_M
    size = float(low * (high / low) ** random.random())
    thing = _thing(kind, size, random)
    radius = max(size / facts.pixel_size / 2, WINDOW / 4)
    col, row = _free_place(strip, radius, random)
    thing = replace(thing, col=torch.tensor([col]), row=torch.tensor([row]))
    seed = int(random.integers(2**31))
    made = plant(strip.image, thing, facts.pixel_size, facts.sun_azimuth, facts.incidence, seed)
    return replace(
        strip,
        image=made.image,
        targets=(*strip.targets, Target(kind, col, row, size)),
        mask=np.where(made.mask, np.uint8(number), strip.mask),
        touched=np.where(made.touched, np.uint8(number), strip.touched),
    )


def _thing(kind: str, size: float, random: np.random.Generator) -> Things | Craters:
    form = random.random(FORM).astype(np.float32)
    azimuth = float(random.uniform(0, 360))
    if kind == "irregular mare patch":
        form[SHALLOW] = (
            0.0  # patches as small as these are not 5 m deep: under a low sun they would be nothing but shadow
        )
    if kind:
        return thing_table(kind, 0, 0.0, 0.0, size, azimuth, torch.from_numpy(form)[None])
    wear = DECOY_WEAR[0] + (DECOY_WEAR[1] - DECOY_WEAR[0]) * float(form[0])
    return crater_table(0, 0.0, 0.0, size, degradation=wear, axis_ratio=0.85 + 0.15 * float(form[1]), azimuth=azimuth)


def _free_place(strip: Strip, radius: float, random: np.random.Generator) -> tuple[float, float]:
    """A place as far from the edge as a patch needs, in the sun, and clear of what was planted before."""
    height, width = strip.image.shape
    black = float(np.quantile(strip.image, 0.005))
    dark = strip.image < black + SHADE * (float(np.median(strip.image)) - black)
    edge = min(max(radius * 0.7, WINDOW), 0.4 * min(height, width))
    best: tuple[float, float, float] | None = None
    for _ in range(TRIES):
        col, row = float(random.uniform(edge, width - edge)), float(random.uniform(edge, height - edge))
        reach = math.ceil(radius)
        near = np.s_[max(0, int(row) - reach) : int(row) + reach + 1, max(0, int(col) - reach) : int(col) + reach + 1]
        apart = WINDOW + reach
        far = np.s_[max(0, int(row) - apart) : int(row) + apart, max(0, int(col) - apart) : int(col) + apart]
        bad = dark[near].mean() + 2 * (~strip.valid[near]).mean() + 3 * (strip.touched[far] > 0).mean()
        if best is None or bad < best[0]:
            best = (float(bad), col, row)
        if bad < 0.1:
            break
    assert best is not None
    return best[1], best[2]


# ---- strips that are simulated from the ground up ----------------------------------------------------------------

RUBBLE = replace(RECIPES["nac"], rock_share=(5e-4, 6e-3), blocks=0.03)  # every second strip: not to be fallen for
BLOCKS = 8, 24.0, 192  # px of a block of the compression, its coarseness in grey levels, px of the region that has it
INCIDENCE, PIXEL_M = (55.0, 86.0), (0.5, 1.0)  # degrees, m: about those of the real images
BURNT = 0.996  # quantile of brightness that becomes 255, as in real products
EMPTY = 0.02  # share of a strip's light: a smaller change of it is not to be seen


def drawn_strips(count: int, seed: int = 0, size: int = 1024, each: int = 4) -> Iterator[Strip]:
    """`count` simulated strips of `size` px with `each` things, kinds in turn. Strip k is a function of (seed, k)."""
    kinds = list(KINDS)
    for number in range(count):
        random = np.random.default_rng([seed, 1, number])
        wanted = [kinds[(number * each + i) % len(kinds)] for i in range(each)]
        yield draw_strip(wanted, random, size, rubble=number % 2 == 1, name=f"simulated {number}")


def draw_strip(
    kinds: Sequence[str], random: np.random.Generator, size: int, rubble: bool = False, name: str = "simulated"
) -> Strip:
    """One simulated strip with a thing of each kind, in 8 bits as real products come."""
    recipe = replace(RUBBLE if rubble else RECIPES["nac"], incidence_deg=INCIDENCE, pixel_size_m=PIXEL_M)
    made = scenes.draw(recipe, 1, int(random.integers(2**31)), size=size)
    ground, azimuth, incidence = made.ground, float(made.sun_azimuth[0]), float(made.incidence[0])
    pixel = float(made.pixel_size[0])
    strip = Strip(
        made.reflectance[0].numpy(),
        np.ones((size, size), bool),
        Facts(name, name, pixel, azimuth, incidence, simulated=True),
    )
    for kind in kinds:
        strip, ground = _with_built(strip, ground, kind, random)
    image = _photograph(strip.image, made, int(random.integers(2**31)))
    image, blocks = _compressed(image, random)
    return replace(strip, image=image, terrain={"compression": blocks, **_terrain(made)})


def _with_built(strip: Strip, ground: Ground, kind: str, random: np.random.Generator) -> tuple[Strip, Ground]:
    """The strip's light, in I/F, with one thing more that stands on its very ground."""
    facts, number = strip.facts, len(strip.targets) + 1
    low, high = KINDS[kind]
    size = float(low * (high / low) ** random.random())
    col, row = _free_place(strip, max(size / facts.pixel_size / 2, WINDOW / 4), random)
    thing = replace(_thing(kind, size, random), col=torch.tensor([col]), row=torch.tensor([row]))
    with torch.inference_mode():
        built, kinds = place(ground, thing)  # type: ignore[arg-type]
        # The light that slopes around send is the same with and without, and in the strip already.
        with_it, without = (light.sunlit(g, facts.sun_azimuth, facts.incidence)[0][0].numpy() for g in (built, ground))
    change = with_it - without
    mask = kinds[0].numpy() > 0
    touched = (np.abs(change) > np.maximum(TOUCHED * without, EMPTY * float(np.median(strip.image)))) | mask
    return replace(
        strip,
        image=np.maximum(strip.image + change, 0),
        targets=(*strip.targets, Target(kind, col, row, size)),
        mask=np.where(mask, np.uint8(number), strip.mask),
        touched=np.where(touched, np.uint8(number), strip.touched),
    ), built


def _photograph(reflectance: np.ndarray, made: scenes.Scenes, seed: int) -> np.ndarray:
    """Light as a product of 8 bits."""
    signal = torch.from_numpy(reflectance)[None] * made.exposure[:, None, None]
    numbers = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        image = sensor.calibrate(sensor.expose(signal, made.camera, numbers))[0].clamp(min=0).numpy()
    return np.clip(np.rint(image * (255 / np.quantile(image, BURNT))), 1, 255).astype(np.uint8)


def _compressed(image: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One region as a lossy compression leaves it, in blocks; and where it is."""
    block, coarse, side = BLOCKS
    side = min(side, min(image.shape) // block * block)
    row, col = (int(random.integers(0, n - side + 1)) for n in image.shape)
    region = np.s_[row : row + side, col : col + side]
    tiles = image[region].astype(np.float32).reshape(side // block, block, side // block, block).swapaxes(1, 2)
    waves = fft.dctn(tiles, axes=(2, 3), norm="ortho")
    steps = coarse * (1 + np.add.outer(np.arange(block), np.arange(block)) / 4)
    tiles = fft.idctn(np.rint(waves / steps) * steps, axes=(2, 3), norm="ortho")
    result, where = image.copy(), np.zeros(image.shape, bool)
    result[region] = np.clip(np.rint(tiles.swapaxes(1, 2).reshape(side, side)), 1, 255)
    where[region] = True
    return result, where


def _terrain(made: scenes.Scenes) -> dict[str, np.ndarray]:
    """Where ordinary ground looks strange: rims of fresh craters, rubble, edges of shadows, bright spots."""
    lit = made.lit[0].numpy()
    fresh = made.craters.degradation < 0.1
    shape = lit.shape
    rims = np.zeros(shape, bool)
    pixel = float(made.pixel_size[0])
    for col, row, metres in zip(*(column[fresh].tolist() for column in _columns(made.craters))):
        radius = metres / pixel / 2
        if radius >= 3:
            _ring(rims, col, row, radius)
    bright = made.reflectance[0].numpy()
    return {
        "fresh rim": rims,
        "rubble": made.rock_id[0].numpy() > 0,
        "shadow edge": (lit > 0.05) & (lit < 0.95),
        "bright spot": bright > np.quantile(bright, 0.999),
    }


def _columns(craters: Craters) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return craters.col, craters.row, craters.diameter_m


def _ring(image: np.ndarray, col: float, row: float, radius: float) -> None:
    reach = math.ceil(1.3 * radius)
    top, left = max(0, int(row) - reach), max(0, int(col) - reach)
    part = image[top : int(row) + reach + 1, left : int(col) + reach + 1]
    if part.size:
        rows, cols = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
        away = np.hypot(rows + 0.5 - row, cols + 0.5 - col) / radius
        part |= (away > 0.8) & (away < 1.25)


# ---- the sun of a real image -------------------------------------------------------------------------------------


def sun_from_craters(image: np.ndarray, boxes: np.ndarray) -> float:
    """Where the sun stands, degrees clockwise from up, from craters whose boxes (n, 4: x, y, width, height) are known.

    The wall of a crater that looks at the sun is the one that lies away from it. NaN with fewer than 20 craters.
    """
    dipoles = [d for d in (_dipole(image, box) for box in boxes) if d is not None]
    if len(dipoles) < 20:
        return math.nan
    right, down = np.mean(dipoles, axis=0)
    return float(np.degrees(np.arctan2(-right, down)) % 360)


def _dipole(image: np.ndarray, box: np.ndarray) -> tuple[float, float] | None:
    """To which side, right and down, a crater of 10 to 60 px is brighter; None where it reaches over the edge."""
    x, y, width, height = (float(value) for value in box)
    left, top, right, bottom = int(x), int(y), int(x + width), int(y + height)
    if not 10 <= (width + height) / 2 <= 60 or min(left, top) < 0:
        return None
    if right > image.shape[1] or bottom > image.shape[0]:
        return None
    chip = image[top:bottom, left:right].astype(np.float32)
    down, across = np.mgrid[-1 : 1 : chip.shape[0] * 1j, -1 : 1 : chip.shape[1] * 1j]
    inside = down**2 + across**2 < 1
    values = chip[inside] - chip[inside].mean()
    spread = float(values.std())
    if spread == 0:
        return None
    return float((values * across[inside]).mean() / spread), float((values * down[inside]).mean() / spread)
