"""Encoder and decoder of Wan 2.1's autoencoder and what they are built of, causal in time, under the official names.

Every layer that looks back in time takes a state: what it remembers between the parts of one stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What causal layers remember between the parts of one stream: a module's last input frames.
StreamState = dict[nn.Module, Tensor]


@dataclass(frozen=True)
class WanVAEConfig:
    """Sizes of the autoencoder. Only `dim` differs between known checkpoints (96 in the official one)."""

    dim: int = 96
    z_dim: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    time_down: tuple[bool, ...] = (False, True, True)


class CausalConv3d(nn.Conv3d):
    """Convolution that pads time at the front only; with a state it continues where the last part ended."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int | tuple[int, int, int], *, stride: int = 1) -> None:
        size = (kernel,) * 3 if isinstance(kernel, int) else kernel
        super().__init__(in_dim, out_dim, size, (stride, 1, 1), (0, size[1] // 2, size[2] // 2))
        self.history = size[0] - 1

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        if self.history == 0:
            return super().forward(x)
        tail = None if state is None else state.get(self)
        if tail is not None:
            x = torch.cat([tail, x], dim=2)
        missing = self.history - (0 if tail is None else tail.shape[2])
        if state is not None:
            state[self] = x[:, :, -self.history :].clone()  # a view would keep the whole part alive
        if x.shape[2] == 1 and missing == self.history:  # one lone frame: the zeros before it contribute nothing
            return F.conv3d(x, self.weight[:, :, -1:], self.bias, 1, self.padding)
        if missing:
            x = F.pad(x, (0, 0, 0, 0, missing, 0))
        return super().forward(x)


class ChannelNorm(nn.Module):
    """Scales each position's channel vector to length sqrt(dim), then by a learned gain (Wan's `RMS_norm`)."""

    def __init__(self, dim: int, spatial_axes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *(1,) * spatial_axes))
        self.scale = dim**0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * (self.gamma * self.scale)


class ResidualBlock(nn.Module):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        # The Identity stands where the official module list has dropout: it keeps the parameter names.
        self.residual = nn.Sequential(
            ChannelNorm(in_dim, 3), nn.SiLU(), CausalConv3d(in_dim, out_dim, 3),
            ChannelNorm(out_dim, 3), nn.SiLU(), nn.Identity(), CausalConv3d(out_dim, out_dim, 3),
        )  # fmt: skip
        self.shortcut = CausalConv3d(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        return self.shortcut(x) + _run(self.residual, x, state)


class FrameAttention(nn.Module):
    """Self-attention with one head among the positions of each frame by itself."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        frames = _to_frames(x)
        rows, dim, height, width = frames.shape
        qkv = self.to_qkv(self.norm(frames)).reshape(rows, 3, dim, height * width).transpose(2, 3)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(1))
        mixed = self.proj(mixed.transpose(1, 2).reshape(rows, dim, height, width))
        return x + _to_video(mixed, x.shape[0])


class Downsample(nn.Module):
    """Halves height and width, and with `time` also the frames after the first of the stream."""

    def __init__(self, dim: int, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        if time:
            self.time_conv = CausalConv3d(dim, dim, (3, 1, 1), stride=2)
        self.time = time

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        x = _to_video(self.resample(_to_frames(x)), x.shape[0])
        if not self.time:
            return x
        last = None if state is None else state.get(self)
        if state is not None:
            state[self] = x[:, :, -1:].clone()
        # Two new frames and the one before them give one; the very first frame stays as it is.
        whole = x if last is None else torch.cat([last, x], dim=2)
        paired = nn.Conv3d.forward(self.time_conv, whole) if whole.shape[2] >= 3 else whole[:, :, :0]
        return torch.cat([x[:, :, :1], paired], dim=2) if last is None else paired


class Upsample(nn.Module):
    """Doubles height and width, and with `time` also the frames after the first of the stream."""

    def __init__(self, dim: int, time: bool) -> None:
        super().__init__()
        enlarge = nn.Upsample(scale_factor=2.0, mode="nearest-exact")
        self.resample = nn.Sequential(enlarge, nn.Conv2d(dim, dim // 2, 3, padding=1))
        if time:
            self.time_conv = CausalConv3d(dim, dim * 2, (3, 1, 1))
        self.time = time

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        if self.time:
            x = self._double_frames(x, state)
        return _to_video(self.resample(_to_frames(x)), x.shape[0])

    def _double_frames(self, x: Tensor, state: StreamState | None) -> Tensor:
        started = state is not None and self in state
        if state is not None:
            state[self] = x[:, :, :0]  # only a mark: the first frame is behind us
        # The first frame is neither doubled nor seen by the temporal convolution.
        first, rest = (x[:, :, :0], x) if started else (x[:, :, :1], x[:, :, 1:])
        if rest.shape[2] == 0:
            return first
        pairs = self.time_conv(rest, state)
        batch, _, frames, height, width = pairs.shape
        pairs = pairs.unflatten(1, (2, -1)).movedim(1, 3).reshape(batch, -1, frames * 2, height, width)
        return torch.cat([first, pairs], dim=2) if first.shape[2] else pairs


class Encoder(nn.Module):
    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = [config.dim * m for m in (1, *config.multipliers)]
        self.conv1 = CausalConv3d(3, widths[0], 3)
        layers: list[nn.Module] = []
        for level, (in_dim, out_dim) in enumerate(zip(widths[:-1], widths[1:])):
            layers += [ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(config.res_blocks)]
            if level < len(config.time_down):
                layers.append(Downsample(out_dim, config.time_down[level]))
        self.downsamples = nn.Sequential(*layers)
        top = widths[-1]
        self.middle = nn.Sequential(ResidualBlock(top, top), FrameAttention(top), ResidualBlock(top, top))
        self.head = nn.Sequential(ChannelNorm(top, 3), nn.SiLU(), CausalConv3d(top, config.z_dim * 2, 3))

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        x = self.conv1(x, state)
        for part in (self.downsamples, self.middle, self.head):
            x = _run(part, x, state)
        return x


class Decoder(nn.Module):
    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        widths = [config.dim * m for m in (config.multipliers[-1], *reversed(config.multipliers))]
        time_up = config.time_down[::-1]
        top = widths[0]
        self.conv1 = CausalConv3d(config.z_dim, top, 3)
        self.middle = nn.Sequential(ResidualBlock(top, top), FrameAttention(top), ResidualBlock(top, top))
        layers: list[nn.Module] = []
        for level, (in_dim, out_dim) in enumerate(zip(widths[:-1], widths[1:])):
            if level > 0:
                in_dim //= 2  # the upsampling before this level halved the channels
            layers += [ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(config.res_blocks + 1)]
            if level < len(time_up):
                layers.append(Upsample(out_dim, time_up[level]))
        self.upsamples = nn.Sequential(*layers)
        self.head = nn.Sequential(ChannelNorm(widths[-1], 3), nn.SiLU(), CausalConv3d(widths[-1], 3, 3))

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        x = self.conv1(x, state)
        for part in (self.middle, self.upsamples, self.head):
            x = _run(part, x, state)
        return x


def _run(layers: nn.Sequential, x: Tensor, state: StreamState | None) -> Tensor:
    for layer in layers:
        x = layer(x, state) if isinstance(layer, _STATEFUL) else layer(x)
    return x


_STATEFUL = (CausalConv3d, ResidualBlock, FrameAttention, Downsample, Upsample)


def _to_frames(video: Tensor) -> Tensor:
    return video.transpose(1, 2).flatten(0, 1)


def _to_video(frames: Tensor, batch: int) -> Tensor:
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)
