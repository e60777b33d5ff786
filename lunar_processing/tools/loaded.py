"""Networks stay loaded: who does a thousand images with one model reads, checks and converts it once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lunar_processing.backends import predictor, torch_device
from lunar_processing.modelpack import WEIGHTS, Pack

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


def _stamp(pack: Pack) -> str:
    """Changes when the weights do: they are checked again then."""
    weights = pack.folder / WEIGHTS
    return str(weights.stat().st_mtime_ns) if weights.is_file() else ""


def _make_room(kept: dict) -> None:
    while len(kept) >= KEPT:
        del kept[next(iter(kept))]
