"""A batch in QGIS: a folder of images, the merged layers on the map, what failed in the log."""

from __future__ import annotations

import json
from pathlib import Path

import formats
import moon
import numpy as np
import pytest
from qgis_helpers import Qgis
from running import layers


@pytest.fixture(scope="module")
def qgis(tmp_path_factory):
    return Qgis.installed(tmp_path_factory.mktemp("qgis"))


def test_a_folder_of_images_and_one_that_fails(qgis, tmp_path):
    strips, folder = tmp_path / "Süd strips", tmp_path / "out #1"
    strips.mkdir()
    for seed in range(2):
        view = moon.scene(96, 96, seed=seed, sun_azimuth=90, rocks=12, rock_sizes=(4, 10))
        formats.tiled(strips / f"s{seed}.tif", np.maximum(moon.digitise(view.image, 16), 1), nodata=0)
    (strips / "damaged.tif").write_bytes(b"no image")
    parameters = {
        "TOOL": "rocks",
        "MODEL": "shadow-pairs",
        "SUN_AZIMUTH": 90,
        "WHERE": "name != 's1'",
        "FOLDER": folder,
    }
    run = qgis.run("lunar:batch", INPUT=strips, **parameters)
    assert run.returncode == 0, run.log
    assert [run.results[name] for name in ("OK", "SKIPPED", "FAILED")] == [1, 1, 1]
    assert "is not an image that can be read" in run.log
    report = json.loads(run.results["REPORT"])
    assert {"rocks", "searched_area", "products"} <= set(layers(Path(report["outputs"]["merged"])))
    assert Path(run.results["PAGE"]).is_file()
