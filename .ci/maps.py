"""Maps of the demo's results, drawn by QGIS: `python3 maps.py FOLDER NOTE`, with a Python that sees
QGIS. The note stands at the foot of every map.

Every layer is loaded as it was written, with the style that lies beside it. Makes FOLDER/maps/*.png, and
FOLDER/demo.qgz, the same layers as a QGIS project.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from qgis.core import (
    QgsApplication,
    QgsColorRampShader,
    QgsContrastEnhancement,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsFillSymbol,
    QgsLayerTree,
    QgsLayout,
    QgsLayoutExporter,
    QgsLayoutItemLabel,
    QgsLayoutItemLegend,
    QgsLayoutItemMap,
    QgsLayoutItemScaleBar,
    QgsLayoutItemShape,
    QgsLayoutPoint,
    QgsLayoutSize,
    QgsLegendStyle,
    QgsMapLayer,
    QgsPalettedRasterRenderer,
    QgsProject,
    QgsRasterLayer,
    QgsRasterMinMaxOrigin,
    QgsRasterShader,
    QgsRectangle,
    QgsReferencedRectangle,
    QgsSingleBandGrayRenderer,
    QgsSingleBandPseudoColorRenderer,
    QgsUnitTypes,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QPointF, QRectF
from qgis.PyQt.QtGui import QColor, QFont

FONT = "DejaVu Sans"
PAGE = (297.0, 206.0)  # mm
DPI = 150
MARGIN, HEAD, FOOT = 8.0, 24.0, 12.0  # mm
ROOM = QRectF(MARGIN, HEAD, PAGE[0] - 2 * MARGIN, PAGE[1] - HEAD - FOOT)  # for maps
WIDE, GAP = 0.756, 0.021  # width of the main map, and of the gap beside it, in shares of the room
INK, SOFT, MARK, PAPER = QColor("#1c2430"), QColor("#5b6675"), QColor("#ff9f1c"), QColor(255, 255, 255, 215)
SHADOW = (1190, 775, 400)  # column and row in the sample image, and side in metres: a crater floor in the dark
DARK = (30, 72)  # counts of the sample image between which that floor lies
FIELD = (1235, 250, 170)  # a field of rocks

LAYERS = {  # file, without suffix → title; in the order of the project's layers, the uppermost first
    "anomalies.gpkg": "Anomalies",
    "rocks.gpkg": "Rocks",
    "rock_outlines.gpkg": "Rock outlines",
    "searched_area.gpkg": "Searched area",
    "rock_mask.tif": "Rock mask",
    "scores.tif": "Anomaly score",
    "enhanced.tif": "Enhanced image",
    "sample.tif": "Input image",
}
MILLIMETRES = QgsUnitTypes.LayoutUnit.LayoutMillimeters
FLAGS = (  # value of the flags band, colour, words
    (0, "#3d7ea6", "in shadow, with signal"),
    (8, "#7b2d43", "below the noise floor"),
    (4, "#f1e4b8", "sunlit"),
    (6, "#e4572e", "saturated"),
    (1, "#ffffff", "no data"),
)
SIZES = (  # upper limit of the smallest resolvable size in metres, colour
    (3.5, "#fcfdbf"),
    (5, "#fec488"),
    (7, "#fb8861"),
    (10, "#e1526e"),
    (15, "#ac337b"),
    (25, "#6b1d81"),
    (float("inf"), "#231151"),
)


def main(folder: Path, note: str) -> None:
    """Write the project, and draw all sheets."""
    (folder / "maps").mkdir(exist_ok=True)
    layers = {Path(name).stem: load(folder / name, title) for name, title in LAYERS.items()}
    layers["sample"].setContrastEnhancement(  # as QGIS does for an image that a person adds
        QgsContrastEnhancement.ContrastEnhancementAlgorithm.StretchToMinimumMaximum,
        QgsRasterMinMaxOrigin.Limits.CumulativeCut,
    )
    write_project(layers, folder / "demo.qgz")
    layers["flags"], layers["resolvable"] = load_bands(folder / "enhanced.tif")
    for name, draw in SHEETS.items():
        sheet = draw(layers)
        height = sheet.pageCollection().pages()[0].pageSize().height()
        write(
            sheet,
            QRectF(MARGIN, height - 8, PAGE[0] - 2 * MARGIN, 6),
            f"{place_of(layers['sample'])} · {note}",
            7,
            SOFT,
        )
        export(sheet, folder / "maps" / f"{name}.png")


def load(path: Path, title: str) -> QgsMapLayer:
    """Open a result as a user would: QGIS takes the style from the .qml beside the file."""
    layer = QgsRasterLayer(str(path), title) if path.suffix == ".tif" else QgsVectorLayer(str(path), title, "ogr")
    if not layer.isValid():
        sys.exit(f"QGIS cannot open {path}.")
    if not layer.crs().isValid():
        sys.exit(f"{path} has lost its coordinate system.")
    return layer


def write_project(layers: dict[str, QgsMapLayer], path: Path) -> None:
    """The results as a person finds them in QGIS."""
    project = QgsProject.instance()
    project.setCrs(layers["sample"].crs())
    project.setEllipsoid("NONE")  # lengths on the map plane: QGIS 3.22 makes NaN of lengths on the Moon's ellipsoid
    project.addMapLayers(list(layers.values()))
    for name, layer in layers.items():
        project.layerTreeRoot().findLayer(layer).setItemVisibilityChecked(name in ("anomalies", "rocks", "enhanced"))
    project.viewSettings().setDefaultViewExtent(QgsReferencedRectangle(layers["sample"].extent(), project.crs()))
    project.write(str(path))


def load_bands(path: Path) -> tuple[QgsRasterLayer, QgsRasterLayer]:
    """Bands 3 and 4 of the enhanced image, in colours of their own."""
    flags, sizes = load(path, "Flags"), load(path, "Smallest resolvable size")
    classes = [QgsPalettedRasterRenderer.Class(value, QColor(colour), words) for value, colour, words in FLAGS]
    flags.setRenderer(QgsPalettedRasterRenderer(flags.dataProvider(), 3, classes))
    ramp = QgsColorRampShader(0, 100, None, QgsColorRampShader.Type.Discrete)
    lower = ("up to ", *(f"{limit:g}–" for limit, _ in SIZES))
    ramp.setColorRampItemList(
        [
            QgsColorRampShader.ColorRampItem(
                limit, QColor(colour), f"{low}{limit:g} m".replace("–inf m", " m and more")
            )
            for low, (limit, colour) in zip(lower, SIZES)
        ]
    )
    shader = QgsRasterShader()
    shader.setRasterShaderFunction(ramp)
    sizes.setRenderer(QgsSingleBandPseudoColorRenderer(sizes.dataProvider(), 4, shader))
    return flags, sizes


# -- sheets ---------------------------------------------------------------------------------------------------------


def input_sheet(layers: dict) -> QgsLayout:
    image = layers["sample"]
    page = new_page(
        "Input image", "What the tools are given: ground under a low sun, with rocks, and a border without data."
    )
    main = frame(0, 0, WIDE, 1)
    overview = add_map(page, main, [image], image.extent())
    left, side = main.right() + 6, ROOM.right() - main.right() - 6
    for index, (place, words) in enumerate(((SHADOW, "a crater floor in shadow"), (FIELD, "rocks"))):
        mark(page, overview, around(image, place))
        rect = QRectF(left, ROOM.y() + index * (side + 3), side, side)
        add_map(page, rect, [image], around(image, place), words)
    add_legend(page, QRectF(left, ROOM.y() + 2 * (side + 3) + 1, 0, 0), [image])
    return page


def enhanced_sheet(layers: dict) -> QgsLayout:
    image, enhanced = layers["sample"], layers["enhanced"]
    page = new_page(
        "Enhanced image",
        "Left: as QGIS shows the result. Right: the marked square before and after, in a contrast for the shadow.",
    )
    square = around(image, SHADOW)
    side = 0.48 * ROOM.height()
    left = QRectF(ROOM.x(), ROOM.y(), ROOM.width() - side - 6, ROOM.height())
    main = add_map(page, left, [enhanced], image.extent())
    mark(page, main, square)
    right = left.right() + 6
    for layer, top, words in (
        (image, ROOM.y(), "input"),
        (enhanced, ROOM.bottom() - side, "enhanced"),
    ):
        add_map(page, QRectF(right, top, side, side), [in_shadow(layer)], square, words)
    return page


def quality_sheet(layers: dict) -> QgsLayout:
    image = layers["sample"]
    page = new_page(
        "How far to trust the enhanced image",
        "Its bands 3 and 4: what each pixel is, and the smallest crater that stands out of the noise there.",
    )
    page.pageCollection().pages()[0].setPageSize(QgsLayoutSize(PAGE[0], 170, MILLIMETRES))
    width = (ROOM.width() - 6) / 2
    for index, name in enumerate(("flags", "resolvable")):
        rect = QRectF(ROOM.x() + index * (width + 6), ROOM.y(), width, width / 1.25)
        add_map(page, rect, [layers[name]], image.extent())
        add_legend(page, QRectF(rect.x(), rect.bottom() + 3, 0, 0), [layers[name]], columns=4)
    return page


def anomalies_sheet(layers: dict) -> QgsLayout:
    image, points = layers["sample"], layers["anomalies"]
    scores = layers["scores"].clone()
    scores.setOpacity(0.5)
    QgsProject.instance().addMapLayer(scores, False)
    page = new_page(
        "Anomalies", "The twelve strangest windows over the score of every window; the six strangest for review."
    )
    main = frame(0, 0, WIDE, 1)
    add_map(page, main, [points, scores, image], image.extent())
    left, side = main.right() + 6, (ROOM.right() - main.right() - 6 - 3) / 2
    for feature in sorted(points.getFeatures(), key=lambda f: f["rank"])[:6]:
        column, row = (feature["rank"] - 1) % 2, (feature["rank"] - 1) // 2
        middle, reach = feature.geometry().asPoint(), 0.6 * feature["window_m"]
        tile = QgsRectangle(middle.x() - reach, middle.y() - reach, middle.x() + reach, middle.y() + reach)
        rect = QRectF(left + column * (side + 3), ROOM.y() + row * (side + 3), side, side)
        add_map(page, rect, [image], tile, f"{feature['rank']}", ruler=False)
    add_legend(page, QRectF(left, ROOM.y() + 3 * (side + 3) + 2, 0, 0), [points, layers["scores"]])
    return page


def rocks_sheet(layers: dict) -> QgsLayout:
    image, rocks, outlines, area = (layers[n] for n in ("sample", "rocks", "rock_outlines", "searched_area"))
    page = new_page(
        "Rocks", f"{rocks.featureCount()} rocks, drawn at their own diameter, and the area that was searched."
    )
    square = around(image, FIELD)
    main = frame(0, 0, WIDE, 1)
    mark(page, add_map(page, main, [rocks, area, image], image.extent()), square)
    left, side = main.right() + 6, ROOM.right() - main.right() - 6
    add_map(page, QRectF(left, ROOM.y(), side, side), [image], square, "input")
    add_map(page, QRectF(left, ROOM.y() + side + 3, side, side), [outlines, image], square, "outlines of the rocks")
    add_legend(page, QRectF(left, ROOM.y() + 2 * (side + 3) + 1, 0, 0), [rocks, outlines, area])
    return page


def overview(layers: dict) -> QgsLayout:
    image, enhanced, rocks = layers["sample"], layers["enhanced"], layers["rocks"]
    page = new_page(
        "What the three tools make of one image", "Input · Enhance shadowed regions · Score anomalies · Segment rocks"
    )
    shadow, field = around(image, SHADOW, 1.25), around(image, FIELD, 1.25)
    panels = (
        ("Input", [image], image.extent()),
        ("Enhanced", [enhanced], image.extent()),
        ("Enhanced: the crater in shadow", [in_shadow(enhanced)], shadow),
        ("Anomalies, ranked", [layers["anomalies"], image], image.extent()),
        ("Rocks, by diameter", [rocks, layers["searched_area"], image], image.extent()),
        ("Rocks, outlined", [layers["rock_outlines"], image], field),
    )
    width = (ROOM.width() - 8) / 3
    for index, (title, shown, extent) in enumerate(panels):
        x = ROOM.x() + (index % 3) * (width + 4)
        y = ROOM.y() - 2 + (index // 3) * (width / 1.25 + 12)
        write(page, QRectF(x, y, width, 6), title, 10, bold=True)
        add_map(page, QRectF(x, y + 6, width, width / 1.25), shown, extent)
    return page


SHEETS = {
    "1_input": input_sheet,
    "2_enhanced": enhanced_sheet,
    "3_quality": quality_sheet,
    "4_anomalies": anomalies_sheet,
    "5_rocks": rocks_sheet,
    "overview": overview,
}


def around(image: QgsRasterLayer, what: tuple[float, float, float], aspect: float = 1.0) -> QgsRectangle:
    """A rectangle of the map around a pixel of the image."""
    col, row, side = what
    pixel, full = image.rasterUnitsPerPixelX(), image.extent()
    x, y = full.xMinimum() + col * pixel, full.yMaximum() - row * pixel
    return QgsRectangle(x - side * aspect / 2, y - side / 2, x + side * aspect / 2, y + side / 2)


def in_shadow(layer: QgsRasterLayer) -> QgsRasterLayer:
    """The layer in a contrast that suits what the shadow holds."""
    dark = layer.clone()
    renderer = QgsSingleBandGrayRenderer(dark.dataProvider(), 1)
    contrast = QgsContrastEnhancement(dark.dataProvider().dataType(1))
    contrast.setContrastEnhancementAlgorithm(
        QgsContrastEnhancement.ContrastEnhancementAlgorithm.StretchToMinimumMaximum
    )
    contrast.setMinimumValue(DARK[0])
    contrast.setMaximumValue(DARK[1])
    renderer.setContrastEnhancement(contrast)
    dark.setRenderer(renderer)
    QgsProject.instance().addMapLayer(dark, False)
    return dark


def place_of(image: QgsRasterLayer) -> str:
    """Coordinate system, longitude and latitude of the image's centre, in words."""
    moon = QgsCoordinateReferenceSystem("IAU_2015:30100")
    point = QgsCoordinateTransform(image.crs(), moon, QgsProject.instance()).transform(image.extent().center())
    east, north = ("E" if point.x() >= 0 else "W"), ("N" if point.y() >= 0 else "S")
    centre = f"{abs(point.x()):.2f}° {east}, {abs(point.y()):.2f}° {north}"
    return f"Moon, south polar stereographic (IAU_2015:30135) · centre {centre}"


