"""The estimate before a run against the run gone through whole, and against closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowcache_core.calibrate.measured_heads import MeasureHeads
from flowcache_core.cost.shapes import WanShape
from flowcache_core.dry_run.estimate import Model, estimate
from flowcache_core.dry_run.models import config_of
from flowcache_core.dry_run.run import Subject, dry_run
from flowcache_core.engine import EngineSettings
from flowcache_core.errors import SettingError
from flowcache_core.kv.auto import AutoKV
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.size import peak_bytes
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.plan import blockwise, staggered, window
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.never import Never
from flowcache_core.reuse.quantity import Residual
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.schedule import magi, shifted
from flowcache_core.sparse.mask_reuse import MaskReuse
from flowcache_core.sparse.method import SparseMethod
from flowcache_core.sparse.settings import SparseSettings
from flowcache_core.sparse.top_k import TopK
from flowcache_core.sparse.xattention import XAttention

CONFIG = WanConfig(dim=96, ffn_dim=192, num_layers=4, num_heads=3, text_dim=24, freq_dim=32)
FIXED = StaticSchedule(warmup_steps=1, computed=(0, 3))
PLAIN = EngineSettings(staggered(8, 2, 6, 2), shifted(6, 5.0), policy=FIXED)
CASES = {
    "budget": replace(PLAIN, kv=KVSettings(budget=1.0, compressor=Recent())),
    "blockwise": replace(PLAIN, plan=blockwise(8, 2, 6), clean_pass=True),
    "residual": replace(PLAIN, quantity=Residual()),
    "half the format": replace(PLAIN, kv=KVSettings(dtype=torch.float16)),
    "on the host": replace(PLAIN, kv=KVSettings(device="cpu")),
    "bidirectional": replace(PLAIN, attention="bidirectional"),
}


def build(device: str) -> tuple[WanTransformer, WanDenoiser]:
    with torch.device(device):
        model = WanTransformer(CONFIG).eval().requires_grad_(False)
        texts = [torch.ones(1, 512, 24) for _ in range(2)]
    return model, WanDenoiser(model, {0: texts}, 3.0)


WEIGHTS = sum(p.nbytes for p in build("meta")[0].parameters())
MODEL = Model(CONFIG, WEIGHTS, torch.float32, 2, 2)


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_memory_is_that_of_the_run_gone_through_whole(settings):
    whole = dry_run(Subject(build, (settings,), 32, 32))
    peak = whole.memory["meta"]
    found = estimate(MODEL, [settings], (1, 16, 8, 32, 32))
    # A host holds no prepared texts, which small models have more of than of weights.
    assert found.peak_bytes == pytest.approx(peak.bytes - peak.parts.get("text", 0), rel=0.1)
    assert found.flops == pytest.approx(whole.flops, rel=0.2)
    assert ("K/V" in found.memory) == (settings.kv.device is None)


def test_k_v_of_a_published_size():
    """A chunk of the 4.5B at 720 x 720: 12,150 tokens, 4096 bytes per token and layer, 34 layers."""
    model = Model(config_of("magi-1-4.5b"), 0, torch.bfloat16, nearly_clean=True)
    plan = window(60, 6, 64, 4)
    found = estimate(model, [EngineSettings(plan, magi(64), clean_pass=True)], (1, 16, 60, 90, 90))
    assert found.kv_bytes == found.whole_kv_bytes == 10 * 12150 * 4096 * 34
    assert found.flops == pytest.approx(310.1e15, rel=0.01)


def test_what_the_video_decides_is_not_sure():
    looking = replace(PLAIN, policy=Chunkwise(warmup_steps=1, threshold=0.1))
    most = estimate(MODEL, [looking], (1, 16, 8, 32, 32))
    assert not most.sure and most.computed_steps == most.total_steps == 24 and most.flops == most.whole_flops
    published = estimate(MODEL, [looking], (1, 16, 8, 32, 32), computed=2)
    assert not published.sure and published.computed_steps == 8 and published.flops < most.flops
    fixed = estimate(MODEL, [PLAIN], (1, 16, 8, 32, 32))
    assert fixed.sure and fixed.computed_steps < 24


def test_two_videos_cost_twice():
    one, two = (estimate(MODEL, [PLAIN], (batch, 16, 8, 32, 32)) for batch in (1, 2))
    assert two.flops == 2 * one.flops and two.kv_bytes == 2 * one.kv_bytes
    assert two.memory["activations"] == pytest.approx(2 * one.memory["activations"], rel=0.1)


class TestSparseAttention:
    RUN = replace(PLAIN, plan=blockwise(8, 2, 6), policy=Never())
    LATENTS = (1, 16, 8, 32, 32)

    def flops(self, method: SparseMethod, **fields: object) -> float:
        settings = replace(self.RUN, sparse=SparseSettings(method, **fields))  # type: ignore[arg-type]
        return estimate(MODEL, [settings], self.LATENTS).flops

    @pytest.mark.parametrize(("dense_chunks", "dense_steps"), [(2, 0), (0, 0), (1, 2), (4, 0)])
    def test_what_is_left_out_is_not_counted(self, dense_chunks, dense_steps):
        """Written out: two branches of four layers, 512 tokens a chunk, which see all chunks up to their own."""
        found = self.flops(XAttention(), dense_chunks=dense_chunks, dense_steps=dense_steps)
        contexts = [512 * (chunk + 1) for chunk in range(4) if chunk + 1 > dense_chunks]
        left_out = 1 - 0.35 - 0.5 / XAttention().stride
        saved = 2 * (6 - dense_steps) * left_out * sum(4 * 4 * 512 * context * CONFIG.dim for context in contexts)
        assert self.flops(XAttention(p=1.0)) - found == pytest.approx(saved, rel=1e-6)

    def test_the_usual_density_is_said_where_it_stands_for_p(self):
        def said(method: SparseMethod) -> tuple[str, ...]:
            return estimate(MODEL, [replace(self.RUN, sparse=SparseSettings(method))], self.LATENTS).attention

        (note,) = said(XAttention(p=0.7))
        assert "density 0.35" in note and "whatever p is" in note
        assert said(TopK(density=0.5)) == said(XAttention(p=1.0)) == ()

    def test_a_density_that_is_stated_is_the_whole_run_s(self):
        """The forwards that are sparse make up for those that stay dense; choosing comes on top."""
        found, whole = self.flops(TopK(density=0.5), dense_chunks=1), self.flops(TopK(density=1.0))
        pairs = [512 * 512 * (chunk + 1) for chunk in range(4)]
        choosing = 0.5 / TopK().stride * sum(pairs[1:])
        saved = 2 * 6 * 4 * 4 * CONFIG.dim * (0.5 * sum(pairs) - choosing)
        assert whole - found == pytest.approx(saved, rel=1e-6)

    def test_masks_that_serve_again_take_memory(self):
        settings = SparseSettings(XAttention(), reuse=MaskReuse())
        found = estimate(MODEL, [replace(self.RUN, sparse=settings)], self.LATENTS)
        blocks = 512 // 128 * (2048 // 128) * 4 * 3 * 2  # of a chunk and the whole video, layers, heads, branches
        assert found.memory["masks"] >= blocks and found.density == 0.35
        plain = estimate(MODEL, [replace(self.RUN, sparse=SparseSettings())], self.LATENTS)
        assert "masks" not in plain.memory and plain.whole_flops == found.whole_flops

    def test_megabytes_become_shares_of_layers(self):
        """As in the run: blocks are chosen of all heads of a layer at once."""
        spec, plan = MODEL.spec(self.LATENTS), self.RUN.plan
        half = peak_bytes(spec, KVSettings(), plan) / 2e6
        auto = replace(self.RUN, kv=AutoKV(megabytes=half))
        found = estimate(MODEL, [replace(auto, sparse=SparseSettings())], self.LATENTS)
        layers = estimate(MODEL, [replace(auto, kv=AutoKV(megabytes=half, heads=False))], self.LATENTS)
        assert (found.kv_bytes, found.kv_choice) == (layers.kv_bytes, layers.kv_choice)


class TestMeasuredHeads:
    """Three heads of four layers, two candidates below 1: 24 forwards a sample."""

    RUN = replace(PLAIN, plan=blockwise(8, 2, 6), policy=Never())
    MEASURE = MeasureHeads(block=128, samples=2, candidates=(0.3, 0.7), dense_chunks=1)

    @pytest.mark.parametrize("policy", [Never(), FIXED], ids=["every step", "reused ones"])
    @pytest.mark.parametrize("batch", [1, 2])
    def test_their_forwards_are_counted(self, policy, batch):
        runs, latents = [replace(self.RUN, policy=policy)], (batch, 16, 8, 32, 32)
        plain, measured = (estimate(MODEL, runs, latents, measure=one) for one in (None, self.MEASURE))
        # The first and the last chunk whose context is longer than one.
        forwards = [WanShape.of(CONFIG).forward(512, context) for context in (1024, 2048)]
        assert measured.flops - plain.flops == pytest.approx(batch * 24 * 2 * sum(forwards))
        assert measured.attention == ("heads are measured at 2 steps: 48 more forwards of a chunk are counted",)
        assert (measured.computed_steps, measured.whole_flops) == (plain.computed_steps, plain.whole_flops)

    def test_what_the_run_will_refuse_is_refused(self):
        for run, measure, field in (
            (self.RUN, replace(self.MEASURE, dense_chunks=4), "dense_chunks"),
            (replace(self.RUN, attention="bidirectional"), self.MEASURE, "attention"),
        ):
            with pytest.raises(SettingError, match=f"^{field}: got"):
                estimate(MODEL, [run], (1, 16, 8, 32, 32), measure=measure)
