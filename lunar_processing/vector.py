"""Points and polygons to files: GeoPackage, shapefile, FlatGeobuf. A neighbour layer is never harmed.

What is written appears complete or not at all. A layer that goes into an existing GeoPackage is written into a
copy of it, which then takes its place; nobody else can write to it meanwhile. Each layer is read back before its
file is published, for a full disk is not always an error.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import shutil
import sqlite3
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyogrio
import pyogrio.raw
import shapely
from pyproj import CRS
from pyproj.exceptions import CRSError

from lunar_processing.draft import Draft, check_destination, is_there
from lunar_processing.errors import ImageError, OutputError, ParameterError, PlanetError
from lunar_processing.planet import body_of, same_place, wkt_for

_DRIVERS = {".gpkg": "GPKG", ".shp": "ESRI Shapefile", ".fgb": "FlatGeobuf"}

# Shapefiles cut names after 10 characters, and two names may become one. Every longer name has its short one here.
SHORT_NAMES = {
    "resolvable_m": "resolv_m",
    "resolvable_px": "resolv_px",
    "pixel_size_m": "px_size_m",
    "incidence_deg": "inc_deg",
    "sun_azimuth_deg": "sun_az_deg",
    "completeness_m": "complete_m",
    "valid_fraction": "valid_frac",
    "shadow_len_m": "shad_len_m",
}

_LONGEST_TEXT = 254  # bytes of UTF-8 in a field of a shapefile

# Files left by an older file of that name, which would be believed about the new one. A style (.qml) may stay.
_STALE = {
    "GPKG": "{name}-wal {name}-shm {name}-journal",
    "ESRI Shapefile": "{stem}.prj {stem}.cpg {stem}.qpj {stem}.qix {stem}.sbn {stem}.sbx {stem}.idm {stem}.ind "
    "{stem}.ain {stem}.aih {stem}.shp.xml {stem}.provenance.json",
    "FlatGeobuf": "{stem}.provenance.json",
}

# What GDAL writes since 3.9 into a GeoPackage that has no coordinate system.
_NOWHERE = (
    'LOCAL_CS["Undefined SRS",LOCAL_DATUM["unknown",32767],UNIT["unknown",0],'
    'AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
)

_WAIT_S = 10.0  # for another program to finish writing into a GeoPackage

T = TypeVar("T")


@dataclass(frozen=True)
class Layer:
    """Features of one kind, as columns.

    `geometry` holds n shapely geometries in map coordinates of `wkt` (or column, -row without one), `fields` n
    values each: integers, floats (NaN is written as NULL), or text (None is written as NULL).
    """

    name: str
    geometry: np.ndarray
    fields: dict[str, np.ndarray]
    wkt: str | None
    geometry_type: str
    description: str = ""
    metadata: str = ""


@dataclass(frozen=True)
class Target:
    """Where a layer goes. `layer` is None where its own name will do."""

    path: Path
    layer: str | None
    driver: str


def target(text: str | os.PathLike[str]) -> Target:
    """Read a destination as people and QGIS write it.

    `rocks.gpkg`, `rocks.gpkg|layername=rocks`, `ogr:dbname='rocks.gpkg' table="rocks" (geom)`, `rocks.shp`,
    `rocks.fgb`.
    """
    text = os.fspath(text)
    layer: str | None = None
    uri = re.fullmatch(r"""ogr:dbname='((?:[^'\\]|\\.)+)'\s+table="((?:[^"\\]|\\.|"")+)"\s*(?:\(.*)?""", text, re.S)
    if uri:
        name = re.sub(r"\\(.)", r"\1", uri[1])
        layer = re.sub(r"\\(.)", r"\1", uri[2].replace('""', '"'))
    else:
        name, *options = text.split("|")
        for option in options:
            key, _, value = option.partition("=")
            if key.lower() == "layername":
                layer = value
    path = Path(name)
    return Target(path, layer or None, _driver_of(path))


def layers_of(path: str | os.PathLike[str]) -> dict[str, str]:
    """Name and kind of geometry of every layer of a file; empty where it cannot be read as one of vectors."""
    try:
        with _read_plainly(path):
            return {str(name): str(kind) for name, kind in pyogrio.list_layers(path)}
    except ImageError:
        return {}


