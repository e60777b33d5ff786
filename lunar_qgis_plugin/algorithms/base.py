"""One base for the tools that run the engine: a tool is its parameters, its help and its style."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from qgis.core import (
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterBand,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFile,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterVectorDestination,
    QgsSettings,
)
from qgis.PyQt.QtGui import QIcon

from .. import engine, models, styling
from ..provider import icon

POINTS = QgsProcessing.SourceType.TypeVectorPoint
POLYGONS = QgsProcessing.SourceType.TypeVectorPolygon
BODIES = ("auto", "Moon", "Mercury", "Mars", "Vesta", "Ceres", "Earth")
BEST = "best"  # the default model, whichever that is where a script runs
DEVICES = ("auto", "cpu", "cuda", "mps")
CURE_INPUT = "export the layer to a GeoTIFF (Layer ▸ Save As…, raw data) and use that file."


@dataclass(frozen=True)
class Output:
    """A file that a tool writes: QGIS parameter, option of the command line (None: the main one), style, layer."""

    name: str
    title: str
    kind: int | None  # of vectors: POINTS or POLYGONS; None for a raster
    option: str | None
    style: str
    help: str
    layer: str = ""  # of vectors: the layer's name inside a GeoPackage that holds nothing else

    @property
    def optional(self) -> bool:
        """Whether a run may do without it."""
        return self.option is not None


class LunarAlgorithm(QgsProcessingAlgorithm):
    """What QGIS shows of an algorithm before it runs."""

    NAME = TITLE = GROUP = ICON = ABOUT = ""
    TAGS: tuple[str, ...] = ()
    CONTENTS: dict[str, dict[str, str]] = {}  # title of an output → its bands or fields → what they hold

    def name(self) -> str:
        return self.NAME

    def displayName(self) -> str:
        return self.TITLE

    def group(self) -> str:
        return self.GROUP

    def groupId(self) -> str:
        return re.sub(r"\W+", "", self.GROUP.lower())

    def tags(self) -> list[str]:
        return ["moon", "lunar", "planetary", *self.TAGS]

    def icon(self) -> QIcon:
        return icon(self.ICON)

    def svgIconPath(self) -> str:
        return str(engine.HERE / "icons" / f"{self.ICON}.svg")

    def shortDescription(self) -> str:
        return re.split(r"\.\s", self.ABOUT)[0].strip(".") + "."

    def shortHelpString(self) -> str:
        return help_text(self)

    def createInstance(self) -> LunarAlgorithm:
        return type(self)()

    def numeric(self, parameters: dict, name: str, option: str, context: QgsProcessingContext) -> list[str]:
        """`option VALUE`, or nothing where the user left the number empty."""
        if not given(parameters, name) and self.parameterDefinition(name).defaultValue() is None:
            return []
        return [option, f"{self.parameterAsDouble(parameters, name, context):.12g}"]


class LunarTool(LunarAlgorithm):
    """An algorithm that runs one command of the engine on one image."""

    COMMAND = ""
    OUTPUTS: tuple[Output, ...] = ()
    COUNTS: dict[str, tuple[str, str]] = {}  # QGIS output → title, key of the engine's counts
    SUN_MATTERS = False  # then its direction is not hidden among the advanced parameters

    # -- what a tool adds ----------------------------------------------------------------------------------------

    def own_parameters(self) -> list[tuple[QgsProcessingParameterDefinition, str]]:
        """Parameters of this tool alone, each with its help."""
        return []

    def own_arguments(self, parameters: dict, context: QgsProcessingContext) -> list[str]:
        """The command line of `own_parameters`."""
        return []

    # -- what QGIS asks ------------------------------------------------------------------------------------------

    def tags(self) -> list[str]:
        return [*super().tags(), "nac", "lroc"]

    def initAlgorithm(self, configuration: dict | None = None) -> None:
        for parameter, text in (*self._first(), *self.own_parameters(), *self._last()):
            add(self, parameter, text)
        for output in self.OUTPUTS:
            add(self, _destination(output), output.help)
        for name, (title, _) in self.COUNTS.items():
            self.addOutput(QgsProcessingOutputNumber(name, title))
        self.addOutput(QgsProcessingOutputString("REPORT", "All that the engine reported, as JSON"))

    def checkParameterValues(self, parameters: dict, context: QgsProcessingContext):
        """As QGIS does, but MODEL may also be `best` or the folder of a model, and an unknown one is told by name."""
        model = parameters.get("MODEL")
        if model == BEST:
            parameters = {k: v for k, v in parameters.items() if k != "MODEL"}
        elif isinstance(model, str) and model not in (known := models.choices(self.COMMAND)):
            if not (Path(model) / "model.json").is_file():
                return False, (
                    f"There is no model “{model}” for this tool. Cure: choose one of {', '.join(known)}, give the "
                    "folder of a model, or add the folder it is in under Settings ▸ Options ▸ Lunar."
                )
            parameters = {k: v for k, v in parameters.items() if k != "MODEL"}
        return super().checkParameterValues(parameters, context)

    def prepareAlgorithm(self, parameters, context, feedback) -> bool:
        """Layers belong to the main thread: take from the layer here what is needed of it."""
        layer = self.parameterAsRasterLayer(parameters, "INPUT", context)
        if layer is None:
            raise QgsProcessingException(self.invalidRasterError(parameters, "INPUT"))
        self.layer = (layer.providerType(), layer.source(), layer.name())
        return True

    def processAlgorithm(
        self, parameters: dict, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict:
        self.image = image_path(*self.layer)
        targets = self._targets(parameters, context)
        arguments = [self.COMMAND, self.image, targets[self.OUTPUTS[0].name]]
        for output in self.OUTPUTS[1:]:
            if output.name in targets:
                arguments += [output.option, targets[output.name]]
        arguments += self._arguments(parameters, context) + self.own_arguments(parameters, context)
        report = engine.run_tool(arguments, feedback, [file_of(t) for t in targets.values()])
        for output in self.OUTPUTS:
            if output.name in targets:
                styling.write_beside(targets[output.name], output.style)
        counts = report.get("counts", {})
        numbers = {name: counts[key] for name, (_, key) in self.COUNTS.items() if key in counts}
        return {**targets, **numbers, "REPORT": json.dumps(report, ensure_ascii=False)}

    # -- parameters that all tools share --------------------------------------------------------------------------

    def _first(self) -> list[tuple[QgsProcessingParameterDefinition, str]]:
        known = models.choices(self.COMMAND)
        told = "; ".join(f"<b>{name}</b>: {text}" if text else f"<b>{name}</b>" for name, text in known.items())
        return [
            (
                QgsProcessingParameterRasterLayer("INPUT", "Image"),
                "Image of the surface, from a file: GeoTIFF, COG, VRT, JPEG 2000, ISIS cube, PDS3 .IMG, PDS4 .xml. "
                "The engine reads the file itself, with its calibration and special pixels; what the layer shows "
                "in QGIS (style, transparency) has no effect.",
            ),
            (
                QgsProcessingParameterBand("BAND", "Band", None, "INPUT", optional=True),
                "Band to work on. Needed only when the image has several.",
            ),
            (
                choice("MODEL", "Model", list(known)),
                f"How the result is computed. {told}. The first is the default; where it does not know images like "
                "this one, another is used and the log says which. A script or a graphical model may also give "
                f"the folder of a model here, or the word {BEST}, which is the default wherever it runs.",
            ),
        ]

    def _last(self) -> list[tuple[QgsProcessingParameterDefinition, str]]:
        device = QgsSettings().value("lunar/device", "auto")
        sun = number("SUN_AZIMUTH", "Sun azimuth in degrees", least=0.0, most=360.0)
        return [
            (
                advanced(
                    QgsProcessingParameterFile(
                        "MODEL_FOLDER",
                        "Model from a folder (instead of the list)",
                        behavior=QgsProcessingParameterFile.Behavior.Folder,
                        optional=True,
                    )
                ),
                "Folder of one model (model.json and weights.safetensors), used instead of the model chosen above.",
            ),
            (
                advanced(choice("DEVICE", "Device", DEVICES, device if device in DEVICES else "auto")),
                "Where networks compute: auto takes the fastest there is (cuda: NVIDIA GPU, mps: Apple GPU, cpu). "
                "The log and the result name the one that was used.",
            ),
            (
                advanced(choice("BODY", "Body", BODIES)),
                "The body that the image shows. auto recognises it by the ellipsoid of the coordinate system. "
                "An image in a coordinate system of the Earth is refused unless a body is named here.",
            ),
            (
                advanced(number("PIXEL_SIZE", "Pixel size in metres", least=0.0)),
                "Size of a pixel on the ground, for images without a coordinate system. Left empty, it is taken "
                "from the coordinate system or the label; if neither tells, sizes are given in pixels only.",
            ),
            (
                advanced(choice("FORMAT", "Format of rasters", ("gtiff", "cog"))),
                "gtiff: tiled, compressed GeoTIFF with overviews; cog: cloud-optimised GeoTIFF, for web servers.",
            ),
            (
                sun if self.SUN_MATTERS else advanced(sun),
                "Direction to the sun in the image: degrees clockwise from up (towards the first row); shadows "
                "point the other way. Left empty, it is taken from the label or, where a tool needs it, "
                "estimated from the image, which the log then says.",
            ),
        ]

    def _arguments(self, parameters: dict, context: QgsProcessingContext) -> list[str]:
        arguments = ["--overwrite"]  # QGIS has asked already
        model = self.parameterAsFile(parameters, "MODEL_FOLDER", context) or parameters.get("MODEL")
        model = str(model or self.parameterAsEnumString(parameters, "MODEL", context))
        if model not in (
            BEST,
            next(iter(models.choices(self.COMMAND))),
        ):  # the default is chosen by the engine, to suit the image
            arguments += ["--model", model]
        for folder in engine.model_folders():
            arguments += ["--models-dir", folder]
        arguments += ["--device", self.parameterAsEnumString(parameters, "DEVICE", context)]
        arguments += ["--format", self.parameterAsEnumString(parameters, "FORMAT", context)]
        body = self.parameterAsEnumString(parameters, "BODY", context)
        if body != "auto":
            arguments += ["--body", body]
        if given(parameters, "BAND"):
            arguments += ["--band", str(self.parameterAsInt(parameters, "BAND", context))]
        for name, option in (("PIXEL_SIZE", "--pixel-size"), ("SUN_AZIMUTH", "--sun-azimuth")):
            arguments += self.numeric(parameters, name, option, context)
        return arguments

    def _targets(self, parameters: dict, context: QgsProcessingContext) -> dict[str, str]:
        """Name of each output asked for → where the engine shall write it, as QGIS will load it."""
        targets: dict[str, str] = {}
        for output in self.OUTPUTS:
            if output.optional and not given(parameters, output.name):
                continue
            destination = self.parameterAsOutputLayer(parameters, output.name, context)
            if not destination:
                continue
            target = destination if output.kind is None else vector_target(destination, output.layer)
            if target in targets.values():
                raise QgsProcessingException(f"Two outputs would be written to {target}. Cure: give each its own name.")
            targets[output.name] = target
            self._announce(output, destination, target, context)
        return targets

    def _announce(self, output: Output, destination: str, target: str, context: QgsProcessingContext) -> None:
        """Have the layer loaded from where it really is, named after its image and with its style."""
        waiting = context.layersToLoadOnCompletion()
        details = waiting.pop(destination, None)
        if details is None:
            return
        details.name = f"{output.title} – {Path(self.image).stem}"
        details.setPostProcessor(styling.post_processor(output.style))
        context.setLayersToLoadOnCompletion({**waiting, target: details})


# -- small pieces --------------------------------------------------------------------------------------------------


def given(parameters: dict, name: str) -> bool:
    """Whether the user filled a parameter in."""
    return parameters.get(name) not in (None, "")


def choice(name: str, title: str, options, default: str | None = None) -> QgsProcessingParameterEnum:
    """A choice whose values are the words themselves, so that scripts stay valid when the list grows."""
    options = list(options)
    return QgsProcessingParameterEnum(
        name, title, options=options, defaultValue=default or options[0], usesStaticStrings=True
    )


def number(
    name: str,
    title: str,
    default: float | None = None,
    least: float | None = None,
    most: float | None = None,
    whole: bool = False,
) -> QgsProcessingParameterNumber:
    """A number; without a default it may be left empty."""
    kinds = QgsProcessingParameterNumber.Type
    parameter = QgsProcessingParameterNumber(
        name, title, kinds.Integer if whole else kinds.Double, default, optional=default is None
    )
    if least is not None:
        parameter.setMinimum(least)
    if most is not None:
        parameter.setMaximum(most)
    return parameter


def advanced(parameter: QgsProcessingParameterDefinition) -> QgsProcessingParameterDefinition:
    """Shown only when the user unfolds the advanced parameters."""
    parameter.setFlags(parameter.flags() | QgsProcessingParameterDefinition.Flag.FlagAdvanced)
    return parameter


def add(algorithm: QgsProcessingAlgorithm, parameter: QgsProcessingParameterDefinition, text: str) -> None:
    """Add a parameter with its help; QGIS takes the parameter over."""
    if isinstance(parameter, QgsProcessingParameterEnum):
        text += " In scripts, write the word itself."  # help of qgis_process promises numbers, in vain
    parameter.setHelp(text)
    algorithm.addParameter(parameter)


def help_text(algorithm: QgsProcessingAlgorithm) -> str:
    """The help panel: what the tool does, each parameter, and what each output holds."""
    blocks = [f"<p>{p}</p>" for p in algorithm.ABOUT.split("\n\n")]
    destinations = {d.name() for d in algorithm.destinationParameterDefinitions()}
    parameters = [p for p in algorithm.parameterDefinitions() if p.name() not in destinations]
    for title, some in (
        ("Parameters", [(p.description(), p.help()) for p in parameters]),
        ("Outputs", [(d.description(), d.help()) for d in algorithm.destinationParameterDefinitions()]),
        *((title, contents.items()) for title, contents in algorithm.CONTENTS.items()),
    ):
        if some:
            blocks.append(f"<h3>{title}</h3>" + "".join(f"<p><b>{name}</b>: {text}</p>" for name, text in some))
    return "\n".join(blocks)


def image_path(provider: str, source: str, name: str) -> str:
    """The file behind a raster layer; the engine reads files, never QGIS's idea of them."""
    if provider != "gdal":
        raise QgsProcessingException(f"The layer “{name}” comes from “{provider}”, not from a file. Cure: {CURE_INPUT}")
    for path in (source, source.split("|")[0]):
        if Path(path).is_file():
            return str(Path(path).absolute())
    raise QgsProcessingException(f"The layer “{name}” ({source}) is no file of its own. Cure: {CURE_INPUT}")


def vector_target(destination: str, layer: str) -> str:
    """A destination of QGIS as `FILE` or `FILE.gpkg|layername=NAME`, which both QGIS and the engine understand."""
    database = re.match(r"""ogr:dbname='(.+?)'\s+table="(.+?)"\s*(\(.*\))?\s*$""", destination)
    path, name = database.group(1, 2) if database else (destination.split("|")[0], "")
    if "|layername=" in destination:
        name = destination.split("|layername=")[1].split("|")[0]
    path = str(Path(path).absolute())
    return f"{path}|layername={name or layer}" if path.lower().endswith(".gpkg") else path


def file_of(target: str) -> str:
    """The file that a target is written to."""
    return target.split("|layername=")[0]


def _destination(output: Output) -> QgsProcessingParameterDefinition:
    common = {"optional": output.optional, "createByDefault": not output.optional}
    if output.kind is None:
        return QgsProcessingParameterRasterDestination(output.name, output.title, **common)
    return QgsProcessingParameterVectorDestination(output.name, output.title, output.kind, **common)
