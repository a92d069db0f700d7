"""FLOPs of one chunk forward as torch counts them against the closed form of the cost model."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowcache_core.cost.shapes import MagiShape
from flowcache_core.models.common.cached_attention import attending
from flowcache_core.models.magi.config import MagiConfig
from flowcache_core.models.magi.layers import attend_grouped
from flowcache_core.models.magi.transformer import MagiTransformer

FULL = MagiConfig(dim=3072, ffn_dim=12288, num_layers=34, num_heads=24, kv_heads=8, head_dim=128, cond_dim=768)
REDUCED = MagiConfig(dim=384, ffn_dim=1536, num_layers=4, num_heads=6, kv_heads=2, head_dim=64, cond_dim=96, bands=8)
TEXT_TOKENS = 100


@dataclass(frozen=True)
class Count:
    """One forward of a chunk of ``tokens`` that attends to ``context`` tokens."""

    name: str
    device: str
    tokens: int
    context: int
    counted: float
    closed_form: float

    @property
    def difference(self) -> float:
        """What the closed form lacks, as a share of what was counted."""
        return 1 - self.closed_form / self.counted

    def __str__(self) -> str:
        return (
            f"{self.name:10} {self.device:5} {self.tokens:6d} tokens, context {self.context:6d}: counted "
            f"{self.counted / 1e12:10.4f} TFLOP, closed form {self.closed_form / 1e12:10.4f} ({self.difference:+.3%})"
        )

    def row(self) -> dict[str, object]:
        return {**asdict(self), "difference": self.difference}


@torch.no_grad()
def count(name: str, config: MagiConfig, device: str, side: int, frames: int, chunks: int) -> Count:
    """Count the newest of ``chunks`` chunks with latents of ``frames`` frames of ``side * side``."""
    with torch.device(device):
        model = MagiTransformer(config).requires_grad_(False)
        latents = torch.zeros(1, 16, frames, side, side)
        caption, t = torch.zeros(TEXT_TOKENS, config.text_dim), torch.zeros(1)
    tokens = frames * model.tokens_per_frame(latents)
    earlier = torch.zeros(1, config.kv_heads, (chunks - 1) * tokens, config.head_dim, device=device)

    def memory(layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat((earlier, k), 2), torch.cat((earlier, v), 2)

    rows = [model.y_embedder.y_proj_xattn(caption)]  # once per run, so it is not counted
    # The counter does not know the fused attention of CPUs; the plain one is two products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.forward_chunk(latents, t, rows, first_frame=0, attention=attending(memory, attend_grouped))
    closed = MagiShape.of(config, text_tokens=TEXT_TOKENS).forward(tokens, chunks * tokens)
    return Count(name, device, tokens, chunks * tokens, float(counter.get_total_flops()), closed)


def counts() -> list[Count]:
    """The 4.5B shape at 720x720 on the meta device, alone and as fifth chunk; a reduced one computed on the CPU."""
    full = [count("MAGI-1 4.5B", FULL, "meta", 90, 6, chunks) for chunks in (1, 5)]
    return [*full, count("reduced", REDUCED, "cpu", 16, 6, 3)]
