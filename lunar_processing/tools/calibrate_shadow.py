"""How wide the intervals of a model for shadow must be: found by the whole way that an image takes in the tool.

Training measures the error of the network. What a user gets has more of it: black level, stripes and noise are found in
the image itself, and never quite. Real images that nothing was learnt from and simulated ground in permanent shadow are
made dark at several signals, restored as the tool does it, and sigma is widened or narrowed until the intervals hold.
One error of the black level moves all pixels of an image at once, so it takes many draws of cameras and noise.
The middle of each image is left alone: `lunar evaluate psr` measures there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lunar_processing.errors import ModelError
from lunar_processing.evaluate.restoration import NARROW, WIDE
from lunar_processing.modelpack import WEIGHTS, Card, Pack, find_pack, sha256_of, write_card
from lunar_processing.networks.shadow import KNOTS
from lunar_processing.tools import evaluate_psr as evaluation
from lunar_processing.tools.evaluate_psr import LEVELS, Case, Scene
from lunar_processing.tools.shadow import restore
from lunar_processing.training.data import SPLITS
from lunar_processing.training.recipes.enhance import widening

SEED = 1_000_001  # of cameras, noise and simulated scenes of the first draw; evaluations begin at 0
DRAWN_SEED = 700_001
SAMPLE = 20_000  # pixels of an image: all images weigh alike
EDGE = 8  # px at the edge that see less than the others
FACTOR = "sigma_factor"


@dataclass(frozen=True)
class Effort:
    """Draws of cameras and noise; in each, simulated scenes beside the real ones, of a side in px; `most` real ones.

    `small`: parts of them.
    """

    draws: int = 12
    drawn: int = 8
    size: int = 512
    most: int | None = None
    small: bool = False


# To try it out: the numbers mean nothing.
SMALL = Effort(2, 1, evaluation.SMALL_PX, 1, small=True)


def suits(model: str) -> bool:
    """Whether a model is one for shadow."""
    return find_pack(model).card.task == "enhance"


def calibrate(folder: Path, images: Path | None, effort: Effort | None = None) -> Card:
    """Widen or narrow sigma of the model in a folder, and write what was found into its card."""
    effort = effort or Effort()
    pack = find_pack(str(folder))
    if pack.card.normalisation.kind != "noise":
        raise ModelError(
            f"Model {pack.card.id} gives no sigma that could be calibrated.",
            "name the folder of a model that `lunar train enhance` made.",
        )
    if images is None:
        raise ModelError(
            f"Sigma of model {pack.card.id} is calibrated on real images that nothing was learnt from.",
            "name the folder of the sunlit images with --images.",
        )
    real = evaluation.read_scenes(images, SPLITS["nac_cdr"]["validation"])[: effort.most]
    misses: tuple[list[_Miss], list[_Miss]] = ([], [])  # of real and of simulated ground
    for draw in range(effort.draws):
        wishes = evaluation.Wishes(seed=SEED + draw, small=effort.small)
        simulated = evaluation.draw_scenes(effort.drawn, effort.size, DRAWN_SEED + draw)
        for found, scenes in zip(misses, (real, simulated)):
            found.extend(_misses(pack, scenes, wishes))
    table = [_level(level, misses) for level in LEVELS]
    factors = _rescale(pack, [row["signal_to_noise"] for row in table], [row["factor"] for row in table])
    # What was measured of sigma before does not hold any more.
    kept = {name: value for name, value in pack.card.measured.items() if not name.startswith("cover")}
    measured = {**kept, FACTOR: factors, "calibration": table}
    card = replace(pack.card, sha256=sha256_of(pack.folder / WEIGHTS), measured=measured)
    return write_card(pack.folder, card).card


def in_words(card: Card) -> str:
    """What was found, for people."""
    return "\n".join(
        f"  {row['signal_dn']:g} DN: sigma times {row['factor']:.3f}; {row['cover68']:.1%} of the errors within one, "
        f"{row['cover95']:.1%} within 1.96"
        for row in card.measured["calibration"]
    )


@dataclass(frozen=True)
class _Miss:
    """One scene at one signal: errors of some pixels in sigmas, and the signal to noise."""

    level: float
    off: np.ndarray
    signal_to_noise: float


def _misses(pack: Pack, scenes: Sequence[Scene], wishes: evaluation.Wishes) -> Iterator[_Miss]:
    random = np.random.default_rng(wishes.seed)
    for scene in scenes:
        for level in LEVELS:
            case = evaluation.darkened(scene, level, wishes)
            enhanced, sigma = restore(pack, case.recorded, case.noise)
            off = np.abs(enhanced - case.truth) / np.maximum(sigma, 1e-12)
            noise = np.sqrt(case.noise.a + case.noise.b * level)
            yield _Miss(level, random.choice(off[_usable(case, wishes)], SAMPLE), float(level / noise))


def _usable(case: Case, wishes: evaluation.Wishes) -> np.ndarray:
    """All pixels but those at the edge and, of real images, in the middle."""
    usable = np.zeros(case.truth.shape, bool)
    usable[EDGE:-EDGE, EDGE:-EDGE] = True
    if case.scene.boxes is not None:
        usable[evaluation.middle(usable.shape, wishes)] = False
    return usable


def _level(level: float, groups: Sequence[Sequence[_Miss]]) -> dict[str, float]:
    """What the intervals call for at one signal; real and simulated ground weigh alike."""
    there = [[miss for miss in group if miss.level == level] for group in groups]
    wanted = [widening(np.concatenate([miss.off for miss in group])) for group in there]
    factor = float(np.exp(np.mean(np.log(wanted))))
    ratios = [np.log(miss.signal_to_noise) for group in there for miss in group]

    def covered(width: float) -> float:
        return float(np.mean([np.mean([(m.off < width * factor).mean() for m in group]) for group in there]))

    return {
        "signal_dn": level,
        "signal_to_noise": float(np.exp(np.mean(ratios))),
        "factor": factor,
        "cover68": covered(NARROW),
        "cover95": covered(WIDE),
    }


def _rescale(pack: Pack, ratios: Sequence[float], factors: Sequence[float]) -> list[float]:
    """Multiply the factors of sigma in the file of the weights; beyond the signals tried, as at the last of them."""
    from safetensors.torch import load_file, save_file

    pack.verify()
    path = pack.folder / WEIGHTS
    weights = load_file(path)
    change = np.exp(np.interp(np.log(KNOTS), np.log(ratios), np.log(factors)))
    weights[FACTOR] = weights[FACTOR] * weights[FACTOR].new_tensor(change)
    save_file(weights, path)
    return [round(float(factor), 4) for factor in weights[FACTOR]]
