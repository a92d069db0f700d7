"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

from collections.abc import Callable
from typing import Any

class WrappersMP:
    OUTER_SAMPLE: str
    PREPARE_SAMPLING: str
    SAMPLER_SAMPLE: str
    PREDICT_NOISE: str
    CALC_COND_BATCH: str
    APPLY_MODEL: str
    DIFFUSION_MODEL: str

def add_wrapper_with_key(
    wrapper_type: str,
    key: str,
    wrapper: Callable[..., Any],
    transformer_options: Any,
    is_model_options: bool = ...,
) -> None: ...
