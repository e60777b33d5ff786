"""Set up the engine: find or make a Python for it, once, and end with a diagnosis to copy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qgis.core import (
    Qgis,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputString,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFile,
    QgsSettings,
)

from .. import engine
from .base import LunarAlgorithm, add, advanced, choice

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST = (3, 9)
PROBE = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
NO_BASE = (
    "No Python from 3.9 on that can make a virtual environment was found. Cure: install Python from python.org or, on "
    "Debian and Ubuntu, with “sudo apt install python3-venv”, then name it under “Python to start from” (advanced)."
)


@dataclass(frozen=True)
class Step:
    """One command of the setup, in words and as it is run."""

    words: str
    command: list[str]


class SetUpEngine(LunarAlgorithm):
    """`lunar:setupengine`."""

    NAME = "setupengine"
    TITLE = "Set up the engine…"
    GROUP = "Engine"
    ICON = "setup"
    TAGS = ("install", "python", "torch", "environment", "diagnosis", "doctor")
    ABOUT = (
        "The tools of this plugin run in a Python of their own, so that torch and rasterio never meet the libraries "
        "that QGIS has loaded. This sets it up, once: it makes a virtual environment in your data folder and "
        "installs what the engine needs there, or takes a Python that you name. QGIS's own Python stays untouched.\n\n"
        "The log first shows every step. Tick “Only show what would be done” to see them and stop there. At the end "
        "stands a diagnosis (versions, device, paths) to copy into a report."
    )
    CONTENTS = {
        "Results": {
            "PYTHON_USED": "the engine's Python",
            "DIAGNOSIS": "versions, device and paths, as “lunar doctor” tells them",
            "PLAN": "the steps, one a line",
        }
    }

    def shortDescription(self) -> str:
        return "Makes or checks the Python that runs the tools, and ends with a diagnosis."

    def initAlgorithm(self, configuration: dict | None = None) -> None:
        def file(name: str, title: str) -> QgsProcessingParameterFile:
            parameter = QgsProcessingParameterFile(name, title, QgsProcessingParameterFile.Behavior.File, optional=True)
            parameter.setFileFilter("All files (*)")  # the default, *.*, refuses names without a dot
            return parameter

        add(
            self,
            QgsProcessingParameterBoolean("DRY_RUN", "Only show what would be done", False),
            "Show the steps and the diagnosis of what is there already; change nothing.",
        )
        add(
            self,
            file("PYTHON", "Use this Python (instead of making one)"),
            "A Python that has all the engine needs already, for example of a conda environment. It is checked and "
            "remembered as setting; nothing is installed into it. Left empty, a virtual environment is made in "
            f"{engine.venv_folder()}, or the one there is completed.",
        )
        add(
            self,
            choice("TORCH", "Build of torch", ("cpu", "default")),
            "cpu: about 200 MB, runs everywhere. default: what PyPI offers for this computer: on Linux the build for "
            "NVIDIA GPUs, several GB; on a Mac the same build serves CPU and Apple GPU.",
        )
        add(
            self,
            QgsProcessingParameterBoolean("INSTALL_MODELS", "Install the trained models", True),
            "Also get the trained models of this version (about 30 MB) into your data folder, where updates of the "
            "plugin leave them. Without them the tools use methods that need no training.",
        )
        add(
            self,
            advanced(file("MODELS", "Archive of models")),
            "An archive lunar-models-VERSION.zip that you have already. Left empty, it is fetched from the release.",
        )
        add(
            self,
            advanced(file("CONSTRAINTS", "Constraints for pip")),
            "A pip constraints file that pins versions, for example a line “torch==2.13.0”. A torch pinned there is "
            "taken from pip's usual index, whatever build is chosen above.",
        )
        add(
            self,
            advanced(file("BASE_PYTHON", "Python to start from")),
            "The Python (3.9 or later) that makes the virtual environment. Left empty: one that QGIS brings or the "
            "system has.",
        )
        add(
            self,
            advanced(QgsProcessingParameterBoolean("RECREATE", "Delete the virtual environment first", False)),
            "Start from nothing, where an earlier setup is broken.",
        )
        self.addOutput(QgsProcessingOutputString("PYTHON_USED", "The engine's Python"))
        self.addOutput(QgsProcessingOutputString("DIAGNOSIS", "Diagnosis"))
        self.addOutput(QgsProcessingOutputString("PLAN", "Steps"))

    def processAlgorithm(self, parameters, context, feedback) -> dict:
        def text(name: str) -> str:
            return self.parameterAsFile(parameters, name, context)

        only_show = self.parameterAsBoolean(parameters, "DRY_RUN", context)
        if text("PYTHON"):
            python, steps, fresh = Path(text("PYTHON")).absolute(), [], None
            feedback.pushInfo(f"Will check {python} and remember it as the engine's Python. Nothing is installed.")
        else:
            folder = engine.venv_folder()
            recreate = self.parameterAsBoolean(parameters, "RECREATE", context)
            python, fresh = engine.venv_python(folder), folder
            steps = plan(
                folder,
                base_python(text("BASE_PYTHON")),
                self.parameterAsEnumString(parameters, "TORCH", context),
                text("CONSTRAINTS"),
                recreate,
            )
            feedback.pushInfo(f"Will set up the engine in {folder}:")
            if recreate and folder.exists():
                feedback.pushInfo("• delete the virtual environment that is there")
            for step in steps:
                feedback.pushInfo(f"• {step.words}\n    {engine.spoken(step.command)}")
            if not only_show:
                install(steps, folder, recreate, feedback)
        told = {"PLAN": "\n".join(s.words for s in steps), "PYTHON_USED": str(python)}
        if only_show and not python.is_file():
            feedback.pushInfo("Nothing was changed. The engine is not set up yet.")
            return {**told, "DIAGNOSIS": ""}
        diagnosis = diagnose(python)
        feedback.pushInfo(f"\n{diagnosis}\n")
        if only_show:
            feedback.pushInfo("Nothing was changed.")
        else:
            QgsSettings().setValue("lunar/engine_python", "" if fresh else str(python))
            used, who = engine.find_python()
            if used != python:
                feedback.pushWarning(f"The tools will use {used} all the same, because of {who}.")
            feedback.pushInfo("The engine is ready.")
            if self.parameterAsBoolean(parameters, "INSTALL_MODELS", context):
                install_models(python, text("MODELS"), feedback)
        feedback.setProgress(100)
        return {**told, "DIAGNOSIS": diagnosis}


# -- what will be done ---------------------------------------------------------------------------------------------


def plan(folder: Path, base: Path, torch: str, constraints: str, recreate: bool) -> list[Step]:
    """The commands that lead from nothing, or from what is there, to a complete environment in `folder`."""
    python = str(engine.venv_python(folder))
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    pinned = ["--constraint", str(Path(constraints).absolute())] if constraints else []
    needs = engine.requirements()
    steps = []
    if recreate or not engine.venv_python(folder).is_file():
        steps.append(Step(f"make a virtual environment with {base}", [str(base), "-m", "venv", str(folder)]))
    if torch == "cpu" and sys.platform != "darwin" and not pins_torch(constraints):
        only = [n for n in needs if n.startswith("torch")]
        steps.append(Step("install torch for the CPU (about 200 MB)", [*pip, *pinned, "--index-url", CPU_INDEX, *only]))
    steps.append(Step("install what the engine needs: " + ", ".join(needs), [*pip, *pinned, *needs]))
    return steps


def pins_torch(constraints: str) -> bool:
    """Whether a constraints file decides the version of torch."""
    if not constraints:
        return False
    lines = Path(constraints).read_text(encoding="utf-8").splitlines()
    return any(line.strip().lower().startswith("torch=") for line in lines)


def base_python(named: str = "") -> Path:
    """A Python that can make a virtual environment: the named one, else QGIS's own, else the system's."""
    candidates = [Path(named)] if named else _candidates()
    for candidate in candidates:
        if candidate.is_file() and _can_make_venv(candidate):
            return candidate
    raise QgsProcessingException(f"{named} cannot make a virtual environment. {NO_BASE}" if named else NO_BASE)


def _candidates() -> list[Path]:
    """What QGIS brings comes first. Its sys.executable may be QGIS itself, or any python3 that PATH has."""
    prefix, own = Path(sys.base_prefix), Path(sys.executable or "")
    found = [prefix / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}", prefix / "bin" / "python3"]
    found += [prefix / "python.exe", prefix / "python3.exe", own.parent / "bin" / "python3"]
    found += [own] if own.stem.lower().startswith("python") else []
    found += [Path(p) for p in map(shutil.which, ("python3", "python")) if p]
    return [*found, Path("/usr/bin/python3"), Path("/usr/local/bin/python3"), Path("/opt/homebrew/bin/python3")]


def _can_make_venv(python: Path) -> bool:
    try:
        told = subprocess.run(
            [str(python), "-c", PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=engine.environment(),
            timeout=30,
            creationflags=engine.SILENT,
            check=True,
        ).stdout
        return tuple(map(int, told.split())) >= OLDEST
    except (OSError, ValueError, subprocess.SubprocessError):
        return False


# -- doing it ------------------------------------------------------------------------------------------------------


def install(steps: list[Step], folder: Path, recreate: bool, feedback: QgsProcessingFeedback) -> None:
    """Run the steps. A new environment that cannot be completed is deleted; one that was there before is kept."""
    if recreate:
        shutil.rmtree(folder, ignore_errors=True)
    there_before = folder.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        for index, step in enumerate(steps):
            feedback.setProgress(95.0 * index / len(steps))
            feedback.setProgressText(step.words)
            code, complaint = engine.run_process(step.command, feedback, feedback.pushConsoleInfo)
            if code:
                raise QgsProcessingException(
                    f"This step of the setup failed: {step.words}.\n\n{complaint}\n\nCure: check the network and the "
                    "disk space (pip reads its proxy and index from its own configuration) and run this again."
                )
    except BaseException:
        if not there_before:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def install_models(python: Path, archive: str, feedback: QgsProcessingFeedback) -> None:
    """Install the trained models. Without them the tools still work, so a failure is a warning."""
    if not archive and any((engine.home() / "models").glob("*/model.json")):
        feedback.pushInfo(f"The trained models are there already: {engine.home() / 'models'}")
        return
    feedback.setProgressText("install the trained models")
    try:
        ran = engine.ask(["install-models", *([archive] if archive else []), "--overwrite"], python, timeout_s=1800)
        told, ok = (ran.stdout or ran.stderr).strip(), ran.returncode == 0
    except (OSError, subprocess.SubprocessError) as error:
        told, ok = str(error), False
    if ok:
        feedback.pushInfo(told)
    else:
        feedback.pushWarning(
            f"The trained models were not installed; the tools use methods that need no training.\n{told}\n"
            "Run this again later, or name an archive of models (advanced)."
        )


def diagnose(python: Path) -> str:
    """What `lunar doctor` says in this Python; raises when the engine cannot work there."""
    if not python.is_file():
        raise QgsProcessingException(f"There is no Python at {python}. Cure: name the file of a Python interpreter.")
    try:
        checked = engine.ask(["doctor", "--json"], python)
        spoken = engine.ask(["doctor"], python)
        json.loads(checked.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        complaint = str(error) if isinstance(error, OSError) else checked.stderr.strip().splitlines()[-1:]
        raise QgsProcessingException(
            f"{python} cannot run the engine: {complaint}. Cure: run this again without naming a Python, or install "
            f"there: {', '.join(engine.requirements())}."
        ) from error
    if checked.returncode:
        raise QgsProcessingException(f"The engine does not work in {python}.\n\n{spoken.stdout}{spoken.stderr}")
    where = (
        f"QGIS {Qgis.QGIS_VERSION} · Python {sys.version.split()[0]} in QGIS · {sys.platform}\n"
        f"engine's Python {python}\nengine {engine.home()}\n"
        f"model folders {os.pathsep.join(engine.model_folders()) or '–'}"
    )
    return f"{spoken.stdout.strip()}\n{where}"
