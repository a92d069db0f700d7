"""What sparse attention will compute and hold, as far as that is known before a run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..kv.layout import capacity_tokens
from ..kv.settings import KVSettings
from ..kv.spec import KVSpec
from ..plan.base import Plan
from .calibrated import Calibrated
from .method import SparseMethod
from .settings import SparseSettings
from .xattention import XAttention

USUAL, USUAL_P = 0.35, 0.9
"""Density that Wan has at this p, about; where the settings do not say one."""


@dataclass(frozen=True)
class Expected(SparseMethod):
    """Stands for a method where nothing is computed. density: of the forwards that are sparse; overhead: of choosing,
    as a share of the dense attention.
    """

    name: ClassVar[str] = "expected"

    density: float = 1.0
    overhead: float = 0.0

    @property
    def prediction(self) -> float:
        return self.overhead

    def dense(self, layer: int) -> bool:
        return self.density == 1

    def score(self, q: Tensor, k: Tensor) -> Tensor:
        raise NotImplementedError

    def select(self, scores: Tensor, layer: int, heads: Sequence[int]) -> Tensor:
        raise NotImplementedError


def inner_density(
    settings: SparseSettings, plan: Plan | None = None, kv: KVSettings | None = None, recache: Collection[int] = ()
) -> float:
    """Of the chunks that run sparse in a run of ``plan`` with ``kv``; without a plan, of the attention at hand."""
    stated = _stated_density(settings, plan, kv, recache)
    return USUAL if stated is None else stated


def density_note(settings: SparseSettings, plan: Plan, kv: KVSettings, recache: Collection[int] = ()) -> str:
    """A sentence where the usual density stands for one that depends on the video, else ""."""
    if _stated_density(settings, plan, kv, recache) is not None:
        return ""
    return (
        f"self-attention counted at density {USUAL:g}, about Wan's at p 0.9, whatever p is: what p leaves out depends "
        "on the video"
    )


def _stated_density(
    settings: SparseSettings, plan: Plan | None, kv: KVSettings | None, recache: Collection[int] = ()
) -> float | None:
    """None where neither the method nor a calibration says it."""
    method = settings.method if plan is None else settings.settled(plan, 1, kv or KVSettings(), recache)
    if isinstance(method, XAttention):
        if isinstance(settings.method, Calibrated) and settings.method.table is not None and plan is not None:
            table, p = settings.method.table, [share for row in method.p for share in row]  # type: ignore[union-attr]
            rows = zip(table.density, p, strict=True)
            places = {p: place for place, p in enumerate(table.subject.candidates)}
            shares = [1.0 if value == 1 else row[places[value]] for row, value in rows]
            return sum(shares) / len(shares)
        return 1.0 if method.p == 1 else None
    density = getattr(method, "density", None)
    return None if density is None else float(density)


def unknown_density(settings: SparseSettings) -> bool:
    """Whether the density depends on what the model sees, so that :func:`inner_density` is another model's."""
    return _stated_density(settings, None, None) is None


def expected(settings: SparseSettings, plan: Plan, kv: KVSettings, recache: Collection[int] = ()) -> SparseSettings:
    """``settings`` for who counts and does not compute."""
    density, method = inner_density(settings, plan, kv, recache), settings.method
    return replace(settings, method=Expected(method.block, density, method.prediction))


def mask_memory(sparse: SparseSettings | None, spec: KVSpec, plan: Plan, kv: KVSettings) -> int:
    """Bytes of the masks that a run keeps to serve again."""
    if sparse is None:
        return 0
    return sparse.memory(spec, plan, capacity_tokens(plan, spec.tokens_per_frame, max(kv.budgets, default=None)))
