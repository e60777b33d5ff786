"""From a mask to objects: a rock that a seam cuts is one rock, with the size of one."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from scipy import ndimage

from lunar_processing.blobs import EIGHT, BlobFinder, Blobs, MiddleFinder, concatenate
from lunar_processing.grid import Window


def find(mask: np.ndarray, strip: int, valid: np.ndarray | None = None, score: np.ndarray | None = None) -> Blobs:
    """All objects of a mask that arrives in strips of so many rows."""
    height, width = mask.shape
    valid = np.ones(mask.shape, bool) if valid is None else valid
    score = np.ones(mask.shape) if score is None else score
    finder = BlobFinder(width, height)
    found = []
    for row in range(0, height, strip):
        rows = slice(row, row + strip)
        window = Window(0, row, width, strip).clip(width, height)
        found.append(finder.add(window, mask[rows], score[rows], valid[rows]))
    return concatenate([*found, finder.finish()])


@pytest.fixture(scope="module")
def spotted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A thousand and a half irregular spots, some beside a hole without data."""
    random = np.random.default_rng(0)
    valid = np.ones((700, 500), bool)
    valid[:, :10] = False
    valid[300:350, 200:250] = False
    mask = (ndimage.gaussian_filter(random.normal(size=valid.shape), 3) > 0.1) & valid
    return mask, valid, random.random(valid.shape)


@pytest.mark.parametrize("strip", [1, 2, 7, 100, 333, 699])
def test_the_same_objects_wherever_the_seams_are(spotted: tuple, strip: int) -> None:
    mask, valid, score = spotted
    whole, cut = find(mask, 700, valid, score), find(mask, strip, valid, score)
    assert len(whole.area) == ndimage.label(mask, EIGHT)[1]
    np.testing.assert_array_equal(cut.area, whole.area)
    np.testing.assert_allclose(cut.col, whole.col, rtol=1e-12)
    np.testing.assert_allclose(cut.row, whole.row, rtol=1e-12)
    np.testing.assert_allclose(cut.covariance, whole.covariance, atol=1e-8)
    np.testing.assert_allclose(cut.score, whole.score, rtol=1e-12)
    np.testing.assert_array_equal(cut.edge, whole.edge)
    assert shapely.equals(cut.outline, whole.outline).all()


def test_outlines_hold_the_pixels_and_are_valid(spotted: tuple) -> None:
    mask, valid, score = spotted
    blobs = find(mask, 64, valid, score)
    np.testing.assert_allclose([outline.area for outline in blobs.outline], blobs.area)
    assert shapely.is_valid(blobs.outline).all()


@pytest.mark.parametrize("joint", [0, 20, 40])
def test_teeth_of_a_comb_that_meet_only_in_one_strip_are_one_object(joint: int) -> None:
    mask = np.zeros((41, 41), bool)
    mask[:, ::2] = mask[joint] = True
    comb = find(mask, 3)
    assert comb.area.tolist() == [mask.sum()]
    assert comb.outline[0].area == mask.sum()


def test_pixels_that_touch_at_a_corner_across_a_seam_belong_together() -> None:
    mask = np.eye(8, dtype=bool)
    assert find(mask, 4).area.tolist() == [8]
    assert find(mask[::-1], 4).area.tolist() == [8]


def test_centre_and_axes_of_an_ellipse() -> None:
    rows, cols = np.mgrid[:200, :200] + 0.5
    u, v = (cols - 90) * 0.8 + (rows - 110) * 0.6, -(cols - 90) * 0.6 + (rows - 110) * 0.8
    blobs = find((u / 30) ** 2 + (v / 12) ** 2 < 1, 33)
    assert (blobs.col[0], blobs.row[0]) == (pytest.approx(90, abs=0.05), pytest.approx(110, abs=0.05))
    minor, major = 4 * np.sqrt(np.linalg.eigvalsh(blobs.covariance[0]))
    assert (major, minor) == (pytest.approx(60, rel=0.01), pytest.approx(24, rel=0.01))


def test_a_single_pixel_has_the_size_of_a_pixel() -> None:
    mask = np.zeros((5, 5), bool)
    mask[2, 3] = True
    blobs = find(mask, 2)
    assert (blobs.area[0], blobs.col[0], blobs.row[0]) == (1, 3.5, 2.5)
    assert 4 * np.sqrt(blobs.covariance[0, 0, 0]) == pytest.approx(1.15, abs=0.01)


def test_only_objects_at_an_edge_are_marked() -> None:
    mask, valid = np.zeros((60, 60), bool), np.ones((60, 60), bool)
    mask[0:3, 10:13] = mask[30:33, 57:60] = mask[57:60, 30:33] = True  # at the image's edges
    mask[10:13, 20:23] = True
    valid[20:26, 20:30] = False
    mask[17:20, 24:26] = mask[26:28, 24:26] = True  # above and below the hole
    for strip in (60, 20, 13):
        blobs = find(mask, strip, valid)
        inside = {(round(c), round(r)) for c, r, e in zip(blobs.col, blobs.row, blobs.edge) if not e}
        assert inside == {(22, 12)}, f"strips of {strip} rows"


