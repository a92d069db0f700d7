"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares with the host)."""

from typing import Any

def get_progress_state() -> Any: ...
