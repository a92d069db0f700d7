"""Tiny models with random weights whose heads two ranks can share, and runs of them that go through everything ranks
must agree on. One list, for the processes that are ranks and for the tests that read what they found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowcache_core.engine import EngineSettings
from flowcache_core.kv import COMPRESSORS
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.storage import STORAGES
from flowcache_core.models.magi.config import MagiConfig
from flowcache_core.models.magi.denoiser import MagiDenoiser
from flowcache_core.models.magi.guidance import GuidanceScales
from flowcache_core.models.magi.transformer import MagiTransformer
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.plan import blockwise, staggered, window
from flowcache_core.reuse import QUANTITIES
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.motion import Motion
from flowcache_core.reuse.quantity import Residual
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.reuse.teacache import TeaCache
from flowcache_core.schedule import magi, shifted
from flowcache_core.solvers.renoise import ReNoise
from flowcache_core.solvers.unipc import UniPC
from flowcache_core.sparse.settings import SparseSettings
from flowcache_core.sparse.xattention import XAttention

SIDE, CHUNK, CHUNKS, STEPS = 12, 2, 4, 4  # 6 x 6 tokens in a latent frame


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(model: nn.Module, seed: int = 3) -> Any:
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=draw)
    return model.eval().requires_grad_(False)


def wan(guidance: float = 3.0, weights: int = 3) -> WanDenoiser:
    model = WanTransformer(WanConfig(dim=32, ffn_dim=48, num_layers=2, num_heads=4, text_dim=20, freq_dim=32))
    prompts = {at: [drawn(1, 5, 20, seed=10 * at + b) for b in range(2)] for at in (0, 2)}
    return WanDenoiser(filled(model, weights), prompts, guidance)


def whole_window(guidance: float = 3.0) -> WanDenoiser:
    made = wan(guidance)
    return WanDenoiser(made.transformer, {0: made.prompts[0]}, guidance)


def magi_denoiser(scales: GuidanceScales | None = None) -> MagiDenoiser:
    model = filled(MagiTransformer(MagiConfig(48, 40, 2, 6, 2, 8, 12, text_dim=20, text_len=60, freq_dim=16, bands=1)))
    return MagiDenoiser(model, {0: (drawn(1, 9, 20), torch.ones(1, 9))}, scales or GuidanceScales())


def settings(plan: str = "blockwise", **changes: Any) -> EngineSettings:
    make: Any = {"blockwise": blockwise, "staggered": staggered, "window": window}[plan]
    own = {"staggered": {"ar_step": 2}, "window": {"window_chunks": 2}}.get(plan, {})
    made = make(CHUNK * CHUNKS, CHUNK, STEPS, **own)
    return EngineSettings(**({"plan": made, "schedule": shifted(STEPS, 5.0)} | changes))


def magi_settings(prefix: int = 0, chunks: int = CHUNKS, **changes: Any) -> EngineSettings:
    values: dict[str, Any] = {"clean_pass": True, "clean_timestep": 0.9999, "schedule": magi(8)}
    return EngineSettings(**(values | {"plan": window(CHUNK * chunks, CHUNK, 8, 2, prefix)} | changes))


@dataclass(frozen=True)
class Case:
    denoiser: Any
    settings: EngineSettings


def cases() -> dict[str, Case]:
    """By name; made anew at every call."""
    tokens = Motion(warmup_steps=1, threshold=0.3, uniform_updates=0, uniform_steps=0, share=0.5)
    reusing = StaticSchedule(warmup_steps=1, computed=(0, 2, 3))
    found = {
        "wan blockwise clean": Case(wan(), settings(clean_pass=True)),
        "wan staggered unipc list": Case(wan(), settings("staggered", solver=UniPC(), policy=reusing)),
        "wan window chunkwise": Case(wan(), settings("window", policy=Chunkwise(warmup_steps=1, threshold=0.5))),
        "wan tokens": Case(wan(), settings(plan="blockwise", policy=tokens)),
        "magi tokens": Case(magi_denoiser(), magi_settings(policy=tokens)),
        "wan teacache": Case(wan(), settings("staggered", policy=TeaCache(warmup_steps=1, threshold=0.5))),
        "wan renoise": Case(wan(), settings(solver=ReNoise())),
        "wan bf16 storage": Case(wan(), settings(kv=KVSettings(dtype=torch.bfloat16))),
        "wan fp8 storage": Case(wan(), settings(kv=KVSettings(dtype=torch.float8_e4m3fn))),
        "wan bidirectional": Case(whole_window(), settings("staggered", attention="bidirectional")),
        "wan sparse": Case(wan(), settings(sparse=SparseSettings(method=XAttention(block=16), dense_chunks=1))),
        "wan sparse per head": Case(
            wan(), settings(sparse=SparseSettings(XAttention(16, ((0.3, 0.5, 0.7, 0.9), (1.0, 0.8, 0.6, 0.4))), 1))
        ),
        "magi sparse": Case(
            magi_denoiser(), magi_settings(sparse=SparseSettings(method=XAttention(block=16), dense_chunks=1))
        ),
        "magi": Case(magi_denoiser(), magi_settings()),
        "magi list": Case(magi_denoiser(), magi_settings(policy=StaticSchedule(warmup_steps=1, computed=(0, 3, 5, 7)))),
        "magi chunkwise residual": Case(
            magi_denoiser(), magi_settings(policy=Chunkwise(warmup_steps=1, threshold=0.5), quantity=Residual())
        ),
        "magi prefix": Case(magi_denoiser(), magi_settings(prefix=CHUNK)),
        "magi fp8 storage": Case(magi_denoiser(), magi_settings(kv=KVSettings(budget=1, dtype=torch.float8_e4m3fn))),
    }
    for name, kind in COMPRESSORS.items():
        budget = max(1.5, kind().min_budget)
        kept = KVSettings(budget=budget, compressor=kind())
        found[f"wan {name}"] = Case(wan(), settings(kv=kept))
        found[f"magi {name}"] = Case(magi_denoiser(), magi_settings(chunks=5, kv=kept))
    for name, storage in STORAGES.items():
        kept = KVSettings(budget=1.5, storage=storage())
        found[f"wan {name} storage"] = Case(wan(), settings(kv=kept))
        found[f"magi {name} storage"] = Case(magi_denoiser(), magi_settings(chunks=5, kv=kept))
    for name, quantity in QUANTITIES.items():
        plan = "staggered" if name != Residual.name else "blockwise"
        found[f"wan {name}"] = Case(wan(), settings(plan, policy=reusing, quantity=quantity()))
    return found
