"""The tables and pictures of rocks.md, and what the card of rocks-orbital says was measured.

python docs/rock_figures.py REPORT/rocks_orbit.json [--real DATA] [--speed speed.json strip.json]
    REPORT: what `lunar evaluate rocks --out REPORT` wrote; DATA: the real images of development, for the pictures;
    what `python -m benchmarks.rocks speed` and `… strip DIR` printed
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from figures import filled
from matplotlib import pyplot as plt

from lunar_processing.modelpack import find_pack, write_card
from lunar_processing.raster.image import open_image
from lunar_processing.tools.evaluate_rocks import CLASSES, REAL_PIXEL_M
from lunar_processing.tools.job import Options
from lunar_processing.tools.rocks import Wishes, segment_rocks
from lunar_processing.vector import read_layer

DOCS = Path(__file__).resolve().parent
MANUAL = DOCS / "rocks.md"
OURS = "rocks-orbital"
# What is shown of real images: file, columns and rows.
PLACES = (
    ("formats/M143947267L.cal.echo.crop.cub", (0, 400), (0, 400)),
    ("nac_cdr/M1229577647LE_cal_echo_14_4.png", (0, 400), (0, 400)),
)
CARD = ("recall", "precision", "f1", "diameter_error", "diameter_bias", "height_error", "height_bias")


def main() -> None:
    """Fill in the tables, draw the pictures, complete the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--real", type=Path, metavar="DATA")
    parser.add_argument("--speed", type=Path, nargs=2, metavar="JSON")
    given = parser.parse_args()
    report = json.loads(given.report.read_text(encoding="utf-8"))
    text = MANUAL.read_text(encoding="utf-8")
    found = tables(report)
    if given.speed:
        found["speed"] = speed_table(*(json.loads(path.read_text(encoding="utf-8")) for path in given.speed))
    for name, table in found.items():
        text = filled(text, name, table + "\n")
    MANUAL.write_text(text, encoding="utf-8")
    curves(report)
    complete_card(report)
    if given.real:
        pictures(given.real)


def tables(report: Mapping[str, Any]) -> dict[str, str]:
    """Name of a mark in rocks.md → its table."""
    return {
        "scores": scores_table(report["models"]),
        "slopes": slopes_table(report["models"]),
        "heights": heights_table(report["models"][OURS]),
        "curves": "\n\n".join(curve_table(name, points) for name, points in report["curves"].items()),
        "real": real_table(report["real"]),
    }


def scores_table(models: Mapping[str, Any]) -> str:
    """Who finds how much of what is there, and how large."""
    rows = ["| | size | recall | precision | F1 | diameter off by | bias |", "| --- | --- |" + " ---: |" * 5]
    for size in CLASSES:
        for model, numbers in models.items():
            one = numbers[size]
            found = " | ".join(f"{one[name]:.3f}" for name in ("recall", "precision", "f1"))
            rows.append(f"| {model} | {size} | {found} | {percent(one['diameter_error'])} | "
                        f"{percent(one['diameter_bias'], '+')} |")  # fmt: skip
    return "\n".join(rows)


def slopes_table(models: Mapping[str, Any]) -> str:
    """Exponents of the power law."""
    rows = ["| | exponent | true | off by |", "| --- | ---: | ---: | ---: |"]
    rows += [f"| {model} | {n['slope_found']:.2f} | {n['slope_true']:.2f} | {percent(n['slope_error'])} |"
             for model, n in models.items()]  # fmt: skip
    return "\n".join(rows)


def heights_table(numbers: Mapping[str, Any]) -> str:
    """How high our rocks are."""
    rows = ["| size | rocks with a height | off by | bias |", "| --- | ---: | ---: | ---: |"]
    for size in CLASSES:
        one = numbers[size]
        rows.append(f"| {size} | {one['heights']} of {one['true']} | {percent(one['height_error'])} | "
                    f"{percent(one['height_bias'], '+')} |")  # fmt: skip
    return "\n".join(rows)


def curve_table(name: str, points: Mapping[str, Any]) -> str:
    """F1 of ours and of the classical method along a curve, and how far off our diameters are."""
    models = [m for m in next(iter(points.values())) if m != "noise"]
    shown = [(model, size) for model in models for size in CLASSES]
    heads = [name, "noise", *(f"{model}, {size}" for model, size in shown), f"bias of diameters, {OURS}, 5 px and more"]
    rows = ["| " + " | ".join(heads) + " |", "|" + " ---: |" * len(heads)]
    for value, told in points.items():
        f1 = [number(told[model][size]["f1"]) for model, size in shown]
        bias = percent(told[OURS][list(CLASSES)[1]]["diameter_bias"], "+")
        rows.append("| " + " | ".join([value, f"{told['noise']:.3f}", *f1, bias]) + " |")
    return "\n".join(rows)


def real_table(real: Mapping[str, Any]) -> str:
    """What is found on ground with hardly any rock."""
    rows = ["| | rocks of 3 px and more | searched, 100 × 100 m | in each | smaller ones in each |",
            "| --- |" + " ---: |" * 4]  # fmt: skip
    rows += [f"| {m} | {n['rocks']} | {n['hectares']:.0f} | {n['rocks_per_hectare']:.2f} | "
             f"{n['smaller_per_hectare']:.2f} |" for m, n in real.items()]  # fmt: skip
    return "\n".join(rows)


