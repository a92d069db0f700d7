"""Plans by name: the order in which chunks take their denoising steps. One kind, one file, one line here."""

from __future__ import annotations

from .blockwise import Blockwise, blockwise
from .settings import PlanSettings
from .staggered import Staggered, staggered
from .window import SlidingWindow, window

PLANS: dict[str, type[PlanSettings]] = {kind.name: kind for kind in (Blockwise, Staggered, SlidingWindow)}

__all__ = ["PLANS", "Blockwise", "PlanSettings", "SlidingWindow", "Staggered", "blockwise", "staggered", "window"]
