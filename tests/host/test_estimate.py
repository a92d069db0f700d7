"""What a run will cost, said on the nodes: from the graph alone, then when it starts, and as it turned out."""

from __future__ import annotations

import copy
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
import pytest
from api_copy import COPIES, names, read
from comfy_server import ComfyServer, comfy_server, lay_out
from hostkit import module
from listening import post
from tiny_files import write_models

HOST = Path(folder_paths.__file__).parent
MODEL, REUSE, COMPRESSOR, GUIDER, SAMPLER, LEVELS, LATENT, RUN, REPORT = "1", "2", "3", "6", "8", "9", "10", "11", "12"
before = module("nodes.before")


def mini(**changes: dict[str, Any]) -> dict[str, Any]:
    """The mini template of two chunks; ``changes``: inputs by node, ``n11=dict(...)``."""
    prompt = read(COPIES / "flowcache_mini_text_to_video.json")
    prompt[LATENT]["inputs"]["length"] = 21
    prompt[COMPRESSOR]["inputs"] |= {"budget": 1, "method": "recent"}
    for number, inputs in changes.items():
        prompt[number.removeprefix("n")]["inputs"].update(inputs)
    return prompt


def one(prompt: dict[str, Any]) -> dict[str, Any]:
    """What the only sampling of a prompt will cost, which all its nodes are told."""
    nodes = before.estimates_of(prompt)
    (found,) = next(iter(nodes.values()))
    assert all(told == [found] for told in nodes.values())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


