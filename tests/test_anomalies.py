"""`lunar anomalies` with a network that looks at several sizes: one point a place, its size, its picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import formats
import numpy as np
import pytest
import rasterio
import torch
from running import Ran, Table, lunar, names, read_all, read_layer

from lunar_processing.classical import anomalies as classical
from lunar_processing.modelpack import Card, Normalisation, save_pack
from lunar_processing.networks.multiscale import WINDOWS, MultiScale

KNOWN = {"name": "elsewhere", "percentages": [0.0, 50.0, 100.0], "scores": [-9.0, 0.0, 9.0]}
SIZES = (600, 420)  # columns, rows


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rough ground of 2 m pixels at the pole, nodata (0) in 40 columns, a small and a large thing."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(90, 111, SIZES[::-1]).astype(np.uint8)
    pixels[100:104, 200:204] = 255
    pixels[240:330, 380:470] = 190
    pixels[:, :40] = 0
    return formats.tiled(tmp_path_factory.mktemp("strange") / "image.tif", pixels, nodata=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network: what it finds strange is chance, what is made of it is not."""
    torch.manual_seed(5)
    network = MultiScale(widths=(8, 8, 8, 8)).eval()
    with torch.no_grad():  # no size is stranger than another, but the smallest, which tells a place's worth, less so
        told = network.look(torch.rand(1, 1, 512, 512)).windows.flatten(2)[0]
        for head, scores, share in zip(network.heads, told, (0.05, 1.0, 1.0, 1.0)):
            head.weight *= share / scores.std()
            head.bias.copy_((head.bias - scores.mean()) * share / scores.std())
    folder = tmp_path_factory.mktemp("models") / "several"
    shape = {"tile": 640, "halo": 192, "stride": 16, "windows": WINDOWS, "output": "scores"}
    numbers = Normalisation("range", 0, 255)
    settings = {"widths": (8, 8, 8, 8)}
    card = Card(
        "several", "anomalies", "multiscale", settings=settings, normalisation=numbers, population=KNOWN, **shape
    )
    save_pack(folder, card, network)
    return folder


