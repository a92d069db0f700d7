"""What a run shows, and what fails in it, lands on the node it belongs to: on a real server, as a browser hears it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
import pytest
from api_copy import COPIES, read
from comfy_server import ComfyServer, comfy_server, lay_out
from listening import Heard, post
from tiny_files import write_models

HOST = Path(folder_paths.__file__).parent
TINY = [Path(__file__).resolve().parent / name for name in ("tiny_graphs", "tiny_text")]
MINI = "flowcache_mini_text_to_video"
REUSE, COMPRESSOR, GUIDER, SAMPLER, RUN, REPORT, SAVE = "2", "3", "6", "8", "11", "12", "16"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("comfy")
    lay_out(base)
    for pack in TINY:
        (base / "custom_nodes" / pack.name).symlink_to(pack, target_is_directory=True)
    write_models(base / "models")
    with comfy_server(HOST, Path(sys.executable), base) as running:
        yield running


def graph(seed: int, steps: int = 4, **changes: dict[str, Any]) -> dict[str, Any]:
    """The mini template with two chunks, custom reuse and a preview; ``changes``: inputs by node, ``n11=dict(...)``."""
    prompt = read(COPIES / f"{MINI}.json")
    prompt[REUSE]["inputs"] = {
        "model": ["1", 0], "preset": "custom", "preset.policy": "chunkwise", "preset.threshold": 0.5,
        "preset.warmup_steps": 1, "preset.distance": "latent", "preset.quantity": "velocity", "preset.max_reuses": 0,
        "preset.always_last": True, "preset.cache_device": "same as the model", "preset.computed_steps": "0",
        "preset.first_chunk_steps": "",
    }  # fmt: skip
    prompt["7"]["inputs"]["noise_seed"] = seed
    prompt[SAMPLER]["inputs"]["preview_vae"] = ["1", 1]
    prompt["9"]["inputs"]["steps"] = steps
    prompt["10"]["inputs"]["length"] = 21
    for number, inputs in changes.items():
        prompt[number.removeprefix("n")]["inputs"].update(inputs)
    return prompt


def renamed(prompt: dict[str, Any], name: Any) -> dict[str, Any]:
    """The same graph with other numbers on its nodes, as in another workflow or inside a subgraph."""

    def other(value: Any) -> Any:
        return [name(value[0]), value[1]] if isinstance(value, list) else value

    return {
        name(number): {**node, "inputs": {key: other(value) for key, value in node["inputs"].items()}}
        for number, node in prompt.items()
    }


def shown_on(heard: Heard) -> tuple[set[str], set[str]]:
    """Nodes with a map of the run, and nodes with previews of finished chunks."""
    maps = {data["node"] for data in heard.of("flowcache.run") if data["rows"]}
    videos = {
        data["display_node"]
        for data in heard.of("executed")
        for image in (data["output"] or {}).get("images", ())
        if image["filename"].startswith("flowcache_") and image["type"] == "temp"
    }
    assert heard.error is None, heard.error
    return maps, videos


class TestTheNodeThatRuns:
    def test_a_second_workflow_shows_its_own_node(self, server: ComfyServer) -> None:
        """The host hands the sampler that the first workflow made to the second one."""
        assert shown_on(post(server, graph(1))) == ({RUN}, {RUN})
        heard = post(server, renamed(graph(2), lambda number: f"1{number:0>2}"))
        (cached,) = heard.of("execution_cached")
        assert "108" in cached["nodes"]
        assert shown_on(heard) == ({"111"}, {"111"})

    def test_inside_a_subgraph_of_the_frontend(self, server: ComfyServer) -> None:
        heard = post(server, renamed(graph(3), lambda number: f"40:{number}"))
        assert shown_on(heard) == ({"40:11"}, {"40:11"})

    def test_a_node_that_expands_is_shown_in_place_of_what_it_made(self, server: ComfyServer) -> None:
        prompt = graph(4)
        prompt[RUN]["class_type"] = "ExpandingSampler"
        prompt[REPORT]["inputs"]["latent"] = [RUN, 0]
        assert shown_on(post(server, prompt)) == ({RUN}, {RUN})

    def test_two_samplers_with_one_sampler_object(self, server: ComfyServer) -> None:
        prompt = graph(5)
        prompt["21"] = {"class_type": "SamplerCustom", "inputs": {
            "model": [COMPRESSOR, 0], "add_noise": True, "noise_seed": 5, "cfg": 1.0, "positive": ["4", 0],
            "negative": ["5", 0], "sampler": [SAMPLER, 0], "sigmas": ["9", 0], "latent_image": ["10", 0],
        }}  # fmt: skip
        prompt["22"] = {"class_type": "SaveLatent", "inputs": {"samples": ["21", 0], "filename_prefix": "l"}}
        assert shown_on(post(server, prompt)) == ({RUN, "21"}, {RUN, "21"})

    def test_nobody_else_is_told(self, server: ComfyServer) -> None:
        """A prompt without a client writes on no browser's graph."""
        server.run(graph(6))
        heard = post(server, graph(6))
        assert shown_on(heard) == (set(), set())


