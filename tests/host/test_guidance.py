"""Guidance nodes, masks, prompt ranges and hooks of the host: all that reads the noise level or the clean prediction.

Where all chunks share a level the result is the host's own euler; where they do not, each chunk is handled at its own.
"""

from __future__ import annotations

import comfy.hooks
import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_apg as apg
from comfy_extras import nodes_cfg as cfg_nodes
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras import nodes_eps as eps
from comfy_extras import nodes_fresca as fresca
from comfy_extras import nodes_mahiro as mahiro
from comfy_extras import nodes_model_advanced as advanced
from comfy_extras import nodes_pag as pag
from comfy_extras import nodes_perpneg as perpneg
from comfy_extras import nodes_slg as slg
from comfy_extras import nodes_tcfg as tcfg
from comfy_extras import nodes_video_model as video_model
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from hostkit import (
    BLOCKWISE,
    HEIGHT,
    STAGGERED,
    WIDTH,
    close,
    latent,
    load,
    module,
    ours,
    prompt,
    reuse,
    sample,
    sigmas_of,
    state_dict,
)

import nodes as host_nodes

SettingError = module("flowcache_core.errors").SettingError
LEVEL = {**STAGGERED, "attention": "bidirectional", "ar_step": 0}
MIXED = {**STAGGERED, "attention": "bidirectional", "ar_step": 2}
ONE_CHUNK = {**BLOCKWISE, "chunk_frames": 6, "solver": "euler", "clean_pass": False}
EULER = comfy.samplers.sampler_object("euler")


@pytest.fixture(scope="module")
def model():
    return load()


GUIDANCE = {
    "RescaleCFG": lambda m: advanced.RescaleCFG().patch(m, 0.7)[0],
    "APG": lambda m: apg.APG.execute(m, 0.5, 2.0, 0.0).args[0],
    "APG with momentum": lambda m: apg.APG.execute(m, 0.5, 0.0, -0.5).args[0],
    "CFGZeroStar": lambda m: cfg_nodes.CFGZeroStar.execute(m).args[0],
    "CFGNorm": lambda m: cfg_nodes.CFGNorm.execute(m, 0.9).args[0],
    "CFGNorm before": lambda m: cfg_nodes.CFGNorm.execute(m, 0.9, True).args[0],
    "EpsilonScaling": lambda m: eps.EpsilonScaling.execute(m, 1.02).args[0],
    "TemporalScoreRescaling": lambda m: eps.TemporalScoreRescaling.execute(m, 0.9, 1.0).args[0],
    "FreSca": lambda m: fresca.FreSca.execute(m, 1.0, 1.25, 2).args[0],
    "Mahiro": lambda m: mahiro.Mahiro.execute(m).args[0],
    "PerturbedAttentionGuidance": lambda m: pag.PerturbedAttentionGuidance.execute(m, 2.0).args[0],
    "PerpNeg": lambda m: perpneg.PerpNeg.execute(m, prompt(9), 0.8).args[0],
    "SkipLayerGuidanceDiT": lambda m: slg.SkipLayerGuidanceDiT.execute(m, 2.0, 0.0, 0.6, "0", "").args[0],
    "SkipLayerGuidanceDiT rescaled": lambda m: slg.SkipLayerGuidanceDiT.execute(m, 2.0, 0.3, 1.0, "1", "", 0.5).args[0],
    "SkipLayerGuidanceDiTSimple": lambda m: slg.SkipLayerGuidanceDiTSimple.execute(m, 0.0, 1.0, "0", "").args[0],
    "SkipLayerGuidanceDiTSimple in part": lambda m: slg.SkipLayerGuidanceDiTSimple.execute(m, 0.0, 0.4, "1").args[0],
    "TCFG": lambda m: tcfg.TCFG.execute(m).args[0],
    "VideoLinearCFG": lambda m: video_model.VideoLinearCFGGuidance().patch(m, 1.0)[0],
    "VideoTriangleCFG": lambda m: video_model.VideoTriangleCFGGuidance().patch(m, 1.0)[0],
    "two of them": lambda m: cfg_nodes.CFGZeroStar.execute(advanced.RescaleCFG().patch(m, 0.7)[0]).args[0],
}


def ranged(seed, start, end):
    return [[prompt(seed)[0][0], {"start_percent": start, "end_percent": end}]]


