"""Place: every pixel once, there and back again, whatever the affine."""

from __future__ import annotations

import math

import numpy as np
import pytest
from affine import Affine
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lunar_processing.errors import GridError
from lunar_processing.grid import PIXEL_SPACE, Grid, Window

sizes = st.integers(1, 700)
# Double precision resolves 1e-9 px as long as the origin is not further away than about a million pixels.
origins = st.floats(-1e6, 1e6)


@st.composite
def affines(draw: st.DrawFn) -> Affine:
    """Any rotation, mirroring and anisotropy, from centimetres to degrees to kilometres a pixel."""
    size = 10 ** draw(st.floats(-5, 4))
    angle, stretch = draw(st.floats(0, 360)), draw(st.floats(0.05, 20))
    flip = draw(st.sampled_from([1, -1]))
    place = Affine.translation(draw(origins) * size, draw(origins) * size)
    return place @ Affine.rotation(angle) @ Affine.scale(size, flip * size * stretch)


@given(affines(), st.floats(-100, 60_000), st.floats(-100, 60_000))
def test_pixel_to_map_and_back(transform: Affine, col: float, row: float) -> None:
    grid = Grid(None, transform, 60_000, 60_000)
    x, y = grid.xy(col, row)
    back = grid.colrow(x, y)
    assert back[0] == pytest.approx(
        col, abs=1e-9 * max(1, math.hypot(transform.c, transform.f) / _size(transform) / 1e6)
    )
    assert back[1] == pytest.approx(
        row, abs=1e-9 * max(1, math.hypot(transform.c, transform.f) / _size(transform) / 1e6)
    )


def _size(transform: Affine) -> float:
    """Length of the pixel's shorter side, map units."""
    return min(math.hypot(transform.a, transform.d), math.hypot(transform.b, transform.e))


@settings(deadline=None, max_examples=200)
@given(sizes, sizes, st.integers(1, 300), st.integers(0, 60), st.sampled_from([1, 2, 8, 32]))
def test_every_pixel_exactly_once(width: int, height: int, tile: int, halo: int, align: int) -> None:
    assume((tile - 2 * halo) // align >= 1)
    grid = Grid(None, PIXEL_SPACE, width, height)
    seen = np.zeros((height, width), int)
    outer_sizes = set()
    for row in grid.tile_rows(tile, halo, align):
        assert len({t.core.row for t in row}) == 1
        for core, outer in row:
            seen[core.row : core.bottom, core.col : core.right] += 1
            outer_sizes.add((outer.width, outer.height))
            assert core.col % align == core.row % align == 0
            assert (core.col - outer.col, core.row - outer.row) == (halo, halo)
            assert outer.right - core.right >= halo
            assert outer.width <= max(tile, align + 2 * halo)
    assert (seen == 1).all()
    assert len(outer_sizes) == 1, "a network wants tiles of one size"


def test_tiles_share_an_image_evenly() -> None:
    rows = list(Grid(None, PIXEL_SPACE, 5064, 8192).tile_rows(1152, 64, 8))
    assert (len(rows), len(rows[0])) == (8, 5)
    assert rows[0][0].outer[2:] == (1016 + 128, 1024 + 128)  # not five of 1024 px, of which the last is half empty
    assert rows[-1][-1].core.right == 5064


def test_a_tile_that_is_all_halo_is_refused() -> None:
    with pytest.raises(GridError, match=r"leaves nothing to compute.*larger tile"):
        list(Grid(None, PIXEL_SPACE, 10, 10).tile_rows(tile=64, halo=32))


@given(affines(), st.integers(0, 500), st.integers(0, 500))
def test_a_crop_stays_in_its_place(transform: Affine, col: int, row: int) -> None:
    grid = Grid("some wkt", transform, 1000, 1000)
    part = grid.crop(Window(col, row, 10, 20))
    np.testing.assert_allclose(
        part.xy(3.5, 4.5), grid.xy(col + 3.5, row + 4.5), rtol=1e-9, atol=1e-6 * _size(transform)
    )
    assert (part.width, part.height, part.wkt) == (10, 20, "some wkt")


def test_a_coarser_grid_covers_the_last_pixels_too() -> None:
    grid = Grid(None, Affine(0.5, 0, 1000, 0, -0.5, 2000), 100, 65)
    coarse = grid.coarsen(32)
    assert (coarse.width, coarse.height) == (4, 3)
    assert coarse.transform == Affine(16, 0, 1000, 0, -16, 2000)
    np.testing.assert_allclose(coarse.xy(1, 1), grid.xy(32, 32))


def test_without_a_coordinate_system_points_lie_where_qgis_draws_the_image() -> None:
    grid = Grid(None, PIXEL_SPACE, 640, 480)
    np.testing.assert_array_equal(grid.xy(10.5, 20.5), (10.5, -20.5))
    assert not grid.georeferenced
    assert grid.footprint().tolist() == [[0, 0], [640, 0], [640, -480], [0, -480]]


@pytest.mark.parametrize(
    "transform", [Affine(0, 0, 0, 0, 0, 0), Affine(1, 1, 0, 1, 1, 0), Affine(math.nan, 0, 0, 0, 1, 0)]
)
def test_a_transform_that_maps_an_area_to_a_line_is_refused(transform: Affine) -> None:
    with pytest.raises(GridError, match=r"degenerate.*gdal_edit"):
        Grid(None, transform, 10, 10)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(GridError, match="no pixels"):
        Grid(None, PIXEL_SPACE, 0, 5)


def test_windows_clip_and_grow() -> None:
    assert Window(-5, -5, 20, 8).clip(10, 10) == Window(0, 0, 10, 3)
    assert Window(20, 3, 5, 5).clip(10, 10).width == 0
    assert Window(3, 4, 5, 6).grow(2) == Window(1, 2, 9, 10)
