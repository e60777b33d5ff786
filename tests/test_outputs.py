"""What is in the files that the command writes: places, metres, names, provenance, formats.

The models of these tests are so simple (`running.make_models`) that the right answer can be worked out by hand.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import formats
import moon
import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from running import (
    HEIGHT,
    NODATA_CORNER,
    RECTANGLES,
    WIDTH,
    layers,
    lunar,
    make_models,
    names,
    read_all,
    read_layer,
    rectangles,
    scene,
    snapshot,
)

MOON_RADIUS = 1_737_400.0
# 0.01° by 0.001° near the south pole: 6 m by 30 m.
DEGREES_AT_THE_POLE = Affine(0.01, 0.0, 20.0, 0.0, -0.001, -88.9)

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scene(tmp_path_factory.mktemp("image") / "scene.tif")


# ---- the truth, worked out without the engine --------------------------------------------------------------------


def polar(transform: Affine, col: float, row: float) -> tuple[float, float, np.ndarray]:
    """Longitude, latitude and ground vectors (east, north; columns: col step, row step) at the south pole."""
    x, y = transform @ (col, row)
    rho = np.hypot(x, y)
    lat = -90 + np.degrees(2 * np.arctan(rho / (2 * MOON_RADIUS)))
    lon = np.degrees(np.arctan2(x, y))
    scale = 1 + rho**2 / (4 * MOON_RADIUS**2)
    east, north = np.array([y, -x]) / rho, np.array([x, y]) / rho
    steps = np.array([[transform.a, transform.b], [transform.d, transform.e]])
    return lon, lat, np.stack([east, north]) @ steps / scale


def degrees(transform: Affine, col: float, row: float) -> tuple[float, float, np.ndarray]:
    lon, lat = transform @ (col, row)
    one = np.radians(1) * MOON_RADIUS
    return lon, lat, np.diag([transform.a * one * np.cos(np.radians(lat)), transform.e * one])


def flat(size: float) -> Callable[[Affine, float, float], tuple[float, float, np.ndarray]]:
    return lambda transform, col, row: (np.nan, np.nan, np.diag([size, -size]))


@dataclass(frozen=True)
class Placement:
    """Where an image lies, and what is true there."""

    crs: str | None
    transform: Affine | None
    truth: Callable[[Affine, float, float], tuple[float, float, np.ndarray]]
    options: tuple[object, ...] = ()

    @property
    def on_map(self) -> Affine:
        return self.transform or Affine.scale(1, -1)


PLACEMENTS = {
    "north up": Placement(formats.SOUTH_POLE, formats.NORTH_UP, polar),
    "south up": Placement(formats.SOUTH_POLE, formats.SOUTH_UP, polar),
    "rotated": Placement(formats.SOUTH_POLE, formats.ROTATED, polar),
    "degrees at the pole": Placement(formats.DEGREES, DEGREES_AT_THE_POLE, degrees),
    "no coordinate system, pixel size given": Placement(None, None, flat(0.5), ("--pixel-size", 0.5)),
    "no coordinate system": Placement(None, None, flat(np.nan)),
}


@pytest.fixture(params=PLACEMENTS.values(), ids=PLACEMENTS.keys())
def placement(request: pytest.FixtureRequest) -> Placement:
    return request.param


def placed(path: Path, placement: Placement) -> Path:
    return formats.tiled(path, rectangles(), nodata=0, crs=placement.crs, transform=placement.transform)


def same_system(found: str | None, wanted: str | None) -> bool:
    """By projection and body, for the code gets lost in some formats."""
    if found is None or wanted is None:
        return found is wanted
    a, b = (pyproj.CRS(crs).to_dict() for crs in (found, wanted))
    keys = {"proj", "lat_0", "lon_0", "lat_ts", "x_0", "y_0"}
    radius = pyproj.CRS(found).ellipsoid.semi_major_metre, pyproj.CRS(found).ellipsoid.semi_minor_metre
    return radius == (MOON_RADIUS, MOON_RADIUS) and all(a.get(k, 0) == b.get(k, 0) for k in keys - {"lat_ts"})


# ---- rocks -------------------------------------------------------------------------------------------------------


def test_rocks_lie_where_they_are_and_have_their_size_in_metres(
    placement: Placement, models: Path, tmp_path: Path
) -> None:
    image, out = placed(tmp_path / "image.tif", placement), tmp_path / "rocks.gpkg"
    options = ["--model", "bright", "--models-dir", models, *placement.options]
    ran = lunar("rocks", image, out, *options, "--json")
    assert ran.code == 0, ran.err
    rocks = read_layer(out, "rocks")
    assert same_system(rocks.crs, placement.crs)
    assert rocks.geometry_type == "Point"
    assert ran.result["counts"]["rocks"] == len(rocks) == len(RECTANGLES)
    found = {(s, r): i for i, (s, r) in enumerate(zip(rocks["sample"], rocks["line"]))}
    for col, row, width, height in RECTANGLES:
        centre = (col + width / 2, row + height / 2)
        i = found[centre]
        lon, lat, ground = placement.truth(placement.on_map, *centre)
        point = shapely.from_wkb(rocks.wkb[i])
        assert (point.x, point.y) == pytest.approx(placement.on_map @ centre, abs=1e-9)
        assert rocks["lon"][i] == pytest.approx(lon, abs=1e-9, nan_ok=True)
        assert rocks["lat"][i] == pytest.approx(lat, abs=1e-9, nan_ok=True)
        area = width * height * abs(np.linalg.det(ground))
        long_axis = max((ground[:, 0] * width, ground[:, 1] * height), key=np.linalg.norm)
        sides = sorted(np.linalg.norm(ground, axis=0) * (width, height))
        truth = {
            "area_m2": area,
            "diam_eq_m": 2 * np.sqrt(area / np.pi),
            "major_m": 4 * sides[1] / np.sqrt(12),
            "minor_m": 4 * sides[0] / np.sqrt(12),
        }
        for field, value in truth.items():
            assert rocks[field][i] == pytest.approx(value, rel=1e-6, nan_ok=True), field
        if width != height and np.isfinite(ground).all():
            azimuth = np.degrees(np.arctan2(*long_axis)) % 180
            assert (rocks["orient_deg"][i] - azimuth + 90) % 180 - 90 == pytest.approx(0, abs=1e-6)
        assert rocks["diam_eq_px"][i] == pytest.approx(2 * np.sqrt(width * height / np.pi))
        assert rocks["edge"][i] == (col == 0)
        assert rocks["score"][i] == pytest.approx(1)
    assert sorted(rocks["rock_id"]) == list(range(1, len(rocks) + 1))
    assert set(rocks["product_id"]) == {"image"}
    assert set(rocks["model"]) == {"bright"}


def test_outlines_and_searched_area_lie_on_the_pixels(placement: Placement, models: Path, tmp_path: Path) -> None:
    image, out = placed(tmp_path / "image.tif", placement), tmp_path / "rocks.gpkg"
    options = ["--model", "bright", "--models-dir", models, *placement.options]
    ran = lunar("rocks", image, out, *options, "--outlines-layer", "--area-layer", "--json")
    assert ran.code == 0, ran.err
    assert layers(out) == ["rock_outlines", "rocks", "searched_area"]

    def on_map(col: float, row: float, width: float, height: float) -> shapely.Polygon:
        corners = [(col, row), (col + width, row), (col + width, row + height), (col, row + height)]
        return shapely.Polygon([placement.on_map @ corner for corner in corners])

    outlines, rocks = read_layer(out, "rock_outlines"), read_layer(out, "rocks")
    number = {(s, r): i for s, r, i in zip(rocks["sample"], rocks["line"], rocks["rock_id"])}
    shapes = dict(zip(outlines["rock_id"], shapely.from_wkb(outlines.wkb)))
    for col, row, width, height in RECTANGLES:
        shape = shapes[number[col + width / 2, row + height / 2]]
        assert shapely.hausdorff_distance(shape, on_map(col, row, width, height)) < 1e-8
    assert outlines["diam_eq_m"] == pytest.approx(rocks["diam_eq_m"], nan_ok=True)

    area = read_layer(out, "searched_area")
    valid = rectangles() > 0
    whole = on_map(0, 0, WIDTH, HEIGHT) - on_map(160, 120, WIDTH - 160, HEIGHT - 120)
    searched = shapely.from_wkb(area.wkb[0])
    assert (searched ^ whole).area < 1e-9 * whole.area
    assert list(area["valid_px"]) == [valid.sum()]
    pixel = [abs(np.linalg.det(placement.truth(placement.on_map, WIDTH / 2, row + 0.5)[2])) for row in range(HEIGHT)]
    truth = float((valid.sum(1) * pixel).sum())
    assert area["area_m2"][0] == pytest.approx(truth, rel=1e-5, nan_ok=True)
    if np.isfinite(truth):
        assert ran.result["counts"]["searched_m2"] == pytest.approx(truth, rel=1e-5)
    else:
        assert ran.result["counts"]["searched_m2"] is None


def test_the_searched_area_counts_where_pixels_are_valid(models: Path, tmp_path: Path) -> None:
    """In degrees at a pole a row near it is many times smaller than one farther off."""
    transform = Affine(0.01, 0.0, 20.0, 0.0, -0.01, -88.0)
    pixels = np.zeros((200, 100), np.uint8)
    pixels[120:190, 10:90] = 50
    image = formats.tiled(tmp_path / "image.tif", pixels, nodata=0, crs=formats.DEGREES, transform=transform)
    ran = lunar("rocks", image, tmp_path / "r.gpkg", "--sun-azimuth", 90, "--json")
    north, south = (np.sin(np.radians(-88.0 - 0.01 * row)) for row in (120, 190))
    truth = MOON_RADIUS**2 * (north - south) * np.radians(0.01 * 80)
    assert ran.result["counts"]["searched_m2"] == pytest.approx(truth, rel=1e-4)


def test_the_searched_area_of_a_map_of_the_whole_moon_is_its_surface(tmp_path: Path) -> None:
    transform = Affine(0.5, 0.0, -180.0, 0.0, -0.5, 90.0)
    pixels = np.full((360, 720), 50, np.uint8)
    image = formats.tiled(tmp_path / "image.tif", pixels, crs=formats.DEGREES, transform=transform)
    ran = lunar("rocks", image, tmp_path / "r.gpkg", "--sun-azimuth", 90, "--json")
    assert ran.result["counts"]["searched_m2"] == pytest.approx(4 * np.pi * MOON_RADIUS**2, rel=1e-4)


def test_the_mask_is_a_class_raster_on_the_image_grid(placement: Placement, models: Path, tmp_path: Path) -> None:
    image, mask = placed(tmp_path / "image.tif", placement), tmp_path / "mask.tif"
    options = ["--model", "bright", "--models-dir", models, *placement.options]
    assert lunar("rocks", image, tmp_path / "rocks.gpkg", *options, "--mask", mask).code == 0
    assert_same_grid(mask, image, placement)
    pixels = rectangles()
    with rasterio.open(mask) as dataset:
        assert dataset.dtypes == ("uint8",)
        assert dataset.nodata == 255
        assert (dataset.read(1) == np.where(pixels == 0, 255, pixels == 200)).all()


def test_small_rocks_are_left_out_when_asked(models: Path, tmp_path: Path) -> None:
    image = formats.tiled(tmp_path / "image.tif", rectangles(), nodata=0)
    options = ["--model", "bright", "--models-dir", models, "--min-diameter", 10.0, "--outlines-layer"]
    assert lunar("rocks", image, tmp_path / "rocks.gpkg", *options).code == 0
    large = [(w, h) for _, _, w, h in RECTANGLES if 2 * np.sqrt(4 * w * h / np.pi) >= 10.01]
    assert len(read_layer(tmp_path / "rocks.gpkg", "rocks")) == len(large)
    assert len(read_layer(tmp_path / "rocks.gpkg", "rock_outlines")) == len(large)


def test_no_rock_is_a_result_and_not_a_failure(models: Path, tmp_path: Path) -> None:
    image = formats.tiled(tmp_path / "image.tif", np.full((60, 60), 40, np.uint8))
    for model in ("bright", "shadow-pairs"):
        for name in ("none.gpkg", "none.shp", "none.fgb"):
            options = [
                "--model",
                model,
                "--models-dir",
                models,
                "--area-layer",
                "--outlines-layer",
                "--sun-azimuth",
                90,
            ]
            ran = lunar("rocks", image, tmp_path / name, *options, "--json", "--overwrite")
            assert ran.code == 0, ran.err
            assert ran.result["counts"]["rocks"] == 0
            rocks = read_layer(tmp_path / name, "rocks" if name.endswith("gpkg") else None)
            assert len(rocks) == 0
            assert "diam_eq_m" in rocks.fields
            assert same_system(rocks.crs, formats.SOUTH_POLE)


def test_classical_rocks_lie_on_rocks(image: Path, tmp_path: Path) -> None:
    """Shadow pairs on a scene whose rocks are known: most of what is found is a rock."""
    out = tmp_path / "rocks.gpkg"
    assert lunar("rocks", image, out, "--model", "shadow-pairs", "--sun-azimuth", 90).code == 0
    found = read_layer(out, "rocks")
    truth = moon.scene(300, 400, seed=4, sun_azimuth=90, dark=True, rocks=60, rock_sizes=(4, 14)).rocks
    near = [np.hypot(truth["col"] - s, truth["row"] - r).min() < 5 for s, r in zip(found["sample"], found["line"])]
    assert len(near) >= 10
    assert np.mean(near) > 0.6


# ---- anomalies ---------------------------------------------------------------------------------------------------

WINDOW, STRIDE = 16, 8


def squares(pixels: np.ndarray) -> np.ndarray:
    """What the model `square` gives: the mean square over the valid pixels of each window of 16 px, every 8 px."""
    padded = np.pad(pixels.astype(float), 4, constant_values=0)
    rows, cols = (-(-n // STRIDE) for n in pixels.shape)
    padded = np.pad(padded, ((0, rows * STRIDE + 8 - padded.shape[0]), (0, cols * STRIDE + 8 - padded.shape[1])))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (WINDOW, WINDOW))[::STRIDE, ::STRIDE]
    valid = windows > 0
    mean = (windows**2).sum((2, 3)) / np.maximum(valid.sum((2, 3)), 1)
    return np.where(valid.mean((2, 3)) >= 0.5, mean, np.nan)


def test_scores_lie_on_a_grid_of_their_own(placement: Placement, models: Path, tmp_path: Path) -> None:
    image, scores = placed(tmp_path / "image.tif", placement), tmp_path / "scores.tif"
    options = ["--model", "square", "--models-dir", models, *placement.options]
    ran = lunar("anomalies", image, tmp_path / "a.gpkg", *options, "--scores", scores)
    assert ran.code == 0, ran.err
    truth = squares(rectangles())
    with rasterio.open(scores) as dataset:
        assert dataset.descriptions == ("score", "percentile")
        coarse = placement.on_map @ Affine.scale(STRIDE)
        if placement.transform:
            assert dataset.transform.almost_equals(coarse, 1e-12)
        assert same_system(dataset.crs.to_wkt() if dataset.crs else None, placement.crs)
        score, percentile = dataset.read()
    assert score == pytest.approx(truth, rel=1e-4, nan_ok=True)
    known = np.isfinite(score)
    assert (np.isfinite(percentile) == known).all()
    assert np.nanmin(percentile) >= 0
    assert np.nanmax(percentile) <= 100
    order = np.argsort(score[known])
    assert (np.diff(percentile[known][order]) >= 0).all()


def test_points_are_the_highest_scores_ranked(placement: Placement, models: Path, tmp_path: Path) -> None:
    image, out = placed(tmp_path / "image.tif", placement), tmp_path / "a.gpkg"
    options = ["--model", "square", "--models-dir", models, *placement.options]
    assert lunar("anomalies", image, out, *options, "--top", 5).code == 0
    points = read_layer(out, "anomalies")
    assert same_system(points.crs, placement.crs)
    assert list(points["rank"]) == [1, 2, 3, 4, 5]
    assert (np.diff(points["score"]) <= 0).all()
    truth = squares(rectangles())
    row, col = np.unravel_index(np.nanargmax(truth), truth.shape)
    centre = (col + 0.5) * STRIDE, (row + 0.5) * STRIDE
    assert (points["sample"][0], points["line"][0]) == centre
    assert points["score"][0] == pytest.approx(np.nanmax(truth), rel=1e-4)
    assert set(points["window_px"]) == {WINDOW}
    for i, point in enumerate(shapely.from_wkb(points.wkb)):
        place = points["sample"][i], points["line"][i]
        lon, lat, ground = placement.truth(placement.on_map, *place)
        assert (point.x, point.y) == pytest.approx(placement.on_map @ place, abs=1e-9)
        assert points["lon"][i] == pytest.approx(lon, abs=1e-9, nan_ok=True)
        assert points["lat"][i] == pytest.approx(lat, abs=1e-9, nan_ok=True)
        side = WINDOW * np.sqrt(abs(np.linalg.det(ground)))
        assert points["window_m"][i] == pytest.approx(side, rel=1e-6, nan_ok=True)
    distance = np.hypot(*(np.subtract.outer(points[f], points[f]) for f in ("sample", "line")))
    assert distance[~np.eye(5, dtype=bool)].min() >= WINDOW
    assert set(points["reviewed"]) == {0}
    assert set(points["label"]) <= {"", None}
    assert set(points["product_id"]) == {"image"}


def test_points_keep_the_distance_and_the_percentile_that_are_asked_for(image: Path, tmp_path: Path) -> None:
    out, scores = tmp_path / "a.gpkg", tmp_path / "s.tif"
    assert lunar("anomalies", image, out, "--min-distance", 250, "--percentile", 50, "--scores", scores).code == 0
    points = read_layer(out, "anomalies")
    place = shapely.get_coordinates(shapely.from_wkb(points.wkb))
    distance = np.hypot(*(np.subtract.outer(axis, axis) for axis in place.T))
    assert len(points) >= 3
    assert distance[~np.eye(len(points), dtype=bool)].min() >= 250 * 0.999  # on the ground; the map is not quite it
    assert points["percentile"].min() >= 50
    score = read_all(scores)[0]
    assert points["score"][0] == pytest.approx(np.nanmax(score))


def test_heat_lies_on_the_image_grid(image: Path, tmp_path: Path) -> None:
    heat = tmp_path / "heat.tif"
    assert lunar("anomalies", image, tmp_path / "a.gpkg", "--heat", heat).code == 0
    assert_same_grid(heat, image, PLACEMENTS["north up"])
    values = read_all(heat)[0]
    assert (np.isfinite(values) == (read_all(image)[0] > 0)).mean() > 0.95
    assert np.isnan(values[:, :20]).all()


# ---- enhance -----------------------------------------------------------------------------------------------------


def assert_same_grid(path: Path, image: Path, placement: Placement) -> None:
    with rasterio.open(path) as made, rasterio.open(image) as given:
        assert (made.width, made.height) == (given.width, given.height)
        assert made.transform == given.transform
        assert same_system(made.crs.to_wkt() if made.crs else None, placement.crs)


def test_enhanced_lies_on_the_image_grid_with_named_bands(placement: Placement, models: Path, tmp_path: Path) -> None:
    image, out = placed(tmp_path / "image.tif", placement), tmp_path / "out.tif"
    ran = lunar("enhance", image, out, "--model", "same", "--models-dir", models, *placement.options)
    assert ran.code == 0, ran.err
    assert_same_grid(out, image, placement)
    pixels = rectangles()
    has_scale = np.isfinite(placement.truth(placement.on_map, 1, 1)[2]).all()
    with rasterio.open(out) as dataset:
        unit = "m" if has_scale else "px"
        assert dataset.descriptions == ("enhanced", "sigma", "flags", f"resolvable_{unit}")
        assert dataset.units[3] == unit
        assert all(dataset.tags(i)["description"] for i in dataset.indexes)
        assert np.isnan(dataset.nodata)
        assert dataset.dtypes == ("float32",) * 4
        enhanced, sigma, flags, resolvable = dataset.read()
    nodata = np.zeros(pixels.shape, bool)
    nodata[NODATA_CORNER] = True
    # The model gives back what it gets: so does the way around it, bit for bit, across the seams of its tiles.
    assert (enhanced[~nodata] == pixels[~nodata]).all()
    for band in (enhanced, sigma, resolvable):
        assert (np.isnan(band) == nodata).all()
    assert (flags[nodata] == 1).all()
    assert not (flags[~nodata].astype(int) & 1).any()
    assert (resolvable[~nodata] > 0).all()


def test_values_that_a_model_was_not_made_for_are_flagged(models: Path, tmp_path: Path) -> None:
    """The card of `same` names the values 0 to 1."""
    pixels = np.linspace(0, 2, 80 * 60, dtype=np.float32).reshape(60, 80)
    image = formats.tiled(tmp_path / "image.tif", pixels)
    ran = lunar("enhance", image, tmp_path / "out.tif", "--model", "same", "--models-dir", models, "--json")
    flags = read_all(tmp_path / "out.tif")[2].astype(int)
    assert ((flags & 16 > 0) == (pixels > 1)).all()
    assert ran.result["counts"]["outside_range_px"] == (pixels > 1).sum()
    assert any("outside the values the model was made for" in warning for warning in ran.result["warnings"])


METHODS = ("stretch", "clahe", "retinex", "destripe-nlm")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_number_wherever_the_image_has_one(method: str, image: Path, tmp_path: Path) -> None:
    assert lunar("enhance", image, tmp_path / "out.tif", "--model", method).code == 0
    enhanced, sigma, flags, resolvable = read_all(tmp_path / "out.tif")
    nodata = read_all(image)[0] == 0
    for band in (enhanced, sigma):
        assert (np.isnan(band) == nodata).all()
        assert np.isfinite(band[~nodata]).all()
    assert (flags[nodata] == 1).all()
    too_dark = np.isnan(resolvable) & ~nodata  # nothing whatever stands out of the noise there
    assert (flags[too_dark].astype(int) & 8).all()
    assert too_dark.mean() < 0.01
    with rasterio.open(tmp_path / "out.tif") as dataset:
        assert dataset.tags()["LUNAR_UNIT"]


# ---- raster files ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Larger than one overview can skip."""
    pixels = np.random.default_rng(3).integers(1, 255, (700, 1500)).astype(np.uint8)
    return formats.tiled(tmp_path_factory.mktemp("wide") / "wide.tif", pixels)


