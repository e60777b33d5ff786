"""Many images with one tool: a folder goes in, a folder comes out, and what is done is not done again."""

from __future__ import annotations

import json
from pathlib import Path

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingOutputFile,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFile,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterString,
)

from .. import engine, styling
from .base import DEVICES, LunarAlgorithm, add, advanced, choice, given, number

TOOLS = ("rocks", "anomalies", "enhance")
# Layers of the merged file that are loaded: name, title, style.
LOADED = (
    ("products", "Images of the batch", ""),
    ("searched_area", "Searched area", "searched_area"),
    ("rocks", "Rocks of all images", "rocks"),
    ("anomalies", "Anomalies of all images", "anomalies"),
)
COUNTS = {"OK": "ok", "EMPTY": "empty", "SKIPPED": "skipped", "FAILED": "failed"}


class Batch(LunarAlgorithm):
    """`lunar batch TOOL FOLDER --out DIR …`."""

    NAME = "batch"
    TITLE = "Process many images"
    GROUP = "Batch"
    ICON = "lunar"
    TAGS = ("batch", "folder", "cluster", "resume", "merge", "report")
    ABOUT = (
        "Runs one tool on all images of a folder, and sums up: one GeoPackage with everything on one map, each thing "
        "once, the sizes of all rocks, and a page that tells what failed and why.\n\n"
        "It may be stopped at any time and run again with the same settings: what is finished stays as it is. "
        "What fails does not stop the rest. The same on many processors or a cluster: see docs/batch.md."
    )
    CONTENTS = {
        "Folder of the batch": {
            "products/NAME/": "what was made of each image",
            "merged.gpkg": "rocks or anomalies of all images, each once; images; searched area",
            "report.html": "what ran, what failed and why, map, speed, the best finds",
            "journal.jsonl": "what came of each image, one line each",
            "sizes/": "size-frequency of all rocks",
        }
    }

    def initAlgorithm(self, configuration: dict | None = None) -> None:
        for parameter, text in (*self._what(), *self._which(), *self._how()):
            add(self, parameter, text)
        for name, status in COUNTS.items():
            self.addOutput(QgsProcessingOutputNumber(name, f"Number of images that are {status}"))
        self.addOutput(QgsProcessingOutputFile("PAGE", "The page about the batch"))
        self.addOutput(QgsProcessingOutputString("REPORT", "All that the engine reported, as JSON"))

    def processAlgorithm(
        self, parameters: dict, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict:
        folder = self.parameterAsString(parameters, "FOLDER", context)
        Path(folder).mkdir(parents=True, exist_ok=True)
        tool = self.parameterAsEnumString(parameters, "TOOL", context)
        images = self.parameterAsFile(parameters, "INPUT", context)
        arguments = ["batch", tool, images, "--out", folder, "--resume", *self._arguments(parameters, context)]
        report = engine.run_tool(arguments, feedback, partly=True)
        if self.parameterAsBoolean(parameters, "LOAD", context) and "merged" in report["outputs"]:
            self._load(report["outputs"]["merged"], context)
        counts = {name: report["counts"][status] for name, status in COUNTS.items()}
        page = report["outputs"].get("report", "")
        return {"FOLDER": folder, "PAGE": page, **counts, "REPORT": json.dumps(report, ensure_ascii=False)}

    # -- parameters ----------------------------------------------------------------------------------------------

    def _what(self):
        return [
            (choice("TOOL", "Tool", TOOLS), "What to do with each image; the tool's own help says what it makes."),
            (
                QgsProcessingParameterFile("INPUT", "Folder of images", QgsProcessingParameterFile.Behavior.Folder),
                "All images in it and in the folders below it.",
            ),
            (
                QgsProcessingParameterString("MODEL", "Model", optional=True),
                "Name or folder of a model or method, the same for all. Left empty, the tool's own choice.",
            ),
        ]

    def _which(self):
        return [
            (
                QgsProcessingParameterString("WHERE", "Only images of which is true", optional=True),
                "For example: incidence < 80 and pixel_size < 2. The facts are those of the labels and of the table.",
            ),
            (
                QgsProcessingParameterFile("TABLE", "Table of facts", optional=True),
                "A CSV file whose first line names its columns, or a PDS index with its label (CUMINDEX.LBL).",
            ),
        ]

    def _how(self):
        return [
            (
                number("SUN_AZIMUTH", "Sun azimuth in degrees", least=0.0, most=360.0),
                "The same for all images, where their labels do not say it.",
            ),
            (
                advanced(number("PIXEL_SIZE", "Pixel size in metres", least=0.0)),
                "The same for all images without a coordinate system.",
            ),
            (
                advanced(choice("DEVICE", "Device", DEVICES)),
                "Where networks compute.",
            ),
            (
                advanced(number("WORKERS", "Workers", 0, 0, 1024, whole=True)),
                "So many images at a time, each in a process of its own, which needs the package distributed in the "
                "engine's Python. 0: one after another.",
            ),
            (
                QgsProcessingParameterBoolean("LOAD", "Load what was found", True),
                "The merged layers are added to the project.",
            ),
            (
                QgsProcessingParameterFolderDestination("FOLDER", "Folder of the batch"),
                "Belongs to one set of settings. Run again on it, a batch goes on where it stopped.",
            ),
        ]

    def _arguments(self, parameters: dict, context: QgsProcessingContext) -> list[str]:
        arguments = ["--device", self.parameterAsEnumString(parameters, "DEVICE", context)]
        arguments += ["--workers", str(self.parameterAsInt(parameters, "WORKERS", context))]
        for name, option in (("MODEL", "--model"), ("WHERE", "--where"), ("TABLE", "--table")):
            if given(parameters, name):
                arguments += [option, self.parameterAsString(parameters, name, context)]
        for name, option in (("PIXEL_SIZE", "--pixel-size"), ("SUN_AZIMUTH", "--sun-azimuth")):
            arguments += self.numeric(parameters, name, option, context)
        for folder in engine.model_folders():
            arguments += ["--models-dir", folder]
        return arguments

    # -- what is loaded ------------------------------------------------------------------------------------------

    def _load(self, merged: str, context: QgsProcessingContext) -> None:
        there = engine.layers_of(merged)
        for layer, title, style in LOADED:
            if layer not in there:
                continue
            details = QgsProcessingContext.LayerDetails(title, context.project(), title)
            if style:
                details.setPostProcessor(styling.post_processor(style))
            context.addLayerToLoadOnCompletion(f"{merged}|layername={layer}", details)
