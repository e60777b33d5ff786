"""Rocks from the ground: what is learnt from, what is learnt, how it is measured, and the model that ships."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import formats
import numpy as np
import pytest
import rasterio
import shapely
import torch
from PIL import Image
from running import lunar, read_layer
from safetensors.torch import save_file

from lunar_processing.errors import DataError
from lunar_processing.evaluate.segmentation import confusion, mean_share, pooled, shares, together
from lunar_processing.modelpack import Card, Normalisation, find_pack, read_pack, save_pack
from lunar_processing.networks import FAMILIES
from lunar_processing.networks.encoders import ENCODERS
from lunar_processing.simulate import scenes
from lunar_processing.tools import surface_data
from lunar_processing.tools.train import Wishes, train_model
from lunar_processing.training.data import UNKNOWN, save_pictures
from lunar_processing.training.recipes import RECIPES, surface

SKY_ROWS = 20


def landscape(number: int, shape: tuple[int, int] = (64, 80)) -> tuple[np.ndarray, np.ndarray]:
    """Grey ground with noise under a black sky, a small rock and a large one; and its classes."""
    noise = np.random.default_rng(number)
    image = noise.normal(110, 8, shape).clip(1, 255)
    mask = np.zeros(shape, np.uint8)
    image[:SKY_ROWS], mask[:SKY_ROWS] = 0, surface.SKY
    left = 4 + 3 * number
    for side, kind, row in ((5, 1, 24), (22, 2, 36)):
        image[row : row + side, left : left + side] = 230
        mask[row : row + side, left : left + side] = kind
    return image.astype(np.uint8), mask


@pytest.fixture(scope="module")
def lander(tmp_path_factory) -> Path:
    """A folder as that of the published set: render/ and real/, each with images/ and masks/."""
    folder = tmp_path_factory.mktemp("lander")
    for part, count in (("render", 10), ("real", 2)):
        for name in ("images", "masks"):
            (folder / part / name).mkdir(parents=True)
        for number in range(count):
            for name, pixels in zip(("images", "masks"), landscape(number)):
                Image.fromarray(pixels).save(folder / part / name / f"{part}{number:02d}.png")
    return folder


# ---- what is learnt from -----------------------------------------------------------------------------------------


def test_the_published_split_keeps_49_21_and_30_of_100_and_is_always_the_same():
    names = [f"{n:03d}" for n in range(100)]
    parts = surface_data.published_split(names)
    assert {part: len(some) for part, some in parts.items()} == {"train": 49, "validation": 21, "test": 30}
    assert sorted(name for some in parts.values() for name in some) == names
    assert parts == surface_data.published_split(names)
    with pytest.raises(DataError, match="cannot be split"):
        surface_data.published_split(names[:3])


def test_a_black_sky_is_not_valid_for_a_tool_and_is_learnt_all_the_same(lander):
    one = surface_data.lander_view(lander / "render", "render")[0]
    assert not one.valid[:SKY_ROWS].any()
    assert one.valid[SKY_ROWS:].all()
    assert (one.mask[:SKY_ROWS] == surface.SKY).all()
    assert (one.image[:SKY_ROWS] < 0.01).all()
    shown = surface.as_the_tool_shows(one, unseen=0.2, halo=3)
    assert (shown.image[: SKY_ROWS + 3] == np.float32(0.2)).all()
    assert (shown.image[:, :3] == np.float32(0.2)).all()
    assert np.array_equal(shown.image[SKY_ROWS + 3 : -3, 3:-3], one.image[SKY_ROWS:])
    assert np.array_equal(shown.mask[3:-3, 3:-3], one.mask)
    assert (shown.mask == UNKNOWN).sum() == shown.mask.size - one.mask.size


def test_a_mask_with_an_unknown_class_is_refused_by_its_value(lander, tmp_path):
    for name, pixels in zip(("images", "masks"), landscape(0)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.where(pixels == 2, 7, pixels)).save(tmp_path / name / "a.png")
    with pytest.raises(DataError, match=r"holds the value 7.*small rock"):
        surface_data.lander_view(tmp_path, "render")
    (tmp_path / "masks" / "a.png").unlink()
    with pytest.raises(DataError, match="has no mask"):
        surface_data.lander_view(tmp_path, "render")


def test_what_nobody_drew_in_a_rover_frame_is_unknown(tmp_path):
    def drawn(category: int, left: int, side: int) -> dict:
        corners = [left, 10, left + side, 10, left + side, 10 + side, left, 10 + side]
        return {"image_id": 1, "category_id": category, "segmentation": [corners]}

    Image.fromarray(landscape(0)[0]).save(tmp_path / "frame.png")
    names = ("rock", "rover path", "rocky region")
    known = {
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
        "images": [{"id": 1, "file_name": "frame.png", "width": 80, "height": 64}],
        "annotations": [drawn(0, 2, 6), drawn(0, 20, 20), drawn(1, 45, 10), drawn(2, 60, 10)],
    }
    (tmp_path / surface_data.COCO).write_text(json.dumps(known))
    (frame,) = surface_data.rover_frames(tmp_path)
    counts = dict(zip(*np.unique(frame.mask, return_counts=True)))
    assert counts == {0: 100, 1: 36, 2: 400, UNKNOWN: 80 * 64 - 536}
    (tmp_path / surface_data.COCO).write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        surface_data.rover_frames(tmp_path)


def test_in_a_close_up_a_rock_is_as_large_as_it_looks(lander):
    whole = surface_data.lander_view(lander / "render", "render")
    near = surface_data.close_ups(whole[:1], factors=(2.0,))[0]
    assert near.image.shape == whole[0].image.shape
    assert near.product == surface.CLOSE_UP
    assert (near.mask == 2).sum() == pytest.approx(4 * 22**2, rel=0.2)
    assert set(np.unique(near.mask)) <= {0, 1, 2, 3}


def test_simulated_rocks_are_of_either_size_and_specks_are_not_asked_for():
    classes = torch.tensor([[[0, 1, 1, 2, 3]]]).repeat(1, 20, 1)
    rocks = torch.tensor([[[0, 1, 1, 2, 0]]]).repeat(1, 20, 1)
    rocks[0, :3, 3], rocks[0, 3:, 3] = 3, 4  # three pixels of one rock, seventeen of another
    mask = surface._visible(classes, rocks)
    assert mask[0, 10].tolist() == [0, surface.EITHER, surface.EITHER, surface.EITHER, 3]
    assert mask[0, 1, 3] == UNKNOWN


def test_views_are_seen_as_of_a_camera_that_looks_down(lander):
    whole = surface_data.lander_view(lander / "render", "render")[0]
    low = surface.lowered(whole, 3)
    assert (low.mask[:3] == surface.SKY).all()
    assert not (low.mask[3:] == surface.SKY).any()
    assert np.array_equal(low.image, whole.image[SKY_ROWS - 3 :])
    assert surface.lowered(low.cut(slice(3, None), slice(None)), 3).image.shape == low.image[3:].shape


def test_a_hidden_sky_may_end_above_the_ground_and_what_is_left_of_it_is_nearly_black():
    image, mask = landscape(0)
    count = 40
    pixels = torch.from_numpy(image / 255).float().repeat(count, 1, 1, 1)
    valid = torch.from_numpy(mask != surface.SKY).repeat(count, 1, 1, 1)
    batch = surface.hidden_sky({"image": pixels, "valid": valid}, torch.Generator().manual_seed(1))
    assert torch.equal(batch["image"][valid], pixels[valid])
    sky = batch["image"][:, 0, :SKY_ROWS]
    hidden = (sky == surface.UNSEEN).all(dim=2)
    assert set(range(SKY_ROWS + 1)) & set(hidden.sum(dim=1).tolist()) > {0, SKY_ROWS}
    assert all(bool(rows[:n].all()) for rows, n in zip(hidden, hidden.sum(dim=1).tolist()))  # from above
    assert sky[~hidden].max() <= surface.NEARLY_BLACK


def test_beyond_the_edge_of_an_image_nothing_is_seen_and_nothing_is_asked():
    image, mask = landscape(0)
    count = 40
    batch = {
        "image": torch.from_numpy(image / 255).float().repeat(count, 1, 1, 1) + 0.1,
        "valid": torch.ones(count, 1, *image.shape, dtype=torch.bool),
        "mask": torch.from_numpy(mask).long().repeat(count, 1, 1),
    }
    edged = surface.edged(batch, torch.Generator().manual_seed(1))
    beyond = edged["mask"] == UNKNOWN
    assert torch.equal(beyond, ~edged["valid"][:, 0])
    assert (edged["image"][:, 0][beyond] == surface.UNSEEN).all()
    assert torch.equal(edged["image"][:, 0][~beyond], batch["image"][:, 0][~beyond])
    assert not beyond[:, 32, 40].any()  # the middle is always there
    for row, col in ((32, 0), (32, -1), (0, 40), (-1, 40)):  # each side, in some of the windows
        assert 0 < beyond[:, row, col].sum() < count


# ---- what is learnt ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def banks(lander, tmp_path_factory) -> tuple[str, str]:
    """Pictures to learn from and to validate on, in two files."""
    folder = tmp_path_factory.mktemp("banks")
    parts = surface_data.published_split(surface_data.lander_view(lander / "render", "render"))
    save_pictures(folder / "train.safetensors", [*parts["train"], *surface_data.close_ups(parts["train"])])
    save_pictures(folder / "kept.safetensors", surface_data.lander_view(lander / "real", "real"))
    return str(folder / "train.safetensors"), str(folder / "kept.safetensors")


def wishes(recipe: str, banks: tuple[str, str], out: Path, **more: object) -> Wishes:
    return Wishes(recipe, [banks[0]], out, validation=[banks[1]], size=64, batch=2, device="cpu", **more)


@pytest.mark.parametrize("name", ["unet-published", "unet-published-repaired", "unet-mobilenetv3"])
def test_published_recipes_learn_from_whole_images(name, banks, tmp_path):
    done = train_model(wishes(name, banks, tmp_path / "m", steps=2))
    assert {"iou", "rock_iou", "iou/real"} <= set(done.outcome.measured)


def test_every_published_network_is_there_as_published_and_repaired():
    for name in surface.PUBLISHED:
        slip, repaired = RECIPES[name], RECIPES[f"{name}-repaired"]
        assert slip.card.settings != repaired.card.settings
        assert (slip.policy, repaired.policy) == ("published-slip", "published")


def test_rocks_surface_learns_from_renders_and_simulated_views_and_begins_with_weights_of_imagenet(
    banks, tmp_path, monkeypatch
):
    monkeypatch.setattr(surface, "POOL", 1)
    torch.manual_seed(3)
    given = {k: torch.rand_like(v) if v.is_floating_point() else v
             for k, v in ENCODERS[surface.SURFACE.card.settings["encoder"]]()[0].state_dict().items()}  # fmt: skip
    save_file({**given, "_fc.bias": torch.zeros(1000)}, tmp_path / "imagenet.safetensors")
    plan = wishes("rocks-surface", banks, tmp_path / "m", steps=2, encoder_weights=tmp_path / "imagenet.safetensors",
                  rate=1e-6)  # fmt: skip
    done = train_model(plan)
    card = json.loads((done.model / "model.json").read_text())
    assert len(card["training"]["encoder_weights"]) == 64
    assert {"iou/real", "rock_iou/real", "preference_small", "preference_large"} <= set(card["measured"])
    learnt = read_pack(done.model).network().encoder.state_dict()
    torch.testing.assert_close(learnt["_conv_stem.weight"], given["_conv_stem.weight"], atol=1e-3, rtol=0)


def test_frames_of_a_user_with_masks_of_the_four_classes_are_learnt_from(lander, tmp_path, monkeypatch):
    monkeypatch.setattr(surface, "POOL", 1)
    done = train_model(
        Wishes("rocks-surface", [str(lander / "render" / "images")], tmp_path / "m",
               labels=str(lander / "render" / "masks"), steps=1, size=64, batch=2, device="cpu")
    )  # fmt: skip
    assert done.pictures["train"] + done.pictures["validation"] == 10
    assert done.outcome.measured["iou"] > 0


def test_weights_that_do_not_fit_or_cannot_be_read_are_refused(banks, tmp_path):
    common = ["train", "rocks-surface", "--images", banks[0], "--validation", banks[1], "--out", tmp_path / "m"]
    (tmp_path / "vgg11.pth").write_bytes(b"PK")
    said = lunar(*common, "--encoder-weights", tmp_path / "vgg11.pth")
    assert said.code == 1
    assert ".safetensors" in said.err
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    said = lunar(*common, "--encoder-weights", tmp_path / "other.safetensors")
    assert said.code == 1
    assert "_conv_stem.weight is missing" in said.err


# ---- how it is measured ------------------------------------------------------------------------------------------


def test_intersection_over_union_by_hand():
    true = np.array([0, 0, 0, 1, 1, 2, 3, 3, UNKNOWN])
    said = np.array([0, 0, 1, 1, 2, 2, 3, 0, 0])
    counts = confusion(true, said, 4)
    assert counts.sum() == 8
    assert shares(counts).tolist() == pytest.approx([2 / 4, 1 / 3, 1 / 2, 1 / 2])
    assert mean_share(counts) == pytest.approx((2 / 4 + 1 / 3 + 1 / 2 + 1 / 2) / 4)
    assert together(counts, (1, 2)) == pytest.approx(3 / 4)  # a small rock that is called large is a rock
    assert pooled(counts) == pytest.approx(5 / (8 + 8 - 5))
    nothing = confusion(np.zeros(5, int), np.zeros(5, int), 4)
    assert mean_share(nothing) == 1.0
    assert np.isnan(together(nothing, (1, 2)))


def test_a_training_measures_as_the_evaluation_does():
    true, said = np.random.default_rng(2).integers(0, 4, (2, 500))
    counts = surface.confusion(torch.from_numpy(true), torch.from_numpy(said))
    assert counts.numpy().tolist() == confusion(true, said, 4).tolist()
    found = surface.overlap(counts)
    assert found["iou"] == pytest.approx(mean_share(counts.numpy()))
    assert found["rock_iou"] == pytest.approx(together(counts.numpy(), surface.ROCKS))


def test_evaluate_surface_measures_renders_that_are_kept_and_real_images(lander, banks, tmp_path):
    train_model(wishes("unet-published", banks, tmp_path / "unet-published", steps=2))
    said = lunar("evaluate", "surface", "--real", lander, "--out", tmp_path / "report", "--models", "unet-published",
               "--models-dir", tmp_path)  # fmt: skip
    assert said.code == 0, said.err
    facts = json.loads((tmp_path / "report" / "rocks_surface.json").read_text())
    assert facts["images"] == {"renders": 3, "real": 2}
    nothing = facts["models"]["ground everywhere"]["real"]
    share = 1 - (SKY_ROWS * 80 + 25 + 22**2) / (64 * 80)
    assert nothing["ground"] == pytest.approx(share)
    assert nothing["mean"] == pytest.approx(share / 4)
    assert "unet-published" in (tmp_path / "report" / "rocks_surface.html").read_text()
    said = lunar("evaluate", "surface", "--real", tmp_path, "--out", tmp_path / "report2")
    assert said.code == 1
    assert "render/" in said.err


# ---- the tool ----------------------------------------------------------------------------------------------------


def by_brightness(folder: Path) -> Path:
    """A model that calls pixels sky, ground, small rock and large rock by rising brightness."""
    network = FAMILIES["convnet"](channels=1, depth=1, outputs=4)
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias.copy_(torch.tensor([0.0, -60.0, -140.0, 5.0]))
        network[0].weight[:, 0, 1, 1] = torch.tensor([0.0, 100.0, 200.0, -100.0])
    settings = {"channels": 1, "depth": 1, "outputs": 4}
    card = Card("bright", "rocks", "convnet", settings=settings, normalisation=Normalisation("range", 0.0, 1.0),
                classes=surface.CLASSES, tile=64, halo=8)  # fmt: skip
    save_pack(folder, card, network)
    return folder


@pytest.mark.parametrize("sky", [True, False], ids=["with sky", "without sky"])
def test_a_rock_has_the_class_that_most_of_it_has_and_sky_is_no_rock(sky, tmp_path):
    pixels = np.full((90, 150), 0.4, np.float32)
    if sky:
        pixels[:10] = 0.02
    pixels[20:30, 20:30] = 0.7  # a small rock
    pixels[50:80, 60:90], pixels[50:55, 60:90] = 0.9, 0.7  # a large one, one side of which looks as a small one
    image = formats.geotiff(tmp_path / "view.tif", pixels, crs=None, transform=None)
    ran = lunar("rocks", image, tmp_path / "r.gpkg", "--model", by_brightness(tmp_path / "bright"), "--mask",
                tmp_path / "m.tif", "--outlines-layer")  # fmt: skip
    assert ran.code == 0, ran.err
    outlines = read_layer(tmp_path / "r.gpkg", "rock_outlines")
    assert list(outlines["class"]) == ["small rock", "large rock"]
    assert [shapely.from_wkb(shape).area for shape in outlines.wkb] == [10 * 10, 30 * 30]  # in px
    assert list(read_layer(tmp_path / "r.gpkg", "rocks")["class"]) == ["small rock", "large rock"]
    with rasterio.open(tmp_path / "m.tif") as mask:
        there = mask.read(1)
        assert mask.descriptions[0] == "class: 0 ground, 1 small rock, 2 large rock, 3 sky"
    assert (there[25, 25], there[52, 70], there[70, 70], there[40, 5]) == (1, 1, 2, 0)
    assert (there[:10] == (surface.SKY if sky else 0)).all()


def test_a_card_may_say_what_a_network_is_shown_where_nothing_was_seen(tmp_path):
    pixels = np.full((40, 60), 0.6, np.float32)
    pixels[:10] = np.nan
    image = formats.geotiff(tmp_path / "view.tif", pixels, crs=None, transform=None)
    pack = read_pack(by_brightness(tmp_path / "bright"))
    with torch.no_grad():
        network = pack.network()
        network[0].weight.copy_(network[0].weight.sum(dim=(2, 3), keepdim=True).expand_as(network[0].weight) / 9)
    classes = []
    for unseen in ({}, {"unseen": 0.0}, {"unseen": 0.9}):
        save_pack(pack.folder, replace(pack.card, reading=unseen), network)
        ran = lunar("rocks", image, tmp_path / "r.gpkg", "--model", pack.folder, "--mask", tmp_path / "m.tif",
                    "--overwrite")  # fmt: skip
        assert ran.code == 0, ran.err
        with rasterio.open(tmp_path / "m.tif") as mask:
            classes.append(mask.read(1)[10:12, 30].tolist())
    # Beside what nobody saw a pixel of three is as bright as that: 0.57, 0.4 and 0.7 on the whole.
    assert classes == [[0, 1], [0, 1], [1, 1]]


# ---- the shipped model -------------------------------------------------------------------------------------------


def test_the_shipped_model_decides_as_the_recipe_says_and_parts_sizes_where_the_masks_do():
    settings = find_pack("rocks-surface").card.settings
    assert settings == {**surface.SURFACE.card.settings, "alike": list(surface.ROCKS)}
    assert settings["mirrored"]
    assert round(settings["filled"] * settings["around"] ** 2, -2) == surface_data.LARGE_PX


@pytest.fixture(scope="module")
def view(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A simulated view that nobody learnt from, as a picture of 8 bits, and its classes."""
    made = scenes.draw("lander", 1, seed=880_077, size=320)
    image = made.image[0].numpy()
    low, high = np.percentile(image, (0.5, 99.5))
    path = tmp_path_factory.mktemp("view") / "view.png"
    Image.fromarray((np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)).save(path)
    return path, made.classes[0].numpy()


