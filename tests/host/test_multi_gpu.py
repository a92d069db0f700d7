"""FlowCache Multi-GPU: a run on ranks of this CPU is the run here, is refused where it is not, and leaves nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import comfy.model_management
import hostkit
import pytest
import safetensors.torch
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from hostkit import BLOCKWISE, METHOD, SAME, STAGGERED, latent, module, node, ours, prompt, sample, sigmas_of
from test_host_core_agreement import frame_rate_weights

load_ar_model = module("nodes.adapters.files.checkpoints").load_ar_model
Devices = module("nodes.adapters.ranks.choice").Devices
session = module("flowcache_core.parallel.session")
with_slot = module("nodes.adapters.run.outer").with_slot
last_record = module("nodes.adapters.run.settings").last_record
MANY_STEP = {**BLOCKWISE, "chunk_frames": 2, "solver": "unipc", "clean_pass": False}
REUSE = {"threshold": 0.8, "warmup_steps": 2}
KEPT = {"method": METHOD, "dtype": SAME, "device": SAME}
SPARSE = {"preset": "xattention", "p": 0.6, "block": 8, "stride": 4}
SPARSE_MORE = {"dense_chunks": 1, "dense_steps": 0, "engine": "auto", "mask_reuse": False}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Sums of one thread have one order: ranks have fewer threads than this process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def started(monkeypatch):
    """Process ids of all ranks that a test has started."""
    pids: list[int] = []
    original = session.Session.__enter__

    def enter(self):
        entered = original(self)
        pids.extend(process.pid for process in self.ranks.processes)
        return entered

    monkeypatch.setattr(session.Session, "__enter__", enter)
    return pids


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Tiny files of two kinds with two heads."""
    folder = tmp_path_factory.mktemp("models")
    kinds = {"skyreels": {**hostkit.state_dict(), **frame_rate_weights()}, "causal": hostkit.state_dict(seed=4)}
    for name, weights in kinds.items():
        metadata = hostkit.metadata(causal=False)
        safetensors.torch.save_file(weights, folder / f"{name}.safetensors", metadata=metadata)
    return {name: folder / f"{name}.safetensors" for name in kinds}


def loaded(files, name: str, shift: float = 8.0):
    family = "skyreels-v2-df" if name == "skyreels" else "causal wan"
    model = with_slot(load_ar_model(str(files[name]), "default", family, 16))
    return ModelSamplingSD3().patch(model, shift)[0]


def mini(model: str = "wan"):
    return hostkit.NODES["FlowCacheMiniModel"].execute(model).args[0]


def on_ranks(model, ranks: int = 2, **more):
    return node("MultiGPU", model=model, ranks=ranks, **more)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def both(model, sampler, tolerance: float = 5e-5, **options):
    """Latents without and with the node, and the record of the latter. The host's transformer and ours round apart: of
    the largest value 1e-5 was seen after ten steps.
    """
    here = sample(model, sampler, **options)
    ranks = on_ranks(model)
    there = sample(ranks, sampler, **options)
    for one, other in zip(there, here, strict=True):
        print(f"difference {(one - other).abs().max():.1e} of {other.abs().max():.1f}")
        hostkit.close(one, other, tolerance)
    assert here[0].std() > 0.1
    return there[0], last_record(ranks)


# -- the same latents --------------------------------------------------------------------------------------------------


def mini_run(model: str = "wan"):
    names = {"model": model}
    text, nothing = (node("MiniPrompt", text=words, **names) for words in ("a red circle moving right", ""))
    return {"positive": text, "negative": nothing, "cfg": 3.0, "start": latent(33, width=64, height=64)}


def test_the_mini_model(started):
    model = mini()
    options = mini_run()
    _, record = both(model, ours(BLOCKWISE), sigmas=sigmas_of(model, 6), **options)
    assert len(started) == 2 and not any(map(alive, started))
    assert any("2 CPU ranks (2 for guidance branches)" in note for note in record.started.notes)


