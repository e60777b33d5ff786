"""A model is a folder: a card (`model.json`) that says what it is, and weights (`weights.safetensors`).

The card carries everything a tool has to know: task, architecture, input contract (normalisation, pixel-size
range, tile, halo), classes, what it was trained on and measured at. Weights are checked against the card's
checksum before they are used. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lunar_processing.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

CARD = "model.json"
WEIGHTS = "weights.safetensors"
TASKS = ("enhance", "anomalies", "rocks")
FORMAT = 1
# Beyond the range of pixel sizes a model was trained for: a share that nobody sees (the scale of a map varies that
# much), and a factor where doubt becomes refusal.
UNSEEN = 0.05
TOLERATED = 2.0
STEP = ".int8_step"  # after the name of a matrix in int8: what its numbers count
BLOCK = 128  # so many numbers side by side in a row count one step


@dataclass(frozen=True)
class Normalisation:
    """How pixels become network input.

    `percentile` and `range`: (value - low) / (high - low), low and high by percentile or fixed. `noise`: (value -
    black) in units of the dark noise that is measured in the image; low and high say which signal to noise the model
    knows.
    """

    kind: str = "percentile"
    low: float = 0.5
    high: float = 99.5

    def __post_init__(self) -> None:
        if self.kind not in ("percentile", "range", "noise"):
            raise ModelError(
                f"The card asks for an unknown normalisation {self.kind!r}.", "use 'percentile', 'range' or 'noise'."
            )


@dataclass(frozen=True)
class Card:
    """What a model says of itself; see `docs/models.md` for every field."""

    id: str
    task: str
    family: str
    version: str = "1"
    title: str = ""
    description: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    normalisation: Normalisation = Normalisation()
    pixel_size_m: tuple[float, float] | None = None
    tile: int = 512
    halo: int = 32
    stride: int = 1
    window: int = 64
    windows: tuple[int, ...] = ()
    output: str = ""
    classes: tuple[str, ...] = ()
    reading: Mapping[str, Any] = field(default_factory=dict)
    works: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sha256: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    population: Mapping[str, Any] = field(default_factory=dict)
    license: str = ""


@dataclass(frozen=True)
class Pack:
    """A model on the disk whose card was read; its weights are read by `network`."""

    card: Card
    folder: Path

    def network(self, device: str = "cpu") -> nn.Module:
        """The network with its verified weights, ready to predict on `device`."""
        from safetensors.torch import load_file

        from lunar_processing.networks import FAMILIES

        if self.card.family not in FAMILIES:
            raise ModelError(
                f"Model {self.card.id} is of the family {self.card.family!r}, which this version does not know.",
                f"update the engine; it knows {', '.join(FAMILIES)}.",
            )
        self.verify()
        try:
            network = FAMILIES[self.card.family](**self.card.settings)
            network.load_state_dict(_widened(load_file(self.folder / WEIGHTS)))
        except Exception as error:
            raise ModelError(
                f"The weights of model {self.card.id} do not fit its card ({error}).", "install the model again."
            ) from error
        return network.float().eval().to(device)

    def verify(self) -> None:
        """Refuse weights that are missing or differ from those the card was written for."""
        weights = self.folder / WEIGHTS
        if not weights.is_file():
            raise ModelError(f"Model {self.card.id} has no {WEIGHTS} in {self.folder}.", "install the model again.")
        if sha256_of(weights) != self.card.sha256:
            raise ModelError(
                f"The weights of model {self.card.id} in {self.folder} are damaged: their checksum is not the card's.",
                "install the model again.",
            )

    def check_task(self, task: str) -> None:
        """Refuse a model made for another tool."""
        if self.card.task != task:
            raise ModelError(
                f"Model {self.card.id} is made for the task {self.card.task!r}, not for {task!r}.",
                f"choose another; `lunar models --task {task}` lists them.",
            )

    def doubts_about(self, pixel_size_m: float | None) -> list[str]:
        """Warnings about an image of this pixel size; far outside the model's range is refused."""
        if self.card.pixel_size_m is None:
            return []
        low, high = self.card.pixel_size_m
        if pixel_size_m is None:
            return [
                f"Model {self.card.id} was made for pixels of {low:g}–{high:g} m; this image does not say its own. "
                "Give it with --pixel-size."
            ]
        if low * (1 - UNSEEN) <= pixel_size_m <= high * (1 + UNSEEN):
            return []
        if pixel_size_m < low / TOLERATED or pixel_size_m > high * TOLERATED:
            raise ModelError(
                f"Model {self.card.id} was made for pixels of {low:g}–{high:g} m; this image has {pixel_size_m:.3g} m.",
                f"resample it, for example gdalwarp -tr {high:g} {high:g} -r average, or choose another model.",
            )
        return [
            f"Model {self.card.id} was made for pixels of {low:g}–{high:g} m; this image has {pixel_size_m:.3g} m: "
            "expect poorer results."
        ]


