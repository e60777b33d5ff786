"""The list of algorithms."""

from __future__ import annotations

from collections.abc import Iterator

from qgis.core import QgsProcessingModelAlgorithm, QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from . import engine


def icon(name: str) -> QIcon:
    """One of the plugin's own icons."""
    return QIcon(str(engine.HERE / "icons" / f"{name}.svg"))


def _examples() -> Iterator[QgsProcessingModelAlgorithm]:
    """Graphical models that show how tools are chained; their files can be opened in the model designer."""
    for path in sorted((engine.HERE / "examples").glob("*.model3")):
        model = QgsProcessingModelAlgorithm()
        if model.fromFile(str(path)):
            yield model


class LunarProvider(QgsProcessingProvider):
    """Lunar: enhance shadowed images, find anomalies, count rocks."""

    def loadAlgorithms(self) -> None:
        from .algorithms import ALGORITHMS

        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())
        for model in _examples():
            self.addAlgorithm(model)

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
