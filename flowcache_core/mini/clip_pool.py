"""The transformer's training data: latents of generated clips, in files, growing while they are drawn from."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import whole_file
from ..models.wan.vae import WanVAE
from . import data
from .text import TOKENS, encode_prompt

CHUNK_FRAMES = 3
FILE_CLIPS = 16
DROP_TEXT, DROP_WORD = 0.10, 0.02  # chances of the null prompt and of leaving out a word


class ClipPool:
    """Encoded clips of one length, in files of 16 that this process or a helper beside it (`--stage encode`) writes.

    A file's clips follow from the seed and its number, so it does not matter who made it. Another encoder or seed has a
    folder of its own.
    """

    def __init__(self, vae: WanVAE, chunks: int, seed: int, folder: Path) -> None:
        self.vae, self.frames, self.seed = vae, chunks * CHUNK_FRAMES, seed
        self.folder = folder / _fingerprint(vae, seed)
        self.latents: list[Tensor] = []
        self.clips: list[data.Clip] = []
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
        """Latents [batch, 16, frames, 8, 8] and text embeddings [batch, 8, 64], some of whose words are left out."""
        rows = torch.randint(len(self.latents), (batch,), generator=generator).tolist()
        context = torch.cat([encode_prompt(_thinned(self.clips[row].prompt, generator)) for row in rows])
        return torch.stack([self.latents[row][:, :frames] for row in rows]).float(), context

    def draw_video(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents [batch, 16, frames, 8, 8] and the video [batch, 3, 1 + 4 (frames - 1), 64, 64] they came from."""
        rows = torch.randint(len(self.latents), (batch,), generator=generator).tolist()
        latents = torch.stack([self.latents[row] for row in rows]).float()
        return latents, data.render([self.clips[row] for row in rows], 1 + 4 * (self.frames - 1))

    def _path(self) -> Path:
        return self.folder / f"clips-{self.frames}-{len(self.latents) // FILE_CLIPS:04}.pt"

    def _next_clips(self) -> list[data.Clip]:
        return data.random_clips(FILE_CLIPS, self.seed + 7919 * (len(self.latents) // FILE_CLIPS))

    @torch.no_grad()
    def _encode(self) -> Tensor:
        video = data.render(self._next_clips(), 1 + 4 * (self.frames - 1))
        video = video.to(self.vae.latent_mean.device, memory_format=torch.channels_last_3d)
        return torch.cat([self.vae.encode(part, frames_at_once=None).half().cpu() for part in video.split(4)])

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


def _thinned(prompt: str, generator: torch.Generator) -> str:
    chances = torch.rand(1 + TOKENS, generator=generator).tolist()
    if chances[0] < DROP_TEXT:
        return ""
    return " ".join(word for word, chance in zip(prompt.split(), chances[1:]) if chance >= DROP_WORD)


def _fingerprint(vae: WanVAE, seed: int) -> str:
    """Name of what decides the latents; the decoder has no part in it."""
    digest = hashlib.sha256(str(seed).encode())
    for module in (vae.encoder, vae.conv1):
        for tensor in module.state_dict().values():
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
