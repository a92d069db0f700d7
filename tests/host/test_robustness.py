"""Bad input is refused by name, and nothing outlives a run: not after an error, not after an interrupt."""

from __future__ import annotations

import gc
import logging

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicGuider
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from hostkit import (
    BLOCKWISE,
    CUSTOM,
    STAGGERED,
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
)

SettingError = module("flowcache_core.errors").SettingError
last_record = module("nodes.adapters.run.settings").last_record
slot_of = module("nodes.adapters.run.settings").slot_of


@pytest.fixture(scope="module")
def model():
    return load()


def tensors() -> int:
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


def sketches(model) -> int:
    """Of noise and result of a MODEL's last runs: they are kept, and are few."""
    runs = slot_of(model).runs
    assert len(runs) <= runs.maxlen == 8
    return sum((run.noise is not None) + (run.made is not None) for run in runs)


def press_interrupt_at(monkeypatch, step):
    """Press the host's Interrupt when its progress bar shows this chunk step, however fast the machine is."""
    import comfy.utils

    def hook(value, total, preview, **kwargs):
        if value >= step:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    for name in ("PROGRESS_THROTTLE_MIN_INTERVAL", "PROGRESS_THROTTLE_MIN_PERCENT"):
        monkeypatch.setattr(comfy.utils, name, 0)  # the host leaves out updates that come too fast


class TestNothingOutlivesARun:
    def test_20_runs_of_error_interrupt_and_success(self, model, monkeypatch):
        patched = compress(reuse(model, threshold=0.5), 1)
        start = latent(45)
        fresh = sample(patched, start=start)[0]
        options, before = dict(patched.model_options), None
        failing = model.clone()

        def fail(args):
            raise RuntimeError("another pack's fault")

        failing.set_model_sampler_post_cfg_function(fail)
        failing = compress(failing, 1)
        for turn in range(20):
            if turn % 3 == 0:
                with pytest.raises(RuntimeError, match="another pack"):
                    sample(failing, start=start)
            elif turn % 3 == 1:
                with monkeypatch.context() as patch:
                    press_interrupt_at(patch, 1 + turn % 5)
                    with pytest.raises(comfy.model_management.InterruptProcessingException):
                        sample(patched, start=start)
            else:
                assert torch.equal(sample(patched, start=start)[0], fresh)
            inner = model.model.diffusion_model
            assert "rope_encode" not in vars(inner)
            assert {key: patched.model_options[key] for key in options} == options
            count = tensors() - sketches(patched) - sketches(failing)
            before = count if before is None else before
            assert count <= before + 3, "tensors pile up"
        assert torch.equal(sample(patched, start=start)[0], fresh)

    def test_the_hosts_sampler_is_the_same_after_ours(self, model):
        before = sample(model, hosts())[0]
        sample(compress(reuse(model, threshold=0.5), 1), start=latent(45))
        assert torch.equal(sample(model, hosts())[0], before)

    def test_global_random_state_is_left_alone(self, model):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        noise = type(
            "Fixed", (), {"seed": 3, "generate_noise": lambda self, latent: torch.ones_like(latent["samples"])}
        )()
        sample(model, noise=noise)
        assert torch.equal(torch.rand(3), expected)

    def test_a_record_of_what_ran(self, model, monkeypatch):
        patched = compress(model, 1)
        press_interrupt_at(monkeypatch, 6)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(patched)
        record = last_record(patched)
        assert 0 < len(record.steps_taken) < record.total_steps and record.seconds is None


def refused(message, call, *args, **kwargs):
    with pytest.raises(SettingError) as caught:
        call(*args, **kwargs)
    for part in message:
        assert part in str(caught.value), str(caught.value)


