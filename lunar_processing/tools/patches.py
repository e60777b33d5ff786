"""A prepared set of patches: small grey squares of one size, cut from images of any format, none of them twice.

A patch is dropped where a pixel of it is invalid, where it is flat, and where it equals another, also but for a little
noise or brightness. Products are split, never patches: those to validate on are of observations that nobody learns
from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import fft

from lunar_processing.draft import Draft
from lunar_processing.errors import Cancelled, DataError, ParameterError
from lunar_processing.grid import Window
from lunar_processing.raster.image import Image, count_bands, open_image
from lunar_processing.tools import job as jobs
from lunar_processing.tools.listed import listed
from lunar_processing.tools.sheet import contact_sheet, write_png
from lunar_processing.training.data import check_disjoint, product_id
from lunar_processing.training.patches import MANIFEST, PARTS, PATCHES, load_patches

SHEET = "contact_sheet.png"
SIZES = (32, 64, 128, 256, 512)
FEWEST = 64  # patches that are worth a set
FLAT = 6.0  # of 255 grey levels, standard deviation: nothing but haze
BLURRED = 1.0  # of 255 grey levels, mean difference of neighbours: nothing but a slope
ALIKE = 4  # of the 63 bits of a hash, that may differ between two pictures of the same
HASHED = 32  # px, to which patches are reduced for their hash
COMPARED = 512  # patches at a time


@dataclass(frozen=True)
class Wishes:
    """What is to be cut.

    `images`: files, folders, or manifests (.csv) with columns image and, if wanted, product, part (train or
    validation), shrink and band. `stride`: px from patch to patch, by default `size`. `shrink`: images are first made
    so many times smaller, by means; maps are often finer than what they show. `latitude`: in degrees; images twice as
    wide as high are maps of a whole body, whose rows nearer the poles are left out. `count`: at most so many, evenly
    from all products. `keep_aside`: products to validate on, or their share.
    """

    images: Sequence[str]
    out: Path
    size: int = 64
    stride: int | None = None
    shrink: int = 1
    latitude: float | None = None
    count: int | None = None
    keep_aside: Sequence[str] | float = 0.1
    band: int | None = None
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        checks = {
            "--size": (self.size, self.size in SIZES, f"give a power of two: {', '.join(map(str, SIZES))}"),
            "--stride": (self.stride, self.stride is None or self.stride >= 1, "give 1 or more pixels"),
            "--shrink": (self.shrink, 1 <= self.shrink <= 64, "give 1 to 64"),
            "--latitude": (self.latitude, self.latitude is None or 0 < self.latitude <= 90, "give 0 to 90 degrees"),
            "--count": (self.count, self.count is None or self.count >= FEWEST, f"give {FEWEST} or more"),
            "--seed": (self.seed, self.seed >= 0, "give 0 or more"),
        }
        for name, (value, possible, cure) in checks.items():
            if not possible:
                raise ParameterError(f"{name} {value} is not possible.", f"{cure}.")


class Patches(NamedTuple):
    """Patches (N, S, S) uint8 and what is known of each."""

    images: np.ndarray
    facts: list[dict[str, Any]]

    def of(self, chosen: np.ndarray) -> Patches:
        """Those that a mask or indices name."""
        numbers = np.arange(len(self.images))[chosen]
        return Patches(self.images[numbers], [self.facts[n] for n in numbers])


def cut_patches(wishes: Wishes, report: jobs.Report | None = None) -> dict[str, Any]:
    """Cut, drop, split and write; what was kept and dropped, for people and for programs."""
    report, began = report or jobs.Report(), time.perf_counter()
    dropped = dict.fromkeys(("invalid", "flat", "twice"), 0)
    kept = _cut_once(wishes, dropped, report)
    _split(kept.facts, wishes, report)
    _write(kept, wishes)
    return _summary(kept, wishes, dropped, time.perf_counter() - began)


def patches_of(wishes: Wishes, report: jobs.Report | None = None) -> Patches:
    """Patches of a prepared set, as it is, or cut from images now."""
    report = report or jobs.Report()
    if not any((Path(name) / PATCHES).is_file() for name in wishes.images):
        kept = _cut_once(wishes, dict.fromkeys(("invalid", "flat", "twice"), 0), report)
        _split(kept.facts, wishes, report)
        return kept
    pictures = [(p, part) for name in wishes.images for part, some in load_patches(Path(name), wishes.size).items()
                for p in some]  # fmt: skip
    images = np.stack([np.rint(p.image * 255).astype(np.uint8) for p, _ in pictures])
    facts = [{"image": p.name, "product": p.product, "part": part} for p, part in pictures]
    return Patches(images, facts)


def in_words(facts: Mapping[str, Any]) -> str:
    """The summary for people."""
    sources = [f"    {name}: {count}" for name, count in facts["products"].items()]
    counts = ", ".join(f"{count} to {'learn from' if part == 'train' else 'validate on'}"
                       for part, count in facts["parts"].items())  # fmt: skip
    return "\n".join(
        [f"  {facts['outputs']['patches']}", f"  {facts['count']} patches: {counts}", *sources]
        + [f"  left out: {_words(facts['dropped'])}"]
    )


def _cut_once(wishes: Wishes, dropped: dict[str, int], report: jobs.Report) -> Patches:
    """All that is worth it, none twice, at most as many as are wanted; says what was dropped."""
    rows = [row for name in wishes.images for row in listed(Path(name))]
    _check_bands(rows, wishes.band)
    found = _cut_all(rows, wishes, dropped, report)
    signs = looks(found.images)
    for fact, bits in zip(found.facts, np.packbits(signs > 0, axis=1)):
        fact["hash"] = bits.tobytes().hex()
    kept = found.of(~_seen_before(signs))
    dropped["twice"] = len(found.images) - len(kept.images)
    if wishes.count and len(kept.images) > wishes.count:
        kept = kept.of(evenly([f["product"] for f in kept.facts], wishes.count, wishes.seed))
    if len(kept.images) < FEWEST:
        raise DataError(
            f"{len(rows)} images give {len(kept.images)} patches of {wishes.size} px ({_words(dropped)}); "
            f"{FEWEST} are needed, some thousands are better.",
            "give more or larger images, or a smaller --size or --stride.",
        )
    return kept


# ---- cutting -----------------------------------------------------------------------------------------------------


def _check_bands(rows: Sequence[Mapping[str, str]], band: int | None) -> None:
    """Refuse colour among grey before anything is read."""
    if band is not None:
        return
    colour = [Path(row["image"]).name for row in rows if not row.get("band") and count_bands(row["image"]) > 1]
    if colour:
        raise DataError(
            f"{len(colour)} of {len(rows)} images have several bands ({', '.join(colour[:3])}); patches are grey.",
            "choose one band of all of them with --band 1, or leave these images out.",
        )


def _cut_all(
    rows: Sequence[Mapping[str, str]], wishes: Wishes, dropped: dict[str, int], report: jobs.Report
) -> Patches:
    images, facts, small = [], [], []
    for done, row in enumerate(rows):
        report.progress("cut", done, len(rows))
        if report.cancelled():
            raise Cancelled("The run was cancelled; nothing was written.")
        shrink, band = _number(row, "shrink") or wishes.shrink, _number(row, "band") or wishes.band
        with open_image(row["image"], band) as image:
            if min(image.grid.width, image.grid.height) // shrink < wishes.size:
                small.append(f"{image.path.name} ({image.grid.width} × {image.grid.height} px)")
                continue
            whose = _facts(row, image, shrink)
            for col, line, patch in _cut(image, wishes, shrink, dropped):
                images.append(patch)
                facts.append({**whose, "row": line, "col": col})
    if small:
        raise DataError(
            f"{len(small)} of {len(rows)} images are smaller than a patch of {wishes.size} px: {', '.join(small[:3])}.",
            "give a smaller --size, or leave these images out.",
        )
    return Patches(np.array(images, np.uint8).reshape(-1, wishes.size, wishes.size), facts)


def _facts(row: Mapping[str, str], image: Image, shrink: int) -> dict[str, Any]:
    name = image.product.id if image.product.id_source == "label" else image.path.name
    part = row.get("part") or None
    if part not in (None, *PARTS):
        raise DataError(f"The manifest says part {part!r} of {image.path.name}.", f"give {' or '.join(PARTS)}.")
    facts = {"image": image.path.name, "product": row.get("product") or product_id(name), "shrink": shrink}
    return facts if part is None else {**facts, "part": part}


def _number(row: Mapping[str, str], name: str) -> int | None:
    text = row.get(name) or ""
    if text and (not text.isdigit() or int(text) < 1):
        raise DataError(f"The manifest says {name} {text!r} of {row['image']}.", "give 1 or more.")
    return int(text) if text else None


def _cut(image: Image, wishes: Wishes, shrink: int, dropped: dict[str, int]) -> Iterator[tuple[int, int, np.ndarray]]:
    """(column, row) in px of the image, and the patch; a row of patches in memory at a time."""
    side, step = wishes.size * shrink, (wishes.stride or wishes.size) * shrink
    low, high = image.survey.low, image.survey.high
    grid = image.grid
    whole = wishes.latitude is not None and grid.width == 2 * grid.height
    poles = round(grid.height * (0.5 - (wishes.latitude or 0) / 180)) if whole else 0
    for line in range(poles, grid.height - poles - side + 1, step):
        strip = image.read(Window(0, line, grid.width, side))
        grey = np.clip((strip.pixels.astype(np.float32) - low) / max(high - low, 1e-12), 0, 1) * 255
        for col in range(0, grid.width - side + 1, step):
            if not strip.valid[:, col : col + side].all():
                dropped["invalid"] += 1
                continue
            small = grey[:, col : col + side].reshape(wishes.size, shrink, wishes.size, shrink).mean(axis=(1, 3))
            if small.std() < FLAT or np.abs(np.diff(small, axis=1)).mean() < BLURRED:
                dropped["flat"] += 1
                continue
            yield col, line, np.rint(small).astype(np.uint8)


# ---- none twice --------------------------------------------------------------------------------------------------


def looks(images: np.ndarray) -> np.ndarray:
    """A hash of what is to be seen: (N, S, S) → (N, 63) of -1 and 1, the signs of the coarsest cosines but the mean.

    Brightness, contrast and a little noise change few of them.
    """
    side = images.shape[-1] // HASHED
    small = images.reshape(len(images), HASHED, side, HASHED, side).mean(axis=(2, 4), dtype=np.float32)
    waves = fft.dctn(small, axes=(1, 2))[:, :8, :8].reshape(len(images), -1)[:, 1:]
    return np.where(waves > np.median(waves, axis=1, keepdims=True), np.int8(1), np.int8(-1))


def _seen_before(signs: np.ndarray) -> np.ndarray:
    """Which patches look like one before them, by their hashes."""
    signs = signs.astype(np.float32)
    again = np.zeros(len(signs), bool)
    for start in range(0, len(signs), COMPARED):
        these = signs[start : start + COMPARED]
        differing = (signs.shape[1] - these @ signs[: start + len(these)].T) / 2
        earlier = np.arange(start + len(these))[None] < np.arange(start, start + len(these))[:, None]
        again[start : start + len(these)] = ((differing <= ALIKE) & earlier).any(axis=1)
    return again


# ---- what is kept ------------------------------------------------------------------------------------------------


def evenly(products: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Indices of `count` patches in their order, as many of each product as there are, the rest of the others."""
    random, names = np.random.default_rng(seed), np.array(products)
    turn = np.empty(len(names))
    for name in dict.fromkeys(products):
        here = np.flatnonzero(names == name)
        turn[here] = random.permutation(len(here))
    return np.sort(np.argsort(turn, kind="stable")[:count])


