"""Plan "as released": chunks, noise levels and K/V of a model together, in the real host."""

from __future__ import annotations

from dataclasses import replace

import comfy.ops
import folder_paths
import pytest
import torch
from comfy.ldm.wan.model import WanModel
from hostkit import DIM, LAYERS, NODES, SAME, TEXT_DIM, compress, latent, load, module, node, ours, sample
from safetensors.torch import save_file
from tiny_files import filled, wan_weights

released, settings = module("flowcache_core.released"), module("nodes.adapters.run.settings")
ROWS = dict(released.RELEASED)
SELF_FORCING, LONGLIVE, TWO_STEPS = "Self-Forcing 1.3B", "LongLive 1.3B", "Causal-Forcing++ 1.3B, 2 steps"


@pytest.fixture
def small(monkeypatch):
    """The rows for models of the tests' size."""
    for title, row in ROWS.items():
        monkeypatch.setitem(released.RELEASED, title, replace(row, size=(DIM, LAYERS)))


@pytest.fixture
def model():
    return load()


def windowed(model):
    method = {"method": "sink-window", "sink": 1.0}
    return node("KVCompressor", model=model, budget=3.0, method=method, dtype=SAME, device=SAME)


def run(model, title, frames=21, **options):
    sampler = ours({"plan": "as released", "model": title})
    levels = node("ReleasedSchedule", model=title)
    return sample(model, sampler, start=latent(4 * frames - 3), sigmas=levels, **options)[0]


def test_self_forcing_is_the_blockwise_plan_with_its_levels(small, model):
    levels = node("ReleasedSchedule", model=SELF_FORCING)
    assert levels.tolist() == pytest.approx([1, 15 / 16, 5 / 6, 0.625, 0])
    plain = sample(model, ours(), start=latent(81), sigmas=levels)[0]
    assert torch.equal(run(model, SELF_FORCING), plain)


def test_longlive_keeps_its_window_and_sink(small, model):
    slow = windowed(model)
    levels = node("ReleasedSchedule", model=LONGLIVE)
    expected = sample(slow, ours(), start=latent(81), sigmas=levels)[0]
    assert torch.equal(run(model, LONGLIVE), expected)
    # A compressor that says the same may be there, with a dtype of its own.
    assert torch.equal(run(slow, LONGLIVE), expected)
    assert settings.last_record(slow).started.budget_tokens == 3 * 3 * 2 * 4


def test_another_window_is_refused_with_what_was_released(small, model):
    with pytest.raises(Exception, match=r"(?s)KV Cache Compressor.*budget.*3 with sink-window, sink 1"):
        run(compress(model, 2.0), LONGLIVE)
    run(compress(model, 2.0), SELF_FORCING)  # released with everything kept: a budget is the user's own


def test_the_first_frame_has_four_steps(small, model):
    carried = compress(model, 100.0)
    latents = run(carried, TWO_STEPS, frames=5)
    assert latents.isfinite().all() and latents.shape[2] == 5
    record = settings.last_record(carried)
    assert [len(row) for row in record.kinds] == [4, 2, 2, 2, 2, 2]  # the first chunk is the second run's given one
    assert record.kinds[1] == ["given", "given"] and record.total_steps == 4 + 4 * 2
    text = NODES["FlowCacheReport"].execute(latent={"samples": latents}, model=carried).args[0]
    assert "chunk" in text


def test_wrong_levels_and_wrong_files_are_refused(small, model, monkeypatch):
    sampler = ours({"plan": "as released", "model": SELF_FORCING})
    with pytest.raises(Exception, match="sigmas.*0.9375"):
        sample(model, sampler, start=latent(81), sigmas=torch.tensor([1.0, 0.9, 0.8, 0.5, 0.0]))
    monkeypatch.setitem(released.RELEASED, SELF_FORCING, ROWS[SELF_FORCING])
    with pytest.raises(Exception, match="width 24, 2 blocks.*1536"):
        run(model, SELF_FORCING)


def test_an_unknown_model_is_named_with_all_there_are():
    verdict = NODES["FlowCacheReleasedSchedule"].validate_inputs(model="Wan 3")
    assert "Wan 3" in verdict and LONGLIVE in verdict
    with pytest.raises(Exception, match="Self-Forcing 1.3B"):
        ours({"plan": "as released", "model": "Wan 3"})


def test_video_to_video_begins_at_its_first_level(small, model):
    title = "StreamDiffusionV2 1.3B, video to video"
    video = {"samples": torch.randn(1, 16, 6, 4, 8, generator=torch.Generator().manual_seed(3))}
    levels = node("ReleasedSchedule", model=title)
    sampler = ours({"plan": "as released", "model": title})
    one = sample(model, sampler, start=video, sigmas=levels)[0]
    other = sample(model, sampler, start={"samples": torch.zeros_like(video["samples"])}, sigmas=levels)[0]
    assert one.isfinite().all() and not torch.allclose(one, other)


