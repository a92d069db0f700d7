"""Command lines that cannot work: one short line that names the argument, status 2, before any work, within seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_fuzz_files import bounded

from benchmarks.__main__ import main as bench
from benchmarks.curve import main as curve
from benchmarks.magi import main as magi_bench
from benchmarks.redundancy import main as redundancy
from flowcache_core.__main__ import COMMANDS, main
from flowcache_core.errors import SettingError

LONG = "x" * 10_000
MODEL = ["--model", "skyreels-v2-1.3b-540p"]
CALIBRATE = ["calibrate", "--model", "mini"]
LINES: dict[str, tuple[list[str], str]] = {
    "no command": ([], "command"),
    "two dashes": (["--"], "command"),
    "an unknown command": ([LONG], "command"),
    "steps of a demo": (["demo", "--steps", "1000000"], "got 1000000, accepted: a whole number >= 1 and <= 1000"),
    "no steps": (["demo", "--steps", "0"], "steps"),
    "steps of many digits": (["demo", "--steps", "9" * 5000], "steps"),
    "steps that are no number": (["demo", "--steps", LONG], "--steps"),
    "chunks of a demo": (["demo", "--chunks", "1000000000"], "chunks"),
    "a seed": (["demo", "--seed", "-1"], "seed"),
    "a guidance": (["demo", "--guidance", "nan"], "guidance"),
    "guidance never": (["demo", "--guidance-every", "0"], "guidance_every"),
    "guidance now and then without any": (["demo", "--guidance", "1", "--guidance-every", "2"], "guidance_every"),
    "low frequencies": (["demo", "--low-frequencies", "2"], "strength"),
    "a preset of mini scenes": (["demo", "--model", "scenes", "--preset", "fast-30"], "slow, balanced, fast, slow-20"),
    "a threshold": (["demo", "--threshold", "inf"], "threshold"),
    "a warm-up": (["demo", "--policy", "chunkwise", "--warmup", "99999999999999999999"], "warmup_steps"),
    "a budget": (["demo", "--kv-budget", "nan"], "budget"),
    "a budget that is a word": (["demo", "--kv-budget", LONG], "--kv-budget"),
    "a compressor": (["demo", "--compressor", LONG], "compressor"),
    "a plan": (["demo", "--plan", LONG], "plan"),
    "a policy": (["demo", "--policy", LONG], "policy"),
    "a preset": (["demo", "--preset", LONG], "preset"),
    "a preset file": (["demo", "--preset", f"{LONG}.json"], "preset file"),
    "a prompt": (["demo", "--prompt", LONG], "prompt"),
    "a folder": (["demo", "--out", LONG], "out"),
    "an unknown argument": (["demo", f"--{LONG}"], "unrecognized"),
    "a word alone": (["demo", "--", LONG], "unrecognized"),
    "steps of cost": (["cost", *MODEL, "--steps", "999999999999"], "steps"),
    "many steps of cost": (["cost", *MODEL, "--steps", "10000", "--chunks", "100"], "steps"),
    "chunks of cost": (["cost", *MODEL, "--chunks", "1000000000"], "chunks"),
    "negative chunks of cost": (["cost", *MODEL, "--chunks", "-5"], "chunks"),
    "computed steps of cost": (["cost", *MODEL, "--preset", "vanilla", "--computed", "-3"], "computed"),
    "a budget of cost": (["cost", *MODEL, "--kv-budget", "-1"], "budget"),
    "a total of cost": (["cost", *MODEL, "--budget-total", "1e999"], "budget_total"),
    "a model of cost": (["cost", "--model", LONG], "model"),
    "no model of cost": (["cost"], "--model"),
    "steps of schedule": (["schedule", *MODEL, "--preset", "vanilla", "--steps", "999999999999"], "steps"),
    "a shift of schedule": (["schedule", *MODEL, "--preset", "vanilla", "--shift", "nan"], "shift"),
    "weights of schedule": (["schedule", *MODEL, "--preset", "reference-slow", "--weights", LONG], "checkpoint xxx"),
    "a folder of schedule": (["schedule", *MODEL, "--preset", "reference-slow", "--weights", "."], "folder"),
    "steps of calibrate": ([*CALIBRATE, "--target", "0.5", "--steps", "201"], "steps"),
    "pairs of calibrate": ([*CALIBRATE, "--target", "0.5", "--pairs", "9"], "pairs"),
    "shares of calibrate": ([*CALIBRATE, "--target", "0.5", "--thorough", "--shares", "0.5,2"], "shares"),
    "shares that are no numbers": ([*CALIBRATE, "--target", "0.5", "--shares", "half"], "--shares"),
    "a target of calibrate": ([*CALIBRATE, "--target", "nan"], "target"),
    "decibels of calibrate": ([*CALIBRATE, "--target-psnr", "nan"], "target_psnr"),
    "a name of calibrate": ([*CALIBRATE, "--target", "0.5", "--name", LONG], "name"),
    "a name with a slash": ([*CALIBRATE, "--target", "0.5", "--name", "a/b"], "name"),
    "a file of calibrate": ([*CALIBRATE, "--target", "0.5", "--out", LONG], "out"),
    "a solver of calibrate": ([*CALIBRATE, "--target", "0.5", "--solver", LONG], "solver"),
    "samples": (["evaluate-mini", "--samples", "0"], "samples"),
    "many samples": (["evaluate-mini", "--samples", "1000000"], "samples"),
    "rows": (["evaluate-mini", "--rows", "0", "--picture", "a.png"], "rows"),
    "a picture": (["evaluate-mini", "--picture", "a.xyz"], "picture"),
    "a picture without extension": (["evaluate-mini", "--picture", "a"], "picture"),
    "a picture of a long name": (["evaluate-mini", "--picture", f"{LONG}.png"], "picture"),
    "a score of a long name": (["evaluate-mini", "--json", LONG], "json"),
    "steps of the evaluation": (["evaluate-mini", "--steps", "1000000"], "steps"),
    "chunks of the evaluation": (["evaluate-mini-magi", "--chunks", "0"], "chunks"),
    "a guidance of the evaluation": (["evaluate-mini-magi", "--guidance", "inf"], "guidance"),
    "a device of the training": (["train-mini", "--device", LONG], "--device"),
    "minutes of the training": (["train-mini", "--minutes", "nan"], "minutes"),
    "steps of the training": (["train-mini-magi", "--steps", "0"], "steps"),
    "a benchmark": (["bench", LONG], "bench"),
    "two dashes of bench": (["bench", "--"], "bench"),
    "options of two benchmarks": (["bench", "curve", "length", "--pairs", "1"], "options"),
    "options of one that has none": (["bench", "length", "--pairs", "1"], "options"),
    "a model of the curve": (["bench", "curve", "--model", LONG], "--model"),
}  # fmt: skip


def run(line: list[str], capsys: pytest.CaptureFixture[str], what: str) -> tuple[int, str]:
    """Status and what was written to stderr."""
    with bounded(what):
        try:
            status = bench(line[1:]) if line[:1] == ["bench"] else main(line)
        except SystemExit as stop:  # argparse's own
            status = int(stop.code or 0)
    return status, capsys.readouterr().err


@pytest.mark.parametrize("what", LINES)
def test_lines_that_cannot_work(what, tmp_path, monkeypatch, capsys):
    line, named = LINES[what]
    monkeypatch.chdir(tmp_path)
    status, told = run(line, capsys, what)
    last = told.strip().splitlines()[-1]
    assert status == 2 and named in last and len(last) < 1200, told[-2000:]
    assert LONG not in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_a_device_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["train-mini", "--device", "cuda"], capsys, "train")[0] == 2
    for name in ("cuda", "cuda:7", "meta", "no such", ""):
        with pytest.raises(SettingError, match="device: got"):
            redundancy(["--device", name, "--length", "8"])


@pytest.mark.parametrize(
    ("call", "line", "named"),
    [
        (redundancy, ["--length", "1000000"], "length"),
        (redundancy, ["--heads", "0"], "heads"),
        (redundancy, ["--head-dim", "-1"], "head_dim"),
        (redundancy, ["--repeats", "0"], "repeats"),
        (curve, ["--pairs", "0"], "pairs"),
        (magi_bench, ["--pairs", "1000000000"], "pairs"),
    ],
)
def test_benchmarks_on_their_own(call, line, named):
    with bounded(named), pytest.raises(SettingError, match=f"{named}: got"):
        call(line)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_what_it_does_not_know_in_one_short_line(command, capsys):
    status, told = run([command, f"--no-such-thing={LONG}"], capsys, command)
    assert status == 2 and len(told.strip().splitlines()[-1]) < 500 and LONG not in told


@pytest.mark.skipif(os.name == "nt", reason="names there are text")
def test_a_name_that_is_no_text(tmp_path):
    """As a process: its streams are the real ones."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json")
    command = [sys.executable, "-m", "flowcache_core", "demo", "--preset", name, "--prompt", os.fsdecode(b"\xff")]
    done = subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == 2 and b"Traceback" not in done.stderr and b"\\udcff.json" in done.stderr
