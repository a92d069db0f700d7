"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

from typing import Any

import torch

class CONST:
    def __getattr__(self, name: str) -> Any: ...

class ModelSamplingDiscreteFlow(torch.nn.Module):
    def __init__(self, model_config: Any = ...) -> None: ...
    def set_parameters(self, shift: float = ..., timesteps: int = ..., multiplier: float = ...) -> None: ...
