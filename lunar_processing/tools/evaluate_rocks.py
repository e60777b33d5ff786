"""How well rocks are found from orbit: simulated scenes with exact truth, real ground, peers, and where it ends."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lunar_processing.classical.noise import fit_noise, sigma_at
from lunar_processing.classical.rocks import METHODS
from lunar_processing.errors import DataError, ParameterError
from lunar_processing.evaluate import report
from lunar_processing.evaluate.rocks import Stones, Tally, scores, tally
from lunar_processing.grid import PIXEL_SPACE, Grid
from lunar_processing.modelpack import find_pack
from lunar_processing.raster.image import open_image
from lunar_processing.raster.writer import Band, RasterWriter
from lunar_processing.simulate import scenes
from lunar_processing.simulate.scenes import SceneRecipe
from lunar_processing.sizes import fit_power_law
from lunar_processing.tools.job import Options
from lunar_processing.tools.reports import publish
from lunar_processing.tools.rocks import POINTS, Wishes, segment_rocks
from lunar_processing.training.data import SPLITS, product_id
from lunar_processing.vector import read_layer

MODELS = ("rocks-orbital", "shadow-pairs", "blobs (LoG)", "blobs (DoG)")
CLASSES = {"3-5 px": (3.0, 5.0), "5 px and more": (5.0, math.inf)}
EDGE = 8.0  # px at the edge of a scene in which nothing counts
LIT, WHOLE = 0.15, 0.5  # shares of a rock that must see the sun, and not lie under another, to be asked for
SLOPE_FROM = 5.0  # px: diameters from which on the power law is fitted
REAL_PIXEL_M = 0.5  # of the real images, whose labels are lost
SUFFIXES = (".png", ".tif", ".tiff", ".cub", ".img")

# Never trained on: other seeds, another law of reflection, another roughness, other craters, other rocks.
SCENES = SceneRecipe(
    pixel_size_m=(0.4, 1.6),
    incidence_deg=(25.0, 80.0),
    slope_deg=(1.5, 5.0),
    hurst=(0.6, 0.75),
    grain=(1e-3, 5e-2),
    tilt_deg=(0.0, 4.0),
    crater_density=(0.03, 0.12),
    equilibrium_m=(8.0, 30.0),
    rock_share=(5e-3, 4e-2),
    rock_exponent=(2.5, 3.5),
    smallest_rock_px=1.5,
    largest_rock_px=24.0,
    blocks=0.03,
    signal_dn=(150.0, 2400.0),
    photometry="hapke",
)
# What is varied alone, with everything else as in SCENES: name → values and how a recipe gets them.
CURVES: Mapping[str, tuple[Sequence[float], Callable[[float], SceneRecipe]]] = {
    "incidence, degrees": (
        (10, 20, 30, 45, 60, 70, 75, 80, 85),
        lambda v: replace(SCENES, incidence_deg=(v, v)),
    ),
    "pixel size, m": ((0.3, 0.5, 1.0, 1.5, 2.0, 3.0), lambda v: replace(SCENES, pixel_size_m=(v, v))),
    "signal, DN": (
        (10, 20, 40, 80, 160, 640, 2400),
        lambda v: replace(SCENES, signal_dn=(v, v), incidence_deg=(40.0, 70.0)),
    ),
}
SEED = 910_000
# To try it out: it measures nothing.
SMALL: Mapping[str, Any] = {"size": 96, "scenes": 2, "each": 1, "curves": False}


@dataclass(frozen=True)
class Plan:
    """What to measure: side and number of scenes, and of those for each point of a curve."""

    models: tuple[str, ...] = MODELS
    model_folders: tuple[Path, ...] = ()
    size: int = 384
    scenes: int = 96
    each: int = 3
    seed: int = 0
    curves: bool = True

    def __post_init__(self) -> None:
        if self.size < 64 or self.scenes < 1 or self.each < 1:
            raise ParameterError(
                f"{self.scenes} scenes of {self.size} px, {self.each} for each point, are not possible.",
                "give scenes of 64 px or more, and one or more of them.",
            )


@dataclass(frozen=True)
class Scene:
    """An image on the disk and all that is true about it."""

    path: Path
    pixels: np.ndarray
    pixel_size: float
    azimuth: float
    incidence: float
    noise: float
    true: Stones


Finder = Callable[[Scene], Stones]


def evaluate_orbit(out: Path, plan: Plan | None = None, real: Path | None = None,
                   say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:  # fmt: skip
    """Measure models on simulated scenes and real ground; write rocks_orbit.html and .json; return the numbers."""
    plan = plan or Plan()
    ground = _real_images(real) if real else []
    finders = {name: _finder(name, plan) for name in plan.models}
    facts: dict[str, Any] = {"seed": plan.seed, "scenes": plan.scenes, "size_px": plan.size,
                             "weights": _weights(plan)}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        made = draw(SCENES, plan.scenes, plan.size, SEED + plan.seed, Path(folder))
        found = {name: [(s.true, find(s)) for s in made] for name, find in finders.items()}
        facts["models"] = {name: _numbers(tally(images)) for name, images in found.items()}
        say("; ".join(f"{name}: F1 {n['5 px and more']['f1']:.2f}" for name, n in facts["models"].items()))
        facts["curves"] = _curves(plan, finders, Path(folder), say) if plan.curves else {}
        first = plan.models[0]
        pictures = [(s.pixels, s.true, f) for s, (_, f) in zip(made, found[first])][:4]
    facts["real"] = _real_ground(ground, plan, say) if ground else {}
    _write(out, facts, pictures, first)
    return {**facts, "report": str(out / "rocks_orbit.html"), "numbers": str(out / "rocks_orbit.json")}


# ---- scenes and their truth --------------------------------------------------------------------------------------


def draw(recipe: SceneRecipe, count: int, size: int, seed: int, folder: Path) -> list[Scene]:
    """Scenes as images on the disk, so that a tool does with them what it does with a user's."""
    made = scenes.draw(recipe, count, seed, size=size)
    return [_scene(made, k, folder / f"{seed}_{k}.tif") for k in range(count)]