# -- pieces of a sheet ----------------------------------------------------------------------------------------------


def new_page(title: str, subtitle: str) -> QgsLayout:
    layout = QgsLayout(QgsProject.instance())
    layout.initializeDefaults()
    layout.pageCollection().pages()[0].setPageSize(QgsLayoutSize(*PAGE, MILLIMETRES))
    write(layout, QRectF(MARGIN, 6, PAGE[0] - 2 * MARGIN, 10), title, 17, bold=True)
    write(layout, QRectF(MARGIN, 14.5, PAGE[0] - 2 * MARGIN, 7), subtitle, 10, SOFT)
    return layout


def frame(x: float, y: float, width: float, height: float) -> QRectF:
    """A part of the page below its title, in shares of the room there is."""
    return QRectF(
        ROOM.x() + x * ROOM.width(), ROOM.y() + y * ROOM.height(), width * ROOM.width(), height * ROOM.height()
    )


def put(layout: QgsLayout, item, rect: QRectF) -> None:
    layout.addLayoutItem(item)
    item.attemptMove(QgsLayoutPoint(rect.x(), rect.y(), MILLIMETRES))
    if rect.width() and rect.height():
        item.attemptResize(QgsLayoutSize(rect.width(), rect.height(), MILLIMETRES))


def write(
    layout: QgsLayout, rect: QRectF, text: str, size: float = 9, colour: QColor = INK, bold: bool = False
) -> QgsLayoutItemLabel:
    label = QgsLayoutItemLabel(layout)
    label.setFont(font(size, bold))
    label.setFontColor(colour)
    label.setText(text)
    put(layout, label, rect)
    return label


