"""The figure of a size-frequency distribution: cumulative counts beside the R plot, ready to print."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lunar_processing.sizes import PowerLaw, Weibull
from lunar_processing.tools.counted import area_in_words

# Colours that the colour-blind tell apart and that differ in grey (Okabe and Ito).
POWER, WEIBULL, DATA, FAINT, SHADE = "#d55e00", "#0072b2", "#111111", "#9a9a9a", "#eeeeee"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.linewidth": 0.8,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "svg.hashsalt": "lunar",  # the same rocks, the same bytes
    "svg.fonttype": "none",
}
WIDTH, HEIGHT, DPI = 9.6, 4.7, 200
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MARGINS = {"left": 0.075, "right": 0.985, "bottom": 0.115, "top": 0.875, "wspace": 0.2}
CURVE = 200  # points of a fitted curve


@dataclass(frozen=True)
class Picture:
    """What is drawn: the columns of a table, the facts about them, and who was counted where."""

    columns: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]
    unit: str
    product: str
    model: str
    diameter: np.ndarray
    record: str

    @property
    def per(self) -> float:
        """How many squares of the unit a density is for."""
        return 1e6 if self.unit == "m" else 1.0

    @property
    def area_unit(self) -> str:
        """What a density is for."""
        return "km²" if self.unit == "m" else "px²"


def draw(picture: Picture, paths: Iterable[Path]) -> None:
    """Write the figure as PNG and SVG, as the names of the files say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a second matplotlib on the machine
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        FigureCanvasAgg(figure)
        cumulative, relative = figure.subplots(1, 2, gridspec_kw=MARGINS)
        _cumulative(cumulative, picture)
        _relative(relative, picture)
        figure.suptitle(_title(picture), fontsize=10)
        for path in paths:
            date = {"Date": None} if path.suffix == ".svg" else {}
            figure.savefig(path, dpi=DPI, metadata={"Description": picture.record, **date})


def _title(picture: Picture) -> str:
    facts, counts = picture.facts, picture.facts["counts"]
    area = area_in_words(facts["area"]["value"], picture.unit)
    by = f", found by {picture.model}" if picture.model else ""
    limit = f"{facts['min_diameter']['value']:.3g} {picture.unit}"
    n = f"n = {counts['complete']} of {limit} and more ({counts['counted']} of all sizes)"
    return f"{_short(picture.product)}{by}\n{n} in {area}"


def _cumulative(axes: Any, picture: Picture) -> None:
    """Number of at least a size, at the lower edge of each bin, with the unbinned counts as a thin line."""
    columns, scale = picture.columns, picture.per
    size = np.sort(picture.diameter)[::-1]
    area = picture.facts["area"]["value"] / scale
    rank = np.arange(1, len(size) + 1) / area
    axes.plot(size, rank, drawstyle="steps-post", color=FAINT, lw=0.8, zorder=2)
    names = ("cumulative_density", "cumulative_density_lower", "cumulative_density_upper")
    shown = _with_rocks(columns)
    _points(axes, shown, shown["d_low"], *(shown[name] * scale for name in names))
    for fit, colour, dashes, label in _fits(picture):
        d, share = _curve(picture, fit)
        axes.plot(
            d, _above(picture, fit) + fit.n / area * share, color=colour, ls=dashes, lw=1.4, label=label, zorder=4
        )
        if isinstance(fit, PowerLaw):
            low, high = (fit.survival(d, exponent) for exponent in (fit.high, fit.low))
            band = [_above(picture, fit) + fit.n / area * bound for bound in (low, high)]
            axes.fill_between(d, *band, color=colour, alpha=0.18, lw=0, zorder=1)
    _dress(axes, picture, f"Rocks of at least D per {picture.area_unit}")
    axes.set_ylim(0.4 / area, rank[-1] * 3 * (1 + 2 * bool(picture.facts.get("power_law"))))


def _relative(axes: Any, picture: Picture) -> None:
    """The R plot: the differential counts times D cubed, in which a slope of -3 lies flat."""
    shown = _with_rocks(picture.columns)
    _points(axes, shown, shown["d_mid"], shown["r"], shown["r_lower"], shown["r_upper"])
    for fit, colour, dashes, _ in _fits(picture):
        d, share = _curve(picture, fit)
        density = -np.gradient(share, np.log(d)) * fit.n / picture.facts["area"]["value"]
        axes.plot(d[1:-1], (density * d**2)[1:-1], color=colour, ls=dashes, lw=1.4, zorder=4)
    _dress(axes, picture, "R (dimensionless)" if picture.unit == "m" else "R")


