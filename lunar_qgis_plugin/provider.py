"""The list of algorithms."""

from __future__ import annotations

from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from . import engine


def icon(name: str) -> QIcon:
    """One of the plugin's own icons."""
    return QIcon(str(engine.HERE / "icons" / f"{name}.svg"))


class LunarProvider(QgsProcessingProvider):
    """Lunar: enhance shadowed images, find anomalies, count rocks."""

    def loadAlgorithms(self) -> None:
        from .algorithms import ALGORITHMS

        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())

    def id(self) -> str:
        return "lunar"

    def name(self) -> str:
        return "Lunar"

    def longName(self) -> str:
        return "Lunar (images of the Moon)"

    def icon(self) -> QIcon:
        return icon("lunar")

    def svgIconPath(self) -> str:
        return str(engine.HERE / "icons" / "lunar.svg")

    # What the engine writes with a coordinate system of the Moon that survives.
    def supportedOutputVectorLayerExtensions(self) -> list[str]:
        return ["gpkg", "shp", "fgb"]

    def defaultVectorFileExtension(self, hasGeometry: bool = True) -> str:
        return "gpkg"

    def supportedOutputRasterLayerExtensions(self) -> list[str]:
        return ["tif"]

    def defaultRasterFileExtension(self) -> str:
        return "tif"
