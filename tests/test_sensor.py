"""The simulated camera against what can be worked out by hand, one imperfection at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lunar_processing.errors import ParameterError
from lunar_processing.simulate import sensor
from lunar_processing.simulate.sensor import IDEAL, PARAMETERS, TABLE_INDEX, TABLES, Camera


def random(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def even(*levels: float, size: int = 256) -> torch.Tensor:
    """One evenly lit scene for each level in DN."""
    return torch.tensor(levels).reshape(-1, 1, 1).expand(-1, size, size).contiguous()


def point(size: int = 65, light: float = 3000.0) -> torch.Tensor:
    scene = torch.zeros(1, size, size)
    scene[0, size // 2, size // 2] = light
    return scene


# Noise


def test_an_ideal_camera_records_the_signal_to_the_next_whole_number():
    signal = torch.rand(2, 40, 50, generator=random()) * 4000
    error = sensor.expose(signal, IDEAL, random()).dn12 - signal
    assert float(error.abs().max()) == pytest.approx(0.5, abs=2e-3)


def test_the_variance_grows_with_the_signal_as_a_photon_transfer_curve():
    """Variance in DN² = (read noise / gain)² + signal / gain + 1/12 for rounding."""
    levels = [0.0, 50.0, 200.0, 800.0, 3000.0]
    camera = replace(IDEAL, gain=64.0, read_noise=72.0, bias=40.0)
    recorded = sensor.expose(even(*levels), camera, random()).dn12
    expected = (72 / 64) ** 2 + np.array(levels) / 64 + 1 / 12
    assert recorded.var(dim=(1, 2)).numpy() == pytest.approx(expected, rel=0.03)
    assert recorded.mean(dim=(1, 2)).numpy() == pytest.approx(np.array(levels) + 40, abs=0.1)


def test_summing_two_columns_halves_the_noise_variance_of_the_same_signal():
    camera = replace(IDEAL, gain=64.0, read_noise=72.0, bias=40.0, summing=torch.tensor([1.0, 2.0]))
    variance = sensor.expose(even(500.0, 500.0), camera, random()).dn12.var(dim=(1, 2)) - 1 / 12
    assert float(variance[1] / variance[0]) == pytest.approx(0.5, rel=0.03)


def test_read_noise_exceeds_photon_noise_below_about_eighty_numbers():
    """Why dim images are hard: equal at signal = read_noise² / gain."""
    camera = Camera()
    assert 70 < camera.read_noise**2 / camera.gain < 90


def test_the_dark_current_doubles_with_every_eight_degrees():
    camera = Camera(temperature=torch.tensor([20.0, 28.0, 36.0]), dark_doubling=8.0, dark_current=64.0, exposure=2.0)
    dark = sensor.dark_dn(replace(camera, gain=64.0), even(0, 0, 0)).flatten()
    assert dark.tolist() == pytest.approx([2.0, 4.0, 8.0])


def test_a_warm_camera_records_more_dark_and_more_noise():
    camera = replace(
        IDEAL, gain=64.0, bias=40.0, dark_current=2000.0, exposure=1.0, temperature=torch.tensor([12.0, 28.0])
    )
    cool, warm = sensor.expose(even(0.0, 0.0), camera, random()).dn12
    assert float(warm.mean() - cool.mean()) == pytest.approx(2000 / 64 * (2 - 0.5), rel=0.01)
    assert float(warm.var() - cool.var()) == pytest.approx(2000 / 64**2 * (2 - 0.5), rel=0.1)


# Patterns


@pytest.mark.parametrize(("summing", "period"), [(1.0, 8), (2.0, 4)])
def test_the_column_pattern_repeats(summing, period):
    camera = replace(IDEAL, bias=40.0, pattern=3.0, summing=summing)
    columns = sensor.expose(even(0.0), camera, random()).dn12[0].mean(dim=0)
    assert torch.equal(columns[period:], columns[:-period])
    assert any(not torch.equal(columns[k:], columns[:-k]) for k in range(1, period))


def test_patterns_have_the_strength_they_are_asked_for():
    camera = replace(IDEAL, bias=100.0, column=torch.tensor([2.0, 0.0]), row=torch.tensor([0.0, 5.0]))
    across, along = sensor.expose(even(0.0, 0.0, size=2000), camera, random()).dn12
    assert float(across[0].std()) == pytest.approx(2.0, rel=0.1)
    assert float(along[:, 0].std()) == pytest.approx(5.0, rel=0.1)
    assert float(across.std(dim=0).max()) == 0
    assert float(along.std(dim=1).max()) == 0


def test_lines_are_lost_at_the_rate_asked_for_and_are_marked():
    recorded = sensor.expose(even(500.0, size=2000), replace(IDEAL, dropped=0.1), random())
    assert float(recorded.lost.float().mean()) == pytest.approx(0.1, abs=0.02)
    assert torch.equal(recorded.dn12[0].sum(dim=1) == 0, recorded.lost[0])


def test_the_signal_ends_at_the_full_well_and_at_twelve_bits():
    camera = replace(IDEAL, gain=100.0, full_well=torch.tensor([200_000.0, 1e9]))
    assert sensor.expose(even(5000.0, 5000.0, size=128), camera, random()).dn12.amax(dim=(1, 2)).tolist() == [
        2000,
        4095,
    ]


# Optics and echo


@pytest.mark.parametrize(("psf", "smear"), [(0.42, 0.0), (0.51, 0.6), (1.2, 1.0)])
def test_optics_keep_the_light(psf, smear):
    blurred = sensor.expose(point(), replace(IDEAL, psf=psf, smear=smear), random()).expected
    assert float(blurred.sum()) == pytest.approx(3000.0, rel=1e-5)


def test_the_point_spread_has_the_published_transfer_at_the_nyquist_frequency():
    """MTF 0.28 of the left camera: stripes of black and white columns keep 28 % of their contrast."""
    stripes = even(100.0).clone()
    stripes[..., ::2] = 300.0
    blurred = sensor.expose(stripes, replace(IDEAL, psf=PARAMETERS["psf"].value), random()).expected[0, 100, 20:-20]
    assert float(blurred.max() - blurred.min()) / 200 == pytest.approx(0.28, abs=0.02)


def test_the_point_spread_has_the_width_of_its_sigma():
    blurred = sensor.expose(point(), replace(IDEAL, psf=1.1), random()).expected[0]
    place = torch.arange(65.0) - 32
    for axis in (0, 1):
        profile = blurred.sum(dim=axis)
        assert float((profile * place**2).sum() / profile.sum()) == pytest.approx(1.1**2, rel=0.02)


def test_smear_blurs_along_the_flight_only():
    blurred = sensor.expose(point(), replace(IDEAL, smear=1.0), random()).expected[0]
    assert float(blurred[:, 31].abs().max()) < 0.01
    assert float(blurred[31, 32]) > 100


@pytest.mark.parametrize(("side", "summing", "where"), [(1.0, 1.0, 2), (-1.0, 1.0, -2), (1.0, 2.0, 1), (-1.0, 2.0, -1)])
def test_the_echo_follows_the_read_out(side, summing, where):
    scene = sensor.expose(point(), replace(IDEAL, echo=0.326, side=side, summing=summing), random()).expected[0]
    assert float(scene[32, 32 + where] / scene[32, 32]) == pytest.approx(0.326, rel=1e-4)
    assert float(scene.sum()) == pytest.approx(3000.0, rel=1e-5)
    assert int((scene > 1e-3).sum()) == 2


def test_even_light_passes_optics_and_echo_unchanged():
    camera = replace(IDEAL, psf=0.5, smear=0.5, echo=0.33)
    assert sensor.expose(even(700.0), camera, random()).expected.numpy() == pytest.approx(700.0, rel=1e-5)


# Response


def test_linearising_undoes_the_nonlinear_response():
    dn = torch.linspace(-8, 4000, 5000).reshape(1, 50, 100)
    for depth, scale in [(2.0, 70.0), (6.0, 100.0), (10.0, 70.0)]:
        camera = Camera(nonlinearity=depth, nonlinear_scale=scale)
        assert sensor.linearise(sensor.respond(dn, camera), camera).numpy() == pytest.approx(dn.numpy(), abs=2e-3)


def test_the_response_is_the_published_correction_and_ends_at_600():
    """x − 1 / (c0·c1^x + c2), zero kept at zero; above 600 DN only a constant is left of it."""
    camera = Camera(nonlinearity=6.0, nonlinear_scale=100.0)
    dn = torch.tensor([[[0.0, 10.0, 100.0, 600.0, 2000.0]]])
    shift = 5.6712  # the root of s = 6 exp(−s/100)
    by_hand = dn + shift - 1 / ((1 / 6) * np.exp(0.01) ** (dn + shift))
    assert sensor.linearise(dn, camera).numpy() == pytest.approx(by_hand.numpy(), abs=1e-2)
    left = (sensor.respond(dn, camera) - dn).flatten()
    assert float(left[0]) == pytest.approx(0.0, abs=1e-4)
    assert float(left[3]) == pytest.approx(float(left[4]), abs=0.02)


# Companding


@pytest.mark.parametrize("name", ["usual", "dim"])
def test_decompanding_errs_by_half_a_step_at_most(name):
    dn = torch.arange(4096.0).reshape(1, 64, 64)
    codes = sensor.compand(dn, TABLE_INDEX[name])
    error = (sensor.decompand(codes, TABLE_INDEX[name]) - dn).abs().flatten()
    slope = np.take(TABLES[name].slope, np.searchsorted(TABLES[name].start, np.arange(4096), side="right") - 1)
    assert (error.numpy() <= 0.5 / slope).all()
    assert torch.equal(torch.unique(codes), torch.arange(256, dtype=torch.uint8)), "every code is in use"
    assert (codes.flatten().int().diff() >= 0).all()


def test_the_identity_table_keeps_the_low_numbers_and_stops_at_255():
    codes = sensor.compand(torch.arange(4096.0).reshape(1, 64, 64), TABLE_INDEX["identity"]).flatten()
    assert codes[:256].tolist() == list(range(256))
    assert (codes[256:] == 255).all()
    assert sensor.decompand(torch.tensor([[[7, 255]]], dtype=torch.uint8), TABLE_INDEX["identity"]).tolist() == [
        [[7, 255]]
    ]


def test_decompanding_agrees_with_the_middle_of_the_bin_by_hand():
    """Usual table: code 18 holds 40…43, code 42 holds 136…143 (the bin before it ends at 135)."""
    codes = torch.tensor([[[15, 18, 42, 255]]], dtype=torch.uint8)
    assert sensor.decompand(codes, 0).flatten().tolist() == [30.5, 41.5, 139.5, 4079.5]


def test_scenes_of_a_batch_may_use_different_tables():
    dn = even(1000.0, 1000.0, 200.0, size=4)
    codes = sensor.compand(dn, torch.tensor([0.0, 1.0, 2.0]))[:, 0, 0]
    assert codes.tolist() == [59 + 1000 // 16, 128 + 1000 // 32, 200]


def test_lossy_rounding_leaves_only_multiples_of_its_step():
    ramp = torch.arange(4096.0).reshape(1, 64, 64)
    codes = sensor.expose(ramp, replace(IDEAL, lossy=4.0), random()).dn8
    assert (codes[codes < 255] % 4 == 0).all()


# Whole chain


def test_calibration_finds_the_signal_again():
    """With the noise off, what is left is the rounding to 12 bits and to 8 (steps of 2 to 8 below 543 DN)."""
    camera = replace(
        Camera(), read_noise=0.0, row=0.0, pattern_left=0.0, flat=0.0, gain=1e12, full_well=1e20, dark_current=1e12
    )
    ramp = (torch.linspace(20, 400, 128) + torch.linspace(0, 40, 128)[:, None])[None]
    recorded = sensor.expose(ramp, camera, random())
    error = (sensor.calibrate(recorded) - ramp)[:, 10:-10, 40:-20]
    assert float(error.abs().max()) < 8
    assert abs(float(error.mean())) < 0.5


def test_calibration_leaves_the_share_of_the_column_pattern_it_is_told_to():
    camera = replace(IDEAL, bias=40.0, column=3.0, table=2.0, pattern_left=torch.tensor([0.0, 0.5]))
    recorded = sensor.expose(even(100.0, 100.0), camera, random())
    left = sensor.calibrate(recorded).mean(dim=1) - 100
    assert float(left[0].abs().max()) < 0.51
    assert left[1].numpy() == pytest.approx(0.5 * recorded.columns[1, 0].numpy(), abs=0.51)


def test_calibration_sharpens_what_the_echo_doubled():
    scene = sensor.expose(point() + 100, replace(IDEAL, echo=0.326, bias=40.0), random())
    assert float(sensor.calibrate(scene)[0, 32, 34]) == pytest.approx(100, abs=60)
    assert float(scene.dn12[0, 32, 34]) > 700


def test_a_darkened_real_image_has_the_signal_asked_for():
    image = torch.rand(3, 128, 128, generator=random()) + 0.5
    dark = sensor.degrade(image, torch.tensor([2.0, 20.0, 100.0]), generator=random())
    assert dark.expected.mean(dim=(1, 2)).tolist() == pytest.approx([2.0, 20.0, 100.0], rel=0.02)
    found = sensor.calibrate(dark).mean(dim=(1, 2))
    assert found.tolist() == pytest.approx([2.0, 20.0, 100.0], abs=1.0)


def test_the_darker_the_image_the_less_of_it_is_left():
    """Correlation with the clean image falls with the signal; at 100 DN nearly all is there, at 2 DN nearly nothing."""
    image = sensor.expose(torch.rand(1, 128, 128, generator=random()) * 400, replace(IDEAL, psf=2.0)).expected

    def kept(signal: float) -> float:
        dark = sensor.degrade(image, signal, generator=random())
        return float(torch.corrcoef(torch.stack([dark.dn12.flatten(), image.flatten()]))[0, 1])

    assert kept(100.0) > 0.9 > kept(20.0) > kept(2.0)
    assert kept(2.0) < 0.3


def test_reflectance_becomes_the_signal_of_a_real_product():
    """M143947267L: I/F 0.1037 in the mean at 0.3632 ms, 0.98866 au: some 600 of 4095 DN."""
    iof = torch.full((1, 4, 4), 0.1037)
    assert float(sensor.signal_of(iof, Camera(exposure=0.3632), 0.98866).mean()) == pytest.approx(611, abs=2)


def test_the_same_seed_records_the_same_bytes_and_another_does_not():
    cameras = sensor.sample_cameras(4, random())
    first, again, other = (sensor.expose(even(5, 50, 500, 4000), cameras, random(seed)) for seed in (7, 7, 8))
    assert torch.equal(first.dn8, again.dn8)
    assert torch.equal(first.dn12, again.dn12)
    assert not torch.equal(first.dn12, other.dn12)


def test_sampled_cameras_stay_in_their_ranges():
    cameras = sensor.sample_cameras(500, random(), {"table": (0, 2), "summing": (1, 2), "lossy": (1, 1)})
    for name, parameter in PARAMETERS.items():
        values = getattr(cameras, name)
        assert values.shape == (500,)
        if name not in ("table", "summing"):
            assert float(values.min()) >= parameter.low - 1e-6
            assert float(values.max()) <= parameter.high * (1 + 1e-6)
    assert set(cameras.table.tolist()) == {0, 1, 2}
    assert set(cameras.summing.tolist()) == {1, 2}
    assert set(cameras.side.tolist()) == {-1, 1}


def test_every_parameter_has_a_range_around_its_value_and_a_source():
    for name, parameter in PARAMETERS.items():
        assert parameter.low <= parameter.value <= parameter.high, name
        assert parameter.source, name
        assert getattr(Camera(), name) == parameter.value


@pytest.mark.parametrize(
    ("signal", "camera", "words"),
    [
        (torch.zeros(4, 4), Camera(), "shape"),
        (torch.full((1, 4, 4), -1.0), Camera(), "negative"),
        (torch.full((1, 4, 4), float("nan")), Camera(), "undefined"),
        (torch.zeros(2, 4, 4), Camera(gain=torch.ones(3)), "3 values for a batch of 2"),
        (torch.zeros(1, 4, 4), Camera(gain=0.0), "gain"),
        (torch.zeros(1, 4, 4), Camera(read_noise=-1.0), "read_noise"),
        (torch.zeros(1, 4, 4), Camera(table=9.0), "companding table"),
        (torch.zeros(1, 4, 4), Camera(summing=3.0), "sums"),
    ],
)
def test_impossible_cameras_are_refused_in_words(signal, camera, words):
    with pytest.raises(ParameterError, match=words):
        sensor.expose(signal, camera, random())


def test_impossible_wishes_are_refused_in_words():
    with pytest.raises(ParameterError, match="mean signal"):
        sensor.degrade(torch.ones(1, 8, 8), 0.0)
    with pytest.raises(ParameterError, match="no light"):
        sensor.degrade(torch.zeros(1, 8, 8), 10.0)
    with pytest.raises(ParameterError, match="'zoom'"):
        sensor.sample_cameras(2, ranges={"zoom": (1, 2)})
    with pytest.raises(ParameterError, match="lower end"):
        sensor.sample_cameras(2, ranges={"gain": (70, 60)})
