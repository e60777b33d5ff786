"""`make demo` ends well: every file is there, and the maps show something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from qgis_helpers import QGIS_PROCESS, system_python

REPOSITORY = Path(__file__).resolve().parent.parent
SHEETS = ("1_input", "2_enhanced", "3_quality", "4_anomalies", "5_rocks", "overview")
RESULTS = ("enhanced.tif", "scores.tif", "rock_mask.tif", "anomalies.gpkg", "rocks.gpkg", "rock_outlines.gpkg")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Folder of the demo's output, and what it said."""
    if QGIS_PROCESS is None or not system_python():
        pytest.skip("QGIS is not installed (Debian: sudo apt install qgis python3-qgis)")
    folder = tmp_path_factory.mktemp("demo") / "output"
    command = [sys.executable, str(REPOSITORY / ".ci" / "demo.py"), str(folder)]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder, done.stdout


def test_every_file_is_named(demo):
    folder, said = demo
    for path in folder.rglob("*"):
        if path.is_file():
            assert f"output/{path.relative_to(folder)}  " in said


def test_results_lie_there_with_their_styles(demo):
    folder, _ = demo
    for name in RESULTS:
        assert (folder / name).is_file()
        assert (folder / name).with_suffix(".qml").is_file()
    assert (folder / "demo.qgz").is_file()


@pytest.mark.parametrize("name", SHEETS)
def test_a_map_shows_something(demo, name):
    """A map that QGIS could not draw is an empty frame: one shade of grey, everywhere."""
    folder, _ = demo
    with Image.open(folder / "maps" / f"{name}.png") as page:
        assert page.width > 1500
        grey = np.asarray(page.convert("L"))
    left = grey[grey.shape[0] // 4 : grey.shape[0] // 2, grey.shape[1] // 8 : grey.shape[1] // 4]
    assert len(np.unique(left)) > 2
    assert left.std() > 2