def test_nothing_found_is_an_empty_list() -> None:
    blobs = find(np.zeros((50, 50), bool), 20)
    assert len(blobs.area) == len(blobs.outline) == 0
    assert blobs.covariance.shape == (0, 2, 2)


def test_a_hundred_thousand_objects_wait_for_nobody() -> None:
    """Only what touches the last row is kept; everything else is handed out with its strip."""
    mask = np.zeros((400, 4000), bool)
    mask[1::4, 1::4] = mask[2::4, 1::4] = True
    finder = BlobFinder(4000, 400)
    handed = [
        len(finder.add(Window(0, row, 4000, 100), mask[row : row + 100], mask[row : row + 100], mask[:100] | True).area)
        for row in range(0, 400, 100)
    ]
    assert handed == [25_000] * 4
    assert len(finder.finish().area) == 0


# ---- rocks that touch --------------------------------------------------------------------------------------------


def cones(discs: list[tuple[float, float, float]], shape: tuple[int, int]) -> np.ndarray:
    """(3, H, W): what a perfect network says of discs (col, row, radius): rock, nearness to a middle, no shadow."""
    rows, cols = np.mgrid[: shape[0], : shape[1]] + 0.5
    depth = [1 - np.hypot(cols - c, rows - r) / radius for c, r, radius in discs]
    middle = np.clip(np.max(depth, axis=0), 0, 1)
    return np.stack([middle > 0, middle, 0 * middle]).astype(np.float32)


def rocks_of(layers: np.ndarray, strip: int, **options: object) -> Blobs:
    """All rocks of layers that arrive in strips of so many rows."""
    _, height, width = layers.shape
    finder = MiddleFinder(width, height, 0.5, **options)
    found = []
    for row in range(0, height, strip):
        window = Window(0, row, width, strip).clip(width, height)
        rows = slice(row, row + strip)
        found.append(finder.add(window, layers[:, rows], np.ones((window.height, width), bool)))
    return concatenate([*found, finder.finish()])


def test_two_rocks_that_touch_are_two_and_a_rough_one_is_one() -> None:
    layers = cones([(20, 20, 8), (32, 20, 6), (60, 40, 12)], (80, 80))
    layers[1] += 0.02 * np.random.default_rng(0).random(layers[1].shape, dtype=np.float32)
    found = rocks_of(layers, 80)
    assert len(found.area) == 3
    np.testing.assert_allclose(found.col, [20, 32, 60], atol=1)
    np.testing.assert_allclose(found.area, np.pi * np.array([8, 6, 12]) ** 2, rtol=0.1)
    np.testing.assert_allclose([outline.area for outline in found.outline], found.area)
    assert len(find(layers[0] > 0, 80).area) == 2  # a mask alone cannot tell


@pytest.mark.parametrize("strip", [30, 64, 100, 333])
def test_the_same_rocks_wherever_the_seams_are(strip: int) -> None:
    random = np.random.default_rng(1)
    discs = [(c, r, s) for c, r, s in zip(*random.uniform(0, 400, (2, 600)), random.uniform(1.5, 14, 600))]
    layers = cones(discs, (400, 400))
    whole, cut = rocks_of(layers, 400), rocks_of(layers, strip)
    assert len(whole.area) > 200
    for name in ("area", "col", "row", "score", "edge"):
        np.testing.assert_allclose(getattr(cut, name), getattr(whole, name), err_msg=name)
    assert shapely.equals(cut.outline, whole.outline).all()


def test_the_tip_of_a_shadow_is_measured_down_the_light() -> None:
    layers = cones([(30, 30, 5), (30, 80, 5)], (120, 120))
    rows, cols = np.mgrid[:120, :120] + 0.5
    along, across = ((cols - 30) + (rows - 30)) / np.sqrt(2), ((cols - 30) - (rows - 30)) / np.sqrt(2)
    layers[2] = (along > 4) & (along < 25) & (np.abs(across) < 4) & (layers[0] == 0)
    found = rocks_of(layers, 50, away=(np.sqrt(0.5), np.sqrt(0.5)))
    assert found.tip[0] == pytest.approx(25, abs=0.6)
    assert np.isnan(found.tip[1])  # it casts none
    assert np.isnan(rocks_of(layers, 50).tip).all()  # nobody said where the light comes from


def test_no_rocks_among_middles_is_an_empty_list() -> None:
    assert len(rocks_of(np.zeros((3, 50, 50), np.float32), 20).area) == 0
