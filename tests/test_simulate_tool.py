"""`lunar simulate`: files that lie on the Moon, whose truth fits the picture, made again by the same words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from running import lunar

from lunar_processing import planet
from lunar_processing.errors import OutputError, ParameterError, PlanetError
from lunar_processing.raster.image import open_image
from lunar_processing.simulate.objects import OBJECTS, kind_number
from lunar_processing.tools import simulate as tool
from lunar_processing.tools.simulate import Wishes

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def pixels(path: str | Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


def layer(path: str | Path, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    meta, _, geometry, columns = pyogrio.raw.read(path, layer=name)
    return shapely.from_wkb(geometry), dict(zip(meta["fields"], columns))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One scene with rocks and objects, 0.5 m pixels."""
    folder = tmp_path_factory.mktemp("moon")
    return tool.simulate(
        Wishes(folder, "rocks", size=256, seed=5, pixel_size=0.5, incidence=65.0, sun_azimuth=120.0, objects=("all",))
    )


def test_the_image_lies_on_the_moon_where_it_was_asked_for(made):
    with open_image(made.outputs["image"]) as image:
        assert planet.body_of(image.grid.wkt).name == "Moon"
        lon, lat = planet.lonlat(image.grid, 128.0, 128.0)
        assert lat == pytest.approx(-89.5, abs=1e-6)
        assert lon == pytest.approx(0.0, abs=1e-4)
        along, down = planet.metres_per_pixel(image.grid, 128.0, 128.0)
        assert float(along[0]) == pytest.approx(0.5, rel=1e-6)
        assert float(down[0]) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("crs", "centre"),
    [("IAU_2015:30130", (40.0, 88.0)), ("IAU_2015:30110", (177.5, -45.5)), ("IAU_2015:30100", (-20.0, 60.0))],
)
def test_any_lunar_coordinate_system_has_square_pixels_of_the_right_size_in_the_middle(tmp_path, crs, centre):
    made = tool.simulate(Wishes(tmp_path, size=64, pixel_size=1.25, crs=crs, centre=centre))
    with open_image(made.outputs["image"]) as image:
        lon, lat = planet.lonlat(image.grid, 32.0, 32.0)
        assert (float(lon), float(lat)) == pytest.approx(centre, abs=1e-5)
        along, down = planet.metres_per_pixel(image.grid, 32.0, 32.0)
        assert (float(along[0]), float(down[0])) == pytest.approx((1.25, 1.25), rel=1e-4)


def test_rasters_share_the_grid_and_hold_what_they_say(made):
    rasters = {name: path for name, path in made.outputs.items() if path.endswith(".tif")}
    assert set(rasters) == {"image", "height", "albedo", "classes", "rock_ids", "objects", "lit"}
    grids = set()
    for path in rasters.values():
        with rasterio.open(path) as file:
            grids.add((file.transform, file.width, file.height))
            assert file.count == 1
            assert file.descriptions[0]
    assert len(grids) == 1
    assert pixels(rasters["image"]).dtype == np.float32
    assert 0.005 < float(np.median(pixels(rasters["image"]))) < 0.2  # I/F
    assert set(np.unique(pixels(rasters["classes"]))) <= {0, 1, 2}
    lit = pixels(rasters["lit"])
    assert 0 <= lit.min() < 0.01
    assert lit.max() == 1
    dark, bright = pixels(rasters["image"])[lit < 0.01], pixels(rasters["image"])[lit > 0.99]
    assert dark.mean() < 0.35 * bright.mean()


def test_every_rock_of_the_layer_is_in_the_raster_at_its_place_with_its_number(made):
    ids = pixels(made.outputs["rock_ids"])
    points, fields = layer(made.outputs["layers"], "rocks")
    assert len(points) == made.counts["rocks"] > 20
    with open_image(made.outputs["image"]) as image:
        col, row = image.grid.colrow(shapely.get_x(points), shapely.get_y(points))
    np.testing.assert_allclose(col, fields["sample"], atol=1e-4)
    np.testing.assert_allclose(row, fields["line"], atol=1e-4)
    at = ids[row.astype(int), col.astype(int)]
    large = fields["diam_eq_px"] > 2.5
    assert (at[large] == fields["rock_id"][large]).mean() > 0.9  # others lie below a neighbour
    # Every number in the raster has its rock, but those whose middle lies outside.
    inner = ids[20:-20, 20:-20]
    assert set(np.unique(inner)) - {0} <= set(fields["rock_id"])
    np.testing.assert_array_equal(ids > 0, pixels(made.outputs["classes"]) > 0)


