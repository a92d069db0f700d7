"""An estimate in words, for the node that it is shown on."""

from __future__ import annotations

from ....flowcache_core.dry_run.estimate import Estimate


def size(value: float) -> str:
    """Bytes as people read them."""
    if value >= 1e9:
        return f"{value / 1e9:.3g} GB"
    return f"{value / 1e6:.3g} MB" if value >= 1e6 else f"{value / 1e6:.2g} MB"


def flops(value: float) -> str:
    for unit, name in ((1e15, "PFLOPs"), (1e12, "TFLOPs")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value / 1e9:.3g} GFLOPs"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def steps(found: Estimate) -> str:
    share = found.computed_steps / max(1, found.total_steps)
    if found.sure:
        return f"{found.computed_steps} of {found.total_steps} chunk steps computed ({share:.0%})"
    about = "at most" if found.computed_steps == found.total_steps else "about"
    return f"{about} {found.computed_steps} of {found.total_steps} chunk steps computed: the video decides"


def on_reuse(found: Estimate, seconds: float | None) -> str:
    cost = f"{flops(found.flops)} instead of {flops(found.whole_flops)}"
    return f"{steps(found)}; {cost}{_time(seconds)}"


def on_compressor(found: Estimate, chunks: int) -> str:
    place = f" on the {found.kv_device}" if found.kv_device else ""
    if found.kv_bytes >= found.whole_kv_bytes:
        return f"K/V {size(found.kv_bytes)}{place}: the whole video of {chunks} chunks fits the budget"
    return f"K/V {size(found.kv_bytes)}{place} instead of {size(found.whole_kv_bytes)} for {chunks} chunks"


def on_sampler(found: Estimate, seconds: float | None) -> str:
    parts = ", ".join(f"{name} {size(value)}" for name, value in _largest(found) if value)
    kept = f" (K/V on the {found.kv_device}: {size(found.kv_bytes)})" if found.kv_device else ""
    lines = f"{steps(found)}, {flops(found.flops)}{_time(seconds)}"
    return f"{lines}; about {size(found.peak_bytes)} at its peak: {parts}{kept}"


def _largest(found: Estimate) -> list[tuple[str, int]]:
    ordered = sorted(found.memory.items(), key=lambda part: -part[1])
    return [(name, value) for name, value in ordered if value >= found.peak_bytes / 100]


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"; about {duration(seconds)}, as fast as this model's last run here"
