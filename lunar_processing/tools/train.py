"""Train or fine-tune a model on a user's own images: read, split by product, learn, pack.

    train_model(Wishes("rocks", ["sites/"], Path("my-rocks"), labels="rocks.gpkg", start="rocks-orbital", minutes=20))

The folder becomes a model, which the tools take with --model; `training/` in it holds the checkpoint and the log.
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lunar_processing
from lunar_processing.classical.rocks import estimate_sun
from lunar_processing.devices import choose_device
from lunar_processing.errors import Cancelled, DataError, ModelError, ParameterError
from lunar_processing.modelpack import Card, Pack, find_pack, save_pack, sha256_of
from lunar_processing.networks import FAMILIES
from lunar_processing.networks.encoders import EncoderUNet
from lunar_processing.raster.quality import faults
from lunar_processing.tools import job as jobs
from lunar_processing.tools.backgrounds import background
from lunar_processing.tools.calibrate_rocks import calibrate
from lunar_processing.tools.labels import find_labels, mask_of, overlaps
from lunar_processing.tools.listed import listed
from lunar_processing.tools.network import MIDDLES, limits
from lunar_processing.tools.surface_data import published_split
from lunar_processing.training import data
from lunar_processing.training.augment import POLICIES, augment, check_candidates, one_of
from lunar_processing.training.data import Picture, Sampler, dice, mix
from lunar_processing.training.loop import LOG, Outcome, Plan, train
from lunar_processing.training.patches import PARTS, PATCHES, load_patches
from lunar_processing.training.recipes import Lesson, Recipe, recipe_named

if TYPE_CHECKING:
    from torch import nn

BANK = ".safetensors"
SPLITS: dict[str, Callable[[Sequence[Picture], int], dict[str, list[Picture]]]] = {
    "product": lambda pictures, seed: data.split_by_product(pictures, seed=seed),
    "area": lambda pictures, seed: data.split_by_area(pictures),
    "nac_cdr": lambda pictures, seed: data.split(pictures, data.SPLITS["nac_cdr"]),
    "published": lambda pictures, seed: published_split(pictures),
}
# Whole images are kept in memory, 5 bytes a pixel.
MOST_PIXELS = 400_000_000
SURE_OF_SUN = 0.4  # confidence from which on the sun that an image shows is believed
# A model that knows something already is led on more gently than one that knows nothing.
GENTLER = 0.3


@dataclass(frozen=True)
class Wishes:
    """What to train on what; None means: as the recipe says.

    `images`: files, folders, manifests (.csv) or banks (.safetensors). `labels`: a vector layer, a mask, or a folder
    of masks. `area`: a polygon layer; outside nobody has looked. `quality`: without images whose labels speak against
    them. `settings`: of the network, where they are to differ. `simulated`: share of simulated scenes, 0…1.
    `encoder_weights`: a file of a classifier's weights for a network that has an encoder. `augment`: variations by
    their names, as MineAug finds them, instead of the recipe's own.
    """

    recipe: str
    images: Sequence[str]
    out: Path
    labels: str | None = None
    area: str | None = None
    validation: Sequence[str] = ()
    split: str = "product"
    start: str | None = None
    classes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    simulated: float = 0.0
    minutes: float | None = None
    steps: int | None = None
    seed: int = 0
    resume: bool = False
    encoder_weights: Path | None = None
    quality: bool = False
    augment: tuple[str, ...] = ()
    band: int | None = None
    size: int | None = None
    batch: int | None = None
    rate: float | None = None
    device: str = "auto"
    model_folders: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "--simulated": (self.simulated, 0 <= self.simulated <= 1, "give 0 to 1"),
            "--size": (self.size, self.size is None or 32 <= self.size <= 1024, "give 32 to 1024 pixels"),
            "--batch": (self.batch, self.batch is None or self.batch >= 1, "give 1 or more"),
            "--rate": (self.rate, self.rate is None or 0 < self.rate < 1, "give for example 0.001"),
            "--seed": (self.seed, self.seed >= 0, "give 0 or more"),
            "--split": (self.split, self.split in SPLITS, f"give {', '.join(SPLITS)}"),
        }
        for name, (value, possible, cure) in checks.items():
            if not possible:
                raise ParameterError(f"{name} {value} is not possible.", f"{cure}.")
        check_candidates(self.augment)


@dataclass(frozen=True)
class Trained:
    """What was made, for people and for programs."""

    model: Path
    log: Path
    outcome: Outcome
    device: str
    pictures: Mapping[str, int]
    products: Mapping[str, Sequence[str]]
    seconds: float
    warnings: tuple[str, ...]


def train_model(wishes: Wishes, report: jobs.Report | None = None) -> Trained:
    """Train until the time is over and pack the best."""
    report, began = report or jobs.Report(), time.perf_counter()
    recipe = recipe_named(wishes.recipe)
    plan = _plan(wishes, recipe)
    start = _start(wishes, recipe)
    device = choose_device(wishes.device)
    _check_labels(wishes, recipe)
    network, card = _network(wishes, recipe, start)
    reader = _Reader(wishes, card, report, unlabelled=recipe.sampler is not None and not recipe.labels)
    parts = _parts(wishes, recipe, reader)
    training = wishes.out / "training"
    lesson = _lesson(wishes, recipe, network, parts, start, device)
    report.log(
        "info",
        f"{recipe.name}: {len(parts['train'])} images to learn from, {len(parts['validation'])} to validate on, "
        f"on {device}{f', from {start.card.id}' if start else ''}.",
    )
    outcome = train(
        recipe.task(lesson),
        plan,
        training,
        wishes.resume,
        lambda done, total: report.progress("train", done, total),
        lambda line: _tell(line, report),
        report.cancelled,
    )
    if outcome.ended == "cancelled":
        raise Cancelled(
            f"The training was stopped at step {outcome.step}.",
            "go on with --resume, or take the best so far with --resume --minutes 0.",
        )
    network.load_state_dict(outcome.best[recipe.main].state_dict())
    finished = dict(recipe.finish(lesson, network.eval())) if recipe.finish else {}
    card = replace(
        card,
        pixel_size_m=_pixel_sizes(card, parts["train"]),
        training=_facts(wishes, recipe, lesson, parts, start, outcome),
        population=finished.pop("population", {}),
        measured={**_known(outcome.measured), **finished},
    )
    save_pack(wishes.out, card, network, recipe.keep)
    if card.output == MIDDLES and start is None:
        report.log("info", "Finding out how its outputs are to be read.")
        calibrate(wishes.out)
    return Trained(
        wishes.out,
        training / LOG,
        outcome,
        device,
        {name: len(pictures) for name, pictures in parts.items()},
        {name: sorted({p.product for p in pictures}) for name, pictures in parts.items()},
        round(time.perf_counter() - began, 1),
        tuple(reader.warnings),
    )


def _plan(wishes: Wishes, recipe: Recipe) -> Plan:
    steps = recipe.steps if wishes.steps is None and wishes.minutes is None else wishes.steps
    # Of a short training a tenth at the most is spent on warming up.
    warmup = Plan.warmup if steps is None else min(Plan.warmup, steps // 10)
    return Plan(
        steps,
        wishes.minutes,
        wishes.seed,
        wishes.device,
        schedule=recipe.schedule,
        warmup=warmup,
        validations=recipe.validations,
        clip=recipe.clip,
    )


# ---- what it starts from -----------------------------------------------------------------------------------------


def _start(wishes: Wishes, recipe: Recipe) -> Pack | None:
    if wishes.start is None:
        return None
    pack = find_pack(wishes.start, wishes.model_folders)
    pack.check_task(recipe.card.task)
    if wishes.classes and tuple(wishes.classes) != pack.card.classes:
        raise ModelError(
            f"Model {pack.card.id} knows the classes {', '.join(pack.card.classes)}.",
            "leave out --classes, or begin without --from.",
        )
    return pack


def _network(wishes: Wishes, recipe: Recipe, start: Pack | None) -> tuple[nn.Module, Card]:
    """The network as it begins and the card as it will end, but for the numbers."""
    import torch

    torch.manual_seed(mix(wishes.seed, 0))
    name = wishes.out.resolve().name
    if start is not None:
        title = f"{start.card.title or start.card.id}, trained further"
        return start.network(), replace(start.card, id=name, version="1", title=title)
    card = replace(recipe.card, id=name, title=recipe.title)
    if wishes.classes:
        card = replace(card, classes=wishes.classes, settings={**card.settings, "outputs": len(wishes.classes)})
    own = {name: value for name, value in wishes.settings.items() if name not in recipe.options}
    if recipe.patches and wishes.size:
        own["size"] = wishes.size
    card = replace(card, settings={**card.settings, **own})
    try:
        network = FAMILIES[card.family](**card.settings)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"The network {card.family} cannot be built so ({error}).", "correct --set.") from error
    if wishes.encoder_weights is not None:
        _load_encoder(network, card, wishes.encoder_weights)
    return network, card


def _load_encoder(network: nn.Module, card: Card, path: Path) -> None:
    """Let an encoder begin with the weights of a classifier that was trained on ImageNet."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not isinstance(network, EncoderUNet):
        raise ParameterError(f"The network {card.family} has no encoder.", "leave out --encoder-weights.")
    try:
        network.load_imagenet(load_file(path))
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"The weights {path} cannot be read ({error}).",
            "give a .safetensors file; docs/training.md says how to make one of a .pth file.",
        ) from error


