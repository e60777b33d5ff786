"""The camera: what a line of charge-coupled pixels makes of the light it is given.

A camera turns an ideal signal (the 12-bit numbers, DN, that a perfect camera without offset would record) into what
is recorded, in the order in which it happens:

    optics and motion → flat field → echo → photons, dark current and read-out in electrons → gain and full well
    → nonlinear response → bias with its column pattern and row noise → 12 bits → companding to 8 bits → lost lines

Every number lies in `PARAMETERS` with its unit, the range it is drawn from and its source. Each may be one number for
all scenes or one per scene, a tensor (B,). Images are (B, H, W), columns along W as on the detector, float32.

The echo is added before the noise, not after: on a dark real frame (M1333276014R) the noise of pixels two columns
apart correlates by 0.08, where an echo of the noise itself would make it 0.30.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Union

import numpy as np
import torch
from torch import Tensor

from lunar_processing.errors import ParameterError

HIGHEST = 4095  # of 12 bits
ISIS = "USGS ISIS"
HUMM = "Humm et al. 2016, Space Sci. Rev. 200, 431 (flight calibration of the NAC)"
ROBINSON = "Robinson et al. 2010, Space Sci. Rev. 150, 81 (instrument overview)"
DARK_FRAME = "measured here on M1333276014R after its standard calibration"
ABSTRACT = "abstract of Calibration of the LROC (LROC team)"
ASSUMED = "assumed"
UNVERIFIED = "unverified: not seen in the source itself"

Value = Union[float, Tensor]


class Parameter(NamedTuple):
    """Value of the Narrow Angle Camera, the range to draw from (uniform), the unit, and where it comes from."""

    value: float
    low: float
    high: float
    unit: str
    source: str


PARAMETERS: dict[str, Parameter] = {
    "psf": Parameter(
        0.51, 0.42, 0.56, "px, sigma", f"MTF 0.28 left, 0.26 right: {ABSTRACT}; at Nyquist, 0.51 and 0.52 px"
    ),
    "smear": Parameter(0.0, 0.0, 0.6, "px along the flight", f"{ASSUMED}: motion beyond that in the measured MTF"),
    "flat": Parameter(0.003, 0.0, 0.008, "of the signal, sd per column", f"{ASSUMED}: what a flat field leaves"),
    "echo": Parameter(0.326, 0.30, 0.35, "of the pixel before it", f"{ISIS} lronacecho, default of DELTA"),
    "side": Parameter(
        1.0, -1.0, 1.0, "+1 left, -1 right camera", f"{ISIS} lronacecho: the echo runs with the read-out"
    ),
    "gain": Parameter(64.0, 58.0, 75.0, "electrons / DN", f"61-64: {HUMM}; about 70: {ROBINSON}; {UNVERIFIED}"),
    "read_noise": Parameter(72.0, 68.0, 80.0, "electrons", f"71 left, 74 right: {ABSTRACT}; < 76: PDS INST.CAT"),
    "full_well": Parameter(
        334000.0,
        248500.0,
        334000.0,
        "electrons",
        f"248500 left, 262500 right: {ABSTRACT}; 334000: {ROBINSON}, {UNVERIFIED}",
    ),
    "exposure": Parameter(
        0.3632, 0.3376, 1.5, "ms / line", "labels of M143947267L, M1333276014R; longer: summed shadow"
    ),
    "temperature": Parameter(19.0, 5.0, 32.0, "deg C, focal plane", f"labels: 17.7, 19.2, 21.3; range {ASSUMED}"),
    "dark_current": Parameter(60.0, 30.0, 120.0, "electrons / ms at 20 deg C", ASSUMED),
    "dark_doubling": Parameter(8.0, 7.0, 9.0, "deg C", f"{ASSUMED}: silicon doubles every 7-9 degrees"),
    "bias": Parameter(42.0, 20.0, 60.0, "DN", "masked columns of two real frames: 36-47"),
    "pattern": Parameter(2.0, 0.8, 3.0, "DN, sd over 8 columns (4 summed)", f"2.1 {DARK_FRAME}; eight columns: {HUMM}"),
    "column": Parameter(0.6, 0.2, 1.3, "DN, sd per column", f"1.2 {DARK_FRAME}"),
    "row": Parameter(0.5, 0.2, 1.0, "DN, sd per line", f"1.0 {DARK_FRAME}"),
    "pattern_left": Parameter(
        0.1, 0.0, 0.2, "of the column offsets", f"{ASSUMED}: what calibration leaves; shows in the shadows of products"
    ),
    "nonlinearity": Parameter(
        6.0, 2.0, 10.0, "DN", f"below 600 DN: {HUMM}; shape {ISIS} lronaccal, {UNVERIFIED}; size {ASSUMED}"
    ),
    "nonlinear_scale": Parameter(100.0, 70.0, 130.0, "DN", f"{ASSUMED}: the correction is gone at 600 DN"),
    "table": Parameter(0.0, 0.0, 0.0, "index into TABLES", "LRO:COMPAND_CODE of the labels"),
    "summing": Parameter(1.0, 1.0, 1.0, "detector columns in a pixel, 1 or 2", f"{ISIS} lronaccal"),
    "dropped": Parameter(0.0, 0.0, 0.0, "share of lines lost", "DATA_QUALITY bit 4 of the labels: missing packets"),
    "lossy": Parameter(1.0, 1.0, 1.0, "8-bit codes rounded together", "1: the NAC compresses without loss"),
}
RESPONSIVITY = {"left": 15869.0, "right": 15058.0}  # DN per ms per I/F at 1 au: Radiometry group of two real cubes

PATTERN_PERIOD = 8
DARK_REFERENCE_C = 20.0


class Companding(NamedTuple):
    """From `start` DN on, code = floor(offset + slope · DN): the terms LRO:XTERM, BTERM and MTERM of a label."""

    start: tuple[int, ...]
    offset: tuple[int, ...]
    slope: tuple[float, ...]


TABLES: dict[str, Companding] = {  # as read in the labels of nacl.img, M143947267L and M1333276014R
    "usual": Companding((0, 32, 136, 543, 2207), (0, 8, 25, 59, 128), (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)),
    "dim": Companding((0, 64, 424, 536, 800), (0, 16, 69, 103, 128), (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)),
    "identity": Companding((0,), (0,), (1.0,)),
}
TABLE_INDEX = {name: index for index, name in enumerate(TABLES)}


@dataclass(frozen=True)
class Camera:
    """A camera, or a batch of them: every field is a number or a tensor (B,). Units: see `PARAMETERS`."""

    psf: Value = PARAMETERS["psf"].value
    smear: Value = PARAMETERS["smear"].value
    flat: Value = PARAMETERS["flat"].value
    echo: Value = PARAMETERS["echo"].value
    side: Value = PARAMETERS["side"].value
    gain: Value = PARAMETERS["gain"].value
    read_noise: Value = PARAMETERS["read_noise"].value
    full_well: Value = PARAMETERS["full_well"].value
    exposure: Value = PARAMETERS["exposure"].value
    temperature: Value = PARAMETERS["temperature"].value
    dark_current: Value = PARAMETERS["dark_current"].value
    dark_doubling: Value = PARAMETERS["dark_doubling"].value
    bias: Value = PARAMETERS["bias"].value
    pattern: Value = PARAMETERS["pattern"].value
    column: Value = PARAMETERS["column"].value
    row: Value = PARAMETERS["row"].value
    pattern_left: Value = PARAMETERS["pattern_left"].value
    nonlinearity: Value = PARAMETERS["nonlinearity"].value
    nonlinear_scale: Value = PARAMETERS["nonlinear_scale"].value
    table: Value = PARAMETERS["table"].value
    summing: Value = PARAMETERS["summing"].value
    dropped: Value = PARAMETERS["dropped"].value
    lossy: Value = PARAMETERS["lossy"].value

    def of(self, name: str, like: Tensor) -> Tensor:
        """One parameter as (B, 1, 1), ready to meet the images `like` (B, H, W)."""
        value = torch.as_tensor(getattr(self, name), dtype=torch.float32, device=like.device).reshape(-1, 1, 1)
        if value.shape[0] not in (1, like.shape[0]):
            raise ParameterError(
                f"The camera's {name} has {value.shape[0]} values for a batch of {like.shape[0]} scenes.",
                "Give one number for all, or one per scene.",
            )
        return value.expand(like.shape[0], 1, 1)


IDEAL = Camera(  # records the signal as it is, to 12 bits: every imperfection off
    psf=0.0, flat=0.0, echo=0.0, gain=1e12, full_well=1e20, read_noise=0.0, dark_current=0.0, bias=0.0,
    pattern=0.0, column=0.0, row=0.0, nonlinearity=0.0,
)  # fmt: skip


@dataclass(frozen=True)
class Recorded:
    """What the camera made of a batch.

    dn12: (B, H, W) float32, whole numbers 0…4095 before companding; dn8: (B, H, W) uint8, the codes on the ground.
    expected: (B, H, W) float32, the signal in DN that falls on the pixels (blurred and echoed, no noise, no offset).
    columns: (B, 1, W) and rows: (B, H, 1), the offsets in DN beside the bias; dark: (B, 1, 1), DN of dark current.
    lost: (B, H) bool, lines that never arrived; camera: with which it was recorded.
    """

    dn12: Tensor
    dn8: Tensor
    expected: Tensor
    columns: Tensor
    rows: Tensor
    dark: Tensor
    lost: Tensor
    camera: Camera


def expose(signal: Tensor, camera: Camera, generator: torch.Generator | None = None) -> Recorded:
    """Record an ideal signal in DN (B, H, W), ≥ 0. `generator` lives on the signal's device and fixes every draw."""
    _check(signal, camera)
    light = _blur(signal.float(), camera)
    light = light * (1.0 + camera.of("flat", light) * _normal((light.shape[0], 1, light.shape[2]), light, generator))
    light = _echo(light, camera)

    dark = dark_dn(camera, light)
    rows, columns = _offsets(light, camera, generator)
    charge = respond(_electrons(light, dark, camera, generator), camera)
    dn12 = (charge + camera.of("bias", light) + columns + rows).round_().clamp_(0, HIGHEST)

    lost = _uniform(light.shape[:2], light, generator) < camera.of("dropped", light)[..., 0]
    dn12 = dn12.masked_fill_(lost[..., None], 0)
    return Recorded(dn12, _lossy(compand(dn12, camera.table), camera), light, columns, rows, dark, lost, camera)


