"""A guider's conditioning as the core's denoisers take it: one prompt a branch, by the chunk it holds from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import lcm
from typing import Any

from comfy.samplers import CFGGuider
from torch import Tensor

from ....flowcache_core.errors import Found, listed, require
from ..run.prompt_schedule import Entry, starts
from ..wan.branches import Branches

PROMPT = "c_crossattn"
BRANCHES = ("positive", "negative")
SENTENCE = {
    "mask": "a mask",
    "hooks": "hooks (a LoRA of its own)",
    "timestep_start": "a range of noise levels",
    "timestep_end": "a range of noise levels",
    "default": "a default",
}
LONGEST = 4096  # tokens of two prompts of different length, repeated until they are as long
ACCEPTED = "one plain prompt (see AR Prompt Schedule): ranks are given prompts and nothing else"


def guidance_of(guider: Any) -> float:
    """SettingError for a guider whose own arithmetic ranks do not know."""
    known = type(guider).predict_noise is CFGGuider.predict_noise
    accepted = "Basic Guider or CFG Guider: ranks combine branches themselves"
    require(known, "guider", type(guider).__name__, accepted)
    cfg = float(guider.cfg) if guider.conds.get("negative") else 1.0
    require(cfg >= 1, "cfg", cfg, "1 or more")
    return cfg


def prompts_of_window(branches: Branches, guidance: float, first: int, chunks: int) -> dict[int, Sequence[Tensor]]:
    """Start chunk of a window -> text ``[B, T, dim]`` for each branch. first: of the video, the window's chunk 0."""
    begin = [start for start in starts(branches.conds) if first < start < first + chunks]
    names = BRANCHES if guidance > 1 else BRANCHES[:1]
    return {
        max(0, start - first): of_one_length([text_of(branches.for_chunk(start), name, start) for name in names])
        for start in (first, *begin)
    }


def text_of(conds: Mapping[str, Sequence[Entry]], name: str, chunk: int) -> Tensor:
    entries = conds.get(name, ())
    require(len(entries) == 1, name, Found(f"{len(entries)} prompts for chunk {chunk}"), ACCEPTED)
    (entry,) = entries
    more = [what for key, what in SENTENCE.items() if entry.get(key) is not None]
    more += [key for key in entry["model_conds"] if key != PROMPT]
    strength = entry.get("strength", 1.0)
    more += [f"strength {strength:g}"] if strength != 1 else []
    require(not more, name, Found(f"conditioning with {listed(more)}"), ACCEPTED)
    text: Tensor = entry["model_conds"][PROMPT].cond
    return text


def of_one_length(texts: Sequence[Tensor]) -> Sequence[Tensor]:
    """The same prompts: attention to a sequence is attention to it several times over."""
    length = lcm(*(text.shape[1] for text in texts))
    found = Found(" and ".join(f"{text.shape[1]} tokens" for text in texts))
    require(length <= LONGEST, "negative", found, "prompts of one length, as Wan's text encoder makes them")
    return [text.repeat(1, length // text.shape[1], 1) for text in texts]
