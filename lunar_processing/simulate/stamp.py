"""Thousands of small things drawn into a batch of images at once, without a loop over them.

A thing (a crater, a rock) touches the tiles of 8 × 8 pixels that its reach covers. `cover` lists all pairs of thing and
tile; whoever stamps computes 64 values for each pair; `total` and `highest` gather them into images. The sum is the
same on every run: on a GPU, where nobody knows the order of additions, it is taken in whole numbers.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

TILE = 8
FIXED = 2.0**16  # parts of a unit in whole numbers: 0.015 mm, up to 32 km

Table = TypeVar("Table")


class Spots(NamedTuple):
    """Pairs of thing and tile. All of length U; distances in pixels, to the right (U, 1, 8) and down (U, 8, 1)."""

    owner: Tensor
    tile: Tensor
    right: Tensor
    down: Tensor

    def of(self, values: Tensor) -> Tensor:
        """A column of the things' table, one value a pair, (U, 1, 1)."""
        return values[self.owner][:, None, None]


def cover(scene: Tensor, col: Tensor, row: Tensor, reach: Tensor, shape: tuple[int, int, int]) -> Spots:
    """All tiles that things at continuous image coordinates (n,) with a reach in pixels (n,) touch."""
    _, height, width = shape
    down, across = -(-height // TILE), -(-width // TILE)
    left = ((col - reach) / TILE).floor().clamp(0, across).long()
    right = ((col + reach) / TILE).floor().clamp(-1, across - 1).long()
    top = ((row - reach) / TILE).floor().clamp(0, down).long()
    bottom = ((row + reach) / TILE).floor().clamp(-1, down - 1).long()
    wide, high = (right - left + 1).clamp(min=0), (bottom - top + 1).clamp(min=0)
    count = wide * high
    owner = torch.repeat_interleave(count)
    nth = torch.arange(owner.numel(), device=owner.device) - (count.cumsum(0) - count)[owner]
    tile_row = top[owner] + torch.div(nth, wide[owner].clamp(min=1), rounding_mode="floor")
    tile_col = left[owner] + nth % wide[owner].clamp(min=1)
    near = _distance(tile_col, col[owner]) ** 2 + _distance(tile_row, row[owner]) ** 2 < reach[owner] ** 2
    owner, tile_row, tile_col = owner[near], tile_row[near], tile_col[near]
    centres = torch.arange(TILE, device=owner.device) + 0.5
    return Spots(
        owner,
        (scene[owner] * down + tile_row) * across + tile_col,
        ((tile_col * TILE)[:, None] + centres - col[owner][:, None])[:, None, :],
        ((tile_row * TILE)[:, None] + centres - row[owner][:, None])[:, :, None],
    )


def total(spots: Spots, values: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The sum of what all things have to say about each pixel, (B, H, W)."""
    if values.is_cuda:
        return _gather(spots, (values * FIXED).round().to(torch.int32), shape, "sum").float() / FIXED
    return _gather(spots, values, shape, "sum")


def highest(spots: Spots, values: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The largest of what things have to say about each pixel, 0 where none is above it, (B, H, W)."""
    return _gather(spots, values, shape, "amax")


def take(table: Table, index: Tensor | slice) -> Table:
    """The rows of a table (a dataclass of tensors) that `index` picks: a mask, numbers, or a slice."""
    return replace(table, **{f.name: getattr(table, f.name)[index] for f in fields(table)})  # type: ignore


def moved(table: Table, device: torch.device | str) -> Table:
    """The same table on a device."""
    return replace(table, **{f.name: getattr(table, f.name).to(device) for f in fields(table)})  # type: ignore


def joined(first: Table, second: Table) -> Table:
    """The rows of two tables, ordered by scene; within a scene those of the first come first."""
    both = replace(
        first,  # type: ignore
        **{f.name: torch.cat([getattr(first, f.name), getattr(second, f.name)]) for f in fields(first)},  # type: ignore
    )
    return take(both, torch.argsort(_scene(both), stable=True))


def _scene(table: Any) -> Tensor:
    return table.scene


def _distance(tile: Tensor, centre: Tensor) -> Tensor:
    """From a centre to the nearest edge of its tile along one axis, 0 inside."""
    low = tile * TILE
    return torch.maximum((low - centre).clamp(min=0), centre - (low + TILE))


def _gather(spots: Spots, values: Tensor, shape: tuple[int, int, int], how: str) -> Tensor:
    batch, height, width = shape
    down, across = -(-height // TILE), -(-width // TILE)
    tiles = torch.zeros(batch * down * across, TILE * TILE, dtype=values.dtype, device=values.device)
    place = spots.tile[:, None].expand(-1, TILE * TILE)
    flat = values.reshape(-1, TILE * TILE)
    if how == "sum":
        tiles.scatter_add_(0, place, flat)
    else:
        tiles.scatter_reduce_(0, place, flat, how)
    image = tiles.view(batch, down, across, TILE, TILE).transpose(2, 3).reshape(batch, down * TILE, across * TILE)
    return image[:, :height, :width]
