"""Our sampler on the real host: what the host's own AR sampler does, it does the same; what that cannot do, it can."""

from __future__ import annotations

import comfy.model_management
import comfy.samplers
import latent_preview
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import DisableNoise, SplitSigmas
from hostkit import (
    BLOCKWISE,
    HEIGHT,
    METHOD,
    SAME,
    STAGGERED,
    WIDTH,
    close,
    compress,
    hosts,
    latent,
    load,
    module,
    node,
    ours,
    prompt,
    reuse,
    sample,
    sigmas_of,
    state_dict,
)

last_record = module("nodes.adapters.run.settings").last_record
SettingError = module("flowcache_core.errors").SettingError
SLIDING = {"plan": "sliding window", "chunk_frames": 2, "window_chunks": 2, "solver": "euler", "clean_pass": False}


@pytest.fixture(scope="module")
def model():
    return load()


class TestSameAsTheHost:
    @pytest.mark.parametrize("block", [1, 2, 3, 4])
    @pytest.mark.parametrize("batch", [1, 2])
    def test_latents(self, model, block, batch):
        start = latent(batch=batch)
        plan = {**BLOCKWISE, "chunk_frames": block}
        close(sample(model, ours(plan), start=start)[0], sample(model, hosts(block), start=start)[0])

    @pytest.mark.parametrize("size", [(80, 48), (32, 64)])
    def test_sizes(self, model, size):
        start = latent(width=size[0], height=size[1])
        close(sample(model, start=start)[0], sample(model, hosts(), start=start)[0])

    def test_start_image_of_the_host_node(self, model):
        """ARVideoI2V leaves the encoded image on the model."""
        with_image = model.clone()
        image = torch.randn(1, 16, 1, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(3))
        with_image.model_options["transformer_options"]["ar_config"] = {"initial_latent": image}
        mine = sample(with_image, ours({**BLOCKWISE, "chunk_frames": 1}))[0]
        close(mine, sample(with_image, hosts(1))[0])
        close(mine[:, :, :1], image)
        by_input = sample(model, ours({**BLOCKWISE, "chunk_frames": 1}, prefix={"samples": image}))[0]
        assert torch.equal(by_input, mine)

    def test_one_step(self, model):
        sigmas = sigmas_of(model, 1)
        close(sample(model, sigmas=sigmas)[0], sample(model, hosts(), sigmas=sigmas)[0])


class TestLaws:
    @pytest.mark.parametrize("plan", [BLOCKWISE, STAGGERED, SLIDING], ids=lambda plan: plan["plan"])
    def test_threshold_0_and_a_large_budget_change_no_bit(self, model, plan):
        plain = sample(model, ours(plan))[0]
        assert torch.equal(sample(reuse(model), ours(plan))[0], plain)
        assert torch.equal(sample(compress(model, 100), ours(plan))[0], plain)

    def test_a_threshold_reuses_and_a_budget_bounds(self, model):
        patched = compress(reuse(model, threshold=1.5), 1)
        start = latent(81)
        out = sample(patched, start=start, sigmas=sigmas_of(model, 8))[0]
        record = last_record(patched)
        assert 0 < record.reused_steps < record.total_steps == 7 * 8
        assert record.started.kv_tokens == 2 * 3 * 8  # budget + active chunk, of 3 frames of 2 x 4 tokens
        assert record.compressions and torch.isfinite(out).all()
        assert not torch.equal(out, sample(model, start=start, sigmas=sigmas_of(model, 8))[0])

    @pytest.mark.parametrize("storage", ["int8", "int4", "int2", "centroid"])
    def test_packed_kv_is_smaller_and_near(self, model, storage):
        def run(**fields):
            fields = {"dtype": SAME, "device": SAME, **fields}
            patched = node("KVCompressor", model=model, budget=2.0, method=METHOD, **fields)
            return sample(patched, start=latent(45))[0], last_record(patched)

        (plain, whole), (packed, held) = run(), run(storage={"storage": storage})
        assert held.kv_bytes < whole.kv_bytes and packed.isfinite().all()
        error = (packed - plain).square().mean() / plain.square().mean()
        assert 0 < error < (1e-3 if storage == "int8" else 0.5)

    def test_kv_does_not_grow_with_length(self, model):
        held = []
        for length in (81, 161):
            patched = compress(model, 2)
            sample(patched, start=latent(length), sigmas=sigmas_of(model, 1))
            held.append(last_record(patched).kv_bytes)
        assert held[0] == held[1] > 0

    @pytest.mark.parametrize("quantity", ["velocity", "increment", "residual"])
    @pytest.mark.parametrize("distance", ["latent", "patch", "time"])
    def test_every_quantity_and_distance(self, model, quantity, distance):
        patched = reuse(model, threshold=50.0, quantity=quantity, distance=distance)
        out = sample(patched, ours({**STAGGERED}), negative=prompt(8), sigmas=sigmas_of(model, 6))[0]
        record = last_record(patched)
        assert record.reused_steps == 3 * 4 and torch.isfinite(out).all()

    def test_residual_of_an_unchanged_input_gives_the_computed_velocity(self, model):
        """Reusing the residual at a step of nearly the same noise level is nearly computing it."""
        sigmas = torch.tensor([1.0, 0.9999, 0.9998, 0.0])
        plan = {**STAGGERED, "ar_step": 3}
        exact = sample(model, ours(plan), negative=prompt(8), sigmas=sigmas)[1]
        patched = reuse(model, threshold=50.0, quantity="residual")
        close(sample(patched, ours(plan), negative=prompt(8), sigmas=sigmas)[1], exact, 1e-3)


