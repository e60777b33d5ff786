"""How far simulated images of the Moon are from real ones.

What is compared:

- distributions of simple statistics, by the Wasserstein distance in units of the real spread. The same distance between
  the real products themselves (each against all the others) says how much of it means nothing;
- what one statistic alone tells about a patch being real (area under the ROC curve; 0.5 is nothing);
- the share of shadow by incidence, the density of craters by diameter;
- how well a small network tells 64×64 patches apart, on products and scenes it never saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage, stats

from lunar_processing.evaluate.judge import Verdict
from lunar_processing.evaluate.patches import DARK, SIZE, Images, standard

SHADOW = 0.3  # of the median brightness; scattered light keeps real shadows at 85° as high as 0.25 of dim flat ground
EDGES_INCIDENCE = (0.0, 64.0, 74.0, 80.0, 90.0)
EDGES_DIAMETER = (8.0, 11.3, 16.0, 22.6, 32.0, 45.3, 64.0, 128.0)  # px; under 8 px nobody has labelled

# Statistics: patches (N, S, S) → (N,) or (N, k) values


def _grey_levels(patches: np.ndarray) -> np.ndarray:
    return standard(patches).reshape(len(patches), -1)[:, ::17]


def _contrast(patches: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(patches.std(axis=(1, 2)), DARK) / np.maximum(patches.mean(axis=(1, 2)), 10 * DARK))


def _skew(patches: np.ndarray) -> np.ndarray:
    return (standard(patches) ** 3).mean(axis=(1, 2))


def _gradients(patches: np.ndarray) -> np.ndarray:
    even = standard(patches)
    across, along = np.diff(even, axis=2)[:, 1:, :], np.diff(even, axis=1)[:, :, 1:]
    return np.hypot(across, along).reshape(len(patches), -1)[:, ::17]


def _local_contrast(patches: np.ndarray) -> np.ndarray:
    blocks = standard(patches).reshape(len(patches), SIZE // 8, 8, SIZE // 8, 8).std(axis=(2, 4))
    return np.log10(np.maximum(blocks, DARK)).reshape(len(patches), -1)


def _fine_contrast(patches: np.ndarray) -> np.ndarray:
    """Log of the share of contrast finer than 3 px: noise and sharpness."""
    even = standard(patches)
    fine = even - ndimage.uniform_filter(even, (0, 3, 3), mode="nearest")
    return np.log10(np.maximum(fine.std(axis=(1, 2)), DARK))


def _spectrum(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Radial mean power (N, K) at frequencies (K,) in cycles per px, windowed."""
    window = np.hanning(SIZE)[:, None] * np.hanning(SIZE)
    power = np.abs(np.fft.rfft2(standard(patches) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE))
    ring = np.rint(frequency * SIZE).astype(int).ravel()
    rings = np.arange(2, SIZE // 2)
    flat = power.reshape(len(patches), -1)
    return rings / SIZE, np.stack([flat[:, ring == k].mean(axis=1) for k in rings], axis=1)


def _spectrum_slope(patches: np.ndarray) -> np.ndarray:
    """Exponent of the power spectrum between wavelengths of 32 and 4 px."""
    frequency, power = _spectrum(patches)
    inside = (frequency >= 1 / 32) & (frequency <= 1 / 4)
    return np.polyfit(np.log10(frequency[inside]), np.log10(power[:, inside] + 1e-9).T, 1)[0]


def _spectrum_fall(patches: np.ndarray) -> np.ndarray:
    """Log of the power at wavelengths under 2.7 px over that between 4 and 8 px: lens against noise."""
    frequency, power = _spectrum(patches)
    fine, coarse = (
        power[:, frequency > 0.375].mean(axis=1),
        power[:, (frequency > 1 / 8) & (frequency < 1 / 4)].mean(axis=1),
    )
    return np.log10((fine + 1e-9) / (coarse + 1e-9))


def _autocorrelation_length(patches: np.ndarray) -> np.ndarray:
    """Lag in px, mean over all directions, at which the autocorrelation falls below 1/e."""
    spectrum = np.abs(np.fft.rfft2(standard(patches), s=(2 * SIZE, 2 * SIZE))) ** 2
    correlation = np.fft.irfft2(spectrum)[:, :SIZE, :SIZE]
    overlap = (SIZE - np.arange(SIZE))[:, None] * (SIZE - np.arange(SIZE))
    correlation = correlation / overlap
    lag = np.rint(np.hypot(*np.indices((SIZE, SIZE)))).astype(int)
    radial = np.stack([correlation[:, lag == k].mean(axis=1) for k in range(32)], axis=1)
    below = radial < np.exp(-1) * np.maximum(radial[:, :1], 1e-9)
    return np.where(below.any(axis=1), below.argmax(axis=1), 32).astype(float)


def shadow_share(patches: np.ndarray) -> np.ndarray:
    """Share of each patch that lies in shadow."""
    return (patches < SHADOW).mean(axis=(1, 2))


STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "grey levels": _grey_levels,
    "skew of grey levels": _skew,
    "contrast (log)": _contrast,
    "gradients": _gradients,
    "local contrast (log)": _local_contrast,
    "fine contrast (log)": _fine_contrast,
    "spectrum slope": _spectrum_slope,
    "spectrum at the finest (log)": _spectrum_fall,
    "autocorrelation length, px": _autocorrelation_length,
    "shadow share": shadow_share,
}


