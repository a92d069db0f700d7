"""The bundled models in the host's classes: two of Wan's architecture, one of MAGI-1's, their VAEs and language."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.sd
import comfy.utils
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from torch import Tensor

from ...flowcache_core import mini, mini_scenes
from ...flowcache_core.errors import SettingError
from ...flowcache_core.mini.noise_levels import SHIFT
from ...flowcache_core.mini_magi import TEXT_SCALE, text_guidance
from ...flowcache_core.mini_magi import TRANSFORMER_FILE as MAGI_FILE
from ...flowcache_core.models.magi.transformer import read_magi
from .magi.model import MagiVariant, magi_patcher
from .run.recorded import FILE

ACCEPTED = "the pack's own file; reinstall FlowCache"


@dataclass(frozen=True)
class Bundled:
    """One model of the list. load: its MODEL. vae: the file of its VAE. encode: its language, text to embedding."""

    load: Callable[[], Any]
    vae: Path
    encode: Callable[[str], Tensor]

    def load_vae(self) -> Any:
        """VAE. SettingError when the file is missing or damaged."""
        weights, metadata = _read(self.vae)
        return comfy.sd.VAE(sd=weights, metadata=metadata)


def load_wan(file: Path) -> Any:
    """MODEL with its shift set. SettingError when a file of the pack is missing or damaged."""
    weights, metadata = _read(file)
    model = comfy.sd.load_diffusion_model_state_dict(weights, metadata=metadata)
    model.set_attachments(FILE, file.name)
    model.cached_patcher_init = (load_wan, (file,))
    return ModelSamplingSD3().patch(model, SHIFT)[0]


def load_magi(file: Path) -> Any:
    """MODEL of the other architecture on the mini model's latents, guided by the text as it was evaluated."""
    try:
        config, weights = read_magi(file)
    except SettingError as error:
        raise SettingError("model", f"{error.field}: {error.value}", ACCEPTED) from error
    variant = MagiVariant(distilled=False, guidance=text_guidance(TEXT_SCALE))
    model = magi_patcher(config, weights, file.name, variant, latent_format=comfy.latent_formats.Wan21)
    model.set_attachments(FILE, file.name)
    model.cached_patcher_init = (load_magi, (file,))
    return model


MODELS = {
    "wan": Bundled(partial(load_wan, mini.TRANSFORMER_FILE), mini.VAE_FILE, mini.encode_prompt),
    "magi": Bundled(partial(load_magi, MAGI_FILE), mini.VAE_FILE, mini.encode_prompt),
    "scenes": Bundled(partial(load_wan, mini_scenes.TRANSFORMER_FILE), mini_scenes.VAE_FILE, mini_scenes.encode_prompt),
}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        weights, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except Exception as error:  # missing, damaged: whatever its bytes say
        raise SettingError("model", f"{path.name}: {error}", ACCEPTED) from error
    return weights, metadata
