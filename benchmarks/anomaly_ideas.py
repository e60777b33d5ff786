"""What was tried for `anomaly-multiscale`: scorers without a network of their own, and trainings with less shown.

python -m benchmarks.anomaly_ideas train DIR OUT --shown unnamed           a model in OUT, that was shown less
python -m benchmarks.anomaly_ideas compare DIR --models NAME=FOLDER …     a table: average precision on planted things

DIR: the real images of development. `compare` plants in the validation part, as `lunar evaluate anomalies` does; the
filter bank, the prediction and the densities learn what is normal from the training part. Without a FOLDER there is no
density of a network's features.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lunar_processing.evaluate.planted import Facts
from lunar_processing.evaluate.ranking import Measured, measure, over_kinds
from lunar_processing.modelpack import read_pack
from lunar_processing.networks.multiscale import BLOCK, STRIDE, WINDOWS, MultiScale, relief
from lunar_processing.tools.evaluate_anomalies import Scorer, compare, planted, real_grounds, tool_scorer
from lunar_processing.training import recipes
from lunar_processing.training.data import SPLITS, product_id
from lunar_processing.training.recipes import anomalies

ARTEFACTS = ("descent stage", "probe", "rover track", "impact scar")
SHOWN: dict[str, dict] = {  # what is planted in the images that are learnt from
    "all": {},
    "unnamed": {"unnamed": 5.0, "each": 0.0, "named": ()},
    "no artefacts": {"named": tuple(name for name in anomalies.KNOWN if name not in ARTEFACTS)},
}
VALIDATION = "M161149639"  # of the training part: what the best step is chosen by
SIMULATED = 0.25
LEVELS, BINOMIAL = 6, (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
OUTER, HOLES = 13, (3, 5)  # px: a pixel is predicted from its surroundings without the nearest
TRUSTED = 0.97  # of the windows, the least strange, make the density
Features = Callable[[Tensor], Sequence[Tensor]]  # (1, 1, H, W) in 0…1 → for each scale (C, H/16, W/16)


def main() -> int:
    """Train one model, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="a model that was shown less")
    training.add_argument("folder", type=Path)
    training.add_argument("out", type=Path)
    training.add_argument("--shown", choices=tuple(SHOWN), default="unnamed")
    training.add_argument("--minutes", type=float)
    training.add_argument("--steps", type=int, help="so many, to compare at equal budgets")
    training.add_argument("--resume", action="store_true")
    comparing = commands.add_parser("compare", help="a table of all")
    comparing.add_argument("folder", type=Path)
    comparing.add_argument("--models", nargs="*", default=[], metavar="NAME=FOLDER")
    comparing.add_argument("--strips", type=int, default=108)
    given = parser.parse_args()
    torch.manual_seed(0)
    if given.command == "train":
        train(given.folder, given.out, given.shown, given.minutes, given.steps, given.resume)
    else:
        models = {name: Path(path) for name, path in (pair.split("=", 1) for pair in given.models)}
        print(table(ideas(given.folder, models, given.strips)))
    return 0


def train(folder: Path, out: Path, shown: str, minutes: float | None, steps: int | None, resume: bool) -> None:
    """The recipe `anomalies` with the products and the share of simulated scenes of the model that is shipped."""
    from lunar_processing.tools.job import Report
    from lunar_processing.tools.train import Wishes, in_words, train_model

    task = partial(anomalies.task, **SHOWN[shown])
    recipes.RECIPES["anomalies"] = replace(anomalies.RECIPE, task=task, title=f"{anomalies.RECIPE.title} ({shown})")
    learnt = [str(p) for p in _images(folder) if product_id(p.name) != VALIDATION]
    kept = [str(p) for p in _images(folder) if product_id(p.name) == VALIDATION]
    budget = {"minutes": minutes, "steps": steps}
    wishes = Wishes("anomalies", learnt, out, validation=kept, simulated=SIMULATED, resume=resume, **budget)
    report = Report(log=lambda _level, message: print(message, flush=True))
    print(in_words(train_model(wishes, report)))


def _images(folder: Path) -> Iterator[Path]:
    known = SPLITS["nac_cdr"]["train"]
    return (path for path in sorted(folder.glob("*.png")) if product_id(path.name) in known)


