"""Make an image of a Moon of which all is known, to learn what a detector would miss."""

from __future__ import annotations

import json
from pathlib import Path

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterCrs,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFolderDestination,
)

from .. import engine, styling
from .base import DEVICES, LunarAlgorithm, add, advanced, choice, given, number

RECIPES = ("nac", "psr", "rocks", "anomalies", "lander")
OBJECTS = (
    "pit",
    "irregular mare patch",
    "rockfall",
    "rover track",
    "descent stage",
    "probe",
    "impact scar",
    "fresh crater",
    "blocky outcrop",
    "ridge",
    "scarp",
)
# Layers of the first scene that are loaded: output of the engine, layer in a GeoPackage, title, style.
LOADED = (
    ("image", "", "Simulated image", ""),
    ("layers", "craters", "True craters", ""),
    ("layers", "rocks", "True rocks", "rocks"),
    ("layers", "objects", "True objects", ""),
)


class SimulateScene(LunarAlgorithm):
    """`lunar simulate FOLDER …`."""

    NAME = "simulatescene"
    TITLE = "Simulate a scene"
    GROUP = "Simulation"
    ICON = "simulate"
    TAGS = ("synthetic", "truth", "terrain", "crater", "boulder", "detector", "incidence", "test")
    ABOUT = (
        "Makes an image of an invented piece of the Moon, with all that is true about it: craters from fresh to nearly "
        "erased, rocks with their shadows, strange things on request, seen by a camera like LRO NAC. It tells what a "
        "detector would miss under a given sun.\n\n"
        "Relief, light and camera follow published numbers (see docs/simulator.md), but no scene is a measurement: "
        "never mix one with data. The same seed gives the same scene."
    )
    CONTENTS = {
        "Files of each scene": {
            "RECIPE_SEED.tif": "the image, as the parameter “Image as” says",
            "…_height.tif": "height of the ground in metres",
            "…_albedo.tif": "normal albedo",
            "…_lit.tif": "share of the sun's disc that each pixel sees, 0 to 1",
            "…_classes.tif": "0 ground, 1 small rock, 2 large rock, 3 sky (in a lander's picture)",
            "…_rock_ids.tif": "0, or the rock_id of the layer of rocks",
            "…_objects.tif": "0, or the number of the kind of thing",
            "…_truth.gpkg": "layers craters, rocks and objects, each with its place and its size in metres",
        }
    }

    def initAlgorithm(self, configuration: dict | None = None) -> None:
        for parameter, text in (*self._what(), *self._where(), *self._how()):
            add(self, parameter, text)
        for key in ("rocks", "craters", "objects"):
            self.addOutput(QgsProcessingOutputNumber(f"{key.upper()}_COUNT", f"Number of {key}"))
        self.addOutput(QgsProcessingOutputString("REPORT", "All that the engine reported, as JSON"))

    def processAlgorithm(
        self, parameters: dict, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict:
        folder = self.parameterAsString(parameters, "FOLDER", context)
        Path(folder).mkdir(parents=True, exist_ok=True)
        report = engine.run_tool(["simulate", folder, *self._arguments(parameters, context)], feedback)
        if self.parameterAsBoolean(parameters, "LOAD", context):
            self._load(report["outputs"], context)
        counts = {f"{k.upper()}_COUNT": report["counts"][k] for k in ("rocks", "craters", "objects")}
        return {"FOLDER": folder, **counts, "REPORT": json.dumps(report, ensure_ascii=False)}

    # -- parameters ----------------------------------------------------------------------------------------------

    def _what(self):
        return [
            (
                choice("RECIPE", "Recipe", RECIPES),
                "<b>nac</b>: sunlit ground as LRO NAC sees it; <b>psr</b>: a permanently shadowed floor under "
                "scattered light; <b>rocks</b>: many boulders; <b>anomalies</b>: with strange things; "
                "<b>lander</b>: the view of a lander, without map and layers.",
            ),
            (
                QgsProcessingParameterEnum(
                    "OBJECTS",
                    "Strange things",
                    list(OBJECTS),
                    allowMultiple=True,
                    optional=True,
                    usesStaticStrings=True,
                ),
                "What to put in, besides craters and rocks.",
            ),
            (
                number("SIZE", "Width and height in pixels", 512, 16, 4096, whole=True),
                "Each scene is a square of so many pixels.",
            ),
            (
                number("COUNT", "Number of scenes", 1, 1, 10_000, whole=True),
                "One scene for each seed from the first on.",
            ),
            (number("SEED", "Seed", 0, 0, whole=True), "The same seed gives the same scene."),
            (
                number("INCIDENCE", "Incidence in degrees", least=0.0, most=89.9),
                "Angle of the sun from the vertical. Left empty, the recipe draws one.",
            ),
            (
                number("SUN_AZIMUTH", "Sun azimuth in degrees", least=0.0, most=360.0),
                "Where the sun stands, clockwise from the image's up direction. Left empty, any.",
            ),
            (
                number("PIXEL_SIZE", "Pixel size in metres", least=0.0),
                "Size of a pixel on the ground. Left empty, the recipe draws one.",
            ),
        ]

    def _where(self):
        return [
            (
                advanced(QgsProcessingParameterCrs("CRS", "Coordinate system", optional=True)),
                "In which the scene is placed; its relief does not depend on it. Left empty: south polar, "
                "IAU_2015:30135.",
            ),
            (
                advanced(number("LONGITUDE", "Longitude of the centre", 0.0, -180.0, 360.0)),
                "Where the scene lies, in degrees, east positive.",
            ),
            (
                advanced(number("LATITUDE", "Latitude of the centre", -89.5, -90.0, 90.0)),
                "Where the scene lies, in degrees.",
            ),
        ]

    def _how(self):
        return [
            (
                choice("DTYPE", "Image as", ("float32", "uint16", "uint8")),
                "float32: reflectance (I/F); uint16: calibrated 12-bit signal; uint8: codes as the camera sends them.",
            ),
            (
                advanced(choice("DEVICE", "Device", [d for d in DEVICES if d != "mps"])),
                "Where it is computed. Another device gives another scene from the same seed, to the last digits.",
            ),
            (
                QgsProcessingParameterBoolean("CONTACT_SHEET", "Also write a contact sheet", False),
                "contact_sheet.png in the folder, all scenes side by side.",
            ),
            (
                QgsProcessingParameterBoolean("LOAD", "Load the first scene", True),
                "Image and truth layers of the first scene are added to the project.",
            ),
            (
                QgsProcessingParameterFolderDestination("FOLDER", "Folder of scenes"),
                "Files of the same recipe and seed in it are replaced.",
            ),
        ]

    def _arguments(self, parameters: dict, context: QgsProcessingContext) -> list[str]:
        arguments = ["--overwrite", "--recipe", self.parameterAsEnumString(parameters, "RECIPE", context)]
        for name in ("SIZE", "COUNT", "SEED"):
            arguments += [f"--{name.lower()}", str(self.parameterAsInt(parameters, name, context))]
        for name in ("INCIDENCE", "SUN_AZIMUTH", "PIXEL_SIZE"):
            arguments += self.numeric(parameters, name, f"--{name.lower().replace('_', '-')}", context)
        things = self.parameterAsEnumStrings(parameters, "OBJECTS", context)
        if things:
            arguments += ["--objects", ",".join(things)]
        centre = [f"{self.parameterAsDouble(parameters, name, context):.12g}" for name in ("LONGITUDE", "LATITUDE")]
        arguments += [*self._crs(parameters, context), "--centre", *centre]
        for name in ("DTYPE", "DEVICE"):
            arguments += [f"--{name.lower()}", self.parameterAsEnumString(parameters, name, context)]
        if self.parameterAsBoolean(parameters, "CONTACT_SHEET", context):
            arguments += ["--contact-sheet"]
        return arguments

    def _crs(self, parameters: dict, context: QgsProcessingContext) -> list[str]:
        if not given(parameters, "CRS"):
            return []
        crs = self.parameterAsCrs(parameters, "CRS", context)
        if not crs.isValid():
            raise QgsProcessingException("The coordinate system is not valid. Cure: choose one of the Moon's.")
        return ["--crs", crs.authid() or crs.toWkt(crs.WktVariant.WKT2_2019)]

    # -- what is loaded ------------------------------------------------------------------------------------------

    def _load(self, outputs: dict[str, str], context: QgsProcessingContext) -> None:
        for key, layer, title, style in LOADED:
            if key not in outputs:
                continue
            source = f"{outputs[key]}|layername={layer}" if layer else outputs[key]
            details = QgsProcessingContext.LayerDetails(title, context.project(), title)
            if style:
                details.setPostProcessor(styling.post_processor(style))
            context.addLayerToLoadOnCompletion(source, details)
