"""Which images there are: of folders, patterns, manifests; each with a name of its own and what is said about it.

A manifest is a CSV file with a column `image`, as `lunar train` takes it, or a text file with one path a line. Its
other columns, like those of a table, are facts to choose by, and some of them are told to the tools: `TOLD`.
"""

from __future__ import annotations

import csv
import glob
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lunar_processing import planet
from lunar_processing.batch.table import key_of, read_table, value_of
from lunar_processing.batch.where import Where
from lunar_processing.draft import is_there
from lunar_processing.errors import DataError, LunarError
from lunar_processing.raster.image import RASTERS, open_image

LISTS = (".txt", ".lis", ".lst", ".list")
LABELS = (".lbl", ".xml")
TOLD = ("pixel_size", "sun_azimuth", "incidence", "band", "body")  # what a row says, the tool is told
FROM_LABEL = (
    *("name", "path", "product_id", "instrument", "target", "pixel_size", "incidence", "emission", "phase"),
    *("sun_azimuth", "start_time", "summing", "exposure", "temperature", "width", "height", "megapixels", "lon", "lat"),
)


@dataclass(frozen=True)
class Product:
    """One image; `said` is what a manifest or a table says about it."""

    name: str
    path: Path
    said: Mapping[str, Any] = field(default_factory=dict)


def find_products(inputs: Sequence[str], beside: Path | None = None) -> list[Product]:
    """All images of files, folders (with those in them), patterns and manifests, by name; none from below `beside`."""
    found: dict[Path, Mapping[str, Any]] = {}
    for text in inputs:
        for path, said in _listed(text):
            if beside is None or beside.resolve() not in path.resolve().parents:
                found.setdefault(path.absolute(), said)
    if not found:
        raise DataError(f"There is no image in {', '.join(inputs)}.", f"it may hold {', '.join(RASTERS)}.")
    shared = Counter(path.stem.lower() for path in found)
    return sorted((Product(_name(path, shared), path, said) for path, said in found.items()), key=lambda p: p.name)


def with_table(products: list[Product], path: Path) -> tuple[list[Product], tuple[str, ...]]:
    """The same with what a table says about each, as far as a manifest does not; and the table's columns."""
    table = read_table(path, {key_of(product.path.name) for product in products})
    return [
        replace(product, said={**table.of.get(key_of(product.path.name), {}), **product.said}) for product in products
    ], table.columns


def sort_out(products: list[Product], where: Where, columns: Sequence[str]) -> tuple[list[Product], dict[str, str]]:
    """Those that are wanted, and of the others the name and why not. Labels are read only where rows do not tell."""
    rows = {name for product in products for name in product.said} | set(columns)
    where.check_names(sorted({*rows, *FROM_LABEL}))
    wanted, others = [], {}
    for product in products:
        facts = dict(product.said)
        if any(facts.get(name) is None for name in where.names):
            facts = {**label_facts(product.path), **{k: v for k, v in facts.items() if v is not None}}
        facts |= {"name": product.name, "path": str(product.path)}
        answer = where(facts)
        if answer:
            wanted.append(product)
        elif answer is None:
            others[product.name] = f"not known: {', '.join(where.unknown(facts))}"
        else:
            others[product.name] = f"not {where.text}"
    return wanted, others


def label_facts(path: Path) -> dict[str, Any]:
    """What the label and the grid say; empty where the image cannot be opened, which is told when it is its turn."""
    try:
        with open_image(path, band=1) as image:
            product, grid = image.product, image.grid
            body = planet.resolve_body(grid.wkt, None)
            size = planet.metres_per_pixel(grid, grid.width / 2, grid.height / 2, body)
            lon, lat = planet.lonlat(grid, grid.width / 2, grid.height / 2, body)
    except LunarError:
        return {}
    facts = {
        "product_id": product.id,
        "instrument": product.instrument,
        "target": product.target,
        "pixel_size": product.pixel_size_m if size is None else float((size[0][0] * size[1][0]) ** 0.5),
        "incidence": product.incidence_deg,
        "emission": product.emission_deg,
        "phase": product.phase_deg,
        "sun_azimuth": product.sun_azimuth_deg,
        "start_time": product.start_time,
        "summing": product.summing,
        "exposure": product.exposure_ms,
        "temperature": product.temperature_c,
        "width": grid.width,
        "height": grid.height,
        "megapixels": grid.width * grid.height / 1e6,
        "lon": float(lon),
        "lat": float(lat),
    }
    return {name: None if isinstance(value, float) and value != value else value for name, value in facts.items()}


# ---- where they are listed ---------------------------------------------------------------------------------------


def _listed(text: str) -> list[tuple[Path, Mapping[str, Any]]]:
    path = Path(text)
    if not is_there(path) and not glob.has_magic(text):
        raise DataError(f"There is no file or folder {text}.", "check the path.")
    if is_there(path) and path.is_dir():
        return [(image, {}) for image in _images_below(path)]
    if not is_there(path):
        matching = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 a pattern may begin anywhere
        return [(Path(p), {}) for p in matching if Path(p).is_file()]
    if path.suffix.lower() == ".csv":
        return _manifest(path)
    if path.suffix.lower() in LISTS:
        lines = (line.strip() for line in _text(path).splitlines())
        return [(path.parent / line, {}) for line in lines if line and not line.startswith("#")]
    return [(path, {})]


def _images_below(folder: Path) -> list[Path]:
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in RASTERS
        and not path.name.endswith(".aux.xml")
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    labelled = {path.with_suffix("") for path in found if path.suffix.lower() in LABELS}
    return [path for path in found if path.suffix.lower() in LABELS or path.with_suffix("") not in labelled]


def _manifest(path: Path) -> list[tuple[Path, Mapping[str, Any]]]:
    rows = list(csv.DictReader(_text(path).splitlines()))
    if not rows or "image" not in rows[0]:
        raise DataError(
            f"The manifest {path} lists no image.", f"give it a column image, and if you like {', '.join(TOLD)}."
        )
    return [
        (path.parent / row["image"], {name.strip().lower(): value_of(text) for name, text in row.items() if name})
        for row in rows
        if row["image"]
    ]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The list {path} cannot be read ({error}).", "give a text file in UTF-8.") from error


def _name(path: Path, shared: Mapping[str, int]) -> str:
    """The file's own name; where several have it, with a mark of where each is."""
    if shared[path.stem.lower()] == 1:
        return path.stem
    return f"{path.stem}-{hashlib.sha256(str(path).encode(errors='surrogateescape')).hexdigest()[:8]}"
