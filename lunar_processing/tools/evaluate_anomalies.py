"""How well strange things are found: the planted benchmark, its scorers, and its report."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lunar_processing.classical import around
from lunar_processing.classical.anomalies import METHODS
from lunar_processing.errors import DataError, ModelError, OutputError, ParameterError
from lunar_processing.evaluate import report
from lunar_processing.evaluate.anomalies import chapter
from lunar_processing.evaluate.planted import KINDS, WINDOW, Facts, Strip, drawn_strips, plant_strips, sun_from_craters
from lunar_processing.evaluate.ranking import (
    FIRST,
    STRIDE,
    Measured,
    Sample,
    distinct,
    false_alarms,
    measure,
    over_kinds,
    patch_scores,
    sample,
)
from lunar_processing.grid import PIXEL_SPACE, Grid, Window
from lunar_processing.modelpack import find_pack
from lunar_processing.raster.image import open_image
from lunar_processing.raster.writer import Band, RasterWriter
from lunar_processing.strict import strict
from lunar_processing.tools import anomalies
from lunar_processing.tools.job import Options
from lunar_processing.tools.realism import SUFFIXES, SUN, Say
from lunar_processing.tools.reports import publish
from lunar_processing.training.data import SPLITS, product_id

MODELS = ("vae-2020", "vae-2024", "anomaly-multiscale")  # shipped; where one is missing the report says so
COUNT = 36  # strips of each real image: then each kind of thing is in 4 of them, and 4 have none
DRAWN, DRAWN_PX, DRAWN_THINGS = 16, 2048, 5  # simulated strips, their side, things in each
SMALL_PX = 320  # side of strips for trying out
PIXEL_M = 0.5  # of the real images, whose labels are lost

# (image, valid, facts) → one score for each s × s px of the image, or for each pixel; higher is stranger
Scorer = Callable[[np.ndarray, np.ndarray, Facts], np.ndarray]

AROUND = " / around"  # after the name of a scorer: its score normalised by the scores around
SURROUNDINGS = 4.0  # cells of 32 px, sigma
COMPONENTS, LEARNT = 256, 6000  # principal components, and windows they are learnt from


@dataclass(frozen=True)
class Wishes:
    """What to measure: `part` of the real images, `models` beside the trivial scorers; `small` is for trying out."""

    part: str = "validation"
    strips: str = "both"
    models: tuple[str, ...] = MODELS
    model_folders: tuple[Path, ...] = ()
    seed: int = 0
    small: bool = False

    def __post_init__(self) -> None:
        if self.strips not in (*STRIPS, "both"):
            raise ParameterError(f"There are no strips {self.strips!r}.", "choose planted, simulated or both.")
        if self.part not in ("train", "validation", "test"):
            raise ParameterError(f"There is no part {self.part!r}.", "choose train, validation or test.")


def evaluate_anomalies(folder: Path, out: Path, wishes: Wishes | None = None, say: Say | None = None) -> dict[str, Any]:
    """Score strips with things in them by all scorers; write `report.html` and `report.json`; return the numbers."""
    wishes, say = wishes or Wishes(), say or (lambda words: None)
    _check_destination(out)
    scorers, missing = _models(wishes)
    for name in missing:
        say(f"the model {name} is not installed: it is left out")
    taught = [_middle(g, wishes) for g in real_grounds(folder, "train")]
    scorers = {**trivial_scorers(taught), **scorers}
    facts: dict[str, Any] = {
        "part": wishes.part,
        "seed": wishes.seed,
        "small": wishes.small,
        "missing": list(missing),
        "strips": {},
    }
    parts = [_introduction(facts)]
    for name in STRIPS if wishes.strips == "both" else (wishes.strips,):
        kept: list[Strip] = []
        made = compare(_told(STRIPS[name](folder, wishes), kept, say, name), scorers)
        measured = measure(made)
        facts["strips"][name] = {
            "strips": len(kept),
            "patches": len(made),
            "distinct_background": distinct(made, kept),
            "scorers": measured,
            "false_alarms": false_alarms(made),
        }
        say(f"{name}: {len(made)} patches of {len(kept)} strips are scored")
        parts += chapter(name, made, kept, facts["strips"][name], _shown(measured))
    out.mkdir(parents=True, exist_ok=True)
    publish(out / "report", report.page("Anomalies: who finds planted things", parts), facts, overwrite=False)
    return {"report": str(out / "report.html"), "numbers": str(out / "report.json"), **strict(facts)}


def in_words(facts: Mapping[str, Any]) -> str:
    """Average precision of each scorer on each kind of thing, as a table for the terminal."""
    lines = []
    for name, part in facts["strips"].items():
        kinds = list(next(iter(part["scorers"].values())))
        lines += [
            "",
            f"  {name}: average precision (random: {part['scorers']['random']['all']['base_rate']:.2g} in all)",
        ]
        lines += [f"  {'':30s}" + "".join(f"{kind[:10]:>11s}" for kind in (*kinds, "mean"))]
        for scorer, numbers in part["scorers"].items():
            found = [*(numbers[kind]["ap"] for kind in kinds), over_kinds(numbers, "ap")]
            lines += [f"  {scorer:30s}" + "".join(f"{report.short(value):>11s}" for value in found)]
    lines += [f"  not installed: {', '.join(facts['missing'])}"] if facts["missing"] else []
    return "\n".join([f"  {facts['report']}", *lines])


def _check_destination(out: Path) -> None:
    if out.is_file():
        raise OutputError(f"{out} is a file.", "give the name of a folder.")
    if (out / "report.html").exists() or (out / "report.json").exists():
        raise OutputError(f"{out} holds a report already.", "give another folder, or delete it.")


def _models(wishes: Wishes) -> tuple[dict[str, Scorer], list[str]]:
    """Scorers of the models that are installed, and the shipped ones that are not; any other must be there."""
    scorers: dict[str, Scorer] = {}
    missing = []
    for name in wishes.models:
        try:
            pack = find_pack(name, wishes.model_folders)
        except ModelError:
            if name not in MODELS:
                raise
            missing.append(name)
            continue
        pack.check_task("anomalies")
        scorers[pack.card.id] = tool_scorer(name, wishes.model_folders)
    return scorers, missing


def _told(strips: Iterable[Strip], kept: list[Strip], say: Say, name: str) -> Iterator[Strip]:
    """The strips one by one; what figures need of them is kept, which is not their truth."""
    empty = np.zeros((0, 0), np.uint8)
    for number, strip in enumerate(strips):
        if number and number % 16 == 0:
            say(f"{name}: {number} strips are scored")
        yield strip
        kept.append(replace(strip, mask=empty, touched=empty, terrain={}))


def _shown(measured: Measured) -> list[str]:
    """Scorers for figures: the models first, then the trivial ones from the best on; seven in all."""
    by_precision = sorted(measured, key=lambda name: -measured[name]["all"]["ap"])
    models = [name for name in by_precision if not _trivial(name) and not name.endswith(AROUND)]
    return [*models, *(name for name in by_precision if name not in models)][:7]


def _trivial(name: str) -> bool:
    plain = name[: -len(AROUND)] if name.endswith(AROUND) else name
    return plain in (*TRIVIAL, *METHODS)


def _introduction(facts: Mapping[str, Any]) -> str:
    left_out = f" Not installed, and left out: {', '.join(facts['missing'])}." if facts["missing"] else ""
    return report.text(
        "Strange things are planted in images at known places; each scorer ranks all patches of 64 px. Scores are "
        "counted from the median of their own strip, in units of its spread. Each thing weighs 1, however many patches "
        f"see it. Real images: part {facts['part']}, seed {facts['seed']}." + left_out
    )


# ---- strips ------------------------------------------------------------------------------------------------------


def planted(folder: Path, part: str = "validation", count: int = 0, seed: int = 0) -> Iterator[Strip]:
    """Strips of one part of the real images (train, validation, test), with one strange thing in each, or none.

    By default 36 of each image: then each kind of thing is in 4 strips of each.
    """
    grounds = real_grounds(folder, part)
    return plant_strips(grounds, count or COUNT * len(grounds), seed)


def _planted(folder: Path, wishes: Wishes) -> Iterator[Strip]:
    grounds = real_grounds(folder, wishes.part)
    if wishes.small:
        return plant_strips([_middle(grounds[0], wishes)], len(KINDS), wishes.seed)
    return plant_strips(grounds, COUNT * len(grounds), wishes.seed)


def _simulated(_folder: Path, wishes: Wishes) -> Iterator[Strip]:
    if wishes.small:
        return drawn_strips(2, wishes.seed, SMALL_PX, 4)
    return drawn_strips(DRAWN, wishes.seed, DRAWN_PX, DRAWN_THINGS)


STRIPS: dict[str, Callable[[Path, Wishes], Iterator[Strip]]] = {"planted": _planted, "simulated": _simulated}


def _middle(ground: Strip, wishes: Wishes) -> Strip:
    if not wishes.small:
        return ground
    part = tuple(slice((n - SMALL_PX) // 2, (n + SMALL_PX) // 2) for n in ground.image.shape)
    return Strip(ground.image[part], ground.valid[part], ground.facts)


def real_grounds(folder: Path, part: str = "validation") -> list[Strip]:
    """The images of a folder that belong to one part of the split and whose sun is known, by name.

    The sun's azimuth is measured on the craters that are labelled beside each image, because an image may be mirrored
    or turned; its height is that of the product in `realism.SUN`.
    """
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise DataError(f"There is no image in {folder}.", f"give a folder with {', '.join(SUFFIXES)} files.")
    found = []
    for path in paths:
        product, labels = product_id(path.name), path.with_suffix(".txt")
        known = any(product in split.get(part, ()) for split in SPLITS.values()) and product in SUN
        if known and labels.is_file():
            with open_image(path) as image:
                patch = image.read(Window(0, 0, image.grid.width, image.grid.height))
            azimuth = sun_from_craters(patch.pixels, _boxes(labels))
            if np.isfinite(azimuth):
                facts = Facts(path.name, product, PIXEL_M, azimuth, SUN[product][0])
                found.append(Strip(patch.pixels, patch.valid, facts))
    if not found:
        raise DataError(
            f"No image in {folder} is of the part {part!r} and has labelled craters beside it.",
            "give the whole folder of the images that development uses.",
        )
    return found


def _boxes(path: Path) -> np.ndarray:
    """Labelled craters (n, 4): x, y, width, height in px."""
    rows = [re.split(r"[,\t ]+", line.strip())[1:5] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    try:
        return np.array([[float(value) for value in row] for row in rows if len(row) == 4]).reshape(-1, 4)
    except ValueError as error:
        raise DataError(f"{path} is not a table of crater boxes.", "give ID,X,Y,W,H in each line.") from error


# ---- scorers -----------------------------------------------------------------------------------------------------


def tool_scorer(model: str, model_folders: Sequence[Path] = ()) -> Scorer:
    """A method or packed model as `lunar anomalies` runs it: from a GeoTIFF to the score raster."""

    def score(image: np.ndarray, valid: np.ndarray, facts: Facts) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            strip, scores = Path(folder) / "strip.tif", Path(folder) / "scores.tif"
            _write(strip, image, valid)
            options = Options(
                strip,
                model=model,
                model_folders=tuple(model_folders),
                pixel_size=facts.pixel_size,
                sun_azimuth=facts.sun_azimuth,
            )
            anomalies.score_anomalies(options, anomalies.Wishes(str(Path(folder) / "points.gpkg"), str(scores), top=1))
            with open_image(scores, 1) as raster:
                patch = raster.read(raster.grid.window)
            return np.where(patch.valid, patch.pixels, np.nan)

    return score


def _write(path: Path, image: np.ndarray, valid: np.ndarray) -> None:
    nodata = None if valid.all() else 0
    grid = Grid(None, PIXEL_SPACE, image.shape[1], image.shape[0])
    with RasterWriter(path, grid, [Band("strip", "")], dtype=str(image.dtype), nodata=nodata) as writer:
        writer.append(np.where(valid, image, 0).astype(image.dtype)[None])
        writer.finish()
        writer.publish()


def _of_windows(measure: Callable[[np.ndarray], np.ndarray]) -> Scorer:
    """A scorer that measures each patch, (n, 64, 64) → (n,); cells whose patch reaches over the edge have none."""

    def score(image: np.ndarray, valid: np.ndarray, facts: Facts) -> np.ndarray:
        relative = np.where(valid, image, 0).astype(np.float32) / max(float(np.median(image[valid])), 1e-9)
        windows = np.lib.stride_tricks.sliding_window_view(relative, (WINDOW, WINDOW))[FIRST::STRIDE, FIRST::STRIDE]
        result = np.full([-(-side // STRIDE) for side in image.shape], np.nan)
        for row, line in enumerate(windows):
            result[row + 1, 1 : len(line) + 1] = measure(line)
        return result

    return score


def _random(image: np.ndarray, valid: np.ndarray, facts: Facts) -> np.ndarray:
    seed = int(image.astype(np.int64).sum()) % 2**31
    return np.random.default_rng(seed).random([-(-side // STRIDE) for side in image.shape])


def _deviation(windows: np.ndarray) -> np.ndarray:
    return windows.std((1, 2))


def _laplacian(windows: np.ndarray) -> np.ndarray:
    inner = windows[:, 1:-1, 1:-1]
    around_it = windows[:, :-2, 1:-1] + windows[:, 2:, 1:-1] + windows[:, 1:-1, :-2] + windows[:, 1:-1, 2:]
    return ((4 * inner - around_it) ** 2).mean((1, 2))


def pca_scorer(grounds: Sequence[Strip], components: int = COMPONENTS) -> Scorer:
    """The mean squared residual of patches after the principal components of other images are taken away."""
    from sklearn.decomposition import PCA

    windows = [
        np.lib.stride_tricks.sliding_window_view(g.image / np.float32(np.median(g.image)), (WINDOW, WINDOW))[::16, ::16]
        for g in grounds
    ]
    every = np.concatenate([w.reshape(-1, WINDOW * WINDOW) for w in windows])
    learnt = every[:: -(-len(every) // LEARNT)].astype(np.float32)
    learnt = learnt - learnt.mean(1, keepdims=True)
    count = min(components, len(learnt) // 4)
    fitted = PCA(count, svd_solver="randomized", random_state=0, iterated_power=2).fit(learnt)
    mean, axes = fitted.mean_.astype(np.float32), fitted.components_.astype(np.float32)

    def residual(patches: np.ndarray) -> np.ndarray:
        flat = patches.reshape(len(patches), -1)
        flat = flat - flat.mean(1, keepdims=True) - mean
        return (flat**2).mean(1) - ((flat @ axes.T) ** 2).sum(1) / flat.shape[1]

    return _of_windows(residual)


TRIVIAL = ("random", "standard deviation", "squared Laplacian", f"PCA-{COMPONENTS} residual")


def trivial_scorers(grounds: Sequence[Strip]) -> dict[str, Scorer]:
    """What any network has to beat. `grounds` are images of the training part, which principal components need."""
    return {
        **dict(zip(TRIVIAL, (_random, _of_windows(_deviation), _of_windows(_laplacian), pca_scorer(grounds)))),
        **{name: tool_scorer(name) for name in METHODS},
    }


def by_surroundings(scores: np.ndarray) -> np.ndarray:
    """Scores on the patches' own grid, less the mean of those around, over their spread."""
    valid = np.isfinite(scores)
    mean = around.blur(scores, valid, SURROUNDINGS)
    spread = np.sqrt(around.blur((np.where(valid, scores, 0) - mean) ** 2, valid, SURROUNDINGS))
    return (scores - mean) / np.maximum(spread, 1e-12)


