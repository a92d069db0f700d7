"""How mini recall is trained: from the weights of mini scenes, whose autoencoder and language it shares."""

from __future__ import annotations

from functools import partial

from ..mini.clip_pool import Clips
from ..mini.train import Training
from ..mini.transformer_training import WAN, Phase, Recipe, to_go_on_from
from ..mini_scenes import TRANSFORMER_FILE as SCENES_TRANSFORMER_FILE
from ..mini_scenes import VAE_FILE
from ..mini_scenes import text as scenes_text
from . import TRANSFORMER_FILE, WEIGHTS, data, text

DATA = "generated clips of one shape at rest that a post covers for three chunks"

TRANSFORMER = Recipe(
    partial(to_go_on_from, SCENES_TRANSFORMER_FILE),
    WAN.loss,
    WAN.blocks,
    clips=Clips(data.random_clips, data.render, scenes_text.encode_prompt, text.thinned),
    phases=(Phase(1.01, data.CHUNKS, 8, data.CHUNKS, 3072),),
    first_clips=128,
)


def recall_training() -> Training:
    """The whole training: of the transformer, on latents of mini scenes' autoencoder."""
    minutes = {"transformer": 46}
    names = (WEIGHTS, VAE_FILE, TRANSFORMER_FILE.name)
    return Training("FlowCache mini recall", DATA, *names, None, TRANSFORMER, data.FRAME_SIZE // 8, minutes, "recall-")