class TestBeyondTheHost:
    def test_cfg_has_kv_of_its_own_per_branch(self, model):
        plain = sample(model)[0]
        with pytest.raises(RuntimeError):
            sample(model, hosts(), negative=prompt(8))
        assert not torch.allclose(sample(model, negative=prompt(8))[0], plain, atol=1e-2)
        close(sample(model, negative=prompt())[0], plain)  # the same prompt on both sides: guidance changes nothing
        longer = sample(model, negative=prompt(8, tokens=5))[0]  # two calls instead of one batch
        assert torch.isfinite(longer).all()

    def test_cfg_on_a_single_chunk_is_the_hosts_plain_cfg(self, model):
        """One chunk of the whole video has no history: the same as the host's Euler on the whole latent."""
        whole = {**BLOCKWISE, "chunk_frames": 6, "solver": "euler", "clean_pass": False}
        euler = comfy.samplers.sampler_object("euler")
        for negative in (prompt(8), prompt(8, tokens=5)):
            close(sample(model, ours(whole), negative=negative)[0], sample(model, euler, negative=negative)[0])

    def test_history_is_seen_by_every_branch(self, model):
        """Another first chunk changes later chunks through both branches' K/V."""
        first = torch.randn(1, 16, 3, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(5))
        one = sample(model, ours(prefix={"samples": first}), negative=prompt(8))[0]
        two = sample(model, ours(prefix={"samples": -first}), negative=prompt(8))[0]
        assert (one[:, :, 3:] - two[:, :, 3:]).abs().max() > 1e-2

    def test_conditioning_combine(self, model):
        with pytest.raises(RuntimeError):
            sample(model, hosts(), positive=prompt() + prompt(8))
        close(sample(model, positive=prompt() + prompt())[0], sample(model)[0])
        mixed = sample(model, positive=prompt() + prompt(8), negative=prompt(9))[0]
        assert torch.isfinite(mixed).all()

    def test_ranges_of_noise_levels(self, model):
        """Prompts that hold for a part of the steps take turns on one branch."""
        early = [[prompt()[0][0], {"start_percent": 0.0, "end_percent": 0.5}]]
        late = [[prompt()[0][0], {"start_percent": 0.5, "end_percent": 1.0}]]
        patched = compress(model, 100)
        close(sample(patched, positive=early + late)[0], sample(model)[0])

    def test_fp8_weights(self):
        model = load(dtype=torch.float8_e4m3fn)
        assert model.model.get_dtype() == torch.float8_e4m3fn
        patched = compress(model, 100)
        close(
            sample(patched)[0],
            sample(load({k: v.to(torch.float8_e4m3fn).float() for k, v in state_dict().items()}))[0],
            0.2,
        )
        kv_spec = module("nodes.adapters.wan.denoiser").kv_spec
        assert kv_spec(model.model, (1, 16, 6, 4, 8), 1, "cpu").dtype == torch.float32

    def test_positions_beyond_256_frames_in_bf16(self, model):
        rope = module("nodes.adapters.wan.rope")
        inner = model.model.diffusion_model
        options = {"rope_options": rope.chunk_positions({}, 257)}
        exact = inner.rope_encode(3, 4, 8, t_start=257, dtype=torch.float32, device="cpu")
        rounded = inner.rope_encode(3, 4, 8, dtype=torch.bfloat16, device="cpu", transformer_options=options)
        assert not torch.equal(rounded, exact)
        with rope.exact_positions(inner):
            assert torch.equal(
                inner.rope_encode(3, 4, 8, dtype=torch.bfloat16, device="cpu", transformer_options=options), exact
            )
        assert "rope_encode" not in vars(inner)

    def test_bf16_sampling_keeps_frames_apart(self, model):
        """In bf16, chunks at 256 and 257 would share positions; with equal noise they would come out alike."""
        bf16 = model.clone()
        bf16.set_model_compute_dtype(torch.bfloat16)
        out = sample(
            compress(bf16, 4),
            ours({**BLOCKWISE, "chunk_frames": 1}),
            start=latent(1041, width=32, height=32),
            sigmas=sigmas_of(model, 1),
        )[0]
        assert out.shape[2] == 261 and torch.isfinite(out).all()

    def test_denoised_output_is_the_whole_video(self, model):
        out, denoised = sample(model)
        assert torch.equal(out, denoised)
        assert sample(model, hosts())[1].shape[2] == 3  # of 6

    def test_sigmas_that_do_not_end_in_0(self, model):
        high, low = SplitSigmas.execute(sigmas_of(model, 8), 4).args
        with pytest.raises(RuntimeError):
            sample(model, hosts(), sigmas=high)
        image = {"samples": torch.randn(1, 16, 3, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(3))}
        half, denoised = sample(model, ours(prefix=image), sigmas=high)
        close(half[:, :, :3], image["samples"])
        assert not torch.allclose(half, denoised)
        done = sample(
            model, ours(prefix=image), start={"samples": half}, sigmas=low, noise=DisableNoise.execute().args[0]
        )[0]
        assert torch.isfinite(done).all()

    def test_a_split_run_of_one_chunk_is_the_whole_run(self, model):
        whole = ours({**BLOCKWISE, "chunk_frames": 6, "solver": "euler", "clean_pass": False})
        sigmas = sigmas_of(model, 8)
        high, low = SplitSigmas.execute(sigmas, 4).args
        half = sample(model, whole, sigmas=high)[0]
        done = sample(model, whole, start={"samples": half}, sigmas=low, noise=DisableNoise.execute().args[0])[0]
        close(done, sample(model, whole, sigmas=sigmas)[0], 1e-4)

    def test_progress_counts_every_chunk_step_and_previews_show_the_whole_video(self, model, monkeypatch):
        calls = []
        prepare = latent_preview.prepare_callback

        def spy(*args, **kwargs):
            inner = prepare(*args, **kwargs)

            def callback(step, x0, x, total):
                calls.append((step, total, tuple(x0.shape), float(x0[:, :, 4:].abs().max()) > 0))
                return inner(step, x0, x, total)

            return callback

        monkeypatch.setattr(latent_preview, "prepare_callback", spy)
        patched = reuse(model, threshold=50.0)
        sample(patched, ours(STAGGERED))
        assert last_record(patched).reused_steps > 0
        begun = 7  # chunk 2 (frames 4 and 5) begins at tick 4, after 2 ticks of one step, 2 of two, and chunk 1's own
        assert calls == [(step, 12, (1, 16, 6, 4, 8), step >= begun) for step in range(12)]

    def test_noise_mask(self, model):
        """Leading frames that the mask keeps are prefix; masks inside frames keep what they cover."""
        known = torch.randn(1, 16, 6, 4, 8, generator=torch.Generator().manual_seed(3))
        mask = torch.ones(1, 1, 6, 4, 8)
        mask[:, :, :3] = 0
        kept = sample(model, start={"samples": known, "noise_mask": mask})[0]
        by_input = sample(model, ours(prefix={"samples": known[:, :, :3]}), start=latent())[0]
        close(kept[:, :, :3], known[:, :, :3])
        assert kept.shape == by_input.shape
        half = torch.ones(1, 1, 6, 4, 8)
        half[..., 4:] = 0
        out = sample(model, start={"samples": known, "noise_mask": half})[0]
        close(out[..., 4:], known[..., 4:])
        assert not torch.allclose(out[..., :4], known[..., :4], atol=0.1)

    def test_attention_override_of_another_pack(self, model):
        seen = []

        def override(func, q, k, v, heads, **kwargs):
            seen.append((q.shape[-2], k.shape[-2], tuple(kwargs["transformer_options"]["cond_or_uncond"])))
            return func(q, k, v, heads, **kwargs)

        other = model.clone()
        other.model_options["transformer_options"]["optimized_attention_override"] = override
        assert torch.equal(sample(other)[0], sample(model)[0])
        assert len(seen) == (2 * 4 + 1) * 2 * 2  # steps of both chunks and one clean pass, 2 layers, self and cross
        assert {tokens for tokens in seen} == {(24, 24, (0,)), (24, 48, (0,)), (24, 2, (0,))}

    def test_model_wrappers_of_another_pack(self, model):
        seen = []
        other = model.clone()
        for kind in (WrappersMP.DIFFUSION_MODEL, WrappersMP.APPLY_MODEL, WrappersMP.PREDICT_NOISE):
            other.add_wrapper_with_key(kind, "test", lambda ex, *a, kind=kind, **k: (seen.append(kind), ex(*a, **k))[1])
        other.set_model_unet_function_wrapper(
            lambda f, args: (seen.append("unet"), f(args["input"], args["timestep"], **args["c"]))[1]
        )
        assert torch.equal(sample(other)[0], sample(model)[0])
        assert all(seen.count(kind) == 9 for kind in {*seen}) and len({*seen}) == 4

    def test_perturbed_second_evaluation_is_not_history(self, model):
        """A post-CFG function that evaluates the same prompt again with other options must not overwrite its K/V."""

        def again(args):
            options = {**args["model_options"], "transformer_options": {**args["model_options"]["transformer_options"]}}
            noisy = args["input"] + 1
            comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], noisy, args["sigma"], options)
            return args["denoised"]

        other = model.clone()
        other.set_model_sampler_post_cfg_function(again)
        assert torch.equal(sample(other)[0], sample(model)[0])

    def test_lora_through_the_hosts_node(self, model, tmp_path, monkeypatch):
        import folder_paths
        import safetensors.torch

        import nodes as host_nodes

        dim = state_dict()["blocks.0.self_attn.q.weight"].shape[0]
        generator = torch.Generator().manual_seed(1)
        key = "diffusion_model.blocks.0.self_attn.q"
        lora = {
            f"{key}.lora_{part}.weight": torch.randn(shape, generator=generator)
            for part, shape in (("A", (2, dim)), ("B", (dim, 2)))
        }
        safetensors.torch.save_file(lora, tmp_path / "tiny.safetensors")
        monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
        patched = host_nodes.LoraLoaderModelOnly().load_lora_model_only(model, "tiny.safetensors", 1.0)[0]
        merged = state_dict()
        merged["blocks.0.self_attn.q.weight"] += lora[f"{key}.lora_B.weight"] @ lora[f"{key}.lora_A.weight"]
        with_lora = sample(patched)[0]
        close(with_lora, sample(load(merged))[0], 1e-4)
        assert not torch.allclose(with_lora, sample(model)[0], atol=1e-2)

    def test_host_knows_about_the_kv_before_it_loads(self, model, monkeypatch):
        asked = []
        load_models = comfy.model_management.load_models_gpu

        def spy(models, memory_required=0, minimum_memory_required=None, **kwargs):
            asked.append(minimum_memory_required)
            return load_models(
                models, memory_required=memory_required, minimum_memory_required=minimum_memory_required, **kwargs
            )

        monkeypatch.setattr(comfy.model_management, "load_models_gpu", spy)
        start, sigmas = latent(81, width=256, height=256), sigmas_of(model, 1)
        patched = [compress(model, budget) for budget in (100, 2)]
        for one in patched:
            sample(one, start=start, sigmas=sigmas)
        held = [last_record(one).kv_bytes for one in patched]
        chunk = model.model.memory_required([1, 16, 3, 32, 32])
        assert asked[0] >= held[0] + chunk and asked[1] < asked[0]

    def test_plain_wan_model(self):
        """Files without the causal mark run too: the chunk order is ours."""
        plain = load(causal=False)
        close(sample(plain)[0], sample(load(), hosts())[0])
        with pytest.raises(TypeError):
            sample(plain, hosts())

    def test_windows_of_a_long_video(self, model):
        plan = {**STAGGERED, "window_frames": 6, "overlap_frames": 2}
        out = sample(model, ours(plan), start=latent(57))[0]
        alone = sample(model, ours(STAGGERED), start=latent(21))[0]
        assert out.shape[2] == 15 and torch.isfinite(out).all()
        assert alone.shape[2] == 6

    def test_the_report_holds_every_window(self, model):
        """15 latent frames: windows [0, 6), [4, 10), [8, 14), [12, 15) in chunks of 2, 4 steps each."""
        plan, patched = {**STAGGERED, "window_frames": 6, "overlap_frames": 2}, reuse(model, threshold=50.0)
        sample(patched, ours(plan), start=latent(57))
        record = last_record(patched)
        spans = [(w.first_chunk, w.chunks, w.prefix_chunks) for w in record.windows]
        assert spans == [(0, 3, 0), (3, 3, 1), (6, 3, 1), (9, 2, 1)]
        assert record.total_steps == len(record.steps_taken) == 4 * (3 + 2 + 2 + 1)
        assert record.seconds is not None and record.chunks_finished == 8
        assert [row[0] for row in record.kinds].count("given") == 3
        assert 0 < record.reused_steps == sum(row.count("reused") for row in record.kinds)
        ticks = [step.tick for step in record.steps_taken]
        assert ticks == sorted(ticks)

    def test_prompts_per_chunk_are_refused_with_bidirectional_attention(self, model):
        switched = node("PromptSchedule", prompt_1=prompt(), prompt_2=prompt(8), start_2=1, recache=False)
        plan = {**STAGGERED, "attention": "bidirectional"}
        with pytest.raises(
            SettingError, match=r"AR Prompt Schedule, start_2: got \[1\].*one prompt holds for all chunks"
        ):
            sample(model, ours(plan), positive=switched)

    def test_bidirectional_is_one_forward_per_tick(self, model):
        seen = []
        other = model.clone()
        other.add_wrapper_with_key(
            WrappersMP.DIFFUSION_MODEL, "test", lambda ex, x, t, *a, **k: (seen.append(t.clone()), ex(x, t, *a, **k))[1]
        )
        plan = {**STAGGERED, "attention": "bidirectional", "ar_step": 0}
        out = sample(other, ours(plan))[0]
        # All chunks at one noise level: what the host's Euler does with the whole latent.
        euler = comfy.samplers.sampler_object("euler")
        close(out, sample(model, euler)[0], 1e-4)
        assert len(seen) == 4


