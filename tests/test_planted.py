"""Things planted in images: they look as they would, nothing else changes, and what a score is worth there is fair."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from lunar_processing.errors import DataError, ParameterError
from lunar_processing.evaluate import ranking
from lunar_processing.evaluate.planted import (
    KINDS,
    Facts,
    Strip,
    Target,
    draw_strip,
    meeting,
    plant_strip,
    plant_strips,
    sun_from_craters,
    turned,
)
from lunar_processing.evaluate.ranking import BACKGROUND, LEFT_OUT, in_own_spread, owners, patch_scores
from lunar_processing.simulate import light
from lunar_processing.simulate.objects import thing_table
from lunar_processing.simulate.plant import darkness, plant
from lunar_processing.simulate.terrain import crater_table, flat, stamp_craters

pytestmark = pytest.mark.usefixtures("one_thread")


def ground(side: int = 320, seed: int = 0) -> np.ndarray:
    """Grey ground with some texture, and a dark corner that shows the image's black."""
    image = np.random.default_rng(seed).normal(120, 4, (side, side))
    image[:24, :24] = 5
    return np.clip(np.rint(image), 1, 255).astype(np.uint8)


def strip(side: int = 320, azimuth: float = 90.0) -> Strip:
    image = ground(side)
    return Strip(image, np.ones(image.shape, bool), Facts("a", "M1", 0.5, azimuth, 70.0))


# ---- planting ----------------------------------------------------------------------------------------------------


def test_what_a_thing_does_not_touch_stays_bit_for_bit():
    image = ground()
    made = plant(image, thing_table("pit", 0, 160.0, 160.0, 30.0), 0.5, 90, 70)
    far = np.hypot(*(np.indices(image.shape) - 160)) > 100
    assert np.array_equal(made.image[far], image[far])
    assert made.image.dtype == image.dtype
    assert (made.image[made.touched] != image[made.touched]).mean() > 0.8


@pytest.mark.parametrize(("azimuth", "right", "down"), [(90, -1, 0), (270, 1, 0), (0, 0, 1), (180, 0, -1)])
def test_the_shadow_of_a_lander_lies_away_from_the_sun(azimuth, right, down):
    made = plant(ground(), thing_table("descent stage", 0, 160.5, 160.5, 8.0), 0.5, azimuth, 75)
    shadow = made.touched & (made.image < 60)
    rows, cols = np.nonzero(shadow)
    assert len(rows) > 20
    assert (cols.mean() - 160) * right + (rows.mean() - 160) * down > 4


def test_a_shadow_is_as_long_as_the_sun_is_low():
    lengths = []
    for incidence in (60, 70, 80):
        made = plant(ground(), thing_table("probe", 0, 160.5, 160.5, 4.0), 0.5, 90, incidence)
        lengths.append(np.ptp(np.nonzero(made.touched & (made.image < 60))[1]))
    assert lengths[0] < lengths[1] < lengths[2]


def test_shadow_is_as_dark_as_the_darkest_of_the_image_and_as_noisy():
    image = ground()
    black, noise = darkness(image)
    made = plant(image, thing_table("pit", 0, 160.0, 160.0, 40.0), 0.5, 90, 75)
    inside = made.image[150:160, 165:172].astype(float)
    assert black == 5
    assert 0 < inside.mean() - black < 12
    assert 1 < inside.std() < 2 * noise + 1


def test_texture_runs_on_through_rays():
    image = ground()
    made = plant(image, thing_table("fresh crater", 0, 160.0, 160.0, 16.0), 0.5, 90, 60)
    halo = made.touched & ~made.mask & (made.image < 250)
    assert np.corrcoef(image[halo], made.image[halo])[0, 1] > 0.2


def test_a_thing_at_the_edge_is_cut_off_there_and_one_outside_is_refused():
    image = ground()
    made = plant(image, thing_table("pit", 0, 2.0, 160.0, 30.0), 0.5, 90, 70)
    assert made.mask[:, 0].any()
    with pytest.raises(ParameterError, match="outside"):
        plant(image, thing_table("pit", 0, -500.0, 160.0, 30.0), 0.5, 90, 70)


def test_an_ordinary_crater_is_planted_in_the_same_way():
    made = plant(ground(), crater_table(0, 160.0, 160.0, 20.0, degradation=0.3), 0.5, 90, 70)
    rows, cols = np.nonzero(made.mask)
    assert (rows.mean(), cols.mean()) == pytest.approx((160, 160), abs=2)
    assert made.image[160, 165:178].mean() < 0.8 * made.image[160, 142:155].mean()  # the wall towards the sun is dim