# Comparison


@dataclass(frozen=True)
class Distance:
    """One statistic: medians, distance in real spreads, the same among real products, AUC of this alone."""

    real: float
    simulated: float
    distance: float
    among_real: float
    auc: float


def distances(real: Images, simulated: Images) -> dict[str, Distance]:
    """Every statistic of real against simulated patches."""
    return {name: _distance(measure, real, simulated) for name, measure in STATISTICS.items()}


def _distance(measure: Callable[[np.ndarray], np.ndarray], real: Images, simulated: Images) -> Distance:
    a, b = measure(real.patches), measure(simulated.patches)
    spread = max(float(a.std()), 1e-9)
    products = np.unique(real.product)
    among = [
        stats.wasserstein_distance(a[real.product == p].ravel(), a[real.product != p].ravel())
        for p in products
        if len(products) > 1
    ]
    return Distance(
        float(np.median(a)),
        float(np.median(b)),
        float(stats.wasserstein_distance(a.ravel(), b.ravel())) / spread,
        float(np.mean(among)) / spread if among else float("nan"),
        _auc(a.reshape(len(a), -1).mean(axis=1), b.reshape(len(b), -1).mean(axis=1)),
    )


def _auc(a: np.ndarray, b: np.ndarray) -> float:
    """How well the value alone tells the two apart, 0.5 (not at all) to 1, whichever of them is higher."""
    wins = stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
    return float(max(wins, 1.0 - wins))


def shadow_by_incidence(real: Images, simulated: Images) -> list[tuple[float, float, float, float]]:
    """(from degrees, to degrees, mean shadow share real, simulated) for each range of incidence that both have."""
    rows = []
    for low, high in zip(EDGES_INCIDENCE, EDGES_INCIDENCE[1:]):
        shares = [
            shadow_share(images.patches[(images.incidence >= low) & (images.incidence < high)])
            for images in (real, simulated)
        ]
        if all(len(share) for share in shares):
            rows.append((low, high, float(shares[0].mean()), float(shares[1].mean())))
    return rows


def crater_density(images: Images) -> np.ndarray:
    """Craters per megapixel in each class of `EDGES_DIAMETER`, NaN where nothing is known of craters."""
    area = sum(images.area.get(name, 0.0) for name in images.craters)
    if not area:
        return np.full(len(EDGES_DIAMETER) - 1, np.nan)
    diameters = np.concatenate(list(images.craters.values()))
    return np.histogram(diameters, EDGES_DIAMETER)[0] / area * 1e6


