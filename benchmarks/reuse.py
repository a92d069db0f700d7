"""Quality of the demo run under the published chunkwise form, TeaCache, fewer steps and the shipped presets.

    python dev.py bench reuse

16 prompt-seed pairs, 8 chunks of 50 Euler steps, guidance 3, clean pass on; PSNR against the uncached run. Thresholds
are such that about half of the steps are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from flowcache_core.presets import load_preset
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import LatentDistance, TimeDistance
from flowcache_core.reuse.quantity import Increment, Residual, Velocity
from flowcache_core.reuse.teacache import TeaCache

from .mini_runs import HELD_OUT, Comparison, Row, Setup, mini
from .results import save


def methods(setup: Setup) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and engine settings of every row."""
    for name in ("slow", "balanced", "fast"):
        preset, _ = load_preset("mini", name).fit(setup.steps, mini().shift)
        yield f"preset {name}", {"policy": preset.policy, "quantity": preset.quantity}
    yield "fewer steps: 25", {"setup": replace(setup, steps=setup.steps // 2)}
    teacache = TeaCache(threshold=0.055, distance=TimeDistance())
    yield "teacache, time, residual", {"policy": teacache, "quantity": Residual()}
    yield "teacache, time, velocity", {"policy": teacache, "quantity": Velocity()}
    if setup.name != "blockwise":
        pooled = TeaCache(threshold=0.055, distance=LatentDistance())
        yield "teacache, latent, velocity", {"policy": pooled, "quantity": Velocity()}
    for threshold in (0.055, 0.1):
        policy = Chunkwise(threshold=threshold, distance=LatentDistance())
        yield f"chunkwise (Eq. 8), latent {threshold:g}, velocity", {"policy": policy, "quantity": Velocity()}
    published = Chunkwise(threshold=0.055, distance=LatentDistance())
    yield "chunkwise (Eq. 8), latent 0.055, increment", {"policy": published, "quantity": Increment()}


def main(argv: Sequence[str]) -> int:
    """Print the tables and save them."""
    figures: dict[str, list[dict[str, object]]] = {}
    for setup in (Setup("blockwise"), Setup("staggered")):
        comparison = Comparison(setup, HELD_OUT)
        print(f"\n{setup.name} plan\n{Row.HEADER}")
        rows: list[Row] = []
        for name, changes in methods(setup):
            rows.append(comparison.row(name, **changes))
            print(rows[-1], flush=True)
            figures[setup.name] = [asdict(row) for row in rows]
            path = save("reuse", figures)
    print(f"\nsaved: {path}")
    return 0
