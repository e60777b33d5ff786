"""Rocks from orbit: speed beside a U-Net with a ResNet18 encoder, a whole strip, what both learn in the same steps.

python -m benchmarks.rocks speed             file to file, 1024 × 1024 px with rocks, both networks in turns
python -m benchmarks.rocks strip DIR         52,224 × 5,064 px with 100,000 rocks into DIR: time, memory, GeoPackage
python -m benchmarks.rocks equal NAC_CDR     both networks taught the same batches, `--steps` of them, and measured
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
import torch

from lunar_processing.evaluate.rocks import tally
from lunar_processing.modelpack import Card, find_pack, save_pack
from lunar_processing.networks import FAMILIES
from lunar_processing.raster.writer import creation_options
from lunar_processing.simulate import scenes
from lunar_processing.simulate.scenes import SceneRecipe
from lunar_processing.tools import evaluate_rocks as orbit
from lunar_processing.tools.job import Options
from lunar_processing.tools.rocks import Wishes, segment_rocks
from lunar_processing.tools.train import Wishes as Lessons
from lunar_processing.tools.train import train_model
from lunar_processing.training.recipes import RECIPES

OURS, THEIRS = "rocks-orbital", "resnet18"
PIXEL_M = 0.5
STONY = replace(orbit.SCENES, incidence_deg=(60.0, 60.0), sun_azimuth_deg=(270.0, 270.0), signal_dn=(600.0, 600.0),
                pixel_size_m=(PIXEL_M, PIXEL_M), rock_share=(1e-2, 4e-2))  # fmt: skip
SPARSE = replace(STONY, rock_share=(1.5e-3, 4e-3))  # about 100 rocks a scene
SIDE = 512
STRIP = 52_224, 5_064  # rows, columns of a raw image of the Narrow Angle Camera
REPEATS = 3
TIMES = 3.0  # as quick as ResNet18, at least
PEAK_MIB = 2048


def main() -> int:
    """Run one of them; prints JSON; 1 where it is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "strip", "equal"))
    parser.add_argument("folder", nargs="?", type=Path, help="where the strip goes, or the real images to learn from")
    parser.add_argument("--steps", type=int, default=150, help="of the training of both (default 150)")
    parser.add_argument("--rows", type=int, default=STRIP[0], help="of the strip (default 52,224: the whole of it)")
    parser.add_argument("--dense", action="store_true", help="ten times as many rocks: 100,000 in a quarter of a strip")
    parser.add_argument("--model", default=OURS, help="an id or a folder (default rocks-orbital)")
    given = parser.parse_args()
    if given.what != "speed" and given.folder is None:
        parser.error(f"{given.what} needs a folder")
    load = os.getloadavg()[0]  # of others: on a busy machine only the time on the processor means something
    facts = {
        "speed": lambda: speed(given.model),
        "strip": lambda: strip(given.folder, given.model, given.rows, given.dense),
        "equal": lambda: equal(given.folder, given.steps),
    }[given.what]()
    print(json.dumps({**facts, "threads": torch.get_num_threads(), "load_before": round(load, 1)}, indent=2))
    return 0 if facts.get("within", True) else 1


