"""SpargeAttn's block-sparse kernel in int8 and fp8, where its package is installed: NVIDIA cards from Ampere on.

The only engine that gains anything over SageAttention. It is looked for, never required.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..mask import SparseMask, blocks
from .base import Call, Engine, EngineError, first_line, odd_out

_TOLERANCE = 0.15
"""Of the largest value in the trial case; int8 and fp8 are coarse, a misread mask is off by much more."""

_known: dict[Call, str | None] = {}
_probing = threading.Lock()


@dataclass(frozen=True)
class Sparge(Engine):
    """Its blocks are 128 queries by 64 keys, on Hopper 64 by 128: ours must be a multiple of 128 and are split."""

    name: ClassVar[str] = "sparge"

    def blocker(self, call: Call) -> str | None:
        problem = _unsupported(call)
        if problem is not None:
            return problem
        with _probing:
            if call not in _known:
                _known[call] = _probe(call)
        return _known[call]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: SparseMask) -> Tensor:
        call = Call.of(q, k, mask.block)
        problem = self.blocker(call)
        if problem is not None:
            raise EngineError(problem)
        try:
            return _run(_kernel(), *_split(call.device), q, k, v, mask)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            _known[call] = f"SpargeAttn failed for {call}: {first_line(error)}"
            raise EngineError(_known[call]) from error


def _unsupported(call: Call) -> str | None:
    if call.device.type != "cuda":
        return f"SpargeAttn needs an NVIDIA GPU, the model is on {call.device}"
    if call.head_dim not in (64, 128):
        return f"SpargeAttn knows heads of 64 and 128, the model's have {call.head_dim}"
    if call.dtype not in (torch.float16, torch.bfloat16):
        return f"SpargeAttn computes in float16 and bfloat16, the model in {str(call.dtype).removeprefix('torch.')}"
    if call.block % 128:
        return f"SpargeAttn needs blocks of a multiple of 128 tokens, not of {call.block}"
    return None


def _probe(call: Call) -> str | None:
    try:
        wrong = odd_out(call, partial(_run, _kernel(), *_split(call.device)), _TOLERANCE)
    except ImportError as error:
        return f"SpargeAttn is not installed ({error})"
    except Exception as error:
        wrong = first_line(error)
    return None if wrong is None else f"SpargeAttn does not work for {call}: {wrong}"


def _kernel() -> Any:
    return import_module("spas_sage_attn").block_sparse_sage2_attn_cuda


def _split(device: torch.device) -> tuple[int, int]:
    """The kernel's own blocks, queries by keys."""
    return (64, 128) if torch.cuda.get_device_capability(device) == (9, 0) else (128, 64)


def _run(kernel: Any, rows: int, columns: int, q: Tensor, k: Tensor, v: Tensor, mask: SparseMask) -> Tensor:
    """``kernel`` on blocks of ``rows`` queries by ``columns`` keys, which divide the mask's. It knows no K/V shared by
    a batch, and nothing is known of what it does with a row without a block.
    """
    batch, heads, q_tokens, _ = q.shape
    kept = mask.for_heads(batch, heads)
    fine = kept.repeat_interleave(mask.block // rows, 2)[:, :, : blocks(q_tokens, rows)]
    fine = fine.repeat_interleave(mask.block // columns, 3)[..., : blocks(k.shape[2], columns)]
    k, v = (x.expand(batch, -1, -1, -1) for x in (k, v))
    out: Tensor = kernel(q, k, v, mask_id=fine.contiguous())
    empty = ~kept.any(-1).repeat_interleave(mask.block, 2)[:, :, :q_tokens, None]
    return out.to(q.dtype).masked_fill(empty, 0)
