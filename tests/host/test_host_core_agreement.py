"""One checkpoint, two implementations of the model: ComfyUI's through our sampler node, and the core's own.

Whole runs in fp32, from the file to the latents: positions, frame-rate embedding, K/V, guidance, reuse, compression and
prefix must mean the same on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from comfy_extras.nodes_custom_sampler import RandomNoise
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from hostkit import (
    BLOCKWISE,
    HEIGHT,
    METHOD,
    SAME,
    STAGGERED,
    WIDTH,
    latent,
    metadata,
    module,
    node,
    ours,
    prompt,
    reuse,
    sample,
    sigmas_of,
    state_dict,
)
from torch import Tensor

engine = module("flowcache_core.engine")
events = module("flowcache_core.report.events")
last_record = module("nodes.adapters.run.settings").last_record
settings_of = module("nodes.adapters.run.settings").settings_of
load_ar_model = module("nodes.adapters.files.checkpoints").load_ar_model
load_skyreels = module("flowcache_core.models.wan.skyreels_checkpoint").load_skyreels
WanDenoiser = module("flowcache_core.models.wan.denoiser").WanDenoiser
staggered = module("flowcache_core.plan.staggered").staggered
blockwise = module("flowcache_core.plan").blockwise
solvers = module("flowcache_core.solvers").SOLVERS
from_sigmas = module("flowcache_core.schedule").from_sigmas
host_noise = module("flowcache_core.noise").host_noise

DIM, STEPS, SHIFT, SEED, FRAMES = 24, 6, 8.0, 3, 8
TOLERANCE = 1e-4
FEW_STEP = {**BLOCKWISE, "chunk_frames": 2}
MANY_STEP = {**BLOCKWISE, "chunk_frames": 2, "solver": "unipc", "clean_pass": False}
CAUSAL = {**STAGGERED, "solver": "unipc", "ar_step": 3}
WHOLE = {**CAUSAL, "attention": "bidirectional"}
PLANS = {"blockwise": MANY_STEP, "staggered": CAUSAL}


@dataclass(frozen=True)
class Checkpoint:
    """A tiny file with the keys of one published size. fps: what the loader is told."""

    frame_rate: bool
    family: str
    fps: int = 24


CHECKPOINTS = {
    "1.3B": Checkpoint(True, "skyreels-v2-df"),
    "1.3B at 16 fps": Checkpoint(True, "skyreels-v2-df", 16),
    "14B": Checkpoint(False, "skyreels-v2-df"),
    "causal": Checkpoint(False, "causal wan"),
}


def frame_rate_weights() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(9)
    shapes = {
        "fps_embedding.weight": (2, DIM),
        "fps_projection.0.weight": (DIM, DIM),
        "fps_projection.0.bias": (DIM,),
        "fps_projection.2.weight": (6 * DIM, DIM),
        "fps_projection.2.bias": (6 * DIM,),
    }
    return {key: 0.3 * torch.randn(shape, generator=draw) for key, shape in shapes.items()}


@dataclass(frozen=True)
class Both:
    """The same file on either side."""

    host: Any
    core: Any
    fps: int


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Both]:
    folder: Path = tmp_path_factory.mktemp("models")
    made = {}
    for name, kind in CHECKPOINTS.items():
        path = folder / f"{name}.safetensors"
        weights = {**state_dict(), **(frame_rate_weights() if kind.frame_rate else {})}
        safetensors.torch.save_file(weights, path, metadata=metadata(causal=False))
        host = load_ar_model(str(path), "default", kind.family, kind.fps)
        made[name] = Both(ModelSamplingSD3().patch(host, SHIFT)[0], load_skyreels(path), kind.fps)
    return made


@dataclass(frozen=True)
class Case:
    """plan: the sampler node's fields. reuse, budget: of the patch nodes, absent when None. cfg 1: one branch."""

    plan: dict[str, Any]
    cfg: float = 1.0
    reuse: dict[str, Any] | None = None
    budget: float | tuple[tuple[float, ...], ...] | None = None
    prefix: int = 0
    method: dict[str, Any] = field(default_factory=METHOD.copy)

    def patched(self, model: Any) -> Any:
        if self.reuse is not None:
            model = reuse(model, **self.reuse)
        if isinstance(self.budget, tuple):  # no field takes one for each head: auto (MB) chooses them
            chosen = module("flowcache_core.kv.settings").KVSettings(self.budget)
            model = module("nodes.adapters.run.outer").with_kv(model, chosen)
        elif self.budget is not None:
            model = node("KVCompressor", model=model, budget=self.budget, method=self.method, dtype=SAME, device=SAME)
        return model


