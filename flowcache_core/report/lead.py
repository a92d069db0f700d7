"""What a person wants to know of a run first: what was saved, how near the uncached video it is, what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .comparison import SEEN
from .words import ENGLISH, words

FEW_STEPS = 8  # below, nearly every step is needed
AUTO = "auto"  # what names of auto's choices begin with
LONG = 6  # chunks from which on bounded K/V is worth a try
MEGA = 1e6


@dataclass(frozen=True)
class Outcome:
    """One run in a few numbers.

    preset: as the user chose it, None without reuse. seconds: that it took; saved: that reused steps would have taken
    more. kv_bytes: allocated; whole_bytes: what the whole history would take. expected: dB of the preset's calibration,
    measured or (not ``measured``) foretold by a recording; None where nothing is known. beside: what else made the
    video another one than the uncached (``RunRecord.beside_reuse``). compressor: whether K/V settings were on the
    model, whatever they came to. fault: the first step that was not finite.
    """

    preset: str | None
    steps: int
    chunks: int
    done: int
    total: int
    computed: float
    seconds: float
    saved: float = 0.0
    kv_bytes: float = 0.0
    whole_bytes: float = 0.0
    expected: float | None = None
    measured: bool = True
    beside: tuple[str, ...] = ()
    compressor: bool = False
    fault: str | None = None

    @property
    def reuses(self) -> bool:
        return self.computed < self.done

    @property
    def bounded(self) -> bool:
        return 0 < self.kv_bytes < 0.95 * self.whole_bytes

    @property
    def plain_steps(self) -> int:
        """How many steps, all computed, cost as much."""
        return max(1, round(self.computed / max(1, self.done) * self.steps))

    def headline(self, language: str = "en") -> str:
        """Such as "mini: balanced: saved 41 s of 66 s (2.6 x), K/V 3.0 of 4.7 MB, expected 65 dB"."""
        say, parts = words(language), []
        if self.done < self.total:
            parts.append(say["stopped"].format(done=self.done, total=self.total))
        whole = self.seconds + self.saved
        if self.reuses and self.saved > 0.01 * whole:
            factor = whole / max(self.seconds, 1e-9)
            parts.append(say["saved"].format(saved=time(self.saved, say), whole=time(whole, say), factor=factor))
        else:
            parts += [say["took"].format(seconds=time(self.seconds, say)), *([say["no time"]] if self.preset else [])]
        if self.bounded:
            held, all_of_it = megabytes(self.kv_bytes), megabytes(self.whole_bytes)
            parts.append(say["kv"].format(held=held, whole=all_of_it))
        elif self.kv_bytes:
            parts.append(say["kv all"].format(held=megabytes(self.kv_bytes)))
        if self.expected is not None and self.reuses and not self.fault:
            parts.append(say["expected alone" if self.beside else "expected"].format(psnr=self.expected))
        return f"{self.name(say)}{say['is']}{say['comma'].join(parts)}"

    def name(self, say: Mapping[str, str]) -> str:
        if self.preset is None:
            return say["compressor" if self.bounded else "no reuse"]
        return say.get(self.preset, self.preset)

    def nearness(self, language: str = "en") -> str:
        say = words(language)
        if self.fault:
            return say["not finite"].format(place=self.fault)
        if not self.reuses:
            return say["identical but"].format(what=named(self.beside, language)) if self.beside else say["identical"]
        if self.expected is None:
            return say["not measured"]
        level = next(least for least, _ in SEEN if self.expected >= least)
        near = say["near" if self.measured else "near recorded"].format(seen=say[f"{level:g}"])
        return near + say["on top"].format(what=named(self.beside, language)) if self.beside else near

    def advice(self, language: str = "en") -> str:
        say = words(language)
        return say["next"].format(what=say[self._advice()].format(steps=self.steps, plain=self.plain_steps))

    def _advice(self) -> str:
        """Never what the run had already."""
        if self.fault:
            return "try finite"
        if self.preset == "record":
            return "try calibrate"
        if not self.reuses:
            return self._without_reuse()
        if self.expected is None:
            return "try record"
        return "try budget" if self.chunks >= LONG and self.kv_bytes and not self._compresses else "try rival"

    def _without_reuse(self) -> str:
        if self.steps >= FEW_STEPS:
            return "try fidelity" if self.preset is not None and self.preset.startswith(AUTO) else "try reuse"
        if not self.kv_bytes:
            return "try more"
        if not self._compresses:
            return "try compressor"
        return "try uncompressed" if self.bounded else "try smaller"

    @property
    def _compresses(self) -> bool:
        return self.compressor or self.bounded

    def lines(self, language: str = "en") -> list[str]:
        return [self.headline(language), self.nearness(language), self.advice(language)]


def named(beside: Sequence[str], language: str = "en") -> str:
    """``RunRecord.beside_reuse`` in words."""
    say = words(language)
    return say["and"].join(say[f"the {name}"] for name in beside)


def time(seconds: float, say: Mapping[str, str] = ENGLISH) -> str:
    """Such as "4.2 s", "41 s", "3 min 20 s", "2 h 5 min"."""
    hour, minute, second = (say[unit] for unit in ("hours", "minutes", "seconds"))
    if seconds < 9.95:
        return f"{seconds:.1f} {second}"
    whole = round(seconds)
    if whole < 90:
        return f"{whole} {second}"
    if whole < 5400:
        return f"{whole // 60} {minute} {whole % 60} {second}"
    return f"{whole // 3600} {hour} {whole // 60 % 60} {minute}"


def megabytes(size: float) -> str:
    """Three digits or so, without a unit."""
    value = size / MEGA
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
