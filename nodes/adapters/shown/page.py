"""How the host's page looks to whoever uses it: its language and whether it is dark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths

from ....flowcache_core.errors import SettingError
from ....flowcache_core.reading.json_text import read_object

LIGHT = ("light", "solarized", "github")
"""Palettes of the host's page with dark text; all others are dark, as its default is."""


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
        language, palette = found.get("Comfy.Locale"), found.get("Comfy.ColorPalette")
        light = isinstance(palette, str) and palette.removeprefix("custom_") in LIGHT
        return cls(language if isinstance(language, str) and language else "en", not light)
