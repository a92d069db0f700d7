"""What the transformer blocks add to the tokens, taken and put back at the layers before and behind them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ....flowcache_core.errors import require
from ..replaced import replaced


def tokens_of(embedded: Tensor) -> Tensor:
    """``[B, tokens, dim]`` from the patch embedding's ``[B, dim, f, h, w]``."""
    return embedded.flatten(2).transpose(1, 2)


@contextmanager
def capturing(transformer: Any) -> Iterator[list[Tensor]]:
    """Collects a residual ``[branches * B, tokens, dim]`` per model call of one guider call. The host may split the
    branches over several, always in the same order; what other nodes do with single blocks is part of it.
    """
    taken: list[Tensor] = []
    entered: list[Tensor] = []

    def enter(module: Any, args: Any, output: Tensor) -> None:
        entered[:] = [output]

    def leave(module: Any, args: tuple[Tensor, ...]) -> None:
        taken.append(args[0] - tokens_of(entered.pop()).to(args[0]))

    with ExitStack() as stack:
        stack.callback(transformer.patch_embedding.register_forward_hook(enter).remove)
        stack.callback(transformer.head.register_forward_pre_hook(leave).remove)
        yield taken


@contextmanager
def replacing(transformer: Any, residual: Tensor) -> Iterator[None]:
    """No block runs; the head gets the tokens plus their part of ``residual``, in the order of the calls."""
    position = 0

    def add(module: Any, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
        nonlocal position
        tokens, *rest = args
        part = residual[position : position + tokens.shape[0]]
        position += tokens.shape[0]
        accepted = "velocity: with guidance that evaluates more at some steps than at others there is none to take"
        require(part.shape == tokens.shape, "reused quantity", "residual", accepted)
        return (tokens + part, *rest)

    with ExitStack() as stack:
        for block in transformer.blocks:
            stack.enter_context(replaced(block, "forward", lambda original: untouched))
        stack.callback(transformer.head.register_forward_pre_hook(add).remove)
        yield


@torch.compiler.disable
def untouched(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In place of a block."""
    return x
