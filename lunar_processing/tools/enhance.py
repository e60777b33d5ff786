"""See into shadow: a clearer image on the input's own grid, with its noise, its validity, and what is resolvable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lunar_processing.classical import enhance as classical
from lunar_processing.classical import noise as noises
from lunar_processing.classical.noise import Noise
from lunar_processing.classical.stripes import Profiles, StripeSums
from lunar_processing.errors import Cancelled
from lunar_processing.grid import Window
from lunar_processing.modelpack import Pack
from lunar_processing.pipeline import Step, each, run
from lunar_processing.raster.writer import Band, RasterWriter, check_rasters
from lunar_processing.tools.illustration import ILLUSTRATION, NOTICE, UNIT, illustration_step
from lunar_processing.tools.job import NOTICE_TAG, Job, Options, Report, Result, refuse_input_as_output, result, start
from lunar_processing.tools.network import enhance_step, limits
from lunar_processing.tools.shadow import camera_noise, shadow_step

DEFAULT = "psr-physics"  # where it is installed and knows such images, else:
FALLBACK = "destripe-nlm"
# Bits of the band `flags`.
NODATA, SATURATED, SUNLIT, BELOW_NOISE, OUTSIDE_RANGE = 1, 2, 4, 8, 16
CORE = 896
WELL_LIT = 60.0  # signal to noise from where on there is little to gain


@dataclass(frozen=True)
class _Look:
    """What one look over the image says of its light: noise, where it clips, where shadow ends."""

    noise: Noise
    saturation: float | None
    sunlit: float | None


# (pixels, local mean, noise there) → what is told of each pixel
Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Method:
    """Gives (enhanced, sigma or NaN) for a batch of tiles, in `unit`.

    `outside`: where the method was not made for what it sees. `lit`: where light is so good that nothing is changed.
    `resolvable`: the smallest crater in px; where it is None, what a single look at the noise tells.
    """

    step: Step
    unit: str
    facts: Mapping[str, Any]
    outside: Judge | None = None
    lit: Judge | None = None
    resolvable: Judge | None = None
    illustration: bool = False  # to look at, and without a sigma


def enhance(options: Options, output: Path, report: Report | None = None) -> Result:
    """Enhance an image and write it with its quality bands."""
    refuse_input_as_output(options, output)
    check_rasters([output], options.overwrite)
    with start("enhance", options, report) as job:
        look = _look(job)
        method = _method(job, look)
        with RasterWriter(
            output,
            job.image.grid,
            _bands(_input_unit(job), "m" if job.pixel_size else "px", method.illustration),
            overwrite=options.overwrite,
            file_format=options.file_format,
            categorical=True,
        ) as writer:
            job.announce(str(method.facts["id"]))
            seen = _Seen()
            step = _with_quality(method, look, job.pixel_size or 1.0)
            timing = run(job.image, step, [seen.take, _flagged(writer)], job.stage("work"), job.report.cancelled)
            counts = {"valid_px": timing.valid_px, "masked_px": timing.masked_px, **seen.counts()}
            _warn_of_what_was_seen(job, look, counts)
            job.stage("finish")(0, 1)
            record = job.record(method.facts, _parameters(look, method.unit), counts)
            notice = {NOTICE_TAG: NOTICE} if method.illustration else {}
            writer.finish({"LUNAR_PROVENANCE": record, "LUNAR_UNIT": method.unit, **notice})
            writer.publish()
            job.stage("finish")(1, 1)
            return result(job, {"enhanced": output}, counts, str(method.facts["id"]), timing)


# ---- the method --------------------------------------------------------------------------------------------------


def _method(job: Job, look: _Look) -> _Method:
    name = job.choose(DEFAULT, FALLBACK)
    if name not in classical.METHODS:
        pack = job.pack(name, "enhance")
        if pack.card.output == ILLUSTRATION:
            return _painted(job, look, pack)
        return (_by_physics if pack.card.normalisation.kind == "noise" else _network)(job, look, pack)
    method = classical.METHODS[name]
    state = method.fit(job.image.survey.patches, _profiles(job, look) if method.needs_profiles else None)

    def apply(pixels: np.ndarray, valid: np.ndarray, origin: tuple[int, int]) -> np.ndarray:
        enhanced = method.apply(pixels.astype(np.float32), valid, state, origin=origin)
        return np.stack([enhanced, np.full_like(enhanced, np.nan)])

    halo = max(method.halo, noises.HALO)
    step = Step(name, each(apply), bands=2, tile=_core(method.align) + 2 * halo, halo=halo, align=method.align)
    return _Method(step, _input_unit(job) if method.in_input_units else "display, 0–1", {"id": name})


def _network(job: Job, look: _Look, pack: Pack) -> _Method:
    """A network that sees the image as its card says."""
    facts = {"id": pack.card.id, "sha256": pack.card.sha256}
    outside = None
    if pack.card.normalisation.kind == "range":  # by percentiles every image lies within the limits: they are its own
        low, high = limits(pack.card, job)
        outside = lambda pixels, mean, sigma: (pixels < low) | (pixels > high)  # noqa: E731
    return _Method(enhance_step(pack, job), _input_unit(job), facts, outside)


def _by_physics(job: Job, look: _Look, pack: Pack) -> _Method:
    """A network that is told the noise of the image, and whose card says what can be resolved at which signal."""
    noise, card = look.noise, pack.card
    _warn_of_lost_signal(job, noise)
    step = shadow_step(pack, noise, _profiles(job, look), job.image.survey.percentile(50), job.device)
    table = card.measured.get("resolvable", {})

    def clearness(mean: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        return (mean - noise.black) / sigma

    def resolvable(_pixels: np.ndarray, mean: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        size = np.interp(clearness(mean, sigma), table["signal_to_noise"], table["diameter_px"], left=np.nan)
        return np.asarray(size, np.float32)

    return _Method(
        step,
        _input_unit(job),
        {"id": card.id, "sha256": card.sha256},
        outside=lambda _pixels, mean, sigma: clearness(mean, sigma) < card.normalisation.low,
        lit=lambda _pixels, mean, sigma: clearness(mean, sigma) >= card.normalisation.high,
        resolvable=resolvable if table else None,
    )


def _painted(job: Job, look: _Look, pack: Pack) -> _Method:
    """A network that paints a picture to look at, and what everyone must know who looks at it."""
    job.warn(f"{NOTICE}. Use {DEFAULT} for whatever is measured, counted or decided.")
    _warn_of_lost_signal(job, look.noise)
    survey = job.image.survey
    parts = [(*patch, (window.col, window.row)) for patch, window in zip(survey.patches, survey.windows)]
    step = illustration_step(pack, _profiles(job, look), parts, survey.percentile(50), look.sunlit, job.device)
    facts = {"id": pack.card.id, "sha256": pack.card.sha256, "notice": NOTICE}
    return _Method(step, UNIT, facts, illustration=True)


def _warn_of_lost_signal(job: Job, noise: Noise) -> None:
    """Say what such a network cannot mend."""
    if noise.least > 0.5 * noise.a:
        job.warn(
            "The grey levels of this image lie further apart than its noise: rounding, often to 8 bits, has taken the "
            "faintest signal. Use the calibrated product of 16 or 32 bits."
        )
    elif job.image.dtype.kind == "u" and job.image.dtype.itemsize == 1 and "RAW" in _input_unit(job):
        job.warn("These are raw companded codes, not proportional to light. Calibrate the product first (lronaccal).")
    median = job.image.survey.percentile(50)
    clearness = (median - noise.black) / float(noises.sigma_at(noise, median))
    if clearness > WELL_LIT:
        job.warn(
            f"This is no low-light image: half of it has a signal to noise above {clearness:.0f}. Well lit ground is "
            "passed through as it is."
        )


def _core(align: int) -> int:
    return -(-CORE // align) * align


def _profiles(job: Job, look: _Look) -> Profiles:
    """Column and row offsets, which only a look at the whole image can tell."""
    grid = job.image.grid
    sums = StripeSums(grid.width, grid.height, look.noise)
    tell = job.stage("profile")
    for window, patch in job.image.strips():
        if job.report.cancelled():
            raise Cancelled("The run was cancelled.")
        sums.add(patch.pixels, patch.valid)
        tell(window.bottom * grid.width, grid.width * grid.height)
    return sums.profiles()


# ---- quality -----------------------------------------------------------------------------------------------------


def _look(job: Job) -> _Look:
    patches = job.image.survey.patches
    noise = camera_noise(job.image)
    return _Look(noise, noises.saturation_level(patches), noises.sunlit_level(patches, noise))


def _with_quality(method: _Method, look: _Look, pixel_size: float) -> Step:
    """The method's two bands, and flags and resolvable size beside them; all from the same tile."""
    step = method.step

    def quality(pixels: np.ndarray, valid: np.ndarray, _origin: tuple[int, int]) -> np.ndarray:
        mean = noises.local_mean(pixels, valid)
        sigma = noises.sigma_at(look.noise, mean)
        known = method.resolvable(pixels, mean, sigma) if method.resolvable else noises.resolvable_px(look.noise, mean)
        return np.stack([sigma, _flags(pixels, mean, sigma, look, method), known * pixel_size])

    judge = each(quality)

    def apply(pixels: np.ndarray, valid: np.ndarray, origins: Any) -> np.ndarray:
        made, judged = step.apply(pixels, valid, origins), judge(pixels, valid, origins)
        sigma = made[:, 1] if method.illustration else np.where(np.isfinite(made[:, 1]), made[:, 1], judged[:, 0])
        return np.stack([made[:, 0], sigma, judged[:, 1], judged[:, 2]], axis=1).astype(np.float32)

    return replace(step, apply=apply, bands=4)


