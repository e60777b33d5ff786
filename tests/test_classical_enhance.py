"""The training-free ways to enhance: same pixels from any tile, nothing invented, darkness made readable."""

from __future__ import annotations

import moon
import numpy as np
import pytest

from lunar_processing.classical import enhance, noise, stripes

SIDE = 640


@pytest.fixture(scope="module")
def view():
    """A scene with a dark region, in 12-bit counts, with a nodata border and a hole."""
    scene = moon.scene(SIDE, SIDE, seed=3, dark=True)
    pixels = moon.digitise(scene.image, bits=16)
    valid = np.ones(pixels.shape, bool)
    valid[:, :20] = False
    valid[300:310, 400:440] = False
    return scene, np.where(valid, pixels, 0), valid


def patches_of(pixels, valid, side=256):
    rows, cols = (range(0, n, side) for n in pixels.shape)
    return [(pixels[r : r + side, c : c + side], valid[r : r + side, c : c + side]) for r in rows for c in cols]


def fitted(name, pixels, valid):
    method = enhance.METHODS[name]
    patches = patches_of(pixels, valid)
    profiles = stripes.offsets(pixels, valid, noise.fit_noise(patches)) if method.needs_profiles else None
    return method, method.fit(patches, profiles)


def tile(array, top, left, height, width):
    """A window that may reach over the edges, where it holds zeros."""
    out = np.zeros((height, width), array.dtype)
    rows = slice(max(top, 0), min(top + height, array.shape[0]))
    cols = slice(max(left, 0), min(left + width, array.shape[1]))
    out[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left] = array[rows, cols]
    return out


@pytest.mark.parametrize("name", enhance.METHODS)
def test_a_pixel_is_the_same_from_every_tile(view, name):
    _, pixels, valid = view
    method, state = fitted(name, pixels, valid)
    whole = method.apply(pixels, valid, state, origin=(0, 0))
    halo = method.halo
    for top, left, side in [(0, 0, 200), (217, 103, 200), (SIDE - 150, SIDE - 150, 150), (299, 0, 77)]:
        window = (top - halo, left - halo, side + 2 * halo, side + 2 * halo)
        part = method.apply(tile(pixels, *window), tile(valid, *window), state, origin=(left - halo, top - halo))
        core = part[halo : halo + side, halo : halo + side]
        np.testing.assert_allclose(core, whole[top : top + side, left : left + side], rtol=1e-5)


@pytest.mark.parametrize("name", enhance.METHODS)
def test_invalid_pixels_stay_empty_and_say_nothing(view, name):
    _, pixels, valid = view
    method, state = fitted(name, pixels, valid)
    result = method.apply(pixels, valid, state)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(result), ~valid)
    garbage = np.where(valid, pixels, 60_000)
    np.testing.assert_array_equal(method.apply(garbage, valid, state), result)


@pytest.mark.parametrize("name", enhance.METHODS)
@pytest.mark.parametrize("value", [0, 57])
def test_a_constant_image_gives_a_constant_image(name, value):
    pixels, valid = np.full((96, 96), value, np.uint8), np.ones((96, 96), bool)
    method, state = fitted(name, pixels, valid)
    result = method.apply(pixels, valid, state)
    assert np.isfinite(result).all()
    assert np.ptp(result) < 1e-3
    if method.in_input_units:
        np.testing.assert_allclose(result, value, atol=1e-3)


@pytest.mark.parametrize("name", enhance.METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 40)])
def test_tiny_images_pass(name, shape):
    pixels, valid = np.arange(np.prod(shape), dtype=np.float32).reshape(shape), np.ones(shape, bool)
    method, state = fitted(name, pixels, valid)
    assert np.isfinite(method.apply(pixels, valid, state)).all()


def test_stretch_lays_the_robust_range_on_0_to_1(view):
    _, pixels, valid = view
    method, state = fitted("stretch", pixels, valid)
    result = method.apply(pixels, valid, state)[valid]
    low, high = np.percentile(pixels[valid], (0.5, 99.5))
    assert (result.min(), result.max()) == (0.0, 1.0)
    middle = (pixels[valid] > low) & (pixels[valid] < high)
    np.testing.assert_allclose(result[middle], (pixels[valid][middle] - low) / (high - low), atol=1e-5)


def test_clahe_shows_relief_in_the_dark_that_a_stretch_hides(view):
    scene, pixels, valid = view
    deep = scene.dark & valid
    shown = {}
    for name in ("stretch", "clahe", "retinex"):
        method, state = fitted(name, pixels, valid)
        shown[name] = method.apply(pixels, valid, state)[deep].std()
    assert shown["retinex"] > 3 * shown["stretch"]
    assert shown["clahe"] > 1.5 * shown["stretch"]


def test_clahe_keeps_the_order_of_brightness_in_one_place():
    ramp = np.tile(np.linspace(0, 1000, 128, dtype=np.float32), (128, 1))
    method, state = fitted("clahe", ramp, np.ones(ramp.shape, bool))
    result = method.apply(ramp, np.ones(ramp.shape, bool), state)
    assert (np.diff(result, axis=1) >= -1e-6).all()


def test_destriping_and_denoising_bring_the_dark_nearer_to_the_truth(view):
    scene, pixels, valid = view
    method, state = fitted("destripe-nlm", pixels, valid)
    result = method.apply(pixels, valid, state)
    truth, deep = scene.clean * 4095, scene.dark & valid

    def error(values, where):
        return np.sqrt(np.mean((values - truth)[where] ** 2))

    assert error(result, deep) < 0.5 * error(pixels, deep)
    lit = valid & ~scene.dark & (truth < 3500)
    assert error(result, lit) < 1.05 * error(pixels, lit)  # where there is light there is little to gain


def test_stabilising_is_undone_exactly():
    model = noise.Noise(a=20.0, b=0.07, black=15.0, least=0.08)
    signal = np.linspace(-40, 4000, 500)
    np.testing.assert_allclose(enhance.unstabilise(enhance.stabilise(signal, model), model), signal, rtol=1e-12)
    bright = np.random.default_rng(0).normal(2000, np.sqrt(20 + 0.07 * 1985), 100_000)
    assert enhance.stabilise(bright, model).std() == pytest.approx(1, abs=0.02)
