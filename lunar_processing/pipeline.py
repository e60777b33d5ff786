"""The straight line: read ahead → batch → compute → write behind.

A reader thread decodes each stored row once and hands over strips: one row of tiles with its halo. Lanes, one or two
threads, compute batches of tiles, crop the halo and lay the cores into an output strip. A writer thread passes finished
strips to the sinks, top to bottom. A few strips are in flight, never the image.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from lunar_processing.devices import keep_memory, memory_apart, side_by_side, tidy_memory
from lunar_processing.errors import Cancelled, DeviceError
from lunar_processing.grid import Tile, Window
from lunar_processing.raster.image import Image, Patch

Origin = tuple[int, int]
# (N, H, W) pixels and validity, and where each tile's outer window starts → (N, bands, H/stride, W/stride)
Apply = Callable[[np.ndarray, np.ndarray, Sequence[Origin]], np.ndarray]
# The window of the output grid, (bands, rows, width) values, and (rows, width) validity of the input
Sink = Callable[[Window, np.ndarray, np.ndarray], None]
Progress = Callable[[int, int], None]

AHEAD = 1  # strips waiting on either side: one in work, one ready
TIDY = 8  # strips: two lanes at once leave holes in memory that would add up
# Pixels a network gets at once. On the CPU more would only leave its caches.
BATCH_PIXELS = {"cpu": 1 << 20, "openvino": 4 << 20, "mps": 16 << 20, "cuda": 64 << 20}


@dataclass(frozen=True)
class Step:
    """What turns pixels into values, and the context it needs to do so."""

    name: str
    apply: Apply
    bands: int = 1
    tile: int = 1024  # side of what goes in, halo included, px
    halo: int = 0
    stride: int = 1  # one output value for so many pixels in each direction
    align: int = 1  # cores start at multiples of this
    dtype: str = "float32"
    fill: float = math.nan  # what invalid pixels get
    device: str = "cpu"
    batch_px: int = 4 << 20  # so many pixels are given to `apply` at once, or one tile
    lanes: int = 1  # so many threads call `apply` at once, each with its share of torch's


@dataclass
class Timing:
    """Seconds spent in each stage; the stages overlap, so their sum may exceed the whole."""

    read_s: float = 0.0
    wait_s: float = 0.0
    compute_s: float = 0.0
    write_s: float = 0.0
    total_s: float = 0.0
    valid_px: int = 0
    masked_px: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def rate_mpx_s(self) -> float:
        """Millions of valid pixels per second, from the first read to the last write."""
        return self.valid_px / max(self.total_s, 1e-9) / 1e6

    def facts(self) -> dict[str, float]:
        """For results and logs."""
        stages = {key: round(getattr(self, key), 3) for key in ("read_s", "wait_s", "compute_s", "write_s", "total_s")}
        return {**stages, "rate_mpx_s": round(self.rate_mpx_s, 3)}


@dataclass(frozen=True)
class _Strip:
    """One row of tiles with its halo, ready to be cut; columns count from `left`."""

    row: list[Tile]
    wanted: list[Tile]
    patch: Patch
    left: int


@dataclass(frozen=True)
class _Begun:
    """A strip of output in the making: where it lies, its values, what is valid, and the batches that fill it."""

    cores: Window
    window: Window
    output: np.ndarray
    valid: np.ndarray
    batches: list[Future[Tile]]


def run(
    image: Image,
    step: Step,
    sinks: Sequence[Sink],
    progress: Progress = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Timing:
    """Take the whole image through `step` into the sinks; returns where the time went."""
    keep_memory()
    timing = Timing()
    started = time.perf_counter()
    rows = list(image.grid.tile_rows(step.tile, step.halo, math.lcm(step.align, step.stride)))
    total = image.grid.width * image.grid.height
    progress(0, total)
    with (
        _writer(sinks, timing) as write,
        _reader(image, rows, timing) as strips,
        side_by_side(step.lanes) as lanes,
    ):
        begun = (_begin(strip, image.grid.width, step, lanes, timing, cancelled) for strip in strips)
        for number, strip in enumerate(_one_ahead(begun)):
            if number % TIDY == TIDY - 1:
                tidy_memory()
            write(_finish(strip, step, timing, partial(_advance, progress, strip.cores, total)))
            progress(strip.cores.bottom * image.grid.width, total)
    tidy_memory()
    timing.total_s = time.perf_counter() - started
    return timing


def each(function: Callable[[np.ndarray, np.ndarray, Origin], np.ndarray]) -> Apply:
    """Make a function of one tile work on a batch, on all cores (numpy and scipy let go of the interpreter), or on as
    many as `OMP_NUM_THREADS` allows: the workers of a batch have one each.
    """
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    pool = ThreadPoolExecutor(int(allowed) if allowed.isdecimal() and int(allowed) else os.cpu_count() or 1)

    def apply(pixels: np.ndarray, valid: np.ndarray, origins: Sequence[Origin]) -> np.ndarray:
        return np.stack(list(pool.map(function, pixels, valid, origins)))

    return apply


# ---- reading ahead -------------------------------------------------------------------------------------------


@contextmanager
def _reader(image: Image, rows: list[list[Tile]], timing: Timing) -> Iterator[Iterator[_Strip]]:
    """Strips in order, decoded one ahead in a thread of their own."""
    ready: queue.Queue[_Strip | BaseException | None] = queue.Queue(AHEAD)
    stop = threading.Event()

    def read() -> None:
        try:
            for strip in _strips(image, rows, timing):
                if not _put(ready, strip, stop):
                    return
            _put(ready, None, stop)
        except BaseException as error:
            _put(ready, error, stop)

    def strips() -> Iterator[_Strip]:
        while True:
            waited = time.perf_counter()
            strip = ready.get()
            timing.wait_s += time.perf_counter() - waited
            if isinstance(strip, BaseException):
                raise strip
            if strip is None:
                return
            yield strip

    thread = threading.Thread(target=read, name="reader", daemon=True)
    thread.start()
    try:
        yield strips()
    finally:
        stop.set()
        thread.join()


def _put(line: queue.Queue, item: object, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            line.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False


def _strips(image: Image, rows: list[list[Tile]], timing: Timing) -> Iterator[_Strip]:
    rolling = _RollingRows(image)
    for row in rows:
        started = time.perf_counter()
        wanted = [tile for tile in row if not image.certainly_empty(tile.outer)]
        patch, left = _read_strip(rolling, image, wanted, row)
        timing.read_s += time.perf_counter() - started
        yield _Strip(row, wanted, patch, left)


def _read_strip(rolling: _RollingRows, image: Image, wanted: list[Tile], row: list[Tile]) -> tuple[Patch, int]:
    """One row of tiles, only as wide as something may be valid; empty rows are not read at all."""
    top, height = row[0].outer.row, row[0].outer.height
    if not wanted:
        return Patch(np.zeros((height, 0), image.dtype), np.zeros((height, 0), bool)), 0
    left, right = wanted[0].outer.col, wanted[-1].outer.right
    return rolling.read(Window(left, top, right - left, height)), left


class _RollingRows:
    """Reads overlapping strips so that each stored block is decoded once: the overlap is kept from the last one."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._window = Window(0, 0, 0, 0)
        self._patch: Patch | None = None

    def read(self, window: Window) -> Patch:
        """The pixels of a strip. Rows are read in whole stored blocks and remembered until they are passed."""
        known = self._patch is not None and (self._window.col, self._window.width) == (window.col, window.width)
        block = self._image.block_height
        bottom = -(-min(window.bottom, self._image.grid.height) // block) * block
        top = max(self._window.bottom, window.row) if known else window.row
        fresh = Window(window.col, top, window.width, max(bottom, window.bottom) - top)
        if known and self._patch is not None:
            keep = slice(min(window.row - self._window.row, self._window.height), None)
            parts = [Patch(self._patch.pixels[keep], self._patch.valid[keep])]
        else:
            parts = []
        if fresh.height > 0:
            parts.append(self._image.read(fresh))
        self._patch = _stack(parts)
        self._window = window._replace(height=self._patch.valid.shape[0])
        return Patch(self._patch.pixels[: window.height], self._patch.valid[: window.height])


def _stack(parts: list[Patch]) -> Patch:
    return Patch(_joined([p.pixels for p in parts]), _joined([p.valid for p in parts]))


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    whole = memory_apart((sum(len(part) for part in parts), parts[0].shape[1]), parts[0].dtype)
    return np.concatenate(parts, out=whole)


# ---- computing -----------------------------------------------------------------------------------------------


def _one_ahead(begun: Iterator[_Begun]) -> Iterator[_Begun]:
    """The next strip is begun before one is waited for: no lane is idle while another computes the last of a row."""
    waiting: deque[_Begun] = deque()
    for strip in begun:
        waiting.append(strip)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def _begin(
    strip: _Strip, width: int, step: Step, lanes: Executor, timing: Timing, cancelled: Callable[[], bool]
) -> _Begun:
    """Give the batches of a strip to the lanes."""
    cores = Window(0, strip.row[0].core.row, width, strip.row[0].core.height)
    window = _shrink(cores, step.stride)
    output = memory_apart((step.bands, window.height, window.width), step.dtype)
    output[:] = step.fill
    tiles = [tile for tile in strip.wanted if _cut(strip, tile).valid.any()]

    def fill(batch: list[Tile]) -> Tile:
        if cancelled():
            raise Cancelled("The run was cancelled.")
        cut = [_cut(strip, tile) for tile in batch]
        values = _apply(step, np.stack([p.pixels for p in cut]), np.stack([p.valid for p in cut]), batch, timing)
        for tile, value in zip(batch, values):
            _lay(output, value, tile, window, step)
        return batch[-1]

    batches = [lanes.submit(fill, batch) for batch in _batches(tiles, step)]
    return _Begun(cores, window, output, _valid_cores(strip, cores), batches)


def _finish(
    begun: _Begun, step: Step, timing: Timing, done: Callable[[int], None]
) -> tuple[Window, np.ndarray, np.ndarray]:
    """A strip of output values with its window in the output grid and the validity of its pixels."""
    started = time.perf_counter()
    for batch in begun.batches:
        done(batch.result().core.right)
    if step.stride == 1:
        begun.output[:, ~begun.valid] = step.fill
    timing.valid_px += int(begun.valid.sum())
    timing.masked_px += int(begun.valid.size - begun.valid.sum())
    timing.compute_s += time.perf_counter() - started
    return begun.window, begun.output, begun.valid


def _advance(progress: Progress, cores: Window, total: int, right: int) -> None:
    """Tell how far a row of tiles is, which is done up to the column `right`."""
    progress(cores.row * cores.width + right * cores.height, total)


def _batches(tiles: list[Tile], step: Step) -> Iterator[list[Tile]]:
    if not tiles:
        return
    outer = tiles[0].outer
    size = max(1, step.batch_px // (outer.width * outer.height))
    for start in range(0, len(tiles), size):
        yield tiles[start : start + size]


def _apply(step: Step, pixels: np.ndarray, valid: np.ndarray, tiles: list[Tile], timing: Timing) -> np.ndarray:
    """Compute a batch; where the device has too little memory, half of it at a time."""
    try:
        return step.apply(pixels, valid, [(tile.outer.col, tile.outer.row) for tile in tiles])
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        if len(tiles) == 1:
            raise DeviceError(
                f"The device {step.device} has too little memory for one tile of {step.tile} px.",
                "use --device cpu, or close other programs that use it.",
            ) from error
    half = len(tiles) // 2
    timing.notes.append(f"{step.device} ran out of memory at {len(tiles)} tiles; went on with {half} at a time")
    parts = [slice(0, half), slice(half, None)]
    return np.concatenate([_apply(step, pixels[p], valid[p], tiles[p], timing) for p in parts])


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def _cut(strip: _Strip, tile: Tile) -> Patch:
    area = np.s_[:, tile.outer.col - strip.left : tile.outer.right - strip.left]
    return Patch(strip.patch.pixels[area], strip.patch.valid[area])


def _valid_cores(strip: _Strip, cores: Window) -> np.ndarray:
    valid = memory_apart((cores.height, cores.width), bool)
    for tile in strip.wanted:
        core, outer = tile.core, tile.outer
        rows = slice(core.row - outer.row, core.row - outer.row + core.height)
        cols = slice(core.col - strip.left, core.col - strip.left + core.width)
        valid[:, core.col : core.right] = strip.patch.valid[rows, cols]
    return valid


def _shrink(window: Window, stride: int) -> Window:
    return Window(window.col // stride, window.row // stride, -(-window.width // stride), -(-window.height // stride))


def _lay(output: np.ndarray, value: np.ndarray, tile: Tile, window: Window, step: Step) -> None:
    """Crop what the step left of the halo, all or nothing, and put the core where it belongs."""
    core = _shrink(tile.core, step.stride)
    top = (value.shape[1] - (tile.outer.height - 2 * step.halo) // step.stride) // 2
    left = (value.shape[2] - (tile.outer.width - 2 * step.halo) // step.stride) // 2
    rows = slice(core.row - window.row, core.row - window.row + core.height)
    output[:, rows, core.col : core.right] = value[:, top : top + core.height, left : left + core.width]


# ---- writing behind ------------------------------------------------------------------------------------------


@contextmanager
def _writer(sinks: Sequence[Sink], timing: Timing) -> Iterator[Callable[[tuple[Window, np.ndarray, np.ndarray]], None]]:
    """A function that hands a strip to the sinks without waiting for them; their failure surfaces at the next."""
    line: queue.Queue[tuple[Window, np.ndarray, np.ndarray] | None] = queue.Queue(AHEAD)
    failed: list[BaseException] = []

    def work() -> None:
        while (strip := line.get()) is not None:
            started = time.perf_counter()
            try:
                if not failed:
                    for sink in sinks:
                        sink(*strip)
            except BaseException as error:
                failed.append(error)
            timing.write_s += time.perf_counter() - started

    def write(strip: tuple[Window, np.ndarray, np.ndarray]) -> None:
        if failed:
            raise failed[0]
        line.put(strip)

    thread = threading.Thread(target=work, name="writer", daemon=True)
    thread.start()
    try:
        yield write
    finally:
        line.put(None)
        thread.join()
    if failed:
        raise failed[0]
