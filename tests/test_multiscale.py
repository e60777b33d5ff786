"""The network that looks at four sizes at once, the things it learns from, and what it is told of them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lunar_processing.networks.multiscale import (
    BLOCK,
    LINES,
    LOUD,
    NEAR,
    PAIRS,
    ROUGH,
    STRIDE,
    WINDOWS,
    MultiScale,
    Strangeness,
    foretelling,
    in_blocks,
    relief,
)
from lunar_processing.simulate import strange
from lunar_processing.simulate.stock import Stock
from lunar_processing.training.data import dice
from lunar_processing.training.recipes import anomalies as recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def ground(count: int = 1, side: int = 256, seed: int = 0) -> torch.Tensor:
    """Soft hills with grain, about 0.3…0.7."""
    coarse = torch.rand(count, 1, side // 16, side // 16, generator=dice(seed, 0))
    hills = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    return 0.3 + 0.3 * hills + 0.02 * torch.randn(count, 1, side, side, generator=dice(seed, 1))


def network(seed: int = 0) -> MultiScale:
    torch.manual_seed(seed)
    return MultiScale(widths=(8, 8, 8, 8)).eval()


# ---- what the network sees ---------------------------------------------------------------------------------------


def test_brighter_ground_is_the_same_ground():
    torch.testing.assert_close(relief(ground() + 0.2), relief(ground()), atol=2e-3, rtol=0)


def test_of_twice_the_contrast_half_is_forgotten():
    seen, twice = relief(0.3 * ground()), relief(0.6 * ground())
    assert float((twice * seen).sum() / (seen * seen).sum()) == pytest.approx(math.sqrt(2), rel=0.02)


def test_what_is_not_valid_is_not_seen():
    image, valid = ground(), torch.ones(1, 1, 256, 256, dtype=torch.bool)
    valid[..., 100:140, 60:200] = False
    garbage = torch.where(valid, image, 55.0)
    with torch.inference_mode():
        torch.testing.assert_close(network()(garbage, valid), network()(image, valid))


def test_a_gap_is_as_dull_as_the_mean_around_it():
    valid = torch.ones(1, 1, 256, 256, dtype=torch.bool)
    valid[..., 96:160, 96:160] = False
    assert (relief(ground(), valid)[..., 24:40, 24:40] == 0).all()


def test_a_score_depends_on_nothing_beyond_its_halo():
    """Else the tiles of a strip would show."""
    image, net = ground(side=1024), network()
    with torch.inference_mode():
        whole, part = net(image), net(image[..., 256:768, 256:768])
        heat, heat_part = net.heat(image), net.heat(image[..., 256:768, 256:768])
    halo = 192
    torch.testing.assert_close(part[..., 12:20, 12:20], whole[..., 28:36, 28:36], atol=1e-4, rtol=1e-3)
    inner = slice(halo, 512 - halo)
    outer = slice(256 + halo, 768 - halo)
    torch.testing.assert_close(heat_part[..., inner, inner], heat[..., outer, outer], atol=1e-4, rtol=1e-3)


def test_the_edge_of_an_image_is_no_stranger_in_a_frame_of_nothing():
    """So tiles at the edge of a strip come."""
    image, net = ground(), network()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.bias, 0.5)  # or nothing comes of nothing
    framed = torch.nn.functional.pad(image, (64, 64, 64, 64), value=0.5)
    valid = torch.nn.functional.pad(torch.ones_like(image, dtype=torch.bool), (64, 64, 64, 64))
    with torch.inference_mode():
        alone, inside = net(image), net(framed, valid)[..., 4:-4, 4:-4]
    away = (alone - inside).abs()[..., 1:-1, 1:-1].mean()
    assert away < 0.05 * alone.std()


def found(
    windows: tuple[float, ...], surprise: float = 0.0, rough: float = 0.0, line: float = 0.0, pair: float = 0.0
) -> Strangeness:
    """One place of so many logits."""
    parts = (windows, (surprise, rough), (line, pair))
    sizes, unforetold, lines = (torch.tensor(some)[None, :, None, None] for some in parts)
    return Strangeness(sizes, torch.zeros(1, 1, 4, 4), unforetold, lines)


def worth(windows: tuple[float, ...], net: MultiScale | None = None, **beside: float) -> torch.Tensor:
    return (net or network()).together(found(windows, **beside)).flatten()


def test_each_size_counts_from_ordinary_ground_to_what_is_rare_in_it():
    net = network()
    net.ordinary, net.rare = torch.tensor([-4.0] + 8 * [0.0]), torch.tensor([-2.0] + 8 * [1.0])
    assert worth((-2.0, 0.0, 0.0, 0.0), net=net).amax() == pytest.approx(1.0)
    assert worth((-4.0, 0.0, 0.0, 0.0), net=net).amax() == pytest.approx(0.0)


def test_what_counts_is_the_look_from_near_and_the_size_is_that_of_the_strangest_window():
    small, large = worth((2.0, 0.5, 0.0, 0.0)), worth((0.5, 0.0, 0.0, 2.0))
    assert (int(small.argmax()), int(large.argmax())) == (0, 3)
    assert small.amax() == pytest.approx(2.0)
    assert large.amax() == pytest.approx(NEAR * 0.5 + (1 - NEAR) * 2.0)


def test_surprise_and_roughness_count_where_they_are_rare():
    quiet = worth((1.0, 0.0, 0.0, 0.0))
    torch.testing.assert_close(worth((1.0, 0.0, 0.0, 0.0), surprise=0.9, rough=0.9), quiet)
    torch.testing.assert_close(worth((1.0, 0.0, 0.0, 0.0), surprise=1.25), quiet + LOUD * 0.5)
    torch.testing.assert_close(worth((1.0, 0.0, 0.0, 0.0), rough=1.25), quiet + ROUGH * 0.25)


def test_lines_count_everywhere_and_pairs_of_them_where_they_are_rare():
    plain = worth((1.0, 0.0, 0.0, 0.0))
    torch.testing.assert_close(worth((1.0, 0.0, 0.0, 0.0), line=0.5), plain + LINES * 0.5)
    torch.testing.assert_close(worth((1.0, 0.0, 0.0, 0.0), pair=0.9), plain)
    torch.testing.assert_close(worth((1.0, 0.0, 0.0, 0.0), pair=1.5), plain + PAIRS * 0.5)


def test_a_convolution_of_blocks_is_that_of_their_pixels():
    image, kernel = ground(), torch.randn(9, 9, generator=dice(4, 0))
    wanted = torch.nn.functional.conv2d(image, kernel[None, None], padding=4)
    blocks = torch.nn.functional.pixel_unshuffle(image, BLOCK)
    made = torch.nn.functional.conv2d(blocks, in_blocks(kernel), padding=1)
    torch.testing.assert_close(torch.nn.functional.pixel_shuffle(made, BLOCK), wanted, atol=1e-4, rtol=1e-4)


def test_what_the_ground_does_not_foretell_is_a_surprise():
    image, net = ground(), network()
    net.foretelling = foretelling([relief(ground(4, seed=1))])
    image[..., 130:136, 130:136] = 1.0
    with torch.inference_mode():
        surprise = net.look(image).surprise[0, 0]
    assert int(surprise.argmax()) == 8 * 16 + 8
    assert surprise[8, 8] > surprise.flatten().quantile(0.99)


def test_ground_strewn_with_small_things_is_rough():
    """None of them need be as much of a surprise as the one in its other half."""
    image, net, grain = ground(), network(), torch.randn(64, 64, generator=dice(6, 0))
    net.foretelling = foretelling([relief(ground(4, seed=1))])
    image[..., 64:128, 64:128] += 0.06 * grain
    image[..., 199:202, 199:202] += 1.0
    with torch.inference_mode():
        sharp, rough = net.look(image).surprise[0]
    assert int(sharp.argmax()) == 12 * 16 + 12
    row, col = divmod(int(rough.argmax()), 16)
    assert 4 < row < 7
    assert 4 < col < 7


def test_the_benchmark_of_ideas_sees_the_features_and_each_part_of_the_score():
    from benchmarks import anomaly_ideas as benchmark

    image, net = ground(), network()
    with torch.inference_mode():
        assert [tuple(one.shape) for one in benchmark.features(net, image)] == [(8, 16, 16), (8, 16, 16)]
        found = net.look(benchmark._ready(image[0, 0].numpy()))
    parts = benchmark.opinions(net)
    seen = [
        parts[name](image[0, 0].numpy(), None, None) for name in ("surprise", "roughness", "lines", "pairs of lines")
    ]
    wanted = torch.cat([found.surprise, found.lines], dim=1)[0].numpy()
    assert all((one == part).all() for one, part in zip(seen, wanted))


def test_the_edge_of_a_gap_is_no_surprise():
    image, valid, net = ground(), torch.ones(1, 1, 256, 256, dtype=torch.bool), network()
    net.foretelling = foretelling([relief(ground(4, seed=1))])
    valid[..., 96:160, 96:160] = False
    with torch.inference_mode():
        whole, gap = (net.look(image, seen).surprise for seen in (None, valid))
    assert (gap <= whole + 0.7).all()  # the mean around is another one
    assert (gap[..., 6:10, 6:10] < whole.amin()).all()


def lined(image: torch.Tensor, degrees: float, length: int, beside: tuple[float, ...] = (0.0,)) -> torch.Tensor:
    """Dark lines through the middle of an image, a pixel wide, three times as dark as its grain is rough."""
    rows, cols = torch.meshgrid(torch.arange(256) - 136.0, torch.arange(256) - 136.0, indexing="ij")
    turn = torch.tensor(math.radians(degrees))
    along, across = cols * turn.cos() + rows * turn.sin(), rows * turn.cos() - cols * turn.sin()
    on = torch.stack([(across - place).abs() < 0.5 for place in beside]).any(dim=0) & (along.abs() < length / 2)
    return image - 0.06 * on


def lines(image: torch.Tensor, which: int = 0) -> torch.Tensor:
    """What is found of lines (0) or pairs of them (1), one value for 16 px."""
    net = network()
    net.foretelling = foretelling([relief(ground(4, seed=1))])
    with torch.inference_mode():
        return net.look(image).lines[0, which]


@pytest.mark.parametrize("degrees", [4, 19, 41, 64, 86, 109, 131, 154])
def test_a_line_in_any_direction_is_seen_where_it_runs(degrees):
    found_in = lines(lined(ground(), degrees, length=48))
    assert found_in[7:10, 7:10].amax() > 1.2 * found_in[:5].amax()


def test_what_runs_along_rows_and_columns_as_the_stripes_of_a_camera_do_counts_less():
    slanting, *straight = (lines(lined(ground(), degrees, length=48))[7:10, 7:10].amax() for degrees in (4, 0, 90))
    assert max(straight) < 0.9 * slanting


def test_two_lines_as_wheels_leave_them_are_stranger_than_one():
    one, two = (lines(lined(ground(), 86, 48, beside), 1)[7:10, 7:10].amax() for beside in ((0.0,), (-2.0, 2.0)))
    assert two > 1.5 * one


def test_the_edge_of_a_gap_is_no_line():
    image, valid, net = ground(), torch.ones(1, 1, 256, 256, dtype=torch.bool), network()
    net.foretelling = foretelling([relief(ground(4, seed=1))])
    valid[..., 96:160, 96:160] = False
    with torch.inference_mode():
        whole, gap = (net.look(image, seen).lines for seen in (None, valid))
    assert (gap.amax(dim=(2, 3)) < 1.1 * whole.amax(dim=(2, 3))).all()
    assert (gap[0, 0, 7:9, 7:9] < whole[0, 0].amin()).all()


def test_every_size_and_every_pixel_gets_a_score():
    with torch.inference_mode():
        assert network()(ground(2)[..., :250, :131]).shape == (2, len(WINDOWS), 16, 9)
        assert network().heat(ground(2)[..., :250, :131]).shape == (2, 1, 250, 131)


# ---- what it learns from -----------------------------------------------------------------------------------------


def planted(unnamed: float = 2.0, **more) -> tuple[torch.Tensor, strange.Planted]:
    image = ground(4)[:, 0]
    sun, size = torch.full((4,), 90.0), torch.full((4,), 0.5)
    return image, strange.plant(image, sun, size, dice(1, 0), unnamed=unnamed, **more)


def test_the_same_numbers_plant_the_same_things():
    assert torch.equal(planted()[1].image, planted()[1].image)


def test_without_things_only_ordinary_ground_is_planted():
    image, made = planted(unnamed=0.0)
    assert not made.strange.any()
    assert not made.unsure.any()
    assert len(made.diameter_px) == 0
    assert (made.image != image).any()  # craters and rocks, so that nobody learns what planting looks like


def test_things_change_the_pixels_that_are_called_strange():
    image, made = planted()
    assert made.strange.any()
    change = (made.image - image).abs()
    assert change[made.strange].mean() > 5 * change[~made.strange & ~made.unsure].mean()


def stocked(azimuth: float = 90.0, names: tuple[str, ...] = ("probe",), each: float = 4.0, seed: int = 2):
    image = ground(4)[:, 0]
    shelf = Stock(names, each_kind=8)
    return image, shelf, shelf.put(image, torch.full((4,), azimuth), each, dice(seed, 0))


def test_objects_of_the_simulator_come_from_a_shelf():
    image, shelf, made = stocked(names=("probe", "rover track"))
    assert made.strange.any()
    assert len(made.diameter_px) > 4
    change = (made.image - image).abs()
    assert change[made.strange].mean() > 5 * change[~made.strange].mean()
    assert set(shelf.kinds) == {"probe", "rover track", ""}


def test_worn_craters_of_the_shelf_are_ground():
    image, _, made = stocked(each=0.0)
    assert (made.image != image).any()
    assert len(made.diameter_px) == 0
    assert not made.strange.any()


@pytest.mark.parametrize("azimuth", [20.0, 160.0, 250.0])
def test_shadows_of_the_shelf_point_away_from_the_sun_of_the_image(azimuth):
    _, _, made = stocked(azimuth, each=6.0)
    right, down = math.sin(math.radians(azimuth)), -math.cos(math.radians(azimuth))  # towards the sun
    off = []
    for scene, col, row in zip(made.scene.tolist(), made.col.tolist(), made.row.tolist()):
        rows, cols = (slice(max(0, int(at) - 24), int(at) + 25) for at in (row, col))
        dark = (made.image[scene, rows, cols] < 0.05).nonzero().float()
        if len(dark) > 20:
            away = dark.mean(0) + torch.tensor([rows.start, cols.start]) - torch.tensor([row, col])
            off.append(float(away[1] * right + away[0] * down))
    assert len(off) > 5
    assert sum(value < 0 for value in off) > 0.8 * len(off)


def test_two_that_were_planted_in_turn_are_told_together():
    _, first = planted()
    second = Stock(("pit",), each_kind=4).put(first.image, torch.full((4,), 90.0), 2.0, dice(3, 0))
    both = strange.joined(first, second)
    assert torch.equal(both.strange, first.strange | second.strange)
    assert torch.equal(both.image, second.image)
    assert len(both.seen) == len(first.seen) + len(second.seen)


def test_nobody_is_asked_to_find_what_lies_in_shadow():
    image = ground(4)[:, 0]
    image[:, :, 128:] = -1.0
    made = strange.plant(image, torch.full((4,), 90.0), torch.full((4,), 0.5), dice(1, 0), unnamed=8.0)
    assert made.strange[:, :, :120].any()
    assert not made.strange[:, :, 134:].any()


# ---- what it is told ---------------------------------------------------------------------------------------------


def thing(col: float, row: float, diameter: float, seen: float = 0.5) -> strange.Planted:
    """One thing, a square, in an image of 256 px."""
    nothing = torch.zeros(1, 256, 256, dtype=torch.bool)
    body = nothing.clone()
    half = diameter / 2
    body[:, max(0, int(row - half)) : int(row + half), max(0, int(col - half)) : int(col + half)] = True
    numbers = (torch.tensor([value]) for value in (col, row, diameter, seen))
    return strange.Planted(torch.zeros(1, 256, 256), body, nothing, torch.tensor([0]), *numbers)


@pytest.mark.parametrize(("diameter", "fits"), [(6, 32), (20, 32), (40, 64), (80, 128), (170, 256)])
def test_a_thing_belongs_to_the_window_that_fits_it(diameter, fits):
    targets = recipe.window_targets(thing(120, 136, diameter))[0]
    cell = targets[:, 136 // STRIDE, 120 // STRIDE]
    for side, target in zip(WINDOWS, cell.tolist()):
        if side == fits:
            assert target == 1
        elif side >= 8 * diameter / recipe.FULL:
            assert target == 0  # lost in so large a window
        else:
            assert target == recipe.UNKNOWN


def test_of_a_slim_thing_only_where_it_lies():
    made = thing(128, 128, 150)
    track = torch.zeros(1, 256, 256, dtype=torch.bool)
    track[0, 126:130, 60:196] = True
    targets = recipe.window_targets(dataclasses.replace(made, strange=track))[0, WINDOWS.index(256)]
    assert (targets[7:9, 5:11] == 1).all()
    assert (targets[3:5, 5:11] == recipe.UNKNOWN).all()  # beside it, in its square
    assert (targets[0] == 0).all()


def test_windows_far_from_everything_are_ordinary():
    targets = recipe.window_targets(thing(24, 24, 20))[0]
    assert (targets[:2, 8:, 8:] == 0).all()


def test_a_thing_that_can_hardly_be_seen_is_no_lesson():
    targets = recipe.window_targets(thing(120, 136, 20, seen=0.01))[0]
    assert not (targets == 1).any()
    assert (targets[:, 8, 7] == recipe.UNKNOWN).all()


def test_pixels_are_told_in_blocks_of_four():
    made = thing(120, 136, 20)
    mask = torch.zeros(1, 256, 256, dtype=torch.bool)
    mask[0, 9, 17] = True
    targets = recipe.pixel_targets(dataclasses.replace(made, strange=mask, unsure=mask.roll(8, 2)))
    assert targets.shape == (1, 1, 64, 64)
    assert targets[0, 0, 2, 4] == 1
    assert targets[0, 0, 2, 6] == recipe.UNKNOWN
    assert int((targets != 0).sum()) == 2
