"""Ground: how rough it is, what craters and rocks look like, how many of each size there are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lunar_processing.errors import ParameterError
from lunar_processing.simulate import terrain
from lunar_processing.simulate.scenes import generator
from lunar_processing.simulate.terrain import Ground, crater_table, flat, rock_table, stamp_craters, stamp_rocks


def rms_slope(height: torch.Tensor, pixel: float, baseline: int) -> float:
    step = height[..., baseline:] - height[..., :-baseline]
    return float(step.square().mean().sqrt()) / (baseline * pixel)


# ---- regolith


@pytest.mark.parametrize(("slope", "hurst", "pixel"), [(0.05, 0.8, 1.0), (0.1, 0.95, 0.5), (0.02, 0.5, 3.0)])
def test_regolith_has_the_rms_slope_that_was_asked_for(slope, hurst, pixel):
    height = terrain.fractal((24, 192, 160), pixel, slope, hurst, generator(1))
    assert rms_slope(height, pixel, 1) == pytest.approx(slope, rel=0.05)
    assert rms_slope(height.transpose(1, 2), pixel, 1) == pytest.approx(slope, rel=0.05)


@pytest.mark.parametrize("hurst", [0.4, 0.6, 0.8])
def test_longer_baselines_are_flatter_by_the_hurst_exponent(hurst):
    height = terrain.fractal((32, 512, 512), 1.0, 0.05, hurst, generator(2))
    fall = math.log(rms_slope(height, 1.0, 16) / rms_slope(height, 1.0, 4)) / math.log(4)
    assert fall == pytest.approx(hurst - 1, abs=0.1)


def test_each_scene_has_numbers_of_its_own():
    slopes = torch.tensor([0.01, 0.1])
    height = terrain.fractal((2, 256, 256), torch.tensor([1.0, 2.0]), slopes, torch.tensor([0.9, 0.7]), generator(3))
    assert rms_slope(height[:1], 1.0, 1) == pytest.approx(0.01, rel=0.15)
    assert rms_slope(height[1:], 2.0, 1) == pytest.approx(0.1, rel=0.15)


def test_diffusion_takes_a_wave_down_as_the_equation_says():
    pixel, length, kappa_t = 2.0, 40.0, 30.0
    x = torch.arange(400) * pixel
    wave = torch.sin(2 * math.pi * x / length).expand(1, 32, 400)
    after = terrain.diffuse(wave, pixel, kappa_t)[0, 16, 100:300]
    assert float(after.abs().max()) == pytest.approx(math.exp(-kappa_t * (2 * math.pi / length) ** 2), rel=0.01)


def test_diffusion_keeps_the_mean_and_no_time_changes_nothing():
    height = terrain.fractal((2, 64, 64), 1.0, 0.1, 0.8, generator(4))
    torch.testing.assert_close(terrain.diffuse(height, 1.0, 0.0), height)
    bump = torch.zeros(1, 65, 65)
    bump[0, 32, 32] = 1
    assert float(terrain.diffuse(bump, 1.0, 5.0).sum()) == pytest.approx(1.0, rel=1e-4)


# ---- craters


def profile_of(craters, size: int = 401, pixel: float = 1.0) -> torch.Tensor:
    """Heights from the middle of the first crater to the right."""
    ground = stamp_craters(flat((1, size, size), pixel), craters)
    return ground.height[0, size // 2, size // 2 :]


def middle(size: int = 401) -> float:
    return size / 2


def test_a_fresh_crater_is_as_deep_and_wide_and_high_as_published():
    heights = profile_of(crater_table(0, middle(), middle(), [100.0]))
    assert float(heights[0]) == pytest.approx(-14.0, rel=0.02)
    assert int(heights.argmax()) == pytest.approx(50, abs=1)  # the rim is at one radius
    assert 0.03 <= float(heights.max()) / 100 <= 0.042
    large = profile_of(crater_table(0, middle(), middle(), [1000.0]), pixel=10.0)
    assert float(large[0]) == pytest.approx(-200, rel=0.03)


def test_ejecta_thin_out_with_the_third_power_and_end_at_two_radii():
    heights = profile_of(crater_table(0, middle(), middle(), [160.0]))
    rim = float(heights.max())
    for radii in (1.2, 1.5):
        assert float(heights[int(80 * radii)]) / rim == pytest.approx(radii**-3, abs=0.08)
    assert float(heights[161:].abs().max()) < 1e-4


@pytest.mark.parametrize("degradation", [0.0, 0.1, 0.4, 0.7, 0.95])
def test_the_middle_lies_as_deep_as_the_table_says(degradation):
    for kind in (terrain.SIMPLE, terrain.FLAT_FLOORED):
        craters = crater_table(0, middle(), middle(), [80.0], degradation=degradation, kind=kind)
        depth = float(craters.depth_m[0])
        assert depth == pytest.approx(80 * 0.14 * (1 - degradation), rel=0.05)
        assert float(profile_of(craters)[0]) == pytest.approx(-depth, rel=0.06, abs=0.02)


@pytest.mark.parametrize("age", [0.003, 0.02, 0.08, 0.15, 0.3])
def test_a_worn_crater_is_what_diffusion_makes_of_a_fresh_one(age):
    """Age is κt over the radius squared; compared with the diffused fresh crater, within 4 % of its depth."""
    diameter, size = 120.0, 601
    fresh = crater_table(0, size / 2, size / 2, [diameter], depth_m=0.14 * diameter)
    diffused = terrain.diffuse(stamp_craters(flat((1, size, size), 1.0), fresh).height, 1.0, age * (diameter / 2) ** 2)
    gone = terrain.worn("degradation", torch.tensor([age]), by="age")
    worn = crater_table(0, size / 2, size / 2, [diameter], depth_m=0.14 * diameter * (1 - gone), degradation=gone)
    stamped = stamp_craters(flat((1, size, size), 1.0), worn).height
    assert float((stamped - diffused).abs().max()) < 0.055 * 0.14 * diameter
    assert float((stamped - diffused).square().mean().sqrt()) < 0.02 * 0.14 * diameter


def test_a_nested_crater_has_a_smaller_one_in_its_floor():
    nested = profile_of(crater_table(0, middle(), middle(), [80.0], kind=terrain.NESTED))
    flat_floor = nested[22:26]
    assert float(flat_floor.max() - flat_floor.min()) < 0.35 * float(flat_floor.mean().abs())
    assert float(nested[0]) < float(flat_floor.min()) - 1.0


def test_bright_rays_reach_beyond_the_rim_and_leave_the_height_alone():
    dark = crater_table(0, 100, 100, [30.0])
    bright = crater_table(0, 100, 100, [30.0], brightness=0.4, rays=7)
    ground = flat((1, 200, 200), 1.0, 0.1)
    shining = stamp_craters(ground, bright)
    assert torch.equal(stamp_craters(ground, dark).height, shining.height)
    assert float(shining.albedo.max()) == pytest.approx(0.14, rel=0.02)
    assert float(shining.albedo[0, 100, 145]) > 0.1  # three radii out
    ring = shining.albedo[0][
        (torch.hypot(*torch.meshgrid(*[torch.arange(200) - 99.5] * 2, indexing="ij")) - 45).abs() < 2
    ]
    assert float(ring.max() - ring.min()) > 0.01  # rays, not a disc


def test_craters_in_numbers_follow_equilibrium_then_production():
    shape, pixel = (40, 512, 512), 1.0
    craters = terrain.draw_craters(shape, pixel, 0.05, 30.0, generator(5), smallest_px=4.0)
    inside = (craters.col >= 0) & (craters.col < 512) & (craters.row >= 0) & (craters.row < 512)
    diameter = craters.diameter_m[inside]
    area = 40 * 512.0**2
    for least, expected in ((4.0, 0.05 / 16), (8.0, 0.05 / 64), (16.0, 0.05 / 256), (60.0, 0.05 / 3600 * 0.5)):
        # None is larger than the scene: those would be missing from the cumulative number.
        tail = 0.05 / 512**2 * 30 / 512
        count = int((diameter > least).sum())
        assert count == pytest.approx((expected - tail) * area, abs=4 * math.sqrt(expected * area))


def test_craters_outside_whose_rims_reach_in_are_not_forgotten():
    craters = terrain.draw_craters((50, 128, 128), 1.0, 0.08, 500.0, generator(6))
    outside = (craters.col < 0) | (craters.col > 128) | (craters.row < 0) | (craters.row > 128)
    assert int(outside.sum()) > 100
    reach = terrain.REACH * craters.diameter_m / 2 * 1.2
    assert bool((craters.col > -reach).all())


def test_all_states_of_decay_are_there_in_equilibrium_and_larger_craters_are_fresher():
    craters = terrain.draw_craters((60, 256, 256), 1.0, 0.06, 20.0, generator(7))
    small, large = craters.degradation[craters.diameter_m < 10], craters.degradation[craters.diameter_m > 60]
    assert float(small.max()) > 0.75
    assert float(small.min()) < 0.05
    assert float(large.mean()) < 0.7 * float(small.mean())


# ---- rocks


def test_a_rock_covers_the_area_that_its_diameter_says():
    number = 60
    random = torch.rand(number, 8, generator=generator(8))
    rocks = rock_table(
        torch.arange(number), 32.3, 31.6, [20.0] * number, axis_ratio=0.7, azimuth=360 * random[:, 0], shape=random
    )
    _, ids = stamp_rocks(flat((number, 64, 64), 1.0), rocks)
    area = (ids > 0).flatten(1).sum(dim=1).float()
    expected = math.pi * 100
    assert float(area.mean()) == pytest.approx(expected, rel=0.02)
    assert float((area / expected - 1).abs().max()) < 0.06


def test_rocks_know_their_number_and_stand_as_high_as_they_are():
    rocks = rock_table([0, 0, 1], [20.0, 60.0, 40.0], [30.0, 60.0, 50.0], [12.0, 8.0, 10.0], height_m=[5.0, 3.0, 4.0])
    ground, ids = stamp_rocks(flat((2, 80, 80), 1.0), rocks, first=100)
    assert set(ids[0].unique().tolist()) == {0, 101, 102}
    assert set(ids[1].unique().tolist()) == {0, 103}
    assert int(ids[0, 30, 20]) == 101
    assert float(ground.height[0][ids[0] == 101].max()) == pytest.approx(5.0, rel=0.02)
    assert float(ground.height[ids == 0].abs().max()) == 0


def test_a_long_rock_points_where_its_azimuth_says():
    _, ids = stamp_rocks(flat((1, 64, 64), 1.0), rock_table(0, 32, 32, [24.0], axis_ratio=0.5, azimuth=45.0))
    row, col = (ids[0] > 0).nonzero(as_tuple=True)
    right, up = col - 31.5, 31.5 - row
    angle = 0.5 * math.atan2(2 * float((right * up).sum()), float((up * up - right * right).sum()))
    assert math.degrees(angle) == pytest.approx(45, abs=3)


def test_no_two_rocks_look_the_same():
    random = torch.rand(2, 8, generator=generator(9))
    ground, _ = stamp_rocks(flat((2, 40, 40), 1.0), rock_table([0, 1], 20, 20, [16.0, 16.0], shape=random))
    assert float((ground.height[0] - ground.height[1]).abs().max()) > 1.0


@pytest.mark.parametrize("exponent", [2.5, 3.5, 4.5])
def test_rock_sizes_follow_their_power_law(exponent):
    rocks = terrain.draw_rocks((64, 256, 256), 1.0, 0.02, exponent, generator(10), largest_px=1000.0)
    more = [int((rocks.diameter_m > d).sum()) for d in (1.6, 3.2)]
    assert math.log2(more[0] / more[1]) == pytest.approx(exponent, abs=0.25)


def test_rocks_cover_the_share_of_the_ground_that_was_asked_for():
    rocks = terrain.draw_rocks((64, 256, 256), 0.5, 0.01, 3.0, generator(11))
    covered = float((math.pi / 4 * (rocks.diameter_m / 0.5) ** 2).sum()) / (64 * 256**2)
    assert covered == pytest.approx(0.01, rel=0.1)


def test_rocks_crowd_around_a_fresh_crater_and_not_around_an_old_one():
    for degradation, crowd in ((0.0, True), (0.6, False)):
        craters = crater_table(torch.arange(8), 128, 128, [60.0] * 8, degradation=degradation)
        rocks = terrain.draw_rocks((8, 256, 256), 1.0, 1e-5, 3.0, generator(12), craters=craters, blocks=0.05)
        near = torch.hypot(rocks.col - 128, rocks.row - 128) < 3.6 * 30
        assert (int(near.sum()) > 50) == crowd
        assert int((~near).sum()) < 10


# ---- what is refused


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (lambda: flat((1, 8, 8), 0.0), "pixel size"),
        (lambda: flat((1, 8, 8), float("nan")), "pixel size"),
        (lambda: flat((1, 0, 8), 1.0), "shape"),
        (lambda: crater_table(0, 1, 1, [-5.0]), "crater diameter"),
        (lambda: crater_table(0, 1, 1, [5.0], degradation=1.5), "degradation"),
        (lambda: rock_table(0, 1, 1, [0.0]), "rock diameter"),
        (lambda: rock_table(0, 1, 1, [1.0], height_m=-1.0), "rock height"),
        (lambda: terrain.fractal((1, 8, 8), 1.0, -0.1, 0.8, generator(0)), "rms slope"),
        (lambda: terrain.fractal((2, 8, 8), [1.0, 1.0, 1.0], 0.1, 0.8, generator(0)), "3 values"),
        (lambda: terrain.diffuse(torch.zeros(1, 8, 8), 1.0, -1.0), "diffusion"),
        (lambda: terrain.draw_craters((1, 64, 64), 1.0, 0.05, 30.0, generator(0), smallest_px=100), "100 to 64"),
        (lambda: terrain.draw_rocks((1, 64, 64), 1.0, 0.9, 3.0, generator(0)), "under rocks"),
        (lambda: Ground(torch.zeros(8, 8), torch.zeros(8, 8), torch.ones(1)), "shape"),
        (lambda: Ground(torch.zeros(1, 8, 8), torch.zeros(1, 8, 9), torch.ones(1)), "belong together"),
    ],
)
def test_impossible_ground_is_refused_with_the_cure(wrong, word):
    with pytest.raises(ParameterError, match=word) as error:
        wrong()
    assert error.value.cure


def test_steep_ground_is_brighter_up_to_the_slope_at_which_soil_slides():
    right = torch.arange(32.0)[None, None, :].expand(4, 32, 32)
    slopes = torch.tensor([0.0, 0.2, 0.5, 5.0])
    plane = flat((4, 32, 32), 2.0)
    tilted = replace(plane, height=slopes[:, None, None] * 2.0 * right)
    seen = terrain.brighten_slopes(tilted, torch.full((4,), 0.5)).albedo / plane.albedo
    expected = 1 + 0.5 * slopes.clamp(max=terrain.STEEPEST) ** 2
    torch.testing.assert_close(seen[:, :, 1:-1], expected[:, None, None].expand(4, 32, 30))


def test_craters_of_metres_are_fresher_than_those_of_tens_of_metres():
    drawn = terrain.draw_craters((40, 256, 256), 1.0, 0.05, 200.0, generator(4))
    small, large = drawn.degradation[drawn.diameter_m < 3], drawn.degradation[drawn.diameter_m > 20]
    assert float(small.median()) < 0.8 * float(large.median())
