"""What browsers were last told of runs, so that one that was reloaded can ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..host_server import host_server

KEPT = 16  # runs; a message of a long video takes some ten thousand bytes
ROUTE = "/flowcache/runs"

Message = Mapping[str, Any]


class RecentRuns:
    """The newest message on every node, by the client that asked for the run. A run that broke off leaves none."""

    def __init__(self) -> None:
        self.messages: dict[tuple[str, str, str | None], Message] = {}

    @staticmethod
    def _key(client: str, message: Message) -> tuple[str, str, str | None]:
        return client, message["node"], message["workflow"]

    def keep(self, client: str, message: Message) -> None:
        key = self._key(client, message)
        self.messages.pop(key, None)
        self.messages[key] = message
        while len(self.messages) > KEPT:
            self.messages.pop(next(iter(self.messages)))

    def forget(self, client: str, message: Message) -> None:
        self.messages.pop(self._key(client, message), None)

    def of(self, client: str) -> list[Message]:
        return [message for (asked, *_), message in self.messages.items() if asked == client]


RECENT = RecentRuns()


def serve() -> None:
    """Answer ``GET /flowcache/runs?client=ID`` with what that client was told; nothing without a server."""
    server = host_server()
    if server is None:
        return
    from aiohttp import web

    async def runs(request: web.Request) -> web.Response:
        return web.json_response(RECENT.of(request.query.get("client", "")))

    server.routes.get(ROUTE)(runs)
