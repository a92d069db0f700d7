"""Where the noise of a run comes from: functions of seed and place alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .background import sent
from .errors import require_count

NoiseSource = Callable[[int, int, Tensor], Tensor]
"""``noise(chunk, step, like)``: standard normal noise with the shape, dtype and device of ``like``.

A pure function: equal arguments give equal noise whenever and however often it is called, since a step may be gone
through again.
"""


def seeded_noise(seed: int) -> NoiseSource:
    """Standard normal noise that depends on (seed, chunk, step) alone, not on the order of calls or a global state."""

    def draw(chunk: int, step: int, like: Tensor) -> Tensor:
        generator = torch.Generator(device="cpu").manual_seed((seed * 1_000_003 + chunk * 1009 + step) % 2**63)
        return sent(torch.randn(like.shape, generator=generator, dtype=torch.float32), like.device).to(like)

    return draw


def window_noise(seed: int, window: int, shape: Sequence[int]) -> Tensor:
    """Standard normal start latents of a window, fp32, drawn on the CPU: the same everywhere but for a last bit."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed((seed + 1_000_003 * window) % 2**63))


def conditioning_seed(seed: int, window: int) -> int:
    """Seed of the noise on a window's prefix; far from the seeds of start latents."""
    return (seed + 1) * 2**20 + window


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
