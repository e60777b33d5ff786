"""What a batch costs beside the work, and how much two workers do more than one.

    python -m benchmarks.batch         # prints JSON; wants a machine that does nothing else, and says how busy it was

overhead    seconds a product, of a tool alone in a loop, of the same as a batch in one process (journal, checksums,
            facts), and of the same handed to a worker by Dask; the smallest images, so that little else counts
scaling     products a second of two workers on two cores over one on one core, one thread each for computing, between
            the first and the last that was done; beside it one worker that may read and write on the other core
strip       one strip of 5,064 columns by each tool: seconds, megapixels a second, bytes written, peak memory
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median

import numpy as np
import rasterio
from scipy import ndimage

from benchmarks.__main__ import surface

SMALL, LARGE = 64, 1500  # px
FEW, TINY, MANY = 10, 60, 24  # products of overhead, of scaling
ROWS = 13_056  # of the strip: a quarter of the longest
REPEATS = 2
METHODS = {"rocks": "shadow-pairs", "anomalies": "pca", "enhance": "destripe-nlm"}


def main() -> int:
    """Run what is named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(BENCHMARKS), help=f"of {', '.join(BENCHMARKS)}")
    with tempfile.TemporaryDirectory(prefix="lunar-bench-") as folder:
        found = {name: BENCHMARKS[name](Path(folder)) for name in parser.parse_args().names}
    found["machine"] = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()}
    print(json.dumps(found, indent=2))
    return 0


def overhead(folder: Path) -> dict:
    """Seconds by the clock and of the processor, which tell the truth on a busy machine too."""
    images = products(folder / "tiny", SMALL, TINY)
    few = products(folder / "few", SMALL, FEW)
    alone, processor = seconds_alone(folder, images)
    found = {"tool alone": {"clock_s": round(alone, 4), "processor_s": round(processor, 4)}}
    for name, workers in {"in one process": 0, "by a worker": 1}.items():
        before = children_s()
        batch(folder, few, "enhance", "stretch", workers)
        between = children_s()
        each = batch(folder, images, "enhance", "stretch", workers)
        # What more products take more: beginning and end are left out.
        processor = (children_s() - between - (between - before)) / (TINY - FEW)
        found[name] = {"clock_s": round(median(each), 4), "processor_s": round(processor, 4)}
    more = {key: round(found["by a worker"][key] - found["tool alone"][key], 4) for key in found["tool alone"]}
    return {**found, "overhead": more, "bound_s": 0.05}


def scaling(folder: Path) -> dict:
    """In turns, so that both see the machine in the same moods; the best of each."""
    images = products(folder / "large", LARGE, MANY)
    kinds = {"1 on 1 core": (1, 1), "1 on 2 cores": (1, 2), "2 on 2 cores": (2, 2)}
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(REPEATS):
        for name, (workers, cores) in kinds.items():
            rates[name].append(1 / float(np.mean(batch(folder, images, "rocks", "shadow-pairs", workers, cores))))
    best = {name: max(found) for name, found in rates.items()}
    return {
        "products_per_s": {name: round(rate, 3) for name, rate in best.items()},
        "ratio": round(best["2 on 2 cores"] / best["1 on 1 core"], 3),
        "ratio_to_one_that_has_both_cores": round(best["2 on 2 cores"] / best["1 on 2 cores"], 3),
        "bound": 1.8,
    }


def strip(folder: Path) -> dict:
    """Each tool's classical method, in a process of its own with one thread."""
    image = surface(folder / "strip.tif", ROWS)
    found = {}
    for tool, method in METHODS.items():
        out = folder / f"out.{'tif' if tool == 'enhance' else 'gpkg'}"
        command = [sys.executable, "-m", "lunar_processing", tool, image, out, "--model", method, "--sun-azimuth", "90"]
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        subprocess.run([str(word) for word in command], check=True, capture_output=True, env={**os.environ, **one})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        megapixels = ROWS * 5064 / 1e6
        found[f"{tool}, {method}"] = {
            "megapixels": round(megapixels, 1),
            "seconds": round(time.perf_counter() - started, 1),
            "processor_s": round(processor, 1),
            "mpx_per_processor_s": round(megapixels / processor, 2),
            "bytes_per_px": round(out.stat().st_size / megapixels / 1e6, 3),
            "peak_mib": round(after.ru_maxrss / 1024),
        }
    return found


BENCHMARKS = {"overhead": overhead, "scaling": scaling, "strip": strip}


def products(folder: Path, side: int, count: int) -> Path:
    """A folder of images."""
    folder.mkdir()
    first = folder / "P0000.tif"
    ground = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(side, side)), 2)
    pixels = (ground / ground.std() * 25 + 90).clip(1, 255).astype("uint8")
    place = rasterio.Affine(1, 0, 0, 0, -1, 10)
    facts = {"width": side, "height": side, "count": 1, "dtype": "uint8", "crs": "IAU_2015:30135", "transform": place}
    with rasterio.open(first, "w", driver="GTiff", compress="deflate", **facts) as file:
        file.write(pixels, 1)
    for number in range(1, count):
        shutil.copy(first, folder / f"P{number:04d}.tif")
    return folder


def seconds_alone(folder: Path, images: Path) -> tuple[float, float]:
    """The tool in a loop, nothing around it: median by the clock, mean of the processor."""
    from lunar_processing.tools.enhance import enhance
    from lunar_processing.tools.job import Options

    paths = sorted(images.iterdir())
    found = []
    for path in [paths[0], *paths]:  # the first loads libraries
        started, before = time.perf_counter(), time.process_time()
        enhance(Options(path, model="stretch", overwrite=True), folder / "alone.tif")
        found.append((time.perf_counter() - started, time.process_time() - before))
    clock, processor = np.array(found[1:]).T
    return float(np.median(clock)), float(processor.mean())


def children_s() -> float:
    """Processor time of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def batch(folder: Path, images: Path, tool: str, model: str, workers: int, cores: int | None = None) -> list[float]:
    """Seconds between one product and the next, from the journal; those of the workers' beginning left out. Linux can
    keep it on so many `cores`.
    """
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "lunar_processing", "batch", tool, images, "--out", out, "--workers", workers]
    command += ["--model", model, "--sun-azimuth", 90, "--no-merge", "--quiet"]
    pin = ["taskset", "--cpu-list", f"0-{cores - 1}"] if cores else []
    subprocess.run([*pin, *(str(word) for word in command)], check=True, capture_output=True)
    lines = map(json.loads, (out / "journal.jsonl").read_text().splitlines())
    times = sorted(datetime.fromisoformat(line["when"]).timestamp() for line in lines)
    return list(np.diff(times[2 * max(workers, 1) :]))


if __name__ == "__main__":
    sys.exit(main())
