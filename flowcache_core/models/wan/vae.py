"""The causal 3D video autoencoder of Wan 2.1, at any base width.

A video of 1 + 4k frames becomes 1 + k latent frames, 8 times smaller in each direction, with 16 channels. Everything is
causal in time: a latent frame never depends on later pixels. That is what lets `StreamDecoder` hand out a video chunk
by chunk with constant memory and still produce exactly what decoding the whole would.

Architecture and the latent constants: Wan 2.1 (https://github.com/Wan-Video/Wan2.1, arXiv 2503.20314). Parameter names
and shapes are those of the official checkpoint, so official files and the bundled miniature load alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import require, require_count
from ...reading.limits import WIDEST
from ..common.checkpoint import load_strict, read_state_dict
from .vae_layers import CausalConv3d, Decoder, Encoder, StreamState, WanVAEConfig

LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
SPATIAL_STRIDE = 8
TIME_STRIDE = 4
ACCEPTED = "a Wan 2.1 video autoencoder (16 latent channels, stride 4/8/8) under its official key names"


class WanVAE(nn.Module):
    """Encodes videos to normalised latents and back. See the module's docstring; load files with `load_wan_vae`."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: WanVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config or WanVAEConfig()
        z_dim = self.config.z_dim
        require(z_dim == len(LATENT_MEAN), "z_dim", z_dim, f"{len(LATENT_MEAN)}, for which the latent constants are")
        self.encoder = Encoder(self.config)
        self.conv1 = CausalConv3d(z_dim * 2, z_dim * 2, 1)
        self.conv2 = CausalConv3d(z_dim, z_dim, 1)
        self.decoder = Decoder(self.config)
        mean, std = _constants()
        self.register_buffer("latent_mean", mean, persistent=False)
        self.register_buffer("latent_std", std, persistent=False)

    def encode(self, video: Tensor, *, frames_at_once: int | None = 16) -> Tensor:
        """Posterior mean of `video`, normalised by Wan's constants per channel.

        Args:
            video: [B, 3, 1 + 4k, H, W] in -1..1, H and W multiples of 8.
            frames_at_once: pixel frames per part (a multiple of 4), which bounds the memory; None takes all at once.
                The result does not depend on it.

        Returns:
            [B, 16, 1 + k, H / 8, W / 8].

        Raises:
            SettingError: the video's shape or `frames_at_once` is not as stated.
        """
        _check_video(video)
        at_once = video.shape[2] if frames_at_once is None else frames_at_once
        fits = frames_at_once is None or (at_once >= TIME_STRIDE and at_once % TIME_STRIDE == 0)
        require(fits, "frames_at_once", frames_at_once, f"a multiple of {TIME_STRIDE}, or None")
        # The first frame of a stream has no partners, so it joins the first part.
        parts = [video[:, :, : at_once + 1], *video[:, :, at_once + 1 :].split(at_once, dim=2)]
        parts = [part for part in parts if part.shape[2]]
        state: StreamState | None = {} if len(parts) > 1 else None
        latents = torch.cat([self.conv1(self.encoder(part, state)) for part in parts], dim=2)
        return (latents[:, : self.config.z_dim] - self.latent_mean) / self.latent_std

    def decode(self, latents: Tensor, *, frames_at_once: int | None = 4) -> Tensor:
        """The video of normalised `latents` [B, 16, F, h, w]: [B, 3, 1 + 4 (F - 1), 8h, 8w], clamped to -1..1.

        `frames_at_once` is the number of latent frames per part (None: all in one); the result does not depend on it.
        Raises SettingError if the shape is not as stated or `frames_at_once` is below 1.
        """
        _check_latents(latents, self.config.z_dim)
        fits = frames_at_once is None or frames_at_once >= 1
        require(fits, "frames_at_once", frames_at_once, "1 or more, or None")
        if frames_at_once is None or latents.shape[2] <= frames_at_once:
            return self._decode_part(latents, None)
        return torch.cat(list(self.decode_stream(latents.split(frames_at_once, dim=2))), dim=2)

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decodes latent chunks one after the other; the pieces joined are the decoded whole."""
        decoder = StreamDecoder(self)
        for chunk in chunks:
            yield decoder(chunk)

    def _decode_part(self, latents: Tensor, state: StreamState | None) -> Tensor:
        raw = latents * self.latent_std + self.latent_mean
        return self.decoder(self.conv2(raw), state).clamp(-1, 1)


class StreamDecoder:
    """Decodes one video piece by piece, remembering only the last frames each causal layer needs.

    Call it with latents [B, 16, f, h, w] of any f >= 1, in order. The very first latent frame of the stream gives one
    pixel frame and every later one four. Memory does not grow with the length of the stream.
    """

    def __init__(self, vae: WanVAE) -> None:
        self._vae = vae
        self._state: StreamState = {}
        self._shape: torch.Size | None = None

    def __call__(self, latents: Tensor) -> Tensor:
        """Pixel frames [B, 3, n, 8h, 8w] in -1..1 of the next latents. SettingError if their shape changes midway."""
        _check_latents(latents, self._vae.config.z_dim)
        shape = latents[:, :, :1].shape
        started = self._shape or shape
        require(shape == started, "latents of a stream", tuple(shape), f"{tuple(started)} per frame, as it started")
        self._shape = shape
        return self._vae._decode_part(latents, self._state)


def load_wan_vae(path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> WanVAE:
    """Loads a Wan 2.1 autoencoder of any base width from .safetensors, or from .pth/.pt holding tensors only.

    SettingError when the file is absent, cut short, runs code or holds another architecture: it names the file, what is
    wrong with it and what is accepted.
    """
    tensors, _ = read_state_dict(path)
    vae = _on_meta(tensors, f"checkpoint {Path(path).name}")
    load_strict(vae, tensors, path)
    # Not part of the file, so still without values.
    vae.latent_mean, vae.latent_std = _constants()
    return vae.to(device=device, dtype=dtype).eval().requires_grad_(False)


def wan_decoder(tensors: Mapping[str, Tensor], name: str, *, device: torch.device, dtype: torch.dtype) -> StreamDecoder:
    """A stream over an autoencoder that someone else has loaded, by its state dict; shares tensors where it can.

    SettingError naming ``name`` when they are of another architecture.
    """
    vae = _on_meta(tensors, name)
    parts = {"decoder.": vae.decoder, "conv2.": vae.conv2}
    for prefix, module in parts.items():
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        load_strict(module, {key: tensor.to(device, dtype) for key, tensor in own.items()}, name)
    vae.latent_mean, vae.latent_std = (values.to(device, dtype) for values in _constants())
    return StreamDecoder(vae.eval().requires_grad_(False))


def _on_meta(tensors: Mapping[str, Tensor], name: str) -> WanVAE:
    """The module for these tensors, without values; SettingError when they are of another architecture."""
    telling = {"decoder.head.0.gamma": 4, "conv2.weight": 5}
    missing = [key for key in telling if key not in tensors]
    require(not missing, name, f"no {' and no '.join(missing)}", ACCEPTED)
    for key, dims in telling.items():
        require(tensors[key].dim() == dims, f"{name}, {key}", tuple(tensors[key].shape), f"{dims} dimensions")
    dim, z_dim = (tensors[key].shape[0] for key in telling)
    require(z_dim == len(LATENT_MEAN), name, f"{z_dim} latent channels", ACCEPTED)
    require_count(f"{name}, width", dim, minimum=1, maximum=WIDEST)
    with torch.device("meta"):
        return WanVAE(WanVAEConfig(dim=dim))


def _constants() -> tuple[Tensor, Tensor]:
    shape = (1, len(LATENT_MEAN), 1, 1, 1)
    return torch.tensor(LATENT_MEAN).reshape(shape), torch.tensor(LATENT_STD).reshape(shape)


def _check_video(video: Tensor) -> None:
    fits = video.ndim == 5 and video.shape[1] == 3 and video.shape[2] % TIME_STRIDE == 1
    fits = fits and video.shape[3] % SPATIAL_STRIDE == video.shape[4] % SPATIAL_STRIDE == 0
    accepted = f"[B, 3, 1 + {TIME_STRIDE}k, H, W] with H and W multiples of {SPATIAL_STRIDE}"
    require(fits, "video", tuple(video.shape), accepted)


def _check_latents(latents: Tensor, z_dim: int) -> None:
    fits = latents.ndim == 5 and latents.shape[1] == z_dim and latents.shape[2] >= 1
    require(fits, "latents", tuple(latents.shape), f"[B, {z_dim}, F, h, w] with F >= 1")
