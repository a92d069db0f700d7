"""What a user chooses of a plan: its kind, and the kind's own numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..errors import require_count
from ..fields import require_types
from ..options import option
from .base import Plan


@dataclass(frozen=True)
class PlanSettings(ABC):
    """One kind of plan. :meth:`plan` may be called for any length, steps and prefix; equal arguments, equal plans.

    title: what nodes call it. solver, clean_pass: what the models that are sampled this way were released with.
    whole_window: whether such models can also run a whole window in one bidirectional forward.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    solver: ClassVar[str]
    clean_pass: ClassVar[bool]
    whole_window: ClassVar[bool] = False

    chunk_frames: int = option(
        3,
        "Latent frames that are denoised together. Must be what the model was trained with: 3 for Self-Forcing, 1 or 3 "
        "for Causal-Forcing, 5 for SkyReels-V2, 6 for MAGI-1.",
        minimum=1,
        maximum=1024,
    )

    def __post_init__(self) -> None:
        require_types(self)
        require_count("chunk_frames", self.chunk_frames, minimum=1)

    @abstractmethod
    def plan(self, frames: int, steps: int, prefix_frames: int = 0) -> Plan:
        """The plan of ``frames`` latent frames, the ``prefix_frames`` that are given included. SettingError names what
        does not fit."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> PlanSettings:
        """Its fields out of ``values``, such as a preset file's run, which may hold others."""
        return cls(**{one.name: values[one.name] for one in fields(cls) if one.name in values})

    @classmethod
    def abreast(cls, chunk_frames: int, steps: int, chunks: int = 4) -> PlanSettings:
        """This kind with at most ``chunks`` chunks in work at once, where it knows such a thing."""
        return cls(chunk_frames)
