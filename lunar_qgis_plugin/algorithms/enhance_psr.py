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
        "Makes what lies in shadow visible, permanently shadowed regions above all. psr-physics, the default where it "
        "is installed, is a network that learnt from the physics of the camera: it averages as far as the noise of "
        "each place calls for, keeps the unit and the order of brightness, and says how wrong it may be. Beside the "
        "enhanced image stand its uncertainty, flags, and the size of the smallest crater that can be told from noise "
        "at each place.\n\n"
        "An enhanced image is for looking and for finding shapes; it is no calibrated radiance or I/F. Do not measure "
        "brightness in it, and do not count what is smaller than band 4 says.\n\n"
        "psr-cyclegan paints an ILLUSTRATION instead, in the way that was published: what ground could look like in "
        "sunlight. It may invent or lose craters and rocks, has no sigma, and nothing may be measured on it; the layer "
        "and its first band are called by that name.\n\n"
        "The log warns when the image is no low-light image, when its pixels are larger or smaller than the model "
        "knows, and when rounding to 8 bits has taken the faintest signal."
    )
    OUTPUTS = (
        Output(
            "OUTPUT",
            "Enhanced image",
            None,
            None,
            "enhanced",
            "GeoTIFF (float32, four bands) on exactly the grid of the image. QGIS shows band 1: shadow in the darker "
            "half of the greys, sunlit ground in the lighter half. The menu Styles of the layer offers sigma and the "
            "resolvable size too.",
        ),
    )
    CONTENTS = {
        "Bands of the enhanced image": {
            "1 enhanced": "the enhanced image; the tag LUNAR_UNIT names its unit: that of the image for destripe-nlm "
            "and networks, 0 to 1 for the others. Of psr-cyclegan the band is called ILLUSTRATION",
            "2 sigma": "for psr-physics and other networks that tell it, the expected error of band 1, one standard "
            "deviation in the unit of the image; otherwise the noise that the image has at this pixel, "
            "and no value for an illustration",
            "3 flags": "sum of: 1 nodata, 2 saturated, 4 sunlit (psr-physics leaves it as it is), 8 below the noise "
            "floor, 16 outside what the network was made for; 0 means none of these",
            "4 resolvable_m": "diameter in metres of the smallest crater that stands out of the noise here "
            "(resolvable_px, in pixels, when no pixel size is known); no value where not even a large one does. For "
            "psr-physics it is measured: half of the craters of this size are seen",
        }
    }
