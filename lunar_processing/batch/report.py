"""One page about a batch: what ran, what failed and why, where, how quickly, and the best of what was found.

A single HTML file without scripts or links to the net, to be mailed and kept. All text in it that comes from files is
escaped: a label may hold anything.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from lunar_processing import planet
from lunar_processing.draft import Draft
from lunar_processing.errors import LunarError
from lunar_processing.raster.image import open_image
from lunar_processing.tools.chips import chip
from lunar_processing.vector import Layer, layers_of, read_layer

BEST = 24  # chips
ROWS = 200  # of a table
DOTS = 20_000  # of the map
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 68em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: .6em 0 } td, th { padding: .2em .7em; text-align: left; vertical-align: top }
tr { border-bottom: 1px solid #ddd } th { font-weight: 600 } img { max-width: 100% } .number { text-align: right }
.chips { display: flex; flex-wrap: wrap; gap: 10px } figure { margin: 0; width: 150px; font-size: 12px }
figure img { width: 150px; height: 150px; image-rendering: pixelated } .bad { color: #a11 } .faint { color: #777 }
"""


@dataclass(frozen=True)
class Told:
    """All that the page tells."""

    tool: str
    order: Mapping[str, Any]
    counts: Mapping[str, int]
    entries: Mapping[str, Mapping[str, Any]]
    skipped: Mapping[str, str]
    facts: Mapping[str, Any]
    merged: Sequence[Path] = ()
    sizes: Mapping[str, Any] | None = None  # of `lunar rocksizefrequency`
    warnings: Sequence[str] = field(default_factory=list)


def write_report(told: Told, path: Path) -> Path:
    """Write the page."""
    parts = [
        f"<h1>{escape(told.tool.capitalize())} of {len(told.entries)} products</h1>",
        *_numbers(told),
        *_failures(told),
        *_map(told),
        *_anomalies(told),
        *_sizes(told),
        *_speed(told),
        *_doubts(told),
        *_settings(told),
    ]
    page = "\n".join(
        ["<!DOCTYPE html>", '<html lang="en">', '<meta charset="utf-8">', f"<title>lunar batch {told.tool}</title>"]
        + [f"<style>{STYLE}</style>", *parts, "</html>", ""]
    )
    with Draft(path, overwrite=True) as draft:
        draft.path.write_text(page, encoding="utf-8")
        return draft.publish()


# ---- the parts ---------------------------------------------------------------------------------------------------


def _numbers(told: Told) -> Iterable[str]:
    done = [entry for entry in told.entries.values() if entry["status"] == "ok"]
    things = sum(int(entry["counts"].get("rocks", entry["counts"].get("points", 0))) for entry in done)
    rows: list[tuple[str, Any]] = [(name, number) for name, number in told.counts.items() if number or name == "ok"]
    if told.tool != "enhance":
        rows.append((f"{told.tool} in all products, things in several counted in each", things))
    rows.append(("megapixels with data", f"{_megapixels(done):,.1f}"))
    if told.facts.get("run"):
        speed = f"{told.facts['run']} in {told.facts['seconds']:,.0f} s, {told.facts['rate_mpx_s']:.2f} Mpx/s"
        rows.append(("done in the last run", speed))
    yield _table(None, rows)


def _failures(told: Told) -> Iterable[str]:
    failed = [entry for entry in told.entries.values() if entry["status"] == "failed"]
    if failed:
        kinds = Counter(str(entry.get("code")) for entry in failed)
        yield f"<h2 class=bad>{len(failed)} failed</h2>"
        yield f"<p>{escape(', '.join(f'{number} × {kind}' for kind, number in kinds.items()))}</p>"
        rows = [(e["product"], e.get("code"), e.get("message"), e.get("cure")) for e in failed[:ROWS]]
        yield _table(("product", "what", "why", "cure"), rows)
        yield from _more(len(failed))
    if told.skipped:
        yield f"<h2>{len(told.skipped)} left out</h2>"
        yield _table(None, [(why, count) for why, count in Counter(told.skipped.values()).most_common(20)])


