"""`lunar install-models`: from an archive, a folder or an address; complete and checked, or not at all."""

from __future__ import annotations

import functools
import http.server
import json
import stat
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from running import lunar

from lunar_processing.errors import ModelError, OutputError
from lunar_processing.modelpack import Card, find_pack, model_folders, save_pack
from lunar_processing.networks.convnet import ConvNet
from lunar_processing.tools.install_models import install_models

SETTINGS = {"channels": 2, "depth": 1, "outputs": 1}
CARD = Card("quiet", "enhance", "convnet", settings=SETTINGS, tile=64, halo=4)


def model(folder: Path, card: Card = CARD, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    return save_pack(folder / card.id, card, ConvNet(**SETTINGS)).folder


def packed(archive: Path, folder: Path, **more: bytes | str) -> Path:
    with zipfile.ZipFile(archive, "w") as box:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                box.write(path, path.relative_to(folder))
        for name, content in more.items():
            box.writestr(name, content)
    return archive


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of two models."""
    model(tmp_path / "source")
    model(tmp_path / "source", replace(CARD, id="loud"))
    return tmp_path / "source"


def test_an_archive_is_installed_and_the_models_are_found_and_work(source, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "data"))
    done = install_models(str(packed(tmp_path / "models.zip", source)))
    assert list(done) == ["loud", "quiet"]
    own = model_folders()[-1]
    assert {path.name for path in own.iterdir()} == {"loud", "quiet"}
    network = find_pack("quiet").network("cpu")
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 1, 8, 8)


def test_a_folder_of_models_or_a_single_one(source, tmp_path):
    assert list(install_models(str(source), tmp_path / "a")) == ["loud", "quiet"]
    assert list(install_models(str(source / "quiet"), tmp_path / "b")) == ["quiet"]


def test_an_address_is_fetched(source, tmp_path):
    packed(tmp_path / "models.zip", source)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            assert list(install_models(f"{address}/models.zip", tmp_path / "to")) == ["loud", "quiet"]
            with pytest.raises(ModelError, match="could not be fetched") as error:
                install_models(f"{address}/no.zip", tmp_path / "to")
        finally:
            server.shutdown()
    assert "fetch the file elsewhere" in str(error.value)


def test_what_is_there_already_stays_and_another_version_is_replaced_only_if_allowed(source, tmp_path):
    install_models(str(source), tmp_path / "to")
    assert install_models(str(source), tmp_path / "to")["quiet"].startswith("already in")
    newer = tmp_path / "newer"
    old = find_pack("quiet", [tmp_path / "to"]).card.sha256
    new = json.loads((model(newer, seed=1) / "model.json").read_text())["sha256"]
    with pytest.raises(OutputError, match="another version"):
        install_models(str(newer), tmp_path / "to")
    assert find_pack("quiet", [tmp_path / "to"]).card.sha256 == old
    assert install_models(str(newer), tmp_path / "to", overwrite=True)["quiet"].startswith("installed")
    assert find_pack("quiet", [tmp_path / "to"]).card.sha256 == new
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"loud", "quiet"}


@pytest.mark.parametrize("name", ["../evil/model.json", "/evil/model.json", "a/b/c", "model.json", "..\\evil", "a/.b"])
def test_archives_cannot_reach_out_of_their_folder(source, tmp_path, name):
    archive = packed(tmp_path / "models.zip", source)
    with zipfile.ZipFile(archive, "a") as box:
        box.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(ModelError, match="no file of a model"):
        install_models(str(archive), tmp_path / "to")
    assert list((tmp_path / "to").iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_links_in_archives_are_refused(source, tmp_path):
    archive = packed(tmp_path / "models.zip", source)
    link = zipfile.ZipInfo("quiet/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as box:
        box.writestr(link, "/etc/passwd")
    with pytest.raises(ModelError, match="no file of a model"):
        install_models(str(archive), tmp_path / "to")


def test_archives_cannot_fill_the_disk(tmp_path):
    """A gigabyte of zeros packs to a megabyte; a header may also lie about it."""
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as box, box.open("big/weights", "w") as file:
        for _ in range(513):
            file.write(bytes(1 << 20))
    with pytest.raises(ModelError, match="more than models can need"):
        install_models(str(archive), tmp_path / "to")
    raw = archive.read_bytes()
    archive.write_bytes(raw.replace((513 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(ModelError):
        install_models(str(archive), tmp_path / "to")
    assert sum(path.stat().st_size for path in (tmp_path / "to").rglob("*")) == 0


def test_damaged_models_and_archives_are_refused_whole(source, tmp_path):
    weights = source / "quiet" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(ModelError, match="damaged"):
        install_models(str(packed(tmp_path / "models.zip", source)), tmp_path / "to")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "models.zip").read_bytes()[:500])
    with pytest.raises(ModelError, match="no archive"):
        install_models(str(tmp_path / "cut.zip"), tmp_path / "to")
    assert list((tmp_path / "to").iterdir()) == []


def test_the_command_says_what_it_did_and_what_is_wrong(source, tmp_path):
    ran = lunar("install-models", source, "--into", tmp_path / "to", "--json")
    assert ran.code == 0, ran.err
    assert set(json.loads(ran.out)["models"]) == {"loud", "quiet"}
    wrong = lunar("install-models", tmp_path / "nothing.zip", "--into", tmp_path / "to")
    assert wrong.code == 1
    assert "There is no" in wrong.err
    (tmp_path / "empty").mkdir()
    assert "holds no model" in lunar("install-models", tmp_path / "empty", "--into", tmp_path / "to").err