def stony_ground(path: Path, rows: int, columns: int, count: int = 16, recipe: SceneRecipe = STONY) -> Path:
    """An image of simulated scenes with rocks side by side, the same ones again and again, near the south pole."""
    made = scenes.draw(recipe, count, 950_000, size=SIDE).image.clamp(0, 65535).numpy().astype(np.uint16)
    dice = np.random.default_rng(0)
    place = rasterio.Affine(PIXEL_M, 0, 20_000, 0, -PIXEL_M, 20_000)
    profile = {"width": columns, "height": rows, "count": 1, "dtype": "uint16", "crs": "IAU_2015:30135",
               "transform": place}  # fmt: skip
    with rasterio.open(path, "w", **creation_options("uint16"), **profile) as file:
        for row in range(0, rows, SIDE):
            band = np.concatenate([made[k] for k in dice.integers(count, size=-(-columns // SIDE))], axis=1)
            band = band[: rows - row, :columns]
            file.write(band, 1, window=rasterio.windows.Window(0, row, columns, len(band)))
    return path


def options_for(path: Path, model: str) -> Options:
    """As a user would who knows the light."""
    return Options(path, model=model, overwrite=True, sun_azimuth=270.0)


# ---- speed -------------------------------------------------------------------------------------------------------


def speed(model: str, side: int = 1024) -> dict:
    """Valid pixels a second from file to file, the best of some runs; also for a second of processor time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = stony_ground(folder / "image.tif", side, side)
        models = {OURS: model, THEIRS: str(blind_resnet(folder / THEIRS))}
        wall: dict[str, list[float]] = {m: [] for m in models}
        busy: dict[str, list[float]] = {m: [] for m in models}
        for _ in range(REPEATS):  # in turns, so that both see the machine in the same moods
            for m, pack in models.items():
                began, busy_before = time.perf_counter(), time.process_time()
                segment_rocks(options_for(image, pack), Wishes(str(folder / "rocks.gpkg"), incidence=60.0))
                wall[m].append(time.perf_counter() - began)
                busy[m].append(time.process_time() - busy_before)
    megapixels = side * side / 1e6
    ratio = min(busy[THEIRS]) / min(busy[OURS])
    return {
        **{m: {"mpx_a_second": round(megapixels / min(wall[m]), 2),
               "mpx_a_processor_second": round(megapixels / min(busy[m]), 2)} for m in models},
        "ratio": round(min(wall[THEIRS]) / min(wall[OURS]), 2),
        "ratio_of_processor_time": round(ratio, 2),
        "bound": f"{TIMES:g} times, in processor time",
        "within": ratio >= TIMES,
    }  # fmt: skip


def blind_resnet(folder: Path) -> Path:
    """A ResNet18 U-Net that sees no rock anywhere: nothing is left to do after it, to its advantage."""
    network = FAMILIES["unet-encoder"](encoder="resnet18", outputs=2)
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([1e3, -1e3]))
    card = replace(resnet_card(2), classes=("ground", "rock"))
    save_pack(folder, card, network)
    return folder


def resnet_card(outputs: int) -> Card:
    """A published network in the tiles of ours."""
    ours = find_pack(OURS).card
    return Card(THEIRS, "rocks", "unet-encoder", settings={"encoder": "resnet18", "outputs": outputs},
                classes=("ground", "rock", "shadow"), tile=ours.tile, halo=ours.halo)  # fmt: skip


# ---- a whole strip -----------------------------------------------------------------------------------------------


def strip(folder: Path, model: str, rows: int = STRIP[0], dense: bool = False) -> dict:
    """100,000 rocks of 264 million pixels in one GeoPackage; peak memory of this process, which did nothing else."""
    import resource

    folder.mkdir(parents=True, exist_ok=True)
    image = folder / "strip.tif"
    if not image.exists():  # by another process, whose memory is not counted
        draw = "import sys; from pathlib import Path; from benchmarks import rocks as r"
        draw += f"; r.stony_ground(Path(sys.argv[1]), {rows}, {STRIP[1]}, recipe=r.{'STONY' if dense else 'SPARSE'})"
        subprocess.run([sys.executable, "-c", draw, str(image)], check=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began, busy = time.perf_counter(), time.process_time()
    out = folder / "strip.gpkg"
    done = segment_rocks(options_for(image, model), Wishes(str(out), area=f"{out}|layername=searched_area",
                                                           incidence=60.0))  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    megapixels = rows * STRIP[1] / 1e6
    return {
        "rows": rows,
        "rocks": done.counts["rocks"],
        "seconds": round(time.perf_counter() - began, 1),
        "processor_seconds": round(time.process_time() - busy, 1),
        "mpx_a_second": round(megapixels / (time.perf_counter() - began), 2),
        "gpkg_mib": round(out.stat().st_size / 2**20, 1),
        "image_mib_in_memory": round(2 * megapixels * 1e6 / 2**20),
        "peak_mib": round(peak),
        "peak_mib_before": round(before),
        "stages": done.stages,
        "bound": f"{PEAK_MIB} MiB, and 100,000 rocks",
        "within": peak <= PEAK_MIB and done.counts["rocks"] >= 100_000,
    }


# ---- what each learns --------------------------------------------------------------------------------------------


def equal(real: Path, steps: int, count: int = 8) -> dict:
    """F1 on scenes with exact truth after so many steps on the same batches, and the processor time they took.

    Ours is then calibrated, as its recipe does; the other one's classes are taken as they are.
    """
    RECIPES[THEIRS] = replace(RECIPES[OURS], name=THEIRS, card=resnet_card(3))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = orbit.draw(orbit.SCENES, count, SIDE, 940_000, folder)
        return {"steps": steps, **{m: taught(m, real, steps, made, folder / m) for m in (THEIRS, OURS)}}


def taught(recipe: str, real: Path, steps: int, made: Sequence[orbit.Scene], folder: Path) -> dict:
    """Train, find, count."""
    began = time.process_time()
    trained = train_model(Lessons(recipe, (str(real),), folder, split="nac_cdr", steps=steps))
    seconds = time.process_time() - began
    plan = orbit.Plan(models=(str(folder),))
    found = tally([(s.true, orbit._by_tool(s, str(folder), plan)) for s in made])
    return {"processor_seconds": round(seconds), "iou": trained.outcome.measured["iou"], **orbit._numbers(found)}


if __name__ == "__main__":
    sys.exit(main())
