"""Who may import whom. The table is the house: a new room, or a new way between rooms, is decided here."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ENGINE, PLUGIN = REPOSITORY / "lunar_processing", REPOSITORY / "lunar_qgis_plugin"

PLACE = {"errors", "grid", "planet"}
ROOMS = {  # room of the engine → the rooms it may import
    "errors": set(),
    "grid": {"errors"},
    "planet": {"errors", "grid"},
    "draft": {"errors"},
    "strict": set(),
    "devices": {"errors"},
    "raster": {*PLACE, "draft"},
    "vector": {*PLACE, "draft"},
    "blobs": PLACE,
    "sizes": set(),
    "classical": set(),
    "networks": {"errors"},
    "modelpack": {"errors", "draft", "networks"},
    "provenance": {"errors", "modelpack"},
    "pipeline": {"errors", "grid", "devices", "raster"},
    "backends": {"errors", "devices", "networks"},
    "tools": {
        *PLACE,
        *("draft", "raster", "vector", "blobs", "classical", "modelpack", "networks", "provenance", "pipeline"),
        *("devices", "backends", "simulate", "training", "evaluate", "sizes", "strict"),
    },
    "simulate": {"errors"},
    "training": {"errors", "draft", "strict", "devices", "networks", "modelpack", "simulate"},
    "evaluate": {"errors", "simulate"},
    "inventory": {*PLACE, "raster", "modelpack", "provenance", "tools"},
    "console": {"errors", "draft", "strict"},
    "batch": {*PLACE, "draft", "raster", "vector", "modelpack", "provenance", "tools"},
    "__main__": {"errors", "tools", "inventory", "console", "batch", "training", "evaluate", "simulate"},
}
OUTSIDE = {  # room → the packages it may import besides the standard library, where that matters
    "errors": set(),
    "draft": set(),
    "strict": set(),
    "grid": {"numpy", "affine"},
    "planet": {"numpy", "affine", "pyproj"},
    "raster": {"numpy", "affine", "rasterio"},
    "vector": {"numpy", "pyogrio", "pyproj", "shapely"},
    "classical": {"numpy", "scipy", "skimage", "sklearn"},
    "sizes": {"numpy", "scipy"},
    "networks": {"numpy", "torch", "safetensors"},
    "backends": {"torch", "openvino"},
    "simulate": {"numpy", "torch", "safetensors"},
    "training": {"numpy", "torch", "safetensors", "tqdm"},
}
MAY_USE_TORCH = {
    "backends",
    "devices",
    "networks",
    "modelpack",
    "pipeline",
    "tools",
    "inventory",
    "simulate",
    "training",
    "evaluate",
}
NEVER = {
    "pickle",
    "dill",
    "joblib",
    "torchvision",
    "timm",
    "segmentation_models_pytorch",
    "osgeo",
    "fiona",
    "qgis",
    "PyQt5",
}


def imports(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, at its top or inside its functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


def rooms() -> dict[str, list[Path]]:
    """Room of the engine → its files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(ENGINE.rglob("*.py")):
        parts = path.relative_to(ENGINE).with_suffix("").parts
        if parts != ("__init__",):
            found.setdefault(parts[0], []).append(path)
    return found


def imported_by(room: str) -> set[str]:
    return {name for path in rooms()[room] for name in imports(path)}


def packages(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"lunar_processing"}


def test_every_room_is_in_the_table():
    assert set(rooms()) <= set(ROOMS)


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_only_the_rooms_below_it(room):
    entered = {name.split(".")[1] for name in imported_by(room) if name.startswith("lunar_processing.")}
    entered = {name for name in entered if name in rooms()}
    assert entered - {room} <= ROOMS[room]


def test_no_two_rooms_need_each_other():
    left = {room: set(below) for room, below in ROOMS.items()}
    while free := [room for room, below in left.items() if not below & set(left)]:
        for room in free:
            del left[room]
    assert not left, "these rooms import one another in a circle"


@pytest.mark.parametrize("room", sorted(set(OUTSIDE) & set(rooms())))
def test_a_room_needs_no_more_packages_than_it_may(room):
    assert packages(imported_by(room)) <= OUTSIDE[room]


@pytest.mark.parametrize("room", rooms())
def test_the_engine_knows_neither_qgis_nor_pickles(room):
    assert not packages(imported_by(room)) & NEVER
    assert not {name.split(".")[0] for name in imported_by(room)} & NEVER


def test_torch_stays_in_its_rooms():
    assert {room for room in rooms() if "torch" in packages(imported_by(room))} <= MAY_USE_TORCH


def test_place_and_files_load_without_torch():
    code = (
        "import sys, lunar_processing.raster.image, lunar_processing.raster.writer, lunar_processing.vector, "
        "lunar_processing.planet, lunar_processing.__main__; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_raster_files_are_opened_in_one_room():
    for room, paths in rooms().items():
        for path in paths:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                opens = (
                    isinstance(node, ast.Attribute) and node.attr == "open" and ast.unparse(node.value) == "rasterio"
                )
                assert not opens or room == "raster", f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", sorted(PLUGIN.rglob("*.py")), ids=lambda path: path.stem)
def test_the_plugin_needs_only_qgis_and_the_standard_library(path):
    assert packages(set(imports(path))) <= {"qgis", "processing"}
    assert not {name for name in imports(path) if name.startswith("lunar_processing")}
    assert not {name for name in imports(path) if name.split(".")[0] in {"PyQt5", "PyQt6", "multiprocessing"}}


def test_the_plugin_reaches_the_engine_through_one_file():
    def starts_processes(path: Path) -> bool:
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        return any("lunar_processing" in ast.unparse(call) for call in calls)

    assert [path.name for path in sorted(PLUGIN.rglob("*.py")) if starts_processes(path)] == ["engine.py"]


def test_nothing_is_unpickled():
    for path in (*ENGINE.rglob("*.py"), *PLUGIN.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"torch.load", "pickle.load", "pickle.loads"}, path
                allows = [word for word in node.keywords if word.arg == "allow_pickle"]
                assert all(ast.unparse(word.value) == "False" for word in allows), path


SHELLS = {
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
}
RUNS_TEXT = {"eval", "exec", "compile", "__builtins__.eval"}
UNPACKS = {"extract", "extractall", "unpack_archive"}  # of archives, whose names may lead anywhere


def test_nothing_passes_a_shell_runs_text_or_unpacks_blindly():
    """Names of files and layers are a stranger's words: they reach other programs as arguments, and nothing else."""
    for path in (*ENGINE.rglob("*.py"), *PLUGIN.rglob("*.py"), *(REPOSITORY / ".ci").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                where, called = f"{path}:{node.lineno}", ast.unparse(node.func)
                assert called not in SHELLS | RUNS_TEXT, where
                assert called.rpartition(".")[2] not in UNPACKS, where
                assert "shell" not in {word.arg for word in node.keywords}, where
                if called in ("subprocess.run", "subprocess.Popen", "subprocess.check_output", "subprocess.check_call"):
                    assert not isinstance(node.args[0], (ast.Constant, ast.JoinedStr)), f"{where}: a list, not a text"


def test_the_library_does_not_print():
    """A word on standard output would break the JSON lines that programs read; only the command line speaks."""
    for room, paths in rooms().items():
        for path in paths:
            prints = [
                node
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
            ]
            assert not prints or room in {"__main__", "console"}, f"{path.name}:{prints[0].lineno}"