def degrade(
    image: Tensor, mean_signal: Value, camera: Camera | None = None, generator: torch.Generator | None = None
) -> Recorded:
    """A real sunlit image made into a simulated dark one of the same place.

    image: (B, H, W), linear in light, any unit, ≥ 0. mean_signal: DN, one or (B,); 2…100 for permanent shadow.
    The image has been through a lens once: it is not blurred again. Its clean version is `expected` of the result.
    """
    wanted = torch.as_tensor(mean_signal, dtype=torch.float32, device=image.device).reshape(-1, 1, 1)
    if not bool((wanted > 0).all()):
        raise ParameterError("The mean signal of a darkened image is not above zero DN.", "Choose 2 to 100 DN.")
    brightness = image.float().mean(dim=(1, 2), keepdim=True)
    if not bool((brightness > 0).all()):
        raise ParameterError("An image to darken has no light in it.", "Leave out images without signal.")
    camera = replace(camera or Camera(table=float(TABLE_INDEX["dim"])), psf=0.0, smear=0.0)
    return expose(image.float() * (wanted / brightness), camera, generator)


def sample_cameras(
    batch: int, generator: torch.Generator | None = None, ranges: dict[str, tuple[float, float]] | None = None
) -> Camera:
    """A batch of cameras, each parameter drawn evenly from its range (on the CPU, whatever the device of the scenes).

    `ranges` replaces single ranges, by name. `side`, `table` and `summing` are whole choices: left or right, an index
    into `TABLES`, one or two columns.
    """
    drawn = {name: (p.low, p.high) for name, p in PARAMETERS.items()} | (ranges or {})
    if unknown := set(drawn) - set(PARAMETERS):
        raise ParameterError(f"A camera has no {sorted(unknown)[0]!r}.", f"Its parameters are {', '.join(PARAMETERS)}.")
    values = {}
    for name, (low, high) in drawn.items():
        if low > high:
            raise ParameterError(f"The camera's {name} is drawn from {low} to {high}.", "Give the lower end first.")
        random = torch.rand(batch, generator=generator)
        if name == "side":
            values[name] = torch.where(random < 0.5, low, high)
        elif name in ("table", "summing"):
            values[name] = torch.floor(low + random * (high - low + 1.0)).clamp(low, high)
        else:
            values[name] = low + random * (high - low)
    return Camera(**values)


