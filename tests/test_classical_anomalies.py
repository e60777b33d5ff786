"""Windows unlike the rest: found by both methods, and reported once each."""

from __future__ import annotations

import moon
import numpy as np
import pytest

from lunar_processing.classical import anomalies

WINDOW = anomalies.WINDOW


@pytest.fixture(scope="module")
def plain():
    """Windows of ordinary ground, calm so that what is put into it is the strangest by far."""
    scene = moon.scene(1024, 1024, seed=3, rocks=0, craters=0.01, sun_elevation=40)
    return anomalies.cut_windows([(scene.image, np.ones(scene.image.shape, bool))])


def strange(windows):
    """Three of the windows with something in them that the Moon does not make."""
    windows = windows.copy()
    windows[10, 20:36, 20:36] = np.where(np.indices((16, 16)).sum(0) // 2 % 2, 0.8, 0.1)
    windows[200, 30:33, 5:60] = 0.9
    windows[400, 16:48:4, 16:48] = 0.05
    return windows, [10, 200, 400]


@pytest.mark.parametrize("name", anomalies.METHODS)
def test_strange_windows_score_highest(plain, name):
    windows, valid = plain
    method = anomalies.METHODS[name]
    state = method.fit(windows, valid)
    odd, places = strange(windows)
    scores = method.score(odd, valid, state)
    assert scores.dtype == np.float32
    assert scores.shape == (len(windows),)
    assert all(scores[place] > np.percentile(scores, 98) for place in places)


@pytest.mark.parametrize("name", anomalies.METHODS)
def test_same_input_same_scores_whatever_the_batch(plain, name):
    windows, valid = plain
    method = anomalies.METHODS[name]
    first, second = (method.score(windows, valid, method.fit(windows, valid)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    alone = np.concatenate(
        [method.score(windows[i : i + 1], valid[i : i + 1], method.fit(windows, valid)) for i in (0,)]
    )
    np.testing.assert_allclose(alone, first[:1], rtol=1e-4)


@pytest.mark.parametrize("name", anomalies.METHODS)
def test_windows_with_gaps_are_judged_by_what_is_there(plain, name):
    windows, valid = plain
    method = anomalies.METHODS[name]
    state = method.fit(windows, valid)
    holed, garbage = valid.copy(), windows.copy()
    holed[0, :40], holed[1, :16], holed[2] = False, False, False
    garbage[~holed] = 1e9
    scores = method.score(garbage, holed, state)
    assert np.isnan(scores[[0, 2]]).all()  # under half valid
    assert np.isfinite(scores[1])
    assert scores[1] < np.percentile(method.score(windows, valid, state), 99.9)
    np.testing.assert_allclose(scores[3:], method.score(windows, valid, state)[3:], rtol=1e-4)


@pytest.mark.parametrize("name", anomalies.METHODS)
def test_units_do_not_matter(plain, name):
    windows, valid = plain
    method = anomalies.METHODS[name]
    plain_scores = method.score(windows, valid, method.fit(windows, valid))
    counts = windows * 4000 + 100
    np.testing.assert_allclose(
        method.score(counts, valid, method.fit(counts, valid)), plain_scores, rtol=0.02, atol=0.01
    )


@pytest.mark.parametrize("name", anomalies.METHODS)
def test_poor_samples_do_not_fail(name):
    method = anomalies.METHODS[name]
    flat, valid = np.full((5, WINDOW, WINDOW), 7.0, np.float32), np.ones((5, WINDOW, WINDOW), bool)
    assert np.isfinite(method.score(flat, valid, method.fit(flat, valid))).all()
    nothing = np.zeros((0, WINDOW, WINDOW), np.float32), np.zeros((0, WINDOW, WINDOW), bool)
    state = method.fit(*nothing)
    assert method.score(*nothing, state).shape == (0,)
    assert len(method.score(flat, valid, state)) == 5
    assert np.isnan(method.score(flat, ~valid, state)).all()


def test_survey_windows_are_cut_whole_and_thinned_evenly():
    patch = np.arange(256 * 256, dtype=np.float32).reshape(256, 256), np.ones((256, 256), bool)
    windows, valid = anomalies.cut_windows([patch, (patch[0][:40], patch[1][:40])])
    assert windows.shape == (49, WINDOW, WINDOW)
    assert valid.all()
    np.testing.assert_array_equal(windows[8], patch[0][32:96, 32:96])
    many, _ = anomalies.cut_windows([patch] * 150)
    assert len(many) == anomalies.MOST_WINDOWS


def test_merged_peaks_keep_apart_and_know_their_place():
    scores = np.full((20, 30), 1.0, np.float32)
    scores[4, 5], scores[4, 6], scores[10, 20], scores[0, 0] = 9, 8, 7, np.nan
    x, y = np.arange(30) * 16.0 + 32, np.arange(20) * 16.0 + 32
    peaks = anomalies.merge(scores, x, y, top=3, min_distance=64)
    np.testing.assert_array_equal(peaks.score[:2], [9, 7])
    assert (peaks.x[0], peaks.y[0]) == (5 * 16 + 32, 4 * 16 + 32)
    apart = np.hypot(peaks.x[:, None] - peaks.x, peaks.y[:, None] - peaks.y)[np.triu_indices(3, 1)]
    assert apart.min() >= 64
    assert peaks.percentile[0] == 100
    # of equal scores the upper left one comes first: window (0, 0) is NaN, (0, 1) the first of the rest
    assert (peaks.row[2], peaks.col[2]) == (0, 1)


def test_merging_agrees_with_the_plain_definition():
    random = np.random.default_rng(2)
    scores = random.uniform(size=(25, 31)).astype(np.float32)
    peaks = anomalies.merge(scores, np.arange(31) * 8.0, np.arange(25) * 6.0, top=10_000, min_distance=40)
    taken: list[tuple[int, int]] = []
    for index in np.argsort(-scores.ravel(), kind="stable"):
        place = divmod(int(index), scores.shape[1])
        if all(np.hypot((place[0] - r) * 6, (place[1] - c) * 8) >= 40 for r, c in taken):
            taken.append(place)
    assert list(zip(peaks.row.tolist(), peaks.col.tolist())) == taken


def test_nothing_to_merge_is_an_empty_answer():
    peaks = anomalies.merge(np.full((3, 3), np.nan, np.float32), np.arange(3.0), np.arange(3.0), top=5, min_distance=64)
    assert len(peaks.score) == 0
    assert np.isnan(anomalies.percentiles(np.full((2, 2), np.nan, np.float32))).all()
