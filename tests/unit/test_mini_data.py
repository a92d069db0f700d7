"""The generated clips: same seed, same clip; they move, bounce and look as their prompt says."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from flowcache_core.mini import data
from flowcache_core.mini.measure import measure


def frames_before_bounce(clip: data.Clip) -> int:
    """Number of pixel frames, the first included, until the shape first meets a wall."""
    for step, half, at in zip(data.DIRECTIONS[clip.direction], clip.half_size, (clip.x, clip.y)):
        if step:
            room = data.FRAME_SIZE - half - at if step > 0 else at - half
            return 1 + int(room / data.SPEED)
    raise AssertionError("a clip moves along one axis")


def test_same_seed_same_clips() -> None:
    assert data.random_clips(80, 3) == data.random_clips(80, 3)
    assert data.random_clips(80, 3) != data.random_clips(80, 4)
    assert data.random_clips(100, 3)[:80] == data.random_clips(80, 3)
    clips = data.random_clips(6, 3)
    assert torch.equal(data.render(clips, 9), data.render(clips, 9))


def test_every_combination_is_equally_frequent() -> None:
    clips = data.random_clips(144, 0)
    counts = Counter((clip.colour, clip.shape, clip.direction) for clip in clips)
    assert len(counts) == 72
    assert set(counts.values()) == {2}


def test_shapes_stay_inside_and_have_room_before_they_bounce() -> None:
    clips = data.random_clips(144, 1)
    centres = data.positions(clips, 93)
    half = torch.tensor([clip.half_size for clip in clips])[:, None]
    assert (centres - half >= -1e-4).all()
    assert (centres + half <= data.FRAME_SIZE + 1e-4).all()
    assert min(frames_before_bounce(clip) for clip in clips) > data.ROOM


def test_motion_is_straight_then_reflected() -> None:
    clip = data.Clip("red", "circle", "right", 10.0, 30.0, 20.0)
    x, y = data.positions([clip], 60)[0].T
    assert (y == 20).all()
    # The wall is met at x = 54, after 24 frames; then back at the same speed to x = 10 and forth again.
    assert x[24] == 54 and frames_before_bounce(clip) == 25
    assert x[34] == 44
    assert torch.allclose((x[1:] - x[:-1]).abs(), torch.ones(59))


@pytest.mark.parametrize("shape", data.SHAPES)
def test_area_does_not_change_with_time(shape: str) -> None:
    clip = data.Clip("white", shape, "down", 11.0, 30.25, 18.5)
    video = (data.render([clip], 60)[0] + 1) / 2
    back, white = torch.tensor(data.BACKGROUND), torch.tensor(data.COLOURS["white"])
    cover = ((video - back.reshape(3, 1, 1, 1)) / (white - back).reshape(3, 1, 1, 1)).mean(0).sum((1, 2))
    width, height = clip.half_size
    exact = {"circle": 3.1416 * 11**2, "square": 4 * width * height, "triangle": 2 * width * height}[shape]
    assert (cover / exact - 1).abs().max() < 0.05


def test_what_is_measured_is_what_was_drawn() -> None:
    clips = data.random_clips(36, 5)
    for clip, video in zip(clips, data.render(clips, 17)):
        found = measure(video)
        assert set(found.colours) == {clip.colour}
        assert found.direction == clip.direction
        assert found.shape == clip.shape


def test_an_empty_picture_is_measured_as_nothing() -> None:
    back = torch.tensor(data.BACKGROUND).reshape(3, 1, 1, 1).expand(3, 16, 64, 64) * 2 - 1
    found = measure(back)
    assert set(found.colours) == {"none"}
    assert (found.direction, found.shape, found.areas.sum()) == ("none", "none", 0)
