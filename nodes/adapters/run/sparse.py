"""Sparse attention on a MODEL: what it goes with, and what it may gain, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import comfy.model_management
import torch

from ....flowcache_core.cost import MagiShape, WanShape
from ....flowcache_core.cost.sparse_gain import CARDS, Card, card_of, expectation
from ....flowcache_core.engine import EngineSettings
from ....flowcache_core.errors import require
from ....flowcache_core.kv.layout import largest_chunk_frames
from ....flowcache_core.kv.spec import KVSpec
from ....flowcache_core.models.magi.transformer import MagiTransformer
from ....flowcache_core.sparse.expected import USUAL, USUAL_P, inner_density, unknown_density
from ....flowcache_core.sparse.settings import SparseSettings
from ..naming import naming
from .foreign import name_of

NAME = "FlowCache Sparse Attention"
OVERRIDE = "optimized_attention_override"
SPARSE = ("sparse", "radial", "nabla", "jenga", "sparge", "vsa", "blockmask", "block_mask")
"""In the names of what other packs put in the attention's place when they leave out keys."""


def refuse_other_sparse(model_options: Mapping[str, Any]) -> None:
    """SettingError when another node's sparse attention is on the model: two masks would leave out different keys."""
    function = model_options.get("transformer_options", {}).get(OVERRIDE)
    if function is not None:
        name = name_of(function)
        other = any(word in name.lower() for word in SPARSE)
        require(not other, "model", f"the sparse attention {name} of another node", "one of the two: remove one node")


def with_attention(engine: EngineSettings, sparse: SparseSettings | None) -> EngineSettings:
    """``engine`` with sparse attention. SettingError in the node's name where the two exclude each other."""
    if sparse is None:
        return engine
    with naming(NAME):
        return replace(engine, sparse=sparse)


def check_sparse(engines: Iterable[EngineSettings], spec: KVSpec, model_options: Mapping[str, Any]) -> None:
    """SettingError in the node's name for settings that do not suit the model or the video; before the model is loaded.

    ``engines`` of all windows.
    """
    for engine in engines:
        if engine.sparse is not None:
            with naming(NAME):
                refuse_other_sparse(model_options)
                tokens = [chunk.frames * spec.tokens_per_frame for chunk in engine.plan.chunks]
                engine.sparse.check(tokens, spec.layers, spec.heads)
                kv = engine.kv.settled(spec, engine.plan)
                engine.sparse.settled(engine.plan, spec.tokens_per_frame, kv, engine.recache)


def shape_of(transformer: Any, text_tokens: int | None = None) -> WanShape | MagiShape | None:
    """What its FLOPs are counted with; None for a model we do not know.

    text_tokens: of the prompt; None before there is one: then the most that the model takes, or was published with.
    """
    if isinstance(transformer, MagiTransformer):
        magi = MagiShape.of(transformer.config)
        longest = transformer.config.text_len
        return magi if text_tokens is None else replace(magi, text_tokens=min(text_tokens, longest))
    dim, ffn, blocks, most = (getattr(transformer, name, None) for name in ("dim", "ffn_dim", "blocks", "text_len"))
    if not isinstance(dim, int) or not isinstance(ffn, int) or blocks is None:
        return None
    shape = WanShape(dim, ffn, len(blocks), text_dim=getattr(transformer, "text_dim", WanShape.text_dim))
    known = text_tokens if text_tokens is not None else most
    return replace(shape, text_tokens=known) if isinstance(known, int) else shape


def sage() -> bool:
    """Whether the host computes dense attention with SageAttention."""
    return bool(comfy.model_management.sage_attention_enabled())


def card() -> Card:
    device = comfy.model_management.get_torch_device()
    return card_of(torch.cuda.get_device_name(device) if device.type == "cuda" else "", sage())


def stride_of(settings: SparseSettings) -> int:
    return max(1, round(0.5 / settings.method.prediction)) if settings.method.prediction else 1_000_000


def bypassed(model_options: Mapping[str, Any]) -> str | None:
    """A sentence about another node's attention, which sparse calls do not go through; None without one."""
    function = model_options.get("transformer_options", {}).get(OVERRIDE)
    if function is None:
        return None
    return f"sparse attention: {name_of(function)} of another node computes only what stays dense"


def before_run(
    settings: SparseSettings,
    transformer: Any,
    engine: EngineSettings,
    tokens_per_frame: int,
    model_options: Mapping[str, Any],
    text_tokens: int | None = None,
) -> tuple[str, ...]:
    """What is said before the first step. text_tokens: of the longest prompt."""
    gain = expected(settings, transformer, engine, tokens_per_frame, text_tokens)
    found = (gain, gain and guessed(settings), bypassed(model_options))
    return tuple(note for note in found if note is not None)


def expected(
    settings: SparseSettings, transformer: Any, engine: EngineSettings, tokens_per_frame: int, text_tokens: int | None
) -> str | None:
    """What this run may gain, in one sentence; None for a model or a device of which nothing is known."""
    shape = shape_of(transformer, text_tokens)
    if shape is None:
        return None
    tokens = largest_chunk_frames(engine.plan) * tokens_per_frame
    context = engine.longest_context * tokens_per_frame
    density = inner_density(settings, engine.plan, engine.kv, engine.recache)
    return f"sparse attention: {expectation(card(), shape, tokens, context, density, stride_of(settings))}"


def guessed(settings: SparseSettings) -> str | None:
    """Where a density was told that these settings do not say."""
    if not unknown_density(settings):
        return None
    return f"sparse attention: density {USUAL:g} was measured at p {USUAL_P:g}; a higher p keeps more"


def share_of(settings: SparseSettings) -> str:
    """What the density is a share of, before anything is known of the run."""
    density = inner_density(settings)
    if unknown_density(settings):
        return f"density about {density:.2g} where it is sparse (measured at p {USUAL_P:g}, a higher p keeps more)"
    if density == 1:
        return "density 1, nothing is left out"
    return f"density {density:.2g} of the whole run, what stays dense included: lower where it is sparse"


def described(settings: SparseSettings, transformer: Any) -> str:
    """For the node: by class of card, what a step with a context of 7 chunks gains at common sizes."""
    shape = shape_of(transformer)
    stays = f"contexts of up to {settings.dense_chunks} chunks stay dense"
    if shape is None:
        return f"{settings.method.name}; {stays}"
    sizes, frames = {"832x480": (832, 480), "1280x720": (1280, 720)}, 3
    density, stride = inner_density(settings), stride_of(settings)
    text = f"a prompt of {shape.text_tokens} tokens"
    lines = [
        f"{settings.method.name}, {share_of(settings)}; {stays}. Computed at density {density:.2g} for {text}, not "
        "measured:"
    ]
    for one in CARDS:
        gains = []
        for label, (width, height) in sizes.items():
            tokens = frames * (width // 16) * (height // 16)
            gains.append(f"{label} {one.gain(shape, tokens, 7 * tokens, density, stride):.2f}x")
        lines.append(
            f"{one.name}: a step with 7 chunks of context {', '.join(gains)}; pays below {one.break_even(stride):.2f}"
        )
    lines.append("No gain with a K/V budget of 1 or 2 chunks, little at 480P with few steps.")
    return "\n".join(lines)
