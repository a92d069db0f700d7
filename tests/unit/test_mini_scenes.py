"""Scenes: the same on every machine, described by prompts that the model can read, and judged right by measurement."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowcache_core.mini import encode_prompt as mini_prompt
from flowcache_core.mini_scenes import data, text
from flowcache_core.mini_scenes.data import Actor, Scene
from flowcache_core.mini_scenes.evaluate import EVENTS as KINDS
from flowcache_core.mini_scenes.evaluate import scenes_asked
from flowcache_core.mini_scenes.judge import NAMES, answers, pan_velocity, rates
from flowcache_core.mini_scenes.measure import measure

FRAMES = data.first_frame(4)


def actor(**changes: object) -> Actor:
    return replace(Actor("middle", "red", "circle", "right", 12.0, 40.0, 64.0), **changes)


def scene(*actors: Actor, **changes: object) -> Scene:
    return replace(Scene(actors or (actor(),), "left", "night", (0.1, 0.4, 0.7)), **changes)


# -- data --------------------------------------------------------------------------------------------------------------


def test_scenes_follow_from_their_seed() -> None:
    assert data.random_scenes(5, 3) == data.random_scenes(5, 3)
    assert data.random_scenes(5, 3) != data.random_scenes(5, 4)
    assert data.random_scenes(2, 3)[0].prompt == (
        "a high purple circle resting, a middle green circle moving left, camera panning right back fourth, by night"
    )


def test_every_kind_of_scene_and_event_comes_up() -> None:
    scenes = data.random_scenes(600, 0)
    assert {len(s.actors) for s in scenes} == {1, 2, 3}
    assert {s.pan for s in scenes} == set(data.PANS) and {s.light for s in scenes} == set(data.SKY)
    assert {a.motion for s in scenes for a in s.actors} == set(data.MOTIONS)
    assert {s.back for s in scenes} == {None, 2, 3}
    assert {s.changes for s in scenes} == {None, 1, 2, 3}
    assert {a.enters for s in scenes for a in s.actors} == {0, 1, 2, 3}
    assert {a.turns[1] for s in scenes for a in s.actors if a.turns} == {1, 2, 3}
    for s in scenes:
        assert len({a.lane for a in s.actors}) == len(s.actors) == len({a.colour for a in s.actors})


def test_chunks_are_nine_frames_then_twelve() -> None:
    assert [data.first_frame(chunk) for chunk in range(4)] == [0, 9, 21, 33]
    assert [data.chunk_of(frame) for frame in (0, 8, 9, 20, 21, 44)] == [0, 0, 1, 1, 2, 3]


def test_the_camera_pans_back_from_its_chunk_on() -> None:
    there = data.camera(scene(pan="right", back=2), 43)
    assert there[:22].tolist() == [2.0 * t for t in range(22)]
    assert there[42] == 0 and there[30] == there[12]
    assert (data.camera(scene(pan="still"), 9) == 0).all()


def test_moving_shapes_stay_inside_and_resting_ones_with_the_ground() -> None:
    for s in data.random_scenes(60, 1):
        for a in s.actors:
            x, half = data.path(a, s, 93), a.half_size[0]
            if a.motion == "resting":
                assert torch.allclose(x + data.camera(s, 93), torch.full((93,), a.x))
                continue
            begin = data.first_frame(a.enters)
            after = begin + (14 if a.enters else 0)
            assert (x[after + 2 :] >= half - 0.01).all() and (x[after + 2 :] <= data.FRAME_SIZE - half + 0.01).all()
            if a.enters:
                assert (x[:begin] < -half).all()  # nothing of it is seen before
            assert ((x[begin + 1 :] - x[begin:-1]).abs() <= data.SPEED + 1e-3).all()


def test_a_part_of_a_video_is_that_part_of_the_whole() -> None:
    scenes = data.random_scenes(2, 5)
    whole = data.render(scenes, 30)
    assert whole.shape == (2, 3, 30, 128, 128) and whole.min() >= -1 and whole.max() <= 1
    assert torch.equal(data.render(scenes, 12, start=18), whole[:, :, 18:])


@pytest.mark.parametrize("event", KINDS)
def test_scenes_of_one_event_can_be_asked_for(event: str) -> None:
    scenes = scenes_asked(12, 0, event)
    assert len(scenes) == 12 and all(KINDS[event](s) for s in scenes)
    found = rates(answers(s, measure(data.render([s], FRAMES)[0])) for s in scenes[:2])
    assert found[event][1] == 2


# -- text --------------------------------------------------------------------------------------------------------------


def test_a_phrase_of_the_mini_model_reads_as_there() -> None:
    prompt = "a red circle moving right"
    assert torch.equal(text.encode_prompt(prompt)[0, :5], mini_prompt(prompt)[0, :5])


def test_every_prompt_fits_and_words_are_orthogonal() -> None:
    for s in data.random_scenes(300, 2):
        assert text.encode_prompt(s.prompt).shape == (1, 40, 64)
    words = torch.cat([text.encode_prompt(word)[:, 0] for word in ("high", "post", "second", "breaks")])
    assert len(set(text.VOCABULARY)) == len(text.VOCABULARY)
    assert len({tuple(row) for row in words.tolist()}) == 4


def test_a_phrase_is_read_by_itself() -> None:
    first, second = "a high red circle moving right", "a low blue square resting"
    together = text.encode_prompt(f"{first}, {second}")[0]
    assert torch.equal(together[:6], text.encode_prompt(first)[0, :6])
    assert torch.equal(together[6:11], text.encode_prompt(second)[0, :5])
    assert (text.encode_prompt("")[0] == 0).all()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("a pink circle", "pink"), ("a red circle moving up", "up"), ("a a a a a a a a a", "9 words"),
     (", ".join(["a red circle moving right"] * 9), "45 words")],
)  # fmt: skip
def test_what_the_model_cannot_read_is_refused(prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text.encode_prompt(prompt)


def test_training_leaves_out_text_colours_and_shapes() -> None:
    generator, prompt = torch.Generator().manual_seed(0), scene().prompt
    seen = [text.thinned(prompt, generator) for _ in range(1000)]
    assert 0.06 < seen.count("") / 1000 < 0.14
    assert 0.06 < sum("circle" in one and "red" not in one for one in seen) / 1000 < 0.14
    assert 0.04 < sum("red" in one and "circle" not in one for one in seen) / 1000 < 0.10
    assert sum(one == prompt for one in seen) > 600


# -- measurement -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged() -> list[tuple[Scene, dict[str, list[bool]]]]:
    scenes = [replace(s, post=None) for s in scenes_asked(40, 0)]  # behind a post there may be nothing to see
    return [(s, answers(s, measure(data.render([s], FRAMES)[0]))) for s in scenes]


def test_true_videos_are_judged_right(judged) -> None:
    found = rates(one for _, one in judged)
    assert all(count > 0 for _, count in found.values())
    for name, (share, _) in found.items():
        assert share >= 0.95, (name, share)


EVENTS = scene(
    actor(lane="high", turns=("blue", 2), y=26.0),
    actor(lane="low", motion="left", colour="green", shape="square", x=140.0, y=102.0, enters=1),
    pan="right",
    back=3,
    changes=2,
)


@pytest.mark.parametrize(
    ("shown", "wrong"),
    [
        (replace(EVENTS, pan="left"), {"pan", "back"}),
        (replace(EVENTS, back=None), {"pan", "back"}),
        (replace(EVENTS, back=2), {"pan", "back"}),
        (replace(EVENTS, light="day"), {"light", "changes"}),
        (replace(EVENTS, changes=3), {"light", "changes"}),
        (replace(EVENTS, actors=EVENTS.actors[:1]), {"count", "shape", "direction", "enters"}),
        (replace(EVENTS, actors=(replace(EVENTS.actors[0], turns=None), EVENTS.actors[1])), {"colour", "turns"}),
        (replace(EVENTS, actors=(replace(EVENTS.actors[0], turns=("blue", 3)), EVENTS.actors[1])), {"colour", "turns"}),
        (replace(EVENTS, actors=(EVENTS.actors[0], replace(EVENTS.actors[1], enters=2))), {"enters"}),
        (replace(EVENTS, actors=(replace(EVENTS.actors[0], motion="left", x=90.0), EVENTS.actors[1])), {"direction"}),
        (replace(EVENTS, actors=(replace(EVENTS.actors[0], shape="triangle"), EVENTS.actors[1])), {"shape"}),
        (replace(EVENTS, actors=(replace(EVENTS.actors[0], colour="white"), EVENTS.actors[1])), {"colour", "turns"}),
    ],
)
def test_a_video_that_shows_something_else_is_judged_wrong_there(shown: Scene, wrong: set[str]) -> None:
    right = answers(EVENTS, measure(data.render([EVENTS], FRAMES)[0]))
    assert all(all(given) for given in right.values())
    found = answers(EVENTS, measure(data.render([shown], FRAMES)[0]))
    failed = {name for name in NAMES if not all(found[name])}
    assert wrong <= failed
    assert not failed & {"pan", "light", "colour", "shape", "turns"} - wrong


def test_the_camera_is_measured_in_pixels_per_frame() -> None:
    found = measure(data.render([EVENTS], FRAMES)[0])
    assert [pytest.approx(pan_velocity(EVENTS, chunk), abs=0.3) for chunk in range(4)] == list(found.pans)


def test_nothing_but_noise_is_no_scene() -> None:
    noise = torch.rand(3, FRAMES, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = answers(EVENTS, measure(noise))
    assert not any(all(found[name]) for name in ("count", "direction", "turns", "enters", "back"))
