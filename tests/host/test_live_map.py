"""What a browser is told of a run while it lasts: on a real server, and what it costs, by the clock."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import folder_paths
import pytest
from api_copy import COPIES, read
from comfy_execution.utils import CurrentNodeContext
from comfy_server import ComfyServer, comfy_server, lay_out
from hostkit import NODES, STAGGERED, compress, hosts, latent, load, module, ours, reuse, sample, sigmas_of
from listening import Heard, post

HOST = Path(folder_paths.__file__).parent
MINI = "flowcache_mini_text_to_video"
WINDOWS = {**STAGGERED, "window_frames": 4, "overlap_frames": 2}
live_map = module("nodes.adapters.shown.live_map")
recent = module("nodes.adapters.shown.recent_runs")


@pytest.fixture
def told(monkeypatch) -> Iterator[list[dict[str, Any]]]:
    """Messages about the runs of node 12, as JSON leaves them."""
    sent: list[dict[str, Any]] = []

    class Server:
        client_id = "browser"
        prompt_queue = SimpleNamespace(
            get_current_queue_volatile=lambda: (
                [(0, "prompt 1", {}, {"extra_pnginfo": {"workflow": {"id": "graph"}}})],
                [],
            )
        )

        def send_sync(self, event, data, sid):
            assert sid == "browser"
            if event == "flowcache.run":
                sent.append(json.loads(json.dumps(data, allow_nan=False)))

        def send_progress_text(self, text, node_id, sid):
            pass

    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=Server())))
    monkeypatch.setattr(recent, "RECENT", recent.RecentRuns())
    monkeypatch.setattr(module("nodes.adapters.shown.running_node"), "RECENT", recent.RECENT)
    monkeypatch.setattr(live_map, "PAUSE", 0.0)
    monkeypatch.setattr(live_map, "SHARE", 1e9)
    with CurrentNodeContext("prompt 1", "12"):
        yield sent


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.mark.parametrize("sampler", [ours, lambda: ours(STAGGERED), lambda: ours(WINDOWS), hosts])
def test_every_sampler_tells_its_run(model, told, sampler):
    patched = compress(reuse(model, threshold=50.0), 1)
    sample(patched, sampler())
    record = module("nodes.adapters.run.settings").last_record(patched)
    letters = module("flowcache_core.report.text").CHARACTERS
    last = told[-1]
    assert last["rows"] == ["".join(letters[kind] for kind in row) for row in record.kinds]
    assert last["complete"] and last["reused"] == record.reused_steps > 0 and last["preset"] == "custom"
    assert (last["node"], last["prompt"], last["workflow"]) == ("12", "prompt 1", "graph")
    assert last["kv"]["bytes"] == record.kv_bytes and last["kv"]["allocated"] == record.started.kv_tokens
    assert len(told) > record.total_steps  # the pause between messages is off here
    done = [message["done"] for message in told]
    assert done == sorted(done) and done[0] == 0
    assert recent.RECENT.of("browser")[-1]["complete"]


@pytest.mark.parametrize("sampler", [ours, hosts])
def test_nothing_stays_of_a_run_that_is_interrupted(model, told, monkeypatch, sampler):
    patched, calls = reuse(model, threshold=0.0), []

    def interrupt(args):
        calls.append(1)
        if len(calls) == 6:
            raise comfy.model_management.InterruptProcessingException
        return args["denoised"]

    patched.set_model_sampler_post_cfg_function(interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(patched, sampler())
    assert told[-2]["done"] > 2 and not told[-2]["complete"]
    assert told[-1] == {"prompt": "prompt 1", "node": "12", "kind": None, "workflow": "graph", "gone": True}
    assert recent.RECENT.messages == {}


def test_a_message_dear_by_chance_does_not_end_the_map(model, told, monkeypatch):
    """One that takes as long as a collection of a large process: others come within seconds, not at the run's end."""
    show, clock = live_map.show_run, SimpleNamespace(now=0.0, spent=0.0)
    monkeypatch.setattr(live_map, "SHARE", 0.002)

    def dear(message):
        clock.spent += 0.1 if len(told) == 3 else 0.0
        show(message)

    def now():
        clock.now += 0.5
        return clock.now

    monkeypatch.setattr(live_map, "show_run", dear)
    monkeypatch.setattr(live_map, "time", SimpleNamespace(monotonic=now, thread_time=lambda: clock.spent))
    sample(reuse(model, threshold=0.0))
    done = [message["done"] for message in told]
    gaps = [later - earlier for earlier, later in pairwise(done)]
    assert 1 < max(gaps) <= 1 + live_map.MOST / 0.5