def _check_labels(wishes: Wishes, recipe: Recipe) -> None:
    bank = all(Path(name).suffix in (BANK, ".csv") for name in wishes.images)
    if recipe.labels and wishes.labels is None and not bank and wishes.simulated < 1:
        raise ParameterError(
            f"The recipe {recipe.name} learns from labels.",
            "give them with --labels: a vector layer, or a folder of masks; or train on simulated scenes alone with "
            "--simulated 1 and validate on yours.",
        )


# ---- what it learns from -----------------------------------------------------------------------------------------


@dataclass
class _Reader:
    """Reads images with their labels, and remembers what is to be told."""

    wishes: Wishes
    card: Card
    report: jobs.Report
    unlabelled: bool = False  # real ground for a recipe that makes its own truth
    warnings: list[str] = field(default_factory=list)
    pixels: int = 0

    def read(self, names: Sequence[str]) -> list[Picture]:
        """All pictures of files, folders, manifests and banks."""
        pictures, rows = [], []
        for name in names:
            if Path(name).suffix == BANK:
                pictures += data.load_pictures(Path(name))
            else:
                rows += listed(Path(name))
        for done, row in enumerate(rows):
            self.report.progress("read", done, len(rows))
            picture = self._picture(row, alone=len(rows) == 1)
            pictures += [picture] if picture else []
        self._check_overlap(pictures, rows)
        return pictures

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self.report.log("warning", message)

    def _picture(self, row: Mapping[str, str], alone: bool) -> Picture | None:
        """An image with its labels; None if it is left out."""
        path = Path(row["image"])
        labels = row.get("labels") or (self.wishes.labels and find_labels(path, self.wishes.labels, alone))
        scale, sun = _number(row, "pixel_size"), _number(row, "sun_azimuth")
        options = jobs.Options(path, band=self.wishes.band, pixel_size=scale, sun_azimuth=sun)
        with jobs.start("train", options) as job:
            grid, product = job.image.grid, job.image.product
            wrong = faults(product, job.pixel_size) if self.wishes.quality else []
            if wrong:
                self.warn(f"{path.name} is left out: {', '.join(wrong)}.")
                return None
            self.pixels += grid.width * grid.height
            if self.pixels > MOST_PIXELS:
                raise DataError(
                    f"The images are too large to be learnt from as a whole ({self.pixels / 1e6:.0f} million pixels).",
                    "cut out what matters, for example with gdal_translate -projwin.",
                )
            patch = job.image.read(grid.window)
            mask = mask_of(job, labels, self.card.classes, self.wishes.area) if labels else None
            if labels and not overlaps(job, labels):
                self.warn(f"No label of {labels} lies in {path.name}: it counts as ground without any.")
            name = row.get("product") or (product.id if product.id_source == "label" else path.name)
            if self.unlabelled:
                return background(job, patch, data.product_id(name), limits(self.card, job))
            return data.picture(
                path.name,
                patch.pixels,
                patch.valid,
                limits(self.card, job),
                mask,
                data.product_id(name),
                _sun_azimuth(job),
                job.pixel_size,
            )

    def _check_overlap(self, pictures: Sequence[Picture], rows: Sequence[Mapping[str, str]]) -> None:
        masks = [p.mask for p in pictures if p.mask is not None]
        if masks and not self.unlabelled and not any(((m > 0) & (m != data.UNKNOWN)).any() for m in masks):
            places = ", ".join(Path(row["image"]).name for row in rows[:3])
            raise DataError(
                f"The labels mark nothing in the images ({places}…): they do not overlap, or are empty.",
                "check that labels and images lie in the same place, for example by opening both in QGIS.",
            )


