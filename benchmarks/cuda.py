"""Step times and memory of a SkyReels-V2 1.3B-shaped model with random bf16 weights on a CUDA device.

    python dev.py bench cuda

544 x 960, one window of 97 frames, guidance on. Time of a compute and of a reuse step, the share of attention in it,
what the engine costs per tick, a bidirectional pass for comparison; dense and sparse attention of one layer; and the
peak memory of a longer run that continues on its K/V, without a budget, with one, and with one in fp8. Then every lever
on SkyReels-V2 1.3B, MAGI-1 4.5B and Self-Forcing 1.3B (``cuda_levers.py``). Weights play no part in any of this.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from flowcache_core.cost import CountedCache, CountingDenoiser
from flowcache_core.dry_run.models import config_of
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.common.attention import attend
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.plan.staggered import staggered
from flowcache_core.report.events import Event, RunFinished, RunStarted, StepTaken, WindowPass
from flowcache_core.reuse.never import Never
from flowcache_core.reuse.schedule import StaticSchedule, spread
from flowcache_core.schedule import skyreels
from flowcache_core.solvers.unipc import UniPC

from . import cuda_levers, sparse_engines
from .results import save

SHAPE = cast(WanConfig, config_of("skyreels-v2-1.3b-540p"))
TEXT_TOKENS, GUIDANCE = 512, 6.0


@dataclass(frozen=True)
class Sizes:
    """What is measured; the defaults are the published 540P run. Frames are latent frames."""

    config: WanConfig = SHAPE
    latent_height: int = 68
    latent_width: int = 120
    window_frames: int = 25
    long_frames: int = 65
    chunk_frames: int = 5
    steps: int = 20
    ar_step: int = 4
    computed: int = 9
    budget: float = 1.0
    dtype: torch.dtype = torch.bfloat16

    def settings(self, frames: int) -> EngineSettings:
        """A run of which ``computed`` steps a chunk are computed, the rest reused."""
        plan = staggered(frames, self.chunk_frames, self.steps, self.ar_step)
        policy = StaticSchedule(warmup_steps=2, computed=spread(self.computed, self.steps, 2))
        return EngineSettings(plan, skyreels(self.steps, 8.0), solver=UniPC(), policy=policy)

    def noise(self, frames: int, device: torch.device) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        shape = (1, self.config.in_dim, frames, self.latent_height, self.latent_width)
        return torch.randn(shape, generator=draw).to(device)


@dataclass
class Stopwatch:
    """Observer that waits for the device at every event, so that each step has its own time."""

    device: torch.device
    compute: list[float] = field(default_factory=list)
    reuse: list[float] = field(default_factory=list)
    window: list[float] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    kv_bytes: int = 0
    seconds: float = 0.0
    mark: float = 0.0

    def __call__(self, event: Event) -> None:
        synchronise(self.device)
        now = time.perf_counter()
        lap, self.mark = now - self.mark, now
        if isinstance(event, RunStarted):
            self.kv_bytes = event.kv_bytes
        elif isinstance(event, WindowPass):
            self.window.append(lap)
        elif isinstance(event, StepTaken) and event.action == "reuse":
            self.reuse.append(lap)
        elif isinstance(event, StepTaken) and event.context_tokens:
            self.compute.append(lap)
            self.contexts.append(event.context_tokens)
        elif isinstance(event, RunFinished):
            self.seconds = event.seconds


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_model(config: WanConfig, device: torch.device, dtype: torch.dtype) -> WanTransformer:
    """Random weights, the zero start of the head included, so that latents stay finite and move."""
    torch.manual_seed(0)
    with device:
        model = WanTransformer(config)
        torch.nn.init.normal_(model.head.head.weight, std=0.02)
    return model.to(dtype).eval().requires_grad_(False)


def denoiser_of(model: WanTransformer, device: torch.device) -> WanDenoiser:
    draw = torch.Generator().manual_seed(1)
    texts = [torch.randn(1, TEXT_TOKENS, model.config.text_dim, generator=draw).to(device) for _ in range(2)]
    return WanDenoiser(model, {0: texts}, GUIDANCE, fps=24)


def timed_run(denoiser: WanDenoiser, settings: EngineSettings, noise: Tensor) -> Stopwatch:
    watch = Stopwatch(noise.device)
    generate(denoiser, settings, noise, observe=watch)
    return watch


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """Most device memory held at once since :func:`reset_peak`, weights included; None off CUDA."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


@torch.no_grad()
def attention_seconds(sizes: Sizes, tokens: int, context: int, device: torch.device, repeats: int = 5) -> float:
    """Self-attention of all layers for one chunk against ``context`` tokens, both branches."""
    c = sizes.config
    q = torch.randn(2, c.num_heads, tokens, c.head_dim, dtype=sizes.dtype, device=device)
    k = torch.randn(2, c.num_heads, context, c.head_dim, dtype=sizes.dtype, device=device)
    attend(q, k, k)
    times = []
    for _ in range(repeats):
        synchronise(device)
        begun = time.perf_counter()
        attend(q, k, k)
        synchronise(device)
        times.append(time.perf_counter() - begun)
    return c.num_layers * statistics.median(times)


