"""Simulated scenes as files: a georeferenced image, its truth as rasters and layers, and a sheet to look at."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from lunar_processing import planet, provenance
from lunar_processing.devices import choose_device
from lunar_processing.draft import check_destination, make_folder
from lunar_processing.errors import Cancelled, ParameterError
from lunar_processing.grid import PIXEL_SPACE, Grid
from lunar_processing.raster.writer import Band, RasterWriter, check_rasters
from lunar_processing.simulate.objects import OBJECTS
from lunar_processing.simulate.scenes import RECIPES, SceneRecipe, Scenes, draw
from lunar_processing.tools.job import Report, Result
from lunar_processing.tools.sheet import contact_sheet, write_png
from lunar_processing.vector import Layer, check_targets, target, write_layers

ROCKS, CRATERS, THINGS = "rocks", "craters", "objects"
SHEET = "contact_sheet.png"
LARGEST = 4096  # px; memory grows with the area, about 200 bytes a pixel
CIRCLE = 48  # corners of a crater's outline


@dataclass(frozen=True)
class Wishes:
    """What to simulate and where to write it; None leaves a number to the recipe."""

    folder: Path
    recipe: str = "nac"
    size: int = 512
    count: int = 1
    seed: int = 0
    pixel_size: float | None = None
    incidence: float | None = None
    sun_azimuth: float | None = None
    objects: tuple[str, ...] = ()
    crs: str = "IAU_2015:30135"
    centre: tuple[float, float] = (0.0, -89.5)
    dtype: str = "float32"
    contact_sheet: bool = False
    device: str = "auto"
    overwrite: bool = False
    file_format: str = "gtiff"

    def __post_init__(self) -> None:
        if not 16 <= self.size <= LARGEST:
            raise ParameterError(f"A scene of {self.size} px is not possible.", f"give 16 to {LARGEST}.")
        if not 1 <= self.count <= 10_000:
            raise ParameterError(f"{self.count} scenes are not possible.", "give 1 to 10000.")
        if self.seed < 0:
            raise ParameterError(f"A seed of {self.seed} is not possible.", "give a whole number, 0 or more.")
        if self.dtype not in IMAGES:
            raise ParameterError(f"An image of {self.dtype} is not possible.", f"choose one of {', '.join(IMAGES)}.")


@dataclass(frozen=True)
class _Files:
    """The files of one scene by what they hold."""

    rasters: dict[str, Path]
    layers: Path | None

    @classmethod
    def of(cls, wishes: Wishes, number: int) -> _Files:
        stem = f"{wishes.recipe}_{wishes.seed + number:05d}"
        rasters = {name: wishes.folder / f"{stem}{suffix}.tif" for name, suffix in _SUFFIXES.items()}
        return cls(rasters, None if _from_lander(wishes) else wishes.folder / f"{stem}_truth.gpkg")


_SUFFIXES = {
    "image": "",
    "height": "_height",
    "albedo": "_albedo",
    "classes": "_classes",
    "rock_ids": "_rock_ids",
    "objects": "_objects",
    "lit": "_lit",
}
# As what an image is written: band, and how a scene becomes it.
IMAGES = {
    "float32": (Band("iof", "calibrated reflectance", "I/F"), lambda s: s.image / s.exposure[:, None, None]),
    "uint16": (Band("dn", "calibrated signal, 12 bits", "DN"), lambda s: s.image.round().clamp(0, 4095)),
    "uint8": (Band("code", "as recorded, companded to 8 bits", ""), lambda s: s.recorded),
}
_TRUTH = {
    "height": (Band("height", "height of the ground", "m"), "float32", lambda s: s.ground.height),
    "albedo": (Band("albedo", "normal albedo", ""), "float32", lambda s: s.ground.albedo),
    "classes": (Band("class", "0 ground, 1 small rock, 2 large rock, 3 sky", ""), "uint8", lambda s: s.classes),
    "rock_ids": (Band("rock_id", "0, or rock_id of the layer rocks", ""), "int32", lambda s: s.rock_id),
    "objects": (
        Band("kind", "0, " + ", ".join(f"{i} {name}" for i, name in enumerate(OBJECTS, 1)), ""),
        "uint8",
        lambda s: s.objects,
    ),
    "lit": (Band("lit", "share of the sun's disc that is seen", ""), "float32", lambda s: s.lit),
}
_ON_THE_GROUND = ("height", "albedo")  # maps; a lander's picture has none


def simulate(wishes: Wishes, report: Report | None = None) -> Result:
    """Draw scenes and write each: image, truth rasters, and a GeoPackage of rocks, craters and objects."""
    report, started = report or Report(), time.perf_counter()
    recipe = _recipe(wishes)
    # Without a pixel size, with any: what is wrong with the place shall be said before the work.
    grid = _place(wishes, wishes.pixel_size or 1.0)
    device = choose_device(wishes.device)
    outputs = _check(wishes)
    sheet: list[np.ndarray] = []
    counts = {"scenes": 0, "rocks": 0, "craters": 0, "objects": 0}
    warnings = _warnings(wishes)
    for warning in warnings:
        report.log("warning", warning)
    pixels = wishes.size**2
    for number in range(wishes.count):
        if report.cancelled():
            raise Cancelled("The run was cancelled; the scenes written so far are complete.")
        report.progress("work", number * pixels, wishes.count * pixels)
        scenes = draw(recipe, 1, wishes.seed + number, device, wishes.size)
        if not wishes.pixel_size:
            grid = _place(wishes, float(scenes.pixel_size[0]))
        found = _write(wishes, number, scenes, grid, device, time.perf_counter() - started, warnings)
        counts = {name: counts[name] + found.get(name, 1) for name in counts}
        if wishes.contact_sheet:
            sheet.append(scenes.image[0].cpu().numpy())
    if wishes.contact_sheet:
        write_png(wishes.folder / SHEET, contact_sheet(sheet), wishes.overwrite)
        outputs["contact_sheet"] = str(wishes.folder / SHEET)
    report.progress("work", wishes.count * pixels, wishes.count * pixels)
    seconds = time.perf_counter() - started
    stages = {"work_s": round(seconds, 3), "rate_mpx_s": wishes.count * pixels / seconds / 1e6}
    return Result(outputs, counts, f"simulated, recipe {wishes.recipe}", device, round(seconds, 3), stages, warnings)


# ---- before the work ---------------------------------------------------------------------------------------------


def _recipe(wishes: Wishes) -> SceneRecipe:
    """The recipe with what the user has settled."""
    if wishes.recipe not in RECIPES:
        raise ParameterError(f"There is no recipe {wishes.recipe!r}.", f"choose one of {', '.join(RECIPES)}.")
    recipe = RECIPES[wishes.recipe]
    settled: dict[str, Any] = {}
    for name, value in (
        ("pixel_size_m", wishes.pixel_size),
        ("incidence_deg", wishes.incidence),
        ("sun_azimuth_deg", wishes.sun_azimuth),
    ):
        if value is not None:
            if not math.isfinite(value):
                raise ParameterError(f"{name} = {value} is not possible.", "give a number.")
            settled[name] = (value, value)
    if wishes.objects:
        names = tuple(OBJECTS) if wishes.objects == ("all",) else wishes.objects
        settled |= {"objects": names, "objects_each": max(1.0, recipe.objects_each) * 2, "objects_of_each_kind": 1}
    return replace(recipe, **settled)


def _from_lander(wishes: Wishes) -> bool:
    return wishes.recipe in RECIPES and RECIPES[wishes.recipe].lander is not None


def _place(wishes: Wishes, pixel_size: float) -> Grid:
    """Where a scene lies."""
    if _from_lander(wishes):
        return Grid(None, PIXEL_SPACE, wishes.size, wishes.size)
    return planet.grid_around(wishes.crs, *wishes.centre, pixel_size, wishes.size, wishes.size)


def _check(wishes: Wishes) -> dict[str, str]:
    """Refuse before the work what could not be written; what will be there."""
    make_folder(wishes.folder)
    for number in range(wishes.count):
        files = _Files.of(wishes, number)
        check_rasters(list(files.rasters.values()), wishes.overwrite)
        if files.layers:
            there = target(files.layers)
            check_targets([(name, there) for name in (ROCKS, CRATERS, THINGS)], wishes.overwrite)
    if wishes.contact_sheet:
        check_destination(wishes.folder / SHEET, wishes.overwrite)
    first = _Files.of(wishes, 0)
    outputs = {name: str(path) for name, path in first.rasters.items() if _has(wishes, name)}
    return outputs | ({"layers": str(first.layers)} if first.layers else {})


def _has(wishes: Wishes, name: str) -> bool:
    return not (_from_lander(wishes) and name in _ON_THE_GROUND)


def _warnings(wishes: Wishes) -> tuple[str, ...]:
    """What a user should know who trusts the result."""
    if _from_lander(wishes):
        return ("A lander's picture is no map: it has no coordinate system, and its truth no layers.",)
    return ()


# ---- one scene ---------------------------------------------------------------------------------------------------


def _write(
    wishes: Wishes, number: int, scenes: Scenes, grid: Grid, device: str, seconds: float, warnings: tuple[str, ...]
) -> dict[str, int]:
    """All files of one scene appear together; how many things are in it."""
    files = _Files.of(wishes, number)
    layers = [] if files.layers is None else list(_layers(scenes, grid))
    found = {layer.name: len(layer.geometry) for layer in layers}
    facts = {
        "incidence_deg": float(scenes.incidence[0]),
        "sun_azimuth_deg": float(scenes.sun_azimuth[0]),
        "pixel_size_m": float(scenes.pixel_size[0]),
    }
    said = {k: v for k, v in asdict(wishes).items() if k not in ("folder", "overwrite", "device", "contact_sheet")}
    said |= {"seed": wishes.seed + number, "count": 1, **facts}
    model = {"id": "simulator", "recipe": wishes.recipe}
    record = provenance.record("simulate", [], model, said, device, found, seconds, list(warnings))
    band, picture = IMAGES[wishes.dtype]
    bands = {"image": (band, wishes.dtype, picture), **{k: v for k, v in _TRUTH.items() if _has(wishes, k)}}
    with ExitStack() as stack:
        writers = []
        for name, (meaning, dtype, values) in bands.items():
            writer = stack.enter_context(
                RasterWriter(
                    files.rasters[name],
                    grid,
                    [meaning],
                    dtype=dtype,
                    nodata=None,
                    overwrite=wishes.overwrite,
                    file_format=wishes.file_format,
                    categorical=not dtype.startswith("float"),
                )
            )
            writer.append(values(scenes).cpu().numpy().astype(dtype))
            writer.finish({provenance.TAG: record, **{k.upper(): f"{v:.6g}" for k, v in facts.items()}})
            writers.append(writer)
        if files.layers:
            there = target(files.layers)
            write_layers([(replace(layer, metadata=record), there) for layer in layers], wishes.overwrite)
        for writer in writers:
            writer.publish()
    return found


def _layers(scenes: Scenes, grid: Grid) -> Iterator[Layer]:
    """Truth as layers: what has its middle in the scene; craters also where only a part of them is."""
    rocks, craters, things = scenes.rocks, scenes.craters, scenes.things
    pixel = float(scenes.pixel_size[0])
    inside = _inside(rocks, grid)
    yield Layer(
        ROCKS,
        _points(rocks, inside, grid),
        {
            "rock_id": np.flatnonzero(inside) + 1,
            "diam_eq_m": _column(rocks.diameter_m, inside),
            "height_m": _column(rocks.height_m, inside),
            "axis_ratio": _column(rocks.axis_ratio, inside),
            "orient_deg": _column(rocks.azimuth, inside),
            "diam_eq_px": _column(rocks.diameter_m, inside) / pixel,
            **_places(rocks, inside, grid),
        },
        grid.wkt,
        "Point",
        "Rocks of a simulated scene",
    )
    inside = _inside(craters, grid, craters.diameter_m.cpu().numpy() / pixel / 2)
    yield Layer(
        CRATERS,
        _ellipses(craters, inside, grid, pixel),
        {
            "diameter_m": _column(craters.diameter_m, inside),
            "depth_m": _column(craters.depth_m, inside),
            "degraded": _column(craters.degradation, inside),
            "axis_ratio": _column(craters.axis_ratio, inside),
            "kind": np.array(["simple", "flat-floored", "concentric"], dtype=object)[
                _column(craters.kind, inside).astype(int)
            ],
            "rays": _column(craters.rays, inside).astype(int),
            **_places(craters, inside, grid),
        },
        grid.wkt,
        "Polygon",
        "Craters of a simulated scene, their rims",
    )
    inside = _inside(things, grid)
    yield Layer(
        THINGS,
        _points(things, inside, grid),
        {
            "kind": np.array(things.names, dtype=object)[inside],
            "code": _column(things.kind, inside).astype(int),
            "size_m": _column(things.size_m, inside),
            "azimuth_deg": _column(things.azimuth, inside),
            **_places(things, inside, grid),
        },
        grid.wkt,
        "Point",
        "Strange and man-made things of a simulated scene",
    )


def _column(values: Any, rows: np.ndarray) -> np.ndarray:
    return values.cpu().numpy().astype(float)[rows]


def _inside(table: Any, grid: Grid, reach: np.ndarray | float = 0.0) -> np.ndarray:
    col, row = table.col.cpu().numpy(), table.row.cpu().numpy()
    return (col > -reach) & (col < grid.width + reach) & (row > -reach) & (row < grid.height + reach)


def _places(table: Any, rows: np.ndarray, grid: Grid) -> dict[str, np.ndarray]:
    col, row = _column(table.col, rows), _column(table.row, rows)
    lon, lat = planet.lonlat(grid, col, row)
    return {"line": row, "sample": col, "lon": lon, "lat": lat}


def _points(table: Any, rows: np.ndarray, grid: Grid) -> np.ndarray:
    return shapely.points(*grid.xy(_column(table.col, rows), _column(table.row, rows)))


def _ellipses(table: Any, rows: np.ndarray, grid: Grid, pixel: float) -> np.ndarray:
    """Rims in map coordinates; the long axis points to the azimuth, clockwise from up."""
    col, row, ratio = (_column(values, rows)[:, None] for values in (table.col, table.row, table.axis_ratio))
    azimuth = np.radians(_column(table.azimuth, rows))[:, None]
    radius = _column(table.diameter_m, rows)[:, None] / (2 * pixel)
    angle = np.linspace(0, 2 * np.pi, CIRCLE, endpoint=False)
    long, short = radius / np.sqrt(ratio) * np.cos(angle), radius * np.sqrt(ratio) * np.sin(angle)
    x, y = grid.xy(
        col + long * np.sin(azimuth) + short * np.cos(azimuth), row - long * np.cos(azimuth) + short * np.sin(azimuth)
    )
    return shapely.polygons(np.stack([x, y], axis=-1))
