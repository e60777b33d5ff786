"""One product: the same order for all, done anywhere, told as an entry of the journal.

    entry = do({"name": "M104318871L", "path": "…/M104318871L.cub", "folder": "…/out/products", "order": …, …})

A task and an entry are plain values, for they travel between processes. Outputs go to `folder/NAME/`; the same input
and order give the same bytes, whoever does it and however often it was begun.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import lunar_processing
from lunar_processing import planet, provenance
from lunar_processing.batch.products import TOLD
from lunar_processing.errors import Cancelled, LunarError, ModelError, NothingValid, OutputError, ParameterError
from lunar_processing.modelpack import find_pack
from lunar_processing.raster.image import open_image
from lunar_processing.tools.job import Options, Result

WISHES = {"rocks": ("min_diameter", "incidence"), "anomalies": ("top", "percentile", "min_distance"), "enhance": ()}
EXTRAS = {"rocks": ("mask", "outlines"), "anomalies": ("scores", "heat", "chips"), "enhance": ()}


@dataclass(frozen=True)
class Order:
    """What is to be done to each product; plain values only. `model` None: the tool's own choice."""

    tool: str
    model: str | None = None
    model_folders: tuple[str, ...] = ()
    device: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)  # band, pixel_size, body, sun_azimuth, file_format
    wishes: Mapping[str, Any] = field(default_factory=dict)
    extras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for names, known in ((self.wishes, WISHES), (self.extras, EXTRAS)):
            for name in names:
                if name not in known[self.tool]:
                    raise ParameterError(
                        f"`lunar batch {self.tool}` does not know --{name.replace('_', '-')}.",
                        f"leave it out; see `lunar {self.tool} --help`.",
                    )

    def identity(self) -> dict[str, Any]:
        """All that a result depends on, but for the input: also which model that is, and who computes."""
        said = {key: value for key, value in asdict(self).items() if key != "model_folders"}
        engine = f"lunar_processing {lunar_processing.__version__}"
        return json.loads(json.dumps({**said, "model_sha256": self.model_sha256(), "engine": engine}))

    def model_sha256(self) -> str:
        """Of the weights; of a classical method nothing, for it is part of the engine."""
        module = module_of(self.tool)
        name = self.model or module.DEFAULT
        if name in module.classical.METHODS:
            return ""
        try:
            return find_pack(name, [Path(p) for p in self.model_folders]).card.sha256
        except ModelError:
            if self.model:
                raise
            return ""  # the tool then falls back to a method that is always there


def do(task: Mapping[str, Any]) -> dict[str, Any]:
    """Do a product and tell what came of it, also what is wrong with it. What nobody foresaw is tried twice."""
    started = time.perf_counter()
    entry: dict[str, Any] = {"product": task["name"], "path": task["path"], "worker": _worker()}
    try:
        entry |= _tried(task)
    except Cancelled:
        raise
    except NothingValid as error:
        entry |= {"status": "empty", **_why(error)}
    except LunarError as error:
        entry |= {"status": "failed", **_why(error)}
    except MemoryError:
        cure = "use fewer workers, and --resume."
        entry |= {"status": "failed", "code": "memory", "message": "There was not enough memory.", "cure": cure}
    except Exception as error:  # told in words, for not every exception can travel between processes
        what = f"The engine failed unexpectedly, twice: {type(error).__name__}: {error}."
        entry |= {"status": "failed", "code": "error", "message": what[:1000], "cure": "report it."}
    return {**entry, "seconds": round(time.perf_counter() - started, 3), "when": now()}


