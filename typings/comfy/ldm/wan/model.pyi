"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

import torch
from torch import Tensor

class WanModel(torch.nn.Module): ...

def sinusoidal_embedding_1d(dim: int, position: Tensor) -> Tensor: ...
