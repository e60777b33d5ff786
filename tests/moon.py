"""A small synthetic Moon: an image from above, and the truth of what lies in it.

    moon = scene(1024, 1024, seed=7, sun_azimuth=90, sun_elevation=20)
    moon.image            # float32, 0..1: what a narrow-angle camera would return
    moon.rocks            # table: col, row, diameter, height (pixels)
    dn = digitise(moon.image, bits=16)

The ground is a height field: fractal relief, craters (bowl, rim, ejecta) stamped from the largest to the smallest,
boulders (irregular half-ellipsoids) around the freshest craters and scattered. It is lit by a distant sun, with exact
cast shadows, and seen from straight above by a camera with a point spread, photon noise, read noise and column
stripes. A dark region, where the sun never comes, keeps only a little light scattered from the hills around.

Coordinates are continuous image coordinates: (0, 0) is the outer corner of the first pixel, (0.5, 0.5) its centre.
Azimuths are degrees clockwise from the image's up direction, to where the sun stands; shadows point the other way.
Only numpy and scipy; the same seed gives the same Moon.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

ROCK = np.dtype([("col", "f8"), ("row", "f8"), ("diameter", "f8"), ("height", "f8")])
CRATER = np.dtype([("col", "f8"), ("row", "f8"), ("diameter", "f8"), ("freshness", "f8")])

FULL_SCALE_ELECTRONS = 60_000.0  # photo-electrons of a pixel at image value 1
READ_NOISE_ELECTRONS = 72.0
STRIPE_ELECTRONS = 60.0  # fixed pattern from column to column
ROW_ELECTRONS = 15.0


@dataclass(frozen=True)
class Moon:
    """An image and its truth; masks have the image's shape."""

    image: np.ndarray  # float32, 0..1
    rocks: np.ndarray  # dtype ROCK, the largest first
    craters: np.ndarray  # dtype CRATER, the largest first
    rock_mask: np.ndarray  # bool, footprints of the rocks
    dark: np.ndarray  # bool, permanently dark
    shadow: np.ndarray  # bool, cast shadow
    clean: np.ndarray  # float32, the image before noise and stripes
    pixel_size: float  # metres
    sun_azimuth: float
    sun_elevation: float


def scene(
    height: int = 1024,
    width: int = 1024,
    seed: int = 0,
    *,
    sun_azimuth: float = 90.0,
    sun_elevation: float = 20.0,
    pixel_size: float = 1.0,
    craters: float = 0.025,
    rocks: int | None = None,
    rock_sizes: tuple[float, float] = (2.5, 24.0),
    dark: bool = False,
    roughness: float = 0.05,
    noise: float = 1.0,
    exposure: float = 0.45,
    oversample: int = 2,
) -> Moon:
    """One view of the synthetic Moon.

    `craters` is the fraction of saturation (0 = none, 0.01 young, 0.05 very old ground); `rocks` their number (default:
    one in 3,000 pixels); `rock_sizes` the smallest and largest diameter in pixels; `roughness` the rms slope of the
    relief; `noise` scales all sensor noise and stripes (0 = a perfect camera); `exposure` is the image value of flat
    sunlit ground.
    """
    random = np.random.default_rng(seed)
    shape = (height * oversample, width * oversample)
    surface = _relief(shape, roughness, random, finest=1.5 * oversample)
    albedo = np.ones(shape, np.float32)
    crater_table = _crater_table(height, width, craters, random)
    _stamp_craters(surface, albedo, crater_table, oversample)
    count = height * width // 3000 if rocks is None else rocks
    rock_table = _rock_table(height, width, count, rock_sizes, crater_table, random)
    rock_mask = _stamp_rocks(surface, albedo, rock_table, oversample, random)

    lit = cast_light(surface, sun_azimuth, sun_elevation)
    direct = _shrink(albedo * lit * _shade(surface, sun_azimuth, sun_elevation), oversample)
    scattered = _shrink(albedo, oversample) * _scattered(_shrink(surface, oversample) / oversample, sun_azimuth, random)
    region = _dark_region((height, width), random) if dark else np.zeros((height, width), np.float32)
    clean = ((1 - region) * direct + scattered) * (exposure / _flat_ground(sun_elevation))
    clean = ndimage.gaussian_filter(clean, 0.45).astype(np.float32)  # the camera's own blur, on top of the pixel's
    return Moon(
        image=np.clip(_sense(clean, noise, random), 0, 1).astype(np.float32),
        rocks=rock_table,
        craters=crater_table,
        rock_mask=_shrink(rock_mask, oversample) >= 0.5,
        dark=region > 0.5,
        shadow=_shrink(lit, oversample) < 0.5,
        clean=clean,
        pixel_size=pixel_size,
        sun_azimuth=float(sun_azimuth) % 360,
        sun_elevation=float(sun_elevation),
    )