def test_large_results_are_tiled_compressed_and_have_overviews(wide_image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tif"
    assert lunar("enhance", wide_image, out, "--model", "stretch").code == 0
    with rasterio.open(out) as dataset:
        assert dataset.overviews(1) == [4]
        assert dataset.profile["tiled"]
        assert dataset.profile["compress"].lower() == "zstd"
        flags = dataset.read(3, out_shape=(175, 375))
        assert set(np.unique(flags)) <= set(range(32))  # flags are not averaged in the overviews


@pytest.mark.parametrize("tool", ["enhance", "anomalies", "rocks"])
def test_cloud_optimised_results(tool: str, wide_image: Path, tmp_path: Path) -> None:
    raster, out = tmp_path / "raster.tif", tmp_path / "points.gpkg"
    arguments = {
        "enhance": [raster, "--model", "stretch"],
        "anomalies": [out, "--heat", raster],
        "rocks": [out, "--mask", raster, "--sun-azimuth", 90],
    }
    assert lunar(tool, wide_image, *arguments[tool], "--format", "cog").code == 0
    with rasterio.open(raster) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.overviews(1)
        assert all(dataset.descriptions)
        assert json.loads(dataset.tags()["LUNAR_PROVENANCE"])["tool"] == tool
        assert dataset.read().shape[1:] == (700, 1500)
    assert_same_grid(raster, wide_image, PLACEMENTS["north up"])
    validator = [sys.executable, "-m", "osgeo_utils.samples.validate_cloud_optimized_geotiff", str(raster)]
    checked = subprocess.run(validator, capture_output=True, text=True, check=False)
    if "No module named" not in checked.stderr:
        assert "is a valid cloud optimized GeoTIFF" in checked.stdout, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    "name", ["out.png", "out.gpkg", "out", "out.tif.txt", "out.jp2", "out.IMG"], ids=lambda name: name
)
@pytest.mark.parametrize("tool", ["enhance", "anomalies", "rocks"])
def test_a_raster_is_named_tif(tool: str, name: str, wide_image: Path, tmp_path: Path) -> None:
    """A GeoTIFF under another name confuses every program, and could take the place of something else."""
    (tmp_path / name).write_text("precious")
    before = snapshot(tmp_path)
    raster = tmp_path / name
    points = tmp_path / "points.gpkg"
    arguments = {"enhance": [raster], "anomalies": [points, "--scores", raster], "rocks": [points, "--mask", raster]}
    ran = lunar(tool, wide_image, *arguments[tool], "--overwrite")
    assert ran.code == 1
    assert ".tif" in ran.err.split("Cure:")[1]
    assert snapshot(tmp_path) == before


