"""Whether an image is good enough to learn ordinary ground from, by what its label says.

The papers on anomalies leave out images under a very high or very low sun, seen askance, of coarse resolution, or with
errors in their label. Their limits differ and are not all told; those of `NAC` are ours. What a label is silent about
is not held against it.
"""

from __future__ import annotations

from dataclasses import dataclass

from lunar_processing.raster.product import Product

# Bits of DATA_QUALITY_ID in the labels of LROC (EDR/CDR SIS, section 3.3), from the lowest.
ERRORS = (
    "temperature of the detector out of bounds",
    "too many saturated pixels",
    "too many under-saturated pixels",
    "telemetry packets missing",
    "position and pointing bad or missing",
    "observation or housekeeping bad or missing",
)


@dataclass(frozen=True)
class Limits:
    """Incidence, degrees from the vertical; emission, degrees; pixel size, metres; ends included."""

    incidence_deg: tuple[float, float] = (10.0, 80.0)
    emission_deg: float = 20.0
    pixel_size_m: float = 2.0


NAC = Limits()


def faults(product: Product, pixel_size_m: float | None, limits: Limits = NAC) -> list[str]:
    """Why an image should be left out, in words; empty where nothing is known against it."""
    low, high = limits.incidence_deg
    incidence, emission, errors = product.incidence_deg, product.emission_deg, product.errors or 0
    found = []
    if incidence is not None and not low <= incidence <= high:
        found.append(f"incidence {incidence:.1f}°, not {low:g}–{high:g}°")
    if emission is not None and emission > limits.emission_deg:
        found.append(f"emission {emission:.1f}°, over {limits.emission_deg:g}°")
    if pixel_size_m is not None and pixel_size_m > limits.pixel_size_m:
        found.append(f"pixels of {pixel_size_m:.3g} m, over {limits.pixel_size_m:g} m")
    found += [name for bit, name in enumerate(ERRORS) if errors >> bit & 1]
    if errors >> len(ERRORS):
        found.append(f"errors {errors} that are not explained")
    return found
