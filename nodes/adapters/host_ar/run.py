"""One run of the host's own AR sampler with our settings: by wrappers and replaced methods, never by its code.

The sampler calls the model once per step of a block and once more at noise level 0, which leaves the block's final K/V;
a start image gets one such pass before. That order is followed here call by call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from ....flowcache_core.denoiser import ChunkInput
from ....flowcache_core.engine import EngineSettings
from ....flowcache_core.engine.finite import FiniteWatch, Place
from ....flowcache_core.errors import require
from ....flowcache_core.kv.layout import CompressionResult
from ....flowcache_core.kv.settled import token_change
from ....flowcache_core.kv.size import peak_bytes
from ....flowcache_core.plan.base import Chunk, Plan
from ....flowcache_core.report.events import (
    CacheCompressed,
    CacheKind,
    CachePass,
    ChunkFinished,
    Event,
    NotFinite,
    RunFinished,
    RunStarted,
    StepTaken,
)
from ....flowcache_core.report.live import LiveRun
from ....flowcache_core.report.record import Recorder
from ....flowcache_core.schedule import from_sigmas
from ....flowcache_core.solvers import SOLVERS
from ..naming import naming
from ..replaced import replaced
from ..run.foreign import refuse_split_caches, repeated, skipped
from ..run.recorded import recorded
from ..run.request import reuse_notes
from ..run.settings import FlowCacheSettings
from ..shown.live_map import LiveMap
from ..wan.compiled import uncompiled
from ..wan.denoiser import kv_spec
from .kv import HostKV, LayerCache
from .order import HOST_SAMPLER, INSTEAD, OUR_SAMPLER, CallOrder
from .reuse import Embeddings, StepReuse
from .stored import StoredHostKV, host_kv

KEY = "flowcache"


@dataclass
class HostRun:
    """All state of one run of the host's sampler, as its model calls show it."""

    model: Any
    settings: EngineSettings
    kv: HostKV | StoredHostKV
    bounded: bool
    reuse: StepReuse
    recorder: Recorder
    live: LiveMap
    keep: Callable[[Recorder, Mapping[str, Any]], None]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    finite: FiniteWatch = field(default_factory=FiniteWatch)
    answered: tuple[Place, Tensor] | None = None
    broken: bool = False
    order: CallOrder = field(init=False)
    probe: int | None = field(init=False)
    predicted: Tensor | None = None

    @classmethod
    def of(
        cls, patcher: Any, noise: Tensor, sigmas: Tensor, plan: Plan, settings: FlowCacheSettings, seed: int
    ) -> HostRun:
        """SettingError for settings that do not fit the plan, or sigmas that do not fall to 0."""
        model = patcher.model
        schedule = from_sigmas(sigmas.tolist())
        last = schedule.sigmas[-1]
        require(last == 0, "sigmas", f"an end at {last:g}", f"an end at 0, or {INSTEAD}")
        chosen = settings.chosen
        picked: dict[str, Any] = {} if chosen is None else chosen.engine_fields
        kv = settings.kv_settings.by_layer(HOST_SAMPLER)
        solver = SOLVERS["renoise"]()
        embeddings = Embeddings(model, noise.device)
        with naming("FlowCache Chunkwise Reuse"):
            if chosen is not None:
                chosen.check(schedule, patcher)
                policy = chosen.policy
                accepted = f"another: {policy.name} computes part of a chunk, which takes our AR Video Sampler node"
                require(policy.parts == "never", "policy", policy.name, accepted)
            engine = EngineSettings(plan, schedule, solver, kv=kv, clean_pass=True, **picked)
            (engine,), recording = recorded([engine], patcher, 1.0, seed)
            reuse = StepReuse(engine, engine.policy.begin(schedule, embeddings), embeddings)
        with naming("KV Cache Compressor"):
            spec = kv_spec(model, noise.shape, 1, noise.device)
            cache = host_kv(spec, kv, plan)
        keep = partial(settings.slot.keep, recording=recording, reuse=chosen, compressor=settings.kv is not None)
        live, notes = LiveMap(LiveRun([engine]), settings), reuse_notes(settings, patcher)
        notes += (choice,) if (choice := kv.choice(spec, plan)) else ()
        return cls(model, engine, cache, settings.kv is not None, reuse, Recorder.of(engine), live, keep, notes)

    def __post_init__(self) -> None:
        self.plan = self.settings.plan
        self.order = CallOrder(self.plan, self.settings.schedule)
        compressor = self.kv.settings.compressor
        self.probe = None if compressor is None else compressor.probe_step(self.plan.steps)

    # -- the run -------------------------------------------------------------------------------------------------------

    def sample(self, execute: Callable[[], Any], extra_args: dict[str, Any]) -> Any:
        """The host's sampler with everything attached; all of it is gone when this returns or raises."""
        begun = time.perf_counter()
        self.order.model_options = extra_args["model_options"]
        add_wrapper_with_key(
            WrappersMP.APPLY_MODEL, KEY, self.apply_model, extra_args["model_options"], is_model_options=True
        )
        try:
            with ExitStack() as stack:
                stack.enter_context(computing_dtype(self.model))
                if self.bounded:
                    stack.enter_context(self.kv.attached(self.model.diffusion_model))
                self.start()
                output = execute()
                self.order.finish()
            self.tell(self.finite.rest())
            seconds = time.perf_counter() - begun
            self.observe(RunFinished(seconds, seconds - self.seconds))
            return output
        finally:
            self.live.close()
            self.keep(self.recorder, self.live.message())
            self.reuse.forget()
            self.kv.release()

    def observe(self, event: Event) -> None:
        self.recorder(event)
        self.live(event)

    def start(self) -> None:
        kv_bytes = peak_bytes(self.kv.spec, self.settings.kv, self.plan)
        sizes = (kv_bytes, self.kv.capacity_tokens, self.kv.budget_tokens, self.kv.spec.token_bytes)
        started = RunStarted.of(self.settings, *sizes)
        started = replace(started, notes=(*started.notes, *self.notes))
        for note in started.notes:
            logging.warning("FlowCache: %s", note)
        self.observe(started)

    # -- one model call ------------------------------------------------------------------------------------------------

    def apply_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any,
        c_crossattn: Any,
        control: Any,
        transformer_options: dict[str, Any],
        **kwargs: Any,
    ) -> Tensor:
        """The host's APPLY_MODEL: noisy latents ``[B, C, f, H, W]`` to their clean prediction."""
        state = transformer_options.get("ar_state")
        call = partial(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        if state is None:
            return call()  # not a call of this sampler
        with uncompiled(self.model) as was_compiled:
            if was_compiled and self.order.newest is None:
                logging.warning("FlowCache: torch.compile has no effect in %s; use %s", HOST_SAMPLER, OUR_SAMPLER)
            return self.answer(x, t, state, transformer_options, call)

    def answer(
        self,
        x: Tensor,
        t: Tensor,
        state: dict[str, Any],
        transformer_options: dict[str, Any],
        call: Callable[[], Tensor],
    ) -> Tensor:
        chunk, step = self.order.next(x, t, state["start_frame"], transformer_options["uuids"])
        caches = state["kv_caches"]
        refuse_split_caches(caches)
        compute = partial(self.computed, call, chunk, caches)
        if step is None:
            return self.cache_pass(chunk, x, caches, compute)
        return self.denoise(chunk, step, x, caches, compute)

    def computed(self, call: Callable[[], Tensor], chunk: Chunk, caches: Sequence[LayerCache]) -> Tensor:
        """A call that reaches the model: every layer writes this chunk's K/V, once. SettingError otherwise."""
        before = [cache["end"] for cache in caches]
        output = call()
        tokens = chunk.frames * self.kv.spec.tokens_per_frame
        moved = [cache["end"] - end for cache, end in zip(caches, before, strict=True)]
        silent = sum(end == 0 for end in moved)
        if silent:
            what = "the model was" if silent == len(moved) else f"{silent} of its layers were"
            raise skipped(f"{what} not run for chunk {chunk.index}", self.order.model_options, f"; or {INSTEAD}")
        if any(end != tokens for end in moved):
            raise repeated(f"the model ran twice for chunk {chunk.index}", self.order.model_options, f"; or {INSTEAD}")
        return output

    def told(
        self,
        act: Callable[[Chunk, Sequence[LayerCache]], CompressionResult | None],
        chunk: Chunk,
        caches: Sequence[LayerCache],
        tick: int,
    ) -> None:
        """Begin or commit a chunk and say so where that compressed the history."""
        begun = time.perf_counter()
        result = act(chunk, caches)
        if result is not None:
            seconds = time.perf_counter() - begun
            self.observe(CacheCompressed(tick, chunk.index, result.tokens_before, result.tokens_after, seconds))

    def denoise(
        self, chunk: Chunk, step: int, x: Tensor, caches: Sequence[LayerCache], compute: Callable[[], Tensor]
    ) -> Tensor:
        tick = self.plan.first_tick[chunk.index] + step
        if step == 0:
            self.told(self.kv.begin, chunk, caches, tick)
        begun = time.perf_counter()
        schedule = self.settings.schedule
        item = ChunkInput(chunk, step, schedule.sigmas[step], schedule.timesteps[step], x)
        self.look(x)
        clean, decision = self.reuse.step(item, partial(self.timed, compute))
        self.answered = ((tick, chunk.index, step), clean)
        if step == self.probe:
            self.predicted = clean
        if decision.reuses:
            self.kv.advance(chunk, caches)
        self.observe(
            StepTaken.of(
                item,
                decision,
                tick=tick,
                branches=1,
                tokens=chunk.frames * self.kv.spec.tokens_per_frame,
                context_tokens=0 if decision.reuses else self.kv.context_tokens(chunk),
                kv_tokens=self.kv.tokens,
                seconds=time.perf_counter() - begun,
            )
        )
        return clean

    def look(self, latents: Tensor) -> None:
        """The last step led to these latents; look whether they and what the model answered are finite."""
        if self.answered is not None:
            place, clean = self.answered
            self.finite.note(place, clean[None], latents)
            self.finite.send()
            self.answered = None
        self.tell(self.finite.arrived())

    def tell(self, broken: Iterable[NotFinite]) -> None:
        """Record steps whose values are not finite; the first of a run is worth a warning."""
        for event in broken:
            if not self.broken:
                logging.warning("FlowCache: values are not finite from %s on (NaN or infinite)", event.place)
            self.broken = True
            self.observe(event)

    def cache_pass(
        self, chunk: Chunk, x: Tensor, caches: Sequence[LayerCache], compute: Callable[[], Tensor]
    ) -> Tensor:
        """The pass that leaves a chunk's final K/V; never skipped."""
        self.look(x)
        given = chunk.index < self.plan.prefix_chunks
        if given:
            self.told(self.kv.begin, chunk, caches, 0)
        begun = time.perf_counter()
        with self.kv.listening(self.model.diffusion_model, chunk):
            output = self.timed(compute)
        tokens, context = chunk.frames * self.kv.spec.tokens_per_frame, self.kv.context_tokens(chunk)
        kind: CacheKind = "prefix" if given else "clean"
        self.observe(CachePass(kind, chunk.index, 1, tokens, context, time.perf_counter() - begun))
        if self.predicted is not None and not given:
            change = token_change(self.predicted, x, self.kv.spec.tokens_per_frame)
            self.kv.note_change(chunk, change)
        self.told(self.kv.commit, chunk, caches, self.plan.last_tick.get(chunk.index, 0))
        if not given:
            self.reuse.finish(chunk)
            self.observe(ChunkFinished(self.plan.last_tick[chunk.index], chunk.index, chunk.first_frame, x))
        return output

    def timed(self, compute: Callable[[], Tensor]) -> Tensor:
        begun = time.perf_counter()
        output = compute()
        self.seconds += time.perf_counter() - begun
        return output


def computing_dtype(model: Any) -> AbstractContextManager[None]:
    """While the sampler runs, the dtype it makes K/V and the start image in is the one the model computes in: it asks
    for that of the weights, and fp8 weights cannot be computed with.
    """
    dtype = model.get_dtype_inference()
    return replaced(model, "get_dtype", lambda original: lambda: dtype)
