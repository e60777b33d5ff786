"""Size statistics against closed forms, and intervals against simulations in which the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lunar_processing import sizes


def power_law_sample(n: int, exponent: float, d_min: float, d_max: float = math.inf, seed: int = 0) -> np.ndarray:
    share = np.random.default_rng(seed).random(n)
    cut = 0.0 if math.isinf(d_max) else (d_max / d_min) ** -exponent
    return d_min * (1 - share * (1 - cut)) ** (-1 / exponent)


def weibull_sample(n: int, shape: float, scale: float, d_min: float, seed: int = 0) -> np.ndarray:
    share = np.random.default_rng(seed).random(n)
    return scale * ((d_min / scale) ** shape - np.log1p(-share)) ** (1 / shape)


# ---- counting ----------------------------------------------------------------------------------------------------


def test_poisson_intervals_are_those_of_the_tables():
    """Garwood (1936), 95 %: 0: 0 to 3.689, 1: 0.0253 to 5.572, 10: 4.795 to 18.391, 100: 81.36 to 121.63."""
    low, high = sizes.poisson_interval(np.array([0, 1, 10, 100]))
    np.testing.assert_allclose(low, [0, 0.02532, 4.7954, 81.364], rtol=1e-4)
    np.testing.assert_allclose(high, [3.6889, 5.5716, 18.3904, 121.627], rtol=1e-4)


def test_bins_hold_every_diameter_once_and_begin_at_the_limit():
    d = power_law_sample(300, 2.5, 0.7, seed=1)
    edges = sizes.bin_edges(d, 2.0, 10)
    assert edges[0] <= d.min()
    assert d.max() < edges[-1]
    assert np.isclose(edges, 2.0).sum() == 1
    np.testing.assert_allclose(edges[1:] / edges[:-1], 10**0.1)
    table = sizes.table(d, edges, 500.0)
    assert table["count"].sum() == len(d)
    assert table["cumulative"][0] == len(d)


def test_a_diameter_on_an_edge_is_in_the_bin_above():
    d = np.array([2.0, 2.0, 20.0])
    table = sizes.table(d, sizes.bin_edges(d, 2.0, 1), 1.0)
    assert table["d_low"].tolist() == pytest.approx([2.0, 20.0])
    assert table["count"].tolist() == [2, 1]


def test_table_of_three_rocks_by_hand():
    table = sizes.table(np.array([1.0, 2.0, 5.0]), np.array([1.0, 4.0, 16.0]), 10.0)
    assert table["cumulative"].tolist() == [3, 1]
    assert table["cumulative_density"].tolist() == pytest.approx([0.3, 0.1])
    assert table["differential"].tolist() == pytest.approx([2 / 3 / 10, 1 / 12 / 10])
    assert table["d_mid"].tolist() == pytest.approx([2.0, 8.0])
    assert table["r"].tolist() == pytest.approx([2 / 3 / 10 * 8, 1 / 12 / 10 * 512])
    assert table["cumulative_density_upper"][1] == pytest.approx(5.5716 / 10, rel=1e-4)
    assert table["r_lower"][1] == pytest.approx(0.02532 / 12 / 10 * 512, rel=1e-3)


def test_no_diameters_make_an_empty_table():
    assert len(sizes.bin_edges(np.empty(0), 1.0, 10)) == 0
    assert len(sizes.table(np.empty(0), np.empty(0), 1.0)["count"]) == 0


def test_the_roll_off_of_missed_small_rocks_is_found():
    d = power_law_sample(4000, 3.0, 0.5, seed=2)
    seen = np.random.default_rng(3).random(len(d)) < 1 / (1 + (1.5 / d) ** 8)
    assert sizes.roll_off(d[seen]) == pytest.approx(1.6, rel=0.25)
    assert sizes.roll_off(d) is None
    assert sizes.roll_off(d[:20]) is None


# ---- power law ---------------------------------------------------------------------------------------------------


def test_the_exponent_is_the_inverse_mean_of_the_logarithms():
    d = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0])
    fit = sizes.fit_power_law(d, 1.0)
    assert fit.exponent == pytest.approx(10 / np.log(d).sum())
    # 2 n exponent / estimate is chi-square of 20 degrees: 9.591 and 34.170 are its quantiles.
    assert (fit.low, fit.high) == pytest.approx((fit.exponent * 9.5908 / 20, fit.exponent * 34.1696 / 20), rel=1e-4)


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 1e-9, 2.5, 8.0])
def test_a_power_law_that_ends_is_fitted_up_to_its_end(exponent: float):
    share = (np.arange(2000) + 0.5) / 2000  # the quantiles themselves: no luck
    end = math.log(5.0)
    x = share * end if abs(exponent) < 1e-6 else -np.log1p(share * np.expm1(-exponent * end)) / exponent
    fit = sizes.fit_power_law(2 * np.exp(x), 2.0, 10.0)
    assert fit.exponent == pytest.approx(exponent, abs=0.02)
    assert fit.low < exponent < fit.high
    at = np.array([1.0, 2.0, 4.0, 10.0, 20.0])
    assert fit.survival(at)[[0, 1, 3, 4]].tolist() == pytest.approx([1, 1, 0, 0], abs=1e-12)
    assert fit.survival(at)[2] == pytest.approx((2 * np.exp(x) >= 4.0).mean(), abs=0.005)


def test_to_forget_the_end_of_a_power_law_makes_it_steeper():
    d = power_law_sample(3000, 2.0, 1.0, 4.0, seed=4)
    assert sizes.fit_power_law(d, 1.0, 4.0).low < 2.0 < sizes.fit_power_law(d, 1.0, 4.0).high
    assert sizes.fit_power_law(d, 1.0).low > 2.3


def test_rocks_below_the_limit_change_nothing():
    d = power_law_sample(200, 3.0, 2.0, seed=5)
    with_small = np.concatenate([d, np.linspace(0.1, 1.99, 500)])
    assert sizes.fit_power_law(d, 2.0) == sizes.fit_power_law(with_small, 2.0)
    assert sizes.fit_weibull(d, 2.0) == sizes.fit_weibull(with_small, 2.0)


def test_units_change_lengths_and_nothing_else():
    d = weibull_sample(400, 0.9, 1.0, 1.5, seed=6)
    metres, kilometres = sizes.fit_weibull(d, 1.5), sizes.fit_weibull(d / 1000, 0.0015)
    assert metres.shape == pytest.approx(kilometres.shape, rel=1e-6)
    assert metres.scale == pytest.approx(1000 * kilometres.scale, rel=1e-6)
    assert sizes.fit_power_law(d, 1.5).high == pytest.approx(sizes.fit_power_law(d / 1000, 0.0015).high)


@pytest.mark.parametrize("d", [np.empty(0), np.full(9, 3.0) + np.arange(9), np.full(50, 3.0)])
def test_too_few_sizes_have_no_fit(d: np.ndarray):
    assert sizes.fit_power_law(d, 1.0) is None
    assert sizes.fit_weibull(d, 1.0) is None


# ---- Weibull -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "scale"), [(0.6, 0.5), (1.0, 2.0), (2.0, 3.0)])
def test_a_weibull_distribution_is_found_again_although_cut_off(shape: float, scale: float):
    fit = sizes.fit_weibull(weibull_sample(3000, shape, scale, 1.0, seed=7), 1.0)
    assert fit.shape_low < shape < fit.shape_high
    assert fit.scale_low < scale < fit.scale_high
    assert fit.survival(np.array([0.5, 1.0])).tolist() == [1.0, 1.0]
    assert fit.survival(np.array([2.0]))[0] == pytest.approx(
        np.exp((1 / scale) ** shape - (2 / scale) ** shape), abs=0.04
    )


def test_no_other_weibull_distribution_is_more_likely():
    from scipy.stats import weibull_min

    d = weibull_sample(300, 0.8, 1.2, 1.0, seed=8)
    fit = sizes.fit_weibull(d, 1.0)

    def likelihood(shape: float, scale: float) -> float:
        return float((weibull_min.logpdf(d, shape, scale=scale) - weibull_min.logsf(1.0, shape, scale=scale)).sum())

    best = likelihood(fit.shape, fit.scale)
    assert fit.log_likelihood == pytest.approx(best)
    assert best >= max(likelihood(fit.shape * a, fit.scale * b) for a in (0.99, 1, 1.01) for b in (0.97, 1, 1.03))


def test_a_tail_heavier_than_any_is_called_a_power_law():
    heavy = np.exp(np.random.default_rng(9).random(400) ** -0.7 - 1)
    fit = sizes.fit_weibull(heavy[heavy > 1.001], 1.0)
    assert fit.is_power_law
    assert fit.shape == fit.shape_low == 0.0


# ---- intervals and goodness, by simulation ------------------------------------------------------------------------


def coverage(held: list[bool]) -> float:
    return sum(held) / len(held)


@pytest.mark.parametrize("d_max", [math.inf, 8.0])
def test_intervals_of_the_exponent_hold_the_truth_as_often_as_they_say(d_max: float):
    fits = [sizes.fit_power_law(power_law_sample(30, 2.5, 2.0, d_max, seed), 2.0, d_max) for seed in range(400)]
    assert 0.92 <= coverage([fit.low <= 2.5 <= fit.high for fit in fits]) <= 0.98


def test_intervals_of_a_weibull_distribution_hold_the_truth_as_often_as_they_say():
    fits = [sizes.fit_weibull(weibull_sample(150, 0.9, 1.5, 2.0, seed), 2.0) for seed in range(300)]
    assert 0.92 <= coverage([fit.shape_low <= 0.9 <= fit.shape_high for fit in fits]) <= 0.98
    assert 0.91 <= coverage([fit.scale_low <= 1.5 and not fit.scale_high < 1.5 for fit in fits]) <= 0.99


def test_garwood_intervals_hold_the_truth_at_least_as_often_as_they_say():
    count = np.random.default_rng(10).poisson(4.0, 4000)
    low, high = sizes.poisson_interval(count, 0.9)
    assert coverage(((low <= 4.0) & (high >= 4.0)).tolist()) >= 0.89


def test_chances_are_even_where_the_distribution_is_right_and_small_where_it_is_wrong():
    chances = []
    for seed in range(40):
        d = power_law_sample(100, 3.0, 1.0, seed=seed)
        chances.append(sizes.kolmogorov(d, sizes.fit_power_law(d, 1.0))[1])
    assert np.mean(np.array(chances) < 0.05) <= 0.15
    assert 0.35 < np.mean(chances) < 0.65
    bent = weibull_sample(1500, 1.2, 1.5, 1.0, seed=11)
    assert sizes.kolmogorov(bent, sizes.fit_power_law(bent, 1.0))[1] < 0.01
    assert sizes.kolmogorov(bent, sizes.fit_weibull(bent, 1.0))[1] > 0.05
    ended = power_law_sample(1500, 2.0, 1.0, 5.0, seed=12)
    assert sizes.kolmogorov(ended, sizes.fit_power_law(ended, 1.0, 5.0))[1] > 0.05
    assert sizes.kolmogorov(ended, sizes.fit_power_law(ended, 1.0))[1] < 0.01


def in_mask(d: np.ndarray, pixel: float) -> np.ndarray:
    return pixel * np.sqrt(np.round(np.pi / 4 * (d / pixel) ** 2) * 4 / np.pi)


def test_sizes_in_steps_of_pixels_are_judged_by_samples_in_the_same_steps():
    chances, blind = [], []
    for seed in range(30):
        d = in_mask(power_law_sample(3000, 3.0, 1.0, seed=seed), 0.5)
        assert sizes.in_whole_pixels(d, 0.5)
        fit = sizes.fit_power_law(d, 2.0)
        chances.append(sizes.kolmogorov(d, fit, pixel=0.5)[1])
        blind.append(sizes.kolmogorov(d, fit)[1])
    assert np.mean(np.array(chances) < 0.05) <= 0.15
    assert np.mean(np.array(blind) < 0.05) > 0.5, "why the steps have to be known"
    assert not sizes.in_whole_pixels(power_law_sample(20, 3.0, 1.0), 0.5)
    bent = in_mask(weibull_sample(2000, 1.2, 1.5, 2.0, seed=11), 0.5)
    assert sizes.kolmogorov(bent, sizes.fit_power_law(bent, 2.0), pixel=0.5)[1] < 0.01
    assert sizes.kolmogorov(bent, sizes.fit_weibull(bent, 2.0), pixel=0.5)[1] > 0.05


def test_whole_pixels_bend_the_exponent_less_than_chance_does():
    fits = [sizes.fit_power_law(in_mask(power_law_sample(4000, 3.0, 1.0, seed=s), 0.5), 2.0) for s in range(100)]
    assert np.mean([fit.exponent for fit in fits]) == pytest.approx(3.0, rel=0.02)


def test_the_distance_is_that_of_scipy():
    from scipy.stats import kstest

    d = power_law_sample(60, 2.2, 1.0, seed=13)
    fit = sizes.fit_power_law(d, 1.0)
    assert sizes.kolmogorov(d, fit)[0] == pytest.approx(kstest(d, lambda x: 1 - fit.survival(x)).statistic)
