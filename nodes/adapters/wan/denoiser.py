"""The host's model as the core's denoiser: one chunk at one noise level through the guider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....flowcache_core.denoiser import ChunkInput, ChunkOutput
from ....flowcache_core.errors import SettingError
from ....flowcache_core.kv.cache import KVCache
from ....flowcache_core.kv.spec import KVSpec
from ....flowcache_core.plan.base import Chunk
from .attention import ChunkAttention
from .branches import Branches
from .embeddings import patch_embedding, time_modulation
from .residual import Residuals
from .rope import chunk_positions


@dataclass(frozen=True)
class Inpaint:
    """What the host's inpainting needs of a window: mask, known latents and their noise ``[B, C, F, H, W]``."""

    mask: Tensor
    latent_image: Tensor
    noise: Tensor
    sigmas: Tensor

    def of(self, frames: slice) -> Inpaint:
        """The part of a window."""
        parts = (tensor[:, :, frames] for tensor in (self.mask, self.latent_image, self.noise))
        return Inpaint(*parts, self.sigmas)


@dataclass
class HostDenoiser:
    """One run of a window. The guider runs all that other nodes have put on the model: CFG, LoRA, attention, wrappers.

    K/V is kept per branch, while the velocity handed out is guided already: one entry ``[1, B, ...]``.

    clean: the newest clean prediction of the window ``[B, C, F, H, W]``, written as chunks are computed.
    first_chunk: of the video that is this window's chunk 0, where prompts change by chunk.
    prefix_frames: of the window, which are clean from the start.
    leftover: whether the schedule ends above 0, so that a finished chunk's K/V comes from its clean prediction.
    """

    guider: Any
    model_options: Mapping[str, Any]
    seed: int | None
    all_branches: Branches
    clean: Tensor
    first_chunk: int = 0
    prefix_frames: int = 0
    leftover: bool = False
    inpaint: Inpaint | None = None
    written: dict[int, set[int]] = field(default_factory=dict)

    @property
    def model(self) -> Any:
        return self.guider.inner_model

    @property
    def transformer(self) -> Any:
        return self.model.diffusion_model

    @property
    def branches(self) -> int:
        return self.all_branches.count

    def kv_spec(self, latents: Tensor) -> KVSpec:
        return kv_spec(self.model, latents.shape, self.branches, latents.device)

    def compute(self, item: ChunkInput, branches: range, cache: KVCache, *, keep_residual: bool = False) -> ChunkOutput:
        x, only_kv = item.latents, item.sigma == 0
        sigma = item.timestep / 1000 if only_kv else item.sigma
        if only_kv and self.leftover and item.chunk.index in self.written:
            x = self.frames(item.chunk)
        if item.prompt_from is not None:
            self.written.pop(item.chunk.index, None)  # written anew
        conds = self.conds(item)
        options = self.model_options["transformer_options"]
        attention = ChunkAttention(
            cache=cache,
            chunk=item.chunk,
            tokens=item.chunk.frames * cache.spec.tokens_per_frame,
            table=self.all_branches.table(conds, sigma),
            previous=options.get("optimized_attention_override"),
        )
        extra: dict[str, Any] = {"optimized_attention_override": attention}
        residuals = Residuals(len(self.transformer.blocks))
        if keep_residual:
            extra["patches_replace"] = residuals.capturing(options)
        clean = self.predict(x, sigma, item.chunk, conds, extra)
        self.complete(attention, cache, only_kv or item.step == cache.plan.steps - 1)
        if only_kv:
            return ChunkOutput(torch.zeros_like(x).unsqueeze(0))
        self.frames(item.chunk).copy_(clean)
        return ChunkOutput(velocity(x, clean, item.sigma), residuals.take() if keep_residual else None)

    def from_residual(self, item: ChunkInput, branches: range, residual: Tensor) -> Tensor:
        conds = self.conds(item)
        replaced = Residuals(len(self.transformer.blocks)).replacing(residual)
        clean = self.predict(item.latents, item.sigma, item.chunk, conds, {"patches_replace": replaced})
        self.frames(item.chunk).copy_(clean)
        return velocity(item.latents, clean, item.sigma)

    def window(self, latents: Tensor, timesteps: Sequence[float], branches: range) -> Tensor:
        """At noise level 1 the host's clean prediction is ``x - v``; the model itself is told a timestep per frame."""

        def per_frame(executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return executor(x, torch.tensor(timesteps, device=timestep.device).expand(x.shape[0], -1), *args, **kwargs)

        options = self.model_options["transformer_options"]
        wrappers = {**options.get("wrappers", {})}
        wrappers[WrappersMP.DIFFUSION_MODEL] = {
            **wrappers.get(WrappersMP.DIFFUSION_MODEL, {}),
            "flowcache": [per_frame],
        }
        whole = Chunk(0, 0, latents.shape[2])
        clean = self.predict(latents, 1.0, whole, self.all_branches.for_chunk(self.first_chunk), {"wrappers": wrappers})
        flow = velocity(latents, clean, 1.0)
        sigmas = torch.tensor(timesteps, device=latents.device).view(1, 1, -1, 1, 1) / 1000
        self.clean[:, :, self.prefix_frames :] = (latents - sigmas * flow[0])[:, :, self.prefix_frames :]
        return flow

    def guide(self, velocity: Tensor, item: ChunkInput) -> Tensor:
        return velocity[0]

    def patch_embedding(self, item: ChunkInput) -> Tensor:
        return patch_embedding(self.transformer, item.latents)

    def time_modulation(self, timestep: float) -> Tensor:
        return time_modulation(self.model, timestep, self.clean.device)

    # -- one guider call -----------------------------------------------------------------------------------------------

    def conds(self, item: ChunkInput) -> dict[str, Any]:
        return self.all_branches.for_chunk(self.first_chunk + item.prompt_chunk)

    def frames(self, chunk: Chunk) -> Tensor:
        return self.clean[:, :, chunk.first_frame : chunk.end_frame]

    def predict(self, x: Tensor, sigma: float, chunk: Chunk, conds: dict[str, Any], extra: Mapping[str, Any]) -> Tensor:
        """The guided clean prediction of a chunk ``[B, C, f, H, W]``; ``extra`` goes into the transformer options."""
        options = self.model_options["transformer_options"]
        options = {**options, **extra, "rope_options": chunk_positions(options, chunk.first_frame)}
        arguments = {"model_options": {**self.model_options, "transformer_options": options}, "seed": self.seed}
        level = x.new_full((x.shape[0],), sigma)
        everything, self.guider.conds = self.guider.conds, conds
        try:
            if self.inpaint is None:
                return self.guider(x, level, **arguments)
            known = comfy.samplers.KSamplerX0Inpaint(self.guider, self.inpaint.sigmas)
            mask, known.latent_image, known.noise = (
                tensor[:, :, chunk.first_frame : chunk.end_frame]
                for tensor in (self.inpaint.mask, self.inpaint.latent_image, self.inpaint.noise)
            )
            return known(x, level, mask, **arguments)
        finally:
            self.guider.conds = everything

    def complete(self, attention: ChunkAttention, cache: KVCache, final: bool) -> None:
        """Give branches without K/V of this chunk that of one that has: a later chunk may need it. In a chunk's final
        pass also those that were not evaluated now, whose K/V is of an earlier, noisier step.
        """
        chunk = attention.chunk
        now = {branch for _, branch in attention.written}
        if not now:
            accepted = "conditioning that holds at this noise level (see Conditioning Set Timestep Range)"
            raise SettingError("conditioning", f"none for chunk {chunk.index}", accepted)
        known = self.written.setdefault(chunk.index, set())
        known |= now
        for branch in set(range(self.branches)) - (now if final else known):
            source = self.all_branches.nearest(branch, now)
            for layer in range(cache.spec.layers):
                stored = cache.context(layer, range(source, source + 1), chunk)
                own = (tensor[..., -attention.tokens :, :].clone() for tensor in stored)
                cache.write(layer, range(branch, branch + 1), chunk, *own)
            known.add(branch)


def velocity(x: Tensor, clean: Tensor, sigma: float) -> Tensor:
    """``[1, B, C, f, H, W]`` from noisy latents and their clean prediction."""
    return ((x - clean) / sigma).unsqueeze(0)


def kv_spec(model: Any, latent_shape: Sequence[int], branches: int, device: Any) -> KVSpec:
    """K/V of a host model for latents ``[B, C, F, H, W]``, in the dtype it computes in, not that of its weights."""
    transformer = model.diffusion_model
    _, height, width = transformer.patch_size
    return KVSpec(
        layers=len(transformer.blocks),
        kv_heads=transformer.num_heads,
        head_dim=transformer.dim // transformer.num_heads,
        tokens_per_frame=-(-latent_shape[3] // height) * -(-latent_shape[4] // width),
        branches=branches,
        batch=latent_shape[0],
        dtype=model.get_dtype_inference(),
        device=device,
    )