def test_the_mini_model_with_a_preset_and_a_compressed_cache(started):
    """A forecast over 50 steps takes roundings with it, which two implementations of a model do not share."""
    model = node("ChunkwiseReuse", model=mini(), preset={"preset": "mini: balanced"})
    model = node("KVCompressor", model=model, budget=1.0, method=METHOD, dtype=SAME, device=SAME)
    options = {**mini_run(), "sigmas": sigmas_of(model, 50)}
    here, there = sample(model, ours(BLOCKWISE), **options)[0], on_ranks(model, shared="heads only")
    hostkit.close(sample(there, ours(BLOCKWISE), **options)[0], here, tolerance=3e-5)
    record, expected = last_record(there), last_record(model)
    assert record.reused_steps == expected.reused_steps > 0 and record.compressions
    assert [step.action for step in record.steps_taken] == [step.action for step in expected.steps_taken]
    assert len(started) == 2 and not any(map(alive, started))


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("plan", [MANY_STEP, STAGGERED], ids=["blockwise", "staggered"])
def test_a_skyreels_file(files, started, plan, cfg):
    """Frame rate 16, guidance or none: heads go to ranks where there are no branches."""
    model = hostkit.compress(hostkit.reuse(loaded(files, "skyreels"), **REUSE), 1.0)
    options = {"negative": prompt(8), "cfg": cfg, "sigmas": sigmas_of(model, 6), "start": latent(45)}
    _, record = both(model, ours(plan), **options)
    assert record.reused_steps > 0 and record.compressions
    assert ("attention heads" in record.started.notes[-1]) == (cfg == 1)
    assert not any(map(alive, started))


def test_four_ranks_share_branches_and_heads(files, started):
    model = loaded(files, "causal")
    options = {"negative": prompt(8), "cfg": 3.0}
    here = sample(model, ours(STAGGERED), **options)[0]
    hostkit.close(sample(on_ranks(model, 4), ours(STAGGERED), **options)[0], here)
    assert len(started) == 4 and not any(map(alive, started))


@pytest.mark.parametrize("shared", ["branches first", "heads only"])
def test_auto_sparse_attention_and_megabytes_of_kv(files, started, shared):
    """What a run decides when it begins is decided for all ranks, as on one; p is another for every head."""
    model = node("ChunkwiseReuse", model=loaded(files, "causal"), preset={"preset": "auto", "fidelity": 0.5})
    model = node("KVCompressor", model=model, budget=1.0, preset={"preset": "auto (MB)", "megabytes": 0.06}, **KEPT)
    model = node("SparseAttention", model=model, preset=SPARSE, **SPARSE_MORE)
    options = {"negative": prompt(8), "cfg": 3.0, "sigmas": sigmas_of(model, 12), "start": latent(45)}
    here, record = sample(model, ours(MANY_STEP), **options)[0], last_record(model)
    there = on_ranks(model, shared=shared)
    hostkit.close(sample(there, ours(MANY_STEP), **options)[0], here)
    found = last_record(there)
    assert found.reused_steps == record.reused_steps > 0 and record.attention_density < 0.95
    assert set(record.started.notes) < set(found.started.notes)
    assert len(started) == 2 and not any(map(alive, started))


def test_masks_that_heads_vote_on(files, started):
    """Branches apart have all heads; ranks for heads are refused before one is started."""
    model = node("SparseAttention", model=loaded(files, "causal"), preset=SPARSE, **{**SPARSE_MORE, "mask_reuse": True})
    options = {"negative": prompt(8), "cfg": 3.0, "start": latent(45)}
    with pytest.raises(ValueError, match="FlowCache Sparse Attention, mask_reuse: got 'on, with 2 ranks for heads'"):
        sample(on_ranks(model, shared="heads only"), ours(BLOCKWISE), **options)
    assert not started
    both(model, ours(BLOCKWISE), **options)


WHOLE = {**STAGGERED, "attention": "bidirectional", "window_frames": 4, "overlap_frames": 2, "prefix_noise": 0.02}


def test_windows_of_a_longer_video(files):
    model = loaded(files, "skyreels")
    both(model, ours(WHOLE), negative=prompt(8), cfg=3.0, start=latent(29))


