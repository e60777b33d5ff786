"""Rocks by their faces and shadows: found where they are, as wide as they are, and not in craters."""

from __future__ import annotations

import moon
import numpy as np
import pytest
from scipy import ndimage

from lunar_processing.classical import rocks

SIDE = 640


def patches_of(pixels, valid=None, side=256):
    valid = np.ones(pixels.shape, bool) if valid is None else valid
    rows, cols = (range(0, n, side) for n in pixels.shape)
    return [(pixels[r : r + side, c : c + side], valid[r : r + side, c : c + side]) for r in rows for c in cols]


def found(pixels, azimuth):
    """(x, y, diameter) of each detection, continuous image coordinates."""
    valid = np.ones(pixels.shape, bool)
    mask, _ = rocks.apply(pixels, valid, azimuth, rocks.fit(patches_of(pixels)))
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    centres = np.array(ndimage.center_of_mass(mask, labels, range(1, count + 1))).reshape(-1, 2) + 0.5
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return np.column_stack([centres[:, ::-1], 2 * np.sqrt(areas / np.pi)])


def matched(detections, truth):
    """For each detection the index of the rock it lies on, or -1."""
    distance = np.hypot(detections[:, :1] - truth["col"], detections[:, 1:2] - truth["row"])
    nearest = (distance / truth["diameter"]).argmin(1)
    near = distance[np.arange(len(detections)), nearest] < 0.35 * truth["diameter"][nearest] + 1
    return np.where(near, nearest, -1)


@pytest.mark.parametrize(("azimuth", "elevation", "least"), [(90, 20, 0.75), (215, 30, 0.8), (330, 40, 0.8)])
def test_rocks_of_five_pixels_and_more_are_found_in_place_and_size(azimuth, elevation, least):
    scene = moon.scene(SIDE, SIDE, seed=azimuth, sun_azimuth=azimuth, sun_elevation=elevation, rocks=250)
    detections = found(moon.digitise(scene.image, bits=16), azimuth)
    rock = matched(detections, scene.rocks)
    large = scene.rocks["diameter"] >= 5
    hits = np.isin(np.flatnonzero(large), rock).sum()
    false = ((rock < 0) & (detections[:, 2] >= 5)).sum()
    assert 2 * hits / (2 * hits + false + (large.sum() - hits)) > least
    on_large = (rock >= 0) & large[rock]
    ratio = detections[on_large, 2] / scene.rocks["diameter"][rock[on_large]]
    assert 0.8 < np.median(ratio) < 1.2


def test_craters_without_rocks_hardly_ever_fire():
    scene = moon.scene(SIDE, SIDE, seed=8, sun_azimuth=120, sun_elevation=25, rocks=0, craters=0.03)
    detections = found(scene.image, 120)
    assert len(scene.craters) > 1000
    assert (detections[:, 2] >= 5).sum() <= 8


def test_with_the_sun_on_the_wrong_side_rocks_are_not_found():
    scene = moon.scene(512, 512, seed=5, sun_azimuth=60, rocks=200, craters=0)
    right, wrong = (found(scene.image, azimuth) for azimuth in (60, 240))
    assert (matched(wrong, scene.rocks) >= 0).sum() < 0.1 * (matched(right, scene.rocks) >= 0).sum()


def test_a_single_rock_is_measured():
    """A bright disc of 10 px with a shadow behind it, drawn by hand: the sun stands at the left."""
    y, x = np.mgrid[:200, :200] + 0.5
    image = np.random.default_rng(0).normal(100, 1, (200, 200)).astype(np.float32)
    body = np.hypot(x - 100, y - 80) < 5
    shadow = (x > 100) & (x < 120) & (np.abs(y - 80) < 5)
    image[shadow] = 2
    image[body & (x < 102.5)] = 180
    (detection,) = found(image, 270)
    np.testing.assert_allclose(detection, (100, 80, 10), atol=1.5)


