"""From a file to pixels and their validity. Nothing else in the engine opens an image to read it.

    with open_image("M1333276014R.cub") as image:
        patch = image.read(Window(0, 0, 512, 512))
        patch.pixels, patch.valid

What counts as invalid: nodata (unless the reader invented it), the mask band, alpha, NaN and infinities, the
special pixels of the label, and black borders. A *black border* is a run of zeros that reaches the edge of the
image along its row or its column; darkness inside the image is signal.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from lunar_processing.draft import is_there
from lunar_processing.errors import ImageError, ParameterError
from lunar_processing.grid import PIXEL_SPACE, Grid, Window
from lunar_processing.raster.complete import check_complete
from lunar_processing.raster.product import Product, read_product
from lunar_processing.raster.survey import Survey, survey

# How the names of images end that are looked for in folders; a label stands for the data beside it.
RASTERS = (".tif", ".tiff", ".png", ".vrt", ".jp2", ".img", ".cub", ".lbl", ".xml", ".bmp", ".jpg", ".jpeg")
PLAIN_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
# Decoding is cheap beside computing, but one thread of DEFLATE would still be the first to fall behind.
OPEN_OPTIONS = {"GTiff": {"NUM_THREADS": "ALL_CPUS"}}


@dataclass(frozen=True)
class Patch:
    """Pixels (H, W) and their validity (H, W); invalid pixels hold 0."""

    pixels: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class Border:
    """Where the black border ends: first and last signal of each row (columns) and of each column (rows)."""

    first_col: np.ndarray
    last_col: np.ndarray
    first_row: np.ndarray
    last_row: np.ndarray

    def inside(self, window: Window) -> np.ndarray:
        """Which pixels of a window inside the image are not border, shape (H, W)."""
        rows = np.arange(window.row, window.bottom)[:, None]
        cols = np.arange(window.col, window.right)[None, :]
        in_row = (cols >= self.first_col[rows]) & (cols <= self.last_col[rows])
        return in_row & (rows >= self.first_row[cols]) & (rows <= self.last_row[cols])

    def empty(self, window: Window) -> bool:
        """Whether a window inside the image is all border, told without touching its pixels."""
        rows, cols = slice(window.row, window.bottom), slice(window.col, window.right)
        beside = (self.first_col[rows] >= window.right) | (self.last_col[rows] < window.col)
        above = (self.first_row[cols] >= window.bottom) | (self.last_row[cols] < window.row)
        return bool(beside.all() or above.all())


class Image:
    """One band of an open image: place, facts, calibration, and what is valid. Reading is safe from any thread."""

    def __init__(self, path: Path, dataset: rasterio.DatasetReader, band: int) -> None:
        self.path = path
        self.band = band
        self.product: Product = read_product(dataset, path)
        self.dtype = np.dtype(dataset.dtypes[band - 1])
        self.scale = float(dataset.scales[band - 1])
        self.offset = float(dataset.offsets[band - 1])
        if not np.isfinite(np.array([self.scale, self.offset], np.float32)).all() or self.scale == 0:
            raise ImageError(
                f"{path} turns numbers into brightness by a scale of {self.scale:g} and an offset of {self.offset:g}.",
                "fetch it again: its label is damaged.",
            )
        self.unit = dataset.units[band - 1] or self.product.unit or ""
        self.grid = _grid_of(dataset)
        self.tags: Mapping[str, str] = dict(dataset.tags())
        self._dataset = dataset
        self._lock = threading.Lock()
        nodata = dataset.nodatavals[band - 1]
        self.nodata: float | None = nodata if self.product.trust_nodata else None
        self._has_mask = _needs_mask(dataset, band)

    def __enter__(self) -> Image:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dataset.close()

    @property
    def files(self) -> list[Path]:
        """The files with its label and pixels, the one that was named first; not what GDAL keeps beside them."""
        others = (Path(file) for file in self._dataset.files)
        kept = [file for file in others if not file.name.endswith((".aux.xml", ".ovr")) and file.is_file()]
        return list(dict.fromkeys([self.path, *kept]))

    @property
    def calibrated(self) -> bool:
        """Whether stored numbers become physical ones by the label's scale and offset."""
        return self.scale != 1.0 or self.offset != 0.0

    @property
    def block_height(self) -> int:
        """Rows that are stored, and therefore decoded, together."""
        return int(self._dataset.block_shapes[self.band - 1][0])

    def read(self, window: Window) -> Patch:
        """Pixels in physical units and their validity; what lies outside the image is invalid.

        The data type is the file's own, or float32 where a calibration applies.
        """
        inside = window.clip(self.grid.width, self.grid.height)
        raw, valid = self._read_raw(inside)
        pixels = raw
        if self.calibrated:
            with np.errstate(over="ignore"):
                pixels = (raw * np.float32(self.scale) + np.float32(self.offset)).astype(np.float32)
            valid &= np.isfinite(pixels)
        pixels[~valid] = 0
        if inside == window:
            return Patch(pixels, valid)
        place = np.s_[
            inside.row - window.row : inside.bottom - window.row, inside.col - window.col : inside.right - window.col
        ]
        full = Patch(
            np.zeros((window.height, window.width), pixels.dtype), np.zeros((window.height, window.width), bool)
        )
        full.pixels[place], full.valid[place] = pixels, valid
        return full

    def stored(self) -> Patch:
        """The whole image as it is stored, for classes: their zeros are no black border."""
        raw = self._decode(self.grid.window)
        return Patch(raw, self._said(raw, self.grid.window))

    def certainly_empty(self, window: Window) -> bool:
        """Whether nothing is valid in a window, as far as it can be told without reading pixels."""
        inside = window.clip(self.grid.width, self.grid.height)
        if inside.width == 0 or inside.height == 0:
            return True
        return self._unwritten(inside) or (self.border is not None and self.border.empty(inside))

    @cached_property
    def border(self) -> Border | None:
        """The black border, or None where there is none or the file itself says what is valid."""
        if self.nodata is not None or self._has_mask or not self._zero_on_the_edge():
            return None
        return self._find_border()

    @cached_property
    def survey(self) -> Survey:
        """One look over the whole image, by sample, so that every tile is treated alike."""
        return survey(self)

    def strips(self, rows: int = 512) -> Iterator[tuple[Window, Patch]]:
        """The whole image once from top to bottom, in strips of whole stored blocks."""
        step = -(-rows // self.block_height) * self.block_height
        for row in range(0, self.grid.height, step):
            window = Window(0, row, self.grid.width, step).clip(self.grid.width, self.grid.height)
            yield window, self.read(window)

    def _unwritten(self, window: Window) -> bool:
        """Whether a window lies in blocks that a sparse GeoTIFF never wrote, which are nodata."""
        if self._dataset.driver != "GTiff" or self.nodata is None:
            return False
        high, wide = self._dataset.block_shapes[self.band - 1]
        rows = range(window.row // high, -(-window.bottom // high))
        cols = range(window.col // wide, -(-window.right // wide))
        with self._lock:
            return not any(self._block_offset(row, col) for row in rows for col in cols)

    def _block_offset(self, row: int, col: int) -> str | None:
        offset: str | None = self._dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=self.band)
        return offset

    def _read_raw(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        if window.width == 0 or window.height == 0:
            return np.zeros((window.height, window.width), self.dtype), np.zeros((window.height, window.width), bool)
        raw = self._decode(window)
        return raw, self._validity(raw, window)

    def _decode(self, window: Window, mask: bool = False) -> np.ndarray:
        area = rasterio.windows.Window(*window)
        with self._lock:
            try:
                reader = self._dataset.read_masks if mask else self._dataset.read
                return reader(self.band, window=area)
            except (RasterioError, OSError, UnicodeDecodeError, MemoryError) as error:
                raise ImageError(
                    f"{self.path} breaks off or is damaged: rows {window.row}–{window.bottom - 1} cannot be read "
                    f"({_reason(error)}).",
                    "copy or download the file again and compare its size with the original.",
                ) from error

    def _validity(self, raw: np.ndarray, window: Window) -> np.ndarray:
        valid = self._said(raw, window)
        if self.border is not None:
            valid &= self.border.inside(window)
        return valid

    def _said(self, raw: np.ndarray, window: Window) -> np.ndarray:
        """What the file itself says is valid."""
        valid = np.ones(raw.shape, bool)
        if raw.dtype.kind == "f":
            valid &= np.isfinite(raw)
        if self.nodata is not None:
            valid &= _differs(raw, self.nodata)
        for low, high in self.product.missing:
            valid &= (raw < low) | (raw > high)
        if self._has_mask:
            valid &= self._decode(window, mask=True) > 0
        return valid

    def _zero_on_the_edge(self) -> bool:
        width, height = self.grid.width, self.grid.height
        edges = [Window(0, 0, width, 1), Window(0, height - 1, width, 1)]
        edges += [Window(0, 0, 1, height), Window(width - 1, 0, 1, height)]
        return any((self._decode(edge) == 0).any() for edge in edges)

    def _find_border(self) -> Border:
        width, height = self.grid.width, self.grid.height
        border = Border(np.full(height, width), np.full(height, -1), np.full(width, height), np.full(width, -1))
        step = max(512, self.block_height)
        for row in range(0, height, step):
            window = Window(0, row, width, step).clip(width, height)
            _extend_border(border, window, self._decode(window) != 0)
        return border


def files_of(path: str | Path) -> set[Path]:
    """The files an image is read from: a virtual raster's sources, a label's pixels, masks and overviews beside it."""
    path = Path(path)
    try:
        with _open_dataset(path) as dataset:
            return {path.resolve(), *(Path(file).resolve() for file in dataset.files)}
    except ImageError:  # what is wrong with it is said when it is opened to be read
        return {path.resolve()}


def count_bands(path: str | Path) -> int:
    """How many bands of data there are; a mask is none."""
    with _open_dataset(Path(path)) as dataset:
        return len(_data_bands(dataset))


def open_image(path: str | Path, band: int | None = None) -> Image:
    """Open one band of an image of any format the tools know."""
    path = Path(path)
    dataset = _open_dataset(path)
    try:
        chosen = _choose_band(dataset, path, band)
        check_complete(dataset, path)
        return Image(path, dataset, chosen)
    except BaseException:
        dataset.close()
        raise


def _check_path(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ImageError(f"{str(path)!r} holds bytes that are no text.", "rename the file.") from None
    if is_there(path) and path.is_dir():
        raise ImageError(f"{path} is not an image but a folder.", "give a file in it.")
    if not is_there(path):
        raise ImageError(f"There is no file {path}.", "check the path.")


def _open_dataset(path: Path) -> rasterio.DatasetReader:
    _check_path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = rasterio.open(path)
            options = OPEN_OPTIONS.get(dataset.driver)
            if not options:
                return dataset
            dataset.close()
            return rasterio.open(path, **options)
    except (RasterioError, ValueError) as error:  # of coordinate systems, and of words of GDAL's that are no UTF-8
        labels = [path.with_suffix(suffix) for suffix in (".lbl", ".LBL", ".xml", ".XML")]
        label = next((label for label in labels if label.exists() and label != path), None)
        raise ImageError(
            f"{path} is not an image that can be read ({_reason(error)}).",
            f"open its label instead ({label.name})."
            if label
            else "give a GeoTIFF, COG, VRT, JPEG 2000, ISIS cube, PDS3 label or .IMG, or PDS4 .xml.",
        ) from error


def _choose_band(dataset: rasterio.DatasetReader, path: Path, band: int | None) -> int:
    if band is not None and not 1 <= band <= dataset.count:
        raise ParameterError(f"{path.name} has {dataset.count} band(s); there is no band {band}.", "see `lunar info`.")
    data_bands = _data_bands(dataset)
    if band is None and len(data_bands) != 1:
        names = ", ".join(f"{i} {dataset.descriptions[i - 1] or dataset.colorinterp[i - 1].name}" for i in data_bands)
        raise ImageError(
            f"{path.name} has {len(data_bands)} bands ({names}); the tools work on one.", "choose one with --band N."
        )
    chosen = band or data_bands[0]
    if dataset.colorinterp[chosen - 1] == ColorInterp.palette:
        raise ImageError(
            f"{path.name} is a palette image: its numbers are colour indices, not brightness.",
            f"turn it into brightness first: gdal_translate -expand gray {path.name} gray.tif",
        )
    if dataset.dtypes[chosen - 1] not in PLAIN_DTYPES:
        raise ImageError(
            f"Band {chosen} of {path.name} holds {dataset.dtypes[chosen - 1]} numbers; brightness is real-valued.",
            "extract the amplitude first, for example with gdal_calc.py or a VRT.",
        )
    return chosen


def _data_bands(dataset: rasterio.DatasetReader) -> list[int]:
    return [i for i in dataset.indexes if dataset.colorinterp[i - 1] != ColorInterp.alpha]


def _grid_of(dataset: rasterio.DatasetReader) -> Grid:
    # WKT2, because WKT1 cannot say all that a planetary system needs.
    try:
        wkt = dataset.crs.to_wkt(version="WKT2_2019") if dataset.crs else None
    except ValueError as error:
        raise ImageError(
            f"The coordinate system of {dataset.name} cannot be understood ({error}).",
            "put the right one in: gdal_edit.py -a_srs IAU_2015:30135, for example.",
        ) from error
    placed = not dataset.transform.is_identity
    if wkt and not placed:
        wkt = None  # a coordinate system without a geotransform places nothing
    return Grid(wkt, dataset.transform if placed else PIXEL_SPACE, dataset.width, dataset.height)


def _needs_mask(dataset: rasterio.DatasetReader, band: int) -> bool:
    flags = dataset.mask_flag_enums[band - 1]
    # No flag at all is how drivers announce a mask of their own (ISIS cubes).
    return not flags or MaskFlags.per_dataset in flags or MaskFlags.alpha in flags


def _differs(raw: np.ndarray, nodata: float) -> np.ndarray:
    if np.isnan(nodata):
        return ~np.isnan(raw)
    if raw.dtype.kind in "iu" and not (
        np.iinfo(raw.dtype).min <= nodata <= np.iinfo(raw.dtype).max and nodata % 1 == 0
    ):
        return np.ones(raw.shape, bool)  # no stored number can be it
    return raw != raw.dtype.type(nodata)


def _extend_border(border: Border, window: Window, signal: np.ndarray) -> None:
    rows = slice(window.row, window.bottom)
    any_in_row, any_in_col = signal.any(axis=1), signal.any(axis=0)
    border.first_col[rows] = np.where(any_in_row, signal.argmax(axis=1), window.width)
    border.last_col[rows] = np.where(any_in_row, window.width - 1 - signal[:, ::-1].argmax(axis=1), -1)
    first = np.where(any_in_col, window.row + signal.argmax(axis=0), np.iinfo(int).max)
    np.minimum(border.first_row, first, out=border.first_row)
    last = np.where(any_in_col, window.bottom - 1 - signal[::-1].argmax(axis=0), -1)
    np.maximum(border.last_row, last, out=border.last_row)


def _reason(error: BaseException) -> str:
    return str(error.__cause__ or error).strip().rstrip(".")