def test_a_prefix_prompts_by_chunk_and_lengths_that_differ(files):
    model = loaded(files, "causal")
    more = {"prompt_2": prompt(9), "start_2": 2, "prompt_3": prompt(10), "start_3": 3}
    schedule = node("PromptSchedule", prompt_1=prompt(7), recache=True, **more)
    given = {"samples": torch.randn(1, 16, 3, 4, 8, generator=torch.Generator().manual_seed(5))}
    options = {"positive": schedule, "negative": prompt(8, tokens=3), "cfg": 3.0, "start": latent(45)}
    both(model, ours(BLOCKWISE, prefix=given), **options)


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_quantised_history(files, storage):
    """Which code is nearest may hang on a rounding, in which two implementations of a forward differ, and processors: a
    code is a 255th or a 15th of a group's range. centroid is left out, where it is more than that.
    """
    model = loaded(files, "causal")
    kept = {"method": METHOD, "dtype": SAME, "device": SAME, "storage": {"storage": storage}}
    model = node("KVCompressor", model=model, budget=1.5, **kept)
    both(model, ours(MANY_STEP), 1e-3, negative=prompt(8), cfg=3.0, start=latent(29))


MAGI_PLAN = {"plan": "sliding window", "chunk_frames": 3, "window_chunks": 4, "solver": "euler", "clean_pass": True}


def test_magi(started):
    model = mini("magi")
    text = node("MiniPrompt", text="a red circle moving right", model="magi")
    sigmas = node("MagiSchedule", steps="8", shortcut_mode="8,16,16")
    start = latent(33, width=64, height=64)
    _, record = both(model, ours(MAGI_PLAN), positive=text, start=start, sigmas=sigmas)
    assert len(started) == 2 and not any(map(alive, started))
    assert any("ranks" in note for note in record.started.notes)


# -- what is shown, and how it ends ------------------------------------------------------------------------------------


def watched(model, seen, **options):
    """A run whose callback, the host's own place for previews, gets every step."""
    from comfy_extras.nodes_custom_sampler import Guider_Basic

    guider = Guider_Basic(model)
    guider.set_conds(prompt())
    start = latent()["samples"]
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(1))
    sigmas = sigmas_of(model)
    return guider.sample(noise, start, ours(), sigmas, callback=seen, disable_pbar=True, seed=1)


def test_every_step_is_told_with_the_clean_prediction(files):
    told = {}
    for name, model in (("here", loaded(files, "causal")), ("ranks", on_ranks(loaded(files, "causal")))):
        told[name] = []
        watched(model, lambda step, x0, x, total, to=told[name]: to.append((step, total, x0.clone())))
    assert [one[:2] for one in told["ranks"]] == [one[:2] for one in told["here"]] and len(told["here"]) == 8
    for one, other in zip(told["ranks"], told["here"], strict=True):
        hostkit.close(one[2], other[2])


def test_an_interrupt_ends_all_ranks_quickly(files, started):
    model, times = on_ranks(loaded(files, "causal")), []

    def interrupt(step, x0, x, total):
        if step == 1:
            comfy.model_management.interrupt_current_processing()
            times.append(time.monotonic())

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        watched(model, interrupt)
    assert time.monotonic() - times[0] < 10
    assert len(started) == 2 and not any(map(alive, started))


def test_an_interrupt_while_ranks_load(files, started, monkeypatch):
    """Nothing is answered yet: the host's flag is looked at all the same."""
    timer = threading.Timer(0.5, comfy.model_management.interrupt_current_processing)
    begun = time.monotonic()
    timer.start()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        watched(on_ranks(loaded(files, "causal")), lambda *_: None)
    assert time.monotonic() - begun < 30
    assert not started  # it never got as far as having entered


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed(files, started, rank):
    def kill(step, x0, x, total):
        if step == 1:
            os.kill(started[rank], signal.SIGKILL)

    with pytest.raises(RuntimeError, match=rf"^FlowCache Multi-GPU: rank {rank} ended \(SIGKILL\)"):
        watched(on_ranks(loaded(files, "causal")), kill)
    assert not any(map(alive, started))


