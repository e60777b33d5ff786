"""Install models: from an archive, a folder or an address, into the user's own folder of models.

Archives may come from strangers. Only plain files one folder deep are taken out of them, no more than a model can
need, under names that stay inside; and a model appears under its name only when its card and weights agree.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

from lunar_processing import __version__
from lunar_processing.errors import ModelError, OutputError
from lunar_processing.modelpack import CARD, Pack, own_folder, read_pack

RELEASE = "https://github.com/lunar-image-lab/lunar-image-lab/releases/download/v{0}/lunar-models-{0}.zip"
MEMBER = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)")
LARGEST_FILE, LARGEST_ARCHIVE = 512 << 20, 2 << 30  # bytes, unpacked
MOST_FILES = 1000
PATIENCE_S = 60.0  # for an address that says nothing
BLOCK = 1 << 20


def install_models(source: str | None = None, into: Path | None = None, overwrite: bool = False) -> dict[str, str]:
    """Install the models of `source` (default: those released with this version); id → what became of it.

    A model that is there already with the same weights stays. With other weights it is replaced only if `overwrite`.
    """
    target = (into or own_folder()).absolute()
    source = source or RELEASE.format(__version__)
    with _workshop(target) as work:
        packs = [read_pack(folder) for folder in _models(source, work)]
        if not packs:
            raise ModelError(f"{source} holds no model.", f"a model is a folder with a {CARD} in it.")
        for pack in packs:
            pack.verify()
            _check_room(pack, target, overwrite)
        return {pack.card.id: _put(pack, work, target) for pack in packs}


@contextmanager
def _workshop(target: Path) -> Iterator[Path]:
    """A folder on the same disk as the target, so that a model can be moved there in one step."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".installing-", dir=target))
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error.strerror}).", "name a folder with --into.") from error
    try:
        yield work
    except OSError as error:
        raise OutputError(f"The models could not be written to {target} ({error}).", "free space there.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _models(source: str, work: Path) -> list[Path]:
    """The folders of the models that `source` is, or holds."""
    if source.startswith(("https://", "http://")):
        folder = _unpacked(_downloaded(source, work / "archive.zip"), work / "unpacked")
    elif Path(source).is_file():
        folder = _unpacked(Path(source), work / "unpacked")
    elif Path(source).is_dir():
        folder = Path(source)
    else:
        raise ModelError(f"There is no {source}.", "name an archive of models (.zip), a folder, or an address.")
    return [folder] if (folder / CARD).is_file() else sorted(card.parent for card in folder.glob(f"*/{CARD}"))


def _downloaded(address: str, path: Path) -> Path:
    cure = "check the address and the network, or fetch the file elsewhere and name it."
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer, path.open("wb") as file:
            taken = 0
            while block := answer.read(BLOCK):
                taken += len(block)
                if taken > LARGEST_ARCHIVE:
                    raise ModelError(f"{address} is larger than {LARGEST_ARCHIVE >> 30} GiB.", cure)
                file.write(block)
            promised = answer.headers.get("Content-Length")
    except (URLError, TimeoutError, ConnectionError, ValueError) as error:
        raise ModelError(f"{address} could not be fetched ({error}).", cure) from error
    if promised is not None and int(promised) != taken:
        raise ModelError(f"{address} broke off after {taken:,} of {int(promised):,} bytes.", "try again.")
    return path


def _unpacked(archive: Path, folder: Path) -> Path:
    folder.mkdir()
    try:
        with zipfile.ZipFile(archive) as box:
            _check_members(box.infolist(), archive)
            for member in box.infolist():
                if not member.is_dir():
                    _take_out(box, member, folder)
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise ModelError(f"{archive} is no archive that can be read ({error}).", "fetch it again.") from error
    return folder


def _check_members(members: list[zipfile.ZipInfo], archive: Path) -> None:
    """Refuse what no archive of models has: ways out of its folder, links, too much."""
    files = [m for m in members if not m.is_dir()]
    strange = [m.filename for m in files if not MEMBER.fullmatch(m.filename) or stat.S_ISLNK(m.external_attr >> 16)]
    if strange:
        raise ModelError(f"{archive} holds {strange[0]!r}, which is no file of a model.", "do not use this archive.")
    too_large = any(m.file_size > LARGEST_FILE for m in files) or sum(m.file_size for m in files) > LARGEST_ARCHIVE
    if too_large or len(files) > MOST_FILES:
        raise ModelError(f"{archive} would unpack to more than models can need.", "do not use this archive.")


def _take_out(box: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    """One file; it ends where the archive said it would, whatever it holds."""
    path = folder / member.filename
    path.parent.mkdir(exist_ok=True)
    with box.open(member) as packed, path.open("wb") as file:
        left = member.file_size
        while left > 0 and (block := packed.read(min(BLOCK, left))):
            file.write(block)
            left -= len(block)


def _check_room(pack: Pack, target: Path, overwrite: bool) -> None:
    if not MEMBER.fullmatch(f"{pack.card.id}/{CARD}"):
        raise ModelError(f"{pack.card.id!r} is no name for a model.", "use letters, digits, - and _.")
    there = target / pack.card.id
    if there.exists() and not overwrite and _weights_of(there) != pack.card.sha256:
        raise OutputError(f"{there} exists and is another version.", "allow it to be replaced with --overwrite.")


def _weights_of(folder: Path) -> str | None:
    try:
        pack = read_pack(folder)
        pack.verify()
    except ModelError:
        return None
    return pack.card.sha256


def _put(pack: Pack, work: Path, target: Path) -> str:
    """Move a model to its place; what was there before is taken away only when the new one is complete."""
    there = target / pack.card.id
    if there.exists() and _weights_of(there) == pack.card.sha256:
        return f"already in {there}"
    ready = work / f"ready-{pack.card.id}"
    shutil.copytree(pack.folder, ready, ignore=shutil.ignore_patterns("training"))
    if there.exists():
        os.replace(there, work / f"old-{pack.card.id}")
    os.replace(ready, there)
    return f"installed in {there}"