def font(size: float, bold: bool = False) -> QFont:
    made = QFont(FONT)
    made.setPointSizeF(size)
    made.setBold(bold)
    return made


def add_map(
    layout: QgsLayout,
    rect: QRectF,
    layers: Sequence[QgsMapLayer],
    extent: QgsRectangle,
    words: str = "",
    ruler: bool = True,
) -> QgsLayoutItemMap:
    """A map with a scale bar, and a word in its corner."""
    item = QgsLayoutItemMap(layout)
    item.setRect(0, 0, rect.width(), rect.height())  # before all else: resized from nothing, the extent becomes NaN
    put(layout, item, rect)
    item.setCrs(layers[0].crs())
    item.setLayers(list(layers))
    item.setKeepLayerSet(True)
    item.zoomToExtent(extent)
    item.setBackgroundColor(QColor("#eef0f3"))
    item.setFrameEnabled(True)
    item.setFrameStrokeColor(SOFT)
    if words:
        label = write(
            layout, QRectF(rect.x() + 1.2, rect.y() + 1.2, 2.6 + 2.0 * len(words), 5), words, 8, INK, bold=True
        )
        label.setBackgroundEnabled(True)
        label.setBackgroundColor(PAPER)
        label.setMarginX(1)
        label.setMarginY(0.6)
    if ruler:
        add_ruler(layout, item, rect)
    return item


