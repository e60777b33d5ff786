"""A real QGIS with the packaged plugin and a profile of its own, for tests and for the demo.

qgis = Qgis.installed(tmp_path)              # lays out the plugin, makes a profile, enables the plugin
qgis.run("lunar:segmentrocks", INPUT=image, OUTPUT=rocks)   # real qgis_process; .results, .log, .returncode
qgis.script("from qgis.core import …", "argument")          # Python inside a QgsApplication; returns its JSON
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PLUGIN = "lunar_qgis_plugin"
# Debian's wrapper qgis_process passes an option that qgis_process does not know.
QGIS_PROCESS = shutil.which("qgis_process.bin") or shutil.which("qgis_process")
BEGIN = """
import json, os, sys
from qgis.core import *
QgsApplication.setPrefixPath(os.environ.get("QGIS_PREFIX_PATH", "/usr"), True)
application = QgsApplication([], True, os.environ["LUNAR_TEST_PROFILE"])
application.initQgis()
sys.path[:0] = [os.environ["QGIS_PLUGINPATH"], "/usr/share/qgis/python/plugins"]
import processing
from processing.core.Processing import Processing
Processing.initialize()
import lunar_qgis_plugin
plugin = lunar_qgis_plugin.classFactory(None)
plugin.initProcessing()
def tell(value):
    with open(os.environ["LUNAR_TEST_ANSWER"], "w", encoding="utf-8") as file:
        json.dump(value, file)
class Log(QgsProcessingFeedback):
    def __init__(self):
        super().__init__(False)
"""
END = """
del plugin
os._exit(0)  # QGIS's own teardown may crash after all is done
"""


@dataclass(frozen=True)
class Run:
    """How a run of qgis_process ended."""

    returncode: int
    results: Mapping[str, object]
    log: str
    stdout: str


@dataclass(frozen=True)
class Qgis:
    """QGIS with the plugin, kept apart from the user's own."""

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def installed(cls, folder: Path, python: str | Path | None = sys.executable, **variables: str) -> Qgis:
        """Lay out the plugin below `folder`, with `python` to run the engine (None: none is set up)."""
        if QGIS_PROCESS is None or not system_python():
            pytest.skip("QGIS is not installed (Debian: sudo apt install qgis python3-qgis)")
        stage(folder / "plugins")
        (folder / "runtime").mkdir(mode=0o700, exist_ok=True)
        engine = {"LUNAR_PYTHON": str(python)} if python else {}
        qgis = cls(folder, {**engine, **variables})
        qgis.process("plugins", "enable", PLUGIN)
        return qgis

    def but(self, **variables: str) -> Qgis:
        """The same QGIS with further environment variables."""
        return Qgis(self.folder, {**self.variables, **variables})

    @property
    def plugin(self) -> Path:
        return self.folder / "plugins" / PLUGIN

    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LUNAR", "QGIS", "VIRTUAL_ENV"))}
        return {
            **clean,
            "QT_QPA_PLATFORM": "offscreen",
            "XDG_RUNTIME_DIR": str(self.folder / "runtime"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "XDG_DATA_HOME": str(self.folder / "data"),
            "QGIS_PLUGINPATH": str(self.folder / "plugins"),
            "LUNAR_TEST_PROFILE": str(self.folder / "profile"),
            "LUNAR_TEST_ANSWER": str(self.folder / "answer.json"),
            **self.variables,
        }

    def process(self, *arguments: str, timeout: float = 170) -> subprocess.CompletedProcess[str]:
        """`qgis_process ARGUMENTS…`"""
        return subprocess.run(
            [str(QGIS_PROCESS), *arguments],
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
        )

    def start(self, algorithm: str, **parameters: object) -> subprocess.Popen[str]:
        """Start `qgis_process run` and do not wait for its end."""
        return subprocess.Popen(
            [str(QGIS_PROCESS), "run", algorithm, "--", *_words(parameters)],
            env=self.environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )

    def run(self, algorithm: str, **parameters: object) -> Run:
        """`qgis_process --json run ALGORITHM`, to its end."""
        done = self.process("--json", "run", algorithm, "--", *_words(parameters))
        try:
            told = json.loads(done.stdout)
        except ValueError:
            told = {}
        log = told.get("log", {})
        spoken = "\n".join(str(line) for lines in log.values() for line in lines) if isinstance(log, dict) else str(log)
        return Run(done.returncode, told.get("results", {}), f"{spoken}\n{done.stderr}", done.stdout)

    def script(self, code: str, *arguments: object, python: str | None = None) -> object:
        """Run code in a QgsApplication of QGIS's own Python, with the plugin loaded; what it `tell`s comes back."""
        answer = self.folder / "answer.json"
        answer.unlink(missing_ok=True)
        path = self.folder / "script.py"
        path.write_text(BEGIN + textwrap.dedent(code) + END, encoding="utf-8")
        done = subprocess.run(
            [python or system_python(), str(path), *map(str, arguments)],
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=170,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else None


def stage(folder: Path) -> Path:
    """Lay out the plugin as it is packaged."""
    subprocess.run(
        [sys.executable, str(REPOSITORY / ".ci" / "package.py"), "--stage", str(folder)],
        check=True,
        capture_output=True,
    )
    return folder / PLUGIN


def system_python() -> str:
    """The Python that has QGIS's bindings and, on purpose, none of the engine's packages."""
    for python in ("/usr/bin/python3", sys.executable):
        if (
            Path(python).exists()
            and not subprocess.run([python, "-c", "import qgis.core"], capture_output=True).returncode
        ):
            return python
    return ""


def children_of(pid: int) -> list[int]:
    """Processes that a process has started and that still run."""
    children = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it ended while we looked
            facts = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            if int(facts["PPid"]) == pid and not facts["State"].startswith("Z"):
                children.append(int(facts["Pid"]))
    return children


def left_in(folder: Path) -> list[str]:
    """Names of all files in a folder, the hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def _words(parameters: Mapping[str, object]) -> list[str]:
    return [f"{name}={value}" for name, value in parameters.items()]
