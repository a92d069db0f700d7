"""Whole videos on a device, from noise to pixels: both pipelines, both autoencoders as streams, shipped presets."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from justified import INTO, check_copies, check_syncs

from flowcache_core import schedule
from flowcache_core.engine import EngineSettings
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.magi.vae import MagiVAE, MagiVAEConfig, Tiling
from flowcache_core.models.wan.vae import WanVAE
from flowcache_core.models.wan.vae_layers import WanVAEConfig
from flowcache_core.plan import staggered
from flowcache_core.presets import load_preset
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.solvers.unipc import UniPC
from flowcache_core.video import magi, skyreels

DEVICE = "pretend"
BACK = f"{DEVICE} to cpu"


def wan_vae() -> WanVAE:
    return tiny.filled(WanVAE(WanVAEConfig(dim=8)), 0.1)  # type: ignore[return-value]


def magi_vae() -> MagiVAE:
    config = MagiVAEConfig(16, 8, embed_dim=256, depth=1, num_heads=2)
    return tiny.filled(MagiVAE(config), 0.1)  # type: ignore[return-value]


def places(count: Any) -> set[tuple[str, str]]:
    return {(copy.direction, copy.site) for copy in count.copies}


def test_the_wan_stream_asks_nothing_of_the_device(count):
    latents = tiny.drawn(1, 16, 5, 2, 2)
    expected = wan_vae().decode(latents, frames_at_once=2)
    vae, there = tiny.on(wan_vae(), DEVICE), latents.to(DEVICE)
    count.copies.clear()
    count.syncs.clear()  # those that brought the weights here
    parts = list(vae.decode_stream(there.split(2, dim=2)))
    assert count.copies == [] and count.syncs == []
    assert torch.equal(torch.cat(parts, 2).cpu(), expected)
    assert torch.equal(vae.encode(expected.to(DEVICE)).cpu(), wan_vae().encode(expected))


def test_the_magi_stream_asks_nothing_of_the_device(count):
    latents, tiling = tiny.drawn(1, 16, 4, 4, 4), Tiling(pixels=16, frames=8)
    expected = magi_vae().decode(latents, tiling)
    vae, there = tiny.on(magi_vae(), DEVICE), latents.to(DEVICE)
    count.copies.clear()
    count.syncs.clear()  # those that brought the weights here
    parts = list(vae.decode_parts(there, tiling))
    assert count.copies == [] and count.syncs == []
    assert torch.equal(torch.cat(parts, 2).cpu(), expected)
    assert torch.equal(vae.encode(expected.to(DEVICE), tiling).cpu(), magi_vae().encode(expected, tiling))


FIXED = StaticSchedule(warmup_steps=1, computed=(0, 3))
# Finished frames are handed out on the CPU; that all values are finite is asked at both ends of a run.
ADDED = {"video/base.py add", "engine/finite.py read"}


def skyreels_video(device: str, **changes: Any) -> Any:
    """Two windows, the second one begun with the end of the first, decoded and encoded again."""
    values = {
        "frames": 13, "base_frames": 9, "overlap_frames": 5, "chunk_frames": 1, "ar_step": 2, "steps": 6, "height": 16,
        "width": 16, "policy": FIXED, "kv": KVSettings(budget=1.0, compressor=Recent()),
    }  # fmt: skip
    settings = skyreels.SkyReelsSettings(**(values | changes))
    prompts = [tiny.drawn(1, 5, 20, seed=seed).to(device) for seed in (1, 2)]
    return skyreels.generate_video(tiny.on(tiny.wan_model(), device), tiny.on(wan_vae(), device), prompts, settings)


def magi_video(device: str) -> Any:
    """Goes on from an image."""
    settings = magi.MagiSettings(
        frames=16, height=16, width=16, steps=8, chunk_frames=2, window_chunks=2, policy=FIXED,
        kv=KVSettings(budget=1.0),
    )  # fmt: skip
    captions = (tiny.drawn(1, 60, 20), torch.ones(1, 60))
    image = tiny.drawn(1, 3, 1, 16, 16).clamp(-1, 1)
    model, vae = tiny.on(tiny.magi_model(), device), tiny.on(magi_vae(), device)
    return magi.generate_video(model, vae, captions, settings, prefix=image, tiling=Tiling(pixels=16, frames=8))


WHOLE_WINDOW = {"attention": "bidirectional", "kv": KVSettings()}


@pytest.mark.parametrize("changes", [{}, WHOLE_WINDOW], ids=["block-causal", "bidirectional"])
def test_a_skyreels_video_is_that_of_the_cpu(count, changes):
    expected, made = skyreels_video("cpu", **changes), skyreels_video(DEVICE, **changes)
    assert torch.equal(made.pixels, expected.pixels) and made.pixels.isfinite().all()
    assert {site for way, site in places(count) if way == BACK} == ADDED


def test_a_magi_video_is_that_of_the_cpu(count):
    expected, made = magi_video("cpu"), magi_video(DEVICE)
    assert torch.equal(made.pixels, expected.pixels) and made.pixels.isfinite().all()
    assert {site for way, site in places(count) if way == BACK} == ADDED
    assert (INTO, "video/magi.py generate_video") in places(count)  # start noise and the image, once each


@pytest.mark.parametrize("name", ["fast", "reference-fast"])
def test_a_shipped_preset_runs_and_its_list_costs_no_sync(count, name):
    preset = load_preset("skyreels-v2-1.3b-540p", name)
    plan = staggered(2, 1, 50, 5)
    engine = EngineSettings(plan, schedule.skyreels(50, 8.0), UniPC(), preset.policy, preset.quantity)
    there = tiny.watched(tiny.wan(DEVICE), engine, DEVICE, count)
    assert there.reused and torch.equal(there.latents, tiny.watched(tiny.wan("cpu"), engine, "cpu").latents)
    check_copies(there.copies)
    check_syncs(there.syncs, looks=False, kept_on_host=False)
