"""Patches of images, with what is known of the products they come from.

Patches are (N, 64, 64) float32 in *relative brightness*: 0 is black, 1 the median of the image they come from, so that
neither the exposure of a product nor the way it was stretched to 8 bits counts as a difference.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lunar_processing.errors import ParameterError

SIZE = 64
DARK = 1e-3  # relative brightness under which a patch has no contrast to speak of


@dataclass(frozen=True)
class Images:
    """Patches with what is known of each: its product (or scene), and the incidence in degrees, NaN where unknown.

    craters: (name of product or scene) → diameters in px; area: the same names → searched pixels.
    """

    patches: np.ndarray
    product: np.ndarray
    incidence: np.ndarray
    craters: dict[str, np.ndarray] = field(default_factory=dict)
    area: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.patches.ndim != 3 or self.patches.shape[1:] != (SIZE, SIZE) or not len(self.patches):
            raise ParameterError(
                f"Patches have the shape {self.patches.shape}.", f"Give one or more of {SIZE} × {SIZE} pixels."
            )
        if not np.isfinite(self.patches).all():
            raise ParameterError("Patches hold undefined values.", "Leave out patches with invalid pixels.")

    def of(self, chosen: np.ndarray) -> Images:
        """The patches that `chosen`, a mask, names; craters and areas of their products."""
        names = set(self.product[chosen].tolist())
        return Images(
            self.patches[chosen],
            self.product[chosen],
            self.incidence[chosen],
            {name: value for name, value in self.craters.items() if name in names},
            {name: value for name, value in self.area.items() if name in names},
        )


def tiles(image: np.ndarray) -> np.ndarray:
    """Patches side by side of an image (H, W), (N, 64, 64) float32; what does not fill a patch is left out."""
    rows, columns = image.shape[0] // SIZE, image.shape[1] // SIZE
    whole = image[: rows * SIZE, : columns * SIZE].astype(np.float32)
    return whole.reshape(rows, SIZE, columns, SIZE).swapaxes(1, 2).reshape(-1, SIZE, SIZE)


def relative(image: np.ndarray) -> np.ndarray:
    """An image (H, W), or each of a batch, linear in light with black at 0, in units of its median brightness."""
    median = np.median(image, axis=(-2, -1), keepdims=True)
    return (image / np.maximum(median, np.finfo(np.float32).tiny)).astype(np.float32)


def standard(patches: np.ndarray) -> np.ndarray:
    """Each patch with mean 0 and spread 1; patches without contrast stay near 0."""
    centred = patches - patches.mean(axis=(1, 2), keepdims=True)
    return centred / np.maximum(centred.std(axis=(1, 2), keepdims=True), DARK)