def test_longlive_computes_its_history_again_under_a_new_prompt(small, model):
    carried = windowed(model)
    first, second = (torch.randn(1, 7, TEXT_DIM, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    later = {"start_2": 3, "prompt_2": [[second, {}]]}
    prompts = node("PromptSchedule", prompt_1=[[first, {}]], recache=False, **later)
    run(carried, LONGLIVE, positive=prompts)
    kinds = [event.kind for event in settings.last_record(carried).cache_passes]
    assert "recache" in kinds


def averaged(weights):
    """Self Forcing's trainer, and those that grew out of it, where weights are not sharded."""
    return {"generator": under("model.", zeros(weights)), "generator_ema": under("model.", weights)}


def sharded(weights):
    """The same under FSDP."""
    return {"generator": under("model.", zeros(weights)), "generator_ema": under(WRAPPED, weights)}


def plain(weights):
    return {"generator": under("model.", weights)}


WRAPPED = "model._fsdp_wrapped_module."
LAYOUTS = {
    # As each project saves its generator, and None for one that gives out safetensors.
    "Self-Forcing 1.3B": lambda weights: {"generator_ema": under("model.", weights)},
    "Causal-Forcing 1.3B, chunks of 3": sharded,
    "Causal-Forcing 1.3B, single frames": sharded,
    "Causal-Forcing++ 1.3B, 2 steps": sharded,
    "Causal-Forcing++ 1.3B, 1 step": sharded,
    "Causal-Forcing 1.3B, long video": sharded,
    "Rolling Forcing 1.3B": sharded,
    "Self Gradient Forcing 1.3B, chunks of 3": averaged,
    "Self Gradient Forcing 1.3B, single frames": averaged,
    "Reward-Forcing 1.3B": averaged,
    "LongLive 1.3B": plain,
    "StreamDiffusionV2 1.3B, video to video": plain,
    "Krea Realtime 14B": None,
}


def test_every_model_of_wans_16_channels_has_its_file_here():
    assert {*LAYOUTS, "LongLive 2.0 5B"} == set(ROWS)


def under(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


def zeros(weights):
    return {key: torch.zeros_like(value) for key, value in weights.items()}


@pytest.mark.parametrize("title", LAYOUTS)
def test_each_projects_file_loads_and_runs(title, monkeypatch, tmp_path):
    """The layouts of the real files, every official key, other sizes: the same video as from the plain weights."""
    weights, wrap = wan_weights(), LAYOUTS[title]
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".pt", ".safetensors"})
    )
    name = "model.safetensors" if wrap is None else "model.pt"
    if wrap is None:
        save_file(under("model.", weights), tmp_path / name)
    else:
        torch.save(wrap(weights), tmp_path / name)
    monkeypatch.setitem(released.RELEASED, title, replace(ROWS[title], size=(128, 2)))
    prompt = [[torch.randn(1, 3, 4096, generator=torch.Generator().manual_seed(2)), {}]]

    def video(model):
        return run(model, title, frames=6 if ROWS[title].chunk_frames == 1 else 9, positive=prompt)

    raw = node("LoadARModel", model_name=name, weight_dtype="default", family={"family": "causal wan"})
    save_file(weights, tmp_path / "plain.safetensors")
    plain = node("LoadARModel", model_name="plain.safetensors", weight_dtype="default", family={"family": "causal wan"})
    assert torch.equal(video(raw), video(plain)) and video(raw).isfinite().all()


def wide_weights():
    """Wan 2.2's 5B blocks, small: 48 latent channels."""
    made = WanModel(
        model_type="t2v", dim=128, ffn_dim=256, num_layers=2, num_heads=1, in_dim=48, out_dim=48,
        operations=comfy.ops.disable_weight_init, device="cpu", dtype=torch.float32,
    )  # fmt: skip
    return filled({key: value.shape for key, value in made.state_dict().items()}, seed=3)


def test_longlive_2_runs_on_the_hosts_5b_with_shots(monkeypatch, tmp_path):
    """Two prompts, one cut: everything before the cut is as without, and the shot's start stays in the history."""
    title = "LongLive 2.0 5B"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".pt"}))
    torch.save({"generator": under("model.", wide_weights())}, tmp_path / "model.pt")
    monkeypatch.setitem(released.RELEASED, title, replace(ROWS[title], size=(128, 2)))
    model = node("LoadARModel", model_name="model.pt", weight_dtype="default", family={"family": "causal wan"})
    assert type(model.model).__name__ == "WAN22"
    first, second = (torch.randn(1, 3, 4096, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    start = {"samples": torch.zeros(1, 48, 48, 2, 4)}
    sampler = ours({"plan": "as released", "model": title})
    levels = node("ReleasedSchedule", model=title)

    def video(new_shots, at=2):
        later = {f"start_{2}": at, "prompt_2": [[second, {}]]}
        prompts = node("PromptSchedule", prompt_1=[[first, {}]], recache=False, new_shots=new_shots, **later)
        return sample(model, sampler, start=start, sigmas=levels, positive=prompts)[0]

    cut, flowing = video(True), video(False)
    assert cut.shape == (1, 48, 48, 2, 4) and cut.isfinite().all()
    assert torch.equal(cut[:, :, :16], flowing[:, :, :16])
    assert not torch.allclose(cut[:, :, 16:24], flowing[:, :, 16:24], atol=1e-4)
    budget = module("nodes.adapters.wan.sampling").kv_of
    kept = budget(sampler.choice, settings.FlowCacheSettings(), (2,))
    assert (kept.budget, kept.compressor.name, kept.compressor.shots) == (3, "shot-sink", (2,))