def signal_of(iof: Tensor, camera: Camera, solar_distance: float = 1.0) -> Tensor:
    """DN that a reflectance (I/F) gives at the camera's exposure, the Sun `solar_distance` astronomical units away."""
    left = camera.of("side", iof) > 0
    responsivity = torch.where(left, RESPONSIVITY["left"], RESPONSIVITY["right"])
    return iof * responsivity * camera.of("exposure", iof) / solar_distance**2


def calibrate(recorded: Recorded) -> Tensor:
    """The signal in DN (B, H, W) as the standard calibration finds it: what a CDR with echo correction holds.

    Decompanded, dark level and column offsets off (a share `pattern_left` of them stays, as in real products),
    linearised, echo taken out. Row noise stays: nothing in the image tells it from the scene.
    """
    camera, codes = recorded.camera, recorded.dn8
    dn = decompand(codes, camera.table)
    dn = dn - camera.of("bias", dn) - (1.0 - camera.of("pattern_left", dn)) * recorded.columns
    return _without_echo(linearise(dn, camera) - recorded.dark, camera)


# What happens in the detector


def dark_dn(camera: Camera, like: Tensor) -> Tensor:
    """Mean dark signal in DN, (B, 1, 1): doubles with every `dark_doubling` degrees."""
    warmer = (camera.of("temperature", like) - DARK_REFERENCE_C) / camera.of("dark_doubling", like)
    electrons = camera.of("dark_current", like) * camera.of("exposure", like) * torch.exp2(warmer)
    return electrons / camera.of("gain", like)


