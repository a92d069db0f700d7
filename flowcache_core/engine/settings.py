"""Everything that shapes a run except the model, the noise and the seed."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import require, require_count, require_finite
from ..fields import require_types
from ..kv.layout import capacity_tokens, largest_chunk_frames, max_active_frames
from ..kv.settings import KVSettings
from ..plan.base import Plan
from ..reuse.base import ReusePolicy
from ..reuse.never import Never
from ..reuse.quantity import Quantity, Velocity
from ..schedule import Schedule
from ..solvers.base import Solver
from ..solvers.euler import Euler
from ..sparse.settings import SparseSettings
from .anchor import LowFrequencies

ATTENTION = ("block-causal", "bidirectional", "joint")


@dataclass(frozen=True)
class EngineSettings:
    """Everything that shapes a run except the model, the noise and the seed.

    clean_pass: re-encode a finished chunk at timestep ``clean_timestep`` so that its K/V holds no leftover noise
    (what Self-Forcing and MAGI-1 do); False leaves the K/V of its last computed step (what FlowCache does).
    attention: "block-causal" runs chunk by chunk against the K/V cache; "bidirectional" runs the whole window in one
    forward per tick, without K/V (SkyReels-V2's released model); "joint" runs the chunks of a tick in one forward, in
    which they see each other in both directions and the K/V of finished ones (Rolling Forcing, arXiv 2509.25161).
    joint_frames: latent frames that a forward sees at most with joint attention: the sink, the newest history and its
    own, where a clean pass sees the newest alone; 0 for all that is kept.
    prefix_noise: noise level at which the model sees prefix chunks, and is told so; the latents themselves stay clean.
    Redrawn at every window pass; with K/V it is drawn once, when the prefix is written.
    recache: chunks, each alone when it begins, before which the kept history is computed again under their prompt.
    anchor: what is put back into finished chunks of the video's first one, None for nothing.
    reuse_device: where computed steps (latents, velocity, increment, residual) are kept until they are reused; None for
    the latents' own device. sparse: self-attention in blocks that are worth it, None for all of it.
    """

    plan: Plan
    schedule: Schedule
    solver: Solver = Euler()
    policy: ReusePolicy = Never()
    quantity: Quantity = Velocity()
    kv: KVSettings = KVSettings()
    clean_pass: bool = False
    clean_timestep: float = 0.0
    attention: str = "block-causal"
    joint_frames: int = 0
    prefix_noise: float = 0.0
    recache: frozenset[int] = frozenset()
    anchor: LowFrequencies | None = None
    reuse_device: str | None = None
    sparse: SparseSettings | None = None

    def __post_init__(self) -> None:
        require_types(self)
        steps = self.plan.steps
        require(self.schedule.steps == steps, "steps", self.schedule.steps, f"the plan's {steps} steps")
        require(self.attention in ATTENTION, "attention", self.attention, " or ".join(ATTENTION))
        require_count("joint_frames", self.joint_frames, minimum=0)
        self.policy.check(steps)
        require_finite("prefix_noise", self.prefix_noise, minimum=0.0, maximum=1.0)
        if self.policy.parts != "never":
            self.check_parts()
        if self.attention == "bidirectional":
            require(self.kv.budget is None, "budget", self.kv.budget, "None: bidirectional attention keeps no K/V")
            require(not self.clean_pass, "clean_pass", True, "False: bidirectional attention keeps no K/V")
            accepted = "velocity, increment or a forecast: a whole window hands out no residual per chunk"
            require(not self.quantity.needs_residual, "reused quantity", self.quantity.name, accepted)
            accepted = "none with bidirectional attention: masks are per chunk and its K/V"
            require(self.sparse is None, "sparse", self.sparse and self.sparse.method.name, accepted)
            require(not self.recache, "recache", sorted(self.recache), "none: bidirectional attention keeps no K/V")
        if self.attention != "joint":
            require(self.joint_frames == 0, "joint_frames", self.joint_frames, f"0 with {self.attention} attention")
        if self.attention == "joint":
            self.check_joint()
            accepted = "velocity, increment or a forecast: a joint forward hands out no residual per chunk"
            require(not self.quantity.needs_residual, "reused quantity", self.quantity.name, accepted)
            accepted = "none with joint attention: masks are of one chunk"
            require(self.sparse is None, "sparse", self.sparse and self.sparse.method.name, accepted)
        if self.kv.compressor is not None and self.kv.compressor.merges:
            accepted = "all of it (dense, block-causal) with method merge: its tokens carry weights of their own"
            require(self.sparse is None, "sparse", self.sparse and self.sparse.method.name, accepted)
            require(self.attention == "block-causal", "attention", self.attention, accepted)
        if self.sparse is not None:
            object.__setattr__(self, "kv", self.kv.by_layer("sparse attention"))
            self.sparse.settled(self.plan, 1, self.kv, self.recache)
        if self.attention == "joint":
            object.__setattr__(self, "kv", self.kv.by_layer("joint attention"))
        first, last = self.plan.first_tick, self.plan.last_tick
        for chunk in self.recache:
            alone = chunk in first and last.get(chunk - 1, -1) < first[chunk]
            require(alone, "recache", chunk, "a chunk that begins after the one before is done (plan blockwise)")

    def check_joint(self) -> None:
        """SettingError unless every tick has a step of all chunks that are active, and they fit what is seen."""
        most = max_active_frames(self.plan) + largest_chunk_frames(self.plan)
        fits = self.joint_frames == 0 or self.joint_frames >= most
        require(fits, "joint_frames", self.joint_frames, f"0, or at least {most}: all chunks in work and one more")
        active: list[int] = []
        for tick in self.plan.ticks:
            chunks = [item.chunk for item in tick.steps]
            active += (item.chunk for item in tick.steps if item.step == 0)
            accepted = "with joint attention a step of every active chunk, neighbours all of them"
            require(
                chunks == active == list(range(chunks[0], chunks[0] + len(chunks))),
                f"plan.ticks[{tick.index}]",
                chunks,
                accepted,
            )
            active = [item.chunk for item in tick.steps if item.step < self.plan.steps - 1]

    @property
    def longest_context(self) -> int:
        """Latent frames that a chunk can see at most, its own included."""
        return capacity_tokens(self.plan, 1, max(self.kv.budgets, default=None))

    def check_parts(self) -> None:
        """SettingError for what does not go with steps of which some tokens are computed."""
        name, quantity = self.policy.name, self.quantity
        accepted = f"block-causal with {name}: a whole window is computed as one"
        require(self.attention == "block-causal", "attention", self.attention, accepted)
        accepted = f"another with {name}: this one counts a chunk's steps, tokens were computed at different ones"
        require(quantity.by_token, "reused quantity", quantity.name, accepted)
        accepted = (
            f"0 with {name}: a gap is gone through again as a whole, but its tokens end theirs at different steps"
        )
        correction = getattr(quantity, "correction", True)
        require(self.policy.parts != "often" or not quantity.corrects, "forecast_correction", correction, accepted)
        accepted = f"residual with {name}, which weighs tokens by the model's hidden states"
        require(not self.policy.reads_residual or quantity.needs_residual, "reused quantity", quantity.name, accepted)

    def computes_all(self, tick: int) -> bool:
        """Whether no chunk may reuse at this tick."""
        return self.policy.last_tick and tick == len(self.plan.ticks) - 1

    def notes(self) -> tuple[str, ...]:
        """One sentence for every setting that cannot help in this run. Never an error: those are found on creation."""
        found = [self.policy.note(self.plan.steps), self.kv.note(self.plan)]
        if self.sparse is not None:
            found.append(self.sparse.note(self.longest_context, largest_chunk_frames(self.plan), self.plan.steps))
        return tuple(note for note in found if note)
