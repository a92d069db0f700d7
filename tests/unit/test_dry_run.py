"""The dry run against the run itself: same memory, same operations, whatever it left out as known already."""

from __future__ import annotations

import json

import pytest
import torch

from flowcache_core.commands import cost
from flowcache_core.dry_run import forwards
from flowcache_core.dry_run.memory import Ledger
from flowcache_core.dry_run.run import KV, WEIGHTS, Subject, dry_run
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanConfig, WanTransformer
from flowcache_core.plan import staggered
from flowcache_core.report.events import RunStarted
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.schedule import shifted

CONFIG = WanConfig(dim=96, ffn_dim=192, num_layers=2, num_heads=3, text_dim=24, freq_dim=32)
SETTINGS = EngineSettings(
    staggered(8, 2, 6, 2), shifted(6, 5.0), policy=StaticSchedule(warmup_steps=1, computed=(0, 3)),
    kv=KVSettings(budget=1.0, compressor=Recent()),
)  # fmt: skip


def build(device: str) -> tuple[WanTransformer, WanDenoiser]:
    with torch.device(device):
        model = WanTransformer(CONFIG).eval().requires_grad_(False)
        texts = [torch.ones(1, 8, 24) for _ in range(2)]
    return model, WanDenoiser(model, {0: texts}, 3.0)


SUBJECT = Subject(build, (SETTINGS,), 16, 16)


def test_peak_is_that_of_a_real_run():
    """Every real allocation of the same run on the CPU, entered in the same way."""
    model, denoiser = build("cpu")
    ledger = Ledger()
    with ledger:
        ledger.claim(WEIGHTS, [*model.parameters(), *model.buffers()])
        generate(denoiser, SETTINGS, torch.randn(1, 16, 8, 16, 16))
    real, dry = ledger.peaks["cpu"].bytes, dry_run(SUBJECT, "cpu").memory["cpu"].bytes
    assert dry == pytest.approx(real, rel=0.1)


def test_parts_are_what_is_known_of_them():
    result = dry_run(SUBJECT)
    parts = result.memory["meta"].parts
    with torch.device("meta"):
        weights = sum(-(-p.nbytes // 512) * 512 for p in WanTransformer(CONFIG).parameters())
    assert parts[WEIGHTS] == weights
    started = next(event for event in result.events if isinstance(event, RunStarted))
    assert parts[KV] == pytest.approx(started.kv_bytes, rel=0.01)
    assert sum(parts.values()) == result.memory["meta"].bytes


def test_a_counted_forward_costs_what_one_that_is_run_does(monkeypatch):
    short = dry_run(SUBJECT)
    assert short.forwards_counted > 0 and short.forwards_run > 0
    monkeypatch.setattr(forwards, "variety", lambda denoiser, item, cache: (object(),))
    whole = dry_run(SUBJECT)
    assert whole.forwards_counted == 0 and whole.forwards_run == short.forwards_run + short.forwards_counted
    assert whole.flops == short.flops
    assert whole.memory["meta"].bytes == pytest.approx(short.memory["meta"].bytes, rel=0.02)


def test_kv_kept_on_the_host_moves_to_it():
    kv = KVSettings(budget=1.0, compressor=Recent(), device="cpu")
    settings = EngineSettings(SETTINGS.plan, SETTINGS.schedule, kv=kv)
    result = dry_run(Subject(build, (settings,), 16, 16))
    assert KV in result.memory["cpu"].parts and KV not in result.memory["meta"].parts
    assert result.moved["device to host"] > 0 and result.moved["host to device"] > result.moved["device to host"]


def test_the_command_prints_one_object(capsys):
    assert cost.main(["--model", "self-forcing-1.3b", "--dry-run", "--chunks", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["memory"]["device"]["parts"][WEIGHTS] == pytest.approx(2 * 1.419e9, rel=0.01)
    assert result["syncs_per_step"] < 1 and result["forwards_run"] < result["steps"] + 2


@pytest.mark.parametrize("given", [["--policy", "never"], ["--rescale"], ["--budget-total", "0"]])
def test_arguments_that_it_does_not_take_are_refused(capsys, given):
    with pytest.raises(SystemExit, match="2"):
        cost.main(["--model", "self-forcing-1.3b", "--dry-run", *given])
    assert given[0].strip("-").replace("-", "_") in capsys.readouterr().err


def test_arguments_of_the_dry_run_are_refused_without_it(capsys):
    with pytest.raises(SystemExit, match="2"):
        cost.main(["--model", "skyreels-v2-1.3b-540p", "--kv-dtype", "fp8"])
    assert "kv_dtype" in capsys.readouterr().err
