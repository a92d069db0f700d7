"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

from typing import Any

from torch import Tensor

def optimized_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor: ...
