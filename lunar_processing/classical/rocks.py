"""Find rocks without a trained network: a bright face, and right behind it, away from the sun, a cast shadow.

A rock stands up: seen along the light, first its bright face comes, then its shadow, then plain ground. A crater goes
down: first the dark wall near the sun comes, then the bright far wall. So wherever the image falls into shadow, the
method looks back towards the sun for a bright face with plain ground before it, and forward to where the shadow ends.

    state = fit(patches)
    azimuth, confidence = estimate_sun(patches)        # or given, or from the label
    mask, score = apply(pixels, valid, azimuth, state, origin=(col, row))

Azimuths are degrees clockwise from the image's up direction to where the sun stands. The mask is the rock's body: a
disc as wide as the edge between face and shadow, which is the rock's own width across the light; its shaded half is
included, its cast shadow is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from lunar_processing.classical.around import blur, refine, to_blocks
from lunar_processing.classical.noise import Noise, Patches, fit_noise, sigma_at

Origin = tuple[int, int]

SMALLEST = 2.0  # px, width of the smallest rock looked for; below about 5 px many are missed or mistaken
LARGEST = 24.0  # px
THRESHOLD = 0.5  # of the score: what is called a rock
HALO = 160  # ground 52, rays 36, the width of an edge 24, rocks that compete 24, bodies 18

_DARK = 0.45  # shadow: darker than the ground by this share of the ground's own light
_BRIGHT = 0.10  # face: brighter than the ground by this share at the least …
_CLEAR = 5.0  # … and by so many sigmas of the noise
_FACE = 4  # the face is looked for within so many px of the edge of the shadow
_UP, _DOWN = 36, 32  # px followed towards the sun and away from it
_BEFORE, _BEYOND = 8, 4  # px looked at before the face and past the shadow
_GROUND_BLOCK, _GROUND_BLOCKS = 8, 9  # the ground's brightness is a median over 72 px
_EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Light:
    """What the survey says of light: the noise, the brightness of cast shadow (image units), and the texture.

    `texture` is the robust spread of the ground's brightness as a share of its light: rough ground under a low sun has
    many bright faces that are no rocks.
    """

    noise: Noise
    shadow: float
    texture: float


@dataclass(frozen=True)
class Method:
    """How to find rocks: `fit(patches) -> state`, `apply(pixels, valid, sun_azimuth, state, origin) -> mask, score`."""

    title: str
    description: str
    halo: int
    threshold: float
    fit: Callable[[Patches], Light]
    apply: Callable[..., tuple[np.ndarray, np.ndarray]]


def fit(patches: Patches) -> Light:
    """Shadow is the darkest thousandth of the survey, but never brighter than a third of its typical light."""
    noise = fit_noise(patches)
    values = [pixels[valid][::7] for pixels, valid in patches if valid.any()]
    if not values:
        return Light(noise, noise.black, 1.0)
    darkest, typical = np.percentile(np.concatenate(values).astype(np.float64), (0.1, 50))
    shadow = float(min(darkest, noise.black + 0.3 * (typical - noise.black)))
    light = Light(noise, shadow, 1.0)
    shares = [_against_ground(pixels, valid, light, (0, 0))[0] for pixels, valid in patches]
    known = np.concatenate([np.abs(share[share != 0])[::7] for share in shares])
    texture = 1.4826 * float(np.median(known)) if len(known) else 1.0
    return Light(noise, shadow, max(texture, 0.01))


def apply(
    pixels: np.ndarray, valid: np.ndarray, sun_azimuth: float, state: Light, origin: Origin = (0, 0)
) -> tuple[np.ndarray, np.ndarray]:
    """Mask (bool) of rock bodies with a score of at least THRESHOLD, and the score (float32, 0 … 1; 0 off bodies)."""
    share, noise = _against_ground(pixels, valid, state, origin)
    heads = _find_heads(share, noise, sun_azimuth, origin)
    score = _judge(heads, state.texture)
    return _draw(heads, score, valid, origin)


# ---- the ground ----------------------------------------------------------------------------------------------


def _against_ground(
    pixels: np.ndarray, valid: np.ndarray, state: Light, origin: Origin
) -> tuple[np.ndarray, np.ndarray]:
    """Brightness against the ground around, as a share of its light (-1 shadow, 0 ground), and its noise.

    0 where invalid, and where the ground itself is too dark to tell.
    """
    ground = _ground(pixels, valid, origin)
    light = ground - state.shadow
    sigma = sigma_at(state.noise, ground)
    tells = valid & (light > 6 * sigma)
    light = np.where(tells, light, 1)
    return np.where(tells, (pixels - ground) / light, 0).astype(np.float32), (sigma / light).astype(np.float32)


def _ground(pixels: np.ndarray, valid: np.ndarray, origin: Origin) -> np.ndarray:
    """Median of the medians of 8 px blocks, over 9 × 9 blocks, smooth between them; 0 where nothing is valid."""
    blocks, known = to_blocks(pixels.astype(np.float32), valid, _GROUND_BLOCK, origin)
    shape = blocks.shape[:2]
    medians = _median(np.where(known, blocks, np.nan).reshape(*shape, -1), least=16)
    padded = np.pad(medians, _GROUND_BLOCKS // 2, constant_values=np.nan)
    around = np.lib.stride_tricks.sliding_window_view(padded, (_GROUND_BLOCKS, _GROUND_BLOCKS))
    wide = _median(around.reshape(*shape, -1), least=1)
    return refine(np.nan_to_num(wide), _GROUND_BLOCK, origin, pixels.shape)


def _median(values: np.ndarray, least: int) -> np.ndarray:
    """Upper median along the last axis of what is not NaN; NaN where fewer than `least` are left."""
    ordered = np.sort(values, axis=-1)
    known = np.isfinite(ordered).sum(-1)
    middle = np.minimum(known // 2, values.shape[-1] - 1)
    return np.where(known >= least, np.take_along_axis(ordered, middle[..., None], -1)[..., 0], np.nan)


# ---- heads: where a bright face meets its shadow -------------------------------------------------------------


@dataclass(frozen=True)
class _Heads:
    """One entry a head. Lengths px; brightnesses as shares of the ground's light; x, y image coordinates of bodies."""

    x: np.ndarray
    y: np.ndarray
    width: np.ndarray  # of the edge between face and shadow, across the light
    face: np.ndarray  # brightness of the face
    face_length: np.ndarray  # along the light
    before: np.ndarray  # darkest just before the face: ground for a rock, shadow for the far wall of a crater
    shadow: np.ndarray  # depth of the shadow
    shadow_length: np.ndarray
    beyond: np.ndarray  # brightest just past the shadow: ground for a rock, the far wall for a crater


