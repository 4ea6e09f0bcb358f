"""Who lies near whom among rows of features, found a tile of distances at a time.

All distances are squared, in float32. Memory is that of one tile and of the answer, never rows × rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

TILE = 2048  # rows on each side of a tile, which then takes 16 MiB
ROUNDING = 2e-6  # of a distance in a tile, relative to those from the origin; measured: up to 8e-7


class Nearest(NamedTuple):
    """``distances`` float32 (Q, k), nearest first, and ``indices`` int64 (Q, k) of the rows they lead to."""

    distances: Tensor
    indices: Tensor


class Hits(NamedTuple):
    """Which points lie in which balls.

    Attributes:
        balls: in how many balls each point lies, int64 (P,).
        occupied: whether each ball holds a point, bool (B,).
    """

    balls: Tensor
    occupied: Tensor


def _tiles(queries: Tensor, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Distances of all queries (Q, F) to a part of the rows (R, F) at a time: which part, and (Q, part).

    ‖q − r‖² = ‖q‖² + ‖r‖² − 2 q·r, from an origin among the rows: rounding grows with the distance from the origin.
    """
    origin = rows[:1]
    queries = queries - origin
    lengths = queries.square().sum(dim=1, keepdim=True)
    for start in range(0, len(rows), TILE):
        part = rows[start : start + TILE] - origin
        tile = torch.addmm(part.square().sum(dim=1), queries, part.T, alpha=-2)
        yield slice(start, start + len(part)), tile.add_(lengths)


def nearest(queries: Tensor, rows: Tensor, *, k: int) -> Nearest:
    """The k rows nearest to each query; all of them where there are fewer.

    Args:
        queries, rows: float32 (Q, F) and (R, F).
    """
    found = [_nearest(part, rows, k) for part in queries.split(TILE)]
    return Nearest(*(torch.cat(each) for each in zip(*found, strict=True)))


def _nearest(queries: Tensor, rows: Tensor, k: int) -> Nearest:
    """The same for queries that fit into one tile."""
    distances = queries.new_empty(len(queries), 0)
    indices = torch.empty(distances.shape, dtype=torch.int64, device=queries.device)
    for part, tile in _tiles(queries, rows):
        near = tile.topk(min(k, tile.shape[1]), largest=False)
        distances = torch.cat([distances, near.values], dim=1)
        indices = torch.cat([indices, near.indices + part.start], dim=1)
        distances, kept = distances.topk(min(k, distances.shape[1]), largest=False)
        indices = indices.gather(1, kept)
    return Nearest(distances, indices)


def between(queries: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
    """Distance of each query (Q, F) to the row at its index, int64 (Q,); exactly zero where they are equal.

    :func:`nearest` finds distances in another way, which rounds.
    """
    pairs = zip(queries.split(TILE), indices.split(TILE), strict=True)
    return torch.cat([(part - rows[chosen]).square().sum(dim=1) for part, chosen in pairs])


def radii(rows: Tensor, *, k: int) -> Tensor:
    """Distance of each row (N, F) to its k-th nearest other row, float32 (N,).

    Raises:
        ValueError: N is not above k.
    """
    if len(rows) <= k:
        raise ValueError(f"balls that reach to the neighbour of rank {k} need more than {k} images, not {len(rows)}")
    # k + 1: the nearest row is the row itself. Only between() knows that copies have a distance of zero.
    return between(rows, rows, nearest(rows, rows, k=k + 1).indices[:, -1])


def hits(points: Tensor, centres: Tensor, reach: Tensor, *, closed: bool) -> Hits:
    """Which points lie in the balls around the centres.

    Args:
        points, centres: float32 (P, F) and (B, F).
        reach: squared radii of the balls, float32 (B,).
        closed: whether a ball holds what lies on its edge, however that distance was rounded.
    """
    origin = torch.zeros(len(centres), dtype=torch.int64, device=centres.device)
    edge = ROUNDING * (reach + between(centres, centres, origin))
    reach = reach + edge if closed else torch.where(reach > 0, reach - edge, -math.inf)
    balls = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    occupied = torch.zeros(len(centres), dtype=torch.bool, device=points.device)
    for points_part, counts in zip(points.split(TILE), balls.split(TILE), strict=True):
        for part, tile in _tiles(points_part, centres):
            inside = tile <= reach[part]
            counts += inside.sum(dim=1, dtype=torch.int32)
            occupied[part] |= inside.any(dim=0)
    return Hits(balls, occupied)
