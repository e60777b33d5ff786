"""`lunar evaluate psr`: a trial on small images that looks like those of development."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from running import lunar

from lunar_processing.evaluate.spots import count_spots
from lunar_processing.modelpack import Card, Normalisation, save_pack
from lunar_processing.networks.convnet import Identity
from lunar_processing.networks.shadow import ShadowNet
from lunar_processing.simulate import scenes
from lunar_processing.tools import evaluate_psr
from lunar_processing.training.data import SPLITS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One simulated product of each part, named as the real ones, with boxes of its craters."""
    place = tmp_path_factory.mktemp("nac_cdr")
    for seed, part in enumerate(("train", "validation")):
        made = scenes.draw("nac", 1, seed, size=320)
        image = np.clip(255 * made.image[0].numpy() / np.quantile(made.image[0], 0.99), 0, 255).astype(np.uint8)
        path = place / f"{SPLITS['nac_cdr'][part][0]}_a.png"
        with rasterio.open(path, "w", driver="PNG", width=320, height=320, count=1, dtype="uint8") as file:
            file.write(image, 1)
        c = made.craters
        size = (c.diameter_m / made.pixel_size[c.scene]).numpy()
        rows = [
            f"{k}\t{x - d / 2}\t{y - d / 2}\t{d}\t{d}" for k, (x, y, d) in enumerate(zip(c.col, c.row, size)) if d > 8
        ]
        path.with_suffix(".txt").write_text("ID\tX\tY\tW\tH\n" + "\n".join(rows) + "\n")
    return place


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    card = Card("psr-physics", "enhance", "shadow", settings={"widths": [8, 8, 8], "deep": 1},
                normalisation=Normalisation("noise", 0.5, 100.0), tile=512, halo=64)  # fmt: skip
    place = tmp_path_factory.mktemp("models")
    save_pack(place / "psr-physics", card, ShadowNet((8, 8, 8), 1))
    save_pack(place / "same", Card("same", "enhance", "identity", tile=256, halo=8), Identity())
    return place


def test_a_trial_compares_all_methods_and_says_that_it_is_one(folder, models, tmp_path):
    ran = lunar("evaluate", "psr", "--real", folder, "--out", tmp_path, "--models", "psr-physics", "same",
                "--models-dir", models, "--small", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    told = json.loads((tmp_path / "psr.json").read_text())
    assert told["small"]
    assert {"psr-physics", "CLAHE", "Retinex", "bilateral", "Gaussian, told its sigma"} <= set(told["psnr"])
    for number, _ in enumerate(told["levels_dn"]):
        best = max(
            row[number]
            for m, row in told["psnr"].items()
            if not m.startswith(("psr", "Wiener")) and "all stripes" not in m
        )
        assert told["psnr"]["psr-physics"][number] - best == pytest.approx(told["lead_db"][number], abs=2e-3)
        assert told["psnr"]["Gaussian, told its sigma"][number] >= told["psnr"]["noisy, without stripes"][number]
        assert told["psnr"]["same"][number] >= told["psnr"]["noisy, without stripes"][number]  # it is levelled
        assert 0 <= told["cover68"]["psr-physics"][number] <= told["cover95"]["psr-physics"][number] <= 1
        assert told["sure_reported"]["psr-physics"][number] <= told["crater_reported"]["psr-physics"][number]
    page = (tmp_path / "psr.html").read_text()
    assert "measure nothing" in page
    assert page.count("<img") == 4  # two scenes at two signals


def test_spots_are_counted_if_they_are_of_the_size_and_bright_enough():
    image = np.full((120, 160), 10.0)
    rows, cols = np.mgrid[:120, :160]
    for row, col, diameter, height in ((20, 30, 6, 5.0), (60, 90, 6, 8.0), (90, 40, 6, 1.0), (80, 120, 30, 0.5)):
        image[np.hypot(rows - row, cols - col) < diameter / 2] += height
    assert count_spots(image, 6.0) == 2
    assert count_spots(3 * image, 6.0) == 2  # whatever the light


def test_the_same_seed_makes_the_same_darkness(folder):
    scene = evaluate_psr.read_scenes(folder, SPLITS["nac_cdr"]["validation"])[0]
    cases = [evaluate_psr.darkened(scene, 10.0, evaluate_psr.Wishes(seed=seed)) for seed in (0, 0, 1)]
    assert (cases[0].recorded == cases[1].recorded).all()
    assert (cases[0].recorded != cases[2].recorded).any()
    assert cases[0].truth.mean() == pytest.approx(10.0)


def test_a_folder_without_the_products_is_refused(tmp_path):
    ran = lunar("evaluate", "psr", "--real", tmp_path, "--out", tmp_path / "out", "--models", "--small")
    assert ran.code == 1
    assert "no image of the wanted products" in ran.err
