"""Killed at any moment, fifty times: what stands under a final name is the old file or the new one, never a part."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import formats
import moon
import numpy as np
import pyogrio
import pytest
import shapely
from running import lunar, lunar_process, names, read_all, snapshot, start

KILLS = 10  # of each kind of run
REPRODUCIBLE = {"SOURCE_DATE_EPOCH": "1700000000"}
LAYERS = ("--mask", "mask.tif", "--area-layer", "--outlines-layer")
RUNS = {
    "enhance": ["enhance", "out.tif", "--model", "stretch"],
    "enhance as COG": ["enhance", "out.tif", "--model", "stretch", "--format", "cog"],
    "anomalies": ["anomalies", "out.gpkg", "--model", "pca", "--scores", "scores.tif", "--heat", "heat.tif"],
    "anomalies as shapefile": ["anomalies", "out.shp", "--model", "pca", "--scores", "scores.tif"],
    "rocks": ["rocks", "out.gpkg", "--model", "shadow-pairs", "--sun-azimuth", "90", *LAYERS],
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that a kill meets every stage of a run."""
    view = moon.scene(500, 750, seed=6, sun_azimuth=90)
    pixels = np.tile(np.maximum(moon.digitise(view.image), 1), (2, 2))
    return formats.geotiff(tmp_path_factory.mktemp("image") / "image.tif", pixels, tiled=True)


@pytest.fixture(scope="module")
def small_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    view = moon.scene(200, 200, seed=7, sun_azimuth=90)
    return formats.tiled(tmp_path_factory.mktemp("small") / "image.tif", moon.digitise(view.image))


def arguments(run: list[str], image: Path, folder: Path) -> list[object]:
    tool, *rest = run
    return [tool, image, *(folder / a if "." in a else a for a in rest), "--overwrite"]


def fill(folder: Path, run: list[str], small_image: Path) -> None:
    """Results of an earlier run, and somebody's own layer beside them."""
    folder.mkdir()
    if "out.gpkg" in run:
        points = shapely.to_wkb(shapely.points([[10_010.0, 29_990.0]] * 500))
        pyogrio.raw.write(
            folder / "out.gpkg",
            points,
            [np.arange(500)],
            ["n"],
            layer="mine",
            driver="GPKG",
            geometry_type="Point",
            crs=formats.SOUTH_POLE,
        )
    assert lunar(*arguments(run, small_image, folder)).code == 0


def kill_at_random(process: subprocess.Popen[str], folder: Path, choose: random.Random, whole: float) -> None:
    """Half of the time at any moment of the run, half of the time soon after it has begun to write."""
    if choose.random() < 0.5:
        time.sleep(choose.uniform(0, whole))
    else:
        before = set(names(folder))
        while process.poll() is None and not drafts(set(names(folder)) - before):
            time.sleep(0.001)
        time.sleep(choose.choice([0.02, 0.2, whole / 2]) * choose.random())
    process.kill()
    process.wait()


def drafts(there: Iterable[str]) -> list[str]:
    """What a run is writing into. It also tries, before, whether the folder takes files at all: that is no draft."""
    return [name for name in there if "partial" in name and "probe" not in name]


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_no_file_under_a_final_name_is_ever_incomplete(
    run: list[str], image: Path, small_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in REPRODUCIBLE.items():  # so that whole files can be told by their bytes
        monkeypatch.setenv(name, value)
    folder = tmp_path / "results"
    fill(folder, run, small_image)
    old = snapshot(folder)
    started = time.perf_counter()
    assert lunar_process(*arguments(run, image, folder)).code == 0
    whole = time.perf_counter() - started
    new = snapshot(folder)
    assert new.keys() == old.keys()

    choose = random.Random(f"kill {run[0]}")
    interrupted = 0
    for kill in range(4 * KILLS):
        if kill >= KILLS and interrupted >= KILLS // 4:  # on a quick machine some come too late
            break
        put_back(folder, old)
        process = start(*arguments(run, image, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        kill_at_random(process, folder, choose, whole)
        process.stdin.close()
        assert_whole(folder, old, new)
        interrupted += any("partial" in name for name in names(folder))
    assert interrupted >= KILLS // 4, "too few kills met a run that was writing: the test proves nothing"

    put_back(folder, old)
    assert lunar_process(*arguments(run, image, folder)).code == 0
    assert snapshot(folder) == new, "a later run cleans up after the dead, and is as good as any"
    assert_readable(folder)


def put_back(folder: Path, old: dict[str, bytes]) -> None:
    """The old results; drafts of the dead stay, for the next run to clean up."""
    for name in names(folder):
        if "partial" not in name:
            (folder / name).unlink()
    for name, data in old.items():
        (folder / name).write_bytes(data)


def assert_whole(folder: Path, old: dict[str, bytes], new: dict[str, bytes]) -> None:
    there = {name: data for name, data in snapshot(folder).items() if "partial" not in name}
    assert there.keys() <= old.keys()
    parts = {name for name in old if name.startswith("out.") and "out.shp" in old}
    for name in there.keys() - parts:
        assert there[name] in (old[name], new[name]), f"{name} is neither the old file nor the new one"
    assert old.keys() - there.keys() <= parts, "an old file is gone before the new one is there"
    if "out.shp" in there:  # the files of a shapefile make sense together only
        together = {name: there.get(name) for name in parts}
        assert together in ({n: old[n] for n in parts}, {n: new[n] for n in parts})


def assert_readable(folder: Path) -> None:
    for path in folder.iterdir():
        if path.suffix == ".tif":
            read_all(path)
        elif path.suffix == ".gpkg":
            with closing(sqlite3.connect(path)) as database:
                assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                assert database.execute("SELECT count(*) FROM mine").fetchone() == (500,)
        elif path.suffix == ".shp":
            assert pyogrio.read_info(path)["features"] > 0


def test_a_killed_first_run_leaves_nothing_under_a_final_name(image: Path, tmp_path: Path) -> None:
    process = start("enhance", image, tmp_path / "out.tif", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not drafts(names(tmp_path)):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    process.stdin.close()
    [left] = names(tmp_path)
    assert left.startswith(".out.partial-")  # hidden, and the next run takes it away
    shutil.copy(tmp_path / left, tmp_path / ".out.partial-999999999-1.tif")
    (tmp_path / ".other.partial-999999999-1.tif").touch()
    assert lunar("enhance", image, tmp_path / "out.tif", "--model", "stretch").code == 0
    assert names(tmp_path) == [".other.partial-999999999-1.tif", "out.tif"]