def test_the_same_seed_plants_the_same_thing():
    first, second = (list(plant_strips([strip()], 2, seed=4)) for _ in range(2))
    other = next(plant_strips([strip()], 1, seed=5))
    assert np.array_equal(first[1].image, second[1].image)
    assert not np.array_equal(first[0].image, other.image)


def test_each_image_meets_each_kind_equally_often():
    met = Counter(meeting(number, 3) for number in range(2 * 3 * (len(KINDS) + 1)))
    assert {kind for _, kind in met} == {*KINDS, ""}
    assert len(met) == 3 * (len(KINDS) + 1)
    assert set(met.values()) == {2}


def test_things_and_decoys_lie_apart():
    made = plant_strip(strip(480), ("probe", "descent stage"), np.random.default_rng(0), decoys=2)
    assert [t.kind for t in made.targets] == ["probe", "descent stage", "", ""]
    places = np.array([(t.col, t.row) for t in made.targets])
    gaps = [np.hypot(*(a - b)) for i, a in enumerate(places) for b in places[:i]]
    assert min(gaps) > 64


@pytest.mark.parametrize("way", range(8))
def test_the_sun_turns_with_the_image(way):
    """A shadow that was cast before the turn lies where the turned sun would cast it."""
    bare = strip(azimuth=60.0)
    shadow = plant(bare.image, thing_table("probe", 0, 160.5, 160.5, 4.0), 0.5, 60, 80)
    moved = turned(Strip(shadow.image, bare.valid, bare.facts), way)
    rows, cols = np.nonzero(moved.image < 60)
    inner = (np.abs(rows - 160) < 60) & (np.abs(cols - 160) < 60)
    right, down = cols[inner].mean() - 159.5, rows[inner].mean() - 159.5
    azimuth = np.degrees(np.arctan2(-right, down)) % 360
    assert (azimuth - moved.facts.sun_azimuth + 180) % 360 - 180 == pytest.approx(0, abs=8)


@pytest.mark.parametrize("azimuth", [20, 135, 290])
def test_the_sun_is_found_on_craters(azimuth):
    places = [(40 + 60 * i, 40 + 60 * j) for i in range(5) for j in range(5)]
    col, row = (torch.tensor([float(p[k]) for p in places]) for k in (0, 1))
    craters = crater_table(torch.zeros(25), col, row, torch.full((25,), 20.0), degradation=0.3)
    image = light.sunlit(stamp_craters(flat((1, 320, 320), 1.0), craters), azimuth, 65)[0][0].numpy()
    boxes = np.array([(x - 10, y - 10, 20, 20) for x, y in places])
    assert sun_from_craters(image, boxes) == pytest.approx(azimuth, abs=6)
    assert np.isnan(sun_from_craters(image, boxes[:5]))


def test_a_simulated_strip_holds_what_it_says():
    made = draw_strip(("descent stage", "pit"), np.random.default_rng(2), 320, rubble=True)
    assert made.image.dtype == np.uint8
    assert made.image.min() >= 1
    for number, target in enumerate(made.targets, 1):
        rows, cols = np.nonzero(made.mask == number)
        assert np.hypot(cols.mean() + 0.5 - target.col, rows.mean() + 0.5 - target.row) < 4
        assert (made.touched[made.mask == number] == number).all()
    assert set(made.terrain) == {"compression", "fresh rim", "rubble", "shadow edge", "bright spot"}
    assert made.terrain["compression"].sum() == 192**2


# ---- patches -----------------------------------------------------------------------------------------------------


def marked(side: int, rows: slice, cols: slice) -> Strip:
    """A strip with one thing that fills a rectangle."""
    mask = np.zeros((side, side), np.uint8)
    mask[rows, cols] = 1
    middle = (cols.start + cols.stop) / 2, (rows.start + rows.stop) / 2
    image = np.random.default_rng(0).integers(1, 255, (side, side)).astype(np.uint8)
    return Strip(image, np.ones(mask.shape, bool), strip().facts, (Target("probe", *middle, 3.0),), mask, mask)


def test_a_small_thing_is_in_the_four_patches_that_overlap_there():
    """Patches begin at 16, 48, 80, …: a thing at 100 lies in those that begin at 48 and at 80, in rows and columns."""
    owner, home = owners(marked(256, slice(98, 102), slice(98, 102)))
    assert owner.shape == (6, 6)
    assert np.argwhere(owner == 0).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert (owner[owner != 0] == BACKGROUND).all()
    assert np.argwhere(home).tolist() in ([[1, 1]], [[1, 2]], [[2, 1]], [[2, 2]])