def find_pack(name: str, folders: Sequence[Path] = ()) -> Pack:
    """A model by its folder or by its id in the model folders."""
    if (Path(name) / CARD).is_file():
        return read_pack(Path(name))
    damaged: list[ModelError] = []
    for pack in list_packs(folders, damaged):
        if pack.card.id == name:
            return pack
    if damaged:  # perhaps the one that is wanted
        raise damaged[0]
    if os.sep in name or Path(name).exists():
        raise ModelError(f"{name} is not a model folder: it has no {CARD}.", "give the folder that holds it.")
    places = ", ".join(str(f) for f in model_folders(folders))
    raise ModelError(f"There is no model {name!r} in {places}.", "`lunar models` lists what there is.")


def list_packs(folders: Sequence[Path] = (), damaged: list[ModelError] | None = None) -> Iterator[Pack]:
    """All readable models, the user's folders first. What is wrong with the others goes into `damaged`, or is raised:
    one broken download must not hide the rest, nor be hidden itself.
    """
    seen: set[str] = set()
    for folder in model_folders(folders):
        for card in sorted(folder.glob(f"*/{CARD}")):
            try:
                pack = read_pack(card.parent)
            except ModelError as error:
                if damaged is None:
                    raise
                damaged.append(error)
                continue
            if pack.card.id not in seen:
                seen.add(pack.card.id)
                yield pack


def model_folders(folders: Sequence[Path] = ()) -> list[Path]:
    """Where models are looked for: given folders, LUNAR_MODELS, the one beside the engine, the user's own."""
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ModelError(f"The folder of models {folder} does not exist.", "check --models-dir.")
    named = [Path(p) for p in os.environ.get("LUNAR_MODELS", "").split(os.pathsep) if p]
    return [*map(Path, folders), *named, Path(__file__).resolve().parent.parent / "models", own_folder()]


def own_folder() -> Path:
    """Where the user's installed models lie; it outlives updates of the engine and of the plugin."""
    home = Path.home()
    if os.name == "nt":
        data = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        data = home / "Library" / "Application Support"
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return data / "lunar" / "models"


def read_pack(folder: Path) -> Pack:
    """Read and check a card; weights are left alone."""
    path = folder / CARD
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
        return Pack(_card(text), folder)
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is not a model folder: it has no {CARD}.", "check the path.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"The card {path} cannot be understood ({error}).", "install the model again.") from error


def save_pack(folder: Path, card: Card, network: nn.Module, keep: str = "float32") -> Pack:
    """Write a model; the card gets the checksum of the weights.

    `keep` is how matrices and filters are kept, in which most weights are: float32, float16, or int8, where each block
    of a matrix' row counts steps of its own. All else stays float32. It is a matter of the file alone: a network that
    was read computes in float32.
    """
    from dataclasses import replace

    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    save_file(_narrowed(weights, keep), folder / WEIGHTS)
    return write_card(folder, replace(card, sha256=sha256_of(folder / WEIGHTS)))


def _narrowed(weights: Mapping[str, Tensor], keep: str) -> dict[str, Tensor]:
    import torch

    kept = dict(weights)
    for name in [name for name, value in weights.items() if value.is_floating_point() and value.dim() >= 2]:
        if keep == "float16":
            kept[name] = kept[name].half()
        if keep == "int8" and kept[name].dim() == 2:
            blocks = kept[name].split(BLOCK, dim=1)
            kept[name + STEP] = torch.stack([block.abs().amax(dim=1) for block in blocks], dim=1).clamp_min(1e-30) / 127
            kept[name] = (kept[name] / _spread(kept[name + STEP], kept[name])).round().to(torch.int8)
    return kept


def _widened(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """int8 turned back; float16 is turned by the network that it is loaded into."""
    weights = dict(kept)
    for name in [name for name in kept if name + STEP in kept]:
        weights[name] = kept[name] * _spread(weights.pop(name + STEP), kept[name])
    return weights


def _spread(steps: Tensor, matrix: Tensor) -> Tensor:
    return steps.repeat_interleave(BLOCK, dim=1)[:, : matrix.shape[1]]


def write_card(folder: Path, card: Card) -> Pack:
    """Write the card of a model whose weights are there."""
    from dataclasses import asdict

    text = {"format": FORMAT, **asdict(card)}
    (folder / CARD).write_text(json.dumps(text, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Pack(card, folder)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _card(text: dict[str, Any]) -> Card:
    if text.pop("format", None) != FORMAT:
        raise ModelError("the card is of another format", "update the engine.")
    if text["task"] not in TASKS:
        raise ModelError(f"the task {text['task']!r} is unknown")
    text["normalisation"] = Normalisation(**text.get("normalisation", {}))
    text["pixel_size_m"] = _pair(text.get("pixel_size_m"))
    text["classes"] = tuple(text.get("classes", ()))
    text["windows"] = tuple(int(side) for side in text.get("windows", ()))
    card = Card(**text)
    if min(card.tile, card.stride, card.window) < 1 or card.halo < 0 or card.tile <= 2 * card.halo:
        raise ModelError("tile, halo, stride and window leave nothing to compute")
    return card


def _pair(value: Sequence[float] | None) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = (float(v) for v in value)
    return low, high
