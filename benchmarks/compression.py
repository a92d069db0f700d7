"""What compressing the history costs in quality: every compressor at half of it, on the mini model.

    python dev.py bench compression

8 chunks: at most 7 finished ones to remember; a budget of 3.5 keeps half. PSNR against the run that keeps all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from flowcache_core.kv import COMPRESSORS
from flowcache_core.kv.settings import KVSettings

from .mini_runs import HELD_OUT, LONG, Comparison, Row
from .results import save

BUDGETS = (3.5,)


def main(argv: Sequence[str]) -> int:
    """Print the table and save it."""
    comparison = Comparison(LONG, HELD_OUT)
    print(Row.HEADER)
    rows = []
    for budget in BUDGETS:
        for name, kind in COMPRESSORS.items():
            row = comparison.row(f"{name}, budget {budget:g} of 7", kv=KVSettings(budget=budget, compressor=kind()))
            rows.append(row)
            print(row, flush=True)
    print(f"\nsaved: {save('compression', {'rows': [asdict(row) for row in rows]})}")
    return 0
