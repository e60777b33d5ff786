"""Make the figures and the tables of docs/simulator.md from the code itself: python docs/figures.py

With `--report REPORT`, the folder that `lunar evaluate simulator --out REPORT` wrote, also the comparison with real
images; with `--real DIR`, a folder of real images, also the picture of things planted in them.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from lunar_processing.simulate import scenes, sensor
from lunar_processing.simulate.light import PHOTOMETRY
from lunar_processing.simulate.sensor import IDEAL, PARAMETERS, TABLES, Camera

DOCS = Path(__file__).resolve().parent
MANUAL = DOCS / "simulator.md"


def main() -> None:
    """Draw every figure, fill in every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, metavar="REPORT")
    parser.add_argument("--real", type=Path, metavar="DIR")
    given = parser.parse_args()
    camera_figure(DOCS / "images" / "simulator_camera.png")
    light_figure(DOCS / "images" / "simulator_incidence.jpg")
    shadow_figure(DOCS / "images" / "simulator_shadow.jpg")
    recipes_figure(DOCS / "images" / "simulator_recipes.jpg")
    found = tables()
    if given.report:
        found["realism"] = (given.report / "realism.md").read_text(encoding="utf-8").partition("\n\n")[2]  # no title
        picture = Image.open(given.report / "realism.png").convert("RGB")
        picture.save(DOCS / "images" / "simulator_realism.jpg", quality=80)
    if given.real:
        planted_figure(given.real)
    text = MANUAL.read_text(encoding="utf-8")
    for name, table in found.items():
        text = filled(text, name, table)
    MANUAL.write_text(text, encoding="utf-8")


def tables() -> dict[str, str]:
    """The tables of the manual, by the name of their mark."""
    return {
        "camera": camera_table(),
        "companding": companding_table(),
        "light": light_table(),
        "recipe": recipe_table(),
    }


def filled(text: str, name: str, table: str) -> str:
    """The text with the table between the marks of this name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    head, rest = text.split(begin)
    return f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def camera_table() -> str:
    """Every parameter of the camera, its range and its source."""
    rows = ["| parameter | NAC | drawn from | unit | source |", "| --- | ---: | --- | --- | --- |"]
    for name, p in PARAMETERS.items():
        drawn = f"{p.low:g}" if p.low == p.high else f"{p.low:g} to {p.high:g}"
        rows.append(f"| `{name}` | {p.value:g} | {drawn} | {p.unit} | {p.source} |")
    return "\n".join(rows) + "\n"


def companding_table() -> str:
    """The companding tables."""
    rows = ["| table | from DN | offset | slope |", "| --- | --- | --- | --- |"]
    for name, table in TABLES.items():
        slopes = ", ".join(f"1/{round(1 / s)}" if s < 1 else "1" for s in table.slope)
        rows.append(f"| {name} | {', '.join(map(str, table.start))} | {', '.join(map(str, table.offset))} | {slopes} |")
    return "\n".join(rows) + "\n"


def light_table() -> str:
    """The reflectance laws."""
    rows = ["| law | parameters | source |", "| --- | --- | --- |"]
    for name, law in PHOTOMETRY.items():
        numbers = ", ".join(f"{key} {value:g}" for key, value in law.parameters.items()) or "–"
        rows.append(f"| {name} | {numbers} | {law.source} |")
    return "\n".join(rows) + "\n"


def recipe_table() -> str:
    """The ranges of the shipped recipes."""
    names = ("nac", "psr", "rocks", "anomalies", "lander")
    rows = ["| range | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for field in fields(scenes.SceneRecipe):
        values = [getattr(scenes.RECIPES[name], field.name) for name in names]
        if isinstance(values[0], tuple) and len(values[0]) == 2 and not isinstance(values[0][0], str):
            rows.append(f"| `{field.name}` | " + " | ".join(f"{low:g} to {high:g}" for low, high in values) + " |")
    return "\n".join(rows) + "\n"


def camera_figure(path: Path) -> None:
    """Photon transfer curve, nonlinearity, companding, point spread with echo, column pattern, dark current."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    _photon_transfer(axes[0, 0])
    _nonlinearity(axes[0, 1])
    _companding(axes[0, 2])
    _spread(axes[1, 0])
    _dark_frame(axes[1, 1])
    _dark_current(axes[1, 2])
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _photon_transfer(axis: plt.Axes) -> None:
    levels = torch.logspace(0, 3.5, 24)
    even = levels[:, None, None].expand(-1, 128, 128).contiguous()
    for summing, mark in ((1.0, "o"), (2.0, "s")):
        camera = replace(IDEAL, gain=64.0, read_noise=72.0, bias=40.0, summing=summing)
        recorded = sensor.expose(even, camera, torch.Generator().manual_seed(1)).dn12
        law = ((72 / 64) ** 2 + levels / 64) / summing + 1 / 12
        axis.loglog(levels, recorded.var(dim=(1, 2)), mark, ms=4, label=f"simulated, {summing:.0f} column(s)")
        axis.loglog(levels, law, "k-", lw=0.8)
    axis.set(title="Photon transfer curve", xlabel="signal, DN", ylabel="variance, DN²")
    axis.legend(fontsize=8)


