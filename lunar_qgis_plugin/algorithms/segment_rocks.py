"""Count rocks: each with its place, its size in metres, and the area in which it was looked for."""

from __future__ import annotations

from .base import POINTS, POLYGONS, LunarTool, Output, number


class SegmentRocks(LunarTool):
    """`lunar rocks IMAGE OUT.gpkg [--outlines …] [--area …] [--mask …]`."""

    NAME = "segmentrocks"
    TITLE = "Segment rocks"
    GROUP = "Images"
    COMMAND = "rocks"
    ICON = "rocks"
    TAGS = ("boulder", "boulders", "block", "size-frequency", "count", "detection", "segmentation", "shadow")
    ABOUT = (
        "Finds rocks and measures them: a point for each rock with its diameter, axes, orientation, area, place and "
        "score, and on request outlines, a mask, and the area that was searched, which a size-frequency "
        "distribution must be divided by.\n\n"
        "The model rocks-orbital is used where it is installed, else pairs of bright faces and shadows (shadow-pairs), "
        "which needs the sun's direction; the log says which. With the sun's azimuth and incidence, from the label or "
        "given here, each rock's height is measured from its shadow.\n\n"
        "For what a lander or a rover sees choose the model rocks-surface: it tells small rocks, large rocks, ground "
        "and sky apart, and measures in pixels.\n\n"
        "Lengths are true on the ground at each rock, whatever the map projection does to them. Counts are complete "
        "only above about four pixels in diameter. No rocks found is a valid, empty layer; a failure is an error."
    )
    OUTPUTS = (
        Output(
            "OUTPUT",
            "Rocks",
            POINTS,
            None,
            "rocks",
            "One point for each rock, drawn as a circle of the rock's own diameter.",
            "rocks",
        ),
        Output(
            "OUTLINES",
            "Rock outlines",
            POLYGONS,
            "--outlines",
            "rock_outlines",
            "One polygon for each rock, with the rock_id of its point.",
            "rock_outlines",
        ),
        Output(
            "AREA",
            "Searched area",
            POLYGONS,
            "--area",
            "searched_area",
            "Where rocks could have been found: the image without what holds no data.",
            "searched_area",
        ),
        Output(
            "MASK",
            "Rock mask",
            None,
            "--mask",
            "rock_mask",
            "GeoTIFF (uint8) on exactly the grid of the image: every rock found, also those smaller than asked for.",
        ),
    )
    CONTENTS = {
        "Fields of the rocks": {
            "rock_id": "number of the rock in this result",
            "class": "small rock or large rock, of models for views from the ground (rocks-surface) only",
            "diam_eq_m": "diameter in metres of a circle of the same area",
            "major_m, minor_m": "long and short axis in metres",
            "orient_deg": "direction of the long axis, degrees clockwise from north (0 to 180)",
            "area_m2": "area in square metres",
            "shadow_len_m": "length of its shadow from the rock's middle, in metres; empty where the sun's azimuth is "
            "not known, no shadow is seen, or the method does not measure it",
            "height_m": "height in metres from the shadow; empty also where the sun's incidence is not known, or "
            "is so small that the shadow hardly comes out from under the rock",
            "diam_eq_px": "diameter in pixels of the image; fields in metres are empty without a scale",
            "score": "how sure the model is, 0 to 1",
            "edge": "1 where the rock touches the image's edge or nodata, so that its size is a lower limit",
            "line, sample": "row and column of the rock's centre in the image, counted from 0 at the outer corner",
            "lon, lat": "longitude (east positive, −180 to 180) and latitude in degrees; empty without a "
            "coordinate system",
            "product_id": "name of the image as its label gives it",
            "model": "the model that found it",
        },
        "Fields of the rock outlines": {"rock_id, diam_eq_m, score, edge": "as for the rocks"},
        "Fields of the searched area": {
            "area_m2": "searched area in square metres on the ground",
            "valid_px": "searched area in pixels",
            "product_id": "name of the image as its label gives it",
        },
        "Values of the rock mask": {
            "0": "ground",
            "1": "rock",
            "2": "shadow, of models that know it",
            "255": "no data",
            "other models": "the classes that the name of the band tells",
        },
    }
    SUN_MATTERS = True
    COUNTS = {"ROCK_COUNT": ("Number of rocks", "rocks")}

    def own_parameters(self):
        """The smallest rock worth a point, and what heights need."""
        return [
            (
                number("MIN_DIAMETER", "Smallest diameter in metres", least=0.0),
                "Smaller rocks are left out. Left empty, all that were found are kept. In pixels where no pixel size "
                "is known.",
            ),
            (
                number("INCIDENCE", "Incidence of the sun in degrees", least=0.0, most=89.9),
                "From the vertical: 90 less the sun's height. For the heights of rocks from their shadows, and for "
                "exact diameters, where the label does not say it.",
            ),
        ]

    def own_arguments(self, parameters, context) -> list[str]:
        """Command line of `own_parameters`."""
        smallest = self.numeric(parameters, "MIN_DIAMETER", "--min-diameter", context)
        return smallest + self.numeric(parameters, "INCIDENCE", "--incidence", context)