# ---- vector files ------------------------------------------------------------------------------------------------

ROCK_FIELDS = """rock_id diam_eq_m major_m minor_m orient_deg area_m2 diam_eq_px score edge line sample lon lat
product_id model"""
ANOMALY_FIELDS = """rank score percentile window_px window_m line sample lon lat product_id model reviewed label"""


@pytest.mark.parametrize(
    "text",
    [
        "out.gpkg",
        "out.gpkg|layername=mine",
        "ogr:dbname='FOLDER/out.gpkg' table=\"mine\" (geom)",
        "out.shp",
        "out.fgb",
    ],
)
@pytest.mark.parametrize("tool", ["anomalies", "rocks"])
def test_every_vector_target(tool: str, text: str, models: Path, tmp_path: Path) -> None:
    image = formats.tiled(tmp_path / "image.tif", rectangles(), nodata=0)
    folder = tmp_path / "made"
    folder.mkdir()
    text = text.replace("FOLDER", str(folder)) if "FOLDER" in text else str(folder / text)
    model = {"anomalies": "square", "rocks": "bright"}[tool]
    ran = lunar(tool, image, text, "--model", model, "--models-dir", models, "--json")
    assert ran.code == 0, ran.err
    path = folder / f"out.{next(s for s in ('gpkg', 'shp', 'fgb') if '.' + s in text)}"
    layer = None if path.suffix != ".gpkg" else "mine" if "mine" in text else tool
    table = read_layer(path, layer)
    expected = ROCK_FIELDS if tool == "rocks" else ANOMALY_FIELDS
    assert set(expected.split()) <= set(table.fields)
    assert len(table) == ran.result["counts"]["rocks" if tool == "rocks" else "points"] > 3
    assert same_system(table.crs, formats.SOUTH_POLE)
    assert table["product_id"][0] == "image"
    if path.suffix == ".shp":
        assert all(len(name) <= 10 for name in table.fields)
        parts = {"out.cpg", "out.dbf", "out.prj", "out.provenance.json", "out.qix", "out.shp", "out.shx"}
        assert parts - {"out.qix"} <= set(names(folder)) <= parts
    assert not [n for n in names(folder) if n.startswith(".")]


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".fgb"])
def test_layers_beside_the_points(suffix: str, models: Path, tmp_path: Path) -> None:
    image, out = formats.tiled(tmp_path / "image.tif", rectangles(), nodata=0), tmp_path / f"out{suffix}"
    options = ["--model", "bright", "--models-dir", models, "--area-layer", "--outlines-layer", "--json"]
    ran = lunar("rocks", image, out, *options)
    assert ran.code == 0, ran.err
    outputs = ran.result["outputs"]
    if suffix == ".gpkg":
        assert layers(out) == ["rock_outlines", "rocks", "searched_area"]
        assert set(outputs) == {"rocks", "rock_outlines", "searched_area"}
    else:
        assert outputs["rock_outlines"] == str(tmp_path / f"out_outlines{suffix}")
        assert outputs["searched_area"] == str(tmp_path / f"out_area{suffix}")
        for path in outputs.values():
            assert len(read_layer(Path(path))) in (1, len(RECTANGLES))


