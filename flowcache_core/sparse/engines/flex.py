"""torch's flex_attention: one compiled kernel that reads the blocks of a row from a list. On a GPU it needs Triton."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..mask import SparseMask
from .base import TOLERANCE, Call, Engine, EngineError, first_line, odd_out

_TILES = (None, 64, 32)
"""Tiles of the kernel to try, None for torch's own choice, which does not fit the shared memory of every card."""

_tile: dict[Call, int | None] = {}
_problem: dict[Call, str] = {}
"""What is known about a call: the tile that works, or why none does. Kept for the process, as compiled kernels are."""

_probing = threading.Lock()


@dataclass(frozen=True)
class Flex(Engine):
    """All kept blocks go in as full ones, so a new mask is new data and no new kernel. The kernel is compiled when a
    call is first asked about, tried on a small case, and then serves every number of tokens; other dtypes, heads
    and batches have their own.
    """

    name: ClassVar[str] = "flex"

    def blocker(self, call: Call) -> str | None:
        with _probing:
            if call not in _tile and call not in _problem:
                self._probe(call)
        return _problem.get(call)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: SparseMask) -> Tensor:
        call = Call.of(q, k, mask.block)
        problem = self.blocker(call)
        if problem is not None:
            raise EngineError(problem)
        try:
            return _run(call, _tile[call], q, k, v, mask)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise what they like
            _problem[call] = f"flex_attention failed for {call}: {first_line(error)}"
            raise EngineError(_problem[call]) from error

    @staticmethod
    def _probe(call: Call) -> None:
        """Compile for ``call``, with smaller tiles where the larger fail, and compare with dense attention."""
        for tile in _TILES if call.device.type != "cpu" else _TILES[:1]:
            try:
                wrong = odd_out(call, partial(_run, call, tile), TOLERANCE[call.dtype])
            except Exception as error:
                wrong = first_line(error)
            if wrong is None:
                _tile[call] = tile
                _problem.pop(call, None)
                return
            _problem.setdefault(call, f"flex_attention does not work for {call}: {wrong}")


def _run(call: Call, tile: int | None, q: Tensor, k: Tensor, v: Tensor, mask: SparseMask) -> Tensor:
    kept = mask.for_heads(call.batch, call.heads)
    number = kept.sum(-1, dtype=torch.int32)
    index = kept.to(torch.uint8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return _kernel(call, tile)(q, k, v, number, index)


@cache
def _kernel(call: Call, tile: int | None) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    size = None if tile is None else math.gcd(tile, call.block)  # a tile may not reach beyond its block
    options: Any = None if size is None else {"BLOCK_M": size, "BLOCK_N": size}
    # What a backward pass would need is left out where torch can.
    known = signature(BlockMask.from_kv_blocks).parameters
    extra: dict[str, Any] = {"compute_q_blocks": False} if "compute_q_blocks" in known else {}

    def sparse_attention(q: Tensor, k: Tensor, v: Tensor, number: Tensor, index: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():  # uncompiled, flex_attention would hold all scores of dense attention
            raise EngineError("torch.compile does not compile here (switched off, or its limit of kernels is reached)")
        lengths = (q.shape[2], k.shape[2])
        none = torch.zeros_like(number), torch.zeros_like(index)
        mask = BlockMask.from_kv_blocks(*none, number, index, call.block, seq_lengths=lengths, **extra)
        out = flex_attention(q, k, v, None, mask, enable_gqa=call.heads != call.kv_heads, kernel_options=options)
        assert isinstance(out, Tensor)
        return out

    # torch.compile counts kernels per code object and gives up after a few: each call has one of its own.
    own = FunctionType(
        sparse_attention.__code__.replace(), globals(), sparse_attention.__name__, None, sparse_attention.__closure__
    )
    return torch.compile(own, dynamic=True)
