"""Seeing into shadow by the physics of the camera: what a user is promised, on images of which all is known."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from running import lunar
from scipy import ndimage

from lunar_processing.classical.noise import Noise
from lunar_processing.modelpack import Card, Normalisation, Pack, read_pack, save_pack
from lunar_processing.networks.shadow import PASSED, ShadowNet
from lunar_processing.simulate import scenes, sensor
from lunar_processing.tools.shadow import NAC_LEAST, NAC_MOST, of_camera, restore
from lunar_processing.training.data import dice
from lunar_processing.training.recipes import enhance, resolvable
from lunar_processing.training.recipes.darkness import darken

pytestmark = pytest.mark.usefixtures("one_thread")

SHIPPED = Path(__file__).resolve().parent.parent / "models" / "psr-physics"
NOISE = Noise(a=2.9, b=0.03, black=0.0, least=0.1)  # of a calibrated Narrow Angle Camera, DN² and DN
TABLE = {"signal_to_noise": [1.0, 4.0, 16.0], "diameter_px": [30.0, 12.0, 4.0]}


@pytest.fixture(scope="module")
def young(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """A network that has learnt nothing yet: it averages, and is as local and as unit-free as it will ever be."""
    torch.manual_seed(1)
    network = ShadowNet((8, 8, 8), 1)
    for name, weight in network.named_parameters():
        if name.startswith("leave"):
            torch.nn.init.normal_(weight, std=0.05)
    card = Card("young", "enhance", "shadow", settings={"widths": [8, 8, 8], "deep": 1},
                normalisation=Normalisation("noise", 0.5, 100.0), pixel_size_m=(0.5, 2.0), tile=256, halo=64,
                measured={"resolvable": TABLE})  # fmt: skip
    return save_pack(tmp_path_factory.mktemp("models") / "young", card, network)


@pytest.fixture(scope="module")
def shipped() -> Pack:
    if not SHIPPED.is_dir():
        pytest.skip("the model psr-physics is not installed here")
    return read_pack(SHIPPED)


def shadow(level: float, seed: int = 5, side: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """(truth, calibrated image) in DN of simulated permanent shadow at a mean signal."""
    made = scenes.draw("psr", 1, seed, size=side)
    light = ndimage.gaussian_filter(made.ideal[0].double().numpy(), 0.5)
    truth = light * (level / light.mean())
    camera = sensor.sample_cameras(1, dice(seed, 0), {"table": (1.0, 1.0)})
    recorded = sensor.degrade(torch.from_numpy(truth).float()[None], level, camera, dice(seed, 1))
    return truth, sensor.calibrate(recorded)[0].numpy()


def error(image: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((image - truth) ** 2)))


def write(path: Path, pixels: np.ndarray, unit: str = "DN", size_m: float | None = None) -> Path:
    place = {}
    if size_m:
        place = {"crs": "IAU_2015:30135", "transform": rasterio.Affine(size_m, 0, 1000, 0, -size_m, 9000)}
    shape = {"height": pixels.shape[0], "width": pixels.shape[1], "count": 1}
    with rasterio.open(path, "w", driver="GTiff", dtype=pixels.dtype, **shape, **place) as file:
        file.write(pixels, 1)
        file.set_band_unit(1, unit)
    return path


# ---- what is promised of any such network ------------------------------------------------------------------------


def test_the_unit_of_the_image_does_not_matter(young):
    _, image = shadow(10.0, side=128)
    enhanced, sigma = restore(young, image, NOISE)
    unit = 1e-4
    scaled = Noise(NOISE.a * unit**2, NOISE.b * unit, 0.0, NOISE.least * unit**2)
    small, small_sigma = restore(young, image * np.float32(unit), scaled)
    np.testing.assert_allclose(small, enhanced * unit, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(small_sigma, sigma * unit, rtol=1e-3)


def test_good_light_passes_through_as_it_is(young):
    bright = 3000 + 100 * np.random.default_rng(2).normal(size=(96, 96)).astype(np.float32)
    assert bright.mean() / np.sqrt(NOISE.a + NOISE.b * bright.mean()) > PASSED[1]
    enhanced, sigma = restore(young, bright, NOISE)
    inner = np.s_[8:-8, 8:-8]
    noise = np.sqrt(NOISE.a + NOISE.b * bright.mean())
    assert error(enhanced[inner], bright[inner]) < 0.6 * noise  # it may still take stripes away
    assert sigma[inner].mean() == pytest.approx(noise, rel=0.05)


def test_no_seam_shows_where_tiles_meet(young, tmp_path):
    """The same image with tiles of 256 px and in one piece."""
    image = write(tmp_path / "image.tif", shadow(10.0, side=320)[1], size_m=1.0)
    wide = save_pack(tmp_path / "wide", young.card.__class__(**{**vars(young.card), "id": "wide", "tile": 640}),
                     young.network())  # fmt: skip
    made = []
    for pack in (young, wide):
        out = tmp_path / f"{pack.card.id}.tif"
        ran = lunar("enhance", image, out, "--model", pack.folder)
        assert ran.code == 0, ran.err
        with rasterio.open(out) as file:
            made.append(file.read((1, 2)))
    assert np.abs(made[0] - made[1]).max() < 0.01 * np.median(made[0][1])


def test_what_can_be_resolved_is_read_from_the_card(young, tmp_path):
    ramp = np.tile(np.linspace(0.0, 120.0, 256), (256, 1))
    noisy = (ramp + np.random.default_rng(4).normal(0, 1.7, ramp.shape)).astype(np.float32)
    out = tmp_path / "out.tif"
    assert lunar("enhance", write(tmp_path / "image.tif", noisy, size_m=2.0), out, "--model", young.folder).code == 0
    with rasterio.open(out) as file:
        size, flags = file.read(4), file.read(3).astype(int)
        assert file.descriptions[3] == "resolvable_m"
    best = 2.0 * TABLE["diameter_px"][-1]
    assert np.nanmin(size) == pytest.approx(best, rel=1e-4)
    assert np.nanmax(size) <= 2.0 * TABLE["diameter_px"][0]
    assert np.isnan(size[:, :1]).mean() > 0.8  # where there is no light, nothing is promised
    assert (flags[:, 0] & 8).mean() > 0.8
    assert np.nanmean(size[:, 20:40]) > np.nanmean(size[:, 100:120]) > 0.99 * best


def test_an_image_in_the_sun_is_no_case_for_it(young, tmp_path):
    bright = (3000 + 300 * np.random.default_rng(2).normal(size=(128, 128))).astype(np.float32)
    bright = ndimage.gaussian_filter(bright, 4) + np.random.default_rng(3).normal(0, 3, bright.shape)
    image = write(tmp_path / "image.tif", bright.astype(np.float32))
    ran = lunar("enhance", image, tmp_path / "out.tif", "--model", young.folder, "--json")
    assert any("no low-light image" in warning for warning in ran.result["warnings"])
    with rasterio.open(tmp_path / "out.tif") as file:
        assert (file.read(3).astype(int) & 4).mean() > 0.9


def test_eight_bits_that_lost_the_signal_are_told(young, tmp_path):
    _, image = shadow(10.0)
    coarse = write(tmp_path / "image.tif", np.clip(image / 12, 0, 255).astype(np.uint8))
    ran = lunar("enhance", coarse, tmp_path / "out.tif", "--model", young.folder, "--json")
    assert any("grey levels" in warning for warning in ran.result["warnings"])


def test_pixels_of_another_size_are_told_and_very_other_ones_refused(young, tmp_path):
    _, pixels = shadow(10.0, side=128)
    for size, word in ((3.0, "expect poorer results"), (30.0, "resample")):
        image = write(tmp_path / f"{size:g}.tif", pixels, size_m=size)
        ran = lunar("enhance", image, tmp_path / "out.tif", "--model", young.folder, "--overwrite")
        assert word in ran.err
        assert (ran.code == 0) == (size == 3.0)


def test_what_the_best_model_does_not_know_is_done_by_another(tmp_path):
    image = write(tmp_path / "far.tif", shadow(10.0, side=128)[1], size_m=30.0)
    ran = lunar("enhance", image, tmp_path / "out.tif", "--progress", "jsonl")
    assert any("destripe-nlm is used, since psr-physics cannot be" in str(event) for event in ran.events)


def test_the_camera_limits_what_passes_for_its_noise():
    flat = of_camera(Noise(a=0.0, b=0.5, black=0.0, least=0.0), signal=8.0)  # of one brightness: a and b are a guess
    assert flat.a + flat.b * 8.0 == pytest.approx(4.0)
    assert flat.a > 2.0
    rough = of_camera(Noise(a=50.0, b=0.5, black=0.0, least=0.0), signal=100.0)  # relief passes for noise
    assert (rough.a, rough.b) == NAC_MOST
    unit = 1e-4  # I/F of a DN
    smooth = of_camera(Noise(a=0.0, b=0.0, black=0.0, least=0.0), 8.0 * unit, unit)
    assert (smooth.a / unit**2, smooth.b / unit) == pytest.approx(NAC_LEAST)
    assert of_camera(Noise(0.0, 0.0, 0.0, 0.0), 8.0, as_taken=False).a == 0.0  # a map may be smoother


# ---- what it learns from -----------------------------------------------------------------------------------------


def test_darkness_comes_in_units_of_its_own_noise():
    light = torch.rand(3, 1, 96, 96, generator=dice(1, 0)) + 0.5
    dark = darken(light, torch.ones_like(light, dtype=torch.bool), torch.tensor([2.0, 20.0, 200.0]), 3, sure=True)
    variance = ((dark.noisy - dark.clean) ** 2).mean(dim=(1, 2, 3))
    expected = 1 + dark.slope * dark.clean.mean(dim=(1, 2, 3))
    np.testing.assert_allclose(variance, expected, rtol=0.05)
    np.testing.assert_allclose(dark.clean[0] / dark.clean[0].mean(), light[0] / light[0].mean(), rtol=1e-4)


def test_batches_have_light_of_both_kinds_and_edges_of_shadow():
    pictures = {"image": torch.rand(10, 1, 64, 64), "valid": torch.ones(10, 1, 64, 64, dtype=torch.bool)}
    draw = enhance.with_shadow(lambda step: dict(pictures), 64, seed=0)
    batches = [draw(step)["light"] for step in range(4)]
    assert torch.equal(draw(1)["light"], batches[1])
    assert all((b >= 0).all() and b.shape == (10, 1, 64, 64) for b in batches)
    spread = torch.cat([b.amax(dim=(1, 2, 3)) / b.mean(dim=(1, 2, 3)) for b in batches])
    means = torch.cat([b.mean(dim=(1, 2, 3)) for b in batches])
    assert (means > 1.5).any()  # some lie partly in the sun
    assert (means < 1.1).sum() > 20
    assert torch.isfinite(spread).all()


@pytest.mark.parametrize(
    ("recalls", "size"),
    [([1.0] * 9, 3.0), ([0.0] * 9, float("nan")), ([0.1, 0.4, 0.6, 0.7, 0.9, 1, 1, 1, 1], 5.0),
     ([0.6, 0.1, 0.2, 0.8, 0.9, 1, 1, 1, 1], 7.0)],
)  # fmt: skip
def test_the_smallest_crater_is_where_recall_stays_above_a_half(recalls, size):
    assert resolvable.smallest(recalls) == pytest.approx(size, nan_ok=True)


def test_more_light_shows_more_craters():
    network, planted = ShadowNet((8, 8, 8), 1).eval(), resolvable.plant(10.0, 3)
    with torch.no_grad():
        shares = [resolvable.recall(network, planted, signal, 1)[0] for signal in (0.3, 3.0, 60.0)]
    assert shares[0] < 0.7
    assert shares == sorted(shares)
    assert shares[2] > 0.9


# ---- the shipped model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [2.0, 10.0, 50.0])
def test_the_shipped_model_is_nearer_to_the_truth_than_any_gaussian(shipped, level):
    truth, image = shadow(level)
    enhanced, _ = restore(shipped, image)
    inner = np.s_[16:-16, 16:-16]
    blurred = min(error(ndimage.gaussian_filter(image, s)[inner], truth[inner]) for s in (0.01, 0.7, 1, 2, 3, 4, 6))
    assert error(enhanced[inner], truth[inner]) < blurred


def test_the_shipped_model_knows_how_wrong_it_is(shipped):
    shares = []
    for level, seed in ((3.0, 11), (10.0, 12), (30.0, 13)):
        truth, image = shadow(level, seed)
        enhanced, sigma = restore(shipped, image)
        shares.append((np.abs(enhanced - truth) < sigma).mean())
    assert np.mean(shares) == pytest.approx(0.68, abs=0.12)


def test_the_shipped_model_shows_smooth_ground_where_there_is_nothing_to_see(shipped):
    noise = np.random.default_rng(8).normal(0.0, 1.7, (256, 256)).astype(np.float32)
    enhanced, sigma = restore(shipped, noise, NOISE)
    assert enhanced.std() < 0.2
    assert np.median(sigma) > enhanced.std() / 3


def test_the_shipped_model_has_no_seam_at_the_edge_of_shadow(shipped):
    truth, _ = shadow(8.0, 21)
    truth[:, 128:] *= 200.0
    camera = sensor.sample_cameras(1, dice(3, 0), {"table": (1.0, 1.0)})
    recorded = sensor.degrade(torch.from_numpy(truth).float()[None], float(truth.mean()), camera, dice(3, 1))
    image = sensor.calibrate(recorded)[0].numpy()
    enhanced, _ = restore(shipped, image, NOISE)
    for part in (np.s_[16:-16, 16:108], np.s_[16:-16, 148:-16]):
        assert error(enhanced[part], truth[part]) < 1.02 * error(image[part], truth[part])
    # Brightness keeps its order from column to column across the edge.
    columns, true = enhanced[16:-16].mean(axis=0), truth[16:-16].mean(axis=0)
    assert np.corrcoef(np.log(columns[110:146]), np.log(true[110:146]))[0, 1] > 0.98


def test_a_sigma_too_small_is_widened_by_what_it_lacks():
    off = np.abs(np.random.default_rng(4).normal(0, 1.3, 200_000))
    assert enhance.widening(off) == pytest.approx(1.3, rel=0.01)


def test_of_errors_with_long_tails_one_interval_is_a_little_too_wide_and_the_other_too_narrow():
    off = np.abs(np.random.default_rng(5).standard_t(3, 200_000))
    factor = enhance.widening(off)
    assert 0.6827 < (off < factor).mean() < 0.75
    assert 0.92 < (off < 1.96 * factor).mean() < 0.95


def test_calibrating_changes_sigma_and_nothing_else(tmp_path: Path, real_data: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(SHIPPED, folder)
    ran = lunar("calibrate", folder, "--images", real_data / "nac_cdr", "--small", "--json")
    assert ran.code == 0, ran.err
    before, after = read_pack(SHIPPED).network(), read_pack(folder).network()
    x = 5 + torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (signal, sigma), (same, wider) = before(x)[0], after(x)[0]
    assert torch.equal(signal, same)
    assert not torch.equal(sigma, wider)
    table = ran.result["calibration"]
    assert [row["signal_dn"] for row in table] == [2, 5, 10, 20, 50, 100]
    # The factor lies between what the two intervals want: where one is too wide, the other is too narrow.
    assert all((row["cover68"] - 0.6827) * (row["cover95"] - 0.95) <= 1e-4 for row in table)
    assert after.sigma_factor.tolist() == pytest.approx(ran.result["sigma_factor"], abs=1e-4)


@pytest.mark.parametrize(("model", "words"), [("psr-physics", "--images"), ("psr-cyclegan", "no sigma")])
def test_what_calibrating_needs_is_said(tmp_path: Path, model: str, words: str) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(SHIPPED.parent / model, folder)
    ran = lunar("calibrate", folder)
    assert ran.code == 1
    assert words in ran.err
