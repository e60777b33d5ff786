"""Views from the ground with their classes: folders of images and masks, and weak labels of rover frames.

parts = published_split(lander_view(Path("lander_view/render"), "render"))
weak = rover_frames(Path("rover_change4/train"))
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from rasterio.features import rasterize
from scipy import ndimage
from sklearn.model_selection import train_test_split

from lunar_processing.errors import DataError, ImageError
from lunar_processing.raster.image import Image, open_image
from lunar_processing.tools.labels import RASTERS
from lunar_processing.training.data import UNKNOWN, Picture, picture, save_pictures
from lunar_processing.training.recipes.surface import CLASSES, CLOSE_UP, REAL, WEAKLY

GROUND, SMALL, LARGE = 0, 1, 2
GREEN = 2  # band
LARGE_PX = 300  # area in px from which a rock of a rover frame is large; the renders' classes part about there
KEPT_OF = 3  # one of so many renders of the split's validation part is kept for validation
COCO = "_annotations.coco.json"
# What is no rock, whatever else it is. Regions full of rocks are not rock in every pixel: they stay UNKNOWN.
NO_ROCK = ("rover path", "crater", "artifact")
ROCK = ("rock", "boulder")


def lander_view(folder: Path, product: str) -> list[Picture]:
    """Pictures of `images/` with their classes in `masks/`, by name; all of one `product`."""
    images, masks = folder / "images", folder / "masks"
    found = sorted(p for p in images.glob("*") if p.suffix.lower() in RASTERS)
    if not found:
        raise DataError(f"There is no image in {images}.", "give a folder that holds images/ and masks/.")
    return [_read(path, _classes(path, masks / f"{path.stem}.png"), product) for path in found]


def banks(renders: Path, real: Path, rover: Path, out: Path) -> dict[str, Path]:
    """What `rocks-surface` and the published recipes learn from and are validated on, as two files to train from.

    The first holds the renders of the published split's training part and two of three of its validation part, which
    is more than there is to choose, their close-ups and the rover's frames; the second the other renders of the
    validation part and the real images.
    """
    parts = published_split(lander_view(renders, "render"))
    kept = [replace(p, product="kept renders") for p in parts["validation"][::KEPT_OF]]
    learnt = [*parts["train"], *(p for n, p in enumerate(parts["validation"]) if n % KEPT_OF)]
    learnt = [*learnt, *close_ups(learnt), *rover_frames(rover)]
    kept += lander_view(real, REAL)
    out.mkdir(parents=True, exist_ok=True)
    paths = {"images": out / "surface_train.safetensors", "validation": out / "surface_validation.safetensors"}
    save_pictures(paths["images"], learnt)
    save_pictures(paths["validation"], kept)
    return paths


def published_split(pictures: Sequence[Picture], seed: int = 42) -> dict[str, list[Picture]]:
    """`train`, `validation` and `test`: 49, 21 and 30 % of the pictures in the order of their names."""
    if len(pictures) < 4:
        raise DataError(f"{len(pictures)} pictures cannot be split in three.", "give four or more.")
    rest, test = train_test_split(list(pictures), test_size=0.3, random_state=seed)
    train, validation = train_test_split(rest, test_size=0.3, random_state=seed)
    return {"train": train, "validation": validation, "test": test}


def close_ups(pictures: Sequence[Picture], factors: Sequence[float] = (2.0, 3.0)) -> list[Picture]:
    """Parts around the largest rock of each picture, enlarged. A rock of them is large if it looks large there, as in
    real images, whose scale nobody knows either.
    """
    there = [whole for whole in pictures if whole.mask is not None and bool((whole.mask == LARGE).any())]
    return [_close_up(whole, factor) for whole in there for factor in factors]


def _close_up(whole: Picture, factor: float) -> Picture:
    assert whole.mask is not None
    parts, _ = ndimage.label(whole.mask == LARGE)
    row, col = ndimage.center_of_mass(parts == np.bincount(parts.ravel())[1:].argmax() + 1)
    height, width = (round(side / factor) for side in whole.mask.shape)
    top, left = (
        int(np.clip(middle - side / 2, 0, all_of - side))
        for middle, side, all_of in zip((row, col), (height, width), whole.mask.shape)
    )
    part = whole.cut(slice(top, top + height), slice(left, left + width))
    image = ndimage.zoom(part.image, factor, order=3, mode="nearest", grid_mode=True)
    mask, valid = (
        ndimage.zoom(values, factor, order=0, mode="nearest", grid_mode=True)
        for values in (part.mask, part.valid.astype(np.uint8))
    )
    return replace(part, product=CLOSE_UP, image=image, valid=valid > 0, mask=_by_size(mask))


def _by_size(mask: np.ndarray) -> np.ndarray:
    """Rocks are large from LARGE_PX on."""
    rocks, _ = ndimage.label((mask == SMALL) | (mask == LARGE))
    sizes = np.where(np.bincount(rocks.ravel()) >= LARGE_PX, LARGE, SMALL)
    return np.where(rocks > 0, sizes[rocks], mask).astype(np.uint8)


def rover_frames(folder: Path) -> list[Picture]:
    """Frames with polygons in COCO's format. Only what stands out was drawn: all else is UNKNOWN.

    Tracks, craters and the rover itself are ground as far as rocks are asked for.
    """
    try:
        known = json.loads((folder / COCO).read_text(encoding="utf-8"))
        names = {c["id"]: c["name"] for c in known["categories"]}
        frames = sorted(known["images"], key=lambda frame: frame["file_name"])
        drawn = [(a["image_id"], names[a["category_id"]], a["segmentation"]) for a in known["annotations"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / COCO} cannot be read ({error}).", "give a folder with labels as COCO.") from error
    pictures = []
    for frame in frames:
        shapes = [(name, polygons) for number, name, polygons in drawn if number == frame["id"]]
        mask = _weak((int(frame["height"]), int(frame["width"])), shapes)
        if (mask != UNKNOWN).any():
            pictures.append(_read(folder / frame["file_name"], mask, WEAKLY))
    return pictures


def _weak(shape: tuple[int, int], shapes: Sequence[tuple[str, Any]]) -> np.ndarray:
    """Ground first, so that a rock in a crater is a rock."""
    mask = np.full(shape, UNKNOWN, np.uint8)
    for name, polygons in sorted(shapes, key=lambda part: part[0] in ROCK):
        if name not in (*NO_ROCK, *ROCK):
            continue
        outlines = [shapely.Polygon(np.reshape(p, (-1, 2))) for p in polygons if isinstance(p, list) and len(p) >= 6]
        if not outlines:
            continue
        inside = rasterize(((outline, 1) for outline in outlines), shape, dtype="uint8") > 0
        mask[inside] = GROUND if name in NO_ROCK else LARGE if inside.sum() >= LARGE_PX else SMALL
    return mask


def grey(path: Path) -> Image:
    """The one band of an image, or the green one of a coloured image: the networks see brightness only."""
    try:
        return open_image(path)
    except ImageError:
        return open_image(path, GREEN)


def _classes(path: Path, mask: Path) -> np.ndarray:
    if not mask.is_file():
        raise DataError(f"{path.name} has no mask {mask}.", "name masks like their images, as .png.")
    with open_image(mask) as image:
        classes = image.stored().pixels
    strange = np.setdiff1d(np.unique(classes), [*range(len(CLASSES)), UNKNOWN])
    if len(strange):
        raise DataError(
            f"{mask} holds the value {strange[0]:g}.",
            f"give {', '.join(f'{n} {name}' for n, name in enumerate(CLASSES))}, and {UNKNOWN} where nobody knows.",
        )
    return classes.astype(np.uint8)


def _read(path: Path, mask: np.ndarray, product: str) -> Picture:
    """The picture, stretched as a tool would. `valid` is what a tool would say; the pixels are there all the same."""
    with grey(path) as image:
        valid = image.read(image.grid.window).valid
        pixels = image.stored().pixels.astype(np.float32)
    low, high = (float(v) for v in np.percentile(pixels[valid], (0.5, 99.5)))
    made = picture(path.name, pixels, valid, (low, high), mask, product)
    return replace(made, image=(pixels - low) / ((high - low) or 1.0))
