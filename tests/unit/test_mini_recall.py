"""Mini recall: clips that cover everything for a while, the judge of what is remembered, and the committed weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowcache_core.commands import evaluate_mini, train_mini
from flowcache_core.errors import SettingError
from flowcache_core.kv import COMPRESSORS
from flowcache_core.kv.settings import KVSettings
from flowcache_core.mini import MiniModel
from flowcache_core.mini.data import COLOURS, SHAPES
from flowcache_core.mini_recall import TRANSFORMER_FILE, WEIGHTS, data, evaluate, load_mini_recall
from flowcache_core.mini_recall.data import Clip
from flowcache_core.mini_recall.evaluate import answers, clips_asked, generated, judged, true_videos
from flowcache_core.mini_recall.text import thinned
from flowcache_core.mini_scenes.data import POST, first_frame
from flowcache_core.mini_scenes.measure import frames_of
from flowcache_core.mini_scenes.text import encode_prompt

ALL_RIGHT = {name: (1.0, 8) for name in ("back", "colour", "shape", "place")} | {"first": (1.0, 4), "later": (1.0, 4)}


def covered(clip: Clip, start: int, end: int) -> bool:
    """Whether nothing but the post is seen in these frames."""
    post = torch.tensor(POST).reshape(3, 1, 1, 1) * 2 - 1
    return bool(torch.allclose(data.render([clip], end - start, start)[0], post.expand(3, end - start, 64, 64)))


# -- data --------------------------------------------------------------------------------------------------------------


def test_clips_follow_from_the_seed_and_are_described_in_words_that_scenes_know() -> None:
    clips = data.random_clips(64, 5)
    assert clips == data.random_clips(64, 5) != data.random_clips(64, 6)
    assert [clip.closes for clip in clips[:4]] == [1, 2, 1, 2]
    for clip in clips:
        assert encode_prompt(clip.prompt).abs().sum() > 0
        assert {*clip.prompt.split()} & {*COLOURS} and {*clip.prompt.split()} & {*SHAPES}
    assert {clip.moving for clip in clips} == {"left", "right"}


@pytest.mark.parametrize("closes", data.CLOSES)
def test_what_is_covered_and_when(closes: int) -> None:
    clip = next(clip for clip in data.random_clips(8, 1) if clip.closes == closes)
    assert len(clip.absent) == 2 and clip.again == clip.absent[-1] + 1 and clip.again < data.CHUNKS
    for chunk in clip.absent:
        assert covered(clip, first_frame(chunk), first_frame(chunk + 1))
    if closes > 1:
        assert covered(clip, 0, first_frame(clip.seen))
    then, now = (data.render([clip], 4, first_frame(chunk + 1) - 4) for chunk in (clip.seen, clip.again))
    assert torch.equal(then, now) and torch.equal(then[:, :, :1].expand_as(then), then)
    whole = data.render([clip], first_frame(data.CHUNKS))
    assert torch.equal(whole[:, :, 20:40], data.render([clip], 20, 20))


def test_a_prompt_is_often_without_what_is_to_be_remembered() -> None:
    generator, prompt = (
        torch.Generator().manual_seed(0),
        "a red circle resting, by night, a post moving left enters second",
    )
    seen = [thinned(prompt, generator) for _ in range(400)]
    for word, share in (("red", 0.45), ("circle", 0.54), ("post", 0.9)):
        assert sum(word in said for said in seen) / 400 == pytest.approx(share, abs=0.08)


# -- the judge ---------------------------------------------------------------------------------------------------------


def test_true_videos_remember_everything() -> None:
    clips = clips_asked(8, 0)
    assert clips == clips_asked(8, 0) and [clip.closes for clip in clips] == [1] * 4 + [2] * 4
    assert judged(clips, true_videos(clips)) == ALL_RIGHT


@pytest.mark.parametrize("what", ["colour", "shape", "place", "back"])
def test_another_shape_is_not_the_same(what: str) -> None:
    colours, shapes = list(COLOURS), list(SHAPES)
    change: Callable[[Clip], Clip] = {
        "colour": lambda c: _actor(c, colour=colours[colours.index(c.scene.actors[0].colour) - 1]),
        "shape": lambda c: _actor(c, shape=shapes[shapes.index(c.scene.actors[0].shape) - 1]),
        "place": lambda c: replace(c, top=c.top - 8 if c.top >= 8 else c.top + 8),
        "back": lambda c: _actor(c, x=1e4),
    }[what]
    clips = clips_asked(8, 0)
    videos = true_videos(clips)
    for clip, video in zip(clips, videos):
        video[:, frames_of(clip.again)] = data.render([change(clip)], 12, first_frame(clip.again))[0]
    found = judged(clips, videos)
    assert found[what] == (0.0, 8) and found["first"] == found["later"] == (0.0, 4)
    if what == "colour":
        assert found["back"] == found["shape"] == found["place"] == (1.0, 8)


def _actor(clip: Clip, **changes: object) -> Clip:
    actor = replace(clip.scene.actors[0], **changes)  # type: ignore[arg-type]
    return replace(clip, scene=replace(clip.scene, actors=(actor,)))


def test_a_video_that_never_covered_it_is_not_counted() -> None:
    clip = clips_asked(2, 0)[0]
    video = true_videos([clip])[0]
    video[:, frames_of(clip.absent[0])] = video[:, :1]
    assert answers(clip, video) is None
    assert judged([clip], [video])["colour"] == (0.0, 0)


# -- the model ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini() -> MiniModel:
    return load_mini_recall()


def test_weights_have_provenance_and_are_small(mini: MiniModel) -> None:
    assert [path.name for path in WEIGHTS.iterdir()] == [
        TRANSFORMER_FILE.name
    ] and TRANSFORMER_FILE.stat().st_size < 4e6
    facts = mini.provenance[TRANSFORMER_FILE.stem]
    assert {"title", "steps", "seed", "data", "date", "loss"} <= {*facts} and "recall" in facts["title"]
    assert mini.frame_size == 64 and mini.noise(6, 0).shape == (1, 16, 18, 8, 8)


def test_it_remembers_and_a_history_without_the_chunk_does_not(mini: MiniModel) -> None:
    """The newest chunk alone holds nothing but the post."""
    clips = clips_asked(4, 3)
    run = {"seed": 3, "steps": 8, "guidance": 2.0}
    whole = judged(clips, generated(mini, clips, **run))
    assert whole["back"] == (1.0, 4) and whole["colour"][0] >= 0.75
    newest = KVSettings(budget=1.0, compressor=COMPRESSORS["recent"]())
    assert judged(clips, generated(mini, clips, **run, kv=newest))["colour"][0] <= 0.5


def test_the_command_writes_rates_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--json", str(tmp_path / "r.json"), "--picture", str(tmp_path / "r.png"), "--rows", "2"]
    assert evaluate_mini.main(["--recall", "--samples", "2", "--steps", "2", "--quick", "--kv-budget", "2", *out]) == 0
    assert "in its place" in capsys.readouterr().out
    found = json.loads((tmp_path / "r.json").read_text())
    assert set(found["rates"]["generated"]) == {*evaluate.NAMES} and found["rates"]["true videos"]["back"][0] == 1.0
    assert (tmp_path / "r.png").stat().st_size > 1000


def test_workers_give_the_same_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shared = ["--recall", "--samples", "2", "--steps", "2", "--quick"]
    assert evaluate_mini.main([*shared, "--json", "a.json"]) == 0
    assert evaluate_mini.main([*shared, "--json", "b.json", "--workers", "1"]) == 0
    a, b = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json"))
    assert a == b


def test_one_model_at_a_time() -> None:
    for command in (evaluate_mini.main, train_mini.main):
        with pytest.raises(SettingError, match="one of them"):
            command(["--scenes", "--recall"])


def test_there_is_no_autoencoder_to_train(tmp_path: Path) -> None:
    places = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    with pytest.raises(SettingError, match="another model's"):
        train_mini.main(["--recall", "--stage", "decoder", *places])
