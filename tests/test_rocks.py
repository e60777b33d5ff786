"""`lunar rocks` with a network that knows middles and shadows: sizes, heights, touching rocks, and what it warns of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import formats
import numpy as np
import pytest
import rasterio
from running import lunar, read_layer

from lunar_processing.modelpack import Card, Normalisation, read_pack, save_pack, write_card

# Discs on ground of 0.5: column, row, radius in px; the first two touch. Shadows of 0 point to the right.
DISCS = ((60.0, 50.0, 9.0), (60.0, 64.0, 6.0), (130.0, 90.0, 6.0), (40.0, 120.0, 3.0))
SHADOW = 20.0  # px from the middle to the tip
PIXEL = 2.0  # m


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every pixel above 0.65 is rock, the brighter the nearer to its middle, and below 0.25 shadow."""
    import torch

    from lunar_processing.networks import FAMILIES

    network = FAMILIES["convnet"](channels=1, depth=1, outputs=4)
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias.copy_(torch.tensor([0.0, -65.0, 25.0, -18.0]))
        network[0].weight[:, 0, 1, 1] = torch.tensor([0.0, 100.0, -100.0, 20.0])
    card = Card(
        "round",
        "rocks",
        "convnet",
        settings={"channels": 1, "depth": 1, "outputs": 4},
        normalisation=Normalisation("range", 0.0, 1.0),
        classes=("ground", "rock", "shadow"),
        output="middles",
        reading={"threshold": 0.5, "least_score": 0.6, "edge": 0.0},
        works={"incidence_deg": [20, 75]},
        tile=96,
        halo=8,
    )
    folder = tmp_path_factory.mktemp("models") / "round"
    save_pack(folder, card, network)
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows, cols = np.mgrid[:150, :180] + 0.5
    pixels = np.full((150, 180), 0.5, np.float32)
    for col, row, radius in DISCS:
        shaded = (np.abs(rows - row) < 0.6 * radius) & (cols > col) & (cols < col + SHADOW)
        pixels[shaded] = 0.0
    for col, row, radius in DISCS:
        away = np.hypot(cols - col, rows - row) / radius
        pixels = np.where(away < 1, np.maximum(pixels, 1.0 - 0.25 * away), pixels)
    return formats.geotiff(tmp_path_factory.mktemp("image") / "image.tif", pixels.astype(np.float32))


SUN = ("--sun-azimuth", 270, "--incidence", 60, "--pixel-size", PIXEL)


def rocks_of(image: Path, model: Path, out: Path, *options: object):
    ran = lunar("rocks", image, out, "--model", model, *options, "--json")
    assert ran.code == 0, ran.err
    return read_layer(out, "rocks" if out.suffix == ".gpkg" else None), ran


def test_each_disc_is_a_rock_with_its_size_and_height(image: Path, model: Path, tmp_path: Path) -> None:
    rocks, _ = rocks_of(image, model, tmp_path / "r.gpkg", *SUN, "--outlines-layer")
    order = [int(np.hypot(rocks["sample"] - c, rocks["line"] - r).argmin()) for c, r, _ in DISCS]
    assert sorted(order) == [0, 1, 2, 3]
    size = float(rocks["diam_eq_m"][0] / rocks["diam_eq_px"][0])  # the map's metres per pixel
    radii = np.array([radius for _, _, radius in DISCS])
    np.testing.assert_allclose(rocks["diam_eq_px"][order], 2 * radii, rtol=0.12)
    np.testing.assert_allclose(rocks["major_m"] * rocks["minor_m"], rocks["diam_eq_m"] ** 2, rtol=1e-6)
    np.testing.assert_allclose(rocks["shadow_len_m"][order] / size, SHADOW, atol=1.5)
    np.testing.assert_allclose(rocks["height_m"], rocks["shadow_len_m"] / np.tan(np.radians(60)), rtol=1e-6)
    assert len(read_layer(tmp_path / "r.gpkg", "rock_outlines")) == 4


def test_the_classes_of_the_mask(image: Path, model: Path, tmp_path: Path) -> None:
    rocks_of(image, model, tmp_path / "r.gpkg", *SUN, "--mask", tmp_path / "m.tif")
    with rasterio.open(tmp_path / "m.tif") as mask, rasterio.open(image) as seen:
        classes, pixels = mask.read(1), seen.read(1)
        assert "2 shadow" in mask.tags(1).get("DESCRIPTION", "") + str(mask.tags(1)) + str(mask.descriptions)
    assert (classes == np.where(pixels > 0.65, 1, np.where(pixels < 0.25, 2, 0))).all()


