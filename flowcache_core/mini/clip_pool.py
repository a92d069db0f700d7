"""The transformer's training data: latents of generated clips, in files, growing while they are drawn from."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..files import whole_file
from ..models.wan.vae import WanVAE
from . import data, text

CHUNK_FRAMES = 3
FILE_CLIPS = 16


class Described(Protocol):
    """What can be rendered and described."""

    @property
    def prompt(self) -> str: ...


@dataclass(frozen=True)
class Clips:
    """Where a model's clips come from and how they are described.

    random: `count` of them from a seed; render: the video [N, 3, frames, height, width] in -1..1 of some; thinned: a
    prompt as a training step sees it. half: they are encoded in bfloat16, three times faster on CPUs that have it.
    """

    random: Callable[[int, int], Sequence[Any]]
    render: Callable[[Sequence[Any], int], Tensor]
    encode_prompt: Callable[[str], Tensor]
    thinned: Callable[[str, torch.Generator], str]
    half: bool = False


SHAPES = Clips(data.random_clips, data.render, text.encode_prompt, text.thinned)


class ClipPool:
    """Encoded clips of one length, in files of 16 that this process or a helper beside it (`--stage encode`) writes.

    A file's clips follow from the seed and its number, so it does not matter who made it. Another encoder or seed has a
    folder of its own.
    """

    def __init__(self, vae: WanVAE, chunks: int, seed: int, folder: Path, source: Clips = SHAPES) -> None:
        self.vae, self.frames, self.seed, self.source = vae, chunks * CHUNK_FRAMES, seed, source
        self.folder = folder / _fingerprint(vae, seed)
        self.latents: list[Tensor] = []
        self.clips: list[Described] = []
        for module in vae.modules():
            if isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)  # twice the speed on a CPU

    def take_files(self, at_least: int) -> None:
        """Adds all clips there are on disk, and encodes as many as are lacking to `at_least`."""
        while self._path().is_file() or len(self.latents) < at_least:
            self._take(self.file())

    def file(self) -> Path:
        """The next file of clips, made when it does not exist."""
        path = self._path()
        if not path.is_file():
            content = io.BytesIO()
            torch.save(self._encode(), content)
            with whole_file(path, "work") as part:
                part.write_bytes(content.getbuffer())
        return path

    def skip(self) -> None:
        """Passes over the next file without reading it."""
        self.clips += self._next_clips()
        self.latents += [torch.empty(0)] * FILE_CLIPS

    def draw(self, batch: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents [batch, 16, frames, h, w] and text embeddings [batch, T, 64], some of whose words are left out."""
        rows = torch.randint(len(self.latents), (batch,), generator=generator).tolist()
        context = torch.cat([self._described(row, generator) for row in rows])
        return torch.stack([self.latents[row][:, :frames] for row in rows]).float(), context

    def draw_video(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents [batch, 16, frames, h, w] and the video [batch, 3, 1 + 4 (frames - 1), 8 h, 8 w] they came from."""
        rows = torch.randint(len(self.latents), (batch,), generator=generator).tolist()
        latents = torch.stack([self.latents[row] for row in rows]).float()
        return latents, self.source.render([self.clips[row] for row in rows], 1 + 4 * (self.frames - 1))

    def _described(self, row: int, generator: torch.Generator) -> Tensor:
        return self.source.encode_prompt(self.source.thinned(self.clips[row].prompt, generator))

    def _path(self) -> Path:
        return self.folder / f"clips-{self.frames}-{len(self.latents) // FILE_CLIPS:04}.pt"

    def _next_clips(self) -> Sequence[Described]:
        return self.source.random(FILE_CLIPS, self.seed + 7919 * (len(self.latents) // FILE_CLIPS))

    @torch.no_grad()
    def _encode(self) -> Tensor:
        device = self.vae.latent_mean.device
        video = self.source.render(self._next_clips(), 1 + 4 * (self.frames - 1))
        video = video.to(device, memory_format=torch.channels_last_3d)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.source.half):
            parts = [self.vae.encode(part, frames_at_once=None) for part in video.split(4)]
        return torch.cat([part.half().cpu() for part in parts])

    def _take(self, path: Path) -> None:
        latents = self._read(path)
        if latents is None:
            path.unlink()
            latents = self._read(self.file())
            assert latents is not None
        self.clips += self._next_clips()
        self.latents += latents.unbind(0)

    def _read(self, path: Path) -> Tensor | None:
        """A file's latents; None for one that is damaged, which can be made again."""
        try:
            latents = torch.load(path, weights_only=True)
        except Exception:  # whatever torch makes of half a file
            return None
        fits = isinstance(latents, Tensor) and latents.ndim == 5 and latents.shape[:3:2] == (FILE_CLIPS, self.frames)
        return latents if fits and bool(latents.isfinite().all()) else None


def _fingerprint(vae: WanVAE, seed: int) -> str:
    """Name of what decides the latents; the decoder has no part in it."""
    digest = hashlib.sha256(str(seed).encode())
    for module in (vae.encoder, vae.conv1):
        for tensor in module.state_dict().values():
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