def digitise(image: np.ndarray, bits: int = 8, bias: int = 0) -> np.ndarray:
    """Counts of an 8-bit or 16-bit (12 bits deep, as NAC) camera above its `bias`; 0 is a count like others."""
    top = 255 if bits == 8 else 4095
    return np.clip(np.rint(image * (top - bias)) + bias, 0, top).astype(np.uint8 if bits == 8 else np.uint16)


def sun_vector(azimuth: float, elevation: float) -> tuple[float, float, float]:
    """Unit vector (along columns, along rows, up) towards the sun."""
    a, e = np.radians(azimuth), np.radians(elevation)
    return float(np.sin(a) * np.cos(e)), float(-np.cos(a) * np.cos(e)), float(np.sin(e))


def cast_light(surface: np.ndarray, azimuth: float, elevation: float) -> np.ndarray:
    """1 where the sun reaches the surface, 0 in cast shadow, between on the one pixel of the edge.

    Along each ray away from the sun a point is dark when something before it, lowered by the sun's slope, stands
    above it: a running maximum. The grid is sheared so that the rays run along its rows.
    """
    east, south, _ = sun_vector(azimuth, 0)
    if abs(east) < abs(south) - 1e-9:
        return cast_light(surface.T, 90 - azimuth + 180, elevation).T  # mirrored on the diagonal
    if east > 0:
        return cast_light(surface[:, ::-1], -azimuth, elevation)[:, ::-1]
    # Now the sun stands on the left: rays run to the right, and drift by `drift` rows a column.
    drift = south / east
    fall = np.float32(np.tan(np.radians(elevation)) * np.hypot(1, drift))
    rows, cols = surface.shape
    shift = np.arange(cols) * drift
    reach = int(np.ceil(abs(drift) * cols)) + 1
    first = -reach if drift > 0 else 0
    sheared = _slide(surface.astype(np.float32), shift + first, rows + reach)
    climb = sheared + np.arange(cols, dtype=np.float32) * fall
    depth = np.maximum.accumulate(climb, axis=1) - climb
    depth = _slide(depth, -shift - first, rows)
    return np.clip(1 - depth / fall, 0, 1)


def _slide(array: np.ndarray, shift: np.ndarray, rows: int) -> np.ndarray:
    """Column c of the result, at row i, is column c of `array` at row i + shift[c] (linear, edges repeated)."""
    columns = np.ascontiguousarray(array.T)
    slid = np.empty((len(columns), rows), np.float32)
    index = np.arange(rows)
    for column, by, out in zip(columns, shift, slid):
        whole = int(np.floor(by))
        upper = column.take(index + whole, mode="clip")
        lower = column.take(index + whole + 1, mode="clip")
        out[:] = upper + np.float32(by - whole) * (lower - upper)
    return slid.T


def _relief(shape: tuple[int, int], slope: float, random: np.random.Generator, finest: float) -> np.ndarray:
    """Fractal heights (Hurst exponent 0.85) in pixels, of the given rms slope, smooth below `finest` pixels."""
    size = tuple(fft.next_fast_len(n, real=True) for n in shape)
    spectrum = fft.rfft2(random.standard_normal(size, dtype=np.float32), workers=2)
    k = np.hypot(fft.fftfreq(size[0])[:, None], fft.rfftfreq(size[1])[None, :]).astype(np.float32)
    k[0, 0] = np.inf
    spectrum *= k**-1.85 * np.exp(-((k * finest) ** 2) * 2)
    spectrum[k < 2.0 / max(shape)] = 0
    heights = fft.irfft2(spectrum, s=size, workers=2)[: shape[0], : shape[1]]
    steepness = np.sqrt(np.mean(np.diff(heights, axis=0) ** 2) + 1e-20)
    return np.ascontiguousarray(heights * (slope / steepness), dtype=np.float32)


