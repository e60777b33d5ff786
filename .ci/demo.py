"""The whole way on a small sample image: `make demo`. Everything it makes lies in demo_output/, or in a folder given.

1. makes a sample image in IAU_2015:30135 (south polar, 1 m pixels): craters, rocks with shadows, a crater floor in
   the dark, a border without data;
2. lays out the plugin as it is packaged, and runs its three tools in the real qgis_process, with a profile of its own;
3. opens the results as QGIS layers with the styles that lie beside them, and draws maps (maps.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from pyproj import CRS

REPOSITORY = Path(__file__).resolve().parent.parent
OUTPUT = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else REPOSITORY / "demo_output"
SYSTEM_PYTHON = os.environ.get("PYTHON", "/usr/bin/python3")
PLUGIN = "lunar_qgis_plugin"
WIDTH, HEIGHT, PIXEL_M = 1500, 1200, 1.0
SEED = 39  # a Moon with a deep, fresh crater, whose floor lies in shadow
SUN_AZIMUTH, SUN_ELEVATION = 118.0, 16.0  # degrees; a low sun, as there is near the poles
CORNER = (-38_250.0, 126_400.0)  # upper left, metres in IAU_2015:30135: 85.6° south

sys.path.insert(0, str(REPOSITORY / "tests"))
from moon import digitise, scene  # noqa: E402


def main() -> int:
    started = time.perf_counter()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    image = OUTPUT / "sample.tif"
    say("Making the sample image")
    make_sample(image)
    with tempfile.TemporaryDirectory(prefix="lunar-demo-") as folder:
        qgis = prepare_qgis(Path(folder))
        for tool, parameters in tools(image).items():
            run_tool(tool, parameters, qgis)
        say("Opening the results in QGIS and drawing maps")
        note = f"{PIXEL_M:g} m pixels · sun azimuth {SUN_AZIMUTH:g}°, elevation {SUN_ELEVATION:g}° · a made-up image"
        call([SYSTEM_PYTHON, str(REPOSITORY / ".ci" / "maps.py"), str(OUTPUT), note], qgis)
    name_files(time.perf_counter() - started)
    return 0


def tools(image: Path) -> dict[str, dict[str, str]]:
    """What is asked of each tool, as a user would fill in its dialog."""
    return {
        "lunar:enhancepsr": {"INPUT": str(image), "OUTPUT": f"{OUTPUT}/enhanced.tif"},
        "lunar:scoreanomalies": {
            "INPUT": str(image),
            "TOP": "12",
            "OUTPUT": f"{OUTPUT}/anomalies.gpkg",
            "SCORES": f"{OUTPUT}/scores.tif",
            "CHIPS": f"{OUTPUT}/chips",
        },
        "lunar:segmentrocks": {
            "INPUT": str(image),
            "SUN_AZIMUTH": f"{SUN_AZIMUTH:g}",
            "OUTPUT": f"{OUTPUT}/rocks.gpkg",
            "OUTLINES": f"{OUTPUT}/rock_outlines.gpkg",
            "AREA": f"{OUTPUT}/searched_area.gpkg",
            "MASK": f"{OUTPUT}/rock_mask.tif",
        },
    }


def make_sample(path: Path) -> None:
    """A 12-bit image as a map-projected strip has it: turned a little, nothing but 0 outside."""
    moon = scene(
        HEIGHT,
        WIDTH,
        seed=SEED,
        sun_azimuth=SUN_AZIMUTH,
        sun_elevation=SUN_ELEVATION,
        rocks=1000,
        rock_sizes=(3.0, 16.0),
        exposure=0.27,  # so that few of the walls that face the sun are saturated
    )
    counts = np.maximum(digitise(moon.image, bits=16, bias=20), 1)
    counts[outside_strip()] = 0
    place = rasterio.Affine(PIXEL_M, 0, CORNER[0], 0, -PIXEL_M, CORNER[1])
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=HEIGHT,
        width=WIDTH,
        count=1,
        dtype="uint16",
        nodata=0,
        crs=CRS.from_authority("IAU_2015", 30135).to_wkt(),
        transform=place,
        compress="deflate",
        predictor=2,
        tiled=True,
    ) as file:
        file.write(counts, 1)


def outside_strip() -> np.ndarray:
    """Pixels beyond the four edges of a strip that is turned by four degrees."""
    turn = np.radians(4)
    row, col = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    along = (col - WIDTH / 2) * np.cos(turn) + (row - HEIGHT / 2) * np.sin(turn)
    across = (row - HEIGHT / 2) * np.cos(turn) - (col - WIDTH / 2) * np.sin(turn)
    return (np.abs(along) > WIDTH / 2 - 45) | (np.abs(across) > HEIGHT / 2 - 55)


def prepare_qgis(folder: Path) -> dict[str, str]:
    """Lay out the plugin and enable it in a profile of its own; returns the environment that knows them."""
    package = [sys.executable, str(REPOSITORY / ".ci" / "package.py"), "--stage", str(folder / "plugins")]
    subprocess.run(package, check=True, stdout=subprocess.DEVNULL)
    (folder / "runtime").mkdir(mode=0o700)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "QGIS", "VIRTUAL_ENV", "LUNAR"))},
        "QT_QPA_PLATFORM": "offscreen",
        "XDG_RUNTIME_DIR": str(folder / "runtime"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_DATA_HOME": str(folder / "data"),
        "QGIS_PLUGINPATH": str(folder / "plugins"),
        "LUNAR_PYTHON": sys.executable,  # the engine's Python: the one that runs this
        "LUNAR_MODELS": str(REPOSITORY / "models"),  # the plugin itself carries none
    }
    qgis_process("plugins", "enable", PLUGIN, environment=environment)
    return environment


def run_tool(tool: str, parameters: dict[str, str], environment: dict[str, str]) -> None:
    """`qgis_process --json run TOOL`; says what came of it."""
    say(f"qgis_process run {tool}")
    words = [f"{name}={value}" for name, value in parameters.items()]
    told = json.loads(qgis_process("--json", "run", tool, "--", *words, environment=environment))
    report = json.loads(told["results"]["REPORT"])
    counts = ", ".join(f"{name} {value}" for name, value in report["counts"].items() if not isinstance(value, dict))
    print(f"   {report['model']} on {report['device']}, {report['seconds']:.1f} s: {counts}")
    for warning in report["warnings"]:
        print(f"   warning: {warning}")


def qgis_process(*arguments: str, environment: dict[str, str]) -> str:
    """What qgis_process says on its standard output."""
    # Debian's wrapper qgis_process passes an option that qgis_process does not know.
    program = shutil.which("qgis_process.bin") or shutil.which("qgis_process")
    if program is None:
        sys.exit("qgis_process was not found. Cure: .ci/install (Debian), or put QGIS's programs on the PATH.")
    return call([program, *arguments], environment)


def call(command: list[str], environment: dict[str, str]) -> str:
    """Standard output of a command; shows all it said and ends the demo when it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\n{' '.join(command)} failed with {done.returncode}.")
    return done.stdout


def name_files(seconds: float) -> None:
    say(f"Done in {seconds:.0f} s. Files written:")
    for path in sorted(OUTPUT.rglob("*")):
        if path.is_file():
            print(f"   {os.path.relpath(path)}  {path.stat().st_size / 1e3:,.0f} kB")
    print(f"\nLook at {os.path.relpath(OUTPUT / 'maps' / 'overview.png')} first.")
    print(f"In QGIS: open {os.path.relpath(OUTPUT / 'demo.qgz')}.")


def say(text: str) -> None:
    print(f"== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
