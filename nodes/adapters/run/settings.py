"""What the patch nodes put on a MODEL: one immutable settings object on the clone, read when sampling starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ....flowcache_core.architecture import architecture_of
from ....flowcache_core.calibrate.measured_heads import MeasureHeads
from ....flowcache_core.errors import Found, SettingError, require
from ....flowcache_core.kv.settings import KVSettings
from ....flowcache_core.models.magi.transformer import MagiTransformer
from ....flowcache_core.plan.base import Plan
from ....flowcache_core.presets import Preset, model_file, models
from ....flowcache_core.presets.auto import Run, choose, nearest_title, offers_of
from ....flowcache_core.presets.sparse import SparsePreset
from ....flowcache_core.report.record import RunRecord
from ....flowcache_core.reuse.base import ReusePolicy
from ....flowcache_core.reuse.quantity import Quantity
from ....flowcache_core.schedule import Schedule, shift_of
from ....flowcache_core.sparse.settings import SparseSettings
from ..files.own_presets import usable
from ..ranks.choice import RanksChoice
from .recorded import model_name
from .records import BYPASSED, NOT_SAMPLED, NoRecordError, RecordSlot

KEY = "flowcache"
SAME_LEVELS = 0.01  # hosts take their levels from a table of 1000


@dataclass(frozen=True)
class ReuseSettings:
    """What a run reuses. preset: the row's name, or "custom". remarks: sentences on the choice."""

    policy: ReusePolicy
    quantity: Quantity
    preset: str = "custom"
    device: str | None = None
    source: Preset | None = None
    remarks: tuple[str, ...] = ()

    def settled(self, run: Run) -> ReuseSettings:
        """For ``run``: as the node has it."""
        return self

    @property
    def engine_fields(self) -> dict[str, Any]:
        """What these settings are to the core's EngineSettings."""
        return {"policy": self.policy, "quantity": self.quantity, "reuse_device": self.device}

    def check(self, schedule: Schedule, patcher: Any) -> None:
        """SettingError when these settings are not for a run of the model in ``patcher`` over ``schedule``."""
        if self.source is not None:
            try:
                fit_model(self.source, self.preset, patcher)
                fit(self.source, self.preset, schedule)
            except SettingError as error:
                instead = other_preset(run_of(patcher, schedule))
                raise SettingError(error.field, error.value, f"{error.accepted}; {instead}") from error
        self.policy.check(schedule.steps)
        shown = not isinstance(patcher.model.diffusion_model, MagiTransformer)
        accepted = "motion: ComfyUI hands out the guided velocity and no branch's hidden states (the core has them)"
        require(not (self.policy.reads_residual and shown), "policy", self.policy.name, accepted)

    def notes(self, patcher: Any) -> tuple[str, ...]:
        """Sentences on the choice, and on a preset that was made for another file of the same architecture."""
        source, name = self.source, model_name(patcher)
        if source is None or not source.architecture or name in (source.model, shipped_file(source.model)):
            return self.remarks
        other = f"preset {self.preset} was recorded on {source.model}, and this is {name}: it may need more steps"
        return (*self.remarks, other)


@dataclass(frozen=True)
class AutoReuse:
    """The preset auto: what a run reuses is chosen when it begins, and never refused.

    fidelity: from 0 (fast) to 1. linked: a preset that goes before those of the user's folder, None without a link.
    """

    fidelity: float
    linked: Preset | None = None

    def settled(self, run: Run) -> ReuseSettings:
        linked = self.linked
        if linked is not None and not any(offers_of((linked,))):  # it says not what for: there is nothing to choose
            return ReuseSettings(linked.policy, linked.quantity, linked.name, source=linked)
        own, remarks = usable() if linked is None else ((linked,), ())
        chosen = choose(run, self.fidelity, own)
        return ReuseSettings(
            chosen.policy, chosen.quantity, chosen.name, source=chosen.source, remarks=(*chosen.notes, *remarks)
        )


def run_of(
    patcher: Any,
    schedule: Schedule,
    *,
    guidance: float | None = None,
    solver: str = "",
    plan: Plan | None = None,
) -> Run:
    """What auto knows of a run of the model in ``patcher``."""
    architecture, model = architecture_of(patcher.model.diffusion_model), model_name(patcher)
    known = Run(schedule.steps, schedule, architecture, model, guidance, solver)
    return known if plan is None else on_plan(known, plan)


def on_plan(run: Run, plan: Plan) -> Run:
    chunks = len(plan.chunks) - plan.prefix_chunks
    return replace(run, plan=plan.name, chunks=chunks, begins=not plan.prefix_chunks)


