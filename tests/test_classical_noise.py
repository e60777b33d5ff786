"""The noise of an image from the image itself, and what it says of what can be seen."""

from __future__ import annotations

import moon
import numpy as np
import pytest
from scipy import ndimage

from lunar_processing.classical import noise


def patches_of(pixels, valid=None, side=256):
    valid = np.ones(pixels.shape, bool) if valid is None else valid
    rows, cols = (range(0, n, side) for n in pixels.shape)
    return [(pixels[r : r + side, c : c + side], valid[r : r + side, c : c + side]) for r in rows for c in cols]


def camera(a, b, random, top=1000.0):
    """A smooth ramp of light with noise of variance a + b · s."""
    signal = np.tile(np.linspace(0, top, 768), (512, 1))
    return random.normal(signal, np.sqrt(a + b * signal)).astype(np.float32)


@pytest.mark.parametrize(("a", "b"), [(25.0, 0.0), (25.0, 0.5), (4.0, 0.05)])
def test_the_model_of_the_camera_is_found_again(a, b):
    model = noise.fit_noise(patches_of(camera(a, b, np.random.default_rng(1))), black=0.0)
    for signal in (0.0, 300.0, 900.0):
        assert noise.sigma_at(model, signal) == pytest.approx(np.sqrt(a + b * signal), rel=0.08)


def test_rough_ground_stripes_and_holes_do_not_pass_for_noise():
    scene = moon.scene(640, 640, seed=4, dark=True)
    pixels = moon.digitise(scene.image, bits=16)
    valid = np.random.default_rng(0).uniform(size=pixels.shape) > 0.001
    model = noise.fit_noise(patches_of(np.where(valid, pixels, 0), valid))
    read_noise = moon.READ_NOISE_ELECTRONS / moon.FULL_SCALE_ELECTRONS * 4095
    assert noise.sigma_at(model, model.black) == pytest.approx(read_noise, rel=0.25)
    at_half = np.sqrt(0.5 * moon.FULL_SCALE_ELECTRONS) / moon.FULL_SCALE_ELECTRONS * 4095
    assert at_half < noise.sigma_at(model, 2048) < 3 * at_half  # an upper bound where ground is rough to the pixel


def test_rounding_to_counts_is_noise_too():
    flat = np.full((256, 256), 40, np.uint8)
    flat[::16, ::16] = 41
    model = noise.fit_noise(patches_of(flat))
    assert noise.sigma_at(model, 40) >= np.sqrt(1 / 12)


def test_no_pixels_no_failure():
    nothing = np.zeros((64, 64), np.float32)
    model = noise.fit_noise(patches_of(nothing, np.zeros(nothing.shape, bool)))
    assert np.isfinite(noise.sigma_at(model, 0.0))
    assert noise.saturation_level(patches_of(nothing, np.zeros(nothing.shape, bool))) is None


def test_resolvable_size_follows_roses_criterion():
    model = noise.Noise(a=100.0, b=0.0, black=20.0, least=1e-9)
    size = noise.resolvable_px(model, np.array([20.0, 21.0, 40.0, 70.0, 5000.0]))
    assert np.isnan(size[0])  # no light
    assert size[2] == pytest.approx(5 * 10 / (0.3 * 20 * np.sqrt(np.pi / 4)))
    assert size[3] == pytest.approx(size[2] / 2.5, rel=1e-6)
    assert size[4] == 3.0  # never below three pixels
    assert size[1] > size[2]


def test_a_disc_of_the_resolvable_size_is_seen_and_one_of_a_third_is_not():
    """Detection of a faint disc by its own mean, a thousand times: sure at the stated size, chancy well below."""
    random = np.random.default_rng(5)
    model = noise.Noise(a=100.0, b=0.0, black=0.0, least=1e-9)
    size = float(noise.resolvable_px(model, 12.0))
    seen = {}
    for diameter in (size, size / 3):
        area = np.pi / 4 * diameter**2
        signal = 0.3 * 12.0 + random.normal(0, 10 / np.sqrt(area), 1000)
        empty = random.normal(0, 10 / np.sqrt(area), 1000)
        seen[diameter] = (signal > empty.max()).mean()
    assert seen[size] > 0.9
    assert seen[size / 3] < 0.2


def test_below_the_floor_is_where_noise_exceeds_signal():
    model = noise.Noise(a=16.0, b=0.0, black=10.0, least=1e-9)
    below = noise.below_noise_floor(model, np.array([9.0, 13.9, 14.1, np.nan]))
    np.testing.assert_array_equal(below, [True, True, False, False])


def test_saturation_is_the_top_of_the_range_or_a_pile_at_the_largest_value():
    random = np.random.default_rng(0)
    free = random.normal(1000, 100, (256, 256))
    assert noise.saturation_level(patches_of(free)) is None
    assert noise.saturation_level(patches_of(np.minimum(free, 1150))) == 1150
    counts = np.clip(free / 5, 0, 255).astype(np.uint8)
    assert noise.saturation_level(patches_of(counts)) == (255 if (counts == 255).any() else None)
    counts[3, 3] = 255
    assert noise.saturation_level(patches_of(counts)) == 255
    assert noise.saturation_level(patches_of(np.full((64, 64), 7.0))) is None


def test_sunlit_and_shadow_are_parted_only_where_both_are_there():
    mixed = moon.scene(512, 512, seed=3, dark=True)
    pixels = moon.digitise(mixed.image, bits=16)
    model = noise.fit_noise(patches_of(pixels))
    level = noise.sunlit_level(patches_of(pixels), model)
    mean = noise.local_mean(pixels, np.ones(pixels.shape, bool))
    assert level is not None
    deep = ndimage.binary_erosion(mixed.dark, iterations=6)  # off the half-lit rim
    assert (mean[deep] < level).mean() > 0.95
    assert (mean[~mixed.dark & ~mixed.shadow] > level).mean() > 0.95
    lit = moon.digitise(moon.scene(512, 512, seed=3, sun_elevation=50).image, bits=16)
    assert noise.sunlit_level(patches_of(lit), noise.fit_noise(patches_of(lit))) is None


def test_local_mean_ignores_what_is_invalid():
    pixels, valid = np.full((40, 40), 5.0, np.float32), np.ones((40, 40), bool)
    pixels[10:20, 10:20], valid[10:20, 10:20] = 1e6, False
    mean = noise.local_mean(pixels, valid)
    np.testing.assert_allclose(mean[valid], 5.0, rtol=1e-5)


def test_real_images_have_plausible_noise(real_data):
    from skimage.io import imread

    for path in sorted((real_data / "nac_cdr").glob("*.png"))[:4]:
        pixels = imread(path)
        model = noise.fit_noise(patches_of(pixels))
        sigma = float(noise.sigma_at(model, float(np.median(pixels))))
        assert 0.25 < sigma < 0.2 * pixels.std() + 5, path.name
