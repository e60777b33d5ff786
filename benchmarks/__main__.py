"""Speed and memory of the way around a method, as ratios in one run. `make bench` runs it.

overhead    a small network end to end, file to file, over the bare network on the same tiles in memory
identity    reading and rewriting an image over `gdal_translate` with the same creation options
memory      peak for a long strip over the peak for a quarter of it, each the middle of three
anomalies   a long strip with anomaly-multiscale, file to file, against vae-2024 in a plain loop over its patches
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
from scipy import ndimage

MODELS = Path(__file__).resolve().parent.parent / "models"
WIDTH = 5064
QUARTER, STRIP = 13_056, 52_224
REPEATS = 3
SMALL_MODEL = "rocks-orbital"
PATCH, APART = 64, 64  # px: window and stride of the autoencoder, as published
SOME, AT_ONCE = 4096, 64  # patches that stand for all of a strip's; as many in a batch


def main() -> int:
    """Run the benchmarks named on the command line, or all; prints JSON and says what is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(BENCHMARKS), help=f"of {', '.join(BENCHMARKS)}")
    names = parser.parse_args().names
    with tempfile.TemporaryDirectory(prefix="lunar-bench-") as folder:
        results = {name: BENCHMARKS[name](Path(folder)) for name in names}
    print(json.dumps(results, indent=2))
    over = [name for name, facts in results.items() if not facts["within"]]
    print(f"over their bound: {', '.join(over)}" if over else "all within their bounds")
    return 1 if over else 0


def overhead(folder: Path) -> dict:
    """A 16-channel network of three layers over 20,000 × 5,064 uint8 px; beside it the smallest U-Net shipped."""
    found = _overhead("ruler", surface(folder / "image.tif", 20_000), folder / "out.tif")
    unet = _overhead(SMALL_MODEL, surface(folder / "quarter.tif", 5_000), folder / "out.tif")
    return {"bound": 1.10, "within": found["ratio"] <= 1.10, **found, SMALL_MODEL: unet}


def _overhead(network: str, image: Path, out: Path) -> dict:
    bare, around = [], []
    for _ in range(REPEATS):  # in turns, so that both see the machine in the same moods
        bare.append(child("bare", network, image))
        around.append(child("end_to_end", network, image, out))
    ratio = min(r["seconds"] for r in around) / min(r["seconds"] for r in bare)
    return {"ratio": round(ratio, 3), "bare": bare, "end_to_end": around}


def identity(folder: Path) -> dict:
    """20,000 × 5,064 uint8 px, tiled and deflated, read and written again."""
    path = surface(folder / "image.tif", 20_000)
    ours, theirs = [], []
    for _ in range(REPEATS):
        theirs.append(timed(lambda: gdal_translate(path, folder / "theirs.tif")))
        ours.append(child("rewrite", path, folder / "ours.tif")["seconds"])
    ratio = min(ours) / min(theirs)
    return {
        "ratio": round(ratio, 3),
        "bound": 1.25,
        "within": ratio <= 1.25,
        "ours_s": ours,
        "gdal_translate_s": theirs,
    }


def memory(folder: Path) -> dict:
    """Peak memory of a process that takes a strip, or a quarter of it, through a network; the middle of three runs.

    What two lanes need at most depends on how their layers meet, which is not the same twice.
    """
    images = {rows: surface(folder / f"{rows}.tif", rows) for rows in (QUARTER, STRIP)}
    empty = child("nothing", folder)["peak_mib"]
    above: dict[int, list[float]] = {rows: [] for rows in images}
    for _ in range(REPEATS):
        for rows, image in images.items():
            above[rows].append(child("end_to_end", "ruler", image, folder / "out.tif")["peak_mib"] - empty)
    quarter, strip = (float(np.median(found)) for found in above.values())
    within = strip <= 1536 and abs(strip / quarter - 1) <= 0.10
    return {
        "strip_mib": round(strip),
        "quarter_mib": round(quarter),
        "ratio": round(strip / quarter, 3),
        "runs_mib": {rows: [round(peak) for peak in found] for rows, found in above.items()},
        "engine_and_model_mib": round(empty),
        "bound": "1536 MiB above the model; ratio within 10 %",
        "within": within,
    }


