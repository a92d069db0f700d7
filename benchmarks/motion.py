"""Token-level reuse against whole steps at equal FLOPs: motion, chunkwise, presets, presets with partial steps, oracle.

    python dev.py bench motion                                       the mini model (16 tokens a frame)
    python dev.py bench motion --model scenes                        mini scenes (64 tokens a frame)
    python dev.py bench motion --seconds                             what gathering and scattering cost

Rows are saved as they are made; a second call goes on where the first stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowcache_core.calibrate.runs import Setup
from flowcache_core.commands.arguments import Parser
from flowcache_core.denoiser import ChunkInput, ChunkOutput, ModelView
from flowcache_core.errors import require_count
from flowcache_core.kv.cache import KVCache
from flowcache_core.models.common.attention import attend_heads
from flowcache_core.models.common.cached_attention import CachedAttention
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.forecast import Forecast
from flowcache_core.reuse.motion import PATCH, Motion
from flowcache_core.reuse.motion_weights import token_means
from flowcache_core.reuse.partial_schedule import PartialSchedule, PartialScheduleState
from flowcache_core.reuse.quantity import Computed, Part, Velocity, history_with_part
from flowcache_core.reuse.schedule import StaticSchedule, spread
from flowcache_core.reuse.token_needs import largest
from flowcache_core.rows import Rows
from flowcache_core.schedule import Schedule

from . import motion_seconds
from .curve import setup_of
from .methods import Subject, ours
from .mini_runs import MODELS, Comparison, Row, pairs, run, shape, specimen
from .results import save, stored

PLAIN = Forecast(correction=0)
CORRECTED = Forecast()


# ---- ways to choose that only a benchmark takes ----------------------------------------------------------------------


@dataclass(frozen=True)
class Random(PartialSchedule):
    """Tokens by lot: the control."""

    def begin(self, schedule: Schedule, denoiser: ModelView) -> RandomState:
        return RandomState(schedule, self, frozenset(self.computed), denoiser)


@dataclass
class RandomState(PartialScheduleState):
    draw: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def scores(self, item: ChunkInput) -> Tensor:
        return torch.rand(super().scores(item).shape, generator=self.draw)


class Oracle(WanDenoiser):
    """Takes, of as many tokens as asked for, those whose velocity is furthest from what would be reused. It computes
    all of them to know, which is not counted."""

    quantity = PLAIN

    def compute(
        self, item: ChunkInput, cache: KVCache, *, keep_residual: bool = False, rows: Rows | None = None
    ) -> ChunkOutput:
        kept: dict[int, deque[Computed]] = self.__dict__.setdefault("kept", {})
        if item.step == 0:
            kept.clear()
        history = kept.setdefault(item.chunk.index, deque(maxlen=self.quantity.keep))
        if rows is None:
            output = super().compute(item, cache, keep_residual=keep_residual)
            if item.kind == "step":
                history.append(Computed(item, output.velocity, torch.zeros_like(item.latents)))
            return output
        truth = self.guide(self.split(self.unseen(item, cache)), item)
        reused = self.guide(self.quantity.velocity(tuple(history), item, 0.0, self), item)
        errors = token_means((truth - reused).abs(), PATCH)
        rows = Rows(largest(errors.flatten(), rows.count), rows.grid)
        output = super().compute(item, cache, rows=rows)
        part = Part.of(rows, frozenset(), output.velocity)
        newer = Computed(item, output.velocity, torch.zeros_like(item.latents))
        kept[item.chunk.index] = deque(history_with_part(tuple(history), newer, part), maxlen=self.quantity.keep)
        return output

    def unseen(self, item: ChunkInput, cache: KVCache) -> Tensor:
        """A whole forward that leaves no K/V."""

        def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            stored = cache.context(layer, range(self.branches), item.chunk)
            keys, values = (
                torch.cat((old[..., : -k.shape[2], :], own), 2) for old, own in zip(stored, (k, v), strict=True)
            )
            return attend_heads(q, keys, values)

        return self.whole(item, cache, attention)

    def whole(self, item: ChunkInput, cache: KVCache, attention: Any) -> Tensor:
        result = self.transformer.forward_chunk(
            self.batched(item.latents),
            self.times(item),
            self.text(item.prompt_chunk, item.latents.shape[0]),
            first_frame=item.chunk.first_frame,
            attention=attention,
            fps=self.fps,
        )
        assert isinstance(result, Tensor)
        return result


class Refreshing(Oracle):
    """The tokens asked for, but in the first quarter of the layers all tokens leave fresh K/V."""

    @property
    def first_layers(self) -> int:
        return max(1, self.transformer.config.num_layers // 4)

    def compute(
        self, item: ChunkInput, cache: KVCache, *, keep_residual: bool = False, rows: Rows | None = None
    ) -> ChunkOutput:
        if rows is None:
            return WanDenoiser.compute(self, item, cache, keep_residual=keep_residual)
        index = rows.index
        every = CachedAttention(cache, item.chunk, range(self.branches), attend_heads)
        some = replace(every, rows=rows)

        def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if layer < self.first_layers:
                return every(layer, q, k, v)
            out = q.new_zeros(q.shape)  # what comes of the other tokens is read nowhere
            out[:, :, index] = some(layer, q[:, :, index], k[:, :, index], v[:, :, index])
            return out

        return ChunkOutput(self.split(self.whole(item, cache, attention)), rows=rows)


# ---- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One row. quarter: whether the first quarter of the layers ran all tokens at partial steps."""

    method: str
    point: str
    changes: dict[str, Any]
    kind: type[WanDenoiser] = WanDenoiser
    quarter: bool = False


