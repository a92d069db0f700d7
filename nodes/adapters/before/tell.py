"""What runs will cost, as numbers for the nodes: every sampling of a graph before it runs, and the one that begins."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ....flowcache_core.dry_run.estimate import Estimate, Model, estimate
from ....flowcache_core.engine import EngineSettings
from ....flowcache_core.errors import SettingError
from ..run.settings import FlowCacheSettings
from ..shown.running_node import RunningNode, listening, show_estimates
from . import speed
from .graph import Graph, NotKnownError
from .model_sizes import of_patcher
from .wired import Readers, foreseen
from .wiring import SAMPLINGS, Wired

Numbers = Mapping[str, Any]
"""Of one sampling; docs/live-map.md has the fields."""


def before(graph: Graph, readers: Readers) -> dict[str, list[Numbers]]:
    """Node -> what each AR sampling that goes through it will cost, for every node of ours."""
    told: dict[str, list[Numbers]] = {}
    for sampling in graph.of_kind(*SAMPLINGS):
        wired = Wired.of(graph, sampling)
        if wired is None:
            continue
        try:
            told_of = foreseen(graph, wired, readers)
            found = numbers(told_of.estimate, told_of.model, told_of.chunks, told_of.notes)
        except NotKnownError as error:
            found = {"reason": str(error), "later": True}
        except SettingError as error:
            found = {"reason": str(error), "later": False}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            logging.info("FlowCache: no estimate: %r", error, exc_info=True)  # else a fault of ours would look the same
            found = {"reason": "a field of the graph is missing", "later": False}
        for node in wired.nodes:
            others = told.setdefault(node, [])
            if found not in others:
                others.append(found)
    return told


def numbers(found: Estimate, model: Model, chunks: int, notes: Sequence[str] = ()) -> Numbers:
    """As JSON holds them. Bytes; seconds as fast as the model's last run here, None before it; sentences on reuse."""
    return {
        "computed": found.computed_steps,
        "total": found.total_steps,
        "sure": found.sure,
        "chunks": chunks,
        "flops": found.flops,
        "whole_flops": found.whole_flops,
        "seconds": speed.seconds(model, found.flops),
        "notes": list(notes),
        "kv": found.kv_bytes,
        "whole_kv": found.whole_kv_bytes,
        "kv_device": found.kv_device,
        "kv_choice": found.kv_choice,
        "density": found.density,
        "attention": list(found.attention),
        "peak": found.peak_bytes,
        "memory": {name: value for name, value in found.memory.items() if value >= found.peak_bytes / 100},
    }


def at_start(
    patcher: Any,
    runs: Callable[[], Sequence[EngineSettings]],
    latents: Sequence[int],
    branches: int,
    settings: FlowCacheSettings,
) -> None:
    """Say on the nodes behind the sampling that begins now what it will cost, model, latents and levels being known.

    runs: the engine's settings of every window. latents: ``[B, C, F, h, w]``. Nothing where no browser listens. That it
    cannot be said ends no run.
    """
    here = RunningNode.now()
    if here is None or not listening():
        return
    try:
        wired = Wired.running(here.display)
        if wired is None:
            return
        model, windows = of_patcher(patcher, branches), runs()
        source = settings.chosen.source if settings.chosen else None
        found = estimate(model, windows, latents, source.computed_steps if source else None, settings.measure)
        notes = settings.chosen.remarks if settings.chosen else ()
        told = numbers(found, model, sum(len(one.plan.chunks) for one in windows), notes)
        show_estimates({node: [told] for node in wired.nodes})
    except Exception as error:
        logging.warning("FlowCache: no estimate of this run: %r", error)
