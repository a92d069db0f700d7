"""The demo and its command line, on a tiny random model; once, end to end, on the bundled one."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowcache_core import __main__ as command_line
from flowcache_core.commands import demo, demo_models
from flowcache_core.mini import GUIDANCE, MiniModel
from flowcache_core.mini.text import TEXT_DIM, VOCABULARY, encode_prompt
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.models.wan.vae import WanVAE
from flowcache_core.models.wan.vae_layers import WanVAEConfig
from flowcache_core.report.events import RunFinished, RunStarted, StepTaken
from flowcache_core.report.progress import Progress, time_left
from flowcache_core.report.video import read_video

ROOT = Path(__file__).parents[2]
FILES = ["compare.mp4", "flowcache.mp4", "map.png", "report.json", "vanilla.mp4"]


def random_mini() -> MiniModel:
    torch.manual_seed(0)
    config = WanConfig(dim=16, ffn_dim=32, num_layers=2, num_heads=2, text_dim=TEXT_DIM, freq_dim=16)
    transformer = WanTransformer(config)
    torch.nn.init.normal_(transformer.head.head.weight, std=0.2)
    vae = WanVAE(WanVAEConfig(dim=2))
    return MiniModel(transformer.eval(), vae.eval(), encode_prompt, 3, 64, 3.0, 2.0, 16, VOCABULARY, {})


@pytest.fixture(scope="module")
def mini() -> MiniModel:
    return random_mini()


@pytest.fixture
def call(mini: MiniModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Call the demo through the command line: exit status, standard output, standard error."""
    monkeypatch.setattr(demo, "load_model", lambda _: mini)

    def run(*arguments: str) -> tuple[int, str, str]:
        base = ["demo", "--chunks", "3", "--steps", "6", "--out", str(tmp_path / "out")]
        try:
            status = command_line.main([*base, *arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        return (status, *capfd.readouterr())

    return run


def test_json_is_the_report_and_nothing_else(call: Any, tmp_path: Path) -> None:
    status, out, err = call("--json", "--threshold", "0.3", "--warmup", "2", "--kv-budget", "1", "--seed", "5")
    assert status == 0 and err == ""
    printed = json.loads(out, parse_constant=pytest.fail)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == FILES
    assert printed == json.loads((tmp_path / "out" / "report.json").read_text())
    vanilla, flowcache = printed["runs"]["vanilla"], printed["runs"]["flowcache"]
    assert vanilla["computed_steps"] == vanilla["total_steps"] == flowcache["total_steps"] == 18
    assert flowcache["computed_steps"] == 18 - flowcache["reused_steps"] < 18
    assert 0 < flowcache["pflops"] < vanilla["pflops"]
    assert flowcache["kv_bytes_peak"] < vanilla["kv_bytes_peak"]
    assert [len(run["cache_passes"]) for run in (vanilla, flowcache)] == [2, 2]
    assert flowcache["compressions"] and not vanilla["compressions"]
    assert 0 < printed["quality"]["psnr"] < 100 and 0 < printed["quality"]["ssim"] < 1
    assert printed["settings"].items() >= {
        "policy": "chunkwise", "threshold": 0.3, "warmup_steps": 2, "kv_budget": 1.0, "seed": 5,
        "tag": "chunkwise-t0.3-w2-velocity-kv1",
    }.items()  # fmt: skip
    frames = 1 + 4 * (3 * 3 - 1)
    assert read_video(tmp_path / "out" / "vanilla.mp4").shape == (frames, 256, 256, 3)
    assert read_video(tmp_path / "out" / "compare.mp4").shape[0] == frames


def test_the_report_says_where_the_run_lies_on_the_calibrated_curve() -> None:
    made = demo.configure(demo.parser().parse_args(["--quick", "--steps", "50"]), random_mini())
    assert made.guidance == GUIDANCE == 2.0
    measured = made.reuse.preset and made.reuse.preset.guidance
    policy = made.flowcache.policy
    share = (len(policy.first) + 3 * len(policy.computed)) / 200  # type: ignore[attr-defined]
    for plan, count in (("blockwise", 1), ("staggered", 0)):  # the curve was measured blockwise
        started = RunStarted(plan, 4, 0, 50, 200, 0, 0, 192, ())
        record = SimpleNamespace(computed_share=share, started=started, beside_reuse=("kv budget", "sparse"))
        remarks = demo.remarks(made, record)  # type: ignore[arg-type]
        assert len(remarks) == count
        for remark in remarks:
            assert remark.startswith(f"{share:.2f} of the steps computed; expected ")
            alone = "from reuse alone: bounded K/V and sparse attention not counted"
            assert remark.endswith(f" dB on this model (median, calibrated at guidance {measured:g}), {alone}")


def test_no_reuse_and_no_budget_is_the_same_video(call: Any) -> None:
    status, out, _ = call("--json", "--threshold", "0", "--kv-budget", "none")
    printed = json.loads(out)
    assert status == 0
    assert printed["quality"]["psnr"] == 100 and printed["quality"]["flicker"] == 0
    assert printed["runs"]["flowcache"]["notes"] == ["threshold 0: every step is computed"]


def test_text_has_table_map_files_and_machine(call: Any, tmp_path: Path) -> None:
    status, out, err = call("--threshold", "0.3", "--warmup", "2", "--plan", "staggered")
    assert status == 0
    for wanted in ("computed steps", "18 of 18 (100%)", "speed-up", "PSNR dB", "chunk 2 |ww"):
        assert wanted in out
    assert str(tmp_path / "out" / "map.png") in out
    assert f"torch {torch.__version__}" in out
    assert [line.split()[0] for line in err.splitlines()] == ["vanilla", "flowcache"]  # not a terminal: one line a run
    assert "18/18 steps, 0 reused" in err.splitlines()[0]


BAD = [
    (("--threshold", "nan"), "threshold: got nan"),
    (("--threshold", "-1"), "threshold: got -1.0"),
    (("--warmup", "7"), "warmup_steps: got 7"),
    (("--kv-budget", "0"), "budget: got 0.0"),
    (("--compressor", "zip"), "compressor: got 'zip', accepted: sink-window"),
    (("--policy", "often"), "policy: got 'often', accepted: chunkwise"),
    (("--preset", "nonesuch"), "preset: got 'nonesuch', accepted: vanilla"),
    (("--policy", "never", "--threshold", "0.1"), "policy never: got 'threshold'"),
    (("--plan", "sideways"), "plan: got 'sideways', accepted: blockwise, staggered, window"),
    (("--chunks", "0"), "chunks: got 0"),
    (("--steps", "0"), "steps: got 0"),
    (("--seed", "-1"), "seed: got -1"),
    (("--guidance", "inf"), "guidance: got inf"),
    (("--prompt", "a purple cow"), "prompt: got 'a purple cow'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_plain_line_and_no_file(arguments: Any, message: str, call: Any, tmp_path: Path) -> None:
    status, out, err = call(*arguments)
    assert status == 2 and out == ""
    assert err.startswith("demo: ") and message in err and "accepted: " in err and err.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unwritable_out_is_said_before_any_work(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "load_model", lambda _: pytest.fail("work was begun"))
    (tmp_path / "file").write_text("mine")
    status, out, err = call("--out", str(tmp_path / "file" / "demo"))
    assert (status, out) == (2, "")
    assert err.startswith("demo: out: got ") and "a folder that can be written" in err and err.count("\n") == 1


def test_a_disk_that_fills_up_leaves_no_half_file(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flowcache_core.files.os.replace", full)
    monkeypatch.setattr(demo, "require_folder", lambda out, names: None)
    status, _, err = call()
    assert status == 2 and err.splitlines()[-1].startswith("demo: out: ") and "the disk is full" in err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_rerun_that_fails_leaves_the_old_files_all_together(call: Any, tmp_path: Path, monkeypatch: Any) -> None:
    assert call("--policy", "never")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "mine.txt").write_text("mine")
    monkeypatch.setattr(demo.figure, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    status, _, err = call("--policy", "never", "--seed", "1")  # two of its three videos are written by then
    assert status == 2 and "the disk is full" in err
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert after == {**before, "mine.txt": b"mine"}


def test_a_folder_in_the_place_of_a_result_is_said_first(call: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(demo, "load_model", lambda _: pytest.fail("work was begun"))
    (tmp_path / "out" / "map.png").mkdir(parents=True)
    status, out, err = call()
    assert (status, out) == (2, "") and "map.png', accepted: a file, not a folder" in err and err.count("\n") == 1


class SpoiledDenoiser(WanDenoiser):
    """NaN from one step of chunk 1 on."""

    def compute(self, item: Any, cache: Any, *, keep_residual: bool = False, rows: Any = None) -> Any:
        output = super().compute(item, cache, keep_residual=keep_residual, rows=rows)
        if (item.chunk.index, item.step) == (1, 3):
            output = replace(output, velocity=output.velocity * math.nan)
        return output


@pytest.mark.parametrize("options", [("--json",), ()])
@pytest.mark.parametrize("policy", [("--threshold", "0.3", "--warmup", "4"), ("--policy", "teacache")])
def test_a_run_that_turns_nan_writes_everything_and_says_so(
    call: Any, tmp_path: Path, monkeypatch: Any, options: Any, policy: Any
) -> None:
    monkeypatch.setattr(demo_models, "WanDenoiser", SpoiledDenoiser)
    status, out, err = call(*options, *policy)
    assert status == 1
    last = err.splitlines()[-1]
    assert last.startswith("demo: run vanilla: values were not finite from chunk 1, step 3 on (in the velocity)")
    assert "run flowcache: values were not finite from chunk 1, step 3 on" in last and str(tmp_path / "out") in last
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == FILES
    written = (tmp_path / "out" / "report.json").read_text()
    report = json.loads(written, parse_constant=pytest.fail)
    assert report["quality"] is None
    assert report["runs"]["flowcache"]["not_finite"][0]["step"] == 3
    video = read_video(tmp_path / "out" / "vanilla.mp4")
    assert video[-8:].float().mean() < 20 < video[:5].float().mean()  # black, apart from what the codec leaves
    if options:
        assert json.loads(out) == report
    else:
        assert "chunk 1 |" in out and "xxx|" in out and "finite values" in out


def test_an_interrupt_is_not_a_traceback(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.Demo, "warm_up", stop)
    status, out, err = call()
    assert (status, out, err) == (130, "", "\ndemo: stopped\n")
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_extras_are_named(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EXTRAS", {"av": "av", "no_such_module": "no-such-package"})
    status, _, err = call()
    assert status == 2 and "no no-such-package" in err and "pip install no-such-package" in err


@pytest.mark.parametrize("arguments", [[], ["dance"]])
def test_unknown_commands_list_the_known_ones(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(arguments) == 2
    assert "accepted: demo, cost, " in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "redrawn"), [(Terminal(), True), (io.StringIO(), False)])
def test_progress_redraws_only_in_a_terminal(stream: io.StringIO, redrawn: bool) -> None:
    progress = Progress("run", stream)
    progress(RunStarted("blockwise", 1, 0, 4, 4, 0, 0, None, ()))
    for step in range(4):
        action = "reuse" if step == 2 else "compute"
        progress(StepTaken(step, 0, step, 0.5, action, "", None, None, 1, 1, 1, 1, 0.0))
    progress(RunFinished(1.25, 0.0))
    last = f"run       [{'#' * 30}] 4/4 steps, 1 reused, 1.2 s"
    written = stream.getvalue()
    if not redrawn:
        assert written == last + "\n"
        return
    assert written.endswith(f"\r{last}\033[K\n") and written.count("\r") >= 2
    assert written.startswith(f"\rrun       [{'#' * 7}{'.' * 23}] 1/4 steps, 0 reused, 0:00 left\033[K")


@pytest.mark.parametrize(
    ("done", "total", "seconds", "text"),
    [(0, 10, 0.0, "?"), (1, 10, 2.0, "0:18"), (5, 70, 25.0, "5:25"), (10, 250, 300.0, "2:00:00"), (4, 4, 9.0, "0:00")],
)
def test_time_left(done: int, total: int, seconds: float, text: str) -> None:
    assert time_left(done, total, seconds) == text


def test_quick_demo_on_the_bundled_model(tmp_path: Path) -> None:
    """What a new user runs, in a process of its own. Fails without the weights: they belong to the repository."""
    command = [sys.executable, "-m", "flowcache_core", "demo", "--quick", "--json", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES
    assert report["settings"]["chunks"] == 4 and report["settings"]["prompt"] == "a red circle moving right"
    vanilla, flowcache = report["runs"]["vanilla"], report["runs"]["flowcache"]
    assert flowcache["computed_steps"] <= 0.7 * vanilla["computed_steps"]
    assert flowcache["pflops"] < 0.75 * vanilla["pflops"]
    assert flowcache["kv_bytes_peak"] < vanilla["kv_bytes_peak"]
    assert report["quality"]["psnr"] > 20 and report["quality"]["ssim"] > 0.8 and math.isfinite(flowcache["seconds"])
    first = read_video(tmp_path / "vanilla.mp4")[8].float()
    red = (first[..., 0] > 150) & (first[..., 1] < 100) & (first[..., 2] < 100)
    assert 0.03 < red.float().mean() < 0.2  # a red shape of the right size is there


def test_guidance_now_and_then_and_low_frequencies(call: Any, tmp_path: Path) -> None:
    """Both change the FlowCache run only, and what the calibration promised holds no more."""
    status, out, _ = call("--json", "--guidance-every", "2", "--low-frequencies", "0.5")
    found = json.loads(out)
    assert status == 0 and found["settings"]["guidance_every"] == 2 and found["settings"]["low_frequencies"] == 0.5
    assert found["settings"]["expected_psnr"] is None
    plain = json.loads(call("--json")[1])["runs"]
    for name, more in (("vanilla", False), ("flowcache", True)):
        before, now = plain[name], found["runs"][name]
        assert now["computed_steps"] == before["computed_steps"]
        assert (now["pflops"] < 0.99 * before["pflops"]) if more else now["pflops"] == before["pflops"]
