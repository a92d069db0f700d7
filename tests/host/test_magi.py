"""MAGI-1 in the host: official files -> model, VAE and prompt -> sampling as in the core -> pictures."""

from __future__ import annotations

import gc
import logging
from types import SimpleNamespace

import comfy.model_management
import comfy.ops
import comfy.sd
import folder_paths
import pytest
import tiny_magi
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_cfg import CFGZeroStar
from comfy_extras.nodes_custom_sampler import BasicScheduler
from comfy_extras.nodes_model_advanced import RescaleCFG
from hostkit import NODES, close, compress, module, node, ours, reuse, sample
from safetensors.torch import save_file
from tiny_magi import CONFIG, TEXT_DIM

import nodes as host_nodes

SettingError = module("flowcache_core.errors").SettingError
engine = module("flowcache_core.engine")
core = module("flowcache_core.video.magi")
magi_text = module("flowcache_core.models.magi.text")
magi_schedule = module("flowcache_core.schedule").magi
Tiling = module("flowcache_core.models.magi.vae").Tiling
last_record = module("nodes.adapters.run.settings").last_record
KVSettings = module("flowcache_core.kv.settings").KVSettings

AUTO = {"variant": "auto"}
DISTILLED = {"variant": "distilled", "nearly_clean": True, "kv_ranges": ""}
BASE = {"variant": "base", "text_scale": 7.5, "previous_scale": 1.5, "kv_ranges": ""}
FRAMES, STEPS = 2, 8
PLAN = {"plan": "sliding window", "chunk_frames": FRAMES, "window_chunks": 4, "solver": "euler", "clean_pass": True}
PIXELS = 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The host's model folders with official files in them."""
    root = tmp_path_factory.mktemp("models")
    patch = pytest.MonkeyPatch()
    for name in ("diffusion_models", "vae", "text_encoders"):
        (root / name).mkdir()
        place = ([str(root / name)], folder_paths.supported_pt_extensions)
        patch.setitem(folder_paths.folder_names_and_paths, name, place)
    models = root / "diffusion_models"
    tiny_magi.write_sharded(models / "4.5B_base" / "inference_weight", tiny_magi.weights())
    distilled = models / "4.5B_distill" / "inference_weight.distill"
    distilled.mkdir(parents=True)
    save_file(tiny_magi.weights(), distilled / "model.safetensors")
    save_file(tiny_magi.fp8_weights(), models / "fp8.distill.safetensors")
    tiny_magi.write_vae(root / "vae" / "magi")
    tiny_magi.write_table(root / "text_encoders" / "special_tokens.npz")
    folder_paths.filename_list_cache.clear()
    yield root
    patch.undo()
    folder_paths.filename_list_cache.clear()


FILES = {
    "base": "4.5B_base/inference_weight/model.safetensors.index.json",
    "distilled": "4.5B_distill/inference_weight.distill/model.safetensors",
    "fp8": "fp8.distill.safetensors",
}


def load(kind="distilled", variant=AUTO, weight_dtype="default"):
    return node("LoadMagiModel", model_name=FILES[kind], weight_dtype=weight_dtype, variant=variant)


@pytest.fixture(scope="module")
def model(folders):
    return load()


@pytest.fixture(scope="module")
def base(folders):
    return load("base")


def states(tokens=5, dim=TEXT_DIM):
    return torch.randn(1, tokens, dim, generator=torch.Generator().manual_seed(5))


def prompt(tokens=5, dim=TEXT_DIM):
    return [[states(tokens, dim), {}]]