def engine_seconds(settings: EngineSettings, noise: Tensor) -> float:
    """A run with a model that costs nothing: what is left is plan, policy, solver and events."""
    cache: Any = CountedCache(settings, 1, 1)
    begun = time.perf_counter()
    generate(CountingDenoiser(1), settings, noise, cache=cache)
    synchronise(noise.device)
    return time.perf_counter() - begun


def step_times(sizes: Sizes, denoiser: WanDenoiser, device: torch.device) -> dict[str, float | None]:
    """Seconds of the steps of one window, and what of them is attention and engine."""
    settings, noise = sizes.settings(sizes.window_frames), sizes.noise(sizes.window_frames, device)
    quick = staggered(sizes.window_frames, sizes.chunk_frames, 2, 1)
    first = replace(settings, plan=quick, schedule=skyreels(2, 8.0), policy=Never())
    timed_run(denoiser, first, noise)  # the device's first calls are slower
    watch = timed_run(denoiser, settings, noise)
    whole = timed_run(denoiser, replace(first, attention="bidirectional"), noise)
    tokens = sizes.chunk_frames * (sizes.latent_height // 2) * (sizes.latent_width // 2)
    full = max(watch.contexts)
    at_full = statistics.median(t for t, c in zip(watch.compute, watch.contexts, strict=True) if c == full)
    attention = attention_seconds(sizes, tokens, full, device)
    return {
        "compute_step_seconds": statistics.median(watch.compute),
        "compute_step_full_context_seconds": at_full,
        "reuse_step_seconds": statistics.median(watch.reuse),
        "bidirectional_pass_seconds": statistics.median(whole.window),
        "attention_share_full_context": attention / at_full,
        "engine_seconds_per_tick": engine_seconds(settings, noise) / len(settings.plan.ticks),
        "run_seconds": watch.seconds,
    }


def memory(sizes: Sizes, denoiser: WanDenoiser, device: torch.device) -> dict[str, dict[str, float | None]]:
    """Peak memory and K/V of a long run: whole history, a budget, a budget in fp8."""
    base, noise = sizes.settings(sizes.long_frames), sizes.noise(sizes.long_frames, device)
    kinds = {
        "whole history": KVSettings(),
        f"budget {sizes.budget:g}": KVSettings(budget=sizes.budget),
        f"budget {sizes.budget:g}, fp8": KVSettings(budget=sizes.budget, dtype=torch.float8_e4m3fn),
    }
    rows: dict[str, dict[str, float | None]] = {}
    for name, kv in kinds.items():
        reset_peak(device)
        watch = timed_run(denoiser, replace(base, kv=kv), noise)
        peak = peak_bytes(device)
        rows[name] = {
            "peak_gb": None if peak is None else peak / 1e9,
            "kv_gb": watch.kv_bytes / 1e9,
            "run_seconds": watch.seconds,
        }
    return rows


def measure(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """All figures on one device."""
    denoiser = denoiser_of(random_model(sizes.config, device, sizes.dtype), device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "steps": step_times(sizes, denoiser, device),
        "memory": memory(sizes, denoiser, device),
        "attention": sparse_attention(sizes, device),
    }


def sparse_attention(sizes: Sizes, device: torch.device, tell: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Seconds of one layer's self-attention of a chunk against a full window, dense and by every engine."""
    tokens = (sizes.latent_height // 2) * (sizes.latent_width // 2)
    queries, keys = tokens * sizes.chunk_frames, tokens * sizes.window_frames
    block = min(128, queries)
    stride = max(s for s in (1, 2, 4, 8, 16) if block % s == 0)
    shape = sparse_engines.Shape(queries, keys, sizes.config.num_heads, sizes.config.head_dim, block, stride)
    engines = ("gather",) if device.type == "cpu" else ("flex", "sparge")
    return sparse_engines.measure(shape, device, (sizes.dtype,), engines, tell)


def main(argv: Sequence[str]) -> int:
    """Print the figures and save them; exit status 2 without a CUDA device."""
    if not torch.cuda.is_available():
        print(f"cuda: no CUDA device here (torch {torch.__version__}), nothing measured", file=sys.stderr)
        return 2
    figures = measure(Sizes(), torch.device("cuda"))
    print(figures["device"])
    for name, value in figures["steps"].items():
        print(f"  {name:36} {value:.4f}")
    for name, row in figures["memory"].items():
        print(f"  {name:20} peak {row['peak_gb']:.2f} GB, K/V {row['kv_gb']:.2f} GB, {row['run_seconds']:.1f} s")
    figures["models"] = {}
    save("cuda", figures)  # what there is, should a model not fit
    for model in cuda_levers.MODELS:
        figures["models"][model.name] = cuda_levers.measure(model, torch.device("cuda"), print)
        save("cuda", figures)
    print(f"\nsaved: {save('cuda', figures)}")
    return 0
