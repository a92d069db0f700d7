"""``python dev.py cost --dry-run``: the real code at the real size, without weights, device or waiting."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ..cost import Cost, count
from ..cost.assumed import counted_policy
from ..errors import require
from ..kv.settings import KVSettings
from ..presets import Preset, load_preset, model_file
from ..reuse.never import Never
from .fake import DEVICE
from .models import SELF_FORCING, config_in, job, names, pixels_of, published
from .run import DryRun, dry_run

GIB, PETA = 2**30, 1e15
NOT_HERE = ("policy", "rescale", "budget_total")
TAKEN = "--preset, --steps, --chunks, --computed, --weights, --kv-budget, --kv-dtype and --kv-device"
KEPT_AS = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """The object that ``--json`` prints. SettingError for an argument that only the closed count takes."""
    name = arguments.model
    require(name in names(), "model", name, ", ".join(names()))
    for field in NOT_HERE:
        given = getattr(arguments, field)
        require(given is None or given is False, field, given, f"nothing beside --dry-run, which takes {TAKEN}")
    own = None if name == SELF_FORCING else load_preset(published(name), arguments.preset).kv
    kv = replace(own or KVSettings(), dtype=KEPT_AS.get(arguments.kv_dtype), device=arguments.kv_device)
    if arguments.kv_budget is not None:
        kv = replace(kv, budget=arguments.kv_budget)
    changes: dict[str, Any] = {}
    if arguments.steps is not None:
        changes["steps"] = arguments.steps
    if arguments.chunks is not None:
        changes["frames"] = pixels_of(name, arguments.chunks)
    notes: list[str] = []
    if name != SELF_FORCING:
        preset = load_preset(published(name), arguments.preset)
        if arguments.computed is not None or not follows_from_numbers(preset):
            steps = arguments.steps or model_file(preset.model)["run"]["steps"]
            if arguments.computed is None and preset.computed_steps is None:
                changes["policy"] = Never()
                notes.append("reuse depends on the video: every step taken as computed (--computed N for N of them)")
            else:
                changes["policy"] = counted_policy(preset, steps, arguments.computed)
                wanted = arguments.computed or preset.computed_steps
                notes.append(f"reuse depends on the video: {wanted} steps a chunk taken as computed")
    else:
        require(arguments.computed is None, "computed", arguments.computed, f"nothing: {name} computes every step")
    config = None if arguments.weights is None else config_in(arguments.weights, name)
    one = job(name, arguments.preset, kv, config, **changes)
    result = dry_run(one.subject)
    closed = count(one.shape, one.subject.windows, one.tokens_per_frame, one.branches)
    described = name if config is None else f"{arguments.weights.name} as {name}"
    return as_json(described, arguments.preset, result, closed, notes)


def follows_from_numbers(preset: Preset) -> bool:
    return preset.policy.content_free and not preset.policy.reads_model


def as_json(name: str, preset: str, result: DryRun, closed: Cost, notes: list[str]) -> dict[str, Any]:
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
        "pflops": closed.flops / PETA,
        "bytes_moved": dict(result.moved),
        "steps": result.steps,
        "computed_steps": closed.computed_steps,
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
    computed, steps = result["computed_steps"], result["steps"]
    lines = [f"{result['model']}, preset {result['preset']}, dry run of {steps} steps, {computed} of them computed"]
    for place, peak in result["memory"].items():
        parts = sorted(peak["parts"].items(), key=lambda part: -part[1])
        split = ", ".join(f"{part} {size / GIB:.2f}" for part, size in parts)
        lines.append(f"  {place} memory   {peak['peak_bytes'] / GIB:.2f} GiB at its peak: {split}")
    torchs, ours = result["pflops_counted_by_torch"], result["pflops"]
    lines.append(f"  FLOPs           {torchs:.2f} PFLOPs counted by torch, {ours:.2f} by the cost model")
    for way, size in result["bytes_moved"].items():
        lines.append(f"  moved           {size / GIB:.3f} GiB from {way}")
    lines.append(f"  a step          {result['kernels_per_step']:.0f} kernels, {result['syncs_per_step']:.2f} syncs")
    return "\n".join([*lines, *(f"  {note}" for note in result["notes"])])
