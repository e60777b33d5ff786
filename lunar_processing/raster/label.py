"""The languages labels are written in: ISIS cube, PDS3, PDS4, VICAR and plain GDAL tags, all as one dictionary.

`label_of` gives the label as nested dictionaries, `flatten` makes one dictionary of it whose keywords are spelled
alike: `INCIDENCE_ANGLE`, `IncidenceAngle` and `geom:incidence_angle` are all `incidenceangle`. `text_of` and
`quantity_of` read a value; whatever a label writes for "I do not know" is None, and no value is ever an error.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from typing import Any

import rasterio

from lunar_processing.errors import ImageError

LABELLED = ("ISIS3", "PDS", "PDS4", "VICAR")  # drivers of files that begin with a label, or are one
_SILENT = {"", "N/A", "NA", "UNK", "UNKNOWN", "NULL", "NONE", "NAN", "-9999"}


def label_of(dataset: rasterio.DatasetReader) -> dict[str, Any]:
    """The label as nested dictionaries, empty if the image has none.

    A format whose label says which numbers are no signal cannot do without: there, one that is not understood raises.
    """
    namespaces = set(dataset.tag_namespaces())
    for namespace, parse in _LANGUAGES.items():
        if namespace in namespaces:
            try:
                return parse(dataset.tags(ns=namespace))
            except (ValueError, LookupError, ElementTree.ParseError, RecursionError):
                continue
    if dataset.driver in LABELLED:
        raise ImageError(
            f"The label of {dataset.name} cannot be understood, and with it which pixels are no signal.",
            "fetch the file again; where it is whole, replace what is not plain ASCII in its label.",
        )
    return dict(dataset.tags())


def _parse_json(tags: dict[str, str]) -> dict[str, Any]:
    # GDAL hands over one JSON text; rasterio splits it at its first colon, as if it were KEY:VALUE.
    key, value = _only(tags)
    label = json.loads(key if not value else f"{key}:{value}")
    return label if isinstance(label, dict) else {}


def _parse_pds4(tags: dict[str, str]) -> dict[str, Any]:
    key, value = _only(tags)
    text = value if value.lstrip().startswith("<") else f"{key}={value}"
    return {"PDS4": _element(ElementTree.fromstring(text[text.index("<") :]))}


def _only(tags: dict[str, str]) -> tuple[str, str]:
    """The text of a label; rasterio leaves out what is no UTF-8."""
    if len(tags) != 1:
        raise ValueError("no text")
    return next(iter(tags.items()))


def _element(node: ElementTree.Element) -> Any:
    """An XML element as a nested dictionary of local names; repeated names become lists."""
    if len(node) == 0:
        text = (node.text or "").strip()
        return {"value": text, "unit": node.get("unit")} if node.get("unit") else text
    children: dict[str, Any] = {}
    for child in node:
        if not isinstance(child.tag, str):  # a comment
            continue
        name, value = child.tag.rpartition("}")[2], _element(child)
        if name not in children:
            children[name] = value
        elif isinstance(children[name], list):
            children[name].append(value)
        else:
            children[name] = [children[name], value]
    return children


# Metadata domain -> how to read it. The domain travels with a file that was converted, the driver does not.
_LANGUAGES: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
    "json:ISIS3": _parse_json,
    "json:PDS": _parse_json,
    "json:VICAR": _parse_json,
    "xml:PDS4": _parse_pds4,
}


def spell(keyword: str) -> str:
    """A keyword in the one spelling: small letters and digits, without its namespace."""
    return re.sub(r"[^a-z0-9]", "", keyword.rpartition(":")[2].lower())


def flatten(label: dict[str, Any]) -> dict[str, Any]:
    """Keyword -> value for every leaf, and `parent.keyword` too; the first occurrence counts."""
    found: dict[str, Any] = {}
    for parent, keyword, value in _leaves(label, ""):
        found.setdefault(keyword, value)
        found.setdefault(f"{parent}.{keyword}", value)
    return found


def _leaves(node: dict[str, Any], parent: str) -> Iterator[tuple[str, str, Any]]:
    for key, value in node.items():
        if key.startswith("_"):  # GDAL's own notes among the keywords
            continue
        keyword = spell(key)
        if isinstance(value, dict) and "value" not in value:
            yield parent, keyword, value
            yield from _leaves(value, keyword)
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            yield parent, keyword, value
            for item in value:
                if "value" not in item:
                    yield from _leaves(item, keyword)
        else:
            yield parent, keyword, value


def text_of(value: Any) -> str | None:
    """A label value as words, None if the label does not really say."""
    if isinstance(value, dict):
        value = value.get("value")
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        return None
    text = re.sub(r"\s+", " ", str(value).replace("\\n", " ").replace("\\r", " ")).strip(" \"'")
    return None if text.upper() in _SILENT or text.startswith("${") else text  # an unfilled template is silent


def quantity_of(value: Any) -> tuple[float, str] | None:
    """A label value as a number and its unit in small letters ("" where it has none)."""
    if isinstance(value, list):
        return quantity_of(value[0]) if len(value) == 1 else None
    unit = str(value.get("unit") or "") if isinstance(value, dict) else ""
    text = text_of(value)
    if text is None:
        return None
    match = re.fullmatch(r"([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?)\s*(?:<([^>]*)>)?", text, re.IGNORECASE)
    if match is None:
        return None
    number = float(match[1])
    if number == -9999 or not abs(number) < 1e30:  # what archives write for "unknown"
        return None
    return number, (match[2] or unit).strip().strip("<>").lower()
