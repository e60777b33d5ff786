"""What a label says about an image: its name, camera, sun, scale, and which pixel values are no signal.

One table says which keyword fills which field, for all label languages together. A label that is silent, or says
`N/A`, `UNK` or -9999, gives None.

Conventions
- All angles are degrees. Incidence, emission and phase are those of the scene's centre.
- `sun_azimuth_deg`: clockwise from the image's up direction (towards row 0) to where the sun stands, 0 … 360;
  shadows point the other way. It is a direction in the image as stored, never a compass bearing. It comes from
  * `SUB_SOLAR_AZIMUTH` (PDS3), `geom:subsolar_azimuth` (PDS4), `SubSolarAzimuth` (ISIS campt, caminfo, phomosaic):
    clockwise from the line that runs from the image centre to the middle of its right edge, hence + 90;
  * `SOLAR_AZIMUTH_ANGLE` of Kaguya labels: clockwise from north on the ground, turned into the image with the
    longitudes and latitudes of the four corners that stand in the same label (such images are often mirrored).
  It stays None where a cube is map-projected but its azimuth is that of the unprojected camera image (ISIS
  `Mapping` group), for ground azimuths without corners (`SubSolarGroundAzimuth`, `isda:sun_azimuth`), and for
  LROC NAC EDR and CDR, whose labels hold no angles at all.
- `missing` holds ranges of raw values, both ends inclusive, before scale and offset are applied.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from lunar_processing.raster.label import flatten, label_of, quantity_of, spell, text_of

Range = tuple[float, float]


@dataclass(frozen=True)
class Product:
    """Facts from the label; None where it is silent."""

    id: str
    id_source: str  # "label" or "file name"
    instrument: str | None = None
    target: str | None = None
    unit: str | None = None  # of the calibrated values, in the label's words
    pixel_size_m: float | None = None
    incidence_deg: float | None = None
    emission_deg: float | None = None
    phase_deg: float | None = None
    sun_azimuth_deg: float | None = None
    start_time: str | None = None
    summing: int | None = None
    exposure_ms: float | None = None
    temperature_c: float | None = None
    missing: tuple[Range, ...] = ()
    trust_nodata: bool = True
    errors: int | None = None  # bits of the label's DATA_QUALITY_ID; 0 is none


def read_product(dataset: rasterio.DatasetReader, path: str | os.PathLike[str]) -> Product:
    """Read what the label of an open image says. One that only describes is silent where it is damaged."""
    label = label_of(dataset)
    keywords = flatten(label)
    name, source = _identity(keywords, path)
    return Product(
        id=name,
        id_source=source,
        instrument=_instrument(keywords),
        target=_target(keywords),
        unit=_unit(keywords),
        pixel_size_m=_pixel_size(keywords),
        incidence_deg=_angle(keywords, "incidence_deg", 180),
        emission_deg=_angle(keywords, "emission_deg", 180),
        phase_deg=_angle(keywords, "phase_deg", 180),
        sun_azimuth_deg=_sun_azimuth(keywords),
        start_time=_words(keywords, "start_time"),
        summing=_summing(keywords),
        exposure_ms=_measure(keywords, "exposure_ms", _MILLISECONDS),
        temperature_c=_temperature(keywords),
        missing=_missing(dataset, label),
        trust_nodata=not _nodata_is_invented(dataset, label),
        errors=_errors(keywords),
    )


# Field -> keywords that fill it, best first.
_KEYWORDS: dict[str, tuple[str, ...]] = {
    "id": ("productid", "logicalidentifier"),
    "instrument": ("instrumentid", "instrumentname"),
    "target": ("targetname", "targetidentification.name"),
    "unit": ("image.unit", "elementarray.unit"),
    "pixel_size_m": (
        "pixelresolution",
        "mapscale",
        "scaledpixelwidth",
        "horizontalpixelscale",
        "sampleresolution",
        "pixelresolutionx",
        "pixelscalex",
        "pixelscale",
        "resolution",
    ),
    "incidence_deg": ("incidenceangle", "incidence", "solarincidence"),
    "emission_deg": ("emissionangle", "emission", "emmissionangle"),
    "phase_deg": ("phaseangle", "phase"),
    "start_time": ("starttime", "startdatetime"),
    "summing": ("crosstracksumming", "spatialsumming", "samplebinmode"),
    "exposure_ms": ("lineexposureduration", "exposureduration"),
    "errors": ("dataqualityid",),
    "temperature_c": ("temperaturefpa", "focalplanetemperature"),
}

_METRES = {"m": 1.0, "meter": 1.0, "meters": 1.0, "metre": 1.0, "metres": 1.0} | dict.fromkeys(
    ("km", "kilometer", "kilometers", "kilometre", "kilometres"), 1000.0
)
_DEGREES = dict.fromkeys(("", "deg", "degree", "degrees"), 1.0) | dict.fromkeys(
    ("rad", "radian", "radians"), math.degrees(1)
)
_MILLISECONDS = dict.fromkeys(("", "ms", "msec", "milliseconds", "millisecond"), 1.0) | dict.fromkeys(
    ("s", "sec", "second", "seconds"), 1000.0
)


def _words(keywords: dict[str, Any], field: str) -> str | None:
    return next((text for key in _KEYWORDS[field] if (text := text_of(keywords.get(key)))), None)


def _measure(keywords: dict[str, Any], field: str, units: dict[str, float]) -> float | None:
    """The first keyword of a field that holds a number in a unit we can convert."""
    for key in _KEYWORDS[field]:
        quantity = quantity_of(keywords.get(key))
        if quantity and quantity[1] in units:
            return quantity[0] * units[quantity[1]]
    return None


# ---- facts -----------------------------------------------------------------------------------------------


def _identity(keywords: dict[str, Any], path: str | os.PathLike[str]) -> tuple[str, str]:
    name = _words(keywords, "id")
    if name:
        return _product_name(name.rpartition(":")[2]), "label"
    return _product_name(Path(path).stem), "file name"


def _product_name(text: str) -> str:
    """`M104318871LE` out of a longer name, else the name itself."""
    match = re.search(r"(?<![A-Z0-9])M\d{9,}[LR][EC]?(?![A-Z0-9])", text.replace("_", " "), re.IGNORECASE)
    return match[0].upper() if match else text


def _instrument(keywords: dict[str, Any]) -> str | None:
    name = _words(keywords, "instrument") or _pds4_instrument(keywords)
    frame = text_of(keywords.get("frameid"))
    # LROC labels name the camera family only; the two narrow-angle cameras differ in noise and flat field.
    return f"NAC{frame[0]}" if name == "LROC" and frame in ("LEFT", "RIGHT") else name


def _pds4_instrument(keywords: dict[str, Any]) -> str | None:
    parts = keywords.get("observingsystemcomponent")
    for part in parts if isinstance(parts, list) else [parts]:
        if isinstance(part, dict) and part.get("type") == "Instrument":
            return text_of(part.get("name"))
    return None


def _target(keywords: dict[str, Any]) -> str | None:
    name = _words(keywords, "target")
    return name.partition(" (")[0].title() if name else None  # GDAL writes "Moon (2015) - Sphere"


def _unit(keywords: dict[str, Any]) -> str | None:
    if text_of(keywords.get("radiometrictype")) == "IOF":
        return "I/F"
    unit = _words(keywords, "unit")
    return unit.removeprefix("Scaled ") if unit else None  # of LROC's CDR: values are read with the scale applied


def _pixel_size(keywords: dict[str, Any]) -> float | None:
    """Metres per pixel; a bare number is not trusted, because labels disagree on metres or kilometres."""
    for key in _KEYWORDS["pixel_size_m"]:
        quantity = quantity_of(keywords.get(key))
        if quantity is None:
            continue
        length, _, per = quantity[1].partition("/")
        if length in _METRES and per in ("", "pixel", "pixels", "pix", "px") and quantity[0] > 0:
            return quantity[0] * _METRES[length]
    return _pixel_size_from_degrees(keywords)


def _pixel_size_from_degrees(keywords: dict[str, Any]) -> float | None:
    resolution = quantity_of(keywords.get("mapresolution"))
    radius = quantity_of(keywords.get("aaxisradius"))
    if not resolution or not radius or radius[1] not in _METRES or resolution[0] <= 0:
        return None
    if not re.fullmatch(r"(pix|pixels?)/(deg|degrees?)", resolution[1]):
        return None
    return math.radians(radius[0] * _METRES[radius[1]] / resolution[0])


def _angle(keywords: dict[str, Any], field: str, most: float) -> float | None:
    angle = _measure(keywords, field, _DEGREES)
    return angle if angle is not None and 0 <= angle <= most else None


def _summing(keywords: dict[str, Any]) -> int | None:
    number = _measure(keywords, "summing", {"": 1.0})
    return int(number) if number and number > 0 and number == int(number) else None


def _errors(keywords: dict[str, Any]) -> int | None:
    text = _words(keywords, "errors")
    return int(text) if text and text.isdecimal() and len(text) < 10 else None


def _temperature(keywords: dict[str, Any]) -> float | None:
    celsius = _measure(keywords, "temperature_c", dict.fromkeys(("degc", "c", "celsius", "deg c"), 1.0))
    if celsius is not None:
        return celsius
    kelvin = _measure(keywords, "temperature_c", dict.fromkeys(("k", "kelvin", "degk"), 1.0))
    return None if kelvin is None else kelvin - 273.15


def _sun_azimuth(keywords: dict[str, Any]) -> float | None:
    if "isiscube.mapping" in keywords:
        return None
    from_right = quantity_of(keywords.get("subsolarazimuth"))
    if from_right and from_right[1] in _DEGREES:
        return (from_right[0] * _DEGREES[from_right[1]] + 90) % 360
    bearing = quantity_of(keywords.get("solarazimuthangle"))
    if bearing and (text_of(keywords.get("datasetid")) or "").startswith("SLN-"):
        return _bearing_in_image(keywords, bearing[0])
    return None


def _bearing_in_image(keywords: dict[str, Any], bearing: float) -> float | None:
    """Turn a compass bearing into a direction in the image, by the map coordinates of its corners."""
    corners = {}
    for corner in ("upperleft", "upperright", "lowerleft"):
        lon, lat = (quantity_of(keywords.get(f"{corner}{axis}")) for axis in ("longitude", "latitude"))
        if not lon or not lat:
            return None
        corners[corner] = np.array([lon[0], lat[0]])
    origin = corners["upperleft"]
    shrink = math.cos(math.radians(origin[1]))
    right, down = (
        np.array([((corners[name][0] - origin[0] + 180) % 360 - 180) * shrink, corners[name][1] - origin[1]])
        for name in ("upperright", "lowerleft")
    )
    # Square pixels are taken for granted: a crop keeps the corners of its parent, so lengths mean nothing.
    axes = np.column_stack([right / max(np.hypot(*right), 1e-12), down / max(np.hypot(*down), 1e-12)])
    if abs(np.linalg.det(axes)) < 0.1:
        return None
    sun = np.array([math.sin(math.radians(bearing)), math.cos(math.radians(bearing))])
    to_right, to_down = np.linalg.solve(axes, sun)
    return math.degrees(math.atan2(to_right, -to_down)) % 360


# ---- special pixels --------------------------------------------------------------------------------------

_LOWEST_FLOAT32 = -3.4028234663852886e38
_ISIS_FLOAT32: Range = (_LOWEST_FLOAT32, -3.4028226550889045e38)  # Null and the four saturations, side by side
# (pixel type of the label, type of the file): both, because a converted cube keeps its label.
_ISIS_SPECIALS: dict[tuple[str | None, str], tuple[Range, ...]] = {
    ("UnsignedByte", "uint8"): ((0, 0), (255, 255)),
    ("SignedWord", "int16"): ((-32768, -32753),),  # -32752 is the lowest valid value
    ("UnsignedWord", "uint16"): ((0, 2), (65534, 65535)),
    ("SignedInteger", "int32"): ((-8388614, -8388609),),
    ("UnsignedInteger", "uint32"): ((0, 2), (4294967294, 4294967295)),
    ("Real", "float32"): (_ISIS_FLOAT32,),
    ("Real", "float64"): (_ISIS_FLOAT32,),
}
_SPECIAL_KEYWORDS = {
    prefix + name
    for prefix in ("", "core")
    for name in (
        "null",
        "lowreprsaturation",
        "lowinstrsaturation",
        "highinstrsaturation",
        "highreprsaturation",
        "lowinstrumentsaturation",
        "highinstrumentsaturation",
        "lowrepresentationsaturation",
        "highrepresentationsaturation",
        "missing",
        "missingconstant",
        "missingvalue",
        "invalidconstant",
        "invalidvalue",
        "errorconstant",
        "saturatedconstant",
        "unknownconstant",
        "notapplicableconstant",
        "dummy",
    )
}


def _missing(dataset: rasterio.DatasetReader, label: dict[str, Any]) -> tuple[Range, ...]:
    dtype = dataset.dtypes[0]
    if "IsisCube" in label:
        return _ISIS_SPECIALS.get((text_of(flatten(label).get("pixels.type")), dtype), ())
    ranges = set()
    for keyword, value in _image_keywords(label).items():
        values = value if isinstance(value, list) else [value]
        if keyword in _SPECIAL_KEYWORDS:
            ranges |= {_special_range(raw, dtype) for raw in (_raw(v, dtype) for v in values) if raw is not None}
        elif keyword in ("validminimum", "corevalidminimum"):
            ranges |= _reserved_below(_raw(value, dtype), dtype)
    return _merge(ranges, step=0 if dtype.startswith("float") else 1)


def _image_keywords(label: dict[str, Any]) -> dict[str, Any]:
    """Keywords of the image object alone: a label may describe tables and histograms beside it."""
    for name in ("image", "specialconstants"):
        part = _find(label, name)
        if part is not None:
            return flatten(part)
    return {}


def _find(node: Any, name: str) -> dict[str, Any] | None:
    if isinstance(node, list):
        return next((found for item in node if (found := _find(item, name)) is not None), None)
    if not isinstance(node, dict):
        return None
    for key, value in node.items():
        if not key.startswith("^") and spell(key) == name and isinstance(value, dict):
            return value
    return next((found for value in node.values() if (found := _find(value, name)) is not None), None)


def _raw(value: Any, dtype: str) -> float | None:
    """A special value as the file stores it; PDS also writes bit patterns: `16#FF7FFFFB#`."""
    text = str(value.get("value") if isinstance(value, dict) else value).strip(" \"'")
    match = re.fullmatch(r"16#([0-9A-F]+)#|0x([0-9A-F]+)", text, re.IGNORECASE)
    try:
        number = _from_bits(int(match[1] or match[2], 16), dtype) if match else float(text)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and _fits(number, dtype) else None


def _from_bits(bits: int, dtype: str) -> float:
    kind = np.dtype(dtype)
    return float(np.frombuffer(bits.to_bytes(kind.itemsize, "little"), kind.newbyteorder("<"))[0])


def _fits(number: float, dtype: str) -> bool:
    if dtype.startswith("complex"):
        return False
    if dtype.startswith("float"):
        return bool(abs(number) <= np.finfo(dtype).max)
    return bool(number == int(number) and np.iinfo(dtype).min <= number <= np.iinfo(dtype).max)


def _special_range(raw: float, dtype: str) -> Range:
    # The five specials of ISIS floats differ in the last bits, which decimal labels do not always keep.
    if dtype.startswith("float") and raw <= -3.4028e38 and raw >= _LOWEST_FLOAT32:
        return _ISIS_FLOAT32
    return raw, raw


def _reserved_below(lowest_valid: float | None, dtype: str) -> set[Range]:
    """Values under VALID_MINIMUM, where it only fences off the end of the type; elsewhere it is a statistic."""
    if lowest_valid is None or not dtype.startswith("int"):
        return set()
    lowest = float(np.iinfo(dtype).min)
    return {(lowest, lowest_valid - 1)} if 0 < lowest_valid - lowest <= 16 else set()


def _merge(ranges: set[Range], step: float) -> tuple[Range, ...]:
    merged: list[Range] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + step:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _nodata_is_invented(dataset: rasterio.DatasetReader, label: dict[str, Any]) -> bool:
    """GDAL calls 0 nodata in every 8-bit PDS3 image; unless the label agrees, 0 is what a dark pixel reads."""
    if dataset.driver != "PDS" or dataset.dtypes[0] != "uint8" or dataset.nodata != 0:
        return False
    special = _missing(dataset, label)
    return not any(low <= 0 <= high for low, high in special)