def _map(told: Told) -> Iterable[str]:
    for path in told.merged:
        if "products" not in layers_of(path):
            continue
        yield f"<h2>Map</h2><p>{escape(path.name)}: all products on one map, each thing once.</p>"
        yield _drawn(_draw_map(path, told.tool))


def _anomalies(told: Told) -> Iterable[str]:
    if told.tool != "anomalies" or not told.merged:
        return
    found = [read_layer(f"{path}|layername={name}") for path in told.merged for name in _points_of(path)]
    ranked = _ranked([layer for layer in found if len(layer.geometry)])
    if not ranked:
        return
    yield "<h2>The strangest</h2>"
    by = "their rank among known windows" if ranked[0]["known_pct"] is not None else "score"
    yield f"<p>By {by}. Scores of a method that learns from each image compare within an image only.</p>"
    yield '<div class="chips">'
    for point in ranked[:BEST]:
        place = "" if point["lon"] is None else f"<br>{point['lon']:.5f}° E, {point['lat']:.5f}° N"
        text = f"{escape(str(point['product']))}, rank {point['rank']}<br>score {point['score']:.4g}{place}"
        yield f"<figure>{_chip(told, point)}<figcaption>{text}</figcaption></figure>"
    yield "</div>"


def _sizes(told: Told) -> Iterable[str]:
    if not told.sizes:
        return
    yield "<h2>Sizes</h2><p>Of the rocks on the map, each once, in the area that was searched in any image.</p>"
    yield _embedded(Path(told.sizes["outputs"]["figure"]).read_bytes())
    density, law = told.sizes["density"], told.sizes.get("power_law")
    words = f"{density['value']:.4g} ({density['lower']:.4g}–{density['upper']:.4g}) per {density['per']}"
    rows = [(f"rocks of at least {density['of_at_least']:.4g} {told.sizes['unit']}", words)]
    if law:
        rows.append(("exponent of the power law", f"{law['exponent']:.3f}" if "exponent" in law else str(law)))
    yield _table(None, rows)
    yield "".join(f"<p class=faint>{escape(warning)}</p>" for warning in told.sizes.get("warnings", []))


def _speed(told: Told) -> Iterable[str]:
    done = [entry for entry in told.entries.values() if entry["status"] == "ok" and entry.get("seconds")]
    if not done:
        return
    seconds = np.array([entry["seconds"] for entry in done])
    yield "<h2>Speed</h2>"
    share = [("median", 50.0), ("slowest of 20", 95.0), ("slowest", 100.0)]
    rows: list[tuple[str, Any]] = [
        (f"seconds a product, {name}", f"{np.percentile(seconds, p):.2f}") for name, p in share
    ]
    rate = _megapixels(done) / seconds.sum()
    rows += [("Mpx/s of one worker", f"{rate:.2f}"), ("workers", len({e.get("worker") for e in done}))]
    yield _table(None, rows)
    slow = sorted(done, key=lambda entry: -entry["seconds"])[:5]
    yield _table(("slowest", "s", "Mpx"), [(e["product"], e["seconds"], f"{_megapixels([e]):.1f}") for e in slow])


def _doubts(told: Told) -> Iterable[str]:
    """Warnings of the tools, each once with how many products had it."""
    said = Counter(text for entry in told.entries.values() for text in entry.get("warnings", []))
    rows = [*((text, "") for text in told.warnings), *said.most_common(30)]
    if rows:
        yield "<h2>Warnings</h2>"
        yield _table(("", "products"), rows)


def _settings(told: Told) -> Iterable[str]:
    models = Counter(str(e.get("model")) for e in told.entries.values() if e["status"] == "ok")
    devices = Counter(str(e.get("device")) for e in told.entries.values() if e["status"] == "ok")
    rows = [("model", ", ".join(f"{name} ({n})" for name, n in models.items()))]
    rows += [("device", ", ".join(f"{name} ({n})" for name, n in devices.items()))]
    rows += [(name, value) for name, value in told.order.items() if value not in (None, "", {}, [], ())]
    rows += [(name, path) for name, path in told.facts.get("outputs", {}).items()]
    yield "<h2>How</h2>"
    yield _table(None, rows)


