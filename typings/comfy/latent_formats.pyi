"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

from typing import Any

class LatentFormat:
    latent_channels: int
    latent_dimensions: int
    def __getattr__(self, name: str) -> Any: ...

class Wan21(LatentFormat): ...
