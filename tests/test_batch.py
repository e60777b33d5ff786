"""Many products: which are wanted, what came of each, and that a batch may be stopped and begun again in any way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import formats
import moon
import numpy as np
import pytest
from running import Ran, lunar, names, read_layer, snapshot, strict_json

from lunar_processing.batch.journal import Journal, read_journals, sealed
from lunar_processing.batch.products import find_products, with_table
from lunar_processing.batch.where import parse_where
from lunar_processing.errors import DataError, OutputError, ParameterError

QUICK = ("--workers", 0, "--model", "shadow-pairs", "--sun-azimuth", 90)


@pytest.fixture
def strips(tmp_path: Path) -> Path:
    """Three images, one without a valid pixel, one that is damaged."""
    folder = tmp_path / "strips"
    folder.mkdir()
    for seed in range(3):
        view = moon.scene(64, 64, seed=seed, sun_azimuth=90, rocks=12, rock_sizes=(4, 10))
        formats.tiled(folder / f"good{seed}.tif", np.maximum(moon.digitise(view.image, 16), 1), nodata=0)
    formats.tiled(folder / "nothing.tif", np.zeros((64, 64), np.uint16), nodata=0)
    (folder / "damaged.tif").write_bytes((folder / "good0.tif").read_bytes()[:700])
    return folder


def batch(strips: Path | str, out: Path, *arguments: object, tool: str = "rocks") -> Ran:
    return lunar("batch", tool, strips, "--out", out, *QUICK, *arguments)


def entries(out: Path) -> list[dict[str, Any]]:
    return [strict_json(line) for line in (out / "journal.jsonl").read_text().splitlines()]


def statuses(out: Path) -> dict[str, str]:
    return {entry["product"]: entry["status"] for entry in entries(out)}


# ---- a batch -----------------------------------------------------------------------------------------------------


def test_every_product_is_done_and_what_fails_does_not_stop_the_rest(strips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = batch(strips, out, "--json")
    assert ran.code == 1, "the exit code says that something failed"
    assert ran.result["counts"] == {"ok": 3, "empty": 1, "skipped": 0, "failed": 1, "to do": 0}
    assert statuses(out) == dict.fromkeys(("good0", "good1", "good2"), "ok") | {"nothing": "empty", "damaged": "failed"}
    damaged = next(entry for entry in entries(out) if entry["product"] == "damaged")
    assert damaged["code"] == "image"
    assert damaged["cure"]
    good = next(entry for entry in entries(out) if entry["product"] == "good1")
    rocks = read_layer(out / "products" / good["outputs"]["rocks"], "rocks")
    assert len(rocks) == good["counts"]["rocks"] > 0
    alone = tmp_path / "alone.gpkg"
    lunar("rocks", strips / "good1.tif", alone, "--model", "shadow-pairs", "--sun-azimuth", 90)
    assert np.array_equal(read_layer(alone, "rocks")["diam_eq_m"], rocks["diam_eq_m"])


def test_a_batch_goes_on_where_it_stopped_and_leaves_alone_what_is_done(strips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.move(strips / "good2.tif", tmp_path / "late.tif")
    (strips / "damaged.tif").unlink()
    assert batch(strips, out).code == 0
    before = snapshot(out / "products")
    times = {path: path.stat().st_mtime_ns for path in (out / "products").rglob("*.gpkg")}
    refused = batch(strips, out)
    assert refused.code == 1
    assert "--resume" in refused.err

    shutil.move(tmp_path / "late.tif", strips / "good2.tif")
    (strips / "good0.tif").touch()  # copied or unpacked again: the same pixels
    ran = batch(strips, out, "--resume", "--json")
    assert ran.code == 0
    assert ran.result["counts"]["ok"] == 3
    after = snapshot(out / "products")
    assert {name: after[name] for name in before} == before
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    # Byte for byte what a batch makes that was never stopped, but for the date that the files carry.
    again = tmp_path / "again"
    epoch = json.loads((out / "batch.json").read_text())["epoch"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", epoch)
        assert batch(strips, again).code == 0
    assert snapshot(again / "products") == after


def test_another_image_under_the_same_name_is_done_again(strips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batch(strips, out)
    shutil.copy(strips / "good1.tif", strips / "good0.tif")
    batch(strips, out, "--resume")
    first, second = (out / "products" / name / f"{name}.gpkg" for name in ("good0", "good1"))
    assert np.array_equal(read_layer(first, "rocks")["diam_eq_m"], read_layer(second, "rocks")["diam_eq_m"])
    assert [entry["product"] for entry in entries(out)[5:]] == ["damaged", "good0", "nothing"]


def test_a_line_that_was_torn_off_is_no_line(strips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batch(strips, out)
    journal = out / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    torn = next(i for i, line in enumerate(lines) if b'"good2"' in line)
    journal.write_bytes(b"".join(lines[:torn]) + lines[torn][: len(lines[torn]) // 2])
    ran = batch(strips, out, "--resume", "--json")
    assert "1 lines of the journal are damaged" in ran.err
    assert ran.result["counts"]["ok"] == 3
    good, damaged = read_journals(out)
    assert (good["good2"]["status"], damaged) == ("ok", 1)


def test_no_journal_however_damaged_stops_the_reader(tmp_path: Path) -> None:
    done = {"product": "a", "path": "a.tif", "status": "ok", "key": "k", "inputs": [], "outputs": {}, "counts": {}}
    line = json.dumps(sealed(done)).encode() + b"\n"
    choose = np.random.default_rng(0)
    for _ in range(500):
        data = bytearray(line * 3)
        for at in choose.integers(0, len(data), choose.integers(1, 8)):
            data[at] = choose.integers(0, 256)
        (tmp_path / "journal.jsonl").write_bytes(bytes(data[: choose.integers(0, len(data) + 1)]))
        found, _damaged = read_journals(tmp_path)
        assert all(entry == sealed(done) for entry in found.values())
    for text in (b"[" * 100_000, b'{"product": 1, "status": "ok"}', b'"ok"', b"9" * 5000, b"\xff\xfe\x00"):
        (tmp_path / "journal.jsonl").write_bytes(text + b"\n" + line)
        found, damaged = read_journals(tmp_path)
        assert (list(found), damaged) == (["a"], 1)


def test_results_of_two_kinds_never_lie_side_by_side(strips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batch(strips, out)
    ran = batch(strips, out, "--resume", "--min-diameter", 5)
    assert ran.code == 2
    assert "wishes {}, now {'min_diameter': 5.0}" in ran.err
    assert batch(strips, out, "--resume", "--top", 5).code == 2, "an option of another tool"


def test_two_batches_never_write_to_one_folder(strips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batch(strips, out)
    with Journal(out / "journal.jsonl"):
        ran = batch(strips, out, "--resume")
    assert ran.code == 1
    assert "Another batch is writing" in ran.err
    with pytest.raises(OutputError), Journal(tmp_path / "nowhere" / "journal.jsonl"):
        pass


def test_the_jobs_of_an_array_share_a_batch(strips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (strips / "damaged.tif").unlink()
    assert [batch(strips, out, "--part", f"{k}/3").code for k in (1, 2, 3)] == [0, 0, 0]
    assert {"journal-1-of-3.jsonl", "journal-2-of-3.jsonl", "journal-3-of-3.jsonl"} <= set(names(out))
    ran = batch(strips, out, "--resume", "--json")
    assert ran.result["run"] == 1, "only the empty one is looked at again"
    assert ran.result["counts"] == {"ok": 3, "empty": 1, "skipped": 0, "failed": 0, "to do": 0}
    assert batch(strips, out, "--part", "4/3").code == 2


@pytest.mark.parametrize("tool", ["enhance", "anomalies"])
def test_every_tool_can_be_given_many(tool: str, strips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    own = {"enhance": ["--model", "stretch"], "anomalies": ["--model", "pca", "--top", 3, "--chips", "--scores"]}[tool]
    ran = lunar("batch", tool, strips / "good*.tif", "--out", out, "--workers", 0, *own, "--json")
    assert ran.result["counts"]["ok"] == 3, ran.err
    made = {"enhance": {"good0.tif"}, "anomalies": {"good0.gpkg", "good0_scores.tif", "chips"}}[tool]
    assert set(names(out / "products" / "good0")) == made


# ---- which products ----------------------------------------------------------------------------------------------

FACTS = {"incidence": 70.0, "pixel_size": 0.5, "target": "MOON", "lon": None}
CONDITIONS = {
    "incidence < 80 and pixel_size < 2": True,
    "INCIDENCE >= 70.0": True,
    "60 < incidence < 70": False,
    "not (incidence > 80 or target == 'MARS')": True,
    "target in ('MOON', 'VESTA')": True,
    "incidence / 2 + 1 == 36": True,
    "-incidence < 0": True,
    "lon > 0": None,
    "not lon > 0": None,
    "lon > 0 or incidence > 1": True,
    "lon > 0 and incidence > 100": False,
    "lon > 0 and incidence > 1": None,
    "incidence / 0 > 1": None,
}


@pytest.mark.parametrize(("text", "answer"), CONDITIONS.items(), ids=CONDITIONS)
def test_a_condition_on_facts(text: str, answer: bool | None) -> None:
    assert parse_where(text)(FACTS) is answer


@pytest.mark.parametrize(
    "text",
    [
        *(
            "__import__('os').system('true')",
            "incidence.real > 0",
            "(lambda: 1)()",
            "[x for x in (1,)]",
            "f'{incidence}'",
        ),
        *("9**9**9 > 1", "(x := 1) > 0", "incidence[0]", "incidence = 3", "", "incidence <", "1 if 2 else 3", "a\0b"),
        *("(" * 5000, "None", "incidence > 1j", "x" * 2000),
    ],
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="--where"):
        parse_where(text)


def test_a_value_is_no_condition_and_text_no_number() -> None:
    for text in ("incidence", "target < 80", "incidence and target", "target + 1 > 2"):
        with pytest.raises(ParameterError, match=r"--where|is a value"):
            parse_where(text)(FACTS)
    with pytest.raises(ParameterError, match="incidance"):
        parse_where("incidance < 80").check_names(FACTS)


def test_products_are_chosen_by_label_manifest_and_table(strips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (strips / "damaged.tif").unlink()
    ran = batch(strips, out, "--where", "megapixels < 1 and lat < -80 and incidence < 75", "--json")
    assert ran.result["counts"] == {"ok": 0, "empty": 0, "skipped": 4, "failed": 0, "to do": 0}
    assert "left out because a fact is not known: incidence" in ran.err

    table = tmp_path / "CUMINDEX.csv"
    table.write_text("PRODUCT_ID,INCIDENCE_ANGLE,LABEL\nGOOD0,70.0,a\ngood1.IMG,80,b\nother,1,c\ngood2,UNK,d\n")
    ran = batch(strips, out, "--resume", "--table", table, "--where", "incidence < 75 or label == 'b'", "--json")
    assert ran.result["counts"]["ok"] == 2
    assert statuses(out) == {"good0": "ok", "good1": "ok", "good2": "skipped", "nothing": "skipped"}
    record = next(e for e in entries(out) if e["product"] == "good0" and e["status"] == "ok")
    assert record["told"] == {"incidence": 70.0}

    wrong = batch(strips, out, "--resume", "--table", table, "--where", "incidance < 75")
    assert wrong.code == 2
    assert "did you mean incidence?" in wrong.err


def test_a_pds_index_is_read_by_its_label(tmp_path: Path) -> None:
    columns = {"VOLUME_ID": (2, 10, ""), "PRODUCT_ID": (15, 13, ""), "RESOLUTION": (30, 8, "KM/PIXEL")}
    objects = [
        f'OBJECT = COLUMN\n  NAME = "{name}"\n  START_BYTE = {start}\n  BYTES = {size}\n  UNIT = "{unit}"\nEND_OBJECT\n'
        for name, (start, size, unit) in columns.items()
    ]
    (tmp_path / "INDEX.LBL").write_text("".join(objects))
    (tmp_path / "INDEX.TAB").write_text(
        '"LROLRC_001","M104318871LE ",  0.0005\r\n"LROLRC_001","M999999999RE ",  0.0007\r\n'
    )
    image = formats.geotiff(tmp_path / "M104318871LC.tif")
    [product], known = with_table(find_products([str(image)]), tmp_path / "INDEX.LBL")
    assert product.said == {
        "volume_id": "LROLRC_001",
        "product_id": "M104318871LE",
        "resolution": 0.0005,
        "pixel_size": 0.5,
    }
    assert known == ("volume_id", "product_id", "resolution", "pixel_size")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="does not say which product"):
        with_table(find_products([str(image)]), tmp_path / "bad.csv")


def test_images_of_folders_patterns_and_lists(tmp_path: Path) -> None:
    for name in ("a/one.tif", "a/deep/two.TIF", "a/.hidden/no.tif", "b/one.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        formats.geotiff(tmp_path / name)
    (tmp_path / "a" / "one.tif.aux.xml").write_text("<PAMDataset/>")
    formats.nac_cdr(tmp_path / "a" / "M104318871LC.IMG")
    assert [p.name for p in find_products([str(tmp_path / "a")])] == ["M104318871LC", "one", "two"]
    both = find_products([str(tmp_path / "*" / "one.tif")])
    assert len({p.name for p in both}) == 2, "files of one name are told apart"
    assert all(p.name.startswith("one-") for p in both)

    (tmp_path / "some.txt").write_text("# by hand\na/one.tif\n\na/missing.tif\n")
    assert [p.name for p in find_products([str(tmp_path / "some.txt")])] == ["missing", "one"]
    (tmp_path / "some.csv").write_text("image,sun_azimuth,site\na/one.tif,90,Schrödinger\n", encoding="utf-8")
    [product] = find_products([str(tmp_path / "some.csv")])
    assert product.said == {"image": "a/one.tif", "sun_azimuth": 90.0, "site": "Schrödinger"}
    for nothing in (tmp_path / "empty", tmp_path / "nowhere.tif", tmp_path / "*.nothing"):
        with pytest.raises(DataError):
            find_products([str(nothing)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="There is no image"):
        find_products([str(tmp_path / "empty")])
