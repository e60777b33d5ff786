"""A model is a folder: a card (`model.json`) that says what it is, and weights (`weights.safetensors`).

The card carries everything a tool has to know: task, architecture, input contract (normalisation, pixel-size
range, tile, halo), classes, what it was trained on and measured at. Weights are checked against the card's
checksum before they are used. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lunar_processing.draft import is_there
from lunar_processing.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

CARD = "model.json"
WEIGHTS = "weights.safetensors"
TASKS = ("enhance", "anomalies", "rocks")  # what is done with an image
SYNTHESIS = "synthesis"  # … and making pictures out of nothing
FORMAT = 1
# Beyond the range of pixel sizes a model was trained for: a share that nobody sees (the scale of a map varies that
# much), and a factor where doubt becomes refusal.
UNSEEN = 0.05
TOLERATED = 2.0
STEP = ".int8_step"  # after the name of a matrix in int8: what its numbers count
LARGEST_CARD = 16 << 20  # bytes
MOST = 1 << 14  # of a size in px, and of any number in the settings of a network
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
        if not all(isinstance(end, (int, float)) and math.isfinite(end) for end in (self.low, self.high)):
            raise ModelError(f"The card normalises by {self.low!r} and {self.high!r}.", "both must be numbers.")
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
    limits: str = ""
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
        import torch
        from safetensors.torch import load_file

        from lunar_processing.networks import FAMILIES

        if self.card.family not in FAMILIES:
            raise ModelError(
                f"Model {self.card.id} is of the family {self.card.family!r}, which this version does not know.",
                f"update the engine; it knows {', '.join(FAMILIES)}.",
            )
        self.verify()
        family = FAMILIES[self.card.family]
        try:
            with torch.device("meta"):  # without memory, for the card may promise a network that nobody can hold
                promised = family(**self.card.settings).state_dict()
            weights = _checked(_widened(load_file(self.folder / WEIGHTS)), promised)
            network = family(**self.card.settings)
            network.load_state_dict(weights)
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
    card = Path(name) / CARD
    if is_there(card) and card.is_file():
        return read_pack(Path(name))
    damaged: list[ModelError] = []
    for pack in list_packs(folders, damaged):
        if pack.card.id == name:
            return pack
    if damaged:  # perhaps the one that is wanted
        raise damaged[0]
    if os.sep in name or is_there(Path(name)):
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
        if not (is_there(folder) and folder.is_dir()):
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
        if path.stat().st_size > LARGEST_CARD:
            raise ValueError(f"it is larger than {LARGEST_CARD >> 20} MiB")
        return Pack(_card(json.loads(path.read_text(encoding="utf-8"))), folder)
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is not a model folder: it has no {CARD}.", "check the path.") from error
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
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


def _checked(weights: dict[str, Tensor], promised: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, if they are those of the network and all of them numbers."""
    for name in {**promised, **weights}:
        there, wanted = (tuple(part[name].shape) if name in part else "nothing" for part in (weights, promised))
        if there != wanted:
            raise ModelError(f"{name} is {there}, and should be {wanted}")
        if not bool(weights[name].isfinite().all()):
            raise ModelError(f"{name} holds what is no number")
    return weights


def _spread(steps: Tensor, matrix: Tensor) -> Tensor:
    if steps.shape != (matrix.shape[0], -(-matrix.shape[1] // BLOCK)):
        raise ModelError(f"steps of {tuple(steps.shape)} are not those of a matrix of {tuple(matrix.shape)}")
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


def _card(text: Any) -> Card:
    if not isinstance(text, dict) or text.pop("format", None) != FORMAT:
        raise ModelError("the card is of another format", "update the engine.")
    if text["task"] not in (*TASKS, SYNTHESIS):
        raise ModelError(f"the task {text['task']!r} is unknown")
    text["normalisation"] = Normalisation(**text.get("normalisation", {}))
    text["pixel_size_m"] = _pair(text.get("pixel_size_m"))
    text["classes"] = tuple(text.get("classes", ()))
    text["windows"] = tuple(int(side) for side in text.get("windows", ()))
    card = Card(**text)
    _check_types(card)
    if min(card.tile, card.stride, card.window, *card.windows) < 1 or card.halo < 0 or card.tile <= 2 * card.halo:
        raise ModelError("tile, halo, stride and window leave nothing to compute")
    if any(abs(number) > MOST for number in (card.tile, card.window, *card.windows, *_numbers(card.settings))):
        raise ModelError(f"the card asks for more than {MOST} of something, which no model here needs")
    return card


def _check_types(card: Card) -> None:
    """A card is a text that somebody wrote: each field is what the class says, or the card is none."""
    for one in fields(card):
        value, kind = getattr(card, one.name), _KINDS.get(str(one.type).partition("[")[0])
        if kind is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise TypeError(f"{one.name} is {value!r:.40}")
    if not all(isinstance(name, str) for name in card.classes):
        raise TypeError(f"classes are {card.classes!r:.40}")
    if not all(isinstance(end, (int, float)) for ends in card.works.values() for end in ends):
        raise TypeError(f"works is {card.works!r:.40}")
    for name, value in card.reading.items():
        if not (_is_number(value) or (isinstance(value, list) and all(_are_two(pair) for pair in value))):
            raise TypeError(f"reading.{name} is {value!r:.40}, neither a number nor pairs of numbers")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_two(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_number(number) for number in value)


_KINDS = {"str": str, "int": int, "Mapping": Mapping}


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in nested settings."""
    if isinstance(value, (int, float)):
        yield value
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _numbers(part)


def _pair(value: Sequence[float] | None) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = (float(v) for v in value)
    if not 0 < low <= high < math.inf:
        raise ValueError(f"pixel_size_m is {value}")
    return low, high
