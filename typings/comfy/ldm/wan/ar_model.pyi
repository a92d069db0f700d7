"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

from .model import WanModel

class CausalWanModel(WanModel): ...
