"""What synthesis.md needs: the list of images to cut patches from, and its pictures.

python docs/synthesis_figures.py images DATA LIST.csv        for `lunar patches LIST.csv …`
python docs/synthesis_figures.py pictures PATCHES            real and made up; how the training went
"""

from __future__ import annotations

import csv
import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from lunar_processing.modelpack import find_pack
from lunar_processing.tools.sheet import GAP
from lunar_processing.tools.synthesize import draw
from lunar_processing.training.data import SPLITS, product_id

HERE = Path(__file__).resolve().parent
MODEL = "small-bodies"
BODIES = {
    "bennu": 1,
    "eros": 2,
    "itokawa": 2,
    "phobos": 2,
}  # how many times smaller: these maps are finer than they show
ASIDE = ("phobos", "M1229577647")
LUNAR = ("M1183658592", "M1229577647", "M134022629", "M161142858")
ACROSS, DOWN = 8, 8


def images(data: Path, out: Path) -> None:
    """Maps of four small bodies and images of the Moon, with those kept aside."""
    rows = [(data / "small_bodies" / f"{name}.jpg", name, shrink, 1) for name, shrink in BODIES.items()]
    known = {product for products in SPLITS["nac_cdr"].values() for product in products}
    lunar = sorted(p for p in (data / "nac_cdr").glob("*.png") if product_id(p.name) in known.intersection(LUNAR))
    rows += [(path, product_id(path.name), 1, "") for path in lunar]
    with out.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "product", "part", "shrink", "band"])
        for path, product, shrink, band in rows:
            table.writerow([path, product, "validation" if product in ASIDE else "train", shrink, band])


def pictures(patches: Path) -> None:
    """Real ones beside made-up ones, and the curves of the training."""
    rows = [json.loads(line) for line in (patches / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    learnt = np.flatnonzero([row["part"] == "train" for row in rows])
    chosen = np.random.default_rng(0).choice(learnt, ACROSS * DOWN, replace=False)
    real = _sheet(list(np.load(patches / "patches.npy", mmap_mode="r")[chosen]))
    made = _sheet(list(islice(draw(find_pack(MODEL), ACROSS * DOWN), ACROSS * DOWN)))
    between = np.full((len(real), 4 * GAP), 255, np.uint8)
    Image.fromarray(np.hstack([real, between, made])).save(HERE / "images" / "synthesis.jpg", quality=72)
    _curves(HERE.parent / "models" / MODEL / "training.jsonl")


def _sheet(images: list[np.ndarray]) -> np.ndarray:
    framed = [np.pad(image, ((0, GAP), (0, GAP)), constant_values=255) for image in images]
    return np.vstack([np.hstack(framed[row * ACROSS : (row + 1) * ACROSS]) for row in range(DOWN)])[:-GAP, :-GAP]


def _curves(log: Path) -> None:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    losses = [line for line in lines if "losses" in line]
    judged = [line["validation"] for line in lines if "validation" in line]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for name, words in {
        "fooled": "generator",
        "critic": "critic",
        "fooled_efficientnet-lite0": "generator, by features",
        "watcher_efficientnet-lite0": "critic on features",
    }.items():
        there = [(16e-3 * line["step"], line["losses"][name]) for line in losses if name in line["losses"]]
        left.plot(*np.array(there).T, label=words, linewidth=1)
    left.set(xlabel="thousands of images shown", ylabel="loss", ylim=(0, 5))
    left.legend(frameon=False, fontsize=8)
    right.plot([v["thousands"] for v in judged], [v["distance"] for v in judged], "o-", color="black")
    right.set(xlabel="thousands of images shown", ylabel="energy distance by EfficientNet-Lite0", ylim=(0, None))
    figure.savefig(HERE / "images" / "synthesis_curves.png", dpi=110)


if __name__ == "__main__":
    {"images": images, "pictures": pictures}[sys.argv[1]](*map(Path, sys.argv[2:]))
