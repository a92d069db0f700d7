"""The Wan transformer as the engine's denoiser: branches, prompts per chunk, guidance, K/V through the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from ...denoiser import ChunkInput, ChunkOutput, KVSpec
from ...errors import require, require_count, require_finite, require_finite_values
from ...kv.cache import KVCache
from ...plan.shots import Shots
from ...rows import Rows
from ..common.attention import attend_heads
from ..common.cached_attention import CachedAttention, JointAttention
from ..common.rope import RopeAxes, moved
from ..common.token_share import TokenShare
from .branch_rows import compute_by_branch
from .transformer import PreparedText, WanTransformer


@dataclass
class WanDenoiser:
    """One run of a :class:`WanTransformer`.

    prompts: start chunk -> text embeddings ``[B, T, text_dim]``, one per branch (cond, or cond and uncond); a chunk
    takes the entry with the largest start chunk not above its own index. guidance: v = uncond + guidance * (cond -
    uncond); at 1 or below the uncond branch is not run. fps: for models with a frame-rate embedding. shots: where the
    video is cut.
    """

    transformer: WanTransformer
    prompts: Mapping[int, Sequence[Tensor]]
    guidance: float = 1.0
    fps: int | None = None
    shots: Shots = Shots()
    texts: dict[tuple[int, int], PreparedText] = field(default_factory=dict, init=False, repr=False)
    axes: dict[tuple[int, int, int], RopeAxes] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        require_finite("guidance", self.guidance, minimum=0.0)
        require(0 in self.prompts, "prompts", sorted(self.prompts), "start chunks, 0 among them")
        needed = self.branches
        for start, contexts in self.prompts.items():
            require_count("prompt start chunk", start, minimum=0)
            require(len(contexts) >= needed, f"prompt of chunk {start}", len(contexts), f"{needed} branches")
            shapes = {tuple(context.shape) for context in contexts[:needed]}
            require(len(shapes) == 1, f"prompt of chunk {start}", shapes, "branches of one shape [B, T, text_dim]")
            for branch, context in enumerate(contexts[:needed]):
                require_finite_values(f"prompt of chunk {start}, branch {branch}", context)

    @property
    def branches(self) -> int:
        return 2 if self.guidance > 1 else 1

    def kv_spec(self, latents: Tensor) -> KVSpec:
        config = self.transformer.config
        return KVSpec(
            layers=config.num_layers,
            kv_heads=config.num_heads,
            head_dim=config.head_dim,
            tokens_per_frame=self.transformer.tokens_per_frame(latents),
            branches=len(self.here),
            batch=latents.shape[0],
            dtype=self.transformer.dtype,
            device=latents.device,
            move=moved,
        )

    def compute(
        self, item: ChunkInput, cache: KVCache, *, keep_residual: bool = False, rows: Rows | None = None
    ) -> ChunkOutput:
        if rows is not None and rows.each:
            return compute_by_branch(self, item, cache, rows, keep_residual)
        result = self.forward(item, cache, keep_residual, rows)
        velocity, residual = result if isinstance(result, tuple) else (result, None)
        return ChunkOutput(self.split(velocity), residual, rows)

    def joint(self, items: Sequence[ChunkInput], cache: KVCache) -> Sequence[ChunkOutput]:
        require(
            not self.shots.added, "shots", self.shots.starts, "none with joint attention: its chunks are neighbours"
        )
        latents = torch.cat([item.latents for item in items], 2)
        lengths = [item.chunk.frames for item in items]
        times = torch.cat([self.times(item).unsqueeze(1).expand(-1, item.chunk.frames) for item in items], 1)
        velocity = self.transformer.forward_joint(
            self.batched(latents),
            times,
            [self.text(item.prompt_chunk, item.latents.shape[0]) for item in items],
            lengths,
            first_frame=items[0].chunk.first_frame,
            attention=JointAttention(
                cache, [item.chunk for item in items], range(len(self.here)), attend_heads, items[0].seen_frames
            ),
            fps=self.fps,
            rope=self.rope(latents, cache.plan.frames),
            share=self.share,
        )
        return [ChunkOutput(self.split(part)) for part in velocity.split(lengths, 2)]

    def encode(self, item: ChunkInput, cache: KVCache) -> None:
        self.forward(item, cache, False)

    def forward(
        self, item: ChunkInput, cache: KVCache, keep_residual: bool, rows: Rows | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """All branches of one chunk, branch-major; with ``keep_residual`` the block stack's too."""
        return self.transformer.forward_chunk(
            self.batched(item.latents),
            self.times(item),
            self.text(item.prompt_chunk, item.latents.shape[0]),
            first_frame=self.shots.first_frame(item.chunk),
            attention=CachedAttention(
                cache,
                item.chunk,
                range(len(self.here)),
                attend_heads,
                newest=item.seen_frames * cache.spec.tokens_per_frame,
                rows=rows,
                sparse=item.sparse,
            ),
            fps=self.fps,
            return_residual=keep_residual,
            rope=self.rope(item.latents, cache.plan.frames + self.shots.added),
            rows=rows,
            share=self.share,
        )

    def from_residual(self, item: ChunkInput, residual: Tensor) -> Tensor:
        x, timesteps = self.batched(item.latents), self.times(item)
        return self.split(self.transformer.from_residual(x, timesteps, residual, self.fps))

    def window(self, latents: Tensor, timesteps: Sequence[float], items: Sequence[ChunkInput]) -> Tensor:
        accepted = "one prompt, of chunk 0, with bidirectional attention: it holds for the whole window"
        require(len(self.prompts) == 1, "prompts", f"prompts from chunks {sorted(self.prompts)}", accepted)
        x = self.batched(latents)
        # One fill per run of equal ones: numbers of the host reach a device as arguments, as a tensor they are a copy.
        runs = [(time, len(list(group))) for time, group in groupby(timesteps)]
        row = torch.cat([torch.full((count,), time, device=x.device) for time, count in runs])
        times = row.expand(self.branches * latents.shape[0], -1)
        text, rope = self.text(0, latents.shape[0]), self.rope(latents, latents.shape[2])
        return self.split(self.transformer(x, times, text, fps=self.fps, rope=rope, share=self.share))

    def guide(self, velocity: Tensor, item: ChunkInput) -> Tensor:
        if velocity.shape[0] == 1:
            return velocity[0]
        cond, uncond = velocity
        return uncond + self.guidance * (cond - uncond)

    def patch_embedding(self, item: ChunkInput) -> Tensor:
        return self.transformer.patch_tokens(item.latents)

    def time_modulation(self, timestep: float) -> Tensor:
        weight = self.transformer.patch_embedding.weight
        return self.transformer.time_modulation(torch.full((1,), timestep, device=weight.device), self.fps)

    # -- branches run as one batch, branch-major ---------------------------------------------------------------------

    @property
    def here(self) -> range:
        """The branches that this denoiser runs: all of them but where ranks share them."""
        return range(self.branches)

    @property
    def share(self) -> TokenShare | None:
        """The part of the tokens that goes through the blocks here, None for all."""
        return None

    def batched(self, latents: Tensor) -> Tensor:
        return latents if len(self.here) == 1 else latents.repeat(len(self.here), 1, 1, 1, 1)

    def split(self, velocity: Tensor) -> Tensor:
        """Of all branches ``[branches, B, ...]``, from those run here ``[here * B, ...]``."""
        return velocity.unflatten(0, (len(self.here), -1))

    def times(self, item: ChunkInput) -> Tensor:
        """Of all branches, also those that are not run here: :meth:`.WanTransformer.forward`."""
        return torch.full((self.branches * item.latents.shape[0],), item.timestep, device=item.latents.device)

    def text(self, chunk: int, batch: int) -> PreparedText:
        """The chunk's prompt for all branches, every layer's cross-attention K/V computed once per run."""
        start = max(first for first in self.prompts if first <= chunk)
        if (start, batch) not in self.texts:
            own = self.prompts[start][self.here.start : self.here.stop]
            contexts = [context.expand(batch, -1, -1) for context in own]
            self.texts[start, batch] = self.transformer.prepare_text(torch.cat(contexts))
        return self.texts[start, batch]

    def rope(self, latents: Tensor, frames: int) -> RopeAxes:
        """Rotations of a video of ``frames`` latent frames, on the latents' device, computed once per run."""
        key = (frames, *latents.shape[3:])
        if key not in self.axes:
            self.axes[key] = self.transformer.rope(latents, 0, frames)
        return self.axes[key]
