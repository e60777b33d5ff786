"""What `screenshots.py` does in the window of QGIS: each stop of the tour is a function that ends in a picture."""

import os
import traceback
from pathlib import Path

import processing
from processing.modeler.ModelerDialog import ModelerDialog
from qgis.core import QgsApplication, QgsProject, QgsRasterLayer, QgsRectangle, QgsVectorLayer
from qgis.PyQt.QtCore import QEventLoop, Qt, QTimer
from qgis.PyQt.QtWidgets import QDockWidget, QLineEdit, QTreeView
from qgis.utils import iface, plugins

import lunar_qgis_plugin

RESULTS, SHOTS = Path(os.environ["LUNAR_TOUR"]), Path(os.environ["LUNAR_SHOTS"])
SIZE = (1480, 900)


def toolbox() -> None:
    """The sample image, and the tools beside it."""
    add_raster("sample.tif", "sample")
    panel = dock("ProcessingToolbox")
    panel.show()
    panel.raise_()
    panel.setMinimumWidth(330)
    panel.findChild(QLineEdit).setText("Lunar")
    panel.findChild(QTreeView).expandAll()
    picture("toolbox")


def enhance() -> None:
    """The dialog of a tool, with its help."""
    dialog = processing.createAlgorithmDialog("lunar:enhancepsr", {"INPUT": str(RESULTS / "sample.tif")})
    dialog.resize(1100, 720)
    dialog.show()
    picture("dialog", dialog)
    dialog.close()


def enhanced() -> None:
    """A floor in shadow."""
    layer = add_raster("enhanced.tif", "enhanced")
    zoom(layer.extent())
    picture("enhanced")


def anomalies() -> None:
    """Ranked points."""
    hide("enhanced")
    layer = add_vector("anomalies.gpkg", "anomalies")
    zoom(layer.extent())
    picture("anomalies")


def reviewing() -> None:
    """The panel for going through them."""
    plugins["lunar_qgis_plugin"].review()
    panel = dock("LunarReview")
    dock("ProcessingToolbox").hide()
    panel.setMinimumWidth(300)
    panel.go(2)
    picture("reviewing")
    panel.hide()
    dock("ProcessingToolbox").show()


def rocks() -> None:
    """Rocks, each drawn as large as it is."""
    hide("anomalies")
    layer = add_vector("rocks.gpkg", "rocks")
    middle, side = layer.extent().center(), 130
    zoom(QgsRectangle(middle.x() - side, middle.y() - side, middle.x() + side, middle.y() + side))
    iface.layerTreeView().setCurrentLayer(layer)
    picture("rocks")


def chained() -> None:
    """The example in the model designer."""
    designer = ModelerDialog.create()
    designer.loadModel(str(Path(lunar_qgis_plugin.__file__).parent / "examples" / "enhance_then_rocks.model3"))
    designer.resize(1200, 620)
    designer.show()
    picture("model", designer)
    designer.hide()


def add_raster(name: str, title: str) -> QgsRasterLayer:
    """A layer on top of the others, in the style that lies beside it."""
    return added(QgsRasterLayer(str(RESULTS / name), title))


def add_vector(name: str, title: str) -> QgsVectorLayer:
    """The same for points."""
    return added(QgsVectorLayer(str(RESULTS / name), title, "ogr"))


def added(layer):
    """The layer, once QGIS has it. The first one tells the project on which world it is."""
    assert layer.isValid(), layer.source()
    first = not QgsProject.instance().mapLayers()
    if first:
        QgsProject.instance().setCrs(layer.crs())
    QgsProject.instance().addMapLayer(layer)
    if first:
        zoom(layer.extent())
    return layer


def hide(title: str) -> None:
    """Tick a layer off."""
    for layer in QgsProject.instance().mapLayersByName(title):
        QgsProject.instance().layerTreeRoot().findLayer(layer.id()).setItemVisibilityChecked(False)


def dock(name: str) -> QDockWidget:
    """A panel of the window by its name."""
    return next(panel for panel in iface.mainWindow().findChildren(QDockWidget) if panel.objectName() == name)


def zoom(extent: QgsRectangle) -> None:
    """Show this part of the map."""
    extent = QgsRectangle(extent)
    extent.scale(1.05)
    iface.mapCanvas().setExtent(extent)
    iface.mapCanvas().refresh()


def settle() -> None:
    """Wait until the map is drawn and the widgets have found their place."""
    loop = QEventLoop()
    QTimer.singleShot(1500, loop.quit)  # a map begins to draw a moment after it was asked to
    loop.exec_()
    iface.mapCanvas().waitWhileRendering()
    iface.messageBar().clearWidgets()
    QgsApplication.processEvents()


def picture(name: str, widget=None) -> None:
    """Keep what is to be seen."""
    settle()
    (widget or iface.mainWindow()).grab().save(str(SHOTS / f"{name}.png"))


def main() -> None:
    """All stops; whatever goes wrong is written down, and the window closes."""
    try:
        window = iface.mainWindow()
        window.setWindowState(window.windowState() & ~Qt.WindowMaximized)
        window.resize(*SIZE)
        iface.messageBar().clearWidgets()
        for panel in window.findChildren(QDockWidget):
            panel.setVisible(panel.objectName() == "Layers")
        for stop in (toolbox, enhance, enhanced, anomalies, reviewing, rocks, chained):
            stop()
    except Exception:
        (SHOTS / "error.txt").write_text(traceback.format_exc())
    finally:
        os._exit(0)


QTimer.singleShot(2500, main)
