"""Where the compute went: how often each place of the picture was computed, laid over the video."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .events import PlacesComputed
from .record import RunRecord

Picture = NDArray[np.uint8]
"""``[H, W, 3]``."""
SELDOM, OFTEN = np.array((245.0, 199.0, 126.0)), np.array((0.0, 58.0, 110.0))  # light as reused steps, dark as computed
STRENGTH = 0.62  # of the colour over the video
TILES = 12
CELL = 16  # pixels of a place where there is no video


@dataclass(frozen=True)
class Tile:
    """One chunk: its picture, and how often its places were computed, at least, on average and at most."""

    chunk: int
    steps: int
    least: int
    mean: float
    most: int
    picture: Picture


def sentence(record: RunRecord) -> str | None:
    """What :func:`tiles` shows, in words; None for a run without steps in part."""
    if not record.places:
        return None
    counts = [np.array(told.counts) for told in record.places]
    least, most = min(int(one.min()) for one in counts), max(int(one.max()) for one in counts)
    mean = float(np.mean([one.mean() for one in counts]))
    return f"places: computed {least} to {most} times in {record.places[0].steps} steps, {mean:.1f} on average"


def tiles(record: RunRecord, video: Picture | None = None) -> list[Tile]:
    """A tile for every chunk with steps in part, :data:`TILES` of them at most, evenly chosen. video ``[T, H, W, 3]``:
    its middle frames are what the counts are laid over; without it, or where windows overlap, they stand alone.
    """
    told = record.places
    if len(told) > TILES:
        told = tuple(told[round(i * (len(told) - 1) / (TILES - 1))] for i in range(TILES))
    low = min((int(np.min(one.counts)) for one in told), default=0)
    high = max((int(np.max(one.counts)) for one in told), default=1)
    under = None if len(record.windows) > 1 else video
    frames = max((one.first_frame + len(one.counts) for one in record.places), default=1)
    return [_tile(one, under, frames, low, high) for one in told]


def _tile(told: PlacesComputed, video: Picture | None, frames: int, low: int, high: int) -> Tile:
    counts = np.array(told.counts)
    frame = None
    if video is not None and len(video):
        middle = told.first_frame + (counts.shape[0] - 1) / 2
        frame = video[min(len(video) - 1, round(middle * (len(video) - 1) / max(1, frames - 1)))]
    picture = laid_over((counts.mean(0) - low) / max(1, high - low), frame)
    return Tile(told.chunk, told.steps, int(counts.min()), float(counts.mean()), int(counts.max()), picture)


def laid_over(often: NDArray[np.float64], frame: Picture | None) -> Picture:
    """often ``[rows, columns]``, 0 for the places computed least and 1 for those computed most."""
    rows, columns = often.shape
    height, width = (rows * CELL, columns * CELL) if frame is None else frame.shape[:2]
    down, across = np.arange(height) * rows // height, np.arange(width) * columns // width
    colour = SELDOM + (OFTEN - SELDOM) * often[down][:, across, None]
    if frame is None:
        return colour.round().astype(np.uint8)
    grey = (frame.astype(np.float64) @ (0.299, 0.587, 0.114))[..., None]
    return (STRENGTH * colour + (1 - STRENGTH) * grey).round().clip(0, 255).astype(np.uint8)