def _find_heads(share: np.ndarray, noise: np.ndarray, sun_azimuth: float, origin: Origin) -> _Heads:
    away = np.array([-np.sin(np.radians(sun_azimuth)), np.cos(np.radians(sun_azimuth))])  # (x, y) down the light
    y, x = np.nonzero(share < -_DARK)

    def ray(steps: np.ndarray) -> np.ndarray:
        places = [y[:, None] + steps * away[1], x[:, None] + steps * away[0]]
        return ndimage.map_coordinates(share, places, order=1, mode="grid-constant")

    starts = ray(np.array([-1.0]))[:, 0] > -_DARK
    y, x = y[starts], x[starts]
    bright = ray(-np.arange(1.0, _FACE + 1)).max(1, initial=-1) > np.maximum(_BRIGHT, _CLEAR * noise[y, x])
    y, x = y[bright], x[bright]
    along_up, along_down = ray(-np.arange(1.0, _UP + 1)), ray(np.arange(0.0, _DOWN + _BEYOND + 1))
    edge = np.zeros(share.shape, bool)
    edge[y, x] = True
    labels, count = ndimage.label(edge, _EIGHT)
    if not count:
        return _Heads(*np.zeros((9, 0)))
    label, ids = labels[y, x], np.arange(1, count + 1)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.mean(values, label, ids), np.float64).reshape(count)

    # Places are counted from the image's corner, so that every tile computes the same numbers.
    col, row = x + origin[0] + 0.5, y + origin[1] + 0.5
    across = row * away[0] - col * away[1]
    high, low = (np.asarray(f(across, label, ids)).reshape(count) for f in (ndimage.maximum, ndimage.minimum))
    width = high - low + 1
    # The edge of the shadow runs over the top of the rock, a quarter of its width behind its middle.
    along = mean(col * away[0] + row * away[1]) - 0.25 * width
    middle = (high + low) / 2
    face, face_length, before = (mean(v) for v in _look_up(along_up))
    shadow, shadow_length, beyond = (mean(v) for v in _look_down(along_down))
    return _Heads(
        along * away[0] - middle * away[1],
        along * away[1] + middle * away[0],
        width,
        face,
        face_length,
        before,
        shadow,
        shadow_length,
        beyond,
    )


