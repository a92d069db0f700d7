"""Where the published saving comes from, counted change by change."""

from __future__ import annotations

import json

import pytest

from flowcache_core.commands.cost import main

MODEL = ["--model", "skyreels-v2-1.3b-540p"]


def cost(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main([*MODEL, *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("preset", "published"), [("vanilla", 113), ("reference-slow", 36), ("reference-fast", 28)])
def test_published_pflops_after_truncation(capsys, preset, published):
    assert int(cost(capsys, "--preset", preset)["pflops"]) == published


def test_waterfall_of_the_fast_preset(capsys):
    stages = cost(capsys, "--preset", "reference-fast")["waterfall"]
    assert [round(stage["pflops"], 1) for stage in stages] == [165.2, 113.4, 79.7, 28.7, 28.7]
    assert stages[0]["saved_share"] is None and sum(s["saved_share"] for s in stages[1:]) == pytest.approx(1)
    for before, after in zip(stages, stages[1:]):
        assert before["pflops"] - after["pflops"] == pytest.approx(after["saved_pflops"])
    # More of the published saving is attention pattern and cache than reuse.
    assert stages[1]["saved_share"] + stages[2]["saved_share"] > 0.6 > stages[3]["saved_share"] > 0.3


def test_a_budget_saves_where_chunks_have_finished(capsys):
    none = cost(capsys, "--preset", "fast", "--kv-budget", "1")
    assert none["waterfall"][-1]["saved_pflops"] == 0
    assert any("nothing to compress" in note for note in none["notes"])
    some = cost(capsys, "--preset", "fast", "--kv-budget", "1", "--steps", "50", "--chunks", "9")
    assert some["waterfall"][-1]["pflops"] == pytest.approx(some["pflops"])


def test_without_reuse_all_is_attention_and_cache(capsys):
    stages = cost(capsys, "--preset", "causal")["waterfall"]
    assert [stage["saved_pflops"] for stage in stages[3:]] == [0, 0]
    assert "waterfall" not in cost(capsys, "--preset", "vanilla")


def test_text_lists_every_change_with_its_share(capsys):
    assert main([*MODEL, "--preset", "reference-fast"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    found = {line[:40].strip(): line.split()[-3] for line in lines if line.endswith("% of it")}
    assert list(found.values()) == ["38%", "25%", "37%", "0%"]