def test_nobody_asked(model, told, monkeypatch):
    monkeypatch.setattr(sys.modules["server"].PromptServer.instance, "client_id", None, raising=False)
    sample(reuse(model))
    assert told == [] and recent.RECENT.messages == {}


def test_only_the_last_runs_are_kept():
    runs = recent.RecentRuns()
    for number in range(50):
        runs.keep("a", {"node": str(number), "workflow": None})
    runs.keep("b", {"node": "1", "workflow": None})
    assert len(runs.messages) == recent.KEPT and [run["node"] for run in runs.of("b")] == ["1"]
    assert runs.of("nobody") == []


def test_what_it_costs_of_the_run(monkeypatch):
    """The mini template's run with everything that messages take, writing them as JSON included; the pause is on.

    Both in the processor's time: on a busy machine the clock's goes to others, and the pause between messages with it.
    """
    spent, messages = [0.0], []

    class Server:
        client_id = "browser"
        prompt_queue = SimpleNamespace(get_current_queue_volatile=lambda: ([], []))

        def send_sync(self, event, data, sid):
            messages.append(json.dumps(data))

    class Timed(live_map.LiveMap):
        def __call__(self, event):
            begun = time.thread_time()
            super().__call__(event)
            spent[0] += time.thread_time() - begun

    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=Server())))
    monkeypatch.setattr(module("nodes.adapters.run.request"), "LiveMap", Timed)
    mini, _ = NODES["FlowCacheMiniModel"].execute(model="wan").args[:2]
    prompt = read(COPIES / f"{MINI}.json")
    texts = [NODES["FlowCacheMiniPrompt"].execute(**prompt[number]["inputs"]).args[0] for number in ("4", "5")]
    patched = compress(reuse(mini, threshold=0.1, warmup_steps=5), 4)
    start = latent(93, width=64, height=64)
    # A collection walks all objects of the process, here those of every test before, and falls on whoever allocates.
    gc.collect()
    gc.disable()
    try:
        with CurrentNodeContext("prompt 1", "12"):
            begun = time.thread_time()
            sample(patched, ours(), positive=texts[0], negative=texts[1], start=start, sigmas=sigmas_of(patched, 50))
            whole = time.thread_time() - begun
    finally:
        gc.enable()
    share = spent[0] / whole
    print(f"\nlive map: {len(messages)} messages, {spent[0]:.4f} s of the processor in {whole:.2f} s: {share:.3%}")
    assert len(messages) > 3 and share < 0.005


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("comfy")
    lay_out(base)
    with comfy_server(HOST, Path(sys.executable), base) as running:
        yield running


def test_a_browser_that_was_reloaded_asks_for_what_it_missed(server: ComfyServer) -> None:
    prompt = read(COPIES / f"{MINI}.json")
    prompt["9"]["inputs"]["steps"], prompt["10"]["inputs"]["length"] = 50, 21
    heard: Heard = post(server, prompt)
    assert heard.error is None, heard.error
    runs = heard.of("flowcache.run")
    assert runs[0]["done"] == 0 and runs[-1]["complete"] and runs[-1]["kind"] == "SamplerCustomAdvanced"
    assert runs[-1]["expected"] > 20
    assert server.get("/flowcache/runs?client=browser") == [runs[-1]]
    assert server.get("/flowcache/runs?client=other") == server.get("/flowcache/runs") == []
