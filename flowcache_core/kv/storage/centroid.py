"""Tokens as the nearest of a chunk's centroids plus a residual in two bits (Quant VideoGen, arXiv 2602.02958).

Tokens of a chunk resemble each other; what a centroid leaves over is small, and two bits say it well. The centroids are
the group's table, label and residual the token's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .codec import Codec, Entry, Rows, Table, at
from .ranges import SCALE, ByToken

_DISTANCES = 2**24
"""Most distances between tokens and centroids held at once."""


@dataclass(frozen=True)
class Centroids(Codec):
    """``residual`` encodes what the centroid leaves over. At most 256 centroids: a label is a byte."""

    head_dim: int
    centroids: int
    iterations: int
    residual: ByToken

    @property
    def rows(self) -> dict[str, tuple[int, torch.dtype]]:
        return {"label": (1, torch.uint8), **self.residual.rows}

    @property
    def table(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"centroids": ((self.centroids, self.head_dim), SCALE)}

    def fit(self, tokens: Tensor) -> Entry:
        """k-means from evenly spaced tokens on: the same centroids for the same tokens, on every device."""
        flat = tokens.float().flatten(0, -3)
        count = flat.shape[1]
        start = torch.arange(self.centroids, device=flat.device) * count // self.centroids
        found = torch.stack([self._means(one, one[start]) for one in flat])
        largest = torch.finfo(SCALE).max
        return {"centroids": found.clamp_(-largest, largest).to(SCALE).unflatten(0, tokens.shape[:-2])}

    def _means(self, tokens: Tensor, centroids: Tensor) -> Tensor:
        for _ in range(self.iterations):
            sums, members = torch.zeros_like(centroids), centroids.new_zeros(self.centroids, 1)
            for part in tokens.split(max(1, _DISTANCES // self.centroids)):
                # Products with a one-hot matrix and not a scatter, whose sums differ from run to run on a GPU.
                one_hot = nearest(part, centroids).unsqueeze(0) == self._numbers(tokens).unsqueeze(1)
                sums += one_hot.float() @ part
                members += one_hot.sum(-1, keepdim=True)
            centroids = torch.where(members > 0, sums / members.clamp_min(1), centroids)
        return centroids

    def _numbers(self, like: Tensor) -> Tensor:
        return torch.arange(self.centroids, device=like.device)

    def encode(self, tokens: Tensor, entry: Entry) -> Rows:
        flat, centroids = tokens.float().flatten(0, -3), entry["centroids"].float().flatten(0, -3)
        labels = []
        for one, own in zip(flat, centroids):
            labels.append(torch.cat([nearest(part, own) for part in one.split(max(1, _DISTANCES // self.centroids))]))
        label = torch.stack(labels).unflatten(0, tokens.shape[:-2])
        left = tokens.float() - at(entry["centroids"].float(), label)
        return {"label": label.to(torch.uint8).unsqueeze(-1), **self.residual.encode(left, {})}

    def decode(self, rows: Mapping[str, Tensor], table: Table, slot: Tensor, out: Tensor) -> None:
        self.residual.decode(rows, {}, slot, out)
        every = table["centroids"].flatten(-3, -2)
        out += at(every, slot * self.centroids + rows["label"].squeeze(-1).long())

    def join(self, table: Table, order: Tensor, joined: Tensor) -> Entry:
        """The centroids of the group with most tokens: the others find the nearest of them."""
        every = table["centroids"]
        index = order[..., None, None].expand(*order.shape, *every.shape[-2:])
        return {"centroids": every.gather(-3, index).squeeze(-3)}


def nearest(tokens: Tensor, centroids: Tensor) -> Tensor:
    """int64 ``[tokens]``: the nearest of ``centroids [n, d]``; of equally near ones the first."""
    return (centroids.square().sum(-1) / 2 - tokens @ centroids.mT).argmin(-1)
