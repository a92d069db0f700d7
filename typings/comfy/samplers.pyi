"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

from collections.abc import Callable
from typing import Any

class KSAMPLER:
    def __init__(self, sampler_function: Callable[..., Any], extra_options: dict[str, Any] = ...) -> None: ...
    def sample(
        self,
        model_wrap: Any,
        sigmas: Any,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any: ...
    def __getattr__(self, name: str) -> Any: ...

class KSamplerX0Inpaint:
    def __init__(self, model: Any, sigmas: Any) -> None: ...
    def __call__(self, x: Any, sigma: Any, denoise_mask: Any, model_options: Any = ..., seed: Any = ...) -> Any: ...
    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any) -> None: ...
