"""Sentences that the nodes say in the page: every one has its Chinese, and is said where the page is Chinese."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
import pytest
from hostkit import NODES, load, module

ROOT = Path(__file__).resolve().parents[2]
TABLE = json.loads((ROOT / "web" / "sentences.zh.json").read_text(encoding="utf-8"))
CALLS = {"require": (3, 2), "SettingError": (2, 1), "Found": (0,), "NotKnownError": (0,), "NoRecordError": (0,)}
LETTERS = 8  # of a sentence that is more than signs between what is put in
said = module("nodes.adapters.shown.said")
auto = module("flowcache_core.presets.auto")


def template(node: ast.expr) -> str | None:
    """A sentence with {} for what is put in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def either(node: ast.expr) -> list[ast.expr]:
    return [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]


def assigned(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name, sentence) of every name that one is given to."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        target, value = node.targets[0], node.value
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts, strict=True))
        for name, given in pairs:
            for one in either(given):
                if isinstance(name, ast.Name) and (found := template(one)) is not None:
                    yield name.id, found


def sentences(folder: Path) -> Iterator[str]:
    """What errors accept and find, and reasons, of every file below ``folder``."""
    for tree in (ast.parse(file.read_text(encoding="utf-8")) for file in folder.rglob("*.py")):
        names = list(assigned(tree))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            places = CALLS.get(getattr(call.func, "id", ""), ())
            for given in (one for at in places if at < len(call.args) for one in either(call.args[at])):
                if isinstance(given, ast.Name):
                    yield from (text for name, text in names if name == given.id)
                elif (text := template(given)) is not None:
                    yield text


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= sign <= "\u9fff" for sign in text)


def test_no_sentence_of_the_nodes_is_missing() -> None:
    found = {text for text in sentences(ROOT / "nodes") if sum(map(str.isalpha, text)) >= LETTERS}
    assert len(found) > 150
    assert [text for text in sorted(found) if not is_chinese(said.chinese(text.replace("{}", "9")))] == []


def test_no_title_of_a_template_is_missing() -> None:
    files = [*(ROOT / "workflows").glob("*.json"), *(ROOT / "subgraphs").glob("*.json")]
    graphs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    titles = {one["title"] for graph in graphs for one in (*graph.get("groups", ()), *graph["nodes"]) if "title" in one}
    assert len(titles) > 20 and sorted(titles - set(TABLE)) == []


@pytest.mark.parametrize("english", TABLE)
def test_what_is_put_in_is_kept(english: str) -> None:
    count = english.count("{}")
    parts = [f"part-{number}" for number in range(count)]
    whole = english
    for part in parts:
        whole = whole.replace("{}", part, 1)
    chinese = said.chinese(whole)
    assert all(part in chinese for part in parts), chinese
    assert not said.HOLE.search(chinese.replace("{...}", ""))


@pytest.fixture
def in_chinese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a page whose browser is Chinese says it; nobody has chosen a language."""
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    monkeypatch.setitem(module("nodes.adapters.shown.page").TOLD, "language", "zh-CN")


@pytest.mark.usefixtures("in_chinese")
def test_an_error_names_node_and_field_as_the_page_does() -> None:
    fields: dict[str, Any] = {"method": "importance-redundancy", "pool_kernel": 4}
    with pytest.raises(
        ValueError, match="KV \u7f13\u5b58\u538b\u7f29\uff0c.*\u6536\u5230 4\uff0c\u53ef\u7528\uff1a\u5947\u6570"
    ):
        NODES["FlowCacheKVCompressor"].execute(
            model=load(), budget=4.0, method=fields, dtype="same as the model", device="same as the model"
        )


@pytest.mark.usefixtures("in_chinese")
def test_a_wrong_choice_before_the_run() -> None:
    answer = NODES["FlowCacheChunkwiseReuse"].validate_inputs(preset="gone")
    assert answer.startswith("\u6536\u5230 gone\uff0c\u53ef\u7528\uff1aauto, custom")


def test_in_english_nothing_changes() -> None:
    sentence = "KV Cache Compressor, pool_kernel: got 4, accepted: an odd whole number"
    assert said.said(sentence) == sentence


def test_what_auto_says_is_chinese() -> None:
    """The sentences as they are made, not as somebody copied them."""
    run = auto.Run(4)
    shifted = module("flowcache_core.schedule").shifted
    others = [auto.Run(33), auto.Run(33, shifted(33, 7.0), model="other.safetensors")]
    like = auto.Run(50, shifted(50, 3.0), guidance=30.0, solver="unipc")
    notes = [note for one in (run, *others, like) for note in auto.choose(one, 0.5).notes]
    assert len(notes) >= 4
    for note in notes:
        assert is_chinese(said.chinese(note)) and " is " not in said.chinese(note), said.chinese(note)
