"""Is an image file whole? One that was cut short opens without complaint and fails hours later, in the middle.

ISIS cubes, PDS3, PDS4 and VICAR files store plain rows of numbers, so their labels tell how long they must be; a
TIFF keeps a table of where its blocks lie; PNG and JPEG files end with bytes of their own.
"""

from __future__ import annotations

import os
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from lunar_processing.draft import is_there
from lunar_processing.errors import ImageError
from lunar_processing.raster.label import flatten, label_of, quantity_of, text_of
from lunar_processing.raster.tiff import tiff_end

LONGEST_SIDE = 25_000_000  # px: the Moon is 22 million half metres around
LARGEST_BLOCK = 2 << 30  # bytes; libtiff itself goes no further


def expected_size(dataset: rasterio.DatasetReader, path: str | os.PathLike[str]) -> int | None:
    """Bytes that the file with the pixels must have at least, by its label; None where the label cannot tell.

    ISIS cubes, PDS3, PDS4 and VICAR store plain rows of numbers; a TIFF keeps a table of where its blocks lie.
    """
    measured = _extent(dataset, path)
    return measured[1] if measured else None


def check_complete(
    dataset: rasterio.DatasetReader, path: str | os.PathLike[str], drawn_by: tuple[Path, ...] = ()
) -> None:
    """Raise ImageError if a file was cut short, before anybody computes for hours on its first half.

    `drawn_by` are the virtual rasters that draw on it.
    """
    _check_size(dataset, path)
    if dataset.driver == "VRT":
        return _check_sources(dataset, path, (*drawn_by, Path(path).resolve()))
    measured = _extent(dataset, path)
    if measured is not None:
        file, needed = measured
        if not is_there(file):
            raise ImageError(f"{path} names the file {file.name}, which is missing.", f"put it into {file.parent}.")
        if file.stat().st_size < needed:
            have = file.stat().st_size
            raise ImageError(
                f"{file} is cut short: it has {have:,} bytes, its label promises {needed:,}.",
                "copy or download the file again.",
            )
    _check_ending(dataset, Path(path))
    return None


def _check_size(dataset: rasterio.DatasetReader, path: str | os.PathLike[str]) -> None:
    """Raise ImageError for sizes that nobody has, and for blocks that no memory holds: GDAL believes every label."""
    width, height = dataset.width, dataset.height
    if max(width, height) > LONGEST_SIDE:
        raise ImageError(
            f"{path} claims to have {width:,} × {height:,} pixels, more than the Moon in pixels of half a metre.",
            "fetch the file again: its label is damaged.",
        )
    for (rows, cols), dtype in zip(dataset.block_shapes, dataset.dtypes):
        if rows * cols * np.dtype(dtype).itemsize > LARGEST_BLOCK:
            raise ImageError(
                f"{path} is stored in blocks of {cols:,} × {rows:,} pixels, which can only be read as a whole.",
                "write it in tiles: gdal_translate -co TILED=YES.",
            )


def _extent(dataset: rasterio.DatasetReader, path: str | os.PathLike[str]) -> tuple[Path, int] | None:
    """The file that holds the pixels, and the bytes it needs."""
    measure = _EXTENTS.get(dataset.driver)
    if measure is None or not Path(path).is_file():
        return None
    try:
        return measure(dataset, Path(path), label_of(dataset))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError):
        return None  # a label we do not understand promises nothing


def _pixel_bytes(dataset: rasterio.DatasetReader) -> int:
    return int(sum(np.dtype(dtype).itemsize for dtype in dataset.dtypes))