# Report


@dataclass(frozen=True)
class Comparison:
    """All that was measured; `verdict` None where there was no second set to judge the network on."""

    distances: dict[str, Distance]
    shadow: list[tuple[float, float, float, float]]
    craters_real: np.ndarray
    craters_simulated: np.ndarray
    verdict: Verdict | None


def compare(real: Images, simulated: Images, verdict: Verdict | None = None) -> Comparison:
    """Measure simulated against real patches."""
    return Comparison(
        distances(real, simulated),
        shadow_by_incidence(real, simulated),
        crater_density(real),
        crater_density(simulated),
        verdict,
    )


def in_words(comparison: Comparison, title: str) -> str:
    """The comparison as Markdown."""
    lines = [f"# {title}", ""]
    if comparison.verdict:
        v = comparison.verdict
        products = ", ".join(f"{name} {share:.0%}" for name, share in v.by_product.items())
        lines += [
            f"A small network tells {SIZE}×{SIZE} patches apart with an accuracy of **{v.accuracy:.1%}** "
            f"(AUC {v.auc:.3f}) on products and scenes it never saw; 50 % is chance. On those it learned from it "
            f"reaches {v.training_accuracy:.1%}. Taken for real, of the real ones: {products}.",
            "",
        ]
    lines += [
        "| statistic | real, median | simulated, median | distance | distance among real products | AUC alone |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {d.real:.3g} | {d.simulated:.3g} | {d.distance:.2f} | {d.among_real:.2f} | {d.auc:.2f} |"
        for name, d in comparison.distances.items()
    ]
    lines += ["", "Distances: Wasserstein, in standard deviations of the real values.", ""]
    lines += ["| incidence | shadow, real | shadow, simulated |", "| --- | ---: | ---: |"]
    lines += [f"| {low:.0f}-{high:.0f}° | {a:.1%} | {b:.1%} |" for low, high, a, b in comparison.shadow]
    lines += ["", "| crater diameter, px | real, per Mpx | simulated, per Mpx |", "| --- | ---: | ---: |"]
    lines += [
        f"| {low:.0f}-{high:.0f} | {a:.1f} | {b:.1f} |"
        for low, high, a, b in zip(
            EDGES_DIAMETER, EDGES_DIAMETER[1:], comparison.craters_real, comparison.craters_simulated
        )
    ]
    return "\n".join(lines) + "\n"


def picture(real: Images, simulated: Images, path: Path, seed: int = 0) -> None:
    """A figure (PNG): real and simulated patches side by side, and the distribution of each statistic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    count, across = 48, 8
    figure = plt.figure(figsize=(15, 14), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3, 2), squeeze=False)[:, 0]
    random = np.random.default_rng(seed)
    for axis, images, name in zip(top.subplots(1, 2), (real, simulated), ("real", "simulated")):
        chosen = random.choice(len(images.patches), count, replace=len(images.patches) < count)
        grid = images.patches[chosen].reshape(-1, across, SIZE, SIZE).swapaxes(1, 2).reshape(-1, across * SIZE)
        axis.imshow(grid, cmap="gray", vmin=0, vmax=2.2, interpolation="nearest")
        axis.set_title(f"{name}: 0 to 2.2 of the median brightness")
        axis.set_axis_off()
    for axis, (name, measure) in zip(bottom.subplots(2, 5).flat, STATISTICS.items()):
        values = [measure(images.patches).ravel() for images in (real, simulated)]
        low, high = np.percentile(np.concatenate(values), (0.5, 99.5))
        bins = np.linspace(float(low), float(max(high, low + DARK)), 60)
        for value, label in zip(values, ("real", "simulated")):
            axis.hist(value, bins, weights=np.full(value.size, 1 / value.size), histtype="step", label=label)
        axis.set_title(name, fontsize=9)
        axis.set_yticks([])
    bottom.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)
