"""How well strange things are found: the planted benchmark, its scorers, and its report."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lunar_processing.errors import DataError
from lunar_processing.evaluate.planted import Facts, Strip, plant_strips, sun_from_craters
from lunar_processing.grid import Window
from lunar_processing.raster.image import open_image
from lunar_processing.tools.realism import SUFFIXES, SUN
from lunar_processing.training.data import SPLITS, product_id

PIXEL_M = 0.5  # of the real images, whose labels are lost


def planted(folder: Path, part: str = "validation", count: int = 96, seed: int = 0) -> Iterator[Strip]:
    """Strips of the real images of one part of the split (train, validation, test), each with one strange thing.

    96 strips of the three validation images hold each kind of thing 12 times.
    """
    return plant_strips(real_grounds(folder, part), count, seed)


def real_grounds(folder: Path, part: str = "validation") -> list[Strip]:
    """The images of a folder that belong to one part of the split and whose sun is known, by name.

    The sun's azimuth is measured on the craters that are labelled beside each image, because an image may be mirrored
    or turned; its height is that of the product in `realism.SUN`.
    """
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise DataError(f"There is no image in {folder}.", f"give a folder with {', '.join(SUFFIXES)} files.")
    found = []
    for path in paths:
        product, labels = product_id(path.name), path.with_suffix(".txt")
        known = any(product in split.get(part, ()) for split in SPLITS.values()) and product in SUN
        if known and labels.is_file():
            with open_image(path) as image:
                patch = image.read(Window(0, 0, image.grid.width, image.grid.height))
            azimuth = sun_from_craters(patch.pixels, _boxes(labels))
            if np.isfinite(azimuth):
                facts = Facts(path.name, product, PIXEL_M, azimuth, SUN[product][0])
                found.append(Strip(patch.pixels, patch.valid, facts))
    if not found:
        raise DataError(
            f"No image in {folder} is of the part {part!r} and has labelled craters beside it.",
            "give the whole folder of the images that development uses.",
        )
    return found


def _boxes(path: Path) -> np.ndarray:
    """Labelled craters (n, 4): x, y, width, height in px."""
    rows = [re.split(r"[,\t ]+", line.strip())[1:5] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    try:
        return np.array([[float(value) for value in row] for row in rows if len(row) == 4]).reshape(-1, 4)
    except ValueError as error:
        raise DataError(f"{path} is not a table of crater boxes.", "give ID,X,Y,W,H in each line.") from error
