"""Inputs that must come out of another node: a prompt written by hand may hold a number there, and the host lets it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...flowcache_core.errors import require
from .naming import naming


class Node(io.ComfyNode):
    """Base of our nodes, but for the report, which fails no run: ``execute`` gets what its schema's links carry.

    SettingError naming the input that gets anything else.
    """

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
            for one in schema.inputs:
                kind = one.get_io_type()
                if kind in CARRIES and inputs.get(one.id) is not None:
                    accepted = f"a link from an output {kind} of another node"
                    require(CARRIES[kind](inputs[one.id]), one.id, inputs[one.id], accepted)
        return execute(cls, *args, **inputs)

    return checked


def _is_conditioning(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], Mapping) for entry in value
    )


# The host's name of a type -> whether a value is of it.
CARRIES: dict[str, Callable[[Any], bool]] = {
    "MODEL": lambda value: hasattr(value, "model_options") and hasattr(value, "clone"),
    "CLIP": lambda value: hasattr(value, "tokenize"),
    "VAE": lambda value: hasattr(value, "decode") and hasattr(value, "encode"),
    "CONDITIONING": _is_conditioning,
    "LATENT": lambda value: isinstance(value, Mapping) and isinstance(value.get("samples"), Tensor),
}
