"""Make an output again from what it says of itself, and say whether it comes out the same.

Every raster and layer that the tools write carries its provenance: input and model with their checksums, parameters,
device, versions. That is enough to run it again; what is compared is all that was computed, not dates and paths.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from lunar_processing import provenance
from lunar_processing.errors import DataError, ModelError, ParameterError
from lunar_processing.modelpack import find_pack
from lunar_processing.raster.compare import bands_of, differences, tags_of
from lunar_processing.tools.job import Options, Report
from lunar_processing.vector import Layer, layers_of, read_layer

VECTORS = (".gpkg", ".shp", ".fgb")
PATHS = ("chip",)  # fields that name files
AGAIN = "again"  # stem of what is made


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


def reproduce(
    output: str, image: Path | None = None, folders: Sequence[Path] = (), report: Report | None = None
) -> dict[str, Any]:
    """Run again and compare; `image` is where the input lies now, if not where it was."""
    report = report or Report()
    asked = asked_of(output)
    options = _options(asked, _input(asked, image), tuple(folders))
    with tempfile.TemporaryDirectory(prefix="lunar-reproduce-") as folder:
        made = _run(asked, options, Path(folder), report)
        found = _compared(asked, made)
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
    if not path.exists():
        raise DataError(f"There is no file {path}.", "check the path.")
    if path.suffix.lower() not in VECTORS:
        return Asked(path, (), _record(path, tags_of(path).get(provenance.TAG, "")))
    texts = {}
    for one in [layer] if layer else layers_of(path):
        text = read_layer(f"{path}|layername={one}" if path.suffix.lower() == ".gpkg" else str(path)).metadata
        if text:
            texts[one] = text
    record = _record(path, next(iter(texts.values()), ""))
    same = tuple(one for one, text in texts.items() if json.loads(text).get("tool") == record["tool"])
    return Asked(path, same, record)


def _record(path: Path, text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
        tool = record["tool"]
        assert record["inputs"][0]["path"]
    except (ValueError, KeyError, IndexError, TypeError, AssertionError):
        raise DataError(
            f"{path} does not say how it was made.", "give an output of this program that no other has rewritten."
        ) from None
    if tool not in RUN:
        raise ParameterError(
            f"{path.name} was made by {tool}, which is not run again from its output.",
            f"{', '.join(RUN)} can be; of a batch, take the products.",
        )
    return dict(record)


def _input(asked: Asked, image: Path | None) -> Path:
    """The image it was made from, if it still is that image."""
    first = asked.record["inputs"][0]
    path = image or Path(first["path"])
    if not path.exists():
        raise DataError(f"The input {path} is not there any more.", "say where it is now with --image.")
    for told in asked.record["inputs"]:
        file = path.parent / Path(told["path"]).name if told is not first else path
        facts = provenance.file_facts(file) if file.exists() else {}
        if any(facts.get(kind) != told.get(kind) for kind in ("sha256", "quick-sha256")):
            raise DataError(f"{file} is not the file that it was made from: its checksum is another.", "find that one.")
    return path


def _options(asked: Asked, image: Path, folders: tuple[Path, ...]) -> Options:
    said, parameters = asked.record, asked.parameters
    model = said.get("model", {})
    if model.get("sha256"):
        there = find_pack(model["id"], folders).card.sha256
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
        image=image, model=model.get("id"), model_folders=folders, device=said.get("device", "auto"), **dict(own)
    )


# ---- again -------------------------------------------------------------------------------------------------------


def _enhance(asked: Asked, options: Options, folder: Path, report: Report) -> Path:
    from lunar_processing.tools.enhance import enhance

    made = folder / f"{AGAIN}.tif"
    enhance(options, made, report)
    return made


def _anomalies(asked: Asked, options: Options, folder: Path, report: Report) -> Path:
    from lunar_processing.tools.anomalies import Wishes, score_anomalies

    raster = None if asked.layers else "heat" if bands_of(asked.path) == ["heat"] else "scores"
    points = folder / f"{AGAIN}{asked.path.suffix if asked.layers else '.gpkg'}"
    rasters: dict[str, Any] = {raster: str(folder / f"{AGAIN}.tif")} if raster else {}
    chosen = {name: asked.parameters.get(name) for name in ("top", "percentile", "min_distance")}
    wishes = Wishes(str(points), **rasters, **{k: v for k, v in chosen.items() if v is not None})
    score_anomalies(options, wishes, report)
    return folder / f"{AGAIN}.tif" if raster else points


def _rocks(asked: Asked, options: Options, folder: Path, report: Report) -> Path:
    from lunar_processing.tools import rocks

    points = str(folder / f"{AGAIN}{asked.path.suffix if asked.layers else '.gpkg'}")
    wishes = rocks.Wishes(
        points=points,
        outlines=rocks.beside(points, rocks.OUTLINES),
        area=rocks.beside(points, rocks.AREA),
        mask=None if asked.layers else str(folder / f"{AGAIN}.tif"),
        min_diameter=float(asked.parameters.get("min_diameter", 0.0)),
        incidence=asked.parameters.get("incidence"),
    )
    rocks.segment_rocks(options, wishes, report)
    return Path(points) if asked.layers else folder / f"{AGAIN}.tif"


RUN = {"enhance": _enhance, "anomalies": _anomalies, "rocks": _rocks}


def _run(asked: Asked, options: Options, folder: Path, report: Report) -> Path:
    return RUN[str(asked.record["tool"])](asked, options, folder, report)


# ---- compared ----------------------------------------------------------------------------------------------------


def _compared(asked: Asked, made: Path) -> list[str]:
    if not asked.layers:
        return differences(asked.path, made)
    if asked.path.suffix.lower() != ".gpkg":
        kind = read_layer(str(asked.path)).geometry_type
        if "Point" not in kind:
            raise ParameterError(f"{asked.path.name} holds {kind} alone.", "give the points, or a GeoPackage.")
        return _apart(read_layer(str(asked.path)), read_layer(str(made)))
    there = layers_of(made)
    names = {name: name if name in there else next(iter(there)) for name in asked.layers}
    return [
        text
        for name, again in names.items()
        for text in _apart(read_layer(f"{asked.path}|layername={name}"), read_layer(f"{made}|layername={again}"))
    ]


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
