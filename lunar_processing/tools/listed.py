"""Which images a user means: a folder, a manifest (.csv), or one file."""

from __future__ import annotations

import csv
from pathlib import Path

from lunar_processing.errors import DataError
from lunar_processing.raster.image import RASTERS

PLACES = ("image", "labels")  # columns of a manifest that are paths, relative to it


def listed(path: Path) -> list[dict[str, str]]:
    """Images of a folder, of a manifest with what it says of them, or the one file."""
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in RASTERS and not p.name.startswith("."))
        labels = {p.stem for p in found if p.suffix.lower() in (".lbl", ".xml")}
        found = [p for p in found if p.stem not in labels or p.suffix.lower() in (".lbl", ".xml")]
        if not found:
            raise DataError(f"There is no image in {path}.", f"it may hold {', '.join(RASTERS)}.")
        return [{"image": str(p)} for p in found]
    if path.suffix.lower() != ".csv":
        return [{"image": str(path)}]
    if not path.exists():
        raise DataError(f"There is no file {path}.", "check the path.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"The manifest {path} cannot be read ({error}).", "check the path.") from error
    if not rows or "image" not in rows[0]:
        raise DataError(
            f"The manifest {path} lists no image.",
            "give it a column image, and if you like labels, product, sun_azimuth, pixel_size.",
        )
    return [{k: str(path.parent / v) if k in PLACES and v else (v or "") for k, v in row.items() if k} for row in rows]
