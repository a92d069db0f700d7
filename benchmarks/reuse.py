"""Quality of the published chunkwise form and of TeaCache on the mini model, against the uncached run.

    python dev.py bench reuse

16 prompt-seed pairs, 8 chunks of 50 Euler steps, guidance 3, clean pass on. Thresholds are swept; the row nearest to
half of the steps computed is the one to quote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import LatentDistance
from flowcache_core.reuse.quantity import Increment, Velocity
from flowcache_core.reuse.teacache import TeaCache

from .mini_runs import HELD_OUT, Comparison, Row, Setup
from .results import save

THRESHOLDS = (0.02, 0.04, 0.06, 0.1)


def main(argv: Sequence[str]) -> int:
    """Print the table and save it."""
    rows: dict[str, list[dict[str, object]]] = {}
    for setup in (Setup("blockwise"), Setup("staggered")):
        comparison = Comparison(setup, HELD_OUT)
        print(f"\n{setup.name} plan\n{Row.HEADER}")
        found: list[Row] = []
        for quantity in (Velocity(), Increment()):
            for kind in (Chunkwise, TeaCache):
                for threshold in THRESHOLDS:
                    policy = kind(threshold=threshold, distance=LatentDistance())
                    name = f"{policy.name} latent {threshold:g}, {quantity.name}"
                    found.append(comparison.row(name, policy=policy, quantity=quantity))
                    print(found[-1], flush=True)
        rows[setup.name] = [asdict(row) for row in found]
    print(f"\nsaved: {save('reuse', rows)}")
    return 0
