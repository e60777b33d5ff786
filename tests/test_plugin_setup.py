"""“Set up the engine…” and the settings page, in real QGIS with a profile of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path

import numpy as np
import pytest
import rasterio
from qgis_helpers import Qgis

from lunar_processing.modelpack import Card, save_pack
from lunar_processing.networks.convnet import Identity

SETUP = "lunar:setupengine"
NOWHERE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/no/such/folder", "PIP_CONFIG_FILE": os.devnull}


@pytest.fixture
def qgis(tmp_path):
    """A QGIS that knows no engine yet."""
    return Qgis.installed(tmp_path, python=None)


def test_the_steps_are_shown_first_and_nothing_is_changed(qgis):
    run = qgis.run(SETUP, DRY_RUN="true")
    assert run.returncode == 0, run.log
    plan = str(run.results["PLAN"]).splitlines()
    assert plan[0].startswith("make a virtual environment with ")
    assert plan[1] == "install torch for the CPU (about 200 MB)"
    assert "rasterio" in plan[2]
    assert "torch" in plan[2]
    assert "Nothing was changed" in run.log
    assert not Path(str(run.results["PYTHON_USED"])).exists()


def test_what_is_installed_is_what_the_engine_declares(qgis):
    """One place says what the engine needs; an installer of Python packages must read the same from it."""
    tomllib = pytest.importorskip("tomllib")
    declared = tomllib.loads((qgis.plugin / "engine" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    told = qgis.script("""
        from lunar_qgis_plugin import engine
        tell(engine.requirements())
    """)
    assert told == declared["dependencies"]


def test_torch_is_taken_from_where_the_user_wants_it(qgis, tmp_path):
    pinned = tmp_path / "pins.txt"
    pinned.write_text("torch==2.13.0\n")
    told = qgis.script(
        """
        from pathlib import Path
        from lunar_qgis_plugin.algorithms.set_up_engine import plan
        def indexes(torch, constraints=""):
            steps = plan(Path("/x"), Path("/usr/bin/python3"), torch, constraints, False)
            cpu = "https://download.pytorch.org/whl/cpu"
            return [(cpu in step.command, "--constraint" in step.command) for step in steps[1:]]
        tell([indexes("cpu"), indexes("default"), indexes("cpu", sys.argv[1])])
        """,
        pinned,
    )
    assert told == [[[True, False], [False, False]], [[False, False]], [[False, True]]]


def test_a_python_that_has_all_is_checked_and_remembered(qgis, tmp_path):
    run = qgis.run(SETUP, PYTHON=sys.executable, INSTALL_MODELS="false")
    assert run.returncode == 0, run.log
    assert str(run.results["PYTHON_USED"]) == sys.executable
    for fact in ("torch", "rasterio", "devices", sys.executable, "QGIS 3"):
        assert fact in str(run.results["DIAGNOSIS"])
    used = qgis.run("lunar:enhancepsr", INPUT=_any(tmp_path), OUTPUT=tmp_path / "b.tif", MODEL="stretch")
    assert used.returncode == 0, used.log
    assert f"{sys.executable} (the setting “Engine's Python”)" in used.log


def test_trained_models_are_installed_from_an_archive_and_offered(qgis, tmp_path):
    save_pack(tmp_path / "models" / "quiet", Card("quiet", "enhance", "identity"), Identity())
    archive = shutil.make_archive(str(tmp_path / "models"), "zip", tmp_path / "models")
    at_home = qgis.but(XDG_DATA_HOME=str(tmp_path / "data"))
    run = at_home.run(SETUP, PYTHON=sys.executable, MODELS=archive)
    assert run.returncode == 0, run.log
    assert f"quiet: installed in {tmp_path / 'data' / 'lunar' / 'models' / 'quiet'}" in run.log
    used = at_home.run("lunar:enhancepsr", INPUT=_any(tmp_path), OUTPUT=tmp_path / "b.tif", MODEL="quiet")
    assert used.returncode == 0, used.log


def test_without_trained_models_the_engine_is_ready_all_the_same(qgis, tmp_path):
    run = qgis.run(SETUP, PYTHON=sys.executable, MODELS=tmp_path / "no.zip")
    assert run.returncode == 0, run.log
    assert "The trained models were not installed" in run.log
    assert "There is no" in run.log


def test_a_python_that_lacks_something_is_refused_and_not_remembered(qgis, tmp_path):
    venv.create(tmp_path / "bare")
    run = qgis.run(SETUP, PYTHON=tmp_path / "bare" / "bin" / "python")
    assert run.returncode != 0
    assert "Cure:" in run.log
    assert "rasterio" in run.log  # what to install there
    assert "not set up yet" in qgis.run("lunar:enhancepsr", INPUT=_any(tmp_path), OUTPUT=tmp_path / "b.tif").log


def test_a_setup_that_fails_leaves_no_half_environment(qgis):
    run = qgis.but(**NOWHERE).run(SETUP, TORCH="default")
    assert run.returncode != 0
    assert "This step of the setup failed: install what the engine needs" in run.log
    assert "No matching distribution found" in run.log
    assert "Cure: check the network" in run.log
    assert not list(qgis.folder.rglob("pyvenv.cfg"))


def test_an_environment_that_was_there_survives_a_failed_repair(qgis):
    where = Path(str(qgis.run(SETUP, DRY_RUN="true").results["PYTHON_USED"]))
    venv.create(where.parent.parent, with_pip=True)
    run = qgis.but(**NOWHERE).run(SETUP, TORCH="default")
    assert run.returncode != 0
    assert where.exists()
    assert "make a virtual environment" not in run.log


def test_cancelling_a_setup_leaves_nothing(qgis):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an index that never answers
        slow = qgis.but(PIP_INDEX_URL=f"http://127.0.0.1:{silent.getsockname()[1]}/", PIP_CONFIG_FILE=os.devnull)
        run = slow.start(SETUP, TORCH="default")
        silent.settimeout(60)
        silent.accept()
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        told, _ = run.communicate(timeout=30)
    assert time.monotonic() - began < 3  # the environment's thousands of files are deleted too
    assert "Cancelled" in told
    assert run.returncode != 0
    assert not list(qgis.folder.rglob("pyvenv.cfg"))


@pytest.mark.skipif("LUNAR_TEST_SETUP" not in os.environ, reason="downloads 400 MB; set LUNAR_TEST_SETUP=1 to run it")
def test_the_whole_setup(qgis, tmp_path):
    pins = tmp_path / "pins.txt"
    pins.write_text(os.environ.get("LUNAR_TEST_CONSTRAINTS", "torch==2.13.0") + "\n")
    run = qgis.run(SETUP, CONSTRAINTS=pins)
    assert run.returncode == 0, run.log
    used = qgis.run("lunar:enhancepsr", INPUT=_any(tmp_path), OUTPUT=tmp_path / "b.tif", MODEL="stretch")
    assert used.returncode == 0, used.log
    assert "that “Set up the engine…” made" in used.log


def test_the_engine_sees_nothing_of_qgiss_libraries(qgis):
    told = qgis.but(
        GDAL_DATA="/qgis/gdal", PROJ_LIB="/qgis/proj", LD_LIBRARY_PATH="/qgis/lib", LUNAR_MODELS="/my/models"
    ).script("""
        os.environ["PYTHONHOME"] = "/qgis/python"
        from lunar_qgis_plugin import engine
        tell(engine.environment())
    """)
    assert not {"GDAL_DATA", "PROJ_LIB", "LD_LIBRARY_PATH", "PYTHONHOME"} & set(told)
    assert told["PYTHONPATH"] == str(qgis.plugin / "engine")
    assert told["LUNAR_MODELS"] == "/my/models"
    assert told["PATH"]


def test_the_settings_page_keeps_what_it_shows(qgis, tmp_path):
    told = qgis.script(
        """
        from lunar_qgis_plugin.settings import SettingsPageFactory
        page = SettingsPageFactory().createWidget(None)
        before = [page.python.filePath(), page.device.currentText(), page.state.text()]
        page.python.setFilePath("/no/python")
        missing = page.state.text()
        page.folders.setPlainText("/models/a\\n\\n /models/b ")
        page.device.setCurrentText("cpu")
        page.apply()
        again = SettingsPageFactory().createWidget(None)
        from lunar_qgis_plugin import engine
        algorithm = QgsApplication.processingRegistry().algorithmById("lunar:enhancepsr").create()
        tell({"before": before, "missing": missing, "folders": engine.model_folders(),
              "again": [again.python.filePath(), again.device.currentText()],
              "default": algorithm.parameterDefinition("DEVICE").defaultValue()})
        """
    )
    assert told["before"] == ["", "auto", "The engine is not set up yet."]
    assert told["missing"] == "/no/python is not there."
    assert told["folders"] == ["/models/a", "/models/b"]
    assert told["again"] == ["/no/python", "cpu"]
    assert told["default"] == "cpu"


@pytest.mark.skipif(not shutil.which("xvfb-run") or not shutil.which("qgis"), reason="needs qgis and xvfb-run")
def test_the_window_of_qgis_shows_the_plugin_and_lets_it_go(qgis, tmp_path):
    """The real program on a virtual screen: menu, hint, toolbox, settings; then the plugin is unloaded."""
    code, answer = tmp_path / "look.py", tmp_path / "answer.txt"
    code.write_text(f"""