def _flags(pixels: np.ndarray, mean: np.ndarray, sigma: np.ndarray, look: _Look, method: _Method) -> np.ndarray:
    flags = _bit(noises.below_noise_floor(look.noise, mean, sigma), BELOW_NOISE)
    if look.saturation is not None:
        flags |= _bit(pixels >= look.saturation, SATURATED)
    if look.sunlit is not None:
        flags |= _bit(mean >= look.sunlit, SUNLIT)
    if method.lit is not None:
        flags |= _bit(method.lit(pixels, mean, sigma), SUNLIT)
    if method.outside is not None:
        flags |= _bit(method.outside(pixels, mean, sigma), OUTSIDE_RANGE)
    return flags.astype(np.float32)


def _bit(where: np.ndarray, bit: int) -> np.ndarray:
    return where.view(np.uint8) * np.uint8(bit)


class _Seen:
    """Counts flags as they pass."""

    def __init__(self) -> None:
        self._bits = {
            "saturated_px": SATURATED,
            "sunlit_px": SUNLIT,
            "below_noise_px": BELOW_NOISE,
            "outside_range_px": OUTSIDE_RANGE,
        }
        self._counts = dict.fromkeys(self._bits, 0)

    def take(self, _window: Window, values: np.ndarray, valid: np.ndarray) -> None:
        flags = values[2][valid].astype(np.uint8)
        for name, bit in self._bits.items():
            self._counts[name] += int(np.count_nonzero(flags & bit))

    def counts(self) -> dict[str, int]:
        return self._counts


