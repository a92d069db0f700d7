"""The bundled mini models in the host's classes: one of Wan's architecture, one of MAGI-1's, one VAE for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.sd
import comfy.utils
from comfy_extras.nodes_model_advanced import ModelSamplingSD3

from ...flowcache_core.errors import SettingError
from ...flowcache_core.mini import TRANSFORMER_FILE, VAE_FILE
from ...flowcache_core.mini.noise_levels import SHIFT
from ...flowcache_core.mini_magi import TEXT_SCALE, text_guidance
from ...flowcache_core.mini_magi import TRANSFORMER_FILE as MAGI_FILE
from ...flowcache_core.models.magi.transformer import read_magi
from .magi.model import MagiVariant, magi_patcher

ACCEPTED = "the pack's own file; reinstall FlowCache"


def load_mini_wan() -> Any:
    """MODEL with its shift set. SettingError when a file of the pack is missing or damaged."""
    weights, metadata = _read(TRANSFORMER_FILE)
    model = comfy.sd.load_diffusion_model_state_dict(weights, metadata=metadata)
    return ModelSamplingSD3().patch(model, SHIFT)[0]


def load_mini_magi() -> Any:
    """MODEL of the other architecture on the same latents, guided by the text as it was evaluated."""
    try:
        config, weights = read_magi(MAGI_FILE)
    except SettingError as error:
        raise SettingError("model", f"{error.field}: {error.value}", ACCEPTED) from error
    variant = MagiVariant(distilled=False, guidance=text_guidance(TEXT_SCALE))
    return magi_patcher(config, weights, MAGI_FILE.name, variant, latent_format=comfy.latent_formats.Wan21)


MODELS = {"wan": load_mini_wan, "magi": load_mini_magi}


def load_mini_vae() -> Any:
    weights, metadata = _read(VAE_FILE)
    return comfy.sd.VAE(sd=weights, metadata=metadata)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        weights, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except Exception as error:  # missing, damaged: whatever its bytes say
        raise SettingError("model", f"{path.name}: {error}", ACCEPTED) from error
    return weights, metadata
