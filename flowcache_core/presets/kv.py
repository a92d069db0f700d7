"""K/V settings of a preset's row: what a published run kept of its finished chunks, and how it chose."""

from __future__ import annotations

from ..errors import SettingError, is_finite, require
from ..kv import COMPRESSORS
from ..kv.settings import KVSettings
from ..kv.storage import STORAGES, Plain
from ..reuse.build import build_part

ACCEPTED = '{"budget": chunks, "compressor": {"name": ..., <its fields>}}, with "storage" and "at_finish" if wanted'


def kv_of(field: str, row: object) -> KVSettings | None:
    """``row`` as K/V settings, None where there is none; SettingError for ``field`` when it is of another form."""
    if row is None:
        return None
    known = {"budget", "compressor", "storage", "at_finish"}
    if not isinstance(row, dict) or not {"budget", "compressor"} <= set(row) <= known:
        raise SettingError(field, row, ACCEPTED)
    budget, at_finish = row["budget"], row.get("at_finish", False)
    require(is_finite(budget), f"{field}.budget", budget, "a number of chunks")
    require(isinstance(at_finish, bool), f"{field}.at_finish", at_finish, "true or false")
    compressor = build_part(f"{field}.compressor", COMPRESSORS, row["compressor"])
    storage = build_part(f"{field}.storage", STORAGES, row["storage"]) if "storage" in row else Plain()
    try:
        return KVSettings(budget, compressor, storage=storage, at_finish=at_finish)
    except SettingError as error:
        raise SettingError(f"{field}.{error.field}", error.value, error.accepted) from error
