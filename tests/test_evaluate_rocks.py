"""Rocks are matched one to one, and what is said of them is what can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from running import lunar

from lunar_processing.evaluate.rocks import Stones, match, scores, tally


def stones(*rocks: tuple[float, float, float], fair: bool = True, height: float = np.nan) -> Stones:
    """Rocks of (column, row, diameter)."""
    col, row, diameter = np.array(rocks, float).reshape(-1, 3).T
    return Stones(col, row, diameter, np.full(len(col), height), np.full(len(col), fair))


def test_the_nearest_pairs_first_and_nothing_twice() -> None:
    true = stones((10, 10, 6), (13, 10, 6))
    assert match(true, stones((12.4, 10, 6), (10.2, 10, 6))).tolist() == [1, 0]
    assert match(true, stones((11, 10, 6))).tolist() == [0, -1]


@pytest.mark.parametrize(
    ("found", "same"),
    [
        ((10, 12.9, 6), True),
        ((10, 13.1, 6), False),  # further than half the diameter
        ((10, 10, 11.9), True),
        ((10, 10, 12.1), False),  # more than twice as large
        ((10, 10, 2.9), False),
    ],
)
def test_what_may_be_the_same_rock(found: tuple, same: bool) -> None:
    assert (match(stones((10, 10, 6)), stones(found))[0] == 0) == same


def test_a_small_rock_may_be_missed_by_a_pixel_and_a_half() -> None:
    assert match(stones((10, 10, 2)), stones((11.4, 10, 2))).tolist() == [0]


def test_numbers_that_can_be_counted_by_hand() -> None:
    true = stones((10, 10, 6), (30, 10, 6), (50, 10, 10), height=3.0)
    found = stones((10, 10, 6.6), (50, 10, 9), (70, 10, 8), height=3.3)
    told = scores(tally([(true, found)]), 5)
    assert told["recall"] == pytest.approx(2 / 3)
    assert told["precision"] == pytest.approx(2 / 3)
    assert told["f1"] == pytest.approx(2 / 3)
    assert told["diameter_error"] == pytest.approx(0.1)
    assert told["diameter_bias"] == pytest.approx(0.0)
    assert told["height_bias"] == pytest.approx(0.1)


def test_a_rock_that_nobody_can_see_is_neither_asked_for_nor_a_false_one() -> None:
    hidden = stones((10, 10, 6), fair=False)
    told = scores(tally([(hidden, stones((10, 10, 6)))]), 5)
    assert told["true"] == 0
    assert np.isnan(told["recall"])
    assert told["precision"] == 1
    assert scores(tally([(stones((10, 10, 6)), stones())]), 5)["f1"] == 0


def test_no_rocks_at_all() -> None:
    told = scores(tally([(stones(), stones())]), 5)
    assert np.isnan(told["f1"])


@pytest.mark.usefixtures("one_thread")
def test_the_report_of_the_peers(tmp_path: Path) -> None:
    ran = lunar("evaluate", "rocks", "--small", "--out", tmp_path, "--models", "shadow-pairs", "blobs (LoG)", "--json")
    assert ran.code == 0, ran.err
    written = json.loads((tmp_path / "rocks_orbit.json").read_text())
    assert set(written["models"]) == {"shadow-pairs", "blobs (LoG)"}
    assert 0 <= written["models"]["blobs (LoG)"]["all from 3 px"]["recall"] <= 1
    page = (tmp_path / "rocks_orbit.html").read_text()
    assert "shadow-pairs" in page
    assert "data:image/png" in page


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    ran = lunar("evaluate", "rocks", "--small", "--out", tmp_path / "o", "--models", "shadow-pairs", "--real", tmp_path)
    assert ran.code == 1
    assert "no image" in ran.err
    assert not (tmp_path / "o").exists()
