"""The cache's promises kept with lists, and plans and values that drive both: what its tests have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.compressor import Compressor, Region
from flowcache_core.kv.spec import KVSpec
from flowcache_core.plan.base import Chunk, ChunkStep, Plan, Tick

SPEC = KVSpec(layers=2, kv_heads=2, head_dim=4, tokens_per_frame=3, branches=2, batch=1)


@dataclass(frozen=True)
class NearQuery(Compressor):
    """Prefers keys near the last query and breaks many ties: every input of a region decides something."""

    name: ClassVar[str] = "near-query"

    def query_rows(self, chunk_tokens: int, tokens_per_frame: int) -> int:
        return min(2, chunk_tokens)

    def score(self, region: Region) -> Tensor:
        assert region.queries is not None
        group = region.queries.shape[1] // region.keys.shape[1]
        query = region.queries[:, ::group, -1:, 0] - region.queries[:, group - 1 :: group, :1, 0]
        noise = (region.positions * (region.layer + region.event + 1)) % 3
        return -(region.keys[..., 0] - query).abs().float() + region.values[..., 0].float() + noise


def staggered_by(starts: Sequence[int], frames: Sequence[int], prefix: int, steps: int) -> Plan:
    """A plan whose chunks begin at the given ticks and step at every tick from there on."""
    chunks, first = [], 0
    for index, count in enumerate(frames):
        chunks.append(Chunk(index, first, count))
        first += count
    rows: list[list[ChunkStep]] = [[] for _ in range(max(starts) + steps)]
    for index, start in enumerate(starts):
        for step in range(steps):
            rows[start + step].append(ChunkStep(prefix + index, step))
    busy = [row for row in rows if row]
    return Plan("test", tuple(chunks), steps, tuple(Tick(i, tuple(row)) for i, row in enumerate(busy)), prefix)


def blocks(spec: KVSpec, chunk: Chunk, g: torch.Generator, group: int = 1, n: int | None = None) -> list[Tensor]:
    """K, V and Q of one chunk and layer, small whole numbers: exact in every dtype, with many equal scores."""
    rows = (spec.branches if n is None else n) * spec.batch
    shape = (chunk.frames * spec.tokens_per_frame, spec.head_dim)
    heads = (spec.kv_heads, spec.kv_heads, spec.kv_heads * group)
    return [torch.randint(-4, 5, (rows, h, *shape), generator=g).to(spec.dtype) for h in heads]


def compute(cache: KVCache, chunk: Chunk, g: torch.Generator) -> None:
    """Write a chunk's K/V in every layer, as a denoiser would."""
    branches = range(cache.spec.branches)
    for layer in range(cache.spec.layers):
        k, v, q = blocks(cache.spec, chunk, g)
        cache.write(layer, branches, chunk, k, v)
        cache.observe(layer, branches, chunk, q)


def run(cache: KVCache, seed: int = 0) -> Iterator[Tick]:
    """Compute every step of the cache's plan; yields at every tick, before chunks finish."""
    g = torch.Generator().manual_seed(seed)
    plan = cache.plan
    for chunk in plan.chunks[: plan.prefix_chunks]:
        cache.begin(chunk)
        compute(cache, chunk, g)
        cache.commit(chunk)
    for tick in plan.ticks:
        for item in tick.steps:
            if item.step == 0:
                cache.begin(plan.chunks[item.chunk])
            compute(cache, plan.chunks[item.chunk], g)
        yield tick
        for item in tick.steps:
            if item.step == plan.steps - 1:
                cache.commit(plan.chunks[item.chunk])


