"""The picture of docs/anomalies.md: what `anomaly-multiscale` makes of things planted in images it has never seen.

python docs/anomaly_figures.py DIR [MODEL]        DIR: the real images of development; MODEL: an id or a folder
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pyogrio
import shapely

from lunar_processing.evaluate.planted import KINDS, Strip, plant_strip
from lunar_processing.raster.image import open_image
from lunar_processing.tools import anomalies
from lunar_processing.tools.evaluate_anomalies import _write, real_grounds
from lunar_processing.tools.job import Options

OUT = Path(__file__).parent / "images" / "anomalies_found.jpg"
SIDE = 256  # px of what is shown around each thing
TOP = 10  # places that are drawn


def looked_at(strip: Strip, model: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heat of each pixel; column, row of the places (n, 2) and the sides of their windows (n,)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "strip.tif", strip.image, strip.valid)
        wishes = anomalies.Wishes(str(folder / "a.gpkg"), heat=str(folder / "heat.tif"), top=TOP)
        options = Options(folder / "strip.tif", model=model, pixel_size=strip.facts.pixel_size)
        anomalies.score_anomalies(options, wishes)
        _, _, shapes, columns = pyogrio.raw.read(folder / "a.gpkg", columns=["window_px"])
        with open_image(folder / "heat.tif", 1) as heat:
            values = heat.read(heat.grid.window).pixels
    places = shapely.get_coordinates(shapely.from_wkb(shapes)) * [1, -1]
    return values, places, columns[0]


def main() -> None:
    """One row of pictures: the things as they lie there, and the heat over them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder, model = Path(sys.argv[1]), (sys.argv[2:] or ["anomaly-multiscale"])[0]
    grounds = real_grounds(folder, "validation")
    figure, axes = plt.subplots(4, 4, figsize=(12, 12.4))
    for number, kind in enumerate(KINDS):
        strip = plant_strip(grounds[number % len(grounds)], (kind,), np.random.default_rng(number), decoys=0)
        heat, places, sides = looked_at(strip, model)
        target = strip.targets[0]
        left, top = (
            int(np.clip(at - SIDE / 2, 0, side - SIDE))
            for at, side in zip((target.col, target.row), strip.image.shape[::-1])
        )
        part = np.s_[top : top + SIDE, left : left + SIDE]
        row, column = divmod(number, 2)
        for axis, what in zip(axes[row, 2 * column :], ("image", "heat")):
            axis.imshow(strip.image[part], cmap="gray", vmin=0, vmax=255)
            if what == "heat":
                axis.imshow(heat[part], cmap="inferno", vmin=0.3, vmax=2, alpha=0.75)
            for rank, ((x, y), side) in enumerate(zip(places - [left, top], sides), start=1):
                if 0 < x < SIDE and 0 < y < SIDE and what == "image":
                    corner = (x - side / 2, y - side / 2)
                    axis.add_patch(plt.Rectangle(corner, side, side, fill=False, color="tab:red", linewidth=1.5))
                    axis.text(*corner, f"{rank} ", color="tab:red", ha="right", va="top", fontsize=11, clip_on=True)
            axis.set(xlim=(0, SIDE), ylim=(SIDE, 0), xticks=[], yticks=[])
        axes[row, 2 * column].set_title(f"{kind}, {target.size_m:.0f} m", fontsize=10)
    figure.tight_layout(pad=0.3, h_pad=1.5)
    figure.savefig(OUT, dpi=65, pil_kwargs={"quality": 72, "optimize": True})


if __name__ == "__main__":
    main()
