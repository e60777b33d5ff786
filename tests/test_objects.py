"""Strange things: each changes the ground as it should, lies in its mask, and has the size that was asked for."""

from __future__ import annotations

import math

import pytest
import torch

from lunar_processing.errors import ParameterError
from lunar_processing.simulate import light, objects
from lunar_processing.simulate.objects import OBJECTS, place, thing_table
from lunar_processing.simulate.scenes import generator
from lunar_processing.simulate.terrain import flat

PIXEL = 0.5


def one(name: str, size_m: float, pixel: float = PIXEL, azimuth: float = 90.0, form=0.5):
    """A plain with one object in its middle: ground, mask."""
    width = 2 * math.ceil(OBJECTS[name].reach * size_m / pixel / 2) + 41
    things = thing_table(name, 0, width / 2, width / 2, [size_m], azimuth, form)
    return place(flat((1, width, width), pixel, 0.12), things)


@pytest.mark.parametrize("name", list(OBJECTS))
def test_an_object_changes_the_ground_in_its_mask_and_not_far_from_it(name):
    size = sum(OBJECTS[name].size_m) / 2
    ground, mask = one(name, size)
    inside = mask[0] == objects.kind_number(name)
    changed = (ground.height[0].abs() > 0.01) | ((ground.albedo[0] - 0.12).abs() > 0.002)
    assert int(inside.sum()) > 3
    assert float(changed[inside].float().mean()) > 0.5
    edge = torch.cat([ground.height[0, 0], ground.height[0, -1], ground.height[0, :, 0], ground.height[0, :, -1]])
    assert float(edge.abs().max()) < 0.02  # nothing is cut off
    assert bool(torch.isfinite(ground.height).all())
    assert 0 < float(ground.albedo.min()) <= float(ground.albedo.max()) <= objects.BRIGHTEST


@pytest.mark.parametrize("name", list(OBJECTS))
def test_an_object_can_be_seen(name):
    ground, mask = one(name, OBJECTS[name].size_m[1])
    image, _ = light.sunlit(ground, 300.0, 60.0)
    plain = image[0, 2, 2]
    assert float((image[0] - plain).abs()[mask[0] > 0].mean()) > 0.03 * float(plain)


@pytest.mark.parametrize("name", ["pit", "impact scar", "fresh crater", "irregular mare patch"])
def test_round_things_are_as_wide_as_they_are_said_to_be(name):
    size = OBJECTS[name].size_m[1]
    _, mask = one(name, size, form=0.0)
    area = float((mask > 0).sum()) * PIXEL**2
    assert 2 * math.sqrt(area / math.pi) == pytest.approx(size, rel=0.15)


@pytest.mark.parametrize(("azimuth", "wide"), [(90.0, True), (0.0, False)])
def test_long_things_point_where_their_azimuth_says(azimuth, wide):
    for name in ("rockfall", "rover track", "ridge", "scarp"):
        _, mask = one(name, 100.0, azimuth=azimuth)
        row, col = (mask[0] > 0).nonzero(as_tuple=True)
        assert (int(col.max() - col.min()) > 2 * int(row.max() - row.min())) == wide
        assert int(max(col.max() - col.min(), row.max() - row.min())) == pytest.approx(100 / PIXEL, rel=0.12)


def test_the_floor_of_a_pit_lies_in_shadow_when_the_sun_is_low():
    ground, _ = one("pit", 50.0)
    _, seen = light.sunlit(ground, 90.0, 75.0)
    middle = seen.shape[-1] // 2
    assert float(seen[0, middle, middle]) < 0.05
    assert float(ground.height[0, middle, middle]) < -0.3 * 50