def test_craters_are_outlines_of_their_diameter_in_metres(made):
    outlines, fields = layer(made.outputs["layers"], "craters")
    assert len(outlines) > 100
    circle = np.pi / 4 * fields["diameter_m"] ** 2
    np.testing.assert_allclose(shapely.area(outlines), circle, rtol=0.01)
    assert bool((fields["depth_m"] <= 0.25 * fields["diameter_m"]).all())
    assert set(fields["kind"]) <= {"simple", "flat-floored", "concentric"}
    with open_image(made.outputs["image"]) as image:
        footprint = shapely.Polygon(image.grid.footprint())
    assert bool(shapely.intersects(outlines, footprint).mean() > 0.97)


def test_fresh_craters_are_holes_in_the_height_raster(made):
    height = pixels(made.outputs["height"])
    _, fields = layer(made.outputs["layers"], "craters")
    col, row = fields["sample"], fields["line"]
    radius = fields["diameter_m"] / 2 / 0.5
    seen = (col > 2 * radius) & (row > 2 * radius) & (col < 256 - 2 * radius) & (row < 256 - 2 * radius)
    chosen = np.flatnonzero(seen & (fields["degraded"] < 0.2) & (radius > 4))
    assert len(chosen) > 3
    deeper = 0
    for i in chosen:
        around = [
            height[int(row[i] + 1.5 * radius[i] * np.sin(a)), int(col[i] + 1.5 * radius[i] * np.cos(a))]
            for a in np.arange(0, 6.28, 0.3)
        ]
        deeper += height[int(row[i]), int(col[i])] < np.mean(around) - 0.5 * fields["depth_m"][i]
    assert deeper >= 0.7 * len(chosen)


def test_objects_have_their_names_and_their_pixels(made):
    points, fields = layer(made.outputs["layers"], "objects")
    assert len(points) == made.counts["objects"]
    assert set(fields["kind"]) == set(OBJECTS)
    assert [kind_number(name) for name in fields["kind"]] == fields["code"].tolist()
    assert set(np.unique(pixels(made.outputs["objects"]))) - {0} <= set(fields["code"])


def test_what_was_named_is_in_every_scene(tmp_path):
    tool.simulate(Wishes(tmp_path, size=128, count=4, pixel_size=1.0, objects=("pit", "descent stage")))
    for seed in range(4):
        _, fields = layer(tmp_path / f"nac_{seed:05d}_truth.gpkg", "objects")
        assert sorted(fields["kind"]) == ["descent stage", "pit"]
        seen = set(np.unique(pixels(tmp_path / f"nac_{seed:05d}_objects.tif"))) - {0}
        assert seen == {kind_number("pit"), kind_number("descent stage")}


def test_provenance_says_how_to_make_it_again(made, tmp_path):
    with rasterio.open(made.outputs["image"]) as file:
        record = json.loads(file.tags()["LUNAR_PROVENANCE"])
        assert float(file.tags()["INCIDENCE_DEG"]) == 65.0
        assert float(file.tags()["SUN_AZIMUTH_DEG"]) == 120.0
    said = record["parameters"]
    again = tool.simulate(
        Wishes(
            tmp_path,
            said["recipe"],
            said["size"],
            seed=said["seed"],
            pixel_size=said["pixel_size"],
            incidence=said["incidence"],
            sun_azimuth=said["sun_azimuth"],
            objects=tuple(said["objects"]),
        )
    )
    np.testing.assert_array_equal(pixels(made.outputs["image"]), pixels(again.outputs["image"]))


def test_the_same_words_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    first = tool.simulate(Wishes(tmp_path / "a", size=64))
    second = tool.simulate(Wishes(tmp_path / "b", size=64))
    for name, path in first.outputs.items():
        if path.endswith(".tif"):
            assert Path(path).read_bytes() == Path(second.outputs[name]).read_bytes()


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 4095), ("float32", 1.0)])
def test_the_image_comes_as_recorded_as_calibrated_or_as_reflectance(tmp_path, dtype, top):
    made = tool.simulate(Wishes(tmp_path, size=64, dtype=dtype))
    image = pixels(made.outputs["image"])
    assert image.dtype == dtype
    assert image.max() <= top
    assert image.std() > 0


