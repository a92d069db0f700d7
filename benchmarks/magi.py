"""The mini MAGI: reuse at an equal share of computed steps, compression to B_total 5 and 6, one forward's FLOPs.

    python dev.py bench magi
    python -m benchmarks.magi --part compression --pairs 16

The sliding window of four chunks, clean pass on, one forward per step. PSNR against the run that computes
every step and keeps all K/V. Rows are saved as they are made; a second call goes on where the first stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flowcache_core.calibrate.bundled import PROMPTS
from flowcache_core.calibrate.runs import paired
from flowcache_core.commands.arguments import Parser
from flowcache_core.errors import require_count
from flowcache_core.files import only_writer
from flowcache_core.kv import COMPRESSORS
from flowcache_core.kv.settings import KVSettings

from .curve import draw
from .magi_flops import counts
from .magi_reuse import margins, methods
from .mini_runs import Comparison, Row, looks_at_content, magi, magi_setup, pairs, run
from .results import FOLDER, save
from .results import stored as stored_figures

PARTS = ("reuse", "compression", "flops")
REUSE_CHUNKS, REUSE_STEPS = 5, 64
COMPRESSION_CHUNKS, COMPRESSION_STEPS = 10, 32
BUDGETS_TOTAL = (5, 6)


def stored() -> dict[str, Any]:
    """What has been saved so far, if it belongs to these weights."""
    figures = stored_figures("magi")
    return figures if figures.get("weights") == weights() else {"weights": weights()}


def keep(part: str, content: Any) -> None:
    """Save one part's figures beside what the others have saved by now."""
    with only_writer(FOLDER):  # parts may be measured side by side
        save("magi", {**stored(), part: content})


def weights() -> dict[str, str]:
    facts = next(iter(magi().model.provenance.values()))
    return {key: facts[key] for key in ("steps", "loss", "date")}


def reuse(count: int) -> None:
    """Quality over computed share for every method."""
    known = stored().get("reuse", {})
    rows: list[dict[str, Any]] = known.get("rows", []) if known.get("pairs") == count else []
    done = {(row["method"], row["point"]) for row in rows}
    comparison = Comparison(magi_setup(REUSE_CHUNKS, REUSE_STEPS), pairs(1000, count), of=magi())
    print(f"\nreuse, {REUSE_CHUNKS} chunks, {count} pairs\n{Row.HEADER}")
    found = methods(comparison.setup, paired(PROMPTS, 5000, 4))
    for method in sorted(found, key=lambda one: looks_at_content(one.changes)):  # the quick ones first
        if (method.name, method.point) in done:
            continue
        row = comparison.row(f"{method.name} {method.point}", setup=method.setup, **method.changes)
        print(row, flush=True)
        rows.append({"method": method.name, "point": method.point, **asdict(row)})
        chosen = {"pairs": count, "chunks": REUSE_CHUNKS, "steps": REUSE_STEPS}
        keep("reuse", {**chosen, "rows": rows, "margin_dB": margins(rows)})
    draw(rows, f"mini MAGI, window, {REUSE_STEPS} steps", "magi")
    print("\nours above each method at equal computed share, dB")
    for name, margin in margins(rows).items():
        print(f"{name:44} " + "  ".join(f"{share} {decibels:+.2f}" for share, decibels in margin.items()))


def compression(count: int) -> None:
    """Quality and peak K/V of every compressor: the window's four chunks and one or two of history."""
    comparison = Comparison(magi_setup(COMPRESSION_CHUNKS, COMPRESSION_STEPS), pairs(1000, count), of=magi())
    everything = comparison.full.kv_bytes // count
    print(
        f"\ncompression, {COMPRESSION_CHUNKS} chunks, {count} pairs; all K/V: {everything / 1e6:.2f} MB\n{Row.HEADER}"
    )
    rows = []
    for total in BUDGETS_TOTAL:
        budget = total - magi().model.window_chunks
        for name, kind in COMPRESSORS.items():
            if budget < kind().min_budget:
                continue  # sink and window need a chunk each
            kv, title = KVSettings(budget=budget, compressor=kind()), f"{name}, B_total {total}"
            record, latents = run(comparison.setup, comparison.batch, of=magi(), kv=kv)
            row = comparison.score(title, [(record, latents)])
            cost = {"kv_bytes": record.kv_bytes // count, "compressions": len(record.compressions)}
            print(f"{row}  {cost['kv_bytes'] / 1e6:.2f} MB, {cost['compressions']} times", flush=True)
            rows.append({"compressor": name, "budget_total": total, **asdict(row), **cost})
    chosen = {"pairs": count, "chunks": COMPRESSION_CHUNKS, "steps": COMPRESSION_STEPS, "kv_bytes_all": everything}
    keep("compression", {**chosen, "rows": rows})


def flops(count: int) -> None:
    """One chunk forward against the closed form; ``count`` has no part in it."""
    found = counts()
    print("\n" + "\n".join(map(str, found)))
    keep("flops", [one.row() for one in found])


def main(argv: Sequence[str]) -> int:
    """Print the tables and save them."""
    p = Parser("magi", description=__doc__)
    p.add_argument("--part", choices=PARTS, help="only this one")
    p.add_argument("--pairs", type=int, default=8)
    options = p.parse_args(argv)
    require_count("pairs", options.pairs, minimum=1, maximum=100)
    runs = {"reuse": reuse, "compression": compression, "flops": flops}
    for name in PARTS if options.part is None else (options.part,):
        runs[name](options.pairs)
    print(f"\nsaved: {FOLDER / 'magi'}.json, .png")
    return 0


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
