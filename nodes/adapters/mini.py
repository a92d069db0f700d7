"""The bundled mini model in the host's own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
from comfy_extras.nodes_model_advanced import ModelSamplingSD3

from ...flowcache_core.errors import SettingError
from ...flowcache_core.mini import TRANSFORMER_FILE, VAE_FILE
from ...flowcache_core.mini.noise_levels import SHIFT


def load_mini() -> tuple[Any, Any]:
    """MODEL with its shift set, and VAE. SettingError when a file of the pack is missing or damaged."""
    weights, metadata = _read(TRANSFORMER_FILE)
    model = comfy.sd.load_diffusion_model_state_dict(weights, metadata=metadata)
    weights, metadata = _read(VAE_FILE)
    vae = comfy.sd.VAE(sd=weights, metadata=metadata)
    return ModelSamplingSD3().patch(model, SHIFT)[0], vae


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        weights, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except Exception as error:  # missing, damaged: whatever its bytes say
        accepted = "the pack's own file; reinstall FlowCache"
        raise SettingError("weights", f"{path.name}: {error}", accepted) from error
    return weights, metadata