def _scene(made: scenes.Scenes, k: int, path: Path) -> Scene:
    pixels = made.image[k].numpy()
    grid = Grid(None, PIXEL_SPACE, pixels.shape[1], pixels.shape[0])
    with RasterWriter(path, grid, [Band("image", "")], nodata=None, overwrite=True, overviews=False) as writer:
        writer.append(pixels[None])
        writer.finish()
        writer.publish()
    return Scene(path, pixels, float(made.pixel_size[k]), float(made.sun_azimuth[k]), float(made.incidence[k]),
                  _noise(pixels), _truth(made, k))  # fmt: skip


def _noise(pixels: np.ndarray) -> float:
    """Noise of the ground as a share of its brightness, as the tool measures it."""
    noise = fit_noise([(pixels, np.ones(pixels.shape, bool))])
    ground = float(np.median(pixels))
    return float(sigma_at(noise, ground)) / max(ground - noise.black, 1e-30)


def _truth(made: scenes.Scenes, k: int) -> Stones:
    """All rocks of a scene; fair are those of which enough is seen and lit, away from the edge."""
    rocks = made.rocks
    size = made.image.shape[-1]
    inside = (rocks.col > 0) & (rocks.col < size) & (rocks.row > 0) & (rocks.row < size)
    mine = torch.nonzero((rocks.scene == k) & inside)[:, 0]
    ids, lit = made.rock_id[k].long(), made.lit[k].double()
    shown = torch.bincount(ids.flatten(), minlength=len(rocks) + 1)[1:][mine].double()
    bright = torch.bincount(ids.flatten(), lit.flatten(), minlength=len(rocks) + 1)[1:][mine]
    diameter = rocks.diameter_m[mine].double() / float(made.pixel_size[k])
    whole = shown / (math.pi / 4 * diameter**2)
    fair = (whole >= WHOLE) & (bright / shown.clamp(min=1) >= LIT)
    height = rocks.height_m[mine] / float(made.pixel_size[k])
    col, row, diameter_px, tall = (v.double().numpy() for v in (rocks.col[mine], rocks.row[mine], diameter, height))
    stones = Stones(col, row, diameter_px, tall, fair.numpy())
    return stones.inside(size, size, EDGE)


