"""The MAGI-1 transformer as the engine's denoiser: guidance branches, captions per chunk, K/V through the cache.

The engine's velocity is noise minus clean and its timestep is the model's time t (:func:`..schedule.magi`), so only the
model's velocity changes its sign.

Which forwards share K/V is the original's: with guidance, the forwards with and without text each keep their own for
the chunks in the window, and see the same for clean ones, which the forward without text encodes, with the null
caption; the forward of a chunk alone keeps none. Only in the tick after a chunk has finished the forward with text sees
K/V of that chunk that it encoded itself, under its own adaLN row. Departure: not where a compressor looks at the K/V,
since it keeps other tokens in every branch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from ...background import sent
from ...denoiser import ChunkInput, ChunkOutput, KVSpec
from ...errors import SettingError, require, require_count, require_finite, require_finite_values
from ...kv.cache import KVCache
from ...plan.base import Chunk
from ...rows import Rows
from ..common.cached_attention import CachedAttention, LayerAttention, attending_alone
from ..common.token_share import TokenShare
from .guidance import (
    GuidanceScales,
    guide,
    is_nearly_clean,
    mix_nearly_clean,
    needs_alone,
    visible_chunks,
    visible_to_clean,
)
from .layers import AttentionKernel, apply_rope, attend_grouped
from .text import null_caption
from .transformer import CaptionRows, MagiTransformer

Caption = tuple[Tensor, Tensor]
TEXT, PREVIOUS, ALONE = range(3)
NULL = -1  # key of the caption that is no chunk's


@dataclass
class MagiDenoiser:
    """One run of a :class:`MagiTransformer` over a plan that the K/V cache knows.

    captions: start chunk -> caption ``[B or 1, n, text_dim]`` and mask ``[B or 1, n]``; a chunk takes the entry with
    the largest start chunk not above its own index. guidance: scales of the base model's three forwards (text and
    earlier chunks; earlier chunks; the chunk alone), None for one forward with the text. step_times: one per step, for
    distilled weights (:func:`..schedule.magi_distill_times`), which take no guidance.
    nearly_clean: distilled weights run the oldest chunk of the window once more, alone, when it is past t = 0.3, and
    mix. ranges, clean_range: how many chunks a chunk may attend to, itself included
    (:func:`.guidance.visible_chunks`, :func:`.guidance.visible_to_clean`). Of a compressed history it is the
    newest tokens that many chunks have. kernel: computes all attention.
    """

    transformer: MagiTransformer
    captions: Mapping[int, Caption]
    guidance: GuidanceScales | None = None
    step_times: tuple[float, ...] = ()
    nearly_clean: bool = True
    ranges: tuple[int, ...] = ()
    clean_range: int | None = None
    kernel: AttentionKernel = F.scaled_dot_product_attention
    rows: dict[tuple[int, int], CaptionRows] = field(default_factory=dict, init=False, repr=False)
    finished: WeakKeyDictionary[KVCache, Chunk] = field(default_factory=WeakKeyDictionary, init=False, repr=False)
    """By run, the chunk of which the forward with text has K/V of its own."""

    def __post_init__(self) -> None:
        require(0 in self.captions, "captions", sorted(self.captions), "start chunks, 0 among them")
        for start in self.captions:
            require_count("caption start chunk", start, minimum=0)
            for states in self.captions[start][:1]:
                require_finite_values(f"caption of chunk {start}", states)
        exclusive = self.guidance is None or not self.step_times
        require(exclusive, "guidance", self.guidance, "None: distilled weights (step_times) take no guidance")

    @property
    def branches(self) -> int:
        return 1 if self.guidance is None else 3

    @property
    def here(self) -> tuple[int, ...]:
        """The branches that this denoiser runs: all of them but where ranks share them."""
        return tuple(range(self.branches))

    @property
    def stored(self) -> range:
        """Of these the branches that keep K/V, in the order in which the cache holds them."""
        return range(1 if self.guidance is None else 2)

    @property
    def share(self) -> TokenShare | None:
        """The part of the tokens that goes through the blocks here, None for all."""
        return None

    def joined(self, velocity: Tensor) -> Tensor:
        """Velocities of all branches, from those run here."""
        return velocity

    def kv_spec(self, latents: Tensor) -> KVSpec:
        config = self.transformer.config
        return KVSpec(
            layers=config.num_layers,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            tokens_per_frame=self.transformer.tokens_per_frame(latents),
            branches=len(self.stored),
            batch=latents.shape[0],
            dtype=self.transformer.dtype,
            device=latents.device,
            query_heads=config.num_heads,
            move=self.move,
        )

    def move(self, keys: Tensor, frames: int) -> Tensor:
        """Rotated keys as if they stood so many latent frames later; the first third of the angles is time."""
        bands = self.transformer.rope.bands.to(keys.device, torch.float32)
        angles = torch.cat((frames * bands, bands.new_zeros(2 * bands.numel())))
        return apply_rope(keys.float(), (angles.cos(), angles.sin())).to(keys.dtype)

    def compute(
        self, item: ChunkInput, cache: KVCache, *, keep_residual: bool = False, rows: Rows | None = None
    ) -> ChunkOutput:
        """The forward of a chunk alone keeps no K/V over which some rows could be computed. So a step in part leaves
        it out, and where distilled weights need it the step is a whole one.
        """
        self.share_finished(cache, cache.plan.first_tick[item.chunk.index] + item.step)
        rows = None if rows is None or self.mixes(item, cache) else rows.shared
        repeated = frozenset({ALONE} if rows is not None and self.guidance is not None else ())
        parts = [
            self.nothing(item, cache) if branch in repeated else self.forward(item, branch, cache, keep_residual, rows)
            for branch in self.here
        ]
        velocity = self.joined(torch.stack([one for one, _ in parts]))
        residual = torch.cat([residual for _, residual in parts]) if keep_residual else None
        ran = self.branches - len(repeated) if repeated else None
        return ChunkOutput(velocity, residual, rows, repeated, ran)

    def from_residual(self, item: ChunkInput, residual: Tensor) -> Tensor:
        x = item.latents.repeat(len(self.here), 1, 1, 1, 1)
        return self.joined(-self.transformer.from_residual(x, residual).unflatten(0, (len(self.here), -1)))

    def joint(self, items: Sequence[ChunkInput], cache: KVCache) -> Sequence[ChunkOutput]:
        raise SettingError("attention", "joint", "block-causal: MAGI-1 knows no other")

    def window(self, latents: Tensor, timesteps: Sequence[float], items: Sequence[ChunkInput]) -> Tensor:
        raise SettingError("attention", "bidirectional", "block-causal: MAGI-1 knows no other")

    def guide(self, velocity: Tensor, item: ChunkInput) -> Tensor:
        if self.guidance is None:
            return velocity[0]
        scales = self.guidance.at(item.timestep)
        return guide(velocity[ALONE], velocity[PREVIOUS], velocity[TEXT], scales)

    def patch_embedding(self, item: ChunkInput) -> Tensor:
        return self.transformer.patch_tokens(item.latents)

    def time_modulation(self, timestep: float) -> Tensor:
        device = self.transformer.rope.bands.device
        # The step size is left at the first step's: only 12 distilled steps have two.
        step_time = self.step_times[0] if self.step_times else None
        return self.transformer.condition(torch.full((1,), timestep, device=device), step_time=step_time)

    # -- forwards ----------------------------------------------------------------------------------------------------

    def forward(
        self, item: ChunkInput, branch: int, cache: KVCache, keep_residual: bool, rows: Rows | None = None
    ) -> tuple[Tensor, Tensor]:
        """Velocity ``[B, ...]`` and block-stack residual of one branch at one step."""
        dropped = branch != TEXT
        text = NULL if dropped else item.prompt_chunk
        if branch != ALONE:
            attention = self.attention(item, range(branch, branch + 1), cache, rows=rows)
            result = self.run(item, text, attention, item.chunk.first_frame, dropped, keep_residual, rows)
            if self.mixes(item, cache):
                # The original puts the copy behind the window, which is where its rotary positions are.
                behind = cache.plan.chunks[cache.layouts[0].active[-1]].end_frame
                alone = self.run(item, text, attending_alone(self.attend), behind, dropped, keep_residual)
                # A residual of the mix gives the mixed velocity but for the final norm between the two.
                result = mix_nearly_clean(result[0], alone[0]), mix_nearly_clean(result[1], alone[1])
            return result
        assert self.guidance is not None
        if not needs_alone(self.guidance.at(item.timestep)):
            return self.nothing(item, cache)  # its weight is 0; a forecast may look at it all the same
        return self.run(item, text, attending_alone(self.attend), 0, dropped, keep_residual)

    def mixes(self, item: ChunkInput, cache: KVCache) -> bool:
        """Whether this step has the second forward of distilled weights, in which the chunk sees only itself."""
        oldest = item.chunk.index == cache.layouts[0].active[0]
        return self.nearly_clean and bool(self.step_times) and oldest and is_nearly_clean(item.timestep)

    def nothing(self, item: ChunkInput, cache: KVCache) -> tuple[Tensor, Tensor]:
        """In place of a forward that is not run."""
        zeros = torch.zeros_like(item.latents, dtype=torch.float32)
        tokens = item.chunk.frames * cache.spec.tokens_per_frame
        return zeros, zeros.new_zeros(zeros.shape[0], tokens, self.transformer.config.dim)

    def run(
        self,
        item: ChunkInput,
        text: int,
        attention: LayerAttention,
        first_frame: int,
        dropped: bool,
        keep_residual: bool,
        rows: Rows | None = None,
    ) -> tuple[Tensor, Tensor]:
        require_finite("timestep", item.timestep, minimum=0.0, maximum=1.0)
        batch, device = item.latents.shape[0], item.latents.device
        # A pass that is no step: distilled weights are told the size of the first step's stage.
        step = item.step if item.kind == "step" else 0
        result = self.transformer.forward_chunk(
            item.latents,
            torch.full((batch,), item.timestep, device=device),
            self.caption(text, batch, device),
            first_frame=first_frame,
            attention=attention,
            dropped=dropped,
            step_time=self.step_times[step] if self.step_times else None,
            return_residual=keep_residual,
            kernel=self.kernel,
            rows=rows,
            share=self.share,
        )
        velocity, residual = result if isinstance(result, tuple) else (result, result.new_zeros(()))
        return -velocity, residual

    def encode(self, item: ChunkInput, cache: KVCache) -> None:
        """Write the K/V of a chunk that is clean, with the null caption."""
        chunk, given, guided = item.chunk, item.kind == "prefix", self.guidance is not None
        self.share_finished(cache)
        own = guided and not given and cache.keeps_alike
        if own:
            attention = self.attention(item, range(TEXT, TEXT + 1), cache, observe=False)
            self.run(item, NULL, attention, chunk.first_frame, False, False)
            self.finished[cache] = chunk
        branches = range(PREVIOUS if own else TEXT, 2 if guided else 1)
        attention = self.attention(item, branches, cache, observe=given)
        self.run(item, NULL, attention, chunk.first_frame, guided, False)

    def share_finished(self, cache: KVCache, tick: int | None = None) -> None:
        """From the second tick after a chunk has finished all forwards see the K/V that is kept of it."""
        chunk = self.finished.get(cache)
        if chunk is not None and (tick is None or tick > cache.plan.last_tick[chunk.index] + 1):
            cache.share(chunk, PREVIOUS, TEXT)
            del self.finished[cache]

    # -- what a forward sees -----------------------------------------------------------------------------------------

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return attend_grouped(q, k, v, self.kernel, bias)

    def attention(
        self, item: ChunkInput, branches: range, cache: KVCache, observe: bool = True, rows: Rows | None = None
    ) -> CachedAttention:
        """Write K/V for all ``branches``, observe queries, and attend to what the last branch holds."""
        last = branches.stop - 1
        return CachedAttention(
            cache,
            item.chunk,
            range(last, branches.stop),
            self.attend,
            newest=self.visible_tokens(item, cache),
            observe=observe,
            copies=range(branches.start, last),
            rows=rows,
            sparse=item.sparse,
        )

    def visible_tokens(self, item: ChunkInput, cache: KVCache) -> int:
        """Newest tokens that a chunk may attend to, its own included; 0 is all (as a slice from ``-0`` takes them)."""
        chunk, steps = item.chunk.index, cache.plan.steps
        if item.kind != "step":
            seen = visible_to_clean(chunk, self.ranges, self.clean_range, given=item.kind == "prefix")
        else:
            seen = visible_chunks(chunk, item.step, steps, self.ranges)
        if seen.start == 0:
            return 0
        frames = item.chunk.end_frame - cache.plan.chunks[seen.start].first_frame
        return frames * cache.spec.tokens_per_frame

    def caption(self, key: int, batch: int, device: torch.device) -> CaptionRows:
        """Cross-attention states of a chunk's caption, or of the null one, made once per run."""
        if key >= 0:
            key = max(start for start in self.captions if start <= key)
        if (key, batch) not in self.rows:
            caption, mask = self.captions[key] if key >= 0 else self.without_text()
            rows = self.transformer.caption_rows(sent(caption, device), mask, batch)
            self.rows[key, batch] = rows
        return self.rows[key, batch]

    def without_text(self) -> Caption:
        """The null caption, which is every clean chunk's too, given or finished."""
        states, mask = null_caption(self.transformer.y_embedder.null_caption_embedding)
        return states[None], mask[None]
