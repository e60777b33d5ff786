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
QUICK = ("--model", "shadow-pairs", "--sun-azimuth", 90)


@pytest.fixture
def strips(tmp_path: Path) -> Path:
    folder = tmp_path / "strips"
    folder.mkdir()
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


def test_any_scheduler_can_be_given_the_work(strips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = lunar("batch", "rocks", strips, "--out", out, "--dask", "tcp://127.0.0.1:9", *QUICK)
    assert ran.code == 1
    assert "There is no Dask scheduler at tcp://127.0.0.1:9" in ran.err

    told = tmp_path / "scheduler.json"
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard", "--port", "0"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1", "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen([*scheduler, "--host", "127.0.0.1", "--scheduler-file", str(told)], **quiet)]
    try:
        while not told.exists():
            assert processes[0].poll() is None
            time.sleep(0.05)
        processes.append(subprocess.Popen([*worker, "--scheduler-file", str(told)], **quiet, cwd=tmp_path))
        address = json.loads(told.read_text())["address"]
        few = strips / "P002?.tif"
        ran = lunar("batch", "rocks", few, "--out", out, "--resume", "--dask", address, *QUICK, "--json")
        assert ran.code == 0, ran.err
        assert ran.result["counts"]["ok"] == 10

        run = start("batch", "rocks", strips, "--out", out, "--resume", "--dask", address, *QUICK)
        wait_for(run, out, 20)
        processes[0].kill()
        complaints = run.communicate(timeout=900)[1]
        assert run.returncode == 1
        assert "The connection to the Dask scheduler was lost" in complaints
        assert "--resume" in complaints
    finally:
        for process in processes:
            process.kill()
            process.wait()
