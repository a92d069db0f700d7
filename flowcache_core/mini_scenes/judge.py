"""Whether a video does what a scene says: one yes or no per thing that can be right or wrong."""

from __future__ import annotations

from collections.abc import Iterable

from . import data
from .data import Actor, Scene
from .measure import Measured, Track

NAMES = {
    "count": "shapes where there should be some, per chunk",
    "colour": "right colour, per shape and chunk",
    "shape": "right shape, per shape",
    "direction": "right direction, per shape",
    "pan": "camera pans as said, per chunk",
    "light": "day or night as said, per chunk",
    "turns": "event: new colour in its chunk",
    "enters": "event: shape enters in its chunk",
    "back": "event: camera pans back in its chunk",
    "changes": "event: day or night begins in its chunk",
}
NEAR = 1.0  # pixels per frame by which a velocity may be off (shapes and camera move by two)
JOURNEY = 16  # frames in which no moving shape meets a side of the picture
LAST = 3  # frames at the end of a chunk by which a shape must have entered

Answers = dict[str, list[bool]]


def answers(scene: Scene, seen: Measured) -> Answers:
    """Everything that a video of the scene's prompt shows right (True) or wrong, under the keys of `NAMES`."""
    found: Answers = {name: [] for name in NAMES}
    chunks = range(seen.chunks)
    said = {actor.lane: actor for actor in scene.actors}
    for chunk in chunks:
        expected = {lane: _there(said.get(lane), scene, chunk) for lane in seen.lanes}
        found["count"].append(
            all(seen.lanes[lane].present(chunk) == there for lane, there in expected.items() if there is not None)
        )
        found["pan"].append(abs(seen.pans[chunk] - pan_velocity(scene, chunk)) < NEAR)
        found["light"].append(seen.lights[chunk] == scene.light_in(chunk))
    for actor in scene.actors:
        track = seen.lanes[actor.lane]
        shown = [chunk for chunk in chunks if chunk >= actor.enters and track.present(chunk)]
        found["colour"] += [track.colour(chunk) == actor.colour_in(chunk) for chunk in shown]
        shapes = [shape for shape in map(track.shape, shown) if shape != "none"]
        found["shape"].append(bool(shapes) and 2 * shapes.count(actor.shape) > len(shapes))
        if actor.enters < seen.chunks:
            found["direction"].append(_moves(actor, scene, track))
        if actor.turns and actor.turns[1] < seen.chunks:
            chunk = actor.turns[1]
            found["turns"].append(track.colour(chunk - 1) == actor.colour and track.colour(chunk) == actor.turns[0])
        if actor.enters and actor.enters < seen.chunks:
            found["enters"].append(_enters(track, actor.enters))
    if scene.back and scene.back < seen.chunks:
        pans = [abs(seen.pans[i] - pan_velocity(scene, i)) < NEAR for i in (scene.back - 1, scene.back)]
        found["back"].append(all(pans))
    if scene.changes and scene.changes < seen.chunks:
        lights = [seen.lights[i] == scene.light_in(i) for i in (scene.changes - 1, scene.changes)]
        found["changes"].append(all(lights))
    return found


def pan_velocity(scene: Scene, chunk: int) -> float:
    """The camera's velocity in a chunk, in pixels per frame to the right."""
    turned = scene.back is not None and chunk >= scene.back
    return data.PANS[scene.pan] * data.SPEED * (-1 if turned else 1)


def rates(found: Iterable[Answers]) -> dict[str, tuple[float, int]]:
    """Share of right answers and their number, per key (0 of 0 where there are none); `all`: videos all right."""
    listed = list(found)
    shares = {}
    for name in NAMES:
        given = [answer for one in listed for answer in one[name]]
        shares[name] = (_share(given), len(given))
    right = [all(all(given) for given in one.values()) for one in listed]
    return {**shares, "all": (_share(right), len(right))}


def _share(given: list[bool]) -> float:
    return round(sum(given) / len(given), 4) if given else 0.0


def _there(actor: Actor | None, scene: Scene, chunk: int) -> bool | None:
    """Whether a lane has a shape in a chunk; None where the prompt leaves that open."""
    if actor is None or chunk < actor.enters:
        return False
    if actor.enters and chunk == actor.enters:
        return None  # on its way in
    if actor.motion == "resting" and scene.pan != "still" and chunk > 0:
        return None  # when the camera leaves it behind depends on where it stands
    return None if scene.post is not None else True  # behind the post for a while


def _moves(actor: Actor, scene: Scene, track: Track) -> bool:
    first = data.first_frame(actor.enters)
    expected = data.MOTIONS[actor.motion] * data.SPEED
    last = first + JOURNEY
    if actor.motion == "resting":
        expected, last = -pan_velocity(scene, 0), data.first_frame(1)
    return abs(track.velocity(first, last) - expected) < NEAR


def _enters(track: Track, chunk: int) -> bool:
    end = data.first_frame(chunk + 1)
    return not track.present(chunk - 1) and all(track.frames[end - LAST : end])
