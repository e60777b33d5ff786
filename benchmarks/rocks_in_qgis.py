"""The strip of `python -m benchmarks.rocks strip DIR` in QGIS: `/usr/bin/python3 benchmarks/rocks_in_qgis.py DIR`.

Opens image and rocks with the plugin's style, draws the whole strip and a place of it into DIR/whole.png and
DIR/place.png, and prints how long that takes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
from qgis.core import (
    QgsApplication,
    QgsContrastEnhancement,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsRasterLayer,
    QgsRasterMinMaxOrigin,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QSize

STYLE = Path(__file__).resolve().parent.parent / "lunar_qgis_plugin" / "styles" / "rocks.qml"
PLACE_M = 150.0


def main() -> None:
    """Open, draw, tell."""
    folder = Path(sys.argv[1])
    QgsApplication.setPrefixPath(os.environ.get("QGIS_PREFIX_PATH", "/usr"), True)
    application = QgsApplication([], False)
    application.initQgis()
    began = time.perf_counter()
    rocks = QgsVectorLayer(f"{folder / 'strip.gpkg'}|layername=rocks", "rocks", "ogr")
    image = QgsRasterLayer(str(folder / "strip.tif"), "image")
    _, styled = rocks.loadNamedStyle(str(STYLE))
    if not (rocks.isValid() and image.isValid() and rocks.crs().isValid() and styled):
        sys.exit("QGIS cannot open the strip, its rocks or their style.")
    stretch = QgsContrastEnhancement.ContrastEnhancementAlgorithm.StretchToMinimumMaximum
    image.setContrastEnhancement(stretch, QgsRasterMinMaxOrigin.Limits.CumulativeCut)
    facts = {"rocks": rocks.featureCount(), "renderer": rocks.renderer().type(),
             "open_s": round(time.perf_counter() - began, 2)}  # fmt: skip
    whole, middle = image.extent(), image.extent().center()
    half = PLACE_M / 2
    place = QgsRectangle(middle.x() - half, middle.y() - half, middle.x() + half, middle.y() + half)
    for name, extent, size in (("whole", whole, QSize(300, 3000)), ("place", place, QSize(900, 900))):
        began = time.perf_counter()
        settings = QgsMapSettings()
        settings.setLayers([rocks, image])
        settings.setDestinationCrs(image.crs())
        settings.setOutputSize(size)
        settings.setExtent(extent)
        job = QgsMapRendererParallelJob(settings)
        job.start()
        job.waitForFinished()
        job.renderedImage().save(str(folder / f"{name}.png"))
        facts[f"{name}_s"] = round(time.perf_counter() - began, 2)
    print(json.dumps(facts, indent=2), flush=True)
    os._exit(0)  # QGIS's own teardown may crash after all is done


if __name__ == "__main__":
    main()
