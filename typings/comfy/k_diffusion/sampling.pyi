"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

from typing import Any

def sample_ar_video(model: Any, x: Any, sigmas: Any, *args: Any, **kwargs: Any) -> Any: ...
