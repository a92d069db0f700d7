"""The sampler node's fields as plans of the core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ....flowcache_core.errors import require
from ....flowcache_core.plan import blockwise, staggered, window
from ....flowcache_core.plan.base import Plan
from ....flowcache_core.plan.staggered import Window, overlap_windows
from ....flowcache_core.solvers import SOLVERS, Solver


def _blockwise(choice: PlanChoice, frames: int, steps: int, prefix_frames: int) -> Plan:
    return blockwise(frames, choice.chunk_frames, steps, prefix_frames)


def _staggered(choice: PlanChoice, frames: int, steps: int, prefix_frames: int) -> Plan:
    return staggered(frames, choice.chunk_frames, steps, choice.ar_step, prefix_frames)


def _window(choice: PlanChoice, frames: int, steps: int, prefix_frames: int) -> Plan:
    return window(frames, choice.chunk_frames, steps, choice.window_chunks, prefix_frames)


PLANS: dict[str, Callable[[PlanChoice, int, int, int], Plan]] = {
    "blockwise": _blockwise,
    "diffusion forcing": _staggered,
    "sliding window": _window,
}


@dataclass(frozen=True)
class PlanChoice:
    """Frames are latent frames; ``window_frames`` 0 stands for the whole video."""

    name: str
    chunk_frames: int
    solver: Solver
    clean_pass: bool
    ar_step: int = 0
    window_chunks: int = 1
    attention: str = "block-causal"
    window_frames: int = 0
    overlap_frames: int = 0
    prefix_noise: float = 0.0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> PlanChoice:
        """From the node's fields, ``plan`` and ``solver`` by name. SettingError when two of them exclude each other."""
        values = dict(fields)
        name, solver = values.pop("plan"), values.pop("solver")
        require(name in PLANS, "plan", name, ", ".join(PLANS))
        require(solver in SOLVERS, "solver", solver, ", ".join(SOLVERS))
        choice = cls(name, solver=SOLVERS[solver](), **values)
        if choice.attention == "bidirectional":
            require(not choice.clean_pass, "clean_pass", True, "off with attention bidirectional, which keeps no K/V")
        if choice.window_frames:
            choice.check_windows()
        return choice

    def check_windows(self) -> None:
        """SettingError when a video longer than a window could not be cut into such windows."""
        room = f"0, or at least the {self.chunk_frames} latent frames of a chunk"
        require(self.window_frames >= self.chunk_frames, "window_frames", self.window_frames, room)
        overlap_windows(self.window_frames + 1, self.window_frames, self.overlap_frames, self.chunk_frames)

    def windows(self, frames: int, prefix_frames: int) -> tuple[Window, ...]:
        """The windows of a video; its own clean prefix belongs to the first one."""
        if not self.window_frames:
            return (Window(0, frames, prefix_frames),)
        first, *others = overlap_windows(frames, self.window_frames, self.overlap_frames, self.chunk_frames)
        most = f"fewer than the {first.frames} latent frames of a window"
        require(prefix_frames < first.frames, "prefix frames", prefix_frames, most)
        return (Window(0, first.frames, prefix_frames), *others)

    def plan(self, part: Window, steps: int) -> Plan:
        return PLANS[self.name](self, part.frames, steps, part.prefix_frames)