def empty(chunks=5, batch=1, side=PIXELS // 8):
    return {"samples": torch.zeros(batch, 16, FRAMES * chunks, side, side)}


def sigmas(steps=STEPS, mode="8,16,16"):
    return node("MagiSchedule", steps=str(steps), shortcut_mode=mode)


def run(model, plan=None, **inputs):
    given = {name: inputs.pop(name) for name in ("prefix", "prefix_frames") if name in inputs}
    values = {"positive": prompt(), "start": empty(), "sigmas": sigmas(), **inputs}
    return sample(model, ours({**PLAN, **(plan or {})}, **given), **values)


def in_core(
    variant="distilled", *, captions=None, chunks=5, steps=STEPS, prefix=None, seed=1, mode="8,16,16", **changes
):
    """Latents as the VAE would take them, by the core alone from the same weights, prompt and noise."""
    transformer = tiny_magi.magi.MagiTransformer(CONFIG)
    transformer.load_state_dict(tiny_magi.weights())
    prefix_frames = 0 if prefix is None else prefix.shape[2]
    settings = core.MagiSettings(
        frames=4 * (FRAMES * chunks - prefix_frames), height=PIXELS, width=PIXELS, steps=steps, variant=variant,
        chunk_frames=FRAMES, shortcut_mode=mode, **changes,
    )  # fmt: skip
    made = settings.engine(prefix_frames)
    shape = (1, 16, FRAMES * chunks, PIXELS // 8, PIXELS // 8)
    noise = torch.randn(shape, generator=torch.manual_seed(seed))
    captions = (states(), torch.ones(1, 5)) if captions is None else captions
    denoiser = settings.denoiser(transformer, core.captions_by_chunk(captions, made.plan))
    given = None if prefix is None else prefix * 0.18215
    return engine.generate(denoiser, made, noise, prefix=given) / 0.18215


class TestSameAsTheCore:
    @pytest.mark.parametrize(("steps", "mode"), [(8, "8,16,16"), (16, "8,16,16"), (12, "8,16,16"), (12, "16,16,8")])
    def test_distilled(self, model, steps, mode):
        close(run(model, sigmas=sigmas(steps, mode))[0], in_core(steps=steps, mode=mode), 1e-4)

    def test_base(self, base):
        close(run(base)[0], in_core("base"), 1e-4)

    def test_fields_of_the_variant(self, folders):
        plain = load("distilled", {**DISTILLED, "nearly_clean": False, "kv_ranges": "3, 2"})
        expected = in_core(nearly_clean=False, ranges=(3, 2), clean_pass=False)
        close(run(plain, {"clean_pass": False})[0], expected, 1e-4)
        ones, twos = (load("distilled", {**DISTILLED, "kv_ranges": "3, 2", "clean_range": n}) for n in (1, 2))
        close(run(ones)[0], in_core(ranges=(3, 2)), 1e-4)  # 1 as released
        lacking = load("distilled", {**DISTILLED, "kv_ranges": "3, 2", "clean_range": None})
        assert lacking.model.variant.clean_range == 1
        close(run(twos)[0], in_core(ranges=(3, 2), clean_range=2), 1e-4)
        assert (run(ones)[0] - run(twos)[0]).abs().max() > 0.01
        guided = load("distilled", {**BASE, "text_scale": 3.0, "previous_scale": 2.0})
        scales = core.GuidanceScales(text=(3.0, 3.0, 3.0, 0.0, 0.0), previous=(2.0, 2.0, 2.0, 1.0, 1.0))
        close(run(guided)[0], in_core("base", guidance=scales), 1e-4)

    @pytest.mark.parametrize("frames", [1, 2, 3], ids=["image", "one chunk", "a chunk and a frame"])
    @pytest.mark.parametrize("variant", ["distilled", "base"])
    def test_prefix(self, model, base, frames, variant):
        prefix = torch.randn(1, 16, 4, PIXELS // 8, PIXELS // 8, generator=torch.Generator().manual_seed(9))
        chosen = model if variant == "distilled" else base
        out = run(chosen, prefix={"samples": prefix}, prefix_frames=frames)[0]
        close(out, in_core(variant, prefix=prefix[:, :, -frames:]), 1e-4)
        close(out[:, :, :frames], prefix[:, :, -frames:])

    def test_reuse_and_compression(self, model):
        policy = {"policy": "chunkwise", "threshold": 0.4, "distance": "patch", "warmup_steps": 2}
        patched = compress(reuse(model, **policy), 1)
        out = run(patched, start=empty(8))[0]
        settings = patched.model_options["flowcache"]
        expected = in_core(chunks=8, policy=settings.reuse.policy, quantity=settings.reuse.quantity, kv=settings.kv)
        close(out, expected, 1e-4)
        record = last_record(patched)
        reused = [step for step in record.steps_taken if step.action == "reuse"]
        assert len(record.steps_taken) == 8 * STEPS and len(reused) > 8
        assert max(step.kv_tokens for step in record.steps_taken) <= 5 * FRAMES * 4

    def test_a_solver_with_noise_of_its_own_follows_the_seed(self, model):
        first, again, other = (run(model, {"solver": "renoise"}, start=empty(2), seed=seed)[0] for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)
        fixed = type(
            "Fixed", (), {"seed": 2, "generate_noise": lambda self, latent: torch.ones(latent["samples"].shape)}
        )
        same = type("Fixed", (), {**vars(fixed), "seed": 1})
        drawn = [run(model, {"solver": "renoise"}, start=empty(2), noise=kind())[0] for kind in (fixed, same)]
        assert (drawn[0] - drawn[1]).abs().max() > 0.01

    def test_prompts_by_chunk(self, model):
        other = [[states(3) + 1, {}]]
        scheduled = node("PromptSchedule", prompt_1=prompt(), prompt_2=other, start_2=2, recache=False)
        first, second = states(), torch.cat((states(3) + 1, torch.zeros(1, 2, TEXT_DIM)), 1)
        mask = torch.tensor([[1.0] * 5, [1, 1, 1, 0, 0]])
        order = [0, 0, 1, 1, 1]
        captions = torch.cat((first, second))[order], mask[order]
        close(run(model, positive=scheduled)[0], in_core(captions=captions), 1e-4)

    def test_special_tokens_by_chunk(self, model, folders):
        table = magi_text.load_special_tokens(folders / "text_encoders" / "special_tokens.npz", TEXT_DIM)
        switches = magi_text.TokenSwitches(dynamic=True)
        make = module("nodes.adapters.magi.text").conditioning
        captions = magi_text.chunk_captions(
            states()[0], torch.ones(5), 5, table, switches, dim=TEXT_DIM, length=CONFIG.text_len
        )
        close(run(model, positive=make(states, table, switches))[0], in_core(captions=captions), 1e-4)

    @pytest.mark.parametrize("steps", [8, 16, 64])
    def test_simple_scheduler_is_the_models_schedule(self, model, steps):
        simple = BasicScheduler.execute(model, "simple", steps, 1.0).args[0]
        assert (simple - sigmas(steps)).abs().max() < 1e-6

    def test_any_sigmas_with_base_weights(self, base):
        """Not the released levels: time is one minus the noise level."""
        given = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])
        out = run(base, sigmas=given)[0]
        assert torch.isfinite(out).all() and (out - in_core("base", steps=4)).abs().max() > 0.1


class TestLaws:
    def test_threshold_0_and_a_large_budget_change_no_bit(self, model):
        plain = run(model)[0]
        assert torch.equal(run(reuse(model))[0], plain)
        assert torch.equal(run(compress(model, 100))[0], plain)

    def test_same_seed_same_result_after_an_interrupt(self, model):
        plain = run(model)[0]
        calls = []

        def interrupt(step, clean, noisy, total):
            calls.append((step, total))
            if step == 3:
                comfy.model_management.interrupt_current_processing()

        sampler = module("nodes.adapters.run.request")
        made = sampler.Progress

        def progress(*args, **fields):
            return made(*args, **{**fields, "callback": interrupt})

        with pytest.MonkeyPatch.context() as patch, pytest.raises(comfy.model_management.InterruptProcessingException):
            patch.setattr(sampler, "Progress", progress)
            run(model)
        assert calls[-1] == (3, 5 * STEPS)
        assert torch.equal(run(model)[0], plain)

    def test_nothing_survives_a_run(self, model):
        """Tensors of a run, its K/V among them, are gone when it is over, also when it was stopped."""

        def held():
            gc.collect()
            return sum(item.numel() for item in gc.get_objects() if type(item) is torch.Tensor)

        patched = compress(reuse(model, threshold=0.4, distance="patch", warmup_steps=2), 1)
        for _ in range(module("nodes.adapters.run.records").REMEMBERED):  # whose latents' sketches stay
            run(patched)
        before = held()
        run(patched, prefix={"samples": torch.zeros(1, 16, 2, 4, 4)})
        with pytest.raises(SettingError):
            run(patched, positive=prompt(dim=7))
        assert held() <= before

    def test_a_batch_is_two_videos(self, model):
        both = run(model, start=empty(batch=2))[0]
        assert both.shape[0] == 2
        close(both[:1], in_core_batch(0), 1e-4)
        close(both[1:], in_core_batch(1), 1e-4)


def in_core_batch(index):
    transformer = tiny_magi.magi.MagiTransformer(CONFIG)
    transformer.load_state_dict(tiny_magi.weights())
    settings = core.MagiSettings(frames=40, height=PIXELS, width=PIXELS, steps=STEPS, chunk_frames=FRAMES)
    made = settings.engine()
    noise = torch.randn((2, 16, 10, PIXELS // 8, PIXELS // 8), generator=torch.manual_seed(1))[index : index + 1]
    denoiser = settings.denoiser(transformer, core.captions_by_chunk((states(), torch.ones(1, 5)), made.plan))
    return engine.generate(denoiser, made, noise) / 0.18215


class TestHost:
    def test_attention_of_other_nodes_is_used(self, model):
        """Self- and cross-attention of every forward go through an override, which may change them."""
        changed = model.clone()
        seen = []

        def override(func, q, k, v, *args, **kwargs):
            seen.append((q.shape[1], k.shape[2]))
            return func(q, k, v, *args, **kwargs)

        changed.model_options["transformer_options"]["optimized_attention_override"] = override
        assert torch.equal(run(changed)[0], run(model)[0])
        assert {heads for heads, _ in seen} == {CONFIG.kv_heads} and (CONFIG.kv_heads, 5) in seen

    def test_lora(self, model):
        """A patch of a weight under its official name changes the result, and only of the patched clone."""
        plain, patched = run(model)[0], model.clone()
        key = "diffusion_model.videodit_blocks.layers.1.mlp.linear_fc1.weight"
        shape = patched.model.state_dict()[key].shape
        assert patched.add_patches({key: (torch.full(shape, 0.05),)}, 1.0) == [key]
        assert (run(patched)[0] - plain).abs().max() > 1e-3
        assert torch.equal(run(model)[0], plain)

    def test_denoised_output_and_progress(self, model):
        out, denoised = run(model)
        close(denoised, out)

    def test_16_bits_in_the_hosts_layers(self):
        """Where the host casts nothing itself, every layer gets its input in the dtype of its weights."""
        x, caption = torch.randn(1, 16, 2, 4, 4), states()

        def velocity(operations, **dtypes):
            seam = module("flowcache_core.models.common.cached_attention")
            with torch.device("meta"):
                inner = tiny_magi.magi.MagiTransformer(CONFIG, operations=operations, **dtypes)
            tiny_magi.magi.fill_magi(inner, tiny_magi.weights(), "weights")
            attention = seam.attending_alone(module("flowcache_core.models.magi.layers").attend_grouped)
            own = {"first_frame": 0, "attention": attention, "step_time": 4.0}
            return inner.forward_chunk(x, torch.tensor([0.4]), caption, **own)

        half = torch.bfloat16
        ours = velocity(tiny_magi.magi.CastingOperations, dtype=half)
        hosts = velocity(comfy.ops.disable_weight_init, dtype=half, compute_dtype=half)
        assert torch.equal(ours, hosts)
        exact = velocity(tiny_magi.magi.CastingOperations)
        assert 0 < (ours - exact).abs().max() < 0.02 * exact.abs().max()

    def test_k_v_is_announced(self, model):
        """What the host is asked to keep free grows with the budget."""
        seen = []

        def watch(models, memory_required=0, **kwargs):
            seen.append(memory_required)
            raise InterruptedError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(comfy.model_management, "load_models_gpu", watch)
            for patched in (model, compress(model, 1)):
                with pytest.raises(InterruptedError):
                    run(patched, start=empty(200))
        assert seen[0] > 2 * seen[1] > 0

    def test_what_is_not_called_is_said(self, model, caplog):
        """Compiled or wrapped, the video is the same, and the log says why nothing is faster."""
        plain = run(model)[0]
        compiled = model.clone()
        set_torch_compile_wrapper(model=compiled, backend="eager")
        compiled.set_model_unet_function_wrapper(lambda apply_model, args: None)
        with caplog.at_level(logging.WARNING):
            assert torch.equal(run(compiled)[0], plain)
        told = [text for text in caplog.messages if text.endswith("is not called with MAGI-1")]
        assert len(told) == 2 and "test_magi" in told[0] and "torch.compile" in told[1]


class TestMini:
    """The bundled model of this architecture, on the mini model's latents."""

    def test_a_video_in_the_host_is_the_cores(self):
        model, vae = NODES["FlowCacheMiniModel"].execute(model="magi").args
        text, plan = "a red circle moving right", {**PLAN, "chunk_frames": 3}
        start = {"samples": torch.zeros(1, 16, 12, 8, 8)}
        out = sample(model, ours(plan), positive=node("MiniPrompt", text=text), start=start, sigmas=sigmas(16))[0]

        own = module("flowcache_core.mini_magi").load_mini_magi()
        noise = torch.randn(start["samples"].shape, generator=torch.manual_seed(1))
        expected = engine.generate(own.denoiser([text]), own.settings(4, 16), noise)
        close(out, model.model.process_latent_out(expected), 1e-3)
        with torch.inference_mode():
            pixels = vae.decode(out)
        assert pixels.shape == (1, 45, 64, 64, 3) and float(pixels.std()) > 0.02

    def test_another_choice(self):
        with pytest.raises(SettingError, match="FlowCache Mini Model, model: got 'sora', accepted: wan, magi"):
            node("MiniModel", model="sora")


class TestLoader:
    def test_variant_from_the_name(self, model, base):
        assert model.model.variant.distilled and not base.model.variant.distilled

    def test_fp8_file_is_multiplied_out(self, folders, model):
        exact, given = run(load("fp8"))[0], run(model)[0]
        difference = (exact - given).abs().max()
        assert 1e-4 < difference < 0.3 * given.abs().max()
        inner = load("fp8").model.diffusion_model
        assert {parameter.dtype for parameter in inner.parameters()} == {torch.float32}

    def test_fp8_in_memory_keeps_the_fp32_parts(self, folders, model):
        small = load(weight_dtype="fp8_e4m3fn")
        inner = small.model.diffusion_model
        layer = inner.videodit_blocks.layers[0]
        assert layer.mlp.linear_fc1.weight.dtype == torch.float8_e4m3fn
        kept = (layer.mlp.layer_norm.weight, layer.self_attn_post_norm.weight, inner.x_embedder.weight)
        assert all(weight.dtype == torch.float32 for weight in (*kept, inner.final_linear.linear.weight))
        close(run(small)[0], run(model)[0], 0.3)

    def refused(self, message, name, **inputs):
        folder_paths.filename_list_cache.clear()
        fields = {"weight_dtype": "default", "variant": AUTO, **inputs}
        with pytest.raises(SettingError) as caught:
            node("LoadMagiModel", model_name=name, **fields)
        text = str(caught.value)
        assert text.startswith("Load MAGI-1 Model, ") and all(part in text for part in message), text

    def test_a_missing_shard(self, folders):
        folder = folders / "diffusion_models" / "half"
        tiny_magi.write_sharded(folder, tiny_magi.weights())
        (folder / "model-00002-of-00002.safetensors").unlink()
        message = ["1 of 2 shards m", "00002-of-00002.safetensors", "download the missing ones"]
        self.refused(message, "half/model.safetensors.index.json")
        (folder / "model.safetensors.index.json").unlink()
        self.refused(["shards without model.safetensors.index.json"], "half/model.safetensors.index.json")

    def test_other_files(self, folders):
        save_file({"head.modulation": torch.zeros(1)}, folders / "diffusion_models" / "wan.safetensors")
        self.refused(["x_embedder.weight", "a MAGI-1 transformer"], "wan.safetensors")
        (folders / "diffusion_models" / "cut.safetensors").write_bytes(b"\x10")
        self.refused(["unreadable"], "cut.safetensors")
        self.refused(["model_name", "models/diffusion_models"], "../secret.safetensors")
        wrong = {**BASE, "kv_ranges": "5, four"}
        self.refused(["kv_ranges", "5, four", "whole numbers >= 1"], FILES["base"], variant=wrong)


class TestRefused:
    def refused(self, message, model, **inputs):
        with pytest.raises(SettingError) as caught:
            run(model, **inputs)
        assert all(part in str(caught.value) for part in message), str(caught.value)

    def test_steps(self, model, base):
        self.refused(["steps", "8", "a multiple of window_chunks (3)"], model, plan={"window_chunks": 3})
        given = torch.tensor(magi_schedule(24).sigmas)
        self.refused(["steps", "24", "8, 12, 16, 32, 64 with distilled weights"], model, sigmas=given)
        self.refused(["steps", "12", "another number with base weights"], base, sigmas=sigmas(12))
        self.refused(["sigmas", "MAGI-1 Schedule"], model, sigmas=torch.linspace(1, 0, 9))
        self.refused(["sigmas", "ends at 0"], model, sigmas=sigmas()[:5])

    def test_a_preset_made_for_other_steps(self, model):
        patched = node("ChunkwiseReuse", model=model, preset={"preset": "magi-1-4.5b: slow"})
        self.refused(["FlowCache Chunkwise Reuse, preset magi-1-4.5b: slow: got", "8 steps", "64 steps"], patched)

    def test_resolution(self, model):
        start = {"samples": torch.zeros(1, 16, 10, 4, 5)}
        self.refused(["latent_image", "(1, 16, 10, 4, 5)", "multiples of 16"], model, start=start)

    def test_plan(self, model):
        blockwise = {"plan": "blockwise", "chunk_frames": 2, "solver": "euler", "clean_pass": True}
        with pytest.raises(SettingError, match="plan: got 'blockwise', accepted: sliding window"):
            sample(model, ours(blockwise), positive=prompt(), start=empty(), sigmas=sigmas())

    def test_guider(self, model):
        with pytest.raises(SettingError, match="CFGGuider with cfg 3.*Basic Guider"):
            run(model, negative=prompt())
        close(run(model, negative=prompt(), cfg=1.0)[0], run(model)[0])

    def test_guidance_nodes_of_the_host(self, model):
        for patched in (CFGZeroStar.execute(model).args[0], RescaleCFG().patch(model, 0.7)[0]):
            self.refused(["guidance nodes", "nodes_", "MAGI-1 has guidance of its own"], patched)

    def test_conditioning(self, model):
        self.refused(["positive", "(1, 5, 7)", f"[1, n, {TEXT_DIM}]"], model, positive=prompt(dim=7))
        self.refused(["positive", "2 prompts for chunk 0"], model, positive=[*prompt(), *prompt()])
        area = [[states(), {"area": (1, 1, 0, 0)}]]
        self.refused(["positive", "an area"], model, positive=area)

    def test_mask(self, model):
        mask = torch.ones(1, 1, 10, 4, 4)
        mask[:, :, 3] = 0
        self.refused(["noise mask"], model, start={**empty(), "noise_mask": mask})

    def test_other_samplers(self, model):
        from comfy_extras.nodes_custom_sampler import KSamplerSelect

        with pytest.raises(SettingError, match=r"sampler: .*AR Video Sampler \(FlowCache\)"):
            sample(model, KSamplerSelect.execute("euler").args[0], positive=prompt(), start=empty(), sigmas=sigmas())

    def test_empty_latent(self):
        with pytest.raises(
            SettingError, match="Empty MAGI-1 Latent, width: got 100, accepted: a multiple of 16, such as 96"
        ):
            node("EmptyMagiLatent", width=100, height=64, chunks=1, batch_size=1)
        assert node("EmptyMagiLatent", width=96, height=64, chunks=2, batch_size=3)["samples"].shape == (
            3,
            16,
            12,
            8,
            12,
        )


@pytest.fixture(scope="module")
def vae(folders):
    return node("LoadMagiVAE", vae_name="magi/diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def images():
    return torch.rand(16, 40, 48, 3, generator=torch.Generator().manual_seed(1))


class TestVAE:
    """Through the host's own nodes."""

    def test_decode_and_encode(self, vae, images):
        mine, latents = tiny_magi.vae(), host_nodes.VAEEncode().encode(vae, images)[0]["samples"]
        video = images.permute(3, 0, 1, 2)[None] * 2 - 1
        close(latents, mine.encode(video, Tiling()))
        decoded = host_nodes.VAEDecode().decode(vae, {"samples": latents})[0]
        expected = mine.decode(latents, Tiling())
        close(decoded, (expected[0].permute(1, 2, 3, 0) / 2 + 0.5).clamp(0, 1))
        assert decoded.shape == images.shape

    def test_tiled_nodes(self, vae, images):
        latents = host_nodes.VAEEncodeTiled().encode(vae, images, 64, 16, 64, 8)[0]["samples"]
        mine = tiny_magi.vae()
        video = images.permute(3, 0, 1, 2)[None] * 2 - 1
        close(latents, mine.encode(video, Tiling(64, 0.25, 12)))
        decoded = host_nodes.VAEDecodeTiled().decode(vae, {"samples": latents}, 32, 8, 8, 4)[0]
        expected = mine.decode(latents, Tiling(32, 0.25, 8))
        close(decoded, (expected[0].permute(1, 2, 3, 0) / 2 + 0.5).clamp(0, 1))

    def test_decoding_can_be_stopped(self, vae):
        comfy.model_management.interrupt_current_processing()
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            vae.decode(torch.zeros(1, 16, 6, 4, 4))
        assert vae.decode(torch.zeros(1, 16, 6, 4, 4)).shape == (1, 24, PIXELS, PIXELS, 3)

    def test_counts_of_frames(self, vae, images):
        encode = host_nodes.VAEEncode().encode
        assert torch.equal(encode(vae, images[:6])[0]["samples"], encode(vae, images[2:6])[0]["samples"])
        image = encode(vae, images[2:3])[0]["samples"]
        assert image.shape == (1, 16, 1, 5, 6)
        assert torch.equal(encode(vae, images[:3])[0]["samples"], image)
        assert host_nodes.VAEDecode().decode(vae, {"samples": image})[0].shape == (1, 40, 48, 3)

    def test_load_sample_decode(self, vae, model):
        out = run(model, start=empty(2))[0]
        frames = host_nodes.VAEDecode().decode(vae, {"samples": out})[0]
        assert frames.shape == (16, PIXELS, PIXELS, 3)
        assert 0 <= frames.min() and frames.max() <= 1 and frames.std() > 0.01

    def test_preview_shows_the_frames_of_vae_decode(self, vae, model):
        """Chunk by chunk while sampling, in the same tiles and runs."""
        live_preview, seen = module("nodes.adapters.shown.live_preview"), []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(live_preview.GrowingVideo, "add", lambda video, frames: seen.append(frames))
            patch.setattr(live_preview.LivePreview, "write", lambda preview: None)
            start = {"samples": torch.zeros(1, 16, 9, PIXELS // 8, PIXELS // 8)}
            sampler = ours({**PLAN, "chunk_frames": 3}, preview_vae=vae)
            out = sample(model, sampler, positive=prompt(), start=start, sigmas=sigmas())[0]
        frames = host_nodes.VAEDecode().decode(vae, {"samples": out})[0]
        assert [len(part) for part in seen] == [12, 12, 12]
        assert (torch.cat(seen) / 255 - frames).abs().max() < 0.01

    def test_preview_with_another_models_vae(self, model):
        with pytest.raises(SettingError, match='preview_vae: got "another model\'s VAE", accepted: Load MAGI-1 VAE'):
            other = SimpleNamespace(encode=None, decode=None)
            sample(model, ours(PLAN, preview_vae=other), positive=prompt(), start=empty(), sigmas=sigmas())

    def test_without_its_config(self, folders):
        save_file(tiny_magi.vae().state_dict(), folders / "vae" / "alone.safetensors")
        folder_paths.filename_list_cache.clear()
        with pytest.raises(SettingError, match=r"Load MAGI-1 VAE, vae_name: .*a config.json beside the VAE's weights"):
            node("LoadMagiVAE", vae_name="alone.safetensors")


T5 = {"d_ff": 32, "d_kv": 8, "d_model": TEXT_DIM, "num_heads": 2, "num_layers": 2}


def t5(kind="pixart"):
    """The host's own classes around a T5 of small width."""
    from comfy.text_encoders import genmo, pixart_t5

    class Target:
        params: dict = {}
        clip = {"pixart": pixart_t5.PixArtT5XXL, "mochi": genmo.MochiT5XXL}[kind]
        tokenizer = {"pixart": pixart_t5.PixArtTokenizer, "mochi": genmo.MochiT5Tokenizer}[kind]

    clip = comfy.sd.CLIP(Target, model_options={"t5xxl_model_config": T5, "dtype": torch.float32})
    draw = torch.Generator().manual_seed(2)
    for name, parameter in clip.cond_stage_model.named_parameters():
        scale = 1.0 if name.endswith("shared.weight") or "norm" in name else 0.2
        parameter.data = scale * torch.randn(parameter.shape, generator=draw)
    return clip


class TestPrompt:
    FIELDS = {"high_quality": True, "duration": True, "motion": "unsaid", "look": "unsaid", "borders": False}
    TABLE = "text_encoders/special_tokens.npz"

    @pytest.fixture(autouse=True)
    def narrow(self, folders, monkeypatch):
        """The width of the tiny encoder and its table in place of 4096."""
        adapter = module("nodes.adapters.magi.text")
        monkeypatch.setattr(adapter, "TEXT_DIM", TEXT_DIM)
        load = adapter.load_special_tokens
        monkeypatch.setattr(adapter, "load_special_tokens", lambda path: load(path, TEXT_DIM))

    def make(self, clip, text="A red fox!", table=TABLE, **fields):
        return node("MagiPrompt", clip=clip, text=text, special_tokens=table, **{**self.FIELDS, **fields})

    @pytest.mark.parametrize("kind", ["pixart", "mochi"])
    def test_states_are_those_of_800_masked_tokens(self, kind):
        """As MAGI-1 encodes: cleaned text, filled up to 800 tokens, a mask; the seen states are the same without."""
        clip = t5(kind)
        ((states, _),) = self.make(clip)
        tokenizer = clip.tokenizer.clip_t5xxl.tokenizer
        given = tokenizer("a red fox!", padding="max_length", max_length=800, return_tensors="pt")
        transformer = clip.cond_stage_model.t5xxl.transformer
        whole = transformer(given["input_ids"], given["attention_mask"])[0]
        seen = whole[:, given["attention_mask"][0].bool()]
        close(states, seen, 1e-4)
        assert states.shape == (1, int(given["attention_mask"].sum()), TEXT_DIM)

    def test_long_prompts_end_at_800(self):
        ((states, _),) = self.make(t5(), "fox " * 900)
        assert states.shape[1] == 800

    def test_switches(self):
        ((_, options),) = self.make(t5(), motion="static", look="2d animation", borders=True)
        switches = options["flowcache_magi"].switches
        assert switches == magi_text.TokenSwitches(static=True, borders=True, two_d_anime=True)

    def test_prompt_to_video(self, model):
        out = run(model, positive=self.make(t5()))[0]
        none = run(model, positive=self.make(t5(), table="none", high_quality=False, duration=False))[0]
        assert torch.isfinite(out).all() and (out - none).abs().max() > 1e-3

    def test_no_table(self):
        with pytest.raises(SettingError, match="MAGI-1 Prompt, special_tokens: got 'none'.*all of its switches off"):
            self.make(t5(), table="none")

    def test_another_table(self, folders):
        place = folders / "text_encoders" / "short"
        place.mkdir(exist_ok=True)
        tiny_magi.write_table(place / "special_tokens.npz", others=17)
        with pytest.raises(SettingError) as caught:
            self.make(t5(), table="text_encoders/short/special_tokens.npz")
        text = str(caught.value)
        assert f"other_tokens 17 x {TEXT_DIM}" in text and f"other_tokens 100 x {TEXT_DIM}" in text

    def test_another_encoder(self, monkeypatch):
        with pytest.raises(SettingError, match="MAGI-1 Prompt, clip: got 'an encoder umt5xxl'.*T5 v1.1 XXL"):
            self.make(Encoder("umt5xxl", TEXT_DIM))
        with pytest.raises(SettingError, match="MAGI-1 Prompt, clip: got 'an encoder g, l, t5xxl'.*type pixart"):
            self.make(Encoder("g, l, t5xxl", TEXT_DIM))
        with pytest.raises(
            SettingError, match=f"clip: got 'a T5 of width 1024', accepted: width {TEXT_DIM}: T5 v1.1 XXL"
        ):
            self.make(Encoder("t5xxl", 1024))


class Encoder:
    """A CLIP of another kind."""

    def __init__(self, keys, width):
        self.keys, self.width = keys.split(", "), width

    def tokenize(self, text):
        return {key: [[(3, 1.0), (1, 1.0)]] for key in self.keys}

    def encode_from_tokens(self, tokens):
        return torch.zeros(1, 2, self.width)