def read_layer(text: str | os.PathLike[str]) -> Layer:
    """A layer of a file: `rocks.shp`, `rocks.gpkg|layername=rocks`, or the only layer of `rocks.gpkg`."""
    name, _, option = os.fspath(text).partition("|")
    layer = option.partition("=")[2] or None
    if not is_there(Path(name)):
        raise ImageError(f"There is no file {name}.", "check the path.")
    there = list(layers_of(name))
    if layer is None and len(there) > 1:
        raise ImageError(
            f"{name} has {len(there)} layers: {', '.join(there)}.", f"choose one: '{name}|layername={there[0]}'."
        )
    if there and layer is not None and layer not in there:
        raise ImageError(f"{name} has no layer {layer!r}: it has {', '.join(there)}.", "name one of them.")
    with _read_plainly(name):
        meta, _, shapes, columns = pyogrio.raw.read(name, layer=layer)
        wkt = CRS.from_user_input(meta["crs"]).to_wkt("WKT2_2019") if meta["crs"] else None
        shapes = shapely.from_wkb(shapes)
        metadata = _provenance(Path(name), layer or there[0])
    fields = dict(zip(map(str, meta["fields"]), columns))
    kept = np.array([shape is not None and not shape.is_empty for shape in shapes], bool)
    fields = {key: values[kept] for key, values in fields.items()}
    return Layer(layer or there[0], shapes[kept], fields, wkt, str(meta["geometry_type"]), metadata=metadata)


@contextlib.contextmanager
def _read_plainly(path: str | os.PathLike[str]) -> Iterator[None]:
    """What the libraries below say of a file that is none, as ours: of damaged files they raise all kinds of things."""
    try:
        yield
    except Exception as error:
        raise ImageError(
            f"{path} is not a vector file that can be read ({error}).", "give a GeoPackage, or fetch the file again."
        ) from error


def _provenance(path: Path, layer: str) -> str:
    """What `write_layers` was told as metadata of a layer; empty where it is not there."""
    beside = path.with_suffix(".provenance.json")
    if path.suffix.lower() != ".gpkg":
        return beside.read_text(encoding="utf-8") if beside.is_file() else ""
    told = pyogrio.read_info(path, layer=layer).get("layer_metadata") or {}
    return str(told.get("provenance", ""))


def check_targets(layers: list[tuple[str, Target]], overwrite: bool = False, wkt: str | None = None) -> None:
    """Refuse, before any work is done, what `write_layers` would refuse.

    `layers` are (name of the layer, target) each, `wkt` is the coordinate system they will have.
    """
    for path, content in _by_file(layers).items():
        driver, names = content[0][1].driver, [place.layer or name for name, place in content]
        check_destination(path, overwrite or driver == "GPKG")
        if len(names) > 1 and driver != "GPKG":
            raise OutputError(
                f"{path.name} can hold one layer, not {', '.join(names)}.",
                "give each a file of its own, or write a GeoPackage (.gpkg).",
            )
        if len({name.lower() for name in names}) < len(names):
            raise OutputError(
                f"Two layers of one name go into {path.name}: {', '.join(names)}.",
                "name them apart, as in out.gpkg|layername=rocks.",
            )
        if driver == "GPKG" and path.exists():
            with _hold(path) as database:
                _check_names(path, database, names, overwrite)
        if driver == "ESRI Shapefile" and not _kept_by_shapefile(wkt):
            raise _loses_place(path)


def write_layers(layers: list[tuple[Layer, Target]], overwrite: bool = False) -> list[Path]:
    """Write all layers, then publish all their files together; the files' paths.

    An existing GeoPackage keeps its other layers; a layer of the same name, or an existing file of another format,
    is refused unless `overwrite`.
    """
    for wkt in dict.fromkeys(layer.wkt for layer, _ in layers):
        check_targets([(layer.name, place) for layer, place in layers], overwrite, wkt)
    with contextlib.ExitStack() as stack:
        drafts = [_draft(stack, path, content, overwrite) for path, content in _by_file(layers).items()]
        return [_publish(*unfinished) for unfinished in drafts]


