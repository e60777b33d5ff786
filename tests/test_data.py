"""What is learnt from: products stay whole, batches depend on seed and step alone, shares are what was asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lunar_processing.errors import DataError
from lunar_processing.training import data
from lunar_processing.training.data import MIDDLE, SPLITS, UNKNOWN, Picture


def numbered(name: str, height: int = 80, width: int = 120, *, rock: tuple[int, int] | None = None) -> Picture:
    """A picture whose every pixel says where it is: row + column / 1000."""
    row, col = np.mgrid[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    if rock:
        mask[rock] = 1
    image = (row + col / 1000).astype(np.float32)
    return Picture(name, data.product_id(name), image, np.ones((height, width), bool), mask, 90.0, 0.5)


def place(window: torch.Tensor) -> tuple[int, int]:
    """Where a window of a numbered picture was cut."""
    value = float(window.flatten()[0])
    return int(value), round((value - int(value)) * 1000)


# ---- products ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("M115143943RE_cal_echo_2_2.png", "M115143943"),
        ("M115143943_mosaic_train_small.png", "M115143943"),
        ("nac/M1183658592LE_cal_echo_23_0.png", "M1183658592"),
        ("M143947267L.cal.echo.crop.cub", "M143947267"),
        ("m104318871le.img", "M104318871"),
        ("M104318871RC", "M104318871"),
        ("TC1S2B0_01_05186N225E0040_mini.img", "TC1S2B0_01_05186N225E0040"),
        ("PCAM12.png", "PCAM12"),
        ("SM1234567890_map.tif", "SM1234567890_map"),  # another name that only holds one
        ("landing_site.tif", "landing_site"),
    ],
)
def test_product_of_a_name(name, product):
    assert data.product_id(name) == product


def test_splits_are_disjoint_and_neighbouring_orbits_stay_together():
    for parts in SPLITS.values():
        data.check_disjoint(parts)
        assert set(parts) == {"train", "validation", "test"}
    where = {product: part for part, products in SPLITS["nac_cdr"].items() for product in products}
    assert where["M161142858"] == where["M161149639"]
    assert where["M180000082"] == where["M180007222"]


def test_splits_name_every_real_product(real_data):
    products = {data.product_id(path.name) for path in (real_data / "nac_cdr").glob("*.png")}
    assert products == {p for some in SPLITS["nac_cdr"].values() for p in some}


def test_a_split_by_name_keeps_single_frames_with_their_mosaic():
    pictures = [numbered(n) for n in ("M115143943RE_a", "M115143943_mosaic", "M134022629_mosaic", "M115143943LE_b")]
    parts = data.split(pictures, {"train": ["M115143943"], "validation": ["M134022629"]})
    assert [p.name for p in parts["train"]] == ["M115143943RE_a", "M115143943_mosaic", "M115143943LE_b"]
    assert [p.name for p in parts["validation"]] == ["M134022629_mosaic"]


def test_a_product_in_two_parts_is_refused():
    with pytest.raises(DataError, match="M1 is in both train and test"):
        data.check_disjoint({"train": ["M1", "M2"], "test": ["M3", "M1"]})


def test_a_product_in_no_part_is_refused():
    with pytest.raises(DataError, match="PCAM12"):
        data.split([numbered("PCAM12")], {"train": ["PCAM1"]})


@pytest.mark.parametrize("seed", range(5))
def test_split_by_product_keeps_products_whole_and_about_the_share(seed):
    pictures = [numbered(f"M1{n:08d}{side}E") for n in range(10) for side in "LR"]
    parts = data.split_by_product(pictures, 0.3, seed)
    data.check_disjoint({name: {p.product for p in some} for name, some in parts.items()})
    assert len(parts["train"]) + len(parts["validation"]) == 20
    assert len(parts["validation"]) == 6
    again = data.split_by_product(pictures[::-1], 0.3, seed)
    assert {p.name for p in again["validation"]} == {p.name for p in parts["validation"]}


def test_split_by_product_always_leaves_something_on_both_sides():
    large, small = numbered("a", 200, 200), numbered("b", 20, 20)
    for seed in range(4):
        parts = data.split_by_product([large, small], 0.2, seed)
        assert [len(parts["train"]), len(parts["validation"])] == [1, 1]


def test_one_product_cannot_be_split_and_the_cure_is_named():
    with pytest.raises(DataError, match="one product") as refused:
        data.split_by_product([numbered("M115143943RE_a"), numbered("M115143943_mosaic")])
    assert "--validation" in refused.value.cure
    assert "--split area" in refused.value.cure


def test_split_by_area_shares_no_ground():
    parts = data.split_by_area([numbered("a", 50, 200)], 0.25, gap=20)
    columns = {name: {place(v)[1] for v in torch.from_numpy(some[0].image).flatten()} for name, some in parts.items()}
    assert columns["train"] == set(range(130))
    assert columns["validation"] == set(range(150, 200))
    assert parts["train"][0].mask.shape == parts["train"][0].image.shape
    with pytest.raises(DataError, match="too narrow"):
        data.split_by_area([numbered("a", 50, 30)])


# ---- pictures ----------------------------------------------------------------------------------------------------


def test_a_picture_is_scaled_as_the_tools_scale_it():
    pixels, valid = np.arange(10_000.0).reshape(100, 100), np.ones((100, 100), bool)
    valid[:10] = False
    made = data.picture("a", pixels, valid)
    low, high = np.percentile(pixels[valid], (0.5, 99.5))
    np.testing.assert_allclose(made.image[valid], (pixels[valid] - low) / (high - low), atol=1e-6)
    assert (made.image[~valid] == MIDDLE).all()
    given = data.picture("a", pixels, valid, limits=(0, 20_000))
    np.testing.assert_allclose(given.image[valid], pixels[valid] / 20_000, atol=1e-6)
    assert math.isnan(made.sun_azimuth)
    assert math.isnan(made.pixel_size)


def test_a_picture_of_one_value_or_none():
    assert (data.picture("flat", np.full((8, 8), 7.0)).image == 0).all()
    with pytest.raises(DataError, match="no valid pixel"):
        data.picture("empty", np.ones((8, 8)), np.zeros((8, 8), bool))


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(DataError, match=r"mask of a has 8 × 9 pixels, the image has 8 × 8") as refused:
        data.picture("a", np.ones((8, 8)), mask=np.zeros((9, 8)))
    assert "gdalwarp" in refused.value.cure


def test_a_bank_gives_back_what_was_saved(tmp_path):
    pictures = [numbered("M115143943RE_a", rock=(3, 4)), data.picture("b", np.random.default_rng(0).random((9, 7)))]
    data.save_pictures(tmp_path / "bank.safetensors", pictures)
    for before, after in zip(pictures, data.load_pictures(tmp_path / "bank.safetensors")):
        assert (before.name, before.product) == (after.name, after.product)
        np.testing.assert_array_equal(before.image, after.image)
        np.testing.assert_array_equal(before.valid, after.valid)
        np.testing.assert_array_equal(before.mask, after.mask)
        np.testing.assert_array_equal([before.sun_azimuth, before.pixel_size], [after.sun_azimuth, after.pixel_size])
    (tmp_path / "bank.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="holds no pictures"):
        data.load_pictures(tmp_path / "bank.safetensors")


# ---- samplers ----------------------------------------------------------------------------------------------------


def test_a_batch_depends_on_seed_and_step_alone():
    pictures = [numbered("a", rock=(40, 60)), numbered("b", 64, 64)]
    forward = [data.crops(pictures, 32, 4, seed=5, on_objects=0.5)(step) for step in range(6)]
    sampler = data.crops(pictures, 32, 4, seed=5, on_objects=0.5)
    for step in (5, 0, 3, 3, 1):
        for name, values in sampler(step).items():
            torch.testing.assert_close(values, forward[step][name], rtol=0, atol=0, equal_nan=True)
    other = data.crops(pictures, 32, 4, seed=6, on_objects=0.5)
    assert not torch.equal(other(0)["image"], forward[0]["image"])
    assert not torch.equal(forward[0]["image"], forward[1]["image"])


def test_seeds_of_neighbours_share_nothing():
    seeds = [data.mix(seed, step) for seed in range(30) for step in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    bits = np.array([[seed >> k & 1 for k in range(63)] for seed in seeds])
    assert abs(bits.mean(axis=0) - 0.5).max() < 0.04


def test_crops_are_whole_windows_from_everywhere():
    picture = numbered("a", 80, 120)
    sampler = data.crops([picture], 32, 64, seed=1)
    places = []
    for step in range(10):
        batch = sampler(step)
        assert batch["image"].shape == (64, 1, 32, 32)
        assert batch["mask"].shape == (64, 32, 32)
        for window in batch["image"][:, 0]:
            row, col = place(window)
            places.append((row, col))
            np.testing.assert_array_equal(window.numpy(), picture.image[row : row + 32, col : col + 32])
    rows, cols = np.array(places).T
    assert (rows.min(), rows.max()) == (0, 48)
    assert (cols.min(), cols.max()) == (0, 88)


def test_larger_pictures_are_seen_more_often():
    sampler = data.crops([numbered("a", 100, 100), numbered("b", 100, 300)], 16, 100, seed=2)
    shares = [float((sampler(step)["image"].amax(dim=(1, 2, 3)) % 1 > 0.1).float().mean()) for step in range(20)]
    # A window of b begins right of column 100 in about two thirds of its cases; a never does.
    assert np.mean(shares) == pytest.approx(0.75 * 0.7, abs=0.06)


def test_windows_that_are_aimed_at_rocks_hold_them_anywhere():
    sampler = data.crops([numbered("a", 200, 200, rock=(100, 120)), numbered("b", 200, 200)], 32, 50, on_objects=0.6)
    found = [torch.nonzero(mask) for step in range(10) for mask in sampler(step)["mask"]]
    held = [where[0].tolist() for where in found if len(where)]
    assert len(held) / len(found) == pytest.approx(0.6, abs=0.07)
    rows, cols = np.array(held).T
    assert rows.std() > 6
    assert cols.std() > 6


def test_unlabelled_pixels_are_no_objects():
    picture = numbered("a")
    picture.mask[:] = UNKNOWN
    picture.mask[10, 10] = 0
    assert data.crops([picture], 32, 4, on_objects=1.0)(0)["image"].shape == (4, 1, 32, 32)


def test_a_small_picture_is_framed_with_nothing():
    batch = data.crops([numbered("a", 20, 50)], 32, 2)(0)
    assert batch["valid"][0, 0].sum() == 20 * 32
    assert (batch["image"][~batch["valid"]] == MIDDLE).all()
    assert (batch["mask"][~batch["valid"][:, 0]] == UNKNOWN).all()


def test_without_pictures_there_is_nothing_to_learn():
    with pytest.raises(DataError, match="no picture"):
        data.crops([], 32, 2)


def plain(value: float, batch: int) -> data.Sampler:
    return lambda step: {"image": torch.full((batch, 1, 4, 4), value), "only": torch.zeros(batch)} if value else {
        "image": torch.full((batch, 1, 4, 4), value)
    }  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.1, 0.33, 0.5, 0.9, 1.0])
def test_mixing_keeps_the_share(share):
    sampler = data.mixed(plain(1.0, 8), plain(0.0, 8), share, 8)
    batches = [sampler(step)["image"] for step in range(100)]
    assert {len(batch) for batch in batches} == {8}
    assert np.mean([float(batch.mean()) for batch in batches]) == pytest.approx(share, abs=1 / 800)


def test_a_share_beyond_everything_is_refused():
    with pytest.raises(DataError, match=r"share of 1\.5"):
        data.mixed(plain(1.0, 2), plain(0.0, 2), 1.5, 2)


def test_windows_to_validate_on_cover_each_product_once():
    pictures = [numbered("M115143943RE_a", 64, 96), numbered("M115143943_mosaic", 32, 32), numbered("PCAM1", 40, 70)]
    found = data.windows(pictures, 32, batch=4)
    assert {name: [len(b["image"]) for b in some] for name, some in found.items()} == {
        "M115143943": [4, 3],
        "PCAM1": [2],
    }
    assert len({place(w) for b in found["M115143943"] for w in b["image"][:, 0]}) == 6  # one of them is of the mosaic
    assert sum(len(b["image"]) for b in data.windows(pictures, 32, most=3)["M115143943"]) == 3


def test_simulated_scenes_are_batches_like_any_other():
    sampler = data.simulated("rocks", 64, 8, seed=3)
    batch, again = sampler(4), sampler(4)
    real = data.crops([numbered("a")], 64, 8)(0)
    assert set(batch) == set(real)
    for name, values in batch.items():
        assert (values.shape, values.dtype) == (real[name].shape, real[name].dtype), name
        assert torch.equal(values, again[name])
    low, high = data.percentiles(batch["image"][:, 0])
    torch.testing.assert_close(low, torch.zeros_like(low), atol=1e-5, rtol=0)
    torch.testing.assert_close(high, torch.ones_like(high), atol=1e-5, rtol=0)
    assert set(batch["mask"].unique().tolist()) == {0, 1}
    assert not torch.equal(sampler(5)["image"], batch["image"])
    assert (
        data.mixed(data.crops([numbered("a")], 64, 4), data.simulated("rocks", 64, 4), 0.5, 4)(0)["image"].shape[0] == 4
    )
