"""A node pack for the tests: conditioning of UMT5's width without UMT5. Any text gives the same vectors every time."""

from __future__ import annotations

import zlib

import torch
from comfy_api.latest import ComfyExtension, io

TOKENS, WIDTH = 8, 4096


class TinyTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema("TinyTextEncode", inputs=[io.String.Input("text")], outputs=[io.Conditioning.Output()])

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        return io.NodeOutput([[torch.randn(1, TOKENS, WIDTH, generator=generator), {}]])


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TinyTextEncode]


async def comfy_entrypoint() -> Extension:
    return Extension()