def _draft(
    stack: contextlib.ExitStack, path: Path, content: list[tuple[Layer, Target]], overwrite: bool
) -> tuple[Draft, str, sqlite3.Connection | None]:
    """The file with its layers, before it is published; an existing GeoPackage is held until then."""
    driver = content[0][1].driver
    held = stack.enter_context(_hold(path)) if driver == "GPKG" and path.exists() else None
    # A new GeoPackage never takes the place of one that another run makes meanwhile.
    draft = stack.enter_context(Draft(path, overwrite=held is not None if driver == "GPKG" else overwrite))
    with _plainly(path):
        if held is not None:
            _check_names(path, held, [place.layer or layer.name for layer, place in content], overwrite)
            _copy(path, draft.path)
        for layer, place in content:
            _write(layer, place, draft.path)
    return draft, driver, held


def _driver_of(path: Path) -> str:
    driver = _DRIVERS.get(path.suffix.lower())
    if driver:
        return driver
    why = (
        "GeoJSON knows no places but those on the Earth: it would turn lunar coordinates into terrestrial ones."
        if path.suffix.lower() in (".geojson", ".json", ".geojsonl")
        else f"{path.name or path} is no kind of vector file that can be written."
    )
    raise OutputError(why, "write a GeoPackage (.gpkg), a shapefile (.shp) or a FlatGeobuf (.fgb).")


def _by_file(layers: list[tuple[T, Target]]) -> dict[Path, list[tuple[T, Target]]]:
    """What goes into each file. Links are followed, so that the file itself is replaced, not the link to it."""
    files: dict[Path, list[tuple[T, Target]]] = {}
    for layer, place in layers:
        files.setdefault(place.path.absolute().resolve(), []).append((layer, place))
    return files


@contextlib.contextmanager
def _plainly(path: Path) -> Iterator[None]:
    """Errors of the libraries below, as ours."""
    try:
        yield
    except OutputError:
        raise
    except (RuntimeError, OSError, sqlite3.Error) as error:
        raise OutputError(
            f"{path} could not be written: {error}.", "see that the disk has space and is writable, and run again."
        ) from error


def _connect(path: Path) -> sqlite3.Connection:
    """An existing GeoPackage as a database; anything else is refused, for it is not ours to replace."""
    refused = OutputError(
        f"{path} exists, and is not a GeoPackage.", "choose another name, or move that file out of the way."
    )
    with path.open("rb") as file:
        if file.read(16) != b"SQLite format 3\0":
            raise refused
    database = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
    try:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'gpkg_contents'").fetchone():
            raise refused
    except sqlite3.Error as error:
        database.close()
        raise _busy(path, error) from error
    except OutputError:
        database.close()
        raise
    return database


@contextlib.contextmanager
def _hold(path: Path) -> Iterator[sqlite3.Connection]:
    """An existing GeoPackage that nobody else can write to meanwhile."""
    while True:
        before = path.stat()
        with contextlib.closing(_connect(path)) as database:
            try:
                # Write-ahead changes live in a file beside it, which must not meet the new GeoPackage. Only the last
                # program that has it open can put them in.
                database.execute("PRAGMA journal_mode = DELETE")
                database.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise _busy(path, error) from error
            if os.path.samestat(before, path.stat()):
                yield database
                return
        # While this waited for the lock, another run has put its own version in place: take that one.


def _busy(path: Path, error: sqlite3.Error) -> OutputError:
    if "locked" in str(error):
        return OutputError(
            f"{path} is open for writing in another program.",
            "finish editing there (in QGIS: save and toggle editing off, or remove its layers from the project), "
            "or write to a new file.",
        )
    return OutputError(
        f"{path} cannot be added to: {error}.", "see that the file is writable and undamaged, or write to a new file."
    )


def _check_names(path: Path, database: sqlite3.Connection, names: list[str], overwrite: bool) -> None:
    """Refuse layers that are there already, unless they may be replaced, and names that are no layer's to take."""
    there = {
        str(table).lower(): (str(table), kind)
        for table, kind in database.execute("SELECT table_name, data_type FROM gpkg_contents")
    }
    taken = {str(table).lower() for (table,) in database.execute("SELECT name FROM sqlite_master")}
    for name in names:
        table, kind = there.get(name.lower(), (name, "features"))
        if kind != "features" or table != name or (name.lower() in taken and name.lower() not in there):
            raise OutputError(
                f"{path} has something else of the name {table!r}, which a layer {name!r} cannot replace.",
                f"name the layer otherwise, as in {path.name}|layername=NAME.",
            )
        if name.lower() in there and not overwrite:
            raise OutputError(
                f"{path} has a layer {name!r} already.",
                f"allow replacing it with --overwrite, or name another, as in {path.name}|layername=NAME.",
            )


