"""How well rocks, ground and sky are told apart from the ground: renders that nobody learnt from, and real images.

    evaluate_surface(Path("lander_view"), Path("report"), Wishes(("rocks-surface", "unet-vgg11")))

The folder holds `render/` and `real/`, each with `images/` and `masks/`. Renders are those of the last part of the
published split.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lunar_processing.errors import DataError, ModelError
from lunar_processing.evaluate import report
from lunar_processing.evaluate.segmentation import confusion, mean_share, pooled, shares, together
from lunar_processing.modelpack import Pack, find_pack, list_packs
from lunar_processing.tools.reports import publish
from lunar_processing.tools.surface_data import lander_view, published_split
from lunar_processing.training.data import MIDDLE, Picture
from lunar_processing.training.recipes.surface import CLASSES, PUBLISHED, ROCKS, as_the_tool_shows, squeezed

MODELS = ("rocks-surface", *PUBLISHED, *(f"{name}-repaired" for name in PUBLISHED))
GROUND_ONLY = "ground everywhere"  # what a network must beat to say anything
COLOURS = ((0, 0, 0), (0, 200, 0), (40, 90, 255), (220, 0, 0))  # as published: ground, small, large, sky
SHOWN = 3
FEW = 2  # images of each set, to try it out: it measures nothing

Predict = Callable[[Picture], np.ndarray]


@dataclass(frozen=True)
class Wishes:
    """Which models (None: those of MODELS that are installed), and how many images of each set at the most (all)."""

    models: tuple[str, ...] | None = None
    model_folders: tuple[Path, ...] = ()
    most: int | None = None


def evaluate_surface(
    folder: Path, out: Path, wishes: Wishes | None = None, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Measure, and write `rocks_surface.html` and `rocks_surface.json`; returns the numbers."""
    wishes = wishes or Wishes()
    sets = {"renders": _renders(folder), "real": lander_view(folder / "real", "real")}
    sets = {name: some[: wishes.most] for name, some in sets.items()}
    packs = _packs(wishes)
    facts: dict[str, Any] = {
        "images": {name: len(some) for name, some in sets.items()},
        "classes": list(CLASSES),
        "models": {GROUND_ONLY: {name: _measured(some, _ground) for name, some in sets.items()}},
    }
    for pack in packs:
        predict = predictor(pack)
        facts["models"][pack.card.id] = {
            **_about(pack),
            **{name: _measured(some, predict) for name, some in sets.items()},
        }
        say(_line(pack.card.id, facts["models"][pack.card.id]))
    _write(out, facts, sets, predictor(packs[0]) if packs else _ground, packs[0].card.id if packs else GROUND_ONLY)
    return {**facts, "report": str(out / "rocks_surface.html"), "numbers": str(out / "rocks_surface.json")}


def _packs(wishes: Wishes) -> list[Pack]:
    if wishes.models is not None:
        return [find_pack(name, wishes.model_folders) for name in wishes.models]
    installed = {pack.card.id: pack for pack in list_packs(wishes.model_folders, [])}
    return [installed[name] for name in MODELS if name in installed]


def _renders(folder: Path) -> list[Picture]:
    if not (folder / "render").is_dir() or not (folder / "real").is_dir():
        raise DataError(f"There is no image in {folder}: it does not hold render/ and real/.", "give both with --real.")
    return published_split(lander_view(folder / "render", "render"))["test"]


# ---- who says what -----------------------------------------------------------------------------------------------


def predictor(pack: Pack) -> Predict:
    """Picture → class of each pixel (H, W).

    A model of a published recipe sees the image as its authors' program showed it, brought to a square; any other as
    `lunar rocks` shows it.
    """
    pack.check_task("rocks")
    if pack.card.classes != CLASSES:
        raise ModelError(
            f"Model {pack.card.id} knows {', '.join(pack.card.classes)}, not {', '.join(CLASSES)}.", "leave it out."
        )
    network, side, halo = pack.network(), pack.card.reading.get("side"), pack.card.halo
    unseen = float(pack.card.reading.get("unseen", MIDDLE))

    @torch.inference_mode()
    def predict(picture: Picture) -> np.ndarray:
        shown = squeezed(picture, int(side)) if side else as_the_tool_shows(picture, unseen, halo)
        output = network(torch.from_numpy(shown.image)[None, None])
        height, width = picture.image.shape
        if side:
            output = functional.interpolate(output, (height, width), mode="bilinear", align_corners=False)
        else:
            output = output[..., halo : halo + height, halo : halo + width]
        said: np.ndarray = output.argmax(dim=1)[0].numpy()
        return said

    return predict


