"""For runs whose result is worth nothing with NaN in it: measurements, calibrations, evaluations."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import NotFiniteError
from .events import Event, NotFinite


def refusing(observe: Callable[[Event], None] = lambda event: None) -> Callable[[Event], None]:
    """``observe``, but the first step whose values are not finite ends the run with NotFiniteError."""

    def see(event: Event) -> None:
        if isinstance(event, NotFinite):
            raise NotFiniteError(f"values are not finite from {event.place} on (NaN or infinite): nothing is measured")
        observe(event)

    return see
