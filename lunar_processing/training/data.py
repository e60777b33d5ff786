"""What is learnt from: pictures with their truth, split by product, and batches that depend on seed and step alone.

A *product* is one observation. Two crops of it show the same ground under the same sun, so they are never split
between training and validation. Batch k of a sampler is a function of (seed, k): no sampler has a state, so a
training that was stopped goes on with the very batches it would have seen.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lunar_processing.errors import DataError

Batch = dict[str, torch.Tensor]
Sampler = Callable[[int], Batch]

UNKNOWN = 255  # in masks: nobody has said what this pixel is
MIDDLE = 0.5  # what a network sees where nothing was seen: the middle of its range, as in the pipeline

# Products of the real images that are used in development. Who measures anything uses the same split. Images of
# consecutive orbits (M161142858 and M161149639, M180000082 and M180007222) show one place and stay together.
SPLITS: dict[str, dict[str, tuple[str, ...]]] = {
    "nac_cdr": {
        "train": (
            "M115143943",
            "M1183658592",
            "M1231933714",
            "M1266003170",
            "M134022629",
            "M161142858",
            "M161149639",
        ),
        "validation": ("M1155395732", "M1229577647"),
        "test": ("M1275410097", "M180000082", "M180007222"),
    },
}

# Names of observations inside file names. LROC: the left and the right camera of one number are one observation.
PRODUCT_NAMES = (
    r"(?<![A-Za-z0-9])(M\d{8,})(?:[LR][EC]?)?(?![A-Za-z0-9])",  # LROC NAC, single frames and mosaics
    r"(?<![A-Za-z0-9])((?:TC|MI)[A-Z0-9]{3,}_\d+_\d+N\d+E\d+)",  # Kaguya
)


@dataclass(frozen=True)
class Picture:
    """An image to learn from.

    `image` (H, W) float32, 0…1 in the network's range, MIDDLE where invalid; `valid` (H, W) bool; `mask` (H, W) uint8
    classes, UNKNOWN where nobody has said, or None; `sun_azimuth` degrees clockwise from up, `pixel_size` metres,
    `incidence` of the sun in degrees from the vertical, all NaN where unknown.
    """

    name: str
    product: str
    image: np.ndarray
    valid: np.ndarray
    mask: np.ndarray | None = None
    sun_azimuth: float = math.nan
    pixel_size: float = math.nan
    incidence: float = math.nan

    def __post_init__(self) -> None:
        for what, array in (("validity", self.valid), ("mask", self.mask)):
            if array is not None and array.shape != self.image.shape:
                raise DataError(
                    f"The {what} of {self.name} has {array.shape[1]} × {array.shape[0]} pixels, the image has "
                    f"{self.image.shape[1]} × {self.image.shape[0]}.",
                    "make them the same size, for example gdalwarp -r near onto the image's grid.",
                )

    def cut(self, rows: slice, cols: slice) -> Picture:
        """A part of the picture."""
        mask = None if self.mask is None else self.mask[rows, cols]
        return replace(self, image=self.image[rows, cols], valid=self.valid[rows, cols], mask=mask)


def picture(
    name: str,
    pixels: np.ndarray,
    valid: np.ndarray | None = None,
    limits: tuple[float, float] | None = None,
    mask: np.ndarray | None = None,
    product: str | None = None,
    sun_azimuth: float | None = None,
    pixel_size: float | None = None,
) -> Picture:
    """A picture of raw pixels (H, W); `limits` become 0 and 1, by default the percentiles 0.5 and 99.5."""
    valid = np.ones(pixels.shape, bool) if valid is None else valid
    if not valid.any():
        raise DataError(f"{name} has no valid pixel.", "leave it out.")
    low, high = limits or (float(v) for v in np.percentile(pixels[valid], (0.5, 99.5)))
    scaled = (pixels.astype(np.float32) - low) / ((high - low) or 1.0)
    return Picture(
        name,
        product or product_id(name),
        np.where(valid, scaled, MIDDLE).astype(np.float32),
        valid,
        None if mask is None else mask.astype(np.uint8),
        math.nan if sun_azimuth is None else sun_azimuth,
        math.nan if pixel_size is None else pixel_size,
    )


# ---- products ----------------------------------------------------------------------------------------------------


def product_id(name: str) -> str:
    """The observation that a file name speaks of: `M115143943` of `M115143943RE_cal_echo_2_2.png`, else its stem."""
    stem = Path(name).stem
    for pattern in PRODUCT_NAMES:
        found = re.search(pattern, stem, re.IGNORECASE)
        if found:
            return found[1].upper()
    return stem


def split(pictures: Sequence[Picture], parts: Mapping[str, Iterable[str]]) -> dict[str, list[Picture]]:
    """Pictures by the products of each part; a product in two parts, or in none, is an error."""
    wanted = {part: set(products) for part, products in parts.items()}
    check_disjoint(wanted)
    strangers = {p.product for p in pictures} - set().union(*wanted.values())
    if strangers:
        raise DataError(
            f"The split does not say where these products belong: {', '.join(sorted(strangers))}.",
            "name them in one of its parts.",
        )
    return {part: [p for p in pictures if p.product in products] for part, products in wanted.items()}


def check_disjoint(parts: Mapping[str, Iterable[str]]) -> None:
    """Refuse a split whose parts share a product: what it measures would be flattery."""
    seen: dict[str, str] = {}
    for part, products in parts.items():
        for product in products:
            if seen.setdefault(product, part) != part:
                raise DataError(f"The product {product} is in both {seen[product]} and {part}.", "keep it in one.")


def split_by_product(pictures: Sequence[Picture], share: float = 0.2, seed: int = 0) -> dict[str, list[Picture]]:
    """`train` and `validation`: whole products, chosen by seed, until validation has `share` of the pixels."""
    products = sorted({p.product for p in pictures})
    if len(products) < 2:
        raise DataError(
            f"There is one product to learn from ({', '.join(products) or 'none'}): nothing is left to validate on.",
            "add images of another product, name images to validate on with --validation, or keep a part of each "
            "image aside with --split area, which shows results better than they are.",
        )
    order = [products[i] for i in torch.randperm(len(products), generator=dice(seed, 0)).tolist()]
    size = {product: sum(p.image.size for p in pictures if p.product == product) for product in products}
    kept: list[str] = []
    for product in order[:-1]:
        if kept and sum(size[p] for p in (*kept, product)) > share * sum(size.values()):
            break
        kept.append(product)
    return split(pictures, {"train": set(products) - set(kept), "validation": kept})


def split_by_area(pictures: Sequence[Picture], share: float = 0.2, gap: int = 32) -> dict[str, list[Picture]]:
    """`train` and `validation` from the left and the right of each picture, with `gap` pixels between them."""
    parts: dict[str, list[Picture]] = {"train": [], "validation": []}
    for whole in pictures:
        width = whole.image.shape[1]
        edge = width - max(1, round(share * width))
        if edge - gap < 1:
            raise DataError(f"{whole.name} is too narrow ({width} px) to be split.", "give larger images.")
        parts["train"].append(whole.cut(slice(None), slice(0, edge - gap)))
        parts["validation"].append(whole.cut(slice(None), slice(edge, None)))
    return parts


# ---- samplers ----------------------------------------------------------------------------------------------------


def mix(seed: int, step: int) -> int:
    """One 63-bit seed for each (seed, step); neighbours share nothing (SplitMix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) >> 1