def test_a_rockfall_ends_in_a_boulder_that_stands_above_its_track():
    ground, mask = one("rockfall", 100.0, azimuth=90.0)
    height, inside = ground.height[0], mask[0] > 0
    right = (torch.arange(height.shape[1]) > height.shape[1] // 2 + 0.8 * 50 / PIXEL)[None].expand_as(inside)
    left = (torch.arange(height.shape[1]) < height.shape[1] // 2)[None].expand_as(inside)
    assert float(height[inside & right].max()) > 1.5
    assert float(height[inside & left].min()) < -0.3
    assert float(height[left].max()) < 1.0


def test_a_descent_stage_is_as_high_and_bright_as_one():
    ground, mask = one("descent stage", 9.0, pixel=0.25)
    assert 2.0 < float(ground.height.max()) < 4.5
    assert float(ground.albedo[mask > 0].mean()) > 0.25
    assert int((mask > 0).sum()) * 0.0625 > 12  # m²


def test_a_rover_leaves_two_ruts():
    ground, _ = one("rover track", 40.0, pixel=0.1, form=0.0)
    across = ground.height[0, :, ground.shape[2] // 2]
    ruts = ((across[1:-1] < across[:-2]) & (across[1:-1] <= across[2:]) & (across[1:-1] < -0.05)).sum()
    assert int(ruts) == 2


def test_rocks_tracks_and_pits_are_younger_than_craters_and_ridges_older():
    things = thing_table(["pit", "ridge"], 0, [100.0, 300.0], [200.0, 200.0], [40.0, 120.0])
    plain = flat((1, 400, 400), PIXEL)
    _, young = place(plain, things, young=True)
    _, old = place(plain, things, young=False)
    _, both = place(plain, things)
    assert young.unique().tolist() == [0, objects.kind_number("pit")]
    assert old.unique().tolist() == [0, objects.kind_number("ridge")]
    assert int((both > 0).sum()) == int((young > 0).sum() + (old > 0).sum())


def test_objects_are_drawn_in_their_sizes_and_numbers():
    things = objects.draw_things((200, 512, 512), 1.0, 1.5, ["probe", "pit"], generator(0))
    assert len(things) == pytest.approx(300, abs=60)
    assert set(things.names) == {"probe", "pit"}
    for name in ("probe", "pit"):
        sizes = things.size_m[things.kind == objects.kind_number(name)]
        low, high = OBJECTS[name].size_m
        assert low <= float(sizes.min()) < float(sizes.max()) <= high
    small = objects.draw_things((50, 64, 64), 0.5, 1.0, ["ridge"], generator(1))
    assert float(small.size_m.max()) <= 0.8 * 32 + 1e-3


def test_kinds_that_must_be_there_are_in_every_scene_far_enough_apart_to_be_seen():
    kinds = ["pit", "descent stage", "probe", "ridge"]
    things = objects.draw_things((60, 288, 288), 1.0, 2.0, kinds, generator(0), 16, of_each_kind=1)
    assert len(things) == 60 * 4  # as many as must be are more than 2 on average: no further ones
    for scene in range(60):
        here = things.scene == scene
        assert sorted(things.kind[here].tolist()) == sorted(objects.kind_number(kind) for kind in kinds)
        quarter = things.col[here] // 144 + 2 * (things.row[here] // 144)
        assert sorted(quarter.tolist()) == [0, 1, 2, 3]
    more = objects.draw_things((60, 288, 288), 1.0, 3.0, ["pit"], generator(0), 16, of_each_kind=1)
    assert torch.bincount(more.scene).min() == 1
    assert len(more) == pytest.approx(180, abs=40)
    assert bool((more.scene.diff() >= 0).all())


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (lambda: thing_table("teapot", 0, 1, 1, [1.0]), "teapot"),
        (lambda: thing_table("pit", 0, 1, 1, [-4.0]), "size of an object"),
        (lambda: objects.draw_things((1, 64, 64), 1.0, -1, ["pit"], generator(0)), "objects a scene"),
        (lambda: objects.draw_things((1, 64, 64), 1.0, 1, ["face"], generator(0)), "face"),
    ],
)
def test_impossible_objects_are_refused_with_the_cure(wrong, word):
    with pytest.raises(ParameterError, match=word) as error:
        wrong()
    assert error.value.cure