def add_ruler(layout: QgsLayout, item: QgsLayoutItemMap, rect: QRectF) -> None:
    """A scale bar of a round length, about a fifth of the map, in its lower right corner."""
    across = item.extent().width()
    length = max(step for step in (10, 20, 50, 100, 200, 250, 500, 1000) if step < 0.22 * across)
    bar = QgsLayoutItemScaleBar(layout)
    bar.setLinkedMap(item)
    bar.setStyle("Single Box")
    bar.setUnits(QgsUnitTypes.DistanceUnit.DistanceUnknownUnit)  # map units, which are metres
    bar.setUnitLabel("m")
    bar.setMapUnitsPerScaleBarUnit(1)
    bar.setNumberOfSegmentsLeft(0)
    bar.setNumberOfSegments(2)
    bar.setUnitsPerSegment(length / 2)
    bar.setHeight(1.4)
    bar.setFont(font(6))
    bar.setLabelBarSpace(0.6)
    bar.setBoxContentSpace(1)
    bar.setBackgroundEnabled(True)
    bar.setBackgroundColor(PAPER)
    layout.addLayoutItem(bar)
    bar.attemptResize(QgsLayoutSize(bar.minimumSize().width(), bar.minimumSize().height(), MILLIMETRES))
    corner = rect.bottomRight() - QPointF(bar.rect().width() + 1.2, bar.rect().height() + 1.2)
    bar.attemptMove(QgsLayoutPoint(corner.x(), corner.y(), MILLIMETRES))


