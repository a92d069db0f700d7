"""What the user has measured of models' K/V (``measure-kv``), for KV Cache Compressor to choose by."""

from __future__ import annotations

from ....flowcache_core.kv.profile import read_profile
from .own_presets import own_folder

FOLDER = "kv"


def own_profiles() -> tuple[str, ...]:
    """Texts of the files ``flowcache/kv/*.json`` in the user's folder, by name. SettingError naming one that is no
    profile."""
    return tuple(read_profile(path).as_json() for path in sorted((own_folder().parent / FOLDER).glob("*.json")))
