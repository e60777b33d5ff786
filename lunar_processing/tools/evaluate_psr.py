"""How well shadow is seen into: images of which all is known, made as dark as permanent shadow, and restored.

Real sunlit products that nothing was learnt from and simulated ground in permanent shadow go through the model of the
camera at several signals. All methods are given the same image, freed of stripes in the same way, and nothing else;
those that look for their best strength are told the truth to choose it by, which nobody else has.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from skimage import restoration as skimage

from lunar_processing.classical import enhance as classical
from lunar_processing.classical import noise as noises
from lunar_processing.classical import stripes
from lunar_processing.classical.noise import Noise
from lunar_processing.errors import DataError
from lunar_processing.evaluate import craters, report, restoration
from lunar_processing.evaluate.spots import count_spots
from lunar_processing.grid import PIXEL_SPACE, Grid
from lunar_processing.modelpack import Pack, find_pack
from lunar_processing.raster.image import open_image
from lunar_processing.raster.writer import Band, RasterWriter
from lunar_processing.simulate import scenes, sensor
from lunar_processing.tools.enhance import enhance
from lunar_processing.tools.job import Options
from lunar_processing.tools.realism import SUFFIXES, Say
from lunar_processing.tools.reports import publish
from lunar_processing.tools.shadow import of_camera, restore, windows_of
from lunar_processing.training.data import SPLITS, dice, mix, product_id

LEVELS = (2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # DN, mean
DRAWN, DRAWN_PX, DRAWN_SEED = 3, 512, 900_001
JUDGED_PX = 256  # side of the middle part of an image that is measured
SMALL_PX, SMALL_JUDGED_PX = 224, 96  # sides in a trial
PIXEL_M = 1.0
FAINT = 0.02  # light that even shadow has, as a share of the mean
BLURS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)  # px
NLM_STRENGTHS = (0.5, 0.7, 0.9, 1.2)  # of the noise
OURS, BOUND, INPUT = "psr-physics", "Wiener, knows the spectrum", "noisy, without stripes"
BLIND = "psr-physics, without a label"
STRIPELESS = "Gaussian, told its sigma and all stripes"
SURE = 0.95  # a crater is sure that is seen in so many of the images that may be the true one …
POSSIBLE = 20  # … of which so many are looked at; their errors are those of simulated shadow that is not measured
ERRORS_SEED, ERRORS_DRAWN = 600_001, 4
MOST_LABELLED_PX = 60.0
SPOT_PX = 4.0  # no smaller spots are counted
SLOW = ("bilateral", "non-local means, told its strength", "BM3D")  # these see the middle part alone


@dataclass(frozen=True)
class Wishes:
    """What to measure: `models` beside the classical methods; `small` for trying out, which measures nothing."""

    part: str = "validation"
    models: tuple[str, ...] = (OURS,)
    model_folders: tuple[Path, ...] = ()
    seed: int = 0
    small: bool = False


class Scene(NamedTuple):
    """Light (H, W), mean 1, of a product or a simulated scene, with the boxes of its craters (n, 3) where labelled."""

    name: str
    light: np.ndarray
    boxes: np.ndarray | None


class Case(NamedTuple):
    """A scene at a signal, DN: truth, what was recorded, that without stripes, and its noise as far as known."""

    scene: Scene
    level: float
    truth: np.ndarray
    recorded: np.ndarray
    flat: np.ndarray
    noise: Noise


@dataclass
class Found:
    """What was measured, by method and level: one dict of numbers for each scene."""

    numbers: dict[str, dict[float, list[dict[str, float]]]] = field(default_factory=dict)
    shown: dict[tuple[str, float], dict[str, np.ndarray]] = field(default_factory=dict)

    def add(self, method: str, level: float, numbers: dict[str, float]) -> None:
        """Numbers of one more scene."""
        self.numbers.setdefault(method, {}).setdefault(level, []).append(numbers)

    def mean(self, method: str, level: float, name: str) -> float:
        """Mean over the scenes that can tell; NaN where none can."""
        told = [n[name] for n in self.numbers.get(method, {}).get(level, []) if name in n]
        return float(np.mean(told)) if told else float("nan")


# (the case) → the restored image, and its sigma where the method has an opinion
Restorer = Callable[[Case], tuple[np.ndarray, "np.ndarray | None"]]
# (method, level) → errors in sigmas, each (H, W) of the part that is measured
Errors = Callable[[str, float], Sequence[np.ndarray]]


def evaluate_psr(folder: Path, out: Path, wishes: Wishes | None = None, say: Say | None = None) -> dict[str, Any]:
    """Measure all methods on all scenes and signals; write `psr.html` and `psr.json`; return the numbers."""
    wishes, say = wishes or Wishes(), say or (lambda text: None)
    packs = [find_pack(name, wishes.model_folders) for name in wishes.models]
    methods: dict[str, Restorer] = {**restorers(say), **{p.card.id: _by_network(p) for p in packs}}
    if OURS in methods:
        methods[BLIND] = _blind(packs[[p.card.id for p in packs].index(OURS)])
    levels = LEVELS[1:4:2] if wishes.small else LEVELS
    real = read_scenes(folder, SPLITS["nac_cdr"][wishes.part])
    judge = _judge(folder, wishes, say)
    smallest, errors = _resolvable(packs), errors_of(methods, wishes)
    found = Found()
    count, side = (1, SMALL_PX) if wishes.small else (DRAWN, DRAWN_PX)
    for scene in [*real, *draw_scenes(count, side, DRAWN_SEED + wishes.seed)]:
        for level in levels:
            case = darkened(scene, level, wishes)
            _measure(case, methods, judge, found, middle(scene.light.shape, wishes), smallest(level), errors)
            say(f"{scene.name} at {level:g} DN")
    facts = summary(found, levels, wishes)
    out.mkdir(parents=True, exist_ok=True)
    publish(out / "psr", in_html(found, levels, wishes), facts)
    return {"report": str(out / "psr.html"), "numbers": str(out / "psr.json"), **facts}


# ---- scenes ------------------------------------------------------------------------------------------------------


def read_scenes(folder: Path, products: Sequence[str]) -> list[Scene]:
    """The images of some products in a folder, with their labelled craters."""
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    found = []
    for path in (p for p in paths if product_id(p.name) in products):
        with open_image(path) as image:
            light = image.read(image.grid.window).pixels.astype(np.float64)
        labels = path.with_suffix(".txt")
        found.append(Scene(path.stem, light / light.mean() + FAINT, read_boxes(labels) if labels.is_file() else None))
    if not found:
        raise DataError(f"There is no image of the wanted products in {folder}.", "give the folder nac_cdr.")
    return found


def read_boxes(path: Path) -> np.ndarray:
    """Middle and diameter of labelled craters (n, 3): column, row, mean of width and height, px."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    try:
        box = np.array([[float(v) for v in re.split(r"[,\t ]+", line.strip())[1:5]] for line in lines if line.strip()])
        return np.column_stack([box[:, 0] + box[:, 2] / 2, box[:, 1] + box[:, 3] / 2, box[:, 2:4].mean(axis=1)])
    except (IndexError, ValueError) as error:
        raise DataError(f"{path} is no table of crater boxes.", "give ID,X,Y,W,H in each line and a header.") from error


