"""Run the `lunar` command as a user or a program does, and look at what it left on the disk.

    ran = lunar("rocks", image, folder / "rocks.gpkg", "--json")
    ran.code, ran.err, ran.result["counts"]["rocks"]

Models for the tests are real ones of a few weights, whose answers can be worked out by hand.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import formats
import moon
import numpy as np
import pyogrio
import rasterio

from lunar_processing.__main__ import main

COMMAND = [sys.executable, "-m", "lunar_processing"]


@dataclass(frozen=True)
class Ran:
    """A finished run."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """What `--json` printed."""
        return strict_json(self.out)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What `--progress jsonl` printed, one object a line."""
        return [strict_json(line) for line in self.out.splitlines()]


def lunar(*arguments: object) -> Ran:
    """The command in this process: the same code, without the second it takes to start a Python."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([str(a) for a in arguments])
            except SystemExit as stop:  # argparse: wrong use, or --help
                code = int(stop.code or 0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Ran(code, out.getvalue(), err.getvalue())


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The command as a process of its own; its standard streams are pipes."""
    settings: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "PYTHONUTF8": "1", **options.pop("env", {})}
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], text=True, encoding="utf-8", env=environment, **(settings | options)
    )


def lunar_process(*arguments: object, **options: Any) -> Ran:
    """The command as a process of its own, to its end."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=120)
    return Ran(process.returncode, out, err)


def strict_json(text: str) -> Any:
    """JSON as every program reads it: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


# ---- files -------------------------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@dataclass(frozen=True)
class Table:
    """A layer as a user of another program reads it."""

    fields: dict[str, np.ndarray]
    wkb: np.ndarray
    crs: str | None
    geometry_type: str

    def __len__(self) -> int:
        return len(self.wkb)

    def __getitem__(self, field: str) -> np.ndarray:
        return self.fields[field]


def read_layer(path: Path, layer: str | None = None) -> Table:
    meta, _, wkb, columns = pyogrio.raw.read(path, layer=layer)
    return Table(dict(zip(meta["fields"], columns)), wkb, meta["crs"], meta["geometry_type"])


def layers(path: Path) -> list[str]:
    return sorted(name for name, _ in pyogrio.list_layers(path))


def read_all(path: Path) -> np.ndarray:
    """Every block of every band of a raster."""
    with rasterio.open(path) as dataset:
        return dataset.read()


# ---- scenes ------------------------------------------------------------------------------------------------------

# Rocks whose place and size are known: column, row, width, height of bright rectangles on dark ground.
RECTANGLES = ((20, 30, 4, 4), (76, 40, 9, 5), (110, 77, 3, 12), (0, 100, 5, 5), (150, 20, 6, 6), (60, 110, 1, 1))
WIDTH, HEIGHT = 180, 130
NODATA_CORNER = np.s_[120:, 160:]


def rectangles() -> np.ndarray:
    """uint8: rectangles of 200 on ground of about 40, and nodata (0) in a corner."""
    pixels = np.random.default_rng(5).integers(35, 46, (HEIGHT, WIDTH)).astype(np.uint8)
    for col, row, width, height in RECTANGLES:
        pixels[row : row + height, col : col + width] = 200
    pixels[NODATA_CORNER] = 0
    return pixels


def scene(path: Path) -> Path:
    """A synthetic view of the south pole, 300 rows of 400 px of 2 m, sun in the east, 20 columns of nodata (0)."""
    view = moon.scene(300, 400, seed=4, sun_azimuth=90, dark=True, rocks=60, rock_sizes=(4, 14))
    pixels = np.maximum(moon.digitise(view.image, 16), 1)
    pixels[:, :20] = 0
    return formats.tiled(path, pixels, nodata=0)


def large(path: Path, repeat: int = 4) -> Path:
    """The same thousand by thousand pixels again and again, 8 bits: enough for a run that takes its time."""
    view = moon.scene(1000, 1000, seed=2, sun_azimuth=90, dark=True)
    pixels = np.tile(np.maximum(moon.digitise(view.image), 1), (repeat, repeat))
    return formats.geotiff(path, pixels, tiled=True, compress="deflate", zlevel=1)


# ---- models ------------------------------------------------------------------------------------------------------

BRIGHT = 128.0  # the model of rocks takes every pixel above this number for rock


def make_models(folder: Path) -> Path:
    """Three models: `bright` (rocks: pixels above 128), `square` (anomalies: mean of squares), `same` (enhance)."""
    import torch

    from lunar_processing.modelpack import Card, Normalisation, save_pack
    from lunar_processing.networks import FAMILIES

    numbers = Normalisation("range", 0.0, 1.0)  # the network sees the file's own numbers
    tile = {"tile": 96, "halo": 8, "normalisation": numbers, "license": "CC0-1.0"}
    shape = {"channels": 1, "depth": 1}

    rocks = FAMILIES["convnet"](**shape, outputs=2)
    square = FAMILIES["convnet"](**shape, outputs=1)
    with torch.no_grad():
        for network in (rocks, square):
            network[0].weight.zero_()
            network[0].bias.zero_()
        rocks[0].weight[1, 0, 1, 1] = 1.0
        rocks[0].bias[1] = -BRIGHT
    save_pack(
        folder / "bright",
        Card(
            "bright",
            "rocks",
            "convnet",
            settings={**shape, "outputs": 2},
            classes=("ground", "rock"),
            pixel_size_m=(0.5, 20.0),
            title="Bright pixels",
            description="Every pixel above 128 is rock",
            **tile,
        ),
        rocks,
    )
    save_pack(
        folder / "square",
        Card(
            "square",
            "anomalies",
            "convnet",
            settings={**shape, "outputs": 1},
            output="reconstruction",
            window=16,
            stride=8,
            **(tile | {"tile": 64, "halo": 4}),
        ),
        square,
    )
    save_pack(folder / "same", Card("same", "enhance", "identity", **tile), FAMILIES["identity"]())
    return folder
