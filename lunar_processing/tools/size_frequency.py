"""Rock sizes: from points with diameters and the searched area to what is published of them.

A table of counts with Poisson intervals, most likely distributions with theirs, a figure, a raster of rock abundance,
and files that crater-counting programs read.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from lunar_processing import provenance, sizes
from lunar_processing.draft import Draft, check_destination, make_folder
from lunar_processing.errors import Cancelled, OutputError
from lunar_processing.raster.writer import Band, RasterWriter, check_rasters
from lunar_processing.strict import strict
from lunar_processing.tools import crater_files
from lunar_processing.tools.abundance import abundance, cells
from lunar_processing.tools.counted import (
    Area,
    Counted,
    Ground,
    Limit,
    Rocks,
    Study,
    Wishes,
    area_in_words,
    completeness,
    count,
    read_area,
    read_rocks,
)
from lunar_processing.tools.job import Report
from lunar_processing.tools.size_figure import Picture, draw
from lunar_processing.vector import Layer, check_targets, target, write_layers


@dataclass(frozen=True)
class Done:
    """What was made and what it says, as `lunar rocksizefrequency --json` prints it."""

    facts: Mapping[str, Any]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class _Case:
    """All that was read, and from what size on it counts."""

    study: Study
    rocks: Rocks
    ground: Ground
    area: Area
    counted: Counted
    limit: Limit


def size_frequency(wishes: Wishes, report: Report | None = None) -> Done:
    """Count, fit, draw and write; all files appear together."""
    report, started = report or Report(), time.perf_counter()
    case = _read(wishes, report)
    files = _files(wishes, case.rocks)
    _check(files, wishes.overwrite)
    facts = _facts(case)
    report.progress("finish", 0, 1)
    outputs = _write(case, files, facts, time.perf_counter() - started)
    report.progress("finish", 1, 1)
    seconds = round(time.perf_counter() - started, 3)
    return Done({"outputs": outputs, **facts, "seconds": seconds, "warnings": case.study.warnings}, outputs)


def numbers(wishes: Wishes, report: Report | None = None) -> dict[str, Any]:
    """All that is known about sizes, and no file; for scripts."""
    case = _read(wishes, report or Report())
    return {**_facts(case), "warnings": case.study.warnings}


def _read(wishes: Wishes, report: Report) -> _Case:
    """What counts, on what ground, in what area, from what size on."""
    report.progress("read", 0, 1)
    study = Study(wishes, report)
    rocks, ground = read_rocks(study)
    area = read_area(study, rocks, ground)
    counted = count(study, rocks, area)
    limit = completeness(study, rocks, counted, ground)
    report.progress("read", 1, 1)
    return _Case(study, rocks, ground, area, counted, limit)


# ---- the numbers -------------------------------------------------------------------------------------------------


def _facts(case: _Case) -> dict[str, Any]:
    """All that is known about sizes, for programs."""
    wishes, counted, area, limit = case.study.wishes, case.counted, case.area, case.limit
    d, unit, per = counted.diameter, case.ground.unit, case.ground.per
    complete = int((d >= limit.value).sum())
    low, high = (float(bound) for bound in sizes.poisson_interval(complete, wishes.confidence))
    return {
        "counts": {
            "rocks": len(counted.chosen),
            "counted": len(d),
            "complete": complete,
            "outside": counted.outside,
            "on_edge": counted.on_edge,
        },
        "unit": unit,
        "area": {"value": area.value, "unit": f"{unit}2", "source": area.source},
        "min_diameter": {"value": limit.value, "source": limit.source, "peak_of_counts": limit.roll_off},
        "confidence": wishes.confidence,
        "density": {
            "of_at_least": limit.value,
            "per": "km2" if unit == "m" else "px2",
            "value": complete / area.value * per,
            "lower": low / area.value * per,
            "upper": high / area.value * per,
        },
        **_fits(case.study, d, limit.value, _pixel(case)),
    }


def _fits(study: Study, d: np.ndarray, d_min: float, pixel: float | None) -> dict[str, Any]:
    wishes, d_max = study.wishes, study.wishes.max_diameter or math.inf
    study.report.progress("fit", 0, 2)
    power = sizes.fit_power_law(d, d_min, d_max, wishes.confidence)
    if power is None:
        why = (
            f"{int(((d >= d_min) & (d <= d_max)).sum())} rocks of complete size are too few for a fit: "
            f"{sizes.FEWEST} of different sizes are needed"
        )
        study.warn(f"{why}. The counts stand without one.")
        return {"power_law": None, "weibull": None, "no_fit": why}
    distance, chance = sizes.kolmogorov(d, power, pixel=pixel)
    fits: dict[str, Any] = {"power_law": {**asdict(power), "ks_distance": distance, "ks_p": chance}}
    study.report.progress("fit", 1, 2)
    if study.report.cancelled():
        raise Cancelled("The run was cancelled.")
    weibull = sizes.fit_weibull(d, d_min, wishes.confidence)
    if weibull is not None:
        fits["weibull"] = asdict(weibull)
        if weibull.is_power_law:
            study.info("No Weibull distribution fits better than the power law.")
        else:
            distance, chance = sizes.kolmogorov(d, weibull, pixel=pixel)
            fits["weibull"] |= {"ks_distance": distance, "ks_p": chance}
        if math.isinf(d_max):
            fits["aic_power_law_minus_weibull"] = 2 * (weibull.log_likelihood - power.log_likelihood) - 2
    for name, fit in fits.items():
        if isinstance(fit, dict) and fit.get("ks_p", 1) < 0.05:
            law = {"power_law": "A power law", "weibull": "A Weibull distribution"}[name]
            study.warn(f"{law} does not describe these rocks (p = {fit['ks_p']:.3f}).{_in_steps(d[d >= d_min])}")
    return fits


def _pixel(case: _Case) -> float | None:
    """The pixel of which diameters are whole numbers of areas, for no smooth distribution fits such steps; or None."""
    pixels = case.rocks.layer.fields.get("diam_eq_px")
    if pixels is None or not sizes.in_whole_pixels(pixels.astype(float)[case.counted.chosen], 1.0):
        return None
    return 1.0 if case.ground.unit == "px" else case.ground.pixel_size


def _in_steps(d: np.ndarray) -> str:
    """A word where few sizes occur again and again."""
    few = len(np.unique(np.round(d, 6))) < len(d) / 2
    return " Few sizes occur again and again: what measured them prefers some, which can be the reason." if few else ""


def _columns(case: _Case) -> dict[str, np.ndarray]:
    """The table, with a bin that begins where counts become complete."""
    wishes, d, limit = case.study.wishes, case.counted.diameter, case.limit.value
    columns = sizes.table(d, sizes.bin_edges(d, limit, wishes.bins), case.area.value, wishes.confidence)
    return {**columns, "complete": (columns["d_low"] >= limit * (1 - 1e-9)).astype(int)}


# ---- the files ---------------------------------------------------------------------------------------------------


def _files(wishes: Wishes, rocks: Rocks) -> dict[str, Path]:
    """What may be written, by what it is."""
    stem = rocks.source.stem
    return {
        "table": wishes.folder / f"{stem}_sizes.csv",
        "fits": wishes.folder / f"{stem}_sizes.json",
        "figure": wishes.folder / f"{stem}_sizes.png",
        "drawing": wishes.folder / f"{stem}_sizes.svg",
        "abundance": wishes.folder / f"{stem}_abundance.tif",
        "diam": wishes.folder / f"{stem}.diam",
        "scc": wishes.folder / f"{stem}.scc",
        "craters": wishes.folder / f"{stem}_CRATER.shp",
        "areas": wishes.folder / f"{stem}_AREA.shp",
    }


def _check(files: Mapping[str, Path], overwrite: bool) -> None:
    """Refuse before the work what could not be written."""
    make_folder(files["table"].parent)
    check_rasters([files["abundance"]], overwrite)
    for name in ("table", "fits", "figure", "drawing", "diam", "scc"):
        check_destination(files[name], overwrite)
    check_targets([(name, target(files[name])) for name in ("craters", "areas")], overwrite)


def _write(case: _Case, files: Mapping[str, Path], facts: dict[str, Any], seconds: float) -> dict[str, str]:
    """Every file that can be had; those of an earlier run that cannot are not left beside the new ones."""
    study, overwrite = case.study, case.study.wishes.overwrite
    columns = _columns(case)
    for_others, layers = _for_crater_programs(case, files)
    record = _record(case, facts, seconds)
    told = {**facts, "warnings": study.warnings, "provenance": json.loads(record)}
    texts = {"table": _csv(columns, case.ground), "fits": json.dumps(strict(told), indent=2), **for_others}
    with ExitStack() as stack:
        drafts = {name: stack.enter_context(Draft(files[name], overwrite)) for name in (*texts, *_figures(case))}
        for name, text in texts.items():
            drafts[name].path.write_text(f"{text}\n", encoding="utf-8")
        if _figures(case):
            unit, rocks = case.ground.unit, case.rocks
            picture = Picture(columns, facts, unit, rocks.product, rocks.model, case.counted.diameter, record)
            draw(picture, [drafts[name].path for name in _figures(case)])
        rasters = _abundance(case, files["abundance"], record, stack)
        for draft in drafts.values():
            draft.flush()
        if study.report.cancelled():
            raise Cancelled("The run was cancelled.")
        write_layers(
            [(replace(layer, metadata=record), target(files[name])) for name, layer in layers.items()], overwrite
        )
        for draft in drafts.values():
            draft.publish()
        for raster in rasters.values():
            raster.publish()
    made = {*drafts, *rasters, *layers}
    _remove_stale(files, made)
    return {name: str(files[name]) for name in files if name in made}


def _figures(case: _Case) -> tuple[str, ...]:
    """Nothing is drawn of no rocks."""
    return ("figure", "drawing") if case.counted.chosen.any() else ()


def _abundance(case: _Case, path: Path, record: str, stack: ExitStack) -> dict[str, RasterWriter]:
    """The raster of abundance, finished but not published; none where the searched area has no place."""
    rocks, area, ground, limit = case.rocks, case.area, case.ground, case.limit.value
    if area.shape is None:
        return {}
    some = case.counted.chosen & (rocks.diameter >= limit)
    grid = cells(case.study, ground, area, case.limit)
    share = abundance(grid, ground, area.shape, rocks.x[some], rocks.y[some], rocks.covers[some])
    band = Band("abundance", f"share of the ground under rocks of {limit:.4g} {ground.unit} and more")
    writer = stack.enter_context(RasterWriter(path, grid, [band], overwrite=case.study.wishes.overwrite))
    writer.append(share[None])
    writer.finish({provenance.TAG: record})
    return {"abundance": writer}


def _for_crater_programs(case: _Case, files: Mapping[str, Path]) -> tuple[dict[str, str], dict[str, Layer]]:
    """Texts and layers for programs that count craters: those that the place of the rocks allows."""
    ground, area, counted = case.ground, case.area, case.counted
    if ground.body is None:
        case.study.info("Without a place on a body nothing is written for crater-counting programs.")
        return {}, {}
    x, y = case.rocks.x[counted.chosen], case.rocks.y[counted.chosen]
    name = case.rocks.source.stem
    lon, lat = ground.lonlat(x, y)
    catalogue = crater_files.Catalogue(name, ground.body, counted.diameter, lon, lat, area.value, case.limit.value)
    texts = {}
    if len(x):  # such programs cannot read a list without entries
        outline = area.shape and shapely.transform(area.shape, lambda xy: np.stack(ground.lonlat(*xy.T), axis=-1))
        texts = {"diam": crater_files.diam(catalogue), "scc": crater_files.scc(catalogue, outline)}
    if area.shape is None:
        return texts, {}
    try:
        check_targets([("craters", target(files["craters"]))], True, ground.wkt)
    except OutputError as error:
        case.study.warn(f"The pair of shapefiles is not written. {error.message}")
        return texts, {}
    circles = shapely.polygons(ground.moved(x, y, *crater_files.circle(counted.diameter)))
    parts = shapely.get_parts(area.shape)
    each = np.array([ground.area_of(part, ground.wkt) for part in parts])
    return texts, {
        "craters": crater_files.craters(catalogue, circles, ground.wkt),
        "areas": crater_files.areas(catalogue, parts, each * area.value / each.sum(), ground.wkt),
    }


def _remove_stale(files: Mapping[str, Path], made: set[str]) -> None:
    """What an earlier run wrote and this one did not would be believed about the same rocks."""
    for name, path in files.items():
        if name not in made:
            parts = [path.with_suffix(s) for s in (".shx", ".dbf", ".prj", ".cpg", ".qix", ".provenance.json")]
            for old in [path, *(parts if path.suffix == ".shp" else [])]:
                old.unlink(missing_ok=True)


def _record(case: _Case, facts: Mapping[str, Any], seconds: float) -> str:
    study, rocks, area = case.study, case.rocks, case.area
    paths = {rocks.source, *([area.path] if area.path else [])}
    said = {k: v for k, v in asdict(study.wishes).items() if k not in ("folder", "overwrite", "rocks")}
    said |= {"layer": rocks.layer.name, "diameter_field": rocks.field, "area": area.source}
    said["min_diameter"] = facts["min_diameter"]["value"]
    said["asked"] = _asked(study.wishes)  # apart from what was found out: enough to ask it again
    model = {"id": "maximum likelihood", "rocks": rocks.model, "product": rocks.product}
    inputs = [provenance.file_facts(path) for path in sorted(paths)]
    return provenance.record("rocksizefrequency", inputs, model, said, "cpu", facts["counts"], seconds, study.warnings)


def _asked(wishes: Wishes) -> dict[str, Any]:
    """What the user said, with paths that hold anywhere."""
    said = {k: v for k, v in asdict(wishes).items() if k not in ("folder", "overwrite") and v is not None}
    for name in ("rocks", "area"):
        path, mark, layer = str(said.get(name, "")).partition("|")
        if path and Path(path).is_file():
            said[name] = f"{Path(path).absolute()}{mark}{layer}"
    return said


def _csv(columns: Mapping[str, np.ndarray], ground: Ground) -> str:
    """The table for people and programs: densities for a km² (px²), the differential one also for a metre (pixel)."""
    per, unit = ground.per, ground.unit
    area = "km2" if unit == "m" else "px2"
    names = {"cumulative_density": f"cumulative_per_{area}", "differential": f"differential_per_{area}_{unit}"}
    shown: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        kind = next((start for start in names if name.startswith(start)), None)
        if kind:
            shown[name.replace(kind, names[kind])] = values * per
        else:
            shown[f"{name}_{unit}" if name.startswith("d_") else name] = values
    rows = [",".join(f"{value:.10g}" for value in row) for row in zip(*shown.values())]
    return "\n".join([",".join(shown), *rows])


def in_words(done: Done) -> str:
    """The result for a person."""
    facts, unit = done.facts, done.facts["unit"]
    density, counts = facts["density"], facts["counts"]
    lines = [f"  {name}: {path}" for name, path in done.outputs.items()]
    lines.append(
        f"  {counts['complete']} rocks of {density['of_at_least']:.3g} {unit} and more in "
        f"{area_in_words(facts['area']['value'], unit)}: {density['value']:.4g} "
        f"({density['lower']:.4g} to {density['upper']:.4g}) per {density['per']}"
    )
    power, weibull = facts.get("power_law"), facts.get("weibull")
    if power:
        lines.append(
            f"  power law: N ~ D^-{power['exponent']:.3f} ({power['low']:.3f} to {power['high']:.3f}), "
            f"p = {power['ks_p']:.3f}"
        )
    if weibull and not weibull["is_power_law"]:
        lines.append(
            f"  Weibull: shape {weibull['shape']:.3f} ({weibull['shape_low']:.3f} to {weibull['shape_high']:.3f}), "
            f"scale {weibull['scale']:.3g} {unit}, p = {weibull['ks_p']:.3f}"
        )
    return "\n".join([*lines, *([f"  no fit: {facts['no_fit']}"] if "no_fit" in facts else [])])
