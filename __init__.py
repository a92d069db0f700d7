"""FlowCache for ComfyUI: chunkwise adaptive reuse and K/V cache compression for autoregressive video models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import FlowCacheExtension

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> FlowCacheExtension:
    """What the host calls; nothing of the host is imported before."""
    from .nodes import FlowCacheExtension

    return FlowCacheExtension()