def given_prefix(frames: int) -> Tensor:
    """Clean latents as a VAE makes them."""
    shape = (1, 16, frames, HEIGHT // 8, WIDTH // 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def by_host(both: Both, case: Case) -> tuple[Tensor, list[tuple[int, int, str]], Any]:
    """Latents in the model's own scale, every step with what was done, and the record of the run."""
    model = case.patched(both.host.clone())
    model = module("nodes.adapters.run.outer").with_slot(model)
    extra = {"prefix": {"samples": given_prefix(case.prefix)}} if case.prefix else {}
    options = {} if case.cfg == 1 else {"negative": prompt(8), "cfg": case.cfg}
    start, sigmas = latent(4 * FRAMES - 3), sigmas_of(model, STEPS)
    out, _ = sample(model, ours(case.plan, **extra), start=start, sigmas=sigmas, seed=SEED, **options)
    record = last_record(model)
    steps = [(step.chunk, step.step, step.action) for step in record.steps_taken]
    return model.model.process_latent_in(out), steps, record


def by_core(both: Both, case: Case) -> tuple[Tensor, list[tuple[int, int, str]]]:
    """The same run, put together from the core's own parts. Only what the patch nodes chose is taken from the MODEL."""
    chosen = settings_of(case.patched(both.host.clone()).model_options)
    fields, prefix = case.plan, case.prefix
    chunk = fields["chunk_frames"]
    if fields["plan"] == "blockwise":
        plan = blockwise(FRAMES, chunk, STEPS, prefix)
    else:
        plan = staggered(FRAMES, chunk, STEPS, fields["ar_step"], prefix)
    settings = engine.EngineSettings(
        plan=plan,
        schedule=from_sigmas(sigmas_of(both.host, STEPS).tolist()),
        solver=solvers[fields["solver"]](),
        clean_pass=fields["clean_pass"],
        attention=fields.get("attention", "block-causal"),
        prefix_noise=fields.get("prefix_noise", 0.0),
        kv=chosen.kv_settings,
    )
    if chosen.reuse is not None:
        settings = replace(settings, policy=chosen.reuse.policy, quantity=chosen.reuse.quantity)
    texts = [prompt()[0][0], prompt(8)[0][0]][: 1 if case.cfg == 1 else 2]
    denoiser = WanDenoiser(both.core, {0: texts}, case.cfg, both.fps)
    noise = RandomNoise.execute(SEED).args[0].generate_noise(latent(4 * FRAMES - 3))
    steps = []

    def observe(event: Any) -> None:
        if isinstance(event, events.StepTaken):
            steps.append((event.chunk, event.step, event.action))

    out = engine.generate(
        denoiser,
        settings,
        noise,
        prefix=both.host.model.process_latent_in(given_prefix(prefix)) if prefix else None,
        noise_source=host_noise(SEED, plan.prefix_chunks),
        observe=observe,
    )
    return out, steps


def agree(both: Both, case: Case) -> Any:
    """The record of the host's run, once both have taken the same steps to the same latents."""
    value, steps, record = by_host(both, case)
    expected, expected_steps = by_core(both, case)
    assert steps == expected_steps
    assert value.shape == expected.shape == (1, 16, FRAMES, HEIGHT // 8, WIDTH // 8)
    assert expected.std() > 0.1
    assert (value - expected).abs().max() < TOLERANCE
    return record


REUSE = {"threshold": 0.8, "warmup_steps": 2}


@pytest.mark.parametrize("cfg", [1.0, 4.0], ids=["one branch", "cfg"])
@pytest.mark.parametrize("budget", [None, 1.0], ids=["whole history", "compressed"])
@pytest.mark.parametrize("fields", [None, REUSE], ids=["computed", "reused"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("name", ["1.3B", "14B"])
def test_block_causal_runs(loaded, name, plan, fields, budget, cfg):
    record = agree(loaded[name], Case(plan, cfg, fields, budget))
    assert (record.reused_steps > 0) == (fields is not None)
    assert record.reused_steps < record.total_steps == 4 * STEPS
    assert bool(record.compressions) == (budget is not None)


@pytest.mark.parametrize("cfg", [1.0, 4.0], ids=["one branch", "cfg"])
@pytest.mark.parametrize("ar_step", [0, 2], ids=["synchronous", "staggered"])
@pytest.mark.parametrize("fields", [None, {**REUSE, "threshold": 50.0}], ids=["computed", "reused"])
@pytest.mark.parametrize("name", ["1.3B", "14B"])
def test_bidirectional_runs(loaded, name, fields, ar_step, cfg):
    record = agree(loaded[name], Case({**WHOLE, "ar_step": ar_step}, cfg, fields))
    assert (record.reused_steps > 0) == (fields is not None)


@pytest.mark.parametrize("quantity", ["velocity", "increment", "residual"])
@pytest.mark.parametrize("distance", ["latent", "patch", "time"])
def test_every_quantity_and_distance(loaded, quantity, distance):
    """Distances differ in scale, so all that is free after the warm-up is reused."""
    fields = {"threshold": 50.0, "warmup_steps": 2, "quantity": quantity, "distance": distance}
    assert agree(loaded["1.3B"], Case(CAUSAL, 4.0, fields)).reused_steps == 4 * (STEPS - 3)


OTHERS = [
    {"method": "sink-window", "sink": 0.5, "key_granularity": "frame"},
    {"method": "recent", "key_granularity": "token"},
    {"method": "random", "seed": 3},
]


@pytest.mark.parametrize("method", OTHERS, ids=lambda fields: fields["method"])
def test_other_compressors(loaded, method):
    assert agree(loaded["14B"], Case(CAUSAL, 4.0, None, 1.5, method=method)).compressions


HEADS = ((1.0, 2.0), (1.5, 1.0))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_budgets_of_heads(loaded, plan):
    """As auto (MB) chooses them where a profile was measured."""
    assert agree(loaded["1.3B"], Case(plan, 4.0, REUSE, HEADS)).compressions


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("plan", [FEW_STEP, CAUSAL, WHOLE], ids=["few steps", "staggered", "bidirectional"])
def test_every_checkpoint_and_a_clean_prefix(loaded, name, plan):
    noisy = {**plan, "prefix_noise": 0.02} if plan is not FEW_STEP else plan
    agree(loaded[name], Case(noisy, 4.0, prefix=2))


def test_the_frame_rate_is_told_to_both(loaded):
    case = Case(CAUSAL, 4.0)
    slow, fast = (by_host(loaded[name], case)[0] for name in ("1.3B at 16 fps", "1.3B"))
    assert (slow - fast).abs().max() > 1e-2


PARTIAL = {"policy": "partial schedule", "computed_steps": "0, 1, 3, 5", "partial_steps": "2, 4", "partial_share": 0.4}
NEED = {"policy": "motion", "threshold": 0.15, "warmup_steps": 1, "uniform_updates": 0, "motion_floor": 0.1}
NEED |= {"minimum_share": 0.0, "quantity": "velocity"}
SHARE = {"policy": "motion", "threshold": 0.5, "fixed_share": 0.4, "warmup_steps": 2, "uniform_updates": 0}


@pytest.mark.parametrize(
    ("fields", "budget", "cfg"),
    [
        (PARTIAL, None, 1.0),
        ({**PARTIAL, "quantity": "residual"}, 1.0, 4.0),
        ({**SHARE, "quantity": "velocity"}, 1.0, 4.0),
        (NEED, None, 4.0),
    ],
    ids=["partial schedule", "residual, compressed, cfg", "motion, compressed, cfg", "motion by need, cfg"],
)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_steps_in_part(loaded, plan, fields, budget, cfg):
    """Rows gathered and scattered by block replacements are those of the core's own forward."""
    record = agree(loaded["1.3B"], Case(plan, cfg, fields, budget))
    assert record.part_steps > 0
    assert all(0 < step.computed_tokens < step.tokens for step in record.steps_taken if step.action == "part")


def test_the_published_rule_by_branch_is_refused_where_only_the_guided_velocity_exists(loaded):
    fields = {"policy": "motion reference", "threshold": 0.1, "quantity": "residual"}
    with pytest.raises(module("flowcache_core.errors").SettingError, match="Reuse, policy: .*guided velocity"):
        by_host(loaded["1.3B"], Case(CAUSAL, 4.0, fields))


def test_latents_that_the_patch_does_not_divide(loaded):
    """The host pads them: tokens at the edge are smaller, and steps are computed in part all the same."""
    model = loaded["1.3B"].host
    start = {"samples": torch.zeros(1, 16, 8, 5, 9)}
    outs = []
    for fields in (None, {**NEED, "threshold": 0.0}, NEED):
        patched = model if fields is None else reuse(model, **fields)
        outs.append(sample(patched, ours(CAUSAL), start=start, sigmas=sigmas_of(model, STEPS))[0])
    assert torch.equal(outs[0], outs[1]) and outs[2].isfinite().all() and not torch.equal(outs[0], outs[2])
    assert last_record(patched).part_steps > 0 and last_record(patched).places


def test_steps_are_whole_where_another_node_looks_at_the_tokens(loaded):
    """A block replacement of another node would see some tokens for a grid: every step in part is computed whole."""
    both = loaded["1.3B"]
    host, seen = both.host.clone(), []

    def replacement(args, extra):
        seen.append(args["img"].shape[1])
        return extra["original_block"](args)

    host.set_model_patch_replace(replacement, "dit", "double_block", 0)
    _, steps, record = by_host(Both(host, both.core, both.fps), Case(CAUSAL, 4.0, PARTIAL))
    assert record.part_steps == 0 and len(set(seen)) == 1
    assert [step.reason for step in record.steps_taken if step.step in (2, 4)] == ["whole only"] * 8