def _ground(picture: Picture) -> np.ndarray:
    return np.zeros(picture.image.shape, np.int64)


def _about(pack: Pack) -> dict[str, Any]:
    known = ("recipe", "steps", "batch", "minutes", "encoder_weights")
    size = sum(p.numel() for p in pack.network().parameters())
    return {"parameters": size, **{name: pack.card.training.get(name) for name in known}}


def _measured(pictures: Sequence[Picture], predict: Predict) -> dict[str, float]:
    counts = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    began = time.process_time()
    for one in pictures:
        assert one.mask is not None
        counts += confusion(one.mask, predict(one), len(CLASSES))
    seconds = (time.process_time() - began) / max(len(pictures), 1)
    each = dict(zip(CLASSES, shares(counts).tolist()))
    means = {"mean": mean_share(counts), "rocks": together(counts, ROCKS), "pooled": pooled(counts)}
    return {**each, **means, "core_seconds": round(seconds, 3)}


# ---- the report --------------------------------------------------------------------------------------------------

COLUMNS = (*CLASSES, "mean", "rocks", "pooled")
_METHOD = (
    "Intersection over union from the pixels of all images of a set together: of each class, their mean, and of rocks "
    "of both sizes taken as one. Pooled is that of all classes in one count, as the published numbers of networks with "
    "ImageNet encoders are; ground and sky decide it. Renders are the last part (30 %) of the published split, which "
    "no model learnt from; no model learnt from a real image, but what was kept of a training was chosen on the real "
    "images and on renders of the split's second part. Published networks see images as their authors' programs show "
    "them, squeezed to a square; what they say is brought back to the image's own size."
)


def _write(out: Path, facts: dict[str, Any], sets: Mapping[str, Sequence[Picture]], show: Predict, name: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    parts = [report.text(_METHOD)]
    for kind, count in facts["images"].items():
        rows = [[model, *(numbers[kind][c] for c in COLUMNS)] for model, numbers in facts["models"].items()]
        parts += [report.heading(f"{count} {kind}"), report.table(["model", *COLUMNS], rows, best=True)]
    parts.append(_figure(sets, show, name))
    publish(out / "rocks_surface", report.page("Rocks from the ground", parts), facts)


def _figure(sets: Mapping[str, Sequence[Picture]], show: Predict, name: str) -> str:
    plt = report._headless()
    chosen = [p for some in sets.values() for p in some[:: max(1, len(some) // SHOWN)][:SHOWN]]
    drawn, places = plt.subplots(len(chosen), 3, figsize=(12, 2.9 * len(chosen)), squeeze=False)
    for row, one in zip(places, chosen):
        assert one.mask is not None
        row[0].imshow(one.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        row[1].imshow(coloured(one.mask), interpolation="nearest")
        row[2].imshow(coloured(show(one)), interpolation="nearest")
        for place in row:
            place.set_axis_off()
    drawn.tight_layout()
    return report.figure(drawn, f"Image, truth, {name}: small rocks green, large ones blue, sky red.")


def coloured(classes: np.ndarray) -> np.ndarray:
    """Classes (H, W) in the published colours (H, W, 3); grey where nobody knows."""
    palette = np.full((256, 3), 128, np.uint8)
    palette[: len(COLOURS)] = COLOURS
    return palette[classes]


def _line(name: str, numbers: Mapping[str, Any]) -> str:
    return f"{name}: " + ", ".join(
        f"{kind} mean {numbers[kind]['mean']:.3f}, rocks {numbers[kind]['rocks']:.3f}" for kind in ("renders", "real")
    )


def in_words(facts: Mapping[str, Any]) -> str:
    """The numbers for people."""
    return "\n".join([f"  {facts['report']}", *(f"  {_line(n, numbers)}" for n, numbers in facts["models"].items())])