def _nonlinearity(axis: plt.Axes) -> None:
    dn = torch.linspace(0, 900, 400).reshape(1, 1, -1)
    for depth in (2.0, 6.0, 10.0):
        answer = sensor.respond(dn, Camera(nonlinearity=depth))
        axis.plot(dn.flatten(), (answer - dn).flatten(), label=f"{depth:g} DN")
    axis.set(title="Nonlinear response", xlabel="linear signal, DN", ylabel="recorded − linear, DN")
    axis.legend(fontsize=8)


def _companding(axis: plt.Axes) -> None:
    dn = torch.arange(4096.0).reshape(1, 1, -1)
    for index, name in enumerate(TABLES):
        axis.plot(dn.flatten(), sensor.compand(dn, index).flatten(), label=name)
    axis.set(title="Companding 12 → 8 bits", xlabel="DN", ylabel="code", xscale="symlog")
    axis.legend(fontsize=8)


def _spread(axis: plt.Axes) -> None:
    point = torch.zeros(1, 21, 21)
    point[0, 10, 10] = 1000.0
    seen = sensor.expose(point, replace(IDEAL, psf=0.51, echo=0.326)).expected[0]
    axis.imshow(seen.clamp(min=0).sqrt(), cmap="gray", extent=(-10.5, 10.5, 10.5, -10.5))
    axis.set(title="A point, its spread and its echo (√)", xlabel="columns", xlim=(-6, 6), ylim=(6, -6))


def _dark_frame(axis: plt.Axes) -> None:
    frame = sensor.expose(torch.zeros(1, 64, 96), Camera(table=2.0), torch.Generator().manual_seed(2)).dn12[0]
    axis.imshow(frame, cmap="gray")
    axis.set_title("Dark frame: columns, rows, read noise")


def _dark_current(axis: plt.Axes) -> None:
    warm = torch.linspace(0, 40, 50)
    dark = sensor.dark_dn(Camera(temperature=warm, exposure=1.5), torch.zeros(50, 1, 1)).flatten()
    axis.semilogy(warm, dark)
    axis.set(title="Dark current at 1.5 ms a line", xlabel="focal plane, °C", ylabel="DN")


def _sheet(path: Path, rows: list[list[np.ndarray]], titles: list[str]) -> None:
    """Pictures side by side, each between its own 0.5th and 99.5th percentile."""
    figure, axes = plt.subplots(
        len(rows), len(titles), figsize=(3 * len(titles), 3.1 * len(rows)), layout="constrained"
    )
    for line, row in zip(np.atleast_2d(axes), rows):
        for axis, image in zip(line, row):
            low, high = np.percentile(image, (0.5, 99.5))
            axis.imshow(image, cmap="gray", vmin=low, vmax=high)
            axis.set_axis_off()
    for axis, title in zip(np.atleast_2d(axes)[0], titles):
        axis.set_title(title)
    figure.savefig(path, dpi=75, pil_kwargs={"quality": 85})
    plt.close(figure)


def light_figure(path: Path) -> None:
    """One place under suns of different height."""
    angles = (30.0, 60.0, 70.0, 80.0, 85.0)
    recipe = replace(scenes.RECIPES["nac"], sun_azimuth_deg=(280.0, 280.0))
    drawn = [scenes.draw(replace(recipe, incidence_deg=(a, a)), 1, 11).image[0].numpy() for a in angles]
    _sheet(path, [drawn], [f"incidence {a:.0f}°" for a in angles])


def shadow_figure(path: Path) -> None:
    """A clean scene, and what the camera makes of it at ever less light: raw codes, then calibrated."""
    levels = (100.0, 50.0, 20.0, 5.0, 2.0)
    clean = scenes.draw(scenes.RECIPES["psr"], 1, 4).ideal
    random = torch.Generator().manual_seed(0)
    dark = [sensor.degrade(clean, level, generator=random) for level in levels]
    raw = [d.dn8[0].numpy().astype(float) for d in dark]
    calibrated = [sensor.calibrate(d)[0].numpy() for d in dark]
    truth = clean[0].numpy()
    _sheet(path, [[truth, *raw], [truth, *calibrated]], ["truth", *(f"{level:.0f} DN" for level in levels)])


def recipes_figure(path: Path) -> None:
    """Two scenes of each recipe."""
    names = list(scenes.RECIPES)
    drawn = {name: scenes.draw(name, 2, 3).image.numpy() for name in names}
    _sheet(path, [[drawn[name][k] for name in names] for k in range(2)], names)


def planted_figure(folder: Path) -> None:
    """Things planted in the real images of the validation part, and decoys."""
    from lunar_processing.evaluate.anomalies import gallery
    from lunar_processing.tools.evaluate_anomalies import planted

    strips = list(planted(folder, "validation", 27))
    gallery(strips).savefig(
        DOCS / "images" / "anomalies_planted.jpg", dpi=80, pil_kwargs={"quality": 62, "optimize": True}
    )


if __name__ == "__main__":
    main()