def test_seeds_count_up_and_the_sheet_shows_them_all(tmp_path):
    from skimage.io import imread

    three = tool.simulate(Wishes(tmp_path / "a", size=64, count=3, seed=10, contact_sheet=True))
    last = tool.simulate(Wishes(tmp_path / "b", size=64, seed=12))
    np.testing.assert_array_equal(pixels(tmp_path / "a" / "nac_00012.tif"), pixels(last.outputs["image"]))
    assert three.counts["scenes"] == 3
    sheet = imread(three.outputs["contact_sheet"])
    assert sheet.shape == (132, 132)
    assert sheet[:64, :64].std() > 10
    assert sheet[68:, 68:].min() == 255  # there is no fourth


def test_a_lander_picture_has_classes_but_no_place(tmp_path):
    made = tool.simulate(Wishes(tmp_path, "lander", size=96))
    assert set(made.outputs) == {"image", "classes", "rock_ids", "objects", "lit"}
    assert set(np.unique(pixels(made.outputs["classes"]))) >= {0, 3}
    assert any("no map" in warning for warning in made.warnings)
    with open_image(made.outputs["image"]) as image:
        assert not image.grid.georeferenced


def test_nothing_is_left_of_a_cancelled_run(tmp_path):
    from lunar_processing.errors import Cancelled
    from lunar_processing.tools.job import Report

    with pytest.raises(Cancelled):
        tool.simulate(Wishes(tmp_path, size=64), Report(cancelled=lambda: True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "error", "word"),
    [
        ({"size": 5}, ParameterError, "5 px"),
        ({"size": 100_000}, ParameterError, "100000 px"),
        ({"count": 0}, ParameterError, "0 scenes"),
        ({"seed": -3}, ParameterError, "seed"),
        ({"recipe": "mars"}, ParameterError, "mars"),
        ({"incidence": 95.0}, ParameterError, "incidence_deg"),
        ({"incidence": float("nan")}, ParameterError, "incidence_deg"),
        ({"pixel_size": -1.0}, ParameterError, "pixel_size_m"),
        ({"pixel_size": 0.0}, ParameterError, "pixel_size_m"),
        ({"objects": ("teapot",)}, ParameterError, "teapot"),
        ({"dtype": "complex"}, ParameterError, "complex"),
        ({"crs": "EPSG:32633"}, PlanetError, "on the Earth"),
        ({"crs": "nonsense"}, PlanetError, "nonsense"),
        ({"centre": (0.0, -120.0)}, PlanetError, "-120"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, wrong, error, word):
    with pytest.raises(error, match=word) as raised:
        tool.simulate(Wishes(**{"folder": tmp_path / "new", "size": 64, **wrong}))
    assert raised.value.cure
    assert not list(tmp_path.rglob("*.*"))


def test_files_that_exist_stay_unless_they_may_be_replaced(tmp_path):
    tool.simulate(Wishes(tmp_path, size=64))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputError, match="exists"):
        tool.simulate(Wishes(tmp_path, size=64, incidence=80.0))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    tool.simulate(Wishes(tmp_path, size=64, incidence=80.0, overwrite=True))
    assert (tmp_path / "nac_00000.tif").read_bytes() != before["nac_00000.tif"]


def test_the_command_does_it_all(tmp_path):
    ran = lunar(
        "simulate", tmp_path / "moon", "--size", 64, "--count", 2, "--recipe", "psr", "--centre", 45, -88.7, "--json",
        "--contact-sheet", "--objects", "pit,probe",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    facts = json.loads(ran.out)
    assert Path(facts["outputs"]["contact_sheet"]).is_file()
    assert facts["counts"]["scenes"] == 2
    assert len(list((tmp_path / "moon").glob("psr_*.gpkg"))) == 2
    wrong = lunar("simulate", tmp_path / "moon", "--recipe", "mars")
    assert wrong.code == 2
    assert "Cure" in wrong.err


def test_rocks_are_found_in_a_simulated_image(tmp_path):
    """The house uses its own Moon: the rock tool finds its way to what the truth layer says."""
    made = tool.simulate(Wishes(tmp_path, "rocks", size=256, seed=3, pixel_size=0.5, incidence=60.0, sun_azimuth=90.0))
    ran = lunar("rocks", made.outputs["image"], tmp_path / "found.gpkg", "--sun-azimuth", 90, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["counts"]["rocks"] > 0
