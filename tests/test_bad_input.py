"""Bad input of every kind: a plain word and a cure, or a stated behaviour; nothing lost, nothing half done."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import formats
import numpy as np
import pytest
import rasterio
from affine import Affine
from running import Ran, lunar, make_models, names, read_all, read_layer, snapshot, strict_json

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning", "error::RuntimeWarning")

TOOLS = ("enhance", "anomalies", "rocks")
MODEL = {"enhance": "same", "anomalies": "square", "rocks": "bright"}
OTHER_TASK = {"enhance": "bright", "anomalies": "same", "rocks": "square"}


@pytest.fixture(scope="session")
def all_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def models(all_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(all_models, tmp_path_factory.mktemp("copy") / "models"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where results go; inputs lie beside it."""
    made = tmp_path / "results"
    made.mkdir()
    return made


@pytest.fixture(params=TOOLS)
def tool(request: pytest.FixtureRequest) -> str:
    return request.param


def outputs(tool: str, folder: Path) -> list[object]:
    """Everything a tool can write."""
    return {
        "enhance": [folder / "out.tif"],
        "anomalies": [folder / "out.gpkg", "--scores", folder / "scores.tif", "--heat", folder / "heat.tif"],
        "rocks": [folder / "out.gpkg", "--mask", folder / "mask.tif", "--area-layer", "--outlines-layer"],
    }[tool]


MADE = {
    "enhance": ["out.tif"],
    "anomalies": ["heat.tif", "out.gpkg", "scores.tif"],
    "rocks": ["mask.tif", "out.gpkg"],
}


def ground(width: int = 150, height: int = 130, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(8).integers(60, 120, (height, width)).astype(dtype)


def assert_refused(ran: Ran, *words: str, code: int = 1) -> None:
    """Exit code 1, or 2 for wrong use, the words, and a cure; no Python names, no trace."""
    assert ran.code == code, ran.out
    assert ran.out == ""
    assert "Error: " in ran.err
    assert len(ran.err.split("Cure:")[1].split()) >= 3
    for word in words:
        assert word in ran.err
    for foreign in ("Traceback", "<class", "object at 0x"):
        assert foreign not in ran.err


# ---- images that are none, or not the right ones -----------------------------------------------------------------


def truncated(build: Callable[[Path], Path]) -> Callable[[Path], Path]:
    return lambda path: formats.truncate(build(path), 0.7)


def empty_file(path: Path) -> Path:
    path.write_bytes(b"")
    return path


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no file": (lambda f: f / "missing.tif", "There is no file"),
    "a letter": (lambda f: formats.not_an_image(f / "letter.tif"), "not an image"),
    "an empty file": (lambda f: empty_file(f / "empty.tif"), "not an image"),
    "a folder": (lambda f: f, "not an image"),
    "all nodata": (lambda f: formats.tiled(f / "a.tif", np.zeros((64, 80), np.uint8), nodata=0), "no valid pixel"),
    "all black": (lambda f: formats.tiled(f / "a.tif", np.zeros((64, 80), np.uint8)), "no valid pixel"),
    "all NaN": (lambda f: formats.tiled(f / "a.tif", np.full((64, 80), np.nan, np.float32)), "no valid pixel"),
    "all special": (lambda f: formats.nac_cdr(f / "a.IMG", np.full((64, 80), -32766, np.int16)), "no valid pixel"),
    "RGB": (lambda f: formats.rgb(f / "a.tif"), "--band"),
    "palette": (lambda f: formats.palette(f / "a.tif"), "palette"),
    "complex": (lambda f: formats.tiled(f / "a.tif", ground().astype(np.complex64)), "complex"),
    "on the Earth": (lambda f: formats.tiled(f / "a.tif", ground(), crs=formats.EARTH_UTM), "--body"),
    "truncated TIFF": (truncated(lambda f: formats.tiled(f / "a.tif", ground(900, 900))), "cut short"),
    "truncated COG": (truncated(lambda f: formats.cog(f / "a.tif", ground(900, 900))), "cut short"),
    "truncated IMG": (truncated(lambda f: formats.nac_edr(f / "a.IMG", ground())), "cut short"),
    "truncated CDR": (truncated(lambda f: formats.nac_cdr(f / "a.IMG", ground(dtype="int16"))), "cut short"),
    "truncated cube": (truncated(lambda f: formats.isis_cube(f / "a.cub", ground(dtype="float32"))), "cut short"),
    "truncated JPEG 2000": (truncated(lambda f: formats.jpeg2000(f / "a.jp2", ground())), "cut short"),
    "truncated PNG": (truncated(lambda f: formats.png(f / "a.png", ground())), "cut short"),
    "VRT without its source": (lambda f: vrt_without_source(f), "missing"),
    "damaged in the middle": (lambda f: damaged_in_the_middle(f / "a.tif"), "damaged"),
}