class TestFromTheGraph:
    def test_for_the_latent_that_is_wired(self):
        """A 64 x 64 run: two branches of six layers, 128 wide, 16 tokens a frame, 4 bytes each."""
        small = one(mini(n3={"budget": 100.0}))
        token = 2 * 128 * 6 * 2 * 4
        assert small["kv"] == small["whole_kv"] == 6 * 16 * token
        wide = one(mini(n10={"width": 128, "height": 128}, n3={"budget": 100.0}))
        assert wide["kv"] == 4 * small["kv"] and wide["peak"] > small["peak"]
        long = one(mini(n10={"length": 45}))
        assert long["kv"] < long["whole_kv"]

    def test_chunks_side_by_side_are_counted_with_what_is_kept(self):
        """Rolling Forcing: sink, six chunks of history and four in work, of three frames each."""
        title = "Causal-Forcing 1.3B, long video"
        prompt = mini(n10={"length": 165}, n6={"model": ["1", 0]}, n12={"model": ["1", 0]})
        prompt[SAMPLER]["inputs"] = {"plan": "as released", "plan.model": title}
        prompt[LEVELS] = {"class_type": "FlowCacheReleasedSchedule", "inputs": {"model": title}}
        found = one(prompt)
        assert found["total"] == found["computed"] == 14 * 4
        tokens = 33 * 16 * 2 * 6 * 2  # of a frame, keys and values, layers, branches; and where each token stands
        assert found["kv"] == tokens * 128 * 4 + tokens // 2 * 4 * 4

    def test_guidance_and_steps_count(self):
        single, double = one(mini(n6={"cfg": 1.0})), one(mini())
        assert double["kv"] == 2 * single["kv"]
        assert 0 < double["computed"] < double["total"] == 100

    def test_auto_knows_guidance_and_shift_of_the_graph(self):
        """As the run will: what is not as the list was made is said before it."""
        assert one(mini(n2={"preset": "auto", "preset.fidelity": 0.5}))["notes"] == []
        (note,) = one(mini(n2={"preset": "auto", "preset.fidelity": 0.5}, n6={"cfg": 15.0}))["notes"]
        assert "and this run has 15" in note
        prompt = mini(n2={"preset": "auto", "preset.fidelity": 0.5, "model": ["77", 0]})
        prompt["77"] = {"class_type": "ModelSamplingSD3", "inputs": {"model": [MODEL, 0], "shift": 7.0}}
        (note,) = one(prompt)["notes"]
        assert "for 50 steps at shift 7 of" in note
        prompt["77"]["inputs"]["shift"] = ["78", 0]
        prompt["78"] = {"class_type": "SomeMath", "inputs": {}}
        assert one(prompt)["total"] == 100  # not known before the run, which is no reason to say nothing

    def test_few_steps_have_nothing_to_reuse(self):
        found = one(mini(n2={"preset": "auto", "preset.fidelity": 0.5}, n9={"steps": 4}))
        assert found["computed"] == found["total"] == 8
        assert found["notes"] == ["nothing to reuse at 4 steps, every one is needed; KV Cache Compressor saves memory"]

    def test_every_node_that_the_sampling_goes_through_is_told(self):
        assert set(before.estimates_of(mini())) == {REUSE, COMPRESSOR, SAMPLER, REPORT}

    def test_a_value_may_come_from_a_node_that_holds_it(self):
        prompt = mini(n10={"length": ["77", 0]})
        prompt["77"] = {"class_type": "PrimitiveInt", "inputs": {"value": 21}}
        assert before.estimates_of(prompt) == before.estimates_of(mini())

    def test_what_the_graph_computes_is_known_later(self):
        prompt = mini(n10={"length": ["77", 0]})
        prompt["77"] = {"class_type": "SomeMath", "inputs": {}}
        found = one(prompt)
        assert found == {"reason": "length is computed by the graph", "later": True}

    def test_a_preset_for_other_steps_says_so_before_the_run(self):
        found = one(mini(n2={"preset": "mini: fast"}, n9={"steps": 30}))
        assert "50 steps" in found["reason"] and not found["later"]

    def test_a_start_image_is_one_frame_that_is_given(self):
        assert one(read(COPIES / "flowcache_mini_image_to_video.json"))["total"] == 350

    def test_a_file_is_read_without_loading_it(self, tmp_path, monkeypatch):
        lay_out(tmp_path)
        write_models(tmp_path / "models")
        place = ([str(tmp_path / "models" / "diffusion_models")], {".safetensors", ".pt", ".json"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", place)
        folder_paths.filename_list_cache.clear()
        for name in ("self_forcing", "skyreels_v2_df", "magi_text_to_video"):
            assert one(read(COPIES / f"flowcache_{name}.json"))["total"] > 0

    def test_a_linked_preset_is_read_where_it_is_written_down(self):
        prompt = mini(n2={"own_preset": ["77", 0]})
        prompt["77"] = {"class_type": "FlowCacheCalibrate", "inputs": {}}
        assert one(prompt)["later"]
        row = {"text": "own", "policy": {"name": "schedule", "computed": [0, 9, 49], "warmup_steps": 1}}
        document = {"schema": 1, "presets": {"mine": row}}
        lists = json.dumps(document)
        prompt["77"] = {"class_type": "FlowCachePreset", "inputs": {
            "hold": True, "file": "nothing", "lists": lists, "name": "", "save": False}}  # fmt: skip
        assert (one(prompt)["computed"], one(prompt)["total"]) == (6, 100)

    def test_two_samplings_through_one_node_have_an_entry_each(self):
        nodes = before.estimates_of(read(COPIES / "flowcache_mini_extend_video.json"))
        assert max(len(told) for told in nodes.values()) == 2

    @pytest.mark.parametrize("broken", [None, [], {"1": 3}, {"1": {"class_type": "SamplerCustomAdvanced"}}])
    def test_what_is_no_prompt_has_no_estimate(self, broken):
        assert before.estimates_of(broken) == {}

    def test_whatever_is_missing_is_said_and_nothing_raises(self):
        whole = mini()
        for node in whole:
            for name in whole[node]["inputs"]:
                for value in ([node, 0], "?", None, -3):
                    prompt = copy.deepcopy(whole)
                    prompt[node]["inputs"][name] = value
                    for told in before.estimates_of(prompt).values():
                        assert told and all(found.get("reason") or found["total"] > 0 for found in told)


class TestSparseAttention:
    NODE = {
        "preset": "top-k", "preset.density": 0.5, "dense_chunks": 1, "dense_steps": 0, "engine": "auto",
        "preset.block": 16, "preset.stride": 4, "mask_reuse": False,
        "max_age": 4, "drift": 0.1, "across_chunks": False,
    }  # fmt: skip

    def prompt(self, attention: dict[str, Any] | None = None, **changes: dict[str, Any]) -> dict[str, Any]:
        """The mini template, with the node between the compressor and what samples."""
        prompt = mini(**{"n10": {"length": 45}, "n3": {"budget": 100.0}, **changes})
        for node in (GUIDER, REPORT):
            prompt[node]["inputs"]["model"] = ["77", 0]
        inputs = {"model": [COMPRESSOR, 0], **self.NODE, **(attention or {})}
        prompt["77"] = {"class_type": "FlowCacheSparseAttention", "inputs": inputs}
        return prompt

    def test_what_it_leaves_out_is_not_counted(self):
        dense, half = one(self.prompt({"preset.density": 1.0})), one(self.prompt())
        assert half["flops"] < dense["flops"] < dense["whole_flops"] == half["whole_flops"]
        assert 0 < half["density"] < 0.5 and dense["density"] == 1.0  # the first chunk is dense and takes its part
        assert one(mini())["density"] is None
        usual = one(self.prompt({"preset": "xattention", "preset.p": 0.9}))
        assert usual["density"] == 0.35 and usual["flops"] < dense["flops"]
        assert "density 0.35" in usual["attention"][0] and dense["attention"] == []

    def test_the_forwards_that_measure_heads_are_counted(self):
        """Six layers of four heads, two shares, two samples: as the run says it."""
        measure = {"preset": "measure heads", "preset.block": 16, "preset.stride": 4, "preset.samples": 2}
        plain = one(self.prompt({"preset.density": 1.0}))
        found = one(self.prompt(measure | {"preset.shares": "0.3, 0.7"}))
        assert found["attention"] == ["heads are measured at 2 steps: 96 more forwards of a chunk are counted"]
        assert found["flops"] > 2 * plain["flops"] and found["density"] is None
        assert "dense_chunks" in one(self.prompt(measure | {"preset.shares": "0.3", "dense_chunks": 4}))["reason"]

    def test_masks_that_serve_again_are_in_the_peak(self):
        anew, again = one(self.prompt()), one(self.prompt({"mask_reuse": True}))
        assert again["peak"] > anew["peak"]

    def test_megabytes_become_what_the_run_makes_of_them(self):
        """Heads of a layer share a budget where blocks are chosen of all at once: the run takes no shares of heads."""
        auto = {"preset": "auto (MB)", "preset.megabytes": 1.2}
        found = one(self.prompt(n3=auto))
        assert "head" not in found["kv_choice"] and found["kv"] <= 1.2e6

    @pytest.mark.parametrize(("attention", "said"), [
        ({"preset.block": 1024}, "block: got 1024"),
        ({"preset.density": 0.01, "dense_chunks": 3}, "density: got 0.01"),
        ({"preset": "my: gone"}, "gone"),
    ])  # fmt: skip
    def test_what_the_run_will_refuse_is_said(self, attention, said):
        found = one(self.prompt(attention))
        assert said in found["reason"] and not found["later"]

    def test_heads_that_are_linked_are_read_where_they_are_written_down(self):
        prompt = self.prompt({"own_preset": ["78", 0]})
        prompt["78"] = {"class_type": "FlowCacheCalibrate", "inputs": {}}
        assert one(prompt) == {"reason": "which heads are sparse", "later": True}

    def test_the_host_s_sampler_has_none(self):
        prompt = self.prompt()
        prompt[SAMPLER] = {"class_type": "SamplerARVideo", "inputs": {"num_frame_per_block": 3}}
        assert "FlowCache Sparse Attention" in one(prompt)["reason"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("comfy")
    lay_out(base)
    with comfy_server(HOST, Path(sys.executable), base) as running:
        yield running


def ask(server: ComfyServer, body: bytes) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(server.url + "/flowcache/estimate", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_route_then_the_run_then_its_time(server):
    prompt = mini(n3={"budget": 1.0}, n10={"length": 33})
    status, answer = ask(server, json.dumps({"prompt": prompt}).encode())
    foretold = answer["nodes"]
    assert status == 200 and foretold[SAMPLER][0]["seconds"] is None
    heard = post(server, prompt)
    assert heard.error is None
    (said,) = heard.of("flowcache.estimate")
    assert set(said["nodes"]) == set(foretold)
    # Now model, latents and levels are known: it stays as it was, but for what the host holds beside the weights.
    now, then = said["nodes"][SAMPLER][0], foretold[SAMPLER][0]
    assert {**now, "memory": 0, "peak": 0} == {**then, "memory": 0, "peak": 0}
    assert now["peak"] == pytest.approx(then["peak"], rel=0.01)
    told = [one["output"] for one in heard.of("executed") if one["node"] == REPORT]
    assert f"{then['computed']} of {then['total']}" in told[0]["text"][0]
    (last,) = [run for run in heard.of("flowcache.run") if run["complete"]]
    assert set(last["nodes"]) == {REUSE, COMPRESSOR, SAMPLER, REPORT}
    again = ask(server, json.dumps({"prompt": prompt}).encode())[1]["nodes"]
    assert again[SAMPLER][0]["seconds"] > 0


def test_a_sparse_run_is_told_alike_before_and_at_its_start(server):
    prompt = TestSparseAttention().prompt({"mask_reuse": True}, n2={"preset": "mini: fast"})
    foretold = ask(server, json.dumps({"prompt": prompt}).encode())[1]["nodes"][SAMPLER][0]
    heard = post(server, prompt)
    assert heard.refused is None and heard.error is None
    (said,) = heard.of("flowcache.estimate")
    now = said["nodes"][SAMPLER][0]
    for name in ("flops", "whole_flops", "density", "kv", "kv_choice", "computed"):
        assert now[name] == foretold[name], name
    assert now["memory"].get("masks") == foretold["memory"].get("masks")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"prompt": 3}', b'{"other": {}}'])
def test_the_route_refuses_what_is_no_prompt(server, body):
    status, answer = ask(server, body)
    assert status == 400 and "prompt" in answer["error"]


@pytest.mark.parametrize("name", [name for name in names() if "_mini_" not in name])
def test_all_files_that_a_template_needs_are_named_at_once(server, name):
    """Where none is there: not the main checkpoint alone, and the others after it was fetched."""
    prompt = read(COPIES / f"{name}.json")
    files = {
        value: number
        for number, node in prompt.items()
        for value in node["inputs"].values()
        if isinstance(value, str) and value.endswith((".safetensors", ".pt", ".npz", ".json"))
    }
    assert len(files) >= 3
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.send("/prompt", {"prompt": prompt})
    told = json.loads(refused.value.read())["node_errors"]
    for file, number in files.items():
        assert any(file in error["details"] for error in told[number]["errors"]), (file, told)


def test_the_page_tells_its_language(server):
    for body, status in ((b'{"language": "zh"}', 200), (b'{"language": ""}', 400), (b"[]", 400), (b"{", 400)):
        request = urllib.request.Request(server.url + "/flowcache/page", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert answer.status == status
        except urllib.error.HTTPError as error:
            assert error.code == status
