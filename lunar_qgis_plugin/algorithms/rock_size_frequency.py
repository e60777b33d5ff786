"""How many rocks of what size: the numbers and the figure of a paper, from a layer of rocks and its searched area."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputFile,
    QgsProcessingOutputNumber,
    QgsProcessingOutputRasterLayer,
    QgsProcessingOutputString,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterField,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterVectorLayer,
    QgsProviderRegistry,
    QgsVectorLayer,
)

from .. import engine, styling
from .base import BODIES, POINTS, POLYGONS, LunarAlgorithm, add, advanced, choice, given, number

UNITS = ("as its name ends", "m", "km", "px")
EDGES = ("exclude", "count")
NUMBERS = {  # parameter → option
    "MIN_DIAMETER": "--min-diameter",
    "MAX_DIAMETER": "--max-diameter",
    "PIXEL_SIZE": "--pixel-size",
    "BINS": "--bins",
    "CELL": "--cell",
    "CONFIDENCE": "--confidence",
}
ABUNDANCE = "abundance"


class RockSizeFrequency(LunarAlgorithm):
    """`lunar rocksizefrequency ROCKS --out FOLDER …`."""

    NAME = "rocksizefrequency"
    TITLE = "Rock size-frequency"
    GROUP = "Rocks"
    ICON = "sizes"
    TAGS = (
        "boulder",
        "block",
        "size-frequency",
        "SFD",
        "power law",
        "Weibull",
        "abundance",
        "craterstats",
        "diam",
        "scc",
    )
    ABOUT = (
        "Says how many rocks of what size there are on a square kilometre: a table with Poisson intervals, a power law "
        "and a Weibull distribution by maximum likelihood with their intervals, a figure ready to print, a raster of "
        "rock abundance, and files for programs that count craters.\n\n"
        "Areas and lengths are those on the ground, never those of the map. A rock counts if its middle lies in the "
        "searched area. Rocks smaller than four pixels are shown in grey and not fitted, for many of them are missed. "
        "No rocks at all is a result: the density then has an upper limit. No age is fitted, for the sizes of rocks "
        "tell of how they broke."
    )
    CONTENTS = {
        "Files in the folder": {
            "NAME_sizes.csv": "table: counts by bin and from each bin on, with intervals, for a km², for a metre of "
            "diameter, and as R plot; complete is 1 for bins that are fitted",
            "NAME_sizes.json": "fits with intervals and goodness, area, counts, warnings, and what made them",
            "NAME_sizes.png, NAME_sizes.svg": "figure: cumulative counts and R plot, with both fits",
            "NAME_abundance.tif": "share of the ground under rocks in each cell, 0 to 1; nodata where less than half "
            "of a cell was searched",
            "NAME.diam, NAME.scc": "rocks and area for Craterstats (diameters in km)",
            "NAME_CRATER.shp, NAME_AREA.shp": "rocks as circles, and the area, for OpenCraterTool",
        },
    }

    def initAlgorithm(self, configuration: dict | None = None) -> None:
        for parameter, text in (*self._what(), *self._how()):
            add(self, parameter, text)
        self.addOutput(QgsProcessingOutputRasterLayer("ABUNDANCE", "Rock abundance"))
        self.addOutput(QgsProcessingOutputFile("FIGURE", "Figure"))
        self.addOutput(QgsProcessingOutputNumber("ROCK_COUNT", "Number of rocks of complete size"))
        self.addOutput(QgsProcessingOutputNumber("DENSITY", "Rocks of complete size per km² (px²)"))
        self.addOutput(QgsProcessingOutputNumber("EXPONENT", "Exponent of the power law"))
        self.addOutput(QgsProcessingOutputString("REPORT", "All that the engine reported, as JSON"))

    def prepareAlgorithm(self, parameters, context, feedback) -> bool:
        """Layers belong to the main thread: take from them here what is needed."""
        layer = self.parameterAsVectorLayer(parameters, "INPUT", context)
        if layer is None:
            raise QgsProcessingException(self.invalidSourceError(parameters, "INPUT"))
        self.rocks, self.area = Source.of(layer), None
        searched = self.parameterAsVectorLayer(parameters, "AREA", context)
        if searched is not None:
            self.area = Source.of(searched)
        elif given(parameters, "AREA"):
            raise QgsProcessingException(self.invalidSourceError(parameters, "AREA"))
        return True

    def processAlgorithm(
        self, parameters: dict, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict:
        folder = self.parameterAsString(parameters, "FOLDER", context)
        Path(folder).mkdir(parents=True, exist_ok=True)
        arguments = ["rocksizefrequency", self.rocks.path(), "--out", folder, *self._arguments(parameters, context)]
        report = engine.run_tool(arguments, feedback)
        outputs = report["outputs"]
        results = {"FOLDER": folder, "REPORT": json.dumps(report, ensure_ascii=False)}
        results |= {"ROCK_COUNT": report["counts"]["complete"], "DENSITY": report["density"]["value"]}
        if "figure" in outputs:
            results["FIGURE"] = outputs["figure"]
        if report.get("power_law"):
            results["EXPONENT"] = report["power_law"]["exponent"]
        if "abundance" in outputs:
            results["ABUNDANCE"] = outputs["abundance"]
            styling.write_beside(outputs["abundance"], ABUNDANCE)
            if self.parameterAsBoolean(parameters, "LOAD", context):
                self._load(outputs["abundance"], context)
        return results

    # -- parameters ----------------------------------------------------------------------------------------------

    def _what(self):
        return [
            (
                QgsProcessingParameterVectorLayer("INPUT", "Rocks", [POINTS]),
                "Points with diameters, from a file: as “Segment rocks” writes them, or the catalogue of others. "
                "Filters and changes that are not saved have no effect.",
            ),
            (
                QgsProcessingParameterVectorLayer("AREA", "Searched area", [POLYGONS], optional=True),
                "Polygons of the ground on which rocks were looked for; rocks whose middle lies outside do not count. "
                "Left empty, the layer searched_area in the file of the rocks, or beside it, is taken. The area that "
                "“Segment rocks” counted is believed as long as the polygons still have it, else they are measured.",
            ),
            (
                number("AREA_M2", "Searched area in square metres (instead of a layer)", least=0.0),
                "For a catalogue whose area is known as a number only. Whether the rocks lie in it cannot be checked, "
                "and there is no raster of abundance.",
            ),
            (
                QgsProcessingParameterField(
                    "DIAMETER_FIELD",
                    "Field with diameters",
                    parentLayerParameterName="INPUT",
                    type=QgsProcessingParameterField.DataType.Numeric,
                    optional=True,
                ),
                "Left empty, diam_eq_m is taken, or what the layer has of diameter_m, diam_m, diam_km, diam_eq_px.",
            ),
            (
                choice("UNIT", "Unit of that field", UNITS),
                "Of the diameters. “as its name ends” reads _m, _km or _px, and takes metres for any other name.",
            ),
            (
                number("MIN_DIAMETER", "Smallest complete diameter in metres", least=0.0),
                "Counts are complete from there on; smaller rocks are shown and not fitted. Left empty: four pixels. "
                "In pixels where no scale is known.",
            ),
            (
                number("MAX_DIAMETER", "Largest fitted diameter in metres", least=0.0),
                "The power law then ends there, and larger rocks are not fitted. Left empty, it has no end.",
            ),
            (
                choice("EDGE", "Rocks on the edge of the image", EDGES),
                "A rock that the edge of the image or nodata cuts has no known size. exclude leaves it out; count "
                "takes the part that is seen for the rock, which makes it too small.",
            ),
        ]

    def _how(self):
        return [
            (
                advanced(number("PIXEL_SIZE", "Pixel size in metres", least=0.0)),
                "Of the image in which the rocks were found. Left empty, it is read from the layer, if “Segment rocks” "
                "wrote it.",
            ),
            (
                advanced(choice("BODY", "Body", BODIES)),
                "The body that the rocks are on. auto recognises it by the ellipsoid of the coordinate system.",
            ),
            (
                advanced(number("BINS", "Bins in a decade of diameters", 10.0, 1.0, 100.0)),
                "How finely diameters are sorted in the table and the figure. The fits do not depend on it.",
            ),
            (
                advanced(number("CELL", "Cell of the raster of abundance in metres", least=0.0)),
                "Size of a square on the ground. Left empty, about thirty cells lie across the area.",
            ),
            (
                advanced(number("CONFIDENCE", "Confidence of all intervals", 0.95, 0.5, 0.999)),
                "0.95 for 95 %; 0.6827 for what is called one sigma.",
            ),
            (
                QgsProcessingParameterBoolean("LOAD", "Load the raster of abundance", True),
                "It is added to the project, in colours that suit its values.",
            ),
            (
                QgsProcessingParameterFolderDestination("FOLDER", "Folder of results"),
                "Results of the same layer in it are replaced.",
            ),
        ]

    def _arguments(self, parameters: dict, context: QgsProcessingContext) -> list[str]:
        arguments = ["--overwrite", "--edge", self.parameterAsEnumString(parameters, "EDGE", context)]
        if self.area and given(parameters, "AREA_M2"):
            raise QgsProcessingException("The searched area is given twice. Cure: give the layer or the number.")
        if self.area:
            arguments += ["--area", self.area.path()]
        arguments += self.numeric(parameters, "AREA_M2", "--area", context)
        for name in self.parameterAsFields(parameters, "DIAMETER_FIELD", context)[:1]:
            arguments += ["--diameter-field", name]
        unit = self.parameterAsEnumString(parameters, "UNIT", context)
        if unit != UNITS[0]:
            arguments += ["--unit", unit]
        body = self.parameterAsEnumString(parameters, "BODY", context)
        if body != "auto":
            arguments += ["--body", body]
        for name, option in NUMBERS.items():
            arguments += self.numeric(parameters, name, option, context)
        return arguments

    def _load(self, path: str, context: QgsProcessingContext) -> None:
        title = f"Rock abundance – {Path(path).stem.removesuffix('_abundance')}"
        details = QgsProcessingContext.LayerDetails(title, context.project(), title)
        details.setPostProcessor(styling.post_processor(ABUNDANCE))
        context.addLayerToLoadOnCompletion(path, details)


@dataclass(frozen=True)
class Source:
    """What a layer of vectors draws on, taken from it in the main thread."""

    name: str
    provider: str
    uri: str
    filtered: bool
    modified: bool

    @classmethod
    def of(cls, layer: QgsVectorLayer) -> Source:
        return cls(layer.name(), layer.providerType(), layer.source(), bool(layer.subsetString()), layer.isModified())

    def path(self) -> str:
        """The file, as `FILE` or `FILE|layername=NAME`; the engine reads files, as they were saved."""
        cure = "Cure: export the layer to a GeoPackage (Layer ▸ Save As…) and use that."
        parts = QgsProviderRegistry.instance().decodeUri(self.provider, self.uri)
        path = parts.get("path") or ""
        if self.provider != "ogr" or not Path(path).is_file():
            raise QgsProcessingException(f"The layer “{self.name}” is no file of its own. {cure}")
        if self.filtered:
            raise QgsProcessingException(f"The layer “{self.name}” has a filter, which its file does not know. {cure}")
        if self.modified:
            raise QgsProcessingException(f"The layer “{self.name}” has changes that are not saved. Cure: save them.")
        inside = parts.get("layerName")
        return f"{path}|layername={inside}" if inside else path
