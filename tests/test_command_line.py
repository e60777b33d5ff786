"""The `lunar` command, as its manual would say it: what one types, what comes out, and what it means."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import formats
import numpy as np
import pytest
from affine import Affine
from running import (
    large,
    lunar,
    lunar_process,
    make_models,
    names,
    scene,
    snapshot,
    start,
    strict_json,
)

from lunar_processing.__main__ import COMMANDS, _parser
from lunar_processing.console import Console
from lunar_processing.tools.anomalies import Wishes, score_anomalies
from lunar_processing.tools.job import Options, Report

TOOLS = ("enhance", "anomalies", "rocks")
# 0.01° by 0.001° near the south pole: 6 m by 30 m.
DEGREES_AT_THE_POLE = Affine(0.01, 0.0, 20.0, 0.0, -0.001, -88.9)

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scene(tmp_path_factory.mktemp("image") / "scene.tif")


def destination(tool: str, folder: Path) -> Path:
    return folder / {"enhance": "out.tif", "anomalies": "out.gpkg", "rocks": "out.gpkg"}[tool]


# ---- help --------------------------------------------------------------------------------------------------------

COMMON = "--model --models-dir --band --device --overwrite --pixel-size --body --sun-azimuth --format --json"
RUN = f"{COMMON} --progress --watch-stdin"
OPTIONS = {
    "enhance": RUN,
    "anomalies": f"{RUN} --scores --heat --chips --top --percentile --min-distance",
    "rocks": f"{RUN} --mask --outlines --outlines-layer --area --area-layer --min-diameter --incidence",
    "info": COMMON,
    "rocksizefrequency": "--json --out --area --diameter-field --unit --min-diameter --max-diameter --edge --body "
    "--pixel-size --bins --cell --confidence --overwrite --progress --watch-stdin",
    "batch": "--json --model --models-dir --band --device --format --out --resume --where --table --part --workers "
    "--memory --dask --quiet --min-diameter --incidence --mask --outlines --top --percentile --min-distance --scores "
    "--heat --chips --pixel-size --body --sun-azimuth --progress --watch-stdin",
    "reproduce": "--json --image --models-dir --progress --watch-stdin",
    "simulate": "--json --recipe --size --count --seed --pixel-size --incidence --sun-azimuth --objects --crs --centre "
    "--dtype --contact-sheet --device --overwrite --format --progress --watch-stdin",
    "train": "--json --images --out --band --labels --area --from --models-dir --classes --validation --split "
    "--simulated --minutes --steps --seed --resume --size --batch --rate --set --device --progress --watch-stdin "
    "--augment",
    "evaluate": "--json --real --out --part --seed --recipe --steps --models --models-dir --strips --small --view "
    "--features --inception --count",
    "patches": "--json --out --size --stride --shrink --latitude --count --keep-aside --band --seed --overwrite "
    "--progress --watch-stdin",
    "mine-augmentations": "--json --images --features --keep --size --count --band --seed --out --overwrite --device "
    "--progress --watch-stdin",
    "calibrate": "--json --small --images",
    "fetch-features": "--json --from --overwrite",
    "install-models": "--json --into --overwrite",
    "models": "--task --models-dir --json",
    "doctor": "--models-dir --json",
}
# Their examples would simulate for a minute, or ask the network: that the words are understood is enough.
NOT_RUN = ("simulate", "fetch-features", "install-models")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command: str) -> None:
    ran = lunar(command, "--help")
    assert ran.code == 0
    shown = re.sub(r"^\S.*:$", "", ran.out.split("options:")[1].split("examples:")[0], flags=re.M)
    entries = {re.search(r"--[a-z-]+", entry)[0]: entry for entry in re.split(r"\n(?=  -)", shown) if "--" in entry}
    assert set(OPTIONS.get(command, "").split()) <= set(entries)
    for option, entry in entries.items():
        _, *words = re.split(r"\s{2,}", entry.strip(), maxsplit=1)  # its name and value; what it means
        assert len(" ".join(words).split()) >= 3, f"{option} is not explained"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_in_the_help_are_right(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = [shlex.split(line)[1:] for line in lunar(command, "--help").out.splitlines() if line[:8] == "  lunar "]
    assert len(examples) >= 2
    for example in examples:
        assert _parser().parse_args(example).command == command
        if command in NOT_RUN or command not in OPTIONS:
            continue
        ran = lunar(*example)
        if command in ("models", "doctor"):
            assert ran.code == 0
        else:  # the files, models and devices of the examples are not here; the words are understood
            assert ran.code == 1
            missing = "There is no (file|image|model)|is not a model folder|The folder of models|The device"
            assert re.search(missing, ran.err)


def test_the_first_help_names_every_command() -> None:
    ran = lunar("--help")
    assert ran.code == 0
    assert all(re.search(rf"^ +{command}\s+[A-Z]\w+", ran.out, re.M) for command in COMMANDS)
    assert lunar("--version").out.startswith("lunar ")


# ---- exit codes --------------------------------------------------------------------------------------------------

WRONG_USE = {
    "no command": [],
    "unknown command": ["sharpen", "a.tif"],
    "no output": ["enhance", "IMAGE"],
    "unknown option": ["enhance", "IMAGE", "OUT", "--sharpness", "3"],
    "a word for a number": ["anomalies", "IMAGE", "OUT", "--top", "many"],
    "no points": ["anomalies", "IMAGE", "OUT", "--top", "0"],
    "percentile 100": ["anomalies", "IMAGE", "OUT", "--percentile", "100"],
    "percentile nan": ["anomalies", "IMAGE", "OUT", "--percentile", "nan"],
    "negative distance": ["anomalies", "IMAGE", "OUT", "--min-distance", "-1"],
    "distance nan": ["anomalies", "IMAGE", "OUT", "--min-distance", "nan"],
    "sun under the horizon": ["rocks", "IMAGE", "OUT", "--incidence", "91"],
    "negative diameter": ["rocks", "IMAGE", "OUT", "--min-diameter", "-2"],
    "diameter nan": ["rocks", "IMAGE", "OUT", "--min-diameter", "nan"],
    "pixel size 0": ["enhance", "IMAGE", "OUT", "--pixel-size", "0"],
    "pixel size nan": ["enhance", "IMAGE", "OUT", "--pixel-size", "nan"],
    "sun at 1000°": ["rocks", "IMAGE", "OUT", "--sun-azimuth", "1000"],
    "sun at nan": ["rocks", "IMAGE", "OUT", "--sun-azimuth", "nan"],
    "unknown device": ["enhance", "IMAGE", "OUT", "--device", "abacus"],
    "unknown format": ["enhance", "IMAGE", "OUT", "--format", "bmp"],
    "band 0": ["enhance", "IMAGE", "OUT", "--band", "0"],
    "band 9": ["enhance", "IMAGE", "OUT", "--band", "9"],
    "heat of a method that has none": ["anomalies", "IMAGE", "OUT", "--model", "mahalanobis", "--heat", "h.tif"],
    "outlines here and there": ["rocks", "IMAGE", "OUT", "--outlines-layer", "--outlines", "o.gpkg"],
    "area here and there": ["rocks", "IMAGE", "OUT", "--area-layer", "--area", "o.gpkg"],
    "rocks without a folder": ["rocksizefrequency", "a.gpkg"],
    "rocks in miles": ["rocksizefrequency", "a.gpkg", "--out", "OUT", "--unit", "mile"],
    "rocks in no bins": ["rocksizefrequency", "a.gpkg", "--out", "OUT", "--bins", "0"],
    "cells of nan": ["rocksizefrequency", "a.gpkg", "--out", "OUT", "--cell", "nan"],
    "scenes of 5 px": ["simulate", "OUT", "--size", "5"],
    "seed below 0": ["simulate", "OUT", "--seed", "-1"],
    "sun below the horizon": ["simulate", "OUT", "--incidence", "95"],
    "recipe of another world": ["simulate", "OUT", "--recipe", "mars"],
    "training without images": ["train", "rocks", "--out", "OUT"],
    "training of nothing known": ["train", "cooking", "--images", "IMAGE", "--out", "OUT"],
    "training by luck": ["train", "rocks", "--images", "IMAGE", "--out", "OUT", "--split", "luck"],
    "training of nan minutes": ["train", "rocks", "--images", "IMAGE", "--out", "OUT", "--minutes", "nan"],
    "measuring without a folder": ["evaluate", "simulator", "--real", "."],
    "measuring something else": ["evaluate", "weather", "--out", "OUT"],
    "unknown task": ["models", "--task", "cooking"],
}


@pytest.mark.parametrize("words", WRONG_USE.values(), ids=WRONG_USE.keys())
def test_wrong_use_exits_with_2_and_says_why(words: list[str], image: Path, tmp_path: Path) -> None:
    tool = words[0] if words else "enhance"
    places = {
        "IMAGE": image,
        "OUT": destination(tool, tmp_path) if tool in TOOLS else tmp_path / "out",
        "h.tif": tmp_path / "h.tif",
    }
    ran = lunar(*(places.get(word, word) for word in words))
    assert ran.code == 2
    assert len(ran.err.split()) > 5
    assert names(tmp_path) == []


@pytest.mark.parametrize("tool", TOOLS)
def test_exit_code_of_the_process(tool: str, image: Path, tmp_path: Path) -> None:
    out = destination(tool, tmp_path)
    assert lunar_process(tool, image, out).code == 0
    refused = lunar_process(tool, image, out)
    assert refused.code == 1
    assert "Cure:" in refused.err
    assert "Traceback" not in refused.err
    assert lunar_process(tool, image).code == 2


def test_nothing_is_said_on_standard_error_when_all_is_well(image: Path, tmp_path: Path) -> None:
    for tool in TOOLS:
        ran = lunar_process(tool, image, destination(tool, tmp_path), "--overwrite", "--sun-azimuth", 90)
        lines = [line for line in ran.err.splitlines() if not line.startswith("Warning: ")]
        assert lines == []


# ---- what programs read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", TOOLS)
def test_json_result(tool: str, image: Path, tmp_path: Path) -> None:
    out = destination(tool, tmp_path)
    result = lunar(tool, image, out, "--json").result
    assert set(result) >= {"outputs", "counts", "model", "device", "seconds", "stages", "warnings"}
    assert str(out) in result["outputs"].values()
    assert result["counts"]["valid_px"] == 300 * 380
    assert result["counts"]["masked_px"] == 300 * 20
    assert result["device"] == "cpu"
    assert result["stages"]["rate_mpx_s"] > 0


@pytest.mark.parametrize("tool", TOOLS)
def test_progress_as_json_lines(tool: str, image: Path, tmp_path: Path) -> None:
    out = destination(tool, tmp_path)
    ran = lunar_process(tool, image, out, "--progress", "jsonl")
    assert ran.code == 0
    *before, last = ran.events
    assert last["event"] == "result"
    assert str(out) in last["outputs"].values()
    assert {e["event"] for e in before} <= {"progress", "log"}
    progress = [e for e in before if e["event"] == "progress"]
    assert progress
    for event in progress:
        assert set(event) == {"event", "stage", "done", "total", "fraction", "rate_mpx_s", "left_s"}
        assert 0 <= event["done"] <= event["total"]
        assert 0 <= event["fraction"] <= 1
    fractions = [e["fraction"] for e in progress]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1


def test_progress_never_goes_back(image: Path, tmp_path: Path) -> None:
    """Scores and heat are two passes over the image."""
    told: list[tuple[str, float]] = []
    report = Report(progress=lambda stage, done, total: told.append((stage, done / total)))
    wishes = Wishes(str(tmp_path / "out.gpkg"), heat=str(tmp_path / "heat.tif"))
    score_anomalies(Options(image), wishes, report)
    work = [share for stage, share in told if stage == "work"]
    assert work == sorted(work)
    assert (work[0], work[-1]) == (0.0, 1.0)


def test_errors_as_json_lines(tmp_path: Path) -> None:
    ran = lunar_process("enhance", tmp_path / "missing.tif", tmp_path / "out.tif", "--progress", "jsonl")
    assert ran.code == 1
    assert ran.events[-1]["event"] == "error"
    assert ran.events[-1]["code"] == "image"
    assert ran.events[-1]["message"].startswith("There is no file")
    assert ran.events[-1]["cure"]
    ran = lunar("anomalies", tmp_path / "missing.tif", tmp_path / "out.gpkg", "--top", 0, "--progress", "jsonl")
    assert (ran.code, ran.events[-1]["code"]) == (2, "parameter")


def test_progress_for_people_goes_to_standard_error(image: Path, tmp_path: Path) -> None:
    ran = lunar_process("enhance", image, tmp_path / "out.tif", "--progress", "bar")
    assert ran.code == 0
    assert "Mpx" in ran.err
    assert "out.tif" in ran.out
    assert "Mpx/s" in ran.out


def test_the_bar_knows_its_rate_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console("bar")
    for done in (0, 40, 80):
        console.progress("work", done * 1_000_000, 100_000_000)
        time.sleep(0.2)
    console.close()
    shown = re.split(r"[\r\n]+", capsys.readouterr().err)
    last = next(line for line in reversed(shown) if "80/100 Mpx" in line)
    assert re.search(r"\d\d:\d\d<\d\d:\d\d, +\d+\.\d+Mpx/s", last), last


def test_programs_are_understood_whatever_the_console_can_print(image: Path, tmp_path: Path) -> None:
    """A pipe on Windows has the code page of the console."""
    folder = tmp_path / "Лунный ровер 月"
    folder.mkdir()
    out = folder / "out.gpkg"
    for style in (["--progress", "jsonl"], ["--json"], []):
        ran = lunar_process(
            "rocks", image, out, "--overwrite", *style, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
        )
        assert (ran.code, "Traceback" in ran.err) == (0, False)
        if style:
            result = ran.events[-1] if "jsonl" in style else ran.result
            assert result["outputs"]["rocks"] == str(out)


def test_a_reader_that_leaves_early_is_no_trouble(image: Path) -> None:
    piped = f"{sys.executable} -m lunar_processing info {image} --json | head -c 1"
    ran = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, check=False)
    assert "Traceback" not in ran.stderr


def test_models_lists_methods_and_models(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {m["id"]: m for m in lunar("models", "--json").result["models"]}
    classical = {
        "enhance": {"stretch", "clahe", "retinex", "destripe-nlm"},
        "anomalies": {"pca", "mahalanobis"},
        "rocks": {"shadow-pairs"},
    }
    for task, ids in classical.items():
        assert ids <= {i for i, m in found.items() if m["task"] == task}
        assert [i for i, m in found.items() if m["task"] == task and m["default"]] == [
            {
                "enhance": "psr-physics" if "psr-physics" in found else "destripe-nlm",
                "anomalies": "anomaly-multiscale" if "anomaly-multiscale" in found else "pca",
                "rocks": "rocks-orbital" if "rocks-orbital" in found else "shadow-pairs",
            }[task]
        ]
    for model in found.values():
        assert set(model) == {"id", "task", "kind", "title", "description", "limits", "default", "folder"}
        assert model["title"]
    given = lunar("models", "--task", "rocks", "--models-dir", models, "--json").result["models"]
    assert {m["id"]: (m["kind"], m["folder"]) for m in given}["bright"] == ("network", str(models / "bright"))
    assert {m["task"] for m in given} == {"rocks"}
    monkeypatch.setenv("LUNAR_MODELS", f"/nowhere{os.pathsep}{models}")
    assert {"bright", "square", "same"} <= {m["id"] for m in lunar("models", "--json").result["models"]}
    words = lunar("models").out
    assert "shadow-pairs" in words
    assert "bright" in words
    assert lunar("models", "--task", "rocks").out.startswith("rocks\n  shadow-pairs")


@pytest.mark.parametrize(
    ("build", "has_scale"),
    [
        (lambda f: formats.tiled(f / "a.tif"), True),
        (lambda f: formats.png(f / "a.png"), False),
        (lambda f: formats.isis_cube(f / "a.cub", groups=formats.NAC_GROUPS + formats.GEOMETRY_GROUP), True),
        (lambda f: formats.nac_cdr(f / "a.IMG"), False),
        (lambda f: formats.geotiff(f / "deg.tif", crs=formats.DEGREES, transform=DEGREES_AT_THE_POLE), True),
        (lambda f: formats.geotiff(f / "one.tif", np.full((1, 1), np.float32(7))), True),
        (lambda f: formats.geotiff(f / "earth.tif", crs=formats.EARTH_UTM), False),
    ],
    ids=["GeoTIFF", "PNG", "ISIS cube", "NAC CDR", "degrees", "one pixel", "Earth"],
)
def test_info_says_what_is_known(build: Callable[[Path], Path], has_scale: bool, tmp_path: Path) -> None:
    path = build(tmp_path)
    before = snapshot(tmp_path)
    facts = lunar("info", path, "--json").result
    assert set(facts["would_do"]) == set(TOOLS)
    assert set(facts) >= {"path", "size", "band", "dtype", "label", "valid_fraction", "percentiles", "place"}
    assert bool(facts["place"].get("metres_per_px")) == has_scale or facts["label"]["pixel_size_m"]
    assert lunar("info", path).out.startswith(str(path))
    assert snapshot(tmp_path) == before


def test_info_tells_what_is_left_out_also_where_nothing_is_left(tmp_path: Path) -> None:
    """The error of a run on such an image sends people here."""
    path = formats.geotiff(tmp_path / "empty.tif", np.full((64, 80), 9, np.uint8), nodata=9)
    ran = lunar("info", path)
    assert ran.code == 0
    assert re.search(r"valid +0\.00 %", ran.out)
    assert re.search(r"nodata +9\n", ran.out)
    assert ran.out.count("refused: empty.tif holds no valid pixel") == 3


def test_info_says_a_doubt_once_and_special_values_as_numbers(tmp_path: Path) -> None:
    ran = lunar("info", formats.kaguya_tc(tmp_path))
    assert ran.out.count("The pixel size is unknown") == 1
    assert re.search(r"special values +-23000, -22000, -21000, -20000\n", ran.out)


def test_doctor_says_that_all_is_well_or_what_is_not(models: Path, tmp_path: Path) -> None:
    facts = lunar("doctor", "--json").result
    assert facts["problems"] == []
    assert facts["versions"]["rasterio"]
    assert any(device.startswith("cpu") for device in facts["devices"])
    assert "All is well" in lunar("doctor", "--models-dir", models).out
    broken = make_models(tmp_path) / "bright" / "weights.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1] + b"x")
    ran = lunar("doctor", "--models-dir", tmp_path)
    assert ran.code == 1
    assert "PROBLEM" in ran.out
    assert "damaged" in ran.out


# ---- stopping ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def large_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough for a run of several seconds."""
    return large(tmp_path_factory.mktemp("large") / "large.tif")


