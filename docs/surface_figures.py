"""What surface.md needs: data to train from, its tables, its picture.

python docs/surface_figures.py banks LANDER_VIEW ROVER OUT     two files that `lunar train` reads
python docs/surface_figures.py last TRAINED BANK OUT [BEGAN SHARE]
                                   a model of the last step, where training kept another; mixed with what it began from
python docs/surface_figures.py tables REPORT.json …            of `lunar evaluate surface`
python docs/surface_figures.py picture                         simulated views, which nobody learnt from
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from safetensors.torch import load_file

from lunar_processing.modelpack import find_pack, read_pack, save_pack
from lunar_processing.networks import FAMILIES
from lunar_processing.simulate import scenes
from lunar_processing.tools.evaluate_surface import COLUMNS, coloured, predictor
from lunar_processing.tools.surface_data import banks
from lunar_processing.training.data import Picture, load_pictures, picture
from lunar_processing.training.loop import CHECKPOINT
from lunar_processing.training.recipes.recipe import Lesson
from lunar_processing.training.recipes.surface import SURFACE, balance

HERE = Path(__file__).resolve().parent
OURS = "rocks-surface"
SEED, SIDE = 880_001, 384


def last(trained: Path, bank: Path, out: Path, began: Path | None = None, share: float = 0.0) -> None:
    """A training that goes on from a model whose preferences are chosen may keep its beginning, since what follows is
    compared without. The averaged weights of its last step, with theirs chosen.

    A `share` of the weights may be those it `began` from: what learns long from renders gets better at renders and
    worse at real images, and the weights between are good at both.
    """
    pack, begins = read_pack(trained), "average/net/"
    card = replace(pack.card, settings=dict(SURFACE.card.settings))
    network = FAMILIES[card.family](**card.settings)
    weights = load_file(trained / "training" / CHECKPOINT)
    weights = {k.removeprefix(begins): v for k, v in weights.items() if k.startswith(begins)}
    if began is not None:
        before = read_pack(began).network().state_dict()
        weights = {name: torch.lerp(v.float(), before[name].float(), share).to(v.dtype) for name, v in weights.items()}
    network.load_state_dict(weights)
    lesson = Lesson(SURFACE, network, lambda step: {}, load_pictures(bank), SURFACE.size, SURFACE.rate)
    chosen = balance(lesson, network.eval())
    save_pack(out, replace(card, measured={**card.measured, **chosen}), network, SURFACE.keep)


def tables(paths: list[Path]) -> None:
    """Put each table between the two comments that name its place."""
    facts: dict = {"models": {}}
    for path in paths:
        part = json.loads(path.read_text(encoding="utf-8"))
        facts = {**part, "models": {**facts["models"], **part["models"]}}
    page = HERE / "surface.md"
    text = page.read_text(encoding="utf-8")
    for kind in facts["images"]:
        head = ["IoU", *COLUMNS]
        lines = [_row(head), _row(["---"] * len(head))]
        for model, numbers in facts["models"].items():
            lines.append(_row([_name(model), *(_number(numbers[kind][column]) for column in COLUMNS)]))
        text = _filled(text, kind, lines)
    text = _filled(text, "budgets", _budgets(facts["models"]))
    page.write_text(text, encoding="utf-8")


def _budgets(models: Mapping[str, Mapping]) -> list[str]:
    head = ["Model", "Weights", "Steps", "Images a step", "Core seconds an image, to use it"]
    lines = [_row(head), _row(["---"] * len(head))]
    for model, numbers in models.items():
        if numbers.get("parameters"):
            lines.append(_row([_name(model), f"{numbers['parameters'] / 1e6:.2f} M", str(numbers["steps"]),
                               str(numbers["batch"]), f"{numbers['renders']['core_seconds']:.2f}"]))  # fmt: skip
    return lines


def _name(model: str) -> str:
    return f"**{model}**" if model.startswith(OURS) else model


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _filled(text: str, name: str, lines: list[str]) -> str:
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    head, rest = text.split(begin)
    table = "\n".join(lines)
    return f"{head}{begin}\n{table}\n\n{end}{rest.split(end)[1]}"


def draw() -> None:
    """Three simulated views, their truth, and what the shipped model says."""
    made = scenes.draw("lander", 3, SEED, size=SIDE)
    predict = predictor(find_pack(OURS))
    drawn, places = plt.subplots(3, 3, figsize=(10, 10.2))
    for row, image, truth in zip(places, made.image.numpy(), made.classes.numpy()):
        view = _view(image, truth)
        for place, pixels in zip(row, (view.image, coloured(truth.astype(np.uint8)), coloured(predict(view)))):
            place.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            place.set_axis_off()
    drawn.tight_layout(pad=0.3)
    drawn.savefig(HERE / "images" / "surface.jpg", dpi=56, pil_kwargs={"quality": 75})


def _view(image: np.ndarray, truth: np.ndarray) -> Picture:
    return picture("view", image, truth != 3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, *rest = sys.argv[1:]
    if what == "banks":
        views, rover, out = map(Path, rest)
        banks(views / "render", views / "real", rover, out)
    elif what == "last":
        last(*map(Path, rest[:4]), *map(float, rest[4:]))
    elif what == "tables":
        tables([Path(name) for name in rest])
    else:
        draw()