def _tried(task: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return _done(task)
    except LunarError:
        raise
    except Exception:
        return _done(task)


def failed(task: Mapping[str, Any], code: str, message: str, cure: str) -> dict[str, Any]:
    """The entry of a product that nobody could tell of."""
    why = {"code": code, "message": message, "cure": cure}
    return {"product": task["name"], "path": task["path"], "status": "failed", **why, "when": now()}


def now() -> str:
    """The time as the journal writes it."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def told_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """What is passed on to the tool of what a manifest or a table says."""
    return {name: said[name] for name in TOLD if said.get(name) is not None}


def unchanged(entry: Mapping[str, Any], path: Path, folder: Path) -> bool:
    """Whether a finished product needs no look: inputs of the same size and time, and outputs that are there."""
    try:
        same = all(_stamp(Path(file["path"])) == (file["bytes"], file["mtime_ns"]) for file in entry["inputs"])
        return same and entry["inputs"][0]["path"] == str(path) and _whole(entry, folder)
    except (KeyError, IndexError, OSError, TypeError, ValueError):
        return False


# ---- one product -------------------------------------------------------------------------------------------------


def _done(task: Mapping[str, Any]) -> dict[str, Any]:
    order, folder = Order(**task["order"]), Path(task["folder"]) / task["name"]
    if order.identity() != task["identity"]:
        raise ModelError(
            "This worker has another model, or another version of the engine, than the batch was begun with.",
            "install the same on all machines, and --resume.",
        )
    told = told_of(task["said"])
    options = _options(order, task, told)
    place, inputs = _look(options)
    key = key_of(inputs, task["identity"], told)
    known = task.get("known")
    if known and known.get("key") == key and _whole(known, folder.parent):
        return {**{k: v for k, v in known.items() if k in KEPT}, "inputs": inputs, "status": "ok"}
    with _dated(task["epoch"]), _plainly(folder):
        _clear(folder, task["name"])
        result = RUN[order.tool](options, order, told, folder / task["name"])
    outputs = {name: Path(path).relative_to(folder.parent).as_posix() for name, path in result.outputs.items()}
    facts = {"key": key, "inputs": inputs, "told": told, "outputs": outputs, "counts": dict(result.counts), **place}
    return {
        "status": "ok",
        **facts,
        "model": result.model,
        "device": result.device,
        "stages": dict(result.stages),
        "warnings": list(result.warnings),
    }


KEPT = (
    *("key", "told", "outputs", "counts", "model", "device", "stages", "warnings"),
    *("product_id", "width", "height", "outline", "pixel_size", "body"),
)


def key_of(inputs: list[dict[str, Any]], identity: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    """What a result depends on, as one name."""
    hashes = [file.get("sha256") or file["quick-sha256"] for file in inputs]
    text = json.dumps([hashes, identity, told], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _look(options: Options) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Where the image lies, and its files with their hashes."""
    with open_image(options.image, options.band) as image:
        grid, files = image.grid, image.files
        body = planet.resolve_body(grid.wkt, options.body)
        # The outline in steps, for a straight edge of an image is not straight in longitude and latitude.
        t = np.linspace(0, 1, 9)[:-1]
        cols = np.concatenate([t, np.ones(8), 1 - t, np.zeros(8)]) * grid.width
        rows = np.concatenate([np.zeros(8), t, np.ones(8), 1 - t]) * grid.height
        lon, lat = planet.lonlat(grid, cols, rows, body)
        outline = np.stack([lon, lat], 1).round(9).tolist() if np.isfinite(lon).all() else None
        place = {"product_id": image.product.id, "width": grid.width, "height": grid.height, "outline": outline}
        place["body"] = body.name if body else None
        size = planet.metres_per_pixel(grid, grid.width / 2, grid.height / 2, body)
        place["pixel_size"] = image.product.pixel_size_m if size is None else float((size[0][0] * size[1][0]) ** 0.5)
    inputs = []
    for file in files:
        stamp = _stamp(file)[1]  # before it is read: what is written meanwhile shows as a change
        inputs.append({**provenance.file_facts(file), "mtime_ns": stamp})
    return place, inputs


def _options(order: Order, task: Mapping[str, Any], told: Mapping[str, Any]) -> Options:
    own = {name: told[name] for name in ("pixel_size", "sun_azimuth", "body") if name in told}
    if "band" in told:
        own["band"] = int(told["band"])
    given = {name: value for name, value in order.options.items() if value is not None}
    return Options(
        image=Path(task["path"]),
        model=order.model,
        model_folders=tuple(map(Path, order.model_folders)),
        device=order.device,
        overwrite=True,
        **{**own, **given},
    )


def module_of(tool: str) -> Any:
    """The tool itself. A worker loads the one it needs: with all of them it takes four times as long to begin."""
    return import_module(f"lunar_processing.tools.{tool}")


def _rocks(options: Options, order: Order, told: Mapping[str, Any], stem: Path) -> Result:
    from lunar_processing.tools import rocks

    points = f"{stem}.gpkg"
    wishes = rocks.Wishes(
        points=points,
        area=rocks.beside(points, rocks.AREA),
        outlines=rocks.beside(points, rocks.OUTLINES) if "outlines" in order.extras else None,
        mask=f"{stem}_mask.tif" if "mask" in order.extras else None,
        **{**({"incidence": told["incidence"]} if "incidence" in told else {}), **order.wishes},
    )
    return rocks.segment_rocks(options, wishes)


def _anomalies(options: Options, order: Order, told: Mapping[str, Any], stem: Path) -> Result:
    from lunar_processing.tools import anomalies

    wishes = anomalies.Wishes(
        points=f"{stem}.gpkg",
        scores=f"{stem}_scores.tif" if "scores" in order.extras else None,
        heat=f"{stem}_heat.tif" if "heat" in order.extras else None,
        chips=str(stem.parent / "chips") if "chips" in order.extras else None,
        **order.wishes,
    )
    return anomalies.score_anomalies(options, wishes)


def _enhance(options: Options, order: Order, told: Mapping[str, Any], stem: Path) -> Result:
    from lunar_processing.tools import enhance

    return enhance.enhance(options, stem.with_name(f"{stem.name}.tif"))


RUN: dict[str, Callable[[Options, Order, Mapping[str, Any], Path], Result]] = {
    "rocks": _rocks,
    "anomalies": _anomalies,
    "enhance": _enhance,
}


# ---- files -------------------------------------------------------------------------------------------------------


def _stamp(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _whole(entry: Mapping[str, Any], folder: Path) -> bool:
    """Whether the outputs are there. Their content may have changed: a review in QGIS is not to be done again."""
    return bool(entry.get("outputs")) and all((folder / path).exists() for path in entry["outputs"].values())


def _clear(folder: Path, name: str) -> None:
    """An unfinished or outdated product's folder, empty of what a product's folder holds."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name == "chips":
            shutil.rmtree(path)
        elif path.name.lstrip(".").startswith(name):
            path.unlink()


@contextlib.contextmanager
def _plainly(folder: Path) -> Iterator[None]:
    """A disk's complaint as ours."""
    try:
        yield
    except LunarError:
        raise
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror or error}).", "free space on the disk, and --resume."
        ) from error


@contextlib.contextmanager
def _dated(epoch: str) -> Iterator[None]:
    """With the date of the batch in the files, so that a product done again is the same, byte for byte."""
    before = os.environ.get("SOURCE_DATE_EPOCH")
    os.environ["SOURCE_DATE_EPOCH"] = epoch
    try:
        yield
    finally:
        if before is None:
            del os.environ["SOURCE_DATE_EPOCH"]
        else:
            os.environ["SOURCE_DATE_EPOCH"] = before


def _why(error: LunarError) -> dict[str, str]:
    return {"code": error.code, "message": error.message, "cure": error.cure}


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
