"""How near a restored image is to the truth: by pixel, by structure, by feature, by gradient, and by its own sigma.

Images are (H, W) of one unit. `span` is the range of the truth that counts as full, see `span_of`; with it, numbers of
dark and of bright images can be compared.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import fft, ndimage
from skimage.metrics import structural_similarity

NARROW, WIDE = 1.0, 1.96  # sigmas of the intervals that should hold 68 % and 95 % of the errors
# Feature similarity (Zhang et al. 2011, IEEE Trans. Image Process. 20, 2378): constants for a range of 255.
PHASE_CONSTANT, GRADIENT_CONSTANT = 0.85, 160.0
SCALES, DIRECTIONS, SHORTEST_PX = 4, 4, 6.0


def span_of(truth: np.ndarray) -> float:
    """The range between the percentiles 0.5 and 99.5 of the truth."""
    low, high = np.percentile(truth, (0.5, 99.5))
    return float(max(high - low, 1e-12))


def psnr(image: np.ndarray, truth: np.ndarray, span: float) -> float:
    """Span over the root of the mean squared error, dB."""
    return -10 * math.log10(max(float(np.mean(((image - truth) / span) ** 2)), 1e-12))


def ssim(image: np.ndarray, truth: np.ndarray, span: float) -> float:
    """Structural similarity, Gaussian window of 1.5 px (Wang et al. 2004), 1 for equal images."""
    return float(
        structural_similarity(
            image, truth, data_range=span, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


def fsim(image: np.ndarray, truth: np.ndarray, span: float) -> float:
    """Feature similarity: likeness of phase congruency and of gradients, where features are; 1 for equal images."""
    first, second = ((x - truth.min()) * (255.0 / span) for x in (image, truth))
    phases = [phase_congruency(x) for x in (first, second)]
    slopes = [np.hypot(*(ndimage.convolve(x, k) for k in (SCHARR, SCHARR.T))) for x in (first, second)]
    likeness = _alike(phases, PHASE_CONSTANT) * _alike(slopes, GRADIENT_CONSTANT)
    weight = np.maximum(*phases)
    return float((likeness * weight).sum() / max(weight.sum(), 1e-12))


SCHARR = np.array([[3, 0, -3], [10, 0, -10], [3, 0, -3]]) / 16.0


def phase_congruency(image: np.ndarray) -> np.ndarray:
    """Where waves of all lengths are in step, 0…1 (Kovesi 1999): log-Gabor filters, less what noise would give."""
    spectrum = np.fft.fft2(image)
    total, energy = np.zeros(image.shape), np.zeros(image.shape)
    for direction in range(DIRECTIONS):
        answers = np.stack([np.fft.ifft2(spectrum * f) for f in _filters(image.shape, direction)])
        whole = answers.sum(axis=0)
        turned = answers * whole.conj() / (np.abs(whole) + 1e-12)  # real where it is in step with the others
        in_step = (turned.real - np.abs(turned.imag)).sum(axis=0)
        # The shortest waves hold the noise; of longer ones it is as much as their filters are wide.
        noise = np.median(np.abs(answers[0])) / math.sqrt(math.log(4))
        noise *= (1 - 0.5**SCALES) / (1 - 0.5)
        limit = noise * (math.sqrt(math.pi / 2) + 2 * math.sqrt((4 - math.pi) / 2))
        energy += np.maximum(in_step - limit, 0)
        total += np.abs(answers).sum(axis=0)
    return np.asarray(energy / (total + 1e-3))


def _filters(shape: tuple[int, ...], direction: int) -> list[np.ndarray]:
    rows, cols = (np.fft.fftfreq(n) for n in shape)
    radius = np.hypot(rows[:, None], cols[None])
    angle = np.arctan2(-rows[:, None], cols[None])
    radius[0, 0] = 1
    off = angle - direction * math.pi / DIRECTIONS
    off = np.abs(np.arctan2(np.sin(off), np.cos(off)))
    spread = np.exp(-(off**2) / (2 * (math.pi / DIRECTIONS / 1.2) ** 2))
    low_pass = 1 / (1 + (radius / 0.45) ** 30)
    found = []
    for scale in range(SCALES):
        centre = 1 / (SHORTEST_PX * 2**scale)
        gabor = np.exp(-(np.log(radius / centre) ** 2) / (2 * math.log(0.55) ** 2)) * low_pass
        gabor[0, 0] = 0
        found.append(gabor * spread)
    return found


def _alike(pair: list[np.ndarray], constant: float) -> np.ndarray:
    a, b = pair
    return np.asarray((2 * a * b + constant) / (a**2 + b**2 + constant))


def gradient_correlation(image: np.ndarray, truth: np.ndarray, sigma: float = 1.5) -> float:
    """Correlation of the slopes of brightness, both directions together; what relief looks like hangs on them."""
    ours, theirs = (
        np.concatenate([ndimage.gaussian_filter(x, sigma, order=order).ravel() for order in ((0, 1), (1, 0))])
        for x in (image, truth)
    )
    return float(np.corrcoef(ours, theirs)[0, 1])


def coverage(image: np.ndarray, sigma: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Shares of the pixels whose error lies within one sigma, and within 1.96."""
    off = np.abs(image - truth) / np.maximum(sigma, 1e-12)
    return float(np.mean(off < NARROW)), float(np.mean(off < WIDE))


def error_follows_sigma(image: np.ndarray, sigma: np.ndarray, truth: np.ndarray) -> float:
    """Rank correlation of sigma and magnitude of the error, by hundredths of the pixels in order of sigma."""
    order = np.argsort(sigma, axis=None)
    error = np.abs(image - truth).ravel()[order]
    means = np.array([part.mean() for part in np.array_split(error, 100)])
    ranks = np.argsort(np.argsort(means))
    return float(np.corrcoef(np.arange(len(means)), ranks)[0, 1])


def wiener(noisy: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The best filter of its kind that there can be: it knows the spectrum of this very truth, and of its noise.

    Spectra are of cosine waves, which have no edge, smoothed over their neighbours, so that it knows no single wave.
    Nobody has such a filter: it is a bound for all that average alike everywhere.
    """
    signal, noise = (ndimage.gaussian_filter(fft.dctn(x, norm="ortho") ** 2, 2.0) for x in (truth, noisy - truth))
    return np.asarray(
        fft.idctn(fft.dctn(noisy, norm="ortho") * signal / np.maximum(signal + noise, 1e-30), norm="ortho")
    )
