"""The Wan transformer as the engine's denoiser: branches, prompts per chunk, guidance, K/V through the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...denoiser import ChunkInput, ChunkOutput, KVSpec
from ...errors import require, require_count, require_finite, require_finite_values
from ...kv.cache import KVCache
from ...plan.base import Chunk
from .transformer import Memory, PreparedText, WanTransformer


@dataclass
class WanDenoiser:
    """One run of a :class:`WanTransformer`.

    prompts: start chunk -> text embeddings ``[B, T, text_dim]``, one per branch (cond, or cond and uncond); a chunk
    takes the entry with the largest start chunk not above its own index. guidance: v = uncond + guidance * (cond -
    uncond); at 1 or below the uncond branch is not run. fps: for models with a frame-rate embedding.
    """

    transformer: WanTransformer
    prompts: Mapping[int, Sequence[Tensor]]
    guidance: float = 1.0
    fps: int | None = None
    texts: dict[tuple[int, range, int], PreparedText] = field(default_factory=dict, init=False, repr=False)

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
            branches=self.branches,
            batch=latents.shape[0],
            dtype=self.transformer.dtype,
            device=latents.device,
        )

    def compute(self, item: ChunkInput, branches: range, cache: KVCache, *, keep_residual: bool = False) -> ChunkOutput:
        x, timesteps = self.batched(item.latents, branches), self.times(item, branches)
        result = self.transformer.forward_chunk(
            x,
            timesteps,
            self.text(item.prompt_chunk, branches, item.latents.shape[0]),
            first_frame=item.chunk.first_frame,
            memory=self.memory(item.chunk, branches, cache),
            fps=self.fps,
            return_residual=keep_residual,
        )
        velocity, residual = result if isinstance(result, tuple) else (result, None)
        return ChunkOutput(self.split(velocity, branches), residual)

    def from_residual(self, item: ChunkInput, branches: range, residual: Tensor) -> Tensor:
        x, timesteps = self.batched(item.latents, branches), self.times(item, branches)
        return self.split(self.transformer.from_residual(x, timesteps, residual, self.fps), branches)

    def window(
        self, latents: Tensor, timesteps: Sequence[float], items: Sequence[ChunkInput], branches: range
    ) -> Tensor:
        accepted = "one prompt, of chunk 0, with bidirectional attention: it holds for the whole window"
        require(len(self.prompts) == 1, "prompts", f"prompts from chunks {sorted(self.prompts)}", accepted)
        x = self.batched(latents, branches)
        times = torch.tensor(timesteps, device=x.device).expand(x.shape[0], -1)
        return self.split(self.transformer(x, times, self.text(0, branches, latents.shape[0]), fps=self.fps), branches)

    def guide(self, velocity: Tensor, item: ChunkInput) -> Tensor:
        if velocity.shape[0] == 1:
            return velocity[0]
        cond, uncond = velocity
        return uncond + self.guidance * (cond - uncond)

    def patch_embedding(self, item: ChunkInput) -> Tensor:
        return self.transformer.patch_tokens(item.latents)

    def time_modulation(self, timestep: float) -> Tensor:
        weight = self.transformer.patch_embedding.weight
        return self.transformer.time_modulation(torch.tensor([timestep], device=weight.device), self.fps)

    # -- branches run as one batch, branch-major ---------------------------------------------------------------------

    @staticmethod
    def batched(latents: Tensor, branches: range) -> Tensor:
        return latents if len(branches) == 1 else latents.repeat(len(branches), 1, 1, 1, 1)

    @staticmethod
    def split(velocity: Tensor, branches: range) -> Tensor:
        return velocity.unflatten(0, (len(branches), -1))

    @staticmethod
    def times(item: ChunkInput, branches: range) -> Tensor:
        return torch.full((len(branches) * item.latents.shape[0],), item.timestep, device=item.latents.device)

    def text(self, chunk: int, branches: range, batch: int) -> PreparedText:
        """The chunk's prompt for these branches, every layer's cross-attention K/V computed once per run."""
        start = max(first for first in self.prompts if first <= chunk)
        key = (start, branches, batch)
        if key not in self.texts:
            contexts = [self.prompts[start][branch].expand(batch, -1, -1) for branch in branches]
            self.texts[key] = self.transformer.prepare_text(torch.cat(contexts))
        return self.texts[key]

    @staticmethod
    def memory(chunk: Chunk, branches: range, cache: KVCache) -> Memory:
        def keep(layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            cache.write(layer, branches, chunk, k, v)
            cache.observe(layer, branches, chunk, q)
            return cache.context(layer, branches, chunk)

        return keep