def _split(facts: list[dict[str, Any]], wishes: Wishes, report: jobs.Report) -> None:
    """Say of each patch whether it is to learn from or to validate on."""
    products = sorted({fact["product"] for fact in facts})
    said = {part: {fact["product"] for fact in facts if fact.get("part") == part} for part in PARTS}
    check_disjoint(said)
    aside = said[PARTS[1]] or _aside(products, facts, wishes)
    if not aside:
        report.log("warning", "All patches are of one product: nothing is kept aside to validate on.")
    elif aside == set(products):
        raise DataError("All products are kept aside: nothing is left to learn from.", "name fewer with --keep-aside.")
    for fact in facts:
        fact["part"] = PARTS[1] if fact["product"] in aside else PARTS[0]


def _aside(products: Sequence[str], facts: Sequence[Mapping[str, Any]], wishes: Wishes) -> set[str]:
    if not isinstance(wishes.keep_aside, float):
        strangers = set(wishes.keep_aside) - set(products)
        if strangers:
            raise ParameterError(
                f"No patch is of the product {sorted(strangers)[0]!r}.", f"name of {', '.join(products)}."
            )
        return set(wishes.keep_aside)
    counts = {name: sum(fact["product"] == name for fact in facts) for name in products}
    order = [products[i] for i in np.random.default_rng(wishes.seed).permutation(len(products))]
    aside: set[str] = set()
    for name in order[:-1]:
        if aside and sum(counts[n] for n in (*aside, name)) > wishes.keep_aside * len(facts):
            break
        aside.add(name)
    return aside


