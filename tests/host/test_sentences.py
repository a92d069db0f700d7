"""Sentences that the nodes say in the page: every one has its Chinese, and is said where the page is Chinese."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import folder_paths
import pytest
from hostkit import NODES, load, module
from in_source import HOLE, Source, speaks

ROOT = Path(__file__).resolve().parents[2]
TABLE = json.loads((ROOT / "web" / "sentences.zh.json").read_text(encoding="utf-8"))
said = module("nodes.adapters.shown.said")
auto = module("flowcache_core.presets.auto")


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= sign <= "\u9fff" for sign in text)


@pytest.fixture(scope="module")
def source() -> Source:
    files = [file for part in ("nodes", "flowcache_core") for file in (ROOT / part).rglob("*.py")]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    return Source({name: file for name, file in names.items() if not name.endswith(".__main__")})


@pytest.fixture(scope="module")
def declared() -> set[str]:
    """What the host translates by itself (locales/), and what a node offers to choose, which stays as it is."""
    found: set[str] = set()
    inputs = [one for node in NODES.values() for one in node.define_schema().inputs]
    while inputs:
        one = inputs.pop()
        found |= {one.tooltip or "", str(getattr(one, "default", ""))}
        for option in getattr(one, "options", None) or ():
            found.add(option if isinstance(option, str) else option.key)
            inputs += [] if isinstance(option, str) else option.inputs
    todo: list[Any] = [json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))]
    while todo:
        one = todo.pop()
        todo += one.values() if isinstance(one, dict) else ()
        found |= {one} if isinstance(one, str) else set()
    return found


def left_in_english(sentence: str) -> bool:
    chinese = [said.chinese(line.replace(HOLE, "9")) for line in sentence.split("\n")]
    return any(not is_chinese(line) or speaks(line) for line in chinese)


def test_no_error_that_the_page_can_show_is_missing(source: Source) -> None:
    """Of every module that the nodes come to by imports: what only commands, training and sweeps import is none."""
    reached = source.reached("nodes")
    found = {text for name in reached for text in source.errors(name)}
    assert len(found) > 500 and not any(".commands" in name for name in reached)
    assert [text for text in sorted(found) if left_in_english(text)] == []


def test_no_other_words_are_missing(source: Source, declared: set[str]) -> None:
    """Notes, reports, what pictures say. Modules that hold Chinese themselves have their own way."""
    own = {name for name, one in source.modules.items() if is_chinese(one.path.read_text(encoding="utf-8"))}
    words = {text for name in source.reached("nodes") - own for text in source.words(name)}
    found = {text for text in words if not any(text in one for one in declared)}
    assert len(found) > 300
    assert [text for text in sorted(found) if left_in_english(text)] == []


def test_the_table_is_in_order() -> None:
    assert list(TABLE) == sorted(TABLE)
    assert [text for text in TABLE if HOLE * 2 in text] == []  # where one ends and the other begins cannot be told


def test_no_title_of_a_template_is_missing() -> None:
    files = [*(ROOT / "workflows").glob("*.json"), *(ROOT / "subgraphs").glob("*.json")]
    graphs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    titles = {one["title"] for graph in graphs for one in (*graph.get("groups", ()), *graph["nodes"]) if "title" in one}
    assert len(titles) > 20 and sorted(titles - set(TABLE)) == []


def chinese_pages() -> dict[str, str]:
    """Notes of the templates and help pages."""
    notes = json.loads((ROOT / "web" / "notes.zh.json").read_text(encoding="utf-8"))
    return notes | {str(path): path.read_text(encoding="utf-8") for path in (ROOT / "web" / "docs").glob("*/zh.md")}


def test_bold_words_end_where_they_should() -> None:
    """Markdown takes stars behind a sign for the end of bold words only where no letter follows at once."""
    pages = chinese_pages()
    assert len(pages) > 30
    for name, page in pages.items():
        for line in page.splitlines():
            parts = line.split("**")
            assert len(parts) % 2, (name, line)
            for bold, after in zip(parts[1::2], parts[2::2], strict=True):
                assert bold[-1].isalnum() or not after or not after[0].isalnum(), (name, bold, after)


def test_notes_name_fields_as_the_page_does() -> None:
    english, chinese = (
        json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
        for language in ("en", "zh")
    )
    fields = {
        entry["name"]
        for kind, node in english.items()
        for key, entry in node["inputs"].items()
        if chinese[kind]["inputs"][key]["name"] != entry["name"]
    }
    for name, page in chinese_pages().items():
        named = set(re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", page))
        assert not named & fields, name


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


def test_what_multi_gpu_says_is_chinese() -> None:
    choice, shape = module("nodes.adapters.ranks.choice"), module("flowcache_core.parallel.shape")
    fault = module("flowcache_core.parallel.launch").fault
    found = [
        choice.RanksChoice(ranks, shared).describe(shape.Shareable(2, 8, 8), choice.Devices(kind, 4))
        for ranks, shared, kind in ((2, choice.BRANCHES_FIRST, "cpu"), (4, choice.HEADS_ONLY, "cuda"))
    ]
    found.append(choice.RanksChoice(6).describe(shape.Shareable(2, 3, 3), choice.Devices("cpu", 1)))
    ends = [([None, 75], ["", ""]), ([None, None], ["", ""]), ([-9, 75], ["", ""]), ([75, 75], ["", ""])]
    found += [f"{choice.NAME}: {fault(codes, errors, 20.0)}" for codes, errors in ends]
    for line in "\n".join(found).split("\n"):
        turned = said.chinese(line)
        assert is_chinese(turned) and " rank" not in turned.replace(" ranks 须", ""), turned