def other_preset(run: Run) -> str:
    """What to choose for ``run`` where a preset does not fit it."""
    nearest = nearest_title(run, usable()[0])
    if nearest is not None:
        return f"the nearest that fits: {nearest}"
    return "auto, which takes the nearest lists for it"


def shipped_file(model: str) -> str | None:
    """The file that the pack's own presets of ``model`` were recorded on; None for other models."""
    return model_file(model).get("file") if model in models() else None


def fit_model(source: Preset, name: str, patcher: Any) -> None:
    """SettingError when the preset notes what transformer it was recorded on, and this is another one."""
    here = architecture_of(patcher.model.diffusion_model)
    there = source.architecture
    accepted = f"{there}, of {source.model}, on which it was recorded"
    if source.model == there:  # a model whose file is not known is called by its architecture
        accepted = f"{there}, on which it was recorded"
    require(there in ("", here) or here == "", f"preset {name}", f"a model {here}", accepted)


def fit_steps(source: Preset, name: str, steps: int, shift: float | None = None) -> None:
    """SettingError that says whose preset it is, when it was calibrated for another number of steps or another shift
    (None: not known).
    """
    try:
        source.fit(steps, shift)
    except SettingError as error:
        needs = (source.requires or {}).items()
        runs = " at ".join(f"{value:g} steps" if key == "steps" else f"{key} {value:g}" for key, value in needs)
        accepted = f"a run of the model {source.model} with {runs}"
        raise SettingError(f"preset {name}", error.value, accepted) from error


def fit(source: Preset, name: str, schedule: Schedule) -> None:
    """SettingError as :func:`fit_steps`, and where no shift describes the noise levels, for other ones."""
    fit_steps(source, name, schedule.steps, shift_of(schedule))
    if source.sigmas:
        made = len(source.sigmas) - 1
        accepted = f"a run of {made} steps, at the noise levels it was recorded at"
        require(made == schedule.steps, f"preset {name}", schedule.steps, accepted)
        off = max(abs(a - b) for a, b in zip(source.sigmas, schedule.sigmas, strict=True))
        accepted = f"the {schedule.steps} noise levels it was recorded at: the same scheduler and shift"
        require(off <= SAME_LEVELS, f"preset {name}", Found(f"noise levels that differ by up to {off:.3f}"), accepted)


@dataclass(frozen=True)
class FlowCacheSettings:
    """Settings carried by a MODEL clone (in ``model_options``, where objects are shared, not copied).

    heads: the preset that sparse attention is from. measure: heads are measured, and attention stays dense.
    """

    reuse: ReuseSettings | AutoReuse | None = None
    kv: KVSettings | None = None
    sparse: SparseSettings | None = None
    heads: SparsePreset | None = None
    measure: MeasureHeads | None = None
    ranks: RanksChoice | None = None
    slot: RecordSlot = field(default_factory=RecordSlot, compare=False)

    def settled(self, run: Run) -> FlowCacheSettings:
        """With what ``run`` reuses."""
        return self if self.reuse is None else replace(self, reuse=self.reuse.settled(run))

    @property
    def chosen(self) -> ReuseSettings | None:
        """What a run reuses, once that is settled."""
        return self.reuse if isinstance(self.reuse, ReuseSettings) else None

    @property
    def kv_settings(self) -> KVSettings:
        """What the KV Cache Compressor chose; everything kept without one."""
        return self.kv or KVSettings()


def settings_of(model_options: Mapping[str, Any]) -> FlowCacheSettings:
    """The settings on a model, or empty ones."""
    return model_options.get(KEY, FlowCacheSettings())


def refuse_other_caches(model_options: Mapping[str, Any]) -> None:
    """SettingError when EasyCache or LazyCache is on the same model: it would skip calls that write K/V."""
    other = model_options.get("transformer_options", {}).get("easycache")
    if other is not None:
        name = getattr(other, "name", "EasyCache")
        raise SettingError(
            "model", f"{name} on a model that FlowCache samples", f"one of the two: remove the {name} node"
        )


def last_record(model: Any) -> RunRecord:
    """What the last run of this MODEL left; NoRecordError when there was none."""
    record = slot_of(model).record
    if record is None:
        raise NoRecordError(NOT_SAMPLED)
    return record


def slot_of(model: Any) -> RecordSlot:
    """Where the runs of this MODEL are noted; NoRecordError when it came through no node of ours."""
    if KEY not in model.model_options:
        raise NoRecordError(BYPASSED)
    return settings_of(model.model_options).slot