def test_a_rank_that_hangs(files, started):
    def stop(step, x0, x, total):
        if step == 1:
            os.kill(started[1], signal.SIGSTOP)

    with pytest.raises(RuntimeError, match="rank 1 did not answer within 20 s"):
        watched(on_ranks(loaded(files, "causal"), timeout=20), stop)
    assert not any(map(alive, started))


def test_a_file_that_has_changed_since(files, tmp_path, started):
    path = tmp_path / "model.safetensors"
    path.write_bytes(files["causal"].read_bytes())
    model = on_ranks(with_slot(load_ar_model(str(path), "default", "auto", 24)))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RuntimeError, match="model.safetensors"):
        watched(model, lambda *_: None)
    assert not any(map(alive, started))


# -- one device, and what is refused -----------------------------------------------------------------------------------


def text_of(model, **fields):
    made = hostkit.NODES["FlowCacheMultiGPU"].execute(model=model, **fields)
    return made.args[0], made.ui.as_dict()["text"][0]


def test_with_one_device_it_says_so_and_changes_nothing(files, started):
    model = loaded(files, "causal")
    for ranks in (0, 1):
        patched, text = text_of(model, ranks=ranks)
        assert text == "One device here (1 CPU): the model runs on it as without this node."
        assert torch.equal(sample(patched)[0], sample(model)[0])
    assert not started


def test_it_says_what_will_run_where(files, monkeypatch):
    model = loaded(files, "causal")
    assert text_of(model, ranks=2)[1] == (
        "2 ranks on the CPU, to try it: no faster.\nWith guidance: 2 for guidance branches.\n"
        "Without guidance: 2 for attention heads.\nEach loads the model's file for a run."
    )
    assert "Without guidance it needs ranks 1, 2." in text_of(model, ranks=4)[1]
    monkeypatch.setattr(Devices, "here", lambda: Devices("cuda", 4))
    text = text_of(model, ranks=0)[1]
    assert "4 ranks on 4 GPUs.\nWith guidance: 2 for guidance branches x 2 for attention heads." in text
    assert "They share: 2 for attention heads." in text_of(model, ranks=0, shared="heads only")[1]


def lora(model):
    key = "diffusion_model.blocks.0.self_attn.q.weight"
    model.add_patches({key: (torch.ones(24, 24),)}, 0.1)


def replaced_block(model):
    model.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 0)


def foreign_forward(model):
    model.model.diffusion_model.blocks[1].ffn.forward = lambda x: x


def object_patch(model):
    model.add_object_patch("diffusion_model.blocks.0.norm3.forward", foreign_forward)


def function_wrapper(model):
    model.set_model_unet_function_wrapper(lambda apply, given: apply(given["input"], given["timestep"], **given["c"]))


def override(model):
    model.model_options["transformer_options"]["optimized_attention_override"] = function_wrapper


def post_cfg(model):
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"])


def raylight(model):
    original = model.model.diffusion_model.init_kv_caches
    made = lambda *given: [{**cache, "sp_full_end": 0} for cache in original(*given)]  # noqa: E731
    model.model.diffusion_model.init_kv_caches = made


def no_file(model):
    model.cached_patcher_init = None


def clones(model):
    model.set_additional_models("multigpu", [hostkit.load()])


FOREIGN = [
    (lora, "a LoRA or other patches of 1 weights"),
    (replaced_block, "test_multi_gpu.replaced_block.<lambda> in place of dit"),
    (foreign_forward, "foreign_forward.<lambda> in place of blocks.1.ffn.forward"),
    (object_patch, "test_multi_gpu.foreign_forward in place of diffusio"),
    (function_wrapper, "model function wrapper"),
    (override, "the attention test_multi_gpu.function_wrapper"),
    (post_cfg, "post_cfg.<lambda>"),
    (raylight, "a model with raylight's K/V"),
    (no_file, "a model whose loader notes no file"),
    (clones, "MultiGPU CFG Split"),
]


