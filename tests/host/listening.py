"""A browser's ear: post a prompt to a server and hear what it tells the client that asked for it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from comfy_server import PATIENCE, ComfyServer

PROGRESS_TEXT = 3  # the host's number of this binary message
LAST = ("execution_success", "execution_error", "execution_interrupted")


@dataclass(frozen=True)
class Heard:
    """messages: (event, data) in order; a text on a node is ("text", {"node", "text"}). refused: the answer instead."""

    messages: tuple[tuple[str, dict[str, Any]], ...] = ()
    refused: dict[str, Any] | None = None

    def of(self, event: str) -> list[dict[str, Any]]:
        return [data for kind, data in self.messages if kind == event]

    @property
    def error(self) -> dict[str, Any] | None:
        return next(iter(self.of("execution_error")), None)


def post(server: ComfyServer, prompt: Mapping[str, Any], client: str = "browser") -> Heard:
    """Run ``prompt`` to its end."""
    return asyncio.run(_post(server.url, prompt, client))


async def _post(url: str, prompt: Mapping[str, Any], client: str) -> Heard:
    limit = aiohttp.ClientTimeout(total=PATIENCE)
    async with (
        aiohttp.ClientSession(timeout=limit) as session,
        session.ws_connect(f"{url}/ws", params={"clientId": client}) as socket,
    ):
        body = {"prompt": prompt, "client_id": client}
        async with session.post(f"{url}/prompt", json=body) as answer:
            accepted = await answer.json()
        if "prompt_id" not in accepted:
            return Heard(refused=accepted)
        messages = []
        async for message in socket:
            messages.append(_read(message))
            event, data = messages[-1]
            if event in LAST and data["prompt_id"] == accepted["prompt_id"]:
                return Heard(tuple(messages))
    raise AssertionError("the server closed the connection")


def _read(message: aiohttp.WSMessage) -> tuple[str, dict[str, Any]]:
    if message.type == aiohttp.WSMsgType.TEXT:
        content = message.json()
        return content["type"], content["data"]
    (event,) = struct.unpack(">I", message.data[:4])
    if event != PROGRESS_TEXT:
        return "binary", {"event": event}
    (length,) = struct.unpack(">I", message.data[4:8])
    node, text = message.data[8 : 8 + length], message.data[8 + length :]
    return "text", {"node": node.decode(), "text": text.decode()}
