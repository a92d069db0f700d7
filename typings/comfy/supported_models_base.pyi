"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares with the host)."""

from typing import Any

class BASE:
    unet_config: dict[str, Any]
    def __init__(self, unet_config: dict[str, Any]) -> None: ...
    def __getattr__(self, name: str) -> Any: ...
