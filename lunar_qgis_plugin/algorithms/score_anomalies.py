"""Find what is strange: each window of an image scored by how unlike the others it is."""

from __future__ import annotations

from .base import POINTS, LunarTool, Output, advanced, number


class ScoreAnomalies(LunarTool):
    """`lunar anomalies IMAGE OUT.gpkg [--scores OUT.tif]`."""

    NAME = "scoreanomalies"
    TITLE = "Score anomalies"
    GROUP = "Images"
    COMMAND = "anomalies"
    ICON = "anomalies"
    TAGS = ("anomaly", "outlier", "novelty", "detection", "landing site", "artefact", "pits")
    ABOUT = (
        "Scores each window of an image by how unlike the rest it is, and lists the strangest places for a person "
        "to review: fresh craters, pits, landed hardware, but also artefacts of the camera. Windows that overlap "
        "are merged into one place.\n\n"
        "A high rank says “look here”, not what it is. A score means something only within one image and one "
        "model; the percentile says how many windows of this image are less strange."
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
            "window_px, window_m": "side of the scored window in pixels and metres (metres empty without a scale)",
            "line, sample": "row and column of the window's centre in the image, counted from 0 at the outer corner",
            "lon, lat": "longitude (east positive, −180 to 180) and latitude in degrees; empty without a "
            "coordinate system",
            "product_id": "name of the image as its label gives it",
            "model": "the model that scored",
            "population": "among which windows the percentile is counted",
            "reviewed": "0; set it to 1 when you have looked",
            "label": "empty; what you saw there",
        },
        "Bands of the anomaly scores": {
            "1 score": "score of the window",
            "2 percentile": "percentage of the image's windows that score no higher",
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
                "Of places closer together than this only the strangest is listed. Left empty: one window's side. "
                "In pixels where no pixel size is known.",
            ),
        ]

    def own_arguments(self, parameters, context) -> list[str]:
        """Command line of `own_parameters`."""
        return [
            *("--top", str(self.parameterAsInt(parameters, "TOP", context))),
            *self.numeric(parameters, "PERCENTILE", "--percentile", context),
            *self.numeric(parameters, "MIN_DISTANCE", "--min-distance", context),
        ]
