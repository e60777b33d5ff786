"""All products of a batch on one map: each thing once, the area that was searched, and a page to read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import formats
import moon
import numpy as np
import pytest
import shapely
from affine import Affine
from running import Ran, layers, lunar, names, read_layer

from lunar_processing import planet
from lunar_processing.batch.merge import same_things, split_at_antimeridian
from lunar_processing.planet import BODIES
from lunar_processing.vector import Layer

STEP = 2.0  # metres of a pixel
HERE = (10_000.0, 30_000.0)


def scene(folder: Path) -> np.ndarray:
    """240 columns of one piece of ground, of which two images show 160 each: 80 of them in both."""
    folder.mkdir()
    view = moon.scene(160, 240, seed=5, sun_azimuth=90, rocks=40, rock_sizes=(5, 12), noise=0.2)
    return np.maximum(moon.digitise(view.image, 16), 1)


def placed(path: Path, pixels: np.ndarray, col: int, **options: object) -> Path:
    at = Affine(STEP, 0, HERE[0] + STEP * col, 0, -STEP, HERE[1])
    return formats.geotiff(path, pixels, transform=at, nodata=0, **options)


def batch(tool: str, strips: Path, out: Path, *more: object) -> Ran:
    model = {"rocks": "shadow-pairs", "anomalies": "pca", "enhance": "stretch"}[tool]
    return lunar("batch", tool, strips, "--out", out, "--workers", 0, "--model", model, "--sun-azimuth", 90, *more)


def test_rocks_that_two_images_show_are_counted_once(tmp_path: Path) -> None:
    strips, out = tmp_path / "strips", tmp_path / "out"
    ground = scene(strips)
    placed(strips / "left.tif", ground[:, :160], 0)
    placed(strips / "right.tif", ground[:, 80:], 80)
    ran = batch("rocks", strips, out, "--json")
    assert ran.code == 0, ran.err
    merged = Path(ran.result["outputs"]["merged"])
    rocks, again = (read_layer(merged, name) for name in ("rocks", "rocks_seen_again"))
    alone = [read_layer(out / "products" / name / f"{name}.gpkg", "rocks") for name in ("left", "right")]
    assert len(rocks) + len(again) == sum(map(len, alone))

    inside = {}  # rocks well inside the strip that both show, by image
    for name, one in zip(("left", "right"), alone):
        x = shapely.get_x(shapely.from_wkb(one.wkb))
        inside[name] = int(((x > HERE[0] + STEP * 95) & (x < HERE[0] + STEP * 145)).sum())
    assert inside["left"] == inside["right"] > 3
    x = shapely.get_x(shapely.from_wkb(rocks.wkb))
    assert ((x > HERE[0] + STEP * 95) & (x < HERE[0] + STEP * 145)).sum() == inside["left"]
    assert set(again["same_as"]) <= set(rocks["merged_id"][rocks["seen_in"] == 2])

    [area] = read_layer(merged, "searched_area")["area_m2"]
    parts = [
        read_layer(out / "products" / name / f"{name}.gpkg", "searched_area")["area_m2"][0]
        for name in ("left", "right")
    ]
    assert area == pytest.approx(sum(parts) * 240 / 320, rel=1e-3)
    sizes = json.loads((out / "sizes" / "merged_sizes.json").read_text())
    assert sizes["counts"]["rocks"] == len(rocks)
    assert sizes["area"]["value"] == pytest.approx(area, rel=1e-3)
    assert sorted(read_layer(merged, "products")["product"]) == ["left", "right"]


def test_images_on_different_maps_come_together(tmp_path: Path) -> None:
    """The same rocks by polar stereographic and by degrees: each once, where they were."""
    strips, out = tmp_path / "strips", tmp_path / "out"
    ground = scene(strips)
    polar = placed(strips / "polar.tif", ground, 0)
    lunar("rocks", polar, tmp_path / "alone.gpkg", "--model", "shadow-pairs", "--sun-azimuth", 90)
    formats.geotiff(
        strips / "flat.tif", ground, crs=formats.EQUIRECTANGULAR, transform=Affine(2, 0, 5e4, 0, -2, -2.6e6)
    )
    assert batch("rocks", strips, out).code == 0
    rocks = read_layer(out / "merged.gpkg", "rocks")
    assert planet.same_place(rocks.crs, formats.SOUTH_POLE), "both lie near the south pole"
    here = shapely.from_wkb(rocks.wkb[rocks["product"] == "polar"])
    there = shapely.from_wkb(read_layer(tmp_path / "alone.gpkg", "rocks").wkb)
    assert np.array_equal(shapely.get_coordinates(here), shapely.get_coordinates(there))
    for point, lon, lat in zip(shapely.from_wkb(rocks.wkb), rocks["lon"], rocks["lat"]):
        assert np.degrees(np.arctan2(point.x, point.y)) == pytest.approx(lon, abs=1e-6)
        assert np.hypot(point.x, point.y) == pytest.approx(2 * 1_737_400 * np.tan(np.radians(90 + lat) / 2), rel=1e-6)


def test_what_has_no_place_stays_apart_and_nothing_is_lost(tmp_path: Path) -> None:
    strips, out = tmp_path / "strips", tmp_path / "out"
    ground = scene(strips)
    placed(strips / "placed.tif", ground, 0)
    formats.geotiff(strips / "camera.tif", ground, crs=None, transform=None, nodata=0)
    assert batch("anomalies", strips, out, "--top", 5).code == 0
    assert layers(out / "merged.gpkg") == ["anomalies", "anomalies_seen_again", "anomalies_without_place", "products"]
    assert set(read_layer(out / "merged.gpkg", "anomalies_without_place")["product"]) == {"camera"}


def test_the_page_tells_what_happened_and_runs_nothing(tmp_path: Path) -> None:
    strips, out = tmp_path / "strips", tmp_path / "out"
    ground = scene(strips)
    placed(strips / "good.tif", ground, 0)
    (strips / "<script>alert(1)</script>.tif".replace("/", "∕")).write_bytes(b"no image")
    ran = batch("anomalies", strips, out, "--top", 4, "--json")
    page = Path(ran.result["outputs"]["report"]).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "is not an image that can be read" in page
    assert page.count("<figure>") == 4, "a picture of each point"
    assert page.count("data:image/png;base64,") == 5, "and a map"
    assert not re.search(r"(src|href)=\"?(http|//|file)", page)


def test_a_merged_file_that_was_edited_is_kept(tmp_path: Path) -> None:
    strips, out = tmp_path / "strips", tmp_path / "out"
    placed(strips / "one.tif", scene(strips), 0)
    batch("enhance", strips, out)
    assert batch("enhance", strips, out, "--resume").code == 0
    assert "edited_1_merged.gpkg" not in names(out)
    with (out / "merged.gpkg").open("ab") as file:
        file.write(b"reviewed")
    ran = batch("enhance", strips, out, "--resume")
    assert "kept as edited_1_merged.gpkg" in ran.err
    assert (out / "edited_1_merged.gpkg").read_bytes().endswith(b"reviewed")
    (out / ".merged.json").write_text("[damaged")
    batch("enhance", strips, out, "--resume")
    assert "edited_2_merged.gpkg" in names(out), "nobody knows whether it was edited"


# ---- the same thing in two images --------------------------------------------------------------------------------


def things(metres_east: list[float], diameter: list[float]) -> Layer:
    """Rocks on the equator."""
    lon = np.degrees(np.array(metres_east) / BODIES["Moon"].a)
    n = len(lon)
    fields = {"lon": lon, "lat": np.zeros(n), "diam_eq_m": np.array(diameter), "score": np.linspace(1, 0.5, n)}
    return Layer("rocks", shapely.points(lon, np.zeros(n)), fields, formats.DEGREES, "Point")


@pytest.mark.parametrize(
    ("east", "diameter", "image", "pixel", "same"),
    [
        ([0, 1], [4, 4], [0, 1], [1, 1], [0, 0]),
        ([0, 1], [4, 4], [0, 0], [1, 1], [0, 1]),  # two rocks of one image are two rocks
        ([0, 3], [4, 4], [0, 1], [1, 1], [0, 1]),  # too far
        ([0, 3], [8, 8], [0, 1], [1, 1], [0, 0]),  # not for larger ones
        ([0, 1], [4, 7], [0, 1], [1, 1], [0, 1]),  # of another size
        ([0, 1], [4, 4], [0, 1], [1, 0.5], [1, 1]),  # the finer image's stays
        ([0, 1, 1.5], [4, 4, 4], [0, 1, 1], [1, 1, 1], [0, 0, 2]),  # only the nearest is the same
        ([0, 0.5, 1], [4, 4, 4], [0, 1, 2], [1, 1, 1], [0, 0, 0]),  # in three images
    ],
)
def test_things_are_the_same_if_near_alike_and_each_others_nearest(
    east: list[float], diameter: list[float], image: list[int], pixel: list[float], same: list[int]
) -> None:
    found = same_things(things(east, diameter), np.array(image), np.array(pixel, float), BODIES["Moon"])
    assert found.tolist() == same


def test_a_shape_is_cut_at_the_antimeridian() -> None:
    across = shapely.Polygon([(179, 0), (-179, 0), (-179, 2), (179, 2)])
    cut = split_at_antimeridian(across)
    assert cut.area == pytest.approx(4.0)
    assert cut.bounds == (-180, 0, 180, 2)
    assert len(cut.geoms) == 2
    plain = shapely.box(10, 0, 12, 2)
    assert split_at_antimeridian(plain).equals(plain)
    around = shapely.Polygon([(lon, -85) for lon in range(-180, 180, 10)])
    assert split_at_antimeridian(around).is_empty