def _with_rocks(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The bins that hold any."""
    return {name: values[columns["count"] > 0] for name, values in columns.items()}


def _points(axes: Any, columns: Mapping[str, np.ndarray], x: np.ndarray, y: np.ndarray, *bounds: np.ndarray) -> None:
    complete = columns["complete"] > 0
    look = {"fmt": "o", "ms": 4, "lw": 0, "elinewidth": 0.9, "capsize": 0, "zorder": 3}
    for some, colour, fill in ((complete, DATA, DATA), (~complete, FAINT, "white")):
        error = np.stack([y - bounds[0], bounds[1] - y])[:, some]
        axes.errorbar(x[some], y[some], error, color=colour, mfc=fill, mec=colour, **look)


def _fits(picture: Picture) -> list[tuple[PowerLaw | Weibull, str, str, str]]:
    """Each fit with its colour, line and words."""
    made: list[tuple[PowerLaw | Weibull, str, str, str]] = []
    level = f"{picture.facts['confidence']:.0%}".replace("%", " %")
    power, weibull = picture.facts.get("power_law"), picture.facts.get("weibull")
    if power:
        fit = PowerLaw(**{name: power[name] for name in PowerLaw.__dataclass_fields__})
        end = "" if math.isinf(fit.d_max) else f", D ≤ {fit.d_max:.3g} {picture.unit}"
        text = f"power law, exponent −{fit.exponent:.2f} ({level}: −{fit.low:.2f} to −{fit.high:.2f}){end}"
        made.append((fit, POWER, "-", f"{text}\n    Kolmogorov–Smirnov {_chance(power['ks_p'])}"))
    if weibull and not weibull["is_power_law"]:
        other = Weibull(**{name: weibull[name] for name in Weibull.__dataclass_fields__})
        text = f"Weibull, shape {other.shape:.2f} ({other.shape_low:.2f} to {other.shape_high:.2f})"
        scale = f"scale {other.scale:.2g} {picture.unit}, {_chance(weibull['ks_p'])}"
        made.append((other, WEIBULL, "--", f"{text}\n    {scale}"))
    return made


def _chance(p: float) -> str:
    return "p < 0.01" if p < 0.01 else f"p = {p:.2f}"


def _curve(picture: Picture, fit: PowerLaw | Weibull) -> tuple[np.ndarray, np.ndarray]:
    last = fit.d_max if isinstance(fit, PowerLaw) and math.isfinite(fit.d_max) else picture.diameter.max() * 1.15
    d = np.geomspace(fit.d_min, last, CURVE)
    return d, fit.survival(d)


def _above(picture: Picture, fit: PowerLaw | Weibull) -> float:
    """Density of the rocks beyond the end of a fit, on which its curve stands."""
    end = fit.d_max if isinstance(fit, PowerLaw) else math.inf
    return float((picture.diameter > end).sum()) / picture.facts["area"]["value"] * picture.per


def _dress(axes: Any, picture: Picture, label: str) -> None:
    limit = picture.facts["min_diameter"]["value"]
    axes.set_xscale("log")
    axes.set_yscale("log")
    low = min(float(picture.columns["d_low"][0]), limit) / 1.15
    axes.set_xlim(low, float(picture.diameter.max()) * 1.5)
    axes.axvspan(low, limit, color=SHADE, lw=0, zorder=0)
    axes.axvline(limit, color=FAINT, lw=0.8, zorder=1)
    axes.text(
        limit, 0.02, "not complete, not fitted ", transform=axes.get_xaxis_transform(), rotation=90,
        ha="right", va="bottom", fontsize=7, color="#666666",
    )  # fmt: skip
    axes.set_xlabel(f"Diameter D ({picture.unit})")
    axes.set_ylabel(label)
    _plain_ticks(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right", fontsize=7, frameon=False, borderaxespad=0.6)


def _plain_ticks(axes: Any) -> None:
    """1, 2, 5, 10 for diameters, which seldom span more than two decades; powers of ten for counts."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power_of_ten(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _power_of_ten(value: float) -> str:
    """0.01 to 1000 as they are, else 10 with an exponent, in letters and not as a formula."""
    power = round(math.log10(value))
    return f"{value:g}" if -2 <= power <= 3 else f"10{str(power).translate(RAISED)}"


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