def report_text(heard: Heard, node: str = REPORT) -> str:
    return next(data["output"]["text"][0] for data in heard.of("executed") if data["node"] == node)


def saved(heard: Heard) -> bool:
    return any(data["node"] == SAVE and data["output"]["images"] for data in heard.of("executed"))


class TestAReportCostsNoVideo:
    def test_patch_nodes_bypassed_on_a_model_of_the_hosts_loader(self, server: ComfyServer) -> None:
        prompt = graph(11)
        name = "causal_forcing-framewise.safetensors"
        prompt["30"] = {"class_type": "UNETLoader", "inputs": {"unet_name": name, "weight_dtype": "default"}}
        for number in ("9", REPORT):
            prompt[number]["inputs"]["model"] = ["30", 0]
        prompt["4"] = {"class_type": "TinyTextEncode", "inputs": {"text": "a boat"}}
        prompt[GUIDER] = {"class_type": "BasicGuider", "inputs": {"model": ["30", 0], "conditioning": ["4", 0]}}
        prompt[SAMPLER] = {"class_type": "SamplerARVideo", "inputs": {"num_frame_per_block": 3}}
        for number in (REUSE, COMPRESSOR, "5"):
            del prompt[number]
        heard = post(server, prompt)
        assert heard.error is None and saved(heard), heard.error
        assert report_text(heard).startswith("No report: this MODEL comes from no FlowCache node")

    def test_a_sampler_that_is_no_ar_sampler(self, server: ComfyServer) -> None:
        prompt = graph(12)
        prompt[SAMPLER] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
        heard = post(server, prompt)
        assert heard.error is None and saved(heard)
        assert report_text(heard).startswith("No report: this MODEL was not sampled by an AR video sampler")

    def test_a_model_that_nobody_sampled(self, server: ComfyServer) -> None:
        prompt = graph(13)
        prompt["41"] = {"class_type": "FlowCacheKVCompressor", "inputs": {**prompt[COMPRESSOR]["inputs"], "budget": 9}}
        prompt[REPORT]["inputs"]["model"] = ["41", 0]
        heard = post(server, prompt)
        assert heard.error is None and saved(heard)
        assert report_text(heard).startswith("No report: this MODEL was not sampled; connect")

    def test_sigmas_that_a_split_left_empty(self, server: ComfyServer) -> None:
        """The second sampler gets one noise level and passes the latents on, as the host's samplers do."""
        prompt = graph(14)
        prompt["42"] = {"class_type": "SplitSigmas", "inputs": {"sigmas": ["9", 0], "step": 4}}
        prompt["43"] = {"class_type": "DisableNoise", "inputs": {}}
        prompt["44"] = {"class_type": "SamplerCustomAdvanced", "inputs": {
            "noise": ["43", 0], "guider": [GUIDER, 0], "sampler": [SAMPLER, 0], "sigmas": ["42", 1],
            "latent_image": [RUN, 0],
        }}  # fmt: skip
        decoder = next(node for node in prompt.values() if node["class_type"] == "VAEDecode")
        decoder["inputs"]["samples"] = ["44", 0]
        prompt["45"] = {"class_type": "FlowCacheReport", "inputs": {"model": [COMPRESSOR, 0], "latent": ["44", 0]}}
        heard = post(server, prompt)
        assert heard.error is None and saved(heard)
        assert "computed" in report_text(heard)

    def test_each_report_is_of_the_run_that_made_its_latent(self, server: ComfyServer) -> None:
        prompt = graph(15)
        prompt["51"] = {"class_type": "BasicScheduler", "inputs": {**prompt["9"]["inputs"], "steps": 6}}
        prompt["52"] = {"class_type": "SamplerCustomAdvanced", "inputs": {**prompt[RUN]["inputs"], "sigmas": ["51", 0]}}
        for number, latent in (("53", [RUN, 0]), ("54", ["52", 1])):
            prompt[number] = {"class_type": "FlowCacheReport", "inputs": {"model": [COMPRESSOR, 0], "latent": latent}}
        heard = post(server, prompt)
        counts = {
            number: re.search(r"computed \d+ of (\d+)", report_text(heard, number)) for number in (REPORT, "53", "54")
        }
        totals = {number: count and count[1] for number, count in counts.items()}
        assert totals == {REPORT: "8", "53": "8", "54": "12"}


