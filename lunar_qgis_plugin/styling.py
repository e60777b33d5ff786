"""How results look: a `.qml` for each kind, fitted to the data, on loaded layers and beside files."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from qgis.core import (
    QgsDataProvider,
    QgsMapLayer,
    QgsMapLayerStyle,
    QgsProcessingLayerPostProcessorInterface,
    QgsProviderRegistry,
    QgsVectorLayer,
)
from qgis.PyQt import sip
from qgis.PyQt.QtXml import QDomDocument

from . import engine

SAMPLE = 200_000  # pixels looked at for a contrast stretch
CUT = (0.02, 0.98)  # shares of the pixels below and above which contrast is not spent
OTHER_BANDS = {"enhanced": {"Sigma": 2, "Resolvable size": 4}}  # style → title of a further style → its band
ILLUSTRATION = "ILLUSTRATION"  # name of the first band of a picture that is painted
NODATA, SUNLIT = 1, 4  # bits of the flags of an enhanced image
WORTH_A_TONE = 0.005  # share of the pixels below which shadow gets no tones of its own
# Of a mask whose band names its classes: colour and opacity.
COLOURS = {"ground": ("#000000", "0"), "small rock": ("#00c800", "140"), "large rock": ("#285aff", "140"),
           "sky": ("#dc0000", "70")}  # fmt: skip
# Written at the end of each .qml beside a result. A style that the user saved as default lacks it and is kept.
MARK = "<!-- written by Lunar with the result, and again whenever the result is written -->"


def fitted(style: str, source: str) -> str:
    """The QML of a style, with ranges and units that suit the data in `source`."""
    tree = ElementTree.parse(engine.HERE / "styles" / f"{style}.qml")
    if style in FIT:
        FIT[style](tree, source)
    return ElementTree.tostring(tree.getroot(), encoding="unicode")


def dress(layer: QgsMapLayer, style: str) -> None:
    """Give a loaded layer its style, and beside it those of its other bands: in the menu Styles of the layer."""
    document = QDomDocument()
    document.setContent(fitted(style, layer.source()))
    layer.importNamedStyle(document)
    others = OTHER_BANDS.get(style, {})
    if style == "enhanced" and ILLUSTRATION in layer.bandName(1):
        layer.setName(f"{ILLUSTRATION}, not a measurement – {layer.name()}")
        others = {title: band for title, band in others.items() if title != "Sigma"}  # it has none
    manager = layer.styleManager()
    for title, band in others.items():
        manager.addStyle(title, QgsMapLayerStyle(of_band(band, layer.source())))
    layer.triggerRepaint()


def of_band(band: int, source: str) -> str:
    """The QML that shows one band of a raster in colours."""
    tree = ElementTree.parse(engine.HERE / "styles" / "scores.qml")
    tree.find(".//rasterrenderer").set("band", str(band))
    _fit_ramp(tree, source, band)
    return ElementTree.tostring(tree.getroot(), encoding="unicode")


def write_beside(target: str, style: str) -> None:
    """Write the style as `STEM.qml` beside a file, where QGIS finds it when a person opens the file later.

    Not where the file holds further layers, which QGIS would then show in this style too, and not over a style
    that a person saved there.
    """
    qml = Path(target.split("|layername=")[0]).with_suffix(".qml")
    if "|layername=" in target:
        layer = QgsVectorLayer(target, "", "ogr")
        if len(layer.dataProvider().subLayers()) > 1:
            return
    with contextlib.suppress(OSError):  # a style that cannot be written does not spoil the result
        if not qml.exists() or MARK in qml.read_text(encoding="utf-8", errors="replace"):
            qml.write_text(f"{fitted(style, target)}\n{MARK}\n", encoding="utf-8")


def post_processor(style: str) -> QgsProcessingLayerPostProcessorInterface:
    """What QGIS calls with the one loaded layer, and then deletes; until then Python must not."""
    dresser = Dresser(style)
    _WAITING[:] = [*(d for d in _WAITING if not sip.isdeleted(d)), dresser]
    return dresser


class Dresser(QgsProcessingLayerPostProcessorInterface):
    """Dresses a layer that Processing has loaded."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style

    def postProcessLayer(self, layer, context, feedback) -> None:
        """Called by QGIS in the main thread."""
        dress(layer, self.style)


_WAITING: list[Dresser] = []


# -- fitting to the data -------------------------------------------------------------------------------------------


