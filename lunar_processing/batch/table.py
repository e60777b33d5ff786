"""Facts about products from a table: a CSV file whose first line names its columns, or a PDS index with its label.

    rows = read_table(Path("CUMINDEX.LBL"), {"M104318871L"})     # three million lines, of which one is kept
    rows.of["M104318871L"]["incidence"]

Columns are called by their names in small letters. Those that mean what an option of the tools means are also known by
its name (`incidence`, `pixel_size`, …), lengths only where their unit is told.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lunar_processing.errors import DataError

# Columns that say which product a line is about, the surest first.
WHOSE = ("product_id", "product", "image", "file_specification_name", "file_name", "filename", "file", "path", "name")
# What a column is also called, and what its values are to be multiplied by for that, by their unit.
DEGREES = {"": 1.0, "deg": 1.0, "degree": 1.0, "degrees": 1.0}
METRES = {"m": 1.0, "meter": 1.0, "meters": 1.0, "metres": 1.0, "meters/pixel": 1.0, "m/pixel": 1.0, "km/pixel": 1e3}
MEANS = {
    "incidence_angle": ("incidence", DEGREES),
    "emission_angle": ("emission", DEGREES),
    "phase_angle": ("phase", DEGREES),
    "resolution": ("pixel_size", METRES),
    "pixel_size_m": ("pixel_size", {"": 1.0}),
}
SILENT = {"", "N/A", "NA", "UNK", "UNKNOWN", "NULL", "NONE", "NAN", "-9999", "-9999.0"}


@dataclass(frozen=True)
class Table:
    """The columns there are, and the lines that were asked for by `key_of` their product."""

    columns: tuple[str, ...]
    of: Mapping[str, Mapping[str, Any]]


def key_of(text: str) -> str:
    """What a product is found by: its name without folder, ending, case, and the level of processing of LROC."""
    name = re.split(r"[\\/]", text.strip())[-1].upper()
    name = name.partition(".")[0]
    match = re.fullmatch(r"(M\d{9,}[LR])[EC]?(_.*)?", name)
    return match[1] if match else name


def read_table(path: Path, keys: Collection[str]) -> Table:
    """The lines about the products of these keys; of several about one, the last."""
    lines = _index(path) if path.suffix.lower() in (".lbl", ".tab") else _csv(path)
    columns, units = next(lines)
    names = [name for name, _ in columns]
    whose = next((name for name in WHOSE if name in names), None)
    if whose is None:
        raise DataError(
            f"{path.name} does not say which product a line is about: it has {', '.join(names[:12])}.",
            f"name a column {WHOSE[0]}.",
        )
    at = names.index(whose)
    found = {}
    for line in lines:
        if len(line) > at and (key := key_of(line[at])) in keys:
            found[key] = _with_meanings({name: value_of(text) for name, text in zip(names, line)}, units)
    meant = [MEANS[name][0] for name in names if name in MEANS and units.get(name, "") in MEANS[name][1]]
    return Table(tuple(dict.fromkeys([*names, *meant])), found)


def value_of(text: str | None) -> float | str | None:
    """A number where it is one, None where it says that nothing is known."""
    text = (text or "").strip().strip('"').strip()
    if text.upper() in SILENT:
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    return None if number != number or abs(number) > 1e30 or number == -9999 else number


def _with_meanings(row: dict[str, Any], units: Mapping[str, str]) -> dict[str, Any]:
    for name, (meant, factors) in MEANS.items():
        factor = factors.get(units.get(name, ""))
        if isinstance(row.get(name), float) and factor is not None:
            row.setdefault(meant, row[name] * factor)
    return row


def _csv(path: Path) -> Iterator[Any]:
    """First (columns, units), then each line."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            first = file.readline()
            mark = max(",;\t", key=first.count)
            names = [name.strip().lower() for name in next(csv.reader([first], delimiter=mark), [])]
            if not any(names):
                raise DataError(f"{path.name} is empty.", "give a CSV file whose first line names its columns.")
            yield [(name, None) for name in names], {}
            yield from csv.reader(file, delimiter=mark)
    except (OSError, csv.Error) as error:
        raise DataError(f"The table {path} cannot be read ({error}).", "give a CSV file, or a PDS index.") from error


def _index(path: Path) -> Iterator[Any]:
    """A PDS index, by where its label says that each column stands in a line."""
    label, data = (_beside(path, suffix) for suffix in (".lbl", ".tab"))
    columns, units = _columns(label)
    yield columns, units
    with data.open("rb") as file:
        for line in file:
            yield [line[start : start + size].decode("latin-1") for _, (start, size) in columns]


def _beside(path: Path, suffix: str) -> Path:
    for candidate in (path.with_suffix(suffix), path.with_suffix(suffix.upper())):
        if candidate.is_file():
            return candidate
    raise DataError(
        f"There is no {path.with_suffix(suffix.upper()).name} beside {path}.", "a PDS index is a .TAB with its .LBL."
    )


def _columns(label: Path) -> tuple[list[tuple[str, tuple[int, int]]], dict[str, str]]:
    text = label.read_text(encoding="latin-1")
    columns, units = [], {}
    for block in re.split(r"^[ \t]*OBJECT[ \t]*=[ \t]*COLUMN\b", text, flags=re.M)[1:]:
        lines = (line.partition("=") for line in block.partition("END_OBJECT")[0].splitlines())
        said = {key.strip(): value.strip().strip('"') for key, _, value in lines}
        try:
            name, start, size = said["NAME"].lower(), int(said["START_BYTE"]), int(said["BYTES"])
        except (KeyError, ValueError):
            raise DataError(f"A column of {label.name} has no place.", "give the label that came with it.") from None
        columns.append((name, (start - 1, size)))
        units[name] = said.get("UNIT", "").lower()
    if not columns:
        raise DataError(f"{label.name} describes no columns.", "give the label of the index, as CUMINDEX.LBL.")
    return columns, units
