"""Heads measured inside a dense run of the mini model: by definition, resumable, kept in a preset that runs."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flowcache_core.__main__ import main
from flowcache_core.calibrate.bundled import Mini, Scenes
from flowcache_core.calibrate.head_samples import Measuring, OneHead, relative_error
from flowcache_core.calibrate.heads import HeadCalibration, spread_places, subject_of
from flowcache_core.calibrate.runs import Setup, generated, paired
from flowcache_core.calibrate.weights import CausalWan, Files
from flowcache_core.denoiser import ChunkInput
from flowcache_core.errors import SettingError
from flowcache_core.presets.sparse import load_sparse, parse_sparse_row, sparse_names, sparse_row
from flowcache_core.sparse.calibrated import Calibrated
from flowcache_core.sparse.head_errors import Cell, HeadErrors, Sample
from flowcache_core.sparse.head_table import HeadTable
from flowcache_core.sparse.xattention import XAttention

SETUP = Setup(chunks=2, steps=3)
PAIRS = paired(("a red circle moving right", "a green square moving left"), 40, 2)
PLACE = (1, 1)


@cache
def mini() -> Mini:
    return Mini()


def errors(candidates: tuple[float, ...] = (0.4, 1.0)) -> HeadErrors:
    return HeadErrors(subject_of(mini(), SETUP, 16, 4, candidates)[0])


@cache
def measured() -> HeadErrors:
    found = errors()
    HeadCalibration(mini(), SETUP, found, [[PLACE]]).run(PAIRS[:1])
    return found


def test_a_measurement_is_the_velocitys_error_with_one_head_masked() -> None:
    """Against attention by definition, for a few heads."""
    found: dict[tuple[int, int], float] = {}
    method = XAttention(16, 0.4, 4)

    class Definition:
        def __init__(self, layer: int, head: int) -> None:
            self.place = layer, head

        def attend(self, layer: int, branches: range, q: Any, k: Any, v: Any, dense: Any, **more: Any) -> Any:
            if layer != self.place[0]:
                return dense(q, k, v)
            kept = method.mask(q, k).kept.repeat_interleave(16, 2).repeat_interleave(16, 3)
            bias = torch.zeros(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
            bias[:, self.place[1]] = torch.where(kept[:, self.place[1]], 0.0, -torch.inf)
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, bias)

    def measure(dense: Any, item: ChunkInput, forward: Any, context: int) -> None:
        assert context == 96
        for place in ((0, 0), (2, 3), (5, 1)):
            found[place] = relative_error(forward(Definition(*place)), dense)

    denoiser = Measuring(mini().denoiser([PAIRS[0][0]], SETUP), [PLACE], measure)
    generated(mini(), SETUP, PAIRS[:1], denoiser=denoiser)
    table = measured().error[Sample(PAIRS[0][1], *PLACE, 96)]
    for (layer, head), error in found.items():
        assert table[layer, head, 0] == pytest.approx(error, rel=1e-3) and error > 0
    assert (table[..., 1] == 0).all()
    density = measured().density[Sample(PAIRS[0][1], *PLACE, 96)]
    assert (density[..., 0] < 1).all() and (density[..., 1] == 1).all()


def test_measuring_leaves_the_dense_run_as_it_is() -> None:
    seen: list[Any] = []

    def measure(dense: Any, item: ChunkInput, forward: Any, context: int) -> None:
        seen.append(forward(OneHead(XAttention(16, 0.1, 4), 0, 2)))

    denoiser = Measuring(mini().denoiser([PAIRS[0][0]], SETUP), [(0, 1), PLACE], measure)
    watched = generated(mini(), SETUP, PAIRS[:1], denoiser=denoiser)
    assert len(seen) == 2 and torch.equal(watched, generated(mini(), SETUP, PAIRS[:1]))


def test_a_stopped_calibration_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measured()  # before its calls would count
    path, original, calls = tmp_path / "heads.json", HeadErrors.record, 0

    def record(self: HeadErrors, sample: Sample, cell: Cell, error: float, density: float) -> None:
        nonlocal calls
        calls += 1
        original(self, sample, cell, error, density)
        if calls == 10:
            self.save(path)
            raise KeyboardInterrupt

    monkeypatch.setattr(HeadErrors, "record", record)
    with pytest.raises(KeyboardInterrupt):
        HeadCalibration(mini(), SETUP, errors(), [[PLACE]], path).run(PAIRS[:1])
    again = HeadErrors.resume(path, errors().subject)
    calls = 100
    HeadCalibration(mini(), SETUP, again, [[PLACE]], path).run(PAIRS[:1])
    assert calls == 100 + 24 - 10
    sample = Sample(PAIRS[0][1], *PLACE, 96)
    assert (again.error[sample] == whole.error[sample]).all()
    HeadCalibration(mini(), SETUP, HeadErrors.resume(path, again.subject), [[PLACE]], path).run(PAIRS[:1])
    assert calls == 114  # nothing was left to do


def test_samples_reach_over_chunks_steps_and_videos() -> None:
    engine = mini().settings(Setup(chunks=8, steps=20))
    videos = [spread_places(engine, 2, 4, video, 6) for video in range(6)]
    assert {chunk for places in videos for chunk, _ in places} == {2, 4, 7}
    steps = [step for places in videos for _, step in places]
    assert len(set(steps)) == 20 and min(steps) == 0 and max(steps) == 19
    with pytest.raises(SettingError, match="chunks"):
        spread_places(mini().settings(Setup(chunks=2, steps=20)), 2, 4)


def test_a_table_is_kept_in_a_preset_and_shared_out_for_any_density() -> None:
    table = HeadTable.of(measured())
    row = json.loads(json.dumps(sparse_row("measured", Calibrated(density=0.7, table=table), {"videos": []})))
    again = parse_sparse_row("mini", "x", row)
    assert again.method == Calibrated(density=0.7, table=table) and again.at(0.5).density == 0.5
    sparse, dense = (again.at(density).shared_out.p for density in (0.5, 1.0))
    assert {p for heads in sparse for p in heads} == {0.4, 1.0} and all(p == 1 for heads in dense for p in heads)
    assert table.shared_p(1.0) == 1.0 and 0.4 <= table.shared_p(0.6) < 1.0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"text": 3}, "sparse.x"),
        ({"table": None}, "sparse.x.table"),
        ({"density": 0}, "sparse.x.density"),
        ({"table": {"model": "0" * 64}}, "sparse.x.table"),
    ],
)
def test_a_damaged_row_is_refused(change: dict[str, Any], field: str) -> None:
    row = {**sparse_row("measured", Calibrated(table=HeadTable.of(measured())), {}), **change}
    with pytest.raises(SettingError) as error:
        parse_sparse_row("mini", "x", row)
    assert error.value.field == field


ARGUMENTS = ["--model", "mini", "--chunks", "3", "--steps", "2", "--videos", "1", "--samples", "1", "--density", "0.8"]


def test_the_command_writes_a_row_that_the_demo_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "heads.json"
    arguments = ["calibrate-heads", *ARGUMENTS, "--candidates", "0.5", "1", "--out", str(out)]
    assert main([*arguments, "--dry-run"]) == 0 and "24 forwards" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "p per head" in capsys.readouterr().out
    found = load_sparse("mini", str(out), mini().sha256)
    assert [place[1:] for place in found.evidence["samples"]] == [[2, 1]] and found.evidence["dense_chunks"] == 2
    assert main([*arguments, "--dry-run"]) == 0 and "24 of them done" in capsys.readouterr().out
    for other in (["--steps", "3"], ["--guidance", "2"]):  # of other sampling: not into one mean
        assert main([*arguments, *other, "--dry-run"]) == 2
        assert f"heads.heads.json: {other[0][2:]}" in capsys.readouterr().err
    with monkeypatch.context() as patch:  # the same seeds with other prompts are other videos
        patch.setattr(Mini, "prompts", ("a red circle moving right",))
        assert main([*arguments, "--dry-run"]) == 2
        assert "heads.heads.json: prompts" in capsys.readouterr().err
    written = out.read_bytes()  # what a half of the mass needs is known now: no density below it
    assert main([*arguments, "--density", "0.57"]) == 2 and out.read_bytes() == written
    said = capsys.readouterr().err
    assert "the sparsest this calibration knows" in said and "heads.heads.json keeps it all" in said
    demo = ["demo", "--chunks", "3", "--steps", "2", "--policy", "never", "--kv-budget", "none", "--json"]
    assert main([*demo, "--sparse", str(out), "--density", "0.85", "--out", str(tmp_path / "demo")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["sparse"] == "calibrated"
    assert 0.7 < report["runs"]["flowcache"]["attention_density"] < 0.95
    content = json.loads(out.read_text())
    content["sparse"]["per-head"]["table"]["model"] = "1" * 64
    out.write_text(json.dumps(content))
    assert main([*demo, "--sparse", str(out), "--out", str(tmp_path / "demo")]) == 2
    assert "calibrated on weights 1111" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "sora"], "model"),
        (["--model", "mini", "--chunks", "2"], "chunks"),
        (["--model", "mini", "--block", "64"], "block"),
        (["--model", "mini", "--stride", "5"], "stride"),
        (["--model", "mini", "--candidates", "0.5", "1.5"], "candidates"),
        (["--model", "mini", "--density", "0"], "density"),
        (["--model", "mini", "--density", "0.05"], "density: got 0.05, accepted: more than 0.0833"),
        (["--model", "mini", "--density", "0.15", "--block", "48"], "density: got 0.15, accepted: at least 0.25"),
        (["--model", "mini", "--weights", "x"], "weights"),
    ],
)
def test_what_cannot_work_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate-heads", *arguments, "--dry-run", "--out", str(tmp_path / "x.json")]) == 2
    assert said in capsys.readouterr().err


def test_prompts_are_told_apart_by_what_the_model_is_given(tmp_path: Path) -> None:
    """Prompts of a file have numbers for names."""
    found = []
    kinds = (("a", "float32", 0.0), ("a", "float32", 1.0), ("a", "bfloat16", 0.0), ("b", "float32", 0.0))
    for name, dtype, shift in kinds:
        path = tmp_path / f"{name}.safetensors"
        prompt = torch.arange(24.0).reshape(2, 3, 4) + shift
        save_file({"prompt": prompt.to(getattr(torch, dtype))}, path)
        found.append(CausalWan(Files(tmp_path / "none.safetensors", path)).prompts_sha256)
    assert found[0] == found[3] and len(set(found)) == 3
    assert mini().prompts_sha256 != Scenes().prompts_sha256


def test_every_shipped_row_is_of_its_model() -> None:
    for model, name in sparse_names().values():
        found = load_sparse(model, name)
        assert found.method.table is not None and found.evidence["videos"]
        assert replace(found.method, density=0.5).shared_out.stride == found.method.table.subject.stride