def respond(dn: Tensor, camera: Camera) -> Tensor:
    """The nonlinear answer of the detector to a linear signal in DN: the inverse of `linearise`, found by Newton.

    `linearise` rises and bends down: from the left Newton's steps never overshoot, two are enough for 1e-5 DN.
    """
    depth, scale, shift = _curve(dn, camera)
    found = dn.clone()  # of dn + shift, and too small
    for _ in range(2):
        bend = depth * torch.exp(-found / scale)
        found = found + (dn - found + bend) / (1.0 + bend / scale)
    return found - shift


def linearise(dn: Tensor, camera: Camera) -> Tensor:
    """Linear signal in DN of a recorded one without its offset: x − depth · exp(−x / scale), zero where dn is zero.

    This is the correction x − 1 / (c0 · c1^x + c2) of the NAC pipeline with c0 = 1/depth, c1 = exp(1/scale), c2 = 0.
    """
    depth, scale, shift = _curve(dn, camera)
    shifted = dn + shift
    return shifted - depth * torch.exp(-shifted / scale)


def compand(dn: Tensor, table: Value = 0.0) -> Tensor:
    """12-bit DN (B, H, W) → 8-bit codes, uint8, by a table (index into `TABLES`, one or one per scene)."""
    return _look_up(_CODES, dn, table, HIGHEST + 1)


def decompand(codes: Tensor, table: Value = 0.0) -> Tensor:
    """8-bit codes (B, H, W) → DN, float32: the middle of all the numbers that have this code."""
    return _look_up(_MIDDLES, codes, table, 256)


def _check(signal: Tensor, camera: Camera) -> None:
    if signal.ndim != 3 or 0 in signal.shape:
        raise ParameterError(
            f"The signal has the shape {tuple(signal.shape)}.", "Give scenes as (batch, rows, columns)."
        )
    if not bool(torch.isfinite(signal).all()) or bool((signal < 0).any()):
        raise ParameterError("The signal holds negative or undefined light.", "Give DN of zero or more, no NaN.")
    for name in ("gain", "full_well", "exposure", "dark_doubling", "nonlinear_scale", "lossy"):
        if bool((camera.of(name, signal) <= 0).any()):
            raise ParameterError(f"The camera's {name} is not above zero.", f"It is {PARAMETERS[name].unit}.")
    for field in fields(camera):
        value = camera.of(field.name, signal)
        if not bool(torch.isfinite(value).all()) or (
            field.name not in ("side", "temperature") and bool((value < 0).any())
        ):
            raise ParameterError(f"The camera's {field.name} is negative or undefined.", "Give zero or more.")
    if not bool(((camera.of("summing", signal) == 1) | (camera.of("summing", signal) == 2)).all()):
        raise ParameterError("The camera sums neither one nor two columns.", "Choose 1 or 2.")