def test_patches_that_hold_little_of_a_thing_are_left_out():
    owner, home = owners(marked(256, slice(84, 108), slice(60, 140)))
    assert set(np.unique(owner)) == {0, BACKGROUND, LEFT_OUT}
    assert home.sum() == 1
    assert owner[home][0] == 0
    assert owner[1, 0] == LEFT_OUT  # columns 16 to 79 hold 20 of its 80
    assert owner[2, 2] == 0  # columns 80 to 143 hold 60


def test_invalid_pixels_leave_patches_out():
    whole = marked(256, slice(98, 102), slice(98, 102))
    whole.valid[200:, :] = False
    owner, _ = owners(whole)
    assert (owner[-1] == LEFT_OUT).all()


def test_on_a_map_with_the_same_stride_a_patch_is_its_own_cell():
    """The tool's cell (k, l) of 32 px is the middle of the patch (k − 1, l − 1)."""
    cells = np.arange(64.0).reshape(8, 8)
    assert np.array_equal(patch_scores(cells, (256, 256)), cells[1:-1, 1:-1])


def test_on_a_map_of_pixels_a_patch_takes_the_highest_inside():
    heat = np.zeros((256, 256))
    heat[100, 100] = 7
    assert np.array_equal(
        patch_scores(heat, (256, 256)) == 7, owners(marked(256, slice(98, 102), slice(98, 102)))[0] == 0
    )


def test_coarse_and_uneven_maps_fit_too():
    assert patch_scores(np.ones((2, 2)), (256, 256)).shape == (6, 6)
    assert patch_scores(np.ones((32, 25)), (1000, 800)).shape == (29, 23)
    assert np.isnan(patch_scores(np.full((8, 8), np.nan), (256, 256))).all()
    with pytest.raises(DataError, match="does not fit"):
        patch_scores(np.ones((3, 8)), (256, 256))


def test_scores_in_units_of_their_own_strip_keep_their_order():
    scores = np.random.default_rng(0).exponential(3, (20, 20))
    even = in_own_spread(scores)
    assert np.array_equal(np.argsort(even.ravel()), np.argsort(scores.ravel()))
    assert in_own_spread(1000 + 50 * scores) == pytest.approx(even)
    assert np.median(even) == pytest.approx(0)
    scores[0, 0] = np.nan
    assert in_own_spread(scores)[0, 0] == in_own_spread(scores).min()
    assert np.isfinite(in_own_spread(np.zeros((3, 3)))).all()


# ---- what they are worth -----------------------------------------------------------------------------------------


def three() -> list[Strip]:
    return [marked(256, slice(r, r + 4), slice(c, c + 4)) for r, c in ((98, 98), (60, 150), (170, 90))]


def test_a_perfect_scorer_is_perfect_and_chance_is_chance():
    def score(strip: Strip) -> dict[str, np.ndarray]:
        return {"perfect": (strip.mask > 0).astype(float), "blind": np.zeros(strip.image.shape)}

    measured = ranking.measure(ranking.sample(three(), score))
    perfect, blind = measured["perfect"]["probe"], measured["blind"]["probe"]
    assert perfect["things"] == 3
    assert perfect["ap"] == perfect["patr"] == perfect["found_in_top_100"] == perfect["ks"] == 1
    assert perfect["ap_as_published"] == pytest.approx(1 / 3)
    assert perfect["improvement"] == pytest.approx(perfect["eomv"]) == pytest.approx(1 / perfect["base_rate"])
    assert blind["ap"] == pytest.approx(blind["base_rate"]) == pytest.approx(3 / (3 + perfect["background"]))
    assert measured["perfect"]["all"] == perfect


def test_false_alarms_say_what_fooled_a_scorer():
    strips = [
        Strip(s.image, s.valid, s.facts, s.targets, s.mask, s.touched, {"rubble": np.indices(s.image.shape)[1] > 200})
        for s in three()
    ]
    made = ranking.sample(strips, lambda s: {"rubble lover": np.indices(s.image.shape)[1].astype(float)})
    alarms = ranking.false_alarms(made, top=6)
    assert alarms["rubble lover"]["rubble"] == 1
    assert alarms["all background"]["rubble"] < 0.5
    assert "decoy" not in alarms["rubble lover"]  # there are none in these strips


def test_the_same_ground_again_is_not_counted_as_distinct():
    made = ranking.sample(three(), lambda s: {"x": np.zeros(s.image.shape)})
    assert 0 < ranking.distinct(made, three()) <= 9
