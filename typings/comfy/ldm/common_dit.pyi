"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

from typing import Any

from torch import Tensor

def pad_to_patch_size(img: Tensor, patch_size: Any = ..., padding_mode: str = ...) -> Tensor: ...
