"""Little memory, a full disk, a folder that cannot be written: the run says so, and nothing that was there is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import formats
import numpy as np
import pytest
import rasterio
from running import lunar, make_models, rectangles, snapshot

WIDTH = 5064
SHORT, LONG = 13_056, 52_224  # rows of a quarter of a raw LROC NAC image, and of a whole one
GIB = 1 << 30


# ---- a full disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"only root can make a small disk ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def leave_free(folder: Path, room: int) -> None:
    """Fill a disk up to so many bytes."""
    filler = folder / "filler"
    filler.unlink(missing_ok=True)
    disk = os.statvfs(folder)
    filler.write_bytes(bytes(max(0, disk.f_bavail * disk.f_frsize - room)))


RUNS = {
    "enhance": ["enhance", "out.tif", "--model", "same"],
    "enhance as COG": ["enhance", "out.tif", "--model", "same", "--format", "cog"],
    "anomalies": ["anomalies", "out.gpkg", "--model", "square", "--scores", "scores.tif"],
    "anomalies as shapefile": ["anomalies", "out.shp", "--model", "square"],
    "anomalies with heat": ["anomalies", "out.fgb", "--heat", "heat.tif"],
    "rocks": ["rocks", "out.gpkg", "--model", "bright", "--mask", "mask.tif", "--area-layer", "--outlines-layer"],
    "rocks as shapefiles": ["rocks", "out.shp", "--model", "bright", "--area-layer", "--outlines-layer"],
    "rocks as FlatGeobuf": ["rocks", "out.fgb", "--model", "bright", "--area-layer"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


def arguments(run: list[str], image: Path, folder: Path, models: Path) -> list[object]:
    tool, *rest = run
    return [tool, image, *(folder / a if "." in a else a for a in rest), "--models-dir", models]


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_a_full_disk_is_noticed_wherever_it_happens(
    run: list[str], disk: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less and less room, a run either gives what it gives with plenty, or fails and leaves all as it was."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    image = formats.tiled(tmp_path / "image.tif", np.tile(rectangles(), (3, 3)), nodata=0)
    plenty = tmp_path / "plenty"
    plenty.mkdir()
    older = ["--band", 1, "--min-diameter", 12] if run[0] == "rocks" else ["--model", "stretch"]
    older = older if run[0] != "anomalies" else ["--top", 2]
    for folder in (plenty, disk):
        assert lunar(*arguments(run, image, folder, models), *older).code == 0
    before = snapshot(disk)
    assert lunar(*arguments(run, image, plenty, models), "--overwrite").code == 0
    complete = snapshot(plenty)
    needed = sum(map(len, complete.values()))
    failures = 0
    for share in (0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0, 1.2):
        leave_free(disk, int(share * needed) // 4096 * 4096)
        ran = lunar(*arguments(run, image, disk, models), "--overwrite")
        (disk / "filler").unlink()
        if ran.code == 0:
            assert snapshot(disk) == complete
            put_back(disk, before)
        else:
            failures += 1
            assert ran.code == 1
            assert "Cure:" in ran.err
            assert "Traceback" not in ran.err
            assert snapshot(disk) == before, f"with room for {share} of what is needed"
    assert failures >= 3
    assert lunar(*arguments(run, image, disk, models), "--overwrite").code == 0
    assert snapshot(disk) == complete


def put_back(folder: Path, before: dict[str, bytes]) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, data in before.items():
        (folder / name).write_bytes(data)


# ---- a folder that cannot be written -----------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_a_read_only_folder_is_refused_before_the_work(
    run: list[str], disk: Path, models: Path, tmp_path: Path
) -> None:
    image = formats.tiled(tmp_path / "image.tif", rectangles(), nodata=0)
    assert lunar(*arguments(run, image, disk, models)).code == 0
    before = snapshot(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for more in ([], ["--overwrite"]):
        ran = lunar(*arguments(run, image, disk, models), *more)
        assert ran.code == 1
        assert "Cure:" in ran.err
        assert "read-only" in ran.err or not more
        assert snapshot(disk) == before
    new = [f"new_{word}" if "." in word else word for word in run]
    ran = lunar(*arguments(new, image, disk, models))
    assert ran.code == 1
    assert "read-only" in ran.err


# ---- memory ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same 1632 rows again and again, as an 8-bit tiled image of the size of a raw NAC image and of a quarter."""
    rows = 1632
    random = np.random.default_rng(1)
    texture = random.integers(90, 110, (rows, WIDTH)).astype(np.uint8)
    texture[::40, ::40] = 200
    made = {}
    for height in (SHORT, LONG):
        made[height] = tmp_path_factory.mktemp("long") / f"{height}.tif"
        profile = {"tiled": True, "compress": "deflate", "zlevel": 1, "num_threads": "ALL_CPUS"}
        with rasterio.open(
            made[height],
            "w",
            driver="GTiff",
            width=WIDTH,
            height=height,
            count=1,
            dtype="uint8",
            crs=formats.SOUTH_POLE,
            transform=formats.NORTH_UP,
            **profile,
        ) as file:
            for row in range(0, height, rows):
                file.write(texture[None], window=rasterio.windows.Window(0, row, WIDTH, rows))
    return made


