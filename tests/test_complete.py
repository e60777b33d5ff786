"""A file that was cut short is found before anybody computes on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import formats
import pytest
import rasterio

from lunar_processing.errors import ImageError
from lunar_processing.raster.complete import check_complete, expected_size

BUILDERS: dict[str, Callable[[Path], Path]] = {
    "isis": lambda folder: formats.isis_cube(folder / "a.cub"),
    "isis tiled": lambda folder: formats.isis_cube(folder / "a.cub", tile=32),
    "nac edr": lambda folder: formats.nac_edr(folder / "a.IMG"),
    "nac cdr": lambda folder: formats.nac_cdr(folder / "a.IMG"),
    "kaguya": lambda folder: formats.kaguya_tc(folder),
    "pds4": lambda folder: formats.pds4(folder / "a.xml"),
    "vicar": lambda folder: formats.vicar(folder / "a.vic", formats.ramp("int16")),
    "cog": lambda folder: formats.cog(folder / "a.tif"),
    "jpeg 2000": lambda folder: formats.jpeg2000(folder / "a.jp2"),
    "png": lambda folder: formats.png(folder / "a.png", formats.ramp("uint16")),
}

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def check(path: Path) -> None:
    with rasterio.open(path) as dataset:
        check_complete(dataset, path)


def pixel_file(path: Path) -> Path:
    """Where the pixels lie: beside the label in some formats."""
    return {".lbl": path.with_suffix(".img"), ".xml": path.with_suffix(".img")}.get(path.suffix, path)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_a_whole_file_passes(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    check(build(tmp_path))


@pytest.mark.parametrize("keep", [0.6, 0.999])
@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_a_file_cut_short_is_refused_with_the_cure(tmp_path: Path, build: Callable[[Path], Path], keep: float) -> None:
    path = build(tmp_path)
    formats.truncate(pixel_file(path), keep)
    try:
        dataset = rasterio.open(path)
    except rasterio.errors.RasterioError:
        return  # refused at once, which is as good
    with dataset, pytest.raises(ImageError, match="cut short") as caught:
        check_complete(dataset, path)
    assert "download" in caught.value.cure


def test_a_tiff_that_lost_its_last_tables_is_found(tmp_path: Path) -> None:
    """GDAL would read it without its scale, and say nothing."""
    path = formats.scaled(tmp_path / "a.tif", formats.ramp(), 0.01, 1.0, "I/F")
    path.write_bytes(path.read_bytes()[:-3])
    with rasterio.open(path) as dataset:
        assert dataset.scales == (1.0,)
        with pytest.raises(ImageError, match="cut short"):
            check_complete(dataset, path)


def test_a_tiff_of_strips_cut_in_its_pixels_is_found(tmp_path: Path) -> None:
    path = formats.geotiff(tmp_path / "a.tif", formats.ramp(width=300, height=400))
    check(path)
    # The library writes the directory first, so that a half-downloaded file opens without complaint.
    with rasterio.open(formats.truncate(path)) as dataset, pytest.raises(ImageError, match="cut short"):
        check_complete(dataset, path)


def test_a_virtual_raster_is_as_whole_as_its_sources(tmp_path: Path) -> None:
    left, right = formats.tiled(tmp_path / "left & more.tif"), formats.nac_cdr(tmp_path / "right.IMG")
    path = formats.vrt(tmp_path / "both.vrt", left, right)
    check(path)
    formats.truncate(right)
    with pytest.raises(ImageError, match=r"right\.IMG is cut short"):
        check(path)
    right.unlink()
    with pytest.raises(ImageError, match=r"right\.IMG, which is missing"):
        check(path)


def test_a_label_whose_image_file_is_missing_says_so(tmp_path: Path) -> None:
    path = formats.isis_cube(tmp_path / "a.cub")
    whole = path.read_bytes()
    with rasterio.open(path) as dataset:
        path.write_bytes(whole[:4096])  # the label alone
        with pytest.raises(ImageError, match="its label promises 24,576"):
            check_complete(dataset, path)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("formats/nacl.img", 3637 + 5064 * 10),  # its FILE_RECORDS still tell of the 52,224 lines it was cut from
        ("formats/M143947267L.cal.echo.crop.cub", 65536 + 400 * 400 * 4),
        ("formats/TC1S2B0_01_05186N225E0040_mini.lbl", 3208 * 3 * 2),
        ("lola/LDEM_16.LBL", 5760 * 2880 * 2),
        ("nac_cdr/M115143943RE_cal_echo_2_2.png", None),
    ],
)
def test_real_files_are_whole(real_data: Path, name: str, size: int | None) -> None:
    with rasterio.open(real_data / name) as dataset:
        assert expected_size(dataset, real_data / name) == size
        check_complete(dataset, real_data / name)
