"""What an engine is: a way to compute only the kept blocks of attention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..mask import SparseMask

TOLERANCE = {torch.float32: 1e-2, torch.float16: 3e-2, torch.bfloat16: 3e-2}
"""How far a kernel may be off in :func:`odd_out`, by dtype (fp32 may be TF32 on a GPU). Other dtypes are not tried."""


class EngineError(RuntimeError):
    """An engine cannot compute a call; the message says why. The caller goes on with dense attention."""


@dataclass(frozen=True)
class Call:
    """What a kernel is built for. Numbers of tokens are left out: they change with every chunk."""

    device: torch.device
    dtype: torch.dtype
    batch: int
    kv_batch: int
    heads: int
    kv_heads: int
    head_dim: int
    block: int

    @classmethod
    def of(cls, q: Tensor, k: Tensor, block: int) -> Call:
        batch, heads, _, dim = q.shape
        return cls(q.device, q.dtype, batch, k.shape[0], heads, k.shape[1], dim, block)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{dtype} on {self.device}, {self.heads} heads of {self.head_dim}, blocks of {self.block}"


@dataclass(frozen=True)
class Engine(ABC):
    """An engine has a ``name``, says what it cannot do, and attends."""

    name: ClassVar[str]

    @abstractmethod
    def blocker(self, call: Call) -> str | None:
        """Why such calls cannot be computed here, None when they can. The first time this may compile a kernel."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: SparseMask) -> Tensor:
        """``[B, heads, Nq, D]``; see :func:`flowcache_core.sparse.attend.attend`. EngineError when it fails."""


def odd_out(call: Call, attend: Callable[[Tensor, Tensor, Tensor, SparseMask], Tensor], tolerance: float) -> str | None:
    """Try ``attend`` on a small random case: what is wrong with its result, None when it is that of dense attention
    under the mask to within ``tolerance`` of the largest value. Ragged last blocks; what ``attend`` raises passes.
    """
    # No two sizes are equal: a compiler would take them for one and build the kernel again when they differ.
    sizes = (n for n in count(3) if n not in (call.batch, call.kv_batch, call.heads, call.kv_heads))
    rows, columns = next(sizes), next(sizes)
    q_tokens, k_tokens = rows * call.block - call.block // 3, columns * call.block - call.block // 2
    generator = torch.Generator().manual_seed(0)

    def draw(batch: int, heads: int, tokens: int) -> Tensor:
        noise = torch.randn(batch, heads, tokens, call.head_dim, generator=generator)
        return noise.to(call.device, call.dtype)

    q = draw(call.batch, call.heads, q_tokens)
    k, v = (draw(call.kv_batch, call.kv_heads, k_tokens) for _ in range(2))
    kept = torch.rand(call.batch, call.heads, rows, columns, generator=generator) < 0.5
    kept[..., -1] |= ~kept.any(-1)
    result = attend(q, k, v, SparseMask(kept.to(call.device), call.block, q_tokens, k_tokens))

    tokens = kept.repeat_interleave(call.block, 2)[:, :, :q_tokens].repeat_interleave(call.block, 3)[..., :k_tokens]
    group = call.heads // call.kv_heads
    k, v = (x.cpu().float().repeat_interleave(group, 1).expand(call.batch, -1, -1, -1) for x in (k, v))
    expected = F.scaled_dot_product_attention(q.cpu().float(), k, v, tokens)
    error = float((result.cpu().float() - expected).abs().max() / expected.abs().max())
    return None if error <= tolerance else f"its result is off by {error:.1e} of the largest value"  # NaN is not <=


def first_line(error: Exception) -> str:
    """Kind and first line of an error of somebody else's, short enough for a report."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
