"""Prepared sets of small grey images of one size: `patches.npy` and, line by line, where each is from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lunar_processing.errors import DataError
from lunar_processing.training.data import Picture, product_id, split_by_product

PATCHES, MANIFEST = "patches.npy", "manifest.jsonl"
PARTS = ("train", "validation")


def load_patches(folder: Path, side: int) -> dict[str, list[Picture]]:
    """Patches of `side` px to learn from and to validate on: as the manifest says, else by whole products."""
    patches, rows = _patches(folder, side), _manifest(folder)
    if len(patches) != len(rows):
        raise DataError(
            f"{folder} has {len(patches)} patches, and its manifest speaks of {len(rows)}.",
            "make the set again with `lunar patches`.",
        )
    valid = np.ones((side, side), bool)
    pictures = [
        Picture(
            row.get("image", folder.name),
            row.get("product") or product_id(row.get("image", folder.name)),
            patch.astype(np.float32) / 255,
            valid,
        )
        for patch, row in zip(patches, rows)
    ]
    if not any("part" in row for row in rows):
        return split_by_product(pictures)
    return {part: [p for p, row in zip(pictures, rows) if row.get("part") == part] for part in PARTS}


def _patches(folder: Path, side: int) -> np.ndarray:
    path = folder / PATCHES
    if not path.is_file():
        raise DataError(
            f"{folder} is no prepared set of patches: it has no {PATCHES}.",
            f"cut patches from images first: lunar patches {folder} --size {side} --out patches/",
        )
    try:
        patches = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}).", "make it again with `lunar patches`.") from error
    if patches.ndim != 3 or patches.dtype != np.uint8 or patches.shape[1] != patches.shape[2]:
        colour = patches.ndim == 4 and patches.shape[-1] in (3, 4)
        raise DataError(
            f"{path} holds {'colour images' if colour else f'{patches.dtype} of the shape {patches.shape}'}, "
            "not grey squares of one size (uint8).",
            "make it with `lunar patches`, which takes one band of each image.",
        )
    if patches.shape[1] != side:
        raise DataError(
            f"The patches of {folder} have {patches.shape[1]} px, not {side} px.",
            f"train with --size {patches.shape[1]}, or cut them anew: lunar patches … --size {side}.",
        )
    return patches


def _manifest(folder: Path) -> list[dict[str, str]]:
    path = folder / MANIFEST
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}).", "make the set again with `lunar patches`.") from error