def test_the_same_rocks_whatever_the_tile_size(image: Path, model: Path, tmp_path: Path) -> None:
    whole, _ = rocks_of(image, model, tmp_path / "a.gpkg", *SUN)
    other = tmp_path / "round"
    pack = read_pack(model)
    save_pack(other, pack.card, pack.network())
    write_card(other, Card(**{**vars(read_pack(other).card), "tile": 48}))
    tiled, _ = rocks_of(image, other, tmp_path / "b.gpkg", *SUN)
    for name in ("sample", "line", "diam_eq_m", "height_m", "score"):
        np.testing.assert_allclose(tiled[name], whole[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("known", "filled"),
    [((), ()), (("--sun-azimuth", 270), ("shadow_len_m",)), (("--incidence", 60), ())],
    ids=["nothing", "direction", "incidence"],
)
def test_heights_are_empty_where_the_sun_is_not_known(
    known: tuple, filled: tuple, image: Path, model: Path, tmp_path: Path
) -> None:
    rocks, _ = rocks_of(image, model, tmp_path / "r.gpkg", "--pixel-size", PIXEL, *known)
    assert np.isfinite(rocks["diam_eq_m"]).all()
    for name in ("shadow_len_m", "height_m"):
        assert np.isfinite(rocks[name]).all() == (name in filled)
        assert np.isnan(rocks[name]).all() == (name not in filled)


def test_a_sun_that_the_card_does_not_know_is_warned_of(image: Path, model: Path, tmp_path: Path) -> None:
    _, ran = rocks_of(image, model, tmp_path / "r.gpkg", *SUN[:2], "--incidence", 85)
    assert any("85°" in warning and "20 to 75" in warning for warning in ran.result["warnings"])
    _, ran = rocks_of(image, model, tmp_path / "s.gpkg", *SUN)
    assert not any("incidence" in warning for warning in ran.result["warnings"])


def test_diameters_are_corrected_as_the_card_says(image: Path, model: Path, tmp_path: Path) -> None:
    plain, _ = rocks_of(image, model, tmp_path / "a.gpkg", *SUN)
    other = tmp_path / "round"
    pack = read_pack(model)
    save_pack(other, pack.card, pack.network())
    card = vars(read_pack(other).card)
    write_card(other, Card(**{**card, "reading": {**card["reading"], "diameter_px": [[5, 6], [20, 20]]}}))
    corrected, _ = rocks_of(image, other, tmp_path / "b.gpkg", *SUN)
    ratio = corrected["diam_eq_px"] / plain["diam_eq_px"]
    np.testing.assert_allclose(ratio, np.interp(plain["diam_eq_px"], [5, 20], [1.2, 1.0]), rtol=1e-6)
    write_card(other, Card(**{**card, "reading": {**card["reading"], "incidence": [[50, 1.0], [70, 1.3]]}}))
    corrected, _ = rocks_of(image, other, tmp_path / "c.gpkg", *SUN)
    np.testing.assert_allclose(corrected["diam_eq_px"] / plain["diam_eq_px"], 1.15, rtol=1e-6)  # under 60°
    corrected, _ = rocks_of(image, other, tmp_path / "d.gpkg", *SUN[:2], *SUN[4:])
    np.testing.assert_allclose(corrected["diam_eq_px"] / plain["diam_eq_px"], 1.0, rtol=1e-6)  # of unknown height


@pytest.mark.usefixtures("one_thread")
def test_noise_that_the_card_does_not_know_is_warned_of(image: Path, model: Path, tmp_path: Path) -> None:
    with rasterio.open(image) as file:
        pixels = file.read(1)
    noisy = pixels + np.random.default_rng(0).normal(0, 0.1, pixels.shape)
    other = tmp_path / "round"
    shutil.copytree(model, other)
    write_card(other, Card(**{**vars(read_pack(other).card), "works": {"noise": [0.0, 0.05]}}))
    _, ran = rocks_of(
        formats.geotiff(tmp_path / "noisy.tif", noisy.astype(np.float32)), other, tmp_path / "a.gpkg", *SUN
    )
    assert any("noise of 0.2" in warning and "0 to 0.05" in warning for warning in ran.result["warnings"])
    _, ran = rocks_of(image, other, tmp_path / "b.gpkg", *SUN)
    assert not any("noise" in warning for warning in ran.result["warnings"])


def test_a_score_below_the_card_s_least_is_no_rock(image: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "round"
    pack = read_pack(model)
    save_pack(other, pack.card, pack.network())
    card = vars(read_pack(other).card)
    write_card(other, Card(**{**card, "reading": {**card["reading"], "least_score": 1.1}}))
    rocks, ran = rocks_of(image, other, tmp_path / "r.gpkg", *SUN)
    assert len(rocks) == 0
    assert "height_m" in rocks.fields
    assert ran.result["counts"]["rocks"] == 0


def test_a_card_whose_classes_are_not_those_of_middles_is_refused(image: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "round"
    pack = read_pack(model)
    save_pack(other, pack.card, pack.network())
    text = json.loads((other / "model.json").read_text())
    (other / "model.json").write_text(json.dumps({**text, "classes": ["ground", "rock"]}))
    ran = lunar("rocks", image, tmp_path / "r.gpkg", "--model", other)
    assert ran.code == 1
    assert "classes" in ran.err


# ---- the shipped model -------------------------------------------------------------------------------------------

SHIPPED = Path(__file__).resolve().parent.parent / "models" / "rocks-orbital"


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory):
    """A simulated field of rocks, 400 px, and its truth."""
    from lunar_processing.tools.evaluate_rocks import SCENES, draw

    return draw(SCENES, 1, 400, 4, tmp_path_factory.mktemp("field"))[0]


def test_the_shipped_model_finds_the_same_rocks_whatever_the_tile_size(field, tmp_path: Path) -> None:
    pack = read_pack(SHIPPED)
    found = []
    for tile in (1024, 304):
        folder = tmp_path / str(tile)
        save_pack(folder, Card(**{**vars(pack.card), "tile": tile}), pack.network())
        rocks, _ = rocks_of(field.path, folder, tmp_path / f"{tile}.gpkg", "--pixel-size", 1)
        found.append({tuple(np.round(rock, 1)) for rock in zip(rocks["sample"], rocks["line"], rocks["diam_eq_px"])})
    assert len(found[0]) > 50
    assert len(found[0] & found[1]) >= 0.995 * len(found[0] | found[1])


def test_the_shipped_model_is_the_default_and_its_rocks_are_rocks(field, tmp_path: Path) -> None:
    from lunar_processing.evaluate.rocks import Stones, scores, tally

    options = ("--pixel-size", 1, "--sun-azimuth", field.azimuth, "--incidence", field.incidence, "--json")
    ran = lunar("rocks", field.path, tmp_path / "r.gpkg", *options)
    assert ran.result["model"] == "rocks-orbital"
    rocks = read_layer(tmp_path / "r.gpkg", "rocks")
    fair = np.ones(len(rocks), bool)
    found = Stones(rocks["sample"], rocks["line"], rocks["diam_eq_px"], rocks["height_m"], fair).inside(400, 400, 8)
    told = scores(tally([(field.true, found)]), 3)
    assert told["true"] > 20
    assert told["f1"] > 0.8


def test_pixels_that_the_shipped_model_does_not_know_go_to_the_other_method(field, tmp_path: Path) -> None:
    options = ("--sun-azimuth", 270, "--pixel-size", 20, "--progress", "jsonl")
    ran = lunar("rocks", field.path, tmp_path / "r.gpkg", *options)
    assert ran.code == 0, ran.err
    assert ran.events[-1]["model"] == "shadow-pairs"
    assert any("rocks-orbital" in event.get("message", "") for event in ran.events)


@pytest.mark.usefixtures("one_thread")
def test_calibrating_rewrites_the_card_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(SHIPPED, folder)
    ran = lunar("calibrate", folder, "--small", "--json")
    assert ran.code == 0, ran.err
    before, after = read_pack(SHIPPED).card, read_pack(folder).card
    assert ran.result["reading"] == after.reading
    assert {"threshold", "least_score", "diameter_px", "incidence", "edge"} == set(after.reading)
    same = {name: value for name, value in vars(before).items() if name not in ("reading", "works")}
    assert same == {name: getattr(after, name) for name in same}


def test_a_model_without_middles_cannot_be_calibrated(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    pack = read_pack(SHIPPED)
    save_pack(folder, Card(**{**vars(pack.card), "output": ""}), pack.network())
    ran = lunar("calibrate", folder)
    assert ran.code == 1
    assert "middles" in ran.err


def test_a_broken_pixel_does_not_hide_the_rocks_around_it() -> None:
    import torch

    from lunar_processing.simulate.scenes import draw
    from lunar_processing.tools.evaluate_rocks import SCENES

    network = read_pack(SHIPPED).network()
    image = draw(SCENES, 1, 5, size=128).image[:, None]
    low, high = np.percentile(image, (0.5, 99.5))
    image = (image - low) / (high - low)
    broken = image.clone()
    broken[0, 0, 64, 64] = 100.0  # a cosmic ray
    with torch.inference_mode():
        said, then = (network(x)[0, :3].softmax(0)[1].numpy() > 0.5 for x in (image, broken))
    rows, cols = np.mgrid[:128, :128]
    away = np.hypot(rows - 64, cols - 64) > 4
    assert said.sum() > 100
    assert (said != then)[away].sum() < 0.05 * said.sum()