def _flagged(writer: RasterWriter) -> Callable[[Window, np.ndarray, np.ndarray], None]:
    def take(_window: Window, values: np.ndarray, valid: np.ndarray) -> None:
        values[2][~valid] = NODATA
        writer.append(values)

    return take


def _warn_of_what_was_seen(job: Job, look: _Look, counts: Mapping[str, int]) -> None:
    valid = max(counts["valid_px"], 1)
    if counts["below_noise_px"] > 0.5 * valid:
        job.warn("More than half of the image lies below the noise of a single pixel: expect smooth ground at best.")
    if counts["saturated_px"] > 0.001 * valid:
        job.warn(f"{100 * counts['saturated_px'] / valid:.2g} % of the pixels are saturated; their value is lost.")
    if counts["outside_range_px"]:
        share = 100 * counts["outside_range_px"] / valid
        job.warn(f"{share:.2g} % of the pixels lie outside the values the model was made for: do not trust it there.")
    if look.sunlit is None and counts["below_noise_px"] == 0:
        job.info("The image is evenly lit: no part of it is in deep shadow.")


# ---- names and units ---------------------------------------------------------------------------------------------


def _input_unit(job: Job) -> str:
    return job.image.unit or job.image.product.unit or "DN"


def _bands(input_unit: str, size_unit: str, illustration: bool) -> list[Band]:
    first = [
        Band("enhanced", "enhanced signal; unit in the tag LUNAR_UNIT"),
        Band("sigma", "one standard deviation: error of `enhanced` where a network tells it, else noise", input_unit),
    ]
    painted = [
        Band("ILLUSTRATION", NOTICE),
        Band("sigma", "no value anywhere: how wrong an illustration is cannot be told", input_unit),
    ]
    return [
        *(painted if illustration else first),
        Band("flags", "bits: 1 no data, 2 saturated, 4 sunlit, 8 below the noise floor, 16 unknown to the model"),
        Band(
            f"resolvable_{size_unit}",
            "smallest crater that stands out of the noise here, estimated; no value where none does",
            size_unit,
        ),
    ]


def _parameters(look: _Look, unit: str) -> dict[str, Any]:
    noise = {"noise_a": look.noise.a, "noise_b": look.noise.b, "noise_black": look.noise.black}
    return {**noise, "saturation_level": look.saturation, "sunlit_level": look.sunlit, "unit": unit}
