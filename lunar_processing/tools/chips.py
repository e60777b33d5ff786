"""Chips: small pictures of the places that were found, to look through without a map. Never data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lunar_processing.errors import OutputError
from lunar_processing.grid import Window
from lunar_processing.tools.sheet import write_png

if TYPE_CHECKING:
    from lunar_processing.raster.image import Image
    from lunar_processing.tools.job import Job

SIDE = 256  # px of a chip, as far as whole pixels go
AROUND = 2.0  # windows across
STRETCH = (0.5, 99.5)  # percentiles of a chip that become black and white


def check_folder(folder: str | None, overwrite: bool) -> None:
    """Refuse a folder that cannot take chips, before the work."""
    if folder is None:
        return
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{folder} is a file, not a folder for chips.", "name a folder.")
    if path.is_dir() and not overwrite and any(path.glob("*.png")):
        raise OutputError(f"{folder} holds pictures already.", "name another folder, or use --overwrite.")


def write_chips(job: Job, folder: str | None, peaks: dict[str, np.ndarray]) -> list[str]:
    """A picture of each point, `0001.png` for rank 1, its window in the middle half; their paths, empty if unwanted."""
    if folder is None:
        return [""] * len(peaks["rank"])
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made ({error.strerror}).", "write somewhere else.") from error
    paths = []
    for rank, col, row, side in zip(*(peaks[name] for name in ("rank", "sample", "line", "window_px"))):
        path = place / f"{rank:04d}.png"
        write_png(path, chip(job.image, float(col), float(row), int(side)), overwrite=True)
        paths.append(path.resolve().as_posix())
    return paths


def chip(image: Image, col: float, row: float, side: int) -> np.ndarray:
    """The window of `side` px around a place and as much around it, grey (H, W), uint8.

    A corner mark stands at each corner of the window; what is not valid is black.
    """
    width = round(AROUND * side)
    left, top = round(col - width / 2), round(row - width / 2)
    patch = image.read(Window(left, top, width, width))
    low, high = np.percentile(patch.pixels[patch.valid], STRETCH) if patch.valid.any() else (0.0, 1.0)
    grey = np.clip((patch.pixels - low) / max(high - low, 1e-9), 0, 1) * 255
    zoom = max(1, SIDE // width)
    picture = np.kron(np.where(patch.valid, grey, 0).astype(np.uint8), np.ones((zoom, zoom), np.uint8))
    near, far, long = (zoom * (width - side) // 2, zoom * (width + side) // 2, max(4, zoom * side // 8))
    for at in (near, far):
        run = slice(at, at + long) if at == near else slice(at - long, at)
        for edge in (near, far):
            picture[run, min(edge, len(picture) - 1)] = 255
            picture[min(edge, len(picture) - 1), run] = 255
    return picture
