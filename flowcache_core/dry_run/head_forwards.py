"""What measuring heads adds to a run: the forwards that it makes beside the run's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..calibrate.measured_heads import MeasureHeads
from ..cost import ModelShape
from ..cost.counted import counted_events
from ..engine.settings import EngineSettings
from ..kv.settings import KVSettings
from ..kv.spec import KVSpec
from ..report.events import StepTaken


@dataclass(frozen=True)
class HeadForwards:
    """steps: of the run, at which is measured. times: more forwards of a chunk. flops: theirs, of one video."""

    steps: int
    times: int
    flops: float

    @property
    def note(self) -> str:
        return f"heads are measured at {self.steps} steps: {self.times} more forwards of a chunk are counted"


def head_forwards(
    measure: MeasureHeads, shape: ModelShape, spec: KVSpec, kv: KVSettings, settings: EngineSettings, branches: int
) -> HeadForwards:
    """In the first window of a run, with ``kv`` and counted with ``settings``. SettingError where the run will refuse
    it."""
    measure.check(settings.attention)
    plan, tokens = settings.plan, spec.tokens_per_frame
    kv = kv.settled(spec, plan)
    events, _ = counted_events(shape, [settings], tokens, branches)
    computed = [one for one in events if isinstance(one, StepTaken) and one.action == "compute"]
    cells = measure.cells(spec)
    # Which steps it takes depends on how many videos were measured before; how many does not.
    at = [
        taken for place in measure.places(plan, tokens, kv, 0, settings.recache) if (taken := _next(computed, *place))
    ]
    return HeadForwards(len(at), cells * len(at), cells * shape.total(at))


def _next(computed: Iterable[StepTaken], chunk: int, step: int) -> StepTaken | None:
    """Where a chunk is computed as a whole from ``step`` on; there it is measured."""
    return next((one for one in computed if one.chunk == chunk and one.step >= step), None)