def _fit_tones(tree: ElementTree.ElementTree, source: str) -> None:
    """Black to mid-grey for what lies in shadow, mid-grey to white for sunlit ground: one look shows both.

    Where the flags tell of no such two, or they are alike, grey runs evenly from the 2nd to the 98th percentile.
    """
    values, flags = _look(source, 1), _look(source, 3)
    seen = [(v, int(f)) for v, f in zip(values, flags) if math.isfinite(v) and not int(f) & NODATA]
    low, high = _cut([v for v, _ in seen])
    middle = (low + high) / 2
    shadow, sunlit = [v for v, f in seen if not f & SUNLIT], [v for v, f in seen if f & SUNLIT]
    if min(len(shadow), len(sunlit)) > WORTH_A_TONE * len(seen):
        (darkest, brightest_shadow), (_, brightest) = _cut(shadow), _cut(sunlit)
        if darkest < brightest_shadow < brightest:
            low, middle, high = darkest, brightest_shadow, brightest
    _set_stops(tree, [low, middle, high])


def _fit_ramp(tree: ElementTree.ElementTree, source: str, band: int = 1) -> None:
    """Colours, which the template gives for 0 to 1, from the 2nd to the 98th percentile."""
    low, high = _cut([v for v in _look(source, band) if math.isfinite(v)])
    items = tree.findall(".//colorrampshader/item")
    _set_stops(tree, [low + (high - low) * float(item.get("value")) for item in items])


def _set_stops(tree: ElementTree.ElementTree, values: list[float]) -> None:
    """Give the colours of a ramp their values, lowest first."""
    renderer, shader = tree.find(".//rasterrenderer"), tree.find(".//colorrampshader")
    for element, names in (
        (renderer, ("classificationMin", "classificationMax")),
        (shader, ("minimumValue", "maximumValue")),
    ):
        for name, value in zip(names, (values[0], values[-1])):
            element.set(name, repr(value))
    for item, value in zip(shader.findall("item"), values):
        item.set("value", repr(value))
        item.set("label", f"{value:.4g}")


def _fit_size(tree: ElementTree.ElementTree, source: str, metres: str, pixels: str) -> None:
    """Without a place on a body a map unit is a pixel: draw sizes in pixels there, instead of metres."""
    if QgsVectorLayer(source, "", "ogr").crs().toProj():  # a GeoPackage always has some system, if only “undefined”
        return
    for option in tree.iter("Option"):
        if (option.get("name"), option.get("value")) == ("size_unit", "RenderMetersInMapUnits"):
            option.set("value", "MapUnit")
        if (option.get("name"), option.get("value")) == ("expression", f'"{metres}"'):
            option.set("value", f'"{pixels}"')
    for prop in tree.iter("prop"):
        if (prop.get("k"), prop.get("v")) == ("size_unit", "RenderMetersInMapUnits"):
            prop.set("v", "MapUnit")


def _fit_classes(tree: ElementTree.ElementTree, source: str) -> None:
    """The classes that the band's name tells, where they are not the usual ones."""
    provider = QgsProviderRegistry.instance().createProvider("gdal", source, QgsDataProvider.ProviderOptions())
    told = re.findall(r"(\d+) ([^,]+)", provider.generateBandName(1).partition("class: ")[2])
    palette = tree.find(".//colorPalette")
    for entry in list(palette) if told else []:
        palette.remove(entry)
    for value, name in told:
        colour, alpha = COLOURS.get(name, ("#ff4040", "140"))
        ElementTree.SubElement(palette, "paletteEntry", label=name, value=value, color=colour, alpha=alpha)


def _look(source: str, band: int) -> list[float]:
    """The values of a coarse view of a band, NaN where there is nothing.

    Without a layer: a layer's statistics leave a large `.aux.xml` beside the file.
    """
    provider = QgsProviderRegistry.instance().createProvider("gdal", source, QgsDataProvider.ProviderOptions())
    if band > provider.bandCount():
        return []
    shrink = max(1.0, math.sqrt(provider.xSize() * provider.ySize() / SAMPLE))
    width, height = max(1, int(provider.xSize() / shrink)), max(1, int(provider.ySize() / shrink))
    block = provider.block(band, provider.extent(), width, height)
    return [math.nan if block.isNoData(i) else block.value(i) for i in range(width * height)]


def _cut(values: list[float]) -> tuple[float, float]:
    """Values between which the middle 96 % lie, low < high."""
    ordered = sorted(values) or [0.0]
    low, high = (ordered[int(share * (len(ordered) - 1))] for share in CUT)
    return low, high if high > low else low + 1.0


FIT: dict[str, Callable[[ElementTree.ElementTree, str], None]] = {
    "enhanced": _fit_tones,
    "scores": _fit_ramp,
    "abundance": _fit_ramp,
    "rock_mask": _fit_classes,
    "rocks": lambda tree, source: _fit_size(tree, source, "diam_eq_m", "diam_eq_px"),
    "anomalies": lambda tree, source: _fit_size(tree, source, "window_m", "window_px"),
}