# ---- scores of many strips ---------------------------------------------------------------------------------------


def compare(strips: Iterable[Strip], scorers: Mapping[str, Scorer | str], surroundings: bool = True) -> Sample:
    """All patches of the strips with the scores of each scorer, which may be the name of a method or model.

        made = compare(planted(folder, "train", 96), {"mine": my_scorer, "pca": "pca"})
        measure(made)["mine"]["rockfall"]["ap"]

    With `surroundings`, each scorer also counts as NAME / around: normalised by the scores around.
    """
    ready = {name: tool_scorer(scorer) if isinstance(scorer, str) else scorer for name, scorer in scorers.items()}

    def score(strip: Strip) -> dict[str, np.ndarray]:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            made = pool.map(lambda scorer: scorer(strip.image, strip.valid, strip.facts), ready.values())
            maps = dict(zip(ready, made))
        return maps | _normalised(maps, strip) if surroundings else maps

    return sample(strips, score)


def _normalised(maps: Mapping[str, np.ndarray], strip: Strip) -> dict[str, np.ndarray]:
    """The same maps on the patches' grid, normalised by their surroundings; chance has none."""
    cells = [-(-side // STRIDE) for side in strip.image.shape]
    result = {}
    for name, scores in maps.items():
        if name != "random":
            patches = np.full(cells, np.nan)
            inner = patch_scores(scores, strip.image.shape)
            patches[1 : inner.shape[0] + 1, 1 : inner.shape[1] + 1] = inner
            result[name + AROUND] = by_surroundings(patches)
    return result
