"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

from typing import Any

import torch

class ModelType:
    FLOW: ModelType

class BaseModel(torch.nn.Module):
    def __init__(
        self, model_config: Any, model_type: ModelType = ..., device: Any = ..., unet_model: Any = ...
    ) -> None: ...