def _write(kept: Patches, wishes: Wishes) -> None:
    wishes.out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(fact, ensure_ascii=False) + "\n" for fact in kept.facts)
    with (
        Draft(wishes.out / PATCHES, wishes.overwrite) as patches,
        Draft(wishes.out / MANIFEST, wishes.overwrite) as manifest,
    ):
        np.save(patches.path, kept.images, allow_pickle=False)
        manifest.path.write_text(lines, encoding="utf-8")
        manifest.publish()
        patches.publish()
    shown = evenly([fact["product"] for fact in kept.facts], 64, wishes.seed)
    write_png(wishes.out / SHEET, contact_sheet(list(kept.images[shown])), overwrite=True)


def _summary(kept: Patches, wishes: Wishes, dropped: Mapping[str, int], seconds: float) -> dict[str, Any]:
    products = [fact["product"] for fact in kept.facts]
    parts = [fact["part"] for fact in kept.facts]
    return {
        "outputs": {
            name: str(wishes.out / file)
            for name, file in (("patches", PATCHES), ("manifest", MANIFEST), ("sheet", SHEET))
        },
        "count": len(kept.images),
        "size": wishes.size,
        "parts": {part: parts.count(part) for part in PARTS},
        "products": {name: products.count(name) for name in dict.fromkeys(products)},
        "dropped": dict(dropped),
        "seconds": round(seconds, 1),
    }


def _words(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in dropped.items())
