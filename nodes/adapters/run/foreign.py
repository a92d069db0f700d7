"""What other nodes put around a model, as error messages name it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY, TORCH_COMPILE_KWARGS

from ....flowcache_core.errors import SettingError, require

OURS = "flowcache"
FUNCTIONS = (
    "sampler_calc_cond_batch_function",
    "sampler_pre_cfg_function",
    "sampler_cfg_function",
    "sampler_post_cfg_function",
)
"""What a guider may call beside the model, under the host's names in the model options."""
_INSIDE = (WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)


def skipped(found: str, model_options: Mapping[str, Any], instead: str = "") -> SettingError:
    """For a model that was not run where it was asked. instead: another way out."""
    accepted = (
        "one without nodes that answer in the model's place or skip its layers (TeaCache, MagCache, first-block cache)"
        ": what they skip leaves no K/V"
    )
    return SettingError("model", found, accepted + here(model_options) + instead)


def repeated(found: str, model_options: Mapping[str, Any], instead: str = "") -> SettingError:
    """For a model that was run more often than asked. instead: another way out."""
    accepted = "one without nodes that run the model again inside a call: which K/V holds cannot be told"
    return SettingError("model", found, accepted + here(model_options) + instead)


def here(model_options: Mapping[str, Any]) -> str:
    others = ", ".join(around(model_options))
    return f" (on this model: {others})" if others else ""


def around(model_options: Mapping[str, Any]) -> Iterator[str]:
    """Every function of another node that a model call goes through; torch.compile is none."""
    for option, what in (
        ("model_function_wrapper", "model function wrapper"),
        ("sampler_calc_cond_batch_function", "conditioning batch function"),
    ):
        yield from (f"{what} {name_of(function)}" for function in listed(model_options.get(option)))
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    for kind in _INSIDE:
        for key, functions in wrappers.get(kind, {}).items():
            if key not in (OURS, COMPILE_KEY):
                yield from (f"{kind} wrapper {name_of(function)}" for function in functions)


def listed(functions: Any) -> list[Any]:
    """The host keeps one function, or a list of them, or none."""
    return [] if functions is None else [*functions] if isinstance(functions, list | tuple) else [functions]


def name_of(function: Any) -> str:
    """Module and name of a function, or of a callable object's class."""
    function = function.func if isinstance(function, partial) else function
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__.rpartition('.')[2]}.{named.__qualname__.replace('.<locals>', '')}"


def refuse_split_caches(caches: Sequence[Mapping[str, Any]]) -> None:
    """SettingError for raylight's K/V. caches: the model's, one per layer."""
    accepted = "one without it: raylight keeps K/V in parts on several GPUs, out of our reach"
    require(not any("sp_full_end" in cache for cache in caches), "model", "a model with raylight's K/V", accepted)


def compiles(model_options: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How the host's torch.compile node compiles this model; None where there is none."""
    return model_options.get(TORCH_COMPILE_KWARGS)
