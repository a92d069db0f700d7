"""``python dev.py cost --dry-run``: the real code at the real size, without weights, device or waiting."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import require
from ..kv.settings import KVSettings
from ..presets import load_preset, model_file
from ..reuse.never import Never
from ..reuse.schedule import StaticSchedule, spread
from .fake import DEVICE
from .models import MAGI, MAGI_PRESETS, SELF_FORCING, pixels_of, subject
from .run import DryRun, dry_run

GIB, PETA = 2**30, 1e15
NOT_HERE = ("policy", "rescale", "budget_total")
TAKEN = "--preset, --steps, --chunks, --computed, --kv-budget, --kv-dtype and --kv-device"
KEPT_AS = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """The object that ``--json`` prints. SettingError for an argument that only the closed count takes."""
    name = arguments.model
    for field in NOT_HERE:
        given = getattr(arguments, field)
        require(given is None or given is False, field, given, f"nothing beside --dry-run, which takes {TAKEN}")
    kv = KVSettings(budget=arguments.kv_budget, dtype=KEPT_AS.get(arguments.kv_dtype), device=arguments.kv_device)
    changes: dict[str, Any] = {}
    if arguments.steps is not None:
        changes["steps"] = arguments.steps
    if arguments.chunks is not None:
        changes["frames"] = pixels_of(name, arguments.chunks)
    notes = []
    if name != SELF_FORCING:
        preset = load_preset(MAGI_PRESETS if name in MAGI else name, arguments.preset)
        if not preset.policy.content_free or arguments.computed is not None:
            wanted = preset.computed_steps if arguments.computed is None else arguments.computed
            if wanted is None:
                changes["policy"] = Never()
                notes.append("reuse depends on the video: every step taken as computed (--computed N for N of them)")
            else:
                steps = arguments.steps or model_file(preset.model)["run"]["steps"]
                warmup = preset.policy.warmup_steps
                changes["policy"] = StaticSchedule(warmup_steps=warmup, computed=spread(wanted, steps, warmup))
                notes.append(f"reuse depends on the video: {wanted} steps a chunk taken as computed")
    result = dry_run(subject(name, arguments.preset, kv, **changes))
    return as_json(name, arguments.preset, result, notes)


def as_json(name: str, preset: str, result: DryRun, notes: list[str]) -> dict[str, Any]:
    places = {"device": DEVICE, "host": "cpu"}
    return {
        "model": name,
        "preset": preset,
        "memory": {
            place: {"peak_bytes": peak.bytes, "parts": peak.parts}
            for place, device in places.items()
            if (peak := result.memory.get(device)) is not None
        },
        "pflops_counted_by_torch": result.flops / PETA,
        "bytes_moved": dict(result.moved),
        "steps": result.steps,
        "kernels_per_step": result.kernels / max(result.steps, 1),
        "syncs_per_step": result.syncs / max(result.steps, 1),
        "forwards_run": result.forwards_run,
        "forwards_counted": result.forwards_counted,
        "notes": [
            *notes,
            "without text encoder, autoencoder, and what kernels and the allocator take for themselves",
            f"{result.forwards_run} forwards gone through, two of each kind; {result.forwards_counted} counted as "
            "the second of their kind",
        ],
    }


def as_text(result: Mapping[str, Any]) -> str:
    lines = [f"{result['model']}, preset {result['preset']}, dry run of {result['steps']} steps"]
    for place, peak in result["memory"].items():
        parts = sorted(peak["parts"].items(), key=lambda part: -part[1])
        split = ", ".join(f"{part} {size / GIB:.2f}" for part, size in parts)
        lines.append(f"  {place} memory   {peak['peak_bytes'] / GIB:.2f} GiB at its peak: {split}")
    lines.append(f"  FLOPs           {result['pflops_counted_by_torch']:.1f} PFLOPs, counted by torch")
    for way, size in result["bytes_moved"].items():
        lines.append(f"  moved           {size / GIB:.3f} GiB from {way}")
    lines.append(f"  a step          {result['kernels_per_step']:.0f} kernels, {result['syncs_per_step']:.2f} syncs")
    return "\n".join([*lines, *(f"  {note}" for note in result["notes"])])
