"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

from typing import Any

class BASE:
    unet_config: dict[str, Any]
    def __init__(self, unet_config: dict[str, Any]) -> None: ...
    memory_usage_factor: float
    def __getattr__(self, name: str) -> Any: ...