# ---- pictures ----------------------------------------------------------------------------------------------------


def _draw_map(path: Path, tool: str) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a second matplotlib on the machine
        from matplotlib.figure import Figure

    images = read_layer(f"{path}|layername=products")
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.add_subplot()
    for shape in images.geometry:
        for part in shapely.get_parts(shape):
            axes.fill(*np.array(part.exterior.coords).T, facecolor="#88aacc30", edgecolor="#446688", linewidth=0.6)
    if tool in layers_of(path):
        points = read_layer(f"{path}|layername={tool}").geometry
        xy = shapely.get_coordinates(points[:: max(1, len(points) // DOTS)])
        axes.plot(*xy.T, ".", markersize=2, color="#d55e00")
    degrees = images.wkt is not None and planet.is_angular(images.wkt)
    axes.set_xlabel("longitude, ° E" if degrees else "x, m")
    axes.set_ylabel("latitude, ° N" if degrees else "y, m")
    axes.set_aspect("auto" if degrees else "equal")
    axes.ticklabel_format(useOffset=False, style="plain")
    axes.tick_params(axis="x", labelrotation=20)
    return _png(figure)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _points_of(path: Path) -> list[str]:
    return [name for name in layers_of(path) if name in ("anomalies", "anomalies_without_place")]


def _ranked(layers: list[Layer]) -> list[dict[str, Any]]:
    """The first of all points, by the share of known windows that score no higher where a model tells it."""
    wanted = ("rank", "score", "known_pct", "window_px", "line", "sample", "lon", "lat", "product")
    points = []
    for layer in layers:
        known = layer.fields.get("known_pct", np.full(len(layer.geometry), np.nan)).astype(float)
        order = np.lexsort((-layer.fields["score"].astype(float), -np.nan_to_num(known, nan=-1.0)))[:BEST]
        points += [{name: _plain(layer.fields[name][i]) for name in wanted if name in layer.fields} for i in order]
    for point in points:
        point.setdefault("known_pct", None)
    return sorted(points, key=lambda p: (-(p["known_pct"] or -1.0), -(p["score"] or 0.0)))


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _chip(told: Told, point: Mapping[str, Any]) -> str:
    from matplotlib.image import imsave

    entry = told.entries[point["product"]]
    band = entry["told"].get("band") or told.order.get("options", {}).get("band")
    try:
        with open_image(entry["path"], None if band is None else int(band)) as image:
            grey = chip(image, point["sample"], point["line"], int(point["window_px"]))
    except LunarError:  # the image was moved meanwhile
        return ""
    file = io.BytesIO()
    imsave(file, grey, cmap="gray", vmin=0, vmax=255, format="png")
    return _embedded(file.getvalue())


def _drawn(png: bytes) -> str:
    return f"<p>{_embedded(png)}</p>"


def _embedded(png: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'


# ---- tables ------------------------------------------------------------------------------------------------------


def _table(head: Sequence[str] | None, rows: Iterable[Sequence[Any]]) -> str:
    lines = ["<table>"]
    if head:
        lines.append("<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>")
    for row in rows:
        cells = (f"<td{_aligned(cell)}>{escape(str(cell))}</td>" for cell in row)
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "\n".join([*lines, "</table>"])


def _aligned(cell: Any) -> str:
    return " class=number" if isinstance(cell, (int, float)) else ""


def _more(count: int) -> Iterable[str]:
    if count > ROWS:
        yield f"<p>… and {count - ROWS} more, in the journal.</p>"


def _megapixels(entries: Iterable[Mapping[str, Any]]) -> float:
    return float(sum(entry["counts"].get("valid_px", 0) for entry in entries)) / 1e6
