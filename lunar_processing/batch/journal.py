"""What came of each product, one line of JSON each, on the disk before the next begins.

    {"product": "M104318871L", "status": "ok", "key": …, "inputs": […], "outputs": {…}, "counts": {…}, …}

`status` is `ok`, `empty` (no valid pixel), `skipped` (not wanted, with the reason) or `failed` (code, message, cure).
Of several lines about a product the last one holds. Each carries a checksum of itself, `crc32`: a line that a power
cut tore off, or that a disk has changed, is no line.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lunar_processing.errors import OutputError

STATUSES = ("ok", "empty", "skipped", "failed")
NAME = "journal.jsonl"
PATTERN = "journal*.jsonl"
SEAL = "crc32"
DONE = {"key": str, "inputs": list, "outputs": dict, "counts": dict}  # what the line of a finished product has


class Journal:
    """One file of a batch, which nobody else writes to meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("ab+")
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}).", "choose another --out.") from error
        if not _lock(self._file.fileno()):
            self._file.close()
            raise OutputError(
                f"Another batch is writing to {path.parent}.", "wait for it, or give this one another --out or --part."
            )
        self._begin_a_line()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, *entries: Mapping[str, Any]) -> None:
        """Append, and come back when the disk has it."""
        if not entries:
            return
        lines = "".join(json.dumps(sealed(entry), sort_keys=True) + "\n" for entry in entries)
        try:
            self._file.write(lines.encode("ascii"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written ({error.strerror}).", "free space on the disk, and --resume."
            ) from error

    def _begin_a_line(self) -> None:
        """What was torn off stays a line of its own, which no reader takes for one."""
        size = self._file.seek(0, os.SEEK_END)
        if size:
            self._file.seek(size - 1)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")


def sealed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the checksum of its JSON."""
    text = json.dumps({k: v for k, v in entry.items() if k != SEAL}, sort_keys=True, allow_nan=False)
    return {**entry, SEAL: zlib.crc32(text.encode("ascii"))}


def intact(entry: Mapping[str, Any]) -> bool:
    """Whether it is what was sealed."""
    return sealed(entry) == entry


def read_journals(folder: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The last word on each product, from all journals of a folder, and how many lines are no entries."""
    entries: dict[str, dict[str, Any]] = {}
    damaged = 0
    for path in sorted(folder.glob(PATTERN)):
        for entry in _lines(path):
            if entry is None:
                damaged += 1
            elif _newer(entry, entries.get(entry["product"])):
                entries[entry["product"]] = entry
    return entries, damaged


def _newer(entry: Mapping[str, Any], known: Mapping[str, Any] | None) -> bool:
    """Within a file the later line holds; of several files the later time does."""
    return known is None or str(entry.get("when", "")) >= str(known.get("when", ""))


def _lines(path: Path) -> Iterable[dict[str, Any] | None]:
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield _entry(line)


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict) or not intact(entry) or entry.get("status") not in STATUSES:
            return None
    except (ValueError, TypeError, RecursionError):
        return None
    shape = {"product": str, "path": str, **(DONE if entry["status"] == "ok" else {})}
    return entry if all(isinstance(entry.get(name), kind) for name, kind in shape.items()) else None


def _lock(descriptor: int) -> bool:
    """Taken until the file is closed or the process has ended in any way; False where another process has it."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, 0x7FFF0000, os.SEEK_SET)  # a byte past the end: others may read the file
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks: the user has to see to it
        return os.name != "nt" or error.errno != 13
    return True
