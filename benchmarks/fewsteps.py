"""What can be saved at 4, 2 and 1 steps: reuse across chunks, fewer steps, and the clean pass as the last step.

    python dev.py bench fewsteps
    python dev.py bench fewsteps --model scenes

The bundled models are not distilled; they are run as few-step models are (clean predictions and fresh noise, a clean
pass). A row says how many forwards a chunk takes (its clean pass is one), PSNR against the run of 4 steps with clean
pass, and how often videos do what their prompts say, which needs no reference.

- Across chunks (X-Cache, arXiv 2604.20289, in our words): at each step the block stack's residual of the chunk before,
  at the same step, where the tokens that enter the stack have changed less than a threshold. Passes that write lasting
  K/V are always computed.
- The clean pass repairs (UnStep, arXiv 2609.32518): one step fewer, since the clean pass looks at the chunk once more.
- No clean pass: the last step's K/V stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flowcache_core.calibrate.runs import Setup, generated, videos
from flowcache_core.commands.arguments import Parser
from flowcache_core.denoiser import ChunkInput, ChunkOutput
from flowcache_core.errors import require_count
from flowcache_core.kv.cache import KVCache
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.report.quality import compare
from flowcache_core.rows import Rows
from flowcache_core.solvers.renoise import ReNoise

from .meaning import JUDGES, right
from .mini_runs import MODELS, Row, pairs, run, specimen
from .results import save

STEPS = (4, 2, 1)
THRESHOLDS = (0.9, 1.1, 1.3, 2.0)
"""Chunks begin from noise of their own, so that inputs differ by about 1.4 of their size at the first step."""
CHUNKS, PAIRS = 6, {"mini": 16, "scenes": 8}


@dataclass
class AcrossChunks(WanDenoiser):
    """Takes a step from the same step of an earlier chunk where the input is near; counts the steps taken so."""

    threshold: float = 0.0
    taken: int = 0
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)
    """By step: tokens that entered the block stack, and what the stack added to them, of the last computed chunk."""

    def compute(
        self, item: ChunkInput, cache: KVCache, *, keep_residual: bool = False, rows: Rows | None = None
    ) -> ChunkOutput:
        tokens = self.transformer.patch_tokens(self.batched(item.latents))
        before = self.kept.get(item.step)
        if before is not None and (tokens - before[0]).abs().mean() <= self.threshold * before[0].abs().mean():
            self.taken += 1
            return ChunkOutput(self.from_residual(item, before[1]))
        output = super().compute(item, cache, keep_residual=True)
        assert output.residual is not None
        self.kept[item.step] = (tokens, output.residual)
        return output


def main(argv: Sequence[str]) -> int:
    """Print the table and save it."""
    p = Parser("fewsteps", description=__doc__)
    p.add_argument("--model", default="mini", choices=list(MODELS))
    p.add_argument("--pairs", type=int, help=f"held-out prompts and seeds (default: {PAIRS})")
    options = p.parse_args(argv)
    of = specimen(options.model)
    count = PAIRS[of.name] if options.pairs is None else options.pairs
    require_count("pairs", count, minimum=1, maximum=100)
    setup = Setup(chunks=CHUNKS, steps=STEPS[0], guidance=of.default.guidance, solver=ReNoise())
    batch = pairs(1000, count, of.name)
    whole = [run(setup, [pair], of=of) for pair in batch]  # one by one: fresh noise is drawn for a batch as one
    full, reference = whole[0][0], videos(of, torch.cat([latents for _, latents in whole]))
    rates = JUDGES[of.name](batch, reference)
    content: dict[str, Any] = {"model": of.name, "pairs": count, "chunks": CHUNKS, "reference": rates, "rows": []}
    print(f"{count} pairs of {CHUNKS} chunks; the reference, 4 steps and a clean pass: {right(rates):.1%} right")
    print(f"{'method':52} {'forwards':>8} {'PSNR':>6} {'p10':>6} {'right':>6}", flush=True)

    def keep(name: str, forwards: float, latents: Sequence[Tensor]) -> None:
        outcomes = videos(of, torch.cat(list(latents)))
        scored = [compare(video, other) for video, other in zip(outcomes, reference, strict=True)]
        row = Row.of(name, [full], full, scored, JUDGES[of.name](batch, outcomes))
        print(f"{name:52} {forwards:8.2f} {row.psnr:6.2f} {row.psnr_p10:6.2f} {row.right:6.1%}", flush=True)
        content["rows"].append({**asdict(row), "forwards": forwards})
        save("fewsteps" if of.name == "mini" else f"fewsteps-{of.name}", content)

    def plain(steps: int, **changes: Any) -> list[Tensor]:
        return [run(replace(setup, steps=steps), [pair], of=of, **changes)[1] for pair in batch]

    for steps in STEPS:
        if steps < setup.steps:
            keep(f"{steps} steps, clean pass", steps + 1, plain(steps))
        keep(f"{steps} steps, no clean pass", steps, plain(steps, clean_pass=False))
    keep("3 steps, clean pass", 4, plain(3))
    for steps in STEPS:
        for threshold in THRESHOLDS:
            fewer, latents, taken = replace(setup, steps=steps), [], 0
            for pair in batch:
                usual = of.denoiser([pair[0]], fewer)
                across = AcrossChunks(usual.transformer, usual.prompts, usual.guidance, threshold=threshold)
                latents.append(generated(of, fewer, [pair], denoiser=across))
                taken += across.taken
            forwards = steps + 1 - taken / (count * CHUNKS)
            keep(f"{steps} steps, across chunks below {threshold:g}", forwards, latents)
    return 0


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
