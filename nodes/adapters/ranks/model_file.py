"""The file behind a host MODEL, for ranks that load it themselves; what of a MODEL does not come from its file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ....flowcache_core.errors import Found, SettingError, listed, require
from ....flowcache_core.models.common.scaled_fp8 import FP8
from ....flowcache_core.models.magi.transformer import MagiTransformer
from ....flowcache_core.parallel.asked import ModelFile
from ..files.checkpoints import FRAME_RATE_PATCH
from ..run.foreign import FUNCTIONS, around, name_of, refuse_split_caches
from ..run.foreign import listed as functions_of

OVERRIDE = "optimized_attention_override"
OWN_PATCHES = ("model_sampling", FRAME_RATE_PATCH)
"""Object patches that change noise levels only, or that ranks make themselves."""
ACCEPTED = "a model as its file has it: ranks load that, and nothing that other nodes have put on the model"
LOADED = "a model from Load AR Video Model, Load MAGI-1 Model, Load Diffusion Model or FlowCache Mini Model"


def model_file(patcher: Any) -> ModelFile:
    """SettingError naming what keeps the model from being what its file holds."""
    refuse_changes(patcher)
    model, path = patcher.model, path_of(patcher)
    transformer = model.diffusion_model
    if hasattr(transformer, "init_kv_caches"):
        refuse_split_caches(transformer.init_kv_caches(1, 1, "cpu", model.get_dtype_inference()))
    stored, computed = model.get_dtype(), model.get_dtype_inference()
    accepted = "weight_dtype default: ranks keep weights in 16 or 32 bits"
    require(stored not in FP8, "model", Found(f"weights kept in {str(stored).removeprefix('torch.')}"), accepted)
    if isinstance(transformer, MagiTransformer):
        config = transformer.config
        return ModelFile("magi", path, config.num_heads, config.kv_heads, computed)
    return ModelFile("wan", path, transformer.num_heads, transformer.num_heads, computed, stored)


def path_of(patcher: Any) -> str:
    """What its loader noted."""
    made = getattr(patcher, "cached_patcher_init", None)
    path = made[1][0] if made is not None and made[1] else None
    if not isinstance(path, str | Path) or not str(path):
        raise SettingError("model", Found("a model whose loader notes no file"), LOADED)
    require(Path(path).is_file(), "model", Found(f"{Path(path).name}, which is not there any more"), LOADED)
    return str(path)


def frame_rate_of(patcher: Any) -> int | None:
    """What the model is told, as its loader noted it; None for one without such an embedding."""
    if FRAME_RATE_PATCH not in patcher.object_patches:
        return None
    return int(patcher.object_patches[FRAME_RATE_PATCH].rate.fps)


def refuse_changes(patcher: Any) -> None:
    """SettingError naming what other nodes have put on the model, all of it."""
    found = [*changes(patcher)]
    require(not found, "model", Found(f"a model with {listed(found)}"), ACCEPTED)
    clones = patcher.get_additional_models_with_key("multigpu")
    require(not clones, "model", Found("a model with MultiGPU CFG Split"), "one of the two: each uses all GPUs")


def changes(patcher: Any) -> Iterator[str]:
    if patcher.patches:
        yield f"a LoRA or other patches of {len(patcher.patches)} weights"
    if getattr(patcher, "weight_wrapper_patches", None):
        yield f"wrapped weights ({listed(patcher.weight_wrapper_patches, 1)})"
    if patcher.hook_patches:
        yield "a LoRA on its conditioning (hooks)"
    for key, injected in patcher.injections.items():
        yield from (f"{name_of(one.inject)} of {key}" for one in injected[:1])
    for place, patch in patcher.object_patches.items():
        if place not in OWN_PATCHES:
            yield f"{name_of(patch)} in place of {place}"
    yield from (f"another model of {key}" for key, models in patcher.additional_models.items()
                if models and key != "multigpu")  # fmt: skip
    yield from on_options(patcher.model_options)
    yield from replaced_forwards(patcher)


def on_options(options: Mapping[str, Any]) -> Iterator[str]:
    """Functions that would be called beside or inside the model."""
    yield from around(options)
    yield from (name_of(function) for name in FUNCTIONS for function in functions_of(options.get(name)))
    inside = options.get("transformer_options", {})
    if inside.get(OVERRIDE) is not None:
        yield f"the attention {name_of(inside[OVERRIDE])}"
    for kind, patches in inside.get("patches", {}).items():
        yield from (f"{kind} {name_of(one)}" for one in patches[:1])
    for kind, places in inside.get("patches_replace", {}).items():
        yield from (f"{name_of(one)} in place of {kind} {place}" for place, one in [*places.items()][:1])


def replaced_forwards(patcher: Any) -> Iterable[str]:
    """Methods that another pack has put on modules of the model itself."""
    for name, module in patcher.model.diffusion_model.named_modules():
        if "forward" in vars(module) and f"diffusion_model.{name}.forward" not in patcher.object_patches:
            return [f"{name_of(vars(module)['forward'])} in place of {name or 'the transformer'}.forward"]
    return []