def mark(layout: QgsLayout, item: QgsLayoutItemMap, square: QgsRectangle) -> None:
    """Draw a rectangle of the ground on a map of the sheet."""
    full, place = item.extent(), item.pos()
    scale = item.rect().width() / full.width()
    shape = QgsLayoutItemShape(layout)
    shape.setShapeType(QgsLayoutItemShape.Shape.Rectangle)
    shape.setSymbol(QgsFillSymbol.createSimple({"style": "no", "outline_color": MARK.name(), "outline_width": "0.6"}))
    x = place.x() + (square.xMinimum() - full.xMinimum()) * scale
    y = place.y() + (full.yMaximum() - square.yMaximum()) * scale
    put(layout, shape, QRectF(x, y, square.width() * scale, square.height() * scale))


def add_legend(layout: QgsLayout, rect: QRectF, layers: Sequence[QgsMapLayer], columns: int = 1) -> None:
    """What the colours and sizes of the layers mean, as QGIS reads it from their styles."""
    legend = QgsLayoutItemLegend(layout)
    legend.setAutoUpdateModel(False)
    tree = QgsLayerTree()
    for layer in layers:
        tree.addLayer(layer)
    legend.model().setRootGroup(tree)
    legend.setColumnCount(columns)
    legend.setSplitLayer(columns > 1)
    for part, size, bold in (
        (QgsLegendStyle.Style.Subgroup, 9, True),
        (QgsLegendStyle.Style.SymbolLabel, 8, False),
    ):
        legend.setStyleFont(part, font(size, bold))
    legend.setFontColor(INK)
    legend.setBoxSpace(0)
    put(layout, legend, rect)
    legend.adjustBoxSize()
    legend.tree = tree  # the model keeps no reference


def export(layout: QgsLayout, path: Path) -> None:
    path.unlink(missing_ok=True)
    settings = QgsLayoutExporter.ImageExportSettings()
    settings.dpi = DPI
    settings.generateWorldFile = False
    settings.exportMetadata = False
    done = QgsLayoutExporter(layout).exportToImage(str(path), settings)
    if done != QgsLayoutExporter.ExportResult.Success:
        sys.exit(f"QGIS could not write {path}.")


if __name__ == "__main__":
    application = QgsApplication([], True)
    application.initQgis()
    main(Path(sys.argv[1]).absolute(), " ".join(sys.argv[2:]))
    sys.stdout.flush()
    os._exit(0)  # QGIS's own teardown may crash after all is done