def _isis_extent(dataset: rasterio.DatasetReader, path: Path, label: dict[str, Any]) -> tuple[Path, int] | None:
    core = label["IsisCube"]["Core"]
    if core["Format"] not in ("Tile", "BandSequential"):
        return None
    width, height = dataset.width, dataset.height
    if core["Format"] == "Tile":  # tiles at the right and lower edge are stored whole
        width = -(-width // core["TileSamples"]) * core["TileSamples"]
        height = -(-height // core["TileLines"]) * core["TileLines"]
    file = path.parent / core["^Core"] if "^Core" in core else path
    return file, core["StartByte"] - 1 + width * height * _pixel_bytes(dataset)


def _pds3_extent(dataset: rasterio.DatasetReader, path: Path, label: dict[str, Any]) -> tuple[Path, int] | None:
    if "COMPRESSED_FILE" in label:  # the label of a JPEG2000 file describes what it would be unpacked
        return None
    part = label if "^IMAGE" in label else label["UNCOMPRESSED_FILE"]
    image = part["IMAGE"]
    if text_of(image.get("ENCODING_TYPE")) is not None:
        return None
    file, start = _pointer(part["^IMAGE"], path, part.get("RECORD_BYTES", label.get("RECORD_BYTES", 1)))
    prefix = int(image.get("LINE_PREFIX_BYTES", 0)) + int(image.get("LINE_SUFFIX_BYTES", 0))
    return file, start + dataset.height * (dataset.width * _pixel_bytes(dataset) + prefix * dataset.count)


def _pointer(pointer: Any, label_path: Path, record_bytes: int) -> tuple[Path, int]:
    """File and 0-based byte where `^IMAGE` points: a name, a record, `n <BYTES>`, or a name with one of these."""
    file, place = label_path, pointer
    if isinstance(pointer, str) and quantity_of(pointer) is None:
        return _beside(label_path, pointer), 0
    if isinstance(pointer, list):
        file, place = _beside(label_path, str(pointer[0])), pointer[1]
    quantity = quantity_of(place)
    if quantity is None:
        raise ValueError(f"no place in {pointer!r}")
    unit = 1 if quantity[1].startswith("byte") else int(record_bytes)
    return file, (int(quantity[0]) - 1) * unit


def _beside(label_path: Path, name: str) -> Path:
    """A file in the label's folder, whatever the case of its letters on the disk."""
    exact = label_path.with_name(name.strip("\"'"))
    if is_there(exact):
        return exact
    same = (p for p in label_path.parent.iterdir() if p.name.lower() == exact.name.lower())
    return next(same, exact)


def _pds4_extent(dataset: rasterio.DatasetReader, path: Path, label: dict[str, Any]) -> tuple[Path, int] | None:
    keywords = flatten(label)
    name = text_of(keywords["file.filename"])
    start = next(quantity_of(keywords[key]) for key in keywords if re.fullmatch(r"array\w*\.offset", key))
    if name is None or start is None or name.lower().endswith((".tif", ".tiff", ".jp2")):
        return None
    return _beside(path, name), int(start[0]) + dataset.width * dataset.height * _pixel_bytes(dataset)


def _vicar_extent(_: rasterio.DatasetReader, path: Path, label: dict[str, Any]) -> tuple[Path, int] | None:
    if text_of(label.get("COMPRESS")) not in (None, "NONE"):
        return None
    records = int(label["NLB"]) + int(label["N2"]) * int(label["N3"])
    return path, int(label["LBLSIZE"]) + int(label["RECSIZE"]) * records


def _tiff_extent(_: rasterio.DatasetReader, path: Path, label: dict[str, Any]) -> tuple[Path, int] | None:
    return path, tiff_end(path)


_EXTENTS: dict[str, Callable[[rasterio.DatasetReader, Path, dict[str, Any]], tuple[Path, int] | None]] = {
    "ISIS3": _isis_extent,
    "PDS": _pds3_extent,
    "PDS4": _pds4_extent,
    "VICAR": _vicar_extent,
    "GTiff": _tiff_extent,
}

# Formats whose last bytes are always the same: a file that ends otherwise was cut.
_ENDINGS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "JP2OpenJPEG": b"\xff\xd9"}


def _check_ending(dataset: rasterio.DatasetReader, path: Path) -> None:
    ending = _ENDINGS.get(dataset.driver)
    if ending is None or not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        if ending not in file.read():
            raise ImageError(f"{path} is cut short: its end is missing.", "copy or download the file again.")


def _check_sources(dataset: rasterio.DatasetReader, path: str | os.PathLike[str], drawn_by: tuple[Path, ...]) -> None:
    """A virtual raster is whole if every file it draws from is there and whole."""
    root = ElementTree.fromstring("".join(dataset.tags(ns="xml:VRT").values()))
    for node in (*root.iter("SourceFilename"), *root.iter("SourceDataset")):
        name = (node.text or "").strip()
        if not name or name.startswith("/vsi") or ":" in Path(name).name:  # no file of this machine
            continue
        source = Path(path).parent / name if node.get("relativeToVRT") == "1" else Path(name)
        if not is_there(source):
            raise ImageError(f"{path} draws on {source}, which is missing.", "put it back, or rebuild the VRT.")
        if source.resolve() in drawn_by:
            raise ImageError(f"{path} draws on {source}, and that on this one.", "rebuild the VRT.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                opened = rasterio.open(source)
            with opened:
                check_complete(opened, source, drawn_by)
        except RasterioError as error:
            raise ImageError(f"{path} draws on {source}, which is unreadable: {error}", "rebuild the VRT.") from error