def _crater_table(height: int, width: int, density: float, random: np.random.Generator) -> np.ndarray:
    """Craters of 3 px and more, N(>D) = 1.54 · density · D^-2 a pixel, largest first; most are old and soft."""
    smallest, largest = 3.0, min(height, width) / 3
    count = random.poisson(1.54 * density * height * width / smallest**2) if density > 0 else 0
    table = np.zeros(count, CRATER)
    table["col"] = random.uniform(-10, width + 10, count)
    table["row"] = random.uniform(-10, height + 10, count)
    table["diameter"] = np.minimum(smallest / np.sqrt(random.uniform(1e-9, 1, count)), largest)
    table["freshness"] = random.beta(1.0, 1.6, count)
    return np.sort(table, order="diameter")[::-1]


def _stamp_craters(surface: np.ndarray, albedo: np.ndarray, table: np.ndarray, oversample: int) -> None:
    """Dig the craters in order: a parabolic bowl, a raised rim, ejecta falling as r^-3; soft when old."""
    for crater in table:
        radius = crater["diameter"] / 2 * oversample
        fresh = float(crater["freshness"])
        window, y, x = _around(surface.shape, crater["row"] * oversample, crater["col"] * oversample, 2.6 * radius)
        if y.size == 0 or x.size == 0:
            continue
        r = np.sqrt(y * y + x * x) / np.float32(radius)
        depth = (0.05 + 0.15 * fresh**1.5) * 2 * radius
        rim = 0.18 * depth
        soft = 0.5 * (1 - fresh) + 0.06
        bowl = (depth + rim) * r * r - depth
        apron = rim * np.maximum(r, 1e-3) ** -3 * np.clip((2.6 - r) / 0.8, 0, 1)
        inside = 1 / (1 + np.exp(np.clip((r - 1) / (soft * 0.35), -30, 30)))
        ground = surface[window]
        if radius > 4 * oversample:  # a big one wipes out what was there before
            wiped = fresh * np.clip(1.2 - r, 0, 1)
            ground -= wiped * (ground - ground.mean())
        ground += inside * np.minimum(bowl, rim) + (1 - inside) * np.minimum(apron, rim)
        if fresh > 0.75:
            albedo[window] *= 1 + (fresh - 0.75) * np.exp(-((r / 1.5) ** 2)) * 0.8


