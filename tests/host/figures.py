"""The figures of ``python dev.py bench host``, on the real host; prints one JSON object. Run by benchmarks/host.py."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import conftest  # noqa: F401 - loads the host and the pack
import torch

torch.set_num_threads(1)
from hostkit import compress, hosts, latent, load, module, ours, sample  # noqa: E402
from test_import import HOST, ROOT, SCRIPT  # noqa: E402

REPEATS = 5
FRAMES, BUDGET, CHUNK, SIDE = 257, 5, 3, 32


def speed_and_parity(model: Any) -> dict[str, float]:
    """Our sampler with nothing patched against the host's, in turns: CPU seconds, and the largest difference."""
    start = latent(81, width=256, height=256)
    seconds: dict[str, list[float]] = {"ours": [], "host": []}
    outputs = {}
    for _ in range(REPEATS):
        for name, sampler in (("host", hosts(CHUNK)), ("ours", ours())):
            begun = time.process_time()
            outputs[name] = sample(model, sampler, start=start)[0]
            seconds[name].append(time.process_time() - begun)
    difference = (outputs["ours"] - outputs["host"]).abs().max().item()
    best = {name: min(values) for name, values in seconds.items()}
    return {
        "seconds_ours": best["ours"],
        "seconds_host": best["host"],
        "ratio": best["ours"] / best["host"],
        "largest_difference": difference,
        "largest_value": outputs["host"].abs().max().item(),
    }


def long_video(model: Any) -> dict[str, float]:
    """K/V bytes of 257 latent frames at budget 5: ours, the host's sampler with our compressor, the host alone."""
    start = latent(4 * (FRAMES - 1) + 1, width=SIDE, height=SIDE)
    last_record = module("nodes.adapters.run.settings").last_record
    held = {}
    for name, sampler in (("ours", ours()), ("host_compressed", hosts(CHUNK))):
        patched = compress(model, BUDGET)
        out = sample(patched, sampler, start=start)[0]
        assert out.shape[2] == FRAMES and torch.isfinite(out).all()
        held[name] = last_record(patched).kv_bytes
    transformer = model.model.diffusion_model
    tokens = FRAMES * (SIDE // 16) ** 2
    caches = transformer.init_kv_caches(1, tokens, torch.device("cpu"), torch.float32)
    held["host_alone"] = sum(cache[part].nbytes for cache in caches for part in ("k", "v"))
    return {f"kv_bytes_{name}": float(value) for name, value in held.items()}


def import_seconds() -> float:
    command = [sys.executable, "-c", SCRIPT, str(HOST), str(ROOT)]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=HOST, check=True)
    return float(json.loads(answer.stdout.splitlines()[-1])["seconds"])


if __name__ == "__main__":
    model = load()
    figures = {**speed_and_parity(model), **long_video(model), "import_seconds": import_seconds()}
    print(json.dumps(figures))