def by_threshold() -> Iterator[Case]:
    """The published claim: motion against chunkwise, velocity reused."""
    for threshold in (0.04, 0.06, 0.08, 0.1):
        by_chunk = Chunkwise(threshold=threshold)
        yield Case("chunkwise, velocity", f"{threshold:g}", {"policy": by_chunk, "quantity": Velocity()})
        motion = Motion(threshold=threshold)
        yield Case("motion, velocity", f"{threshold:g}", {"policy": motion, "quantity": Velocity()})
    for threshold in (0.04, 0.06, 0.1):
        yield Case("motion, forecast", f"{threshold:g}", {"policy": Motion(threshold=threshold), "quantity": PLAIN})


def equal_budget(steps: int) -> Iterator[Case]:
    """30 % of all tokens: 15 of 50 steps whole, or 5 whole ones and more that are computed in part."""
    whole = spread(round(0.3 * steps), steps, 5)
    yield Case("30 %: whole steps", "15", {"policy": StaticSchedule(computed=whole), "quantity": PLAIN})
    ticks = spread(round(0.4 * steps), steps, 5)
    fixed: dict[str, Any] = {"computed": (*range(5), steps - 1), "partial": ticks[5:-1], "share": 9 / 14}
    for name, chosen in (("motion", "motion"), ("forecast error", "forecast error")):
        policy = PartialSchedule(**fixed, chosen_by=chosen)
        yield Case(f"30 %: 20 ticks, {name}", "20", {"policy": policy, "quantity": PLAIN})
    yield Case("30 %: 20 ticks, by lot", "20", {"policy": Random(**fixed), "quantity": PLAIN})
    yield Case("30 %: 20 ticks, oracle", "20", {"policy": PartialSchedule(**fixed), "quantity": PLAIN}, Oracle)
    # Need that adds up needs steps in which to do so: five whole ones, then a fifth of the tokens at every step.
    by_need = Motion(threshold=1e-6, warmup_steps=1, uniform_updates=4, share=0.2)
    yield Case("30 %: every step, motion's need", "0.2", {"policy": by_need, "quantity": PLAIN})