def vrt_without_source(folder: Path) -> Path:
    source = formats.tiled(folder / "part.tif", ground())
    path = formats.vrt(folder / "a.vrt", source)
    source.unlink()
    return path


def damaged_in_the_middle(path: Path) -> Path:
    """Whole by its table of blocks, but one block in the middle cannot be unpacked."""
    formats.tiled(path, ground(900, 900))
    with rasterio.open(path) as dataset:
        start = int(dataset.get_tag_item("BLOCK_OFFSET_14_14", "TIFF", bidx=1))
        size = int(dataset.get_tag_item("BLOCK_SIZE_14_14", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("build", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_image_for_a_tool_is_refused(
    tool: str, build: Callable[[Path], Path], word: str, tmp_path: Path, folder: Path
) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    image = build(inputs)
    before = snapshot(inputs)
    assert_refused(lunar(tool, image, *outputs(tool, folder)), word)
    assert names(folder) == []
    assert snapshot(inputs) == before


@pytest.mark.parametrize(("build", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_info_refuses_it_too_or_says_what_is_wrong(build: Callable[[Path], Path], word: str, tmp_path: Path) -> None:
    ran = lunar("info", build(tmp_path))
    if ran.code == 0:
        assert word in ran.out or word == "damaged"  # a look at some of the pixels need not meet the damaged ones
    else:
        assert_refused(ran, word)


def test_what_exists_survives_a_bad_image(tool: str, tmp_path: Path, folder: Path) -> None:
    good, bad = formats.tiled(tmp_path / "good.tif", ground()), damaged_in_the_middle(tmp_path / "bad.tif")
    assert lunar(tool, good, *outputs(tool, folder), "--sun-azimuth", 90).code == 0
    before = snapshot(folder)
    assert_refused(lunar(tool, bad, *outputs(tool, folder), "--overwrite", "--sun-azimuth", 90), "damaged")
    assert snapshot(folder) == before


# ---- images that are odd, but images -----------------------------------------------------------------------------


def with_nan_and_infinity(path: Path) -> Path:
    pixels = ground(dtype="float32")
    pixels[:40, :40], pixels[100, 100], pixels[101, 90] = np.nan, np.inf, -np.inf
    return formats.tiled(path, pixels)


def with_black_border(path: Path) -> Path:
    pixels = ground()
    pixels[:, :30] = pixels[:20] = 0
    pixels[60:70, 60:90] = 0  # dark, but inside: signal
    return formats.tiled(path, pixels)


def raw_nac_with_dark_pixels(path: Path) -> Path:
    pixels = ground()
    pixels[60:70, 60:90] = 0
    return formats.nac_edr(path, pixels)


def with_special_pixels(path: Path) -> Path:
    pixels = ground(dtype="int16")
    pixels[10:40, 10] = np.resize(formats.INT16_SPECIALS, 30)
    return formats.nac_cdr(path, pixels)


ODD: dict[str, tuple[Callable[[Path], Path], int]] = {
    "no coordinate system": (lambda f: formats.png(f / "a.png", ground()), 0),
    "coordinate system without geotransform": (lambda f: formats.tiled(f / "a.tif", ground(), transform=None), 0),
    "rotated": (lambda f: formats.tiled(f / "a.tif", ground(), transform=formats.ROTATED), 0),
    "south up": (lambda f: formats.tiled(f / "a.tif", ground(), transform=formats.SOUTH_UP), 0),
    "NaN and infinity": (lambda f: with_nan_and_infinity(f / "a.tif"), 1602),
    "black border": (lambda f: with_black_border(f / "a.tif"), 150 * 20 + 110 * 30),
    "raw NAC": (lambda f: raw_nac_with_dark_pixels(f / "a.IMG"), 0),
    "int16 specials": (lambda f: with_special_pixels(f / "a.IMG"), 30),
    "constant": (lambda f: formats.tiled(f / "a.tif", np.full((130, 150), 7, np.uint8)), 0),
    "constant float": (lambda f: formats.tiled(f / "a.tif", np.full((130, 150), 0.1, np.float64)), 0),
    "two values": (lambda f: formats.tiled(f / "a.tif", np.where(ground() > 90, 255, 1).astype(np.uint8)), 0),
    "huge numbers": (lambda f: formats.tiled(f / "a.tif", ground(dtype="float64") * 1e30), 0),
    "tiny numbers": (lambda f: formats.tiled(f / "a.tif", ground(dtype="float64") * 1e-300), 0),
    "size of a tile": (lambda f: formats.tiled(f / "a.tif", ground(1024, 1024)), 0),
    "one more than a tile": (lambda f: formats.tiled(f / "a.tif", ground(1025, 1025)), 0),
    "every second pixel": (
        lambda f: formats.tiled(f / "a.tif", np.where(np.indices((130, 150)).sum(0) % 2, ground(), 0), nodata=0),
        130 * 75,
    ),
    "degrees at the pole": (
        lambda f: formats.tiled(
            f / "a.tif", ground(), crs=formats.DEGREES, transform=Affine(2.4, 0, -180, 0, -0.01, -88.7)
        ),
        0,
    ),
    "degrees past the pole": (
        lambda f: formats.tiled(
            f / "a.tif", ground(), crs=formats.DEGREES, transform=Affine(2.4, 0, -180, 0, -0.01, -89.0)
        ),
        0,
    ),
    "scale and offset": (lambda f: formats.scaled(f / "a.tif", ground(), 0.001, -0.02, "I/F"), 0),
    "unsigned 32 bits": (lambda f: formats.tiled(f / "a.tif", ground(dtype="uint32") * 10_000_000), 0),
    "signed 8 bits": (lambda f: formats.tiled(f / "a.tif", ground(dtype="int8")), 0),
    "nodata that no pixel can hold": (lambda f: formats.tiled(f / "a.tif", ground(), nodata=0.5), 0),
}


@pytest.mark.parametrize(("build", "masked"), ODD.values(), ids=ODD.keys())
def test_odd_images_are_worked_on_and_masked_where_they_are_void(
    tool: str, build: Callable[[Path], Path], masked: int, tmp_path: Path, folder: Path
) -> None:
    image = build(tmp_path)
    before = {name: data for name, data in snapshot(tmp_path).items() if not name.startswith("results")}
    ran = lunar(tool, image, *outputs(tool, folder), "--json")
    assert ran.code == 0, ran.err
    assert names(folder) == MADE[tool]
    result = ran.result
    assert result["counts"]["masked_px"] == masked
    assert_complete(folder)
    after = {name: data for name, data in snapshot(tmp_path).items() if not name.startswith("results")}
    assert after == before


def assert_complete(folder: Path) -> None:
    """Every block and every feature can be read; provenance is there."""
    for path in folder.iterdir():
        if path.suffix == ".tif":
            read_all(path)
            with rasterio.open(path) as dataset:
                strict_json(dataset.tags()["LUNAR_PROVENANCE"])
        else:
            read_layer(path, "rocks" if (folder / "mask.tif").exists() else "anomalies")


@pytest.mark.parametrize("size", [(1, 1), (300, 1), (1, 300), (20, 20), (63, 63)], ids=str)
def test_small_images(tool: str, size: tuple[int, int], tmp_path: Path, folder: Path) -> None:
    """Smaller than a tile is no trouble; a strip of a few pixels has no windows to tell apart."""
    image = formats.tiled(tmp_path / "a.tif", ground(*size))
    ran = lunar(tool, image, *outputs(tool, folder), "--sun-azimuth", 90, "--json")
    if tool == "anomalies" and min(size) < 8:
        assert_refused(ran, "1 px across", "64 px")
        assert names(folder) == []
    else:
        assert ran.code == 0, ran.err
        assert ran.result["counts"]["valid_px"] == size[0] * size[1]
        assert any("windows of 16 px" in w for w in ran.result["warnings"]) == (
            tool == "anomalies" and size == (20, 20)
        )
        assert_complete(folder)


def test_a_band_of_several_is_chosen(tool: str, tmp_path: Path, folder: Path) -> None:
    image = formats.rgb(tmp_path / "a.tif", np.stack([ground(), ground() + 50, ground() + 100]))
    assert lunar(tool, image, *outputs(tool, folder), "--band", 2).code == 0
    assert_complete(folder)


@pytest.mark.parametrize("name", ["Größe 月.tif", "with spaces .and. dots.tif", 'it\'s "quoted".tif', "-dash.tif"])
def test_any_name_of_a_file_will_do(
    tool: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_models: Path
) -> None:
    folder = tmp_path / "Кратер №1 & Søn"
    folder.mkdir()
    image = formats.tiled(folder / name, ground())
    results = folder / "results " / "été"
    results.mkdir(parents=True)
    ran = lunar(tool, image, *outputs(tool, results), "--json")
    assert ran.code == 0, ran.err
    assert names(results) == MADE[tool]
    assert_complete(results)


def test_names_that_are_no_text_or_too_long(tool: str, tmp_path: Path, folder: Path) -> None:
    image = formats.tiled(tmp_path / "a.tif", ground())
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tif")
    shutil.copy(image, strange)
    assert_refused(lunar(tool, strange, *outputs(tool, folder)), "no text")
    for name in (os.fsdecode(b"out\xff"), "x" * 245, "x" * 300):
        out = f"{folder}/{name}{'.tif' if tool == 'enhance' else '.gpkg'}"
        assert_refused(lunar(tool, image, out), "no text" if len(name) < 9 else "too long")
    assert names(folder) == []


def test_names_longer_than_any_file_s_are_of_nothing(tmp_path: Path, folder: Path) -> None:
    long, image = "x" * 5000, formats.tiled(tmp_path / "a.tif", ground())
    (tmp_path / "list.txt").write_text(long)
    formats.vrt(tmp_path / "a.vrt", image).write_text((tmp_path / "a.vrt").read_text().replace("a.tif", long))
    out = folder / "out.tif"
    for command in (
        *(["info", long], ["enhance", f"{long}.tif", out], ["enhance", tmp_path / "a.vrt", out]),
        ["enhance", image, out, "--model", long],
        *(
            ["reproduce", f"{long}.gpkg"],
            ["reproduce", f"{long}.tif"],
            ["rocksizefrequency", f"{long}.gpkg", "--out", folder / "sizes"],
        ),
        ["batch", "enhance", long, "--out", folder / "batch", "--workers", 0],
    ):
        assert_refused(lunar(*command))
    listed = lunar("batch", "enhance", tmp_path / "list.txt", "--out", folder / "batch", "--workers", 0)
    assert (listed.code, "There is no file" in listed.err) == (1, True)


def test_no_name_at_all(tool: str, tmp_path: Path, folder: Path) -> None:
    image = formats.tiled(tmp_path / "a.tif", ground())
    assert_refused(lunar(tool, image, ""), ".tif" if tool == "enhance" else ".gpkg")
    assert_refused(lunar(tool, "", *outputs(tool, folder)))
    assert names(folder) == []


def test_a_constant_image_says_so(tool: str, tmp_path: Path, folder: Path) -> None:
    image = formats.tiled(tmp_path / "a.tif", np.full((130, 150), 7, np.uint8))
    ran = lunar(tool, image, *outputs(tool, folder), "--json")
    assert any("one value" in warning for warning in ran.result["warnings"])


def test_sizes_without_a_scale_are_in_pixels_and_said_so(tool: str, tmp_path: Path, folder: Path) -> None:
    image = formats.png(tmp_path / "a.png", ground())
    ran = lunar(tool, image, *outputs(tool, folder), "--json")
    assert any("--pixel-size" in warning for warning in ran.result["warnings"])
    again = lunar(tool, image, *outputs(tool, folder), "--json", "--pixel-size", 0.5, "--overwrite")
    assert not any("--pixel-size" in warning for warning in again.result["warnings"])


# ---- the body ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["Moon", "earth"])
def test_an_image_on_the_earth_needs_a_body(body: str, tmp_path: Path, folder: Path, all_models: Path) -> None:
    pixels = ground()
    pixels[50:60, 50:60] = 250
    place = Affine(2, 0, 500_000, 0, -2, 5_000_000)
    image = formats.tiled(tmp_path / "a.tif", pixels, crs=formats.EARTH_UTM, transform=place)
    options = ["--model", "bright", "--models-dir", all_models]
    assert_refused(lunar("rocks", image, folder / "out.gpkg", *options), "Earth", "--body")
    ran = lunar("rocks", image, folder / "out.gpkg", *options, "--body", body, "--json")
    assert ran.code == 0, ran.err
    rocks = read_layer(folder / "out.gpkg", "rocks")
    assert rocks["area_m2"][0] == pytest.approx(400, rel=0.01)  # the metres of the map are believed
    assert any("as asked" in warning for warning in ran.result["warnings"]) == (body == "Moon")


def test_an_unknown_body_is_refused_with_those_known(tool: str, tmp_path: Path, folder: Path) -> None:
    image = formats.tiled(tmp_path / "a.tif", ground())
    ran = lunar(tool, image, *outputs(tool, folder), "--body", "Tatooine")
    assert_refused(ran, "Tatooine", "Moon", "Vesta", code=2)
    assert names(folder) == []


# ---- outputs that cannot be --------------------------------------------------------------------------------------


def test_the_image_itself_is_no_output(tool: str, tmp_path: Path) -> None:
    """Not even with --overwrite, nor by another way to the same file."""
    image = formats.tiled(tmp_path / "a.tif", ground())
    (tmp_path / "link.tif").symlink_to(image)
    before = snapshot(tmp_path)
    points = tmp_path / "p.gpkg"
    for same in (image, tmp_path / "link.tif", tmp_path / "." / "a.tif", os.path.relpath(image)):
        arguments = {
            "enhance": [same],
            "anomalies": [points, "--heat", same],
            "rocks": [points, "--mask", same],
        }
        assert_refused(lunar(tool, image, *arguments[tool], "--overwrite"), "input image")
        assert snapshot(tmp_path) == before


def test_what_a_virtual_raster_draws_on_is_no_output(tool: str, tmp_path: Path) -> None:
    source = formats.tiled(tmp_path / "part.tif", ground())
    image = formats.vrt(tmp_path / "a.vrt", source)
    before = snapshot(tmp_path)
    points = tmp_path / "p.gpkg"
    arguments = {"enhance": [source], "anomalies": [points, "--heat", source], "rocks": [points, "--mask", source]}
    assert_refused(lunar(tool, image, *arguments[tool], "--overwrite"), "input image")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["out.geojson", "out.json", "out.kml", "out.csv", "out", "out.tif"])
@pytest.mark.parametrize("tool", ["anomalies", "rocks"])
def test_formats_that_do_not_know_the_moon_are_refused(tool: str, name: str, tmp_path: Path, folder: Path) -> None:
    image = formats.tiled(tmp_path / "a.tif", ground())
    assert_refused(lunar(tool, image, folder / name), ".gpkg")
    if "json" in name:
        assert_refused(lunar(tool, image, folder / name), "GeoJSON")
    if tool == "rocks":
        assert_refused(lunar(tool, image, folder / "p.gpkg", "--outlines", folder / name), ".gpkg")
        assert_refused(lunar(tool, image, folder / "p.gpkg", "--area", folder / name), ".gpkg")
    assert names(folder) == []


def test_a_folder_that_is_not_there(tool: str, tmp_path: Path, folder: Path) -> None:
    image = formats.tiled(tmp_path / "a.tif", ground())
    assert_refused(lunar(tool, image, *outputs(tool, folder / "nowhere")), "does not exist")
    assert names(folder) == []


def test_an_output_that_is_a_folder(tool: str, tmp_path: Path, folder: Path) -> None:
    image = formats.tiled(tmp_path / "a.tif", ground())
    for name in MADE[tool]:
        (folder / name).mkdir()
    assert_refused(lunar(tool, image, *outputs(tool, folder), "--overwrite"), "folder")
    assert names(folder) == MADE[tool]


@pytest.mark.parametrize(("tool", "second"), [("anomalies", "--scores"), ("anomalies", "--heat"), ("rocks", "--mask")])
def test_one_existing_output_of_several_stops_all(tool: str, second: str, tmp_path: Path, folder: Path) -> None:
    image = formats.tiled(tmp_path / "a.tif", ground())
    existing = folder / "second.tif"
    existing.write_bytes(b"precious")
    assert_refused(lunar(tool, image, folder / "out.gpkg", second, existing), "second.tif", "--overwrite")
    assert snapshot(folder) == {"second.tif": b"precious"}


def test_two_outputs_of_one_name(tmp_path: Path, folder: Path) -> None:
    image, same = formats.tiled(tmp_path / "a.tif", ground()), folder / "same.tif"
    points = folder / "p.gpkg"
    assert_refused(lunar("anomalies", image, points, "--scores", same, "--heat", same), "same.tif")
    assert_refused(lunar("rocks", image, folder / "p.shp", "--outlines", folder / "p.shp"), "p.shp")
    assert_refused(lunar("rocks", image, points, "--outlines", f"{points}|layername=rocks"), "rocks")
    assert names(folder) == []


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "overwrite"])
@pytest.mark.parametrize("tool", ["anomalies", "rocks"])
def test_a_file_that_is_no_geopackage_is_not_replaced_by_one(
    tool: str, overwrite: list[str], tmp_path: Path, folder: Path
) -> None:
    image = formats.tiled(tmp_path / "a.tif", ground())
    (folder / "out.gpkg").write_text("My thesis. " * 100)
    before = snapshot(folder)
    assert_refused(lunar(tool, image, folder / "out.gpkg", *overwrite), "not a GeoPackage")
    assert snapshot(folder) == before


@pytest.mark.parametrize("layer", ["gpkg_contents", "sqlite_master", 'a"b', "x'; DROP TABLE gpkg_contents;--", "Ärger"])
def test_any_name_of_a_layer_does_no_harm(layer: str, tmp_path: Path, folder: Path, all_models: Path) -> None:
    pixels = ground()
    pixels[50:60, 50:60] = 250
    image = formats.tiled(tmp_path / "a.tif", pixels)
    options = ["--model", "bright", "--models-dir", all_models]
    assert lunar("rocks", image, folder / "out.gpkg", *options).code == 0
    ran = lunar("rocks", image, f"{folder / 'out.gpkg'}|layername={layer}", *options, "--overwrite")
    if ran.code == 0:
        assert len(read_layer(folder / "out.gpkg", layer)) == 1
    else:
        assert_refused(ran)
    assert len(read_layer(folder / "out.gpkg", "rocks")) == 1


@pytest.mark.parametrize("sidecar", ["out.tif.aux.xml", "out.tif.ovr", "out.tif.msk"])
def test_what_lies_beside_an_older_raster_is_not_believed_of_the_new_one(
    sidecar: str, tmp_path: Path, folder: Path
) -> None:
    """QGIS keeps statistics in `.aux.xml`, GDAL overviews in `.ovr` and masks in `.msk`."""
    image, out = formats.tiled(tmp_path / "a.tif", ground()), folder / "out.tif"
    assert lunar("enhance", image, out).code == 0
    shutil.copy(formats.tiled(tmp_path / "small.tif", np.zeros((65, 75), np.uint8)), folder / sidecar)
    assert lunar("enhance", image, out, "--overwrite", "--model", "stretch").code == 0
    assert names(folder) == ["out.tif"]


# ---- models ------------------------------------------------------------------------------------------------------


def run_model(tool: str, model: object, folder: Path, image: Path, *options: object) -> Ran:
    return lunar(tool, image, *outputs(tool, folder)[:1], "--model", model, *options)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return formats.tiled(tmp_path / "image.tif", ground())


def test_a_model_is_named_by_folder_option_or_environment(
    tool: str, image: Path, folder: Path, all_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = MODEL[tool]
    assert_refused(run_model(tool, name, folder, image), name, "lunar models")
    ways = [
        (all_models / name, []),
        (name, ["--models-dir", folder, "--models-dir", all_models]),
    ]
    for model, options in ways:
        ran = run_model(tool, model, folder, image, *options, "--overwrite", "--json")
        assert ran.code == 0, ran.err
        assert ran.result["model"] == name
    monkeypatch.setenv("LUNAR_MODELS", os.pathsep.join(["/nowhere", str(all_models)]))
    assert run_model(tool, name, folder, image, "--overwrite").code == 0
    # A given folder goes before the environment.
    assert run_model(tool, name, folder, image, "--overwrite", "--models-dir", folder).code == 0


def flip_a_byte(pack: Path) -> None:
    weights = bytearray((pack / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (pack / "weights.safetensors").write_bytes(weights)


def cut(pack: Path) -> None:
    formats.truncate(pack / "weights.safetensors", 0.5)


def edit(pack: Path, **changes: object) -> None:
    card = json.loads((pack / "model.json").read_text())
    card = {key: value for key, value in (card | changes).items() if value != "missing"}
    (pack / "model.json").write_text(json.dumps(card))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a byte of the weights": (flip_a_byte, "damaged"),
    "weights cut short": (cut, "damaged"),
    "no weights": (lambda p: (p / "weights.safetensors").unlink(), "weights"),
    "no card": (lambda p: (p / "model.json").unlink(), "model.json"),
    "a card that is no JSON": (lambda p: (p / "model.json").write_text("{task: rocks"), "model.json"),
    "a card that is a list": (lambda p: (p / "model.json").write_text("[1, 2]"), "model.json"),
    "a card in other letters": (lambda p: (p / "model.json").write_bytes("{é".encode("latin-1")), "model.json"),
    "a card without task": (lambda p: edit(p, task="missing"), "task"),
    "an unknown task": (lambda p: edit(p, task="cooking"), "cooking"),
    "an unknown word in the card": (lambda p: edit(p, colour="red"), "colour"),
    "an unknown family": (lambda p: edit(p, family="gpt"), "gpt"),
    "other settings than the weights": (lambda p: edit(p, settings={"channels": 9}), "fit"),
    "an unknown normalisation": (lambda p: edit(p, normalisation={"kind": "magic"}), "magic"),
    "a tile smaller than its halo": (lambda p: edit(p, tile=8, halo=64), "halo"),
    "a tile that is no number": (lambda p: edit(p, tile="large"), "model.json"),
    "a card of the future": (lambda p: edit(p, format=99), "format"),
}


@pytest.mark.parametrize(("damage", "word"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_model_is_refused(
    tool: str, damage: Callable[[Path], None], word: str, image: Path, folder: Path, models: Path
) -> None:
    damage(models / MODEL[tool])
    assert_refused(run_model(tool, models / MODEL[tool], folder, image), word)
    assert names(folder) == []


@pytest.mark.parametrize("tool", ["anomalies"])
def test_a_model_whose_windows_do_not_fit_its_tiles(tool: str, image: Path, folder: Path, models: Path) -> None:
    edit(models / "square", halo=0)
    assert_refused(run_model(tool, models / "square", folder, image), "halo")
    edit(models / "square", halo=4, output="poem")
    assert_refused(run_model(tool, models / "square", folder, image), "poem")
    assert names(folder) == []


def test_a_model_of_rocks_without_rocks(image: Path, folder: Path, models: Path) -> None:
    edit(models / "bright", classes=["ground", "sky"])
    assert_refused(run_model("rocks", models / "bright", folder, image), "rock class")
    edit(models / "bright", classes=["ground", "dust", "rock"])  # one more than the network has outputs
    assert_refused(run_model("rocks", models / "bright", folder, image), "class")
    assert names(folder) == []


def test_one_damaged_model_does_not_hide_the_others(tool: str, image: Path, folder: Path, models: Path) -> None:
    """Somebody's broken download in the folder of models: all that does not need it goes on."""
    (models / "broken").mkdir()
    (models / "broken" / "model.json").write_text("{")
    ran = run_model(tool, MODEL[tool], folder, image, "--models-dir", models)
    assert ran.code == 0, ran.err
    listed = lunar("models", "--models-dir", models, "--json")
    assert listed.code == 0, listed.err
    assert set(MODEL.values()) <= {m["id"] for m in listed.result["models"]}
    diagnosis = lunar("doctor", "--models-dir", models)
    assert diagnosis.code == 1
    assert str(models / "broken") in diagnosis.out


def test_a_model_of_another_task_is_refused(tool: str, image: Path, folder: Path, all_models: Path) -> None:
    assert_refused(run_model(tool, OTHER_TASK[tool], folder, image, "--models-dir", all_models), "task", tool)
    classical = {"enhance": "pca", "anomalies": "shadow-pairs", "rocks": "stretch"}[tool]
    assert_refused(run_model(tool, classical, folder, image), classical, "lunar models")
    assert names(folder) == []


@pytest.mark.parametrize(
    ("pixel_size", "outcome"),
    [(0.1, "refused"), (0.3, "doubted"), (0.5, "taken"), (20, "taken"), (30, "doubted"), (100, "refused")],
)
def test_pixels_outside_the_range_of_a_model(
    pixel_size: float, outcome: str, tmp_path: Path, folder: Path, all_models: Path
) -> None:
    """`bright` was made for 0.5 to 20 m: a little outside is a doubt, far outside a refusal, and the cure is said."""
    place = Affine(pixel_size, 0, 0, 0, -pixel_size, 0)
    image = formats.tiled(tmp_path / "a.tif", ground(), transform=place)
    ran = run_model("rocks", "bright", folder, image, "--models-dir", all_models, "--json")
    if outcome == "refused":
        assert_refused(ran, "0.5–20 m", "gdalwarp")
        assert names(folder) == []
    else:
        assert ran.code == 0, ran.err
        assert any("0.5–20 m" in warning for warning in ran.result["warnings"]) == (outcome == "doubted")


def test_a_device_that_is_not_there(tool: str, image: Path, folder: Path, all_models: Path) -> None:
    import torch

    missing = "mps" if torch.cuda.is_available() else "cuda"
    ran = run_model(tool, MODEL[tool], folder, image, "--models-dir", all_models, "--device", missing)
    assert_refused(ran, missing, "--device")
    assert names(folder) == []


def test_a_date_that_is_none_is_refused(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "tomorrow")
    run = lunar("rocks", image, tmp_path / "r.gpkg")
    assert run.code == 2
    assert "SOURCE_DATE_EPOCH is 'tomorrow'" in run.err
    assert not (tmp_path / "r.gpkg").exists()
