"""Runs with the host's own AR sampler: patched models, and what watches their calls."""

from __future__ import annotations

from comfy.patcher_extension import WrappersMP
from hostkit import (
    HEIGHT,
    WIDTH,
    module,
)

settings = module("nodes.adapters.run.settings")
outer = module("nodes.adapters.run.outer")
errors = module("flowcache_core.errors")
reuse = module("flowcache_core.reuse")
build = module("flowcache_core.reuse.build")
presets = module("flowcache_core.presets")
kv = module("flowcache_core.kv")
KVSettings = module("flowcache_core.kv.settings").KVSettings
host_ar = module("nodes.adapters.host_ar.attach")

FRAMES = 6  # latent frames of hostkit's default length: two chunks of 3
TOKENS = (WIDTH // 16) * (HEIGHT // 16)  # per latent frame
LONG = 45  # 12 latent frames


def with_reuse(model, policy, quantity=None):
    return outer.with_reuse(model, settings.ReuseSettings(policy, quantity or reuse.QUANTITIES["velocity"]()))


def with_kv(model, budget, compressor=None, **fields):
    return outer.with_kv(model, KVSettings(budget, compressor, **fields))


def skipping(*computed, **fields):
    """Computes exactly these own steps of every chunk."""
    return reuse.POLICIES["schedule"](computed=computed, always_last=False, **fields)


def chunkwise(threshold, **fields):
    return reuse.POLICIES["chunkwise"](threshold=threshold, warmup_steps=1, **fields)


class Watch:
    """Every APPLY_MODEL call of a run: noise level, first frame, latents in and out, and the K/V around it."""

    def __init__(self, model, keep_kv=False):
        self.model, self.keep_kv, self.calls = model.clone(), keep_kv, []
        self.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", self)

    def __call__(self, executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        state = transformer_options["ar_state"]
        caches = state["kv_caches"]
        call = {"sigma": float(t[0]), "start": state["start_frame"], "x": x.clone()}
        call["end_before"] = [cache["end"] for cache in caches]
        call["allocated"] = [cache["k"].shape[1] for cache in caches]
        call["before"] = [{n: c[n].clone() for n in "kv"} for c in caches] if self.keep_kv else []
        out = executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        call["end_after"] = [cache["end"] for cache in caches]
        call["after"] = [{n: c[n].clone() for n in "kv"} for c in caches] if self.keep_kv else []
        self.calls.append({**call, "out": out.clone()})
        return out


class Forwards:
    """Counts calls of the diffusion model itself, by noise level."""

    def __init__(self, model):
        self.transformer, self.timesteps = model.model.diffusion_model, []

    def __enter__(self):
        self.hook = self.transformer.register_forward_pre_hook(lambda _, args: self.timesteps.append(float(args[1][0])))
        return self

    def __exit__(self, *exc):
        self.hook.remove()

    @property
    def clean(self):
        return sum(t == 0 for t in self.timesteps)


def methods(model):
    """Every method on the model that was put there by hand."""
    transformer = model.model.diffusion_model
    modules = {"": transformer, **{f"blocks.{i}": block for i, block in enumerate(transformer.blocks)}}
    modules |= {f"blocks.{i}.attn": block.self_attn for i, block in enumerate(transformer.blocks)}
    return {f"{name}.{key}" for name, m in modules.items() for key, value in vars(m).items() if callable(value)}
