"""The measures of a restored image: what they give for what is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from lunar_processing.evaluate import restoration

SIDE = 96


@pytest.fixture
def truth() -> np.ndarray:
    random = np.random.default_rng(3)
    return 50 + 40 * ndimage.gaussian_filter(random.normal(size=(SIDE, SIDE)), 4)


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(4).normal(size=(SIDE, SIDE))


MEASURES = [restoration.psnr, restoration.ssim, restoration.fsim]


@pytest.mark.parametrize("measure", MEASURES)
def test_the_truth_is_best_and_more_noise_is_worse(measure, truth, noise):
    span = restoration.span_of(truth)
    marks = [measure(truth + s * noise, truth, span) for s in (0, 1, 2, 4, 8)]
    assert marks == sorted(marks, reverse=True)


def test_decibels_are_those_of_the_formula(truth):
    assert restoration.psnr(truth + 2.0, truth, 20.0) == pytest.approx(20.0)


def test_structures_of_equal_images_are_equal(truth):
    span = restoration.span_of(truth)
    assert restoration.ssim(truth, truth, span) == pytest.approx(1.0)
    assert restoration.fsim(truth, truth, span) == pytest.approx(1.0)


def test_features_do_not_care_for_brightness_but_for_shape(truth, noise):
    span = restoration.span_of(truth)
    brighter = restoration.fsim(truth + 0.3 * span, truth, span)
    other = restoration.fsim(truth[::-1, ::-1].copy(), truth, span)
    assert brighter == pytest.approx(1.0, abs=1e-6)
    assert other < 0.8


def test_phases_agree_most_at_an_edge():
    step = np.zeros((64, 64))
    step[:, 32:] = 100.0
    found = restoration.phase_congruency(step)
    assert found[32, 31:33].min() > 1.15 * found[32, 8:28].max()
    assert np.argmax(found[32, 16:48]) in (15, 16)
    np.testing.assert_allclose(found, restoration.phase_congruency(10 * step), atol=0.01)  # contrast does not count
    np.testing.assert_allclose(restoration.phase_congruency(step.T), found.T, atol=1e-6)


def test_gradients_of_a_scaled_image_correlate_wholly(truth, noise):
    assert restoration.gradient_correlation(3 * truth + 7, truth) == pytest.approx(1.0)
    assert restoration.gradient_correlation(-truth, truth) == pytest.approx(-1.0)
    assert abs(restoration.gradient_correlation(noise, truth)) < 0.3


def test_intervals_of_a_true_sigma_hold_what_they_should(truth, noise):
    sigma = 0.5 + np.random.default_rng(5).random(truth.shape)
    narrow, wide = restoration.coverage(truth + sigma * noise, sigma, truth)
    assert narrow == pytest.approx(0.683, abs=0.02)
    assert wide == pytest.approx(0.95, abs=0.01)
    assert restoration.error_follows_sigma(truth + sigma * noise, sigma, truth) > 0.8
    assert restoration.coverage(truth + sigma * noise, sigma / 2, truth)[0] < 0.45


def test_no_gaussian_comes_near_the_filter_that_knows_all(truth, noise):
    noisy, span = truth + 4 * noise, restoration.span_of(truth)
    bound = restoration.psnr(restoration.wiener(noisy, truth), truth, span)
    for sigma in (1, 2, 3, 4, 6):
        assert restoration.psnr(ndimage.gaussian_filter(noisy, sigma), truth, span) < bound