def _rock_table(
    height: int,
    width: int,
    count: int,
    sizes: tuple[float, float],
    craters: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:
    """Rocks with N(>D) ~ D^-2.5, half of them near fresh craters, none touching another."""
    table = np.zeros(count, ROCK)
    small, large = sizes
    u = random.uniform(0, 1, count)
    ratio = (large / small) ** -2.5
    table["diameter"] = small * (1 - u * (1 - ratio)) ** (-1 / 2.5)
    table["height"] = table["diameter"] * random.uniform(0.4, 0.7, count)
    table[:] = np.sort(table, order="diameter")[::-1]
    sources = craters[(craters["freshness"] > 0.6) & (craters["diameter"] > 12)]
    home = random.integers(0, max(len(sources), 1), count)
    near = (random.uniform(size=count) < 0.5) & (len(sources) > 0)
    angle, reach = random.uniform(0, 2 * np.pi, count), random.uniform(0.9, 2.2, count)
    table["col"], table["row"] = random.uniform(0, width, count), random.uniform(0, height, count)
    if len(sources):
        radius = reach * sources["diameter"][home] / 2
        table["col"] = np.where(near, sources["col"][home] + radius * np.cos(angle), table["col"])
        table["row"] = np.where(near, sources["row"][home] + radius * np.sin(angle), table["row"])
    inside = (table["col"] > 0) & (table["col"] < width) & (table["row"] > 0) & (table["row"] < height)
    return _apart(table[inside])


def _apart(table: np.ndarray) -> np.ndarray:
    """Drop every rock that touches a larger one."""
    kept = np.zeros(0, ROCK)
    keep = np.zeros(len(table), bool)
    for i, rock in enumerate(table):
        distance = np.hypot(kept["col"] - rock["col"], kept["row"] - rock["row"])
        if not np.any(distance < 0.75 * (kept["diameter"] + rock["diameter"])):
            keep[i] = True
            kept = table[: i + 1][keep[: i + 1]]
    return table[keep]


def _stamp_rocks(
    surface: np.ndarray, albedo: np.ndarray, table: np.ndarray, oversample: int, random: np.random.Generator
) -> np.ndarray:
    """Put the boulders on the ground; returns their footprints (float32, 0 or 1)."""
    footprint = np.zeros(surface.shape, np.float32)
    for rock in table:
        radius = rock["diameter"] / 2 * oversample
        stretch, turn = random.uniform(0.8, 1.0), random.uniform(0, np.pi)
        phases = random.uniform(0, 2 * np.pi, 3)
        window, y, x = _around(surface.shape, rock["row"] * oversample, rock["col"] * oversample, 1.5 * radius)
        if y.size == 0 or x.size == 0:
            continue
        along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        theta = np.arctan2(across, along)
        outline = 1 + 0.06 * np.cos(3 * theta + phases[0]) + 0.04 * np.cos(5 * theta + phases[1])
        r = np.hypot(along * np.sqrt(stretch), across / np.sqrt(stretch)) / (radius * outline)
        body = rock["height"] * oversample * np.sqrt(np.clip(1 - r**2.6, 0, 1))
        tilt = 1 + 0.15 * (along * np.cos(phases[2]) + across * np.sin(phases[2])) / radius
        surface[window] += (body * tilt).astype(np.float32)
        rock_here = r < 1
        albedo[window][rock_here] *= 1.15
        footprint[window] = np.maximum(footprint[window], rock_here)
    return footprint


def _around(
    shape: tuple[int, int], row: float, col: float, reach: float
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """The window of the array within `reach` of a point, and the offsets of its pixel centres from it."""
    top, bottom = max(int(row - reach), 0), min(int(row + reach) + 2, shape[0])
    left, right = max(int(col - reach), 0), min(int(col + reach) + 2, shape[1])
    y = (np.arange(top, max(bottom, top)) + 0.5 - row).astype(np.float32)[:, None]
    x = (np.arange(left, max(right, left)) + 0.5 - col).astype(np.float32)[None, :]
    return (slice(top, max(bottom, top)), slice(left, max(right, left))), y, x


def _shade(surface: np.ndarray, azimuth: float, elevation: float) -> np.ndarray:
    """Brightness of each facet seen from above: half Lambert, half Lommel-Seeliger, as lunar soil."""
    down, right = np.gradient(surface)
    east, south, up = (np.float32(part) for part in sun_vector(azimuth, elevation))
    seen = 1 / np.sqrt(1 + down * down + right * right)  # cosine of the emission angle
    towards = np.maximum((up - right * east - down * south) * seen, 0)
    return np.float32(0.5) * (towards + towards / (towards + seen))


def _scattered(surface: np.ndarray, sun_azimuth: float, random: np.random.Generator) -> np.ndarray:
    """The little light that sunlit hills send into shadow: from the other side, a bit more here, a bit less there."""
    hills = _relief(surface.shape, 1.0, random, finest=min(surface.shape) / 6)
    uneven = 1 + 0.3 * hills / (np.abs(hills).max() + 1e-9)
    return 0.012 * uneven * _shade(surface, sun_azimuth + 150, 35)


def _flat_ground(elevation: float) -> float:
    towards = float(np.sin(np.radians(elevation)))
    return 0.5 * towards + 0.5 * towards / (towards + 1)


def _dark_region(shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """A ragged disc over about an eighth of the scene: 1 inside, 0 outside, soft over a few pixels."""
    rows, cols = shape
    y, x = np.ogrid[:rows, :cols]
    radius = 0.21 * np.sqrt(rows * cols)
    distance = np.hypot(y - 0.68 * rows, x - 0.3 * cols)
    ragged = _relief(shape, 1.0, random, finest=radius / 5)
    ragged *= 0.12 * radius / (ragged.std() + 1e-9)
    return ndimage.gaussian_filter((distance + ragged < radius).astype(np.float32), 2.0)


def _shrink(array: np.ndarray, factor: int) -> np.ndarray:
    rows, cols = array.shape[0] // factor, array.shape[1] // factor
    return array.reshape(rows, factor, cols, factor).mean((1, 3), dtype=np.float32)


def _sense(clean: np.ndarray, noise: float, random: np.random.Generator) -> np.ndarray:
    """Photon noise, read noise, column stripes and row offsets."""
    electrons = np.clip(clean, 0, 1.5) * FULL_SCALE_ELECTRONS
    spread = noise * np.sqrt(electrons + READ_NOISE_ELECTRONS**2)
    electrons += spread * random.standard_normal(clean.shape, dtype=np.float32)
    electrons += noise * STRIPE_ELECTRONS * random.standard_normal((1, clean.shape[1]), dtype=np.float32)
    electrons += noise * ROW_ELECTRONS * random.standard_normal((clean.shape[0], 1), dtype=np.float32)
    return electrons / FULL_SCALE_ELECTRONS