def shipped_classes(image: Path, folder: Path) -> np.ndarray:
    ran = lunar(
        "rocks", image, folder / "r.gpkg", "--model", "rocks-surface", "--mask", folder / "m.tif", "--overwrite"
    )
    assert ran.code == 0, ran.err
    assert set(read_layer(folder / "r.gpkg", "rocks")["class"]) <= {"small rock", "large rock"}
    with rasterio.open(folder / "m.tif") as mask:
        return mask.read(1)


def lift(found: np.ndarray, true: np.ndarray) -> float:
    """How much more often a found pixel is a rock than any pixel is."""
    return float(true[found].mean() / true.mean())


def test_the_shipped_model_finds_rocks_and_hardly_ever_in_the_sky(view, tmp_path):
    image, true = view
    found = shipped_classes(image, tmp_path)
    rock, sky = np.isin(found, surface.ROCKS), true == surface.SKY
    assert (rock & sky).sum() < 0.005 * sky.sum()  # the fringe of the horizon
    assert round(lift(rock, np.isin(true, surface.ROCKS)), 1) > 5
    assert np.isin(found[sky], (surface.SKY, 255)).mean() > 0.98


def test_the_shipped_model_needs_no_sky(view, tmp_path):
    image, true = view
    first = int((true == surface.SKY).any(axis=1).nonzero()[0].max()) + 1
    pixels = np.asarray(Image.open(image))[first:]
    Image.fromarray(pixels).save(tmp_path / "ground.png")
    found = shipped_classes(tmp_path / "ground.png", tmp_path)
    rock = np.isin(found, surface.ROCKS)
    assert (found == surface.SKY).mean() < 0.02
    assert round(lift(rock, np.isin(true[first:], surface.ROCKS)), 1) > 5