def dice(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step, on the CPU, so that every device draws the same."""
    return torch.Generator().manual_seed(mix(seed, step))


def crops(pictures: Sequence[Picture], size: int, batch: int, seed: int = 0, on_objects: float = 0.0) -> Sampler:
    """Batches of random `size` × `size` windows; `on_objects` of them hold a labelled object.

    Pictures are chosen by their number of pixels. Smaller ones are framed with invalid pixels.
    """
    if not pictures:
        raise DataError("There is no picture to learn from.", "name a folder with images.")
    framed = [_framed(p, size) for p in pictures]
    weights = torch.tensor([float(p.valid.sum()) for p in framed], dtype=torch.float64)
    objects = [_object_pixels(p) for p in framed]
    rich = torch.tensor([float(len(found)) for found in objects], dtype=torch.float64)

    def draw(step: int) -> Batch:
        generator = dice(seed, step)
        chosen = []
        for _ in range(batch):
            aimed = bool(rich.sum() > 0) and float(torch.rand((), generator=generator)) < on_objects
            number = int(torch.multinomial(rich if aimed else weights, 1, generator=generator))
            chosen.append(_window(framed[number], size, objects[number] if aimed else None, generator))
        return stack(chosen)

    return draw


def simulated(
    recipe: str, size: int, batch: int, seed: int = 0, device: str | torch.device = "cpu", scene: int = 0
) -> Sampler:
    """Batches of simulated scenes of `simulate.scenes`; the mask is 1 on rocks.

    With `scene`, whole scenes of that side are drawn and stretched, and cut into windows of `size`.
    """
    from lunar_processing.simulate import scenes

    def draw(step: int) -> Batch:
        across = max(1, scene // size)
        made = scenes.draw(recipe, -(-batch // across**2), mix(seed, step), device, across * size)
        low, high = percentiles(made.image)
        whole = {
            "image": ((made.image - low) / (high - low).clamp_min(1e-6))[:, None],
            "valid": torch.ones_like(made.image, dtype=torch.bool)[:, None],
            "mask": (made.rock_id > 0).long(),
            "sun_azimuth": made.sun_azimuth.float(),
            "pixel_size": made.pixel_size.float(),
            "incidence": made.incidence.float(),
        }
        return {name: _windows_of(values, size, across)[:batch] for name, values in whole.items()}

    return draw


def _windows_of(values: torch.Tensor, size: int, across: int) -> torch.Tensor:
    """(B, …, H, W) → (B · across², …, size, size), window by window; facts of the whole are repeated."""
    if values.dim() < 3:
        return values.repeat_interleave(across**2)
    return values.unfold(-2, size, size).unfold(-2, size, size).movedim((-4, -3), (1, 2)).flatten(0, 2)


def percentiles(images: torch.Tensor, low: float = 0.5, high: float = 99.5) -> torch.Tensor:
    """Two percentiles of each image (B, H, W): (2, B, 1, 1)."""
    wanted = torch.tensor([low / 100, high / 100], device=images.device)
    return torch.quantile(images.float().flatten(1), wanted, dim=1)[:, :, None, None]


def windows(pictures: Sequence[Picture], size: int, most: int = 16, batch: int = 8) -> dict[str, list[Batch]]:
    """Product → windows to validate on, side by side, in batches; at most so many of a product, evenly chosen."""
    found: dict[str, list[Picture]] = {}
    for whole in pictures:
        framed = _framed(whole, size)
        height, width = framed.image.shape
        for row in range(0, height - size + 1, size):
            for col in range(0, width - size + 1, size):
                part = framed.cut(slice(row, row + size), slice(col, col + size))
                if part.valid.mean() > 0.5:
                    found.setdefault(whole.product, []).append(part)
    chosen = {name: some[:: -(-len(some) // most)] for name, some in found.items()}
    return {name: [stack(some[i : i + batch]) for i in range(0, len(some), batch)] for name, some in chosen.items()}


def mixed(first: Sampler, second: Sampler, share: float, batch: int) -> Sampler:
    """Batches with `share` of their samples from the first sampler, the rest from the second.

    Where `share` × `batch` is no whole number, the count alternates so that the share is exact over many batches.
    Each sampler must give at least its share of the samples, rounded up.
    """
    if not 0 <= share <= 1:
        raise DataError(f"A share of {share} is not possible.", "give 0 to 1.")

    def draw(step: int) -> Batch:
        count = math.floor((step + 1) * share * batch + 1e-9) - math.floor(step * share * batch + 1e-9)
        parts = ([first(step)] if count else []) + ([second(step)] if count < batch else [])
        if len(parts) == 1:
            return {name: values[:batch] for name, values in parts[0].items()}
        one, other = parts
        return {
            name: torch.cat([one[name][:count].to(values.device), values[: batch - count]])
            for name, values in other.items()
            if name in one
        }

    return draw


def stack(pictures: Sequence[Picture]) -> Batch:
    """Pictures of one size as a batch: image (B, 1, H, W), valid (B, 1, H, W), mask (B, H, W) where all have one."""
    batch = {
        "image": torch.from_numpy(np.stack([p.image for p in pictures]))[:, None],
        "valid": torch.from_numpy(np.stack([p.valid for p in pictures]))[:, None],
        "sun_azimuth": torch.tensor([p.sun_azimuth for p in pictures], dtype=torch.float32),
        "pixel_size": torch.tensor([p.pixel_size for p in pictures], dtype=torch.float32),
        "incidence": torch.tensor([p.incidence for p in pictures], dtype=torch.float32),
    }
    masks = [p.mask for p in pictures if p.mask is not None]
    if len(masks) == len(pictures):
        batch["mask"] = torch.from_numpy(np.stack(masks)).long()
    return batch


def _framed(whole: Picture, size: int) -> Picture:
    rows, cols = (max(0, size - side) for side in whole.image.shape)
    if not rows and not cols:
        return whole
    frame = ((0, rows), (0, cols))
    return replace(
        whole,
        image=np.pad(whole.image, frame, constant_values=MIDDLE),
        valid=np.pad(whole.valid, frame),
        mask=None if whole.mask is None else np.pad(whole.mask, frame, constant_values=UNKNOWN),
    )


def _object_pixels(whole: Picture) -> np.ndarray:
    """Flat indices of labelled objects, class 1 and above."""
    if whole.mask is None:
        return np.empty(0, int)
    return np.flatnonzero((whole.mask > 0) & (whole.mask != UNKNOWN))


def _window(whole: Picture, size: int, objects: np.ndarray | None, generator: torch.Generator) -> Picture:
    height, width = whole.image.shape
    u, v = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    row, col = int(u * (height - size + 1)), int(v * (width - size + 1))
    if objects is not None:
        pixel = int(objects[int(torch.randint(len(objects), (), generator=generator))])
        # The object lies anywhere in the window, never always in its middle, which a network would learn.
        row = min(max(pixel // width - int(u * size), 0), height - size)
        col = min(max(pixel % width - int(v * size), 0), width - size)
    return whole.cut(slice(row, row + size), slice(col, col + size))


# ---- a bank of pictures in one file ------------------------------------------------------------------------------


def save_pictures(path: Path, pictures: Sequence[Picture]) -> None:
    """Pictures as one safetensors file, for machines that cannot read images."""
    from safetensors.numpy import save_file

    arrays, facts = {}, []
    for number, p in enumerate(pictures):
        arrays[f"{number}/image"], arrays[f"{number}/valid"] = p.image, p.valid.astype(np.uint8)
        if p.mask is not None:
            arrays[f"{number}/mask"] = p.mask
        known = {"sun_azimuth": p.sun_azimuth, "pixel_size": p.pixel_size, "incidence": p.incidence}
        facts.append({"name": p.name, "product": p.product, **{k: v for k, v in known.items() if v == v}})
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path, {"pictures": json.dumps(facts)})


def load_pictures(path: Path) -> list[Picture]:
    """Pictures of a file that `save_pictures` wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            facts = json.loads((file.metadata() or {})["pictures"])
            names = set(file.keys())
            return [
                Picture(
                    image=file.get_tensor(f"{number}/image"),
                    valid=file.get_tensor(f"{number}/valid").astype(bool),
                    mask=file.get_tensor(f"{number}/mask") if f"{number}/mask" in names else None,
                    **fact,
                )
                for number, fact in enumerate(facts)
            ]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} holds no pictures to learn from ({error}).", "write it again.") from error
