"""`lunar mine-augmentations`, as its manual would say it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from eyes import lite0
from running import lunar
from scipy import ndimage

from lunar_processing.errors import ModelError
from lunar_processing.modelpack import read_pack
from lunar_processing.tools.mine_augmentations import Wishes, mine_augmentations
from lunar_processing.tools.sheet import write_png


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set of level layers lit from above, which look alike only mirrored left to right."""
    random = np.random.default_rng(0)
    rough = np.stack([ndimage.gaussian_filter(random.normal(size=(32, 32)), (1, 4)) for _ in range(96)])
    light = np.diff(np.cumsum(np.maximum(rough, 0.03), axis=1), axis=1, append=0)
    grey = 255 * (light - light.min()) / np.ptp(light)
    folder = tmp_path_factory.mktemp("layers")
    np.save(folder / "patches.npy", grey.astype(np.uint8))
    facts = [{"image": f"{n % 3}.tif", "product": str(n % 3), "part": "validation" if n % 3 == 2 else "train"}
             for n in range(96)]  # fmt: skip
    (folder / "manifest.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    return folder


def test_candidates_are_scored_and_the_best_named(layers, tmp_path, tmp_path_factory, monkeypatch):
    lite0(tmp_path_factory.mktemp("eyes"), monkeypatch)
    ran = lunar("mine-augmentations", "--images", layers, "--size", 32, "--out", tmp_path / "mined.json", "--json")
    assert ran.code == 0, ran.err
    found = ran.result
    assert found == json.loads((tmp_path / "mined.json").read_text())
    assert (found["images"], found["distance"]) == (64, "FD-EfficientNet-Lite0")  # those to validate on are left alone
    by_name = {one["name"]: one for one in found["candidates"]}
    assert found["kept"] == [one["name"] for one in found["candidates"][:3]] == list(found["policy"])
    assert by_name["flip_horizontal"]["distance"] < by_name["turn"]["distance"]
    assert all(one["change"] > 0.02 for one in found["candidates"] if one["verdict"] == "kept")


def test_what_is_missing_or_wrong_is_said(layers, tmp_path, monkeypatch):
    monkeypatch.setenv("LUNAR_FEATURES", str(tmp_path / "none.safetensors"))
    with pytest.raises(ModelError) as refused:
        mine_augmentations(Wishes([str(layers)], size=32))
    assert "lunar fetch-features efficientnet-lite0" in refused.value.cure
    ran = lunar("mine-augmentations", "--images", layers)
    assert (ran.code, "32 px, not 64 px" in ran.err) == (1, True)
    assert lunar("mine-augmentations", "--images", layers, "--keep", 0).code == 2
    assert lunar("mine-augmentations", "--images", layers, "--count", 5).code == 2


def test_any_training_takes_what_was_found(layers, tmp_path):
    """Here an autoencoder, for one step."""
    (tmp_path / "mined.json").write_text('{"kept": ["flip_horizontal", "zoom_in"]}')
    for number in range(2):
        write_png(tmp_path / f"{number}.png", np.random.default_rng(number).integers(0, 255, (96, 96), np.uint8))
    ran = lunar("train", "vae-2020", "--images", tmp_path, "--out", tmp_path / "m", "--steps", 1, "--batch", 2,
                "--augment", tmp_path / "mined.json", "rotate", "--set", "latent=2")  # fmt: skip
    assert ran.code == 0, ran.err
    assert read_pack(tmp_path / "m").card.training["augment"] == ["flip_horizontal", "zoom_in", "rotate"]
    ran = lunar("train", "vae-2020", "--images", tmp_path, "--out", tmp_path / "n", "--augment", "spin")
    assert (ran.code, "'spin'" in ran.err) == (2, True)
    ran = lunar("train", "vae-2020", "--images", tmp_path, "--out", tmp_path / "n", "--augment", "none.json")
    assert (ran.code, "lunar mine-augmentations" in ran.err) == (1, True)
