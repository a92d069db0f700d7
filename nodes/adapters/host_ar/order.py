"""The order in which ComfyUI's own AR sampler calls the model, followed call by call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ....flowcache_core.errors import SettingError
from ....flowcache_core.plan.base import Chunk, Plan
from ....flowcache_core.schedule import Schedule
from ..run.foreign import repeated, skipped
from ..shown.said import said

HOST_SAMPLER = "Sampler AR Video"
OUR_SAMPLER = "AR Video Sampler (FlowCache)"
INSTEAD = f"{OUR_SAMPLER} in the place of {HOST_SAMPLER}"

Call = tuple[Chunk, int | None]
"""Chunk and own step of a model call; None for the step of a pass that only leaves K/V."""


@dataclass
class CallOrder:
    """Which call of a run this is, and whether one is missing or too many.

    newest: first frame and noise level of the last call, and the conditioning it was made for. model_options: the
    run's, for the names of other nodes in errors.
    """

    plan: Plan
    schedule: Schedule
    model_options: Mapping[str, Any] = field(default_factory=dict)
    newest: tuple[int, float, list[Any]] | None = None
    calls: Iterator[Call] = field(init=False)

    def __post_init__(self) -> None:
        self.calls = expected_calls(self.plan)

    def next(self, x: Tensor, t: Tensor, start_frame: int, uuids: Sequence[Any]) -> Call:
        """What the sampler asks for now. SettingError when one step makes several calls, since there is one K/V for
        all, or when an earlier call never came here.
        """
        sigma = float(t[0])  # no further device sync: the sampler itself waits for every sigma
        before, self.newest = self.newest, (start_frame, sigma, [*uuids])
        if before == self.newest:
            raise repeated(
                f"the model ran twice in one step, at sigma {sigma:.3g}", self.model_options, f"; or {INSTEAD}"
            )
        if len(uuids) != 1 or (before is not None and before[:2] == self.newest[:2]):
            accepted = f"one conditioning evaluated once per step (CFG 1), or {INSTEAD}"
            raise SettingError("conditioning", "several model evaluations in one step", accepted)
        frames = (start_frame, x.shape[2])
        expected = next(self.calls, None)
        if expected is not None and self.fits(expected, frames, sigma):
            return expected
        if expected is not None and any(self.fits(later, frames, sigma) for later in self.calls):
            raise self.missing(expected)
        problem = (
            f"{HOST_SAMPLER} samples frames {start_frame} to {start_frame + x.shape[2] - 1} at sigma {sigma:.3g} where "
            f"{expected} was expected: this ComfyUI is newer than FlowCache knows; use {OUR_SAMPLER}"
        )
        raise RuntimeError(said(problem))

    def fits(self, call: Call, frames: tuple[int, int], sigma: float) -> bool:
        chunk, step = call
        level = 0.0 if step is None else self.schedule.sigmas[step]
        return (chunk.first_frame, chunk.frames) == frames and math.isclose(level, sigma, rel_tol=1e-6)

    def finish(self) -> None:
        """SettingError when calls never came here. The last one would only leave K/V that nobody reads."""
        left = [call for call in self.calls if call != (self.plan.chunks[-1], None)]
        if left:
            raise self.missing(left[0])

    def missing(self, call: Call) -> SettingError:
        chunk, step = call
        found = f"the model was not run for chunk {chunk.index}, {'clean pass' if step is None else f'step {step}'}"
        return skipped(found, self.model_options, f"; or {INSTEAD}")


def expected_calls(plan: Plan) -> Iterator[Call]:
    for chunk in plan.chunks:
        if chunk.index >= plan.prefix_chunks:
            yield from ((chunk, step) for step in range(plan.steps))
        yield chunk, None