def _sun_azimuth(job: jobs.Job) -> float | None:
    """As the manifest says, else the label, else as the image shows, if it does."""
    said = job.options.sun_azimuth if job.options.sun_azimuth is not None else job.image.product.sun_azimuth_deg
    if said is not None:
        return said
    azimuth, confidence = estimate_sun(job.image.survey.patches)
    return azimuth if confidence >= SURE_OF_SUN else None


def _number(row: Mapping[str, str], name: str) -> float | None:
    text = row.get(name) or ""
    try:
        return float(text) if text else None
    except ValueError:
        raise DataError(f"The manifest says {name} {text!r} of {row['image']}.", "give a number.") from None


def _parts(wishes: Wishes, recipe: Recipe, reader: _Reader) -> dict[str, list[Picture]]:
    """Pictures to learn from and to validate on, of different products; labelled where labels are needed."""
    if recipe.patches:
        return _patches(wishes, recipe)
    pictures = reader.read(wishes.images)
    if wishes.validation:
        parts = {"train": pictures, "validation": reader.read(wishes.validation)}
        data.check_disjoint({name: {p.product for p in some} for name, some in parts.items()})
    elif wishes.simulated == 1:
        parts = {"train": [], "validation": pictures}
    else:
        parts = SPLITS[wishes.split](pictures, wishes.seed)
    if recipe.labels:
        for name, some in parts.items():
            if some and not any(p.mask is not None and ((p.mask > 0) & (p.mask != data.UNKNOWN)).any() for p in some):
                raise DataError(
                    f"No label lies in the images of the part {name!r} ({', '.join(p.name for p in some[:3])}).",
                    "label more images, name images to validate on with --validation, or try another --seed.",
                )
            for p in some:
                if p.mask is None:
                    raise DataError(f"{p.name} has no labels.", "give them with --labels, or leave it out.")
    return parts


