"""``python dev.py cost``: what a published configuration costs, without weights."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..cost import Cost, MagiShape, ModelShape, count
from ..cost.assumed import assumption, counted_policy
from ..cost.counted import counted_events
from ..cost.ranks import Machine, Run, Sharing, heads_of, shared
from ..cost.ranks import as_text as ranks_text
from ..cost.waterfall import Saving, waterfall
from ..dry_run import command as dry_command
from ..dry_run.command import KEPT_AS
from ..dry_run.models import ALIKE, names
from ..engine import EngineSettings
from ..errors import Found, SettingError, require, require_count, require_finite
from ..families import FAMILIES
from ..kv.settings import KVSettings
from ..models.magi.config import MAGI_24B
from ..parallel.shape import Shareable
from ..plan import PLANS
from ..plan.base import MOST_FRAMES
from ..presets import Preset, load_preset, model_file, models
from ..reuse.build import policy_from_text
from ..schedule import MOST_STEPS, Schedule
from ..sparse.settings import SparseSettings
from ..sparse.top_k import TopK
from ..video.magi import passes
from .arguments import COUNTED, Parser

PETA = 1e15
LINK, TFLOPS = 25.0, 300.0
DEFAULTS = (("link", LINK), ("tflops", TFLOPS))
POLICY = 'a reuse policy instead of the preset\'s: its name, or {"name": ..., <its fields>}'


def parser() -> argparse.ArgumentParser:
    p = Parser("cost", description="FLOPs and K/V bytes of a configuration, counted by the engine.")
    p.add_argument("--model", required=True, help=", ".join((*published(), *ALIKE)))
    p.add_argument("--preset", default="vanilla", help="a preset of that model (default: vanilla)")
    p.add_argument("--policy", help=POLICY)
    p.add_argument("--steps", type=int, help="denoising steps per chunk")
    p.add_argument("--chunks", type=int, help="chunks of the video")
    p.add_argument(
        "--computed", type=int, help="computed steps per chunk, for presets whose reuse depends on the video"
    )
    p.add_argument(
        "--density",
        type=float,
        help="share of the self-attention that sparse attention computes, the first chunks dense",
    )
    p.add_argument("--rescale", action="store_true", help="stretch a table made for another number of steps")
    budget = p.add_mutually_exclusive_group()
    budget.add_argument("--kv-budget", type=float, help="chunks of finished history kept (B_budget)")
    budget.add_argument("--budget-total", type=float, help="chunks of K/V in all, active ones included (B_total)")
    dry = p.add_argument_group("dry run")
    models = ", ".join(names())
    dry.add_argument("--dry-run", action="store_true", help=f"the real code at the real size, without values: {models}")
    dry.add_argument("--weights", type=Path, help="your own file of such a model: its sizes instead of the published")
    dry.add_argument("--kv-dtype", choices=sorted(KEPT_AS), help="of the stored K/V (default: the model's)")
    dry.add_argument("--kv-device", choices=["cpu"], help="where K/V is kept (default: beside the model)")
    ranks = p.add_argument_group("several ranks", "traffic, idle time and speed-up of every way to share the run")
    ranks.add_argument("--ranks", type=int, help="how many")
    ranks.add_argument("--link", type=float, help=f"GB/s that a rank sends to others (default: {LINK:g}, PCIe 4 x16)")
    ranks.add_argument("--tflops", type=float, help=f"that a rank computes a second (default: {TFLOPS:g}, bf16)")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    return p


def published() -> list[str]:
    """Models with a published shape and run."""
    return [name for name in models() if "shape" in model_file(name)]


def shape_of(model: str, preset: str, steps: int) -> ModelShape:
    fields = dict(model_file(model)["shape"])
    return FAMILIES[fields.pop("kind")].shape(fields, steps, passes(model, preset)["nearly_clean"])


def kept(preset: Preset, budget: float | None) -> KVSettings:
    """K/V settings of a run of ``preset``: its own where it has some, with the budget that is given."""
    own = preset.kv or KVSettings()
    return own if budget is None else replace(own, budget=budget)


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """The command's result as the object that ``--json`` prints."""
    if arguments.model in ALIKE:
        # A model of other sizes whose runs are those of a published one.
        alike = argparse.Namespace(**{**vars(arguments), "model": ALIKE[arguments.model], "sizes": arguments.model})
        return evaluate(alike) | {"model": arguments.model}
    require(arguments.model in published(), "model", arguments.model, ", ".join(published()))
    for field in ("kv_dtype", "kv_device", "weights"):
        given = getattr(arguments, field)
        require(given is None, field, given, "nothing without --dry-run: the count is of published sizes, in bf16")
    run = dict(model_file(arguments.model)["run"])
    preset = load_preset(arguments.model, arguments.preset)
    if arguments.policy is not None:
        preset = preset.with_policy(policy_from_text(arguments.policy))
    accepted = f"one that computes whole chunks with preset {preset.name}, whose attention is {preset.attention}"
    in_part = preset.policy.parts != "never" and preset.attention != "block-causal"
    require(not in_part, "policy", preset.policy.name, accepted)
    if arguments.steps is not None:
        run["steps"] = arguments.steps
    if arguments.chunks is not None:
        require_count("chunks", arguments.chunks, minimum=1, maximum=MOST_FRAMES // run["chunk_frames"])
        run["frames"] = arguments.chunks * run["chunk_frames"]
    require_count("steps", run["steps"], minimum=1, maximum=MOST_STEPS)
    total_steps = -(-run["frames"] // run["chunk_frames"]) * run["steps"]
    found = Found(f"{total_steps} steps of all chunks")
    require(total_steps <= COUNTED, "steps", found, f"at most {COUNTED}: fewer steps or chunks")
    family = FAMILIES[model_file(arguments.model)["shape"]["kind"]]
    plans = family.plans(run)
    steps, warning = run["steps"], None
    if arguments.computed is None:
        preset, warning = preset.fit(steps, run.get("shift"), rescale=arguments.rescale)
    total = arguments.budget_total
    kv = kept(preset, arguments.kv_budget) if total is None else KVSettings()
    if total is not None:
        require_finite("budget_total", total, minimum=0.0)
        budget = total - max(plan.max_active for plan in plans)
        require(budget >= 1, "budget_total", total, f">= {total - budget + 1:g}")
        kv = kept(preset, budget)
    schedule = Schedule(tuple(1 - i / steps for i in range(steps + 1)), tuple(float(steps - i) for i in range(steps)))
    accepted = f"nothing with preset {preset.name}, whose attention is bidirectional: sparse attention works on K/V"
    require(arguments.density is None or preset.attention == "block-causal", "density", arguments.density, accepted)
    sparse = None if arguments.density is None else SparseSettings(TopK(density=arguments.density))
    settings = [
        EngineSettings(
            plan=plan,
            schedule=schedule,
            policy=counted_policy(preset, steps, arguments.computed),
            kv=kv,
            attention=preset.attention,
            sparse=sparse,
        )
        for plan in plans
    ]
    shape = shape_of(arguments.model, preset.name, steps)
    if getattr(arguments, "sizes", None) is not None:
        assert isinstance(shape, MagiShape)
        shape = MagiShape.of(MAGI_24B, shape.nearly_clean_from, shape.text_tokens)
    result = count(shape, settings, run["tokens_per_frame"], run["branches"])
    output = as_json(arguments.model, preset, run, max(kv.budgets, default=None), result)
    if (assumed := assumption(preset, steps, arguments.computed, shape.whole_from)) is not None:
        output["notes"].append(assumed)
    output["notes"] += [] if warning is None else [f"warning: {warning}"]
    output["notes"] += sorted({note for window in settings if (note := window.kv.note(window.plan))})
    if preset.attention == "bidirectional":
        causal = count(shape, settings, run["tokens_per_frame"], run["branches"], window_attention="block-causal")
        output["pflops_bidirectional"] = output["pflops"]
        output["pflops"] = causal.flops / PETA
        output["notes"].append(
            "pflops counts block-causal attention, as the paper does; pflops_bidirectional as executed"
        )
    elif PLANS[run["plan"]].whole_window:
        stages = waterfall(shape, settings, run["tokens_per_frame"], run["branches"])
        output["waterfall"] = [asdict(stage) for stage in stages]
    if family.clean_pass:
        output["pflops_clean_pass"] = 0.0
        if passes(arguments.model, preset.name)["clean_pass"]:
            encoding = [replace(window, clean_pass=True) for window in settings]
            more = count(shape, encoding, run["tokens_per_frame"], run["branches"]).flops - result.flops
            output["pflops_clean_pass"] = more / PETA
            output["notes"].append(
                f"the clean re-encode of finished chunks ({more / PETA:.1f} PFLOPs, pflops_clean_pass) is not in "
                "pflops: the paper leaves it out"
            )
    output["notes"] += shape.notes(steps)
    output["ranks"] = on_ranks(arguments, shape, settings, run)
    if arguments.density is not None:
        dense = count(shape, [replace(one, sparse=None) for one in settings], run["tokens_per_frame"], run["branches"])
        output["density"], output["pflops_dense_attention"] = arguments.density, dense.flops / PETA
        output["notes"].append(sparse_note(settings[0]))
    return output


def sparse_note(settings: EngineSettings) -> str:
    sparse = settings.sparse
    assert sparse is not None
    method = sparse.settled(settings.plan, 1, settings.kv, settings.recache)
    assert isinstance(sparse.method, TopK) and isinstance(method, TopK)
    return (
        f"self-attention at density {sparse.method.density:g}: {method.density:.2f} in contexts of more than "
        f"{sparse.dense_chunks} chunks; choosing blocks counted at stride {method.stride}"
    )


def on_ranks(
    arguments: argparse.Namespace, shape: ModelShape, settings: Sequence[EngineSettings], run: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Every way in which the ranks asked for can share the run; None where nobody asked. SettingError for a number
    that fits nothing."""
    given = {"link": arguments.link, "tflops": arguments.tflops}
    if arguments.ranks is None:
        for field, value in given.items():
            require(value is None, field, value, "nothing without --ranks")
        return None
    link, tflops = (default if given[name] is None else given[name] for name, default in DEFAULTS)
    require_finite("link", link, minimum=1e-3, maximum=1e5)
    require_finite("tflops", tflops, minimum=1e-3, maximum=1e5)
    one = heads_of(shape)
    Shareable(run["branches"], one.heads, one.kv_heads).fit(arguments.ranks)
    clean = FAMILIES[model_file(arguments.model)["shape"]["kind"]].clean_pass
    if clean and passes(arguments.model, arguments.preset)["clean_pass"]:
        settings = [replace(window, clean_pass=True) for window in settings]
    events, _ = counted_events(shape, settings, run["tokens_per_frame"], run["branches"])
    counted = Run(shape, events, run["branches"], Machine(tflops * 1e12, link * 1e9))
    ways = [asdict(way) for way in shared(counted, arguments.ranks)]
    return {"ranks": arguments.ranks, "link": link, "tflops": tflops, "seconds_alone": counted.alone, "ways": ways}


def as_json(model: str, preset: Preset, run: Mapping[str, Any], budget: float | None, cost: Cost) -> dict[str, Any]:
    return {
        "model": model,
        "preset": preset.name,
        "attention": preset.attention,
        "frames": run["frames"],
        "steps": run["steps"],
        "kv_budget": budget,
        "pflops": cost.flops / PETA,
        "kv_bytes": cost.kv_bytes,
        "kv_tokens": cost.kv_tokens,
        "computed_steps": cost.computed_steps,
        "total_steps": cost.total_steps,
        "compressions": cost.compressions,
        "part_steps": cost.part_steps,
        "notes": [preset.text],
    }


def as_text(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['model']}, preset {result['preset']}, {result['attention']} attention",
        f"  {result['frames']} latent frames, {result['steps']} steps per chunk",
        f"  FLOPs           {result['pflops']:.1f} PFLOPs",
    ]
    if "pflops_bidirectional" in result:
        lines.append(f"  as executed     {result['pflops_bidirectional']:.1f} PFLOPs (bidirectional)")
    if "pflops_dense_attention" in result:
        lines.append(f"  all attention   {result['pflops_dense_attention']:.1f} PFLOPs")
    computed, total = result["computed_steps"], result["total_steps"]
    parts = f", {result['part_steps']} in part" if result["part_steps"] else ""
    lines.append(f"  chunk steps     {computed} of {total} computed ({computed / total:.0%}){parts}")
    budget = "whole video" if result["kv_budget"] is None else f"budget {result['kv_budget']:g} chunks + active"
    lines.append(
        f"  K/V             {result['kv_bytes'] / 2**30:.2f} GiB, {result['kv_tokens']} tokens per layer ({budget})"
    )
    if "waterfall" in result:
        lines += ["  where the saving comes from, beginning with the vanilla model as executed:"]
        lines += [f"  {Saving(**stage)}" for stage in result["waterfall"]]
    if result["ranks"] is not None:
        shared_by = result["ranks"]
        lines.append(
            f"  on {shared_by['ranks']} ranks of {shared_by['tflops']:g} TFLOPS, {shared_by['link']:g} GB/s between "
            f"them; on one {shared_by['seconds_alone']:.1f} s (model alone, nothing overlaps):"
        )
        lines.append(ranks_text([Sharing(**way) for way in shared_by["ways"]]))
    lines += [f"  {note}" for note in result["notes"]]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Print the cost of one configuration. Returns the exit status: 2 for settings that cannot work."""
    p = parser()
    arguments = p.parse_args(argv)
    try:
        result = dry_command.evaluate(arguments) if arguments.dry_run else evaluate(arguments)
    except SettingError as error:
        p.exit(2, f"cost: {error}\n")
    text = dry_command.as_text if arguments.dry_run else as_text
    print(json.dumps(result) if arguments.json else text(result))
    return 0
