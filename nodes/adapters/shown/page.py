"""How the host's page looks to whoever uses it: its language and whether it is dark.

The host's settings file has what was chosen; the language of the browser, which the page takes where nothing was, is
told by the page itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths

from ....flowcache_core.errors import SettingError
from ....flowcache_core.reading.json_text import read_object
from ..host_server import host_server

LIGHT = ("light", "solarized", "github")
"""Palettes of the host's page with dark text; all others are dark, as its default is."""
ROUTE = "/flowcache/page"
TOLD: dict[str, str] = {}
"""What the newest page says of itself."""


@dataclass(frozen=True)
class Page:
    language: str = "en"
    dark: bool = True

    @classmethod
    def now(cls) -> Page:
        """As the host's settings file has it; what its user never changed is not in there. Raises nothing."""
        path = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
        try:
            found: Any = read_object(path, "settings", "the host's settings") if path.is_file() else {}
        except (SettingError, OSError):
            found = {}
        language, palette = found.get("Comfy.Locale", TOLD.get("language")), found.get("Comfy.ColorPalette")
        light = isinstance(palette, str) and palette.removeprefix("custom_") in LIGHT
        return cls(language if isinstance(language, str) and language else "en", not light)


def serve() -> None:
    """Give the host's server the route; nothing where there is no server, as in a script."""
    server = host_server()
    if server is None:
        return
    from aiohttp import web

    @server.routes.post(ROUTE)
    async def tell(request: web.Request) -> web.Response:
        """``{"language": "zh"}``, at most as long as such a name is."""
        body = await request.content.read(200)
        try:
            language = json.loads(body)["language"]
        except (ValueError, KeyError, TypeError):
            language = None
        if not isinstance(language, str) or not 0 < len(language) < 20:
            return web.json_response({"error": 'JSON of the form {"language": "en"}'}, status=400)
        TOLD["language"] = language
        return web.json_response({})