@pytest.mark.parametrize("change, said", FOREIGN, ids=[change.__name__ for change, _ in FOREIGN])
def test_what_ranks_would_not_have_is_refused_by_name(files, started, change, said):
    """Before the node, and behind it, where it is found when sampling starts."""
    said = said.replace(".<lambda>", ".")
    model = loaded(files, "causal")
    change(model)
    with pytest.raises(ValueError, match="^FlowCache Multi-GPU, model: ") as error:
        on_ranks(model)
    assert said in str(error.value).replace("<lambda>", "")
    later = on_ranks(loaded(files, "causal"))
    change(later)
    with pytest.raises(ValueError, match="FlowCache Multi-GPU, model: ") as error:
        sample(later)
    assert said in str(error.value).replace("<lambda>", "")
    assert not started


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"ranks": 3}, "ranks: got 3, accepted: 1, 2, 4"),
        ({"ranks": 4, "shared": "heads only"}, "ranks: got 4, accepted: 1, 2 "),
    ],
)
def test_numbers_that_do_not_divide_the_heads(files, fields, said):
    with pytest.raises(ValueError) as error:
        on_ranks(loaded(files, "causal"), **fields)
    assert str(error.value).startswith("FlowCache Multi-GPU, ranks") and said in str(error.value)


def test_more_ranks_than_devices(files, monkeypatch):
    for devices, said in ((Devices("cuda", 2), "got '4 with 2 GPUs', accepted: 0 to 2"), (Devices("mps", 1), "0 to 1")):
        monkeypatch.setattr(Devices, "here", lambda devices=devices: devices)
        with pytest.raises(ValueError, match="FlowCache Multi-GPU, ranks") as error:
            on_ranks(loaded(files, "causal"), 4)
        assert said in str(error.value)


def test_fp8_weights_are_refused(files):
    model = load_ar_model(str(files["causal"]), "fp8_e4m3fn", "auto", 24)
    with pytest.raises(ValueError, match="FlowCache Multi-GPU, model: got .weights kept in float8_e4m3fn"):
        on_ranks(model)


def test_two_of_it(files):
    with pytest.raises(ValueError, match="already has FlowCache Multi-GPU"):
        on_ranks(on_ranks(loaded(files, "causal")))


def masked(model):
    mask = torch.ones(1, 1, 6, 4, 8)
    mask[..., :4] = 0
    return {"start": {**latent(), "noise_mask": mask}}


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda model: {"sampler": hostkit.hosts()}, "accepted: none: this sampler runs on one device"),
        (lambda model: {"sigmas": sigmas_of(model)[:-1]}, "a schedule that ends at 0"),
        (lambda model: {"negative": prompt(8), "cfg": 0.5}, "cfg: got 0.5"),
        (masked, "a mask inside frames"),
    ],
    ids=["host sampler", "sigmas", "cfg", "mask"],
)
def test_runs_that_ranks_do_not_do(files, started, make, said):
    model = on_ranks(loaded(files, "causal"))
    with pytest.raises(ValueError) as error:
        sample(model, **make(model))
    assert said in str(error.value)
    assert not started


def test_conditioning_that_is_more_than_a_prompt(files, started):
    model = on_ranks(loaded(files, "causal"))
    limited = [[prompt()[0][0], {"start_percent": 0.2, "end_percent": 0.8}]]
    for positive, said in ((limited, "a range of noise levels"), (prompt() + prompt(9), "2 prompts for chunk 0")):
        with pytest.raises(ValueError, match="FlowCache Multi-GPU, positive") as error:
            sample(model, positive=positive)
        assert said in str(error.value)
    assert not started


def test_other_guiders(files, started):
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    model = on_ranks(loaded(files, "causal"))
    guider = DualCFGGuider.execute(model, prompt(), prompt(9), prompt(8), 3.0, 2.0, "regular").args[0]
    start = latent()["samples"]
    with pytest.raises(ValueError, match="FlowCache Multi-GPU, guider: got 'Guider_DualCFG'"):
        guider.sample(torch.randn(start.shape), start, ours(), sigmas_of(model), seed=1, disable_pbar=True)
    assert not started


def test_a_recording_is_made_on_one_device(files, started):
    model = node("ChunkwiseReuse", model=loaded(files, "causal"), preset={"preset": "record"})
    with pytest.raises(ValueError, match="FlowCache Multi-GPU, preset: got 'record'"):
        sample(on_ranks(model))
    assert not started
