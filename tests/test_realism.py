"""What tells real from simulated images, on textures whose numbers are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from lunar_processing.errors import DataError, ParameterError
from lunar_processing.evaluate import judge, realism
from lunar_processing.evaluate.patches import SIZE, Images, relative, standard, tiles
from lunar_processing.tools.realism import crater_boxes, on_a_map, read_folder

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def texture(slope: float = -2.0, count: int = 64, seed: int = 0, contrast: float = 0.1) -> np.ndarray:
    """Patches cut from periodic noise whose power falls with the frequency to the power `slope`."""
    size = 4 * SIZE
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = np.inf
    noise = np.random.default_rng(seed).normal(size=(count // 16, size, size))
    field = np.fft.irfft2(np.fft.rfft2(noise) * frequency ** (slope / 2), s=(size, size))
    field = 1 + contrast * field / field.std(axis=(1, 2), keepdims=True)
    return np.concatenate([tiles(image) for image in field])


def images(patches: np.ndarray, prefix: str = "M", products: int = 2, **more: object) -> Images:
    names = np.array([f"{prefix}{k % products}" for k in range(len(patches))])
    return Images(patches.astype(np.float32), names, np.full(len(patches), 70.0), **more)


def test_tiles_lie_side_by_side_and_the_rest_is_left_out():
    image = np.arange(130 * 200.0).reshape(130, 200)
    cut = tiles(image)
    assert cut.shape == (6, SIZE, SIZE)
    assert np.array_equal(cut[4], image[64:128, 64:128])


def test_neither_exposure_nor_stretch_counts_as_a_difference():
    image = np.random.default_rng(0).uniform(1, 2, (64, 64))
    assert relative(image * 137) == pytest.approx(relative(image))
    assert np.median(relative(image)) == pytest.approx(1)


def test_the_spectrum_slope_of_power_law_noise_is_found():
    for slope in (-1.0, -2.0, -3.0):
        measured = realism.STATISTICS["spectrum slope"](texture(slope))
        assert np.median(measured) == pytest.approx(slope, abs=0.25)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
def test_the_autocorrelation_length_of_blurred_noise_is_twice_its_sigma(sigma):
    """White noise through a Gaussian of σ correlates as exp(−r²/4σ²): 1/e at r = 2σ."""
    noise = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(640, 640)), sigma, mode="wrap")
    measured = realism.STATISTICS["autocorrelation length, px"](tiles(noise))
    assert np.median(measured) == pytest.approx(2 * sigma, abs=1)


def test_sharpening_and_noise_show_in_the_fine_statistics():
    smooth = texture(-3.0)
    noisy = smooth + np.random.default_rng(2).normal(scale=0.02, size=smooth.shape)
    for name in ("fine contrast (log)", "spectrum at the finest (log)"):
        assert np.median(realism.STATISTICS[name](noisy)) > np.median(realism.STATISTICS[name](smooth)) + 0.2


def test_shadow_is_what_lies_far_below_the_median():
    patches = np.ones((4, SIZE, SIZE))
    patches[:, :16] = 0.02
    assert realism.shadow_share(patches) == pytest.approx(0.25)


def test_shadow_is_compared_at_like_incidence_only():
    low, high = np.ones((3, SIZE, SIZE)), np.ones((3, SIZE, SIZE))
    high[:, :32] = 0.0
    incidence = np.array([60.0] * 3 + [85.0] * 3)
    both = Images(np.concatenate([low, high]), np.array(["a"] * 6), incidence)
    steep = Images(high, np.array(["b"] * 3), np.full(3, 84.0))
    assert realism.shadow_by_incidence(both, steep) == [(80.0, 90.0, pytest.approx(0.5), pytest.approx(0.5))]


def test_craters_are_counted_by_diameter_and_area():
    known = images(texture(), craters={"M0": np.array([9.0, 10.0, 20.0, 5.0])}, area={"M0": 2e6})
    density = realism.crater_density(known)
    assert density.tolist() == [1.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]
    assert np.isnan(realism.crater_density(images(texture()))).all()


def test_like_is_near_and_unlike_is_far():
    real = images(texture(-2.0, 128, seed=1))
    like = realism.distances(real, images(texture(-2.0, 128, seed=2)))
    unlike = realism.distances(real, images(texture(-3.0, 128, seed=3)))
    assert all(d.distance < 0.45 and d.auc < 0.6 for d in like.values())
    assert unlike["spectrum slope"].distance > 2
    assert unlike["spectrum slope"].auc > 0.95
    assert unlike["spectrum slope"].real == pytest.approx(-2, abs=0.2)


def test_a_patch_without_contrast_has_finite_statistics():
    flat = np.concatenate([np.zeros((2, SIZE, SIZE)), np.ones((2, SIZE, SIZE))])
    assert np.abs(standard(flat)).max() == 0
    for name, measure in realism.STATISTICS.items():
        assert np.isfinite(measure(flat)).all(), name


def test_the_judge_sees_what_differs_on_products_it_never_saw():
    sets = [
        images(texture(s, 128, seed), name)
        for s, seed, name in ((-2, 1, "A"), (-2.6, 2, "B"), (-2, 3, "C"), (-2.6, 4, "D"))
    ]
    verdict = judge.tell_apart(*sets, steps=60)
    assert verdict.accuracy > 0.9
    assert set(verdict.by_product) == {"C0", "C1"}


def test_the_judge_is_at_chance_where_nothing_differs():
    sets = [images(texture(-2, 256, seed), name) for seed, name in enumerate("ABCD")]
    assert judge.tell_apart(*sets, steps=60).accuracy == pytest.approx(0.5, abs=0.12)


def test_the_judge_gives_the_same_verdict_for_the_same_seed():
    sets = [images(texture(-2, 64, seed), name) for seed, name in enumerate("ABCD")]
    assert judge.tell_apart(*sets, steps=5, seed=3) == judge.tell_apart(*sets, steps=5, seed=3)


def test_a_product_in_training_and_test_is_refused():
    with pytest.raises(ParameterError, match="M0 is seen in training and in the test"):
        judge.tell_apart(images(texture()), images(texture(), "S"), images(texture()), images(texture(), "T"))


def test_patches_of_another_size_or_with_holes_are_refused():
    with pytest.raises(ParameterError, match="shape"):
        images(np.ones((2, 32, 32)))
    with pytest.raises(ParameterError, match="undefined"):
        images(np.full((2, SIZE, SIZE), np.nan))


def test_the_report_holds_every_statistic_and_the_figure_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    real = images(texture(-2), craters={"M0": np.array([9.0])}, area={"M0": 1e6})
    simulated = images(texture(-2.5, seed=5), "S")
    verdict = judge.Verdict(0.8, 0.9, 0.95, {"M9": 0.7})
    text = realism.in_words(realism.compare(real, simulated, verdict), "Test")
    assert all(name in text for name in realism.STATISTICS)
    assert "80.0%" in text
    realism.picture(real, simulated, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 50_000


# The command


def test_real_images_are_cut_by_product_with_their_craters(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    pixels = np.random.default_rng(0).integers(50, 200, (130, 200), dtype=np.uint8)
    path = tmp_path / "M115143943_part.png"
    with rasterio.open(path, "w", driver="PNG", width=200, height=130, count=1, dtype="uint8") as image:
        image.write(pixels, 1)
    path.with_suffix(".txt").write_text("ID,X,Y,W,H\n1,10,10,8.0,10.0\n2,50,50,20,20\n")
    real = read_folder(tmp_path)
    assert real.patches.shape == (6, SIZE, SIZE)
    assert set(real.product) == {"M115143943"}
    assert real.incidence[0] == pytest.approx(76.3)
    assert real.craters["M115143943"].tolist() == [9.0, 20.0]
    assert real.area["M115143943"] == 130 * 200


def test_a_map_grid_turns_and_scales_by_nearest_neighbour():
    image = np.arange(65 * 65).reshape(65, 65)
    assert np.array_equal(on_a_map(image, 1.0, 0.0, 65), image)
    assert np.array_equal(on_a_map(image, 1.0, 90.0, 65), np.rot90(image, -1))
    assert np.array_equal(on_a_map(image, 1.0, 0.0, 33), image[16:49, 16:49])
    assert np.array_equal(on_a_map(image, 2.0, 0.0, 33), image[::2, ::2])
    assert len(np.unique(on_a_map(image, 1.3, 7.0, 40))) == 40 * 40  # left out, never doubled


def test_folders_without_images_or_with_broken_labels_are_refused(tmp_path):
    with pytest.raises(DataError, match="no image"):
        read_folder(tmp_path)
    with pytest.raises(DataError, match="no image"):
        read_folder(tmp_path / "absent")
    (tmp_path / "boxes.txt").write_text("ID,X,Y,W,H\n1,2\n")
    with pytest.raises(DataError, match="boxes"):
        crater_boxes(tmp_path / "boxes.txt")


def test_the_report_on_real_images_is_written_by_the_command(real_data, tmp_path):
    from lunar_processing.__main__ import main

    command = ["evaluate", "simulator", "--real", str(real_data / "nac_cdr"), "--out", str(tmp_path), "--steps", "2"]
    assert main([*command, "--json"]) == 0
    report = (tmp_path / "realism.md").read_text()
    assert "accuracy of" in report
    assert "2 steps of learning" in report
    assert (tmp_path / "realism.png").stat().st_size > 100_000


def test_asking_for_what_is_not_there_is_wrong_use(real_data, tmp_path):
    from lunar_processing.__main__ import main

    command = ["evaluate", "simulator", "--real", str(real_data / "nac_cdr"), "--out", str(tmp_path)]
    assert main([*command, "--recipe", "venus"]) == 2
    assert main([*command, "--steps", "0"]) == 2
