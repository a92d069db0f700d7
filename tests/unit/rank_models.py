"""Tiny models with random weights whose heads two ranks can share, and runs of them that go through everything ranks
must agree on. One list, for the processes that are ranks and for the tests that read what they found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowcache_core.engine import EngineSettings
from flowcache_core.engine.anchor import LowFrequencies
from flowcache_core.kv import COMPRESSORS
from flowcache_core.kv.auto import AutoKV
from flowcache_core.kv.headwise import HeadWise
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.shot_sink import ShotSink
from flowcache_core.kv.sink_window import SinkWindow
from flowcache_core.kv.storage import STORAGES, Int4
from flowcache_core.models.magi.config import MagiConfig
from flowcache_core.models.magi.denoiser import MagiDenoiser
from flowcache_core.models.magi.guidance import GuidanceScales
from flowcache_core.models.magi.transformer import MagiTransformer
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.parallel.shape import MeshShape
from flowcache_core.plan import blockwise, staggered, window
from flowcache_core.plan.shots import Shots
from flowcache_core.presets.auto import Run, choose
from flowcache_core.reuse import QUANTITIES
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.easycache import EasyCache
from flowcache_core.reuse.interval import Interval
from flowcache_core.reuse.motion import Motion
from flowcache_core.reuse.motion_reference import ReferenceMotion
from flowcache_core.reuse.partial_schedule import PartialSchedule
from flowcache_core.reuse.quantity import Residual
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.reuse.teacache import TeaCache
from flowcache_core.schedule import magi, shifted
from flowcache_core.solvers.renoise import ReNoise
from flowcache_core.solvers.unipc import UniPC
from flowcache_core.sparse.calibrated import Calibrated
from flowcache_core.sparse.head_errors import Subject
from flowcache_core.sparse.head_table import HeadTable
from flowcache_core.sparse.mask_reuse import MaskReuse
from flowcache_core.sparse.method import SparseMethod
from flowcache_core.sparse.settings import SparseSettings
from flowcache_core.sparse.top_k import TopK
from flowcache_core.sparse.xattention import XAttention

SIDE, CHUNK, CHUNKS, STEPS = 12, 2, 4, 4  # 6 x 6 tokens in a latent frame


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(model: nn.Module, seed: int = 3) -> Any:
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=draw)
    return model.eval().requires_grad_(False)


def wan(guidance: float = 3.0, weights: int = 3, **more: Any) -> WanDenoiser:
    model = WanTransformer(WanConfig(dim=32, ffn_dim=48, num_layers=2, num_heads=4, text_dim=20, freq_dim=32))
    prompts = {at: [drawn(1, 5, 20, seed=10 * at + b) for b in range(2)] for at in (0, 2)}
    return WanDenoiser(filled(model, weights), prompts, guidance, **more)


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


def magi_settings(prefix: int = 0, chunks: int = CHUNKS, steps: int = 8, **changes: Any) -> EngineSettings:
    values: dict[str, Any] = {"clean_pass": True, "clean_timestep": 0.9999, "schedule": magi(steps)}
    return EngineSettings(**(values | {"plan": window(CHUNK * chunks, CHUNK, steps, 2, prefix)} | changes))


def kept_by_magi(kv: KVSettings) -> EngineSettings:
    """As few steps as compress its history."""
    return magi_settings(chunks=5, steps=4, kv=kv)


def joint(**changes: Any) -> EngineSettings:
    """Two chunks in work, two steps apart, beside the K/V of finished ones."""
    plan, schedule = staggered(CHUNK * 6, CHUNK, STEPS, 2), shifted(STEPS, 5.0)
    return EngineSettings(plan, schedule, attention="joint", **changes)


def chosen(fidelity: float) -> EngineSettings:
    """The preset auto for a model that nobody has measured."""
    schedule = shifted(12, 5.0)
    found = choose(Run(12, schedule, "wan, 32 wide, 2 layers", guidance=3.0, chunks=CHUNKS), fidelity)
    plan = blockwise(CHUNK * CHUNKS, CHUNK, 12)
    return EngineSettings(plan, schedule, policy=found.policy, quantity=found.quantity)


def of_heads(heads: int) -> tuple[tuple[float, ...], ...]:
    """p of two layers, another for every head; the first half of the second layer is dense."""
    first = tuple(0.2 + 0.6 * head / heads for head in range(heads))
    return first, tuple(1.0 if head < heads // 2 else 0.9 - 0.6 * head / heads for head in range(heads))


def calibrated(heads: int) -> Calibrated:
    """As calibrate-heads has it: the errors of every head, shared out for a density when the run begins."""
    subject = Subject("0" * 64, 2, heads, 16, 4, (0.3, 0.6, 1.0))
    error = tuple((0.1 * (head + 1), 0.02 * (head + 1), 0.0) for head in range(2 * heads))
    return Calibrated(density=0.7, table=HeadTable(subject, error, ((0.3, 0.6, 1.0),) * (2 * heads)))


def sparse(method: SparseMethod, dense_chunks: int = 1, **more: Any) -> SparseSettings:
    return SparseSettings(method, dense_chunks, **more)


@dataclass(frozen=True)
class Case:
    """shapes: of meshes that can run it."""

    denoiser: Any
    settings: EngineSettings
    shapes: tuple[str, ...] = ("2x1", "1x2", "2x2", "3x1")


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
        "wan teacache": Case(wan(), settings("staggered", policy=TeaCache(warmup_steps=1, threshold=5.0))),
        "wan renoise": Case(wan(), settings(solver=ReNoise())),
        "wan bf16 storage": Case(wan(), settings(kv=KVSettings(dtype=torch.bfloat16))),
        "wan fp8 storage": Case(wan(), settings(kv=KVSettings(dtype=torch.float8_e4m3fn))),
        "wan bidirectional": Case(whole_window(), settings("staggered", attention="bidirectional")),
        "wan bidirectional list": Case(whole_window(), settings("window", attention="bidirectional", policy=reusing)),
        "wan joint": Case(wan(), joint(clean_pass=True)),
        "wan joint bounded": Case(
            wan(), joint(joint_frames=6, clean_pass=True, policy=Interval(1, interval=2), kv=KVSettings(2.0))
        ),
        "wan reposition": Case(wan(), settings(kv=KVSettings(2.0, SinkWindow(reposition=True)))),
        "wan recache": Case(wan(), settings(recache=frozenset({2}), kv=KVSettings(2.0))),
        "wan shots": Case(wan(shots=Shots((2,), 8)), settings(kv=KVSettings(2.0, ShotSink(sink=0.5, shots=(2,))))),
        "wan anchor": Case(wan(), settings(anchor=LowFrequencies(0.5))),
        "wan auto fast": Case(wan(), chosen(0.0)),
        "wan auto": Case(wan(), chosen(0.5)),
        "wan auto kv": Case(wan(), settings(kv=AutoKV(megabytes=0.25))),
        "magi auto kv": Case(magi_denoiser(), kept_by_magi(AutoKV(megabytes=0.15))),
        "wan budgets of heads": Case(wan(), settings(kv=KVSettings(((2.0, 3.0, 3.0, 2.0), (2.5, 2.0, 2.0, 2.5))))),
        "magi budgets of heads": Case(magi_denoiser(), kept_by_magi(KVSettings(((1.0, 2.0), (2.0, 1.0)), Recent()))),
        "wan partial schedule": Case(wan(), settings(policy=PartialSchedule(1, computed=(0, 3), partial=(2,)))),
        "wan easycache": Case(wan(), settings(policy=EasyCache(warmup_steps=1, threshold=5.0))),
        "wan sparse": Case(wan(), settings(sparse=sparse(XAttention(16)))),
        "wan sparse per head": Case(wan(), settings("window", sparse=sparse(XAttention(16, of_heads(4))))),
        "wan sparse calibrated": Case(wan(), settings(sparse=sparse(calibrated(4)))),
        "wan sparse tokens": Case(wan(), settings(policy=tokens, sparse=sparse(XAttention(16, of_heads(4))))),
        "wan sparse top-k": Case(wan(), settings("staggered", sparse=sparse(TopK(16, density=0.6)))),
        "wan sparse masks": Case(
            wan(),
            settings(policy=TeaCache(warmup_steps=1, threshold=5.0), sparse=sparse(XAttention(16), reuse=MaskReuse())),
            ("2x1",),
        ),
        "wan sparse masks by head": Case(
            wan(), settings(sparse=sparse(XAttention(16, of_heads(4)), reuse=MaskReuse(0.1, gate=None)))
        ),
        "magi sparse": Case(magi_denoiser(), magi_settings(sparse=sparse(XAttention(16)))),
        "magi sparse per head": Case(magi_denoiser(), magi_settings(sparse=sparse(XAttention(16, of_heads(6))))),
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
        found[f"magi {name}"] = Case(magi_denoiser(), kept_by_magi(kept))
    for name, storage in STORAGES.items():
        kept = KVSettings(budget=1.5, storage=storage())
        found[f"wan {name} storage"] = Case(wan(), settings(kv=kept))
        found[f"magi {name} storage"] = Case(magi_denoiser(), kept_by_magi(kept))
    for name, storage in (("int8", STORAGES["int8"]()), ("int4 exact", Int4(exact_recent=0.5, exact_sink=0.5))):
        kept = KVSettings(budget=2.0, compressor=HeadWise(sink=0.5, recent=0.5), storage=storage)
        found[f"wan head-wise {name}"] = Case(wan(), settings(kv=kept))
    for name, quantity in QUANTITIES.items():
        plan = "staggered" if name != Residual.name else "blockwise"
        found[f"wan {name}"] = Case(wan(), settings(plan, policy=reusing, quantity=quantity()))
    return found


@dataclass(frozen=True)
class Refusal:
    """What ranks do not run. said: of the sentence. second: what rank 1 has, where it is another thing; off: added to
    its noise."""

    first: Case
    said: str
    second: Case | None = None
    off: float = 0.0

    def of_rank(self, rank: int) -> tuple[Any, EngineSettings, float]:
        case = self.second if rank == 1 and self.second is not None else self.first
        return case.denoiser, case.settings, self.off if rank == 1 else 0.0


def refusals(shape: MeshShape) -> dict[str, Refusal]:
    """By name, of a mesh of two ranks."""
    plain, unlike = Case(wan(), settings()), "on rank 1 than on rank 0"
    apart = ReferenceMotion(warmup_steps=1, threshold=0.3)
    found = {
        "settings": Refusal(plain, f"other settings {unlike}", Case(wan(), settings(clean_pass=True))),
        "weights": Refusal(plain, f"other model {unlike}", Case(wan(weights=4), settings())),
        "noise": Refusal(plain, f"other noise {unlike}", None, 1.0),
        "prompts": Refusal(plain, f"other model {unlike}", Case(whole_window(), settings())),
        "motion reference": Refusal(
            Case(wan(), settings(policy=apart, quantity=Residual())), "its branches decide apart"
        ),
    }
    if shape.heads > 1:
        voted = settings(sparse=sparse(XAttention(16), reuse=MaskReuse()))
        found["masks by vote"] = Refusal(
            Case(wan(), voted), "mask_reuse: got 'on, with 2 ranks for heads', accepted: off"
        )
    return found
