"""What a user decides about sparse attention: how blocks are chosen, what stays dense, how long a mask serves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from ..errors import require, require_count
from ..kv.contexts import Budget, contexts, recached
from ..kv.settings import KVSettings
from ..kv.spec import KVSpec
from ..options import option
from ..plan.base import Chunk, Plan
from .attend import AUTO, ENGINE_NAMES
from .cost import Forward, mask_bytes
from .mask_reuse import MaskReuse
from .method import SparseMethod
from .xattention import XAttention


@dataclass(frozen=True)
class SparseSettings:
    """Immutable settings of a run's sparse self-attention.

    method: how the blocks are chosen. dense_chunks: chunks whose context, their own tokens included, is of up to that
    many chunks stay dense (with everything sparse, errors of the first chunks run through the whole video; the default
    is what that measurement ended in). dense_steps: a chunk's first steps that stay dense. dense_lasting: passes
    that only write K/V for the chunks to come stay dense. reuse: how long a mask serves, None makes each step's anew.
    engine: see :func:`flowcache_core.sparse.attend.choose_engine`.
    """

    method: SparseMethod = field(default_factory=XAttention)
    dense_chunks: int = option(
        2,
        "Contexts of up to so many chunks, the chunk itself among them, stay dense. With everything sparse, errors of "
        "the first chunks run through the whole video.",
        minimum=0,
        maximum=1000,
        place=20,
    )
    dense_steps: int = option(
        0, "First steps of every chunk that stay dense.", minimum=0, maximum=1000, place=21, advanced=True
    )
    dense_lasting: bool = True
    reuse: MaskReuse | None = None
    engine: str = option(
        AUTO,
        "What computes it. auto: SpargeAttn where it is installed and ComfyUI runs SageAttention, else torch's "
        "flex_attention, on a CPU gather; dense where none works, which the report says.",
        choices=ENGINE_NAMES,
        place=50,
        advanced=True,
    )

    def __post_init__(self) -> None:
        require_count("dense_chunks", self.dense_chunks, minimum=0)
        require_count("dense_steps", self.dense_steps, minimum=0)
        require(isinstance(self.dense_lasting, bool), "dense_lasting", self.dense_lasting, "true or false")
        require(self.engine in ENGINE_NAMES, "engine", self.engine, " or ".join(ENGINE_NAMES))

    def check(self, chunk_tokens: Sequence[int], layers: int, heads: int) -> None:
        """SettingError when these settings do not suit a model of ``layers`` with ``heads`` query heads, or a video
        whose chunks have ``chunk_tokens``.
        """
        largest = max(chunk_tokens)
        require(self.method.block <= largest, "block", self.method.block, f"at most the {largest} tokens of a chunk")
        self.method.check_model(layers, heads)

    def dense(self, step: int, context_tokens: int, chunk_tokens: int, *, lasting: bool = False) -> bool:
        """Whether a forward of ``step`` attends to everything. ``chunk_tokens`` of the largest chunk, the unit of
        dense_chunks; ``lasting``: the forward is there for the K/V it writes.
        """
        short = context_tokens <= self.dense_chunks * chunk_tokens
        return short or step < self.dense_steps or (lasting and self.dense_lasting)

    def contexts(
        self, plan: Plan, tokens_per_frame: int, kv: KVSettings, recache: Collection[int] = ()
    ) -> Iterator[tuple[int, Chunk, int, int]]:
        """(layers, chunk, its own step, tokens it attends to in them) of all steps, budget by budget. recache: see
        :class:`flowcache_core.engine.EngineSettings`."""
        again = recached(plan, tokens_per_frame, kv, recache)
        for budget, layers in Counter(Budget(one, kv.at_finish) for one in kv.budgets or (None,)).items():
            for chunk, step, context in contexts(plan, tokens_per_frame, budget, again):
                yield layers, chunk, step, context

    def forwards(
        self, plan: Plan, tokens_per_frame: int, kv: KVSettings, recache: Collection[int] = ()
    ) -> Iterator[Forward]:
        """The steps of ``plan`` as if all were computed, in every layer that has a budget of its own."""
        largest = max(chunk.frames for chunk in plan.chunks) * tokens_per_frame
        found: Counter[tuple[int, int, bool]] = Counter()
        for layers, chunk, step, context in self.contexts(plan, tokens_per_frame, kv, recache):
            dense = self.dense(step, context, largest)
            found[chunk.frames * tokens_per_frame, context, dense] += layers
        for (tokens, context, dense), times in found.items():
            yield Forward(tokens, context, dense, times)

    def sparse_steps(
        self, plan: Plan, tokens_per_frame: int, kv: KVSettings, recache: Collection[int] = ()
    ) -> dict[int, tuple[int, ...]]:
        """Chunk -> its own steps that are sparse in some layer, ascending; chunks without one are not there."""
        largest = max(chunk.frames for chunk in plan.chunks) * tokens_per_frame
        found: dict[int, set[int]] = {}
        for _, chunk, step, context in self.contexts(plan, tokens_per_frame, kv, recache):
            if not self.dense(step, context, largest):
                found.setdefault(chunk.index, set()).add(step)
        return {chunk: tuple(sorted(found[chunk])) for chunk in sorted(found)}

    def settled(self, plan: Plan, tokens_per_frame: int, kv: KVSettings, recache: Collection[int] = ()) -> SparseMethod:
        """The method for a run of ``plan``. kv: settled, where that is done. SettingError (field "density") for one
        that its dense part exceeds alone.
        """
        return self.method.fitted(tuple(self.forwards(plan, tokens_per_frame, kv, recache)))

    def memory(self, spec: KVSpec, plan: Plan, capacity: int) -> int:
        """Bytes of the masks that a run keeps to serve again; ``capacity`` tokens are the longest context."""
        if self.reuse is None:
            return 0
        tokens = max(chunk.frames for chunk in plan.chunks) * spec.tokens_per_frame
        one = mask_bytes(tokens, capacity, self.method.block, spec.layers, spec.heads) * spec.branches * spec.batch
        return one * (plan.max_active + (plan.steps if self.reuse.across_chunks else 0))

    def note(self, longest_context: int, chunk_tokens: int, steps: int) -> str | None:
        """A sentence when nothing can become sparse in a video of these sizes, None when something can."""
        if self.dense_steps >= steps:
            return f"dense_steps {self.dense_steps} of {steps}: every step is dense"
        if self.dense(steps - 1, longest_context, chunk_tokens):
            longest = f"{longest_context / chunk_tokens:g} chunks at most"
            return f"dense_chunks {self.dense_chunks}: no context is longer ({longest}), all stay dense"
        return None
