"""How long a simulated scene takes, and which part of it. `python -m benchmarks.simulator [--device cuda]`.

The bound is 25 ms for a scene of 256 × 256 with craters, rocks, shadows and camera, on two cores in batches of 64.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import torch
from torch.profiler import ProfilerActivity, profile

from lunar_processing.simulate.scenes import RECIPES, draw

BOUND_MS = 25.0
STAGES = ("plan", "ground", "craters", "rocks and objects", "light", "lander's view", "camera")


def main() -> int:
    """Measure the recipes named on the command line, or all; prints JSON; 1 where `nac` is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES), help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--batch", type=int, default=64, help="scenes at a time (default 64)")
    given = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    load = os.getloadavg()[0]  # of others: on a busy machine only the time on the processor means something
    results = {name: {**measure(name, given.device, given.batch), "load_before": load} for name in given.recipes}
    print(json.dumps(results, indent=2))
    over = given.device == "cpu" and results.get("nac", {"ms_a_scene": 0})["ms_a_scene"] > BOUND_MS
    return 1 if over else 0


def measure(recipe: str, device: str, batch: int, repeats: int = 3) -> dict:
    """Best of some runs, in ms a scene and scenes a second; share of each stage in a further one."""
    draw(recipe, batch, 0, device)
    seconds, busy = (min(times) for times in zip(*(timed(recipe, device, batch, s) for s in range(1, repeats + 1))))
    return {
        "device": device,
        "batch": batch,
        "ms_a_scene": round(seconds / batch * 1e3, 2),
        "processor_ms_a_scene": round(busy / batch * 1e3, 2),
        "scenes_a_second": round(batch / seconds, 1),
        "share": shares(recipe, device, batch),
    }


def timed(recipe: str, device: str, batch: int, seed: int) -> tuple[float, float]:
    """Seconds for one batch, and seconds that all threads together had a processor."""
    started, busy = time.perf_counter(), time.process_time()
    draw(recipe, batch, seed, device)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - busy


def shares(recipe: str, device: str, batch: int) -> dict[str, float]:
    """What part of the time goes where, by the marks in `scenes.draw`."""
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        draw(recipe, batch, 99, device)
    spent = {event.key: event.cpu_time_total for event in watched.key_averages() if event.key in STAGES}
    return {name: round(spent[name] / sum(spent.values()), 3) for name in STAGES if name in spent}


if __name__ == "__main__":
    sys.exit(main())
