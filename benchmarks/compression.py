"""What compressing the history costs: every compressor at half of it, in quality, in meaning, and in recall.

    python dev.py bench compression
    python dev.py bench compression --model scenes

8 chunks: at most 7 finished ones to remember; a budget of 3.5 keeps half. PSNR against the run that keeps all. Recall:
what mini recall's videos remember of what was covered, with half of their 5 finished chunks kept (recall.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from flowcache_core.commands.arguments import Parser
from flowcache_core.errors import require_count
from flowcache_core.kv import COMPRESSORS
from flowcache_core.kv.settings import KVSettings

from .meaning import right
from .mini_runs import HELD_OUT, LONG, MODELS, Comparison, Row, pairs, specimen
from .recall import recall_text, recalled
from .results import save

BUDGET = 3.5
RECALL_BUDGET, RECALL_STEPS = 2.5, 16
PAIRS, STEPS = {"mini": 16, "scenes": 4}, {"mini": 50, "scenes": 16}


def main(argv: Sequence[str]) -> int:
    """Print the table and save it."""
    p = Parser("compression", description=__doc__)
    p.add_argument("--model", default="mini", choices=list(MODELS))
    p.add_argument("--pairs", type=int, help=f"held-out prompts and seeds (default: {PAIRS})")
    p.add_argument("--steps", type=int, help=f"denoising steps of a chunk (default: {STEPS})")
    options = p.parse_args(argv)
    of = specimen(options.model)
    count = PAIRS[of.name] if options.pairs is None else options.pairs
    steps = STEPS[of.name] if options.steps is None else options.steps
    require_count("pairs", count, minimum=1, maximum=100)
    require_count("steps", steps, minimum=2, maximum=1000)
    setup = replace(LONG, steps=steps, guidance=of.default.guidance)
    batch = HELD_OUT[:count] if of.name == "mini" else pairs(1000, count, of.name)
    comparison = Comparison(setup, batch, of=of)
    uncached = comparison.rates(comparison.reference)
    name = "compression" if of.name == "mini" else f"compression-{of.name}"
    content: dict[str, Any] = {"model": of.name, "pairs": len(batch), "steps": steps, "uncached": uncached, "rows": []}
    print(f"all of it kept: {right(uncached):.1%} right", flush=True)
    asked = replace(setup, steps=RECALL_STEPS)
    content["uncached_recall"] = recalled(asked)
    print(recall_text(content["uncached_recall"]))
    print(Row.HEADER)
    for compressor, kind in COMPRESSORS.items():
        kv = KVSettings(budget=BUDGET, compressor=kind())
        row = comparison.row(f"{compressor}, budget {BUDGET:g} of 7", kv=kv)
        recall = recalled(asked, kv=replace(kv, budget=RECALL_BUDGET))
        print(row, recall_text(recall), flush=True)
        content["rows"].append({**asdict(row), "recall": recall})
        path = save(name, content)
    print(f"\nsaved: {path}")
    return 0
