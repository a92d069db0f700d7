"""Reuse policies by name: one policy, one file, one line here."""

from __future__ import annotations

from .barycentric import Barycentric
from .base import Decision, ReusePolicy
from .chebyshev import Chebyshev
from .chunkwise import Chunkwise
from .distance import DISTANCES, Distance
from .easycache import EasyCache
from .forecast import Forecast, Offset, Taylor
from .front_loaded import FrontLoaded
from .interval import Interval
from .magcache import MagCache
from .motion import Motion
from .motion_reference import ReferenceMotion
from .never import Never
from .partial_schedule import PartialSchedule
from .published import Published
from .quantity import Increment, Quantity, Residual, Velocity
from .schedule import StaticSchedule
from .teacache import TeaCache

POLICIES: dict[str, type[ReusePolicy]] = {
    policy.name: policy
    for policy in (
        Chunkwise,
        TeaCache,
        EasyCache,
        MagCache,
        Interval,
        StaticSchedule,
        FrontLoaded,
        Published,
        Motion,
        ReferenceMotion,
        PartialSchedule,
        Never,
    )
}
QUANTITIES: dict[str, type[Quantity]] = {
    q.name: q for q in (Velocity, Increment, Residual, Forecast, Taylor, Barycentric, Chebyshev, Offset)
}

__all__ = ["DISTANCES", "POLICIES", "QUANTITIES", "Decision", "Distance", "Quantity", "ReusePolicy"]