class TestErrors:
    def test_a_toast_begins_with_the_sentence(self, server: ComfyServer) -> None:
        error = post(server, graph(21, n2={"preset": "mini: slow"})).error
        assert error is not None and (error["exception_type"], error["node_id"]) == ("ValueError", RUN)
        first = error["exception_message"].splitlines()[0]
        assert first.startswith("FlowCache Chunkwise Reuse, preset mini: slow: got '4 steps")
        assert "a run of the model mini with 50 steps at shift 3" in first and "rescale" not in first

    @pytest.mark.parametrize(
        ("node", "inputs", "words"),
        [
            (REUSE, {"preset.policy": "schedule", "preset.computed_steps": "0, x"}, ["computed_steps", "'0, x'"]),
            (REUSE, {"preset.policy": "schedule", "preset.computed_steps": "1"}, ["computed"]),
            (COMPRESSOR, {"method.sink": 9.0}, ["budget: got 4", "a number >= 10"]),
            (
                COMPRESSOR,
                {"budget": 1, "method": "sink-window", "method.sink": 1.0},
                ["budget: got 1.0", ">= 2", "1 chunks of sink"],
            ),
            (
                SAMPLER,
                {
                    "plan": "diffusion forcing", "plan.ar_step": 1, "plan.attention": "bidirectional",
                    "plan.window_frames": 0, "plan.overlap_frames": 3,
                },
                ["clean_pass"],
            ),
            (
                SAMPLER,
                {
                    "plan": "diffusion forcing", "plan.ar_step": 1, "plan.attention": "block-causal",
                    "plan.window_frames": 2, "plan.overlap_frames": 3,
                },
                ["window_frames: got 2"],
            ),
            (
                SAMPLER,
                {
                    "plan": "diffusion forcing", "plan.ar_step": 1, "plan.attention": "block-causal",
                    "plan.window_frames": 6, "plan.overlap_frames": 4,
                },
                ["overlap_frames: got 4", "multiple of the 3"],
            ),
            ("4", {"text": "a mauve circle"}, ["text", "mauve", "red"]),
        ],
    )  # fmt: skip
    def test_the_node_that_holds_the_field_is_marked(
        self, server: ComfyServer, node: str, inputs: dict[str, Any], words: list[str]
    ) -> None:
        error = post(server, graph(22, **{f"n{node}": inputs})).error
        assert error is not None and (error["exception_type"], error["node_id"]) == ("ValueError", node), error
        for word in words:
            assert word in error["exception_message"], error["exception_message"]
