"""See into shadow: the image made visible, with its uncertainty beside it."""

from __future__ import annotations

from .base import LunarTool, Output


class EnhancePsr(LunarTool):
    """`lunar enhance IMAGE OUT.tif`."""

    NAME = "enhancepsr"
    TITLE = "Enhance shadowed regions"
    GROUP = "Images"
    COMMAND = "enhance"
    ICON = "enhance"
    TAGS = ("psr", "shadow", "denoise", "destripe", "contrast", "clahe", "retinex", "low light")
    ABOUT = (
        "Makes what lies in shadow visible, permanently shadowed regions above all: removes stripes and noise, "
        "stretches the contrast. Beside the enhanced image stand its uncertainty, flags, and the size of the "
        "smallest thing that can be told from noise at each place.\n\n"
        "An enhanced image is for looking and for finding shapes; it is no calibrated radiance or I/F. Do not "
        "measure brightness in it."
    )
    OUTPUTS = (
        Output(
            "OUTPUT",
            "Enhanced image",
            None,
            None,
            "enhanced",
            "GeoTIFF (float32, four bands) on exactly the grid of the image. QGIS shows band 1: shadow in the darker "
            "half of the greys, sunlit ground in the lighter half.",
        ),
    )
    CONTENTS = {
        "Bands of the enhanced image": {
            "1 enhanced": "the enhanced image; the tag LUNAR_UNIT names its unit: that of the image for destripe-nlm "
            "and networks, 0 to 1 for the others",
            "2 sigma": "noise of the image at this pixel before it was enhanced, one standard deviation in the unit of "
            "the image, estimated; where a network gives one, that of its own result",
            "3 flags": "sum of: 1 nodata, 2 saturated, 4 sunlit, 8 below the noise floor, 16 outside the "
            "values the network was made for; 0 means none of these",
            "4 resolvable_m": "diameter in metres of the smallest feature that stands out of the noise here "
            "(resolvable_px, in pixels, when no pixel size is known)",
        }
    }
