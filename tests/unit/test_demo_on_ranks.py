"""The demo on two ranks of this machine, as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowcache_core.report.video import read_video

ROOT = Path(__file__).parents[2]
SHORT = ["--quick", "--chunks", "2", "--steps", "6", "--rescale", "--kv-budget", "1"]


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowcache_core", "demo", *SHORT, *arguments]
    # The number of threads decides the order of a sum on some processors, and ranks share the cores among them.
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=590)


def test_the_same_videos_on_two_ranks(tmp_path):
    for ranks in ("1", "2"):
        done = demo("--ranks", ranks, "--out", str(tmp_path / ranks), "--rank-timeout", "120")
        assert done.returncode == 0, done.stderr
    assert "2 ranks (2 for guidance branches x 1 for attention heads)" in done.stdout
    for name in ("vanilla.mp4", "flowcache.mp4"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    reports = [json.loads((tmp_path / ranks / "report.json").read_text()) for ranks in ("1", "2")]
    assert [report["settings"]["mesh"] for report in reports] == ["1x1", "2x1"]
    kv = [report["runs"]["flowcache"]["kv_bytes_peak"] for report in reports]
    assert kv[0] == 2 * kv[1]


def test_torchrun_starts_it_as_well(tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "flowcache_core"]
    command = [sys.executable, *launch, "demo", *SHORT, "--ranks", "2", "--rank-timeout", "240", "--out", str(tmp_path)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 ranks (2 for guidance branches x 1 for attention heads)") == 1
    assert json.loads((tmp_path / "report.json").read_text())["settings"]["mesh"] == "2x1"


MAGI = ["--model", "mini-magi", "--policy", "chunkwise", "--threshold", "0.3", "--chunks", "6", "--steps", "8"]


def test_the_mini_magi_on_two_ranks_of_either_kind(tmp_path):
    """Branches: the same pixels. Heads: the same steps, and pixels that differ by a rounding."""
    for name, more in (("1", []), ("2x1", ["--ranks", "2"]), ("1x2", ["--ranks", "2", "--mesh", "1x2"])):
        done = demo(*MAGI, *more, "--out", str(tmp_path / name), "--rank-timeout", "240")
        assert done.returncode == 0, done.stderr
    reports = {name: json.loads((tmp_path / name / "report.json").read_text()) for name in ("1", "2x1", "1x2")}
    assert [report["settings"]["mesh"] for report in reports.values()] == ["1x1", "2x1", "1x2"]
    runs = [report["runs"]["flowcache"] for report in reports.values()]
    assert runs[0]["reused_steps"] > 0 and runs[0]["compressions"]
    assert len({run["reused_steps"] for run in runs}) == 1
    assert runs[0]["kv_bytes_peak"] == 2 * runs[1]["kv_bytes_peak"] == 2 * runs[2]["kv_bytes_peak"]
    for video in ("vanilla.mp4", "flowcache.mp4"):
        one, branches, heads = (read_video(tmp_path / name / video).int() for name in reports)
        assert one.shape == branches.shape and bool((one == branches).all())
        assert (one - heads).abs().max() <= 1 and one.float().std() > 10


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--model", "mini-magi", "--steps", "8", "--ranks", "5"], "ranks: got 5, accepted: 1, 2, 3, 4, 6"),
        (["--model", "mini-magi", "--steps", "8", "--plan", "blockwise"], "plan: got 'blockwise', accepted: window"),
        (["--model", "mini-magi", "--steps", "8", "--preset", "balanced"], "none with model mini-magi"),
        (["--model", "mini-magi", "--steps", "8", "--guidance-every", "2"], "guidance-every: got 2, accepted: 1 with"),
        (["--model", "magi"], "model: got 'magi', accepted: mini, scenes, mini-magi"),
        (["--ranks", "3"], "ranks: got 3, accepted: 1, 2, 4, 8"),
        (["--ranks", "0"], "ranks: got 0"),
        (["--ranks", "2", "--mesh", "two"], "mesh: got 'two', accepted: BRANCHESxHEADS"),
        (["--ranks", "4", "--mesh", "4x1"], "mesh: got '4x1'"),
        (["--ranks", "2", "--guidance", "1", "--mesh", "2x1"], "1 for 1 branches"),
        (["--ranks", "2", "--rank-timeout", "0"], "rank timeout: got 0"),
    ],
)
def test_bad_input_before_anything_starts(arguments, said, tmp_path):
    done = demo(*arguments, "--out", str(tmp_path))
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
