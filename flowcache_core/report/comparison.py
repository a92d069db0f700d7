"""Two videos of one noise side by side: how near they are, chunk by chunk, what each cost, and what to try next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import require
from .quality import decibel, frame_scores
from .record import RunRecord

# From this many dB on: what a person sees of the difference between two videos side by side.
SEEN = (
    (60.0, "as good as identical"),
    (45.0, "no difference to be seen"),
    (38.0, "a difference that is hard to see"),
    (30.0, "a difference that can be seen"),
    (0.0, "another video"),
)


@dataclass(frozen=True)
class Nearness:
    """PSNR in dB and SSIM of ``frames`` frames from ``first_frame`` on."""

    first_frame: int
    frames: int
    psnr: float
    ssim: float


@dataclass(frozen=True)
class Compared:
    """whole: of all frames. chunks: of each chunk's. worst_frame: the one that is farthest from the reference."""

    whole: Nearness
    chunks: tuple[Nearness, ...]
    worst_frame: int


def compared(video: Tensor, reference: Tensor, ends: Sequence[int]) -> Compared:
    """Both ``[T, H, W, 3]``, uint8 or 0..1. ends: first frame behind each chunk, the last one T. SettingError."""
    require(bool(ends) and ends[-1] == len(video), "chunks", tuple(ends), f"ends up to {len(video)}")
    errors, similar = frame_scores(video, reference)

    def part(first: int, end: int) -> Nearness:
        count = end - first
        return Nearness(first, count, decibel(sum(errors[first:end]) / count), sum(similar[first:end]) / count)

    starts = [0, *ends[:-1]]
    chunks = tuple(part(first, end) for first, end in zip(starts, ends, strict=True) if end > first)
    return Compared(part(0, len(video)), chunks, errors.index(max(errors)))


def chunk_ends(frames: int, latent_frames: Sequence[int]) -> list[int]:
    """First frame behind each chunk of a video of ``frames``, for the latent frames of the chunks.

    Wan's autoencoder makes one frame of the first latent frame and four of every other; MAGI-1's four of each.
    """
    total, done, ends = sum(latent_frames), 0, []
    for count in latent_frames:
        done += count
        end = 4 * done - 3 if frames == 4 * total - 3 else round(frames * done / total)
        ends.append(end)
    return ends


def latent_frames_of(record: RunRecord) -> list[int] | None:
    """Relative lengths of the chunks, as the tokens of their steps have them; None where not every chunk is known."""
    tokens = {step.chunk: step.tokens for step in record.steps_taken}
    tokens |= {one.chunk: one.tokens for one in record.cache_passes if one.kind == "prefix"}
    whole = len(record.windows) == 1 and set(tokens) == set(range(record.started.chunks))
    return [tokens[chunk] for chunk in sorted(tokens)] if whole else None


def plain_steps(record: RunRecord) -> int:
    """How many steps, all computed, cost as much as this run."""
    return max(1, round(record.computed_share * record.started.steps))


def costs(reference: RunRecord | None, result: RunRecord | None) -> list[str]:
    """A table of what the two runs took; a dash where there is no report."""
    if reference is None and result is None:
        return []
    records = (reference, result)
    rows: list[tuple[str, list[str | None]]] = [
        ("", ["reference", "result"]),
        ("steps", [None if r is None else str(r.started.steps) for r in records]),
        ("computed", [None if r is None else f"{r.computed_share:.0%}" for r in records]),
        ("seconds", [None if r is None or r.seconds is None else f"{r.seconds:.2f}" for r in records]),
        ("K/V MB", [None if r is None else f"{r.kv_bytes / 1e6:.2f}" for r in records]),
    ]
    return [f"{name:10}" + "".join(f"{cell or '-':>12}" for cell in cells) for name, cells in rows]


def judgement(whole: Nearness, reference: RunRecord | None, result: RunRecord | None) -> str:
    """One sentence: what was saved, what it cost, and the rival to compare with."""
    seen = next(text for least, text in SEEN if whole.psnr >= least)
    near = f"{whole.psnr:.1f} dB, {seen}"
    if reference is None or result is None:
        return f"{near}; connect both MODELs to see what it saves."
    saved = savings(reference, result)
    if result.reused_steps:
        rival = f"{plain_steps(result)} plain steps cost the same: compare with them."
    elif result.started.steps < reference.started.steps:
        rival = "These are plain steps: what reuse at the same cost has to beat."
    else:
        rival = "Nothing was reused."
    return f"{saved}: {near}. {rival}"


def savings(reference: RunRecord, result: RunRecord) -> str:
    """Such as "2.4 times as fast, K/V 3.0 of 4.7 MB"."""
    found = []
    if reference.seconds and result.seconds:
        ratio = reference.seconds / result.seconds
        found.append(f"{ratio:.1f} times as fast" if ratio > 1.05 else "not faster")
    if result.kv_bytes < reference.kv_bytes:
        found.append(f"K/V {result.kv_bytes / 1e6:.1f} of {reference.kv_bytes / 1e6:.1f} MB")
    return ", ".join(found) or "The same cost"
