"""A report as one file that any browser shows: text, tables, and figures inside it.

    page("Rocks", [text("How many are found."), table(["site", "recall"], rows), figure(curves(...), "…")])

Figures are matplotlib's, drawn without a screen. What they show is handed in as arrays.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .2em .7em; border-bottom: 1px solid #ddd }
td { text-align: right; font-variant-numeric: tabular-nums } td:first-child, th:first-child { text-align: left }
td.best { font-weight: bold } figure { margin: 1.5em 0 } img { max-width: 100% } figcaption { color: #555 }
.wide { overflow-x: auto }
"""
DPI = 80
RUG = 3000  # lines of a rug, at most
ENOUGH = 8  # values that make a distribution; of fewer there is only a rug


# ---- parts of a page ---------------------------------------------------------------------------------------------


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page of parts, which are made by the functions below."""
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *parts])
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head><body>\n{body}\n</body></html>\n"


def heading(words: str) -> str:
    """A heading of a section."""
    return f"<h2>{html.escape(words)}</h2>"


def text(words: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(words)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], best: bool = False) -> str:
    """A table; numbers with three digits that count. With `best` the largest of each column is bold."""
    numbers = [[row[i] if isinstance(row[i], (int, float)) else math.nan for row in rows] for i in range(len(head))]
    tops = [np.nanmax(column) if best and not np.isnan(column).all() else math.nan for column in numbers]
    lines = ["".join(f"<th>{html.escape(str(name))}</th>" for name in head)]
    lines += ["".join(_cell(value, top) for value, top in zip(row, tops)) for row in rows]
    return '<div class="wide"><table>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def figure(drawn: Figure, caption: str) -> str:
    """A figure with its caption, inside the page. The figure is closed."""
    from matplotlib import pyplot as plt

    png = io.BytesIO()
    drawn.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    plt.close(drawn)
    data = base64.b64encode(png.getvalue()).decode("ascii")
    return (
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def short(value: Any) -> str:
    """A number with three digits that count; text as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _cell(value: Any, top: float) -> str:
    mark = ' class="best"' if isinstance(value, (int, float)) and value == top else ""
    return f"<td{mark}>{html.escape(short(value))}</td>"


# ---- figures -----------------------------------------------------------------------------------------------------


def curves(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], axes: tuple[str, str]) -> Figure:
    """Panel → name → (x, y): lines with a logarithmic y, as of precision over recall."""
    drawn, places = _panels(len(panels), 3.4)
    for place, (title, lines) in zip(places, panels.items()):
        for name, (x, y) in lines.items():
            place.plot(x, y, drawstyle="steps-post", label=name, linewidth=1.2)
        place.set(title=title, xlabel=axes[0], ylabel=axes[1], yscale="log", xlim=(0, 1.02))
    places[0].legend(fontsize=6)
    return drawn


def distributions(panels: Mapping[str, tuple[np.ndarray, np.ndarray]], names: tuple[str, str]) -> Figure:
    """Panel → (many, few): both as densities, and each of the few as a line of a rug; what lies far out is held in."""
    drawn, places = _panels(len(panels), 3.0)
    for place, (title, (many, few)) in zip(places, panels.items()):
        both = np.concatenate([many, few])
        ends = float(both.min()), float(np.quantile(both, 0.999)) + 1e-9
        bins = np.linspace(*ends, 60)
        place.hist(np.clip(many, *ends), bins, density=True, color="0.7", label=names[0])
        if len(few) >= ENOUGH:
            coarse = np.linspace(*ends, 16)
            place.hist(np.clip(few, *ends), coarse, density=True, alpha=0.5, color="tab:red", label=names[1])
        high = place.get_ylim()[1]
        place.vlines(np.clip(few[:RUG], *ends), -0.06 * high, -0.01 * high, color="tab:red", linewidth=0.7)
        place.set(title=title)
        place.set_yticks([])
    places[0].legend(fontsize=6)
    return drawn


def embedding(points: np.ndarray, groups: Sequence[str]) -> Figure:
    """Points (n, 2) in the plane, coloured by their group; those of `background` are grey and lie below."""
    drawn, (place,) = _panels(1, 7.0)
    labels = np.asarray(groups, dtype=object)
    for number, name in enumerate(dict.fromkeys(["background", *groups])):
        here = labels == name
        if here.any():
            style = {"s": 6, "color": "0.8"} if name == "background" else {"s": 28, "color": f"C{number % 10}"}
            place.scatter(*points[here].T, label=f"{name} ({here.sum()})", **style)
    place.set_axis_off()
    place.legend(fontsize=7)
    return drawn


def sheets(panels: Mapping[str, tuple[np.ndarray, Sequence[str]]], across: int = 4) -> Figure:
    """Title → (chips (n, h, w), what each is): contact sheets side by side."""
    rows = max(-(-len(chips) // across) for chips, _ in panels.values())
    size = 1.35 * across * len(panels), 1.5 * rows + 0.3
    drawn = _headless().figure(figsize=size, layout="constrained")
    for part, (title, (chips, names)) in zip(np.atleast_1d(drawn.subfigures(1, len(panels))), panels.items()):
        part.suptitle(title, fontsize=10)
        places = part.subplots(-(-max(len(chips), 1) // across), across, squeeze=False).ravel()
        for place in places:
            place.set_axis_off()
        for place, chip, name in zip(places, chips, names):
            place.imshow(chip, cmap="gray", interpolation="nearest")
            place.set_title(name, fontsize=7, pad=2)
    return drawn


def maps(image: np.ndarray, overlays: Mapping[str, np.ndarray], marks: Sequence[tuple[float, float, str]]) -> Figure:
    """An image, and beside it each map laid over it; marks are (column, row, name) in px of the image."""
    drawn, places = _panels(1 + len(overlays), 4.2)
    for place, (title, values) in zip(places, {"image": None, **overlays}.items()):
        place.imshow(image, cmap="gray", interpolation="nearest")
        if values is not None:
            box = (0, image.shape[1], image.shape[0], 0)
            place.imshow(values, cmap="inferno", alpha=0.55, extent=box, interpolation="nearest")
        for col, row, name in marks:
            place.plot(col, row, "o", markersize=22, markerfacecolor="none", markeredgecolor="cyan")
            place.annotate(name, (col, row), color="cyan", fontsize=7, xytext=(12, 8), textcoords="offset points")
        place.set(title=title)
        place.set_axis_off()
    return drawn


def _panels(count: int, size: float) -> tuple[Figure, list[Any]]:
    across = min(count, 3)
    down = -(-count // max(across, 1))
    drawn, places = _headless().subplots(
        down, across, figsize=(size * across * 1.2, size * down), squeeze=False, layout="constrained"
    )
    for place in places.flat[count:]:
        place.set_axis_off()
    return drawn, list(places.flat[:count])


def _headless() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt
