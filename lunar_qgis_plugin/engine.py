"""The one file that reaches the engine.

The engine is the package `lunar_processing`, run by a Python of its own, so that torch and rasterio never meet the
libraries that QGIS has loaded. It tells what it does as JSON lines on its standard output and stops as soon as its
standard input closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shlex
import signal
import sqlite3
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import quote

from qgis.core import QgsApplication, QgsProcessingException, QgsProcessingFeedback, QgsSettings
from qgis.PyQt.QtCore import QCoreApplication, QEventLoop, QThread

HERE = Path(__file__).resolve().parent
SET_UP = (
    "run “Set up the engine…” (lunar:setupengine) in the Processing toolbox, or name the Python that has it in "
    "Settings ▸ Options ▸ Lunar, or in the environment variable LUNAR_PYTHON."
)
# What QGIS, its launcher and its bundled libraries set for themselves would make the engine load the wrong ones.
FOREIGN = ("PYTHON", "GDAL_", "OGR_", "PROJ_", "GEOTIFF_", "CPL_", "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_", "QT_")
# How long a cancelled engine may take to clean up (it gives itself one second), then to end when told so.
PATIENCE_S, FIRM_S = 1.3, 0.3
STAGES = {
    "look": "Looking at the image",
    "profile": "Learning what is usual in the image",
    "work": "Computing",
    "products": "Doing the images",
    "finish": "Completing the files",
}
SILENT = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # no black console window on Windows


# -- where things are ---------------------------------------------------------------------------------------------


def home() -> Path:
    """Folder that holds the package `lunar_processing` and its `pyproject.toml`: in the plugin, or the checkout."""
    bundled = HERE / "engine"
    return bundled if (bundled / "lunar_processing").is_dir() else HERE.parent


def venv_folder() -> Path:
    """Where “Set up the engine…” makes the engine's own virtual environment."""
    return Path(QgsApplication.qgisSettingsDirPath()).absolute() / "lunar" / "engine"


def venv_python(folder: Path) -> Path:
    """The Python inside a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def find_python() -> tuple[Path, str]:
    """The engine's Python and who named it. A Python that was named but is not there is an error, not a detour."""
    named = (
        (QgsSettings().value("lunar/engine_python", "") or "", "the setting “Engine's Python”"),
        (os.environ.get("LUNAR_PYTHON", ""), "the environment variable LUNAR_PYTHON"),
    )
    for path, who in named:
        if path:
            if not Path(path).is_file():
                raise QgsProcessingException(
                    f"The engine's Python was not found: {who} names {path}, which is not there. Cure: {SET_UP}"
                )
            return Path(path).absolute(), who
    if venv_python(venv_folder()).is_file():
        return venv_python(venv_folder()), "the engine that “Set up the engine…” made"
    raise QgsProcessingException(f"The engine is not set up yet: no Python for it was found. Cure: {SET_UP}")


def is_set_up() -> bool:
    """Whether a Python for the engine is there (a look at the disk; nothing is started)."""
    try:
        find_python()
    except QgsProcessingException:
        return False
    return True


def model_folders() -> list[str]:
    """The folders of further models that the settings page names."""
    folders = QgsSettings().value("lunar/model_folders", []) or []
    return [folders] if isinstance(folders, str) else [f for f in folders if f]


def requirements() -> list[str]:
    """What the engine needs, from its `pyproject.toml`: the one place where it is written."""
    text = (home() / "pyproject.toml").read_text(encoding="utf-8")
    lines = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    return re.findall(r'"([^"]+)"', lines.group(1)) if lines else []


