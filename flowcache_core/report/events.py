"""Events an engine run hands to its observer, in the order in which things happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from ..denoiser import ChunkInput
    from ..engine.settings import EngineSettings
    from ..reuse.base import Decision


@dataclass(frozen=True)
class RunStarted:
    """The run is valid and its memory is allocated: ``kv_bytes`` for ``kv_tokens`` tokens per layer, with the positions
    and the sampled queries that compression needs.

    attention: "block-causal" (chunk by chunk on K/V), "bidirectional" (whole window, no K/V) or "joint" (the active
    chunks together, on K/V). kv_format: see ``KVSettings.format``. token_bytes: of one token's K/V as computed, in all
    layers; 0 where it is not known.
    """

    plan: str
    chunks: int
    prefix_chunks: int
    steps: int
    total_steps: int
    kv_bytes: int
    kv_tokens: int
    budget_tokens: int | None
    notes: tuple[str, ...]
    attention: str = "block-causal"
    kv_format: str = ""
    token_bytes: int = 0

    @classmethod
    def of(
        cls, settings: EngineSettings, kv_bytes: int, kv_tokens: int, budget_tokens: int | None, token_bytes: int
    ) -> RunStarted:
        """The start of a run with these settings; budget_tokens: None when the whole history is kept."""
        plan = settings.plan
        return cls(
            plan=plan.name,
            chunks=len(plan.chunks),
            prefix_chunks=plan.prefix_chunks,
            steps=plan.steps,
            total_steps=plan.total_steps,
            kv_bytes=kv_bytes,
            kv_tokens=kv_tokens,
            budget_tokens=budget_tokens,
            notes=settings.notes(),
            attention=settings.attention,
            kv_format=settings.kv.format if kv_tokens else "",
            token_bytes=token_bytes,
        )


@dataclass(frozen=True)
class StepTaken:
    """One chunk took one of its steps. ``context_tokens``: K/V tokens attended to, 0 if reused or in a window pass.

    computed_tokens: of the chunk's ``tokens``, those that were computed: all, some (action "part") or none. Left out,
    it follows from the action.
    """

    tick: int
    chunk: int
    step: int
    sigma: float
    action: str
    reason: str
    distance: float | None
    accumulated: float | None
    branches: int
    tokens: int
    context_tokens: int
    kv_tokens: int
    seconds: float
    computed_tokens: int = -1

    def __post_init__(self) -> None:
        if self.computed_tokens < 0:
            object.__setattr__(self, "computed_tokens", 0 if self.action == "reuse" else self.tokens)

    @property
    def computed_share(self) -> float:
        """How much of the step was computed, 0 to 1."""
        return self.computed_tokens / self.tokens if self.tokens else float(self.action != "reuse")

    @classmethod
    def of(cls, item: ChunkInput, decision: Decision, **counts: Any) -> StepTaken:
        """The step ``item`` as ``decision`` had it; counts: tick and the fields from ``branches`` on."""
        return cls(
            chunk=item.chunk.index,
            step=item.step,
            sigma=item.sigma,
            action=decision.action,
            reason=decision.reason,
            distance=decision.distance,
            accumulated=decision.accumulated,
            **counts,
        )


@dataclass(frozen=True)
class NotFinite:
    """A step left NaN or infinite values. Told when it is known, which may be ticks later, and before ``RunFinished``.

    part: whether the velocity has them already, or only the latents after the step. branches (of the velocity), videos
    (of the batch): which have them; none named where all have.
    """

    tick: int
    chunk: int
    step: int
    part: Literal["velocity", "latents"]
    branches: tuple[int, ...]
    videos: tuple[int, ...]

    @property
    def place(self) -> str:
        """Such as "chunk 2, step 13"."""
        return f"chunk {self.chunk}, step {self.step}"


@dataclass(frozen=True)
class WindowPass:
    """One bidirectional forward over the whole window (all chunks, idle ones included)."""

    tick: int
    branches: int
    chunk_tokens: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class PlacesComputed:
    """How often each place of a finished chunk was computed in its ``steps``, of chunks with steps in part. Told when
    it is known, and before ``RunFinished``. counts: ``[latent frames][rows][columns]`` of tokens.
    """

    chunk: int
    first_frame: int
    steps: int
    counts: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class AttentionDensity:
    """How much of its self-attention a forward of a chunk computed where that was not all. Told when it is known, which
    may be ticks later, and before ``RunFinished``.

    step: the chunk's own, None for a pass that is no step. branches: those that have K/V. density: computed share of
    all pairs of tokens, mean over layers, heads, branches and videos. overhead: what choosing the blocks cost, as a
    share of the dense attention. masks_made, masks_served: of heads in layers and branches, made for this forward, and
    taken over from an earlier one.
    """

    tick: int
    chunk: int
    step: int | None
    branches: int
    tokens: int
    context_tokens: int
    density: float
    overhead: float
    masks_made: int
    masks_served: int


@dataclass(frozen=True)
class HeadDensities:
    """Of a chunk that is done: the share ``density[layer][head]`` its attention computed, mean over computed steps."""

    chunk: int
    density: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Remarked:
    """A sentence about a setting that did not work out in this run, known only now."""

    text: str


CacheKind = Literal["prefix", "clean", "recache"]
"""A prefix chunk, a finished one, or history under a new prompt."""


@dataclass(frozen=True)
class CachePass:
    """An extra forward only for its K/V."""

    kind: CacheKind
    chunk: int
    branches: int
    tokens: int
    context_tokens: int
    seconds: float


@dataclass(frozen=True)
class CacheCompressed:
    """The clean region was compressed to make room for ``chunk``; token counts are per layer (the largest layer)."""

    tick: int
    chunk: int
    tokens_before: int
    tokens_after: int
    seconds: float


@dataclass(frozen=True)
class ChunkFinished:
    """A chunk is clean: its latents ``[B, C, f, H, W]`` can be decoded while later chunks still run."""

    tick: int
    chunk: int
    first_frame: int
    latents: Tensor


@dataclass(frozen=True)
class RunFinished:
    """Wall-clock seconds of the whole run and of the part spent outside the denoiser."""

    seconds: float
    engine_seconds: float


Event = (
    RunStarted
    | StepTaken
    | NotFinite
    | WindowPass
    | CachePass
    | CacheCompressed
    | AttentionDensity
    | HeadDensities
    | PlacesComputed
    | Remarked
    | ChunkFinished
    | RunFinished
)


def beside_reuse(event: Event) -> str | None:
    """What ``event`` says that makes the video another one than the uncached, beside reused steps: "kv budget"
    (something was dropped), "kv format" (what is kept is not as computed) or "sparse"; None where it says nothing of
    the kind.
    """
    if isinstance(event, CacheCompressed):
        return "kv budget"
    if isinstance(event, RunStarted) and event.kv_format:
        return "kv format"
    return "sparse" if isinstance(event, AttentionDensity) else None
