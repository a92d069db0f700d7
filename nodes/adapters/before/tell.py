"""Estimates on the nodes: of every sampling of a graph before it runs, and of the one that begins now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from comfy_execution.progress import get_progress_state

from ....flowcache_core.dry_run.estimate import Estimate, Model, estimate
from ....flowcache_core.engine import EngineSettings
from ....flowcache_core.errors import SettingError
from ....flowcache_core.kv.settings import KVSettings
from ..run.settings import FlowCacheSettings, settings_of
from ..shown.running_node import RunningNode, listening, show_text_on
from . import speed
from .graph import Graph, NotKnownError
from .model_sizes import of_patcher
from .text import on_compressor, on_reuse, on_sampler
from .wired import SAMPLINGS, Readers, Wired, branches_of, foreseen, reckoned

LATER = "what it will cost is known when it runs"


def before(graph: Graph, readers: Readers) -> dict[str, str]:
    """Node -> text, for every node of ours that an AR sampling of the graph goes through, a line for each."""
    texts: dict[str, list[str]] = {}
    for sampling in graph.of_kind(*SAMPLINGS):
        wired = Wired.of(graph, sampling)
        if wired is None:
            continue
        try:
            found, model, chunks = foreseen(graph, wired, readers)
            told = said(wired, found, model, chunks)
        except NotKnownError as error:
            told = dict.fromkeys(wired.nodes, f"{LATER}: {error}")
        except (SettingError, AttributeError, KeyError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, SettingError) else "a field of the graph is missing"
            told = dict.fromkeys(wired.nodes, reason)
        for node, text in told.items():
            texts.setdefault(node, []).append(text)
    return {node: "\n".join(dict.fromkeys(lines)) for node, lines in texts.items()}


def said(wired: Wired, found: Estimate, model: Model, chunks: int) -> dict[str, str]:
    seconds = speed.seconds(model, found.flops)
    texts = {wired.sampler: on_sampler(found, seconds)}
    if wired.reuse is not None:
        texts[wired.reuse] = on_reuse(found, seconds)
    if wired.kv is not None:
        texts[wired.kv] = on_compressor(found, chunks)
    return texts


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
        graph = running_graph()
        wired = Wired.of(graph, here.display) if here.display in graph.nodes else None
        if wired is None:
            return
        model, windows = of_patcher(patcher, branches), runs()
        source = settings.reuse.source if settings.reuse else None
        found = estimate(model, windows, latents, source.computed_steps if source else None)
        for node, text in said(wired, found, model, sum(len(one.plan.chunks) for one in windows)).items():
            show_text_on(node, text)
    except Exception as error:
        logging.warning("FlowCache: no estimate of this run: %r", error)


def on_running_compressor(patched: Any, kv: KVSettings) -> str:
    """For the compressor node while it executes: K/V of the first sampling behind it, or the budget alone.

    patched: the MODEL that it hands on.
    """
    here = RunningNode.now()
    alone = f"{max(kv.budgets):g} chunks of finished video are kept, beside the active ones"
    if here is None:
        return alone
    graph = running_graph()
    for sampling in graph.of_kind(*SAMPLINGS):
        wired = Wired.of(graph, sampling)
        if wired is None or here.display != wired.kv:
            continue
        try:
            model = of_patcher(patched, branches_of(graph, sampling))
            found, chunks = reckoned(graph, wired, model, settings_of(patched.model_options))
            return on_compressor(found, chunks)
        except Exception as error:  # a text about the run must not be what ends it
            logging.debug("FlowCache: no estimate on the compressor: %r", error)
    return alone


def running_graph() -> Graph:
    """The prompt that runs now."""
    return Graph.of(get_progress_state().dynprompt.get_original_prompt())