def ideas(folder: Path, models: dict[str, Path], strips: int) -> Measured:
    """All of them on the same planted strips."""
    grounds = [_ready(g.image) for g in real_grounds(folder, "train")]
    scorers: dict[str, Scorer | str] = {
        "filter bank, Gaussian": density(filter_bank, grounds),
        "prediction from surroundings": predictor(grounds),
    }
    for name, path in models.items():
        scorers[name] = tool_scorer(str(path))
        network = read_pack(path).network()
        if isinstance(network, MultiScale):
            scorers[f"{name}: Gaussian of its features"] = density(partial(features, network), grounds)
            scorers |= {f"{name}: {what} alone": scorer for what, scorer in opinions(network).items()}
    made = compare(islice(planted(folder, "validation"), strips), scorers, surroundings=False)
    return measure(made)


def table(measured: Measured) -> str:
    """Markdown."""
    kinds = list(next(iter(measured.values())))
    lines = [["average precision", *kinds, "mean of kinds"], ["---", *["---:"] * (len(kinds) + 1)]]
    for name, numbers in measured.items():
        found = [*(numbers[kind]["ap"] for kind in kinds), over_kinds(numbers, "ap")]
        lines.append([name, *(f"{value:.2g}" for value in found)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ready(image: np.ndarray) -> Tensor:
    low, high = np.percentile(image, (0.5, 99.5))
    return torch.from_numpy((image.astype(np.float32) - low) / (high - low)).clamp(0, 1)[None, None].float()


# ---- how far from ordinary: a Gaussian on features ---------------------------------------------------------------


def density(measure_features: Features, grounds: Sequence[Tensor]) -> Scorer:
    """Mahalanobis distance of the features of each scale from ordinary ground; the highest of all scales counts."""
    with torch.inference_mode():
        every = [[f.flatten(1).double() for f in measure_features(ground)] for ground in grounds]
    fitted = [_gaussian(torch.cat(list(scale), dim=1)) for scale in zip(*every)]

    @torch.inference_mode()
    def score(image: np.ndarray, valid: np.ndarray, facts: Facts) -> np.ndarray:
        maps = [far(f.double()) for f, far in zip(measure_features(_ready(image)), fitted)]
        return torch.stack(maps).amax(dim=0).numpy()

    return score


def _gaussian(columns: Tensor) -> Callable[[Tensor], Tensor]:
    """Features (C, n) → a function from (C, …) to the distance: 0 of the median, 1 of the strangest in a thousand."""
    kept = torch.ones(columns.shape[1], dtype=torch.bool)
    for _ in range(3):
        mean = columns[:, kept].mean(dim=1, keepdim=True)
        precision = torch.linalg.inv(torch.cov(columns[:, kept]) + 1e-3 * torch.eye(len(columns)).double())
        far = _distance(columns, mean, precision)
        kept = far < far.quantile(TRUSTED)
    middle, rare = far.median(), far.quantile(0.999)

    def distance(values: Tensor) -> Tensor:
        flat = _distance(values.flatten(1), mean, precision)
        return ((flat - middle) / (rare - middle)).reshape(values.shape[1:])

    return distance


def _distance(columns: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    away = columns - mean
    return ((precision @ away) * away).sum(dim=0)


def filter_bank(image: Tensor) -> list[Tensor]:
    """Energy, extremes and direction of each octave of the ground's relief, in windows of each size."""
    level = functional.pixel_shuffle(relief(image), BLOCK)
    octaves = []
    for _ in range(LEVELS):
        smooth = _blur(level)
        band, right, down = (
            level - smooth,
            level.diff(dim=3, append=level[..., -1:]),
            level.diff(dim=2, append=level[..., -1:, :]),
        )
        plain = torch.cat([band**2, right**2 - down**2, 2 * right * down, right**2 + down**2], dim=1)
        octaves.append((plain, torch.cat([band, -band], dim=1)))
        level = smooth[..., ::2, ::2]
    shape = tuple(-(-side // STRIDE) for side in image.shape[-2:])
    return [_in_windows(octaves[: 4 + number], side, shape) for number, side in enumerate(WINDOWS)]


def _blur(x: Tensor) -> Tensor:
    taps = torch.tensor(BINOMIAL)
    padded = functional.pad(x, (2, 2, 2, 2), mode="reflect")
    return functional.conv2d(functional.conv2d(padded, taps.view(1, 1, 1, 5)), taps.view(1, 1, 5, 1))


def _in_windows(octaves: Sequence[tuple[Tensor, Tensor]], side: int, shape: tuple[int, ...]) -> Tensor:
    found = []
    for number, (plain, signed) in enumerate(octaves[:LEVELS]):
        size, stride = max(side >> number, 1), max(STRIDE >> number, 1)
        pad = (size - stride) // 2
        mean = functional.avg_pool2d(plain, size, stride, pad, count_include_pad=False)
        top = functional.max_pool2d(signed, size, stride, pad)
        energy = mean[:, 3:] + 1e-3
        coherence = torch.hypot(mean[:, 1:2], mean[:, 2:3]) / energy
        made = torch.cat(
            [(mean[:, :1] + 1e-3).log(), energy.log(), coherence, (top + 0.05).clamp_min(1e-3).log()], dim=1
        )
        found.append(functional.interpolate(made, shape, mode="nearest"))
    return torch.cat(found, dim=1)[0]


def features(network: MultiScale, image: Tensor) -> list[Tensor]:
    """What the network makes of the ground before it judges, at 8 px (the highest of four) and at 32 px."""
    kept: dict[str, Tensor] = {}
    layers = {"fine": network.eighth_back, "coarse": network.coarse[-1]}  # what `look` itself calls
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out, name=name: kept.update({name: out}))
        for name, layer in layers.items()
    ]
    network.look(image)
    for hook in hooks:
        hook.remove()
    shape = [-(-side // STRIDE) for side in image.shape[-2:]]
    fine = functional.max_pool2d(kept["fine"], 2)
    return [
        fine[0, :, : shape[0], : shape[1]],
        functional.interpolate(kept["coarse"], scale_factor=2)[0, :, : shape[0], : shape[1]],
    ]


def opinions(network: MultiScale) -> dict[str, Scorer]:
    """The parts that the score of the network is made of, each alone."""
    sizes = range(len(WINDOWS))
    parts: dict[str, Callable[[Tensor], Tensor]] = {
        "smallest window": lambda counted: counted[0],
        "strangest window": lambda counted: counted[: len(WINDOWS)].amax(dim=0),
        "surprise": lambda counted: counted[-4],
        "roughness": lambda counted: counted[-3],
        "lines": lambda counted: counted[-2],
        "pairs of lines": lambda counted: counted[-1],
    }

    @torch.inference_mode()
    def score(part: Callable[[Tensor], Tensor], image: np.ndarray, valid: np.ndarray, facts: Facts) -> np.ndarray:
        found = network.look(_ready(image))
        every = torch.cat([found.windows, found.surprise, found.lines], dim=1)[0]
        kept = [*sizes, *range(len(WINDOWS) + 1, len(network.ordinary))]  # no pixels
        ordinary, rare = (of[kept, None, None] for of in (network.ordinary, network.rare))
        return part((every - ordinary) / (rare - ordinary)).numpy()

    return {name: partial(score, part) for name, part in parts.items()}


# ---- what the surroundings do not foretell -----------------------------------------------------------------------


def predictor(grounds: Sequence[Tensor]) -> Scorer:
    """Each pixel from those around but not next to it, by least squares; what is left, in three octaves."""
    kernels = [_prediction(grounds, hole) for hole in HOLES]

    @torch.inference_mode()
    def score(image: np.ndarray, valid: np.ndarray, facts: Facts) -> np.ndarray:
        level = functional.pixel_shuffle(relief(_ready(image)), BLOCK)
        shape = [-(-side // 8) for side in image.shape]
        maps = []
        for _ in range(3):
            for kernel in kernels:
                left = functional.conv2d(level, kernel, padding=OUTER // 2) ** 2
                energy = (functional.avg_pool2d(left, 8, ceil_mode=True) + 1e-4).log()
                energy = energy - energy.median()
                maps.append(functional.interpolate(energy / energy.abs().median(), shape, mode="nearest"))
            level = functional.avg_pool2d(level, 2)
        return torch.cat(maps).amax(dim=0)[0].numpy()

    return score


def _prediction(grounds: Sequence[Tensor], hole: int) -> Tensor:
    """A kernel (1, 1, OUTER, OUTER): the pixel less what its surroundings foretell."""
    known = torch.ones(OUTER, OUTER, dtype=torch.bool)
    inner = slice((OUTER - hole) // 2, (OUTER + hole) // 2)
    known[inner, inner] = False
    of, to = torch.zeros(()), torch.zeros(())
    for ground in grounds:
        level = functional.pixel_shuffle(relief(ground), BLOCK)[0, 0]
        cut = level.unfold(0, OUTER, 5).unfold(1, OUTER, 5).reshape(-1, OUTER, OUTER)
        around, middle = cut[:, known].double(), cut[:, OUTER // 2, OUTER // 2].double()
        of, to = of + around.T @ around, to + around.T @ middle
    kernel = torch.zeros(OUTER, OUTER)
    kernel[known] = -torch.linalg.solve(of + 1e-2 * torch.eye(len(of)), to).float()
    kernel[OUTER // 2, OUTER // 2] = 1
    return kernel[None, None]


if __name__ == "__main__":
    sys.exit(main())
