"""The real ComfyUI in this process, and the pack loaded into it as the host does: as a package, by its folder.

The repository's root never gets on ``sys.path``: the host has a top-level module ``nodes`` too.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACK = "flowcache_pack"
HOW_TO = "no ComfyUI found: set COMFYUI_DIR, or `pip install comfy-cli && comfy install`"


def find_host() -> Path | None:
    """COMFYUI_DIR, else the host this pack is installed in, else comfy-cli's default place."""
    named = os.environ.get("COMFYUI_DIR")
    installed = [ROOT.parent.parent] if ROOT.parent.name == "custom_nodes" else []
    places = [Path(named)] if named else [*installed, Path.home() / "comfy" / "ComfyUI"]
    return next((place.absolute() for place in places if (place / "main.py").is_file()), None)


HOST = find_host()
if HOST is None:
    collect_ignore_glob = ["test_*.py"]
else:
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    sys.path.insert(0, str(HOST))
    sys.argv[1:], saved = [], sys.argv[1:]  # the host reads its options from the command line
    from comfy.cli_args import args

    sys.argv[1:] = saved
    args.cpu = True
    import comfy.utils

    comfy.utils.set_progress_bar_enabled(False)
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = pack
    spec.loader.exec_module(pack)


def pytest_report_header() -> str:
    return f"ComfyUI: {HOST}" if HOST else f"skipped: {HOW_TO}"
