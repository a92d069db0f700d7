"""Choices that a prompt names and that are not there: refused before the run, on the node, with all that there are."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import folder_paths
import pytest
from comfy_api.latest import io
from comfy_server import ComfyServer, comfy_server, lay_out
from hostkit import NODES
from tiny_files import write_models

HOST = Path(folder_paths.__file__).parent
MANY = 25  # files in a folder, more than the host lists by itself
NODE = "2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("comfy")
    lay_out(base)
    write_models(base / "models")
    for number in range(MANY):
        for place in (f"diffusion_models/spare_{number}.pt", f"vae/spare_{number}.safetensors",
                      f"text_encoders/spare_{number}/special_tokens.npz"):  # fmt: skip
            path = base / "models" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    with comfy_server(HOST, Path(sys.executable), base) as running:
        yield running


@dataclass(frozen=True)
class Choice:
    """A choice field of a node, with the entries of other lists that must be chosen for it to be there."""

    node: str
    field: str
    parents: tuple[tuple[str, str], ...] = ()
    dynamic: bool = False
    optional: bool = False

    def __str__(self) -> str:
        return f"{self.node.removeprefix('FlowCache')}-{self.field}" + "".join(f"-{value}" for _, value in self.parents)


def choices(name: str, inputs: list[io.Input], prefix: str = "", parents: Any = ()) -> Iterator[Choice]:
    for entry in inputs:
        field = f"{prefix}{entry.id}"
        if isinstance(entry, io.Combo.Input):
            yield Choice(name, field, parents, optional=entry.optional)
        elif isinstance(entry, io.DynamicCombo.Input):
            yield Choice(name, field, parents, dynamic=True, optional=entry.optional)
            for option in entry.options:
                yield from choices(name, option.inputs, f"{field}.", (*parents, (field, option.key)))


ALL = [choice for name, node in NODES.items() for choice in choices(name, node.define_schema().inputs)]
DYNAMIC = [choice for choice in ALL if choice.dynamic]


def test_there_are_choices_of_all_kinds() -> None:
    fields = {"preset", "method", "plan", "family", "variant", "target", "storage"}
    assert {choice.field for choice in DYNAMIC} == fields
    assert len({(choice.node, choice.field) for choice in ALL}) >= 20


def entries(described: dict[str, Any], choice: Choice) -> list[str]:
    """What the server says there is to choose."""
    inputs, parents = described, dict(choice.parents)
    path = choice.field.split(".")
    for depth, part in enumerate(path):
        kind, details = {**inputs.get("required", {}), **inputs.get("optional", {})}[part]
        if depth == len(path) - 1:
            return [option["key"] if isinstance(option, dict) else option for option in details["options"]]
        chosen = parents[".".join(path[: depth + 1])]
        inputs = next(option["inputs"] for option in details["options"] if option["key"] == chosen)
    raise AssertionError(choice)


def filled(described: dict[str, Any], chosen: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Default values of all required inputs, links to the mini nodes included; ``chosen`` goes first."""
    sources = {"MODEL": ["1", 0], "VAE": ["1", 1], "CONDITIONING": ["3", 0], "LATENT": ["4", 0], "CLIP": ["5", 0]}
    values: dict[str, Any] = {}
    for name, (kind, details) in described.get("required", {}).items():
        field = f"{prefix}{name}"
        if kind in sources:
            values[field] = sources[kind]
        elif kind == "COMFY_DYNAMICCOMBO_V3":
            values[field] = chosen.get(field, details["options"][0]["key"])
            option = next(option for option in details["options"] if option["key"] == values[field])
            values |= filled(option["inputs"], chosen, f"{field}.")
        else:
            values[field] = details.get("default", (details.get("options") or ["text"])[0])
    return values


def prompt_of(server: ComfyServer, choice: Choice, *change: Any) -> dict[str, Any]:
    """The node with all that it needs, its field set to ``change`` or gone, and a preview that asks for its output."""
    described = server.get(f"/object_info/{choice.node}")[choice.node]
    inputs = filled(described["input"], dict(choice.parents))
    inputs.pop(choice.field, None)
    if change:
        (inputs[choice.field],) = change
    prompt = {
        "1": {"class_type": "FlowCacheMiniModel", "inputs": {}},
        NODE: {"class_type": choice.node, "inputs": inputs},
        "3": {"class_type": "FlowCacheMiniPrompt", "inputs": {"text": ""}},
        "4": {"class_type": "EmptyARVideoLatent", "inputs": {"width": 64, "height": 64, "length": 9, "batch_size": 1}},
        "5": {"class_type": "CLIPLoader", "inputs": {"clip_name": "t5.safetensors", "type": "wan"}},
        "9": {"class_type": "PreviewAny", "inputs": {"source": [NODE, 0]}},
    }
    return prompt


