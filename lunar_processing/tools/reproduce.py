"""Make an output again from what it says of itself, and say whether it comes out the same.

Every raster and layer that the tools write carries its provenance, or has it beside: input and model with their
checksums, parameters, device, versions. That is enough to run it again; what is compared is all that was computed, not
dates and paths.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from lunar_processing import provenance
from lunar_processing.draft import is_there
from lunar_processing.errors import DataError, ModelError, ParameterError
from lunar_processing.modelpack import find_pack
from lunar_processing.raster.compare import bands_of, differences, tags_of
from lunar_processing.tools.job import Options, Report
from lunar_processing.vector import Layer, layers_of, read_layer

VECTORS = (".gpkg", ".shp", ".fgb")
TEXTS = (".csv", ".diam", ".scc", ".svg")  # compared line by line
PATHS = ("chip",)  # fields that name files
AGAIN = "again"  # stem of what is made
# What `lunar rocksizefrequency` writes, by how the names end; what cannot carry a record has it beside, in the fits.
SIZES = (
    "_sizes.csv",
    "_sizes.json",
    "_sizes.png",
    "_sizes.svg",
    "_abundance.tif",
    ".diam",
    ".scc",
    "_CRATER.shp",
    "_AREA.shp",
)
FITS = "_sizes.json"


@dataclass(frozen=True)
class Asked:
    """An output and what it says of itself."""

    path: Path
    layers: tuple[str, ...]  # of a vector file, those with provenance
    record: Mapping[str, Any]

    @property
    def parameters(self) -> Mapping[str, Any]:
        """As they were recorded."""
        return dict(self.record.get("parameters", {}))


@dataclass(frozen=True)
class Again:
    """With what it is made again, and in which empty folder; `image` is where the input lies now, if elsewhere."""

    folder: Path
    image: Path | None
    models: tuple[Path, ...]
    report: Report


def reproduce(
    output: str, image: Path | None = None, folders: Sequence[Path] = (), report: Report | None = None
) -> dict[str, Any]:
    """Run again and compare; `image` is where the input lies now, if not where it was."""
    asked = asked_of(output)
    with tempfile.TemporaryDirectory(prefix="lunar-reproduce-") as folder:
        RUN[str(asked.record["tool"])](asked, Again(Path(folder), image, tuple(folders), report or Report()))
        found = _compared(asked, Path(folder))
    then, now = dict(asked.record.get("versions", {})), provenance.versions()
    return {
        "output": str(asked.path),
        "tool": asked.record["tool"],
        "identical": not found,
        "differences": found,
        "versions": {k: [then.get(k), now.get(k)] for k in {**then, **now} if then.get(k) != now.get(k)},
    }


def in_words(facts: Mapping[str, Any]) -> str:
    """For a person."""
    lines = [f"  {facts['output']}, made by {facts['tool']}"]
    lines += ["  identical"] if facts["identical"] else [f"  differs: {text}" for text in facts["differences"]]
    lines += [f"  {name} was {then}, is {now}" for name, (then, now) in facts["versions"].items()]
    return "\n".join(lines)


# ---- what it says of itself --------------------------------------------------------------------------------------


def asked_of(output: str) -> Asked:
    """What an output says of how it was made."""
    name, _, layer = output.partition("|layername=")
    path = Path(name)
    if not is_there(path):
        raise DataError(f"There is no file {path}.", "check the path.")
    if path.suffix.lower() in VECTORS:
        return _asked_of_layers(path, layer)
    ending = next((ending for ending in SIZES if path.name.endswith(ending)), None)
    if ending is None or path.suffix == ".tif":
        return Asked(path, (), _record(path, tags_of(path).get(provenance.TAG, "")))
    return Asked(path, (), _record(path, _record_beside(path.with_name(path.name.removesuffix(ending) + FITS))))


def _asked_of_layers(path: Path, layer: str) -> Asked:
    texts = {}
    for one in [layer] if layer else layers_of(path):
        text = read_layer(f"{path}|layername={one}" if path.suffix.lower() == ".gpkg" else str(path)).metadata
        if text:
            texts[one] = text
    record = _record(path, next(iter(texts.values()), ""))
    same = tuple(one for one, text in texts.items() if _tool(text) == record["tool"])
    return Asked(path, same, record)


def _tool(text: str) -> str:
    try:
        return str(json.loads(text)["tool"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _record_beside(fits: Path) -> str:
    try:
        return json.dumps(json.loads(fits.read_text(encoding="utf-8"))["provenance"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _record(path: Path, text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
        tool, parameters = record["tool"], record["parameters"]
        json.dumps(record, allow_nan=False)
        assert isinstance(tool, str)
        assert isinstance(parameters, dict)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError, AssertionError):
        raise DataError(
            f"{path} does not say how it was made.", "give an output of this program that no other has rewritten."
        ) from None
    if tool.startswith("batch "):
        raise ParameterError(
            f"{path.name} was put together from the products of a batch.",
            f"make those again, one by one, as {path.parent / 'products' / 'NAME' / 'NAME.gpkg'}; "
            "`lunar batch … --resume` puts them together as before.",
        )
    if tool not in RUN:
        raise ParameterError(
            f"{path.name} was made by {tool}, which is not run again from its output.", f"{', '.join(RUN)} can be."
        )
    return dict(record)


def _input(asked: Asked, image: Path | None, first: str | None = None) -> Path:
    """The file it was made from, if it still is that file; `first` is its name if it is not the first of several."""
    try:
        inputs = list(asked.record["inputs"])
        told = next(one for one in inputs if first in (None, one["path"]))
        path = image or Path(told["path"])
        places = {one["path"]: (path.parent / Path(one["path"]).name, Path(one["path"])) for one in inputs}
    except (KeyError, TypeError, StopIteration):
        raise DataError(f"{asked.path} does not say what it was made from.", "give another output.") from None
    if not is_there(path):
        raise DataError(f"The input {path} is not there any more.", "say where it is now with --image.")
    for one in inputs:
        file = path if one is told else next((p for p in places[one["path"]] if is_there(p)), Path(one["path"]))
        facts = provenance.file_facts(file) if is_there(file) else {}
        if any(facts.get(kind) != one.get(kind) for kind in ("sha256", "quick-sha256")):
            raise DataError(f"{file} is not the file that it was made from: its checksum is another.", "find that one.")
    return path


def _options(asked: Asked, again: Again) -> Options:
    image = _input(asked, again.image)
    said, parameters = asked.record, asked.parameters
    model = said.get("model", {})
    if model.get("sha256"):
        there = find_pack(model["id"], again.models).card.sha256
        if there != model["sha256"]:
            raise ModelError(
                f"The model {model['id']} that is installed has other weights than the one that was used.",
                "give the folder of the old one with --models-dir.",
            )
    own = parameters.get("asked")
    if own is None:  # written before what was asked was kept apart from what was found out
        own = {name: parameters.get(name) for name in ("band", "pixel_size", "body")}
        own["sun_azimuth"] = parameters.get("sun_azimuth") if parameters.get("sun_azimuth_source") == "given" else None
    return Options(
        image=image, model=model.get("id"), model_folders=again.models, device=said.get("device", "auto"), **dict(own)
    )


# ---- again -------------------------------------------------------------------------------------------------------


def _enhance(asked: Asked, again: Again) -> None:
    from lunar_processing.tools.enhance import enhance

    enhance(_options(asked, again), again.folder / f"{AGAIN}.tif", again.report)


def _anomalies(asked: Asked, again: Again) -> None:
    from lunar_processing.tools.anomalies import Wishes, score_anomalies

    raster = None if asked.layers else "heat" if bands_of(asked.path) == ["heat"] else "scores"
    points = again.folder / f"{AGAIN}{asked.path.suffix if asked.layers else '.gpkg'}"
    rasters: dict[str, Any] = {raster: str(again.folder / f"{AGAIN}.tif")} if raster else {}
    chosen = {name: asked.parameters.get(name) for name in ("top", "percentile", "min_distance")}
    wishes = Wishes(str(points), **rasters, **{k: v for k, v in chosen.items() if v is not None})
    score_anomalies(_options(asked, again), wishes, again.report)


def _rocks(asked: Asked, again: Again) -> None:
    from lunar_processing.tools import rocks

    points = str(again.folder / f"{AGAIN}{asked.path.suffix if asked.layers else '.gpkg'}")
    wishes = rocks.Wishes(
        points=points,
        outlines=rocks.beside(points, rocks.OUTLINES),
        area=rocks.beside(points, rocks.AREA),
        mask=None if asked.layers else str(again.folder / f"{AGAIN}.tif"),
        min_diameter=float(asked.parameters.get("min_diameter", 0.0)),
        incidence=asked.parameters.get("incidence"),
    )
    rocks.segment_rocks(_options(asked, again), wishes, again.report)


def _sizes(asked: Asked, again: Again) -> None:
    from lunar_processing.tools import size_frequency

    own = dict(asked.parameters.get("asked", {}))
    name, mark, layer = str(own.get("rocks", "")).partition("|")
    rocks = _input(asked, again.image, name)
    wishes = size_frequency.Wishes(**{**own, "rocks": f"{rocks}{mark}{layer}", "folder": again.folder})
    size_frequency.size_frequency(wishes, again.report)


def _simulate(asked: Asked, again: Again) -> None:
    from lunar_processing.tools.simulate import Wishes, simulate

    known = {one.name for one in fields(Wishes)} - {"folder", "overwrite"}
    own: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in asked.parameters.items() if k in known}
    device = str(asked.record.get("device", "auto"))
    simulate(Wishes(again.folder, **{**own, "device": device}), again.report)


RUN: dict[str, Callable[[Asked, Again], None]] = {
    "enhance": _enhance,
    "anomalies": _anomalies,
    "rocks": _rocks,
    "rocksizefrequency": _sizes,
    "simulate": _simulate,
}


# ---- compared ----------------------------------------------------------------------------------------------------


def _compared(asked: Asked, folder: Path) -> list[str]:
    if asked.layers:
        return _layers_apart(asked, folder)
    suffix = asked.path.suffix.lower()
    if suffix in (".tif", ".tiff"):
        bands = bands_of(asked.path)
        same = [path for path in sorted(folder.glob("*.tif")) if bands_of(path) == bands]
    else:
        same = sorted(folder.glob(f"*{next(end for end in SIZES if asked.path.name.endswith(end))}"))
    if not same:
        return [f"{asked.path.name}: nothing of the kind comes of it now"]
    if suffix in TEXTS:
        one, two = (_lines(path) for path in (asked.path, same[0]))
        apart = abs(len(one) - len(two)) + sum(a != b for a, b in zip(one, two))
        return [f"{apart} of {len(one)} lines differ"] if apart else []
    if suffix == ".json":
        one, two = (json.loads(path.read_text(encoding="utf-8")) for path in (asked.path, same[0]))
        return [f"{key}: {one.get(key)}, now {two.get(key)}" for key in {**one, **two} if _other(one, two, key)]
    return differences(asked.path, same[0])


def _lines(path: Path) -> list[str]:
    """All but the record that a drawing carries, for it tells the time."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if not line.lstrip().startswith("<dc:description>")]