def test_layers_to_targets_of_their_own(models: Path, tmp_path: Path) -> None:
    image = formats.tiled(tmp_path / "image.tif", rectangles(), nodata=0)
    options = ["--outlines", tmp_path / "shapes.fgb", "--area", f"{tmp_path / 'campaign.gpkg'}|layername=area_1"]
    ran = lunar("rocks", image, tmp_path / "out.shp", "--model", "bright", "--models-dir", models, *options)
    assert ran.code == 0, ran.err
    assert len(read_layer(tmp_path / "shapes.fgb")) == len(RECTANGLES)
    assert layers(tmp_path / "campaign.gpkg") == ["area_1"]


def dump(path: Path, table: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return [
            *database.execute(f'SELECT * FROM "{table}"'),
            *database.execute(
                "SELECT table_name, data_type, srs_id, min_x, last_change FROM gpkg_contents WHERE table_name = ?",
                (table,),
            ),
        ]


def test_other_layers_of_a_geopackage_stay_as_they_are(models: Path, tmp_path: Path) -> None:
    image, project = formats.tiled(tmp_path / "image.tif", rectangles(), nodata=0), tmp_path / "project.gpkg"
    points = shapely.to_wkb(shapely.points([[10_010.0, 29_990.0], [10_100.0, 29_900.0]]))
    notes = np.array(["look here", "Größe?"], dtype=object)
    pyogrio.raw.write(
        project, points, [notes], ["note"], layer="notes", driver="GPKG", geometry_type="Point", crs=formats.SOUTH_POLE
    )
    before = dump(project, "notes")
    options = ["--models-dir", models]
    assert lunar("rocks", image, project, "--model", "bright", *options, "--area-layer").code == 0
    assert lunar("anomalies", image, f"{project}|layername=strange", "--model", "square", *options).code == 0
    assert layers(project) == ["notes", "rocks", "searched_area", "strange"]
    assert dump(project, "notes") == before

    kept = project.read_bytes()
    for tool, target, model in (
        ("rocks", project, "bright"),
        ("anomalies", f"{project}|layername=strange", "square"),
        ("anomalies", f"{project}|layername=NOTES", "square"),
    ):
        refused = lunar(tool, image, target, "--model", model, *options)
        assert refused.code == 1
        assert "already" in refused.err or "something else" in refused.err
        assert project.read_bytes() == kept
    assert lunar("rocks", image, project, "--model", "bright", *options, "--min-diameter", 12, "--overwrite").code == 0
    assert layers(project) == ["notes", "rocks", "searched_area", "strange"]
    assert 0 < len(read_layer(project, "rocks")) < len(RECTANGLES)
    assert dump(project, "notes") == before


# ---- provenance --------------------------------------------------------------------------------------------------


def provenance_of(path: Path) -> dict:
    if path.suffix == ".tif":
        with rasterio.open(path) as dataset:
            return json.loads(dataset.tags()["LUNAR_PROVENANCE"])
    if path.suffix == ".gpkg":
        with closing(sqlite3.connect(path)) as database:
            texts = [text for (text,) in database.execute("SELECT metadata FROM gpkg_metadata")]
        [record] = {part for text in texts for part in _records(text)}
        return json.loads(record)
    return json.loads(path.with_suffix(".provenance.json").read_text(encoding="utf-8"))


def _records(text: str) -> list[str]:
    """A GeoPackage keeps metadata as XML of GDAL: items of names and texts."""
    from xml.etree import ElementTree

    return [item.text for item in ElementTree.fromstring(text).iter("MDI") if item.get("key") == "provenance"]


@pytest.mark.parametrize(
    ("tool", "name", "model"),
    [
        ("enhance", "out.tif", "same"),
        ("anomalies", "out.gpkg", "square"),
        ("rocks", "out.gpkg", "bright"),
        ("rocks", "out.shp", "bright"),
        ("anomalies", "out.fgb", "square"),
    ],
)
def test_files_say_how_they_were_made(tool: str, name: str, model: str, models: Path, tmp_path: Path) -> None:
    image, out = formats.tiled(tmp_path / "image.tif", rectangles(), nodata=0), tmp_path / name
    raster = {"anomalies": ["--scores", tmp_path / "r.tif"], "rocks": ["--mask", tmp_path / "r.tif"]}.get(tool, [])
    ran = lunar(tool, image, out, "--model", model, "--models-dir", models, "--json", *raster)
    assert ran.code == 0, ran.err
    record = provenance_of(out)
    assert record["tool"] == tool
    [source] = record["inputs"]
    assert source["path"] == str(image)
    assert source["bytes"] == image.stat().st_size
    assert source["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert source["product_id"] == "image"
    weights = models / model / "weights.safetensors"
    assert record["model"] == {"id": model, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert record["device"] == "cpu"
    assert record["parameters"]["band"] == 1
    assert record["counts"]["valid_px"] == ran.result["counts"]["valid_px"] == (rectangles() > 0).sum()
    assert record["counts"]["masked_px"] == 10 * 20
    assert {"python", "torch", "rasterio", "numpy"} <= set(record["versions"])
    assert record["wall_s"] > 0
    if raster:
        assert provenance_of(tmp_path / "r.tif") == record


def test_the_record_covers_the_pixels_of_a_detached_label_and_the_size_they_were_given(tmp_path: Path) -> None:
    label = formats.kaguya_tc(tmp_path)
    assert lunar("rocks", label, tmp_path / "out.gpkg", "--sun-azimuth", 90, "--pixel-size", 7.4).code == 0
    record = provenance_of(tmp_path / "out.gpkg")
    pixels = label.with_suffix(".img")
    assert [source["path"] for source in record["inputs"]] == [str(label), str(pixels)]
    assert record["inputs"][1]["sha256"] == hashlib.sha256(pixels.read_bytes()).hexdigest()
    assert record["parameters"]["pixel_size"] == 7.4


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".fgb"])
def test_the_same_run_gives_the_same_bytes(
    suffix: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    made = []
    for attempt in ("first", "second"):
        folder = tmp_path / attempt
        folder.mkdir()
        assert lunar("enhance", image, folder / "enhanced.tif").code == 0
        assert lunar("enhance", image, folder / "cog.tif", "--model", "clahe", "--format", "cog").code == 0
        rasters = ["--scores", folder / "scores.tif", "--heat", folder / "heat.tif"]
        assert lunar("anomalies", image, folder / f"strange{suffix}", *rasters).code == 0
        rocks = ["--mask", folder / "mask.tif", "--area-layer", "--outlines-layer"]
        assert lunar("rocks", image, folder / f"rocks{suffix}", *rocks).code == 0
        made.append(snapshot(folder))
    assert made[0].keys() == made[1].keys()
    assert [name for name in made[0] if made[0][name] != made[1][name]] == []
