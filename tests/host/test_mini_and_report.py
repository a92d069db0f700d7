"""The bundled model in the host's classes, and the report of a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from comfy_extras.nodes_ar_video import EmptyARVideoLatent
from hostkit import NODES, STAGGERED, close, compress, latent, load, module, node, ours, reuse, sample, sigmas_of

core = module("flowcache_core.mini")
Page = module("nodes.adapters.shown.page").Page


@pytest.fixture(scope="module")
def mini():
    return NODES["FlowCacheMiniModel"].execute().args


def test_mini_prompt_is_the_cores():
    assert torch.equal(
        node("MiniPrompt", text="a red circle moving right")[0][0], core.encode_prompt("a red circle moving right")
    )


def test_mini_video_in_the_host_is_the_cores(mini):
    """The same weights, noise and settings in the host and in the core give the same latents and the same pixels."""
    model, vae = mini
    text = "a red circle moving right"
    start = EmptyARVideoLatent.execute(64, 64, 21, 1).args[0]
    plan = {"plan": "blockwise", "chunk_frames": 3, "solver": "euler", "clean_pass": True}
    noise = torch.randn(start["samples"].shape, generator=torch.Generator().manual_seed(3))
    fixed = type("Fixed", (), {"seed": 3, "generate_noise": lambda self, latent: noise})()
    sigmas = sigmas_of(model, 8)
    host = sample(model, ours(plan), positive=node("MiniPrompt", text=text), start=start, sigmas=sigmas, noise=fixed)[0]

    own = core.load_mini()
    engine = module("flowcache_core.engine")
    settings = engine.EngineSettings(
        plan=module("flowcache_core.plan").blockwise(6, 3, 8),
        schedule=module("flowcache_core.schedule").from_sigmas(sigmas.tolist()),
        clean_pass=True,
    )
    denoiser = module("flowcache_core.models.wan.denoiser").WanDenoiser(
        own.transformer, {0: (core.encode_prompt(text),)}
    )
    expected = engine.generate(denoiser, settings, noise)
    close(host, model.model.process_latent_out(expected), 1e-3)
    with torch.inference_mode():
        pixels = vae.decode(host)
    assert pixels.shape[1:] == (21, 64, 64, 3) and 0.02 < float(pixels.std()) < 0.5


def test_mini_vae_round_trip(mini):
    _, vae = mini
    images = torch.full((1, 64, 64, 3), 0.5)
    assert vae.encode(images).shape == (1, 16, 1, 8, 8)


class TestReport:
    @pytest.fixture(scope="class")
    def run(self):
        model = compress(reuse(load(), threshold=1.5), 1)
        out = sample(model, start=latent(45), sigmas=sigmas_of(load(), 8))[0]
        text, picture, document = NODES["FlowCacheReport"].execute(model=model, latent={"samples": out}).args
        return module("nodes.adapters.run.settings").last_record(model), text, picture, json.loads(document)

    def test_json_is_the_record(self, run):
        record, _, _, document = run
        assert (
            document["computed_steps"] == record.computed_steps and document["reused_steps"] == record.reused_steps > 0
        )
        assert len(document["steps_taken"]) == record.total_steps == 32
        assert document["kv_bytes_peak"] == record.kv_bytes and len(document["compressions"]) == 2

    def test_text_has_headline_and_map(self, run):
        record, text, _, _ = run
        assert f"computed {record.computed_steps} of 32" in text and "chunk 3 |" in text

    def test_picture_shows_every_cell_in_its_colour(self, run):
        record, _, picture, _ = run
        theme = module("nodes.adapters.shown.theme")
        assert (
            picture.shape[0] == 1 and picture.shape[3] == 3 and 0 <= float(picture.min()) <= float(picture.max()) <= 1
        )
        seen = {tuple(colour) for colour in (picture[0] * 255).round().byte().reshape(-1, 3).unique(dim=0).tolist()}
        for kind in {k for row in record.kinds for k in row}:
            assert tuple(bytes.fromhex(theme.DARK.cells[kind][1:])) in seen

    def test_picture_of_long_and_of_bidirectional_runs(self):
        draw = module("nodes.adapters.shown.picture").draw
        model = compress(load(), 2)
        sample(model, ours({"plan": "blockwise", "chunk_frames": 1, "solver": "renoise", "clean_pass": True}),
               start=latent(1021, width=16, height=16), sigmas=sigmas_of(model, 1))  # fmt: skip
        assert (
            draw(module("nodes.adapters.run.settings").last_record(model), lambda _: "a title", Page()).shape[1] < 1500
        )
        plain = reuse(load())
        sample(plain, ours({**STAGGERED, "attention": "bidirectional"}))
        picture = draw(module("nodes.adapters.run.settings").last_record(plain), lambda _: "a title", Page(dark=False))
        assert np.isfinite(picture.numpy()).all()


def test_report_says_where_the_run_lies_on_the_calibrated_curve(mini):
    model, _ = mini
    reusing = NODES["FlowCacheChunkwiseReuse"].execute(model=model, preset={"preset": "mini: balanced"}).args[0]
    plan = {"plan": "blockwise", "chunk_frames": 3, "solver": "euler", "clean_pass": True}
    positive = node("MiniPrompt", text="a red circle moving right")
    start = latent(21, height=64, width=64)
    out = sample(reusing, ours(plan), positive=positive, start=start, sigmas=sigmas_of(model, 50))[0]
    text = NODES["FlowCacheReport"].execute(model=reusing, latent={"samples": out}).args[0]
    assert "\n0.40 of the steps computed; expected " in text and " dB on this model (median" in text
