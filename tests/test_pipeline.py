"""The straight line: what goes in comes out, in its place, whatever the tiles; and failures arrive."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from scipy import ndimage

from lunar_processing.devices import choose_device
from lunar_processing.errors import Cancelled, DeviceError
from lunar_processing.grid import Window
from lunar_processing.pipeline import Step, Timing, each, run
from lunar_processing.raster.image import open_image
from lunar_processing.raster.writer import Band, RasterWriter


def write(path: Path, pixels: np.ndarray, **profile: object) -> Path:
    options = {"driver": "GTiff", "count": 1, "dtype": pixels.dtype, "transform": Affine(2, 0, 100, 0, -2, 900)}
    with rasterio.open(path, "w", height=pixels.shape[0], width=pixels.shape[1], **{**options, **profile}) as file:
        file.write(pixels, 1)
    return path


def noise(shape: tuple[int, int], dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 250, shape).astype(dtype)


class Kept:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.values: list[np.ndarray] = []
        self.valid: list[np.ndarray] = []
        self.windows: list[Window] = []

    def take(self, window: Window, values: np.ndarray, valid: np.ndarray) -> None:
        self.windows.append(window)
        self.values.append(values)
        self.valid.append(valid)

    def image(self) -> np.ndarray:
        return np.concatenate(self.values, axis=1)


def through(path: Path, step: Step, **wishes: object) -> tuple[Kept, Timing]:
    kept = Kept()
    with open_image(path) as image:
        timing = run(image, step, [kept.take], **wishes)
    return kept, timing


def identity(tile: int = 64, halo: int = 0, dtype: str = "uint16", fill: float = 0) -> Step:
    return Step("identity", lambda pixels, _valid, _at: pixels[:, None], tile=tile, halo=halo, dtype=dtype, fill=fill)


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (200, 1), (63, 64), (64, 64), (65, 129), (300, 211)])
@pytest.mark.parametrize(("tile", "halo"), [(64, 0), (64, 16), (500, 30)])
@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 32, "blockysize": 48}])
def test_an_identity_network_returns_the_image_bit_for_bit(
    tmp_path: Path, shape: tuple[int, int], tile: int, halo: int, layout: dict
) -> None:
    pixels = noise(shape)
    kept, _ = through(write(tmp_path / "a.tif", pixels, **layout), identity(tile, halo))
    np.testing.assert_array_equal(kept.image()[0], pixels)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_every_data_type_passes_unharmed(tmp_path: Path, dtype: str) -> None:
    pixels = (np.random.default_rng(1).normal(size=(90, 70)) * 100 + 120).astype(dtype)
    kept, _ = through(write(tmp_path / "a.tif", pixels), identity(dtype=dtype))
    assert kept.image().dtype == dtype
    np.testing.assert_array_equal(kept.image()[0], pixels)


def test_no_seam_where_tiles_meet(tmp_path: Path) -> None:
    """A filter that looks 9 px around gives the same image in tiles with a halo as on the whole."""
    pixels = noise((217, 190)).astype("float32")
    path = write(tmp_path / "a.tif", pixels)

    def mean(tile: np.ndarray, _valid: np.ndarray, _at: tuple[int, int]) -> np.ndarray:
        return ndimage.uniform_filter(tile.astype("float64"), 19, mode="constant")[None]

    kept, _ = through(path, Step("mean", each(mean), tile=80, halo=9, dtype="float64"))
    np.testing.assert_allclose(kept.image()[0], mean(pixels, pixels > 0, (0, 0))[0], atol=1e-9)


def test_each_tile_is_told_where_it_lies(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise((100, 130)))

    def place(tile: np.ndarray, _valid: np.ndarray, at: tuple[int, int]) -> np.ndarray:
        rows, cols = np.mgrid[: tile.shape[0], : tile.shape[1]]
        return np.stack([cols + at[0], rows + at[1]])

    kept, _ = through(path, Step("place", each(place), bands=2, tile=48, halo=8))
    rows, cols = np.mgrid[:100, :130]
    np.testing.assert_array_equal(kept.image(), np.stack([cols, rows]))


def test_one_value_for_each_window_of_pixels(tmp_path: Path) -> None:
    """With a stride of 16 and windows of 32, a value answers for 16 × 16 px and sees 8 px more on each side."""
    pixels = noise((100, 70)).astype("float32")
    path = write(tmp_path / "a.tif", pixels)

    def brightest(tile: np.ndarray, _valid: np.ndarray, _at: tuple[int, int]) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(tile, (32, 32))[::16, ::16]
        return windows.max((2, 3))[None]

    kept, _ = through(path, Step("max", each(brightest), tile=80, halo=8, stride=16, align=16))
    padded = np.pad(pixels, ((8, 32), (8, 32)))
    for row in range(7):
        for col in range(5):
            window = padded[row * 16 : row * 16 + 32, col * 16 : col * 16 + 32]
            assert kept.image()[0, row, col] == window.max()
    assert kept.image().shape == (1, 7, 5)


def test_a_worker_of_a_batch_computes_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seen = set()

    def where(pixels: np.ndarray, valid: np.ndarray, origin: tuple[int, int]) -> np.ndarray:
        seen.add(threading.get_ident())
        time.sleep(0.001)
        return pixels[None]

    tiles = np.zeros((16, 4, 4), np.float32)
    each(where)(tiles, tiles > -1, [(0, 0)] * 16)
    assert len(seen) == 1


def test_what_is_invalid_comes_out_as_such_and_is_not_computed(tmp_path: Path) -> None:
    pixels = noise((128, 192))
    pixels[:, :100] = 7
    seen: list[int] = []

    def apply(tiles: np.ndarray, valid: np.ndarray, _at: Sequence) -> np.ndarray:
        assert (tiles[~valid] == 0).all(), "invalid pixels reach the network as 0, not as nodata"
        seen.append(len(tiles))
        return tiles[:, None].astype("float32")

    kept, timing = through(write(tmp_path / "a.tif", pixels, nodata=7), Step("x", apply, tile=32))
    assert sum(seen) == 4 * 3, "the three left columns of tiles hold nothing"
    np.testing.assert_array_equal(np.isnan(kept.image()[0]), pixels == 7)
    assert timing.valid_px == (pixels != 7).sum()
    assert timing.valid_px + timing.masked_px == pixels.size


def test_rows_of_border_are_not_even_read(tmp_path: Path) -> None:
    pixels = noise((256, 64))
    pixels[:150] = 0
    with open_image(write(tmp_path / "a.tif", pixels, tiled=True, blockxsize=16, blockysize=16)) as image:
        assert image.border is not None
        image.survey  # noqa: B018
        read: list[Window] = []
        original = image.read
        image.read = lambda window: read.append(window) or original(window)  # type: ignore[method-assign]
        kept = Kept()
        run(image, identity(tile=32), [kept.take])
    assert min(window.row for window in read) >= 128
    assert sum(window.height for window in read) == 128, "each row is decoded once"
    np.testing.assert_array_equal(kept.image()[0], pixels)


def test_strips_arrive_in_order_and_each_row_is_decoded_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise((300, 50)), tiled=True, blockxsize=32, blockysize=32)
    with open_image(path) as image:
        read: list[Window] = []
        original = image.read
        image.read = lambda window: read.append(window) or original(window)  # type: ignore[method-assign]
        kept = Kept()
        run(image, identity(tile=64, halo=12), [kept.take])
    assert [w.row for w in kept.windows] == sorted(w.row for w in kept.windows)
    inside = [w.clip(50, 300) for w in read]
    assert sum(w.height for w in inside) == 300


def test_too_little_memory_halves_the_batch_and_goes_on(tmp_path: Path) -> None:
    pixels = noise((64, 512))
    tried: list[int] = []

    def apply(tiles: np.ndarray, _valid: np.ndarray, _at: Sequence) -> np.ndarray:
        tried.append(len(tiles))
        if len(tiles) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return tiles[:, None]

    kept, timing = through(write(tmp_path / "a.tif", pixels), Step("big", apply, tile=64, dtype="uint16", fill=0))
    np.testing.assert_array_equal(kept.image()[0], pixels)
    assert tried == [8, 4, 2, 2, 4, 2, 2]
    assert "ran out of memory at 8 tiles" in timing.notes[0]


def test_no_room_for_a_single_tile_is_an_error_with_a_cure(tmp_path: Path) -> None:
    def apply(_tiles: np.ndarray, _valid: np.ndarray, _at: Sequence) -> np.ndarray:
        raise MemoryError

    with pytest.raises(DeviceError, match=r"too little memory for one tile of 64 px.*--device cpu"):
        through(write(tmp_path / "a.tif", noise((64, 64))), Step("big", apply, tile=64))


@pytest.mark.parametrize("where", ["network", "sink"])
def test_a_failure_anywhere_ends_the_run_with_its_own_error(tmp_path: Path, where: str) -> None:
    path = write(tmp_path / "a.tif", noise((300, 64)))

    def fail(*_: object) -> np.ndarray:
        raise ZeroDivisionError("of our making")

    step = Step("bad", fail, tile=64) if where == "network" else identity()
    with open_image(path) as image, pytest.raises(ZeroDivisionError, match="of our making"):
        run(image, step, [fail if where == "sink" else Kept().take])
    assert not [t for t in threading.enumerate() if t.name.startswith(("reader", "writer", "lane"))], "left behind"


def test_lanes_compute_at_once_each_with_its_share_of_the_cores(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise((300, 330)))
    both = threading.Barrier(2, timeout=60)
    shares: set[int] = set()

    def blur(pixels: np.ndarray, _valid: np.ndarray, _at: Sequence) -> np.ndarray:
        both.wait()  # goes on only when two batches are in work: 30 tiles, an even number
        shares.add(torch.get_num_threads())
        return ndimage.uniform_filter(pixels.astype(float), (0, 5, 5))[:, None]

    threads = torch.get_num_threads()
    step = Step("blur", blur, tile=64, halo=2, batch_px=64 * 64, lanes=2)
    kept, _ = through(path, step)
    assert shares == {max(1, threads // 2)}
    assert torch.get_num_threads() == threads, "others get their threads back"
    both = threading.Barrier(1)
    np.testing.assert_array_equal(kept.image(), through(path, replace(step, lanes=1))[0].image())


def test_a_failure_in_one_lane_ends_the_run(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise((300, 330)))

    def fail_late(pixels: np.ndarray, _valid: np.ndarray, at: Sequence) -> np.ndarray:
        if at[0][1] >= 120:  # in the third row of tiles
            raise ZeroDivisionError("of our making")
        return pixels[:, None]

    kept = Kept()
    with open_image(path) as image, pytest.raises(ZeroDivisionError, match="of our making"):
        run(image, Step("bad", fail_late, tile=64, batch_px=64 * 64, lanes=2), [kept.take])
    assert sum(window.height for window in kept.windows) <= 180, "nothing of the strip that failed was kept"
    assert not [t for t in threading.enumerate() if t.name.startswith(("reader", "writer", "lane"))], "left behind"


def test_a_cancelled_run_stops_at_once(tmp_path: Path) -> None:
    done: list[int] = []
    path = write(tmp_path / "a.tif", noise((640, 64)))
    with open_image(path) as image, pytest.raises(Cancelled):
        run(image, identity(), [Kept().take], lambda d, _total: done.append(d), lambda: bool(done) and done[-1] > 0)
    assert done[-1] < 640 * 64


def test_progress_rises_from_nothing_to_all(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    through(write(tmp_path / "a.tif", noise((300, 200))), identity(), progress=lambda d, t: told.append((d, t)))
    assert told[0] == (0, 60_000)
    assert told[-1] == (60_000, 60_000)
    assert [d for d, _ in told] == sorted(d for d, _ in told)


def test_the_time_of_each_stage_is_told(tmp_path: Path) -> None:
    _, timing = through(write(tmp_path / "a.tif", noise((300, 200))), identity())
    facts = timing.facts()
    assert set(facts) == {"read_s", "wait_s", "compute_s", "write_s", "total_s", "rate_mpx_s"}
    assert timing.rate_mpx_s == pytest.approx(300 * 200 / 1e6 / timing.total_s)


def test_a_writer_as_sink_makes_the_same_image(tmp_path: Path) -> None:
    pixels = noise((1300, 700))
    path = write(tmp_path / "a.tif", pixels)
    with open_image(path) as image:
        writer = RasterWriter(tmp_path / "b.tif", image.grid, [Band("same", "as before")], dtype="uint16", nodata=None)
        with writer:
            run(image, identity(tile=300, halo=20), [lambda _w, values, _ok: writer.append(values)])
            writer.finish()
            writer.publish()
    with rasterio.open(tmp_path / "b.tif") as file:
        np.testing.assert_array_equal(file.read(1), pixels)
        assert file.transform == Affine(2, 0, 100, 0, -2, 900)


def test_devices() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "cuda", "mps")
    with pytest.raises(DeviceError, match="no device 'tpu'"):
        choose_device("tpu")
    missing = [d for d in ("cuda", "mps") if choose_device("auto") != d]
    with pytest.raises(DeviceError, match=r"is not on this machine.*auto or cpu"):
        choose_device(missing[-1])


def test_blocks_that_a_sparse_file_never_wrote_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    layout = {"tiled": True, "blockxsize": 64, "blockysize": 64, "sparse_ok": True, "nodata": 0}
    pixels = noise((64, 256))
    with rasterio.open(path, "w", driver="GTiff", width=256, height=640, count=1, dtype="uint16", **layout) as file:
        file.write(pixels, 1, window=rasterio.windows.Window(0, 320, 256, 64))
    with open_image(path) as image:
        assert image.certainly_empty(Window(0, 0, 256, 320))
        assert not image.certainly_empty(Window(10, 300, 5, 25))
        kept = Kept()
        run(image, identity(tile=64), [kept.take])
    np.testing.assert_array_equal(kept.image()[0, 320:384], pixels)
    assert sum(valid.sum() for valid in kept.valid) == pixels.size
