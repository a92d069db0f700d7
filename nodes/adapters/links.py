"""Inputs that must come out of another node: a prompt written by hand may hold a number there, and the host lets it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...flowcache_core.errors import require
from .naming import naming


def linked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Under ``@classmethod``: a node's ``execute`` that gets what its schema's links carry.

    SettingError naming the input that gets anything else. The report has none of it: it fails no run.
    """
    schemas: list[io.Schema] = []  # asked for once: the host runs locked copies of a node, which cannot keep one

    @functools.wraps(execute)
    def checked(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> io.NodeOutput:
        if not schemas:
            schemas.append(cls.define_schema())
        with naming(schemas[0].display_name or schemas[0].node_id):
            for one in schemas[0].inputs:
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