def errors(server: ComfyServer, prompt: dict[str, Any]) -> list[dict[str, Any]]:
    """What the host marks on the node, before anything has run; empty when it took the prompt."""
    request = urllib.request.Request(
        f"{server.url}/prompt", json.dumps({"prompt": prompt}).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            json.load(answer)
        return []
    except urllib.error.HTTPError as error:
        refused = json.load(error)
    found: list[dict[str, Any]] = refused["node_errors"].get(NODE, {}).get("errors", [])
    assert found, refused
    return found


def said_once(found: list[dict[str, Any]], choice: Choice) -> str:
    """What the one error says, which is written on the field itself and on no other."""
    (error,) = found
    assert error["extra_info"]["input_name"] == choice.field, error
    sentence: str = error["details"]
    return sentence


@pytest.mark.parametrize("choice", ALL, ids=str)
@pytest.mark.parametrize("value", ["gone", "", 5, 1.5, True, ["gone"], {"a": 1}], ids=repr)
def test_a_wrong_choice_lists_what_there_is(server: ComfyServer, choice: Choice, value: Any) -> None:
    found = errors(server, prompt_of(server, choice, value))
    error = found[0]
    known = entries(server.get(f"/object_info/{choice.node}")[choice.node]["input"], choice)
    assert choice.field in error["details"] and known
    if error["type"] == "bad_linked_input":
        assert isinstance(value, list) and not choice.dynamic  # the host takes every list for a link
        return
    said = said_once(found, choice)
    for entry in known:
        assert entry in said, (entry, said)


@pytest.mark.parametrize("choice", DYNAMIC, ids=str)
def test_a_missing_list_lists_what_there_is(server: ComfyServer, choice: Choice) -> None:
    """Where it is required; what workflows made before it lack is no fault."""
    if choice.optional:
        assert errors(server, prompt_of(server, choice)) == []
        return
    (error,) = errors(server, prompt_of(server, choice))
    assert f"{choice.field}: got nothing, accepted: " in error["details"]
    for entry in entries(server.get(f"/object_info/{choice.node}")[choice.node]["input"], choice):
        assert entry in error["details"]


@pytest.mark.parametrize("choice", [choice for choice in ALL if not choice.dynamic], ids=str)
def test_a_missing_choice_is_named(server: ComfyServer, choice: Choice) -> None:
    """Where it is required: the host says so."""
    if choice.optional:
        return
    (error,) = errors(server, prompt_of(server, choice))
    assert error["type"] == "required_input_missing" and error["extra_info"]["input_name"] == choice.field


@pytest.mark.parametrize("choice", DYNAMIC, ids=str)
def test_a_list_that_reveals_fields_takes_no_link(server: ComfyServer, choice: Choice) -> None:
    prompt = prompt_of(server, choice, ["6", 0])
    prompt["6"] = {"class_type": "PrimitiveString", "inputs": {"value": "custom"}}
    found = errors(server, prompt)
    assert "got a link, or nothing, accepted: " in said_once(found, choice)


@pytest.mark.parametrize("choice", [c for c in ALL if not c.parents], ids=str)
@pytest.mark.parametrize("optional", [False, True])
def test_the_field_itself_is_marked(server: ComfyServer, choice: Choice, optional: bool) -> None:
    """And no other, whatever else the node has. optional: with everything that a node may have."""
    prompt = prompt_of(server, choice, "gone")
    if optional:
        described = server.get(f"/object_info/{choice.node}")[choice.node]["input"]
        given = filled({"required": described.get("optional", {})}, {})
        prompt[NODE]["inputs"] = {
            **{k: v for k, v in given.items() if not isinstance(v, list)},
            **prompt[NODE]["inputs"],
        }
    said = said_once(errors(server, prompt), choice)
    assert "gone" in said and (not choice.dynamic or said.startswith(f"{choice.field} - got gone, accepted: "))


@pytest.mark.parametrize("choice", [replace(choice, parents=()) for choice in DYNAMIC], ids=str)
def test_every_entry_is_taken_with_left_over_fields_of_another(server: ComfyServer, choice: Choice) -> None:
    """An API prompt that was made by hand may still have the fields of the entry that was chosen before."""
    known = entries(server.get(f"/object_info/{choice.node}")[choice.node]["input"], choice)
    for entry in known:
        prompt = prompt_of(server, replace(choice, parents=((choice.field, entry),)), entry)
        prompt[NODE]["inputs"] |= {f"{choice.field}.left_over": 3, "another": "x"}
        assert errors(server, prompt) == []


def test_left_over_fields_do_not_reach_a_run(server: ComfyServer) -> None:
    for choice in DYNAMIC:
        if choice.node in ("FlowCacheChunkwiseReuse", "FlowCacheKVCompressor", "FlowCacheARSampler"):
            known = entries(server.get(f"/object_info/{choice.node}")[choice.node]["input"], choice)
            prompt = prompt_of(server, replace(choice, parents=((choice.field, known[-1]),)), known[-1])
            prompt[NODE]["inputs"] |= {f"{choice.field}.left_over": 3, "another": "x"}
            server.run(prompt)
