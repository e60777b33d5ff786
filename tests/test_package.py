"""The installable zip: what QGIS's plugin repository asks for, the whole engine, and nothing heavy."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lunar_processing.modelpack import Card, find_pack, save_pack
from lunar_processing.networks.convnet import Identity
from lunar_processing.tools.install_models import install_models

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = [sys.executable, str(REPOSITORY / ".ci" / "package.py")]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The zip, made from a copy of the checkout with things in it that do not belong into a plugin."""
    copy = tmp_path_factory.mktemp("checkout") / "lunar"
    copy.mkdir()
    for name in ("lunar_processing", "lunar_qgis_plugin", ".ci"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("metadata.txt", "LICENSE", "pyproject.toml"):
        shutil.copyfile(REPOSITORY / name, copy / name)
    (copy / "lunar_processing" / "weights.safetensors").write_bytes(b"\0" * 1000)
    save_pack(copy / "models" / "quiet", Card("quiet", "enhance", "identity"), Identity())
    (copy / "lunar_processing" / "__pycache__").mkdir()
    (copy / "lunar_processing" / "__pycache__" / "x.py").write_text("")
    (copy / "lunar_qgis_plugin" / "native.so").write_bytes(b"\x7fELF")
    (copy / "lunar_qgis_plugin" / ".hidden.py").write_text("")
    subprocess.run([sys.executable, str(copy / ".ci" / "package.py")], check=True, capture_output=True)
    (path,) = (copy / "dist").glob("lunar_qgis_plugin-*.zip")
    return path


def test_one_folder_named_as_the_plugin(archive):
    names = zipfile.ZipFile(archive).namelist()
    assert {name.split("/")[0] for name in names} == {"lunar_qgis_plugin"}
    for needed in (
        "metadata.txt",
        "LICENSE",
        "__init__.py",
        "icons/lunar.svg",
        "styles/rocks.qml",
        "examples/enhance_then_rocks.model3",
    ):
        assert f"lunar_qgis_plugin/{needed}" in names


def test_the_whole_engine_is_inside(archive):
    names = set(zipfile.ZipFile(archive).namelist())
    for module in (REPOSITORY / "lunar_processing").rglob("*.py"):
        assert (
            f"lunar_qgis_plugin/engine/lunar_processing/{module.relative_to(REPOSITORY / 'lunar_processing')}" in names
        )
    assert "lunar_qgis_plugin/engine/pyproject.toml" in names  # where the setup reads what to install


def test_the_models_are_an_archive_of_their_own_that_can_be_installed(archive, tmp_path):
    (models,) = archive.parent.glob("lunar-models-*.zip")
    assert list(install_models(str(models), tmp_path)) == ["quiet"]
    assert find_pack("quiet", [tmp_path]).network("cpu") is not None


def test_no_binaries_no_weights_no_caches_and_small(archive):
    names = zipfile.ZipFile(archive).namelist()
    assert not [n for n in names if "__pycache__" in n or "/." in n or n.endswith((".pyc", ".so", ".safetensors"))]
    for name in names:
        zipfile.ZipFile(archive).read(name).decode("utf-8")  # text, every file of it
    assert archive.stat().st_size < 25_000_000


def test_metadata_holds_what_qgis_asks_for(archive):
    metadata = configparser.ConfigParser()
    metadata.read_string(zipfile.ZipFile(archive).read("lunar_qgis_plugin/metadata.txt").decode("utf-8"))
    general = metadata["general"]
    for key in ("name", "description", "about", "version", "author", "email", "repository", "tracker", "homepage"):
        assert general[key].strip(), key
    assert general["qgisMinimumVersion"] == "3.22"
    assert general["qgisMaximumVersion"] == "4.99"
    assert general["hasProcessingProvider"] == "yes"
    assert f"lunar_qgis_plugin/{general['icon']}" in zipfile.ZipFile(archive).namelist()
    assert "GNU GENERAL PUBLIC LICENSE" in zipfile.ZipFile(archive).read("lunar_qgis_plugin/LICENSE").decode()


def test_the_same_tree_gives_the_same_bytes(archive):
    first = archive.read_bytes()
    subprocess.run([sys.executable, str(archive.parent.parent / ".ci" / "package.py")], check=True, capture_output=True)
    assert archive.read_bytes() == first


def test_versions_that_differ_are_refused(archive):
    metadata = archive.parent.parent / "metadata.txt"
    text = metadata.read_text(encoding="utf-8")
    metadata.write_text(text.replace("\nversion=", "\nversion=9"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(archive.parent.parent / ".ci" / "package.py")], capture_output=True, text=True
    )
    metadata.write_text(text, encoding="utf-8")
    assert done.returncode != 0
    assert "make them one" in done.stderr


def test_stage_lays_the_plugin_out(tmp_path):
    subprocess.run([*PACKAGE, "--stage", str(tmp_path / "päck age")], check=True, capture_output=True)
    plugin = tmp_path / "päck age" / "lunar_qgis_plugin"
    assert (plugin / "metadata.txt").is_file()
    assert (plugin / "engine" / "lunar_processing" / "__main__.py").is_file()
    done = subprocess.run(
        [sys.executable, "-m", "lunar_processing", "--version"], cwd=plugin / "engine", capture_output=True, text=True
    )
    assert done.stdout.startswith("lunar ")