@pytest.fixture(scope="module")
def found(image: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    folder = tmp_path_factory.mktemp("found")
    rasters = ["--scores", folder / "scores.tif", "--heat", folder / "heat.tif", "--chips", folder / "chips"]
    ran = lunar("anomalies", image, folder / "a.gpkg", "--model", model, "--top", 20, *rasters, "--json")
    assert ran.code == 0, ran.err
    return folder, ran


@pytest.fixture(scope="module")
def points(found: tuple[Path, Ran]) -> Table:
    return read_layer(found[0] / "a.gpkg", "anomalies")


def test_a_point_has_the_side_of_the_window_that_fits(points: Table) -> None:
    assert set(points["window_px"]) <= set(WINDOWS)
    assert len(set(points["window_px"])) > 1
    assert points["window_m"] == pytest.approx(2 * points["window_px"], rel=0.05)


def test_overlapping_windows_of_any_size_are_one_place(points: Table) -> None:
    away = np.hypot(*(np.subtract.outer(points[f], points[f]) for f in ("sample", "line")))
    needed = np.add.outer(points["window_px"], points["window_px"]) / 2
    others = ~np.eye(len(points), dtype=bool)
    assert (away[others] >= needed[others]).all()


def test_a_score_has_its_percentile_here_and_among_what_the_model_knows(points: Table) -> None:
    assert set(points["population"]) == {"this image"}
    assert set(points["known"]) == {"elsewhere"}
    assert points["known_pct"] == pytest.approx(np.interp(points["score"], [-9, 0, 9], [0, 50, 100]))
    assert (np.diff(points["percentile"]) <= 0).all()


def test_the_raster_of_scores_has_the_sizes_too(found: tuple[Path, Ran], points: Table) -> None:
    with rasterio.open(found[0] / "scores.tif") as dataset:
        assert dataset.descriptions == ("score", "percentile", "window")
        score, _, window = dataset.read()
    cells = (points["line"] // 16).astype(int), (points["sample"] // 16).astype(int)
    assert score[cells] == pytest.approx(points["score"], rel=1e-6)
    assert list(window[cells]) == list(points["window_px"])
    assert np.isnan(score[:, 0]).all()  # nothing is known there
    assert np.isfinite(score[:-1, 5:-1]).all()


def test_what_is_in_the_gap_does_not_count(image: Path, model: Path, found: tuple[Path, Ran], tmp_path: Path) -> None:
    """Other pixels under the same nodata value: a mask instead of a value."""
    with rasterio.open(image) as dataset:
        pixels, profile = dataset.read(1), dataset.profile
    pixels[:, :40] = 77
    del profile["nodata"]
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(tmp_path / "masked.tif", "w", **profile) as dataset:
        dataset.write(pixels, 1)
        mask = np.full(pixels.shape, 255, np.uint8)
        mask[:, :40] = 0
        dataset.write_mask(mask)
    scores = tmp_path / "scores.tif"
    ran = lunar("anomalies", tmp_path / "masked.tif", tmp_path / "a.gpkg", "--model", model, "--scores", scores)
    assert ran.code == 0, ran.err
    assert read_all(scores)[0] == pytest.approx(read_all(found[0] / "scores.tif")[0], abs=1e-5, nan_ok=True)


def test_tiles_do_not_show(image: Path, model: Path, found: tuple[Path, Ran], tmp_path: Path) -> None:
    """The image is larger than the core of a tile of 640 px; in one tile of 1,152 px the scores are the same."""
    text = (model / "model.json").read_text(encoding="utf-8").replace('"tile": 640', '"tile": 1152')
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.json").write_text(text, encoding="utf-8")
    (tmp_path / "m" / "weights.safetensors").write_bytes((model / "weights.safetensors").read_bytes())
    for raster in ("scores", "heat"):
        ran = lunar("anomalies", image, tmp_path / "a.gpkg", "--model", tmp_path / "m", "--overwrite", "--scores",
                    tmp_path / "scores.tif", "--heat", tmp_path / "heat.tif")  # fmt: skip
        assert ran.code == 0, ran.err
        one, many = read_all(tmp_path / f"{raster}.tif")[0], read_all(found[0] / f"{raster}.tif")[0]
        assert one == pytest.approx(many, abs=1e-4, nan_ok=True)


def test_heat_is_told_of_every_valid_pixel(found: tuple[Path, Ran], image: Path) -> None:
    heat = read_all(found[0] / "heat.tif")[0]
    assert (np.isfinite(heat) == (read_all(image)[0] > 0)).all()


def test_every_point_has_its_picture(found: tuple[Path, Ran], points: Table) -> None:
    chips = found[0] / "chips"
    assert names(chips) == [f"{rank:04d}.png" for rank in points["rank"]]
    assert [Path(path) for path in points["chip"]] == [chips.resolve() / f"{r:04d}.png" for r in points["rank"]]
    for path, side in zip(points["chip"], points["window_px"]):
        with rasterio.open(path) as picture:
            assert picture.width == picture.height >= 2 * side
            assert picture.width % (2 * side) == 0
            assert picture.read(1).max() == 255


def test_without_the_wish_there_are_no_pictures(image: Path, model: Path, tmp_path: Path) -> None:
    assert lunar("anomalies", image, tmp_path / "a.gpkg", "--model", model).code == 0
    assert set(read_layer(tmp_path / "a.gpkg")["chip"]) <= {"", None}
    assert names(tmp_path) == ["a.gpkg"]


def test_pictures_of_others_are_not_mixed_with_ours(
    image: Path, model: Path, found: tuple[Path, Ran], tmp_path
) -> None:
    again = ["anomalies", image, tmp_path / "a.gpkg", "--model", model, "--chips", found[0] / "chips"]
    ran = lunar(*again)
    assert ran.code == 1
    assert "holds pictures already" in ran.err
    assert not (tmp_path / "a.gpkg").exists()
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "is a file" in lunar(*again[:-1], tmp_path / "file").err


def test_an_image_of_three_rows_is_refused_in_plain_words(model: Path, tmp_path: Path) -> None:
    flat = formats.tiled(tmp_path / "flat.tif", np.full((3, 500), 100, np.uint8))
    ran = lunar("anomalies", flat, tmp_path / "a.gpkg", "--model", model)
    assert ran.code == 1
    assert "only 3 px across" in ran.err
    assert not (tmp_path / "a.gpkg").exists()


def test_where_the_best_model_does_not_fit_the_simple_method_is_used_and_named(tmp_path: Path) -> None:
    """Pixels of 80 m are nothing that a network of boulders and landers has seen."""
    pixels = np.random.default_rng(0).integers(90, 111, (256, 256)).astype(np.uint8)
    coarse = formats.tiled(tmp_path / "coarse.tif", pixels, crs=None, transform=None)
    ran = lunar("anomalies", coarse, tmp_path / "a.gpkg", "--pixel-size", 80, "--json", "--progress", "jsonl")
    assert ran.code == 0, ran.err
    assert ran.events[-1]["model"] == "pca"
    assert any("pca is used, since anomaly-multiscale cannot be" in e.get("message", "") for e in ran.events)


# ---- one place, many windows -------------------------------------------------------------------------------------


def places(scores: Sequence[float], sides: Sequence[float], apart: float = 10.0) -> list[int]:
    line = np.arange(len(scores)) * apart
    found = classical.merge(np.array([scores]), line, np.zeros(1), 10, np.array([sides]))
    return found.col.tolist()


def test_a_small_hit_in_a_larger_better_one_is_the_same_place():
    assert places([1, 2, 9, 2, 1], [4, 4, 64, 4, 4]) == [2]


def test_a_large_hit_around_a_small_better_one_is_the_same_place():
    assert places([1, 8, 9], [64, 64, 4]) == [2]


def test_windows_that_only_touch_are_two_places():
    assert places([9, 0, 8], [20, 1, 20]) == [0, 2]
    assert places([9, 0, 8], [20, 1, 22]) == [0]
