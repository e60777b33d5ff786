"""An output is made again from what it says of itself: identical, or what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import formats
import moon
import numpy as np
import pytest
import rasterio
from running import lunar, make_models


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    view = moon.scene(128, 160, seed=3, sun_azimuth=90, rocks=20, rock_sizes=(4, 10))
    pixels = np.maximum(moon.digitise(view.image, 16), 1)
    return formats.tiled(tmp_path_factory.mktemp("image") / "image.tif", pixels, nodata=0)


OUTPUTS = {
    "enhanced": ("enhance", "out.tif", ["--model", "stretch"], "out.tif"),
    "points, outlines and area": (
        "rocks",
        "out.gpkg",
        ["--sun-azimuth", "90", "--area-layer", "--outlines-layer", "--min-diameter", "6", "--model", "shadow-pairs"],
        "out.gpkg",
    ),
    "a shapefile": ("rocks", "out.shp", ["--model", "shadow-pairs"], "out.shp"),
    "a FlatGeobuf": ("rocks", "out.fgb", ["--model", "shadow-pairs"], "out.fgb"),
    "outlines alone": ("rocks", "out.shp", ["--model", "shadow-pairs", "--outlines", "o.shp"], "o.shp"),
    "the area alone": ("rocks", "out.gpkg", ["--model", "shadow-pairs", "--area", "area.fgb"], "area.fgb"),
    "a layer of another name": (
        "rocks",
        "out.gpkg|layername=mine",
        ["--model", "shadow-pairs", "--outlines", "o.gpkg|layername=rims"],
        "o.gpkg|layername=rims",
    ),
    "classes": ("rocks", "out.gpkg", ["--model", "shadow-pairs", "--mask", "mask.tif"], "mask.tif"),
    "strange points": ("anomalies", "out.gpkg", ["--model", "pca", "--top", "7", "--chips", "chips"], "out.gpkg"),
    "scores": ("anomalies", "out.gpkg", ["--model", "pca", "--scores", "scores.tif"], "scores.tif"),
    "heat": ("anomalies", "out.gpkg", ["--model", "pca", "--heat", "heat.tif"], "heat.tif"),
}


@pytest.mark.parametrize(("tool", "output", "options", "kept"), OUTPUTS.values(), ids=OUTPUTS)
def test_what_was_made_can_be_made_again(
    tool: str, output: str, options: list[str], kept: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert lunar(tool, image, output, *options).code == 0
    ran = lunar("reproduce", kept, "--json")
    assert ran.code == 0, ran.out + ran.err
    assert ran.result["identical"] is True
    assert ran.result["differences"] == []


@pytest.fixture(scope="module")
def sizes(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that comes of the sizes of rocks."""
    folder = tmp_path_factory.mktemp("sizes")
    options = ("--sun-azimuth", 90, "--model", "shadow-pairs", "--area-layer")
    assert lunar("rocks", image, folder / "r.gpkg", *options).code == 0
    ran = lunar("rocksizefrequency", folder / "r.gpkg", "--out", folder / "out", "--bins", 8)
    assert ran.code == 0, ran.err
    return folder / "out"


SIZES = ("r_sizes.csv", "r_sizes.json", "r_sizes.png", "r_sizes.svg", "r_abundance.tif", "r.diam", "r.scc")


@pytest.mark.parametrize("name", [*SIZES, "r_CRATER.shp", "r_AREA.shp"])
def test_sizes_are_counted_again(name: str, sizes: Path) -> None:
    ran = lunar("reproduce", sizes / name)
    assert ran.code == 0, ran.out + ran.err
    assert "identical" in ran.out


def test_sizes_that_were_edited_are_found(sizes: Path, tmp_path: Path) -> None:
    for name in ("r_sizes.csv", "r_sizes.json"):
        shutil.copy(sizes / name, tmp_path)
    table = tmp_path / "r_sizes.csv"
    table.write_text(table.read_text().replace("0.", "1.", 1))
    ran = lunar("reproduce", table)
    assert (ran.code, "1 of" in ran.out) == (1, True)
    (tmp_path / "r_sizes.json").unlink()
    assert "does not say how it was made" in lunar("reproduce", table).err


@pytest.mark.parametrize("name", ["nac_00007.tif", "nac_00007_rock_ids.tif", "nac_00007_truth.gpkg"])
def test_scenes_are_simulated_again(name: str, tmp_path: Path) -> None:
    ran = lunar("simulate", tmp_path, "--size", 64, "--seed", 6, "--count", 2, "--objects", "pit,probe")
    assert ran.code == 0, ran.err
    ran = lunar("reproduce", tmp_path / name)
    assert ran.code == 0, ran.out + ran.err


def test_of_a_batch_the_products_are_made_again(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--workers", 0, "--model", "shadow-pairs", "--sun-azimuth", 90)
    assert lunar("batch", "rocks", image, "--out", out, *options).code == 0
    assert lunar("reproduce", out / "products" / "image" / "image.gpkg").code == 0
    ran = lunar("reproduce", out / "merged.gpkg")
    assert ran.code == 2
    assert str(out / "products" / "NAME" / "NAME.gpkg") in ran.err


def test_what_differs_is_said(image: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.tif"
    lunar("enhance", image, made, "--model", "stretch")
    with rasterio.open(made, "r+") as dataset:
        band = dataset.read(1)
        band[10, 20] += 0.25
        dataset.write(band, 1)
    ran = lunar("reproduce", made)
    assert ran.code == 1
    assert "band enhanced: 1 pixels" in ran.out
    assert "by at most 0.25" in ran.out


def test_only_from_the_same_input_model_and_tool(image: Path, tmp_path: Path) -> None:
    moved = tmp_path / image.name
    shutil.copy(image, moved)
    models = make_models(tmp_path / "models")
    points = tmp_path / "points.gpkg"
    lunar("rocks", moved, points, "--model", "bright", "--models-dir", models)
    assert lunar("reproduce", points, "--models-dir", models).code == 0
    moved.unlink()
    gone = lunar("reproduce", points, "--models-dir", models)
    assert (gone.code, "--image" in gone.err) == (1, True)
    assert lunar("reproduce", points, "--models-dir", models, "--image", image).code == 0

    other = formats.tiled(tmp_path / "other.tif")
    refused = lunar("reproduce", points, "--models-dir", models, "--image", other)
    assert "its checksum is another" in refused.err
    card = json.loads((models / "bright" / "model.json").read_text())
    (models / "bright" / "model.json").write_text(json.dumps(card | {"sha256": "0" * 64}))
    refused = lunar("reproduce", points, "--models-dir", models, "--image", image)
    assert "has other weights" in refused.err
    assert "does not say how it was made" in lunar("reproduce", image).err
