"""Which tensors of a file are a Wan text-to-video transformer; what a file is that holds none.

Sources of the names: Wan 2.1's official files; diffusers' Wan transformer; the LoRA formats that ComfyUI reads; the
model classes of LingBot-World, Matrix-Game 2 and 3, DreamX-World and LongLive 2.0.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ...errors import Found, SettingError, listed, require
from ..common.checkpoint import NESTED_NAMES

ACCEPTED = "a Wan 2.1 text-to-video transformer under official key names (Self-Forcing, SkyReels-V2 ...)"
# Keys that every Wan model has; what stands before them is a prefix of all its keys.
ANCHORS = ("head.modulation", "patch_embedding.weight")
# What FSDP, activation checkpointing and torch.compile put between the names of modules.
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")

# Names that only one kind of file has: what it is, and what to do.
KINDS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), kind, accepted)
    for pattern, kind, accepted in (
        (
            r"(^|[._])lora([._]|$)|\.(diff|diff_b|hada_w1_a|lokr_w1|oft_blocks)$",
            "a LoRA, which changes a model and is none",
            "the model that it was made for; the LoRA comes after it (Load LoRA)",
        ),
        (
            r"\.quantized_weight_(values|scale_factors|amax|metadata)$",
            "packed by FourOverSix, as LongLive 2.0's NVFP4 files are",
            "the same project's model_bf16.pt, or its weights in ComfyUI's own nvfp4 format",
        ),
        (
            r"(^|\.)_extra_state$",
            "saved by Transformer Engine, as LongLive 2.0's NVFP4 files are",
            "the same project's model_bf16.pt, or its weights in ComfyUI's own nvfp4 format",
        ),
        (
            r"\.action_model\.",
            "Matrix-Game, whose blocks take keys and mouse",
            f"{ACCEPTED}; its own project runs it, and LightX2V",
        ),
        (
            r"(^|\.)(patch_embedding_wancamctrl|c2ws_hidden_states_layer[12])\.|\.cam_(injector_layer[12]|scale_layer)\.",
            "LingBot-World, whose blocks take a camera's path",
            f"{ACCEPTED}; its own project runs it, and LightX2V or FastVideo",
        ),
        (
            r"\.cam_self_attn\.",
            "DreamX-World, whose blocks attend by camera",
            f"{ACCEPTED}; its own project runs it, and FastVideo",
        ),
        (
            r"(^|\.)vace_(blocks|patch_embedding)\.",
            "a VACE model, which also takes a control video",
            ACCEPTED,
        ),
        (
            r"(^|\.)condition_embedder\.|\.attn1\.to_q\.|(^|\.)scale_shift_table$",
            "a transformer in the layout of diffusers",
            "the same model in its official layout, or as ComfyUI's single file",
        ),
        (r"(^|\.)videodit_blocks\.layers\.", "a MAGI-1 transformer, which has a loader of its own", ACCEPTED),
        (r"(^|\.)(img_emb|ref_conv)\.|\.cross_attn\.(k_img|v_img)\.", "an image-to-video model", ACCEPTED),
        (r"(^|\.)control_adapter\.", "a camera control model", ACCEPTED),
        (r"(^|\.)(casual_audio_encoder|audio_proj|face_adapter|motion_encoder)\.", "a model driven by sound or faces",
         ACCEPTED),
        (r"(^|\.)(decoder|first_stage_model)\..*(upsamples|conv_in|conv1)\.", "an autoencoder (VAE)", ACCEPTED),
        (r"(^|\.)(token_embedding|shared|embed_tokens)\.weight$", "a text encoder", ACCEPTED),
        (r"(^|\.)(input_blocks|double_blocks|joint_blocks|transformer_blocks|down_blocks)\.\d", "another image or"
         " video model", ACCEPTED),
    )
)  # fmt: skip


def transformer_tensors(tensors: Mapping[str, Tensor], field: str) -> dict[str, Tensor]:
    """The transformer's tensors under their official names, out of whatever a trainer wrapped them in.

    SettingError saying what the file is when it holds none, or one of another kind. Logs which tensors are left out.
    """
    weights = {unwrapped(key): tensor for key, tensor in tensors.items()}
    require(len(weights) == len(tensors), field, Found("tensors whose names differ by wrappers only"), ACCEPTED)
    prefixes = {
        key[: -len(anchor)] for key in weights for anchor in ANCHORS if key == anchor or key.endswith("." + anchor)
    }
    if not prefixes:
        refuse_other_kinds(weights, field)
        raise SettingError(field, Found(" and ".join(f"no {anchor}" for anchor in ANCHORS)), ACCEPTED)
    prefix = min(prefixes, key=lambda found: (preference(found), len(found)))
    own = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
    refuse_other_kinds(own, field)
    others = [key for key in weights if not key.startswith(prefix)]
    if others:
        logging.getLogger(__name__).warning("%s: tensors of other models, not read: %s", field, listed(others))
    return own


def refuse_other_kinds(keys: Iterable[str], field: str) -> None:
    """SettingError saying what a file with these tensors is, when a name tells that it is no text-to-video Wan."""
    names = list(keys)
    for pattern, kind, accepted in KINDS:
        telling = next((name for name in names if pattern.search(name)), None)
        if telling is not None:
            raise SettingError(field, Found(f"of another architecture: {listed([telling])}: {kind}"), accepted)


def unwrapped(key: str) -> str:
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def preference(prefix: str) -> int:
    first = prefix.split(".", 1)[0]
    return NESTED_NAMES.index(first) if first in NESTED_NAMES else len(NESTED_NAMES)
