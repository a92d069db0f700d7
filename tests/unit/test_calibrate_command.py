"""``calibrate`` as a user calls it: recordings that go on, targets, dry runs, released weights, bad input."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from flowcache_core.__main__ import main as entrance
from flowcache_core.calibrate import weights as released
from flowcache_core.calibrate.bundled import PROMPTS, Mini
from flowcache_core.calibrate.recording import Recording
from flowcache_core.calibrate.runs import generated, paired
from flowcache_core.calibrate.thorough import Bench, Kept
from flowcache_core.commands import calibrate as command
from flowcache_core.commands import calibrate_call
from flowcache_core.engine import generate
from flowcache_core.errors import SettingError
from flowcache_core.models.magi.config import MagiConfig
from flowcache_core.models.magi.transformer import MagiTransformer
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.presets import load_preset
from flowcache_core.reuse.forecast import Forecast

STEPS, CHUNKS = 6, 2
SHORT = ["--model", "mini", "--steps", str(STEPS), "--chunks", str(CHUNKS)]


def call(folder, *more: str, base=SHORT) -> int:
    return command.main([*base, "--out", str(folder / "mine.json"), *more])


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """Seeds of the videos that were generated to be recorded."""
    found: list[int] = []

    def counted(specimen, setup, batch, **options):
        found.extend(seed for _, seed in batch)
        return generated(specimen, setup, batch, **options)

    monkeypatch.setattr(calibrate_call, "generated", counted)
    return found


def test_a_recording_goes_on_where_it_was(tmp_path, runs, capsys):
    assert call(tmp_path, "--target", "0.7") == 0
    assert call(tmp_path, "--target", "0.9", "--runs", "2", "--name", "more") == 0
    assert call(tmp_path, "--target-speed-up", "1.5", "--name", "third") == 0  # all there: nothing is run
    assert runs == [5000, 5001]
    recording = Recording.load(tmp_path / "mini.recording.json")
    assert (recording.grams.first.count, recording.grams.later.count, recording.grams.begun) == (2, 2, 4)
    assert recording.sources == tuple(f"{PROMPTS[i]}, seed {5000 + i}" for i in range(2))
    assert len(recording.facts.sha256) == 64 and recording.facts.shift == 3.0
    row = load_preset("mini", f"{tmp_path / 'mine.json'}:calibrated")
    assert row.requires == {"steps": STEPS, "shift": 3.0} and row.policy.together
    assert set(json.loads((tmp_path / "mine.json").read_text())["presets"]) == {"calibrated", "more", "third"}
    shown = capsys.readouterr().out
    assert "steps computed in the first chunk" in shown and "dB expected" in shown
    assert {path.name for path in tmp_path.iterdir()} == {"mine.json", "mini.recording.json"}


def test_what_was_recorded_is_the_uncached_run(tmp_path):
    specimen = Mini()
    setup = replace(specimen.default, steps=STEPS, chunks=CHUNKS)
    call(tmp_path, "--target", "0.7")
    recording = Recording.load(tmp_path / "mini.recording.json")
    seen = {}

    class Stored(type(specimen.denoiser([PROMPTS[0]], setup))):
        def guide(self, velocity, item):
            seen[item.chunk.index, item.step] = super().guide(velocity, item)
            return seen[item.chunk.index, item.step]

    usual = specimen.denoiser([PROMPTS[0]], setup)
    denoiser = Stored(usual.transformer, usual.prompts, usual.guidance)
    generate(denoiser, specimen.settings(setup), specimen.noise(CHUNKS, 5000))
    for chunk, table in enumerate(recording.grams.tables()):
        rows = torch.stack([seen[chunk, step].flatten() for step in range(STEPS)]).double()
        expected = rows @ rows.T / rows.shape[1]
        assert (torch.from_numpy(table) - expected).abs().max() < 1e-5 * expected.max()


def test_an_interrupted_run_keeps_its_whole_chunks_and_says_so(tmp_path, monkeypatch, capsys):
    def stopping(specimen, setup, batch, *, observe, **options):
        def until(event):
            observe(event)
            if getattr(event, "chunk", None) == 1 and getattr(event, "step", None) == 3:
                raise KeyboardInterrupt

        return generated(specimen, setup, batch, observe=until, **options)

    monkeypatch.setattr(calibrate_call, "generated", stopping)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path, "--target", "0.7")
    recording = Recording.load(tmp_path / "mini.recording.json")
    assert (recording.grams.begun, recording.grams.whole) == (2, 1)
    assert recording.sources == (f"{PROMPTS[0]}, seed 5000 (interrupted)",)
    monkeypatch.setattr(calibrate_call, "generated", generated)
    assert call(tmp_path, "--target", "0.7") == 0  # a whole one is missing still, with a seed of its own
    assert Recording.load(tmp_path / "mini.recording.json").sources[1] == f"{PROMPTS[1]}, seed 5001"
    assert "note: 1 of 4 chunks were not finished" in capsys.readouterr().out


def test_a_dry_run_says_what_it_takes_and_leaves_nothing(tmp_path, capsys):
    assert call(tmp_path, "--target", "0.7", "--runs", "3", "--dry-run") == 0
    assert f"{3 * CHUNKS * (STEPS + 1)} chunk steps, {6 * CHUNKS * (STEPS + 1)} forwards" in capsys.readouterr().out
    assert call(tmp_path, "--target", "0.7", "--thorough", "--pairs", "2", "--dry-run") == 0
    assert re.search(r"about \d+ (seconds|minutes)|about \d+\.\d minutes", capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []


def test_targets_in_seconds_and_those_that_cannot_be_met(tmp_path, capsys):
    assert call(tmp_path, "--target-seconds", "1e-6") == 0
    assert "seconds 1e-06 cannot be met; the nearest is 2 of 6 steps" in capsys.readouterr().out
    assert call(tmp_path, "--target-psnr", "99") == 0
    assert "6 of 6 steps computed in the first chunk and 6 in every other: 100% of all" in capsys.readouterr().out
    assert call(tmp_path, "--target-seconds", "1000") == 0
    assert "s per later chunk" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "7"], r"recording .*: got '6 steps', accepted: 7 steps, or another file"),
        (["--guidance", "5"], r"recording\.guidance: got 3.0, accepted: 5.0"),
        (["--plan", "staggered"], r"recording\.plan: got 'blockwise', accepted: 'staggered'"),
        (["--solver", "unipc"], r"recording\.solver"),
    ],
)
def test_a_recording_of_other_runs_is_refused(tmp_path, more, message):
    call(tmp_path, "--target", "0.7")
    before = (tmp_path / "mini.recording.json").read_bytes(), (tmp_path / "mine.json").read_bytes()
    with pytest.raises(SettingError, match=message):
        call(tmp_path, "--target", "0.7", *more)
    assert ((tmp_path / "mini.recording.json").read_bytes(), (tmp_path / "mine.json").read_bytes()) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "other"], "model: got 'other', accepted: mini, scenes, mini-magi, skyreels"),
        (["--plan", "spiral"], "plan: got 'spiral', accepted: blockwise"),
        (["--runs", "0"], "runs: got 0"),
        (["--chunks", "0"], "chunks: got 0"),
        (["--steps", "3"], "steps: got 3"),
        (["--solver", "magic"], "solver: got 'magic'"),
        (["--guidance", "nan"], "guidance: got nan"),
        (["--target", "0.1"], "target: got 0.1, accepted: a number from 0.333333 to 1"),
        (["--weights", "a.safetensors"], "weights: got .*bundled"),
        (["--model", "skyreels"], "weights: got None, accepted: a file: skyreels comes without"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_work(tmp_path, monkeypatch, more, message):
    monkeypatch.setattr(calibrate_call, "generated", lambda *_, **__: pytest.fail("the work has begun"))
    target = [] if "--target" in more else ["--target", "0.5"]
    with pytest.raises(SettingError, match=message):
        call(tmp_path, *target, *more)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_recording_is_one_line_at_the_entrance(tmp_path, capsys):
    (tmp_path / "mini.recording.json").write_text('{"schema": 9, "recording": {}}')
    assert entrance(["calibrate", *SHORT, "--target", "0.5", "--out", str(tmp_path / "mine.json")]) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 1 and "schema: got 9" in shown[0]
    assert not (tmp_path / "mine.json").exists()


# -- the full calibration ----------------------------------------------------------------------------------------------


def test_the_full_calibration_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    """Stopped in the middle of its measurements, it measures none of them twice."""
    short = ["--model", "mini", "--steps", "6", "--chunks", "2", "--pairs", "2", "--target", "0.7"]
    told = []
    keep = Kept.get

    def until(self, name, measure):
        if name not in self.values:
            told.append(name)
            if len(told) == 5:
                raise KeyboardInterrupt
        return keep(self, name, measure)

    monkeypatch.setattr(Kept, "get", until)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path, base=short)
    assert call(tmp_path, base=short) == 0
    assert len(told) == len(set(told)) + 1  # the one that was stopped
    row = load_preset("mini", str(tmp_path / "mine.json"))
    evidence = json.loads((tmp_path / "mine.json").read_text())["presets"]["calibrated"]["evidence"]
    assert row.curve and evidence["calibration_seeds"] == [5000, 5001] and evidence["deciding_seeds"] == [7000, 7003]
    assert all(point["psnr"] > 10 for point in evidence["curve"])
    assert "dB" in capsys.readouterr().out


@pytest.mark.parametrize("better", [1, 2])
def test_videos_decide_between_forecasts_too(tmp_path, monkeypatch, better):
    """The preset, its curve and what a second call finds hold the forecast that won, with the lists made for it."""
    quality = Bench.quality

    def measured(self, proposal):
        psnr, seconds = quality(self, proposal)
        return [value + 40 * (proposal.forecast.order == better) for value in psnr], seconds

    monkeypatch.setattr(Bench, "quality", measured)
    short = ["--model", "mini", "--steps", "8", "--chunks", "1", "--pairs", "2", "--shares", "0.6", "--target", "0.6"]
    for _ in range(2):
        assert call(tmp_path, base=short) == 0
        row = json.loads((tmp_path / "mine.json").read_text())["presets"]["calibrated"]
        told = {"name": "forecast", "order": better, "correction": better + 1}
        assert row["quantity"] == told and [point["quantity"] for point in row["evidence"]["curve"]] == [told]
        assert load_preset("mini", str(tmp_path / "mine.json")).quantity == Forecast(better, correction=better + 1)
    kept = json.loads((tmp_path / "mine.measured.json").read_text())
    names = [name for name in json.dumps(kept).split('"') if name.startswith("psnr")]
    assert len(names) == len(set(names)) and any(name.endswith("order 2 correction 3") for name in names)


# -- released weights, tiny --------------------------------------------------------------------------------------------

WAN = WanConfig(dim=24, ffn_dim=40, num_layers=2, num_heads=2, text_dim=20, freq_dim=16)
MAGI = MagiConfig(48, 40, 2, 6, 2, 8, 12, text_dim=20, text_len=60, freq_dim=16, bands=1)


def write_tiny(folder, name: str) -> list[str]:
    """Files of a tiny model of that name; the arguments that name them."""
    torch.manual_seed(0)
    model = MagiTransformer(MAGI) if name == "magi" else WanTransformer(replace(WAN, fps_embedding=name == "skyreels"))
    tensors = {key: 0.2 * torch.randn(value.shape) for key, value in model.state_dict().items()}
    if name == "magi":
        tensors |= {k: v for k, v in model.state_dict().items() if k.endswith("bands")}
    metadata = {"config": json.dumps({"transformer": {"num_heads": WAN.num_heads}})}
    save_file(tensors, folder / "weights.safetensors", metadata)
    text = {"prompt": torch.randn(2, 5, 20), "negative": torch.randn(1, 5, 20), "mask": torch.ones(2, 5)}
    save_file(text, folder / "prompts.safetensors")
    files = ["--weights", str(folder / "weights.safetensors"), "--prompts", str(folder / "prompts.safetensors")]
    return ["--model", name, *files, "--height", "32", "--width", "32", "--chunks", "3"]


@pytest.mark.parametrize(
    ("name", "steps", "plan", "solver"),
    [("skyreels", "10", "staggered", "unipc"), ("wan", "6", "blockwise", "renoise"), ("magi", "8", "window", "euler")],
)
def test_every_family_the_loaders_know_is_recorded(tmp_path, name, steps, plan, solver):
    files = write_tiny(tmp_path, name)
    assert call(tmp_path, "--steps", steps, "--target", "0.6", "--runs", "2", base=files) == 0
    recording = Recording.load(tmp_path / f"{name}.recording.json")
    assert (recording.facts.plan, recording.facts.solver) == (plan, solver)
    assert recording.facts.model == "weights.safetensors" and len(recording.facts.sha256) == 64
    assert (recording.grams.first.count, recording.grams.later.count) == (2, 4)
    assert recording.sources == ("prompts.safetensors 0, seed 5000", "prompts.safetensors 1, seed 5001")
    row = load_preset("mini", str(tmp_path / "mine.json"))
    assert row.requires["steps"] == int(steps) and row.requires["shift"] == recording.facts.shift
    assert 2 <= len(row.policy.computed) <= len(row.policy.first) <= int(steps)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"text": torch.zeros(1, 2, 3)}, "prompts prompts.safetensors: got .*'text'"),
        ({"prompt": torch.zeros(2, 3)}, r"prompts prompts.safetensors: prompt: got \(2, 3\)"),
        ({"prompt": torch.zeros(2, 3, 20), "negative": torch.zeros(3, 3, 20)}, "negative: got"),
    ],
)
def test_prompts_of_another_form_are_refused(tmp_path, tensors, message):
    files = write_tiny(tmp_path, "wan")
    save_file(tensors, tmp_path / "prompts.safetensors")
    with pytest.raises(SettingError, match=message):
        call(tmp_path, "--steps", "6", "--target", "0.5", base=files)


def test_a_full_calibration_of_released_weights_needs_the_autoencoder(tmp_path):
    files = write_tiny(tmp_path, "wan")
    with pytest.raises(SettingError, match="vae: got None"):
        call(tmp_path, "--steps", "6", "--target", "0.5", "--thorough", base=files)


def test_families_have_the_prompts_of_no_benchmark():
    from benchmarks.mini_runs import PROMPTS as held_out

    assert not set(PROMPTS) & set(held_out)
    assert {pair[1] for pair in paired(PROMPTS, 5000, 64)}.isdisjoint({pair[1] for pair in paired(held_out, 1000, 64)})


def test_every_released_family_has_its_row_of_a_run():
    assert set(released.RELEASED) == {"skyreels", "wan", "magi"}
