"""What every tool does before and after its own work: open, place, choose, warn, and say what was done."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lunar_processing import planet, provenance
from lunar_processing.backends import choose_backend
from lunar_processing.errors import ImageError, ModelError, OutputError, ParameterError
from lunar_processing.modelpack import Pack, find_pack
from lunar_processing.pipeline import Timing
from lunar_processing.raster.image import Image, files_of, open_image

NOTICE_TAG = "LUNAR_NOTICE"  # the tag in which a picture says that it shows no measurement
# The user's own pixel size and the coordinate system's may differ by this much before it is worth a word.
SCALE_TOLERANCE = 0.05


@dataclass(frozen=True)
class Options:
    """What a user can say to any tool; None means: find out."""

    image: Path
    model: str | None = None
    model_folders: tuple[Path, ...] = ()
    band: int | None = None
    device: str = "auto"
    overwrite: bool = False
    pixel_size: float | None = None
    body: str | None = None
    sun_azimuth: float | None = None
    file_format: str = "gtiff"

    def __post_init__(self) -> None:
        if self.pixel_size is not None and not (0 < self.pixel_size < 1e6):
            raise ParameterError(
                f"A pixel size of {self.pixel_size} m is not possible.", "give metres, for example 0.5."
            )
        if self.sun_azimuth is not None and not (-360 <= self.sun_azimuth <= 360):
            raise ParameterError(f"A sun azimuth of {self.sun_azimuth}° is not possible.", "give 0 to 360 degrees.")

    def asked(self) -> dict[str, Any]:
        """What the user said of the image and the results, as far as anything was said."""
        names = ("band", "pixel_size", "body", "sun_azimuth", "file_format")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass
class Report:
    """How a run talks: progress by stage, messages, and whether the user wants it to stop."""

    progress: Callable[[str, int, int], None] = lambda stage, done, total: None
    log: Callable[[str, str], None] = lambda level, message: None
    cancelled: Callable[[], bool] = lambda: False


@dataclass
class Job:
    """One run of one tool on one image."""

    tool: str
    options: Options
    image: Image
    body: planet.Body | None
    pixel_size: float | None
    report: Report
    device: str = "cpu"
    warnings: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def product_id(self) -> str:
        """Whose pixels these are."""
        return self.image.product.id

    def warn(self, message: str) -> None:
        """Tell the user now, and everyone who opens the file later."""
        if message not in self.warnings:
            self.warnings.append(message)
            self.report.log("warning", message)

    def announce(self, model: str) -> None:
        """Tell what is about to be done, and where."""
        self.info(f"{self.tool}: {model} on {self.device}, {self.image.path.name}, band {self.image.band}.")

    def info(self, message: str) -> None:
        """Tell the user."""
        self.report.log("info", message)

    def stage(self, name: str) -> Callable[[int, int], None]:
        """Progress of one stage, as the pipeline reports it."""
        return lambda done, total: self.report.progress(name, done, total)

    def pack(self, name: str, task: str) -> Pack:
        """A model that suits the tool and, as far as can be told, the image."""
        pack = find_pack(name, self.options.model_folders)
        pack.check_task(task)
        for doubt in pack.doubts_about(self.pixel_size):
            self.warn(doubt)
        self.device = choose_backend(self.options.device)
        return pack

    def choose(self, default: str, fallback: str, whole_window: bool = False) -> str:
        """The model or method to use: the one that is asked for, else the best there is for this image.

        `fallback` needs no model; a word is said when it is taken. With `whole_window` the image must hold a window of
        the model.
        """
        if self.options.model:
            return self.options.model
        try:
            pack = find_pack(default, self.options.model_folders)
            pack.verify()
            pack.doubts_about(self.pixel_size)
            if whole_window and min(self.image.grid.width, self.image.grid.height) < pack.card.window:
                raise ModelError(f"it needs an image of {pack.card.window} px.", "nothing is to be done.")
        except ModelError as error:
            self.info(f"{fallback} is used, since {default} cannot be: {error}")
            return fallback
        return default

    def places(self, col: np.ndarray, row: np.ndarray) -> dict[str, np.ndarray]:
        """The attributes that say where something is: line, sample, lon, lat, product id."""
        lon, lat = planet.lonlat(self.image.grid, col, row, self.body)
        ids = np.full(len(col), self.product_id, dtype=object)
        return {"line": row, "sample": col, "lon": lon, "lat": lat, "product_id": ids}

    def jacobian(self, col: np.ndarray, row: np.ndarray) -> np.ndarray | None:
        """Metres east and north of a step in column and in row, (n, 2, 2); None without a scale."""
        return planet.jacobian(self.image.grid, col, row, self.body, self.pixel_size)

    def record(self, model: Mapping[str, Any], parameters: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
        """The provenance of what this job makes, as JSON."""
        body = self.body.name if self.body else None
        said: dict[str, Any] = {"band": self.image.band, "pixel_size": self.pixel_size, "body": body}
        said["asked"] = self.options.asked()  # apart from what was found out: enough to ask it again
        sources = [{**provenance.file_facts(path), "product_id": self.product_id} for path in self.image.files]
        return provenance.record(
            self.tool, sources, model, {**said, **parameters}, self.device, counts, self.seconds, self.warnings
        )

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return time.perf_counter() - self.started


@dataclass(frozen=True)
class Result:
    """What a tool made, for people and for programs."""

    outputs: Mapping[str, str]
    counts: Mapping[str, Any]
    model: str
    device: str
    seconds: float
    stages: Mapping[str, float]
    warnings: tuple[str, ...]


def result(job: Job, outputs: Mapping[str, Any], counts: Mapping[str, Any], model: str, timing: Timing) -> Result:
    """Sum up a finished job."""
    for note in timing.notes:
        job.warn(note)
    paths = {name: str(path) for name, path in outputs.items() if path is not None}
    rate = timing.valid_px / max(job.seconds, 1e-9) / 1e6  # with all that comes before and after the pipeline
    stages = {**timing.facts(), "rate_mpx_s": round(rate, 3)}
    return Result(paths, counts, model, job.device, round(job.seconds, 3), stages, tuple(job.warnings))


@contextmanager
def start(tool: str, options: Options, report: Report | None = None) -> Iterator[Job]:
    """Open the image and settle where it is and how large its pixels are."""
    with open_image(options.image, options.band) as image:
        body = planet.resolve_body(image.grid.wkt, options.body)
        job = Job(tool, options, image, body, None, report or Report())
        _refuse_painted(job)
        job.pixel_size = _pixel_size(job)
        for doubt in _doubts(job):
            job.warn(doubt)
        yield job


def _refuse_painted(job: Job) -> None:
    """What a network has painted may have rocks that are nowhere else."""
    notice = job.image.tags.get(NOTICE_TAG, "")
    if notice.startswith("ILLUSTRATION") and job.tool == "rocks":
        raise ImageError(
            f"{job.image.path.name} says of itself: {notice}. Nothing can be counted on it.",
            "count on the image that it was made from, or on what psr-physics makes of that.",
        )


def _made_by(image: Image) -> str:
    """The tool of ours that the image is a result of; empty where it is none."""
    try:
        return str(json.loads(image.tags.get(provenance.TAG, "{}")).get("tool", ""))
    except (ValueError, AttributeError):
        return ""


def refuse_input_as_output(options: Options, *outputs: str | Path | None) -> None:
    """`--overwrite` never means the image itself."""
    sources = files_of(options.image)
    for output in outputs:
        if output is not None and Path(output).resolve() in sources:
            raise OutputError(f"{output} is the input image, or part of it.", "give the result another name.")


def ground_size(job: Job) -> tuple[float, float] | None:
    """Width and height of the pixel in the middle of the image in metres, where the coordinate system tells."""
    grid = job.image.grid
    if not grid.georeferenced:
        return None
    size = planet.metres_per_pixel(grid, grid.width / 2, grid.height / 2, job.body, job.options.pixel_size)
    if size is None or not np.isfinite(size).all():
        return None
    return float(size[0][0]), float(size[1][0])


def _pixel_size(job: Job) -> float | None:
    """Metres per pixel: by the coordinate system, else as the user says, else by the label."""
    given = job.options.pixel_size
    size = ground_size(job)
    if size is None:
        return given or job.image.product.pixel_size_m
    measured = math.sqrt(size[0] * size[1])
    if given and abs(given / measured - 1) > SCALE_TOLERANCE:
        job.warn(
            f"--pixel-size {given:g} m is not used: by its coordinate system the image has {measured:.4g} m per pixel."
        )
    return measured


def _doubts(job: Job) -> Iterator[str]:
    image = job.image
    if not image.grid.georeferenced:
        yield "The image has no coordinate system: places are pixels (x = column, y = -row)."
    if job.pixel_size is None:
        yield "The pixel size is unknown: sizes are given in pixels only. Give it with --pixel-size."
    if image.survey.constant:
        yield "All sampled pixels have one value: there is nothing to see in this image."
    if NOTICE_TAG in image.tags:
        yield f"{image.path.name} says of itself: {image.tags[NOTICE_TAG]}."
    elif job.tool in ("rocks", "anomalies") and _made_by(image) == "enhance":
        yield (
            f"{image.path.name} is an enhanced image: what is found on it are candidates. Enhancement may take noise "
            "for small things and small things for noise; models were measured on images as they are."
        )
    in_crs = planet.body_of(image.grid.wkt)
    if in_crs and job.body and in_crs.name != job.body.name:
        yield f"The coordinate system is of {in_crs.name}; lengths are computed for {job.body.name}, as asked."