STOPS: dict[str, Callable[[subprocess.Popen[str]], None]] = {
    "standard input closes": lambda process: process.stdin.close(),
    "Ctrl-C": lambda process: process.send_signal(signal.SIGINT),
    "terminated": lambda process: process.send_signal(signal.SIGTERM),
}


@pytest.mark.parametrize(
    ("tool", "stop"),
    [("enhance", "standard input closes"), ("anomalies", "Ctrl-C"), ("rocks", "terminated")],
    ids="{0[0]}-{0[1]}".format,
)
def test_a_stopped_run_ends_within_two_seconds_and_leaves_nothing(
    tool: str, stop: str, large_image: Path, tmp_path: Path
) -> None:
    raster = {"enhance": [], "anomalies": ["--heat", tmp_path / "heat.tif"], "rocks": ["--mask", tmp_path / "m.tif"]}
    options = ["--watch-stdin", "--progress", "jsonl"]
    process = start(tool, large_image, destination(tool, tmp_path), *raster[tool], *options)
    while not any(tmp_path.glob(".*partial*")):  # until it has begun to write
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    end_within_two_seconds(process, STOPS[stop])
    assert names(tmp_path) == []


@pytest.mark.parametrize("after", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("stop", STOPS)
def test_a_run_can_be_stopped_before_it_writes(stop: str, after: float, large_image: Path, tmp_path: Path) -> None:
    process = start("enhance", large_image, tmp_path / "out.tif", "--watch-stdin", "--progress", "jsonl")
    time.sleep(after)
    end_within_two_seconds(process, STOPS[stop])
    assert names(tmp_path) == []


def end_within_two_seconds(process: subprocess.Popen[str], stop: Callable[[subprocess.Popen[str]], None]) -> None:
    stopped = time.perf_counter()
    stop(process)
    code = process.wait(timeout=20)
    assert time.perf_counter() - stopped < 2
    assert code != 0
    assert all(strict_json(line)["event"] != "result" for line in process.stdout.read().splitlines())


def test_a_run_that_has_no_ear_for_it_is_ended_and_says_so() -> None:
    deaf = (
        "import time\n"
        "from lunar_processing.console import Console\n"
        "Console('none').listen(stdin=False)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", deaf], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    assert process.stdout.readline() == "ready\n"
    end_within_two_seconds(process, STOPS["Ctrl-C"])
    assert process.stderr.read() == "Error: The run was cancelled.\n"


def test_a_run_ends_when_its_parent_is_killed(large_image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tif"
    command = [sys.executable, "-m", "lunar_processing", "enhance", str(large_image), str(out), "--watch-stdin"]
    parent_code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({command!r}, stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    while not any(tmp_path.glob(".*partial*")):
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    deadline = time.perf_counter() + 2.5
    while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():
        assert time.perf_counter() < deadline, "the run goes on without its parent"
        time.sleep(0.02)
    assert names(tmp_path) == []


def test_a_standard_input_that_was_never_open_is_closed(large_image: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lunar_processing", "enhance", str(large_image), str(tmp_path / "out.tif")]
    ran = subprocess.run(["bash", "-c", f"{shlex.join(command)} --watch-stdin <&-"], check=False, timeout=60)
    assert ran.returncode == 1
    assert names(tmp_path) == []


def test_without_watching_a_closed_standard_input_means_nothing(image: Path, tmp_path: Path) -> None:
    assert lunar_process("enhance", image, tmp_path / "out.tif", stdin=subprocess.DEVNULL).code == 0


# ---- existing files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", TOOLS)
def test_what_exists_is_replaced_only_when_asked(tool: str, image: Path, tmp_path: Path) -> None:
    out = destination(tool, tmp_path)
    assert lunar(tool, image, out).code == 0
    before = snapshot(tmp_path)
    ran = lunar(tool, image, out)
    assert ran.code == 1
    assert "--overwrite" in ran.err
    assert snapshot(tmp_path) == before
    other = {"enhance": "stretch", "anomalies": "mahalanobis", "rocks": "shadow-pairs"}[tool]
    again = lunar(tool, image, out, "--overwrite", "--model", other, "--sun-azimuth", 80)
    assert again.code == 0
    assert snapshot(tmp_path) != before
    assert names(tmp_path) == [out.name]
