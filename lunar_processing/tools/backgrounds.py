"""Real ground to plant simulated rocks in: where the sun stands, and where rocks may already be."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from lunar_processing.classical import rocks as classical
from lunar_processing.raster.image import Patch
from lunar_processing.tools.job import Job
from lunar_processing.tools.realism import SUN
from lunar_processing.training.data import UNKNOWN, Picture, picture

AROUND = 4  # px around a likely rock of which nothing is said


def background(job: Job, patch: Patch, product: str, limits: tuple[float, float]) -> Picture:
    """A whole image whose mask says ground, and UNKNOWN where bright faces with shadows speak of a rock.

    The sun's direction is that of the label, else estimated; its height that of the label, else of the product where
    it is known, else NaN.
    """
    image = job.image
    known = SUN.get(product, (np.nan, np.nan))
    azimuth, incidence = image.product.sun_azimuth_deg, image.product.incidence_deg
    azimuth = classical.estimate_sun(image.survey.patches)[0] if azimuth is None else azimuth
    method = classical.METHODS[classical.DEFAULT]
    pixels = patch.pixels.astype(np.float32)
    likely, _ = method.apply(pixels, patch.valid, azimuth, method.fit(image.survey.patches), origin=(0, 0))
    near = ndimage.binary_dilation(likely, iterations=AROUND) if likely.any() else likely
    mask = np.where(near, UNKNOWN, 0).astype(np.uint8)
    made = picture(image.path.name, pixels, patch.valid, limits, mask, product, azimuth, job.pixel_size)
    return Picture(**{**vars(made), "incidence": known[0] if incidence is None else incidence})