def _patches(wishes: Wishes, recipe: Recipe) -> dict[str, list[Picture]]:
    """Patches of prepared sets, all of one size, by the part that their manifest says."""
    parts = [load_patches(Path(name), wishes.size or recipe.size) for name in wishes.images]
    whole = {part: [p for some in parts for p in some[part]] for part in PARTS}
    if (count := len(whole["train"])) < recipe.fewest:
        raise DataError(
            f"{count} patches are too few to learn from: {recipe.fewest} are needed, some thousands are better.",
            "give more images, or cut them closer: `lunar patches --help`.",
        )
    return whole


def _lesson(
    wishes: Wishes,
    recipe: Recipe,
    network: nn.Module,
    parts: Mapping[str, list[Picture]],
    start: Pack | None,
    device: str,
) -> Lesson:
    size, batch = wishes.size or recipe.size, wishes.batch or recipe.batch
    rate = wishes.rate or recipe.rate * (GENTLER if start else 1.0)
    about = {
        "recipe": recipe.name,
        "size": size,
        "batch": batch,
        "rate": rate,
        "simulated": wishes.simulated,
        "images": {name: sorted({p.name for p in some}) for name, some in parts.items()},
        "from": start.card.sha256 if start else None,
        **({"encoder_weights": sha256_of(wishes.encoder_weights)} if wishes.encoder_weights else {}),
        **({"augment": list(wishes.augment)} if wishes.augment else {}),
        **({"patches": [sha256_of(Path(name) / PATCHES) for name in wishes.images]} if recipe.patches else {}),
    }
    options = {name: wishes.settings.get(name, value) for name, value in recipe.options.items()}
    about |= {"options": options} if options else {}
    sampler = _sampler(wishes, recipe, parts["train"], size, batch, device)
    judged = recipe.validation(size) if recipe.validation else parts["validation"]

    def varied(step: int) -> data.Batch:
        numbers = dice(mix(wishes.seed, 1), step)
        if wishes.augment:
            return one_of(sampler(step), wishes.augment, numbers)
        return augment(sampler(step), POLICIES[recipe.policy], numbers)

    real = data.crops(parts["train"], size, batch, wishes.seed) if recipe.finish and parts["train"] else sampler
    return Lesson(recipe, network, varied, judged, size, rate, wishes.seed, about, options, real)


