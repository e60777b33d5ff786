"""How far a TIFF reaches, by its own directories: GDAL passes over a table that is missing at the end of a file, and
scale, nodata or coordinate system with it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

_KINDS = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "u8", 7: "u1", 11: "f4", 12: "f8", 13: "u4", 16: "u8", 18: "u8"}
_OFFSETS, _SIZES = (273, 324), (279, 325)  # of strips, of tiles
# What pixels depend on: bits, colours, description, tables of JPEG, the place on the map, GDAL's metadata and nodata.
_TABLES = {258, 270, 320, 339, 347, 33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113, *_OFFSETS, *_SIZES}


class _Layout(NamedTuple):
    """Of directories: the order of bytes, numpy's names of their numbers, and where the first place stands."""

    order: str
    number: str
    place: str
    first: int


class _Table(NamedTuple):
    """An entry of a directory: its numbers lie from `place` on."""

    kind: np.dtype
    number: int
    place: int

    @property
    def end(self) -> int:
        """The byte after its last."""
        return int(self.place + self.number * self.kind.itemsize)


class _TooShort(Exception):
    """The file ends before what is to be read; `needed` bytes it should have."""

    def __init__(self, needed: int) -> None:
        self.needed = needed


def tiff_end(path: Path) -> int:
    """Bytes that a TIFF needs: its directories, their tables, and the blocks of the image, its mask and overviews."""
    end, seen = 0, set()
    with path.open("rb") as file:
        try:
            layout = _layout(file)
            place = int(_numbers(file, _Table(np.dtype(layout.order + layout.place), 1, layout.first))[0])
            while place and place not in seen:
                seen.add(place)
                tables, place = _directory(file, place, layout)
                end = max(end, _end_of_blocks(file, tables), *(table.end for table in tables.values()))
        except _TooShort as short:
            return short.needed
    return end


def _layout(file: BinaryIO) -> _Layout:
    order = "<" if file.read(2) == b"II" else ">"
    big = int(_numbers(file, _Table(np.dtype(f"{order}u2"), 1, 2))[0]) == 43
    return _Layout(order, "u8", "u8", 8) if big else _Layout(order, "u2", "u4", 4)


def _directory(file: BinaryIO, place: int, layout: _Layout) -> tuple[dict[int, _Table], int]:
    """The tables of a directory that matter, and where the next one is (0: there is none)."""
    order, wide = layout.order, np.dtype(layout.place).itemsize
    entry = np.dtype([(name, order + kind) for name, kind in zip("tknv", ("u2", "u2", layout.place, layout.place))])
    counted = _Table(np.dtype(order + layout.number), 1, place)
    entries = _Table(entry, int(_numbers(file, counted)[0]), counted.end)
    after = _Table(np.dtype(order + layout.place), 1, entries.end)
    found = {}
    for index, (tag, kind, number, value) in enumerate(_numbers(file, entries).tolist()):
        if tag in _TABLES and kind in _KINDS:
            table = _Table(np.dtype(order + _KINDS[kind]), number, value)
            inside = number * table.kind.itemsize <= wide  # then the numbers stand where else their place would
            here = entries.place + (index + 1) * entry.itemsize - wide
            found[tag] = table._replace(place=here) if inside else table
    return found, int(_numbers(file, after)[0])


def _end_of_blocks(file: BinaryIO, tables: dict[int, _Table]) -> int:
    """Where the last block ends; a block that was never written has no place, and GDAL reads it as nodata."""
    offsets, sizes = (
        next((_numbers(file, tables[tag]).astype(float) for tag in tags if tag in tables), np.zeros(0))
        for tags in (_OFFSETS, _SIZES)
    )
    if len(offsets) != len(sizes):  # some programs leave the sizes out where they can be reckoned
        return 0
    return int(np.where((offsets > 0) & (sizes > 0), offsets + sizes, 0).max(initial=0))


def _numbers(file: BinaryIO, table: _Table) -> np.ndarray:
    if table.end > os.fstat(file.fileno()).st_size:
        raise _TooShort(table.end)
    file.seek(table.place)
    return np.frombuffer(file.read(table.end - table.place), table.kind)
