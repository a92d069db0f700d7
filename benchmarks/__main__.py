"""``python dev.py bench [NAME ...] [--option ...]``: benchmarks by name; without names, those that need only this
repository. Options go to the one benchmark that is named.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from flowcache_core.__main__ import BAD_INPUT, INTERRUPTED, NOT_FINITE
from flowcache_core.errors import NotFiniteError, SettingError, require

from .results import require_writable

# name -> what it measures; each is a module here with ``main(argv) -> exit status``
BENCHMARKS = {
    "redundancy": "redundancy scores, linear against naive form",
    "length": "K/V bytes and process memory of 20, 100 and 400 chunks",
    "overhead": "speed-up against the FLOPs' promise; cost of engine, policy and events",
    "compression": "quality of every compressor at half the history",
    "kv": "storages and compressors together: bytes, seconds, quality, meaning (long)",
    "kv_bytes": "K/V bytes at published sizes, by storage, and what fits in a tenth",
    "tenth": "ten times fewer K/V bytes from 16 to 40 chunks: what it costs, against true videos too (long)",
    "recall": "what is remembered of what was covered, under every compressor, storage and preset",
    "curve": "quality against compute for every method (long)",
    "onerun": "lists from one recorded run against the full calibration and every rival (long)",
    "record": "what recording a run costs: time on the mini model, bytes and time at SkyReels-V2's 540P",
    "reach": "how far errors are carried on in the bundled models: what the reach prior rests on (long)",
    "fewsteps": "what can be saved at 4, 2 and 1 steps: reuse across chunks, fewer steps, no clean pass",
    "levers": "what each part of the shipped reuse is worth, the oracle bound, the cost of deciding (long)",
    "magi": "the mini MAGI: reuse, compression, FLOPs of one forward against the formula (long)",
    "sparse": "sparse attention: density against quality and FLOPs, masks that serve again, engines' seconds (long)",
    "motion": "token-level reuse against whole steps at equal FLOPs, with an oracle (long)",
    "host": "our sampler against ComfyUI's own, on a real ComfyUI",
    "ablation": "the paper's tables 2, 5 and 6 on the mini model, with pictures",
    "dryrun": "every published model gone through at full size: memory, FLOPs, traffic (minutes)",
    "cuda": "steps, memory and every lever on three models with random weights; needs a CUDA device",
}
OPTIONS = (
    "ablation", "redundancy", "compression", "curve", "kv", "onerun", "reach", "magi", "fewsteps", "motion", "tenth",
    "recall",
)  # fmt: skip
"""Those that have options of their own."""
DEFAULT = ("redundancy", "length", "overhead", "compression", "ablation")


def main(argv: Sequence[str]) -> int:
    """Exit status 2 for an unknown name, else the worst of the benchmarks' own."""
    first = next((i for i, argument in enumerate(argv) if argument.startswith("-")), len(argv))
    names, options = list(argv[:first]) or list(DEFAULT), list(argv[first:])
    if not argv[:first] and any(argument in ("-h", "--help") for argument in options):
        print(
            "python dev.py bench [NAME ...] [--option ...]\n"
            + "\n".join(f"  {name:12} {text}" for name, text in BENCHMARKS.items())
        )
        return 0
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(SettingError("bench", unknown[0], ", ".join(BENCHMARKS)), file=sys.stderr)
        return 2
    status = 0
    try:
        alone = not options or names[0] in OPTIONS and not names[1:]
        require(alone, "options", " ".join(options), f"with one of {', '.join(OPTIONS)} alone")
        require_writable()
        for name in names:
            print(f"== {name}: {BENCHMARKS[name]}", flush=True)
            status = max(status, importlib.import_module(f".{name}", __package__).main(options))
    except SettingError as error:
        print(f"bench: {error}", file=sys.stderr)
        return BAD_INPUT
    except NotFiniteError as error:
        print(f"bench: {error}", file=sys.stderr)
        return max(status, NOT_FINITE)
    except KeyboardInterrupt:
        print("\nbench: stopped", file=sys.stderr)
        return INTERRUPTED
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
