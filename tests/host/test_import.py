"""What the pack adds to the start of a bare host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import folder_paths
from hostkit import NODES

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(folder_paths.__file__).parent
MOST_SECONDS = 1.0  # nearly all of it makes the classes of some hundred dataclasses
# CPU time, so that other work on the machine does not count. The host's own modules come first, as at its start.
SCRIPT = """
import asyncio, importlib.util, json, sys, time
host, root = sys.argv[1:]
sys.path.insert(0, host)
sys.argv[1:] = []
from comfy.cli_args import args
args.cpu = True
import nodes, comfy.sd, comfy_api.latest
before, began = set(sys.modules), time.process_time()
spec = importlib.util.spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
found = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
seconds = time.process_time() - began
others = {name.partition(".")[0] for name in set(sys.modules) - before} - {"pack"}
print(json.dumps({"seconds": seconds, "nodes": len(found), "others": sorted(others)}))
"""


def test_the_pack_is_imported_within_a_second_and_brings_nothing_along() -> None:
    """``comfy_extras`` is the host's own; the extras (matplotlib, torchmetrics, av) must not be among the rest."""
    command = [sys.executable, "-c", SCRIPT, str(HOST), str(ROOT)]
    # The first start compiles the pack's modules, once for all; the best of the others counts.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    results = []
    for _ in range(4):
        answer = subprocess.run(command, capture_output=True, text=True, cwd=HOST, check=True, env=environment)
        results.append(json.loads(answer.stdout.splitlines()[-1]))
    result = min(results[1:], key=lambda one: one["seconds"])
    assert result["nodes"] == len(NODES)
    assert set(result["others"]) <= {"comfy_api", "comfy_extras"}
    assert result["seconds"] < MOST_SECONDS, result
    print(f"the pack adds {result['seconds']:.2f} s of CPU time to the start of ComfyUI")
