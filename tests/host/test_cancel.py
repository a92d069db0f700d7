"""A run that is cancelled over HTTP: by the host's route for one job, and by the older ones where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import folder_paths
import pytest
from api_copy import COPIES, read
from comfy_server import PATIENCE, ComfyServer, ServerError, comfy_server, lay_out

HOST = Path(folder_paths.__file__).parent
NO_SUCH_ROUTE = "/api/no/such/route/{}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("comfy")
    lay_out(base)
    with comfy_server(HOST, Path(sys.executable), base) as running:
        yield running


def graph(frames: int, seed: int) -> dict[str, dict]:
    prompt = read(COPIES / "flowcache_mini_text_to_video.json")
    for node in prompt.values():
        if node["class_type"] == "EmptyARVideoLatent":
            node["inputs"] |= {"length": frames, "width": 64, "height": 64}
        if node["class_type"] == "RandomNoise":
            node["inputs"]["noise_seed"] = seed
    return prompt


def until(what, server: ComfyServer) -> None:
    end = time.monotonic() + PATIENCE
    while not what(server.get("/queue")):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("route", ["/api/jobs/{}/cancel", NO_SUCH_ROUTE], ids=["job route", "older routes"])
def test_what_runs_and_what_waits(server: ComfyServer, route: str) -> None:
    """The running one ends inside the sampler, the waiting one never begins, and the next one is as ever."""
    caller = replace(server, cancel_route=route)
    seed = 1 if route == NO_SUCH_ROUTE else 2
    running, waiting = caller.queue(graph(1017, seed)), caller.queue(graph(1017, seed + 10))
    until(lambda queue: [item[1] for item in queue["queue_running"]] == [running], caller)
    caller.cancel(waiting)
    until(lambda queue: not queue["queue_pending"], caller)
    assert [item[1] for item in caller.get("/queue")["queue_running"]] == [running]
    caller.cancel(running)
    with pytest.raises(ServerError, match="interrupted in"):
        caller.outputs(running)
    until(lambda queue: not queue["queue_running"], caller)
    assert caller.get(f"/history/{waiting}") == {}
    assert [run for run in caller.get("/flowcache/runs?client=") if not run["complete"]] == []
    assert caller.run(graph(9, seed))


def test_what_is_done_or_unknown_is_left_alone(server: ComfyServer) -> None:
    for seed, caller in ((20, server), (21, replace(server, cancel_route=NO_SUCH_ROUTE))):
        done = caller.queue(graph(9, seed))
        caller.outputs(done)
        caller.cancel(done)
        caller.cancel("00000000-0000-4000-8000-000000000000")
        assert caller.outputs(done)
