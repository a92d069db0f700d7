"""Options with which an evaluation runs under reuse and compression: does the video still do what its prompt says?"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ..commands.demo import budget, make_compressor, make_reuse
from ..errors import SettingError, require
from ..kv import COMPRESSORS
from ..kv.settings import STORAGE_DTYPES, KVSettings
from ..kv.storage import STORAGES
from ..presets import preset_names
from ..reuse.base import ReusePolicy

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in STORAGE_DTYPES}


def add_run_arguments(parser: argparse.ArgumentParser, model: str) -> None:
    """Preset of ``model``, K/V budget, compressor and storage."""
    presets = ", ".join(preset_names(model))
    parser.set_defaults(model=model)
    parser.add_argument("--preset", help=f"reuse of steps: {presets}, or a file that calibrate wrote (default: none)")
    parser.add_argument("--rescale", action="store_true", help="stretch a preset made for another number of steps")
    parser.add_argument("--kv-budget", type=budget, help="finished chunks to keep: a number, half, none (default)")
    parser.add_argument("--compressor", help=f"what is kept of them: {', '.join(COMPRESSORS)}")
    parser.add_argument("--kv-storage", help=f"finished chunks in fewer bytes: {', '.join(STORAGES)} (default: plain)")
    parser.add_argument("--kv-dtype", help=f"how K/V are stored: {', '.join(DTYPES)} (default: as computed)")


def run_changes(options: argparse.Namespace, shift: float) -> dict[str, Any]:
    """The engine settings that the options ask for. SettingError for what cannot work."""
    compressor, kept = make_compressor(options.compressor), options.kv_budget
    if kept == "half":
        kept = max(options.chunks / 2, 1.0 if compressor is None else compressor.min_budget)
    if options.kv_dtype not in (None, *DTYPES):
        raise SettingError("kv-dtype", options.kv_dtype, ", ".join(DTYPES))
    dtype: torch.dtype | None = DTYPES.get(options.kv_dtype)
    stored = options.kv_storage or "plain"
    require(stored in STORAGES, "kv-storage", stored, ", ".join(STORAGES))
    kv = KVSettings(budget=kept, compressor=compressor, dtype=dtype, storage=STORAGES[stored]())
    changes: dict[str, Any] = {"kv": kv}
    if options.preset is not None:
        given = argparse.Namespace(**{**vars(options), "policy": None, "threshold": None, "warmup": None})
        reuse = make_reuse(given, options.steps, shift)
        changes |= {"policy": reuse.policy, "quantity": reuse.quantity}
    return changes


def one_by_one(policy: ReusePolicy | None) -> bool:
    """Whether a policy looks at the content, so that videos of one batch would decide for one another."""
    return policy is not None and not policy.content_free
