"""A model that another node has compiled as a whole: in our runs its blocks are compiled instead.

The host's compile node keeps what is in the transformer options out of the guards, and there lies all that changes from
chunk to chunk. So the code around the blocks runs as it is, and each block is compiled with the same settings. What
little lies around them is no loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch._dynamo.eval_frame import OptimizedModule

from ....flowcache_core.errors import require
from ..run.foreign import compiles

_BLOCKS: WeakKeyDictionary[nn.Module, list[nn.Module]] = WeakKeyDictionary()
"""Compiled blocks of every compiled model, so that a later run finds them compiled."""


def refuse_one_graph(model_options: Mapping[str, Any]) -> None:
    """SettingError where the whole model must be one graph: attention to earlier chunks lies outside of it."""
    whole = (compiles(model_options) or {}).get("fullgraph", False)
    require(not whole, "fullgraph", True, "off in the torch.compile node: what a chunk attends to is outside the graph")


def block_by_block(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """Innermost APPLY_MODEL wrapper, behind that of the compile node."""
    with blocks_compiled(executor.class_obj):
        return executor(*args, **kwargs)


@contextmanager
def blocks_compiled(model: Any) -> Iterator[None]:
    """Inside, ``model.diffusion_model`` is no compiled module, but its blocks are."""
    whole = model.diffusion_model
    if not isinstance(whole, OptimizedModule):
        yield
        return
    transformer = plain(whole)
    own = list(transformer.blocks)
    if whole not in _BLOCKS:
        _BLOCKS[whole] = [block if isinstance(block, OptimizedModule) else whole.dynamo_ctx(block) for block in own]
    model.diffusion_model = transformer
    try:
        put(transformer.blocks, _BLOCKS[whole])
        yield
    finally:
        put(transformer.blocks, own)
        model.diffusion_model = whole


@contextmanager
def uncompiled(model: Any) -> Iterator[bool]:
    """Inside, neither ``model.diffusion_model`` nor its blocks are compiled modules. Yields whether one was."""
    whole = model.diffusion_model
    transformer = plain(whole)
    own = list(transformer.blocks)
    model.diffusion_model = transformer
    try:
        put(transformer.blocks, [plain(block) for block in own])
        yield whole is not transformer or any(isinstance(block, OptimizedModule) for block in own)
    finally:
        put(transformer.blocks, own)
        model.diffusion_model = whole


def plain(module: Any) -> Any:
    return module._orig_mod if isinstance(module, OptimizedModule) else module


def put(blocks: Any, modules: list[nn.Module]) -> None:
    for index, module in enumerate(modules):
        blocks[index] = module
