"""The finished part of a video, decoded and shown on the node that samples while later chunks still run."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import folder_paths
import torch
from torch import Tensor

from ....flowcache_core.errors import require_count
from ....flowcache_core.files import whole_file
from ....flowcache_core.models.wan.vae import SPATIAL_STRIDE, wan_decoder
from ....flowcache_core.report.video import pixels
from .growing_video import GrowingVideo
from .running_node import show_video

KEPT = 2  # files: the newest, and the one before it, which a browser may still be reading


@dataclass(frozen=True)
class Display:
    """How finished chunks are shown. vae: a host VAE, None for no preview. fps: of the video."""

    vae: Any = None
    fps: int = 16

    def __post_init__(self) -> None:
        require_count("preview_fps", self.fps, minimum=1, maximum=240)

    def preview(self, latents: Tensor) -> LivePreview | None:
        """For a run over ``latents [B, C, F, H, W]``. SettingError naming preview_vae when it is not Wan 2.1's."""
        if self.vae is None:
            return None
        decode = wan_decoder(self.vae.get_sd(), "preview_vae", device=latents.device, dtype=self.vae.vae_dtype)
        height, width = (SPATIAL_STRIDE * side for side in latents.shape[3:])
        return LivePreview(decode, GrowingVideo(width, height, self.fps), self.vae.vae_dtype)


@dataclass
class LivePreview:
    """One run's preview. Whatever keeps it from being shown is noted and ends the preview, not the run.

    decode: latents of ``at_once`` frames to pixels ``[B, 3, n, H, W]`` in -1..1, the next ones with every call.
    """

    decode: Callable[[Tensor], Tensor]
    video: GrowingVideo
    dtype: torch.dtype
    at_once: int = 1
    name: str = field(default_factory=lambda: f"flowcache_{uuid.uuid4().hex[:8]}")
    files: list[Path] = field(default_factory=list)
    stopped: bool = False

    def show(self, latents: Tensor) -> None:
        """The next clean frames ``[B, C, n, H, W]`` of the video, n >= 1; the first video of a batch is shown."""
        if self.stopped:
            return
        try:
            # As few frames as give the same result: the least memory beside the model's.
            for frames in latents[:1].to(self.dtype).split(self.at_once, 2):
                self.video.add(pixels(self.decode(frames)[0].permute(1, 2, 3, 0)).cpu())
            self.write()
        except Exception as error:  # of memory, codec, disk or another pack's VAE: none is worth a video
            self.stopped = True
            reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
            logging.warning("FlowCache: no more previews in this run: %s", reason)

    def write(self) -> None:
        folder = Path(folder_paths.get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}_{len(self.files):05}.mp4"
        with whole_file(path, "preview") as part:
            self.video.write(part)
        self.files.append(path)
        show_video(path.name)
        for old in self.files[:-KEPT]:
            with suppress(OSError):
                old.unlink(missing_ok=True)

    def close(self) -> None:
        self.video.close()
