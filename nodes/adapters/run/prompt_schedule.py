"""Prompts per chunk: carried by the host's conditioning entries, chosen when a chunk is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....flowcache_core.errors import require

KEY = "flowcache_prompt"
Entry = dict[str, Any]
Conditioning = list[list[Any]]


@dataclass(frozen=True)
class ScheduledPrompt:
    """From which chunk on an entry holds, whether earlier K/V is computed again then, and whether it begins a new shot.
    ``start_percent`` and ``end_percent`` are the entry's own, None when it has none.
    """

    start: int
    recache: bool = False
    cut: bool = False
    start_percent: float | None = None
    end_percent: float | None = None


def schedule(
    first: Conditioning, later: Sequence[tuple[int, int, Conditioning]], recache: bool, cut: bool = False
) -> Conditioning:
    """``later``: (number of the input, start chunk, prompt), starts rising. ``first`` may be a schedule already."""
    entries = [[embedding, {**options, KEY: options.get(KEY, ScheduledPrompt(0))}] for embedding, options in first]
    for number, start, prompt in later:
        newest = max(options[KEY].start for _, options in entries)
        require(start > newest, f"start_{number}", start, f"a chunk after {newest}, where the prompt before it starts")
        for embedding, options in prompt:
            plain = KEY not in options
            require(plain, f"prompt_{number}", "a schedule", "a single prompt; a schedule goes into prompt_1")
            own = ScheduledPrompt(start, recache, cut, options.get("start_percent"), options.get("end_percent"))
            # A range that no noise level is in: samplers that know no schedule use the first prompt alone.
            entries.append([embedding, {**options, KEY: own, "start_percent": 1.0, "end_percent": 0.0}])
    return entries


def prompts_of(entries: Iterable[Entry], chunk: int, model_sampling: Any) -> list[Entry]:
    """The processed entries of one conditioning that hold for ``chunk``."""
    entries = list(entries)
    starts = [entry[KEY].start for entry in entries if KEY in entry and entry[KEY].start <= chunk]
    if not starts:
        return entries
    now = max(starts)
    return [awake(entry, model_sampling) for entry in entries if KEY not in entry or entry[KEY].start == now]


def awake(entry: Entry, model_sampling: Any) -> Entry:
    """A scheduled entry with its own range of noise levels again."""
    if KEY not in entry or entry[KEY].start == 0:
        return entry
    own: ScheduledPrompt = entry[KEY]
    restored = {key: value for key, value in entry.items() if key not in ("timestep_start", "timestep_end")}
    if own.start_percent is not None:
        restored["timestep_start"] = model_sampling.percent_to_sigma(own.start_percent)
    if own.end_percent is not None:
        restored["timestep_end"] = model_sampling.percent_to_sigma(own.end_percent)
    return restored


def starts(conds: Mapping[str, Sequence[Entry]]) -> list[int]:
    """Start chunks of all prompts, 0 first."""
    return sorted({0} | {entry[KEY].start for entries in conds.values() for entry in entries if KEY in entry})


def recached(conds: Mapping[str, Sequence[Entry]]) -> frozenset[int]:
    """Start chunks at which earlier K/V is to be computed again."""
    return frozenset(
        entry[KEY].start for entries in conds.values() for entry in entries if KEY in entry and entry[KEY].recache
    )


def cuts(conds: Mapping[str, Sequence[Entry]]) -> tuple[int, ...]:
    """Start chunks of prompts that begin a new shot."""
    found = {entry[KEY].start for entries in conds.values() for entry in entries if KEY in entry and entry[KEY].cut}
    return tuple(sorted(found))