class TestPromptSchedule:
    def schedule(self, start, recache=False):
        return node("PromptSchedule", prompt_1=prompt(), prompt_2=prompt(8), start_2=start, recache=recache)

    def test_a_prompt_without_its_start_is_refused(self):
        with pytest.raises(SettingError, match="AR Prompt Schedule, start_3: got None"):
            node("PromptSchedule", prompt_1=prompt(), prompt_2=prompt(8), start_2=1, recache=False, prompt_3=prompt(9))

    def test_chunks_before_the_switch_do_not_change(self, model):
        start = latent(45)  # 12 latent frames
        plain = sample(model, start=start)[0]
        switched = sample(model, start=start, positive=self.schedule(2))[0]
        assert torch.equal(switched[:, :, :6], plain[:, :, :6])
        assert not torch.allclose(switched[:, :, 6:], plain[:, :, 6:], atol=1e-2)

    def test_two_equal_prompts_are_one(self, model):
        same = node("PromptSchedule", prompt_1=prompt(), prompt_2=prompt(), start_2=1, recache=False)
        close(sample(model, positive=same)[0], sample(model)[0])

    def test_other_samplers_use_the_first_prompt(self, model):
        close(sample(model, hosts(), positive=self.schedule(1))[0], sample(model, hosts())[0])

    def test_recache_computes_history_under_the_new_prompt(self, model):
        """Where the history fits, the chunk after a switch sees what it would have seen under its prompt all along."""
        start, first = latent(33), torch.randn(1, 16, 3, 4, 8, generator=torch.Generator().manual_seed(5))
        sampler = ours(prefix={"samples": first})
        new = sample(model, sampler, start=start, positive=prompt(8))[0]
        late = sample(model, sampler, start=start, positive=self.schedule(1))[0]
        now = sample(model, sampler, start=start, positive=self.schedule(1, recache=True))[0]
        close(now[:, :, 3:], new[:, :, 3:])
        assert not torch.allclose(late[:, :, 3:], new[:, :, 3:], atol=1e-3)

    def test_recache_with_a_budget(self, model):
        patched = compress(model, 1)
        out = sample(patched, start=latent(45), positive=self.schedule(3, recache=True), negative=prompt(9))[0]
        passes = [p.chunk for p in last_record(patched).cache_passes if p.kind == "recache"]
        assert passes == [2] and torch.isfinite(out).all()

    def test_chained(self, model):
        chained = node("PromptSchedule", prompt_1=self.schedule(1), prompt_2=prompt(9), start_2=3, recache=False)
        start = latent(45)
        out = sample(model, start=start, positive=chained)[0]
        assert torch.equal(out[:, :, :9], sample(model, start=start, positive=self.schedule(1))[0][:, :, :9])
