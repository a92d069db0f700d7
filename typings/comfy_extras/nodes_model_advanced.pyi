"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

from typing import Any

class ModelSamplingSD3:
    def patch(self, model: Any, shift: float, multiplier: float = ...) -> tuple[Any, ...]: ...
