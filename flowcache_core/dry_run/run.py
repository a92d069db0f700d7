"""A whole run at its real size, with nothing computed: what it would hold, move, launch and wait for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..denoiser import Denoiser
from ..engine.run import Run
from ..engine.settings import EngineSettings
from ..noise import seeded_noise
from ..report.events import Event, StepTaken
from .fake import DEVICE, without_values
from .forwards import Forwards
from .memory import Ledger, Peak, held
from .traffic import Copy, Traffic

WEIGHTS, KV, STATE, LATENTS, TEXT = "weights", "K/V", "reuse state", "latents", "text"


@dataclass(frozen=True)
class Subject:
    """What is run. build: makes the model on a device, as :func:`dry_run` asks for it. windows: the engine's settings
    for each, in order. channels, height, width: of latents.
    """

    build: Callable[[str], tuple[nn.Module, Denoiser]]
    windows: tuple[EngineSettings, ...]
    height: int
    width: int
    channels: int = 16


@dataclass
class DryRun:
    """Figures of a whole video. memory: the peak by device (``DEVICE`` or ``cpu``), split into parts.

    flops: counted by torch, kernel by kernel. forwards_run were gone through operation by operation, two of each kind;
    forwards_counted were taken to cost what the second of their kind did. events: the engine's, of all windows.
    """

    memory: dict[str, Peak]
    flops: int
    kernels: int
    syncs: int
    moved: Counter[str]
    steps: int
    forwards_run: int
    forwards_counted: int
    events: list[Event] = field(repr=False)


def dry_run(subject: Subject, device: str = DEVICE) -> DryRun:
    """Run ``subject`` under fake tensors. device: ``DEVICE`` for an accelerator, "cpu" for this machine's processor.

    The real engine, denoiser and K/V cache go through every tick; nothing is computed and next to no memory is taken.
    The text encoder and the autoencoder are not part of it.
    """
    from torch.utils.flop_counter import FlopCounterMode  # brings modules of torch that most never need

    traffic, ledger, flops = Traffic(), Ledger(), FlopCounterMode(display=False)
    events: list[Event] = []
    with without_values(traffic), flops, ledger, traffic:
        with traffic.unheard():
            model, denoiser = subject.build(device)
        ledger.claim(WEIGHTS, [*model.parameters(), *model.buffers()])
        ledger.restart()
        setup = flops.get_total_flops()
        forwards = Forwards(denoiser, ledger, traffic, flops)
        for settings in subject.windows:
            _window(forwards, settings, subject, device, events)
        total = forwards.total_flops - setup
    moved = Counter[str]()
    for copy in traffic.count.copies:
        moved[_direction(copy)] += copy.bytes
    steps = sum(isinstance(event, StepTaken) for event in events)
    count = traffic.count
    return DryRun(
        ledger.peaks, total, count.kernels, len(count.syncs), moved, steps, forwards.run, forwards.counted, events
    )


def _window(forwards: Forwards, settings: EngineSettings, subject: Subject, device: str, events: list[Event]) -> None:
    plan, ledger = settings.plan, forwards.ledger
    latents = torch.empty(1, subject.channels, plan.frames, subject.height, subject.width, device=device)
    noise = _drawn if settings.prefix_noise else seeded_noise(0)
    run: list[Run] = []

    def observe(event: Event) -> None:
        events.append(event)
        for active in run:
            _claim(ledger, active, latents)

    run.append(Run.begin(forwards, settings, latents, noise, observe, None))
    _claim(ledger, run[0], latents)
    try:
        run[0].execute()
    finally:
        run[0].release()


def _drawn(chunk: int, step: int, like: Tensor) -> Tensor:
    return torch.empty(like.shape).to(like)


def _claim(ledger: Ledger, run: Run, latents: Tensor) -> None:
    """Say whose everything is that lasts from one forward to the next."""
    denoiser = run.denoiser.inner if isinstance(run.denoiser, Forwards) else run.denoiser
    ledger.claim(TEXT, held([getattr(denoiser, name, None) for name in ("texts", "rows", "captions", "prompts")]))
    ledger.claim(STATE, held([list(run.active.values()), run.policy]))
    ledger.claim(LATENTS, [latents, *(active.latents for active in run.active.values())])
    cache = run.passes.cache
    if cache is not None:
        ledger.claim(KV, held(cache._layers))


def _direction(copy: Copy) -> str:
    names = {"cpu": "host", DEVICE: "device"}
    return f"{names.get(copy.source, copy.source)} to {names.get(copy.target, copy.target)}"


def per_step(figure: float, result: DryRun) -> float:
    return figure / max(result.steps, 1)


def largest(result: DryRun, device: str = DEVICE) -> Peak:
    return result.memory.get(device, Peak())


__all__: Sequence[str] = ("DryRun", "Subject", "dry_run", "largest", "per_step")