def anomalies(folder: Path) -> dict:
    """52,224 × 5,064 uint8 px from GeoTIFF to ranked points, against the bare float32 network over patches in memory.

    The loop runs over some of the patches, the same number a second is taken for all.
    """
    path = surface(folder / "strip.tif", STRIP)
    patches = ((STRIP - PATCH) // APART + 1) * ((WIDTH - PATCH) // APART + 1)
    loops, strips = [], []
    for _ in range(REPEATS):
        loops.append(child("autoencoder", path)["seconds"] / SOME * patches)
        strips.append(child("strange", path, folder / "points.gpkg")["seconds"])
    ratio = min(loops) / min(strips)
    return {
        "ratio": round(ratio, 1),
        "bound": "20 or more",
        "within": ratio >= 20,
        "patches": patches,
        "loop_s": [round(seconds, 1) for seconds in loops],
        "strip_s": strips,
    }


BENCHMARKS: dict[str, Callable[[Path], dict]] = {
    "overhead": overhead,
    "identity": identity,
    "memory": memory,
    "anomalies": anomalies,
}


# ---- what is measured, each in a process of its own --------------------------------------------------------------


def bare(name: str, path: str) -> None:
    """The network alone, over the tiles that the pipeline would give it."""
    import torch

    network, batches = _network_and_tiles(name, path)
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            network(batch)
    _report(started)


def _network_and_tiles(name: str, path: str) -> tuple:
    import torch

    from lunar_processing.pipeline import run
    from lunar_processing.raster.image import open_image

    batches: list[torch.Tensor] = []

    def collect(pixels: np.ndarray, _valid: np.ndarray, _at: object) -> np.ndarray:
        batches.append(torch.from_numpy(pixels.astype(np.float32))[:, None] / 255)
        return pixels[:, None]

    step, network = _step_and_network(name)
    with open_image(path) as image:
        run(image, replace(step, apply=collect), [])
    return network, batches


def end_to_end(name: str, path: str, out: str) -> None:
    """The same network from file to file."""
    import torch

    from lunar_processing.pipeline import run
    from lunar_processing.raster.image import open_image
    from lunar_processing.raster.writer import Band, RasterWriter

    step, network = _step_and_network(name)

    @torch.inference_mode()
    def apply(pixels: np.ndarray, _valid: np.ndarray, _at: object) -> np.ndarray:
        return network(torch.from_numpy(pixels.astype(np.float32))[:, None] / 255)[:, :1].numpy()

    started = time.perf_counter()
    with open_image(path) as image, RasterWriter(out, image.grid, [Band("x", "")], overwrite=True) as writer:
        run(image, replace(step, apply=apply), [lambda _w, values, _ok: writer.append(values)])
        writer.finish()
        writer.publish()
    _report(started)


def rewrite(path: str, out: str) -> None:
    """Read and write again, with the bytes looked at once more on the disk."""
    from lunar_processing.pipeline import Step, run
    from lunar_processing.raster.image import open_image
    from lunar_processing.raster.writer import Band, RasterWriter

    started = time.perf_counter()
    step = Step("same", lambda pixels, _valid, _at: pixels[:, None], tile=1024, dtype="uint8", fill=0)
    with (
        open_image(path) as image,
        RasterWriter(out, image.grid, [Band("same", "")], "uint8", None, overwrite=True, overviews=False) as writer,
    ):
        run(image, step, [lambda _w, values, _ok: writer.append(values)])
        writer.finish()
        writer.publish()
    _report(started)


def autoencoder(path: str) -> None:
    """The network as it is loaded, over some of the patches."""
    import torch

    from lunar_processing.grid import Window
    from lunar_processing.modelpack import read_pack
    from lunar_processing.raster.image import open_image

    network = read_pack(MODELS / "vae-2024").network()
    with open_image(path) as image:
        pixels = image.read(Window(0, 0, WIDTH, (SOME // (WIDTH // APART) + 2) * APART + PATCH)).pixels
    cut = torch.from_numpy(pixels.astype(np.float32) / 255).unfold(0, PATCH, APART).unfold(1, PATCH, APART)
    patches = cut.reshape(-1, 1, PATCH, PATCH)[:SOME]
    with torch.inference_mode():
        network(patches[:AT_ONCE])
        started = time.perf_counter()
        for part in patches.split(AT_ONCE):
            network(part)
    _report(started)


def strange(path: str, points: str) -> None:
    """The whole strip, as `lunar anomalies` does it."""
    from lunar_processing.tools.anomalies import Wishes, score_anomalies
    from lunar_processing.tools.job import Options

    started = time.perf_counter()
    score_anomalies(Options(Path(path), model=str(MODELS / "anomaly-multiscale"), overwrite=True), Wishes(points))
    _report(started)


def nothing(_folder: str) -> None:
    """What engine and model take before the first pixel."""
    import torch

    import lunar_processing.raster.writer  # noqa: F401

    _, network = _step_and_network("ruler")
    with torch.inference_mode():
        network(torch.zeros(1, 1, 64, 64))
    _report(time.perf_counter())


def _step_and_network(name: str) -> tuple:
    """The ruler, three layers that nobody would ship, or the network of a model; with what every tool's step has."""
    import torch

    from lunar_processing.devices import lanes_of
    from lunar_processing.modelpack import read_pack
    from lunar_processing.networks.convnet import ConvNet
    from lunar_processing.pipeline import BATCH_PIXELS, Step

    step = Step(name, lambda *_: None, tile=1024, halo=16, batch_px=BATCH_PIXELS["cpu"], lanes=lanes_of("cpu"))
    if name == "ruler":
        torch.manual_seed(0)
        return step, ConvNet(16, 3).eval()
    pack = read_pack(MODELS / name)
    return replace(step, tile=pack.card.tile, halo=pack.card.halo, align=pack.card.stride), pack.network()


def _report(started: float) -> None:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": round(time.perf_counter() - started, 3), "peak_mib": round(peak, 1)}))


def child(what: str, *arguments: Path) -> dict:
    """Run one of the functions above in a fresh process."""
    command = [sys.executable, __file__, "--child", what, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def timed(function: Callable[[], object]) -> float:
    """Seconds it takes."""
    started = time.perf_counter()
    function()
    return round(time.perf_counter() - started, 3)


def gdal_translate(source: Path, out: Path) -> None:
    """The same image with the same creation options."""
    from lunar_processing.raster.writer import creation_options

    if not shutil.which("gdal_translate"):
        raise SystemExit("gdal_translate is not installed: apt install gdal-bin")
    options = {k: v for k, v in creation_options("uint8").items() if k != "driver"}
    given = [part for key, value in options.items() for part in ("-co", f"{key.upper()}={value}")]
    subprocess.run(["gdal_translate", "-q", *given, str(source), str(out)], check=True)


def surface(path: Path, rows: int) -> Path:
    """A strip of rough ground as a tiled, deflated GeoTIFF; made once."""
    if path.exists():
        return path
    from lunar_processing.raster.writer import creation_options

    random = np.random.default_rng(0)
    ground = ndimage.gaussian_filter(random.normal(size=(2048, WIDTH)), 2)
    ground = ground / ground.std() * 25 + 90 + random.normal(size=ground.shape) * 3
    ground = ground.clip(1, 255).astype("uint8")
    place = rasterio.Affine(1, 0, 0, 0, -1, 10)
    profile = {
        "width": WIDTH,
        "height": rows,
        "count": 1,
        "dtype": "uint8",
        "crs": "IAU_2015:30135",
        "transform": place,
    }
    with rasterio.open(path, "w", **creation_options("uint8"), **profile) as file:
        for row in range(0, rows, 2048):
            part = ground[: min(2048, rows - row)]
            file.write(part, 1, window=rasterio.windows.Window(0, row, WIDTH, len(part)))
    return path


CHILDREN = {
    "bare": bare,
    "end_to_end": end_to_end,
    "rewrite": rewrite,
    "autoencoder": autoencoder,
    "strange": strange,
    "nothing": nothing,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        CHILDREN[sys.argv[2]](*sys.argv[3:])
    else:
        sys.exit(main())
