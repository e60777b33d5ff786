"""A set of patches, as its manual would say it: images in, small grey squares out, none twice, split by product."""

from __future__ import annotations

import json
from pathlib import Path

import formats
import numpy as np
import pytest
from running import lunar, names
from scipy import ndimage

from lunar_processing.errors import Cancelled, DataError, ParameterError
from lunar_processing.tools.job import Report
from lunar_processing.tools.patches import Wishes, cut_patches, evenly, looks
from lunar_processing.training.patches import load_patches

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def ground(seed: int, height: int = 256, width: int = 320) -> np.ndarray:
    """Rough ground, uint8."""
    rough = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), 2)
    return np.clip(128 + 250 * rough, 1, 255).astype(np.uint8)


def save(path: Path, *bands: np.ndarray) -> Path:
    """An image without a place."""
    path.parent.mkdir(exist_ok=True)
    pixels = np.stack(bands).astype(np.uint8)
    return formats.geotiff(path, pixels, crs=None, transform=None)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three observations, two images of the first: 20 patches of 64 px each."""
    folder = tmp_path_factory.mktemp("images")
    for seed, name in enumerate(("M115143943RE_a", "M115143943LE_b", "M134022629LE", "M161142858RE")):
        save(folder / f"{name}.tif", ground(seed))
    return folder


def manifest(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_images_become_patches_that_know_where_they_are_from(images, tmp_path):
    ran = lunar("patches", images, "--out", tmp_path / "set", "--json")
    assert ran.code == 0, ran.err
    assert names(tmp_path / "set") == ["contact_sheet.png", "manifest.jsonl", "patches.npy"]
    patches, facts = np.load(tmp_path / "set" / "patches.npy"), manifest(tmp_path / "set")
    assert (patches.shape, patches.dtype, len(facts)) == ((80, 64, 64), np.uint8, 80)
    assert ran.result["products"] == {"M115143943": 40, "M134022629": 20, "M161142858": 20}
    # The grey levels of an image are stretched as a whole, so that its patches may be dull or bright.
    seed = ("M115143943RE_a.tif", "M115143943LE_b.tif", "M134022629LE.tif", "M161142858RE.tif").index(facts[7]["image"])
    whole = ground(seed)
    low, high = np.percentile(whole, (0.5, 99.5))
    row, col = facts[7]["row"], facts[7]["col"]
    there = np.clip((whole[row : row + 64, col : col + 64] - low) / (high - low), 0, 1) * 255
    assert np.abs(there - patches[7]).max() <= 1.5


def test_products_are_kept_aside_never_patches(images, tmp_path):
    parts = cut_patches(Wishes([str(images)], tmp_path / "set"))["parts"]
    assert parts == {"train": 60, "validation": 20}
    read = load_patches(tmp_path / "set", 64)
    assert {part: len(some) for part, some in read.items()} == parts
    assert not {p.product for p in read["train"]} & {p.product for p in read["validation"]}
    cut_patches(Wishes([str(images)], tmp_path / "set", keep_aside=("M115143943",), overwrite=True))
    assert {f["product"] for f in manifest(tmp_path / "set") if f["part"] == "validation"} == {"M115143943"}
    with pytest.raises(ParameterError, match="M999"):
        cut_patches(Wishes([str(images)], tmp_path / "other", keep_aside=("M999",)))


def test_a_manifest_says_what_is_known_better(images, tmp_path):
    lines = ["image,product,part,shrink,band"]
    lines += [f"{images}/M115143943RE_a.tif,north,train,1,", f"{images}/M115143943LE_b.tif,south,validation,2,1"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    facts = cut_patches(Wishes([str(tmp_path / "list.csv")], tmp_path / "set", stride=32))
    assert facts["products"] == {"north": 63, "south": 12}
    assert facts["parts"] == {"train": 63, "validation": 12}
    (tmp_path / "list.csv").write_text("\n".join([*lines, f"{images}/M134022629LE.tif,north,validation,1,"]))
    with pytest.raises(DataError, match="both train and validation"):
        cut_patches(Wishes([str(tmp_path / "list.csv")], tmp_path / "other", stride=32))


def test_what_is_seen_twice_is_kept_once(tmp_path):
    """Also where it is somewhat brighter, as another processing of the same image is."""
    one = ground(5, 512, 512)
    save(tmp_path / "in" / "M115143943_a.tif", one)
    save(tmp_path / "in" / "M115143943_b.tif", (20 + 0.85 * one + np.random.default_rng(1).normal(size=one.shape)) // 1)
    save(tmp_path / "in" / "M134022629_c.tif", ground(6, 128, 256))
    facts = cut_patches(Wishes([str(tmp_path / "in")], tmp_path / "set"))
    assert facts["dropped"] == {"invalid": 0, "flat": 0, "twice": 64}
    assert facts["count"] == 64 + 8


def test_what_is_empty_or_flat_is_left_out(tmp_path):
    whole = ground(7, 640, 640)
    whole[:64] = 0  # a black border
    whole[64:128] = 90  # haze
    whole[128:192] = np.linspace(20, 240, 640)[None]  # a slope
    save(tmp_path / "M115143943.tif", whole)
    facts = cut_patches(Wishes([str(tmp_path / "M115143943.tif")], tmp_path / "set"))
    assert facts["dropped"] == {"invalid": 10, "flat": 20, "twice": 0}
    assert facts["parts"] == {"train": 70, "validation": 0}


def test_of_maps_of_a_whole_body_the_poles_are_left_out(tmp_path):
    save(tmp_path / "body.tif", ground(8, 512, 1024))
    cut_patches(Wishes([str(tmp_path / "body.tif")], tmp_path / "set", size=32, latitude=60))
    rows = {fact["row"] for fact in manifest(tmp_path / "set")}
    assert (min(rows), max(rows)) == (85, 85 + 9 * 32)


def test_so_many_evenly():
    chosen = evenly(["a"] * 100 + ["b"] * 10 + ["c"] * 100, 60, seed=0)
    assert list(chosen) == sorted(set(chosen))
    assert [sum(n < 100 for n in chosen), sum(100 <= n < 110 for n in chosen)] == [25, 10]


def test_a_hash_knows_a_picture_by_its_light_and_shade():
    images = np.stack([ground(seed, 64, 64) for seed in range(40)])
    noisy = np.clip(0.8 * images + 30 + np.random.default_rng(2).normal(0, 2, images.shape), 0, 255)
    differing = (63 - looks(images).astype(int) @ looks(noisy).T.astype(int)) / 2
    assert np.diag(differing).max() <= 4
    assert differing[~np.eye(40, dtype=bool)].min() > 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "48"], "power of two"),
        (["--count", "3"], "64 or more"),
        (["--shrink", "0"], "1 to 64"),
        (["--latitude", "91"], "0 to 90"),
    ],
)
def test_wishes_that_cannot_be(images, tmp_path, words, said):
    ran = lunar("patches", images, "--out", tmp_path / "set", *words)
    assert (ran.code, said in ran.err) == (2, True)
    assert names(tmp_path) == []


def test_images_that_do_not_fit_are_named(images, tmp_path):
    for folder, bands in (("colour", [ground(1)] * 3), ("small", [ground(1, 60, 90)])):
        save(tmp_path / folder / "a.tif", *bands)
        save(tmp_path / folder / "b.tif", ground(2))
    ran = lunar("patches", tmp_path / "colour", "--out", tmp_path / "set")
    assert (ran.code, "1 of 2 images have several bands (a.tif)" in ran.err, "--band 1" in ran.err) == (1, True, True)
    ran = lunar("patches", tmp_path / "small", "--out", tmp_path / "set")
    assert (ran.code, "1 of 2 images are smaller" in ran.err, "90 × 60 px" in ran.err) == (1, True, True)
    ran = lunar("patches", images / "M134022629LE.tif", "--out", tmp_path / "set")
    assert (ran.code, "1 images give 20 patches" in ran.err, "64 are needed" in ran.err) == (1, True, True)
    assert names(tmp_path) == ["colour", "small"]


def test_a_run_that_is_cancelled_leaves_nothing(images, tmp_path):
    with pytest.raises(Cancelled):
        cut_patches(Wishes([str(images)], tmp_path / "set"), Report(cancelled=lambda: True))
    assert names(tmp_path) == []


def test_a_set_that_is_there_is_kept(images, tmp_path):
    assert lunar("patches", images, "--out", tmp_path / "set").code == 0
    before = (tmp_path / "set" / "patches.npy").read_bytes()
    ran = lunar("patches", images, "--out", tmp_path / "set", "--size", 32)
    assert (ran.code, "--overwrite" in ran.err) == (1, True)
    assert (tmp_path / "set" / "patches.npy").read_bytes() == before
    assert lunar("patches", images, "--out", tmp_path / "set", "--overwrite").code == 0
    assert (tmp_path / "set" / "patches.npy").read_bytes() == before  # same images, same patches
