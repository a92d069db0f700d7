"""Plans by name: the order in which chunks take their denoising steps."""

from __future__ import annotations

from collections.abc import Callable

from .base import Plan
from .blockwise import blockwise
from .staggered import staggered
from .window import window

PLANS: dict[str, Callable[..., Plan]] = {"blockwise": blockwise, "staggered": staggered, "window": window}