def _look_up(rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Towards the sun, from the edge (rays, steps): brightness of the face, its length, the darkest before it."""
    face, peak = rays[:, :_FACE].max(1, initial=-1), rays[:, :_FACE].argmax(1)
    over = (rays < 0.35 * face[:, None]) & (np.arange(_UP) > peak[:, None])
    length = np.where(over.any(1), over.argmax(1), _UP)
    steps = np.minimum(length[:, None] + np.arange(_BEFORE), _UP - 1)
    return face, length.astype(float), np.take_along_axis(rays, steps, 1).min(1)


def _look_down(rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Away from the sun, from the edge (rays, steps): depth of the shadow, its length, the brightest past it."""
    over = rays[:, : _DOWN + 1] > -_DARK
    length = np.where(over.any(1), over.argmax(1), _DOWN)
    steps = length[:, None] + np.arange(1, _BEYOND + 1)
    return -rays.min(1), length.astype(float), np.take_along_axis(rays, steps, 1).max(1)


# ---- judging and drawing -------------------------------------------------------------------------------------

# Logistic regression on synthetic scenes (sun 10° to 45° high, calm and rough ground, with and without craters, 8 and
# 16 bits); the signs say what a rock is: brighter than the texture, a short face, no shadow before it, deep shadow,
# plain ground beyond.
_WEIGHTS = {
    "face over texture": 4.95,
    "face length over half width": -1.10,
    "darkness before": 4.70,
    "shadow depth": 3.00,
    "shadow under 0.4 widths": -1.86,
    "brightness beyond": -2.33,
}
_INTERCEPT = -5.82


def _evidence(heads: _Heads, texture: float) -> np.ndarray:
    """(n, 6) in the order of the weights, each held to the range in which it was learnt."""
    return np.stack(
        [
            np.log(np.clip(heads.face, 0.05, 2) / texture),
            np.minimum(heads.face_length / (heads.width / 2 + 1.5), 6),
            np.clip(heads.before, -1, 0),
            np.minimum(heads.shadow, 1.1),
            heads.shadow_length < 0.4 * heads.width,
            np.clip(heads.beyond, -0.5, 1),
        ],
        axis=1,
    )


def _judge(heads: _Heads, texture: float) -> np.ndarray:
    """Score 0 … 1 of each head; 0 where its width is out of range."""
    margin = _evidence(heads, texture) @ np.array(list(_WEIGHTS.values())) + _INTERCEPT
    fits = (heads.width >= SMALLEST) & (heads.width <= LARGEST)
    return np.where(fits, 1 / (1 + np.exp(-np.clip(margin, -30, 30))), 0)


def _draw(heads: _Heads, score: np.ndarray, valid: np.ndarray, origin: Origin) -> tuple[np.ndarray, np.ndarray]:
    image = np.zeros(valid.shape, np.float32)
    order = np.argsort(score, kind="stable")
    kept = _strongest(heads, score)
    for i in order[kept[order] & (score[order] > 0.05)]:  # weakest first, so that the strong lie on top
        radius = heads.width[i] / 2
        x, y = heads.x[i] - origin[0], heads.y[i] - origin[1]
        top, left = max(int(y - radius - 1), 0), max(int(x - radius - 1), 0)
        bottom, right = max(int(y + radius + 2), 0), max(int(x + radius + 2), 0)
        part = image[top:bottom, left:right]
        rows, cols = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
        # Distances are taken from the image's corner: rounding then is the same in every tile.
        down, across = rows + origin[1] + 0.5 - heads.y[i], cols + origin[0] + 0.5 - heads.x[i]
        part[down**2 + across**2 <= radius**2] = score[i]
    image[~valid] = 0
    return image >= THRESHOLD, image


def _strongest(heads: _Heads, score: np.ndarray) -> np.ndarray:
    """Which heads have no stronger one on the same body (ties: the upper, then the left one).

    A head is dropped even for one that is dropped itself: so the decision stays local, and tiles agree.
    """
    candidates = np.flatnonzero(score > 0)
    keep = np.zeros(len(score), bool)
    keep[candidates] = True
    reach = _near_pairs(heads.x[candidates], heads.y[candidates], LARGEST)
    first, second = candidates[reach[:, 0]], candidates[reach[:, 1]]
    distance = np.hypot(heads.x[first] - heads.x[second], heads.y[first] - heads.y[second])
    same = distance < 0.4 * (heads.width[first] + heads.width[second])
    first, second = first[same], second[same]
    rank = np.empty(len(score), np.int64)
    rank[np.lexsort((heads.x, heads.y, -score))] = np.arange(len(score))
    keep[np.where(rank[first] < rank[second], second, first)] = False
    return keep


def _near_pairs(x: np.ndarray, y: np.ndarray, reach: float) -> np.ndarray:
    if len(x) == 0:
        return np.zeros((0, 2), np.int64)
    return cKDTree(np.stack([x, y], 1)).query_pairs(reach, output_type="ndarray")


# ---- where the sun stands ------------------------------------------------------------------------------------

_AXIS_SIGMA = 2.0  # px: below it noise and stripes have their say
_CRATER_SCALES = (3.0, 6.0, 12.0)  # px: half-widths of craters whose walls are paired


def estimate_sun(patches: Patches) -> tuple[float, float]:
    """Azimuth of the sun in degrees, and confidence 0 … 1; below 0.5 the two opposite directions are a guess.

    The axis: relief is brightened and darkened along the light, so that brightness changes fastest along it (main axis
    of the structure tensor; steep edges are clipped, so that shadows do not rule). Which end: craters, the commonest
    form, have their dark wall towards the sun and the bright one away, so bright spots are looked for on either side of
    dark ones at three scales. Ground with more rocks than craters says the opposite: then the scales disagree, and the
    confidence falls, or, where there is nothing but rocks, the answer is wrong by 180°. Prefer what the label says.
    """
    axis, directedness = _light_axis(patches)
    votes = np.array([_crater_vote(patches, axis, scale) for scale in _CRATER_SCALES])
    total, size = float(votes.mean()), float(np.abs(votes).mean())
    azimuth = np.degrees(np.arctan2(axis[0], -axis[1])) + (0 if total >= 0 else 180)
    agreement = abs(total) / size if size > 0 else 0.0
    confidence = min(directedness / 0.15, 1) * agreement * min(abs(total) / 0.25, 1)
    return float(azimuth % 360), float(confidence)


def _light_axis(patches: Patches) -> tuple[np.ndarray, float]:
    """Unit vector (x, y) along the light, sign arbitrary, and how directed the relief is: 0 not at all … 1."""
    gradients = [_gradient(pixels, valid) for pixels, valid in patches]
    steepness = np.concatenate([np.hypot(*g) for g in gradients]) if gradients else np.zeros(0)
    if not len(steepness) or not steepness.any():
        return np.array([1.0, 0.0]), 0.0
    limit = np.percentile(steepness, 90)
    tensor = np.zeros((2, 2))
    for g in gradients:
        clipped = g * np.minimum(1, limit / np.maximum(np.hypot(*g), 1e-30))
        tensor += clipped @ clipped.T
    values, vectors = np.linalg.eigh(tensor)
    return vectors[:, 1], float((values[1] - values[0]) / max(values.sum(), 1e-300))


def _gradient(pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(2, n): changes along x and y of the smoothed pixels whose surroundings are all valid."""
    if min(pixels.shape) < 2:
        return np.zeros((2, 0))
    smooth = ndimage.gaussian_filter(np.where(valid, pixels, 0).astype(np.float64), _AXIS_SIGMA)
    inner = ndimage.binary_erosion(valid, _EIGHT, iterations=int(3 * _AXIS_SIGMA), border_value=0)
    down, right = np.gradient(smooth)
    return np.stack([right[inner], down[inner]])


def _crater_vote(patches: Patches, axis: np.ndarray, scale: float) -> float:
    """-1 … 1: positive where bright lies against `axis` of dark, as in craters when the sun stands along `axis`."""
    against = with_axis = 0.0
    for pixels, valid in patches:
        fine, wide = (blur(pixels, valid, s) for s in (0.6 * scale, 4 * scale))
        known = np.isfinite(fine) & np.isfinite(wide) & valid
        relief = np.where(known, fine - wide, 0)
        spread = 1.4826 * np.median(np.abs(relief[known])) if known.any() else 0
        if spread <= 0:
            continue
        bright, dark = (np.clip(sign * relief / spread - 2, 0, 4) for sign in (1, -1))
        step = 2.5 * scale * axis[::-1]  # (row, column)
        with_axis += float((dark * ndimage.shift(bright, -step, order=1)).sum())
        against += float((dark * ndimage.shift(bright, step, order=1)).sum())
    total = with_axis + against
    return (against - with_axis) / total if total > 0 else 0.0


METHODS: dict[str, Method] = {
    "shadow-pairs": Method(
        title="Bright faces and shadows",
        description="Pairs a bright face with the shadow right behind it along the light. Needs the direction of the "
        "sun (given, from the label, or estimated). Reliable from about 5 px; finds nothing inside large shadows.",
        halo=HALO,
        threshold=THRESHOLD,
        fit=fit,
        apply=apply,
    ),
}
DEFAULT = "shadow-pairs"
