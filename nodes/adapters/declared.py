"""Inputs as their schema declares them. A prompt written by hand may hold anything, and the host looks at some of it:
not at a number where a link belongs, not at NaN, not at the fields inside a choice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...flowcache_core.errors import SettingError, is_finite, listed, require
from .naming import naming

DYNAMIC = "COMFY_DYNAMICCOMBO_V3"


class Node(io.ComfyNode):
    """Base of our nodes, but for the report, which fails no run: ``execute`` gets values of the declared types.

    SettingError naming the input that gets anything else.
    """

    @classmethod
    def prepared(cls, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs as ``execute`` takes them, from what the host hands over."""
        return inputs

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("execute")
        # The host runs a node on locked copies of its class, which come here with what has been wrapped already.
        if own is not None and not hasattr(own.__func__, "__wrapped__"):
            cls.execute = classmethod(_checked(own.__func__))  # type: ignore[attr-defined]


def _checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    @functools.wraps(execute)
    def checked(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> io.NodeOutput:
        schema = cls.define_schema()
        with naming(schema.display_name or schema.node_id):
            inputs = cls.prepared(inputs)  # type: ignore[attr-defined]
            for one in schema.inputs:
                if one.id in inputs:
                    check_input(one, inputs[one.id])
            try:
                return execute(cls, *args, **inputs)
            except (KeyError, TypeError) as error:
                missing = [name for one in schema.inputs for name in absent(one, inputs.get(one.id))]
                if not missing:
                    raise
                raise SettingError(missing[0], "nothing", "a value: what was chosen has this field") from error

    return checked


def absent(one: io.Input, value: Any) -> list[str]:
    """The fields of a choice that a prompt leaves out."""
    if one.get_io_type() != DYNAMIC or not isinstance(value, Mapping):
        return []
    chosen = next((option for option in one.options if option.key == value.get(one.id)), None)
    return [] if chosen is None else [inner.id for inner in chosen.inputs if inner.id not in value]


def check_input(one: io.Input, value: Any) -> None:
    """SettingError unless ``value`` is of the type that the input declares, and a number not above its largest."""
    kind, field = one.get_io_type(), one.id
    if value is None:
        require(bool(one.optional), field, None, f"a link from an output {kind}" if kind in CARRIES else "a value")
    elif kind in CARRIES:
        require(CARRIES[kind](value), field, value, f"a link from an output {kind} of another node")
    elif kind in TYPES:
        fits, accepted = TYPES[kind]
        require(fits(value), field, value, accepted)
        least, most = getattr(one, "min", None) or 0, getattr(one, "max", None)
        if most is not None:
            require(value <= most, field, value, f"{accepted} from {least:g} to {most:g}")
    elif kind == DYNAMIC:
        keys = [option.key for option in one.options]
        named = isinstance(value, Mapping) and isinstance(value.get(field), str)
        require(named, field, value, f"a choice with its fields: {listed(keys, 40)}")
        for option in one.options:
            if option.key == value[field]:
                for inner in option.inputs:
                    if inner.id in value:
                        check_input(inner, value[inner.id])


def _is_conditioning(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(
            isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], Mapping) for entry in value
        )
    )


# The host's name of a type -> whether a value is of it. First what only links carry, then what is written into a field.
CARRIES: dict[str, Callable[[Any], bool]] = {
    "MODEL": lambda value: hasattr(value, "model_options") and hasattr(value, "clone"),
    "CLIP": lambda value: hasattr(value, "tokenize"),
    "VAE": lambda value: hasattr(value, "decode") and hasattr(value, "encode"),
    "CONDITIONING": _is_conditioning,
    "FLOWCACHE_PRESET": lambda value: isinstance(value, Mapping) and "presets" in value,
    "LATENT": lambda value: isinstance(value, Mapping) and isinstance(value.get("samples"), Tensor),
}
TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "INT": (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number"),
    "FLOAT": (is_finite, "a number"),
    "STRING": (lambda value: isinstance(value, str), "a text"),
    "COMBO": (lambda value: isinstance(value, str), "one of the choices"),
    "BOOLEAN": (lambda value: isinstance(value, bool), "true or false"),
}
