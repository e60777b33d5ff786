"""A varied batch is still true: the sun stands where the shadows say, masks lie on their rocks, sizes are right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lunar_processing.errors import ParameterError
from lunar_processing.training.augment import (
    AUGMENTATIONS,
    CANDIDATES,
    LITTLE,
    POLICIES,
    augment,
    mine,
    mined,
    multiplied,
    one_of,
    vary,
)
from lunar_processing.training.data import MIDDLE, UNKNOWN, dice

SHIFTS, ZOOMS = ("translate", "translate_x", "translate_y"), ("zoom", "zoom_in", "zoom_out")
GEOMETRY = ("flip_horizontal", "flip_vertical", "turn", "rotate", "shear", *ZOOMS, *SHIFTS)
STRENGTH = {"rotate": 180.0, "shear": 0.2, **dict.fromkeys(ZOOMS, 1.4), **dict.fromkeys(SHIFTS, 0.15)}
EXACT = ("flip_horizontal", "flip_vertical", "turn")


def lit_rock(azimuth: float, size: int = 65, radius: float = 9.0) -> dict[str, torch.Tensor]:
    """A bright disc with a shadow on the side away from the sun; azimuth clockwise from up."""
    row, col = np.mgrid[:size, :size] - size // 2
    east, down = np.sin(np.radians(azimuth)), -np.cos(np.radians(azimuth))
    rock = row**2 + col**2 < radius**2
    shadow = (row + radius * down) ** 2 + (col + radius * east) ** 2 < radius**2
    image = np.where(rock, 0.9, np.where(shadow, 0.1, 0.5)).astype(np.float32)
    return {
        "image": torch.from_numpy(image)[None, None],
        "valid": torch.ones(1, 1, size, size, dtype=torch.bool),
        "mask": torch.from_numpy(rock).long()[None],
        "sun_azimuth": torch.tensor([float(azimuth)]),
        "pixel_size": torch.tensor([0.5]),
    }


def centre(weights: torch.Tensor) -> np.ndarray:
    row, col = np.mgrid[: weights.shape[-2], : weights.shape[-1]]
    w = weights.double().numpy().reshape(row.shape)
    return np.array([(col * w).sum(), (row * w).sum()]) / w.sum()


def sun_by_shadow(batch: dict[str, torch.Tensor]) -> float:
    """Degrees clockwise from up, from the shadow's middle to the rock's."""
    col, row = centre(batch["mask"] == 1) - centre(batch["image"] < 0.2)
    return float(np.degrees(np.arctan2(col, -row)) % 360)


def alone(name: str, often: float = 1.0) -> dict[str, tuple[float, float]]:
    return {name: (often, STRENGTH.get(name, 0.3))}


def same_angle(a: float, b: float, within: float) -> bool:
    return abs((a - b + 180) % 360 - 180) < within


@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize("azimuth", [0, 30, 110, 200, 290])
def test_the_sun_stands_where_the_shadow_says(name, azimuth):
    before = lit_rock(azimuth)
    assert same_angle(sun_by_shadow(before), azimuth, 1.5)
    for seed in range(6):
        after = augment(before, alone(name), dice(seed, 0))
        assert 0 <= float(after["sun_azimuth"]) < 360
        # A sheared disc is no disc, and half a pixel between mask and image is a few degrees of so small a rock.
        within = 4 if name in {"shear", *SHIFTS} else 2
        assert same_angle(sun_by_shadow(after), float(after["sun_azimuth"]), within)


@pytest.mark.parametrize("name", GEOMETRY)
def test_masks_and_validity_go_with_the_image(name):
    for seed in range(6):
        after = augment(lit_rock(70), alone(name), dice(seed, 3))
        bright = (after["image"] > 0.7)[:, 0]
        assert ((after["mask"] == 1) != bright).float().sum() < 30  # pixels of the outline
        assert set(after["mask"].unique().tolist()) <= {0, 1, UNKNOWN}
        assert torch.equal(after["mask"] == UNKNOWN, ~after["valid"][:, 0])
        assert (after["image"][~after["valid"]] - MIDDLE).abs().max() < 0.41 if (~after["valid"]).any() else True


@pytest.mark.parametrize("name", EXACT)
def test_flips_and_right_angles_lose_nothing(name):
    batch = {"image": torch.rand(4, 1, 16, 16), "mask": torch.randint(0, 4, (4, 16, 16))}
    after = augment(batch, alone(name), dice(1, 1))
    for key, values in batch.items():
        for before, now in zip(values, after[key]):
            assert torch.equal(before.flatten().sort().values, now.flatten().sort().values)
    assert not torch.equal(after["image"], batch["image"])


def test_a_turn_is_counter_clockwise_and_so_is_its_sun():
    batch = {"image": torch.zeros(64, 1, 4, 4), "sun_azimuth": torch.full((64,), 90.0)}
    batch["image"][:, 0, 1, 3] = 1.0  # lit at the right, where the sun stands
    after = augment(batch, alone("turn"), dice(0, 0))
    for image, sun in zip(after["image"][:, 0], after["sun_azimuth"].tolist()):
        row, col = divmod(int(image.argmax()), 4)
        assert {0.0: (0, 1), 270.0: (2, 0), 180.0: (3, 2)}[sun] == (row, col)
    assert len(after["sun_azimuth"].unique()) == 3


def test_rotation_by_a_known_angle_is_that_of_the_image():
    """A quarter by interpolation is the same as the exact quarter."""
    batch = lit_rock(40)
    warped = AUGMENTATIONS["rotate"](batch, torch.tensor([True]), torch.tensor([[1.0, 0, 0]]), 90.0)
    torch.testing.assert_close(warped["image"], batch["image"].rot90(-1, (-2, -1)), atol=1e-4, rtol=0)
    assert float(warped["sun_azimuth"]) == pytest.approx(130)


def test_zoom_changes_size_and_pixel_size_together():
    for seed in range(6):
        before = lit_rock(90, size=257, radius=50.5)
        after = augment(before, alone("zoom"), dice(seed, 0))
        metres = [float((b["mask"] == 1).sum() * b["pixel_size"] ** 2) for b in (before, after)]
        assert metres[0] == pytest.approx(metres[1], rel=0.03)
    assert float(after["pixel_size"]) != 0.5


def test_brightness_leaves_what_was_never_seen():
    batch = lit_rock(0)
    batch["valid"][..., :10] = False
    batch["image"][..., :10] = MIDDLE
    for name in ("brightness", "contrast", "noise"):
        after = augment(batch, alone(name), dice(2, 0))
        assert (after["image"][..., :10] == MIDDLE).all()
        assert (after["image"][..., 10:] != batch["image"][..., 10:]).any()
        assert torch.equal(after["mask"], batch["mask"])


def test_noise_has_the_strength_it_was_drawn_with():
    batch = {"image": torch.zeros(1, 1, 128, 128)}
    noisy = AUGMENTATIONS["noise"](batch, torch.tensor([True]), torch.tensor([[0.5, 0.1, 0.2]]), 0.2)
    assert noisy["image"].std().item() == pytest.approx(0.1, rel=0.03)


def test_a_cut_out_hides_a_square_and_asks_nothing_there():
    after = augment(lit_rock(0), {"cut_out": (1.0, 0.5)}, dice(5, 0))
    hole = ~after["valid"][0, 0]
    rows, cols = hole.any(dim=1).sum(), hole.any(dim=0).sum()
    assert hole.sum() == rows * cols > 0
    assert abs(int(rows) - int(cols)) <= 1
    assert (after["image"][0, 0][hole] == MIDDLE).all()
    assert (after["mask"][0][hole] == UNKNOWN).all()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_how_often_is_what_the_policy_says(name):
    batch = {"image": torch.rand(400, 1, 8, 8)}
    after = augment(batch, alone(name, 0.3), dice(0, 0))
    changed = (after["image"] != batch["image"]).flatten(1).any(dim=1).float().mean().item()
    assert changed == pytest.approx(0.3, abs=0.08)
    assert torch.equal(augment(batch, alone(name, 0.0), dice(0, 0))["image"], batch["image"])


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_seed_gives_the_same_and_keeps_the_batch_whole(name):
    batch = {key: value.repeat(3, *[1] * (value.dim() - 1)) for key, value in lit_rock(10).items()}
    once, again = (augment(batch, POLICIES[name], dice(9, 4)) for _ in range(2))
    for key, value in batch.items():
        assert torch.equal(once[key], again[key])
        assert (once[key].shape, once[key].dtype) == (value.shape, value.dtype)
    if name != "none":
        assert not torch.equal(once["image"], augment(batch, POLICIES[name], dice(9, 5))["image"])
    assert torch.equal(batch["image"][0], lit_rock(10)["image"][0])  # the batch itself is left alone


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ParameterError, match="'spin'"):
        augment(lit_rock(0), {"spin": (1.0, 1.0)}, dice(0, 0))


def test_images_alone_are_continued_by_their_reflection():
    """With their validity they are not: what was never seen is told to be so."""
    batch = {"image": torch.linspace(0, 1, 32).repeat(1, 1, 32, 1)}
    moved = augment(batch, {"translate_x": (1.0, 0.5)}, dice(1, 0))["image"][0, 0, 0]
    turning = int(moved.argmin()), int(moved.argmax())
    assert 0 < turning[0] < 31 or 0 < turning[1] < 31
    assert moved.diff().abs().max() < 1.5 / 31
    seen = {**batch, "valid": torch.ones_like(batch["image"], dtype=torch.bool)}
    assert not augment(seen, {"translate_x": (1.0, 0.5)}, dice(1, 0))["valid"].all()


def test_zooms_in_are_larger_and_zooms_out_smaller():
    rock = {key: value.repeat(20, *[1] * (value.dim() - 1)) for key, value in lit_rock(0).items()}
    before = (rock["mask"] == 1).sum(dim=(1, 2))
    for name, sign in (("zoom_in", 1), ("zoom_out", -1)):
        after = augment(rock, alone(name), dice(3, 0))
        larger = sign * ((after["mask"] == 1).sum(dim=(1, 2)) - before)
        assert larger.min() >= 0
        assert larger.float().mean() > 40
        assert (sign * (0.5 - after["pixel_size"]) > 0).all()


# ---- MineAug -----------------------------------------------------------------------------------------------------


def stripes(count: int = 64, size: int = 16) -> torch.Tensor:
    """Level stripes of any phase: as a set they are the same moved up or down, not turned, and not darker."""
    rows = torch.arange(size)[:, None] * 2 * torch.pi / size
    phases = 2 * torch.pi * torch.rand(count, 1, 1, 1, generator=dice(1, 0))
    return 0.5 + 0.3 * torch.sin(rows + phases).expand(-1, 1, -1, size)


def test_what_suits_is_found_by_how_far_it_takes_the_set_away():
    def look(images):  # mean, and how much there is along and across
        return torch.stack([images.mean((1, 2, 3)), images.diff(dim=2).abs().mean((1, 2, 3)),
                            images.diff(dim=3).abs().mean((1, 2, 3))], dim=1)  # fmt: skip

    scored = mine(stripes(), look, lambda a, b: float((a.mean(0) - b.mean(0)).abs().sum()), dice(0, 0),
                  ("turn", "brightness", "flip_vertical", "flip_horizontal", "noise"))  # fmt: skip
    by_name = {one.name: one for one in scored}
    assert mined(scored, keep=1) == ("flip_vertical",)
    assert by_name["turn"].distance > 10 * by_name["flip_vertical"].distance
    # What changes nothing is nearest of all, and of no use: it comes last and is not kept.
    assert by_name["flip_horizontal"].change == 0 == by_name["flip_horizontal"].distance
    assert [one.name for one in scored if not one.changes] == [one.name for one in scored[-2:]]
    assert not set(mined(scored, keep=5)) & {"flip_horizontal", "noise"}
    assert by_name["noise"].change < LITTLE < by_name["flip_vertical"].change


def test_the_change_is_that_of_images_from_minus_one_to_one():
    images = torch.zeros(4, 1, 8, 8)
    images[..., :4] = 1.0
    (one,) = mine(images, lambda x: x, lambda a, b: 0.0, dice(0, 0), ("flip_horizontal",))
    assert one.change == 4.0


@pytest.mark.parametrize("name", CANDIDATES)
def test_candidates_change_every_image_and_leave_its_range(name):
    images = torch.rand(8, 1, 32, 32, generator=dice(4, 0))
    varied = vary(images, name, dice(0, 0))
    assert varied.shape == images.shape
    assert (varied.min() >= 0) & (varied.max() <= 1)
    assert (varied != images).flatten(1).any(dim=1).all()


def test_a_set_is_multiplied_by_varied_copies():
    images = torch.rand(900, 1, 4, 4, generator=dice(4, 0))
    shown = multiplied(images, ("flip_horizontal", "flip_vertical"), dice(0, 0))
    ways = [images, images.flip(-1), images.flip(-2)]
    shares = [(shown == way).flatten(1).all(dim=1).float().mean().item() for way in ways]
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.06)
    assert torch.equal(multiplied(images, (), dice(0, 0)), images)
    with pytest.raises(ParameterError, match="'spin'"):
        multiplied(images, ("spin",), dice(0, 0))


def test_other_families_are_varied_with_all_that_goes_along():
    """Masks, validity, the sun and the pixel size."""
    batch = {key: value.repeat(60, *[1] * (value.dim() - 1)) for key, value in lit_rock(30).items()}
    varied = one_of(batch, ("flip_horizontal", "zoom_in"), dice(2, 0))
    mirrored, larger = (varied["sun_azimuth"] - 30).abs() > 1, varied["pixel_size"] < 0.5
    assert 10 < mirrored.sum() < 30
    assert 10 < larger.sum() < 30
    assert not (mirrored & larger).any()
    for sample in torch.nonzero(mirrored)[:3, 0].tolist():
        part = {key: value[sample : sample + 1] for key, value in varied.items()}
        assert same_angle(sun_by_shadow(part), 330, 2)
