"""The host's model as the core's denoiser: one chunk at one noise level through the guider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....flowcache_core.denoiser import ChunkInput, ChunkOutput
from ....flowcache_core.errors import SettingError
from ....flowcache_core.kv.cache import KVCache
from ....flowcache_core.kv.spec import KVSpec
from ....flowcache_core.models.common.rope import moved
from ....flowcache_core.plan.base import Chunk
from ....flowcache_core.plan.shots import Shots
from ....flowcache_core.rows import Rows
from ..run.foreign import skipped
from .attention import KEY, ChunkAttention, Forward
from .branches import Branches
from .embeddings import patch_embedding, time_modulation
from .guided import Asked, Guided
from .joint import run_joint
from .parts import Part, parts_of
from .residual import capturing, replacing
from .rope import chunk_positions
from .rows import RowsOnly, takes_rows
from .window import WindowModel


@dataclass
class HostDenoiser:
    """One run of a window. The guider runs all that other nodes have put on the model: CFG, LoRA, attention, wrappers.

    K/V is kept per branch, while the velocity handed out is guided already: one entry ``[1, B, ...]``.

    clean: the newest clean prediction of the window ``[B, C, F, H, W]``, written as chunks are computed.
    forwards: the self-attention of every layer, none with bidirectional attention; elsewhere: of the host's clones.
    first_chunk: of the video that is this window's chunk 0, where prompts change by chunk. shots: where it is cut.
    leftover: whether the schedule ends above 0, so that a finished chunk's K/V comes from its clean prediction.
    written: per chunk, (layer, branch) that have K/V of it.
    """

    guided: Guided
    model: Any
    all_branches: Branches
    clean: Tensor
    forwards: Sequence[Forward] = ()
    elsewhere: Mapping[Any, Sequence[Forward]] = field(default_factory=dict)
    first_chunk: int = 0
    shots: Shots = Shots()
    leftover: bool = False
    written: dict[int, set[tuple[int, int]]] = field(default_factory=dict)

    @property
    def transformer(self) -> Any:
        return self.model.diffusion_model

    @property
    def branches(self) -> int:
        return self.all_branches.count

    def kv_spec(self, latents: Tensor) -> KVSpec:
        return kv_spec(self.model, latents.shape, self.branches, latents.device)

    def compute(
        self, item: ChunkInput, cache: KVCache, *, keep_residual: bool = False, rows: Rows | None = None
    ) -> ChunkOutput:
        rows = None if rows is None else rows.shared  # the guider is asked for all branches at once
        x, final = item.latents, item.step == cache.plan.steps - 1
        if rows is not None and (self.elsewhere or not takes_rows(self.guided.model_options)):
            rows = None
        with ExitStack() as stack:
            residuals = stack.enter_context(capturing(self.transformer)) if keep_residual else []
            clean = self.forward(item, x, item.sigma, cache, final=final and rows is None, rows=rows)
        newest = self.frames(item.chunk)
        newest.copy_(clean if rows is None else torch.where(rows.pixels(clean), clean, newest))
        residual = torch.cat(residuals) if keep_residual else None
        return ChunkOutput(velocity(x, clean, item.sigma), residual, rows)

    def encode(self, item: ChunkInput, cache: KVCache) -> None:
        if item.kind == "recache":
            self.written.pop(item.chunk.index, None)  # written anew
        finished = self.leftover and item.chunk.index in self.written
        x = self.frames(item.chunk) if finished else item.latents
        self.forward(item, x, item.timestep / 1000, cache, final=True)

    def forward(
        self, item: ChunkInput, x: Tensor, sigma: float, cache: KVCache, *, final: bool, rows: Rows | None = None
    ) -> Tensor:
        """The guided clean prediction of ``x`` at ``sigma``; leaves K/V of every branch. final: its last pass. rows:
        only these tokens, whose places alone mean something then.
        """
        conds, asked = self.conds(item), Asked(self.guided.model_options)
        attention = ChunkAttention(
            cache=cache,
            chunk=item.chunk,
            tokens=rows.count if rows is not None else item.chunk.frames * cache.spec.tokens_per_frame,
            table=self.all_branches.table(conds, sigma),
            forwards=self.forwards,
            elsewhere=self.elsewhere,
            asked=asked,
            sparse=item.sparse,
            rows=rows,
            newest=item.seen_frames * cache.spec.tokens_per_frame,
        )
        extra: dict[str, Any] = {KEY: attention}
        if rows is not None:
            extra["patches_replace"] = RowsOnly(rows, len(self.transformer.blocks)).replacements()
        clean = self.predict(x, sigma, item.chunk, conds, extra, asked)
        self.complete(item, attention, cache, final)
        return clean

    def joint(self, items: Sequence[ChunkInput], cache: KVCache) -> Sequence[ChunkOutput]:
        return run_joint(self, items, cache)

    def from_residual(self, item: ChunkInput, residual: Tensor) -> Tensor:
        with replacing(self.transformer, residual):
            clean = self.predict(item.latents, item.sigma, item.chunk, self.conds(item), {}, None)
        self.frames(item.chunk).copy_(clean)
        return velocity(item.latents, clean, item.sigma)

    def window(self, latents: Tensor, timesteps: Sequence[float], items: Sequence[ChunkInput]) -> Tensor:
        """Where all frames are at one level it is the host's own call; elsewhere see :mod:`.window`. Frames of chunks
        that take no step now stay 0.
        """
        conds, parts = self.all_branches.for_chunk(self.first_chunk), parts_of(items)
        flow = torch.zeros_like(latents)
        together = parts == [Part(0, latents.shape[2], items[0].sigma)]
        model = None if together else WindowModel(self.guided.seen(latents, parts), timesteps)
        for part in parts:
            x, asked = latents[:, :, part.frames], Asked(self.guided.model_options)
            inner = None if model is None else model.at(part)
            clean = self.guided.predict(
                x, part.sigma, part.frames, conds, {}, part=part.first_frame, asked=asked, model=inner
            )
            if model is not None:
                wanted = {(part, uuid) for uuid in self.all_branches.table(conds, part.sigma) if uuid in asked.entries}
                if wanted - model.answered or not asked.calls:
                    found = f"the model was not run for frames {part.first_frame} to {part.end_frame - 1}"
                    raise skipped(f"{found} at sigma {part.sigma:.3g}", self.guided.model_options)
            self.clean[:, :, part.frames] = clean
            flow[:, :, part.frames] = (x - clean) / part.sigma
        return flow.unsqueeze(0)

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

    def predict(
        self,
        x: Tensor,
        sigma: float,
        chunk: Chunk,
        conds: dict[str, Any],
        extra: Mapping[str, Any],
        asked: Asked | None,
    ) -> Tensor:
        """The guided clean prediction of a chunk ``[B, C, f, H, W]``; ``extra`` goes into the transformer options."""
        positions = chunk_positions(
            self.guided.model_options["transformer_options"], self.shots.first_frame(chunk, self.first_chunk)
        )
        options = {**extra, "rope_options": positions}
        frames = slice(chunk.first_frame, chunk.end_frame)
        return self.guided.predict(x, sigma, frames, conds, options, part=chunk.first_frame, asked=asked)

    def complete(self, item: ChunkInput, attention: ChunkAttention, cache: KVCache, final: bool) -> None:
        """Give branches without K/V of this chunk that of one that has: a later chunk may need it. In a chunk's final
        pass also those that were not evaluated now, whose K/V is of an earlier, noisier step. SettingError where the
        guider did ask for a branch and something other than the model answered.
        """
        chunk, asked, at = item.chunk, attention.asked, f"chunk {item.chunk.index} at sigma {item.sigma:.3g}"
        wanted = {attention.table[uuid]: blocks for uuid, blocks in asked.entries.items() if uuid in attention.table}
        if not attention.written and (wanted or not asked.calls):
            raise skipped(f"the model was not run for {at}", asked.model_options)
        if not attention.written:
            accepted = "conditioning that holds at this noise level (see Conditioning Set Timestep Range)"
            raise SettingError("conditioning", f"none for chunk {chunk.index}", accepted)
        for branch, replaced in wanted.items():
            layers = {layer for layer in range(cache.spec.layers) if (layer, branch) not in attention.written}
            if layers - replaced:
                what = "the model was" if len(layers) == cache.spec.layers else f"{len(layers)} of its layers were"
                raise skipped(f"{what} not run for {self.all_branches.name(branch)}, {at}", asked.model_options)
        known = self.written.setdefault(chunk.index, set())
        known |= attention.written
        for layer in range(cache.spec.layers):
            now = {branch for at, branch in attention.written if at == layer}
            have = now if final else {branch for at, branch in known if at == layer}
            for branch in set(range(self.branches)) - have if now else ():
                source = self.all_branches.nearest(branch, now)
                own = chunk.frames * cache.spec.tokens_per_frame
                stored = cache.context(layer, range(source, source + 1), chunk, newest=own)
                keys, values = (tensor.clone() for tensor in stored)
                cache.write(layer, range(branch, branch + 1), chunk, keys, values)
                known.add((layer, branch))


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
        move=moved,
    )
