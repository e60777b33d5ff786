"""The judge of craters: learns pits from boxes, and counts what it finds again."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from lunar_processing.evaluate import craters

pytestmark = pytest.mark.usefixtures("one_thread")


def pitted(seed: int, side: int = 160, count: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """Even ground with round pits lit from the left, on a loose grid; and their boxes."""
    random = np.random.default_rng(seed)
    rows, cols = np.indices((side, side))
    image, boxes = 100 + random.normal(0, 1, (side, side)), []
    places = random.permutation([(c, r) for c in range(20, side - 19, 30) for r in range(20, side - 19, 30)])[:count]
    for col, row in places + random.uniform(-5, 5, (count, 2)):
        diameter = random.uniform(8, 16)
        x, y = (cols - col) / (diameter / 2), (rows - row) / (diameter / 2)
        image += 25 * x * np.exp(-(x**2) - y**2)
        boxes.append((col, row, diameter))
    return image, np.array(boxes)


@pytest.fixture(scope="module")
def judge() -> craters.Judge:
    images, boxes = zip(*(pitted(seed) for seed in range(3)))
    return craters.teach(images, boxes, steps=40)


def test_what_was_learnt_is_found_elsewhere(judge):
    image, boxes = pitted(9)
    seen, right = craters.matched(judge.find(image), boxes)
    assert seen.mean() > 0.7
    assert right.mean() > 0.7


def test_brightness_and_contrast_do_not_matter(judge):
    image, _ = pitted(9)
    np.testing.assert_allclose(judge.find(3 * image)[:, :2], judge.find(image)[:, :2])


def test_even_ground_has_fewer_craters_than_pitted_ground(judge):
    noise = 100 + np.random.default_rng(2).normal(0, 1, (160, 160))
    assert len(judge.find(noise)) < 0.7 * len(judge.find(pitted(9)[0]))


def test_matching_is_by_the_middle_and_the_size():
    boxes = np.array([[50.0, 50.0, 10.0], [20.0, 90.0, 40.0]])
    found = np.array([[53.0, 50.0, 1.0], [33.0, 90.0, 1.0], [80.0, 10.0, 1.0]])
    seen, right = craters.matched(found, boxes)
    assert seen.tolist() == [True, True]
    assert right.tolist() == [True, True, False]
    assert craters.matched(found[:0], boxes)[0].tolist() == [False, False]


def smooth_errors(count: int) -> list[np.ndarray]:
    """Errors in sigmas whose neighbours go together over 3 px."""
    fields = ndimage.gaussian_filter(np.random.default_rng(6).normal(size=(count, 160, 160)), (0, 3, 3))
    return list(fields / fields.std())


def test_craters_stay_where_the_error_is_small_and_go_where_it_is_large(judge):
    image, _ = pitted(9)
    sigma = np.where(np.arange(160) < 80, 0.2, 3.0) * np.ones(image.shape)
    found = judge.find(image)
    share = craters.survival(judge, image, sigma, smooth_errors(10), found)
    left = found[:, 0] < 80
    assert share[left].mean() > share[~left].mean() + 0.3


def test_without_error_every_crater_stays(judge):
    image, _ = pitted(9)
    found = judge.find(image)
    assert (craters.survival(judge, image, np.zeros(image.shape), smooth_errors(2), found) == 1).all()
    assert len(craters.survival(judge, image, np.zeros(image.shape), smooth_errors(2), found[:0])) == 0
