"""A bank of scenes: rendered once, written in shards, read again and again. The camera's noise is added when read.

    write_bank("bank", "nac", count=4096, seed=0)
    draw = batches("bank", batch=16, seed=0)
    for step in range(steps):
        scenes = draw(step)
        train(scenes["image"], scenes["ideal"], scenes["classes"])

A shard is a safetensors file; its header names recipe, seed and size. A shard that exists is not drawn again, so that
an interrupted bank goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lunar_processing.errors import ImageError, OutputError, ParameterError
from lunar_processing.simulate import sensor
from lunar_processing.simulate.scenes import RECIPES, Scenes, draw, generator
from lunar_processing.simulate.sensor import Camera

SHARD = 64
SHADES = 255  # of the share of the sun in a byte


def write_bank(
    folder: str | os.PathLike[str],
    recipe: str,
    count: int,
    seed: int = 0,
    size: int = 256,
    device: torch.device | str = "cpu",
) -> list[Path]:
    """Draw `count` scenes (rounded up to whole shards of 64) and write what is missing; the files."""
    if recipe not in RECIPES:
        raise ParameterError(f"There is no recipe {recipe!r}.", f"choose one of {', '.join(RECIPES)}.")
    if count < 1:
        raise ParameterError(f"A bank of {count} scenes is not possible.", "give one or more.")
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {place} cannot be made ({error.strerror}).", "write somewhere else.") from error
    paths = []
    for shard in range(-(-count // SHARD)):
        path = place / f"{recipe}-{size}-{seed}-{shard:05d}.safetensors"
        if not path.exists():
            # Seeds of one bank never meet those of another: each has a million shards to itself.
            scenes = draw(recipe, SHARD, seed * 1_000_000 + shard, device, size)
            _write(path, scenes, {"recipe": recipe, "seed": seed, "shard": shard, "size": size})
        paths.append(path)
    return paths


def read_bank(
    folder: str | os.PathLike[str], seed: int = 0, device: torch.device | str = "cpu"
) -> Iterator[dict[str, Tensor]]:
    """Shard by shard: ideal, image with noise of this seed, recorded, truth (classes, …, height), and numbers (B,)."""
    noise = generator(seed, device)
    for path in _shards(folder):
        yield _exposed(_read(path, device), noise)


def batches(
    folder: str | os.PathLike[str], batch: int, seed: int = 0, device: torch.device | str = "cpu"
) -> Callable[[int], dict[str, Tensor]]:
    """What gives batch k for k: `batch` scenes from anywhere in the bank, as `read_bank` has them.

    Scenes and noise are a function of (seed, k), so that a training that was stopped goes on with the very batches it
    would have seen. Only the scenes of the batch are read.
    """
    if batch < 1:
        raise ParameterError(f"Batches of {batch} scenes are not possible.", "give one or more.")
    places = [(path, row) for path in _shards(folder) for row in range(_length(path))]

    def draw_batch(step: int) -> dict[str, Tensor]:
        numbers = generator(seed * 1_000_000_007 + step)
        chosen = torch.randint(len(places), (batch,), generator=numbers).tolist()
        rows = [_read(path, device, slice(row, row + 1)) for path, row in (places[i] for i in chosen)]
        noise = generator(seed * 1_000_000_007 + step, device)
        return _exposed({name: torch.cat([row[name] for row in rows]) for name in rows[0]}, noise)

    return draw_batch


def _shards(folder: str | os.PathLike[str]) -> list[Path]:
    paths = sorted(Path(folder).glob("*.safetensors"))
    if not paths:
        raise ImageError(f"There is no bank of scenes in {folder}.", "write one with `write_bank`.")
    return paths


def _write(path: Path, scenes: Scenes, facts: dict[str, object]) -> None:
    numbers = ("incidence", "sun_azimuth", "pixel_size")
    tensors = {
        "ideal": scenes.ideal,
        "height": scenes.ground.height,
        "classes": scenes.classes,
        "rock_id": scenes.rock_id,
        "objects": scenes.objects,
        "lit": (scenes.lit * SHADES).round().to(torch.uint8),
        **{name: getattr(scenes, name) for name in numbers},
        **{f"camera.{f.name}": getattr(scenes.camera, f.name) for f in fields(Camera)},
    }
    draft = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, draft, {"bank": json.dumps(facts)})
        os.replace(draft, path)
    except OSError as error:
        raise OutputError(f"{path} could not be written ({error}).", "free space on the disk and run again.") from error
    finally:
        draft.unlink(missing_ok=True)


def _length(path: Path) -> int:
    """Scenes in a shard."""
    return len(_read(path, "cpu", slice(None), ("incidence",))["incidence"])


def _read(
    path: Path, device: torch.device | str, rows: slice = slice(None), names: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Some rows of all tensors of a shard, or of those named."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_slice(name)[rows] for name in names or file.keys()}
    except (SafetensorError, OSError) as error:
        raise ImageError(f"{path} is damaged ({error}).", "delete it and write the bank again.") from error


def _exposed(shard: dict[str, Tensor], noise: torch.Generator) -> dict[str, Tensor]:
    camera = Camera(**{f.name: shard.pop(f"camera.{f.name}") for f in fields(Camera)})
    recorded = sensor.expose(shard["ideal"], camera, noise)
    lit = shard.pop("lit").float() / SHADES
    return {**shard, "lit": lit, "image": sensor.calibrate(recorded), "recorded": recorded.dn8}
