"""What it costs that some tokens are packed twice: the attention of the mini model over both, against packing once.

Two cases: a head's packed tokens that become its newest, which ``exact_recent`` unpacks and packs again later; and
groups that share an entry from then on because a table has no slots left. Caches of each kind are written beside the
one that keeps all, over one run, and asked what the attention would have been.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from flowcache_core.calibrate.bundled import Mini
from flowcache_core.calibrate.runs import paired
from flowcache_core.engine import generate
from flowcache_core.kv import COMPRESSORS
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.storage import Int4
from flowcache_core.kv.storage.codec import Codec
from flowcache_core.kv.storage.groups import Slots
from flowcache_core.kv.storage.packed import PackedTokens
from flowcache_core.kv.storage.regroup import Regrouping

CHUNKS, STEPS, BUDGET = 13, 2, 2.0
MOST = 0.1
"""dB that packing twice may cost."""


class Remembering(Codec):
    """A codec whose tokens carry what they were computed as, for who asks while ``first`` is on."""

    def __init__(self, inner: Codec) -> None:
        self.inner, self.head_dim, self.first = inner, inner.head_dim, False

    @property
    def rows(self):
        return {**self.inner.rows, "computed": (self.head_dim, torch.float32)}

    @property
    def table(self):
        return self.inner.table

    def fit(self, tokens):
        return self.inner.fit(tokens)

    def encode(self, tokens, entry):
        return {**self.inner.encode(tokens, entry), "computed": tokens.float()}

    def decode(self, rows, table, slot, out):
        if self.first:
            out.copy_(rows["computed"])
        else:
            self.inner.decode(rows, table, slot, out)

    def join(self, table, order, joined):
        return self.inner.join(table, order, joined)


class Once(Int4):
    """Tokens that leave the packed ones come out as they were computed."""

    def codecs(self, head_dim, chunk_tokens):
        keys, values, group = super().codecs(head_dim, chunk_tokens)
        return Remembering(keys), Remembering(values), group


class Beside(KVCache):
    """Keeps all; others are written along, and their attention compared with its own."""

    def __init__(self, spec, plan, others: dict[str, KVCache]) -> None:
        super().__init__(spec, KVSettings(), plan)
        self.others, self.lost, self.whole = others, dict.fromkeys(others, 0.0), 0.0

    def begin(self, chunk):
        for other in self.others.values():
            other.begin(chunk)
        return super().begin(chunk)

    def write(self, layer, branches, chunk, k, v, rows=None):
        for other in self.others.values():
            other.write(layer, branches, chunk, k, v, rows)
        super().write(layer, branches, chunk, k, v, rows)

    def observe(self, layer, branches, chunk, q):
        for other in self.others.values():
            other.observe(layer, branches, chunk, q)

    def attend(self, layer, branches, chunk, q, attend, newest=0):
        out = super().attend(layer, branches, chunk, q, attend, newest)
        self.whole += out.square().sum().item()
        for name, other in self.others.items():
            self.lost[name] += (other.attend(layer, branches, chunk, q, attend, newest) - out).square().sum().item()
        return out

    def commit(self, chunk):
        for other in self.others.values():
            other.commit(chunk)
        return super().commit(chunk)

    def decibels(self, one: str, other: str) -> float:
        return 10 * math.log10(self.lost[one] / self.lost[other])


@pytest.mark.parametrize("name", ["importance-redundancy", "random"])
def test_tokens_that_are_packed_twice_cost_less_than_a_tenth_of_a_decibel(name, monkeypatch):
    of, again, usual = Mini(), {"recent": 0, "joined": 0}, PackedTokens._exact

    def exact(self, half, branch, index):
        first, last = self.parts[0], sum(self.parts[:2])
        remembers = isinstance(half.codec, Remembering)
        if not remembers and half is self.keys and self.recent:
            again["recent"] += int(((index >= first) & (index < last)).sum())
        if remembers:
            half.codec.first = True
        found = usual(self, half, branch, index)
        if remembers:
            half.codec.first = False
        return found

    def packed_again(self, codec, rows, table, entry, own, which, *, usual=Regrouping._pack_again):
        again["joined"] += int(which.sum())
        usual(self, codec, rows, table, entry, own, which)

    monkeypatch.setattr(PackedTokens, "_exact", exact)
    monkeypatch.setattr(Regrouping, "_pack_again", packed_again)
    setup = replace(of.default, chunks=CHUNKS, steps=STEPS)
    ((prompt, seed),) = paired(of.prompts, 0, 1)
    denoiser, settings, compressor = of.denoiser([prompt], setup), of.settings(setup), COMPRESSORS[name]()
    noise = of.noise(CHUNKS, seed)
    spec = denoiser.kv_spec(noise)

    def cache(storage: Int4) -> KVCache:
        return KVCache(spec, KVSettings(BUDGET, compressor, storage=storage), settings.plan)

    others = {
        "recent": cache(Int4(exact_recent=1.0)),
        "recent, once": cache(Once(exact_recent=1.0)),
        "joined": cache(Int4()),
    }
    with monkeypatch.context() as patch:
        patch.setattr(Slots, "of", classmethod(lambda cls, room, most, runs: cls(CHUNKS, CHUNKS, 1)))
        others["joined, once"] = cache(Int4())
    beside = Beside(spec, settings.plan, others)
    with torch.no_grad():
        generate(denoiser, settings, noise, cache=beside)
    cost = {case: beside.decibels(case, f"{case}, once") for case in ("recent", "joined")}
    print(f"{name}: {cost} dB over {again} tokens")
    assert all(count > 0 for count in again.values())
    assert all(abs(one) < MOST for one in cost.values())