def middles(table: Sequence[int], longest: int) -> tuple[int, ...]:
    """The middle steps of the ``longest`` longest gaps between computed steps."""
    gaps = sorted(zip(table, table[1:], strict=False), key=lambda ends: (ends[0] - ends[1], ends[0]))[:longest]
    return tuple(sorted((a + b) // 2 for a, b in gaps if b - a > 1))


def on_presets(model: str, setup: Setup) -> Iterator[Case]:
    """The shipped lists, and the same lists with one partial step in their longest gaps."""
    presets = [method for method in ours(Subject(model, setup, (), few=True)) if method.name == "ours (shipped)"]
    for method in presets:
        yield Case("preset", method.point, method.changes)
    for method in presets:
        table = method.changes["policy"]
        for chosen, kind, name in (
            ("motion", WanDenoiser, "motion"),
            ("forecast error", WanDenoiser, "forecast error"),
            ("forecast error", Refreshing, "forecast error, first layers fresh"),
            ("forecast error", Oracle, "oracle"),
        ):
            partial = middles(table.computed, 6)
            policy = PartialSchedule(
                computed=table.computed, first=table.first, partial=partial, share=0.3, chosen_by=chosen
            )
            changes = {**method.changes, "policy": policy}
            yield Case(f"preset + partial, {name}", method.point, changes, kind, kind is Refreshing)


def measured(case: Case, comparison: Comparison) -> Row:
    runs = [
        run(comparison.setup, [pair], of=comparison.specimen, kind=case.kind, **case.changes)
        for pair in comparison.batch
    ]
    row = comparison.score(f"{case.method} {case.point}", runs)
    if not case.quarter:
        return row
    # What the tokens that were not asked for cost in the first quarter of the layers.
    of, more = shape(comparison.specimen), 0.0
    for record, _ in runs:
        for step in record.steps_taken:
            if step.action == "part":
                rest = of.forward(step.tokens, step.context_tokens) - of.forward(
                    step.computed_tokens, step.context_tokens
                )
                more += step.branches * rest / 4 / len(runs)
    return replace(row, flops=row.flops + more / (comparison.full.flops or 1.0))


def against_presets(rows: Sequence[dict[str, Any]]) -> list[str]:
    """PSNR of every row minus that of the presets' curve at the same FLOPs."""
    curve = sorted((row["flops"], row["psnr"]) for row in rows if row["method"] == "preset")
    lines = []
    for row in rows:
        x, y = zip(*curve, strict=True)
        there = float(np.interp(row["flops"], x, y, left=np.nan, right=np.nan))
        if row["method"] != "preset" and there == there:
            place = f"{row['method']} {row['point']}"
            lines.append(f"{place:50} {row['flops']:6.1%} {row['psnr']:6.2f}  presets' curve there {there:6.2f}")
    return lines


def main(argv: Sequence[str]) -> int:
    """Print the table and save it."""
    p = Parser("motion", description=__doc__)
    p.add_argument("--model", default="mini", choices=list(MODELS))
    p.add_argument("--pairs", type=int, help="held-out prompts and seeds (default: 8)")
    p.add_argument("--chunks", type=int, default=3)
    p.add_argument(
        "--seconds", type=int, nargs="?", const=7, help="time gathering and scattering instead, so many times"
    )
    options = p.parse_args(argv)
    count = 8 if options.pairs is None else options.pairs
    require_count("pairs", count, minimum=1, maximum=100)
    require_count("chunks", options.chunks, minimum=1, maximum=100)
    if options.seconds is not None:
        require_count("seconds", options.seconds, minimum=1, maximum=1000)
        rows_timed = motion_seconds.measure(options.seconds)
        print("\n".join(map(str, rows_timed)))
        save("motion-seconds", {"repetitions": options.seconds, "rows": [asdict(row) for row in rows_timed]})
        return 0
    setup, _ = setup_of(options.model, "blockwise")
    setup = replace(setup, chunks=options.chunks)
    name = "motion" if options.model == "mini" else f"motion-{options.model}"
    figures = stored(name)
    rows: list[dict[str, Any]] = figures.get("rows", []) if figures.get("pairs") == count else []
    done = {(row["method"], row["point"]) for row in rows}
    comparison = Comparison(setup, pairs(1000, count, options.model), of=specimen(options.model))
    print(Row.HEADER, flush=True)
    cases = [*on_presets(options.model, setup), *equal_budget(setup.steps), *by_threshold()]
    for case in cases:
        if (case.method, case.point) in done:
            continue
        row = measured(case, comparison)
        print(row, flush=True)
        rows.append({"method": case.method, "point": case.point, **asdict(row)})
        save(name, {"model": options.model, "pairs": count, "chunks": setup.chunks, "rows": rows})
    print("\n".join(against_presets(rows)))
    print(f"saved: results/{name}.json")
    return 0
