"""What `rocks-orbital` learns from: scenes with rocks and shadows, rocks planted into real ground, middles of rocks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lunar_processing.networks.rocknet import CELL, RockNet, against_surroundings
from lunar_processing.training.data import UNKNOWN, Picture, dice
from lunar_processing.training.loop import Plan, train
from lunar_processing.training.recipes import Lesson
from lunar_processing.training.recipes.rocks import (
    ORBITAL,
    ROCK,
    SHADOW,
    bright_spots,
    middles,
    moons,
    overlap,
    plant,
    sampler,
    validation,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def ground(size: int = 96, azimuth: float = 270.0, incidence: float = 70.0) -> Picture:
    """A plain, a little noisy, whose sun is known; product of its own."""
    pixels = 0.5 + 0.01 * np.random.default_rng(0).random((size, size), dtype=np.float32)
    there = np.ones((size, size), bool)
    return Picture("plain", "M1", pixels, there, np.zeros((size, size), np.uint8), azimuth, 0.5, incidence)


# ---- the truth ---------------------------------------------------------------------------------------------------


def test_middles_rise_from_the_rim_and_fall_where_rocks_touch() -> None:
    parts = torch.zeros(1, 12, 20, dtype=torch.long)
    parts[0, 2:9, 2:9] = 5
    parts[0, 2:9, 9:16] = 9
    middle = middles(parts)[0]
    assert (middle[parts[0] == 0] == 0).all()
    assert middle[5, 5] == middle[5, 12] == 1
    assert middle[5, 8] == middle[5, 9] == 0  # where they touch
    assert (middle[5, 2:5].diff() > 0).all()


def test_a_scene_has_rocks_shadows_and_pixels_of_which_nobody_can_say() -> None:
    batch = moons(96, 4, seed=3)
    assert batch["image"].shape == (4, 1, 96, 96)
    assert set(batch["mask"].unique().tolist()) <= {0, ROCK, SHADOW, UNKNOWN}
    assert ((batch["mask"] == ROCK).any(), (batch["mask"] == SHADOW).any()) == (True, True)
    assert (batch["middle"][:, 0][batch["mask"] == 0] == 0).all()
    assert batch["shadows"].all()
    assert all(torch.equal(values, moons(96, 4, seed=3)[name]) for name, values in batch.items())


def test_planted_rocks_have_a_bright_face_and_a_shadow_and_leave_the_rest_alone() -> None:
    image = torch.full((8, 1, 128, 128), 0.6)
    batch = {
        "image": image,
        "valid": torch.ones_like(image, dtype=torch.bool),
        "mask": torch.zeros(8, 128, 128, dtype=torch.long),
        "pixel_size": torch.full((8,), 0.5),
        "sun_azimuth": torch.full((8,), 270.0),  # in the west: shadows point to the right
        "incidence": torch.full((8,), 70.0),
    }
    planted = plant(batch, seed=2)
    mask, changed = planted["mask"], planted["image"] / 0.6
    assert (mask == ROCK).any()
    assert changed[:, 0][mask == SHADOW].mean() < 0.4
    far = torch.nn.functional.max_pool2d((mask != 0)[:, None].float(), 9, 1, 4) == 0
    assert (changed[far] - 1).abs().max() < 0.05  # a penumbra
    rock = (mask == ROCK)[:, None].float()
    right = torch.roll(rock, 4, dims=-1) * (1 - rock) > 0
    left = torch.roll(rock, -4, dims=-1) * (1 - rock) > 0
    assert changed[right].mean() < 0.8 * changed[left].mean()
    assert not planted["shadows"].any()  # the ground's own shadows are not marked


def test_where_a_rock_may_be_already_nothing_is_said() -> None:
    known = replace(ground(), mask=np.full((96, 96), UNKNOWN, np.uint8))
    batch = sampler([known], 64, 4, seed=0)(0)
    planted = [k for k in range(4) if not batch["shadows"][k]]
    assert planted
    assert all(not (batch["mask"][k] == 0).any() for k in planted)


def test_batches_depend_on_seed_and_step_alone() -> None:
    one, other = (sampler([ground()], 64, 4, seed=1) for _ in range(2))
    one(0), one(40)
    for step in (7, 40):
        for name, values in other(step).items():
            assert torch.equal(values, one(step)[name]), name
    assert not torch.equal(one(0)["image"], one(1)["image"])
    assert sampler([], 64, 4, seed=1)(0)["shadows"].all()  # without real images all is simulated


def test_bright_spots_change_the_image_and_not_the_truth() -> None:
    batch = moons(64, 4, seed=1)
    spotted = bright_spots({name: torch.cat([v] * 4) for name, v in batch.items()}, dice(0, 0))
    assert (spotted["image"] >= torch.cat([batch["image"]] * 4)).all()
    assert (spotted["image"] > torch.cat([batch["image"]] * 4) + 0.1).any()
    assert torch.equal(spotted["mask"], torch.cat([batch["mask"]] * 4))


def test_validation_stands_under_four_suns() -> None:
    pictures = validation(48)
    assert len({p.product for p in pictures}) == 4
    assert all(p.mask is not None and set(np.unique(p.mask)) <= {0, ROCK, UNKNOWN} for p in pictures)


# ---- the network -------------------------------------------------------------------------------------------------


def test_surroundings_do_not_care_for_brightness_and_contrast() -> None:
    image = torch.rand(1, 1, 64, 64, generator=dice(0, 0))
    changed = 0.2 + 3.0 * image
    one, other = against_surroundings(image), against_surroundings(changed)
    assert (one - other).abs().max() < 0.3  # but for what keeps even ground from being stretched without end
    assert one.abs().max() <= 8


def test_a_pixel_sees_no_further_than_the_halo_of_the_card() -> None:
    net = RockNet(8).eval()
    image = torch.rand(1, 1, 256, 256, generator=dice(0, 0))
    other = image.clone()
    reach = ORBITAL.card.halo
    other[..., 128 + reach + CELL :] = 0.3
    with torch.inference_mode():
        assert torch.equal(net(image)[..., :128], net(other)[..., :128])


def test_it_learns_from_masks_alone(tmp_path) -> None:
    """As a user has them: no middles, no shadows."""

    def batch(step: int) -> dict[str, torch.Tensor]:
        made = moons(64, 4, seed=step % 2)
        mask = made["mask"].masked_fill(made["mask"] == SHADOW, 0)
        return {"image": made["image"], "valid": made["valid"], "mask": mask}

    torch.manual_seed(0)
    lesson = Lesson(ORBITAL, RockNet(8), batch, validation(48), 48, 3e-3)
    losses: list[float] = []
    train(ORBITAL.task(lesson), Plan(steps=24, device="cpu", validations=1, warmup=1), tmp_path,
          tell=lambda line: losses.append(sum(line["losses"].values())) if "losses" in line else None)  # fmt: skip
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0] or len(losses) == 1


def test_overlap_of_what_is_not_there_is_unknown() -> None:
    assert math.isnan(overlap({"right": 0.0, "true": 0.0, "seen": 3.0, "either": 3.0})["iou"])
