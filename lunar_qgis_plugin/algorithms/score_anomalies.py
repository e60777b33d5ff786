"""Find what is strange: each window of an image scored by how unlike the others it is."""

from __future__ import annotations

from qgis.core import QgsProcessingParameterFolderDestination

from .base import POINTS, LunarTool, Output, advanced, given, number


class ScoreAnomalies(LunarTool):
    """`lunar anomalies IMAGE OUT.gpkg [--scores OUT.tif]`."""

    NAME = "scoreanomalies"
    TITLE = "Score anomalies"
    GROUP = "Images"
    COMMAND = "anomalies"
    ICON = "anomalies"
    TAGS = ("anomaly", "outlier", "novelty", "detection", "landing site", "artefact", "pits")
    ABOUT = (
        "Scores each window of an image by how strange it is, and lists the strangest places for a person to review: "
        "fresh craters, pits, landed hardware, but also artefacts of the camera. anomaly-multiscale, the default where "
        "it is installed, looks at windows of 32, 64, 128 and 256 pixels; windows that overlap are merged into one "
        "place, which has the size that fits best.\n\n"
        "A high rank says “look here”, not what it is. A score means something only within one model; the percentile "
        "says how many windows of this image are less strange, and, where the model brings one along, how many of the "
        "ground it was made with."
    )
    OUTPUTS = (
        Output(
            "OUTPUT",
            "Anomalies",
            POINTS,
            None,
            "anomalies",
            "One point for each place, strangest first. QGIS draws the window that was scored, coloured and "
            "labelled by rank. The fields reviewed and label wait for your verdict.",
            "anomalies",
        ),
        Output(
            "SCORES",
            "Anomaly scores",
            None,
            "--scores",
            "scores",
            "GeoTIFF with one value for each window, on a georeferenced grid of its own.",
        ),
        Output(
            "HEAT",
            "Anomaly heat",
            None,
            "--heat",
            "scores",
            "GeoTIFF on exactly the grid of the image: where inside the windows the strangeness lies, pixel by pixel.",
        ),
    )
    CONTENTS = {
        "Fields of the anomalies": {
            "rank": "1 is the strangest place",
            "score": "how unlike the rest the window is, in the unit of the model",
            "percentile": "percentage of the image's windows that score no higher",
            "known_pct, known": "percentage of the windows of a known population that score no higher, and its name; "
            "empty where the model knows none",
            "window_px, window_m": "side of the window that fits best in pixels and metres (metres empty without a "
            "scale)",
            "line, sample": "row and column of the window's centre in the image, counted from 0 at the outer corner",
            "lon, lat": "longitude (east positive, −180 to 180) and latitude in degrees; empty without a "
            "coordinate system",
            "product_id": "name of the image as its label gives it",
            "model": "the model that scored",
            "population": "among which windows the percentile is counted",
            "chip": "path of the picture of the place, where pictures were wished for",
            "reviewed": "0; set it to 1 when you have looked",
            "label": "empty; what you saw there",
        },
        "Bands of the anomaly scores": {
            "1 score": "score of the window",
            "2 percentile": "percentage of the image's windows that score no higher",
            "3 window": "side in pixels of the window that fits best; only of models that look at several sizes",
        },
        "Bands of the anomaly heat": {"1 heat": "how strange the pixel is, in the unit of the score"},
    }
    COUNTS = {"ANOMALY_COUNT": ("Number of anomalies", "points")}

    def own_parameters(self):
        """How many places, how strange, how far apart."""
        return [
            (
                number("TOP", "Number of places", 50, least=1, whole=True),
                "At most this many places are listed, strangest first.",
            ),
            (
                advanced(number("PERCENTILE", "Lowest percentile", least=0.0, most=100.0)),
                "Only windows stranger than this percentage of the image's windows are listed. Left empty: no limit "
                "but the number of places.",
            ),
            (
                advanced(number("MIN_DISTANCE", "Smallest distance between places, in metres", least=0.0)),
                "Of places closer together than this only the strangest is listed. Left empty: windows do not overlap. "
                "In pixels where no pixel size is known.",
            ),
            (
                QgsProcessingParameterFolderDestination(
                    "CHIPS", "Folder of pictures", optional=True, createByDefault=False
                ),
                "A small PNG of each place, named by its rank, its window marked by four corners. QGIS shows it in the "
                "map tip and in the form of the place. Pictures of the same ranks in the folder are replaced.",
            ),
        ]

    def own_arguments(self, parameters, context) -> list[str]:
        """Command line of `own_parameters`."""
        return [
            *("--top", str(self.parameterAsInt(parameters, "TOP", context))),
            *self.numeric(parameters, "PERCENTILE", "--percentile", context),
            *self.numeric(parameters, "MIN_DISTANCE", "--min-distance", context),
            *(["--chips", self.parameterAsString(parameters, "CHIPS", context)] if given(parameters, "CHIPS") else []),
        ]
