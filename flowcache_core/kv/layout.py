"""Where each chunk's K/V lies in a layer's buffer ``[compressed clean | active chunks]``: whole numbers, no tensors."""

from __future__ import annotations

from dataclasses import dataclass

from ..plan.base import Plan


@dataclass(frozen=True)
class CompressionNeed:
    """The clean region must shrink from ``before`` to ``after`` tokens before the next chunk fits."""

    before: int
    after: int


@dataclass(frozen=True)
class CompressionResult:
    """What made room for or behind a chunk: per layer the tokens of the clean region before and after, None where all
    stayed."""

    chunk: int
    layers: tuple[CompressionNeed | None, ...]

    @property
    def largest(self) -> CompressionNeed:
        """The layer that held the most tokens."""
        return max((need for need in self.layers if need is not None), key=lambda need: need.before)

    @property
    def tokens_before(self) -> int:
        return self.largest.before

    @property
    def tokens_after(self) -> int:
        return self.largest.after


class KVLayout:
    """Bookkeeping of one layer. Chunks begin and finish in ascending order, so the oldest active chunk always
    lies next to the clean region and finishing it moves nothing.
    """

    def __init__(self, capacity: int) -> None:
        """``capacity`` is in tokens; see :func:`capacity_tokens`."""
        self.capacity = capacity
        self.clean_tokens = 0
        self._active: dict[int, int] = {}
        self._newest = -1

    @property
    def active(self) -> tuple[int, ...]:
        """Chunks that have begun and not finished, oldest first."""
        return tuple(self._active)

    @property
    def newest(self) -> int:
        """The chunk that began last, -1 before any."""
        return self._newest

    @property
    def active_tokens(self) -> int:
        return sum(self._active.values())

    @property
    def used_tokens(self) -> int:
        return self.clean_tokens + self.active_tokens

    def begin(self, chunk: int, tokens: int) -> CompressionNeed | None:
        """Give ``chunk`` a slot of ``tokens`` behind the active ones.

        Returns what the clean region had to give up for it (already booked), or None when there was room.
        """
        if chunk <= self._newest:
            raise RuntimeError(f"chunk {chunk} cannot begin after chunk {self._newest}: ascending order only")
        room = self.capacity - self.active_tokens - tokens
        if room < min(self.clean_tokens, 1):
            beside = f"beside active chunks {self.active} in a buffer of {self.capacity}"
            raise RuntimeError(f"no room for the {tokens} tokens of chunk {chunk} {beside}")
        need = CompressionNeed(self.clean_tokens, room) if self.clean_tokens > room else None
        self.clean_tokens = min(self.clean_tokens, room)
        self._active[chunk] = tokens
        self._newest = chunk
        return need

    def commit(self, chunk: int) -> None:
        """``chunk`` is finished: its slot joins the clean region. Only the oldest active chunk can."""
        if not self._active or next(iter(self._active)) != chunk:
            raise RuntimeError(f"chunk {chunk} cannot finish while the active chunks are {self.active}: oldest first")
        self.clean_tokens += self._active.pop(chunk)

    def trim(self, kept: int) -> CompressionNeed | None:
        """Leave at most ``kept`` tokens of the clean region (already booked); None when there are no more."""
        need = CompressionNeed(self.clean_tokens, kept) if self.clean_tokens > kept else None
        self.clean_tokens = min(self.clean_tokens, kept)
        return need

    def forget(self) -> None:
        """Drop the clean region; chunks may begin again, from any on. Only while none is active."""
        if self._active:
            raise RuntimeError(f"history cannot be dropped while chunks {self.active} are active")
        self.clean_tokens, self._newest = 0, -1

    def span(self, chunk: int) -> tuple[int, int]:
        """First and one past the last token of an active chunk's own slot."""
        start = self.clean_tokens
        for other, tokens in self._active.items():
            if other == chunk:
                return start, start + tokens
            start += tokens
        raise RuntimeError(f"chunk {chunk} is not active; active chunks: {self.active}")

    def context_end(self, chunk: int) -> int:
        """Tokens that ``chunk`` attends to: the clean region, the older active chunks and itself."""
        return self.span(chunk)[1]


def max_active_frames(plan: Plan) -> int:
    """The most latent frames that are active at once. A prefix chunk is active alone, before the first tick."""
    peak = max((chunk.frames for chunk in plan.chunks[: plan.prefix_chunks]), default=0)
    active = 0
    for tick in plan.ticks:
        active += sum(plan.chunks[item.chunk].frames for item in tick.steps if item.step == 0)
        peak = max(peak, active)
        active -= sum(plan.chunks[item.chunk].frames for item in tick.steps if item.step == plan.steps - 1)
    return peak


def largest_chunk_frames(plan: Plan) -> int:
    """Latent frames of the largest chunk: the unit of a budget."""
    return max(chunk.frames for chunk in plan.chunks)


def history_frames(plan: Plan) -> int:
    """The most finished frames that must be held while others are active: what a budget could save."""
    return sum(chunk.frames for chunk in plan.chunks) - max_active_frames(plan)


def capacity_tokens(plan: Plan, tokens_per_frame: int, budget: float | None) -> int:
    """Tokens of one layer's buffer: B_total = B_budget + B_active, and never more than the whole video.

    ``budget`` counts finished history in units of the largest chunk; None keeps everything.
    """
    total = sum(chunk.frames for chunk in plan.chunks) * tokens_per_frame
    if budget is None:
        return total
    return min(total, budget_tokens(plan, tokens_per_frame, budget) + max_active_frames(plan) * tokens_per_frame)


def budget_tokens(plan: Plan, tokens_per_frame: int, budget: float) -> int:
    """Tokens of finished history that a budget keeps, in one layer."""
    return round(budget * largest_chunk_frames(plan) * tokens_per_frame)


def drops(plan: Plan, tokens_per_frame: int, budget: float | None, at_finish: bool) -> bool:
    """Whether tokens are ever dropped from a layer with this budget.

    at_finish: as soon as a finished chunk exceeds the budget, and not when the next one has no room.
    """
    if budget is None or not at_finish:
        return capacity_tokens(plan, tokens_per_frame, budget) < plan.frames * tokens_per_frame
    before_the_last = sum(chunk.frames for chunk in plan.chunks[:-1]) * tokens_per_frame
    return budget_tokens(plan, tokens_per_frame, budget) < before_the_last
