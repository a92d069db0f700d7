"""Every place where values cross between host and device, and why: a copy from any other place is a fault.

Law 5: one sync a tick at most, for all reuse decisions together, and none where they follow from numbers known before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flowcache_core.dry_run.traffic import Copy, Sync

HOST, DEVICE = "cpu", "pretend"
INTO, BACK = f"{HOST} to {DEVICE}", f"{DEVICE} to {HOST}"


@dataclass(frozen=True)
class Reason:
    """often: once a run, once per prompt, at most once a tick, or as often as something that was asked for happens."""

    often: Literal["run", "prompt", "tick", "asked"]
    why: str


JUSTIFIED: Mapping[tuple[str, str], Reason] = {
    # what a run begins with
    (INTO, "models/common/rope.py of"): Reason("run", "rotations, in float64, which not every device has"),
    (INTO, "models/common/rope.py _turn"): Reason("asked", "how far a sink moves, once for every distance"),
    (INTO, "models/magi/denoiser.py caption"): Reason("prompt", "captions lie where the text encoder left them"),
    (INTO, "models/magi/transformer.py caption_rows"): Reason("prompt", "which of a caption's rows are seen"),
    (BACK, "reuse/distance.py begin"): Reason("run", "the table of a distance that depends on the timestep alone"),
    (BACK, "engine/finite.py read"): Reason("run", "whether every step left finite values: flags, read at the end"),
    (INTO, "sparse/xattention.py _table"): Reason("run", "p of every head"),
    # decisions that look at the video: law 5
    (BACK, "reuse/read.py read"): Reason("tick", "the distances of all chunks of a tick"),
    (BACK, "reuse/read.py fetch"): Reason(
        "tick", "the same with how far masks have drifted, and what the tokens of a tick's chunks need"
    ),
    (BACK, "reuse/read.py arrived"): Reason("tick", "how far masks have drifted, where no policy looks at the video"),
    (BACK, "engine/places.py _tell"): Reason("asked", "how often places were computed, by chunk, of a fixed share"),
    (BACK, "sparse/run.py _tell"): Reason("run", "what share of its attention every step computed, read at the end"),
    (INTO, "rows.py on"): Reason("asked", "which tokens of a chunk are computed"),
    # drawn on the host, so that a seed means the same on every device
    (INTO, "noise.py draw"): Reason("asked", "noise of a solver that re-noises, and of a prefix"),
    (INTO, "kv/random.py score"): Reason("asked", "compressor random, the control"),
    (INTO, "kv/compressor.py _group_rank"): Reason("asked", "where chunks begin, for whole chunks in a compression"),
    (INTO, "kv/headed.py _of"): Reason("asked", "which heads a share has, once a layer"),
    (INTO, "kv/headed.py _in_order"): Reason("asked", "the order of all heads, once a layer"),
    # K/V kept on the host
    (BACK, "kv/layer.py write"): Reason("asked", "the chunk's own K/V"),
    (BACK, "kv/storage/tokens.py copy_runs"): Reason("asked", "the same, and nobody waits"),
    (BACK, "kv/layer.py write_rows"): Reason("asked", "that of some of its tokens"),
    (BACK, "rows.py on"): Reason("asked", "which tokens these are, where only the device knows"),
    (INTO, "kv/storage/tokens.py copy_runs"): Reason("asked", "the K/V of others that it attends to"),
    (INTO, "kv/storage/packed.py _fill"): Reason("asked", "the K/V it attends to, packed and as computed"),
    (INTO, "kv/storage/packed.py _pack_half"): Reason("asked", "a finished chunk, to be packed where the model is"),
    (BACK, "kv/storage/packed.py _pack_half"): Reason("asked", "what became of it"),
    (BACK, "kv/storage/packed.py put"): Reason("asked", "what its groups share"),
    (INTO, "kv/storage/plain.py clean_tokens"): Reason("asked", "what the compressor looks at"),
    (INTO, "kv/layer.py region"): Reason("asked", "the positions of it"),
    (BACK, "kv/layer.py compress"): Reason("asked", "what it keeps"),
    (BACK, "kv/storage/finite.py refuse"): Reason("run", "whether packed K/V was finite: flags, read at the end"),
    # computed steps kept on the host
    (BACK, "reuse/quantity.py to"): Reason("asked", "a computed step"),
    (INTO, "engine/chunk.py reused_velocity"): Reason("asked", "the velocity made of it"),
    (INTO, "engine/chunk.py close_gap"): Reason("asked", "the velocities that a correction goes through"),
    (INTO, "reuse/quantity.py velocity"): Reason("asked", "the residual of it"),
    (INTO, "reuse/forecast.py velocity"): Reason("asked", "velocity and latents of it"),
}
# Waited for before the first tick and after the last one.
AT_THE_ENDS = {
    "errors.py require_finite_values",
    "reuse/distance.py begin",
    "engine/finite.py read",
    "engine/places.py _tell",  # on a device without events all counts wait for the end
    "kv/storage/finite.py refuse",
    "sparse/run.py _tell",
}
DECISIONS = frozenset(site for (_, site), reason in JUSTIFIED.items() if reason.often == "tick")


def check_copies(by_tick: Mapping[int, Sequence[Copy]], prompts: int = 1) -> None:
    ticks: dict[tuple[str, str], int] = {}
    for copies in by_tick.values():
        for place in {(copy.direction, copy.site) for copy in copies}:
            ticks[place] = ticks.get(place, 0) + 1
    unknown = set(ticks) - set(JUSTIFIED)
    assert not unknown, f"copies that nobody asked for: {sorted(unknown)}"
    for place, seen in ticks.items():
        most = {"run": 1, "prompt": prompts}.get(JUSTIFIED[place].often)
        assert most is None or seen <= most, f"{place}: at {seen} ticks, {most} expected"


def check_syncs(by_tick: Mapping[int, Sequence[Sync]], *, looks: bool, kept_on_host: bool) -> None:
    """looks: whether the policy sees the video. kept_on_host: whether something was asked to be kept there."""
    for tick, syncs in by_tick.items():
        decisions = [sync for sync in syncs if sync.site in DECISIONS]
        assert len(decisions) <= int(looks), f"tick {tick}: {decisions}"
        others = [sync for sync in syncs if sync.site not in DECISIONS]
        if tick < 0 or tick == max(by_tick):
            assert {sync.site for sync in others} <= AT_THE_ENDS, others
        else:
            assert kept_on_host or not others, f"tick {tick}: {others}"
    assert not looks or any(sync.site in DECISIONS for syncs in by_tick.values() for sync in syncs)
