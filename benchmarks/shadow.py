"""How fast `lunar enhance` sees into shadow, from file to file, beside a network that does nothing.

    python -m benchmarks.shadow [--model ID] [--rows N] [--device openvino]

Prints JSON: megapixels a second, processor seconds a megapixel, the ratio to the identity network in the same tool, and
how busy the machine was with other things. On a busy machine the processor seconds say more than the rate.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WIDTH, ROWS = 5064, 2048
WANTED = 2.0  # Mpx/s on two cores
REPEATS = 2


def main() -> int:
    """Measure both in processes of their own, in turns; the best of each counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="psr-physics", help="ID or folder of the model (default psr-physics)")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"of the image of {WIDTH} px (default {ROWS})")
    parser.add_argument("--device", default="cpu", help="cpu or openvino (default cpu)")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        _enhance(*given.child, given.device)
        return 0
    with tempfile.TemporaryDirectory(prefix="lunar-bench-") as folder:
        place = Path(folder)
        image, same = dim_image(place / "image.tif", given.rows), identity(place / "same")
        runs: dict[str, list[dict]] = {given.model: [], "identity": []}
        for _ in range(REPEATS):
            for name, model in ((given.model, given.model), ("identity", str(same))):
                command = [sys.executable, "-m", "benchmarks.shadow", "--device", given.device, "--child"]
                command += [model, str(image), str(place / "out.tif")]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    megapixels = WIDTH * given.rows / 1e6
    best = {name: min(run["seconds"] for run in some) for name, some in runs.items()}
    busy = {name: min(run["processor_s"] for run in some) for name, some in runs.items()}
    rate = megapixels / best[given.model]
    facts = {
        "model": given.model,
        "device": given.device,
        "megapixels": round(megapixels, 2),
        "mpx_per_s": round(rate, 2),
        "bound": f"{WANTED:g} Mpx/s or more",
        "within": rate >= WANTED,
        "processor_s_per_mpx": round(busy[given.model] / megapixels, 3),
        "identity_mpx_per_s": round(megapixels / best["identity"], 2),
        "identity_processor_s_per_mpx": round(busy["identity"] / megapixels, 3),
        "times_the_identity": round(best[given.model] / best["identity"], 2),
        "times_the_identity_processor": round(busy[given.model] / busy["identity"], 2),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "runs": runs,
    }
    print(json.dumps(facts, indent=2))
    return 0 if facts["within"] else 1


def _enhance(model: str, image: str, out: str, device: str) -> None:
    """One run of the tool, the loading of the network included."""
    from lunar_processing.tools.enhance import enhance
    from lunar_processing.tools.job import Options

    began, used = time.perf_counter(), _processor_s()
    enhance(Options(Path(image), model=model, overwrite=True, device=device), Path(out))
    print(
        json.dumps({"seconds": round(time.perf_counter() - began, 2), "processor_s": round(_processor_s() - used, 2)})
    )


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def dim_image(path: Path, rows: int) -> Path:
    """Dim ground with the noise of the camera, float32 as calibrated products are."""
    from lunar_processing.grid import PIXEL_SPACE, Grid
    from lunar_processing.raster.writer import Band, RasterWriter

    random = np.random.default_rng(0)
    pixels = (10 + 1.7 * random.standard_normal((rows, WIDTH))).astype(np.float32)
    grid = Grid(None, PIXEL_SPACE, WIDTH, rows)
    with RasterWriter(path, grid, [Band("image", "")], nodata=None, overviews=False) as writer:
        writer.append(pixels[None])
        writer.finish()
        writer.publish()
    return path


def identity(folder: Path) -> Path:
    """A model that changes nothing, tiled as the default model is."""
    from lunar_processing.modelpack import Card, save_pack
    from lunar_processing.networks.convnet import Identity

    save_pack(folder, Card("same", "enhance", "identity", tile=1024, halo=64), Identity())
    return folder


if __name__ == "__main__":
    sys.exit(main())
