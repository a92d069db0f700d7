"""``measure-kv`` as a user calls it: every family the loaders know, and what cannot be measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_calibrate_command import write_tiny

from flowcache_core.calibrate.weights import Magi
from flowcache_core.commands import measure_kv as command
from flowcache_core.errors import SettingError
from flowcache_core.kv.profile import ErrorProfile, read_profile
from flowcache_core.kv.storage import STORAGES


def measured(folder, *arguments: str) -> ErrorProfile:
    assert command.main([*arguments, "--out", str(folder / "profile.json")]) == 0
    return read_profile(folder / "profile.json")


def test_more_kept_is_less_lost_in_the_mini_model(tmp_path, capsys):
    found = measured(tmp_path, "--model", "mini", "--chunks", "5", "--steps", "2", "--videos", "1")
    assert (found.model, found.sizes.layers, found.sizes.tokens_per_frame) == ("mini", 6, 16)
    assert found.shares == (0.25, 0.375, 0.5, 0.625, 0.75, 1.0)
    for name, by_storage in found.errors.items():
        plain = [found.error(name, "plain", share, None) for share in found.shares[-len(by_storage["plain"]) :]]
        assert plain == sorted(plain, reverse=True) and plain[-1] == 0.0 < plain[0] < 0.5
        last = [found.error(name, storage, 1.0, None) for storage in ("plain", "int8", "int4", "int2")]
        assert last == sorted(last) and last[1] < 1e-3 < last[3]
    assert "head-wise, int2" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "steps"), [("skyreels", "4"), ("wan", "4"), ("magi", "8")])
def test_every_family_the_loaders_know_is_measured(tmp_path, name, steps):
    files = write_tiny(tmp_path, name)
    found = measured(tmp_path, *files, "--chunks", "5", "--steps", steps, "--videos", "2")
    assert found.model == "weights" and found.sizes.layers == 2
    assert set(found.errors) == set(command.CHOSEN_BY) and found.shares[-1] == 1.0
    for by_storage in found.errors.values():
        assert set(by_storage) <= set(STORAGES) and max(by_storage["plain"][-1]) == 0.0
        assert 0 < max(by_storage["int8"][-1]) < 1e-2
    below = found.errors["recent"]["plain"][0]
    assert all(0 < error < 4 for error in below)


def test_what_magi_s_ranges_never_see_is_nothing_to_lose(tmp_path, monkeypatch):
    """Three chunks at most, itself included: with the two newest kept nothing is lost, with another one something."""
    files, usual = write_tiny(tmp_path, "magi"), Magi.video
    monkeypatch.setattr(Magi, "video", lambda self, setup: replace(usual(self, setup), ranges=(3, 3, 2, 2)))
    found = measured(tmp_path, *files, "--chunks", "5", "--steps", "8", "--videos", "1")
    one, two = (found.shares.index(budget / 4) for budget in (1, 2))
    assert max(found.errors["recent"]["plain"][two]) == 0.0 < max(found.errors["recent"]["plain"][one])
    assert max(found.errors["sink-window"]["plain"][0]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "other"], "model: got 'other', accepted: mini, scenes, mini-magi, skyreels"),
        (["--model", "wan"], "weights: got None, accepted: a file: wan comes without"),
        (["--model", "mini", "--weights", "x"], "weights: got .*mini is bundled"),
        (["--chunks", "3"], "chunks: got 3"),
        (["--guidance", "nan"], "guidance: got nan"),
        (["--device", "nowhere"], "device: got 'nowhere'"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, arguments, message):
    with pytest.raises(SettingError, match=message):
        command.main([*arguments, "--out", str(tmp_path / "profile.json")])
    assert not (tmp_path / "profile.json").exists()
