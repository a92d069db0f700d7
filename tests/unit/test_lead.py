"""The first lines of a report."""

from __future__ import annotations

import re
import string
from dataclasses import replace

import pytest

from flowcache_core.report.comparison import SEEN
from flowcache_core.report.lead import Outcome, megabytes, time
from flowcache_core.report.words import CHINESE, ENGLISH, words

RUN = Outcome(
    preset="mini: slow", steps=50, chunks=4, done=200, total=200, computed=100, seconds=25.0, saved=41.0,
    kv_bytes=3.0e6, whole_bytes=4.7e6, expected=65.4,
)  # fmt: skip
PLAIN = replace(RUN, preset=None, computed=200, saved=0.0, kv_bytes=4.7e6, expected=None)


def test_what_was_saved():
    assert RUN.headline() == "mini: slow: saved 41 s of 66 s (2.6 x), K/V 3.0 of 4.7 MB, expected 65 dB"
    assert PLAIN.headline() == "no reuse: took 25 s, K/V 4.7 MB"
    assert replace(RUN, done=37).headline().startswith("mini: slow: broken off after 37 of 200 steps, ")
    assert "dB" not in replace(RUN, fault="chunk 2, step 3").headline()


def test_a_run_that_saved_nothing_does_not_say_that_it_did():
    nothing = replace(RUN, computed=200, saved=0.0)
    assert "saved " not in nothing.headline().replace("no time saved", "") and "no time saved" in nothing.headline()


@pytest.mark.parametrize(("least", "seen"), SEEN)
def test_how_near(least, seen):
    assert seen in replace(RUN, expected=least).nearness()
    foretold = replace(RUN, expected=least, measured=False).nearness()
    assert seen in foretold and "recording" in foretold


def test_what_else_changes_the_video_comes_on_top():
    """The calibration knows of reuse alone; its dB must not stand for a run that dropped history or attention too."""
    assert "on top" not in RUN.nearness()
    both = replace(RUN, beside=("kv budget", "sparse"))
    assert "What bounded K/V and sparse attention changed comes on top." in both.nearness()
    assert both.headline().endswith("expected 65 dB from reuse alone")
    assert "受限的 K/V 和稀疏注意力带来的变化另计" in both.nearness("zh")


@pytest.mark.parametrize("beside", ["kv budget", "kv format", "sparse"])
def test_nothing_reused_is_not_nothing_changed(beside):
    assert PLAIN.nearness() == "Nothing was reused: it is the uncached video."
    changed = replace(PLAIN, beside=(beside,))
    assert "uncached video" not in changed.nearness() and "Compare measures" in changed.nearness()


ADVICE = {
    "rival": (RUN, "with 25 plain steps"),
    "long": (replace(RUN, chunks=20, kv_bytes=4.7e6), "KV Cache Compressor"),
    "long and bounded": (replace(RUN, chunks=20), "plain steps"),
    "nothing measured": (replace(RUN, expected=None), "record"),
    "recorded": (replace(RUN, preset="record", computed=200), "FlowCache Calibrate"),
    "nothing chosen": (PLAIN, "preset auto"),
    "few steps": (replace(PLAIN, preset="auto", steps=4), "KV Cache Compressor"),
    "few steps, bounded": (replace(PLAIN, preset="auto", steps=4, kv_bytes=1e6), "run without KV Cache Compressor"),
    "few steps, compressor that kept all": (
        replace(PLAIN, preset="auto", steps=4, compressor=True),
        "a smaller budget of KV Cache Compressor",
    ),
    "few steps, no K/V": (replace(PLAIN, steps=4, kv_bytes=0, whole_bytes=0), "more steps"),
    "long, compressor that kept all": (replace(RUN, chunks=20, kv_bytes=4.7e6, compressor=True), "plain steps"),
    "auto that reused nothing": (replace(PLAIN, preset="auto (mini: slow)"), "a lower fidelity"),
    "other reuse that reused nothing": (replace(PLAIN, preset="custom"), "preset auto"),
    "broken": (replace(RUN, fault="chunk 0, step 0"), "not finite"),
}


@pytest.mark.parametrize("case", ADVICE)
def test_what_to_try_next(case):
    run, expected = ADVICE[case]
    assert run.advice().startswith("Next: ") and expected in run.advice()


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_say_the_same_things():
    assert CHINESE.keys() == ENGLISH.keys()
    for key, text in ENGLISH.items():
        assert fields(text) == fields(CHINESE[key]), key
    assert {f"{least:g}": seen for least, seen in SEEN} == {f"{least:g}": ENGLISH[f"{least:g}"] for least, _ in SEEN}


@pytest.mark.parametrize("case", ADVICE)
def test_in_chinese_only_names_are_latin(case):
    for line in ADVICE[case][0].lines("zh-TW"):
        plain = re.sub(r"mini: slow|K/V|MB|dB|FlowCache|KV|record|dtype|LoRA|auto|chunk \d, step \d|\bs\b", "", line)
        assert re.search("[\u4e00-\u9fff]", line) and not re.search("[A-Za-z]{2,}", plain), line


def test_other_languages_are_english():
    assert words("fr") is words("en") is ENGLISH


def test_times_and_sizes():
    assert [time(value) for value in (0, 9.94, 41.4, 200, 7500)] == [
        "0.0 s",
        "9.9 s",
        "41 s",
        "3 min 20 s",
        "2 h 5 min",
    ]
    assert [megabytes(value) for value in (1.2e4, 3e6, 4.26e9)] == ["0.012", "3.0", "4260"]
