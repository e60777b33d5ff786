"""Bright spots of one size, as boulders are on a dim floor: how many there are."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

CONTRAST = 0.3  # of the brightness around
DISC = 2 / math.e  # answer of the filter to a disc that is 1 brighter than what is around it


def count_spots(image: np.ndarray, diameter: float, contrast: float = CONTRAST) -> int:
    """Spots of about `diameter` px in an image (H, W) that are brighter than the ground around by `contrast` of it."""
    sigma = diameter / math.sqrt(8)
    answer = -(sigma**2) * ndimage.gaussian_laplace(image, sigma)
    around = np.maximum(ndimage.gaussian_filter(image, 4 * sigma), 0)
    top = answer == ndimage.maximum_filter(answer, max(3, round(diameter)))
    return int(np.count_nonzero(top & (answer > DISC * contrast * around) & (around > 0)))
