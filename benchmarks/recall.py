"""What a run remembers under compression and reuse: a post covers everything for three chunks; is what comes to light
there, and the same? Asked of mini recall, which has learned to remember.

    python dev.py bench recall      every compressor at 1 to 3 of at most 5 finished chunks, every storage and preset

Videos begin with true chunks, and neither colour nor shape is in the prompt. Rows are saved as they are made; a second
call goes on. `recalled` is the same as a column of other benchmarks, with their steps, guidance and solver.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from flowcache_core.calibrate.runs import Setup
from flowcache_core.commands.arguments import Parser
from flowcache_core.errors import require_count
from flowcache_core.kv import COMPRESSORS
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.storage import STORAGES
from flowcache_core.mini import MiniModel
from flowcache_core.mini_recall import load_mini_recall
from flowcache_core.mini_recall.evaluate import NAMES, recall_of
from flowcache_core.mini_scenes import GUIDANCE
from flowcache_core.presets import load_preset

from .meaning import Rates
from .results import save, stored

SAMPLES = 16
STEPS, REUSE_STEPS = 16, 50  # the presets are for 50
BUDGETS = (3.0, 2.0, 1.0)
PRESETS = ("slow", "balanced", "fast")
SHORT = dict(zip(NAMES, ("back", "colour", "shape", "place", "all, seen first", "all, seen second"), strict=True))


@cache
def _model() -> MiniModel:
    return load_mini_recall()


def recalled(setup: Setup, samples: int | None = None, **changes: Any) -> Rates:
    """Rates of some videos with the setup's steps, guidance and solver. changes: engine settings."""
    count = SAMPLES if samples is None else samples
    return recall_of(_model(), count, 0, setup.steps, setup.guidance, solver=setup.solver, **changes)


def recall_text(recall: Rates) -> str:
    """The questions with their rates, in one line."""
    return "  ".join(f"{SHORT[name]} {share:.0%} of {count}" for name, (share, count) in recall.items())


def choices() -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Titles, steps and engine settings of what is asked."""
    yield "everything kept", STEPS, {}
    for name, kind in COMPRESSORS.items():
        for budget in BUDGETS:
            if budget >= (compressor := kind()).min_budget:
                yield f"{name}, {budget:g} chunks", STEPS, {"kv": KVSettings(budget=budget, compressor=compressor)}
    for name, storage in STORAGES.items():
        if name != "plain":
            yield f"everything kept, {name}", STEPS, {"kv": KVSettings(storage=storage())}
    yield "everything kept, 50 steps", REUSE_STEPS, {}
    for name in PRESETS:
        preset = load_preset("scenes", name)
        yield f"preset {name}", REUSE_STEPS, {"policy": preset.policy, "quantity": preset.quantity}


def main(argv: Sequence[str]) -> int:
    """Print the table and save it."""
    p = Parser("recall", description=__doc__)
    p.add_argument("--samples", type=int, default=2 * SAMPLES, help="videos of every row, half of each kind")
    options = p.parse_args(argv)
    require_count("samples", options.samples, minimum=2, maximum=1000)
    content = stored("recall")
    if content.get("samples") != options.samples:
        content = {"samples": options.samples, "rows": []}
    for title, steps, changes in choices():
        if any(row["name"] == title for row in content["rows"]):
            continue
        rates = recalled(Setup(steps=steps, guidance=GUIDANCE), options.samples, **changes)
        print(f"{title:36} {recall_text(rates)}", flush=True)
        content["rows"].append({"name": title, "steps": steps, "rates": rates})
        save("recall", content)
    print("\nsaved: benchmarks/results/recall.json")
    return 0


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
