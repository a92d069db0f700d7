"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

from typing import Any

class ModelPatcher:
    def __init__(self, model: Any, load_device: Any, offload_device: Any, size: int = ...) -> None: ...
    def __getattr__(self, name: str) -> Any: ...

CoreModelPatcher: type[ModelPatcher]