# ---- who finds rocks ---------------------------------------------------------------------------------------------


def _finder(name: str, plan: Plan) -> Finder:
    if name in BLOBS:
        return lambda scene: BLOBS[name](scene.pixels)
    return lambda scene: _by_tool(scene, name, plan)


def _by_tool(scene: Scene, model: str, plan: Plan) -> Stones:
    """What `lunar rocks` gives, which is told where the sun stands."""
    out = scene.path.with_suffix(".gpkg")
    options = Options(scene.path, model=model, model_folders=plan.model_folders, overwrite=True,
                      pixel_size=scene.pixel_size, sun_azimuth=scene.azimuth)  # fmt: skip
    segment_rocks(options, Wishes(str(out), incidence=scene.incidence))
    fields = read_layer(f"{out}|layername={POINTS}").fields
    col, row, diameter, height = (np.asarray(fields[n], float) for n in ("sample", "line", "diam_eq_px", "height_m"))
    stones = Stones(col, row, diameter, height / scene.pixel_size, np.ones(len(col), bool))
    return stones.inside(scene.pixels.shape[1], scene.pixels.shape[0], EDGE)


def _weights(plan: Plan) -> dict[str, str]:
    """Checksums of the models that have weights: whose numbers these are."""
    trained = (name for name in plan.models if name not in BLOBS and name not in METHODS)
    return {name: find_pack(name, plan.model_folders).card.sha256 for name in trained}


def _log_blobs(pixels: np.ndarray) -> Stones:
    from skimage.feature import blob_log

    return _blobs(blob_log(_stretched(pixels), 1.0, 8.0, 8, threshold=LOG_LEAST), pixels.shape)


def _dog_blobs(pixels: np.ndarray) -> Stones:
    from skimage.feature import blob_dog

    return _blobs(blob_dog(_stretched(pixels), 1.0, 8.0, threshold=DOG_LEAST), pixels.shape)


# Bright blobs of scikit-image: thresholds and diameter for a sigma gave the best F1 on 6 scenes of another seed.
LOG_LEAST, DOG_LEAST, WIDE = 0.27, 0.2, 4.0
BLOBS: Mapping[str, Callable[[np.ndarray], Stones]] = {"blobs (LoG)": _log_blobs, "blobs (DoG)": _dog_blobs}


def _stretched(pixels: np.ndarray) -> np.ndarray:
    low, high = np.percentile(pixels, (0.5, 99.5))
    stretched: np.ndarray = np.clip((pixels - low) / max(high - low, 1e-9), 0, 1.5).astype(np.float64)
    return stretched


def _blobs(found: np.ndarray, shape: tuple[int, ...]) -> Stones:
    row, col, sigma = found[:, 0] + 0.5, found[:, 1] + 0.5, found[:, 2]
    nothing = np.full(len(row), np.nan)
    return Stones(col, row, WIDE * sigma, nothing, np.ones(len(row), bool)).inside(shape[1], shape[0], EDGE)


# ---- numbers -----------------------------------------------------------------------------------------------------


def _numbers(some: Tally) -> dict[str, Any]:
    classes = {name: scores(some, *limits) for name, limits in CLASSES.items()}
    true, found = (fit_power_law(d, SLOPE_FROM) for d in (some.true, some.found))
    slopes = (true.exponent, found.exponent) if true and found else (math.nan, math.nan)
    return {
        **classes,
        "all from 3 px": scores(some, 3.0),
        "slope_true": slopes[0],
        "slope_found": slopes[1],
        "slope_error": abs(slopes[1] / slopes[0] - 1),
        "hidden": some.hidden,
    }


