"""What chunks looked like at a probe step, kept until they are finished: how much each token still changed."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..denoiser import ChunkInput
from ..kv.settings import KVSettings
from ..kv.settled import token_change


@dataclass
class Settling:
    """step: at which the clean latents are predicted."""

    step: int
    predicted: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, kv: KVSettings, steps: int) -> Settling | None:
        """None where no compressor asks for it."""
        step = None if kv.compressor is None else kv.compressor.probe_step(steps)
        return None if step is None else cls(step)

    def note(self, item: ChunkInput, velocity: Tensor) -> None:
        """``velocity [B, C, f, H, W]``, guided, of a step from ``item``."""
        if item.step == self.step:
            self.predicted[item.chunk.index] = item.latents - item.sigma * velocity

    def finish(self, chunk: int, latents: Tensor, tokens_per_frame: int) -> Tensor:
        """Change of every token ``[B, tokens]``."""
        return token_change(self.predicted.pop(chunk), latents, tokens_per_frame)
