"""Networks on their devices: they stay loaded (who does a thousand images with one model reads, checks and converts it
once), and take a step of the pipeline as is best there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lunar_processing.backends import predictor, torch_device
from lunar_processing.devices import lanes_of
from lunar_processing.modelpack import WEIGHTS, Card, Pack
from lunar_processing.pipeline import BATCH_PIXELS, Apply, Step

if TYPE_CHECKING:
    from torch import Tensor, nn

Answer = Callable[..., "Tensor"]
KEPT = 4  # a network and its heat on two devices; the oldest goes
_networks: dict[tuple[str, ...], nn.Module] = {}
_answers: dict[tuple[str, ...], Answer] = {}


def loaded(pack: Pack, device: str, ask: str = "forward") -> tuple[nn.Module, Answer]:
    """The network of a model on a device, not to be changed, and what answers for it there."""
    key = (str(pack.folder.resolve()), pack.card.sha256, repr(pack.card.settings), pack.card.family, _stamp(pack))
    here = (*key, torch_device(device))
    if here not in _networks:
        _make_room(_networks)
        _networks[here] = pack.network(torch_device(device))
    asked = (*key, device, ask)
    if asked not in _answers:
        _make_room(_answers)
        _answers[asked] = predictor(_networks[here], device, ask)
    return _networks[here], _answers[asked]


def network_step(card: Card, device: str, apply: Apply, bands: int, **more: Any) -> Step:
    """A step with the tile and halo of a model's card, in batches and lanes that suit the device."""
    batch, lanes = BATCH_PIXELS[device], lanes_of(device)
    return Step(card.id, apply, bands, card.tile, card.halo, device=device, batch_px=batch, lanes=lanes, **more)


def _stamp(pack: Pack) -> str:
    """Changes when the weights do: they are checked again then."""
    weights = pack.folder / WEIGHTS
    return str(weights.stat().st_mtime_ns) if weights.is_file() else ""


def _make_room(kept: dict) -> None:
    while len(kept) >= KEPT:
        del kept[next(iter(kept))]
