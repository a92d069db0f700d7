"""A record as plain text: the table, the chunk x step map in characters, the notes. ASCII, so it prints anywhere."""

from __future__ import annotations

from collections.abc import Mapping

from . import places
from .quality import Quality
from .record import Kind, RunRecord

CHARACTERS: dict[Kind, str] = {
    "given": "=",
    "warm-up": "w",
    "computed": "#",
    "forced": "!",
    "part": "+",
    "reused": ".",
    "not finite": "x",
    "pending": " ",
}
_MEANING: dict[Kind, str] = {
    "given": "given clean",
    "warm-up": "warm-up",
    "computed": "computed",
    "forced": "computed by force (last step, cap)",
    "part": "computed in part",
    "reused": "reused",
    "not finite": "not finite (NaN or infinite)",
    "pending": "not run yet",
}
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
_MAP_ROWS = 48  # more chunks than this are abridged to the first and last of them


def table(runs: Mapping[str, RunRecord], quality: Mapping[str, Quality] | None = None) -> str:
    """The runs side by side, one column each; the first one is what speed-up and FLOPs are measured against.

    quality: by run name, against the first run.
    """
    records = list(runs.values())
    scores = [(quality or {}).get(name) for name in runs]
    rows = [
        ("", list(runs)),
        ("attention", [r.started.attention for r in records]),
        ("computed steps", [f"{steps_text(r)} ({r.computed_share:.0%})" for r in records]),
        ("FLOPs", [flops_text(r.flops) for r in records]),
        ("seconds", [_number(r.seconds, ".2f") for r in records]),
        ("speed-up", [_ratio(records[0].seconds, r.seconds) for r in records]),
        ("speed-up by FLOPs", [_ratio(records[0].flops, r.flops) for r in records]),
        ("peak K/V MB", [f"{r.kv_bytes / 1e6:.2f}" for r in records]),
        ("PSNR dB", [_number(None if s is None else s.psnr, ".2f") for s in scores]),
        ("SSIM", [_number(None if s is None else s.ssim, ".4f") for s in scores]),
    ]
    if any(r.not_finite for r in records):
        rows.append(("finite values", ["no" if r.not_finite else "yes" for r in records]))
    first = max(len(title) for title, _ in rows)
    widths = [max(len(cells[column]) for _, cells in rows) for column in range(len(records))]
    lines = []
    for title, cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([title.ljust(first), *aligned]).rstrip())
    lines.insert(1, "-" * (first + sum(widths) + 2 * len(widths)))
    return "\n".join(lines)


def step_map(record: RunRecord) -> str:
    """Chunks from top to bottom, each chunk's own steps from left to right, one character a step; then the legend.

    A line stands between two windows of a long video.
    """
    rows = record.kinds
    width = len(str(len(rows) - 1))
    shares = _chunk_shares(record)
    lines = [
        f"chunk {index:>{width}} |{''.join(CHARACTERS[k] for k in row)}|{shares.get(index, '')}"
        for index, row in enumerate(rows)
    ]
    for number, window in reversed(list(enumerate(record.windows))[1:]):
        lines.insert(window.first_chunk, f"-- window {number + 1} of {len(record.windows)}")
    if len(lines) > _MAP_ROWS:
        half = _MAP_ROWS // 2
        hidden = sum(line.startswith("chunk") for line in lines[half:-half])
        lines[half:-half] = [f"... {hidden} more chunks ..."]
    present = {k for row in rows for k in row} - {"pending"}
    legend = ", ".join(f"{CHARACTERS[k]} {_MEANING[k]}" for k in CHARACTERS if k in present)
    if shares:
        legend = f"{legend}; behind a chunk: computed share of its self-attention" if legend else legend
    return "\n".join([*lines, *([legend] if legend else [])])


def _chunk_shares(record: RunRecord) -> dict[int, str]:
    """What stands behind the chunks that attended sparsely."""
    means = {told.chunk: sum(map(sum, told.density)) / sum(map(len, told.density)) for told in record.head_densities}
    return {chunk: f" {mean:.2f}" for chunk, mean in means.items()} if record.densities else {}


def attention(record: RunRecord) -> str | None:
    """What sparse attention came to, in one sentence; None where nothing was left out."""
    share = record.attention_density
    if share is None:
        return None
    steps = len(record.step_densities)
    made, served = (sum(getattr(event, name) for event in record.densities) for name in ("masks_made", "masks_served"))
    masks = f"; {served / (made + served):.0%} of the masks served again" if served else ""
    return f"self-attention: {share:.0%} computed, sparse in {steps} of {record.computed_steps} computed steps{masks}"


def summary(record: RunRecord) -> str:
    """One run: headline, where its values stopped being finite, map, compressions, notes."""
    return "\n".join([headline(record), *([record.fault] if record.fault else []), step_map(record), *details(record)])


def details(record: RunRecord) -> list[str]:
    """What was left out of attention, what was compressed, and notes."""
    lines = []
    if (sparse := attention(record)) is not None:
        lines.append(sparse)
    if (where := places.sentence(record)) is not None:
        lines.append(where)
    if record.compressions:
        last = record.compressions[-1]
        tokens = f"{last.tokens_before} to {last.tokens_after} tokens a layer"
        lines.append(f"K/V compressions: {len(record.compressions)} (the last from {tokens})")
    return [*lines, *(f"note: {note}" for note in record.notes)]


def headline(record: RunRecord) -> str:
    """Such as "chunkwise-t0.1-w5-velocity: computed 37 of 80 (46 %)"."""
    name = f"{record.tag}: " if record.tag else ""
    return f"{name}computed {steps_text(record)} ({100 * record.computed_share:.0f} %)"


def steps_text(record: RunRecord) -> str:
    """Such as "37 of 80", or "20 and 12 in part of 80": steps of which some tokens were computed stand by themselves,
    the share that follows it counts tokens."""
    parts = f" and {record.part_steps} in part" if record.part_steps else ""
    return f"{record.computed_steps}{parts} of {record.total_steps}"


def flops_text(flops: float | None) -> str:
    """Such as "113.6 P" (times 1e15)."""
    if flops is None:
        return "-"
    size, prefix = next(((s, p) for s, p in _PREFIXES if flops >= s), (1.0, ""))
    return f"{flops / size:.4g} {prefix}".rstrip()


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _ratio(base: float | None, value: float | None) -> str:
    return "-" if not base or not value else f"{base / value:.2f}x"
