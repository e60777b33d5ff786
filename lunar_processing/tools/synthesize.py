"""Pictures out of nothing, as many as wanted: for training detectors, and for illustration. They show no place.

Picture number k of a run is that of seed + k, whatever else is made with it, so that one of them can be made again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lunar_processing import provenance
from lunar_processing.devices import choose_device
from lunar_processing.draft import Draft, check_destination, make_folder
from lunar_processing.errors import Cancelled, ModelError, ParameterError
from lunar_processing.grid import PIXEL_SPACE, Grid
from lunar_processing.modelpack import SYNTHESIS, Pack, find_pack
from lunar_processing.networks.scbgan import Generator, made_of
from lunar_processing.raster.writer import Band, RasterWriter
from lunar_processing.tools.job import NOTICE_TAG, Report, Result
from lunar_processing.tools.sheet import contact_sheet, write_png

DEFAULT = "small-bodies"
SHEET, RECORD = "contact_sheet.png", "synthesis.json"
FORMATS = {"png": ".png", "tiff": ".tif"}
NOTICE = "MADE UP by a network: shows no place; nothing may be measured on it"
GREY = Band("grey", "made-up picture, 0–255", "")
# Made together; always so many, since a processor's last bits depend on how many they are.
AT_ONCE = 16


@dataclass(frozen=True)
class Wishes:
    """How many pictures of which model, where to. `truncation` below 1: less variety, fewer failures."""

    folder: Path
    model: str = DEFAULT
    count: int = 64
    seed: int = 0
    truncation: float = 1.0
    file_format: str = "png"
    device: str = "auto"
    overwrite: bool = False
    model_folders: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "--count": (self.count, 1 <= self.count <= 10_000, "give 1 to 10000; other seeds make others"),
            "--seed": (self.seed, self.seed >= 0, "give a whole number, 0 or more"),
            "--truncation": (self.truncation, 0 <= self.truncation <= 2, "give 0 to 2; 1 leaves pictures as they are"),
            "--format": (self.file_format, self.file_format in FORMATS, f"give {' or '.join(FORMATS)}"),
        }
        for name, (value, possible, cure) in checks.items():
            if not possible:
                raise ParameterError(f"{name} {value} is not possible.", f"{cure}.")


def synthesize(wishes: Wishes, report: Report | None = None) -> Result:
    """Make and write pictures, a sheet of the first ones, and how they came about."""
    report, started = report or Report(), time.perf_counter()
    pack = find_pack(wishes.model, wishes.model_folders)
    pack.check_task(SYNTHESIS)
    device = choose_device(wishes.device)
    _check(wishes)
    shown: list[np.ndarray] = []
    pixels = 0
    for number, picture in enumerate(draw(pack, wishes.count, wishes.seed, wishes.truncation, device)):
        if report.cancelled():
            raise Cancelled("The run was cancelled; the pictures written so far are complete.")
        _write(_path(wishes, number), picture, wishes.overwrite)
        pixels += picture.size
        shown += [picture] if len(shown) < 64 else []
        report.progress("work", number + 1, wishes.count)
    write_png(wishes.folder / SHEET, contact_sheet(shown), wishes.overwrite)
    counts = {"pictures": wishes.count, "side_px": int(shown[0].shape[0])}
    seconds = time.perf_counter() - started
    _write_record(wishes, pack, device, counts, seconds)
    report.log("warning", f"{NOTICE}.")
    outputs = {"pictures": str(wishes.folder), "contact_sheet": str(wishes.folder / SHEET)}
    outputs["provenance"] = str(wishes.folder / RECORD)
    stages = {"work_s": round(seconds, 3), "rate_mpx_s": pixels / seconds / 1e6}
    return Result(outputs, counts, f"{pack.card.id} {pack.card.version}", device, round(seconds, 3), stages, (NOTICE,))


def draw(pack: Pack, count: int, seed: int = 0, truncation: float = 1.0, device: str = "cpu") -> Iterator[np.ndarray]:
    """Pictures (S, S) uint8 of the seeds from `seed` on."""
    import torch

    network = pack.network(device)
    if not isinstance(network, Generator):
        raise ModelError(f"Model {pack.card.id} makes no pictures out of nothing.", "choose another.")
    for first in range(0, count, AT_ONCE):
        with torch.inference_mode():
            made = made_of(network, range(seed + first, seed + first + AT_ONCE), truncation)
        grey = ((made + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()[:, 0]
        yield from grey[: count - first]


def _path(wishes: Wishes, number: int) -> Path:
    return wishes.folder / f"{Path(wishes.model).name}_{wishes.seed + number:05d}{FORMATS[wishes.file_format]}"


def _check(wishes: Wishes) -> None:
    """Refuse before the work what could not be written."""
    make_folder(wishes.folder)
    for name in (SHEET, RECORD):
        check_destination(wishes.folder / name, wishes.overwrite)
    for number in range(wishes.count):
        if (path := _path(wishes, number)).exists():
            check_destination(path, wishes.overwrite)


def _write(path: Path, picture: np.ndarray, overwrite: bool) -> None:
    if path.suffix == ".png":
        write_png(path, picture, overwrite)
        return
    height, width = picture.shape
    grid = Grid(None, PIXEL_SPACE, width, height)
    with RasterWriter(path, grid, [GREY], dtype="uint8", nodata=None, overwrite=overwrite) as writer:
        writer.append(picture[None])
        writer.finish({NOTICE_TAG: NOTICE})
        writer.publish()


def _write_record(wishes: Wishes, pack: Pack, device: str, counts: Mapping[str, Any], seconds: float) -> None:
    said = {k: v for k, v in asdict(wishes).items() if k not in ("folder", "overwrite", "device", "model_folders")}
    model = {"id": pack.card.id, "version": pack.card.version, "sha256": pack.card.sha256}
    text = provenance.record("synthesize", [], model, said, device, counts, seconds, [NOTICE])
    with Draft(wishes.folder / RECORD, wishes.overwrite) as draft:
        draft.path.write_text(json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        draft.publish()
