"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

COMPILE_KEY: str
TORCH_COMPILE_KWARGS: str
