"""A node pack for the tests: conditioning of UMT5's width without UMT5, pictures of 48-channel latents without a VAE,
and released models in the size of the tests' files. Any text gives the same vectors every time.
"""

from __future__ import annotations

import sys
import zlib
from dataclasses import replace

import torch
from comfy_api.latest import ComfyExtension, io

TOKENS, WIDTH = 8, 4096


class TinyTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema("TinyTextEncode", inputs=[io.String.Input("text")], outputs=[io.Conditioning.Output()])

    @classmethod
    def validate_inputs(cls, text: str) -> bool:
        """Before any node of the graph runs, and after all packs have been loaded."""
        shrink_released()
        return True

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        return io.NodeOutput([[torch.randn(1, TOKENS, WIDTH, generator=generator), {}]])


class TinyDecode(io.ComfyNode):
    """Three channels of a latent as colours, every frame but the first four times, each pixel ``scale`` wide."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Latent.Input("samples"), io.Int.Input("scale")]
        return io.Schema("TinyDecode", inputs=inputs, outputs=[io.Image.Output()])

    @classmethod
    def execute(cls, samples: dict[str, torch.Tensor], scale: int) -> io.NodeOutput:
        colours = samples["samples"][0, :3].movedim(0, -1).float()
        frames = torch.cat((colours[:1], colours[1:].repeat_interleave(4, 0)))
        wide = frames.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        return io.NodeOutput((wide / 4 + 0.5).clamp(0, 1))


def shrink_released() -> None:
    """The pack's rows for models of the tests' width and depth."""
    for name, module in list(sys.modules.items()):
        if name.endswith("flowcache_core.released"):
            for title, row in module.RELEASED.items():
                module.RELEASED[title] = replace(row, size=(128, 2))


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TinyTextEncode, TinyDecode]


async def comfy_entrypoint() -> Extension:
    return Extension()
