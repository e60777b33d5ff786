"""Results as GeoTIFF or COG, written from top to bottom as they come, complete or not at all.

with RasterWriter("scores.tif", grid, bands=[Band("score", "…")]) as writer:
    writer.append(strip)       # (bands, rows, width), as many rows as there are
    writer.finish()            # overviews, tags, flush, and a look whether the disk kept it
    writer.publish()           # the final name
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from lunar_processing.draft import Draft, check_destination
from lunar_processing.errors import OutputError
from lunar_processing.grid import PIXEL_SPACE, Grid
from lunar_processing.planet import wkt_for

BLOCK = 512
FORMATS = {"gtiff": "GTiff", "cog": "COG"}
# What is read back to verify, at most: all of a small raster, an even sample of a large one.
VERIFIED_SAMPLES = 16_000_000
STALE = (".aux.xml", ".ovr", ".msk")


@dataclass(frozen=True)
class Band:
    """Name, meaning and unit of one band of a result."""

    name: str
    description: str
    unit: str = ""


@dataclass(frozen=True)
class _Written:
    row: int
    rows: int
    checksum: int


class RasterWriter:
    """One raster on its way to the disk."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        grid: Grid,
        bands: Sequence[Band],
        dtype: str = "float32",
        nodata: float | None = float("nan"),
        overwrite: bool = False,
        file_format: str = "gtiff",
        categorical: bool = False,
        overviews: bool = True,
    ) -> None:
        if file_format not in FORMATS:
            raise OutputError(f"There is no raster format {file_format!r}.", f"choose one of {', '.join(FORMATS)}.")
        self.grid, self.bands = grid, tuple(bands)
        self.cog = file_format == "cog"
        self._resampling = Resampling.nearest if categorical else Resampling.average
        self._overviews = overviews
        self._compression = str(creation_options(dtype)["compress"])
        self._row = 0
        samples = len(self.bands) * grid.width * grid.height
        self._every = max(1, -(-samples // VERIFIED_SAMPLES))  # of so many parts written, one is read back
        self._parts = 0
        self._held: list[np.ndarray] = []
        self._written: list[_Written] = []
        self._draft = Draft(path, overwrite)
        self._complaints = _Complaints()
        try:
            self._dataset = _create(self._draft.path, grid, self.bands, dtype, nodata)
        except BaseException:
            self._draft.discard()
            self._complaints.stop()
            raise

    def __enter__(self) -> RasterWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def discard(self) -> None:
        """Delete what was written so far. Harmless after `publish()`."""
        with contextlib.suppress(RasterioError, OSError):  # the file goes anyway
            self._dataset.close()
        self._complaints.stop()
        self._draft.discard()

    def append(self, strip: np.ndarray) -> None:
        """Write the next rows, shape (bands, rows, width). Whole blocks go out at once, the rest is held back."""
        self._held.append(strip)
        held = sum(part.shape[1] for part in self._held)
        whole = held if self._row + held == self.grid.height else held // BLOCK * BLOCK
        if whole:
            rows = np.concatenate(self._held, axis=1) if len(self._held) > 1 else self._held[0]
            self._held = [rows[:, whole:]] if whole < held else []
            self._write(rows[:, :whole])

    def finish(self, tags: Mapping[str, str] | None = None) -> None:
        """Complete the file under its temporary name and make sure that the disk kept it."""
        if self._row != self.grid.height:
            raise OutputError(f"Only {self._row} of {self.grid.height} rows of {self._draft.final} were computed.")
        try:
            if tags:
                self._dataset.update_tags(**tags)
            self._dataset.close()
            self._complaints.raise_for(self._draft.final)
            with ThreadPoolExecutor(1) as disk:  # it takes what is written while that is looked at
                flushed = disk.submit(self._draft.flush)
                self.verify()
                if not self.cog:
                    self._add_overviews()
                flushed.result()
            if self.cog:
                self._turn_into_cog()
        except (RasterioError, OSError) as error:
            raise _disk_error(self._draft.final, error) from error
        self._complaints.raise_for(self._draft.final)

    def verify(self) -> None:
        """Read back what was written: a full disk can go unnoticed by every write."""
        try:
            self._read_back()
        except (RasterioError, OSError) as error:
            raise _disk_error(self._draft.final, error) from error

    def publish(self) -> Path:
        """Give the finished file its final name."""
        self._complaints.stop()
        final, draft = self._draft.final, self._draft.path
        # Statistics and overviews of the file that was there before, which would be believed about the new one.
        stale = [s for s in STALE if not draft.with_name(draft.name + s).exists()]
        self._draft.publish()
        for suffix in stale:
            final.with_name(final.name + suffix).unlink(missing_ok=True)
        return final

    def _write(self, rows: np.ndarray) -> None:
        window = rasterio.windows.Window(0, self._row, self.grid.width, rows.shape[1])
        try:
            self._dataset.write(rows, window=window)
        except (RasterioError, OSError) as error:
            raise _disk_error(self._draft.final, error) from error
        self._complaints.raise_for(self._draft.final)
        last = self._row + rows.shape[1] == self.grid.height
        if self._parts % self._every == 0 or last:
            self._written.append(_Written(self._row, rows.shape[1], _checksum(rows)))
        self._parts += 1
        self._row += rows.shape[1]

    def _read_back(self) -> None:
        with _quietly_open(self._draft.path) as dataset:
            for part in self._written:
                window = rasterio.windows.Window(0, part.row, self.grid.width, part.rows)
                if _checksum(dataset.read(window=window)) != part.checksum:
                    raise OSError(f"rows {part.row}–{part.row + part.rows - 1} read back differ from those written")
            _check_blocks(dataset, self._draft.path.stat().st_size)

    def _add_overviews(self) -> None:
        levels = _overview_levels(self.grid) if self._overviews else []
        if levels:
            with (
                rasterio.Env(ZSTD_LEVEL_OVERVIEW="1"),  # as the image itself; GDAL would take 9
                _quietly_open(self._draft.path, "r+", NUM_THREADS="ALL_CPUS") as dataset,
            ):
                dataset.build_overviews(levels, self._resampling)
            _check_overviews(self._draft.path, len(levels))

    def _turn_into_cog(self) -> None:
        source = self._draft.path
        copy = source.with_name(f"{source.stem}.cog{source.suffix}")
        try:
            rasterio.shutil.copy(
                source,
                copy,
                driver="COG",
                COMPRESS=self._compression,
                BLOCKSIZE=BLOCK,
                BIGTIFF="IF_SAFER",
                NUM_THREADS="ALL_CPUS",
                OVERVIEWS="AUTO" if self._overviews else "NONE",
                OVERVIEW_RESAMPLING=self._resampling.name.upper(),
            )
        except Exception as error:  # GDAL's own errors, which rasterio lets through here, have no public name
            raise OSError(str(error)) from error
        os.replace(copy, source)
        self._read_back()
        _check_overviews(source, len(_overview_levels(self.grid)) if self._overviews else 0)


def check_rasters(paths: Sequence[str | os.PathLike[str] | None], overwrite: bool = False) -> None:
    """Refuse, before any work is done, names that cannot be written or mean something else; None is not wanted."""
    wanted = [Path(path).absolute() for path in paths if path is not None]
    for path in wanted:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise OutputError(f"{path} is no name of a GeoTIFF, and nothing else is written.", "end it with .tif.")
        check_destination(path, overwrite)
    if len(set(wanted)) < len(wanted):
        raise OutputError(f"Two rasters would go into {wanted[0]}.", "give each a file of its own.")


def creation_options(dtype: str) -> dict[str, object]:
    """How a GeoTIFF is laid out; also what a speed comparison has to use."""
    return {
        "driver": "GTiff",
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        # Noise hardly compresses: for it ZSTD is as small as DEFLATE at a third of the time, which would be a tenth
        # of a small network's.
        **({"compress": "ZSTD", "zstd_level": 1} if dtype.startswith("float") else {"compress": "DEFLATE"}),
        "predictor": 2,
        "bigtiff": "IF_SAFER",
        "interleave": "band",
        "num_threads": "ALL_CPUS",
    }


def _create(
    path: Path, grid: Grid, bands: Sequence[Band], dtype: str, nodata: float | None
) -> rasterio.io.DatasetWriter:
    place = {} if grid.transform == PIXEL_SPACE and not grid.wkt else {"transform": grid.transform}
    crs = CRS.from_wkt(wkt_for(grid.wkt, "GTiff")) if grid.wkt else None
    size = {"width": grid.width, "height": grid.height, "count": len(bands), "dtype": dtype}
    try:
        dataset = _quietly_open(path, "w", crs=crs, nodata=nodata, **size, **place, **creation_options(dtype))
    except (RasterioError, OSError) as error:
        raise _disk_error(path, error) from error
    for index, band in enumerate(bands, start=1):
        dataset.set_band_description(index, band.name)
        dataset.update_tags(index, description=band.description)
        if band.unit:
            dataset.set_band_unit(index, band.unit)
    return dataset


def _quietly_open(path: Path, mode: str = "r", **options: object) -> rasterio.DatasetReader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, mode, **options)


def _overview_levels(grid: Grid) -> list[int]:
    """Powers of two from 4 on, until a block shows all.

    Half the size would be three quarters of the work and of the bytes, and a screen of it is drawn from the full
    size within half a second.
    """
    size = max(grid.width, grid.height)
    return [2**power for power in range(2, 2 + size.bit_length()) if size > 2 ** (power - 1) * BLOCK]


def _checksum(rows: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(rows).data)


def _check_overviews(path: Path, count: int) -> None:
    """All are there, and an even sample of their blocks can be decoded."""
    with _quietly_open(path) as dataset:
        if any(len(dataset.overviews(band)) < count for band in dataset.indexes):
            raise OSError("its overviews are missing")
    for level in range(count):
        with _quietly_open(path, overview_level=level) as dataset:
            blocks = [window for _, window in dataset.block_windows(1)]
            most = max(1, VERIFIED_SAMPLES // count // (dataset.count * BLOCK**2))
            for window in {*blocks[:: -(-len(blocks) // most)], blocks[-1]}:
                dataset.read(window=window)


def _check_blocks(dataset: rasterio.DatasetReader, size: int) -> None:
    """Every block must have been given a place inside the file."""
    for band in dataset.indexes:
        for (row, col), _ in dataset.block_windows(band):
            offset = dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band)
            length = dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=band)
            if offset is None or length is None or int(offset) + int(length) > size:
                raise OSError(f"block ({row}, {col}) of band {band} is not in the file")


def _disk_error(path: Path, error: BaseException) -> OutputError:
    if isinstance(error, OutputError):
        return error
    reason = str(error.__cause__ or error).strip().rstrip(".")
    return OutputError(f"{path} could not be written ({reason}).", "free space on the disk, or write somewhere else.")


class _Complaints(logging.Handler):
    """What GDAL only logs while it writes: deferred failures that raise nothing."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []
        self._logger = logging.getLogger("rasterio._env")
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())

    def raise_for(self, path: Path) -> None:
        if self.heard:
            raise _disk_error(path, OSError(self.heard[0]))

    def stop(self) -> None:
        self._logger.removeHandler(self)