class TestBadInput:
    SAMPLER = "AR Video Sampler (FlowCache)"

    def test_latents_that_are_no_video(self, model):
        check = module("nodes.adapters.wan.sampling").check
        refused(["latent_image", "[B, C, F, H, W]"], check, model.model, torch.ones(1, 16, 8, 8), {})

    def test_wrong_channels(self, model):
        start = {"samples": torch.ones(1, 4, 3, 8, 8)}
        refused([self.SAMPLER, "latent_image", "16 channels"], sample, compress(model, 1), start=start)

    def test_prefix_of_another_size(self, model):
        refused(
            [self.SAMPLER, "prefix", "(1, 16, 1, 2, 2)"],
            sample,
            model,
            ours(prefix={"samples": torch.ones(1, 16, 1, 2, 2)}),
        )

    def test_prefix_as_long_as_the_video(self, model):
        refused(
            [self.SAMPLER, "prefix frames", "6"], sample, model, ours(prefix={"samples": torch.ones(1, 16, 6, 4, 8)})
        )

    def test_image_as_prefix(self):
        refused([self.SAMPLER, "prefix", "video VAE"], ours, prefix={"samples": torch.ones(1, 16, 4, 8)})

    def test_more_prefix_frames_than_there_are(self):
        refused(
            [self.SAMPLER, "prefix_frames", "3"], ours, prefix={"samples": torch.ones(1, 16, 3, 4, 8)}, prefix_frames=4
        )

    def test_two_prefixes(self, model):
        known = torch.ones(1, 16, 6, 4, 8)
        mask = torch.ones(1, 1, 6, 4, 8)
        mask[:, :, :1] = 0
        sampler = ours(prefix={"samples": known[:, :, :1]})
        refused(
            [self.SAMPLER, "prefix", "one of them"],
            sample,
            model,
            sampler,
            start={"samples": known, "noise_mask": mask},
        )

    def test_window_that_does_not_divide_the_steps(self, model):
        plan = {"plan": "sliding window", "chunk_frames": 2, "window_chunks": 3, "solver": "euler", "clean_pass": False}
        refused([self.SAMPLER, "steps", "window_chunks (3)"], sample, model, ours(plan))

    def test_overlap_that_is_no_whole_chunk(self, model):
        plan = {**STAGGERED, "window_frames": 4, "overlap_frames": 1}
        refused([self.SAMPLER, "overlap_frames"], ours, plan)

    def test_unknown_names(self):
        refused([self.SAMPLER, "plan"], ours, {**BLOCKWISE, "plan": "spiral"})
        refused([self.SAMPLER, "solver"], ours, {**BLOCKWISE, "solver": "heun"})

    def test_clean_pass_without_kv(self):
        refused([self.SAMPLER, "clean_pass"], ours, {**STAGGERED, "attention": "bidirectional", "clean_pass": True})

    def test_budget_without_kv(self, model):
        patched = compress(model, 2)
        refused(["KV Cache Compressor", "budget"], sample, patched, ours({**STAGGERED, "attention": "bidirectional"}))

    def test_rising_sigmas(self, model):
        refused([self.SAMPLER, "sigmas[1]"], sample, model, sigmas=torch.tensor([0.5, 0.9, 0.0]))

    def test_areas(self, model):
        positive = [[prompt()[0][0], {"area": (2, 2, 0, 0)}]]
        refused([self.SAMPLER, "positive", "area"], sample, model, positive=positive)

    def test_another_model_family(self, model, monkeypatch):
        class NotWan(torch.nn.Module):
            pass

        other = model.clone()
        other.add_object_patch("diffusion_model", NotWan())
        guider = BasicGuider.execute(other, prompt()).args[0]
        check = module("nodes.adapters.wan.sampling").check
        base = type("Base", (), {"diffusion_model": NotWan()})()
        refused(["model", "NotWan", "Wan 2.1 text-to-video"], check, base, torch.zeros(1), guider.model_options)

    def test_warm_up_longer_than_the_run(self, model):
        refused(["FlowCache Chunkwise Reuse", "warmup_steps", "5"], sample, reuse(model, threshold=0.1, warmup_steps=5))

    def test_schedule_beyond_the_run(self, model):
        patched = reuse(model, policy="schedule", computed_steps="0, 7")
        refused(["FlowCache Chunkwise Reuse, computed_steps", "7", "own steps 0..3"], sample, patched)

    @pytest.mark.parametrize("text", ["", "0 x", "1, 2", "-1"])
    def test_schedules_that_are_none(self, model, text):
        refused(["FlowCache Chunkwise Reuse", "computed"], reuse, model, policy="schedule", computed_steps=text)

    def test_unknown_preset(self, model):
        refused(
            ["FlowCache Chunkwise Reuse", "preset"], node, "ChunkwiseReuse", model=model, preset={"preset": "faster"}
        )

    def test_nan_threshold(self, model):
        refused(["FlowCache Chunkwise Reuse", "threshold"], reuse, model, threshold=float("nan"))

    @pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
    def test_budgets_too_small(self, model, budget):
        refused(["KV Cache Compressor", "budget"], compress, model, budget)

    def test_budget_too_small_for_the_sink(self, model):
        method = {"method": "sink-window", "sink": 2.0, "key_granularity": "token"}
        same = "same as the model"
        refused(
            ["KV Cache Compressor", "budget"],
            node,
            "KVCompressor",
            model=model,
            budget=2.0,
            method=method,
            dtype=same,
            device=same,
        )

    def test_even_pooling_kernel(self, model):
        refused(["KV Cache Compressor", "pool_kernel"], compress, model, 2, pool_kernel=4)

    def test_two_of_a_kind(self, model):
        refused(["FlowCache Chunkwise Reuse", "remove one"], reuse, reuse(model))
        refused(["KV Cache Compressor", "remove one"], compress, compress(model, 2), 2)

    @pytest.mark.parametrize("other", [EasyCacheNode, LazyCacheNode])
    def test_easycache_and_lazycache(self, model, other):
        name = "EasyCache" if other is EasyCacheNode else "LazyCache"
        cached = other.execute(model, 0.2, 0.15, 0.95, False).args[0]
        refused(["FlowCache Chunkwise Reuse", name, "remove"], reuse, cached)
        refused([self.SAMPLER, name, "remove"], sample, cached)
        after = other.execute(reuse(model), 0.2, 0.15, 0.95, False).args[0]
        refused([self.SAMPLER, name, "remove"], sample, after)

    def test_prompts_out_of_order(self):
        refused(
            ["AR Prompt Schedule", "start_3", "2"],
            node,
            "PromptSchedule",
            prompt_1=prompt(),
            prompt_2=prompt(8),
            start_2=2,
            prompt_3=prompt(9),
            start_3=2,
            recache=False,
        )

    def test_unknown_word(self):
        refused(["FlowCache Mini Prompt", "text", "mauve", "red"], node, "MiniPrompt", text="a mauve circle")


