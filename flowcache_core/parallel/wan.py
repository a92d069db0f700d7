"""The Wan denoiser as one rank of several: some branches, some heads, the whole velocity."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from ..denoiser import KVSpec
from ..models.common.token_share import TokenShare
from ..models.wan.denoiser import WanDenoiser
from .exchange import HeadShare, all_branches, part_sizes
from .mesh import Mesh
from .shape import Shareable


@dataclass
class WanOnRanks(WanDenoiser):
    """Every rank makes one of the same prompts, guidance and weights."""

    mesh: Mesh = field(default_factory=Mesh)

    def __post_init__(self) -> None:
        super().__post_init__()
        config = self.transformer.config
        Shareable(self.branches, config.num_heads, config.num_heads).fit(self.mesh.shape.size, self.mesh.shape)

    @property
    def owners(self) -> list[int]:
        """For every branch the rank that runs it."""
        counts = part_sizes(self.branches, self.mesh.shape.cfg)
        return [rank for rank, count in enumerate(counts) for _ in range(count)]

    @property
    def here(self) -> range:
        first = self.owners.index(self.mesh.cfg_rank)
        return range(first, first + self.owners.count(self.mesh.cfg_rank))

    @property
    def share(self) -> TokenShare | None:
        return HeadShare(self.mesh) if self.mesh.heads is not None else None

    def kv_spec(self, latents: Tensor) -> KVSpec:
        return heads_here(super().kv_spec(latents), self.mesh, self.branches)

    def split(self, velocity: Tensor) -> Tensor:
        return all_branches(self.mesh, super().split(velocity), self.owners)


def heads_here(spec: KVSpec, mesh: Mesh, branches: int) -> KVSpec:
    """The K/V of this rank's heads. branches: that keep K/V, on all ranks."""
    ranks = mesh.shape.heads
    own = spec.kv_heads // ranks
    return replace(
        spec,
        kv_heads=own,
        query_heads=spec.heads // ranks,
        first_head=own * mesh.heads_rank,
        all_kv_heads=spec.kv_heads,
        all_branches=branches,
    )
