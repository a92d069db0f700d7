"""The laws of a run on a real device; one line without one."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device here", allow_module_level=True)

from flowcache_core.engine import EngineSettings, generate
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.plan import staggered
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.schedule import shifted
from flowcache_core.sparse.settings import SparseSettings
from flowcache_core.sparse.xattention import XAttention

CUDA = torch.device("cuda")
CONFIG = WanConfig(dim=384, ffn_dim=512, num_layers=4, num_heads=3, text_dim=64, freq_dim=32)
PLAIN = EngineSettings(staggered(12, 2, 6, 2), shifted(6, 5.0))
FIXED = StaticSchedule(warmup_steps=1, computed=(0, 3))


@pytest.fixture(scope="module")
def model() -> WanTransformer:
    torch.manual_seed(0)
    made = WanTransformer(CONFIG)
    torch.nn.init.normal_(made.head.head.weight, std=0.1)
    return made.to(CUDA, torch.bfloat16).eval().requires_grad_(False)


def run(model: WanTransformer, settings: EngineSettings) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    texts = [torch.randn(1, 16, 64, generator=draw).to(CUDA) for _ in range(2)]
    noise = torch.randn(1, 16, settings.plan.frames, 16, 16, generator=draw).to(CUDA)
    return generate(WanDenoiser(model, {0: texts}, 3.0), settings, noise)


def test_threshold_0_and_a_roomy_budget_change_no_bit(model):
    expected = run(model, PLAIN)
    assert expected.isfinite().all()
    assert torch.equal(run(model, replace(PLAIN, policy=Chunkwise(warmup_steps=1, threshold=0.0))), expected)
    assert torch.equal(run(model, replace(PLAIN, kv=KVSettings(budget=6.0, compressor=Recent()))), expected)


@pytest.mark.parametrize("budget", [None, 1.0])
def test_kv_on_the_cpu_changes_no_bit(model, budget):
    kv = KVSettings(budget=budget, compressor=Recent() if budget else None)
    here = run(model, replace(PLAIN, policy=FIXED, kv=kv))
    assert torch.equal(run(model, replace(PLAIN, policy=FIXED, kv=replace(kv, device="cpu"))), here)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("budget", [None, 1.0])
def test_where_k_v_lies_changes_no_bit_in_any_format(model, dtype, budget):
    kv = KVSettings(budget=budget, compressor=Recent() if budget else None, dtype=dtype)
    here = run(model, replace(PLAIN, policy=FIXED, kv=kv))
    assert torch.equal(run(model, replace(PLAIN, policy=FIXED, kv=replace(kv, device="cpu"))), here)


def test_k_v_on_the_host_takes_two_layers_on_the_device_and_leaves_nothing(model):
    def peak(kv: KVSettings) -> int:
        torch.cuda.reset_peak_memory_stats()
        run(model, replace(PLAIN, policy=FIXED, kv=kv))
        return torch.cuda.max_memory_allocated()

    run(model, replace(PLAIN, policy=FIXED))
    gc.collect()
    before = torch.cuda.memory_allocated()
    there, away = peak(KVSettings()), peak(KVSettings(device="cpu"))
    whole = 2 * 2 * 2 * 12 * 64 * CONFIG.dim * CONFIG.num_layers  # bf16, K and V, branches, frames, tokens, values
    assert away <= there - whole + 2 * whole // CONFIG.num_layers + whole // CONFIG.num_layers // 8
    gc.collect()
    assert torch.cuda.memory_allocated() == before


def test_the_next_layer_s_k_v_is_copied_on_another_stream(model):
    """Copies to the device run on a stream of their own: some overlap the model's kernels."""
    kv = replace(PLAIN, policy=FIXED, kv=KVSettings(device="cpu"))
    run(model, kv)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(model, kv)
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    copies = {event.device_resource_id for event in events if "Memcpy HtoD" in event.name}
    kernels = {event.device_resource_id for event in events if "Memcpy" not in event.name}
    assert copies - kernels


@pytest.mark.parametrize("kv", [KVSettings(), KVSettings(device="cpu")], ids=["beside", "on the host"])
def test_a_fixed_list_waits_for_nothing(model, kv):
    """torch itself raises at every sync, from the first step to the last."""
    settings, mode = replace(PLAIN, policy=FIXED, kv=kv), torch.cuda.get_sync_debug_mode()
    run(model, settings)  # libraries are loaded at first use, which may wait
    allowed: list[object] = []

    def observe(event: object) -> None:
        name = type(event).__name__
        if name in ("StepTaken", "RunFinished"):  # rotations and texts are made in the first step
            torch.cuda.set_sync_debug_mode("error" if name == "StepTaken" else mode)
            allowed.append(event)

    draw = torch.Generator().manual_seed(1)
    texts = [torch.randn(1, 16, 64, generator=draw).to(CUDA) for _ in range(2)]
    noise = torch.randn(1, 16, 12, 16, 16, generator=draw).to(CUDA)
    try:
        generate(WanDenoiser(model, {0: texts}, 3.0), settings, noise, observe=observe)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert len(allowed) == PLAIN.plan.total_steps + 1


def test_sparse_attention_that_keeps_everything_changes_no_bit(model):
    sparse = SparseSettings(XAttention(64, 1.0, 8), dense_chunks=0, dense_lasting=False)
    assert torch.equal(run(model, replace(PLAIN, sparse=sparse)), run(model, PLAIN))


def test_the_gpus_kernel_attends_as_the_reference_does(model):
    """Where neither compiles, the run is dense and says so, which this does not take for sparse."""
    settings = replace(PLAIN, sparse=SparseSettings(XAttention(64, 0.6, 8), dense_chunks=1))
    gather = run(model, replace(settings, sparse=replace(settings.sparse, engine="gather")))
    flex = run(model, replace(settings, sparse=replace(settings.sparse, engine="flex")))
    assert not torch.equal(flex, run(model, PLAIN))
    assert (flex - gather).norm() <= 0.05 * gather.norm()


def test_nothing_is_left_of_a_run(model):
    run(model, PLAIN)
    gc.collect()
    before = torch.cuda.memory_allocated()
    run(model, replace(PLAIN, policy=FIXED))
    gc.collect()
    assert torch.cuda.memory_allocated() == before


def test_memory_does_not_grow_with_the_video(model):
    def peak(chunks: int) -> int:
        torch.cuda.reset_peak_memory_stats()
        kv = KVSettings(budget=1.0, compressor=Recent())
        run(model, replace(PLAIN, plan=staggered(2 * chunks, 2, 6, 2), kv=kv))
        return torch.cuda.max_memory_allocated()

    latents = 16 * 16 * 16 * 4 * 2 * 8 * 4  # noise and window of eight more chunks, with room to spare
    assert peak(16) - peak(8) < 2 * latents