def speed_table(speed: Mapping[str, Any], strip: Mapping[str, Any]) -> str:
    """What two benchmarks measured, and how busy the machine was."""
    rows = ["| | Mpx/s | Mpx for a second of processor time |", "| --- | ---: | ---: |"]
    rows += [f"| {title} | {speed[m]['mpx_a_second']:.2f} | {speed[m]['mpx_a_processor_second']:.2f} |"
             for m, title in ((OURS, OURS), ("resnet18", "U-Net, ResNet18"))]  # fmt: skip
    rows.append(f"| ratio | {speed['ratio']:.1f} | {speed['ratio_of_processor_time']:.1f} |")
    minutes, busy = (strip[name] / 60 for name in ("seconds", "processor_seconds"))
    facts = (
        f"A strip of {strip['rows']:,} × 5,064 px: {strip['rocks']:,} rocks in {minutes:.0f} minutes ({busy:.0f} of "
        f"processor time), at most {strip['peak_mib']:,} MiB of memory, a GeoPackage of {strip['gpkg_mib']:.0f} MiB. "
        f"Threads: {speed['threads']} and {strip['threads']}; other work on the machine meanwhile (load): "
        f"{speed['load_before']:.0f} and {strip['load_before']:.0f}."
    )
    return "\n".join(rows) + "\n\n" + facts


def percent(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{100 * value:{sign}.1f} %"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def curves(report: Mapping[str, Any]) -> None:
    """F1 against what makes it hard."""
    figure, places = plt.subplots(1, len(report["curves"]), figsize=(13, 3.6), squeeze=False, layout="constrained")
    for place, (curve, points) in zip(places.flat, report["curves"].items()):
        x = [float(value) for value in points]
        for colour, model in zip(("C0", "C1"), (OURS, "shadow-pairs")):
            for style, size in zip(("--", "-"), CLASSES):
                y = [np.nan if p[model][size]["f1"] is None else p[model][size]["f1"] for p in points.values()]
                place.plot(x, y, style, marker=".", color=colour, label=f"{model}, {size}")
        place.set(xlabel=curve, ylabel="F1", ylim=(0, 1), xscale="log" if "DN" in curve else "linear")
        place.grid(alpha=0.3)
    places.flat[0].legend(fontsize=7, loc="lower center")
    figure.savefig(DOCS / "images" / "rocks_curves.png", dpi=65)
    plt.close(figure)


def complete_card(report: Mapping[str, Any]) -> None:
    """Into the card goes what the report measured of these very weights."""
    pack = find_pack(OURS)
    if report["weights"].get(OURS) != pack.card.sha256:
        raise SystemExit(f"The report was made with other weights than {pack.folder} has: evaluate again.")
    numbers = report["models"][OURS]
    measured = {
        **{k: v for k, v in pack.card.measured.items() if k in ("iou", "precision", "recall")},
        "command": "lunar evaluate rocks --out report --real nac_cdr",
        **{size: {name: rounded(numbers[size][name]) for name in CARD} for size in CLASSES},
        "power_law_error": rounded(numbers["slope_error"]),
        "false_per_hectare_of_real_ground": rounded(report["real"].get(OURS, {}).get("rocks_per_hectare")),
        "f1": {curve: {value: {size: rounded(told[OURS][size]["f1"]) for size in CLASSES}
                       for value, told in points.items()} for curve, points in report["curves"].items()},
    }  # fmt: skip
    write_card(pack.folder, replace(pack.card, measured=measured))


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def pictures(data: Path) -> None:
    """Real images, and the rocks that are found in them."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 12), layout="constrained")
    for row, (name, columns, rows) in zip(axes, PLACES):
        with open_image(data / name) as image:
            pixels = image.read(image.grid.window).pixels.astype(float)
            known = image.product.pixel_size_m
        rocks = found(data / name, None if known else REAL_PIXEL_M)
        part = pixels[slice(*rows), slice(*columns)]
        low, high = np.nanpercentile(part, (0.5, 99.5))
        for axis in row:
            axis.imshow(pixels, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axis.set(xlim=columns, ylim=rows[::-1])
            axis.set_axis_off()
        for column, line, diameter in zip(*(rocks[field] for field in ("sample", "line", "diam_eq_px"))):
            circle = plt.Circle((column - 0.5, line - 0.5), max(diameter, 3) / 2 + 1, fill=False, linewidth=0.9,
                                color="red" if diameter >= 3 else "orange")  # fmt: skip
            row[1].add_patch(circle)
        row[0].set_title(Path(name).name.partition(".")[0].partition("_")[0], fontsize=10)
    figure.savefig(DOCS / "images" / "rocks_real.jpg", dpi=62, pil_kwargs={"quality": 72})
    plt.close(figure)


def found(path: Path, pixel_size: float | None) -> Mapping[str, np.ndarray]:
    """Fields of the rocks of an image."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rocks.gpkg"
        segment_rocks(Options(path, model=OURS, pixel_size=pixel_size), Wishes(str(out)))
        fields = read_layer(f"{out}|layername=rocks").fields
        return {name: np.asarray(fields[name], float) for name in ("sample", "line", "diam_eq_px")}


if __name__ == "__main__":
    main()