PEAK = """
import re
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024)
"""
IDENTITY = """
import sys
import numpy as np
from lunar_processing.pipeline import Step, run
from lunar_processing.raster.image import open_image
from lunar_processing.raster.writer import Band, RasterWriter
step = Step("identity", lambda pixels, valid, origins: pixels[:, None], tile=1024, halo=32, dtype="uint8", fill=0)
with open_image(sys.argv[1]) as image:
    with RasterWriter(sys.argv[2], image.grid, [Band("same", "")], "uint8", nodata=None) as writer:
        timing = run(image, step, [lambda window, values, valid: writer.append(values)])
        writer.finish()
        writer.publish()
assert timing.valid_px == image.grid.width * image.grid.height
"""
COMMAND = """
import contextlib, io, sys
from lunar_processing.__main__ import main
with contextlib.redirect_stdout(io.StringIO()):
    assert main(sys.argv[1:]) == 0
"""


def peak(code: str, *words: object) -> int:
    """Bytes of memory that a process held at most."""
    command = [sys.executable, "-c", code + PEAK, *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


def test_memory_does_not_grow_with_the_length_of_an_image(images: dict[int, Path], tmp_path: Path) -> None:
    peaks = {height: peak(IDENTITY, path, tmp_path / f"{height}.tif") for height, path in images.items()}
    assert peaks[LONG] <= 1.5 * GIB
    assert peaks[LONG] == pytest.approx(peaks[SHORT], rel=0.1)
    with rasterio.open(tmp_path / f"{LONG}.tif") as made, rasterio.open(images[LONG]) as given:
        last = rasterio.windows.Window(0, LONG - 700, WIDTH, 700)
        assert (made.read(window=last) == given.read(window=last)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "options"),
    [
        ("enhance", ["out.tif", "--model", "stretch"]),
        ("enhance", ["out.tif"]),
        ("anomalies", ["out.gpkg", "--scores", "scores.tif", "--heat", "heat.tif"]),
        ("rocks", ["out.gpkg", "--mask", "mask.tif", "--area-layer", "--outlines-layer", "--sun-azimuth", 90]),
    ],
    ids=["stretch", "destripe", "anomalies", "rocks"],
)
def test_memory_of_the_tools(tool: str, options: list[str], images: dict[int, Path], tmp_path: Path) -> None:
    peaks = {}
    for height, path in images.items():
        folder = tmp_path / str(height)
        folder.mkdir()
        words = [folder / w if isinstance(w, str) and "." in w else w for w in options]
        peaks[height] = peak(COMMAND, tool, path, *words)
    assert peaks[LONG] <= 1.5 * GIB
    assert peaks[LONG] == pytest.approx(peaks[SHORT], rel=0.1)
