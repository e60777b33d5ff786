"""What there is: methods and models, what an image is, and whether the installation is sound."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import lunar_processing
from lunar_processing import planet
from lunar_processing.errors import LunarError, ModelError, NothingValid
from lunar_processing.grid import Grid
from lunar_processing.modelpack import TASKS, list_packs, model_folders
from lunar_processing.provenance import versions

# ---- methods and models ------------------------------------------------------------------------------------------


def models(
    task: str | None = None, folders: Sequence[Path] = (), damaged: list[ModelError] | None = None
) -> list[dict[str, Any]]:
    """Every classical method and every model found, as plain facts; `damaged` as for `list_packs`."""
    found = [*_classical(), *(_network(pack.card, pack.folder) for pack in list_packs(folders, damaged))]
    for name, tool in _tools().items():
        ids = [model["id"] for model in found if model["task"] == name]
        default = tool.DEFAULT if tool.DEFAULT in ids else _fallback(tool)
        found = [{**m, "default": m["id"] == default} if m["task"] == name else m for m in found]
    return [model for model in found if task in (None, model["task"])]


def models_in_words(found: list[dict[str, Any]]) -> str:
    """The list for a person."""
    lines = []
    for task in dict.fromkeys(m["task"] for m in found):
        lines.append(task)
        for model in (m for m in found if m["task"] == task):
            default = "  (default)" if model["default"] else ""
            lines.append(f"  {model['id']:<20} {model['title']}{default}")
            lines += [f"  {'':<20} {text}" for text in (model["description"], model["limits"]) if text]
    return "\n".join(lines)


def _tools() -> dict[str, Any]:
    from lunar_processing.tools import anomalies, enhance, rocks

    return {"enhance": enhance, "anomalies": anomalies, "rocks": rocks}


def _fallback(tool: Any) -> str:
    """The method of a tool that is always there, for when its best model is not, or does not know such images."""
    return str(getattr(tool, "FALLBACK", tool.DEFAULT))


def _classical() -> list[dict[str, Any]]:
    return [
        {
            "id": name,
            "task": task,
            "kind": "classical",
            "title": method.title,
            "description": method.description,
            "limits": "",
            "default": False,
            "folder": None,
        }
        for task, tool in _tools().items()
        for name, method in tool.classical.METHODS.items()
    ]


def _network(card: Any, folder: Path) -> dict[str, Any]:
    return {
        "id": card.id,
        "task": card.task,
        "kind": "network",
        "title": card.title or card.id,
        "description": card.description,
        "limits": card.limits,
        "default": False,
        "folder": str(folder),
    }


# ---- an image ----------------------------------------------------------------------------------------------------


def image_facts(options: Any) -> dict[str, Any]:
    """What the label says, what is valid, where it lies, and what each tool would do."""
    from dataclasses import asdict

    from lunar_processing.raster.image import open_image

    with open_image(options.image, options.band) as image:
        look, grid = _look(image), image.grid
        would_do, doubts = _plans(options)
        return {
            "path": str(image.path),
            "size": [grid.width, grid.height],
            "band": image.band,
            "dtype": str(image.dtype),
            "calibration": {"scale": image.scale, "offset": image.offset, "unit": image.unit or image.product.unit},
            "label": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(image.product).items()},
            "nodata": image.nodata,
            "valid_fraction": round(look.valid_fraction, 6) if look else 0.0,
            "black_border": image.border is not None,
            "percentiles": {str(p): look.percentile(p) for p in (0.5, 5, 50, 95, 99.5)} if look else {},
            "place": _place(grid, options),
            "would_do": would_do,
            "doubts": doubts,
        }


def facts_in_words(facts: dict[str, Any]) -> str:
    """The facts of an image for a person."""
    left_out = {"nodata": facts["nodata"], "special values": ", ".join(map(_range, facts["label"]["missing"])) or None}
    scale, offset, unit = (facts["calibration"][key] for key in ("scale", "offset", "unit"))
    stored = "" if (scale, offset) == (1.0, 0.0) else f"stored value × {scale:.6g} + {offset:.6g}"
    values = {"values": ", ".join(filter(None, (unit, stored))) or None}
    label = {k: v for k, v in facts["label"].items() if k not in ("missing", "trust_nodata", "unit")}
    lines = [
        f"{facts['path']}: {facts['size'][0]} × {facts['size'][1]} px, band {facts['band']}, {facts['dtype']}",
        f"  place          {facts['place']['words']}",
        *_listed(2, 14, {k: v for k, v in facts["place"].items() if k != "words"}),
        f"  valid          {100 * facts['valid_fraction']:.2f} % of the sampled pixels"
        + (", black border left out" if facts["black_border"] else ""),
        *_listed(2, 14, {**left_out, **values}),
        *_listed(2, 14, {"percentiles": ", ".join(f"{p} %: {v:.6g}" for p, v in facts["percentiles"].items()) or None}),
        "  label says",
        *_listed(4, 18, label),
        "  would do",
        *_listed(4, 18, facts["would_do"]),
        *(f"  doubt          {doubt}" for doubt in facts["doubts"]),
    ]
    return "\n".join(lines)


def _listed(indent: int, width: int, facts: dict[str, Any]) -> list[str]:
    """A line for each fact that is known."""
    return [f"{' ' * indent}{k:<{width}} {_shortly(v)}" for k, v in facts.items() if v is not None]


def _shortly(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shortly, value))
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _range(ends: Sequence[float]) -> str:
    return _shortly(ends[0]) if ends[0] == ends[1] else f"{_shortly(ends[0])} to {_shortly(ends[1])}"


def _look(image: Any) -> Any:
    """The survey, or None where nothing is valid: that is a fact about an image, too."""
    try:
        return image.survey
    except NothingValid:
        return None


def _place(grid: Grid, options: Any) -> dict[str, Any]:
    try:
        body = planet.resolve_body(grid.wkt, options.body)
    except LunarError as error:
        return {"words": str(error)}
    middle = np.array([grid.width / 2]), np.array([grid.height / 2])
    lon, lat = planet.lonlat(grid, *middle, body)
    size = planet.metres_per_pixel(grid, *middle, body, options.pixel_size)
    known = bool(np.isfinite(lon[0]))
    return {
        "words": planet.place_in_words(grid.wkt, body),
        "body": body.name if body else None,
        "lon_lat_centre": [round(float(lon[0]), 8), round(float(lat[0]), 8)] if known else None,
        "metres_per_px": None if size is None else [float(size[0][0]), float(size[1][0])],
    }


def _plans(options: Any) -> tuple[dict[str, str], list[str]]:
    """Which method each tool would run, or why it could not; and what to doubt in all of them."""
    from dataclasses import replace

    from lunar_processing.tools.job import start

    try:
        with start("info", options) as job:
            return {tool: _plan(tool, replace(job, tool=tool, warnings=[])) for tool in TASKS}, job.warnings
    except LunarError as error:
        return dict.fromkeys(TASKS, f"refused: {error}"), []


def _plan(tool: str, job: Any) -> str:
    known = models(tool, job.options.model_folders, [])
    model = job.options.model or next(m["id"] for m in known if m["default"])
    try:
        if model not in {m["id"] for m in known if m["kind"] == "classical"}:
            job.pack(model, tool)
    except LunarError as error:
        if job.options.model:
            return f"refused: {error}"
        return f"{_fallback(_tools()[tool])}, since {model} cannot be used: {error}"
    return " ".join([f"{model} on {job.device}", *(f"({doubt})" for doubt in job.warnings)])


# ---- the installation --------------------------------------------------------------------------------------------


def diagnosis(folders: Sequence[Path] = ()) -> dict[str, Any]:
    """Versions, devices, paths, models, and what is wrong."""
    problems: list[str] = []
    found = {name: check(problems, folders) for name, check in CHECKS.items()}
    return {
        "engine": lunar_processing.__version__,
        "engine_path": str(Path(lunar_processing.__file__).parent),
        "python": sys.version.split()[0],
        "python_path": sys.executable,
        "system": platform.platform(),
        "versions": versions(),
        **found,
        "problems": problems,
    }


def diagnosis_in_words(facts: dict[str, Any]) -> str:
    """The diagnosis, to be read and to be copied into a report."""
    lines = [f"{key:<14} {facts[key]}" for key in ("engine", "engine_path", "python", "python_path", "system")]
    lines += [f"{name:<14} {version}" for name, version in facts["versions"].items() if name != "python"]
    lines += _listed(0, 14, {key: facts[key] for key in CHECKS})
    lines += [f"PROBLEM: {problem}" for problem in facts["problems"]] or ["All is well."]
    return "\n".join(lines)


def _packages(problems: list[str], _folders: Sequence[Path]) -> str:
    for name, version in versions().items():
        if version == "missing":
            problems.append(f"The package {name} is missing. Cure: {sys.executable} -m pip install {name}")
    return "checked"


def _devices(problems: list[str], _folders: Sequence[Path]) -> list[str]:
    try:
        import torch
    except Exception as error:
        problems.append(f"torch cannot be loaded ({error}); networks cannot run, classical methods can.")
        return []
    devices = [f"cuda: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if hasattr(torch.backends, "mps") and torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, f"cpu: {torch.get_num_threads()} threads"]


def _formats(problems: list[str], _folders: Sequence[Path]) -> str:
    try:
        import rasterio
    except Exception as error:
        problems.append(f"rasterio cannot be loaded ({error}); no image can be read.")
        return "none"
    with rasterio.Env() as env:
        drivers = env.drivers()
    wanted = ("GTiff", "COG", "VRT", "JP2OpenJPEG", "ISIS3", "PDS", "PDS4")
    for driver in wanted:
        if driver not in drivers:
            problems.append(f"GDAL {rasterio.__gdal_version__} here cannot read {driver}.")
    return f"GDAL {rasterio.__gdal_version__}: " + ", ".join(d for d in wanted if d in drivers)


def _models_found(problems: list[str], folders: Sequence[Path]) -> list[str]:
    found = []
    wrong: list[ModelError] = []
    for pack in list_packs(folders, wrong):
        try:
            pack.verify()
            found.append(f"{pack.card.id} ({pack.folder})")
        except ModelError as error:
            wrong.append(error)
    problems += map(str, wrong)
    return found or [f"no networks in {', '.join(str(f) for f in model_folders(folders))}; classical methods only"]


CHECKS: dict[str, Callable[[list[str], Sequence[Path]], Any]] = {
    "packages": _packages,
    "devices": _devices,
    "formats": _formats,
    "models": _models_found,
}
