"""How good made-up pictures are as a set: far from the real ones or near, varied or all alike, new or copied.

    evaluate_synthesis(Path("patches"), Path("report"), Wishes(("small-bodies",)))

Beside the models stand two rows that say what a number is worth: one half of the real images against the other half,
which no model can beat by being good, and real images of products that nobody learnt from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lunar_processing.devices import choose_device
from lunar_processing.errors import DataError, ParameterError
from lunar_processing.evaluate import report
from lunar_processing.evaluate.synthesis import SUBSET, Copies, copies, frechet, kernel, precision_recall
from lunar_processing.modelpack import CARD, SYNTHESIS, find_pack
from lunar_processing.raster.image import open_image
from lunar_processing.tools.listed import listed
from lunar_processing.tools.patches import SHEET, patches_of
from lunar_processing.tools.patches import Wishes as Cut
from lunar_processing.tools.reports import publish
from lunar_processing.tools.synthesize import draw
from lunar_processing.training.features import Features, features, pooled
from lunar_processing.training.patches import PARTS, PATCHES

DEFAULT = "small-bodies"
FLOOR, UNSEEN = "real against real", "real, of other products"
SUBSETS = 20  # of the kernel distance
FEWEST = 100  # images on either side that a number can be told of
SHOWN = 16  # nearest neighbours in the report
COLUMNS = ("frechet", "kernel", "kernel_spread", "precision", "recall")


@dataclass(frozen=True)
class Wishes:
    """Models by id or folder, or folders of pictures; by whose features; at most `count` images on either side.

    `inception`: a file of Inception's weights; by these, and only these, distances are called FID and KID.
    """

    models: tuple[str, ...] = (DEFAULT,)
    model_folders: tuple[Path, ...] = ()
    features: tuple[str, ...] = ("efficientnet-lite0",)
    inception: Path | None = None
    count: int = 1000
    band: int | None = None
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.count < FEWEST:
            raise ParameterError(f"--count {self.count} is too few to be compared.", f"give {FEWEST} or more.")


def evaluate_synthesis(
    folder: Path, out: Path, wishes: Wishes | None = None, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Measure, and write `synthesis.html` and `synthesis.json`; returns the numbers."""
    wishes = wishes or Wishes()
    made = {Path(name).name: pictures(name, wishes) for name in wishes.models}
    sides = {images.shape[1] for images in made.values()}
    if len(sides) != 1:
        raise DataError(f"The pictures are of different sizes: {sorted(sides)} px.", "evaluate them one by one.")
    real = patches_of(Cut([str(folder)], Path(), sides.pop(), band=wishes.band, seed=wishes.seed))
    parts = np.array([fact["part"] for fact in real.facts])
    learnt, unseen = (real.images[parts == part] for part in PARTS)
    count = min(wishes.count, len(learnt) // 2, *(len(images) for images in made.values()))
    if count < FEWEST:
        raise DataError(
            f"There are {len(learnt)} real images and {min(map(len, made.values()))} made ones to compare; "
            f"{2 * FEWEST} and {FEWEST} are needed.",
            "give more images.",
        )
    random = np.random.default_rng(wishes.seed)
    order = random.permutation(len(learnt))
    learnt, unseen = learnt[order], unseen[random.permutation(len(unseen))[:count]]
    say(f"{count} images on either side; {len(learnt)} were learnt from, {len(unseen)} are of other products")
    facts: dict[str, Any] = {"count": count, "learnt": len(learnt), "unseen": len(unseen), "features": {}, "copies": {}}
    first: dict[str, Copies] = {}
    for eye in _eyes(wishes):
        compared = learnt[: 2 * count] if first else learnt  # copies are looked for once, among all
        seen = {name: _look(eye, images) for name, images in {"learnt": compared, "unseen": unseen, **made}.items()}
        rows = _rows(seen, count, wishes.seed)
        facts["features"][eye.title] = {"names": distance_names(eye), "rows": rows}
        for name, row in rows.items():
            say(f"{eye.title}: {name}: {', '.join(f'{k} {v:.4g}' for k, v in row.items())}")
        if not first and len(unseen) >= FEWEST:
            first = {name: copies(seen["learnt"], seen[name], seen["unseen"]) for name in made}
            facts["copies"] = {name: {**_numbers(found), "features": eye.title} for name, found in first.items()}
    out.mkdir(parents=True, exist_ok=True)
    publish(out / "synthesis", _page(facts, made, learnt, first), facts)
    return {**facts, "report": str(out / "synthesis.html"), "numbers": str(out / "synthesis.json")}


def in_words(facts: Mapping[str, Any]) -> str:
    """The tables for people."""
    lines = [f"  {facts['report']}"]
    for table in facts["features"].values():
        names = table["names"]
        lines.append(f"  {'':<28} {names[0]:>24} {names[1]:>24}  precision  recall")
        for name, row in table["rows"].items():
            near, cover = (row["frechet"], row["kernel"]), (row["precision"], row["recall"])
            lines.append("  {:<28} {:>24.2f} {:>24.4f}  {:>9.2f}  {:>6.2f}".format(name, *near, *cover))
    return "\n".join(lines)


# ---- images ------------------------------------------------------------------------------------------------------


def pictures(name: str, wishes: Wishes) -> np.ndarray:
    """Pictures (N, S, S) uint8 that a model makes, or that a folder holds."""
    folder = Path(name)
    if folder.is_dir() and not (folder / CARD).is_file():
        return _of_folder(folder, wishes)
    pack = find_pack(name, wishes.model_folders)
    pack.check_task(SYNTHESIS)
    return np.stack(list(draw(pack, wishes.count, wishes.seed, device=choose_device(wishes.device))))


def _of_folder(folder: Path, wishes: Wishes) -> np.ndarray:
    """As they are: neither stretched nor are those left out that are flat or come twice."""
    if (folder / PATCHES).is_file():
        return np.asarray(np.load(folder / PATCHES, allow_pickle=False)[: wishes.count])
    found: dict[str, np.ndarray] = {}
    for row in islice((r for r in listed(folder) if Path(r["image"]).name != SHEET), wishes.count):
        with open_image(row["image"], wishes.band) as image:
            found[image.path.name] = image.stored().pixels
    shapes = {pixels.shape: name for name, pixels in found.items()}
    wrong = next((name for shape, name in shapes.items() if shape[0] != shape[1]), None)
    if len(shapes) > 1 or wrong:
        raise DataError(
            f"The pictures of {folder} are not squares of one size ({', '.join(list(shapes.values())[:3])}).",
            "leave out what does not belong to them.",
        )
    return np.stack(list(found.values())).astype(np.uint8)


# ---- numbers -----------------------------------------------------------------------------------------------------


def _eyes(wishes: Wishes) -> list[Features]:
    eyes = [features(name) for name in wishes.features]
    if wishes.inception is not None:
        eyes.append(features("inception", wishes.inception))
    return [eye.to(choose_device(wishes.device)) for eye in eyes]


def distance_names(eye: Features) -> tuple[str, str]:
    """What the Fréchet and the kernel distance by these features are called."""
    return ("FID", "KID") if eye.title == "Inception" else (f"FD-{eye.title}", f"KD-{eye.title}")


def _look(eye: Features, images: np.ndarray) -> np.ndarray:
    if not len(images):
        return np.zeros((0, eye.size))
    seen: np.ndarray = pooled(eye, torch.from_numpy(np.ascontiguousarray(images))).numpy().astype(float)
    return seen


def _rows(seen: Mapping[str, np.ndarray], count: int, seed: int) -> dict[str, dict[str, float]]:
    real = seen["learnt"][:count]
    others = {FLOOR: seen["learnt"][count : 2 * count]}
    if len(seen["unseen"]) >= FEWEST:
        others[UNSEEN] = seen["unseen"]
    others |= {name: values[:count] for name, values in seen.items() if name not in ("learnt", "unseen")}
    return {name: _row(real, values, seed) for name, values in others.items()}


def _row(real: np.ndarray, other: np.ndarray, seed: int) -> dict[str, float]:
    near = kernel(real, other, SUBSETS, min(SUBSET, len(other) // 2), seed)
    cover = precision_recall(real, other)
    return dict(zip(COLUMNS, (frechet(real, other), near.mean, near.spread, cover.precision, cover.recall)))


def _numbers(found: Copies) -> dict[str, float]:
    return {"made": found.made, "real": found.real, "likely_nearer": found.likely_nearer, "near": found.near}


# ---- the report --------------------------------------------------------------------------------------------------

_HOW = (
    "Each image is reduced to the features that a frozen network sees in it; the sets are compared by these. FD is the "
    "Fréchet distance (of normal distributions of the same means and covariances), KD the kernel distance (unbiased, "
    "polynomial of third degree, mean and standard deviation over subsets): 0 is equal. Precision is the share of made "
    "images that lie among the real ones, recall the share of real ones that lie among the made. All of them depend on "
    "whose features they are and on how many images are compared; numbers of other pages cannot be compared with "
    "these. Only by Inception's features they are FID and KID."
)
_FLOOR = (
    f"'{FLOOR}' are two halves of the images that were learnt from: as near as sets of this many images can be, "
    "and nearer where patches overlap, since the halves then share ground. "
    f"'{UNSEEN}' are other places, at times another body: farther, though as real as can be."
)
_COPIED = (
    "Distance to the nearest image that was learnt from: median of made and of real ones that nobody learnt from; how "
    "likely a made one is nearer than a real one (0.5 without copying, when both are of one kind); share of made ones "
    "nearer than 99 % of the real ones. Where other products are another kind of ground, made images are nearer "
    "without being copies: look at the pictures below."
)


def _page(
    facts: Mapping[str, Any], made: Mapping[str, np.ndarray], learnt: np.ndarray, found: Mapping[str, Copies]
) -> str:
    parts = [report.text(f"{facts['count']} images on either side. {_HOW}"), report.text(_FLOOR)]
    for title, table in facts["features"].items():
        head = ("", *table["names"], "its spread", "precision", "recall")
        rows = [(name, *(row[column] for column in COLUMNS)) for name, row in table["rows"].items()]
        parts += [report.heading(f"By the features of {title}"), report.table(head, rows)]
    if found:
        head = ("", "made", "real", "likely nearer", "nearer than 99 %")
        rows = [(name, *_numbers(one).values()) for name, one in found.items()]
        parts += [report.heading("Copies"), report.text(_COPIED), report.table(head, rows)]
        parts += [_neighbours(name, made[name], learnt, one) for name, one in found.items()]
    return report.page("Made-up pictures", parts)


def _neighbours(name: str, made: np.ndarray, learnt: np.ndarray, found: Copies) -> str:
    """Those that come nearest to what was learnt from, and that."""
    nearest = np.argsort(found.distance)[:SHOWN]
    titles = [report.short(float(found.distance[n])) for n in nearest]
    panels: dict[str, tuple[np.ndarray, Sequence[str]]] = {
        "made": (made[nearest], titles),
        "nearest learnt from": (learnt[found.nearest[nearest]], titles),
    }
    return report.figure(report.sheets(panels), f"{name}: the {len(nearest)} pictures nearest to what was learnt from.")
