"""A small network that tells real from simulated patches: how often it is right is how far the simulator has to go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import nn

from lunar_processing.errors import ParameterError
from lunar_processing.evaluate.patches import Images, standard


@dataclass(frozen=True)
class Verdict:
    """What a small network makes of patches it never saw; accuracy counts real and simulated alike (0.5 is chance).

    `by_product`: share of each real test product taken for real.
    """

    accuracy: float
    auc: float
    training_accuracy: float
    by_product: dict[str, float]


def tell_apart(
    real: Images,
    simulated: Images,
    real_unseen: Images,
    simulated_unseen: Images,
    steps: int = 400,
    batch: int = 64,
    seed: int = 0,
) -> Verdict:
    """Train a small network to tell real from simulated patches; judge it on products and scenes kept aside.

    It sees patches of mean 0 and spread 1, turned and mirrored at will, real and simulated equally often, and real
    products equally often.
    """
    for taught, kept in ((real, real_unseen), (simulated, simulated_unseen)):
        if both := set(taught.product.tolist()) & set(kept.product.tolist()):
            raise ParameterError(f"{sorted(both)[0]} is seen in training and in the test.", "Split by product.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _trained([_pool(real), _pool(simulated)], steps, batch)
    network.eval()
    seen = [_logits(network, images) for images in (real, simulated)]
    unseen = [_logits(network, images) for images in (real_unseen, simulated_unseen)]
    return Verdict(
        _accuracy(*unseen),
        float(stats.mannwhitneyu(unseen[0], unseen[1]).statistic / (len(unseen[0]) * len(unseen[1]))),
        _accuracy(*seen),
        {str(p): float((unseen[0][real_unseen.product == p] > 0).mean()) for p in np.unique(real_unseen.product)},
    )


def _trained(pools: Sequence[Sequence[torch.Tensor]], steps: int, batch: int) -> nn.Module:
    """A network that has seen `steps` batches, half real (1), half simulated (0). Uses the global random state."""
    network = _judge()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    truth = torch.cat([torch.ones(batch // 2), torch.zeros(batch // 2)])
    network.train()
    for _ in range(steps):
        patches = torch.cat([_draw(pool, batch // 2) for pool in pools])
        loss = nn.functional.binary_cross_entropy_with_logits(network(_turned(patches))[:, 0], truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network


def _judge() -> nn.Module:
    def stage(inside: int, outside: int, side: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inside, outside, side, stride, side // 2, bias=False)
        return [convolution, nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]

    layers = [*stage(1, 16, 5, 2), *stage(16, 32, 3, 2), *stage(32, 64, 3, 2), *stage(64, 64, 3, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 1))


def _input(patches: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.clip(standard(patches), -4, 4).astype(np.float32))[:, None]


def _pool(images: Images) -> list[torch.Tensor]:
    """The patches of each product."""
    return [_input(images.patches[images.product == p]) for p in np.unique(images.product)]


def _draw(pool: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """Patches of products, each product as often as the others."""
    chosen = torch.randint(len(pool), (count,)).tolist()
    return torch.stack([pool[k][int(torch.randint(len(pool[k]), (1,)))] for k in chosen])


def _turned(patches: torch.Tensor) -> torch.Tensor:
    turned = torch.rot90(patches, int(torch.randint(4, (1,))), (2, 3))
    return turned.flip(3) if float(torch.rand(1)) < 0.5 else turned


def _logits(network: nn.Module, images: Images) -> np.ndarray:
    with torch.no_grad():
        return torch.cat([network(part)[:, 0] for part in _input(images.patches).split(256)]).numpy()


def _accuracy(real: np.ndarray, simulated: np.ndarray) -> float:
    return float(((real > 0).mean() + (simulated <= 0).mean()) / 2)
