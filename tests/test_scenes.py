"""Scenes: the same seed gives the same bytes, truth and picture agree, and what cannot be is refused."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lunar_processing.errors import DeviceError, ImageError, ParameterError
from lunar_processing.simulate import bank, scenes
from lunar_processing.simulate.scenes import RECIPES, SceneRecipe, draw

SMALL = 96


def tensors(made: scenes.Scenes) -> dict[str, torch.Tensor]:
    """All tensors of a batch by name, tables too."""
    found = {}
    for name, value in vars(made).items():
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif dataclasses.is_dataclass(value):
            found |= {f"{name}.{k}": v for k, v in vars(value).items() if isinstance(v, torch.Tensor)}
    return found


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_moon(recipe):
    first, again, other = draw(recipe, 3, 7, size=SMALL), draw(recipe, 3, 7, size=SMALL), draw(recipe, 3, 8, size=SMALL)
    for name, value in tensors(first).items():
        assert torch.equal(value, tensors(again)[name]), name
    assert not torch.equal(first.image, other.image)


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_recipe_gives_whole_pictures(recipe):
    made = draw(recipe, 5, 1, size=SMALL)
    assert len(made) == 5
    assert made.image.shape == made.ideal.shape == made.classes.shape == (5, SMALL, SMALL)
    assert made.image.dtype == torch.float32
    for name, value in tensors(made).items():
        assert bool(torch.isfinite(value.float()).all()), name
    assert float(made.ideal.min()) >= 0
    assert bool((made.image.flatten(1).std(dim=1) > 0).all())
    assert float(made.lit.min()) >= 0
    assert float(made.lit.max()) <= 1
    assert made.ground.height.device.type == "cpu"


def test_numbers_of_scenes_lie_in_the_ranges_of_their_recipe():
    made, recipe = draw("nac", 40, 3, size=32), RECIPES["nac"]
    for values, limits in (
        (made.pixel_size, recipe.pixel_size_m),
        (made.incidence, recipe.incidence_deg),
        (made.sun_azimuth, recipe.sun_azimuth_deg),
    ):
        assert limits[0] <= float(values.min()) < float(values.max()) <= limits[1]
        assert float(values.max() - values.min()) > 0.7 * (limits[1] - limits[0])


def test_a_scene_is_the_same_however_many_come_after_it_in_its_chunk(monkeypatch):
    """The chunk is how it is computed, not what: tables and light do not depend on it."""
    whole = draw("nac", 6, 4, size=SMALL)
    monkeypatch.setitem(scenes.CHUNK, "cpu", 2)
    split = draw("nac", 6, 4, size=SMALL)
    assert torch.equal(whole.craters.col, split.craters.col)
    assert torch.equal(whole.rock_id, split.rock_id)


def test_pixels_of_a_rock_are_where_the_table_says_and_as_many():
    recipe = dataclasses.replace(
        RECIPES["rocks"], crater_density=(1e-6, 2e-6), rock_share=(1e-2, 1e-2), rock_exponent=(2.2, 2.4), blocks=0.0
    )
    made = draw(recipe, 16, 5, size=192)
    rocks, size = made.rocks, made.pixel_size[made.rocks.scene]
    for scene, row, col in (made.rock_id > 0).nonzero()[::29].tolist():
        i = int(made.rock_id[scene, row, col]) - 1
        assert int(rocks.scene[i]) == scene
        away = math.hypot(col + 0.5 - float(rocks.col[i]), row + 0.5 - float(rocks.row[i])) * float(size[i])
        assert away < 0.8 * float(rocks.diameter_m[i]) / math.sqrt(float(rocks.axis_ratio[i])) + float(size[i])
    radius = rocks.diameter_m / 2 / size
    inside = (
        (rocks.col - radius > 4) & (rocks.col + radius < 188) & (rocks.row - radius > 4) & (rocks.row + radius < 188)
    )
    large = inside & (rocks.diameter_m / size > 5)
    counted = torch.bincount(made.rock_id.flatten().long(), minlength=len(rocks) + 1)[1:].float()
    expected = math.pi * radius**2
    assert int(large.sum()) > 20
    assert float((counted / expected)[large].median()) == pytest.approx(1.0, abs=0.05)


def test_classes_tell_rocks_by_their_size():
    made = draw("rocks", 6, 6, size=128)
    rock = made.rock_id > 0
    assert torch.equal(made.classes > 0, rock)
    diameter = made.rocks.diameter_m[(made.rock_id[rock] - 1).long()]
    assert torch.equal(made.classes[rock] == 2, diameter >= RECIPES["rocks"].large_rock_m)


def test_shadows_in_the_picture_are_where_no_sun_is_seen():
    made = draw(dataclasses.replace(RECIPES["nac"], incidence_deg=(75.0, 80.0)), 6, 2, size=160)
    dark = made.lit < 0.01
    assert 0.005 < float(dark.float().mean()) < 0.9
    assert float(made.reflectance[dark].max()) < 0.15 * float(made.reflectance[~dark].mean())  # scattered light
    # And the camera leaves them dark: read noise, echo and blur of their neighbours are all there is.
    assert float(made.image[dark].mean()) < 0.25 * float(made.image[~dark].mean())


def test_shadows_fall_into_the_scene_from_outside():
    """Near its sunward edge a scene is as often in shadow as elsewhere."""
    recipe = dataclasses.replace(
        RECIPES["nac"],
        incidence_deg=(70.0, 72.0),
        sun_azimuth_deg=(90.0, 90.0),
        crater_density=(0.08, 0.09),
        margin_px=32,
    )
    dark = (draw(recipe, 24, 3, size=96).lit < 0.5).float()
    assert float(dark[:, :, -4:].mean()) > 0.5 * float(dark.mean())


def test_permanent_shadow_sees_no_sun_and_little_light():
    made = draw("psr", 6, 2, size=64)
    assert float(made.lit.max()) == 0
    mean = made.ideal.mean(dim=(1, 2))
    assert float(mean.min()) >= 1.9
    assert float(mean.max()) <= 61
    assert float(made.reflectance.max()) < 1e-3


def test_a_lander_sees_ground_below_and_sky_above():
    made = draw("lander", 4, 3, size=96)
    sky = made.classes == 3
    assert bool(sky[:, 0].all())
    assert not bool(sky[:, -1].any())
    assert float(made.ideal[sky].max()) == 0
    assert set(made.classes.unique().tolist()) >= {0, 1, 3}
    rock = (made.classes == 1) | (made.classes == 2)
    assert torch.equal(rock, made.rock_id > 0)


def test_objects_lie_where_the_table_and_the_mask_say():
    made = draw(dataclasses.replace(RECIPES["anomalies"], objects_each=2.0), 12, 4, size=192)
    assert len(made.things) > 8
    hit = 0
    for i in range(len(made.things)):
        col, row = int(made.things.col[i]), int(made.things.row[i])
        assert 0 <= col < 192
        assert 0 <= row < 192
        reach = int(0.6 * float(made.things.size_m[i] / made.pixel_size[made.things.scene[i]])) + 2
        around = made.objects[
            made.things.scene[i], max(0, row - reach) : row + reach, max(0, col - reach) : col + reach
        ]
        hit += int(made.things.kind[i]) in around.unique().tolist()
    assert hit >= 0.9 * len(made.things)  # some are covered by a younger one
    assert set(made.objects.unique().tolist()) - {0} <= set(made.things.kind.tolist())


def test_other_sizes_than_powers_of_two():
    assert draw("nac", 1, 0, size=101).image.shape == (1, 101, 101)


@pytest.mark.parametrize(
    ("wrong", "error", "word"),
    [
        (lambda: draw("mars", 1, 0), ParameterError, "recipe 'mars'"),
        (lambda: draw("nac", 0, 0), ParameterError, "0 scenes"),
        (lambda: draw("nac", 1, 0, size=3), ParameterError, "3 px"),
        (lambda: draw("nac", 1, -1), ParameterError, "seed"),
        (lambda: draw("nac", 1, 0, device="cuda:7"), DeviceError, "cuda:7"),
        (lambda: draw("nac", 1, 0, device="quantum"), DeviceError, "quantum"),
        (lambda: SceneRecipe(pixel_size_m=(1.0, 0.5)), ParameterError, "pixel_size_m"),
        (lambda: SceneRecipe(pixel_size_m=(-1.0, 0.5)), ParameterError, "pixel_size_m"),
        (lambda: SceneRecipe(incidence_deg=(20.0, 95.0)), ParameterError, "incidence_deg"),
        (lambda: SceneRecipe(objects=("teapot",), objects_each=1), ParameterError, "teapot"),
        (lambda: SceneRecipe(photometry="phong"), ParameterError, "phong"),
        (lambda: SceneRecipe(margin_px=-1), ParameterError, "margin"),
    ],
)
def test_what_cannot_be_is_refused_with_the_cure(wrong, error, word):
    with pytest.raises(error, match=word) as raised:
        wrong()
    assert raised.value.cure


# ---- the bank


def test_a_bank_gives_back_what_was_drawn_with_fresh_noise(tmp_path, monkeypatch):
    monkeypatch.setattr(bank, "SHARD", 4)
    paths = bank.write_bank(tmp_path / "bank", "nac", 7, seed=3, size=64)
    assert len(paths) == 2
    shards = list(bank.read_bank(tmp_path / "bank", seed=0))
    assert [len(shard["ideal"]) for shard in shards] == [4, 4]
    drawn = draw("nac", 4, 3_000_000, size=64)
    assert torch.equal(shards[0]["ideal"], drawn.ideal)
    assert torch.equal(shards[0]["rock_id"], drawn.rock_id)
    other = next(iter(bank.read_bank(tmp_path / "bank", seed=1)))
    same = next(iter(bank.read_bank(tmp_path / "bank", seed=0)))
    assert torch.equal(same["image"], shards[0]["image"])
    assert not torch.equal(other["image"], shards[0]["image"])
    assert torch.equal(other["ideal"], shards[0]["ideal"])


def test_batches_of_a_bank_are_a_function_of_seed_and_step(tmp_path, monkeypatch):
    monkeypatch.setattr(bank, "SHARD", 4)
    bank.write_bank(tmp_path, "nac", 8, size=32)
    batch = bank.batches(tmp_path, batch=16, seed=5)
    seventh = batch(7)
    assert seventh["image"].shape == seventh["classes"].shape == (16, 32, 32)
    again = bank.batches(tmp_path, batch=16, seed=5)(7)
    assert all(torch.equal(again[name], value) for name, value in seventh.items())
    assert not torch.equal(batch(8)["incidence"], seventh["incidence"])
    # Scenes of both shards, each whole, and the same scene twice with noise of its own.
    known = torch.cat([shard["ideal"] for shard in bank.read_bank(tmp_path)])
    which = [int((known - scene).flatten(1).abs().amax(dim=1).argmin()) for scene in seventh["ideal"]]
    assert torch.equal(known[which], seventh["ideal"])
    assert min(which) < 4 <= max(which)
    first = which.index(max(set(which), key=which.count))
    second = which.index(which[first], first + 1)
    assert not torch.equal(seventh["image"][first], seventh["image"][second])
    with pytest.raises(ParameterError, match="Batches of 0"):
        bank.batches(tmp_path, batch=0)


def test_a_bank_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(bank, "SHARD", 2)
    first = bank.write_bank(tmp_path, "nac", 2, size=32)[0]
    before = first.stat().st_mtime_ns
    assert len(bank.write_bank(tmp_path, "nac", 4, size=32)) == 2
    assert first.stat().st_mtime_ns == before
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]


def test_no_bank_and_a_damaged_bank_are_told_apart(tmp_path):
    with pytest.raises(ImageError, match="no bank"):
        next(bank.read_bank(tmp_path))
    (tmp_path / "nac.safetensors").write_bytes(b"nothing")
    with pytest.raises(ImageError, match="damaged"):
        next(bank.read_bank(tmp_path))


# ---- speed


def test_drawing_is_not_slow():
    """A bound that only a blunder breaks; `benchmarks/simulator.py` measures."""
    import time

    draw("nac", 8, 0)
    started = time.process_time()
    draw("nac", 16, 1)
    assert (time.process_time() - started) / 16 < 0.6