class NaiveCache:
    """The same promises kept with lists: every token is (position, key, value), per layer, branch, batch and head."""

    def __init__(self, spec: KVSpec, plan: Plan, budgets: Sequence[float | None], compressor: Compressor) -> None:
        self.spec, self.plan, self.compressor = spec, plan, compressor
        first, last = plan.first_tick, {i.chunk: t.index for t in plan.ticks for i in t.steps}
        sizes = [c.frames * spec.tokens_per_frame for c in plan.chunks]
        at_once = [sum(sizes[c] for c in first if first[c] <= t.index <= last[c]) for t in plan.ticks]
        room = max(at_once + sizes[: plan.prefix_chunks])
        self.capacity = [sum(sizes) if b is None else min(sum(sizes), round(b * max(sizes)) + room) for b in budgets]
        self.sizes = sizes
        self.streams = list(product(range(spec.branches), range(spec.batch), range(spec.kv_heads)))
        self.clean: dict[tuple[int, ...], list[tuple[int, Tensor, Tensor]]] = {
            (layer, *stream): [] for layer in range(spec.layers) for stream in self.streams
        }
        self.active: dict[int, dict[tuple[int, ...], list[tuple[int, Tensor, Tensor]]]] = {}
        self.queries: dict[tuple[int, int], Tensor] = {}
        self.events = [0] * spec.layers

    def begin(self, chunk: int) -> None:
        busy = sum(self.sizes[c] for c in self.active) + self.sizes[chunk]
        self.active[chunk] = {}
        for layer in range(self.spec.layers):
            room = self.capacity[layer] - busy
            if len(self.clean[(layer, 0, 0, 0)]) > room:
                for branch in range(self.spec.branches):
                    self.compress(layer, branch, room)
                self.events[layer] += 1

    def compress(self, layer: int, branch: int, room: int) -> None:
        own = [(layer, *s) for s in self.streams if s[0] == branch]
        shape = (self.spec.batch, self.spec.kv_heads)
        length = len(self.clean[own[0]])
        region = Region(
            keys=torch.stack([t[1] for key in own for t in self.clean[key]]).reshape(*shape, length, -1),
            values=torch.stack([t[2] for key in own for t in self.clean[key]]).reshape(*shape, length, -1),
            queries=self.queries[(layer, branch)],
            positions=torch.tensor([t[0] for key in own for t in self.clean[key]]).reshape(*shape, length),
            tokens_per_frame=self.spec.tokens_per_frame,
            chunk_tokens=max(self.sizes),
            chunk_starts=(),
            layer=layer,
            event=self.events[layer],
        )
        scores = self.compressor.score(region).reshape(-1, length).tolist()
        for key, score in zip(own, scores, strict=True):
            self.clean[key] = self.choose(self.clean[key], score, room)

    def choose(self, tokens: list, score: list[float], room: int) -> list:
        def group(i: int) -> int:
            frame = tokens[i][0] // self.spec.tokens_per_frame
            if self.compressor.key_granularity == "frame":
                return frame
            return next(c.index for c in self.plan.chunks if frame < c.end_frame)

        order = sorted(range(len(tokens)), key=lambda i: (-score[i], i))
        if self.compressor.key_granularity != "token":
            members: dict[int, list[float]] = {}
            for i in range(len(tokens)):
                members.setdefault(group(i), []).append(score[i])
            means = {g: sum(s) / len(s) for g, s in members.items()}
            order.sort(key=lambda i: (-means[group(i)], group(i)))
        return [tokens[i] for i in sorted(order[:room])]

    def write(self, layer: int, branches: range, chunk: int, k: Tensor, v: Tensor, q: Tensor) -> None:
        start = sum(self.sizes[:chunk])
        k, v, q = (t.unflatten(0, (len(branches), self.spec.batch)) for t in (k, v, q))
        for i, branch in enumerate(branches):
            self.queries[(layer, branch)] = q[i, :, :, -2:]
            for n in range(self.spec.batch):
                for h in range(self.spec.kv_heads):
                    tokens = [(start + t, k[i, n, h, t], v[i, n, h, t]) for t in range(self.sizes[chunk])]
                    self.active[chunk][(layer, branch, n, h)] = tokens

    def commit(self, chunk: int) -> None:
        for key, tokens in self.active.pop(chunk).items():
            self.clean[key] = self.clean[key] + tokens

    def context(self, layer: int, branches: range, chunk: int) -> tuple[Tensor, Tensor]:
        streams = [(layer, *s) for s in self.streams if s[0] in branches]
        parts = [self.clean[s] + [t for c in self.active if c <= chunk for t in self.active[c][s]] for s in streams]
        keys, values = (torch.stack([torch.stack([t[i] for t in part]) for part in parts]) for i in (1, 2))
        shape = (len(branches) * self.spec.batch, self.spec.kv_heads)
        return keys.unflatten(0, shape), values.unflatten(0, shape)


@st.composite
def cases(draw: st.DrawFn) -> tuple[KVSpec, Plan, tuple[float | None, ...], Compressor, int]:
    spec = KVSpec(
        layers=2,
        kv_heads=draw(st.integers(1, 2)),
        head_dim=2,
        tokens_per_frame=draw(st.integers(1, 3)),
        branches=draw(st.integers(1, 2)),
        batch=draw(st.integers(1, 2)),
    )
    prefix = draw(st.integers(0, 2))
    starts = sorted(draw(st.lists(st.integers(0, 9), min_size=1, max_size=5)))
    frames = draw(st.lists(st.integers(1, 3), min_size=prefix + len(starts), max_size=prefix + len(starts)))
    plan = staggered_by(starts, frames, prefix, steps=draw(st.integers(1, 3)))
    one = st.sampled_from([1, 1.3, 1.5, 2, 2.7])
    budgets = draw(st.one_of(st.tuples(one, one), st.just((None, None))))
    compressor = NearQuery(key_granularity=draw(st.sampled_from(["token", "frame", "chunk"])))
    return spec, plan, budgets, compressor, draw(st.integers(0, 2**16))