def _blur(light: Tensor, camera: Camera) -> Tensor:
    """Optics and motion; the edge pixels stand for what lies beyond them, so that no light is lost there."""
    psf, smear = camera.of("psf", light).flatten(), camera.of("smear", light).flatten()
    if not bool((psf > 0).any() or (smear > 0).any()):
        return light
    across = _filter(light, _taps(psf, torch.zeros_like(smear)), 2)
    return _filter(across, _taps(psf, smear), 1)


def _taps(sigma: Tensor, smear: Tensor, reach: int = 6) -> Tensor:
    """Weights (B, 2·reach + 1) whose transfer function is exp(−2π²σ²f²) · sinc(smear · f) up to the Nyquist frequency.

    Taken in frequency, not by sampling a Gaussian: one of half a pixel, sampled, would blur half as much as it should.
    """
    frequency = torch.arange(-32, 32, device=sigma.device, dtype=torch.float32) / 64.0
    transfer = torch.exp(-2.0 * torch.pi**2 * sigma[:, None] ** 2 * frequency**2) * torch.sinc(
        smear[:, None] * frequency
    )
    lag = torch.arange(-reach, reach + 1, device=sigma.device, dtype=torch.float32)
    taps = transfer @ torch.cos(2.0 * torch.pi * frequency[:, None] * lag) / 64.0
    return taps / taps.sum(dim=1, keepdim=True)


def _filter(light: Tensor, taps: Tensor, axis: int) -> Tensor:
    """Each scene with its own taps along one axis. Sums of shifted images: faster here than grouped convolution."""
    reach = taps.shape[1] // 2
    pad = (reach, reach, 0, 0) if axis == 2 else (0, 0, reach, reach)
    padded = torch.nn.functional.pad(light[:, None], pad, mode="replicate")[:, 0]
    length = light.shape[axis]
    result = torch.zeros_like(light)
    for k in (taps != 0).any(dim=0).nonzero().flatten().tolist():
        result.addcmul_(padded.narrow(axis, 2 * reach - k, length), taps[:, k, None, None])
    return result


def _echo(light: Tensor, camera: Camera) -> Tensor:
    """A share of each pixel comes again two columns on (one if summed), in the direction of the read-out.

    Divided by 1 + share, as the calibration multiplies by it: even light stays as it is.
    """
    share = camera.of("echo", light).flatten()
    if not bool((share > 0).any()):
        return light
    return _filter(light, _echo_taps(share, camera, light), 2)


def _echo_taps(share: Tensor, camera: Camera, light: Tensor) -> Tensor:
    taps = torch.zeros(light.shape[0], 5, device=light.device)
    taps[:, 2] = 1.0 / (1.0 + share)
    taps.scatter_(1, 2 + _echo_step(camera, light)[:, None], (share / (1.0 + share))[:, None])
    return taps


def _echo_step(camera: Camera, light: Tensor) -> Tensor:
    """Columns from a pixel to its echo, (B,): 2, or 1 if summed; negative in the right camera."""
    step = torch.where(camera.of("summing", light) > 1, 1, 2) * torch.sign(camera.of("side", light)).long()
    return step.flatten()


def _without_echo(image: Tensor, camera: Camera) -> Tensor:
    """The inverse of `_echo`: (1 + share) · Σ (−share)^k of the pixel k echoes back; 8 terms leave 1e-4 of it."""
    share = camera.of("echo", image).flatten()
    if not bool((share > 0).any()):
        return image
    terms = 8
    order = torch.arange(terms, device=image.device)
    taps = torch.zeros(image.shape[0], 4 * terms + 1, device=image.device)
    place = 2 * terms + _echo_step(camera, image)[:, None] * order
    taps.scatter_(1, place, (-share[:, None]) ** order)
    return _filter(image, taps / taps.sum(dim=1, keepdim=True), 2)


