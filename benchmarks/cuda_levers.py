"""What every lever costs and saves on a device, model by model: seconds, peak memory and K/V of one whole run each.

Models of the published sizes with random bf16 weights (``flowcache_core/dry_run/models.py`` has the sizes); which steps
are reused, which blocks attended to and which K/V kept does not depend on what the weights are worth, the time does not
either. Called by ``bench cuda``.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from flowcache_core.dry_run.models import Config, job
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.storage import STORAGES
from flowcache_core.report.events import Event, RunStarted, StepTaken
from flowcache_core.reuse.motion import Motion
from flowcache_core.reuse.never import Never
from flowcache_core.reuse.schedule import StaticSchedule, spread
from flowcache_core.sparse.settings import SparseSettings
from flowcache_core.sparse.top_k import TopK

Change = Callable[[EngineSettings], EngineSettings]


@dataclass(frozen=True)
class Model:
    """A run to measure. preset: without reuse. fields: of the run's settings, short of the published length. config:
    instead of the published size.
    """

    name: str
    preset: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    config: Config | None = None


MODELS = (
    Model("skyreels-v2-1.3b-540p", "causal", {"frames": 97, "steps": 10, "ar_step": 5}),
    Model("magi-1-4.5b", "vanilla", {"frames": 144, "steps": 16}),
    Model("self-forcing-1.3b", "vanilla"),
)


def lists(settings: EngineSettings) -> StaticSchedule:
    """Four tenths of the steps computed, at the same ticks in every run."""
    steps = settings.plan.steps
    return StaticSchedule(warmup_steps=1, computed=spread(max(2, round(0.4 * steps)), steps, 1))


def tokens(settings: EngineSettings) -> Motion:
    """Half of a chunk's tokens at every step behind the first two."""
    return Motion(warmup_steps=1, uniform_updates=1, share=0.5, threshold=0.1)


def levers() -> Iterator[tuple[str, Change]]:
    """Name and what it changes, from the plain run on; each alone but for the last, which are all together."""
    yield "plain", lambda run: run
    yield "reuse", lambda run: replace(run, policy=lists(run))
    yield "token reuse", lambda run: replace(run, policy=tokens(run))
    yield "sparse attention", lambda run: replace(run, sparse=SparseSettings(dense_chunks=1))
    for density in (0.5, 0.3):  # known beforehand: random weights attend to everything alike
        sparse = SparseSettings(TopK(density=density), dense_chunks=0)
        yield f"sparse attention {density:g}", lambda run, sparse=sparse: replace(run, sparse=sparse)  # type: ignore[misc]
    yield "budget", lambda run: replace(run, kv=KVSettings(budget=1.0, compressor=Recent()))
    yield "K/V in fp8", lambda run: replace(run, kv=KVSettings(dtype=torch.float8_e4m3fn))
    for name, kind in STORAGES.items():
        if kind.packs:
            yield f"K/V in {name}", lambda run, kind=kind: replace(run, kv=KVSettings(storage=kind()))  # type: ignore[misc]
    yield "K/V on the CPU", lambda run: replace(run, kv=KVSettings(device="cpu"))
    yield "K/V in fp8 on the CPU", lambda run: replace(run, kv=KVSettings(dtype=torch.float8_e4m3fn, device="cpu"))
    together = KVSettings(budget=1.0, compressor=Recent(), dtype=torch.float8_e4m3fn)
    yield "reuse, budget, fp8", lambda run: replace(run, policy=lists(run), kv=together)


def measure(model: Model, device: torch.device, tell: Callable[[str], None]) -> dict[str, Any]:
    """A row for every lever: of the first window of the run, after a short one that loads what is loaded once."""
    one = job(model.name, model.preset, KVSettings(), model.config, **model.fields)
    transformer, denoiser = one.subject.build(str(device))
    randomise(transformer)
    base = one.subject.windows[0]
    draw = torch.Generator().manual_seed(0)
    shape = (1, one.subject.channels, base.plan.frames, one.subject.height, one.subject.width)
    noise = torch.randn(shape, generator=draw).to(device)
    run(denoiser, replace(base, policy=Never()), noise)
    rows: dict[str, Any] = {}
    for name, change in levers():
        try:
            rows[name] = run(denoiser, change(base), noise)
        except SettingError as error:
            rows[name] = {"refused": str(error)}
        tell(f"  {model.name:24} {name:24} {described(rows[name])}")
    del transformer, denoiser
    gc.collect()
    return {"frames": base.plan.frames, "steps": base.plan.steps, "levers": rows}


def run(denoiser: Any, settings: EngineSettings, noise: Tensor) -> dict[str, Any]:
    """Seconds from first to last kernel, and what was held. Nothing waits for the device in between."""
    device, events = noise.device, list[Event]()

    def observe(event: Event) -> None:
        if isinstance(event, RunStarted | StepTaken):
            events.append(event)

    reset(device)
    begun = time.perf_counter()
    latents = generate(denoiser, settings, noise, observe=observe)
    synchronise(device)
    seconds = time.perf_counter() - begun
    steps = [event for event in events if isinstance(event, StepTaken)]
    (started,) = (event for event in events if isinstance(event, RunStarted))
    return {
        "seconds": seconds,
        "computed_steps": sum(step.action != "reuse" for step in steps),
        "total_steps": len(steps),
        "kv_gb": started.kv_bytes / 1e9,
        "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
        "finite": bool(latents.isfinite().all()),
    }


@torch.no_grad()
def randomise(transformer: nn.Module) -> None:
    """Weights of a size that keeps latents finite and moves them."""
    torch.manual_seed(0)
    for name, parameter in transformer.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.02)
        elif "norm" in name and name.endswith("weight"):
            parameter.fill_(1.0)
        elif "bands" not in name:
            parameter.normal_(std=0.02)


def reset(device: torch.device) -> None:
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def described(row: Mapping[str, Any]) -> str:
    if "refused" in row:
        return f"not possible: {row['refused']}"
    peak = "" if row["peak_gb"] is None else f", peak {row['peak_gb']:.2f} GB"
    steps = f"{row['computed_steps']} of {row['total_steps']} steps"
    return f"{row['seconds']:8.2f} s, {steps}, K/V {row['kv_gb']:.3f} GB{peak}"
