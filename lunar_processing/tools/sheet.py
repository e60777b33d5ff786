"""Pictures for people: many images on one sheet, as PNG. Never data."""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from lunar_processing.draft import Draft

GAP = 4  # px between the pictures of a sheet
STRETCH = (0.1, 99.7)  # percentiles that become black and white


def contact_sheet(images: Sequence[np.ndarray], most: int = 64, width: int = 512) -> np.ndarray:
    """Up to `most` grey images of one size in rows, each stretched by itself and no wider than `width`, as uint8."""
    shown = [_stretched(image) for image in images[:most]]
    stride = max(1, math.ceil(shown[0].shape[1] / width))
    shown = [image[::stride, ::stride] for image in shown]
    high, wide = shown[0].shape
    across = math.ceil(math.sqrt(len(shown)))
    down = math.ceil(len(shown) / across)
    sheet = np.full((down * (high + GAP) - GAP, across * (wide + GAP) - GAP), 255, np.uint8)
    for i, image in enumerate(shown):
        top, left = i // across * (high + GAP), i % across * (wide + GAP)
        sheet[top : top + high, left : left + wide] = image
    return sheet


def write_png(path: str | os.PathLike[str], grey: np.ndarray, overwrite: bool = False) -> None:
    """An image (H, W) uint8 as PNG."""
    rows, cols = grey.shape
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), grey], axis=1).tobytes()
    with Draft(path, overwrite) as draft:
        with draft.path.open("wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n")
            for kind, data in (
                (b"IHDR", struct.pack(">IIBBBBB", cols, rows, 8, 0, 0, 0, 0)),
                (b"IDAT", zlib.compress(lines, 6)),
                (b"IEND", b""),
            ):
                file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
        draft.publish()


def _stretched(image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, STRETCH)
    return np.clip((image - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)
