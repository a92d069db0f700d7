"""From a MODEL that was sampled while it was recorded to a preset."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from ....flowcache_core.calibrate.choose import Chooser, Target, preset_row
from ....flowcache_core.calibrate.told import PROMISE, outcome, preset_text, ways
from ....flowcache_core.errors import Found, SettingError
from ....flowcache_core.presets.own import OwnHeads, OwnPreset
from ....flowcache_core.report.record import RunRecord
from .records import NoRecordError
from .settings import slot_of

MEASURED = "a model that was sampled with measure heads on FlowCache Sparse Attention"
RECORDED = "a model that was sampled with the preset record on FlowCache Chunkwise Reuse"
FEW_STEPS = 8  # below this nearly every step is needed


def heads_preset(model: Any, latent: Any, name: str, density: float) -> tuple[OwnHeads, str]:
    """p per head from the run that made ``latent`` (None: the last one that measured), and what there is to say of it.

    SettingError naming ``model`` where none did, ``density`` where no table is so sparse.
    """
    try:
        heads = slot_of(model).measured_run(None if latent is None else latent["samples"])
    except NoRecordError as error:
        raise SettingError("model", str(error).removesuffix("."), MEASURED) from error
    if not heads.errors.complete:
        found = f"{heads.done} of {heads.total} measured, no step complete"
        raise SettingError("model", Found(found), "a run that got further: queue it again with the same seed")
    own = heads.preset(name, density)
    lines = [own.preset.text, f"note: {heads.total - heads.done} of {heads.total} measurements are missing"]
    if heads.done >= heads.total:
        del lines[1]
    lines += ["", "density: error of one step with one p for all heads, and with p per head (heads added up)"]
    rows = own.preset.evidence["predicted_error"]
    lines += [f"{row['density']:.2f}: {row['shared']:.1e} with p {row['p']:g}, {row['per_head']:.1e}" for row in rows]
    return own, "\n".join(lines)


@dataclass(frozen=True)
class Calibration:
    """seconds: of one computed step of a chunk in the recorded run, None where only the first was timed."""

    chooser: Chooser
    seconds: float | None

    @classmethod
    def of(cls, model: Any, latent: Any, chunks: int | None) -> Calibration:
        """SettingError naming ``model`` when the run that made ``latent`` (None: the last one) was not recorded."""
        try:
            run = slot_of(model).recorded_run(None if latent is None else latent["samples"])
        except NoRecordError as error:
            raise SettingError("model", str(error).removesuffix("."), RECORDED) from error
        assert run.recording is not None
        if not run.recording.grams.whole:
            raise SettingError("model", "a recording without a whole chunk", "one that finished its first chunk")
        passes = run.record is not None and any(one.kind == "clean" for one in run.record.cache_passes)
        return cls(Chooser(run.recording, chunks, int(passes)), seconds_per_step(run.record))

    def preset(self, name: str, target: Target) -> tuple[OwnPreset, str]:
        """The preset and what there is to say of it."""
        chooser = self.chooser
        choice = chooser.choose(target, self.seconds)
        row = preset_row(chooser, choice, preset_text(choice, chooser))
        lines = [outcome(target, choice, chooser, self.seconds), *(f"note: {one}" for one in self.remarks())]
        return OwnPreset.of(name, row), "\n".join([*lines, "", ways(chooser), "", PROMISE])

    def remarks(self) -> list[str]:
        found = list(self.chooser.recording.remarks())
        if self.chooser.steps < FEW_STEPS:
            found.append(
                f"with {self.chooser.steps} steps hardly one can be spared; KV Cache Compressor saves memory there"
            )
        return found


def seconds_per_step(record: RunRecord | None) -> float | None:
    """Of most computed steps but the very first, which pays for what happens once; some may have measured heads."""
    taken = [step.seconds for step in record.steps_taken if step.action != "reuse"][1:] if record else []
    return median(taken) if taken else None