def _electrons(light: Tensor, dark: Tensor, camera: Camera, generator: torch.Generator | None) -> Tensor:
    """Signal and dark current in DN with the noise of photons, dark electrons and read-out; ends at the full well.

    Counts of electrons are drawn as Gaussians of their own variance: an electron is 1/64 DN, and from some hundred
    electrons of read noise nobody can tell a Poisson number. Two summed columns hold twice the electrons in a DN and
    are read out twice.
    """
    columns = camera.of("summing", light)
    gain = camera.of("gain", light) * columns
    level = (light + dark) * gain
    variance = level.clamp(min=0.0) + columns * camera.of("read_noise", light) ** 2
    noisy = torch.addcmul(level, variance.sqrt_(), _normal(light.shape, light, generator))
    return torch.minimum(noisy, camera.of("full_well", light) * columns).div_(gain)


def _offsets(light: Tensor, camera: Camera, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Offsets in DN of the lines (B, H, 1), and of the columns (B, 1, W): an 8-column pattern (4 if summed) and own."""
    batch, height, width = light.shape
    rows = camera.of("row", light) * _normal((batch, height, 1), light, generator)
    own = camera.of("column", light) * _normal((batch, 1, width), light, generator)
    pattern = _normal((batch, PATTERN_PERIOD), light, generator)
    period = torch.div(PATTERN_PERIOD, camera.of("summing", light)[:, 0], rounding_mode="floor").long()
    phase = torch.arange(width, device=light.device)[None] % period
    return rows, own + camera.of("pattern", light) * pattern.gather(1, phase)[:, None]


def _curve(dn: Tensor, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Depth and scale of the nonlinearity and the shift that keeps zero at zero, s = depth · exp(−s / scale)."""
    depth, scale = camera.of("nonlinearity", dn), camera.of("nonlinear_scale", dn)
    shift = torch.zeros_like(depth)
    for _ in range(5):
        bend = depth * torch.exp(-shift / scale)
        shift = shift + (bend - shift) / (1.0 + bend / scale)
    return depth, scale, shift


def _lossy(codes: Tensor, camera: Camera) -> Tensor:
    step = camera.of("lossy", codes)
    if not bool((step > 1).any()):
        return codes
    return ((codes.float() / step).round_() * step).clamp_(0, 255).to(torch.uint8)


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device)


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, generator=generator, device=like.device)


# Companding by tables of all 4096 numbers


def _codes(table: Companding) -> np.ndarray:
    """Code of each 12-bit number, (4096,) uint8."""
    dn = np.arange(HIGHEST + 1)
    segment = np.searchsorted(table.start, dn, side="right") - 1
    return np.clip(np.floor(np.take(table.offset, segment) + np.take(table.slope, segment) * dn), 0, 255).astype(
        np.uint8
    )


def _middles(codes: np.ndarray) -> np.ndarray:
    """DN in the middle of each code's bin, (256,) float32; the last code, where it is a ceiling, its lowest number."""
    number = np.arange(256)
    first = np.searchsorted(codes, number, side="left")
    last = np.searchsorted(codes, number, side="right") - 1
    ceiling = last[255] - first[255] > 64
    last[255] = first[255] if ceiling else last[255]
    return ((first + last) / 2.0).astype(np.float32)


_CODES = torch.from_numpy(np.stack([_codes(table) for table in TABLES.values()]))
_MIDDLES = torch.from_numpy(np.stack([_middles(_codes(table)) for table in TABLES.values()]))


def _look_up(tables: Tensor, image: Tensor, table: Value, length: int) -> Tensor:
    index = torch.as_tensor(table, device=image.device).reshape(-1, 1, 1)
    if not bool(((index >= 0) & (index < len(TABLES))).all()):
        raise ParameterError(
            "There is no such companding table.", f"Choose 0 to {len(TABLES) - 1}: {', '.join(TABLES)}."
        )
    place = image.to(torch.int32) + index.to(torch.int32) * length
    return torch.index_select(tables.to(image.device).flatten(), 0, place.flatten()).reshape(place.shape)