def draw_scenes(count: int, side: int, seed: int) -> list[Scene]:
    """Simulated ground in permanent shadow, as the camera's optics show it."""
    made = scenes.draw("psr", count, seed, size=side)
    optics = sensor.Camera(**{**vars(sensor.IDEAL), "psf": made.camera.psf})
    seen = sensor.expose(made.ideal, optics).expected.clamp_min(0).double().numpy()
    return [Scene(f"simulated {k + 1}", image / image.mean(), None) for k, image in enumerate(seen)]


def darkened(scene: Scene, level: float, wishes: Wishes) -> Case:
    """The scene as a camera drawn for it records it at a mean signal, calibrated, and without stripes."""
    end = SMALL_PX if wishes.small else None
    light = scene.light[:end, :end]
    seed = mix(mix(wishes.seed, round(10 * level)), sum(scene.name.encode()))
    camera = sensor.sample_cameras(1, dice(seed, 0), {"table": (1.0, 1.0), "dropped": (0.0, 0.0)})
    truth = light * (level / light.mean())
    recorded = sensor.degrade(torch.from_numpy(truth).float()[None], float(truth.mean()), camera, dice(seed, 1))
    pixels = sensor.calibrate(recorded)[0].numpy()
    valid = np.ones(pixels.shape, bool)
    noise = nominal(pixels)
    flat = stripes.destripe(pixels, valid, stripes.offsets(pixels, valid, noise), (0, 0))
    return Case(scene, level, truth, pixels, flat, noise)


