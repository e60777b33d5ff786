"""What strangers send: files of every kind the engine reads, damaged at random, ten thousand of them.

A reader may refuse a file in plain words, or read what is in it. It may not crash, hang, take all memory, or take half
a file for a whole one. `make fuzz` tries many, other ones each time; a few, always the same, are tried with all tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import formats
import numpy as np
import pytest
import shapely
from guarded import Reader, card_of, weights
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from pyproj import CRS

from lunar_processing.vector import Layer, target, write_layers

MANY = int(os.environ.get("LUNAR_FUZZ", "500"))  # files of each kind
FEW = 6
# What a file's numbers become: those at the ends of their types, and those that do not fit.
NUMBERS = (
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    10**6,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)
WORDS = (
    *(
        "",
        "0",
        "-1",
        "1e308",
        "1e999",
        "nan",
        "-inf",
        "null",
        "NULL",
        "true",
        '"',
        "'",
        "{",
        "[[",
        "}",
        "]",
        "\\",
        "/",
        "<",
    ),
    *(
        ">",
        "=",
        ",",
        ";",
        "\n",
        "\r\n",
        "\x00",
        "../../x",
        "/etc/passwd",
        "é",
        "\ud800",
        "9" * 5000,
        "[" * 3000,
        "1_0",
        "٣",
    ),
    *("2147483648", "4294967296", "99999999999999999999", "0.5", "1e-320", "A" * 3000, "END", "UNK", "<![CDATA["),
)


# ---- whole files -------------------------------------------------------------------------------------------------


def zipped(path: Path) -> Path:
    source = weights(path.parent / "quiet").parent
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as box:
        for name in ("model.json", "weights.safetensors"):
            box.write(source / name, f"quiet/{name}")
    shutil.rmtree(source)
    return path


def begun(folder: Path) -> None:
    """The images of a batch; the reader begins it."""
    images = folder.parent / "images"
    images.mkdir()
    for name, row in (("one", 0), ("two", 3)):
        formats.geotiff(images / f"{name}.tif", np.roll(formats.ramp("uint8", 40, 32), row, 0))


def layer(path: Path) -> None:
    record = {"tool": "rocks", "inputs": [{"path": "a.tif", "sha256": "0"}], "parameters": {"min_diameter": 2.5}}
    fields = {"diam_eq_m": np.array([1.5, np.nan]), "class": np.array(["a", None], object)}
    points = shapely.points([[1.0, 2.0], [3.0, 4.0]])
    wkt = CRS(formats.SOUTH_POLE).to_wkt()
    write_layers([(Layer("rocks", points, fields, wkt, "Point", metadata=json.dumps(record)), target(path))])


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def index(folder: Path) -> Path:
    columns = {"PRODUCT_ID": (2, 13, ""), "INCIDENCE_ANGLE": (17, 6, "DEG"), "RESOLUTION": (24, 8, "KM/PIXEL")}
    objects = [
        f'OBJECT = COLUMN\n  NAME = "{name}"\n  START_BYTE = {start}\n  BYTES = {size}\n  UNIT = "{unit}"\nEND_OBJECT\n'
        for name, (start, size, unit) in columns.items()
    ]
    written(folder / "INDEX.TAB", '"M104318871LE ", 70.25,  0.0005\r\n"M104318872RE ",   UNK,  0.0007\r\n')
    return written(folder / "INDEX.LBL", "PDS_VERSION_ID = PDS3\n" + "".join(objects) + "END\n")


TABLE = "PRODUCT_ID,INCIDENCE_ANGLE,LABEL\nM104318871LE,70.0,a\nM104318872RE.IMG,80,\nM104318873LE,UNK,d\n"
# kind → how a whole one is made, the file that is damaged, the reader. Those that are `sealed` tell every damage.
KINDS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "GeoTIFF": (lambda f: formats.tiled(f / "a.tif", nodata=0), "a.tif", "image"),
    "plain GeoTIFF": (lambda f: formats.scaled(f / "a.tif", formats.ramp(), 0.01, 1.0, "I/F"), "a.tif", "image"),
    "GeoTIFF with mask": (
        lambda f: formats.with_mask_band(f / "a.tif", formats.ramp(), formats.ramp() > 99),
        "a.tif",
        "image",
    ),
    "COG": (lambda f: formats.cog(f / "a.tif", nodata=0), "a.tif", "image"),
    "PNG": (lambda f: formats.png(f / "a.png"), "a.png", "image"),
    "ISIS cube": (lambda f: formats.isis_cube(f / "a.cub", groups=formats.NAC_GROUPS), "a.cub", "image"),
    "ISIS cube in tiles": (
        lambda f: formats.isis_cube(f / "a.cub", formats.ramp("int16"), formats.MAPPING_GROUP, 32),
        "a.cub",
        "image",
    ),
    "PDS3 EDR": (lambda f: formats.nac_edr(f / "a.IMG"), "a.IMG", "image"),
    "PDS3 CDR": (lambda f: formats.nac_cdr(f / "a.IMG"), "a.IMG", "image"),
    "PDS3 label": (formats.kaguya_tc, "TC1S2B0_01.lbl", "image"),
    "PDS4 label": (lambda f: formats.pds4(f / "a.xml", discipline=formats.PDS4_GEOMETRY), "a.xml", "image"),
    "VRT": (
        lambda f: formats.vrt(f / "a.vrt", formats.tiled(f / "b.tif"), formats.tiled(f / "c.tif")),
        "a.vrt",
        "image",
    ),
    "card": (weights, "model.json", "model"),
    "weights": (weights, "weights.safetensors", "model"),
    "archive of models": (lambda f: zipped(f / "a.zip"), "a.zip", "archive"),
    "journal": (lambda f: begun(f / "out"), "out/journal.jsonl", "batch"),
    "begun": (lambda f: begun(f / "out"), "out/batch.json", "batch"),
    "list": (lambda f: written(f / "a.txt", "# strips\none.tif\nfolder/two.IMG\n\n"), "a.txt", "listed"),
    "manifest": (
        lambda f: written(f / "a.csv", 'image,sun_azimuth,site\none.tif,90,"Schrödinger"\ntwo.IMG,,x\n'),
        "a.csv",
        "listed",
    ),
    "table": (lambda f: written(f / "a.csv", TABLE), "a.csv", "table"),
    "index label": (index, "INDEX.LBL", "table"),
    "index": (index, "INDEX.TAB", "table"),
    "GeoPackage": (lambda f: layer(f / "a.gpkg"), "a.gpkg", "vectors"),
    "shapefile": (lambda f: layer(f / "a.shp"), "a.shp", "vectors"),
    "provenance": (lambda f: layer(f / "a.shp"), "a.provenance.json", "provenance"),
    "FlatGeobuf": (lambda f: layer(f / "a.fgb"), "a.fgb", "vectors"),
}
# Each byte of these is under a checksum, or makes no difference.
SEALED = ("PNG", "archive of models")
# A file that was cut is refused, or it is only its end without meaning that is missing.
WHOLE_OR_NOT = (
    "GeoTIFF",
    "plain GeoTIFF",
    "COG",
    "PNG",
    "ISIS cube",
    "PDS3 EDR",
    "PDS3 CDR",
    "weights",
    "archive of models",
)


# ---- damage ------------------------------------------------------------------------------------------------------

PLACES = st.tuples(st.booleans(), st.integers(0, 2**16 - 1))
LENGTHS = st.sampled_from((1, 2, 3, 4, 8, 16, 61, 300, 2000))


def place(data: bytearray, at: tuple[bool, int]) -> int:
    """Half of all damage goes to the beginning, where the labels and tables are."""
    head, share = at
    return (min(len(data), 1200) if head else len(data)) * share >> 16


def flip(draw: Callable, data: bytearray) -> None:
    if data:
        data[place(data, draw(PLACES))] ^= 1 << draw(st.integers(0, 7))


def number(draw: Callable, data: bytearray) -> None:
    size, order = draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from(("little", "big")))
    at = place(data, draw(PLACES))
    data[at : at + size] = (draw(st.sampled_from(NUMBERS)) % 256**size).to_bytes(size, order)


def cut(draw: Callable, data: bytearray) -> None:
    del data[place(data, draw(PLACES)) :]


def lose(draw: Callable, data: bytearray) -> None:
    at = place(data, draw(PLACES))
    del data[at : at + draw(LENGTHS)]


def repeat(draw: Callable, data: bytearray) -> None:
    at, to = place(data, draw(PLACES)), place(data, draw(PLACES))
    data[to:to] = data[at : at + draw(LENGTHS)]


def word(draw: Callable, data: bytearray) -> None:
    """A number or a word of a text becomes another."""
    found = [match.span() for match in re.finditer(rb"[-+.\w]+", bytes(data[:20_000]))]
    if found:
        start, end = draw(st.sampled_from(found))
        data[start:end] = draw(st.sampled_from(WORDS)).encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: Callable, whole: bytes) -> bytes:
    """A file to which a few things have happened."""
    data = bytearray(whole)
    for change in draw(
        st.lists(st.sampled_from((flip, number, cut, lose, repeat, word, word)), min_size=1, max_size=4)
    ):
        change(draw, data)
    return bytes(data)


# ---- the tests ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a file of a kind, made once."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("whole") / "folder"
            made[kind].mkdir()
            KINDS[kind][0](made[kind])
        return made[kind]

    return make


def try_many(kind: str, folder: Path, reader: Reader, count: int, always_the_same: bool) -> None:
    _, name, reads = KINDS[kind]
    path = folder / name
    if reads == "batch" and not path.exists():
        reader.read("begin", path)
    data = path.read_bytes()
    first = reader.read(reads, path)
    assert "read" in first, f"the whole one is not read: {first}"

    @settings(
        max_examples=count,
        derandomize=always_the_same,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # to shrink takes long, and the file is kept
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(damaged(data))
    def one(changed: bytes) -> None:
        path.write_bytes(changed)
        if kind == "weights":  # whoever sends bad weights sends the checksum that belongs to them
            card_of(folder)
        answer = reader.read(reads, path)
        kept = Path(os.environ.get("LUNAR_FUZZ_KEEP", folder.parent)) / f"{kind.replace(' ', '-')}{path.suffix}"
        if "broken" in answer:
            kept.write_bytes(changed)
            note(f"kept as {kept}")
        assert "broken" not in answer, answer["broken"]
        if "read" in answer and (kind in SEALED or (kind in WHOLE_OR_NOT and data.startswith(changed))):
            assert answer == first, "something else was read, and nobody said so"
        if reads == "batch" and "read" in answer:
            assert answer == first, "a batch that was begun again made something else"

    try:
        one()
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_damaged_files(kind: str, whole: Callable[[str], Path], reader: Reader) -> None:
    try_many(kind, whole(kind), reader, FEW, always_the_same=True)


TEXTS = (
    "PDS3 EDR",
    "PDS3 CDR",
    "PDS3 label",
    "ISIS cube in tiles",
    "PDS4 label",
    "VRT",
    "card",
    "index label",
    "provenance",
)
NASTY = ("", "-1", "0", "1e308", "nan", "9" * 5000, "9" * 20, "[[", "é")


@pytest.mark.slow
@pytest.mark.parametrize("kind", TEXTS)
def test_each_word_of_a_label_becomes_each_that_is_nasty(
    kind: str, whole: Callable[[str], Path], reader: Reader
) -> None:
    _, name, reads = KINDS[kind]
    path = whole(kind) / name
    data = path.read_bytes()
    label = data.partition(b"\r\nEND\r\n")[0] if path.suffix == ".IMG" else data[:8192]
    broken = {}
    for match in re.finditer(rb"[-+.\w]+", label):
        for nasty in NASTY:
            path.write_bytes(data[: match.start()] + nasty.encode() + data[match.end() :])
            answer = reader.read(reads, path)
            if "broken" in answer:
                broken[answer["broken"][-300:]] = (match[0], nasty[:10])
    path.write_bytes(data)
    assert not broken


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(kind: str, whole: Callable[[str], Path], reader: Reader) -> None:
    slow = KINDS[kind][2] == "batch"  # draws a map each time
    try_many(kind, whole(kind), reader, MANY // 4 if slow else MANY, always_the_same=False)