def _copy(path: Path, draft: Path) -> None:
    """Through the database: opening a locked database's file by other means would, on closing, unlock it."""
    with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(draft)) as copy:
        source.backup(copy)
    shutil.copymode(path, draft)


def _write(layer: Layer, place: Target, draft: Path) -> None:
    """One layer into a new file, or into a GeoPackage beside its other layers."""
    # The layer of a shapefile has the name of its file, whatever one asks for.
    name = None if place.driver == "ESRI Shapefile" else place.layer or layer.name
    fields = {field: _column(values) for field, values in layer.fields.items()}
    if place.driver == "ESRI Shapefile":
        fields = _for_shapefile(fields)
    if place.driver != "GPKG" and layer.metadata:
        draft.with_suffix(".provenance.json").write_text(layer.metadata, encoding="utf-8")
    with _quiet_and_dated(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        pyogrio.raw.write(
            draft,
            shapely.to_wkb(layer.geometry),
            list(fields.values()),
            list(fields),
            layer=name,
            driver=place.driver,
            geometry_type=layer.geometry_type,
            promote_to_multi=layer.geometry_type.startswith("Multi"),
            crs=_crs_text(layer, place.driver),
            encoding="UTF-8",
            **_options(layer, place, draft),
        )
        _verify(layer, fields, draft, place.driver, name)


def _options(layer: Layer, place: Target, draft: Path) -> dict[str, dict[str, str]]:
    """What the format can do beyond shapes and fields."""
    date = _source_date()
    if place.driver == "ESRI Shapefile":
        dated = {"DBF_DATE_LAST_UPDATE": f"{date:%Y-%m-%d}"} if date else {}
        return {"layer_options": {"SPATIAL_INDEX": "YES", **dated}}
    if place.driver == "FlatGeobuf":
        return {"layer_options": {"SPATIAL_INDEX": "YES"}}
    name = place.layer or layer.name
    return {
        "dataset_options": {} if draft.exists() else _new_geopackage(),
        "layer_options": {"SPATIAL_INDEX": "YES", "IDENTIFIER": name, "DESCRIPTION": layer.description},
        "layer_metadata": {"provenance": layer.metadata} if layer.metadata else {},
    }


def _new_geopackage() -> dict[str, str]:
    """Version 1.2, for QGIS 3.22 warns of a newer one.

    With exact WKT2, where GDAL can: the old text keeps the numbers of a polar stereographic system, but QGIS does not
    find its code by them.
    """
    exact = {"CRS_WKT_EXTENSION": "YES"} if pyogrio.__gdal_version__ >= (3, 9, 0) else {}
    return {"VERSION": "1.2", **exact}


def _crs_text(layer: Layer, driver: str) -> str | None:
    if layer.wkt is not None:
        return wkt_for(layer.wkt, driver)
    # Older GDAL takes a GeoPackage without a coordinate system for one in degrees on the Earth.
    return _NOWHERE if driver == "GPKG" and pyogrio.__gdal_version__ < (3, 9, 0) else None


def _column(values: np.ndarray) -> np.ndarray:
    """Values as every driver takes them: 64-bit numbers, NaN for what is not finite, text as objects."""
    values = np.asarray(values)
    if values.dtype.kind == "f":
        return np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    if values.dtype.kind == "b":
        return values.astype(bool)
    return np.array([None if value is None else str(value) for value in values], dtype=object)


def _for_shapefile(fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    short = {SHORT_NAMES.get(name, name): values for name, values in fields.items()}
    for name, values in short.items():
        if len(name.encode()) > 10 or len(short) < len(fields):
            raise OutputError(
                f"A shapefile cannot keep the field name {name!r}.", "write a GeoPackage (.gpkg) instead."
            )
        if values.dtype == object and any(len((text or "").encode()) > _LONGEST_TEXT for text in values):
            raise OutputError(
                f"A text in the field {name!r} is longer than the {_LONGEST_TEXT} bytes a shapefile can keep.",
                "write a GeoPackage (.gpkg) instead.",
            )
    return short


def _source_date() -> datetime.datetime | None:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        return datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc) if epoch else None
    except (ValueError, OverflowError, OSError):
        raise ParameterError(
            f"SOURCE_DATE_EPOCH is {epoch!r}, which is no date.", "set it to seconds since 1970, or unset it."
        ) from None


@contextlib.contextmanager
def _quiet_and_dated() -> Iterator[None]:
    """No .aux.xml beside a GeoPackage; with SOURCE_DATE_EPOCH (seconds since 1970) that date and not today's."""
    date = _source_date()
    wanted = {"GDAL_PAM_ENABLED": "NO"}
    if date:
        wanted["OGR_CURRENT_DATE"] = f"{date:%Y-%m-%dT%H:%M:%S.000Z}"
    before = {name: pyogrio.get_gdal_config_option(name) for name in wanted}
    pyogrio.set_gdal_config_options(wanted)
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options(before)


def _verify(layer: Layer, fields: dict[str, np.ndarray], draft: Path, driver: str, name: str | None) -> None:
    """Read the layer back: the same shapes, numbers and place, in any order."""
    meta, _, wkb, columns = pyogrio.raw.read(draft, layer=name)
    kept = list(meta["fields"]) == list(fields) and len(wkb) == len(layer.geometry)
    kept = kept and _alike(shapely.bounds(layer.geometry), shapely.bounds(shapely.from_wkb(wkb)))
    for given, found in zip(fields.values(), columns) if kept else ():
        kept = kept and (given.dtype == object or _alike(given[:, None], found[:, None]))
    if not kept:
        raise OutputError(
            f"{name or 'The layer'} reads back otherwise than it was written.",
            "free space on the disk and run again; if that does not help, write a GeoPackage (.gpkg).",
        )
    if layer.wkt is None or body_of(layer.wkt) is None or driver == "FlatGeobuf":
        return  # FlatGeobuf keeps the text as it is, but pyogrio tells only as much of it as the old WKT can say
    if not same_place(layer.wkt, meta["crs"] if driver == "ESRI Shapefile" else _geopackage_crs(draft, name)):
        raise _loses_place(draft)


def _geopackage_crs(draft: Path, table: str | None) -> str | None:
    """The text of a layer's coordinate system: the exact one, where there is a column for it."""
    with contextlib.closing(sqlite3.connect(draft)) as database:
        database.row_factory = sqlite3.Row
        row = database.execute(
            "SELECT s.* FROM gpkg_spatial_ref_sys s JOIN gpkg_contents USING (srs_id) WHERE table_name = ?",
            (table,),
        ).fetchone()
    exact = row["definition_12_063"] if "definition_12_063" in row.keys() else None  # noqa: SIM118 values else
    return exact if exact and exact != "undefined" else row["definition"]


def _kept_by_shapefile(wkt: str | None) -> bool:
    """Whether the old WKT of a .prj file can say it: not longitudes to the west, nor planetocentric latitudes."""
    if wkt is None or body_of(wkt) is None:
        return True
    try:
        return same_place(wkt, CRS.from_user_input(wkt).to_wkt("WKT1_ESRI"))
    except (CRSError, PlanetError):
        return False


def _loses_place(path: Path) -> OutputError:
    return OutputError(
        f"A {path.suffix} file cannot keep this coordinate system; its features would lie elsewhere.",
        "write a new GeoPackage (.gpkg), or warp the image to an equirectangular or polar stereographic system.",
    )


def _alike(given: np.ndarray, found: np.ndarray) -> bool:
    """Whether two tables of numbers hold the same rows; shapefiles keep 15 digits."""
    given, found = np.asarray(given, float), np.asarray(found, float)
    given, found = (np.sort(table, axis=0) for table in (given, found))
    return given.shape == found.shape and np.allclose(given, found, rtol=1e-12, atol=1e-12, equal_nan=True)


def _publish(draft: Draft, driver: str, held: sqlite3.Connection | None) -> Path:
    if held is not None and os.name == "nt":
        held.close()  # Windows replaces no file that is open
    draft.flush()  # after this only names change, so that the old file goes when the new one is safe
    with _plainly(draft.final):
        if driver == "ESRI Shapefile" and draft.overwrite:
            draft.final.unlink(missing_ok=True)  # at no moment may old parts and new ones look like one whole
        if held is None:
            for pattern in _STALE[driver].split(" "):
                name = pattern.format(name=draft.final.name, stem=draft.final.stem)
                draft.final.with_name(name).unlink(missing_ok=True)
    return draft.publish()
