"""How well strange things are found: the planted benchmark, its scorers, and its report."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from lunar_processing.classical import around
from lunar_processing.classical.anomalies import METHODS
from lunar_processing.errors import DataError
from lunar_processing.evaluate import metrics
from lunar_processing.evaluate.planted import (
    FIRST,
    KINDS,
    STRIDE,
    WINDOW,
    Facts,
    Sample,
    Strip,
    patch_scores,
    plant_strips,
    sample,
    sun_from_craters,
)
from lunar_processing.grid import PIXEL_SPACE, Grid, Window
from lunar_processing.raster.image import open_image
from lunar_processing.raster.writer import Band, RasterWriter
from lunar_processing.tools import anomalies
from lunar_processing.tools.job import Options
from lunar_processing.tools.realism import SUFFIXES, SUN
from lunar_processing.training.data import SPLITS, product_id

PIXEL_M = 0.5  # of the real images, whose labels are lost
TOP = 100  # patches that somebody looks at

# (image, valid, facts) → one score for each s × s px of the image, or for each pixel; higher is stranger
Scorer = Callable[[np.ndarray, np.ndarray, Facts], np.ndarray]

AROUND = " / around"  # after the name of a scorer: its score normalised by the scores around
SURROUNDINGS = 4.0  # cells of 32 px, sigma
COMPONENTS, LEARNT = 256, 6000  # principal components, and windows they are learnt from


def planted(folder: Path, part: str = "validation", count: int = 96, seed: int = 0) -> Iterator[Strip]:
    """Strips of the real images of one part of the split (train, validation, test), each with one strange thing.

    96 strips of the three validation images hold each kind of thing 12 times.
    """
    return plant_strips(real_grounds(folder, part), count, seed)


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


def trivial_scorers(grounds: Sequence[Strip]) -> dict[str, Scorer]:
    """What any network has to beat. `grounds` are images of the training part, which principal components need."""
    return {
        "random": _random,
        "standard deviation": _of_windows(lambda windows: windows.std((1, 2))),
        "squared Laplacian": _of_windows(_laplacian),
        f"PCA-{COMPONENTS} residual": pca_scorer(grounds),
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


Measured = dict[str, dict[str, dict[str, float]]]


def measure(made: Sample) -> Measured:
    """Scorer → kind of thing, or `all` → what was measured: see the docs for each number."""
    parts = {name: made.about(number) for number, name in enumerate(KINDS) if (made.kind == number).any()}
    parts["all"] = made.about(None)
    return {
        scorer: {kind: _measure(part, part.scores[scorer]) for kind, part in parts.items()} for scorer in made.scores
    }


def _measure(part: Sample, score: np.ndarray) -> dict[str, float]:
    positive, weight = part.thing >= 0, part.weight
    precision, chance = metrics.average_precision(score, positive, weight), metrics.base_rate(positive, weight)
    homes, background = score[part.home], score[part.apart & ~positive]
    apart = metrics.separation(homes, background)
    return {
        "ap": precision,
        "base_rate": chance,
        "improvement": precision / chance,
        "patr": metrics.precision_at_all(score, positive, weight),
        "eomv": metrics.saving(score, positive, weight),
        "ks": apart.distance,
        "ks_p": apart.p,
        f"found_in_top_{TOP}": metrics.found_among_top(score, part.thing, TOP),
        "ap_as_published": metrics.average_precision_as_published(
            score[part.home | ~positive], part.home[part.home | ~positive]
        ),
        "things": int(part.home.sum()),
        "background": int((~positive).sum()),
    }