def test_the_same_from_every_tile():
    scene = moon.scene(SIDE, SIDE, seed=5, sun_azimuth=60, sun_elevation=18)
    valid = np.ones(scene.image.shape, bool)
    valid[400:420, 300:320] = False
    state = rocks.fit(patches_of(scene.image, valid))
    mask, score = rocks.apply(scene.image, valid, 60, state)
    halo, side = rocks.HALO, 224
    padded, known = np.pad(scene.image, halo), np.pad(valid, halo)
    for top in range(0, SIDE - side + 1, 208):
        for left in range(0, SIDE - side + 1, 208):
            window = slice(top, top + side + 2 * halo), slice(left, left + side + 2 * halo)
            part_mask, part_score = rocks.apply(padded[window], known[window], 60, state, (left - halo, top - halo))
            core = slice(halo, halo + side), slice(halo, halo + side)
            whole = slice(top, top + side), slice(left, left + side)
            np.testing.assert_allclose(part_score[core], score[whole], rtol=1e-5)
            np.testing.assert_array_equal(part_mask[core], mask[whole])
    assert mask.any()
    assert not score[~valid].any()
    np.testing.assert_array_equal(mask, score >= rocks.THRESHOLD)


@pytest.mark.parametrize(
    "pixels", [np.zeros((40, 40), np.uint8), np.full((1, 1), 9.0), np.zeros((300, 300), np.float32)]
)
def test_nothing_to_find_is_nothing_found(pixels):
    valid = np.ones(pixels.shape, bool)
    mask, score = rocks.apply(pixels, valid, 90, rocks.fit(patches_of(pixels)))
    assert not mask.any()
    assert score.shape == pixels.shape
    mask, _ = rocks.apply(pixels, ~valid, 90, rocks.fit(patches_of(pixels, ~valid)))
    assert not mask.any()


@pytest.mark.parametrize("azimuth", [0, 45, 100, 200, 310])
def test_the_sun_is_estimated_from_craters(azimuth):
    scene = moon.scene(SIDE, SIDE, seed=azimuth + 1, sun_azimuth=azimuth, sun_elevation=25, rocks=30, craters=0.03)
    estimate, confidence = rocks.estimate_sun(patches_of(scene.image))
    assert abs((estimate - azimuth + 180) % 360 - 180) < 5
    assert confidence > 0.5


def test_no_light_no_confidence():
    noise = np.random.default_rng(0).normal(50, 3, (512, 512))
    assert rocks.estimate_sun(patches_of(noise))[1] < 0.2
    assert rocks.estimate_sun(patches_of(np.zeros((64, 64))))[1] == 0
    assert rocks.estimate_sun([])[1] == 0


# Read off the images by eye: the dark walls of craters, which lie towards the sun.
SEEN = {
    "M115143943RE_cal_echo_2_2": 285,
    "M115143943_mosaic_train_small": 75,
    "M1155395732_mosaic_train_small": 85,
    "M1183658592LE_cal_echo_23_0": 240,
    "M1183658592_mosaic_train_small": 70,
    "M1229577647LE_cal_echo_14_4": 300,
    "M1229577647_mosaic_train_small": 60,
    "M1231933714_mosaic_train_small": 85,
    "M1266003170_mosaic_train_small": 305,
    "M134022629_mosaic_train_small": 285,
    "M161142858RE_cal_echo_1_2": 245,
    "M180000082_mosaic_train_small": 275,
    "M180007222_mosaic_train_small": 275,
}


def test_the_sun_over_real_craters(real_data):
    from skimage.io import imread

    for name, azimuth in SEEN.items():
        estimate, confidence = rocks.estimate_sun(patches_of(imread(real_data / "nac_cdr" / f"{name}.png")))
        assert abs((estimate - azimuth + 180) % 360 - 180) < 20, name
        assert confidence > 0.8, name


def test_real_boulders_under_a_wall(real_data):
    """Boulders of the NAC image M143947267L, sun at the lower left: the large one is found and measured."""
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(real_data / "formats" / "M143947267L.cal.echo.crop.cub") as image:
        pixels = image.read(1)
    azimuth, _ = rocks.estimate_sun(patches_of(pixels))
    assert abs((azimuth - 247 + 180) % 360 - 180) < 15
    detections = found(pixels, azimuth)
    assert 20 <= len(detections) <= 120
    large = detections[np.hypot(detections[:, 0] - 147, detections[:, 1] - 334).argmin()]
    assert np.hypot(large[0] - 147, large[1] - 334) < 4
    assert 8 < large[2] < 16
