"""How mini scenes is trained: what differs from the mini model's training, from whose weights it starts."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..mini import TRANSFORMER_FILE as MINI_TRANSFORMER_FILE
from ..mini import VAE_FILE as MINI_VAE_FILE
from ..mini.clip_pool import Clips
from ..mini.train import Training
from ..mini.transformer_training import WAN, Phase, Recipe, to_go_on_from
from ..mini.vae_training import VAERecipe
from . import TRANSFORMER_FILE, VAE_FILE, WEIGHTS, data, text

DATA = "generated clips of one to three shapes before hills: camera pan, shapes that enter or change colour, nightfall"
LIFE = 93  # pixel frames of the longest clip: eight chunks
AROUND_SHAPES = 0.8


def _views(frames: int, count: int, side: int, seed: int) -> Tensor:
    """Cut-outs of scenes from a random moment, most of them around a shape: it is there that there is much to learn."""
    generator = torch.Generator().manual_seed(seed)
    views = []
    for scene in data.random_scenes(count, seed):
        when, who = torch.rand(2, generator=generator).tolist()
        start, shift = int(when * (LIFE - frames + 1)), torch.rand(2, generator=generator)
        corner = shift * data.FRAME_SIZE
        if torch.rand((), generator=generator) < AROUND_SHAPES:
            actor = scene.actors[int(who * len(scene.actors))]
            middle = data.path(actor, scene, LIFE)[start + frames // 2]
            corner = torch.stack([middle, torch.tensor(actor.y)]) + 24 * (shift - 0.5) - side / 2
        x, y = corner.long().clamp(0, data.FRAME_SIZE - side).tolist()
        views.append(data.render([scene], frames, start)[0, :, :, y : y + side, x : x + side])
    return torch.stack(views)


def _held_out() -> Tensor:
    return data.render(data.random_scenes(4, seed=2**31), 45)


VAE = VAERecipe(
    _views,
    _held_out,
    ((0.12, 1, 24, 64), (0.8, 17, 4, 48), (1.01, 33, 2, 56)),
    start=MINI_VAE_FILE,
    peak_rate=2e-3,
    half=True,
)

# Rotary positions take the larger picture, and words that the mini model knows have the same vectors.
TRANSFORMER = Recipe(
    partial(to_go_on_from, MINI_TRANSFORMER_FILE),
    WAN.loss,
    WAN.blocks,
    clips=Clips(data.random_scenes, data.render, text.encode_prompt, text.thinned, half=True),
    phases=(Phase(0.2, 2, 10, 4, 3072), Phase(0.65, 4, 6, 4, 3072), Phase(1.01, 8, 3, 8, 768)),
    first_clips=192,
    half=True,
)


def scenes_training() -> Training:
    """The whole training."""
    minutes = {"vae": 25, "decoder": 15, "transformer": 78}
    names = (WEIGHTS, VAE_FILE.name, TRANSFORMER_FILE.name)
    side = data.FRAME_SIZE // 8
    return Training("FlowCache mini scenes", DATA, *names, VAE, TRANSFORMER, side, minutes, "scenes-")