def _other(one: Mapping[str, Any], two: Mapping[str, Any], key: str) -> bool:
    return key != "provenance" and json.dumps(one.get(key)) != json.dumps(two.get(key))


def _layers_apart(asked: Asked, folder: Path) -> list[str]:
    """Each layer beside the one of the same name, or with the same fields: a layer may be called otherwise."""
    made = [
        _layer(path, name) for path in sorted(folder.iterdir()) if path.suffix in VECTORS for name in layers_of(path)
    ]
    found = []
    for name in asked.layers:
        layer = _layer(asked.path, name)
        same = [one for one in made if one.name == name and one.geometry_type == layer.geometry_type]
        same += [one for one in made if _alike(one) == _alike(layer)]
        found += _apart(layer, same[0]) if same else [f"layer {name}: nothing of the kind comes of it now"]
    return found


def _layer(path: Path, name: str) -> Layer:
    """A layer by its name; other files than a GeoPackage are one."""
    return read_layer(f"{path}|layername={name}" if path.suffix.lower() == ".gpkg" else str(path))


def _alike(layer: Layer) -> tuple[bool, set[str]]:
    return "Point" in layer.geometry_type, set(layer.fields)


def _apart(one: Layer, two: Layer) -> list[str]:
    """In words, what is not the same in two layers."""
    if len(one.geometry) != len(two.geometry):
        return [f"layer {one.name}: {len(one.geometry)} features, now {len(two.geometry)}"]
    found = []
    if not shapely.equals_exact(one.geometry, two.geometry, tolerance=0.0).all():
        moved = shapely.hausdorff_distance(one.geometry, two.geometry)
        found.append(f"layer {one.name}: shapes differ, by at most {float(np.nanmax(moved)):.6g} map units")
    for name in dict.fromkeys([*one.fields, *two.fields]):
        if name in PATHS:
            continue
        if name not in one.fields or name not in two.fields:
            found.append(f"layer {one.name}: the field {name} is in one of them only")
            continue
        a, b = one.fields[name], two.fields[name]
        if a.dtype == object or b.dtype == object:
            count = sum(str(x or "") != str(y or "") for x, y in zip(a, b))
            found += [f"layer {one.name}: the field {name} differs in {count} features"] if count else []
            continue
        a, b = a.astype(float), b.astype(float)
        apart = np.abs(a - b)[~((a == b) | (np.isnan(a) & np.isnan(b)))]
        if len(apart):
            most = float(np.nanmax(apart, initial=0.0))
            by = f", by at most {most:.6g}" if math.isfinite(most) else ""
            found.append(f"layer {one.name}: the field {name} differs in {len(apart)} features{by}")
    return found
