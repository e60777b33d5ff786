"""Every kind of file opens as the same thing: pixels in physical units, and which of them are signal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import formats
import numpy as np
import pytest
import rasterio
from formats import ramp

from lunar_processing.errors import ImageError, LunarError, ParameterError
from lunar_processing.grid import PIXEL_SPACE, Window
from lunar_processing.raster.image import Patch, open_image

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def read(path: Path, band: int | None = None) -> Patch:
    with open_image(path, band) as image:
        return image.read(image.grid.window)


# ---- the formats -----------------------------------------------------------------------------------------

LOSSLESS: dict[str, tuple[Callable[..., Path], str, list[str]]] = {
    "GeoTIFF strips": (formats.geotiff, "a.tif", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float64"]),
    "GeoTIFF tiles": (formats.tiled, "a.tif", ["uint8", "uint16", "int16", "float32"]),
    "COG": (formats.cog, "a.tif", ["uint8", "uint16", "float32"]),
    "with overviews": (formats.with_overviews, "a.tif", ["uint16"]),
    "JPEG 2000": (formats.jpeg2000, "a.jp2", ["uint8", "uint16", "int16"]),
    "PNG": (formats.png, "a.png", ["uint8", "uint16"]),
    "VICAR": (formats.vicar, "a.vic", ["uint8", "int16", "float32"]),
    "ISIS cube": (formats.isis_cube, "a.cub", ["uint8", "int16", "float32"]),
    "PDS4": (formats.pds4, "a.xml", ["int16", "float32"]),
    "raw NAC": (formats.nac_edr, "a.IMG", ["uint8"]),
}


@pytest.mark.parametrize(
    ("build", "name", "dtype"),
    [(build, name, dtype) for build, name, dtypes in LOSSLESS.values() for dtype in dtypes],
    ids=[f"{kind} {dtype}" for kind, (_, _, dtypes) in LOSSLESS.items() for dtype in dtypes],
)
def test_pixels_come_out_as_they_went_in(tmp_path: Path, build: Callable[..., Path], name: str, dtype: str) -> None:
    pixels = ramp(dtype)
    patch = read(build(tmp_path / name, pixels))
    assert patch.pixels.dtype == pixels.dtype
    assert (patch.pixels == pixels).all()
    assert patch.valid.all()


def test_a_tiled_cube_whose_tiles_reach_over_its_edge(tmp_path: Path) -> None:
    pixels = ramp("float32", width=70, height=50)
    assert (read(formats.isis_cube(tmp_path / "a.cub", pixels, tile=32)).pixels == pixels).all()


def test_a_virtual_raster_reads_from_its_sources(tmp_path: Path) -> None:
    left, right = (
        formats.tiled(tmp_path / "l.tif", ramp("uint16")),
        formats.tiled(tmp_path / "r.tif", ramp("uint16") + 9),
    )
    patch = read(formats.vrt(tmp_path / "both.vrt", left, right))
    assert (patch.pixels == np.hstack([ramp("uint16"), ramp("uint16") + 9])).all()


def test_spaces_and_foreign_letters_in_paths(tmp_path: Path) -> None:
    folder = tmp_path / "Луна – mare façade"
    folder.mkdir()
    assert read(formats.tiled(folder / "Bild 1 (südlich).tif")).valid.all()


# ---- physical units --------------------------------------------------------------------------------------


def test_a_calibrated_nac_image_is_read_in_reflectance(tmp_path: Path) -> None:
    path = formats.nac_cdr(tmp_path / "M104318871RC.IMG")
    with open_image(path) as image:
        assert (image.scale, image.unit, image.product.id) == (formats.CDR_SCALE, "I/F", "M104318871RC")
        patch = image.read(image.grid.window)
    assert patch.pixels.dtype == np.float32
    assert np.allclose(patch.pixels, ramp("int16") * formats.CDR_SCALE, rtol=1e-6)


def test_scale_offset_and_unit_of_a_geotiff_apply(tmp_path: Path) -> None:
    path = formats.scaled(tmp_path / "dem.tif", ramp("int16"), 0.5, 1_737_400.0, "m", nodata=7)
    with open_image(path) as image:
        patch = image.read(image.grid.window)
        assert image.unit == "m"
    assert np.array_equal(patch.pixels[patch.valid], (ramp("int16") * 0.5 + 1_737_400.0)[ramp("int16") != 7])
    assert (~patch.valid).sum() == 1  # nodata is a stored number, compared before scaling


# ---- what is valid ---------------------------------------------------------------------------------------


def holes(dtype: str, values: np.ndarray | list[float]) -> tuple[np.ndarray, np.ndarray]:
    """A ramp with `values` at scattered places inside, and where the ramp is untouched."""
    pixels, valid = ramp(dtype), np.ones((64, 80), bool)
    for i, value in enumerate(values):
        pixels[10 + 3 * i, 20 + 5 * i] = value
        valid[10 + 3 * i, 20 + 5 * i] = False
    return pixels, valid


REALS, SHORTS = formats.ISIS_REAL_SPECIALS.tolist(), formats.INT16_SPECIALS.tolist()
INVALID: dict[str, tuple[str, list[float], Callable[[Path, np.ndarray], Path]]] = {
    "nodata": ("uint16", [60000], lambda folder, p: formats.tiled(folder / "a.tif", p, nodata=60000)),
    "nodata 0": ("uint8", [0, 0], lambda folder, p: formats.tiled(folder / "a.tif", p, nodata=0)),
    "nodata of COG": ("float32", [-9999.0], lambda folder, p: formats.cog(folder / "a.tif", p, nodata=-9999)),
    "NaN": ("float32", [np.nan], lambda folder, p: formats.tiled(folder / "a.tif", p)),
    "NaN as nodata": ("float32", [np.nan], lambda folder, p: formats.tiled(folder / "a.tif", p, nodata=np.nan)),
    "NaN beside nodata": ("float32", [np.nan, -1], lambda folder, p: formats.tiled(folder / "a.tif", p, nodata=-1)),
    "infinities": ("float64", [np.inf, -np.inf], lambda folder, p: formats.tiled(folder / "a.tif", p)),
    "ISIS reals": ("float32", REALS, lambda folder, p: formats.isis_cube(folder / "a.cub", p)),
    "ISIS tiles": ("float32", REALS, lambda folder, p: formats.isis_cube(folder / "a.cub", p, tile=32)),
    "ISIS shorts": ("int16", SHORTS, lambda folder, p: formats.isis_cube(folder / "a.cub", p)),
    "ISIS bytes": ("uint8", [0, 255], lambda folder, p: formats.isis_cube(folder / "a.cub", p)),
    "NAC CDR": ("int16", SHORTS, lambda folder, p: formats.nac_cdr(folder / "a.IMG", p)),
    "Kaguya": ("int16", formats.KAGUYA_SPECIALS.tolist(), lambda folder, p: formats.kaguya_tc(folder, p)),
    "PDS4": (
        "int16",
        [-32768, 32767],
        lambda folder, p: formats.pds4(folder / "a.xml", p, specials="<saturated_constant>32767</saturated_constant>"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "values", "build"), INVALID.values(), ids=INVALID)
def test_what_is_no_signal_is_invalid_and_reads_as_0(
    tmp_path: Path, dtype: str, values: list[float], build: Callable[[Path, np.ndarray], Path]
) -> None:
    pixels, valid = holes(dtype, values)
    patch = read(build(tmp_path, pixels))
    assert (patch.valid == valid).all()
    assert (patch.pixels[~valid] == 0).all()
    assert (patch.pixels[valid] != 0).all()


@pytest.mark.parametrize("internal", [True, False])
def test_a_mask_band_says_what_is_valid(tmp_path: Path, internal: bool) -> None:
    _, valid = holes("uint16", [1, 1, 1])
    assert (read(formats.with_mask_band(tmp_path / "a.tif", ramp("uint16"), valid, internal)).valid == valid).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_alpha_says_what_is_valid_and_is_no_band_to_choose(tmp_path: Path, dtype: str) -> None:
    _, valid = holes(dtype, [1, 1, 1])
    with open_image(formats.with_alpha(tmp_path / "a.tif", ramp(dtype), valid)) as image:
        assert image.band == 1
        assert (image.read(image.grid.window).valid == valid).all()


def test_zeros_of_a_raw_nac_image_are_dark_ground(tmp_path: Path) -> None:
    pixels, _ = holes("uint8", [0, 0, 0])
    assert read(formats.nac_edr(tmp_path / "M104318871LE.IMG", pixels)).valid.all()


def test_a_nodata_value_that_the_type_cannot_hold_masks_nothing(tmp_path: Path) -> None:
    left = formats.tiled(tmp_path / "a.tif", holes("uint8", [0])[0])
    path = formats.vrt(tmp_path / "a.vrt", left)
    for nodata in ("-9999", "0.5", "nan"):
        path.write_text(
            formats.vrt(path, left).read_text().replace('band="1">', f'band="1"><NoDataValue>{nodata}</NoDataValue>')
        )
        assert read(path).valid.all(), nodata


# ---- black borders ---------------------------------------------------------------------------------------


def test_a_black_border_is_invalid_and_a_dark_crater_is_not(tmp_path: Path) -> None:
    pixels = ramp("uint8", 80, 64)
    border = np.ones_like(pixels, bool)
    border[5:60, 7:70] = False
    pixels[border] = 0
    pixels[30:40, 30:40] = 0  # a crater in permanent shadow
    patch = read(formats.tiled(tmp_path / "a.tif", pixels))
    assert (patch.valid == ~border).all()


def test_the_black_corners_of_a_tilted_strip_are_invalid(tmp_path: Path) -> None:
    rows, cols = np.mgrid[0:200, 0:150]
    strip = (cols > rows * 0.3) & (cols < rows * 0.3 + 80)
    pixels = np.where(strip, ramp("uint16", 150, 200), 0).astype("uint16")
    patch = read(formats.cog(tmp_path / "a.tif", pixels))
    assert (patch.valid == strip).all()


def test_the_black_border_is_the_same_in_every_window(tmp_path: Path) -> None:
    pixels = ramp("uint16", 150, 200)
    pixels[:23] = 0
    pixels[:, :31] = 0
    pixels[100:110, 60:90] = 0
    path = formats.tiled(tmp_path / "a.tif", pixels)
    whole = read(path)
    with open_image(path) as image:
        for row in range(0, 200, 33):
            for col in range(0, 150, 47):
                window = Window(col, row, 47, 33).clip(150, 200)
                part = image.read(window)
                assert (part.valid == whole.valid[row : window.bottom, col : window.right]).all()
        assert image.certainly_empty(Window(0, 0, 31, 200))
        assert not image.certainly_empty(Window(0, 0, 32, 200))


def test_the_valid_share_counts_what_is_skipped_as_empty(tmp_path: Path) -> None:
    """Half of the image is border, whole sampled windows of it, which nobody reads."""
    pixels = np.full((512, 1024), 100, np.uint8)
    pixels[:, 512:] = 0
    with open_image(formats.geotiff(tmp_path / "half.tif", pixels)) as image:
        assert image.survey.valid_fraction == 0.5


def test_a_file_that_declares_its_nodata_has_no_black_border(tmp_path: Path) -> None:
    pixels = ramp("uint16")
    pixels[:10] = 0
    assert read(formats.tiled(tmp_path / "a.tif", pixels, nodata=65535)).valid.all()


def test_an_image_of_nothing_but_zeros_has_no_valid_pixel(tmp_path: Path) -> None:
    path = formats.tiled(tmp_path / "a.tif", np.zeros((64, 80), "uint8"))
    with open_image(path) as image:
        assert not image.read(image.grid.window).valid.any()
        with pytest.raises(ImageError, match="no valid pixel"):
            _ = image.survey


def test_an_image_of_nothing_but_nodata_says_so(tmp_path: Path) -> None:
    path = formats.tiled(tmp_path / "a.tif", np.full((64, 80), 9, "uint8"), nodata=9)
    with open_image(path) as image, pytest.raises(ImageError, match="no valid pixel"):
        _ = image.survey


# ---- windows ---------------------------------------------------------------------------------------------


def test_outside_the_image_nothing_is_valid(tmp_path: Path) -> None:
    with open_image(formats.tiled(tmp_path / "a.tif", ramp("uint16"))) as image:
        patch = image.read(Window(-10, -20, 100, 100))
        assert patch.pixels.shape == patch.valid.shape == (100, 100)
        assert (patch.pixels[20:84, 10:90] == ramp("uint16")).all()
        assert patch.valid.sum() == 64 * 80
        for nowhere in (Window(-50, 0, 20, 20), Window(0, 500, 20, 20), Window(80, 64, 5, 5)):
            assert not image.read(nowhere).valid.any()
            assert image.read(nowhere).pixels.shape == (nowhere.height, nowhere.width)


def test_an_image_of_one_pixel(tmp_path: Path) -> None:
    patch = read(formats.geotiff(tmp_path / "a.tif", np.array([[7]], "uint8")))
    assert patch.pixels.tolist() == [[7]]
    assert patch.valid.all()


# ---- place -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "crs", [formats.SOUTH_POLE, formats.EQUIRECTANGULAR, formats.EQUIRECTANGULAR_180, formats.DEGREES]
)
@pytest.mark.parametrize("transform", [formats.NORTH_UP, formats.SOUTH_UP, formats.ROTATED])
def test_the_grid_keeps_system_and_geotransform(tmp_path: Path, crs: str, transform: rasterio.Affine) -> None:
    with open_image(formats.tiled(tmp_path / "a.tif", crs=crs, transform=transform)) as image:
        assert image.grid.transform.almost_equals(transform)
        assert image.grid.wkt is not None
        assert "1737400" in image.grid.wkt


def test_without_a_system_points_lie_where_qgis_draws_the_image(tmp_path: Path) -> None:
    for path in (
        formats.nac_edr(tmp_path / "a.IMG"),
        formats.isis_cube(tmp_path / "a.cub"),
        formats.png(tmp_path / "a.png"),
        formats.tiled(tmp_path / "a.tif", crs=None, transform=None),
        formats.tiled(tmp_path / "b.tif", transform=None),  # a system that places nothing
    ):
        with open_image(path) as image:
            assert image.grid.transform == PIXEL_SPACE, path
            assert image.grid.wkt is None, path


# ---- refusals --------------------------------------------------------------------------------------------


def test_a_band_must_be_chosen_among_several(tmp_path: Path) -> None:
    path = formats.rgb(tmp_path / "a.tif")
    with pytest.raises(LunarError, match="3 bands") as caught:
        open_image(path)
    assert "--band" in caught.value.cure
    assert (read(path, band=2).pixels == ramp("uint8") + 1).all()
    for band in (0, 4, -1):
        with pytest.raises(ParameterError, match=f"no band {band}"):
            open_image(path, band)


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "palette": (lambda folder: formats.palette(folder / "a.tif"), "palette"),
    "complex": (lambda folder: formats.geotiff(folder / "a.tif", ramp("complex64")), "complex64"),
    "text": (lambda folder: formats.not_an_image(folder / "a.tif"), "not an image"),
    "missing": (lambda folder: folder / "a.tif", "no file"),
    "folder": (lambda folder: folder, "not an image"),
    "cut IMG": (lambda folder: formats.truncate(formats.nac_cdr(folder / "a.IMG")), "cut short"),
    "cut cube": (lambda folder: formats.truncate(formats.isis_cube(folder / "a.cub")), "cut short"),
    "cut TIFF": (lambda folder: formats.truncate(formats.geotiff(folder / "a.tif")), "cut short"),
    "cut JPEG 2000": (lambda folder: formats.truncate(formats.jpeg2000(folder / "a.jp2"), 0.9), "cut short"),
    "empty": (lambda folder: formats.truncate(formats.geotiff(folder / "a.tif"), 0.0), "not an image"),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_with_a_cure(
    tmp_path: Path, build: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        open_image(build(tmp_path))
    assert caught.value.cure


def test_a_damaged_block_is_named_when_it_is_reached(tmp_path: Path) -> None:
    path = formats.tiled(tmp_path / "a.tif", ramp("uint16", 200, 200))
    data = bytearray(path.read_bytes())
    with rasterio.open(path) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_3_5", "TIFF", bidx=1))
    data[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    with open_image(path) as image:
        assert image.read(Window(0, 0, 200, 100)).valid.all()
        with pytest.raises(ImageError, match="rows 100–199"):
            image.read(Window(0, 100, 200, 100))


@pytest.mark.parametrize("label", ["a.lbl", "a.LBL"])
def test_raw_pixels_opened_without_their_label_point_to_it(tmp_path: Path, label: str) -> None:
    (tmp_path / "a.img").write_bytes(b"\1" * 1000)
    (tmp_path / label).write_text("PDS_VERSION_ID = PDS3\nEND\n")
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "a.img")
    assert label in caught.value.cure


# ---- real files ------------------------------------------------------------------------------------------


def test_a_real_raw_nac_image_is_signal_from_edge_to_edge(real_data: Path) -> None:
    with open_image(real_data / "formats" / "nacl.img") as image:
        patch = image.read(image.grid.window)
        raw = np.fromfile(image.path, "uint8", count=50640, offset=3637).reshape(10, 5064)
    assert (patch.pixels == raw).all()
    assert patch.valid.mean() > 0.98


def test_a_real_cube_of_boulders_is_reflectance(real_data: Path) -> None:
    with open_image(real_data / "formats" / "M143947267L.cal.echo.crop.cub") as image:
        survey = image.survey
        assert (image.unit, image.grid.width, image.grid.height) == ("I/F", 400, 400)
    assert survey.valid_fraction == 1.0
    assert 0 < survey.low < survey.high < 0.5


@pytest.mark.parametrize("kind", ["default", "near", "pair"])
def test_real_cubes_of_almost_pure_noise_keep_their_negative_signal(real_data: Path, kind: str) -> None:
    with open_image(real_data / "formats" / f"M1333276014R.{kind}.crop.cub") as image:
        patch = image.read(image.grid.window)
        stored = np.fromfile(image.path, "<f4", count=6400, offset=65536).reshape(80, 80)
    special = stored <= formats.ISIS_REAL_SPECIALS[0]
    assert (patch.valid == ~special).all()
    assert np.abs(patch.pixels).max() < 1.0


@pytest.mark.parametrize("name", ["TC1S2B0_01_00811N526E0443_mini", "TC1S2B0_01_05186N225E0040_mini"])
def test_real_kaguya_strips_are_radiance_without_their_invalid_pixels(real_data: Path, name: str) -> None:
    patch = read(real_data / "formats" / f"{name}.lbl")
    stored = np.fromfile(real_data / "formats" / f"{name}.img", ">i2").reshape(patch.pixels.shape)
    assert (patch.valid == ~np.isin(stored, [*formats.KAGUYA_SPECIALS, -32768])).all()
    assert np.allclose(patch.pixels[patch.valid], stored[patch.valid] * 0.013, rtol=1e-6)


def test_the_real_lola_map_is_in_metres_from_the_centre_of_the_moon(real_data: Path) -> None:
    with open_image(real_data / "lola" / "LDEM_16.LBL") as image:
        assert image.grid.georeferenced
        patch = image.read(Window(0, 1000, 5760, 512))
    assert patch.valid.all()
    assert 1_737_400 - 9_200 < patch.pixels.min() < patch.pixels.max() < 1_737_400 + 10_900


def test_every_real_nac_crop_opens(real_data: Path) -> None:
    paths = sorted((real_data / "nac_cdr").glob("*.png"))
    assert len(paths) == 16
    for path in paths:
        with open_image(path) as image:
            assert image.survey.valid_fraction > 0.5, path
            assert not image.survey.constant, path


@pytest.mark.parametrize(
    "name",
    [
        "formats/nacl.img",
        "formats/nacr.img",
        "formats/M143947267L.cal.echo.crop.cub",
        "formats/M1333276014R.default.crop.cub",
        "formats/M1333276014R.near.crop.cub",
        "formats/M1333276014R.pair.crop.cub",
        "formats/TC1S2B0_01_00811N526E0443_mini.lbl",
        "formats/TC1S2B0_01_05186N225E0040_mini.lbl",
        "nac_cdr/M115143943RE_cal_echo_2_2.png",
        "nac_cdr/M1155395732_mosaic_train_small.png",
        "moon/moon.tif",
        "moon/moon_dem.tif",
    ],
)
def test_a_run_on_a_real_file_ends_well(real_data: Path, tmp_path: Path, name: str) -> None:
    source, result = real_data / name, tmp_path / "enhanced.tif"
    command = ["enhance", str(source), str(result), "--model", "stretch", "--body", "Moon", "--progress", "none"]
    done = subprocess.run(
        [sys.executable, "-m", "lunar_processing", *command],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    patch = read(source)
    with rasterio.open(result) as file:
        assert file.descriptions[:3] == ("enhanced", "sigma", "flags")
        assert file.shape == patch.pixels.shape
        assert (np.isfinite(file.read(1)) == patch.valid).all()
        assert ((file.read(3).astype(int) & 1) == ~patch.valid).all()
        assert np.ptp(file.read(1)[patch.valid]) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["enhanced.tif"]