import os, traceback
from qgis.core import QgsApplication
from qgis.PyQt.QtCore import QTimer
from qgis.utils import iface, plugins, unloadPlugin
def look():
    try:
        menu = [action.text() for action in iface.pluginMenu().actions()]
        hints = [item.text() for item in iface.messageBar().items()]
        there = QgsApplication.processingRegistry().providerById("lunar") is not None
        import processing
        dialog = processing.createAlgorithmDialog("lunar:segmentrocks", {{}})
        dialog.show()
        unloaded = unloadPlugin("lunar_qgis_plugin")
        gone = QgsApplication.processingRegistry().providerById("lunar") is None
        left = [action.text() for action in iface.pluginMenu().actions()]
        said = [menu.count("Lunar"), len([h for h in hints if "engine is not set up" in h]), there, unloaded, gone,
                left.count("Lunar")]
    except Exception:
        said = traceback.format_exc()
    with open({str(answer)!r}, "w") as file:
        file.write(repr(said))
    os._exit(0)
QTimer.singleShot(2500, look)
""")
    subprocess.run(
        ["xvfb-run", "-a", "qgis", "--nologo", "--noversioncheck", "--code", str(code)],
        env={**qgis.environment(), "QT_QPA_PLATFORM": "xcb"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert answer.read_text() == "[1, 1, True, True, True, 0]"


def _any(folder: Path) -> Path:
    path = folder / "any.tif"
    with rasterio.open(path, "w", driver="GTiff", count=1, height=60, width=60, dtype="uint8") as file:
        file.write(np.random.default_rng(0).integers(1, 255, (1, 60, 60), np.uint8))
    return path
