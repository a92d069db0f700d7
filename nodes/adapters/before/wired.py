"""What one sampling of a graph will cost: over what latents, in how many steps, with which settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ....flowcache_core.architecture import architecture_of
from ....flowcache_core.calibrate.measured_heads import MeasureHeads
from ....flowcache_core.dry_run.estimate import Estimate, Model, estimate
from ....flowcache_core.engine import EngineSettings
from ....flowcache_core.errors import SettingError
from ....flowcache_core.kv.settings import KVSettings
from ....flowcache_core.mini.noise_levels import SHIFT
from ....flowcache_core.models.magi.config import MagiConfig
from ....flowcache_core.plan.base import Plan
from ....flowcache_core.plan.staggered import VideoWindow
from ....flowcache_core.presets.auto import Run
from ....flowcache_core.released import RELEASED
from ....flowcache_core.schedule import Schedule, magi, shifted
from ....flowcache_core.solvers import SOLVERS
from ....flowcache_core.sparse.settings import SparseSettings
from ..host_ar.attach import plan_of as host_plan
from ..host_ar.attach import refuse_patches
from ..host_ar.order import HOST_SAMPLER
from ..run.plan_choice import PlanChoice
from ..run.settings import AutoReuse, FlowCacheSettings, ReuseSettings, fit_steps, on_plan, other_preset
from ..run.sparse import check_sparse, with_attention
from ..wan.sampling import kv_of
from .graph import LONGEST, Graph, NotKnownError
from .model_sizes import MINI, file_of, of_loader
from .wiring import SAMPLINGS, Wired

PIXELS, TIME = 8, 4  # of Wan's autoencoder, a latent value
VIDEO_LATENTS = ("EmptyARVideoLatent", "EmptyHunyuanLatentVideo")
MAGI_LATENT, MAGI_CHUNK = "FlowCacheEmptyMagiLatent", 6
CHANNELS = 16
START_IMAGE = "ARVideoI2V"
RELEASED_LEVELS = "FlowCacheReleasedSchedule"
PICTURES = ("image", "images", "destination", "image1")

ReadNode = Callable[[Graph, str], Any]


@dataclass(frozen=True)
class Readers:
    """How the pack's nodes read their own fields: what sits on the model."""

    reuse: Callable[[Graph, str], ReuseSettings | AutoReuse]
    kv: Callable[[Graph, str], KVSettings]
    sparse: Callable[[Graph, str], SparseSettings | MeasureHeads]


@dataclass(frozen=True)
class Foreseen:
    """Out of the graph alone. chunks: of the video. notes: sentences on what will be reused."""

    estimate: Estimate
    model: Model
    chunks: int
    notes: tuple[str, ...]


def foreseen(graph: Graph, wired: Wired, readers: Readers) -> Foreseen:
    """NotKnownError, or SettingError of a node."""
    if wired.loader is None:
        raise NotKnownError("no model is connected")
    model = of_loader(graph, wired.loader, branches_of(graph, wired.sampling))
    attention = None if wired.sparse is None else readers.sparse(graph, wired.sparse)
    settings = FlowCacheSettings(
        reuse=None if wired.reuse is None else readers.reuse(graph, wired.reuse),
        kv=None if wired.kv is None else readers.kv(graph, wired.kv),
        sparse=attention if isinstance(attention, SparseSettings) else None,
        measure=attention if isinstance(attention, MeasureHeads) else None,
    )
    latents, steps = latents_of(graph, wired.sampling), steps_of(graph, wired.sampling)
    given = min(prefix_of(graph, wired), latents[2] - 1)
    windows = engines(graph, wired, settings, model, (latents[2], given), steps)
    check_sparse(windows, model.spec(latents), {})
    run = on_plan(run_of(graph, wired, model, windows[0]), windows[0].plan)
    settings = settings.settled(run)
    if settings.chosen is not None:
        if settings.chosen.source is not None:
            try:
                fit_steps(settings.chosen.source, settings.chosen.preset, steps)
            except SettingError as error:
                raise SettingError(error.field, error.value, f"{error.accepted}; {other_preset(run)}") from error
        settings.chosen.policy.check(steps)
        windows = [replace(one, **settings.chosen.engine_fields) for one in windows]
    source = settings.chosen.source if settings.chosen else None
    found = estimate(model, windows, latents, source.computed_steps if source else None, settings.measure)
    notes = settings.chosen.remarks if settings.chosen else ()
    return Foreseen(found, model, sum(len(one.plan.chunks) for one in windows), notes)


def run_of(graph: Graph, wired: Wired, model: Model, window: EngineSettings) -> Run:
    """What the preset auto chooses by, as far as the graph says it. window: the first one."""
    file = "" if wired.loader is None else file_of(graph, wired.loader)
    steps, solver = window.plan.steps, window.solver.name
    return Run(steps, levels_of(graph, wired, model, steps), architecture_of(model.config), file,
               guidance_of(graph, wired), solver)  # fmt: skip


def guidance_of(graph: Graph, wired: Wired) -> float | None:
    """Of the guider; None where the graph computes it, or the guider has a strength of another kind."""
    if wired.host:
        return 1.0  # the host's AR sampler takes none
    guider = graph.source(wired.sampling, "guider") or wired.sampling
    if graph.kind(guider) == "BasicGuider":
        return 1.0
    return number(graph, guider, "cfg", 0.0, 1000.0)


def number(graph: Graph, node: str, name: str, least: float, most: float) -> float | None:
    """A field's number; None where it is missing, out of its range or computed by the graph."""
    try:
        value = graph.value(node, name)
    except NotKnownError:
        return None
    return float(value) if isinstance(value, int | float) and least <= value <= most else None


