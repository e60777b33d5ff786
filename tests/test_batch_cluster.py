"""Many products on processes of their own: workers die, products are poisonous, all is killed, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import formats
import moon
import numpy as np
import pytest
from running import lunar, snapshot, start, strict_json

from lunar_processing.batch import crew

pytest.importorskip("distributed")

PRODUCTS = 200
CRASHES, BREAKS, DAMAGED, NOTHING = "P0013", "P0077", "P0105", "P0150"
# What a library does that crashes, or has a bug: nothing in the batch knows of it.
POISON = f"""
import os, signal
from lunar_processing.batch import work

healthy = work._rocks

def poisonous(options, order, told, stem):
    if stem.name == {CRASHES!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    if stem.name == {BREAKS!r}:
        raise ZeroDivisionError("a bug")
    return healthy(options, order, told, stem)

work.RUN["rocks"] = poisonous
"""
# The disk of the worker that takes this product is full from then on: the system refuses files of a kilobyte.
FILLS = "P0023"
FULL = f"""
import resource
from lunar_processing.batch import work

healthy = work._rocks

def filling(options, order, told, stem):
    if stem.name == {FILLS!r}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
    return healthy(options, order, told, stem)

work.RUN["rocks"] = filling
"""
QUICK = ("--model", "shadow-pairs", "--sun-azimuth", 90)


@pytest.fixture(scope="module")
def strips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strips")
    view = moon.scene(48, 48, seed=3, sun_azimuth=90, rocks=8, rock_sizes=(4, 8))
    pixels = np.maximum(moon.digitise(view.image, 16), 1)
    for number in range(PRODUCTS):
        formats.geotiff(folder / f"P{number:04d}.tif", np.roll(pixels, number, axis=1), nodata=0)
    (folder / f"{DAMAGED}.tif").write_bytes(b"II*\0 and then no more")
    formats.geotiff(folder / f"{NOTHING}.tif", pixels * 0, nodata=0)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With poison for the workers, and one date for all files."""
    (tmp_path / "poison.py").write_text(POISON)
    return {"SOURCE_DATE_EPOCH": "1700000000", "DASK_DISTRIBUTED__WORKER__PRELOAD": str(tmp_path / "poison.py")}


def entries(out: Path) -> list[dict[str, Any]]:
    """The lines that are whole: the journal may be written to meanwhile."""
    journal = out / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def wait_for(process: subprocess.Popen[str], out: Path, lines: int) -> None:
    while len(entries(out)) < lines:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(os.name == "nt", reason="processes are killed by signals here")
def test_killed_workers_poison_and_a_killed_batch_lose_nothing(
    strips: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("batch", "rocks", strips, "--out", out, "--workers", 2, *QUICK, "--resume", "--json")
    first = start(*arguments, env=environment, stdout=subprocess.DEVNULL)
    wait_for(first, out, 40)
    workers = {int(entry["worker"].rpartition(":")[2]) for entry in entries(out) if "worker" in entry}
    os.kill(next(pid for pid in workers if alive(pid)), signal.SIGKILL)
    wait_for(first, out, 110)
    first.kill()
    first.communicate()
    half = entries(out)
    assert len(half) < PRODUCTS, "the kill came too late: it proves nothing"
    before = snapshot(out / "products")

    second = start(*arguments, env=environment)
    said, complaints = second.communicate(timeout=900)
    assert second.returncode == 1, "some products have failed"
    summary = strict_json(said)
    assert summary["counts"] == {"ok": PRODUCTS - 4, "empty": 1, "skipped": 0, "failed": 3, "to do": 0}
    assert f"{CRASHES}: Two workers died of this product" in complaints

    last = {entry["product"]: entry for entry in entries(out)}
    assert len(last) == PRODUCTS
    failures = {name: entry["code"] for name, entry in last.items() if entry["status"] == "failed"}
    assert failures == {CRASHES: "worker", BREAKS: "error", DAMAGED: "image"}
    assert last[NOTHING]["status"] == "empty"
    times = Counter(entry["product"] for entry in entries(out) if entry["status"] == "ok")
    assert set(times.values()) == {1}, "a product that was finished was done again"
    after = snapshot(out / "products")
    finished = {entry["product"] for entry in half if entry["status"] == "ok"}
    assert {n: b for n, b in after.items() if n[:5] in finished} == {
        n: b for n, b in before.items() if n[:5] in finished
    }
    assert not [name for name in after if "partial" in name]

    # Byte for byte what comes of a batch in one process that nobody disturbs.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", environment["SOURCE_DATE_EPOCH"])
        quiet = tmp_path / "quiet"
        ran = lunar("batch", "rocks", strips / "P000?.tif", "--out", quiet, "--workers", 0, *QUICK)
    assert ran.code == 0, ran.err
    undisturbed = snapshot(quiet / "products")
    assert len(undisturbed) == 10
    assert {name: after[name] for name in undisturbed} == undisturbed


@pytest.mark.skipif(os.name == "nt", reason="the size of files cannot be bounded here")
def test_a_disk_that_is_full_on_one_worker_loses_nothing(strips: Path, tmp_path: Path) -> None:
    (tmp_path / "full.py").write_text(FULL)
    out, few = tmp_path / "out", strips / "P002?.tif"
    arguments = ("batch", "rocks", few, "--out", out, *QUICK, "--no-merge", "--resume", "--json")
    environment = {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(tmp_path / "full.py")}
    first = start(*arguments, "--workers", 2, env=environment)
    _said, complaints = first.communicate(timeout=900)
    assert first.returncode == 1
    last = {entry["product"]: entry for entry in entries(out)}
    assert len(last) == len(entries(out)) == 10
    assert (last[FILLS]["status"], last[FILLS]["code"]) == ("failed", "output")
    assert "could not be written" in complaints
    done = {name for name, entry in last.items() if entry["status"] == "ok"}
    assert done, "what was done before, and by the other worker"
    before = snapshot(out / "products")
    assert {name.partition("/")[0] for name in before} == done, "nothing half done is left"

    ran = lunar(*arguments, "--workers", 0)  # there is room again
    assert ran.result["counts"] == {"ok": 10, "empty": 0, "skipped": 0, "failed": 0, "to do": 0}, ran.err
    after = snapshot(out / "products")
    assert {name: after[name] for name in before} == before
    times = Counter(entry["product"] for entry in entries(out) if entry["status"] == "ok")
    assert set(times.values()) == {1}


def test_any_scheduler_can_be_given_the_work(strips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "PATIENCE", "1s")
        ran = lunar("batch", "rocks", strips, "--out", out, "--dask", "tcp://127.0.0.1:9", *QUICK)
    assert ran.code == 1
    assert "There is no Dask scheduler at tcp://127.0.0.1:9" in ran.err

    first, second = Dask(tmp_path / "first.json"), Dask(tmp_path / "second.json")
    try:
        few = strips / "P002?.tif"
        ran = lunar("batch", "rocks", few, "--out", out, "--resume", "--dask", first.begin(), *QUICK, "--json")
        assert ran.code == 0, ran.err
        assert ran.result["counts"]["ok"] == 10

        some = ("batch", "rocks", strips / "P00[0-3]?.tif", "--out", out, "--resume", *QUICK, "--json")
        run = start(*some, "--dask", first.address)
        wait_for(run, out, 15)
        first.end()
        complaints = run.communicate(timeout=900)[1]
        assert run.returncode == 1
        assert "The connection to the Dask scheduler was lost" in complaints
        assert "--resume" in complaints

        before, half = snapshot(out / "products"), [entry for entry in entries(out) if entry["status"] == "ok"]
        assert len(half) < 40, "the kill came too late: it proves nothing"
        ran = lunar(*some, "--dask", second.begin())
        assert ran.code == 0, ran.err
        assert ran.result["counts"] == {"ok": 40, "empty": 0, "skipped": 0, "failed": 0, "to do": 0}
        times = Counter(entry["product"] for entry in entries(out) if entry["status"] == "ok")
        assert (len(times), set(times.values())) == (40, {1})
        after = snapshot(out / "products")
        finished = {entry["product"] for entry in half}
        assert all(after[name] == data for name, data in before.items() if name.partition("/")[0] in finished)
    finally:
        first.end()
        second.end()


class Dask:
    """A scheduler and a worker, begun by Dask's own commands, as on a cluster."""

    def __init__(self, told: Path) -> None:
        self.told = told
        self.processes: list[subprocess.Popen[bytes]] = []

    def begin(self) -> str:
        """The address of the scheduler, once it has one."""
        self._start("scheduler", "--port", "0", "--host", "127.0.0.1")
        while not self.told.exists():
            assert self.processes[0].poll() is None
            time.sleep(0.05)
        self._start("worker", "--nthreads", "1")
        return self.address

    @property
    def address(self) -> str:
        return str(json.loads(self.told.read_text())["address"])

    def _start(self, what: str, *options: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--no-dashboard", *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": self.told.parent}
        self.processes.append(subprocess.Popen([*command, "--scheduler-file", str(self.told)], **quiet))

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
