"""Re-noising: predict the clean latents, then add fresh noise at the next level (few-step distilled models)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import require_count
from ..schedule import Schedule
from .base import NoiseSource, Solver, SolverState


@dataclass(frozen=True)
class ReNoise(Solver):
    """``x0 = x - sigma * velocity``, then ``(1 - sigma_next) * x0 + sigma_next * noise``; x0 itself where that is 0.

    What Self Forcing (arXiv 2506.08009, Algorithm 2) and ComfyUI's autoregressive sampler do.
    """

    name: ClassVar[str] = "renoise"

    def begin(self, schedule: Schedule, chunk: int, noise: NoiseSource) -> SolverState:
        return ReNoiseState(schedule, chunk, noise)


class ReNoiseState(SolverState):
    def advance(self, x: Tensor, velocity: Tensor, step: int) -> Tensor:
        sigma, sigma_next = self.schedule.sigmas[step : step + 2]
        clean = x - sigma * velocity
        if sigma_next == 0:
            return clean
        return (1 - sigma_next) * clean + sigma_next * self.noise(self.chunk, step, clean)


def host_noise(seed: int, prefix_chunks: int = 0) -> NoiseSource:
    """The noise ComfyUI's autoregressive sampler draws, on the latents' device.

    Seeded with ``seed + 1000 * block + step``, where blocks are counted after the prefix. Bit-identical to
    ``torch.manual_seed`` and ``randn_like``, but the global random state stays as it is; a sum of 2^64 or more, which
    the host cannot seed with, wraps around. Raises SettingError for a seed below 0 or above 2^64 - 1.
    """
    require_count("seed", seed, minimum=0, maximum=2**64 - 1)
    require_count("prefix_chunks", prefix_chunks, minimum=0)

    def draw(chunk: int, step: int, like: Tensor) -> Tensor:
        generator = torch.Generator(like.device).manual_seed((seed + (chunk - prefix_chunks) * 1000 + step) % 2**64)
        return torch.empty_like(like).normal_(generator=generator)

    return draw
