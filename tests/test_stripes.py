"""Offsets of columns and lines: how much of them is found, that nothing else is taken for them, and in which pieces."""

from __future__ import annotations

import moon
import numpy as np
import pytest

from lunar_processing.classical import noise
from lunar_processing.classical.stripes import Profiles, StripeSums, destripe, offsets

SIDE = 512
CAMERA = noise.Noise(a=9.0, b=0.0, black=0.0, least=1e-9)


@pytest.fixture(scope="module")
def ground():
    """Dark ground, where stripes matter: 8 DN in the mean."""
    clean = moon.scene(SIDE, SIDE, seed=10, noise=0.0).clean
    return clean * 8 / clean.mean()


def recorded(ground, seed=0, rows=0.0, columns=0.0):
    """Ground with the noise of a camera of 3 DN, offsets of rows and columns of so many DN, and these."""
    random = np.random.default_rng(seed)
    down, across = random.normal(0, rows, (SIDE, 1)), random.normal(0, columns, (1, SIDE))
    pixels = ground + random.normal(0, 3.0, ground.shape) + down + across
    return pixels.astype(np.float32), np.ones(ground.shape, bool), down[:, 0] - down.mean(), across[0] - across.mean()


def test_most_of_the_stripes_is_found_slow_ones_too(ground):
    pixels, valid, down, across = recorded(ground, 0, rows=1.0, columns=1.0)
    found = offsets(pixels, valid, CAMERA)
    average = 3.0 / np.sqrt(SIDE)  # what the noise of the pixels leaves of a line's mean
    for profile, true in ((found.rows, down), (found.columns, across)):
        assert 0.5 * average < (true - profile).std() < 0.4 * true.std()
    slow = [np.convolve(rows, np.ones(32) / 32, "valid").std() for rows in (down - found.rows, down)]
    assert slow[0] < 0.7 * slow[1]  # across columns this ground has too much relief for that


def test_stripes_are_found_beside_ground_in_the_sun(ground):
    bright = np.where(np.arange(SIDE)[:, None] < SIDE // 2, ground, 100 * ground)  # and whole rows of it
    pixels, valid, down, _ = recorded(bright, 1, rows=1.0)
    found = offsets(pixels, valid, CAMERA)
    dark = np.s_[: SIDE // 2 - 1]
    assert (down - found.rows)[dark].std() < 0.4 * down[dark].std()


@pytest.mark.parametrize("unit", [1e-25, 1e-5, 1.0, 1e4, 1e31])
@pytest.mark.parametrize("rows", [0.05, 1.0, 300.0])
def test_offsets_are_in_the_unit_of_the_image(ground, unit, rows):
    pixels, valid, _, _ = recorded(ground, 6, rows=rows, columns=0.5)
    camera = noise.Noise(a=CAMERA.a * unit**2, b=0.0, black=0.0, least=CAMERA.least * unit**2)
    found, there = offsets(pixels * np.float32(unit), valid, camera), offsets(pixels, valid, CAMERA)
    np.testing.assert_allclose(found.rows / unit, there.rows, atol=0.01 * max(there.rows.std(), 1.0))
    np.testing.assert_allclose(found.columns / unit, there.columns, atol=0.01)


def test_no_brightness_is_lost_with_the_stripes(ground):
    pixels, valid, _, _ = recorded(ground, 2, rows=1.0, columns=1.0)
    profiles = offsets(pixels, valid, CAMERA)
    assert abs(profiles.rows.sum()) + abs(profiles.columns.sum()) < 1e-9
    flat = destripe(pixels, valid, profiles, (0, 0))
    assert flat.mean() == pytest.approx(pixels.mean(), rel=1e-6)


def test_where_there_are_no_stripes_nothing_is_taken_off(ground):
    pixels, valid, _, _ = recorded(ground, 3)
    found = offsets(pixels, valid, CAMERA)
    assert max(found.rows.std(), found.columns.std()) < 0.02
    striped, _, _, _ = recorded(ground, 3, columns=2.0)
    assert offsets(striped, valid, CAMERA).rows.std() < 0.02


def test_where_there_are_no_stripes_relief_is_not_taken_for_them():
    scene = moon.scene(640, 640, seed=3, dark=True, noise=0.0)
    electrons = scene.clean * moon.FULL_SCALE_ELECTRONS
    spread = np.sqrt(electrons + moon.READ_NOISE_ELECTRONS**2)
    pixels = electrons + spread * np.random.default_rng(1).standard_normal(electrons.shape)
    valid = np.ones(pixels.shape, bool)
    windows = [(pixels[r : r + 256, c : c + 256], valid[r : r + 256, c : c + 256]) for r in (0, 256) for c in (0, 256)]
    found = offsets(pixels, valid, noise.fit_noise(windows))
    assert max(found.columns.std(), found.rows.std()) < 0.05 * moon.READ_NOISE_ELECTRONS


def test_offsets_do_not_depend_on_the_strips_in_which_the_image_comes(ground):
    pixels, valid, _, _ = recorded(ground, 4, rows=1.0, columns=1.0)
    valid[:, :20] = valid[300:310, 400:440] = valid[200:203] = False
    at_once = offsets(pixels, valid, CAMERA)
    sums = StripeSums(SIDE, SIDE, CAMERA)
    for top, bottom in ((0, 5), (5, 64), (64, 67), (67, 300), (300, SIDE)):
        sums.add(pixels[top:bottom], valid[top:bottom])
    np.testing.assert_allclose(sums.profiles().columns, at_once.columns, atol=1e-5)
    np.testing.assert_allclose(sums.profiles().rows, at_once.rows, atol=1e-5)
    assert np.isfinite(at_once.rows).all()


def test_invalid_pixels_have_no_say(ground):
    pixels, valid, _, _ = recorded(ground, 5, rows=1.0)
    valid[100:110] = valid[:, 40:90] = False
    found = offsets(pixels, valid, CAMERA)
    other = offsets(np.where(valid, pixels, 1e4).astype(np.float32), valid, CAMERA)
    np.testing.assert_array_equal(found.rows, other.rows)
    np.testing.assert_array_equal(found.columns, other.columns)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (40, 60), (2, 2000)])
def test_what_is_too_small_to_tell_stays_as_it_is(shape):
    pixels = np.random.default_rng(0).normal(10, 3, shape)
    found = offsets(pixels, np.ones(shape, bool), CAMERA)
    assert (found.rows.shape, found.columns.shape) == ((shape[0],), (shape[1],))
    np.testing.assert_array_equal(destripe(pixels, np.ones(shape, bool), found, (0, 0)), pixels)


def test_nothing_valid_has_no_stripes():
    nothing = np.zeros((200, 300), bool)
    found = offsets(np.full(nothing.shape, np.nan), nothing, CAMERA)
    assert not found.rows.any()
    assert not found.columns.any()


def test_beyond_the_image_there_is_nothing_to_take_off():
    profiles = Profiles(np.array([1.0, 2.0]), np.array([10.0, 20.0]))
    left = destripe(np.full((4, 4), 100.0), np.ones((4, 4), bool), profiles, (-1, -1))
    np.testing.assert_array_equal(left, [[100, 99, 98, 100], [90, 89, 88, 90], [80, 79, 78, 80], [100, 99, 98, 100]])
