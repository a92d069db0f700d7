"""Our sampler against ComfyUI's own on a real ComfyUI, with tiny random weights on the CPU.

    python dev.py bench host

Needs a ComfyUI in COMFYUI_DIR or ~/comfy/ComfyUI, whose own Python runs the measurement.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .results import save

SUITE = Path(__file__).resolve().parents[1] / "tests" / "host"
PYTHONS = (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe")


def main(argv: Sequence[str]) -> int:
    """Print the figures and save them; exit status 2 where there is no ComfyUI."""
    host = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "comfy" / "ComfyUI")
    if not (host / "main.py").is_file():
        print(f"host: no ComfyUI in {host}; set COMFYUI_DIR", file=sys.stderr)
        return 2
    python = next((host / name for name in PYTHONS if (host / name).is_file()), Path(sys.executable))
    environment = {**os.environ, "PYTHONPATH": str(SUITE), "COMFYUI_DIR": str(host)}
    answer = subprocess.run([str(python), "figures.py"], cwd=SUITE, env=environment, capture_output=True, text=True)
    if answer.returncode:
        print(answer.stderr[-2000:], file=sys.stderr)
        return 1
    figures = json.loads(answer.stdout.splitlines()[-1])
    print(f"seconds, ours / host             {figures['seconds_ours']:.2f} / {figures['seconds_host']:.2f}")
    print(f"ratio                            {figures['ratio']:.3f}")
    largest = figures["largest_value"]
    print(f"largest difference of latents    {figures['largest_difference']:.1e} (values to {largest:.1f})")
    for name in ("ours", "host_compressed", "host_alone"):
        print(f"K/V, 257 latent frames, {name:16} {figures[f'kv_bytes_{name}'] / 1e6:7.3f} MB")
    print(f"the pack adds to the host's start  {figures['import_seconds']:.2f} s")
    print(f"saved: {save('host', figures)}")
    return 0
