"""Speed-up against what the FLOPs promise, and what engine, policy and events cost, on the mini model.

    python dev.py bench overhead

Vanilla and FlowCache runs of the demo alternate, so that both see the same machine; medians of the ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from flowcache_core.reuse.chunkwise import Chunkwise

from .mini_runs import HELD_OUT, LONG, run
from .results import save

REPEATS = 5


def main(argv: Sequence[str]) -> int:
    """Print the figures and save them."""
    setup, pair = LONG, HELD_OUT[:1]
    policy = Chunkwise(threshold=0.04)
    run(replace(LONG, chunks=1, steps=2), pair)
    speedups, promised, shares, shares_reuse = [], 0.0, [], []
    for _ in range(REPEATS):
        vanilla, _ = run(setup, pair)
        reused, _ = run(setup, pair, policy=policy)
        assert vanilla.seconds and reused.seconds and vanilla.flops and reused.flops
        assert vanilla.engine_seconds is not None and reused.engine_seconds is not None
        speedups.append(vanilla.seconds / reused.seconds)
        promised = vanilla.flops / reused.flops
        shares.append(vanilla.engine_seconds / vanilla.seconds)
        shares_reuse.append(reused.engine_seconds / reused.seconds)
        print(f"speed-up {speedups[-1]:.2f}, FLOPs promise {promised:.2f}, engine {shares[-1]:.2%} of the vanilla run, "
              f"{shares_reuse[-1]:.2%} of the FlowCache run", flush=True)  # fmt: skip
    figures = {
        "computed_share": reused.computed_share,
        "speedup": statistics.median(speedups),
        "promised": promised,
        "speedup_over_promise": statistics.median(speedups) / promised,
        "engine_share_vanilla": statistics.median(shares),
        "engine_share_flowcache": statistics.median(shares_reuse),
    }
    for name, value in figures.items():
        print(f"{name:24} {value:.4f}")
    print(f"\nsaved: {save('overhead', figures)}")
    return 0
