"""Sparse attention on a device: the CPU's values, and masks that serve again for no further wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import tiny
import torch
import torch.nn.functional as F
from justified import check_copies, check_syncs
from test_laws import DEVICE, FIXED, LOOKING

from flowcache_core.dry_run.traffic import Count
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.report.events import AttentionDensity, HeadDensities
from flowcache_core.reuse.never import Never
from flowcache_core.sparse import TopK, XAttention
from flowcache_core.sparse.engines import ENGINES, Call, Engine
from flowcache_core.sparse.mask import SparseMask
from flowcache_core.sparse.mask_reuse import MaskReuse
from flowcache_core.sparse.settings import SparseSettings


@dataclass(frozen=True)
class Masked(Engine):
    """By definition and without reading the mask; the kernels that do so need a GPU."""

    name: ClassVar[str] = "flex"

    def blocker(self, call: Call) -> str | None:
        return None

    def attend(self, q: Any, k: Any, v: Any, mask: SparseMask) -> Any:
        kept = mask.for_heads(*q.shape[:2]).repeat_interleave(mask.block, 2).repeat_interleave(mask.block, 3)
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = q @ k.mT * q.shape[-1] ** -0.5
        return scores.masked_fill(~kept[:, :, : mask.q_tokens, : mask.k_tokens], -torch.inf).softmax(-1) @ v


METHOD = XAttention(block=2, stride=1, p=0.6)
PER_HEAD = XAttention(block=2, stride=1, p=((0.5, 0.8, 1.0), (0.3, 0.9, 0.7)))
FRESH, AGAIN = None, MaskReuse(drift=0.3, max_age=3)
ACROSS = MaskReuse(drift=0.3, across_chunks=True)
BUDGET = KVSettings(budget=2.0, compressor=Recent())
CASES: dict[str, tuple[dict[str, Any], bool, bool]] = {}
"""name -> (settings, whether something is read once a tick, whether it is MAGI-1)"""
for name, policy, looks in (("never", Never(), False), ("fixed", FIXED, False), ("latent", LOOKING[0][1], True)):
    for reuse_name, reuse in (("fresh", FRESH), ("again", AGAIN), ("across", ACROSS)):
        sparse = SparseSettings(METHOD, dense_chunks=1, reuse=reuse, engine="flex")
        settings = {"policy": policy, "plan": "blockwise", "sparse": sparse}
        CASES[f"{name}-{reuse_name}"] = settings, looks or reuse is not None, False
        CASES[f"magi-{name}-{reuse_name}"] = {"policy": policy, "sparse": sparse}, looks or reuse is not None, True
CASES["easycache"] = {**CASES["fixed-again"][0], "policy": LOOKING[3][1]}, True, False
CASES["per-head"] = {"sparse": SparseSettings(PER_HEAD, dense_chunks=1, engine="flex")}, False, False
CASES["top-k"] = {"sparse": SparseSettings(TopK(2, 0.6, 1), dense_chunks=1, engine="flex")}, False, False
CASES["bounded"] = {**CASES["never-again"][0], "kv": BUDGET}, True, False
CASES["everything"] = {"sparse": SparseSettings(METHOD, 0, 0, False, engine="flex"), "clean_pass": True}, False, False


@pytest.mark.parametrize("name", CASES)
def test_values_and_traffic(name: str, count: Count, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "flex", Masked())
    values, looks, magi = CASES[name]

    def run(device: str, count: Count | None = None) -> tiny.Watched:
        if magi:
            return tiny.watched(tiny.magi_denoiser(device, base=True), tiny.magi_settings(**values), device, count)
        return tiny.watched(tiny.wan(device), tiny.settings(**values), device, count)

    here, there = run("cpu"), run(DEVICE, count)
    assert torch.equal(here.latents, there.latents) and there.latents.isfinite().all()
    told = [event for event in here.events if isinstance(event, AttentionDensity | HeadDensities)]
    late = [event for event in there.events if isinstance(event, AttentionDensity | HeadDensities)]
    assert len(told) > 0 and told == late
    if values["sparse"].reuse is not None:
        assert sum(event.masks_served for event in told if isinstance(event, AttentionDensity)) > 0
    check_copies(there.copies, prompts=tiny.CHUNKS + 1 if magi else 1)
    check_syncs(there.syncs, looks=looks, kept_on_host=False)


def test_the_engine_of_these_tests_attends_by_definition() -> None:
    q, k, v = (torch.randn(1, 3, n, 4, generator=torch.Generator().manual_seed(n)) for n in (5, 9, 9 + 0))
    mask = METHOD.mask(q, k)
    kept = mask.kept.repeat_interleave(2, 2)[:, :, :5].repeat_interleave(2, 3)[..., :9]
    assert torch.allclose(Masked().attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, kept), atol=1e-6)
