"""Lists from one recorded run against the full calibration and every rival, on the mini model.

    python dev.py bench onerun
    python -m benchmarks.onerun --setup staggered --pairs 4

One video with a calibration prompt is recorded, and the lists that follow from it make the held-out videos. Beside them
the shipped presets, which the full calibration found; the rivals of ``bench curve`` at the same shares of steps
(stored figures, on straight lines between what was measured); and lists from other recordings: another prompt, three
runs, half as long, at half the resolution.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from flowcache_core.calibrate.bundled import PROMPTS, Mini, MiniWan
from flowcache_core.calibrate.choose import Chooser, Target
from flowcache_core.calibrate.record import Record
from flowcache_core.calibrate.recording import Facts, Recording
from flowcache_core.calibrate.runs import Pair, Setup, generated, paired
from flowcache_core.calibrate.tables import FORECAST
from flowcache_core.commands.arguments import Parser
from flowcache_core.errors import require_count
from flowcache_core.presets import load_preset

from .curve import at_shares
from .methods import SHIPPED
from .mini_runs import Comparison, Row, pairs, specimen
from .results import save, stored

SETUPS = {"blockwise": Setup(), "staggered": Setup("staggered")}
SHARES = (0.2, 0.3, 0.5)


class HalfSize(Mini):
    """The mini model asked for half its width and height."""

    def noise(self, chunks: int, seed: int) -> Tensor:
        side = slice(0, self.model.frame_size // 16)
        return super().noise(chunks, seed)[..., side, side]


def recorded(of: MiniWan, setup: Setup, batch: Sequence[Pair]) -> Recording:
    """What the runs of these pairs show, one after the other."""
    facts = Facts.of(of.settings(setup), of.name, of.sha256, of.shift(setup), setup.guidance)
    recording = Recording(facts, setup.chunks)
    for pair in batch:
        generated(of, setup, [pair], policy=Record(grams=recording.grams))
    return recording


def recordings(setup: Setup) -> Iterator[tuple[str, Recording]]:
    """Name and recording; the first is the one that counts."""
    batch = paired(PROMPTS, 5000, 4)
    yield "one run", recorded(specimen(), setup, batch[:1])
    yield "one run, another prompt", recorded(specimen(), setup, batch[1:2])
    yield "three runs", recorded(specimen(), setup, batch[:3])
    yield "one run, half as long", recorded(specimen(), replace(setup, chunks=setup.chunks // 2), batch[:1])
    yield "one run, half the size", recorded(HalfSize(), setup, batch[:1])


def main(argv: Sequence[str]) -> int:
    """Print the table and save it."""
    p = Parser("onerun", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--setup", choices=list(SETUPS), help="only this one")
    p.add_argument("--pairs", type=int, default=16)
    p.add_argument("--quick", action="store_true", help="only the first recording and the shipped presets")
    options = p.parse_args(argv)
    require_count("pairs", options.pairs, minimum=1, maximum=100)
    for name in SETUPS if options.setup is None else (options.setup,):
        measure(name, options.pairs, options.quick)
    return 0


def measure(name: str, count: int, quick: bool) -> None:
    """One setup: rows are saved as they are made, a second call goes on where the first stopped."""
    setup, figures = SETUPS[name], stored("onerun")
    known = figures.get(name, {})
    rows: list[dict[str, Any]] = known.get("rows", []) if known.get("pairs") == count else []
    comparison = Comparison(setup, pairs(1000, count))
    print(f"\n{name}, {count} held-out pairs\n{Row.HEADER}")

    def add(source: str, share: float, **changes: Any) -> None:
        if any((row["source"], row["share"]) == (source, share) for row in rows):
            return
        row = comparison.row(f"{source}, {share:.0%}", **changes)
        print(row, flush=True)
        rows.append({"source": source, "share": share, **asdict(row)})
        save("onerun", {**stored("onerun"), name: {"pairs": count, "rows": rows, "rivals": rivals(name)}})

    def lists(source: str, recording: Recording) -> None:
        chooser = Chooser(recording, setup.chunks)
        for share in SHARES:
            add(source, share, policy=chooser.choose(Target(share=share)).policy, quantity=FORECAST)

    others = recordings(setup)
    lists(*next(others))
    for share, name_of in zip(SHARES, SHIPPED, strict=True):
        preset = load_preset("mini", name_of)
        add("full calibration (shipped)", share, policy=preset.policy, quantity=preset.quantity)
    for source, recording in () if quick else others:
        lists(source, recording)
    print(f"\n{'dB at a share of':34}" + "".join(f"{share:>8.0%}" for share in SHARES))
    for source in dict.fromkeys(row["source"] for row in rows):
        found = [
            next((r["psnr"] for r in rows if (r["source"], r["share"]) == (source, s)), float("nan")) for s in SHARES
        ]
        print(f"{source:34}" + "".join(f"{value:8.1f}" for value in found))
    for rival, values in rivals(name).items():
        print(f"{rival:34}" + "".join(f"{value:8.1f}" if value is not None else "       -" for value in values))


def rivals(name: str) -> dict[str, list[float | None]]:
    """Every rival's median at the shares, as ``bench curve`` measured it; None where it does not reach."""
    found = at_shares(stored(f"curve-{name}").get("rows", []), "psnr", SHARES)
    others = {rival: values for rival, values in found.items() if not rival.startswith("ours")}
    return {
        rival: [None if value != value else round(value, 2) for value in values] for rival, values in others.items()
    }


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
