"""Headers that lie: a few bytes that promise more than any machine holds, run code, or go round in circles.

Each is refused in plain words by a process that may take 3 GiB and 10 seconds of the processor.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import formats
import numpy as np
import pytest
import rasterio
from guarded import Reader, card_of, weights

from lunar_processing.raster.label import quantity_of

MILLION = 10**6


# ---- images ------------------------------------------------------------------------------------------------------


def tiff(path: Path, side: int, rows: int = 0, tile: int = 0) -> Path:
    """A kilobyte that says it is a TIFF of `side` × `side` pixels, in strips of so many rows or in tiles."""
    tags = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 277: 1}
    tags |= {322: tile, 323: tile, 324: 8, 325: 8} if tile else {273: 8, 278: rows, 279: 2**32 - 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(1000))
    return path


def vrt(path: Path, inside: str, side: int = 100, band: str = "") -> Path:
    path.write_text(
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}">'
        f'<VRTRasterBand dataType="Byte" band="1"{band}>{inside}</VRTRasterBand></VRTDataset>'
    )
    return path


def source(name: str) -> str:
    return f'<SimpleSource><SourceFilename relativeToVRT="1">{name}</SourceFilename></SimpleSource>'


def in_circles(folder: Path) -> Path:
    vrt(folder / "b.vrt", source("a.vrt"))
    return vrt(folder / "a.vrt", source("b.vrt"))


def with_code(folder: Path) -> Path:
    """GDAL can run Python that stands in a virtual raster."""
    formats.tiled(folder / "s.tif", formats.ramp("uint8"))
    code = f"import os\nos.mkdir({str(folder / 'ran')!r})\ndef f(*a, **k): pass"
    inside = "<PixelFunctionLanguage>Python</PixelFunctionLanguage><PixelFunctionType>f</PixelFunctionType>"
    inside += f"<PixelFunctionCode><![CDATA[\n{code}\n]]></PixelFunctionCode>{source('s.tif')}"
    return vrt(folder / "a.vrt", inside, 64, ' subClass="VRTDerivedRasterBand"')


def laughing(folder: Path) -> Path:
    """A label that would be three gigabytes of `ha`, were its entities replaced."""
    path = formats.pds4(folder / "a.xml")
    entities = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    text = path.read_text()
    at = text.index("<Product_Observational")
    path.write_text(
        f'{text[:at]}<!DOCTYPE a [<!ENTITY l0 "ha">{entities}]>{text[at:].replace("<title>", "<title>&l9;", 1)}'
    )
    return path


def cube(folder: Path, old: str, new: str) -> Path:
    path = formats.isis_cube(folder / "a.cub", tile=32)
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode().ljust(len(old))))
    return path


IMAGES: dict[str, Callable[[Path], Path]] = {
    "a TIFF in one strip": lambda f: tiff(f / "a.tif", MILLION, rows=MILLION),
    "a TIFF in rows": lambda f: tiff(f / "a.tif", MILLION, rows=1),
    "a TIFF in small tiles": lambda f: tiff(f / "a.tif", MILLION, tile=16),
    "a TIFF in one tile": lambda f: tiff(f / "a.tif", MILLION, tile=1 << 20),
    "a TIFF as large as numbers go": lambda f: tiff(f / "a.tif", 2**31 - 1, tile=1 << 16),
    "a cube": lambda f: cube(f, "Samples = 80\n      Lines = 64", "Samples=999999\nLines=999999"),
    "a cube in one tile": lambda f: cube(f, "TileSamples = 32\n TileLines = 32", "TileSamples=999999\nTileLines=9"),
    "a cube in no tiles": lambda f: cube(f, "TileSamples = 32\n TileLines = 32", "TileSamples=0\nTileLines=0"),
    "a virtual raster": lambda f: vrt(f / "a.vrt", "", 2**31 - 1),
    "a virtual raster of itself": lambda f: vrt(f / "a.vrt", source("a.vrt")),
    "virtual rasters in circles": in_circles,
    "a virtual raster with code": with_code,
    "a label that laughs": laughing,
}


@pytest.mark.parametrize("lie", IMAGES.values(), ids=IMAGES)
def test_an_image_that_lies_is_refused(lie: Callable[[Path], Path], tmp_path: Path, reader: Reader) -> None:
    assert reader.read("image", lie(tmp_path)) == {"refused": "image"}
    assert not (tmp_path / "ran").exists()


def test_a_large_image_of_few_pixels_is_none_that_lies(tmp_path: Path, reader: Reader) -> None:
    """10,000 million pixels, of which a corner was ever written."""
    path, side = tmp_path / "sparse.tif", 100_000
    facts = {"driver": "GTiff", "width": side, "height": side, "count": 1, "dtype": "uint8", "nodata": 0}
    with rasterio.open(path, "w", tiled=True, blockxsize=512, blockysize=512, SPARSE_OK=True, **facts) as file:
        file.write(np.ones((1, 600, 600), "uint8"), window=rasterio.windows.Window(0, 0, 600, 600))
    assert "read" in reader.read("image", path)


def test_words_that_take_long_to_read_are_read_at_once(tmp_path: Path, reader: Reader) -> None:
    """Patterns that try every way to split a long run of digits or lines would take minutes for these."""
    (tmp_path / "a.lbl").write_text("\n" * 500_000 + "OBJECT = COLUMN\n" * 50_000)
    (tmp_path / "a.tab").write_text("")
    assert reader.read("table", tmp_path / "a.lbl") == {"refused": "data"}
    assert quantity_of("1" * 200_000 + "x") is None
    assert quantity_of("." + "1" * 200_000 + " <" + "m" * 200_000) is None


# ---- models ------------------------------------------------------------------------------------------------------


def with_weights(folder: Path, data: bytes) -> Path:
    path = weights(folder)
    path.write_bytes(data)
    card_of(folder)
    return path


def tensor(shape: str, end: int) -> bytes:
    """The header of a file of weights that has nothing behind it."""
    header = f'{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}'.encode()
    return struct.pack("<Q", len(header)) + header


def spreading(folder: Path) -> Path:
    """A hundred megabytes of steps, each of which stands for 128 numbers of a matrix that has four."""
    import torch
    from safetensors.torch import save

    matrix = {"0.weight": torch.zeros(2, 2, dtype=torch.int8), "0.weight.int8_step": torch.ones(100_000, 250)}
    return with_weights(folder, save(matrix))


def no_number(folder: Path) -> Path:
    from safetensors.torch import load_file, save

    found = load_file(weights(folder))
    next(iter(found.values()))[0] = float("nan")
    return with_weights(folder, save(found))


def text(folder: Path, card: str) -> Path:
    path = weights(folder)
    (folder / "model.json").write_text(card)
    return path


MODELS: dict[str, Callable[[Path], Path]] = {
    "a header of exabytes": lambda f: with_weights(f, struct.pack("<Q", 2**62) + b"{}"),
    "a header of gigabytes": lambda f: with_weights(f, struct.pack("<Q", 3 << 30) + b"{}"),
    "a tensor of terabytes": lambda f: with_weights(f, tensor("[1000000000000]", 4 * 10**12)),
    "a tensor that overflows": lambda f: with_weights(f, tensor(f"[{2**62}, 4]", 0)),
    "steps that spread": spreading,
    "a weight that is no number": no_number,
    "a million channels": lambda f: weights(f, settings={"channels": MILLION, "depth": 2, "outputs": 1}),
    "sixteen thousand channels": lambda f: weights(f, settings={"channels": 16_000, "depth": 9, "outputs": 1}),
    "a hundred million layers": lambda f: weights(f, settings={"channels": 2, "depth": 10**8, "outputs": 1}),
    "another architecture": lambda f: weights(f, family="unet", settings={"width": 10_000}),
    "a tile of a million": lambda f: weights(f, tile=MILLION),
    "a stride of text": lambda f: weights(f, stride="1"),
    "a range of no numbers": lambda f: weights(f, pixel_size_m=[float("nan"), float("inf")]),
    "a card of brackets": lambda f: text(f, "[" * 100_000),
    "a card of one word": lambda f: text(f, '"rocks"'),
    "a card of a number too long": lambda f: text(f, "9" * 5000),
}


@pytest.mark.parametrize("lie", MODELS.values(), ids=MODELS)
def test_a_model_that_lies_is_refused(lie: Callable[[Path], Path], tmp_path: Path, reader: Reader) -> None:
    assert reader.read("model", lie(tmp_path)) == {"refused": "model"}
