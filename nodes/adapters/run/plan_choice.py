"""The sampler node's fields as plans of the core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ....flowcache_core.errors import require
from ....flowcache_core.plan import PLANS, PlanSettings
from ....flowcache_core.plan.base import Plan
from ....flowcache_core.plan.staggered import VideoWindow, overlap_windows
from ....flowcache_core.released import RELEASED, Released
from ....flowcache_core.schedule import Schedule
from ....flowcache_core.solvers import SOLVERS
from ....flowcache_core.solvers.base import Solver

AS_RELEASED = "as released"
"""The choice that stands for a model's own plan, noise levels and K/V, beside the kinds of plans."""
BY_TITLE: dict[str, type[PlanSettings]] = {kind.title: kind for kind in PLANS.values()}


@dataclass(frozen=True)
class PlanChoice:
    """Frames are latent frames; ``window_frames`` 0 stands for the whole video. ``released``: the model whose own
    settings these are; then it also says noise levels and K/V.
    """

    kind: PlanSettings
    solver: Solver
    clean_pass: bool
    attention: str = "block-causal"
    window_frames: int = 0
    overlap_frames: int = 0
    prefix_noise: float = 0.0
    released: Released | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> PlanChoice:
        """From the node's fields, ``plan`` and ``solver`` by name. SettingError when two of them exclude each other."""
        title = values["plan"]
        require(title in (*BY_TITLE, AS_RELEASED), "plan", title, ", ".join((*BY_TITLE, AS_RELEASED)))
        if title == AS_RELEASED:
            name = values["model"]
            require(name in RELEASED, "model", name, ", ".join(RELEASED))
            return cls.as_released(RELEASED[name])
        solver = values["solver"]
        require(solver in SOLVERS, "solver", solver, ", ".join(SOLVERS))
        own = {one.name: values[one.name] for one in fields(cls) if one.name in values and one.name != "solver"}
        choice = cls(BY_TITLE[title].of(values), SOLVERS[solver](), **own)
        if choice.attention == "bidirectional":
            require(not choice.clean_pass, "clean_pass", True, "off with attention bidirectional, which keeps no K/V")
        if choice.window_frames:
            choice.check_windows()
        return choice

    @classmethod
    def as_released(cls, released: Released) -> PlanChoice:
        solver = SOLVERS[released.solver]()
        return cls(released.plan, solver, clean_pass=True, attention=released.attention, released=released)

    @property
    def chunk_frames(self) -> int:
        return self.kind.chunk_frames

    @property
    def joint_frames(self) -> int:
        """Latent frames that a forward over several chunks sees, 0 for all that is kept."""
        return 0 if self.released is None else self.released.joint_frames

    def check_windows(self) -> None:
        """SettingError when a video longer than a window could not be cut into such windows."""
        room = f"0, or at least the {self.chunk_frames} latent frames of a chunk"
        require(self.window_frames >= self.chunk_frames, "window_frames", self.window_frames, room)
        overlap_windows(self.window_frames + 1, self.window_frames, self.overlap_frames, self.chunk_frames)

    def windows(self, frames: int, prefix_frames: int) -> tuple[VideoWindow, ...]:
        """The windows of a video; its own clean prefix belongs to the first one."""
        if self.released is not None:
            return self.released.windows(frames, prefix_frames)
        if not self.window_frames:
            return (VideoWindow(0, frames, prefix_frames),)
        first, *others = overlap_windows(frames, self.window_frames, self.overlap_frames, self.chunk_frames)
        most = f"fewer than the {first.frames} latent frames of a window"
        require(prefix_frames < first.frames, "prefix frames", prefix_frames, most)
        return (VideoWindow(0, first.frames, prefix_frames), *others)

    def plan(self, part: VideoWindow, steps: int) -> Plan:
        return self.kind.plan(part.frames, steps, part.prefix_frames)

    def schedule(self, part: VideoWindow, given: Schedule) -> Schedule:
        """The noise levels of a window's chunks: those the sampler was ``given``, or a released first chunk's own."""
        own = given if self.released is None else self.released.schedule_of(part)
        return given if self.released is None or own == self.released.schedule else own
