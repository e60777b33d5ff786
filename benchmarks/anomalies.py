"""The published autoencoders: how quickly a strip is scored, and how well. Prints JSON.

python -m benchmarks.anomalies speed                          patches/s end to end over those of a plain torch loop
python -m benchmarks.anomalies weight --real DIR              average precision on planted things by the score's weight

`speed`: from a tiled GeoTIFF to points and a score raster by `lunar anomalies`, with `--device openvino` and as it is
without, everything counted, against the bare float32 network in a loop over its patches, which are in memory and
normalised already. They take turns in processes of their own, each at its best. The bound, for OpenVINO, is 3 times, at
scores that agree to a thousandth. The loop takes the uppermost patches, whose number a second is that of all. Where
others are at work only the numbers a processor second can be trusted, and those best with OMP_NUM_THREADS=1, since
threads that wait for each other count as busy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.__main__ import surface
from lunar_processing.evaluate.planted import Strip
from lunar_processing.grid import Window
from lunar_processing.modelpack import Card

MODELS = Path(__file__).resolve().parent.parent / "models"
BOUND, AGREEMENT = 3.0, 1e-3
ROWS, REPEATS = 13_056, 3  # a quarter of a strip
LOOPED = 1664  # rows that the plain loop takes
BATCHES = (64, 256)  # patches at once in the plain loop; the better one counts
DEVICES = ("openvino", "cpu")
WEIGHTS = (0.0, 0.25, 1.0, 4.0, 16.0, 64.0)


Rate = tuple[float, float]  # patches a second: by the clock, and by the processor


def main() -> int:
    """Run one benchmark; 1 where it misses its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(BENCHMARKS))
    parser.add_argument("--model", type=Path, default=MODELS / "vae-2024", help="folder (default models/vae-2024)")
    parser.add_argument("--real", type=Path, help="folder of real images, for weight")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"height of the strip, for speed (default {ROWS})")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"runs of each, for speed (default {REPEATS})")
    parser.add_argument("--strips", type=int, default=96, help="strips with planted things, for weight (default 96)")
    given = parser.parse_args()
    if given.name == "weight" and given.real is None:
        parser.error("weight needs --real DIR")
    facts = BENCHMARKS[given.name](given)
    print(json.dumps(facts, indent=2))
    return 0 if facts.get("within", True) else 1


# ---- speed -------------------------------------------------------------------------------------------------------


def speed(given: argparse.Namespace) -> dict:
    """Patches/s of the plain loop and of the tool, by the clock and by the processor; how far the tool's scores differ,
    as a share.
    """
    import torch

    load = os.getloadavg()[0]  # others at work make this a poor moment
    with tempfile.TemporaryDirectory(prefix="lunar-bench-") as name:
        folder = Path(name)
        surface(folder / "strip.tif", given.rows)
        runs: dict[str, list[Rate]] = {}
        for _ in range(given.repeats):
            for batch in BATCHES:
                runs.setdefault(f"plain, {batch} at once", []).append(child("plain", folder, given.model, batch))
            for device in DEVICES:
                runs.setdefault(device, []).append(child("tool", folder, given.model, device))
        wanted = np.load(folder / "plain.npy")
        rows, columns = wanted.shape
        found = {device: np.load(folder / f"{device}.npy")[:rows, :columns] for device in DEVICES}
    off = {device: float(np.abs(scores / wanted - 1).max()) for device, scores in found.items()}
    clock, processor = (
        {kind: round(max(rate[i] for rate in rates), 1) for kind, rates in runs.items()} for i in (0, 1)
    )
    ratio = _over_plain(clock)
    return {
        "rows": given.rows,
        "threads": torch.get_num_threads(),
        "load_before": round(load, 1),
        "patches_a_second": clock,
        "patches_a_processor_second": processor,
        "ratio": ratio,
        "ratio_by_processor": _over_plain(processor),
        "bound": BOUND,
        "scores_differ_by": off,
        "within": ratio["openvino"] >= BOUND and max(off.values()) <= AGREEMENT,
    }


def _over_plain(rates: dict[str, float]) -> dict[str, float]:
    plain = max(rate for kind, rate in rates.items() if kind.startswith("plain"))
    return {device: round(rates[device] / plain, 2) for device in DEVICES}


