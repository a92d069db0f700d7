"""Runs that are recorded for a calibration: each into a recording of its own, which its record is kept beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ....flowcache_core.architecture import architecture_of
from ....flowcache_core.calibrate.gram import Grams
from ....flowcache_core.calibrate.record import Record
from ....flowcache_core.calibrate.recording import Facts, Recording
from ....flowcache_core.engine import EngineSettings
from ....flowcache_core.schedule import shift_of

FILE = "flowcache_file"
"""Under which a loader of the pack notes the name of a file on the host's ModelPatcher."""


def recorded(
    engines: Sequence[EngineSettings], patcher: Any, guidance: float, seed: int
) -> tuple[list[EngineSettings], Recording | None]:
    """The windows of one run, and the recording that they go into where its settings say so.

    What a node makes is used by many runs, so its own ``Record`` stays empty.
    """
    first = engines[0]
    if not isinstance(first.policy, Record):
        return list(engines), None
    transformer = patcher.model.diffusion_model
    name, shift = model_name(patcher), shift_of(first.schedule)
    facts = Facts.of(first, name, "", shift, guidance, architecture_of(transformer))
    chunks = max(len(engine.plan.chunks) - engine.plan.prefix_chunks for engine in engines)
    recording = Recording(facts, chunks, sources=(f"seed {seed}",))

    def recording_of(engine: EngineSettings) -> Record:
        """Windows that begin from other noise levels are no part of it."""
        same = engine.schedule.sigmas == first.schedule.sigmas
        return Record(grams=recording.grams if same else Grams())

    return [replace(engine, policy=recording_of(engine)) for engine in engines], recording


def model_name(patcher: Any) -> str:
    """Name of the model's file, as its loader noted it; its architecture where it noted none."""
    if isinstance(noted := getattr(patcher, "attachments", {}).get(FILE), str):
        return noted
    loader = getattr(patcher, "cached_patcher_init", None)
    path = loader[1][0] if loader is not None and loader[1] else None
    if isinstance(path, str | Path) and str(path):
        return Path(path).name
    return architecture_of(patcher.model.diffusion_model) or "unknown"
