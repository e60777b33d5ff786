"""A process that reads whatever it is given, for the fuzz tests: it may die of it, and others then know of what.

    {"reader": "image", "path": "/tmp/a.tif"}   a line in, and a line out:
    {"read": "…"}                               a name of all that was read, the same for the same content
    {"refused": "image"}                        a LunarError, with its code
    {"broken": "Traceback …"}                   anything else: a bug

Memory is bounded, and so is the processor time of each: the system ends a process that goes beyond.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch  # noqa: F401 with all else that takes memory by itself, before that is bounded
import torch

import lunar_processing.networks  # noqa: F401
from lunar_processing.batch.crew import Crew
from lunar_processing.batch.products import find_products, label_facts
from lunar_processing.batch.run import Wishes, run_batch
from lunar_processing.batch.table import read_table
from lunar_processing.batch.work import Order
from lunar_processing.errors import LunarError
from lunar_processing.grid import Window
from lunar_processing.modelpack import WEIGHTS, list_packs, read_pack, sha256_of
from lunar_processing.raster.image import open_image
from lunar_processing.tools.install_models import install_models
from lunar_processing.tools.reproduce import asked_of
from lunar_processing.vector import layers_of, read_layer

MEMORY = 3 << 30  # bytes beyond what the libraries take
PATIENCE_S = 10.0  # of the processor, for each file
MOST_PX = 1 << 22  # a larger image is looked at in parts


def main() -> None:
    """Answer until the last line."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print do not answer
    have = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (have + MEMORY, have + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 20, 256 << 20))
    for line in sys.stdin:
        asked = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, PATIENCE_S)
        answer = _answer(READERS[asked["reader"]], Path(asked["path"]))
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(read: Callable[[Path], object], path: Path) -> dict[str, str]:
    try:
        return {"read": hashlib.sha256(repr(read(path)).encode(errors="backslashreplace")).hexdigest()}
    except LunarError as error:
        return {"refused": error.code} if error.cure and len(error.message) > 10 else {"broken": f"No cure: {error}"}
    except BaseException:
        return {"broken": traceback.format_exc()}


# ---- readers -----------------------------------------------------------------------------------------------------


def image(path: Path) -> object:
    """All that the tools learn of an image: label, place, pixels, what is valid. An image is what it says it is."""
    json.dumps(label_facts(path), allow_nan=False)
    with open_image(path) as opened:
        grid, product = opened.grid, opened.product
        for angle in (product.incidence_deg, product.emission_deg, product.phase_deg):
            assert angle is None or 0 <= angle <= 180
        assert product.sun_azimuth_deg is None or 0 <= product.sun_azimuth_deg <= 360
        assert product.pixel_size_m is None or 0 < product.pixel_size_m < 1e30
        assert np.isfinite([opened.scale, opened.offset]).all()
        if grid.width * grid.height > MOST_PX:
            high, wide = min(grid.height, 600), min(grid.width, 600)
            windows = [Window(0, 0, wide, high), Window(grid.width - wide, grid.height - high, wide, high)]
        else:
            windows = [grid.window]
        pixels = []
        for window in windows:
            patch = opened.read(window)
            assert patch.pixels.shape == patch.valid.shape == (window.height, window.width)
            assert np.isfinite(patch.pixels[patch.valid]).all()
            assert not patch.pixels[~patch.valid].any()
            pixels.append((patch.pixels.tobytes(), patch.valid.tobytes()))
        quantiles = opened.survey.quantiles
        assert np.isfinite(quantiles).all()
        assert (np.diff(quantiles) >= 0).all()
        return grid, product, opened.nodata, opened.scale, opened.offset, pixels


def model(path: Path) -> object:
    """A card and its weights; the weights are those of the card, and compute."""
    pack = read_pack(path.parent)
    json.dumps(pack.card.settings)
    network = pack.network()
    pack.doubts_about(1.0)
    assert sha256_of(path.parent / WEIGHTS) == pack.card.sha256
    weights = network.state_dict()
    assert all(bool(value.isfinite().all()) for value in weights.values())
    with torch.no_grad():
        answer = network(torch.zeros(1, 1, 32, 32))
    assert bool(answer.isfinite().all())
    return pack.card, sorted((name, value.numpy().tobytes()) for name, value in weights.items())


def archive(path: Path) -> object:
    """Models out of an archive: whole and checked, or none; nothing beside them."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        inside = Path(folder) / "inside"
        try:
            done = install_models(str(path), inside)
        except LunarError:
            assert not list(inside.iterdir())
            raise
        finally:
            assert [one.name for one in Path(folder).iterdir()] == ["inside"]
        packs = [pack for pack in list_packs([inside]) if pack.folder.parent == inside]
        assert sorted(done) == sorted(pack.card.id for pack in packs) == sorted(one.name for one in inside.iterdir())
        for pack in packs:
            pack.verify()
        return [pack.card for pack in packs]


def begin(path: Path) -> object:
    """A batch whose journal this is to be, of the images beside its folder."""
    return run_batch(_wishes(path.parent)).counts


def batch(path: Path) -> object:
    """A batch that is begun again: whatever its journal says, all products are there afterwards, and right."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(shutil.copytree(path.parent, Path(folder) / "out"))
        summary = run_batch(_wishes(path.parent, out, resume=True))
        assert dict(summary.counts) == {"ok": 2, "empty": 0, "skipped": 0, "failed": 0, "to do": 0}, summary.counts
        assert all((out / "products" / name / f"{name}.tif").is_file() for name in ("one", "two"))
        return sorted((made.name, made.read_bytes()) for made in (out / "products").rglob("*.tif"))


def _wishes(folder: Path, out: Path | None = None, resume: bool = False) -> Wishes:
    return Wishes((str(folder.parent / "images"),), out or folder, Order("enhance", "stretch"), Crew(workers=0), resume)


def listed(path: Path) -> object:
    """The images that a list or manifest names, and what it says of them."""
    products = find_products([str(path)])
    for product in products:
        json.dumps(dict(product.said), allow_nan=False)
    return [(product.name, str(product.path), sorted(product.said.items())) for product in products]


def table(path: Path) -> object:
    """The lines of a table about three products."""
    rows = read_table(path, {"M104318871L", "M104318872R", "M104318873L"})
    json.dumps(dict(rows.of), allow_nan=False)
    return rows


def vectors(path: Path) -> object:
    """Every layer of a file."""
    found = []
    for name in layers_of(path) or [""]:
        layer = read_layer(f"{path}|layername={name}" if name else str(path))
        assert {len(values) for values in layer.fields.values()} <= {len(layer.geometry)}
        found.append((layer.wkt, [shape.wkb for shape in layer.geometry], repr(layer.fields), layer.metadata))
    return found


def provenance(path: Path) -> object:
    """What stands beside a shapefile about how it was made."""
    asked = asked_of(str(path.with_name("a.shp")))
    json.dumps(dict(asked.parameters), allow_nan=False)
    return asked.record


READERS = {f.__name__: f for f in (image, model, archive, begin, batch, listed, table, vectors, provenance)}

if __name__ == "__main__":
    main()