def nominal(pixels: np.ndarray) -> Noise:
    """The noise of a calibrated image in DN, as it tells itself, within what the camera has that its label names."""
    return of_camera(noises.fit_noise(windows_of(pixels), 0.0), float(np.median(pixels)))


def middle(shape: tuple[int, ...], wishes: Wishes) -> tuple[slice, slice]:
    """Rows and columns of the part of an image that is measured."""
    side = SMALL_JUDGED_PX if wishes.small else JUDGED_PX
    full = [min(n, SMALL_PX) if wishes.small else n for n in shape]
    rows, cols = (slice((n - side) // 2, (n - side) // 2 + side) for n in full)
    return rows, cols


# ---- methods -----------------------------------------------------------------------------------------------------


def restorers(say: Say) -> dict[str, Restorer]:
    """The methods to compare with, by name; those whose package is not installed are left out, and it is said."""
    known: dict[str, Callable[[Case], np.ndarray]] = {
        INPUT: lambda case: case.flat,
        "percentile stretch": _display("stretch"),
        "CLAHE": _display("clahe"),
        "Retinex": _display("retinex"),
        "bilateral": _bilateral,
        "Gaussian, told its sigma": best_gaussian,
        "non-local means, told its strength": _nlm,
        "destripe-nlm": _destripe_nlm,
        BOUND: lambda case: restoration.wiener(case.flat, case.truth),
        STRIPELESS: _stripeless,
    }
    for name, package, method in (("wavelet", "pywt", _wavelet), ("BM3D", "bm3d", _bm3d)):
        try:
            __import__(package)
        except ImportError:
            say(f"{name} is left out: pip install {package} to compare with it")
        else:
            known[name] = method
    return {name: _without_sigma(method) for name, method in known.items()}


def _without_sigma(method: Callable[[Case], np.ndarray]) -> Restorer:
    return lambda case: (method(case), None)


def _sigma(case: Case) -> float:
    return float(noises.sigma_at(case.noise, case.level))


def _best(case: Case, images: Sequence[np.ndarray]) -> np.ndarray:
    """The one that is nearest to the truth, which no method knows."""
    return min(images, key=lambda image: float(np.mean((image - case.truth) ** 2)))


def best_gaussian(case: Case) -> np.ndarray:
    """The blur that is nearest to the truth."""
    return _best(case, [ndimage.gaussian_filter(case.flat, s) for s in BLURS])


def _stripeless(case: Case) -> np.ndarray:
    """What the offsets of lines and columns, and of the black level, cost: the best blur if they were known."""
    error = case.flat - case.truth
    offsets = error.mean(axis=1, keepdims=True) + error.mean(axis=0, keepdims=True) - error.mean()
    return best_gaussian(case._replace(flat=case.flat - offsets))


def _nlm(case: Case) -> np.ndarray:
    sigma = _sigma(case)
    options = {"patch_size": 7, "patch_distance": 10, "sigma": sigma, "fast_mode": True}
    return _best(case, [skimage.denoise_nl_means(case.flat, h=h * sigma, **options) for h in NLM_STRENGTHS])


def _destripe_nlm(case: Case) -> np.ndarray:
    state = classical.Cleaner(case.noise, None)
    return classical.destripe_nlm(case.flat, np.ones(case.flat.shape, bool), state).astype(np.float64)


def _bilateral(case: Case) -> np.ndarray:
    low = float(case.flat.min())  # it wants no negative values
    made = skimage.denoise_bilateral(case.flat - low, win_size=11, sigma_color=2.5 * _sigma(case), sigma_spatial=3.0)
    return np.asarray(made + low)


def _wavelet(case: Case) -> np.ndarray:
    made = skimage.denoise_wavelet(case.flat, sigma=_sigma(case), method="BayesShrink", mode="soft", wavelet="db4")
    return np.asarray(made)


def _bm3d(case: Case) -> np.ndarray:
    import bm3d

    return np.asarray(bm3d.bm3d(case.flat, _sigma(case)))


def _display(name: str) -> Callable[[Case], np.ndarray]:
    """A method that makes an image to look at; its brightness is brought back by the straight line that fits best."""
    method = classical.METHODS[name]

    def apply(case: Case) -> np.ndarray:
        valid = np.ones(case.flat.shape, bool)
        seen = method.apply(case.flat, valid, method.fit(windows_of(case.flat), None)).astype(np.float64)
        return _levelled(seen, case.truth)

    return apply


def _levelled(seen: np.ndarray, truth: np.ndarray) -> np.ndarray:
    slope, shift = np.polyfit(seen.ravel(), truth.ravel(), 1)
    return np.asarray(slope * seen + shift)


def _by_network(pack: Pack) -> Restorer:
    if pack.card.normalisation.kind != "noise":
        return _by_tool(pack)

    def apply(case: Case) -> tuple[np.ndarray, np.ndarray | None]:
        enhanced, sigma = restore(pack, case.recorded, case.noise)
        return enhanced.astype(np.float64), sigma.astype(np.float64)

    return apply


def _by_tool(pack: Pack) -> Restorer:
    """Any other model for enhancement, as the tool applies it; its brightness is brought back as that of displays."""

    def apply(case: Case) -> tuple[np.ndarray, np.ndarray | None]:
        with tempfile.TemporaryDirectory() as place:
            given, made = Path(place) / "given.tif", Path(place) / "made.tif"
            height, width = case.flat.shape
            with RasterWriter(
                given, Grid(None, PIXEL_SPACE, width, height), [Band("image", "")], nodata=None
            ) as writer:
                writer.append(case.flat.astype(np.float32)[None])
                writer.finish()
                writer.publish()
            enhance(Options(given, model=str(pack.folder), pixel_size=PIXEL_M, device="cpu"), made)
            with open_image(made, 1) as image:
                seen = image.read(image.grid.window).pixels.astype(np.float64)
        return _levelled(seen, case.truth), None

    return apply


def _blind(pack: Pack) -> Restorer:
    """The network where nothing but the image tells of its noise."""

    def apply(case: Case) -> tuple[np.ndarray, np.ndarray | None]:
        enhanced, sigma = restore(pack, case.recorded)
        return enhanced.astype(np.float64), sigma.astype(np.float64)

    return apply


# ---- measures ----------------------------------------------------------------------------------------------------


def _measure(
    case: Case,
    methods: Mapping[str, Restorer],
    judge: craters.Judge,
    found: Found,
    inner: tuple[slice, slice],
    smallest: float,
    errors: Errors,
) -> None:
    """Numbers of all methods for one scene at one signal, over its middle part; spots of the `smallest` size, px."""
    part = _cut(case, inner)
    span = restoration.span_of(part.truth)
    in_truth = judge.find(part.truth, 0.5 * judge.threshold)  # what may be seen in the clean image
    shown = found.shown.setdefault((case.scene.name, case.level), {"truth": part.truth})
    for name, method in methods.items():
        image, sigma = method(part if name in SLOW else case)
        if name not in SLOW:
            image, sigma = image[inner], None if sigma is None else sigma[inner]
        shown[name] = image
        numbers = {
            "psnr": restoration.psnr(image, part.truth, span),
            "ssim": restoration.ssim(image, part.truth, span),
            "fsim": restoration.fsim(image, part.truth, span),
            "gradients": restoration.gradient_correlation(image, part.truth),
            "spots": float(count_spots(image, smallest)),
            "spots_there": float(count_spots(part.truth, smallest)),
        }
        if sigma is not None:
            numbers["cover68"], numbers["cover95"] = restoration.coverage(image, sigma, part.truth)
            numbers["follows"] = restoration.error_follows_sigma(image, sigma, part.truth)
        if part.scene.boxes is not None:
            there = judge.find(image)
            numbers |= _crater_numbers("crater", there, part.scene.boxes, in_truth)
            if sigma is not None:
                sure = craters.survival(judge, image, sigma, errors(name, case.level), there) >= SURE
                numbers |= _crater_numbers("sure", there[sure], part.scene.boxes, in_truth)
        found.add(name, case.level, numbers)


def _cut(case: Case, inner: tuple[slice, slice]) -> Case:
    boxes = case.scene.boxes
    if boxes is not None:
        col, row = boxes[:, 0] - inner[1].start, boxes[:, 1] - inner[0].start
        height, width = (s.stop - s.start for s in inner)
        keep = (col > 8) & (row > 8) & (col < width - 8) & (row < height - 8) & (boxes[:, 2] < MOST_LABELLED_PX)
        boxes = np.column_stack([col, row, boxes[:, 2]])[keep]
    scene = case.scene._replace(boxes=boxes)
    return case._replace(scene=scene, truth=case.truth[inner], recorded=case.recorded[inner], flat=case.flat[inner])


def _resolvable(packs: Sequence[Pack]) -> Callable[[float], float]:
    """Diameter, px, of the smallest thing that can be told from noise at a mean signal in DN, as the card has it."""
    tables = [p.card.measured["resolvable"] for p in packs if "resolvable" in p.card.measured]
    if not tables:
        return lambda level: SPOT_PX
    return lambda level: float(max(SPOT_PX, np.interp(level, tables[0]["signal_dn"], tables[0]["diameter_px"])))


def _judge(folder: Path, wishes: Wishes, say: Say) -> craters.Judge:
    say("a judge learns craters from the training products")
    taught = read_scenes(folder, SPLITS["nac_cdr"]["train"])
    pairs = [(s.light, s.boxes) for s in taught if s.boxes is not None]
    steps = 5 if wishes.small else 400
    return craters.teach([light for light, _ in pairs], [boxes for _, boxes in pairs], steps, wishes.seed)


def errors_of(methods: Mapping[str, Restorer], wishes: Wishes) -> Errors:
    """Parts of what a method is wrong by, in its sigmas, on simulated shadow that is not measured."""
    count, side, judged = (1, SMALL_PX, SMALL_JUDGED_PX) if wishes.small else (ERRORS_DRAWN, DRAWN_PX, JUDGED_PX)
    elsewhere = replace(wishes, seed=ERRORS_SEED + wishes.seed)
    scenes = draw_scenes(count, side, elsewhere.seed)

    @cache
    def errors(name: str, level: float) -> list[np.ndarray]:
        made = []
        for case in (darkened(scene, level, elsewhere) for scene in scenes):
            image, sigma = methods[name](case)
            assert sigma is not None
            made.append((image - case.truth) / np.maximum(sigma, 1e-12))
        random = np.random.default_rng(elsewhere.seed)
        corners = random.integers(side - judged + 1, size=(POSSIBLE, 2))
        return [made[k % count][row : row + judged, col : col + judged] for k, (row, col) in enumerate(corners)]

    return errors


def _crater_numbers(kind: str, found: np.ndarray, boxes: np.ndarray, in_truth: np.ndarray) -> dict[str, float]:
    """Recall of the labelled craters, and what share of the reported is in neither the labels nor the clean image."""
    seen, right = craters.matched(found, boxes)
    known = np.column_stack([in_truth[:, :2], np.full(len(in_truth), 12.0)])
    real = right | craters.matched(found, known)[1]
    numbers = {f"{kind}_recall": float(seen.mean()), f"{kind}_reported": float(len(found))}
    return numbers | ({f"{kind}_invented": float(1 - real.mean())} if len(found) else {})


# ---- what is said ------------------------------------------------------------------------------------------------

MEASURES = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "fsim": "FSIM",
    "gradients": "correlation of gradients",
    "crater_recall": "recall of labelled craters",
    "crater_invented": "share of reported craters that are in neither labels nor clean image",
    "crater_reported": "craters reported",
    "sure_recall": "recall of labelled craters where only sure ones are reported",
    "sure_invented": "share of sure craters that are in neither labels nor clean image",
    "sure_reported": "sure craters reported",
    "spots": "bright spots of the smallest resolvable size",
    "spots_there": "bright spots of that size in the clean image",
    "cover68": "share of errors within one sigma (68 % wanted)",
    "cover95": "share of errors within 1.96 sigma (95 % wanted)",
    "follows": "rank correlation of error and sigma",
}


def summary(found: Found, levels: Sequence[float], wishes: Wishes) -> dict[str, Any]:
    """All means, and by how much the network leads, for programs."""
    told: dict[str, Any] = {"part": wishes.part, "seed": wishes.seed, "small": wishes.small, "levels_dn": list(levels)}
    for name in MEASURES:
        table = {method: [round(found.mean(method, level, name), 4) for level in levels] for method in found.numbers}
        told[name] = {m: [v if v == v else None for v in row] for m, row in table.items() if any(v == v for v in row)}
    told["lead_db"] = [round(lead(found, level), 3) for level in levels]
    told["below_bound_db"] = [
        round(found.mean(BOUND, level, "psnr") - found.mean(OURS, level, "psnr"), 3) for level in levels
    ]
    return told


def lead(found: Found, level: float) -> float:
    """PSNR of the network over that of the best other method, bounds left out."""
    others = [m for m in found.numbers if m not in (OURS, BLIND, BOUND, STRIPELESS)]
    return found.mean(OURS, level, "psnr") - max(found.mean(m, level, "psnr") for m in others)


def in_html(found: Found, levels: Sequence[float], wishes: Wishes) -> str:
    """The report."""
    head = ["method", *(f"{level:g} DN" for level in levels)]
    parts = [
        report.text(
            "Mean signal in 12-bit DN, before companding. Every method is given the same image, freed of stripes. "
            f"Products of the part {wishes.part} and simulated scenes; nothing was learnt from them."
        )
    ]
    if wishes.small:
        parts.append(report.text("A trial on small images: these numbers measure nothing."))
    for name, title in MEASURES.items():
        rows = [[m, *(found.mean(m, level, name) for level in levels)] for m in found.numbers]
        rows = [row for row in rows if any(v == v for v in row[1:])]
        parts += [report.heading(title), report.table(head, rows, best=name in ("psnr", "ssim", "fsim", "gradients"))]
    rows = [["lead of psr-physics, dB", *(lead(found, level) for level in levels)]]
    parts += [report.heading("By how much"), report.table(head, rows)]
    for (scene, level), images in found.shown.items():
        caption = f"{scene} at {level:g} DN: {', '.join(n for n in SHOWN if n in images)}"
        parts.append(report.figure(picture(images), caption))
    return report.page("Seeing into shadow", parts)


SHOWN = (INPUT, "Gaussian, told its sigma", "BM3D", OURS, "truth")


def picture(images: Mapping[str, np.ndarray]) -> Any:
    """Some of the images side by side, all from the same black to the same white."""
    from matplotlib import pyplot as plt

    names = [name for name in SHOWN if name in images]
    low, high = np.percentile(images["truth"], (0.5, 99.5))
    drawn, places = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3.6), squeeze=False)
    for place, name in zip(places[0], names):
        place.imshow(images[name], cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        place.set_title(name, fontsize=9)
        place.axis("off")
    drawn.tight_layout()
    return drawn


def in_words(facts: Mapping[str, Any]) -> str:
    """The table of PSNR for people."""
    levels = "".join(f"{level:>8g}" for level in facts["levels_dn"])
    lines = [f"  {facts['report']}", f"  {'PSNR, dB, at DN':<36}{levels}"]
    lines += [f"  {m:<36}{''.join(f'{v:8.2f}' for v in row)}" for m, row in facts["psnr"].items()]
    lines.append(f"  {'lead of psr-physics':<36}{''.join(f'{v:8.2f}' for v in facts['lead_db'])}")
    return "\n".join(lines)
