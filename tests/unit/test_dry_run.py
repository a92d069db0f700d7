"""The dry run against the run itself: same memory, same operations, whatever it left out as known already."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import measured_memory
import pytest
import torch

from flowcache_core.commands import cost
from flowcache_core.dry_run import forwards
from flowcache_core.dry_run.memory import Ledger
from flowcache_core.dry_run.models import config_of, names
from flowcache_core.dry_run.run import KV, WEIGHTS, Subject, dry_run
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanTransformer
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


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peak of resident memory on this system")
@pytest.mark.parametrize("name", names())
def test_every_model_that_is_offered_has_a_size(name):
    config = config_of(name)
    assert config.num_layers >= 30 and config.num_heads >= 12
    assert "mini-magi" not in names()


@pytest.mark.parametrize("name", ["mini", "scenes"])
def test_peak_is_the_resident_memory_of_a_process(name):
    """A process of its own runs the bundled model; what it rises by is what the dry run said, within 10 %."""
    # What is freed goes back at once: the allocator's own losses are no part of the estimate.
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    script = Path(measured_memory.__file__)
    paths = {"PYTHONPATH": str(script.parents[2])}
    command = [sys.executable, str(script), name, "6"]
    told = subprocess.run(command, env={**os.environ, **at_once, **paths}, capture_output=True, text=True, check=True)
    estimate = dry_run(measured_memory.subject(name, 6), "cpu").memory["cpu"].bytes
    assert estimate == pytest.approx(int(told.stdout), rel=0.1)


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
    assert result["pflops_counted_by_torch"] == pytest.approx(result["pflops"], rel=0.03)
    assert result["computed_steps"] == result["steps"] == 8
    assert result["syncs_per_step"] < 1 and result["forwards_run"] < result["steps"] + 2


@pytest.fixture
def own_file(tmp_path):
    """A user's file: SkyReels-V2's keys with two layers."""
    path, config = tmp_path / "own.safetensors", replace(config_of("skyreels-v2-14b-540p"), num_layers=2)
    with torch.device("meta"):
        named = {key: tuple(value.shape) for key, value in WanTransformer(config).state_dict().items()}
    header, at = {}, 0
    for key, shape in named.items():
        size = 2 * math.prod(shape)
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:  # a sparse file: all of its size, next to nothing on the disk
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return path


def test_a_users_own_file_gives_the_sizes(capsys, own_file):
    name = "skyreels-v2-14b-540p"
    given = ["--model", name, "--preset", "fast", "--dry-run", "--chunks", "1", "--weights", str(own_file), "--json"]
    assert cost.main(given) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == f"own.safetensors as {name}" and result["steps"] == 50 and result["computed_steps"] == 34
    assert result["memory"]["device"]["parts"][WEIGHTS] == pytest.approx(own_file.stat().st_size, rel=0.02)
    assert result["pflops_counted_by_torch"] == pytest.approx(result["pflops"], rel=0.03)


def test_a_file_of_another_model_is_refused_by_name(capsys, own_file):
    with pytest.raises(SystemExit, match="2"):
        cost.main(["--model", "magi-1-4.5b", "--dry-run", "--weights", str(own_file)])
    assert "weights own.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--policy", "never"], ["--rescale"], ["--budget-total", "0"]])
def test_arguments_that_it_does_not_take_are_refused(capsys, given):
    with pytest.raises(SystemExit, match="2"):
        cost.main(["--model", "self-forcing-1.3b", "--dry-run", *given])
    assert given[0].strip("-").replace("-", "_") in capsys.readouterr().err


def test_arguments_of_the_dry_run_are_refused_without_it(capsys):
    with pytest.raises(SystemExit, match="2"):
        cost.main(["--model", "skyreels-v2-1.3b-540p", "--kv-dtype", "fp8"])
    assert "kv_dtype" in capsys.readouterr().err