def test_settings_that_cannot_help_say_so(model, caplog):
    with caplog.at_level(logging.WARNING):
        sample(compress(reuse(model, threshold=0.1, warmup_steps=4), 100))
    text = caplog.text
    assert "4 steps with 4 warm-up steps" in text and "nothing to compress" in text


@pytest.mark.parametrize("sampler", [ours, hosts], ids=["ours", "host's"])
@pytest.mark.parametrize(
    "image",
    [{"concat_latent_image": torch.zeros(1, 16, 6, 4, 8)}, {"reference_latents": [torch.zeros(1, 16, 1, 4, 8)]}],
    ids=lambda image: next(iter(image)),
)
def test_a_start_image_for_which_the_model_has_no_input_is_told(model, caplog, sampler, image):
    """As WanImageToVideo and its kin leave it in the conditioning of a text-to-video model."""
    plain = sample(compress(model, 1), sampler())[0]
    patched = compress(model, 1)
    with caplog.at_level(logging.WARNING):
        out = sample(patched, sampler(), positive=[[prompt()[0][0], image]])[0]
    (told,) = {line for line in caplog.messages if "start image" in line}
    assert next(iter(image)) in told and "has no effect" in told and "prefix" in told
    assert torch.equal(out, plain)
    if sampler is ours:
        assert told.removeprefix("FlowCache: ") in last_record(patched).notes


def test_a_start_image_that_is_used_is_not_complained_about(model, caplog):
    with caplog.at_level(logging.WARNING):
        sample(compress(model, 1), ours(prefix={"samples": torch.ones(1, 16, 1, 4, 8)}))
    assert "start image" not in caplog.text


@pytest.mark.parametrize("sampler", [ours, hosts], ids=["ours", "host's"])
def test_a_preset_of_another_model_says_whose_it_is(model, sampler):
    patched = node("ChunkwiseReuse", model=model, preset={"preset": "skyreels-v2-1.3b-540p: slow"})
    words = ["FlowCache Chunkwise Reuse, preset skyreels-v2-1.3b-540p: slow: got '4 steps at shift 5'",
             "a run of the model skyreels-v2-1.3b-540p with 50 steps at shift 8", "auto, which takes"]  # fmt: skip
    refused(words, sample, patched, sampler())
    with pytest.raises(SettingError) as caught:
        sample(patched, sampler())
    assert "rescale" not in str(caught.value)


def test_another_sampler_says_that_nothing_happens(model, caplog):
    euler = comfy.samplers.sampler_object("euler")
    with caplog.at_level(logging.WARNING):
        out = sample(compress(reuse(model), 2), euler)[0]
    warnings = [line for line in caplog.messages if "no effect" in line]
    assert len(warnings) == 1 and torch.equal(out, sample(model, euler)[0])


def test_custom_preset_says_what_the_fields_say():
    settings = module("nodes.reuse").settings({**CUSTOM, "threshold": 0.3, "max_reuses": 2, "cache_device": "cpu"})
    assert settings.policy.threshold == 0.3 and settings.policy.max_reuses == 2 and settings.device == "cpu"
    schedule = module("nodes.reuse").settings({**CUSTOM, "policy": "schedule", "computed_steps": "0, 2"})
    assert schedule.policy.computed == (0, 2)
