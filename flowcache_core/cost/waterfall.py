"""Where a saving in FLOPs comes from: the vanilla model's cost, then one change after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..engine import EngineSettings
from ..kv.settings import KVSettings
from ..reuse.never import Never
from . import ModelShape, count

PETA = 1e15


@dataclass(frozen=True)
class Saving:
    """Cost after a change. saved_share: of everything that all changes together save; None for the first stage."""

    change: str
    pflops: float
    saved_pflops: float | None = None
    saved_share: float | None = None

    def __str__(self) -> str:
        line = f"  {self.change:52} {self.pflops:6.1f} PFLOPs"
        return line if self.saved_share is None else f"{line}  -{self.saved_pflops:5.1f}  {self.saved_share:4.0%} of it"


def waterfall(
    shape: ModelShape, windows: Sequence[EngineSettings], tokens_per_frame: int, branches: int
) -> tuple[Saving, ...]:
    """From the vanilla model as executed to ``windows``, block-causal runs with their reuse and budget."""

    def pflops(changed: Sequence[EngineSettings], window_attention: str = "bidirectional") -> float:
        return count(shape, changed, tokens_per_frame, branches, window_attention=window_attention).flops / PETA

    whole = [replace(w, sparse=None) for w in windows]
    causal = [replace(w, policy=Never(), kv=KVSettings()) for w in whole]
    vanilla = [replace(w, attention="bidirectional") for w in causal]
    costs = [
        ("vanilla: bidirectional, whole window at every tick", pflops(vanilla)),
        ("attention pattern: block-causal", pflops(vanilla, "block-causal")),
        ("idle chunks left out (K/V cache)", pflops(causal)),
        ("reuse", pflops([replace(w, kv=KVSettings()) for w in whole])),
        ("compression budget", pflops(whole)),
    ]
    if any(w.sparse is not None for w in windows):
        costs.append(("sparse attention", pflops(windows)))
    saving = costs[0][1] - costs[-1][1]
    stages = [Saving(*costs[0])]
    for (_, before), (change, after) in zip(costs, costs[1:]):
        stages.append(Saving(change, after, before - after, (before - after) / saving if saving else 0.0))
    return tuple(stages)
