"""Block-sparse attention, and which engine computes it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

import torch.nn.functional as F
from torch import Tensor

from ..errors import require
from .engines import ENGINES, Call, Engine, EngineError
from .mask import SparseMask

AUTO, DENSE = "auto", "dense"
ENGINE_NAMES = (AUTO, *ENGINES, DENSE)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineChoice:
    """The engine for calls of one kind, None for dense attention, and a sentence when that is not what was asked."""

    engine: Engine | None
    note: str | None = None

    @property
    def name(self) -> str:
        return DENSE if self.engine is None else self.engine.name


def choose_engine(name: str, call: Call, *, sage: bool = False) -> EngineChoice:
    """The engine ``name`` (one of :data:`ENGINE_NAMES`) if it can compute ``call``, else dense attention and why.

    "auto": gather on a CPU; elsewhere flex, before it SpargeAttn where the host computes dense attention with
    SageAttention (``sage``), which flex does not beat at usual densities.
    """
    require(name in ENGINE_NAMES, "engine", name, " or ".join(ENGINE_NAMES))
    if name == DENSE:
        return EngineChoice(None)
    names = [name]
    if name == AUTO:
        names = ["gather"] if call.device.type == "cpu" else [*(["sparge"] if sage else []), "flex"]
    reasons: list[str] = []
    for candidate in names:
        reason = ENGINES[candidate].blocker(call)
        if reason is None:
            return EngineChoice(ENGINES[candidate], "; ".join(reasons) or None)
        reasons.append(reason)
    return EngineChoice(None, f"attention stays dense: {'; '.join(reasons)}")


def attend(q: Tensor, k: Tensor, v: Tensor, mask: SparseMask, *, engine: str = AUTO, sage: bool = False) -> Tensor:
    """Every query attends to the keys of the blocks its mask keeps. Returns ``[B, heads, Nq, D]`` in q's dtype.

    ``q [B, heads, Nq, D]``; ``k``, ``v [1 or B, kv_heads, Nk, D]``: a batch of 1 serves all, heads / kv_heads query
    heads share one of K/V. Scale 1 / sqrt(D). A row that keeps no block is 0. Where no engine works the attention
    is dense, and the log says so once; :func:`choose_engine` tells beforehand.
    """
    call = _checked(q, k, v, mask)
    choice = choose_engine(engine, call, sage=sage)
    if choice.engine is not None:
        try:
            return choice.engine.attend(q, k, v, mask)
        except EngineError as error:
            choice = EngineChoice(None, f"attention stays dense: {error}")
    if choice.note is not None:
        _warn_once(choice.note)
    return dense(q, k, v)


@cache
def _warn_once(note: str) -> None:
    _log.warning("%s", note)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of every query to every key; shapes as in :func:`attend`."""
    k, v = (x.expand(q.shape[0], -1, -1, -1) for x in (k, v))
    # Heads that share keys are more queries to them: a call that every torch knows, and no copy of K/V.
    grouped = q.unflatten(1, (k.shape[1], -1))
    return F.scaled_dot_product_attention(grouped.flatten(2, 3), k, v).unflatten(2, grouped.shape[2:4]).flatten(1, 2)


def _checked(q: Tensor, k: Tensor, v: Tensor, mask: SparseMask) -> Call:
    ok = all(x.dim() == 4 and x.is_floating_point() and x.device == q.device and x.dtype == q.dtype for x in (q, k, v))
    shapes = f"{q.dtype} {tuple(q.shape)}, {k.dtype} {tuple(k.shape)}, {v.dtype} {tuple(v.shape)}"
    require(ok, "q, k, v", shapes, "floating-point [batch, heads, tokens, head_dim] of one dtype on one device")
    ok = k.shape == v.shape and k.shape[0] in (1, q.shape[0]) and k.shape[3] == q.shape[3]
    require(ok and q.shape[1] % k.shape[1] == 0, "k, v", shapes, "K/V of q's batch or 1, whose heads divide q's")
    given, needed = (mask.q_tokens, mask.k_tokens), (q.shape[2], k.shape[2])
    require(given == needed, "mask", f"for {given[0]} x {given[1]} tokens", f"one for {needed[0]} x {needed[1]}")
    mask.for_heads(*q.shape[:2])
    return Call.of(q, k, mask.block)