GUIDERS = {
    "basic": lambda m: custom.BasicGuider.execute(m, prompt()),
    "cfg": lambda m: custom.CFGGuider.execute(m, prompt(), prompt(8), 3.0),
    "other length": lambda m: custom.CFGGuider.execute(m, prompt(), prompt(8, tokens=5), 3.0),
    "dual cfg": lambda m: custom.DualCFGGuider.execute(m, prompt(), prompt(9), prompt(8), 3.0, 2.0, "regular"),
    "perp-neg": lambda m: perpneg.PerpNegGuider.execute(m, prompt(), prompt(8), prompt(9), 3.0, 0.8),
    "ranges": lambda m: custom.CFGGuider.execute(m, ranged(7, 0.0, 0.5) + ranged(9, 0.5, 1.0), prompt(8), 3.0),
    "combined": lambda m: custom.CFGGuider.execute(m, prompt() + prompt(9), prompt(8), 3.0),
}


@torch.inference_mode()
def run(guider, sampler, *, start=None, sigmas, seed=1):
    noise = custom.RandomNoise.execute(seed).args[0]
    return custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, start or latent()).args[0]["samples"]


def masked(kind="half", frames=6):
    """Known latents and a mask that keeps their left half, or parts of it by degrees."""
    known = torch.randn(1, 16, frames, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(4))
    mask = torch.ones(1, 1, frames, HEIGHT // 8, WIDTH // 8)
    mask[..., : WIDTH // 16] = 0
    if kind == "degrees":
        mask[..., : WIDTH // 16] = torch.linspace(0.1, 0.9, WIDTH // 16)
    return {"samples": known, "noise_mask": mask}


# -- one level ---------------------------------------------------------------------------------------------------------

PLANS = pytest.mark.parametrize("plan", [LEVEL, ONE_CHUNK], ids=["bidirectional", "one chunk"])


@PLANS
@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance_nodes_are_the_hosts_euler(model, name, plan):
    patched = GUIDANCE[name](model)
    if name == "PerpNeg" and plan is ONE_CHUNK:  # brings conditioning that has no K/V
        with pytest.raises(SettingError, match="PerpNegGuider"):
            sample(patched, ours(plan), negative=prompt(8))
        return
    made, hosts = (sample(patched, sampler, negative=prompt(8))[0] for sampler in (ours(plan), EULER))
    close(made, hosts)
    assert not torch.equal(hosts, sample(model, EULER, negative=prompt(8))[0]) or "Video" in name


@PLANS
@pytest.mark.parametrize("name", GUIDERS)
def test_guiders_are_the_hosts_euler(model, name, plan):
    sigmas = sigmas_of(model)
    made, hosts = (run(GUIDERS[name](model).args[0], sampler, sigmas=sigmas) for sampler in (ours(plan), EULER))
    close(made, hosts)


@PLANS
@pytest.mark.parametrize("kind", ["half", "degrees", "differential"])
def test_masks_are_the_hosts_euler(model, kind, plan):
    patched = DifferentialDiffusion.execute(model).args[0] if kind == "differential" else model
    start = masked("half" if kind == "half" else "degrees")
    made, hosts = (sample(patched, s, negative=prompt(8), start=start)[0] for s in (ours(plan), EULER))
    close(made, hosts)
    if kind == "half":
        close(made[..., : WIDTH // 16], start["samples"][..., : WIDTH // 16])


@PLANS
def test_split_sigmas_are_the_hosts_euler(model, plan):
    high, low = custom.SplitSigmas.execute(sigmas_of(model, 6), 3).args
    for sigmas in (high, low):
        start = {"samples": torch.randn(1, 16, 6, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(2))}
        made, hosts = (sample(model, s, negative=prompt(8), sigmas=sigmas, start=start)[0] for s in (ours(plan), EULER))
        close(made, hosts)


def hooked(positive, *keyframes):
    """A LoRA hook on the conditioning, of changing strength with keyframes (percent, strength)."""
    draw = torch.Generator().manual_seed(1)
    key = "diffusion_model.blocks.0.self_attn.q"
    dim = state_dict()["blocks.0.self_attn.q.weight"].shape[0]
    lora = {
        f"{key}.lora_{part}.weight": torch.randn(shape, generator=draw)
        for part, shape in (("A", (2, dim)), ("B", (dim, 2)))
    }
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    if keyframes:
        group = comfy.hooks.HookKeyframeGroup()
        for percent, strength in keyframes:
            group.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=percent))
        hooks.set_keyframes_on_hooks(group)
    return comfy.hooks.set_hooks_for_conditioning(positive, hooks)


@PLANS
@pytest.mark.parametrize("keyframes", [(), ((0.0, 1.0), (0.5, -1.0))], ids=["constant", "keyframes"])
def test_hooks_are_the_hosts_euler(model, keyframes, plan):
    made = [
        sample(model, sampler, positive=hooked(prompt(), *keyframes), negative=prompt(8))[0]
        for sampler in (ours(plan), EULER)
    ]
    close(*made)
    assert not torch.allclose(made[1], sample(model, EULER, negative=prompt(8))[0], atol=1e-3)


# -- several levels ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def by_hand(model, guide, *, prompts, start=None, steps=4, keep=None):
    """MIXED without host or core around it: a loop over ticks, whole window in, guidance on each chunk alone.

    guide(chunk, x, sigma, cond, uncond): clean predictions ``[1, C, 2, H, W]`` to one. prompts(sigma): (cond, uncond).
    keep: known latents and mask.
    """
    sigmas, frames, size = sigmas_of(model, steps).tolist(), 6, 2
    noise = custom.RandomNoise.execute(1).args[0].generate_noise(start or latent())
    x, transformer = noise.clone(), model.model.diffusion_model
    chunks, done = frames // size, [0] * (frames // size)
    for tick in range(steps + 2 * (chunks - 1)):
        active = [c for c in range(chunks) if 2 * c <= tick < 2 * c + steps]
        row = [
            1000 * sigmas[done[c]] if done[c] < steps and c in active else (0.0 if done[c] else 999.0) for c in range(3)
        ]
        seen = x.clone()
        for c in active if keep else ():
            part, sigma = slice(size * c, size * (c + 1)), sigmas[done[c]]
            known, mask = (tensor[:, :, part] for tensor in keep)
            noisy = sigma * noise[:, :, part] + (1 - sigma) * known
            seen[:, :, part] = x[:, :, part] * mask + noisy * (1 - mask)
        times = torch.tensor([row]).repeat_interleave(size, 1)
        for c in active:
            part, sigma = slice(size * c, size * (c + 1)), sigmas[done[c]]
            clean = []
            for text in prompts(sigma):
                flow = transformer(seen, times, context=text, transformer_options={})
                clean.append(seen[:, :, part] - sigma * flow[:, :, part])
            guided = guide(c, seen[:, :, part], sigma, *clean)
            if keep:
                known, mask = (tensor[:, :, part] for tensor in keep)
                guided = guided * mask + known * (1 - mask)
            velocity = (x[:, :, part] - guided) / sigma
            fresh = x[:, :, part] + (sigmas[done[c] + 1] - sigma) * velocity
            x = torch.cat((x[:, :, : size * c], fresh, x[:, :, size * (c + 1) :]), 2)
            done[c] += 1
    return model.model.process_latent_out(x)


def plain_cfg(chunk, x, sigma, cond, uncond):
    return uncond + 3.0 * (cond - uncond)


def both(sigma):
    return prompt()[0][0], prompt(8)[0][0]


def test_mixed_levels_by_hand(model):
    close(sample(model, ours(MIXED), negative=prompt(8))[0], by_hand(model, plain_cfg, prompts=both), 2e-5)


def test_mixed_levels_with_a_projection(model):
    def zero_star(chunk, x, sigma, cond, uncond):
        one, other = (x - cond).flatten(), (x - uncond).flatten()
        alpha = (one @ other) / (other @ other + 1e-8)
        return plain_cfg(chunk, x, sigma, cond, uncond) + uncond * (alpha - 1) + 3.0 * uncond * (1 - alpha)

    made = sample(GUIDANCE["CFGZeroStar"](model), ours(MIXED), negative=prompt(8))[0]
    close(made, by_hand(model, zero_star, prompts=both), 2e-5)


def momentum():
    """APG with eta 0.5, no norm, momentum -0.5; every chunk has a running average of its own."""
    averages = {}

    def guide(chunk, x, sigma, cond, uncond):
        change = cond - uncond
        averages[chunk] = -0.5 * averages[chunk] + change if chunk in averages else change
        average, unit = averages[chunk], torch.nn.functional.normalize(cond, dim=[-1, -2, -3])
        along = (average * unit).sum(dim=[-1, -2, -3], keepdim=True) * unit
        new = uncond + (average - along) + 0.5 * along + change / 3.0
        return uncond + 3.0 * (new - uncond)

    return guide


def test_mixed_levels_with_a_memory(model):
    made = sample(GUIDANCE["APG with momentum"](model), ours(MIXED), negative=prompt(8))[0]
    close(made, by_hand(model, momentum(), prompts=both), 2e-5)


def test_mixed_levels_with_prompt_ranges(model):
    middle = model.model.model_sampling.percent_to_sigma(0.45)

    def prompts(sigma):
        return prompt(7 if sigma >= middle else 9)[0][0], prompt(8)[0][0]

    made = sample(model, ours(MIXED), positive=ranged(7, 0.0, 0.45) + ranged(9, 0.4501, 1.0), negative=prompt(8))[0]
    close(made, by_hand(model, plain_cfg, prompts=prompts), 2e-5)


def test_mixed_levels_with_a_mask(model):
    start = masked()
    made = sample(model, ours(MIXED), negative=prompt(8), start=start)[0]
    known = model.model.process_latent_in(start["samples"])
    expected = by_hand(model, plain_cfg, prompts=both, start=start, keep=(known, start["noise_mask"]))
    close(made, expected, 2e-5)
    close(made[..., : WIDTH // 16], start["samples"][..., : WIDTH // 16])


class Counted:
    """Evaluations of conditioning entries by the model itself."""

    def __init__(self, model, read_level):
        self.model, self.rows, self.read_level = model.clone(), 0, read_level
        self.model.add_wrapper_with_key("diffusion_model", "test", self)

    def __call__(self, executor, x, t, *args, **kwargs):
        self.rows += x.shape[0]
        if self.read_level:
            assert args[3]["sigmas"].numel() == 1
        return executor(x, t, *args, **kwargs)


def test_chunks_share_a_pass_unless_something_reads_the_level(model):
    """3 chunks of 4 steps, 2 ticks apart: 8 ticks, 12 chunk steps."""
    counted, reading = Counted(model, False), Counted(model, True)
    plain = sample(model, ours(MIXED), negative=prompt(8))[0]
    for watch, passes in ((counted, 8), (reading, 12)):
        assert torch.equal(sample(watch.model, ours(MIXED), negative=prompt(8))[0], plain)
        assert watch.rows == 2 * passes
    skipping = GUIDANCE["SkipLayerGuidanceDiTSimple in part"](model)
    assert not torch.allclose(sample(skipping, ours(MIXED), negative=prompt(8))[0], plain, atol=1e-3)


@pytest.mark.parametrize("plan", [STAGGERED, MIXED, BLOCKWISE], ids=["staggered", "mixed", "blockwise"])
@pytest.mark.parametrize("name", [name for name in GUIDANCE if name != "PerpNeg"])
def test_guidance_nodes_run_everywhere(model, name, plan):
    assert sample(GUIDANCE[name](model), ours(plan), negative=prompt(8))[0].isfinite().all()


@pytest.mark.parametrize("name", ["APG with momentum", "SkipLayerGuidanceDiT", "SkipLayerGuidanceDiTSimple"])
def test_a_chunk_does_not_feel_the_guidance_of_later_ones(model, name):
    """The first chunk of a block-causal video is the video that it would be alone, whatever guidance remembers."""
    patched = GUIDANCE[name](model)
    noise = type("Fixed", (), {"seed": 1, "generate_noise": lambda self, start: same_frames(start["samples"])})()
    alone = sample(patched, ours({**STAGGERED}), negative=prompt(8), start=latent(5), noise=noise)[0]
    close(sample(patched, ours(STAGGERED), negative=prompt(8), noise=noise)[0][:, :, :2], alone)


def same_frames(like):
    """Noise whose first frames do not depend on how many there are."""
    draw = torch.Generator().manual_seed(3)
    frames = [torch.randn(1, 16, 1, *like.shape[-2:], generator=draw) for _ in range(like.shape[2])]
    return torch.cat(frames, 2)


def test_hook_keyframes_are_refused_where_the_level_rises_again(model):
    positive = hooked(prompt(), (0.0, 1.0), (0.5, -1.0))
    for plan in (BLOCKWISE, STAGGERED, MIXED):
        with pytest.raises(SettingError, match="hooks: got 'keyframes of hooks', accepted: one keyframe"):
            sample(model, ours(plan), positive=positive, negative=prompt(8))
    assert sample(model, ours(BLOCKWISE), positive=hooked(prompt()), negative=prompt(8))[0].isfinite().all()


@pytest.mark.parametrize("name", ["SkipLayerGuidanceDiT", "SkipLayerGuidanceDiT rescaled", "CFGZeroStar"])
def test_residuals_with_guidance(model, name):
    """A block that guidance skips is no obstacle; evaluations that come and go are refused by name."""
    patched = reuse(GUIDANCE[name](model), policy="schedule", computed_steps="0, 1, 3", quantity="residual")
    if name == "SkipLayerGuidanceDiT rescaled":  # begins between the computed step and the reused one
        with pytest.raises(SettingError, match="reused quantity: got 'residual', accepted: velocity"):
            sample(patched, ours(STAGGERED), negative=prompt(8))
    else:
        assert sample(patched, ours(STAGGERED), negative=prompt(8))[0].isfinite().all()


def test_regional_conditioning(model):
    """A mask of a prompt holds for the chunk's own frames."""
    mask = torch.zeros(1, HEIGHT // 8, WIDTH // 8)
    mask[..., : WIDTH // 16] = 1
    (left,) = host_nodes.ConditioningSetMask().append(prompt(9), mask, "default", 1.0)
    made, hosts = (
        sample(model, sampler, positive=prompt() + left, negative=prompt(8))[0] for sampler in (ours(LEVEL), EULER)
    )
    close(made, hosts)
    assert sample(model, ours(STAGGERED), positive=prompt() + left, negative=prompt(8))[0].isfinite().all()
