"""One chunk after the other, as Self Forcing and Causal Forcing sample."""

from __future__ import annotations

from ..errors import require_count
from .base import Plan, offset_ticks, split_frames


def blockwise(frames: int, chunk_frames: int, steps: int, prefix_frames: int = 0) -> Plan:
    """All steps of a chunk at consecutive ticks, then the next chunk.

    frames: latent frames, the prefix included. Raises SettingError naming the count that cannot work.
    Source: Self Forcing (arXiv 2506.08009), Algorithm 2.
    """
    require_count("steps", steps, minimum=1)
    chunks, prefix_chunks = split_frames(frames, chunk_frames, prefix_frames)
    return Plan("blockwise", chunks, steps, offset_ticks(chunks, prefix_chunks, steps, steps), prefix_chunks)