def _curves(plan: Plan, finders: Mapping[str, Finder], folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Curve → value → noise, and for each model the numbers of each class."""
    found: dict[str, Any] = {}
    for curve, (values, recipe) in CURVES.items():
        found[curve] = {}
        for k, value in enumerate(values):
            # At every value of a curve the same ground and the same rocks, as far as the value lets them.
            made = draw(recipe(value), plan.each, plan.size, SEED + plan.seed + 1000, folder)
            tallies = {
                name: tally([(s.true, find(s)) for s in made]) for name, find in finders.items() if name not in BLOBS
            }
            found[curve][f"{value:g}"] = {
                "noise": float(np.median([s.noise for s in made])),
                **{name: {c: scores(t, *limits) for c, limits in CLASSES.items()} for name, t in tallies.items()},
            }
            say(f"{curve} {value:g} ({k + 1} of {len(values)})")
    return found


@dataclass
class _Ground:
    """Real ground of one model: rocks found and what was searched."""

    rocks: int = 0  # of 3 px and more
    specks: int = 0  # smaller ones
    hectares: float = 0.0  # 100 × 100 m
    products: set[str] = field(default_factory=set)


def _real_images(folder: Path) -> list[Path]:
    """Those of the validation products, or of products that no training knows."""
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    known = {p for names in SPLITS["nac_cdr"].values() for p in names}
    chosen = [p for p in paths if product_id(p.name) in SPLITS["nac_cdr"]["validation"]]
    chosen = chosen or [p for p in paths if product_id(p.name) not in known]
    if not chosen:
        raise DataError(f"There is no image in {folder} to measure on.", f"give {', '.join(SUFFIXES)} files.")
    return chosen


def _real_ground(chosen: Sequence[Path], plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Rocks of 3 px and more on 100 × 100 m of real images: false ones, as far as no rock is there."""
    facts: dict[str, Any] = {}
    for model in (name for name in plan.models if name not in BLOBS):
        ground = _Ground()
        with tempfile.TemporaryDirectory() as made:
            for path in chosen:
                _search(path, model, plan, Path(made) / "rocks.gpkg", ground)
        facts[model] = {"rocks": ground.rocks, "hectares": round(ground.hectares, 2),
                        "rocks_per_hectare": ground.rocks / ground.hectares,
                        "smaller_per_hectare": ground.specks / ground.hectares, "images": [p.name for p in chosen],
                        "products": sorted(ground.products)}  # fmt: skip
        say(f"{model}: {facts[model]['rocks_per_hectare']:.2f} rocks on 100 × 100 m of real ground")
    return facts


def _search(path: Path, model: str, plan: Plan, out: Path, ground: _Ground) -> None:
    with open_image(path) as image:
        pixel = image.product.pixel_size_m or REAL_PIXEL_M
    options = Options(path, model=model, model_folders=plan.model_folders, overwrite=True, pixel_size=pixel)
    done = segment_rocks(options, Wishes(str(out)))
    sizes = np.asarray(read_layer(f"{out}|layername={POINTS}").fields["diam_eq_px"], float)
    large = sizes >= CLASSES["3-5 px"][0]
    ground.rocks += int(large.sum())
    ground.specks += int((~large).sum())
    ground.hectares += float(done.counts["searched_m2"]) / 1e4
    ground.products.add(product_id(path.name))


# ---- the report --------------------------------------------------------------------------------------------------


def _write(out: Path, facts: dict[str, Any], pictures: Sequence[Any], first: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    parts = [report.text(_METHOD), *_tables(facts), *_figures(facts, pictures, first)]
    publish(out / "rocks_orbit", report.page("Rocks from orbit", parts), facts)


_METHOD = (
    "Simulated scenes that no model was trained on, under another law of reflection and with other terrain, craters "
    "and rocks; every tool is given image, pixel size and the sun's direction, as a user would. A found rock is a true "
    "one if their centres lie no further apart than half the true diameter (1.5 px at the least) and one is at most "
    "twice as large as the other; one to one, the nearest first. True rocks are asked for if half of them is in sight "
    "and 15 % is lit. Recall is of true rocks of a class, precision of found rocks that say they are of it. Diameters "
    "and heights: medians over the matched rocks."
)


def _tables(facts: dict[str, Any]) -> list[str]:
    names = ("recall", "precision", "f1", "diameter_error", "diameter_bias", "height_error", "height_bias")
    parts = []
    for title in (*CLASSES, "all from 3 px"):
        rows = [[model, numbers[title]["true"], *(numbers[title][n] for n in names)]
                for model, numbers in facts["models"].items()]  # fmt: skip
        parts += [report.heading(f"Rocks of {title}"), report.table(["model", "true rocks", *names], rows)]
    slopes = [[m, n["slope_true"], n["slope_found"], n["slope_error"]] for m, n in facts["models"].items()]
    parts += [report.heading(f"Power law from {SLOPE_FROM:g} px"),
              report.table(["model", "true exponent", "found", "error"], slopes)]  # fmt: skip
    if facts["real"]:
        rows = [[m, n["rocks"], n["hectares"], n["rocks_per_hectare"], n["smaller_per_hectare"]]
                for m, n in facts["real"].items()]  # fmt: skip
        head = ["model", "rocks of 3 px and more", "100 × 100 m", "in each", "smaller ones in each"]
        parts += [report.heading("Real ground, validation products"),
                  report.text("Whether these are rocks nobody has said: look at them."),
                  report.table(head, rows)]  # fmt: skip
    return parts


def _figures(facts: dict[str, Any], pictures: Sequence[Any], first: str) -> list[str]:
    plt = report._headless()
    parts = []
    if facts["curves"]:
        drawn, places = plt.subplots(1, len(facts["curves"]), figsize=(5 * len(facts["curves"]), 3.8), squeeze=False)
        for place, (curve, points) in zip(places.flat, facts["curves"].items()):
            for number, model in enumerate(name for name in facts["models"] if name not in BLOBS):
                for style, title in zip(("--", "-"), CLASSES):
                    y = [points[v][model][title]["f1"] for v in points]
                    place.plot([float(v) for v in points], y, style, color=f"C{number}", label=f"{model}, {title}")
            place.set(xlabel=curve, ylabel="F1", ylim=(0, 1))
            if "DN" in curve:
                place.set_xscale("log")
        places.flat[0].legend(fontsize=6)
        drawn.tight_layout()
        parts.append(report.figure(drawn, "F1 against incidence, pixel size and signal, all else as in the table."))
    if pictures:
        drawn, places = plt.subplots(1, len(pictures), figsize=(5 * len(pictures), 5), squeeze=False)
        for place, (pixels, true, found) in zip(places.flat, pictures):
            low, high = np.percentile(pixels, (0.5, 99.5))
            place.imshow(pixels, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            for stones, colour in ((true, "lime"), (found, "red")):
                for c, r, d in zip(stones.col, stones.row, stones.diameter):
                    if d >= CLASSES["3-5 px"][0]:
                        place.add_patch(plt.Circle((c - 0.5, r - 0.5), d / 2, fill=False, color=colour, linewidth=0.7))
            place.set_axis_off()
        drawn.tight_layout()
        parts.append(report.figure(drawn, f"Some of the scenes: true rocks green, those of {first} red."))
    return parts


def in_words(facts: Mapping[str, Any]) -> str:
    """The numbers for people."""
    lines = [f"  {facts['report']}"]
    for model, numbers in facts["models"].items():
        told = [f"F1 {numbers[c]['f1']:.2f} ({c})" for c in CLASSES]
        both = numbers["all from 3 px"]
        lines.append(f"  {model}: {', '.join(told)}, diameters off by {both['diameter_error']:.1%}, "
                     f"bias {both['diameter_bias']:+.1%}, power law off by {numbers['slope_error']:.1%}")  # fmt: skip
    for model, ground in facts["real"].items():
        lines.append(f"  {model}: {ground['rocks_per_hectare']:.2f} rocks on 100 × 100 m of real ground")
    return "\n".join(lines)
