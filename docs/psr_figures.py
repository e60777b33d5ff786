"""The figures and tables of psr.md: `python docs/psr_figures.py NAC_CDR_FOLDER REPORT/psr.json [CUBE]`.

CUBE is a calibrated image of real shadow, M1333276014R.default.crop.cub of the test data of ISIS.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from scipy import ndimage

from lunar_processing.modelpack import Pack, find_pack
from lunar_processing.raster.image import open_image
from lunar_processing.simulate import light, sensor, terrain
from lunar_processing.simulate.sensor import RESPONSIVITY
from lunar_processing.tools import evaluate_psr as psr
from lunar_processing.tools.enhance import enhance
from lunar_processing.tools.job import Options
from lunar_processing.tools.shadow import restore
from lunar_processing.training.data import SPLITS, dice

HERE = Path(__file__).resolve().parent
PIXEL_M, CRATER_M, SIDE = 2.0, 3000.0, 1800
SHADOW_DN = 6.0  # mean in the shadow
NAMES = {
    psr.INPUT: "noisy, stripes off",
    "Gaussian, told its sigma": "best Gaussian",
    psr.OURS: "psr-physics",
    "sigma": "its sigma",
    "truth": "truth",
}


def crater() -> tuple[np.ndarray, np.ndarray]:
    """(truth, calibrated image) in DN: a crater of 3 km whose floor the sun never reaches, its rim in the sun."""
    shape, random = (1, SIDE, SIDE), torch.Generator().manual_seed(17)
    ground = terrain.Ground(
        terrain.fractal(shape, PIXEL_M, 0.045, 0.85, random, 0.02),
        0.13 * terrain.mottled(shape, torch.tensor([0.02]), random),
        torch.tensor([PIXEL_M]),
    )
    large = terrain.crater_table(0, 0.52 * SIDE, 0.5 * SIDE, CRATER_M, degradation=0.25)
    pixel = torch.tensor([PIXEL_M])
    small = terrain.draw_craters(shape, pixel, torch.tensor([0.06]), torch.tensor([40.0]), random)
    ground = terrain.stamp_craters(terrain.stamp_craters(ground, large), small)
    lit, share = light.sunlit(ground, torch.tensor([285.0]), torch.tensor([88.2]))
    glow = light.Glow(*(torch.tensor([v]) for v in ([105.0, 60.0, 150.0], [62.0, 72.0, 75.0], [0.6, 0.2, 0.2])),
                      torch.tensor([1e-3]))  # fmt: skip
    scattered = light.shadow_light(ground, glow)
    shadow = share[0] < 0.01
    ideal = lit[0] / lit[0][~shadow].mean() * 1500 + scattered[0] / scattered[0][shadow].mean() * SHADOW_DN
    optics = sensor.Camera(**{**vars(sensor.IDEAL), "psf": 0.51})
    seen = sensor.expose(ideal[None], optics).expected.clamp(0, 3500)
    camera = sensor.sample_cameras(1, dice(17, 0), {"table": (1.0, 1.0)})
    recorded = sensor.degrade(seen, float(seen.mean()), camera, dice(17, 1))
    return seen[0].numpy(), sensor.calibrate(recorded)[0].numpy()


def draw_crater(pack: Pack) -> None:
    """The whole crater, and a part of its floor at full resolution."""
    truth, image = crater()
    enhanced, _ = restore(pack, image, psr.nominal(image))
    row, col = int(0.55 * SIDE), int(0.5 * SIDE)
    part = np.s_[row - 128 : row + 128, col - 128 : col + 128]
    top = 4 * SHADOW_DN
    panels = {
        "as calibrated": image, "psr-physics": enhanced, "truth": truth,
        "as calibrated, 512 m": image[part], "psr-physics, 512 m": enhanced[part], "truth, 512 m": truth[part],
    }  # fmt: skip
    figure, places = plt.subplots(2, 3, figsize=(13.5, 9.2))
    for place, (name, values) in zip(places.flat, panels.items()):
        near = values.shape[0] < 300
        low, high = np.percentile(truth[part], (0.5, 99.5)) if near else (0, top)
        small = values if near else ndimage.zoom(values, 0.4, order=1)
        place.imshow(small, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        place.set_title(name, fontsize=11)
        place.axis("off")
    save(figure, "psr_crater")


def draw_levels(pack: Pack, folder: Path) -> None:
    """One place of a validation product and a simulated one, at several signals."""
    wishes = psr.Wishes()
    real = psr.read_scenes(folder, SPLITS["nac_cdr"]["validation"])[0]
    for name, scene in (("psr_real", real), ("psr_simulated", psr.draw_scenes(1, psr.DRAWN_PX, psr.DRAWN_SEED)[0])):
        figure, places = plt.subplots(3, len(NAMES), figsize=(3.1 * len(NAMES), 9.6))
        for line, level in zip(places, (3.0, 10.0, 40.0)):
            case = psr.darkened(scene, level, wishes)
            made, sigma = restore(pack, case.recorded, case.noise)
            images = {psr.INPUT: case.flat, "Gaussian, told its sigma": psr.best_gaussian(case), psr.OURS: made,
                      "sigma": sigma, "truth": case.truth}  # fmt: skip
            inner = np.s_[120:312, 120:312]
            low, high = np.percentile(case.truth[inner], (0.5, 99.5))
            for place, (key, title) in zip(line, NAMES.items()):
                limits = (0, 0.3 * (high - low)) if key == "sigma" else (low, high)
                place.imshow(images[key][inner], cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
                place.set_title(f"{title}, {level:g} DN", fontsize=9)
                place.axis("off")
        save(figure, name)


def draw_shadow(cube: Path) -> None:
    """A real image of shadow, as the tool enhances it."""
    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / "made.tif"
        enhance(Options(cube, model=psr.OURS, pixel_size=1.0, device="cpu"), made)
        with open_image(cube) as image, open_image(made, 1) as first, open_image(made, 2) as second:
            unit = 1 / (RESPONSIVITY["right"] * image.product.exposure_ms)
            given, enhanced, sigma = (i.read(i.grid.window).pixels / unit for i in (image, first, second))
    figure, places = plt.subplots(1, 3, figsize=(13.5, 4.9))
    for place, (name, values, limits) in zip(places, (
        ("as calibrated, 0 to 14 DN", given, (0, 14)), ("psr-physics, 0 to 14 DN", enhanced, (0, 14)),
        ("its sigma, 0 to 4 DN", sigma, (0, 4)),
    )):  # fmt: skip
        place.imshow(values, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
        place.set_title(name, fontsize=11)
        place.axis("off")
    save(figure, "psr_shadow")


def save(figure: plt.Figure, name: str) -> None:
    """As JPEG among the pictures of the documentation."""
    figure.tight_layout()
    figure.savefig(HERE / "images" / f"{name}.jpg", dpi=80, pil_kwargs={"quality": 82})
    plt.close(figure)


def tables(report: Path, pack: Pack) -> dict[str, str]:
    """Name of a table in psr.md → its lines."""
    told = json.loads(report.read_text(encoding="utf-8"))
    head = "| | " + " | ".join(f"{level:g} DN" for level in told["levels_dn"]) + " |"
    rule = "| --- |" + " ---: |" * len(told["levels_dn"])

    def row(title: str, values: Sequence[float | None], form: str) -> str:
        return f"| {title} | " + " | ".join("–" if v is None else format(v, form) for v in values) + " |"

    def rows(measure: str, form: str) -> str:
        return "\n".join([head, rule, *(row(method, values, form) for method, values in told[measure].items())])

    found = {name: rows(name, form) for name, form in (("psnr", ".2f"), ("ssim", ".3f"), ("fsim", ".3f"))}
    ours = {
        "68 % interval": "cover68", "95 % interval": "cover95", "rank correlation of error and sigma": "follows",
        "correlation of gradients": "gradients",
    }  # fmt: skip
    lead = {"lead over the best other method, dB": "lead_db", "below the bound, dB": "below_bound_db"}
    lines = [row(title, told[name][psr.OURS], ".3f") for title, name in ours.items()]
    lines += [row(title, told[name], "+.2f") for title, name in lead.items()]
    found["ours"] = "\n".join([head, rule, *lines])
    found["craters"] = rows("crater_recall", ".3f") + "\n\n" + rows("crater_invented", ".3f")
    sure = {"recall": ".3f", "invented": ".3f", "reported": ".0f"}
    lines = [row(title, told[f"sure_{title}"][psr.OURS], form) for title, form in sure.items()]
    found["sure"] = "\n".join([head, rule, *lines])
    there = next(iter(told["spots_there"].values()))
    told["spots"] = {"clean image": there, **told["spots"]}
    found["spots"] = rows("spots", ".1f")
    table = pack.card.measured["resolvable"]
    found["resolvable"] = "\n".join(
        ["| signal, DN | signal to noise of a pixel | smallest crater, px |", "| ---: | ---: | ---: |"]
        + [f"| {dn:g} | {snr:.2f} | {px:.1f} |"
           for dn, snr, px in zip(table["signal_dn"], table["signal_to_noise"], table["diameter_px"])]
    )  # fmt: skip
    return found


def main() -> None:
    """Draw all, and write the tables between their marks."""
    folder, report = map(Path, sys.argv[1:3])
    pack = find_pack(psr.OURS)
    draw_crater(pack)
    draw_levels(pack, folder)
    if len(sys.argv) > 3:
        draw_shadow(Path(sys.argv[3]))
    page = HERE / "psr.md"
    text = page.read_text(encoding="utf-8")
    for name, table in tables(report, pack).items():
        text = re.sub(f"<!-- {name} -->.*?<!-- /{name} -->", f"<!-- {name} -->\n\n{table}\n\n<!-- /{name} -->", text,
                      flags=re.DOTALL)  # fmt: skip
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
