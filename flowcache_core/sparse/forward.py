"""Self-attention of one forward of a chunk: what is left out of it, and what that came to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..errors import SettingError
from .engines import Call, EngineError
from .mask import SparseMask, blocks

if TYPE_CHECKING:
    from .run import SparseRun

Dense = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The ordinary attention: q ``[B, heads, Nq, D]``, k and v to q's shape."""


class SparseAttention(Protocol):
    """What a forward's self-attention goes through (``ChunkInput.sparse``)."""

    def attend(
        self,
        layer: int,
        branches: range,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dense: Dense,
        *,
        sage: bool = False,
        again: bool = False,
    ) -> Tensor:
        """q ``[branches * batch, heads, Nq, D]`` to keys and values ``[.., kv_heads, Nk, D]``, of which the last Nq are
        the chunk's own; returns q's shape. dense: computes what is not left out in blocks. sage: the host computes
        it with SageAttention. again: this layer and branch have attended before in this forward.
        """
        ...


@dataclass
class SparseForward:
    """One forward of ``chunk`` at ``step`` in a run. lasting: it is there for the K/V it writes.

    density: per layer that attended sparsely, computed shares ``[heads]`` of every call. made, served: masks of heads
    predicted, and taken from an earlier step or chunk.
    """

    run: SparseRun
    chunk: int
    step: int
    own_tokens: int
    lasting: bool = False
    density: dict[int, list[Tensor]] = field(default_factory=dict)
    made: int = 0
    served: int = 0

    def attend(
        self,
        layer: int,
        branches: range,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dense: Dense,
        *,
        sage: bool = False,
        again: bool = False,
    ) -> Tensor:
        run, keys = self.run, k.shape[2]
        whole = run.settings.dense(self.step, keys, run.chunk_tokens, lasting=self.lasting) or run.method.dense(layer)
        if whole or q.shape[2] != self.own_tokens:  # some of a chunk's rows are not what its blocks are made of
            return dense(q, k, v)
        call = Call.of(q, k, run.method.block)
        engine = run.engine(call, sage)
        if engine is None:
            return dense(q, k, v)
        if run.masks is None or again or self.lasting:
            kept = run.method.mask(q, k, layer).kept
            self.made += q.shape[1] * len(branches)
        else:
            kept = self.remembered(layer, branches, q, k)
        mask = SparseMask(kept, run.method.block, q.shape[2], keys)
        try:
            out = engine.attend(q, k, v, mask)
        except EngineError as error:
            run.give_up(call, sage, str(error))
            return dense(q, k, v)
        self.density.setdefault(layer, []).append(mask.density().mean(0))
        return out

    def remembered(self, layer: int, branches: range, q: Tensor, k: Tensor) -> Tensor:
        """bool ``[branches * batch, heads, Qb, Kb]``: masks that still serve, the others made anew."""
        memory, method = self.run.masks, self.run.method
        assert memory is not None
        columns = blocks(k.shape[2], method.block)
        parts = []
        for branch, own, keys in zip(branches, q.chunk(len(branches)), k.chunk(len(branches)), strict=True):

            def predict(heads: Sequence[int], own: Tensor = own, keys: Tensor = keys) -> Tensor:
                self.made += len(heads)
                self.served -= len(heads)
                return method.mask(own, keys, layer, None if len(heads) == own.shape[1] else heads).kept

            own_keys = keys[:, :, -self.own_tokens :]
            parts.append(memory.kept((self.chunk, branch), layer, own, own_keys, predict, columns))
            self.served += own.shape[1]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def leaves_out(self, context: int) -> bool:
        """Whether anything can be left out, where ``context`` tokens are seen in the layer that sees the most. Where
        nothing can, the model is asked as if there were no sparse attention.
        """
        run = self.run
        if run.settings.dense(self.step, context, run.chunk_tokens, lasting=self.lasting):
            return False
        return not all(run.method.dense(layer) for layer in range(run.spec.layers))

    def count(self, context: int) -> None:
        """As if every layer had attended to ``context`` tokens at the method's density, for who counts and does not
        compute. SettingError for a method whose density depends on the video.
        """
        run = self.run
        density = getattr(run.method, "density", None)
        if density is None:
            raise SettingError("sparse", run.method.name, "a method that says its density, such as top-k")
        if not run.settings.dense(self.step, context, run.chunk_tokens, lasting=self.lasting) and density < 1:
            self.density = {layer: [torch.full((run.spec.heads,), density)] for layer in range(run.spec.layers)}
            self.made = run.spec.layers * run.spec.heads * run.spec.branches

    def shares(self) -> tuple[tuple[int, ...], Tensor | None]:
        """Layers that attended sparsely, and fp32 ``[layers, heads]``: the mean share each head computed; None where
        none did.
        """
        if not self.density:
            return (), None
        layers = tuple(sorted(self.density))
        return layers, torch.stack([torch.stack(self.density[layer]).mean(0) for layer in layers])
