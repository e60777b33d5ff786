"""How good made-up pictures are as a set: each number against a closed form, a case worked by hand, or a reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from eyes import lite0
from running import lunar, names
from scipy import linalg, ndimage

from lunar_processing.evaluate.synthesis import copies, frechet, kernel, precision_recall
from lunar_processing.tools.evaluate_synthesis import FLOOR, UNSEEN, distance_names
from lunar_processing.tools.sheet import write_png
from lunar_processing.training.features import Features


def normal(mean: np.ndarray, root: np.ndarray, count: int = 400, seed: int = 0) -> np.ndarray:
    """A sample that has exactly this mean and the covariance root · rootᵀ."""
    drawn = np.random.default_rng(seed).normal(size=(count, len(mean)))
    drawn -= drawn.mean(axis=0)
    white = drawn @ np.linalg.inv(linalg.cholesky(np.cov(drawn, rowvar=False)))
    return mean + white @ root.T


def skewed() -> tuple[np.ndarray, np.ndarray]:
    """Two sets that are no normal distributions."""
    random = np.random.default_rng(7)
    a = random.gamma(2.0, size=(200, 16))
    b = 1.1 * random.gamma(2.2, size=(260, 16)) @ (np.eye(16) + 0.1 * random.normal(size=(16, 16)))
    return a, b


# ---- Fréchet distance --------------------------------------------------------------------------------------------


def test_frechet_distance_of_normal_distributions_is_the_closed_form():
    a = normal(np.zeros(3), np.diag([1.0, 2.0, 3.0]))
    b = normal(np.array([3.0, 4.0, 0.0]), np.diag([1.0, 1.0, 5.0]), seed=1)
    assert frechet(a, b) == pytest.approx(3**2 + 4**2 + (2 - 1) ** 2 + (3 - 5) ** 2)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, b) == pytest.approx(frechet(b, a))


def test_frechet_distance_where_the_axes_differ():
    random = np.random.default_rng(2)
    roots = random.normal(size=(2, 5, 5))
    a, b = (normal(np.zeros(5), root, seed=seed) for seed, root in enumerate(roots))
    one, other = (root @ root.T for root in roots)
    expected = np.trace(one + other) - 2 * np.trace(linalg.sqrtm(one @ other)).real
    assert frechet(a, b) == pytest.approx(expected)


def test_numbers_are_those_of_torch_fidelity():
    """0.4.0, on the same features."""
    a, b = skewed()
    assert frechet(a, b) == pytest.approx(23.600498313770743, rel=1e-9)
    assert kernel(a[:150], b[:150], subsets=1, size=150).mean == pytest.approx(240.57066413024188, rel=1e-9)
    assert precision_recall(a, b) == pytest.approx((0.43461537, 0.53), abs=1e-6)


def test_fewer_images_than_features_are_no_trouble():
    random = np.random.default_rng(3)
    a, b = random.normal(size=(2, 20, 100))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T))
    expected -= 2 * np.sqrt(np.maximum(np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).real, 0)).sum()
    assert frechet(a, b) == pytest.approx(expected, rel=1e-5)


# ---- kernel distance ---------------------------------------------------------------------------------------------


def test_kernel_distance_by_hand():
    """(x·y + 1)³ of 0 and 1 against 0 and 2: within 1 and 1, between them (1 + 1 + 1 + 27) / 4."""
    found = kernel(np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]]), subsets=1)
    assert found.mean == pytest.approx(1 + 1 - 2 * 7.5)


def test_kernel_distance_is_about_zero_for_one_distribution_on_either_side():
    random = np.random.default_rng(4)
    draws = [kernel(*random.normal(size=(2, 60, 4)), subsets=1).mean for _ in range(300)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(300)
    assert min(draws) < 0 < max(draws)
    a, b = random.normal(size=(2, 300, 4))
    same = kernel(a, b, subsets=20, size=100)
    assert abs(same.mean) < 2 * same.spread < kernel(a, b + 1, subsets=20, size=100).mean


# ---- precision and recall ----------------------------------------------------------------------------------------


def test_precision_and_recall_by_hand():
    """With the nearest neighbour: the real balls are [-1, 2], the made ones [1.2, 1.6] and [8.6, 9.4]."""
    real, made = np.array([[0.0], [1.0]]), np.array([[1.5], [1.3], [9.0], [9.4]])
    assert precision_recall(real, made, neighbour=1) == (0.5, 0.0)
    assert precision_recall(made, made, neighbour=1) == (1.0, 1.0)


def test_a_generator_that_makes_one_thing_is_precise_and_recalls_nothing():
    random = np.random.default_rng(5)
    real = random.normal(size=(300, 4))
    alike = real[0] + 0.001 * random.normal(size=(300, 4))
    anything = 10 * random.normal(size=(300, 4))
    assert precision_recall(real, alike).precision > 0.99
    assert precision_recall(real, alike).recall < 0.02
    assert precision_recall(real, anything).precision < 0.1


# ---- copies ------------------------------------------------------------------------------------------------------


def test_copies_are_nearer_than_any_new_image():
    random = np.random.default_rng(6)
    learnt, unseen, new = random.normal(size=(3, 400, 8))
    honest = copies(learnt, new, unseen)
    assert honest.likely_nearer == pytest.approx(0.5, abs=0.06)
    assert honest.near < 0.04
    copied = copies(learnt, learnt[:50] + 1e-3, unseen)
    assert (copied.near, copied.likely_nearer) == (1.0, 1.0)
    assert list(copied.nearest) == list(range(50))
    assert copied.distance == pytest.approx(np.full(50, 1e-3 * np.sqrt(8)))
    assert copied.made < 0.01 < copied.real


# ---- the tool ----------------------------------------------------------------------------------------------------


def ground(count: int, seed: int, grain: float = 1.5) -> np.ndarray:
    """Rough ground (count, 32, 32) uint8."""
    rough = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(count, 32, 32)), (0, grain, grain))
    return np.clip(128 + 150 * rough, 0, 255).astype(np.uint8)


def write_set(folder: Path, parts: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    facts = [{"image": f"{part}.tif", "product": part, "part": part} for part, some in parts.items() for _ in some]
    np.save(folder / "patches.npy", np.concatenate(list(parts.values())))
    (folder / "manifest.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = {"train": ground(240, 0), "validation": ground(120, 1, grain=2.0)}
    return write_set(tmp_path_factory.mktemp("real") / "set", parts)


def test_pictures_of_folders_are_compared_with_real_ones(real, tmp_path, tmp_path_factory, monkeypatch):
    lite0(tmp_path_factory.mktemp("eyes"), monkeypatch)
    (tmp_path / "good").mkdir()
    for number, picture in enumerate(ground(100, 2)):
        write_png(tmp_path / "good" / f"{number:03d}.png", picture)
    write_png(tmp_path / "good" / "contact_sheet.png", np.zeros((90, 90), np.uint8))  # is none of them
    write_set(tmp_path / "copied", {"train": np.load(real / "patches.npy")[:100]})
    ran = lunar("evaluate", "synthesis", "--real", real, "--out", tmp_path / "report", "--small", "--json",
                "--models", tmp_path / "good", tmp_path / "copied")  # fmt: skip
    assert ran.code == 0, ran.err
    assert names(tmp_path / "report") == ["synthesis.html", "synthesis.json"]
    found = ran.result
    assert (found["count"], found["learnt"], found["unseen"]) == (100, 240, 100)
    table = found["features"]["EfficientNet-Lite0"]
    assert table["names"] == ["FD-EfficientNet-Lite0", "KD-EfficientNet-Lite0"]  # never FID
    assert list(table["rows"]) == [FLOOR, UNSEEN, "good", "copied"]
    far = {name: row["frechet"] for name, row in table["rows"].items()}
    assert far[FLOOR] == pytest.approx(far["good"], rel=0.2)
    assert far[UNSEEN] > 1.5 * far["good"]
    assert found["copies"]["copied"]["near"] == 1.0
    assert found["copies"]["copied"]["made"] < 1e-3 < found["copies"]["good"]["made"]
    page = (tmp_path / "report" / "synthesis.html").read_text()
    assert "FD-EfficientNet-Lite0" in page
    assert page.count("<img") == 2


def test_only_by_inception_a_distance_is_called_fid():
    def titled(title: str) -> Features:
        return Features(title, torch.nn.Identity(), ((0.5,) * 3, (0.5,) * 3), (3,), 1)

    assert distance_names(titled("Inception")) == ("FID", "KID")
    assert distance_names(titled("VGG16")) == ("FD-VGG16", "KD-VGG16")


def test_what_cannot_be_compared_is_said(real, tmp_path):
    write_set(tmp_path / "few", {"train": ground(50, 3)})
    ran = lunar("evaluate", "synthesis", "--real", real, "--out", tmp_path / "r", "--models", tmp_path / "few")
    assert (ran.code, "50 made ones" in ran.err, "200 and 100 are needed" in ran.err) == (1, True, True)
    (tmp_path / "mixed").mkdir()
    write_png(tmp_path / "mixed" / "a.png", np.zeros((32, 32), np.uint8))
    write_png(tmp_path / "mixed" / "b.png", np.zeros((64, 64), np.uint8))
    ran = lunar("evaluate", "synthesis", "--real", real, "--out", tmp_path / "r", "--models", tmp_path / "mixed")
    assert (ran.code, "not squares of one size" in ran.err) == (1, True)
    ran = lunar("evaluate", "synthesis", "--real", real, "--out", tmp_path / "r", "--models", "none-such")
    assert (ran.code, "There is no model" in ran.err) == (1, True)
    assert lunar("evaluate", "synthesis", "--real", real, "--out", tmp_path / "r", "--count", 5).code == 2
    assert lunar("evaluate", "synthesis", "--out", tmp_path / "r").code == 2
    assert not (tmp_path / "r").exists()
