"""Ranks that serve a starter: what is sent comes out the same, and a window on them is the window here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from rank_groups import alive, running
from rank_models import cases
from safetensors.torch import save

from flowcache_core import mini, mini_magi
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.kv.settings import KVSettings
from flowcache_core.noise import host_noise
from flowcache_core.parallel.asked import Begin, MagiRun, ModelFile, WanRun, Window
from flowcache_core.parallel.errors import RankError
from flowcache_core.parallel.message import from_bytes, read, to_bytes, write
from flowcache_core.parallel.session import Session
from flowcache_core.parallel.shape import MeshShape
from flowcache_core.plan import PLANS, blockwise
from flowcache_core.presets import load_preset, models, preset_names
from flowcache_core.report.events import ChunkFinished, StepTaken
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.schedule import magi, shifted
from flowcache_core.sparse.build import CHOICES

STEPS, CHUNKS = 4, 3


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def same(value):
    return from_bytes(to_bytes(value))


# -- messages ---------------------------------------------------------------------------------------------------------


def test_settings_come_out_as_they_went_in():
    for name, case in cases().items():
        assert same(case.settings) == case.settings, name


@pytest.mark.parametrize("model", models())
def test_presets_come_out_as_they_went_in(model):
    for name in preset_names(model):
        preset = load_preset(model, name)
        assert same((preset.policy, preset.quantity)) == (preset.policy, preset.quantity)


def test_plans_and_sparse_methods_come_out_as_they_went_in():
    for kind in PLANS.values():
        plan = kind().plan(48, 4)
        assert same(plan) == plan
    for method in CHOICES.values():
        assert same(method()) == method()


def test_values_come_out_as_they_went_in():
    value = {0: (1, [2.5, None, True], "text", frozenset({3, 1})), "nan": float("inf"), "dtype": torch.bfloat16}
    assert same(value) == value
    for tensor in (torch.zeros(0, 3), torch.randn(2, 3).T, torch.ones(2, dtype=torch.bfloat16), torch.tensor(4)):
        assert torch.equal(same(tensor), tensor) and same(tensor).dtype == tensor.dtype


@dataclass(frozen=True)
class Elsewhere:
    number: int = 1


@pytest.mark.parametrize("value", [Elsewhere(), object(), len, b"bytes", Elsewhere])
def test_what_is_not_ours_is_not_sent(value):
    with pytest.raises(SettingError, match="several GPUs"):
        to_bytes({"policy": value})


@pytest.mark.parametrize("name", ["parallel.shape:mesh_from_text", "parallel.shape:Sequence", "files:Path"])
def test_a_message_makes_settings_only(name):
    forged = save({}, {"value": json.dumps({"@": "made", "class": name, "is": {"text": "2x1"}})})
    with pytest.raises(RankError, match="no settings class"):
        from_bytes(forged)


def test_a_stream_of_messages_ends_between_two():
    stream = BytesIO()
    write(stream, MeshShape(1, 2))
    write(stream, [torch.zeros(3)])
    whole = stream.getvalue()
    stream.seek(0)
    assert read(stream) == MeshShape(1, 2) and read(stream)[0].shape == (3,)
    with pytest.raises(EOFError):
        read(stream)
    with pytest.raises(EOFError):
        read(BytesIO(whole[:-1][: len(whole) // 3]))


# -- sessions ---------------------------------------------------------------------------------------------------------


def mini_file() -> ModelFile:
    heads = mini.load_mini().transformer.config.num_heads
    return ModelFile("wan", str(mini.TRANSFORMER_FILE), heads, heads, torch.float32)


def window(**changes) -> tuple[Window, torch.nn.Module]:
    model = mini.load_mini()
    settings = EngineSettings(blockwise(CHUNKS * 3, 3, STEPS), shifted(STEPS, model.shift), clean_pass=True)
    prompts = {0: (model.encode_prompt("a red circle moving right"), model.encode_prompt(""))}
    run = WanRun(prompts, model.guidance if hasattr(model, "guidance") else 3.0)
    return Window(run, replace(settings, **changes), model.noise(CHUNKS, 1), seed=5), model.transformer


def alone(asked: Window, transformer) -> torch.Tensor:
    denoiser = asked.run.denoiser(transformer, torch.device("cpu"))
    source = host_noise(asked.seed, asked.settings.plan.prefix_chunks)
    return generate(denoiser, asked.settings, asked.noise, prefix=asked.prefix, noise_source=source)


def session(shape: MeshShape, model: ModelFile | None = None, timeout: float = 60.0, **more) -> Session:
    return Session(Begin(model or mini_file(), shape, "cpu", timeout), **more)


class Interrupted(Exception):
    pass


def test_windows_on_ranks_are_the_windows_here_until_an_interrupt_ends_them():
    torch.set_num_threads(1)
    plain, transformer = window()
    reusing, _ = window(policy=Chunkwise(warmup_steps=1, threshold=0.3), kv=KVSettings(budget=1.0))
    told, later = [], []

    def interrupt():
        if later:
            later.append(time.monotonic())
            raise Interrupted

    with pytest.raises(Interrupted), session(MeshShape(1, 2)) as ranks:
        pids = [process.pid for process in ranks.ranks.processes]
        for asked in (plain, reusing):
            told.clear()
            latents, expected = ranks.run(asked, told.append), alone(asked, transformer)
            assert (latents - expected).abs().max() <= 1e-5 * expected.abs().max()
        ranks.meanwhile = interrupt
        ranks.run(plain, later.append)
    assert time.monotonic() - later[-1] < 10
    assert not any(map(alive, pids))
    steps = [one for one in told if isinstance(one.event, StepTaken)]
    assert len(steps) == CHUNKS * STEPS and {one.event.action for one in steps} == {"compute", "reuse"}
    assert all(one.clean is not None and one.clean.shape[2] == 3 for one in steps)
    finished = [one.event for one in told if isinstance(one.event, ChunkFinished)]
    assert torch.equal(torch.cat([event.latents for event in finished], 2), latents)
    last = {one.event.chunk: one.clean for one in steps}
    assert (last[0] - finished[0].latents).abs().max() < 1e-4  # the last step goes to the clean prediction


def test_magi_on_ranks():
    torch.set_num_threads(1)
    model = mini_magi.load_mini_magi()
    config = model.transformer.config
    text = model.encode_prompt("a red circle moving right")
    run = MagiRun({0: (text, torch.ones(text.shape[:2]))}, mini_magi.text_guidance(2.0))
    settings = EngineSettings(PLANS["window"](chunk_frames=3).plan(9, STEPS), magi(STEPS), clean_timestep=0.9999)
    settings = replace(settings, clean_pass=True)
    asked = Window(run, settings, model.noise(3, 1), seed=5)
    file = ModelFile("magi", str(mini_magi.TRANSFORMER_FILE), config.num_heads, config.kv_heads, torch.float32)
    with session(MeshShape(1, 2), file) as ranks:
        latents, expected = ranks.run(asked, lambda told: None), alone(asked, model.transformer)
    assert (latents - expected).abs().max() <= 1e-5 * expected.abs().max()


def hit_by(number: signal.Signals, which: Sequence[int]) -> str:
    """What is said where this signal has hit ranks, and no rank is left."""
    asked, _ = window()
    with pytest.raises(RankError) as error, session(MeshShape(1, 2)) as ranks:
        pids, hit = [process.pid for process in ranks.ranks.processes], []
        ranks.ranks.timeout = 6.0  # of this process: the ranks themselves wait longer for one another

        def told(one):
            if isinstance(one.event, StepTaken) and not hit:
                hit.extend(os.kill(pids[rank], number) for rank in which)

        ranks.run(asked, told)
    assert not any(map(alive, pids))
    return str(error.value)


def test_a_rank_that_dies_or_hangs_ends_the_run():
    """All at the same time: most of it is waiting."""
    kinds = (signal.SIGKILL, signal.SIGSTOP, signal.SIGSTOP)
    with ThreadPoolExecutor(3) as pool:
        died, hung, all_hung = pool.map(hit_by, kinds, ([1], [1], [0, 1]))
    assert "rank 1 ended (SIGKILL)" in died
    assert "rank 1 did not answer within 6 s" in hung
    assert "ranks 0, 1 did not answer within 6 s" in all_hung


def test_a_file_that_is_gone_or_another(tmp_path):
    for file, said in (
        (replace(mini_file(), path=str(tmp_path / "gone.safetensors")), "gone.safetensors"),
        (replace(mini_file(), heads=5), "as in this process"),
    ):
        with pytest.raises(RankError, match=said), session(MeshShape(1, 2), file):
            pass


def test_heads_that_cannot_be_shared_are_refused():
    asked, transformer = window()
    heads = transformer.config.num_heads
    shape = MeshShape(1, next(n for n in range(2, 9) if heads % n))
    with pytest.raises(RankError, match=f"for {heads} heads"), session(shape) as ranks:
        ranks.run(asked, lambda told: None)


READY = """
with session(MeshShape(1, 2)) as ranks:
    print(*(process.pid for process in ranks.ranks.processes), flush=True)
    time.sleep(600)
"""
AT_ONCE = """
from flowcache_core.parallel.launch import Ranks
from flowcache_core.parallel.serve import command
with Ranks(command(), 2, 60.0) as ranks:
    print(*(process.pid for process in ranks.processes), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("work", [READY, AT_ONCE], ids=["ready", "importing"])
def test_ranks_end_with_a_starter_that_was_killed(work):
    script = f"""
import sys, time
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]
from test_rank_sessions import MeshShape, session
{work}"""
    starter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in starter.stdout.readline().split()]
    assert len(pids) == 2
    starter.kill()
    starter.wait()
    deadline = time.monotonic() + 60
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(running, pids))
