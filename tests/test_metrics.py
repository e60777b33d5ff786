"""Measures of a ranking, on cases small enough to count by hand, and against counting in the plainest way."""

from __future__ import annotations

import numpy as np
import pytest

from lunar_processing.evaluate import metrics

SCORE = np.array([9.0, 8.0, 7.0, 6.0, 5.0])
POSITIVE = np.array([True, False, True, False, False])


def counted(score: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> float:
    """Average precision by its definition: over falling thresholds, precision times the recall that is gained."""
    total, area, before = weight[positive].sum(), 0.0, 0.0
    for threshold in np.unique(score)[::-1]:
        taken = score >= threshold
        hits = weight[taken & positive].sum()
        area += (hits - before) / total * hits / weight[taken].sum()
        before = hits
    return area


def test_average_precision_by_hand():
    assert metrics.average_precision(SCORE, POSITIVE) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert metrics.average_precision(SCORE, np.array([1, 1, 0, 0, 0], bool)) == 1


def test_average_precision_is_its_definition_with_ties_and_weights():
    random = np.random.default_rng(0)
    score, positive = random.integers(0, 40, 300).astype(float), random.random(300) < 0.1
    weight = random.random(300)
    assert metrics.average_precision(score, positive, weight) == pytest.approx(counted(score, positive, weight))


def test_a_ranking_by_chance_has_the_base_rate():
    random = np.random.default_rng(1)
    positive = np.arange(200_000) < 2_000
    found = metrics.average_precision(random.random(len(positive)), positive)
    assert found == pytest.approx(metrics.base_rate(positive), rel=0.1)


def test_precision_at_the_threshold_that_returns_every_positive():
    assert metrics.precision_at_all(SCORE, POSITIVE) == pytest.approx(2 / 3)
    assert metrics.saving(SCORE, POSITIVE) == pytest.approx((2 / 3) / (2 / 5))


def test_a_tie_with_the_last_positive_counts_against_it():
    assert metrics.precision_at_all(np.array([2.0, 1.0, 1.0, 1.0]), np.array([1, 1, 0, 0], bool)) == pytest.approx(0.5)


def test_the_numbers_of_apollo_17_in_the_paper_of_2020():
    """2000 patches, 6 positives, PaTR 0.333: so all 6 were among the highest 18, and EoMV is 111."""
    positive = np.zeros(2000, bool)
    positive[[0, 3, 7, 11, 14, 17]] = True
    score = -np.arange(2000.0)
    assert metrics.precision_at_all(score, positive) == pytest.approx(0.333, abs=0.001)
    assert metrics.saving(score, positive) == pytest.approx(111, abs=0.2)


def test_a_thing_seen_by_many_windows_counts_once():
    """A thing with four windows of which half are found, one with one window that is found: three quarters."""
    score = np.array([9.0, 8, 7, 6, 1, 1, 5, 4])
    positive = np.array([1, 1, 1, 0, 1, 1, 0, 0], bool)
    weight = np.array([0.25, 0.25, 1, 1, 0.25, 0.25, 1, 1])
    curve = metrics.precision_recall(score, positive, weight)
    assert curve.recall[curve.threshold == 7] == pytest.approx(0.75)
    assert metrics.base_rate(positive, weight) == pytest.approx(2 / 5)


def test_the_curve_runs_from_the_strictest_threshold_to_the_loosest():
    curve = metrics.precision_recall(SCORE, POSITIVE)
    assert curve.threshold.tolist() == [9, 8, 7, 6, 5]
    assert curve.recall == pytest.approx([0.5, 0.5, 1, 1, 1])
    assert curve.precision == pytest.approx([1, 1 / 2, 2 / 3, 2 / 4, 2 / 5])


def test_two_samples_apart_and_alike():
    random = np.random.default_rng(2)
    assert metrics.separation(np.arange(10) + 100.0, np.arange(50.0)).distance == 1
    assert metrics.separation(np.array([1.0, 3.0]), np.array([2.0, 4.0])).distance == pytest.approx(0.5)
    assert metrics.separation(random.random(500), random.random(500)).p > 0.01


def test_things_found_among_the_highest():
    score = np.array([9.0, 8, 7, 6, 5, 4])
    thing = np.array([0, -1, 0, 1, -1, 2])
    assert metrics.found_among_top(score, thing, top=3) == pytest.approx(1 / 3)
    assert metrics.found_among_top(score, thing, top=4) == pytest.approx(2 / 3)


def test_a_score_that_knows_nothing_finds_nothing_by_a_tie():
    assert metrics.found_among_top(np.zeros(10), np.array([0, 1] + [-1] * 8), top=5) == 0


def test_as_published_is_the_image_repeated_for_each_label():
    random = np.random.default_rng(3)
    score, labels = random.random(60), [4, 17, 33]
    repeated = np.tile(score, len(labels))
    positive = np.concatenate([np.arange(60) == label for label in labels])
    label = np.isin(np.arange(60), labels)
    assert metrics.average_precision_as_published(score, label) == pytest.approx(
        metrics.average_precision(repeated, positive)
    )


@pytest.mark.parametrize("labels", [1, 3, 12])
def test_as_published_a_perfect_scorer_reaches_one_over_the_number_of_labels(labels):
    score, label = -np.arange(500.0), np.arange(500) < labels
    assert metrics.average_precision(score, label) == 1
    assert metrics.average_precision_as_published(score, label) == pytest.approx(1 / labels)


def test_without_a_positive_there_is_nothing_to_measure():
    none = np.zeros(5, bool)
    assert np.isnan(metrics.average_precision(SCORE, none))
    assert np.isnan(metrics.precision_at_all(SCORE, none))
    assert np.isnan(metrics.average_precision_as_published(SCORE, none))
    assert np.isnan(metrics.found_among_top(SCORE, np.full(5, -1)))
    assert np.isnan(metrics.separation(SCORE[none], SCORE).p)