def _sampler(
    wishes: Wishes, recipe: Recipe, pictures: Sequence[Picture], size: int, batch: int, device: str
) -> Sampler:
    if recipe.sampler:
        return recipe.sampler(pictures, size, batch, wishes.seed, device)
    if wishes.simulated == 0:
        return data.crops(pictures, size, batch, wishes.seed, on_objects=0.5 if recipe.labels else 0.0)
    needed = math.ceil(wishes.simulated * batch)  # scenes take longer than all else
    made = data.simulated(recipe.scenes, size, needed, wishes.seed, device, recipe.scene)
    if wishes.simulated == 1:
        return made
    real = data.crops(pictures, size, batch, wishes.seed, on_objects=0.5 if recipe.labels else 0.0)
    return data.mixed(real, made, 1 - wishes.simulated, batch)


# ---- what is told ------------------------------------------------------------------------------------------------


def _tell(line: Mapping[str, Any], report: jobs.Report) -> None:
    kind = "validation" if "validation" in line else "losses"
    numbers = ", ".join(f"{k} {v:.4g}" for k, v in line[kind].items() if "/" not in k)
    best = " (the best so far)" if line.get("best") else ""
    report.log("info", f"step {line['step']}, {kind}: {numbers}{best}")


def _facts(
    wishes: Wishes,
    recipe: Recipe,
    lesson: Lesson,
    parts: Mapping[str, list[Picture]],
    start: Pack | None,
    outcome: Outcome,
) -> dict[str, Any]:
    """What the card says of the training."""
    import torch

    return {
        **{k: v for k, v in lesson.about.items() if k != "images"},
        "from": f"{start.card.id} {start.card.sha256}" if start else None,
        "seed": wishes.seed,
        "steps": outcome.step,
        "best_step": outcome.best_step,
        "minutes": round(outcome.seconds / 60, 1),
        "before": _known(outcome.first),
        "products": {name: sorted({p.product for p in some}) for name, some in parts.items()},
        "images": {name: sorted({p.name for p in some}) for name, some in parts.items()},
        "labels": wishes.labels,
        "engine": lunar_processing.__version__,
        "commit": commit(),
        "torch": torch.__version__,
    }


def _known(measured: Mapping[str, float]) -> dict[str, float]:
    """Without what could not be measured: JSON has no NaN."""
    return {name: value for name, value in measured.items() if math.isfinite(value)}


def _pixel_sizes(card: Card, pictures: Sequence[Picture]) -> tuple[float, float] | None:
    """From the smallest to the largest pixel that was learnt from, here and before; None where one is unknown."""
    sizes = [p.pixel_size for p in pictures]
    if not sizes or any(math.isnan(size) for size in sizes):
        return card.pixel_size_m
    known = [*sizes, *(card.pixel_size_m or ())]
    return float(f"{min(known):.3g}"), float(f"{max(known):.3g}")


def commit() -> str | None:
    """The commit of the engine, with a + where files differ from it; None outside a checkout."""
    folder = Path(lunar_processing.__file__).parent

    def git(*words: str) -> str:
        ran = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
        return ran.stdout.strip() if ran.returncode == 0 else ""

    try:
        if not git("ls-files", "__init__.py"):  # installed inside somebody else's checkout
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except OSError:
        return None


def in_words(trained: Trained) -> str:
    """The result for people."""
    outcome = trained.outcome
    means = [name for name in outcome.measured if "/" not in name]
    numbers = [f"{k} {outcome.measured[k]:.4g} (was {outcome.first.get(k, math.nan):.4g})" for k in means]
    return (
        f"  model: {trained.model}\n  log: {trained.log}\n  validation: {', '.join(numbers)}\n"
        f"  best at step {outcome.best_step} of {outcome.step}, {outcome.seconds:.0f} s on {trained.device}"
        + ("; go on with --resume" if outcome.ended == "time" else "")
    )


def facts(trained: Trained) -> dict[str, Any]:
    """The result for programs."""
    return {
        "outputs": {"model": str(trained.model), "log": str(trained.log)},
        "counts": {"steps": trained.outcome.step, "best_step": trained.outcome.best_step, **trained.pictures},
        "measured": trained.outcome.measured,
        "before": trained.outcome.first,
        "products": {name: list(some) for name, some in trained.products.items()},
        "ended": trained.outcome.ended,
        "device": trained.device,
        "seconds": trained.seconds,
        "warnings": list(trained.warnings),
    }