def child(what: str, *arguments: object) -> Rate:
    """What one of the functions below measures in a fresh process."""
    import subprocess

    command = [sys.executable, "-m", "benchmarks.anomalies", "--child", what, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    clock, processor = json.loads(done.stdout.splitlines()[-1])
    return clock, processor


def timed(count: Callable[[], int]) -> Rate:
    """Something that counts patches, measured."""
    clock, processor = time.perf_counter(), time.process_time()
    patches = count()
    return patches / (time.perf_counter() - clock), patches / (time.process_time() - processor)


def plain(folder: str, model: str, batch: str) -> Rate:
    """The network as it is loaded, over patches in memory."""
    import torch

    from lunar_processing.modelpack import read_pack
    from lunar_processing.networks.vae import cut
    from lunar_processing.raster.image import open_image

    pack = read_pack(Path(model))
    network, norm = pack.network(), pack.card.normalisation
    with open_image(Path(folder) / "strip.tif") as image:
        low, high = (image.survey.percentile(p) for p in (norm.low, norm.high))
        upper = Window(0, 0, image.grid.width, min(LOOPED, image.grid.height))
        pixels = torch.from_numpy(image.read(upper).pixels.astype(np.float32))
    tiles = cut(((pixels - low) / (high - low))[None, None], pack.card.window, pack.card.stride)[0]
    patches = tiles.reshape(-1, 1, pack.card.window, pack.card.window)
    scores: list[torch.Tensor] = []

    def loop() -> int:
        scores.extend(network(part).flatten() for part in patches.split(int(batch)))
        return len(patches)

    with torch.inference_mode():
        network(patches[:8])
        rate = timed(loop)
    np.save(Path(folder) / "plain.npy", torch.cat(scores).reshape(tiles.shape[:2]).numpy())
    return rate


def tool(folder: str, model: str, device: str) -> Rate:
    """From file to files."""
    from lunar_processing.raster.image import open_image
    from lunar_processing.tools.anomalies import Wishes, score_anomalies
    from lunar_processing.tools.job import Options

    scores = Path(folder) / f"{device}.tif"
    options = Options(Path(folder) / "strip.tif", model=model, device=device, overwrite=True)
    wishes = Wishes(str(Path(folder) / "points.gpkg"), str(scores))
    rate = timed(lambda: int(score_anomalies(options, wishes).counts["windows"]))
    with open_image(scores, 1) as raster:
        np.save(Path(folder) / f"{device}.npy", raster.read(raster.grid.window).pixels)
    return rate


# ---- scores ------------------------------------------------------------------------------------------------------


def weight(given: argparse.Namespace) -> dict:
    """Average precision by the weight of the latent vector in the score, on planted things in validation products."""
    from lunar_processing.evaluate.ranking import measure, sample
    from lunar_processing.tools.evaluate_anomalies import planted

    parts = _parts(given.model)

    def score(strip: Strip) -> dict[str, np.ndarray]:
        error, length = parts(strip.image)
        return {**{f"weight {w:g}": error + w * length**2 for w in WEIGHTS}, "latent norm": length}

    measured = measure(sample(planted(given.real, "validation", given.strips), score))
    kinds = list(next(iter(measured.values())))
    return {
        "model": given.model.name,
        "strips": given.strips,
        "part": "validation",
        "base_rate": {kind: measured["latent norm"][kind]["base_rate"] for kind in kinds},
        "average_precision": {
            name: {kind: round(numbers[kind]["ap"], 5) for kind in kinds} for name, numbers in measured.items()
        },
    }


def _parts(model: Path) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Image → score maps of the error of reconstruction and of the length of the latent vector."""
    import torch

    from lunar_processing.modelpack import read_pack
    from lunar_processing.networks.fold import folded
    from lunar_processing.networks.vae import cut

    pack = read_pack(model)
    network, card = folded(pack.network()), pack.card

    @torch.inference_mode()
    def parts(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.percentile(image, (card.normalisation.low, card.normalisation.high))
        x = torch.from_numpy((_framed(image, card) - np.float32(low)) / np.float32(high - low)).clamp(0, 1)
        windows = cut(x[None, None], card.window, card.stride)[0]
        error, length = [], []
        for some in windows.reshape(-1, 1, card.window, card.window).split(64):
            rebuilt = network.rebuild(some)
            error.append((rebuilt.image - some).square().sum((1, 2, 3)))
            length.append(rebuilt.mean.norm(dim=1))
        shape = windows.shape[:2]
        return torch.cat(error).reshape(shape).numpy(), torch.cat(length).reshape(shape).numpy()

    return parts


def _framed(image: np.ndarray, card: Card) -> np.ndarray:
    """The image with its own edge around it, so that each cell of the score raster lies in the middle of a window."""
    sides = [(card.halo, card.halo + -side % card.stride) for side in image.shape]
    return np.pad(image.astype(np.float32), sides, mode="edge")


BENCHMARKS: dict[str, Callable[[argparse.Namespace], dict]] = {"speed": speed, "weight": weight}
CHILDREN: dict[str, Callable[..., Rate]] = {"plain": plain, "tool": tool}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(CHILDREN[sys.argv[2]](*sys.argv[3:])))
    else:
        sys.exit(main())
