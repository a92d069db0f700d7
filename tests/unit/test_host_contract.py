"""Every name of the host that the pack uses is there, and every call and patch fits its signature, read from source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "comfy" / "ComfyUI")


pytestmark = pytest.mark.skipif(not (HOST / ".git").exists(), reason="no clone of ComfyUI: set COMFYUI_DIR")


def verdict(folder: Path, pack: Path) -> dict[str, Any]:
    """comfy-import-guard's, which resolves the pack against the host's commit; nothing is imported, nothing fetched."""
    pytest.importorskip("comfy_import_guard")
    packs, cache = folder / "custom_nodes", folder / "cache"
    packs.mkdir()
    cache.mkdir()
    (packs / "pack").symlink_to(pack, target_is_directory=True)
    (cache / "ComfyUI").symlink_to(HOST, target_is_directory=True)
    guard = [sys.executable, "-m", "comfy_import_guard.cli", "--json", "--quiet", "--cache-dir", str(cache)]
    check = ["check", "--offline", "--comfy-dir", str(folder), "--target", "HEAD", "--no-update"]
    found = json.loads(subprocess.run([*guard, *check], capture_output=True, text=True).stdout)["packs"]
    assert len(found) == 1
    return dict(found[0])


def test_the_pack_fits_the_host(tmp_path: Path) -> None:
    found = verdict(tmp_path, ROOT)
    assert found["references"] > 100
    assert found["verdict"] == "SAFE", found


def test_a_name_that_is_gone_would_be_found(tmp_path: Path) -> None:
    pack = tmp_path / "other"
    pack.mkdir()
    (pack / "__init__.py").write_text("from comfy.sd import load_what_was_never_there\n")
    assert verdict(tmp_path, pack)["verdict"] != "SAFE"
