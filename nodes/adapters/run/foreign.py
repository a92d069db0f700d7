"""What other nodes put around a model, as error messages name it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from ....flowcache_core.errors import SettingError

_OURS = ("flowcache", "torch.compile")


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
    others = "; ".join(around(model_options))
    return f" (on this model: {others})" if others else ""


def around(model_options: Mapping[str, Any]) -> Iterator[str]:
    """Every function of another node that a model call goes through."""
    function = model_options.get("model_function_wrapper")
    if function is not None:
        yield f"model function wrapper {name_of(function)}"
    function = model_options.get("sampler_calc_cond_batch_function")
    if function is not None:
        yield f"conditioning batch function {name_of(function)}"
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    for kind, by_key in wrappers.items():
        for key, functions in by_key.items():
            if key not in _OURS:
                yield from (f"{kind} wrapper {name_of(function)}" for function in functions)


def name_of(function: Any) -> str:
    """Module and name of a function, or of a callable object's class."""
    function = function.func if isinstance(function, partial) else function
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__.rpartition('.')[2]}.{named.__qualname__.replace('.<locals>', '')}"
