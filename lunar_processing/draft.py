"""A file appears complete under its final name, or not at all.

    with Draft(Path("rocks.gpkg"), overwrite=False) as draft:
        write(draft.path)      # a hidden file in the same folder, so that the rename is atomic
        draft.publish()

Whatever ends the block without `publish()` (an error, a cancelled run) deletes the draft. A process that was
killed cannot clean up; the next draft of the same file does it for the dead.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import threading
from pathlib import Path
from types import TracebackType

from lunar_processing.errors import OutputError

# Bytes of UTF-8; file systems keep 255, and a draft and what a database keeps beside it have longer names.
LONGEST_NAME = 200

_open_drafts: set[Draft] = set()
# Held while files are deleted or renamed: who ends the process (`discard_all`) must not do so in the middle of that.
_lock = threading.RLock()
_numbers = itertools.count(1)


class Draft:
    """The unfinished version of one output file."""

    def __init__(self, final: str | os.PathLike[str], overwrite: bool = False) -> None:
        self.final = Path(final).absolute()
        self.overwrite = overwrite
        check_destination(self.final, overwrite)
        _sweep_the_dead(self.final)
        # The number keeps rocks.tif and rocks.gpkg apart, whose sidecars are told by the stem alone.
        self._mark = f".partial-{os.getpid()}-{next(_numbers)}"
        self.path = self.final.with_name(f".{self.final.stem}{self._mark}{self.final.suffix}")
        with _lock:
            _open_drafts.add(self)

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def flush(self) -> None:
        """Bring what was written so far to the disk, where a full one shows."""
        try:
            for part in self._parts():
                _flush(part)
        except OSError as error:
            raise self._incomplete(error) from error

    def publish(self) -> Path:
        """Flush the draft to the disk and give it its final name, in one step."""
        self.flush()
        try:
            check_destination(self.final, self.overwrite)  # somebody else may have been quicker
            with _lock:
                # Sidecars first: whoever sees the main file sees all of it.
                for part in sorted(self._parts(), key=lambda p: p == self.path):
                    os.replace(part, self._final_name(part))
                _open_drafts.discard(self)
        except OSError as error:
            raise self._incomplete(error) from error
        return self.final

    def discard(self) -> None:
        """Delete what was written so far. Harmless after `publish()`."""
        with _lock:
            if self not in _open_drafts:
                return
            for part in self._parts():
                with contextlib.suppress(OSError):
                    part.unlink()
            _open_drafts.discard(self)

    def _incomplete(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.final} could not be completed: {error.strerror or error}.",
            "free space on the disk, close programs that hold the file open, and run again.",
        )

    def _parts(self) -> list[Path]:
        """The draft and its sidecars (`.dbf`, `.aux.xml`, `-journal` …), which share its stem."""
        stem = self.path.name[: -len(self.path.suffix)] if self.path.suffix else self.path.name
        return [p for p in self.path.parent.iterdir() if p.name == stem or p.name.startswith(f"{stem}.")]

    def _final_name(self, part: Path) -> Path:
        return self.final.with_name(part.name[1:].replace(self._mark, "", 1))


def make_folder(folder: Path) -> None:
    """Make a folder for results, with those above it, unless it is there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error.strerror}.", "write somewhere else.") from error


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; of names that are longer than any file's there is none."""
    try:
        return path.exists()
    except OSError:
        return False


def check_destination(final: Path, overwrite: bool) -> None:
    """Refuse, before any work is done, a destination that cannot be written."""
    _check_name(final)
    if not final.parent.is_dir():
        raise OutputError(f"The folder {final.parent} does not exist.", "make it, or write somewhere else.")
    if final.is_dir():
        raise OutputError(f"{final} is a folder.", "give the name of a file.")
    if final.exists() and not overwrite:
        raise OutputError(f"{final} exists already.", "choose another name, or allow it with --overwrite.")
    if not os.access(final.parent, os.W_OK) or not _can_create(final):
        raise OutputError(f"The folder {final.parent} is read-only.", "write to a folder you own.")


def _check_name(final: Path) -> None:
    try:
        size = len(final.name.encode())
    except UnicodeEncodeError:
        raise OutputError(f"{str(final)!r} holds bytes that are no text.", "choose another name.") from None
    if size > LONGEST_NAME:
        raise OutputError(f"The name {final.name[:60]}… is too long.", f"use {LONGEST_NAME} bytes or fewer.")


def discard_all() -> None:
    """Delete every unfinished file of this process: the last act of a cancelled run."""
    with _lock:
        for draft in list(_open_drafts):
            draft.discard()


def _can_create(final: Path) -> bool:
    """Root passes every permission check, read-only mounts do not: only trying tells."""
    # Named like a draft, so that one left by the dead is swept with theirs.
    probe = final.with_name(f".{final.stem}.partial-{os.getpid()}-probe-{threading.get_ident()}")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        return error.errno == 28  # a full disk is another complaint, made when it matters
    return True


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sweep_the_dead(final: Path) -> None:
    pattern = re.compile(re.escape(f".{final.stem}.partial-") + r"(\d+)\b")
    for path in final.parent.iterdir():
        match = pattern.match(path.name)
        if match and not _alive(int(match.group(1))):
            with contextlib.suppress(OSError):
                path.unlink()


def _alive(pid: int) -> bool:
    if os.name == "nt":  # os.kill would end the process there; a stale draft does less harm
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
