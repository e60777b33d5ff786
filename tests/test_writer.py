"""Rasters: complete under their final name or not at all, on the grid they belong to, and read back as written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import CRS

from lunar_processing import draft
from lunar_processing.draft import Draft
from lunar_processing.errors import OutputError
from lunar_processing.grid import PIXEL_SPACE, Grid
from lunar_processing.planet import same_place
from lunar_processing.raster.writer import Band, RasterWriter

POLE = CRS.from_authority("IAU_2015", 30135).to_wkt()
NORTH_UP = Affine(2, 0, 1000, 0, -2, 5000)
BANDS = [Band("signal", "what came in", "DN"), Band("sigma", "its noise", "DN")]


def values(grid: Grid, bands: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(bands, grid.height, grid.width)).astype("float32")


def write(path: Path, grid: Grid, pixels: np.ndarray, rows: int = 100, **wishes: object) -> Path:
    with RasterWriter(path, grid, BANDS[: len(pixels)], **wishes) as writer:
        for row in range(0, grid.height, rows):
            writer.append(pixels[:, row : row + rows])
        writer.finish({"LUNAR_PROVENANCE": "{}"})
        return writer.publish()


@pytest.mark.parametrize("file_format", ["gtiff", "cog"])
@pytest.mark.parametrize("rows", [1, 77, 512, 2000])
def test_what_is_written_in_strips_of_any_height_is_read_back(tmp_path: Path, file_format: str, rows: int) -> None:
    grid = Grid(POLE, NORTH_UP, 600, 1100)
    pixels = values(grid)
    if rows == 1:
        grid, pixels = Grid(POLE, NORTH_UP, 600, 20), pixels[:, :20]
    with rasterio.open(write(tmp_path / "a.tif", grid, pixels, rows, file_format=file_format)) as file:
        np.testing.assert_array_equal(file.read(), pixels)
        assert file.descriptions == ("signal", "sigma")
        assert file.units == ("DN", "DN")
        assert file.tags(1)["description"] == "what came in"
        assert file.tags()["LUNAR_PROVENANCE"] == "{}"
        assert np.isnan(file.nodata)
        assert file.profile["tiled"]
        assert file.compression.name == "zstd"
        assert (file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG") == (file_format == "cog")
        if grid.height > 512:
            assert file.overviews(1) == ([2, 4] if file_format == "cog" else [4])


@pytest.mark.parametrize(
    "transform",
    [NORTH_UP, Affine(2, 0, 0, 0, 2, 0), Affine.rotation(30) @ Affine.scale(0.5, -0.5), Affine(0, 3, 10, 4, 0, 20)],
    ids=["north up", "south up", "rotated", "turned by 90°"],
)
def test_the_result_lies_on_the_exact_grid(tmp_path: Path, transform: Affine) -> None:
    grid = Grid(POLE, transform, 30, 40)
    with rasterio.open(write(tmp_path / "a.tif", grid, values(grid))) as file:
        np.testing.assert_allclose(file.transform[:6], transform[:6], rtol=1e-15)
        assert (file.width, file.height) == (30, 40)
        assert same_place(file.crs.to_wkt(), POLE)


def test_an_image_without_place_stays_without_place(tmp_path: Path) -> None:
    grid = Grid(None, PIXEL_SPACE, 30, 40)
    path = write(tmp_path / "a.tif", grid, values(grid))
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        file = rasterio.open(path)
    with file:
        assert file.crs is None
        assert file.transform.is_identity


def test_overviews_of_classes_are_classes(tmp_path: Path) -> None:
    grid = Grid(POLE, NORTH_UP, 1200, 1200)
    classes = np.random.default_rng(0).choice([0, 8], (1, 1200, 1200)).astype("uint8")
    path = write(tmp_path / "a.tif", grid, classes, dtype="uint8", nodata=255, categorical=True)
    with rasterio.open(path, overview_level=0) as file:
        assert set(np.unique(file.read(1))) == {0, 8}, "a mean of 0 and 8 would be another class"


def test_nothing_appears_before_it_is_complete(tmp_path: Path) -> None:
    grid = Grid(POLE, NORTH_UP, 100, 1000)
    with RasterWriter(tmp_path / "a.tif", grid, BANDS) as writer:
        writer.append(values(grid)[:, :600])
        assert not (tmp_path / "a.tif").exists()
        with pytest.raises(OutputError, match=r"Only 512 of 1000 rows"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    old = tmp_path / "a.tif"
    old.write_text("precious")
    grid = Grid(POLE, NORTH_UP, 100, 1000)
    writer = RasterWriter(old, grid, BANDS, overwrite=True)
    with pytest.raises(ZeroDivisionError), writer:
        writer.append(values(grid)[:, :600] / (1 // 0))
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
    assert old.read_text() == "precious"


def test_what_the_disk_lost_is_noticed(tmp_path: Path) -> None:
    """Bytes that change between writing and the final look, as on a full or failing disk."""
    grid = Grid(POLE, NORTH_UP, 1024, 1024)
    with RasterWriter(tmp_path / "a.tif", grid, BANDS) as writer:
        writer.append(values(grid))
        writer._dataset.close()
        size = writer._draft.path.stat().st_size
        with writer._draft.path.open("rb+") as file:
            file.seek(size // 2)
            file.write(b"\0" * 5000)
        with pytest.raises(OutputError, match=r"could not be written.*Cure: free space"):
            writer.verify()
    assert list(tmp_path.iterdir()) == []


def test_a_lost_end_is_noticed(tmp_path: Path) -> None:
    grid = Grid(POLE, NORTH_UP, 1024, 1024)
    with RasterWriter(tmp_path / "a.tif", grid, BANDS) as writer:
        writer.append(values(grid))
        writer._dataset.close()
        os.truncate(writer._draft.path, writer._draft.path.stat().st_size - 1000)
        with pytest.raises(OutputError, match="could not be written"):
            writer.verify()


def test_existing_files_and_impossible_places_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("precious")
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        Draft(tmp_path / "a.tif")
    with pytest.raises(OutputError, match=r"folder .* does not exist"):
        Draft(tmp_path / "no" / "a.tif")
    with pytest.raises(OutputError, match="is a folder"):
        Draft(tmp_path, overwrite=True)


def test_the_drafts_of_the_dead_are_swept_away(tmp_path: Path) -> None:
    dead = tmp_path / ".a.partial-999999999-0.tif"
    other = tmp_path / ".b.partial-999999999-0.tif"
    mine = tmp_path / f".a.partial-{os.getpid()}-99.tif.kept"
    for path in (dead, other, mine):
        path.write_text("unfinished")
    with Draft(tmp_path / "a.tif") as unfinished:
        assert not dead.exists()
        assert other.exists(), "another file's draft is none of our business"
        unfinished.path.write_text("done")
        unfinished.publish()
    assert (tmp_path / "a.tif").read_text() == "done"


def test_a_stopped_process_takes_its_drafts_along(tmp_path: Path) -> None:
    unfinished = Draft(tmp_path / "a.tif")
    unfinished.path.write_text("half")
    draft.discard_all()
    assert list(tmp_path.iterdir()) == []