def levels_of(graph: Graph, wired: Wired, model: Model, steps: int) -> Schedule | None:
    """The noise levels of the run; None where no node of the graph states them."""
    if isinstance(model.config, MagiConfig):
        return magi(steps)
    if (source := graph.source(wired.sampling, "sigmas")) is not None and graph.kind(source) == RELEASED_LEVELS:
        return RELEASED[graph.value(source, "model")].schedule
    shift = shift_of(graph, wired)
    return None if shift is None else shifted(steps, shift)


def shift_of(graph: Graph, wired: Wired) -> float | None:
    """Of the model's noise levels; None where no node of the graph states it."""
    guider = graph.source(wired.sampling, "guider") or wired.sampling
    for node in graph.upstream(guider, "model"):
        if graph.kind(node) == "ModelSamplingSD3":
            return number(graph, node, "shift", 0.01, 100.0)
        if graph.kind(node) == MINI:
            return SHIFT
    return None


def engines(
    graph: Graph, wired: Wired, settings: FlowCacheSettings, model: Model, frames: tuple[int, int], steps: int
) -> list[EngineSettings]:
    """The run's settings but for reuse, with noise levels that stand for the real ones: they cost the same. frames:
    latent frames of the video, and those of them that are given.
    """
    if wired.host:
        refuse_patches(settings)
        block = graph.count(wired.sampler, "num_frame_per_block")
        return [host_run(host_plan(frames[0], block, steps, frames[1]), replace(settings, reuse=None))]
    choice = PlanChoice.of(graph.fields(wired.sampler, "plan"))
    schedule = magi(steps) if isinstance(model.config, MagiConfig) else shifted(steps, 5.0)

    def engine(part: VideoWindow) -> EngineSettings:
        levels: Schedule = choice.schedule(part, schedule)
        made = EngineSettings(
            choice.plan(part, levels.steps),
            levels,
            choice.solver,
            kv=kv_of(choice, settings, ()),
            clean_pass=choice.clean_pass,
            attention=choice.attention,
            joint_frames=choice.joint_frames,
            prefix_noise=choice.prefix_noise,
        )
        return with_attention(made, settings.sparse)

    return [engine(part) for part in choice.windows(*frames)]


def host_run(plan: Plan, settings: FlowCacheSettings) -> EngineSettings:
    """The host's own AR sampler as the engine would be told of it."""
    reuse: Mapping[str, Any] = {} if settings.chosen is None else settings.chosen.engine_fields
    levels, solver = shifted(plan.steps, 5.0), SOLVERS["renoise"]()
    kv = settings.kv_settings.by_layer(HOST_SAMPLER)
    return EngineSettings(plan, levels, solver, kv=kv, clean_pass=True, **reuse)


def latents_of(graph: Graph, sampling: str) -> tuple[int, int, int, int, int]:
    """``[B, C, F, h, w]`` of the latents that are wired. NotKnownError for what is encoded or made otherwise."""
    last = graph.needed(sampling, "latent_image")
    for node in [last, *graph.upstream(last, "samples")]:
        kind = graph.kind(node)
        if kind in VIDEO_LATENTS or kind == MAGI_LATENT:
            wide, high, batch = (graph.count(node, name) for name in ("width", "height", "batch_size"))
            if kind == MAGI_LATENT:
                frames = MAGI_CHUNK * graph.count(node, "chunks")
            else:
                frames = (graph.count(node, "length") - 1) // TIME + 1
            return batch, CHANNELS, frames, high // PIXELS, wide // PIXELS
    raise NotKnownError(f"the latents' size is known when {graph.kind(last)} has run")


def prefix_of(graph: Graph, wired: Wired) -> int:
    """Leading latent frames that are given. NotKnownError where they are encoded out of a video."""
    if wired.host:
        guider = graph.source(wired.sampling, "guider") or wired.sampling
        return int(any(graph.kind(node) == START_IMAGE for node in graph.upstream(guider, "model")))
    node = graph.source(wired.sampler, "prefix")
    if node is None:
        return 0
    if (count := graph.value(wired.sampler, "prefix_frames", 0)) > 0:
        return int(count)
    if graph.kind(node) in SAMPLINGS:
        return latents_of(graph, node)[2]
    images = graph.source(node, "pixels")
    for _ in range(LONGEST):
        if images is None:
            break
        if graph.kind(images) in ("LoadImage", "EmptyImage"):
            frames = graph.value(images, "batch_size", 1)
            return (int(frames) - 1) // TIME + 1
        images = next((at for name in PICTURES if (at := graph.source(images, name)) is not None), None)
    raise NotKnownError("the number of frames in prefix")


def steps_of(graph: Graph, sampling: str) -> int:
    """From the node that makes the noise levels."""
    node = graph.needed(sampling, "sigmas")
    kind = graph.kind(node)
    if kind == RELEASED_LEVELS and (name := graph.value(node, "model")) in RELEASED:
        return RELEASED[name].schedule.steps
    if kind == "FlowCacheMagiSchedule":
        return int(graph.value(node, "steps"))
    if kind == "ManualSigmas":
        return max(1, len([part for part in str(graph.value(node, "sigmas")).split(",") if part.strip()]) - 1)
    if "steps" in graph.nodes[node]["inputs"]:
        return graph.count(node, "steps")
    raise NotKnownError(f"the number of steps is known when {kind} has run")


def branches_of(graph: Graph, sampling: str) -> int:
    """Forwards that guidance needs."""
    guider = graph.source(sampling, "guider") or sampling
    kind, inputs = graph.kind(guider), graph.nodes[guider]["inputs"]
    if kind == "BasicGuider":
        return 1
    if "cfg" in inputs and "negative" in inputs:
        return 1 if graph.value(guider, "cfg") == 1 else 2
    return max(1, sum(name != "model" and graph.source(guider, name) is not None for name in inputs))
