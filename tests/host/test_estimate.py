"""What a run will cost, said on the nodes: from the graph alone, then when it starts, and as it turned out."""

from __future__ import annotations

import copy
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
import pytest
from api_copy import COPIES, read
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
    prompt[COMPRESSOR]["inputs"]["budget"] = 1
    for number, inputs in changes.items():
        prompt[number.removeprefix("n")]["inputs"].update(inputs)
    return prompt


def kv_megabytes(text: str) -> float:
    number, unit = text.removeprefix("K/V ").split()[:2]
    return float(number) * {"MB": 1, "GB": 1000}[unit.rstrip(":")]


class TestFromTheGraph:
    def test_for_the_latent_that_is_wired(self):
        """A 64 x 64 run: two branches of six layers, 128 wide, 16 tokens a frame, 4 bytes each."""
        texts = before.texts_of(mini(n3={"budget": 100.0}))
        token = 2 * 128 * 6 * 2 * 4
        assert kv_megabytes(texts[COMPRESSOR]) == pytest.approx(6 * 16 * token / 1e6, rel=0.01)
        assert "the whole video of 2 chunks fits" in texts[COMPRESSOR]
        wide = before.texts_of(mini(n10={"width": 128, "height": 128}, n3={"budget": 100.0}))
        assert kv_megabytes(wide[COMPRESSOR]) == pytest.approx(4 * kv_megabytes(texts[COMPRESSOR]), rel=0.01)

    def test_guidance_and_steps_count(self):
        one, two = before.texts_of(mini(n6={"cfg": 1.0})), before.texts_of(mini())
        assert kv_megabytes(two[COMPRESSOR]) == pytest.approx(2 * kv_megabytes(one[COMPRESSOR]), rel=0.01)
        assert "of 100 chunk steps computed" in two[REUSE] and "of 100 chunk steps computed" in two[SAMPLER]

    def test_a_value_may_come_from_a_node_that_holds_it(self):
        prompt = mini(n10={"length": ["77", 0]})
        prompt["77"] = {"class_type": "PrimitiveInt", "inputs": {"value": 21}}
        assert before.texts_of(prompt) == before.texts_of(mini())

    def test_what_the_graph_computes_is_known_later(self):
        prompt = mini(n10={"length": ["77", 0]})
        prompt["77"] = {"class_type": "SomeMath", "inputs": {}}
        texts = before.texts_of(prompt)
        assert set(texts) == {REUSE, COMPRESSOR, SAMPLER}
        assert all("known when it runs: length is computed" in text for text in texts.values())

    def test_a_preset_for_other_steps_says_so_before_the_run(self):
        texts = before.texts_of(mini(n9={"steps": 30}))
        assert "50 steps" in texts[REUSE]

    def test_a_start_image_is_one_frame_that_is_given(self):
        prompt = read(COPIES / "flowcache_mini_image_to_video.json")
        texts = before.texts_of(prompt)
        assert any("of 350 chunk steps" in text for text in texts.values()), texts

    def test_a_file_is_read_without_loading_it(self, tmp_path, monkeypatch):
        lay_out(tmp_path)
        write_models(tmp_path / "models")
        place = ([str(tmp_path / "models" / "diffusion_models")], {".safetensors", ".pt", ".json"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", place)
        folder_paths.filename_list_cache.clear()
        for name in ("self_forcing", "skyreels_v2_df", "magi_text_to_video"):
            texts = before.texts_of(read(COPIES / f"flowcache_{name}.json"))
            assert texts and all("known when it runs" not in text for text in texts.values()), texts

    def test_a_linked_preset_is_read_where_it_is_written_down(self):
        prompt = mini(n2={"own_preset": ["77", 0]})
        prompt["77"] = {"class_type": "FlowCacheCalibrate", "inputs": {}}
        assert "known when it runs" in before.texts_of(prompt)[REUSE]
        row = {"text": "own", "policy": {"name": "schedule", "computed": [0, 9, 49], "warmup_steps": 1}}
        document = {"schema": 1, "presets": {"mine": row}}
        lists = json.dumps(document)
        prompt["77"] = {"class_type": "FlowCachePreset", "inputs": {
            "hold": True, "file": "nothing", "lists": lists, "name": "", "save": False}}  # fmt: skip
        assert "6 of 100 chunk steps computed" in before.texts_of(prompt)[REUSE]

    def test_two_samplings_through_one_node_have_a_line_each(self):
        texts = before.texts_of(read(COPIES / "flowcache_mini_extend_video.json"))
        assert max(text.count("\n") for text in texts.values()) == 1

    @pytest.mark.parametrize("broken", [None, [], {"1": 3}, {"1": {"class_type": "SamplerCustomAdvanced"}}])
    def test_what_is_no_prompt_has_no_texts(self, broken):
        assert before.texts_of(broken) == {}

    def test_whatever_is_missing_is_said_and_nothing_raises(self):
        whole = mini()
        for node in whole:
            for name in whole[node]["inputs"]:
                for value in ([node, 0], "?", None, -3):
                    prompt = copy.deepcopy(whole)
                    prompt[node]["inputs"][name] = value
                    assert all(isinstance(text, str) and text for text in before.texts_of(prompt).values())


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
    foretold = answer["texts"]
    assert status == 200 and "last run here" not in foretold[SAMPLER]
    heard = post(server, prompt)
    assert heard.error is None
    said = {told["node"]: told["text"] for told in heard.of("text") if told["node"] in (REUSE, COMPRESSOR, SAMPLER)}
    # Now model, latents and levels are known: it stays as it was, but for what the host holds beside the weights.
    assert {**said, SAMPLER: ""} == {**foretold, SAMPLER: ""}
    numbers = [[float(one) for one in re.findall(r"[\d.]+", texts[SAMPLER])] for texts in (said, foretold)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.01)
    told = [one["output"] for one in heard.of("executed") if one["node"] == REPORT]
    computed, total = foretold[REUSE].split()[0], foretold[REUSE].split()[2]
    assert f"computed {computed} of {total}" in told[0]["text"][0]
    again = ask(server, json.dumps({"prompt": prompt}).encode())[1]["texts"]
    assert "as fast as this model's last run here" in again[SAMPLER] and "last run here" in again[REUSE]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"prompt": 3}', b'{"other": {}}'])
def test_the_route_refuses_what_is_no_prompt(server, body):
    status, answer = ask(server, body)
    assert status == 400 and "prompt" in answer["error"]
