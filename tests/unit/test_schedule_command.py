"""The table of computed steps: fixed ones, measured ones, and what is said without weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flowcache_core.commands.schedule import main
from flowcache_core.errors import SettingError
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.presets import load_preset
from flowcache_core.schedule import skyreels

MODEL = ["--model", "skyreels-v2-1.3b-540p"]


def out(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("preset", "count"), [("slow", 39), ("fast", 34), ("causal", 50)])
def test_fixed_schedules_need_no_weights(capsys, preset, count):
    result = json.loads(out(capsys, *MODEL, "--preset", preset, "--json"))
    computed = result["computed"]
    assert len(computed) == result["computed_steps"] == count and not result["measured"]
    assert computed[:5] == [0, 1, 2, 3, 4] and computed[-1] == 49
    text = out(capsys, *MODEL, "--preset", preset)
    assert len(text.splitlines()) == 2 + 50 + 1 and text.splitlines()[-1].startswith(f"{count} of 50 computed: 0, 1, 2")
    assert text.splitlines()[2].split()[:3] == ["0", "999", "compute"]


@pytest.mark.parametrize(("preset", "count"), [("reference-slow", 23), ("reference-fast", 18)])
def test_without_weights_only_the_published_count_is_given(capsys, preset, count):
    text = out(capsys, *MODEL, "--preset", preset)
    assert f"{count} of 50 steps computed (inferred from the published FLOPs, not measured here)" in text
    assert "--weights" in text and len(text.splitlines()) == 2
    result = json.loads(out(capsys, *MODEL, "--preset", preset, "--json"))
    assert (result["computed_steps"], result["computed"]) == (count, None)


@pytest.mark.parametrize("arguments", [["--model", "skyreels-v2-14b-540p"], [*MODEL, "--steps", "30"]])
def test_no_count_is_made_up(capsys, arguments):
    text = out(capsys, *arguments, "--preset", "reference-slow")
    assert "no number of computed steps is published" in text and "--weights" in text


@pytest.mark.parametrize("other", [["--steps", "30"], ["--shift", "5"]])
def test_a_table_made_for_another_run_is_refused_or_stretched_with_a_warning(capsys, other):
    with pytest.raises(SettingError, match="preset fast: got .*accepted: 50 steps at shift 8"):
        main([*MODEL, "--preset", "fast", *other])
    result = json.loads(out(capsys, *MODEL, "--preset", "fast", *other, "--rescale", "--json"))
    steps = int(other[1]) if other[0] == "--steps" else 50
    assert result["warning"].startswith("preset fast was calibrated for 50 steps at shift 8; stretched to")
    assert len(result["computed"]) == result["computed_steps"] <= 34 and result["computed"][-1] == steps - 1
    lines = out(capsys, *MODEL, "--preset", "fast", *other, "--rescale").splitlines()
    assert lines[1] == f"warning: {result['warning']}"


def test_with_weights_the_table_follows_the_time_modulation(capsys, tmp_path: Path):
    config = WanConfig(dim=1536, ffn_dim=4, num_layers=1, num_heads=12, text_dim=4, freq_dim=32, fps_embedding=True)
    torch.manual_seed(0)
    model = WanTransformer(config).requires_grad_(False)
    save_file(model.state_dict(), tmp_path / "sky.safetensors")
    arguments = [*MODEL, "--preset", "reference-slow", "--weights", str(tmp_path / "sky.safetensors")]
    result = json.loads(out(capsys, *arguments, "--json"))
    # Eq. 8 by hand: relative change of the modulation, through the polynomial, added up until the threshold.
    times = torch.tensor(skyreels(50, 8.0).timesteps)
    e0 = model.time_modulation(times, 24).flatten(1)
    relative = ((e0[1:] - e0[:-1]).abs().mean(1) / e0[:-1].abs().mean(1)).tolist()
    polynomial = load_preset("skyreels-v2-1.3b-540p", "reference-slow").policy.distance.polynomial
    expected, accumulated = [0, 1, 2, 3, 4], 0.0
    for step in range(5, 49):
        accumulated += sum(c * relative[step - 1] ** (4 - i) for i, c in enumerate(polynomial))
        if accumulated >= 0.1:
            expected.append(step)
            accumulated = 0.0
    assert result["computed"] == [*expected, 49] and result["measured"]
    save_file({**model.state_dict(), "head.head.bias": torch.zeros(1)}, tmp_path / "broken.safetensors")
    with pytest.raises(SettingError, match="misshapen: head.head.bias"):
        main([*arguments[:-1], str(tmp_path / "broken.safetensors")])


def test_weights_of_another_size_are_refused(tmp_path: Path):
    config = WanConfig(dim=128, ffn_dim=4, num_layers=1, num_heads=1, text_dim=4, freq_dim=4)
    save_file(WanTransformer(replace(config)).state_dict(), tmp_path / "small.safetensors")
    with pytest.raises(SettingError, match="weights: got 'a model of dim 128', accepted: the skyreels-v2-1.3b-540p"):
        main([*MODEL, "--preset", "reference-slow", "--weights", str(tmp_path / "small.safetensors")])


def test_a_model_without_a_family_is_refused():
    with pytest.raises(SettingError, match="model: got 'mini', accepted: magi-1-4.5b, mini-magi, skyreels-v2"):
        main(["--model", "mini", "--preset", "vanilla"])


def test_magi_has_no_shift(capsys):
    assert main(["--model", "magi-1-4.5b", "--preset", "fast", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["steps"] == 64 and table["computed_steps"] == len(table["computed"])
    with pytest.raises(SettingError, match="shift: got 3.0, accepted: none"):
        main(["--model", "magi-1-4.5b", "--preset", "fast", "--shift", "3"])
