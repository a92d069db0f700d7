"""The pack as the host sees it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import HOST
from hostkit import NODES, module

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = {
    "FlowCacheLoadARModel": "Load AR Video Model",
    "FlowCacheLoadMagiModel": "Load MAGI-1 Model",
    "FlowCacheLoadMagiVAE": "Load MAGI-1 VAE",
    "FlowCacheMagiPrompt": "MAGI-1 Prompt",
    "FlowCacheMagiSchedule": "MAGI-1 Schedule",
    "FlowCacheEmptyMagiLatent": "Empty MAGI-1 Latent",
    "FlowCacheMiniModel": "FlowCache Mini Model",
    "FlowCacheMiniPrompt": "FlowCache Mini Prompt",
    "FlowCacheChunkwiseReuse": "FlowCache Chunkwise Reuse",
    "FlowCacheKVCompressor": "KV Cache Compressor",
    "FlowCacheSparseAttention": "FlowCache Sparse Attention",
    "FlowCacheCalibrate": "FlowCache Calibrate",
    "FlowCachePreset": "FlowCache Preset",
    "FlowCacheCompare": "FlowCache Compare",
    "FlowCacheMultiGPU": "FlowCache Multi-GPU",
    "FlowCacheARSampler": "AR Video Sampler (FlowCache)",
    "FlowCacheReleasedSchedule": "AR Model Schedule",
    "FlowCachePromptSchedule": "AR Prompt Schedule",
    "FlowCacheReport": "FlowCache Report",
}


def test_ids_and_names_are_the_published_ones():
    assert {name: node.GET_SCHEMA().display_name for name, node in NODES.items()} == EXPECTED


@pytest.mark.parametrize("name", EXPECTED)
def test_schema_is_complete(name):
    schema = NODES[name].GET_SCHEMA()
    schema.validate()
    assert schema.category == "FlowCache" and schema.description and schema.search_aliases
    fields = [field for entry in schema.inputs for field in entry.get_all()] + list(schema.outputs)
    assert fields and all(field.tooltip and field.tooltip.endswith(".") for field in fields)


def test_host_finds_the_entry_and_the_web_folder():
    pack = sys.modules["flowcache_pack"]
    assert pack.WEB_DIRECTORY == "./web"
    assert not hasattr(pack, "NODE_CLASS_MAPPINGS")  # it would make the host ignore comfy_entrypoint
    assert str(ROOT) not in sys.path and sys.modules.get("nodes", pack).__file__ != str(ROOT / "nodes" / "__init__.py")


def test_entry_imports_nothing_of_the_host():
    code = (
        f"import importlib, sys; sys.path.insert(0, {str(ROOT.parent)!r}); importlib.import_module({ROOT.name!r});"
        "print(sorted(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True).stdout
    assert "'torch'" not in out and "'comfy'" not in out


EXTRAS = ("matplotlib", "torchmetrics")  # av, the third one, is among the requirements of the host itself
WITHOUT_EXTRAS = """
import sys
sys.path[:0] = {folders!r}
arguments, sys.argv[1:] = sys.argv[1:], ["--cpu"]
# The host first: it uses some of them itself.
import comfy.options
comfy.options.enable_args_parsing()
import comfy.sd, comfy_api.latest, comfy_extras.nodes_ar_video, comfy_extras.nodes_custom_sampler
import comfy_extras.nodes_model_advanced

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {extras!r}:
            raise ModuleNotFoundError("blocked: " + name)

for name in list(sys.modules):
    if name.partition(".")[0] in {extras!r}:
        del sys.modules[name]
sys.meta_path.insert(0, Blocked())
for name in {extras!r}:
    try:
        __import__(name)
        print("not blocked:", name)
    except ModuleNotFoundError:
        pass

import conftest, hostkit
patched = hostkit.reuse(hostkit.compress(hostkit.load(), 1), threshold=50.0)
latent = {{"samples": hostkit.sample(patched)[0]}}
text, picture, json = hostkit.NODES["FlowCacheReport"].execute(patched, latent).args
print(text.splitlines()[0], tuple(picture.shape)[-1])
"""


def test_optional_extras_are_not_needed(tmp_path):
    """Import of the pack, a run with reuse and a budget, and its report, where none of the extras can be imported."""
    folders = [str(Path(__file__).parent), str(HOST)]
    code = WITHOUT_EXTRAS.format(folders=folders, extras=EXTRAS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()[-1]
    assert shown.startswith("custom settings: saved ") and shown.endswith(" MB 3") and "K/V" in shown
    assert "not blocked" not in done.stdout


def test_every_preset_of_a_host_model_is_offered():
    presets, rows = module("flowcache_core.presets"), module("nodes.reuse").preset_rows()
    options = [option.key for option in NODES["FlowCacheChunkwiseReuse"].GET_SCHEMA().inputs[1].options]
    assert rows and [option for option in options if option in rows] == list(rows)
    assert {"custom", "record"} <= set(options)
    for model, name in rows.values():
        assert presets.load_preset(model, name).policy.name != "never"


def test_nodes_load_fast():
    started = time.process_time()
    for name in NODES:
        NODES[name].GET_SCHEMA()
    assert time.process_time() - started < 0.5
