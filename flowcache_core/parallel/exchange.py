"""Exchanges between the ranks that share a forward: tokens of all heads against heads of all tokens, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..models.common.token_share import Grid
from .errors import answered
from .mesh import Mesh


def part_sizes(places: int, parts: int) -> list[int]:
    """``places`` shared out: parts differ by one at most, the larger first."""
    return [places // parts + (part < places % parts) for part in range(parts)]


@dataclass(frozen=True)
class HeadShare:
    """A :class:`..models.common.token_share.TokenShare` over ``mesh.heads``: rank i has the i-th part of every run of
    tokens, and in attention the i-th part of the heads, whose K/V history it keeps. History never moves.
    """

    mesh: Mesh

    @property
    def ranks(self) -> int:
        return self.mesh.shape.heads

    def sizes(self, places: int) -> list[int]:
        return part_sizes(places, self.ranks)

    def take(self, x: Tensor, dim: int) -> Tensor:
        return x.split(self.sizes(x.shape[dim]), dim)[self.mesh.heads_rank]

    def join(self, x: Tensor, dim: int, places: int) -> Tensor:
        sizes = self.sizes(places)
        own = x.movedim(dim, 0)
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: own.shape[0]] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        with answered(self.mesh.timeout):
            dist.all_gather(parts, padded, group=self.mesh.heads)
        self.mesh.traffic.add("tokens", padded, self.ranks - 1)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).movedim(0, dim)

    def to_heads(self, tensors: Sequence[Tensor], grid: Grid) -> list[Tensor]:
        """One exchange for all of ``tensors``."""
        runs, places = grid
        sizes, own = self.sizes(places), self.sizes(places)[self.mesh.heads_rank]
        # By receiver: its heads of everything here.
        sent = [x.unflatten(1, (self.ranks, -1)).movedim(1, 0).flatten(1) for x in tensors]
        shapes = [(x.shape[0], x.shape[1] // self.ranks, runs, x.shape[3]) for x in tensors]
        received = self._exchange(torch.cat(sent, 1).flatten(), [sum(math.prod(s) for s in shapes) * n for n in sizes])
        parts: list[list[Tensor]] = [[] for _ in tensors]
        for block, size in zip(received, sizes, strict=True):
            pieces = block.split([math.prod(shape) * size for shape in shapes])
            for index, (piece, (batch, heads, _, dim)) in enumerate(zip(pieces, shapes, strict=True)):
                parts[index].append(piece.view(batch, heads, runs, size, dim))
        assert own * runs == tensors[0].shape[2]
        return [torch.cat(part, 3).flatten(2, 3) for part in parts]

    def to_tokens(self, x: Tensor, grid: Grid) -> Tensor:
        runs, places = grid
        sizes, own = self.sizes(places), self.sizes(places)[self.mesh.heads_rank]
        batch, heads, _, dim = x.shape
        sent = [part.flatten() for part in x.unflatten(2, (runs, places)).split(sizes, 3)]
        count = batch * heads * runs * own * dim
        received = self._exchange(torch.cat(sent), [count] * self.ranks, [part.numel() for part in sent])
        return torch.cat([block.view(batch, heads, runs * own, dim) for block in received], 1)

    def _exchange(self, sent: Tensor, receives: list[int], sends: list[int] | None = None) -> list[Tensor]:
        """Numbers of values from, and to, every rank; equal parts to all where ``sends`` is not given."""
        sends = sends or [sent.numel() // self.ranks] * self.ranks
        received = sent.new_empty(sum(receives))
        with answered(self.mesh.timeout):
            dist.all_to_all_single(received, sent, receives, sends, group=self.mesh.heads)
        leaving = sent.numel() - sends[self.mesh.heads_rank]
        self.mesh.traffic.add("attention", sent[:leaving], 1)
        return list(received.split(receives))


def all_branches(mesh: Mesh, velocity: Tensor, owners: Sequence[int]) -> Tensor:
    """Velocities of all branches ``[branches, B, ...]``, from those run here ``[n, B, ...]``; bit for bit the same on
    every rank.

    owners: for every branch the rank of ``mesh.cfg`` that runs it.
    """
    if mesh.cfg is None:
        return velocity
    counts = [owners.count(rank) for rank in range(mesh.shape.cfg)]
    padded = velocity.new_zeros(max(counts), *velocity.shape[1:])
    padded[: velocity.shape[0]] = velocity
    parts = [torch.empty_like(padded) for _ in counts]
    with answered(mesh.timeout):
        dist.all_gather(parts, padded, group=mesh.cfg)
    mesh.traffic.add("velocity", padded, mesh.shape.cfg - 1)
    places = [owners[:branch].count(owner) for branch, owner in enumerate(owners)]
    return torch.stack([parts[owner][place] for owner, place in zip(owners, places, strict=True)])
