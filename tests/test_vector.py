"""Points and polygons to files: what QGIS finds again, and what stays as it was."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import shapely
from pyproj import CRS

from lunar_processing import vector
from lunar_processing.errors import OutputError
from lunar_processing.planet import same_place
from lunar_processing.vector import SHORT_NAMES, Layer, Target, check_targets, target, write_layers

QGIS_PYTHON = os.environ.get("LUNAR_QGIS_PYTHON", "/usr/bin/python3")
REPOSITORY = Path(__file__).resolve().parent.parent
SOUTH = CRS.from_user_input("IAU_2015:30135").to_wkt()
FORMATS = ["gpkg", "shp", "fgb"]
EXACT_WKT = pyogrio.__gdal_version__ >= (3, 9, 0)  # older GDAL writes it into a GeoPackage only where it must


def points(n: int = 5, name: str = "rocks", wkt: str | None = SOUTH, **changes: object) -> Layer:
    xy = np.random.default_rng(0).uniform(-1e5, 1e5, (n, 2))
    fields = {
        "rock_id": np.arange(n),
        "diam_eq_m": np.where(np.arange(n) % 2, np.nan, np.linspace(1, 2, n)),
        "edge": np.zeros(n, np.uint8),
        "model": np.array(["Schätzung ☾"] * n, dtype=object),
    }
    values = {"geometry": shapely.points(xy), "fields": fields, "geometry_type": "Point"} | changes
    return Layer(name, wkt=wkt, description="Rocks – found", metadata='{"seed": 1, "ü": "<&>"}', **values)


def polygons(n: int = 5, name: str = "rock_outlines", **changes: object) -> Layer:
    outlines = shapely.buffer(points(n).geometry, 3)
    return points(n, name, geometry=outlines, geometry_type="Polygon", **changes)


def write(layer: Layer, place: Path | str, overwrite: bool = False) -> Path:
    return write_layers([(layer, target(place))], overwrite)[0]


def read(path: Path, layer: str | None = None) -> tuple[dict, np.ndarray, dict[str, np.ndarray]]:
    meta, _, wkb, columns = pyogrio.raw.read(path, layer=layer)
    return meta, shapely.from_wkb(wkb), dict(zip(meta["fields"], columns))


def layers_of(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return [name for (name,) in database.execute("SELECT table_name FROM gpkg_contents ORDER BY 1")]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Destinations


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/rocks.gpkg", Target(Path("a/rocks.gpkg"), None, "GPKG")),
        ("rocks.GPKG|layername=big ones", Target(Path("rocks.GPKG"), "big ones", "GPKG")),
        ("C:/my data/ü.gpkg|layername=a|subset=b", Target(Path("C:/my data/ü.gpkg"), "a", "GPKG")),
        ("ogr:dbname='/tmp/x y.gpkg' table=\"rocks\" (geom)", Target(Path("/tmp/x y.gpkg"), "rocks", "GPKG")),
        ("ogr:dbname='/tmp/x.gpkg' table=\"rocks\"", Target(Path("/tmp/x.gpkg"), "rocks", "GPKG")),
        (r"""ogr:dbname='/tmp/it\'s.gpkg' table="a \"b\"" (geom)""", Target(Path("/tmp/it's.gpkg"), 'a "b"', "GPKG")),
        ("rocks.shp", Target(Path("rocks.shp"), None, "ESRI Shapefile")),
        ("rocks.fgb", Target(Path("rocks.fgb"), None, "FlatGeobuf")),
        (Path("rocks.fgb"), Target(Path("rocks.fgb"), None, "FlatGeobuf")),
    ],
)
def test_a_destination_is_read_as_people_and_qgis_write_it(text: str | Path, expected: Target) -> None:
    assert target(text) == expected


@pytest.mark.parametrize("name", ["rocks.geojson", "rocks.json", "rocks.kml", "rocks", "rocks.gpkg.zip", ""])
def test_other_formats_are_refused_with_the_cure(name: str) -> None:
    with pytest.raises(OutputError, match="Cure: write a GeoPackage"):
        target(name)


def test_geojson_is_refused_because_it_knows_the_earth_only() -> None:
    with pytest.raises(OutputError, match="turn lunar coordinates into terrestrial"):
        target("rocks.geojson")


# What is written


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("folder", ["plain", "with späces ☾"])
def test_everything_comes_back(tmp_path: Path, suffix: str, folder: str) -> None:
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / f"rocks.{suffix}"
    assert write(points(), path) == path
    meta, geometry, fields = read(path)
    order = np.argsort(fields["rock_id"])  # a FlatGeobuf orders by place
    assert shapely.equals(geometry[order], points().geometry).all()
    assert fields["rock_id"].dtype.kind == fields["edge"].dtype.kind == "i"
    assert fields["rock_id"][order].tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(fields["diam_eq_m"][order], [1, np.nan, 1.5, np.nan, 2], equal_nan=True)
    assert fields["model"].tolist() == ["Schätzung ☾"] * 5
    assert meta["geometry_type"] == "Point"
    assert same_place(meta["crs"], SOUTH)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("kind", "stored"), [("Point", "Point"), ("Polygon", "Polygon"), ("MultiPolygon", None)])
def test_nothing_found_is_a_valid_layer(tmp_path: Path, suffix: str, kind: str, stored: str | None) -> None:
    path = write(points(0, geometry_type=kind), tmp_path / f"none.{suffix}")
    meta, geometry, fields = read(path)
    assert len(geometry) == 0
    assert list(fields) == ["rock_id", "diam_eq_m", "edge", "model"]
    assert [values.dtype.kind for values in fields.values()] == ["i", "f", "i", "O"]
    assert meta["geometry_type"] in ({stored} if stored else {"MultiPolygon", "Polygon"})
    assert same_place(meta["crs"], SOUTH)


@pytest.mark.parametrize("suffix", FORMATS)
def test_polygons_with_holes_and_of_several_parts_are_kept(tmp_path: Path, suffix: str) -> None:
    ring = shapely.Polygon(shapely.box(0, 0, 9, 9).exterior, [shapely.box(3, 3, 6, 6).exterior])
    two = shapely.MultiPolygon([ring, shapely.box(20, 0, 21, 1)])
    area = Layer("area", np.array([two, ring]), {"area_m2": np.array([73.0, 72.0])}, SOUTH, "MultiPolygon")
    _, geometry, fields = read(write(area, tmp_path / f"area.{suffix}"))
    assert sorted(shapely.area(geometry)) == [72, 73]
    assert sorted(fields["area_m2"]) == [72, 73]


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_not_a_number_is_null(tmp_path: Path, suffix: str) -> None:
    fields = {"a": np.array([np.nan, np.inf, 1.0]), "b": np.array(["x", None, "z"], dtype=object)}
    _, _, found = read(write(points(3, fields=fields), tmp_path / f"x.{suffix}"))
    assert sorted(np.isnan(found["a"])) == [False, True, True]
    assert [text for text in found["b"] if text] == sorted(["x", "z"]) or set(found["b"]) == {"x", "z", None}
    if suffix == "gpkg":
        with contextlib.closing(sqlite3.connect(tmp_path / "x.gpkg")) as database:
            assert database.execute("SELECT a, b FROM rocks ORDER BY fid").fetchall() == [
                (None, "x"),
                (None, None),
                (1.0, "z"),
            ]


def test_a_geopackage_carries_description_provenance_and_index(tmp_path: Path) -> None:
    path = write(points(), tmp_path / "rocks.gpkg")
    assert json.loads(pyogrio.read_info(path)["layer_metadata"]["provenance"]) == {"seed": 1, "ü": "<&>"}
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT identifier, description FROM gpkg_contents").fetchall() == [
            ("rocks", "Rocks – found")
        ]
        assert database.execute("SELECT count(*) FROM rtree_rocks_geom").fetchone() == (5,)
        ((scope, table),) = database.execute("SELECT reference_scope, table_name FROM gpkg_metadata_reference")
        assert (scope, table) == ("table", "rocks")


@pytest.mark.parametrize("suffix", ["shp", "fgb"])
def test_other_formats_carry_provenance_beside_them(tmp_path: Path, suffix: str) -> None:
    write(points(), tmp_path / f"my.rocks.{suffix}")
    text = (tmp_path / "my.rocks.provenance.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"seed": 1, "ü": "<&>"}


def test_a_shapefile_has_all_its_parts(tmp_path: Path) -> None:
    write(points(), tmp_path / "rocks.shp")
    parts = ["cpg", "dbf", "prj", "provenance.json", "qix", "shp", "shx"]
    assert names_in(tmp_path) == [f"rocks.{part}" for part in parts]
    assert (tmp_path / "rocks.cpg").read_text().strip() == "UTF-8"


def test_long_names_have_short_ones_in_a_shapefile(tmp_path: Path) -> None:
    assert all(len(short) <= 10 < len(name) for name, short in SHORT_NAMES.items())
    assert len(set(SHORT_NAMES.values())) == len(SHORT_NAMES)
    fields = {"resolvable_m": np.ones(1), "resolvable_px": np.ones(1), "percentile": np.ones(1)}
    _, _, found = read(write(points(1, fields=fields), tmp_path / "x.shp"))
    assert list(found) == ["resolv_m", "resolv_px", "percentile"]
    _, _, found = read(write(points(1, fields=fields), tmp_path / "x.gpkg"))
    assert list(found) == list(fields)


@pytest.mark.parametrize(
    "fields", [{"score_percentile": np.ones(1)}, {"resolv_m": np.ones(1), "resolvable_m": np.ones(1)}]
)
def test_no_name_is_cut_silently(tmp_path: Path, fields: dict[str, np.ndarray]) -> None:
    with pytest.raises(OutputError, match="cannot keep the field name"):
        write(points(1, fields=fields), tmp_path / "x.shp")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(("length", "fits"), [(127, True), (128, False)])
def test_no_text_is_cut_silently(tmp_path: Path, length: int, fits: bool) -> None:
    layer = points(1, fields={"label": np.array(["ü" * length], dtype=object)})  # 2 bytes each
    if fits:
        assert read(write(layer, tmp_path / "x.shp"))[2]["label"].tolist() == ["ü" * length]
    else:
        with pytest.raises(OutputError, match="longer than the 254 bytes"):
            write(layer, tmp_path / "x.shp")
        assert names_in(tmp_path) == []


def test_several_layers_and_files_in_one_go(tmp_path: Path) -> None:
    one, other = tmp_path / "one.gpkg", tmp_path / "one.fgb"  # the same stem must not mix them up
    written = write_layers([(points(), target(one)), (polygons(), target(one)), (polygons(name="x"), target(other))])
    assert written == [one, other]
    assert layers_of(one) == ["rock_outlines", "rocks"]
    assert names_in(tmp_path) == ["one.fgb", "one.gpkg", "one.provenance.json"]


def test_two_layers_do_not_fit_where_one_does(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="one layer"):
        write_layers([(points(), target(tmp_path / "a.shp")), (polygons(), target(tmp_path / "a.shp"))])
    with pytest.raises(OutputError, match="Two layers of one name"):
        write_layers([(points(), target(tmp_path / "a.gpkg")), (polygons(name="ROCKS"), target(tmp_path / "a.gpkg"))])
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_bytes_with_a_given_date(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    sums = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(polygons(300), tmp_path / folder / f"rocks.{suffix}")
        sums.append(
            {
                part: hashlib.sha256((tmp_path / folder / part).read_bytes()).hexdigest()
                for part in names_in(tmp_path / folder)
            }
        )
        time.sleep(0.01)
    assert sums[0] == sums[1]
    if suffix == "gpkg":
        with contextlib.closing(sqlite3.connect(tmp_path / "a" / "rocks.gpkg")) as database:
            assert (
                database.execute("SELECT last_change FROM gpkg_contents")
                .fetchone()[0]
                .startswith("2023-11-14T22:13:20")
            )


def test_a_hundred_thousand_rocks_take_seconds(tmp_path: Path) -> None:
    path = tmp_path / "many.gpkg"
    start = time.perf_counter()
    write_layers([(points(100_000), target(path)), (polygons(100_000), target(path))])
    assert time.perf_counter() - start < 20  # 3 s when the machine has nothing else to do
    assert pyogrio.read_info(path, layer="rocks")["features"] == 100_000


# What stays as it was


def rows_of(path: Path, besides: str = "") -> dict[str, list]:
    """Every row of every table of a GeoPackage, without those that belong to one layer.

    GDAL renews the dates in gpkg_metadata_reference with every change of the file.
    """
    with contextlib.closing(sqlite3.connect(path)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        content = {}
        for table in tables:
            if besides and besides in table:
                continue
            columns = [row[1] for row in database.execute(f'PRAGMA table_info("{table}")') if row[1] != "timestamp"]
            rows = database.execute(f'SELECT {", ".join(columns)} FROM "{table}"').fetchall()
            content[table] = sorted((row for row in rows if not besides or besides not in row), key=repr)
    return content


@pytest.fixture
def neighbour(tmp_path: Path) -> Path:
    """A GeoPackage of a user: craters with a style and metadata, in another coordinate system."""
    path = tmp_path / "mine.gpkg"
    pyogrio.raw.write(
        path,
        shapely.to_wkb(shapely.points([[10.0, 20.0], [11.0, 21.0]])),
        [np.array(["Tycho", "Hell"], dtype=object)],
        ["name"],
        layer="craters",
        driver="GPKG",
        geometry_type="Point",
        crs="IAU_2015:30100",
        layer_metadata={"author": "me"},
        dataset_metadata={"campaign": "2024"},
    )
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "CREATE TABLE layer_styles (id INTEGER PRIMARY KEY, f_table_name TEXT, styleName TEXT, styleQML TEXT)"
        )
        database.execute("INSERT INTO layer_styles VALUES (1, 'craters', 'red', '<qgis/>'), (2, 'rocks', 'r', '<q/>')")
        database.execute("CREATE TABLE notes (text TEXT)")
        database.execute("INSERT INTO notes VALUES ('look here')")
    return path


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_layer_is_added_and_the_others_stay(neighbour: Path, overwrite: bool) -> None:
    before = rows_of(neighbour)
    write(points(), neighbour, overwrite)
    assert names_in(neighbour.parent) == ["mine.gpkg"]
    after = rows_of(neighbour, besides="rocks")
    assert layers_of(neighbour) == ["craters", "rocks"]
    for table, rows in before.items():
        kept = [row for row in rows if "rocks" not in row]
        if table == "sqlite_sequence":  # the last number given in the tables of all layers
            continue
        assert [row for row in after[table] if row in kept] == kept, table
    assert after["notes"] == [("look here",)]
    assert read(neighbour, "craters")[2]["name"].tolist() == ["Tycho", "Hell"]
    assert pyogrio.read_info(neighbour, layer="craters")["layer_metadata"]["author"] == "me"
    assert pyogrio.read_info(neighbour, layer="craters")["dataset_metadata"] == {"campaign": "2024"}


def test_a_layer_of_that_name_is_replaced_only_when_allowed(neighbour: Path) -> None:
    write(points(), neighbour)
    before = neighbour.read_bytes()
    with pytest.raises(OutputError, match=r"has a layer 'rocks' already.*--overwrite"):
        write(points(7), neighbour)
    assert neighbour.read_bytes() == before
    write(points(7), neighbour, overwrite=True)
    assert layers_of(neighbour) == ["craters", "rocks"]
    assert len(read(neighbour, "rocks")[1]) == 7
    assert read(neighbour, "craters")[2]["name"].tolist() == ["Tycho", "Hell"]
    with contextlib.closing(sqlite3.connect(neighbour)) as database:
        assert ("craters", "red") in database.execute("SELECT f_table_name, styleName FROM layer_styles").fetchall()
        assert database.execute("SELECT count(*) FROM rtree_rocks_geom").fetchone() == (7,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_layer_can_go_under_another_name(neighbour: Path) -> None:
    write(points(), f"{neighbour}|layername=rocks 2")
    write(points(), f"ogr:dbname='{neighbour}' table=\"third\" (geom)")
    assert layers_of(neighbour) == ["craters", "rocks 2", "third"]


@pytest.mark.parametrize("name", ["notes", "gpkg_contents", "Craters", "layer_styles"])
def test_what_is_no_layer_is_not_replaced(neighbour: Path, name: str) -> None:
    before = neighbour.read_bytes()
    with pytest.raises(OutputError, match="something else of the name"):
        write(points(), f"{neighbour}|layername={name}", overwrite=True)
    assert neighbour.read_bytes() == before


@pytest.mark.parametrize("suffix", ["shp", "fgb"])
def test_a_file_of_one_layer_is_replaced_only_when_allowed(tmp_path: Path, suffix: str) -> None:
    path = write(points(3), tmp_path / f"x.{suffix}")
    with pytest.raises(OutputError, match="exists already"):
        write(points(4), path)
    assert len(read(path)[1]) == 3
    write(points(4), path, overwrite=True)
    assert len(read(path)[1]) == 4


def test_no_part_of_an_older_shapefile_is_believed_about_a_new_one(tmp_path: Path) -> None:
    path = write(points(300), tmp_path / "x.shp")
    (tmp_path / "x.sbn").write_bytes(b"an index of the old points")
    (tmp_path / "x.qml").write_text("<qgis/>")
    write(points(2, wkt=None), path, overwrite=True)
    assert "x.prj" not in names_in(tmp_path)
    assert "x.sbn" not in names_in(tmp_path)
    assert "x.qml" in names_in(tmp_path)  # a style is the user's


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0 and then nothing"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_a_geopackage_is_left_alone(tmp_path: Path, content: bytes, overwrite: bool) -> None:
    path = tmp_path / "x.gpkg"
    path.write_bytes(content)
    with pytest.raises(OutputError, match=r"is not a GeoPackage|cannot be added to"):
        write(points(), path, overwrite)
    assert path.read_bytes() == content
    assert names_in(tmp_path) == ["x.gpkg"]


def test_another_kind_of_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.gpkg"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE accounts (money INTEGER)")
    with pytest.raises(OutputError, match="is not a GeoPackage"):
        write(points(), path, overwrite=True)


def test_a_link_still_points_to_the_file(neighbour: Path) -> None:
    link = neighbour.with_name("link.gpkg")
    link.symlink_to(neighbour)
    write(points(), link)
    assert link.is_symlink()
    assert layers_of(neighbour) == ["craters", "rocks"]


def test_permissions_stay(neighbour: Path) -> None:
    neighbour.chmod(0o640)
    write(points(), neighbour)
    assert neighbour.stat().st_mode & 0o777 == 0o640


def test_changes_that_wait_beside_the_file_are_kept(neighbour: Path) -> None:
    """A program that was killed while editing leaves its last changes in a -wal file."""
    edit = """
        import os, sqlite3, sys
        database = sqlite3.connect(sys.argv[1], isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("INSERT INTO notes VALUES ('written last')")
        os._exit(0)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(edit), neighbour], check=True)
    assert neighbour.with_name("mine.gpkg-wal").stat().st_size > 0
    write(points(), neighbour)
    assert names_in(neighbour.parent) == ["mine.gpkg"]
    with contextlib.closing(sqlite3.connect(neighbour)) as database:
        assert ("written last",) in database.execute("SELECT text FROM notes").fetchall()
    assert layers_of(neighbour) == ["craters", "rocks"]


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_a_file_that_another_program_edits_is_left_alone(
    neighbour: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lunar_processing.vector._WAIT_S", 0.2)
    with contextlib.closing(sqlite3.connect(neighbour, isolation_level=None)) as database:
        database.execute(f"PRAGMA journal_mode = {mode}")
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO notes VALUES ('half')")
        for attempt in (
            lambda: write(points(), neighbour),
            lambda: check_targets([("rocks", target(neighbour))]),  # said before any work is done
        ):
            with pytest.raises(OutputError, match="open for writing in another program") as caught:
                attempt()
            assert "QGIS" in caught.value.cure
        database.execute("COMMIT")
    assert layers_of(neighbour) == ["craters"]
    write(points(), neighbour)
    assert layers_of(neighbour) == ["craters", "rocks"]


def start(code: str, folder: Path, *arguments: str) -> subprocess.Popen:
    """A program of its own that has this file's helpers."""
    head = f"import sys; sys.path[:0] = {[str(REPOSITORY), str(REPOSITORY / 'tests')]!r}\nfrom test_vector import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_several_runs_into_one_file_all_arrive(neighbour: Path) -> None:
    run = """
        for i in range(4):
            write(points(200, name=f"{sys.argv[1]}{i}"), "mine.gpkg")
    """
    runs = [start(run, neighbour.parent, letter) for letter in "abc"]
    assert [process.communicate(timeout=120)[1] for process in runs] == [""] * 3
    assert layers_of(neighbour) == sorted(["craters"] + [f"{letter}{i}" for letter in "abc" for i in range(4)])
    with contextlib.closing(sqlite3.connect(neighbour)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_of_several_runs_that_make_one_file_none_is_lost_silently(tmp_path: Path) -> None:
    """The first makes the file. Those that were too late to see it are told, and do not replace it."""
    run = 'write(points(2000, name=sys.argv[1]), "new.gpkg", True)'
    runs = {letter: start(run, tmp_path, letter) for letter in "abc"}
    errors = {letter: process.communicate(timeout=120)[1] for letter, process in runs.items()}
    assert layers_of(tmp_path / "new.gpkg") == [letter for letter, error in errors.items() if not error]
    assert all("exists already" in error for error in errors.values() if error)
    assert names_in(tmp_path) == ["new.gpkg"]


# When it goes wrong


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root on Linux)")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("n", [8_000, 12_000, 16_000, 40_000])
def test_a_full_disk_fails_loudly_and_leaves_the_old_file(small_disk: Path, suffix: str, n: int) -> None:
    path = small_disk / f"rocks.{suffix}"
    write(points(3), path)
    before = {name: (small_disk / name).read_bytes() for name in names_in(small_disk)}
    with pytest.raises(OutputError, match=r"could not be (written|completed)|reads back otherwise"):
        write(polygons(n, name="rocks"), path, overwrite=True)
    assert {name: (small_disk / name).read_bytes() for name in names_in(small_disk)} == before


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_killed_run_leaves_a_whole_file_or_none(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    run = """
        print("READY", flush=True)
        while True:
            write(polygons(3000, name="rocks"), sys.argv[1], overwrite=True)
    """
    for seconds in (0.15, 0.3, 0.5):
        process = start(run, tmp_path, str(path))
        assert process.stdout
        process.stdout.readline()
        time.sleep(seconds)
        process.kill()
        process.communicate()
        assert not path.exists() or len(read(path)[1]) == 3000
    write(polygons(3, name="rocks"), path, overwrite=True)
    assert len(read(path)[1]) == 3
    assert not [name for name in names_in(tmp_path) if "partial" in name]  # the next run cleans up after the dead


def test_one_file_that_fails_keeps_back_all(tmp_path: Path) -> None:
    bad = points(1, "bad", fields={"a name too long": np.ones(1)})
    with pytest.raises(OutputError, match="cannot keep the field name"):
        write_layers([(points(), target(tmp_path / "a.gpkg")), (bad, target(tmp_path / "b.shp"))])
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_folder_that_is_missing_is_named(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(OutputError, match="nowhere does not exist"):
        write(points(), tmp_path / "nowhere" / f"x.{suffix}")


def test_it_is_said_before_any_work_is_done(neighbour: Path) -> None:
    with pytest.raises(OutputError, match="has a layer 'craters' already"):
        check_targets([("craters", target(neighbour))])
    check_targets([("craters", target(neighbour))], overwrite=True)
    check_targets([("rocks", target(neighbour)), ("x", target(neighbour.with_name("new.shp")))], wkt=SOUTH)
    assert names_in(neighbour.parent) == ["mine.gpkg"]


WEST = CRS.from_user_input("IAU_2015:49901").to_wkt()
CENTRIC = CRS.from_user_input("IAU_2015:49902").to_wkt()


@pytest.mark.parametrize("wkt", [WEST, CENTRIC])
def test_a_shapefile_is_refused_a_place_it_cannot_say(tmp_path: Path, wkt: str) -> None:
    """The old WKT of a .prj has neither longitudes to the west nor planetocentric latitudes on an ellipsoid."""
    with pytest.raises(OutputError, match=r"\.shp file cannot keep this coordinate system"):
        write(points(wkt=wkt), tmp_path / "x.shp")
    with pytest.raises(OutputError, match=r"\.shp file cannot keep this coordinate system"):
        check_targets([("rocks", target(tmp_path / "x.shp"))], wkt=wkt)
    assert names_in(tmp_path) == []


# What QGIS finds

LOOK = """
    import json, os, sys
    from qgis.core import Qgis, QgsApplication, QgsCoordinateReferenceSystem, QgsVectorLayer
    QgsApplication.setPrefixPath("/usr", True)
    application = QgsApplication([], False)
    application.initQgis()
    found = {"version": Qgis.QGIS_VERSION, "layers": {}}
    for source in sys.argv[1:]:
        layer = QgsVectorLayer(source, "layer", "ogr")
        crs = layer.crs()
        found["layers"][source] = {
            "valid": layer.isValid(),
            "crs_valid": crs.isValid(),
            "authid": crs.authid(),
            "wkt": crs.toWkt(QgsCoordinateReferenceSystem.WKT2_2019),
            "proj": crs.toProj(),
            "points": sorted([f.geometry().centroid().asPoint().x(), f.geometry().centroid().asPoint().y()]
                             for f in layer.getFeatures()),
            "fields": {f.name(): f.typeName() for f in layer.fields() if f.name() != "fid"},
            "nulls": sum(f["diam_eq_m"] is None or str(f["diam_eq_m"]) == "NULL" for f in layer.getFeatures()),
            "models": sorted({str(f["model"]) for f in layer.getFeatures()}),
        }
    print("FOUND " + json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # taking QGIS down may crash, and is not what is tested
"""


@pytest.fixture(scope="session")
def qgis_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a fresh QGIS needs, where the system's Python has one."""
    found = (
        subprocess.run([QGIS_PYTHON, "-c", "import qgis.core"], capture_output=True)
        if shutil.which(QGIS_PYTHON)
        else None
    )
    if found is None or found.returncode:
        pytest.skip(f"{QGIS_PYTHON} has no QGIS; set LUNAR_QGIS_PYTHON to a Python that has")
    home = str(tmp_path_factory.mktemp("qgis"))
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "PROJ_LIB")}
    own = {"QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": home, "QGIS_CUSTOM_CONFIG_PATH": home, "HOME": home}
    return kept | own


def look(environment: dict[str, str], sources: list[str]) -> dict[str, dict]:
    done = subprocess.run(
        [QGIS_PYTHON, "-c", textwrap.dedent(LOOK), *sources],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-2000:]
    found = json.loads(lines[0][6:])
    assert found["version"] >= "3.22"
    return found["layers"]


PLACES = {
    **{code: f"IAU_2015:{code}" for code in ("30100", "30110", "30115", "30130", "30135")},
    "transverse": "+proj=tmerc +lon_0=30 +k=0.999 +R=1737400",
    "site": "+proj=stere +lat_0=20 +lon_0=5 +R=1737400",
    "scaled_polar": "+proj=stere +lat_0=-90 +k=0.994 +R=1737400 +x_0=500000 +y_0=500000",
    "equal_area": "+proj=laea +lat_0=-89 +lon_0=30 +R=1737400",
    "mid_latitudes": "+proj=lcc +lat_1=20 +lat_2=60 +lat_0=40 +R=1737400",
    "sinusoidal": "+proj=sinu +R=1737400",
    "other_radius": "+proj=eqc +lat_ts=45 +lon_0=180 +R=1738140",
    "mars_polar": "+proj=stere +lat_0=-90 +lat_ts=-70 +a=3396190 +b=3376200",
}


def test_qgis_finds_every_layer_on_the_moon(tmp_path: Path, qgis_environment: dict[str, str]) -> None:
    exact = {name: CRS.from_user_input(crs).to_wkt() for name, crs in PLACES.items()}
    for name, wkt in exact.items():
        layer = points(5, wkt=wkt)
        if "30100" in name:  # degrees
            layer = points(5, wkt=wkt, geometry=shapely.points(np.linspace([-170, -80], [170, 80], 5)))
        for suffix in FORMATS:
            write(layer, tmp_path / f"{name}.{suffix}")
    found = look(qgis_environment, [str(tmp_path / f"{name}.{suffix}") for name in exact for suffix in FORMATS])
    for name, wkt in exact.items():
        for suffix in FORMATS:
            layer = found[str(tmp_path / f"{name}.{suffix}")]
            assert layer["valid"], (name, suffix)
            assert layer["crs_valid"], (name, suffix)
            assert same_place(layer["wkt"], wkt), (name, suffix, layer["proj"])
            expected = (
                np.linspace([-170, -80], [170, 80], 5)
                if name == "30100"
                else shapely.get_coordinates(points(5).geometry)
            )
            assert np.allclose(layer["points"], sorted(expected.tolist()), rtol=0, atol=1e-9), (name, suffix)
            assert layer["nulls"] == 2
            assert layer["models"] == ["Schätzung ☾"]
            if name.startswith("30") and (suffix == "fgb" or (suffix == "gpkg" and EXACT_WKT)):
                assert layer["authid"] == f"IAU_2015:{name}"


def test_qgis_finds_layers_added_to_a_geopackage(neighbour: Path, qgis_environment: dict[str, str]) -> None:
    write_layers([(points(), target(neighbour)), (polygons(), target(neighbour))])
    sources = [f"{neighbour}|layername={name}" for name in ("rocks", "rock_outlines")]
    for layer in look(qgis_environment, sources).values():
        assert layer["valid"]
        assert layer["crs_valid"]
        assert same_place(layer["wkt"], SOUTH)
        assert np.allclose(layer["points"], sorted(shapely.get_coordinates(points().geometry).tolist()), atol=1e-6)
        assert layer["fields"] == {"rock_id": "Integer64", "diam_eq_m": "Real", "edge": "Integer64", "model": "String"}


def test_qgis_finds_points_of_an_image_without_a_coordinate_system(
    tmp_path: Path, qgis_environment: dict[str, str]
) -> None:
    """At (column, -row), where QGIS draws the pixels, and on no body at all."""
    pixels = points(2, wkt=None, geometry=shapely.points([[0.5, -0.5], [99.5, -49.5]]))
    for suffix in FORMATS:
        write(pixels, tmp_path / f"x.{suffix}")
        stored = read(tmp_path / f"x.{suffix}")[0]["crs"]
        assert stored is None or "Undefined" in stored
    for source, layer in look(qgis_environment, [str(tmp_path / f"x.{suffix}") for suffix in FORMATS]).items():
        assert layer["valid"]
        assert layer["points"] == [[0.5, -0.5], [99.5, -49.5]]
        assert layer["proj"] == ""
        assert not layer["crs_valid"] or (source.endswith("gpkg") and "Undefined SRS" in layer["wkt"])


HOLD = """
    import os, sys, time
    from qgis.core import QgsApplication, QgsVectorLayer
    QgsApplication.setPrefixPath("/usr", True)
    application = QgsApplication([], False)
    application.initQgis()
    layer = QgsVectorLayer(sys.argv[1] + "|layername=craters", "layer", "ogr")
    edit = lambda: layer.startEditing() and layer.changeAttributeValue(1, 1, "edited")
    count = len(list(layer.getFeatures()))
    print("READY", edit() if sys.argv[2] == "editing" else count, flush=True)
    sys.stdin.readline()
    print("DONE", sys.argv[2] == "editing" or edit(), layer.commitChanges(), flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize("doing", ["showing", "editing"])
def test_a_layer_open_in_qgis_is_never_harmed(neighbour: Path, qgis_environment: dict[str, str], doing: str) -> None:
    """A file whose layers QGIS only shows may grow. One that it edits is left alone, and nothing edited is lost."""
    with contextlib.closing(sqlite3.connect(neighbour)) as database, database:
        database.execute("DELETE FROM layer_styles")  # this small one is not QGIS's own kind
    qgis = subprocess.Popen(
        [QGIS_PYTHON, "-c", textwrap.dedent(HOLD), str(neighbour), doing],
        env=qgis_environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert qgis.stdin
    assert qgis.stdout
    try:
        assert next(line for line in qgis.stdout if line.startswith("READY")).split()[1] in ("2", "True")
        if doing == "editing":
            with pytest.raises(OutputError, match="open for writing in another program"):
                write(points(), neighbour)
        else:
            write(points(), neighbour)
        qgis.stdin.write("go on\n")
        qgis.stdin.flush()
        assert next(line for line in qgis.stdout if line.startswith("DONE")).split()[1:] == ["True", "True"]
    finally:
        qgis.kill()
        qgis.wait()
    assert "edited" in read(neighbour, "craters")[2]["name"].tolist()
    assert layers_of(neighbour) == (["craters"] if doing == "editing" else ["craters", "rocks"])
    write(points(), neighbour, overwrite=True)
    assert "edited" in read(neighbour, "craters")[2]["name"].tolist()


def test_what_made_a_layer_is_read_with_it(tmp_path: Path) -> None:
    layer = Layer(
        "rocks", shapely.points([1.0], [2.0]), {"n": np.array([1])}, None, "Point", metadata='{"tool": "rocks"}'
    )
    for name in ("a.gpkg", "a.shp", "a.fgb"):
        write_layers([(layer, target(tmp_path / name))])
        assert vector.read_layer(tmp_path / name).metadata == '{"tool": "rocks"}'
        (tmp_path / name).with_suffix(".provenance.json").unlink(missing_ok=True)
    assert vector.read_layer(tmp_path / "a.shp").metadata == ""
    write_layers([(dataclasses.replace(layer, name="area", metadata=""), target(tmp_path / "a.gpkg"))])
    assert vector.read_layer(f"{tmp_path / 'a.gpkg'}|layername=area").metadata == ""
    assert vector.layers_of(tmp_path / "a.gpkg") == {"rocks": "Point", "area": "Point"}
