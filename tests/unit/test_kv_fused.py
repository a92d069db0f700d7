"""The kernel that attends to packed tokens, in Triton's interpreter, against attention over the unpacked ones."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECK = """
import torch
from flowcache_core.kv import SinkWindow
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.spec import KVSpec
from flowcache_core.kv.storage import Int2, Int4, Int8
from flowcache_core.kv.storage.fused import agrees, attend_packed
from flowcache_core.models.magi.layers import attend_grouped
from flowcache_core.plan.blockwise import blockwise

cpu = torch.device("cpu")
for size, bits, group in ((32, 4, 32), (24, 8, 8), (64, 2, 64), (16, 4, 16)):
    assert agrees(size, bits, group, torch.float32, cpu), (size, bits)
plan = blockwise(15, 3, 1)
spec = KVSpec(layers=1, kv_heads=2, head_dim=32, tokens_per_frame=15, branches=2, batch=1, query_heads=4)
g = torch.Generator().manual_seed(1)
for storage in (Int8(), Int4(exact_recent=0.5), Int2(exact_sink=1.0, exact_recent=0.5)):
    cache = KVCache(spec, KVSettings(2.0, SinkWindow(sink=0.5), storage=storage), plan)
    for chunk in plan.chunks:
        cache.begin(chunk)
        k, v = (torch.randn(2, 2, 45, 32, generator=g) for _ in range(2))
        q = torch.randn(2, 4, 45, 32, generator=g)
        cache.write(0, range(2), chunk, k, v)
        end = cache.layouts[0].context_end(chunk.index)
        for branches in (range(2), range(1, 2)):
            asked = q[branches.start :]
            expected = cache.attend(0, branches, chunk, asked, attend_grouped)
            found = attend_packed(cache._layers[0].tokens, branches, asked, end)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        cache.commit(chunk)
print("agrees")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed; its interpreter needs no GPU")
def test_the_kernel_gives_what_unpacking_and_attending_gives() -> None:
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", CHECK]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "agrees", done.stderr[-2000:]


def test_on_the_cpu_and_without_triton_tokens_are_unpacked() -> None:
    import torch

    from flowcache_core.kv.cache import KVCache
    from flowcache_core.kv.settings import KVSettings
    from flowcache_core.kv.spec import KVSpec
    from flowcache_core.kv.storage import Centroid, Int4
    from flowcache_core.kv.storage.fused import kind_of, usable
    from flowcache_core.kv.storage.packed import PackedTokens
    from flowcache_core.plan.blockwise import blockwise

    spec = KVSpec(layers=1, kv_heads=2, head_dim=32, tokens_per_frame=4, branches=1, batch=1)
    kinds = {}
    for storage in (Int4(), Centroid()):
        tokens = KVCache(spec, KVSettings(storage=storage), blockwise(6, 3, 1))._layers[0].tokens
        assert isinstance(tokens, PackedTokens) and not usable(tokens, torch.zeros(1, 2, 12, 32))
        kinds[storage.name] = kind_of(tokens)
    assert kinds == {"int4": (32, 4, 32), "centroid": None}