def environment() -> dict[str, str]:
    """This process's environment without what belongs to QGIS, and with the way to the engine."""
    clean = {k: v for k, v in os.environ.items() if not k.upper().startswith(FOREIGN)}
    if os.name == "nt":  # DLLs of QGIS are found through PATH
        prefix = os.path.normcase(QgsApplication.prefixPath().split("/apps/")[0])
        inside = [p for p in clean.get("PATH", "").split(os.pathsep) if os.path.normcase(p).startswith(prefix)]
        clean["PATH"] = os.pathsep.join(p for p in clean.get("PATH", "").split(os.pathsep) if p not in inside)
    # UTF-8 whatever the console's code page: paths and messages travel as text.
    return {**clean, "PYTHONPATH": str(home()), "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}


# -- running ------------------------------------------------------------------------------------------------------


def run_tool(
    arguments: list[str], feedback: QgsProcessingFeedback, outputs: Iterable[str] = (), partly: bool = False
) -> dict:
    """Run `lunar ARGUMENTS…` to its end and return its result event; with `partly` also where parts have failed.

    Progress, log and warnings go to `feedback`. Every other end than a complete result raises a
    QgsProcessingException that says the cure; unfinished versions of the files `outputs` are then deleted.
    """
    python, who = find_python()
    command = [str(python), "-m", "lunar_processing", *arguments, "--progress", "jsonl", "--watch-stdin"]
    feedback.pushDebugInfo(f"The engine's Python is {python} ({who}).")
    feedback.pushCommandInfo(spoken(command))
    telling = Telling(feedback)
    try:
        code, complaint = run_process(command, feedback, telling.hear)
    except BaseException:
        sweep(outputs)
        raise
    if (code == 0 or partly) and telling.result is not None:
        return telling.result
    sweep(outputs)
    raise QgsProcessingException(_reason(code, telling, complaint, python))


def ask(arguments: list[str], python: Path, timeout_s: float = 180) -> subprocess.CompletedProcess:
    """Run a short command of the engine (`models`, `doctor`) and return what it said."""
    return subprocess.run(
        [str(python), "-m", "lunar_processing", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environment(),
        cwd=home(),
        timeout=timeout_s,
        creationflags=SILENT,
        check=False,
    )


def run_process(
    command: list[str],
    feedback: QgsProcessingFeedback,
    hear: Callable[[str], None],
) -> tuple[int, str]:
    """Run a command, give each line of its standard output to `hear`, return exit code and the end of stderr.

    Cancelling the feedback closes the command's standard input, then asks it to end, then ends it, and raises.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            cwd=home(),
            creationflags=SILENT,
            start_new_session=os.name == "posix",  # Ctrl-C is for us; we tell the engine
        )
    except OSError as error:
        raise QgsProcessingException(f"{command[0]} cannot be started: {error.strerror}. Cure: {SET_UP}") from error
    lines: queue.Queue = queue.Queue()
    tail: deque = deque(maxlen=15)
    readers = [
        threading.Thread(target=_read, args=(process.stdout, lines.put), daemon=True),
        threading.Thread(target=_read, args=(process.stderr, tail.append), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        _listen(process, lines, feedback, hear, readers[0])
        code = process.wait()
    finally:
        _end(process)
    for reader in readers:
        reader.join(PATIENCE_S)
    return code, "".join(tail).strip()


def layers_of(geopackage: str) -> set[str]:
    """The layers of features of a GeoPackage."""
    with contextlib.closing(sqlite3.connect(f"file:{quote(geopackage)}?mode=ro", uri=True)) as database:
        return {str(name) for (name,) in database.execute("SELECT table_name FROM gpkg_contents")}


def spoken(command: list[str]) -> str:
    """A command as a person would type it."""
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)


def sweep(outputs: Iterable[str]) -> None:
    """Delete the unfinished versions (`.NAME.partial-PID.SUFFIX`) that a killed engine left beside its outputs."""
    for output in outputs:
        final = Path(output)
        for left in final.parent.glob(f".{_literal(final.stem)}.partial-*"):
            with contextlib.suppress(OSError):
                left.unlink()


class Telling:
    """What the engine tells in JSON lines, passed on to a QGIS feedback and remembered."""

    def __init__(self, feedback: QgsProcessingFeedback) -> None:
        self.feedback = feedback
        self.result: dict | None = None
        self.error: dict | None = None
        self.warnings: list[str] = []
        self.stage = ""

    def hear(self, line: str) -> None:
        try:
            event = json.loads(line)
            kind = event["event"]
        except (ValueError, TypeError, KeyError):
            self.feedback.pushConsoleInfo(line)  # a library that speaks out of turn
            return
        {"progress": self._progress, "log": self._log, "error": self._error, "result": self._result}.get(
            kind, lambda _: None
        )(event)

    def _progress(self, event: dict) -> None:
        if event.get("stage", "") != self.stage:
            self.stage = event["stage"]
            self.feedback.setProgressText(STAGES.get(self.stage, self.stage))
        self.feedback.setProgress(100.0 * float(event.get("fraction") or 0.0))

    def _log(self, event: dict) -> None:
        message = str(event.get("message", ""))
        if event.get("level") == "warning":
            self._warn(message)
        else:
            self.feedback.pushInfo(message)

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            self.feedback.pushWarning(message)

    def _error(self, event: dict) -> None:
        self.error = event

    def _result(self, event: dict) -> None:
        self.result = {k: v for k, v in event.items() if k != "event"}
        for message in event.get("warnings", []):
            self._warn(str(message))


def _listen(process, lines: queue.Queue, feedback, hear, reader: threading.Thread) -> None:
    """Hear lines until the command falls silent for good, and notice within a tenth of a second when to stop."""
    while reader.is_alive() or not lines.empty():
        with contextlib.suppress(queue.Empty):
            hear(lines.get(timeout=0.1).rstrip("\r\n"))
        _process_events()
        if feedback.isCanceled():
            _end(process)
            raise QgsProcessingException("Cancelled. Nothing was written.")


def _process_events() -> None:
    """Let qgis_process, which runs algorithms in its main thread, see Ctrl-C; not let a user start other things."""
    application = QCoreApplication.instance()
    if application is not None and QThread.currentThread() == application.thread():
        application.processEvents(QEventLoop.ProcessEventsFlag.ExcludeUserInputEvents)


def _end(process: subprocess.Popen) -> None:
    """End a command, gently first: close its input, terminate it, kill it."""
    with contextlib.suppress(OSError):
        process.stdin.close()
    for force, patience_s in ((None, PATIENCE_S), (process.terminate, FIRM_S), (process.kill, PATIENCE_S)):
        if process.poll() is None:
            if force:
                force()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)


def _read(stream, take: Callable[[str], None]) -> None:
    with stream:
        for line in stream:
            take(line.decode("utf-8", errors="replace"))


def _literal(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


# -- what went wrong, in plain words ------------------------------------------------------------------------------


def _reason(code: int, telling: Telling, complaint: str, python: Path) -> str:
    """Why there is no result, and the cure."""
    if telling.error:
        cure = telling.error.get("cure")
        return str(telling.error.get("message", "The engine failed.")) + (f" Cure: {cure}" if cure else "")
    missing = re.search(r"No module named '?([\w.]+)'?", complaint)
    if missing:
        return f"The engine's Python {python} lacks the package “{missing.group(1)}”. Cure: {SET_UP}"
    if code < 0 or code in (137, 3221225786):
        return (
            f"The engine was killed in the middle ({_signal_name(code)}); unfinished files were deleted. A system "
            "that runs out of memory does this. Cure: close other programs, or choose the CPU as device and a "
            f"smaller part of the image, and run again.{_quoted(complaint)}"
        )
    if code == 0:
        return f"The engine ended without a result. Cure: {SET_UP}{_quoted(complaint)}"
    return (
        f"The engine {python} failed with exit code {code}. Cure: run “Set up the engine…” with “Only show what "
        f"would be done” for a diagnosis, and report it.{_quoted(complaint)}"
    )


def _signal_name(code: int) -> str:
    number = -code if code < 0 else 9
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"exit code {code}"


def _quoted(complaint: str) -> str:
    return f"\n\nIts last words:\n{complaint}" if complaint else ""
