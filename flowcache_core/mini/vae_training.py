"""Trains the mini model's autoencoder: Wan 2.1's architecture at base width 8, on generated clips.

Three things make so small a model train at all: it starts as a 2D autoencoder (only the newest temporal tap of each
convolution is non-zero, temporal convolutions copy), it sees single frames before clips, and its latents are normalised
per batch. The normalisation is folded into the 1x1x1 convolutions at export, so that Wan's own latent constants apply.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.wan.vae import WanVAE, load_wan_vae
from ..models.wan.vae_layers import (
    CausalConv3d,
    ChannelNorm,
    Downsample,
    FrameAttention,
    ResidualBlock,
    Upsample,
    WanVAEConfig,
)
from . import data
from .checkpoint import Stand, load, require_finite_loss, save, save_or_say

BASE_DIM = 8
LATENT_NOISE = 0.1  # added to the unit-variance latents: the decoder must forgive small errors of the generator


Batch = Callable[[int, int, int, int], Tensor]


@dataclass(frozen=True)
class VAERecipe:
    """What an autoencoder learns from and how.

    batch: of (pixel frames per clip, clips, side of the cut-out in pixels, seed) the video [clips, 3, frames, side,
    side]. held_out: makes the video its PSNR is taken on. curriculum: (share of the training up to which
    it holds, frames, clips, side). start: the file of the autoencoder to go on from; anew without one. half: products
    in bfloat16, three times faster on CPUs that have it.
    """

    batch: Batch
    held_out: Callable[[], Tensor]
    curriculum: tuple[tuple[float, int, int, int], ...]
    start: Path | None = None
    peak_rate: float = 3e-3
    half: bool = False

    def build(self) -> NormalisedVAE:
        """The model to train."""
        model = NormalisedVAE()
        if self.start is not None:
            model.take(load_wan_vae(self.start))
        return model


class NormalisedVAE(nn.Module):
    """Encoder and decoder with batch-normalised latents between them."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = WanVAE(WanVAEConfig(dim=BASE_DIM))
        self.norm = nn.BatchNorm3d(self.vae.config.z_dim, affine=False, momentum=0.02)
        start_as_image_model(self.vae)

    def forward(self, video: Tensor) -> Tensor:
        vae = self.vae
        latents = self.norm(vae.conv1(vae.encoder(video))[:, : vae.config.z_dim])
        if self.training:
            latents = latents + LATENT_NOISE * torch.randn_like(latents)
        return vae.decoder(vae.conv2(latents))

    @torch.no_grad()
    def take(self, vae: WanVAE) -> None:
        """Goes on from a plain WanVAE: what :meth:`export` folded into the decoder's first convolution is undone."""
        self.vae.load_state_dict(vae.state_dict())
        self.vae.conv2.bias += self.vae.conv2.weight[..., 0, 0, 0] @ vae.latent_mean.reshape(-1)
        self.vae.conv2.weight *= vae.latent_std.reshape(1, -1, 1, 1, 1)

    @torch.no_grad()
    def export(self) -> WanVAE:
        """A plain WanVAE whose officially normalised latents are this model's batch-normalised ones."""
        vae = copy.deepcopy(self.vae)
        mean, std = (t.reshape(-1) for t in (vae.latent_mean, vae.latent_std))
        z_dim = vae.config.z_dim
        gain = std / (self.norm.running_var + self.norm.eps).sqrt()
        shift = mean - gain * self.norm.running_mean
        vae.conv1.weight[:z_dim] *= gain.reshape(-1, 1, 1, 1, 1)
        vae.conv1.bias[:z_dim] = vae.conv1.bias[:z_dim] * gain + shift
        vae.conv1.weight[z_dim:] = 0  # the posterior's log variance: never trained, never used
        vae.conv1.bias[z_dim:] = -10.0
        weight = vae.conv2.weight[..., 0, 0, 0]
        vae.conv2.bias -= weight @ (mean / std)
        vae.conv2.weight /= std.reshape(1, -1, 1, 1, 1)
        return vae


@torch.no_grad()
def start_as_image_model(vae: WanVAE) -> None:
    """Initial weights under which every frame is coded by itself and frames are merely dropped or repeated."""
    for module in vae.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            taps = module.weight[:, :, -1:] if isinstance(module, nn.Conv3d) else module.weight
            fan_in = taps[0].numel()
            module.weight.mul_(0)
            taps.normal_(0, 1 / math.sqrt(fan_in))
            if isinstance(module, CausalConv3d) and module.history:
                module.weight[:, :, :-1].normal_(0, 0.05 / math.sqrt(fan_in))
            nn.init.zeros_(module.bias)
    for module in vae.modules():
        if isinstance(module, ResidualBlock):
            module.residual[6].weight *= 0.2
        elif isinstance(module, FrameAttention):
            module.proj.weight *= 0.2
        elif isinstance(module, (Downsample, Upsample)) and module.time:
            weight = module.time_conv.weight
            eye = torch.eye(weight.shape[1]).repeat(weight.shape[0] // weight.shape[1], 1)
            weight[:, :, -1, 0, 0] = eye


def train_vae(
    *,
    minutes: float,
    steps: int | None = None,
    seed: int,
    device: torch.device,
    checkpoint: Path,
    resume: bool,
    say: Callable[[str], None],
    fuse: bool = False,
    recipe: VAERecipe | None = None,
) -> tuple[WanVAE, dict[str, float]]:
    """Trains for `minutes` of wall-clock time, or `steps`; the schedules follow it. Returns the VAE and its figures.

    recipe: what to train on, the mini model's clips unless said otherwise.
    """
    recipe = recipe or SHAPES
    torch.manual_seed(seed)
    parts = _begin(recipe, device)
    model, average, optimizer = parts["model"], parts["average"], parts["optimizer"]
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)  # twice the speed on a CPU
        elif isinstance(module, ChannelNorm) and fuse:
            module.compile(dynamic=True)  # the norms take almost half the time otherwise
    stand = load(checkpoint, parts) if resume and checkpoint.is_file() else Stand(loss=0.0)
    step, loss_mean = stand.step, stand.loss
    begin, saved_at = time.monotonic() - stand.spent, time.monotonic()
    while (progress := step / steps if steps else (time.monotonic() - begin) / (60 * minutes)) < 1:
        frames, batch, side = next(stage[1:] for stage in recipe.curriculum if progress < stage[0])
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = recipe.peak_rate * warm * (0.5 + 0.5 * math.cos(math.pi * progress))
        video = recipe.batch(frames, batch, side, seed * 1_000_003 + step).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.half):
            restored = model(video.contiguous(memory_format=torch.channels_last_3d)).float()
        loss = F.mse_loss(restored, video) + 0.15 * F.l1_loss(restored, video)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        _follow(average, model, decay=min(0.998, 1 - 10 / (step + 10)))
        require_finite_loss(loss.item(), f"vae step {step}")
        loss_mean += (loss.item() - loss_mean) * max(0.02, 1 / step)
        if step % 100 == 0:
            say(f"vae step {step}  {100 * progress:.1f} %  {frames} frames  loss {loss_mean:.5f}")
        if time.monotonic() - saved_at > 120:
            save_or_say(checkpoint, parts, Stand(step, time.monotonic() - begin, loss_mean), say)
            say(f"vae step {step}  PSNR {psnr(average.export(), recipe, device):.2f} dB (45-frame clips)")
            saved_at = time.monotonic()
    save(checkpoint, parts, Stand(step, time.monotonic() - begin, loss_mean))
    vae = average.export().eval().requires_grad_(False)
    return vae, {"steps": step, "loss": loss_mean, "psnr_db": psnr(vae, recipe, device)}


def _begin(recipe: VAERecipe, device: torch.device) -> dict[str, Any]:
    """What the first stage changes, by its names in a checkpoint."""
    model = recipe.build().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.peak_rate, betas=(0.9, 0.98), weight_decay=1e-3)
    return {"model": model, "average": copy.deepcopy(model).eval().requires_grad_(False), "optimizer": optimizer}


def require_resumable(checkpoint: Path, recipe: VAERecipe | None = None) -> None:
    """SettingError when the first stage cannot go on from ``checkpoint``."""
    with torch.random.fork_rng(devices=[]):
        load(checkpoint, _begin(recipe or SHAPES, torch.device("cpu")))


def train_decoder(
    vae: WanVAE,
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]],
    *,
    minutes: float,
    steps: int | None = None,
    seed: int,
    say: Callable[[str], None],
    keep: Callable[[int], None],
    rate: float = 1.5e-3,
    recipe: VAERecipe | None = None,
) -> dict[str, float]:
    """Trains only the decoder of `vae`, in place: latents, and so a transformer trained on them, stay as they are.

    `draw` gives latents and the video they came from. Long clips matter: what is decoded late depends on all that came
    before. `keep(step)` is called every two minutes, when `vae` has the averaged weights.
    """
    recipe = recipe or SHAPES
    device = vae.latent_mean.device
    parts = nn.ModuleList([vae.decoder, vae.conv2]).requires_grad_(True)
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
    average = copy.deepcopy(parts).requires_grad_(False)
    optimizer = torch.optim.AdamW(parts.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    begin, told, step = time.monotonic(), time.monotonic(), 0
    while (progress := step / steps if steps else (time.monotonic() - begin) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * progress))
        latents, video = (tensor.to(device) for tensor in draw(generator))
        latents = latents + LATENT_NOISE * torch.randn(latents.shape, generator=generator).to(device)
        raw = latents * vae.latent_std + vae.latent_mean
        raw = raw.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.half):
            restored = vae.decoder(vae.conv2(raw)).float()
        loss = F.mse_loss(restored, video) + 0.15 * F.l1_loss(restored, video)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        step += 1
        _follow(average, parts, decay=min(0.998, 1 - 10 / (step + 10)))
        if time.monotonic() - told > 120:
            require_finite_loss(loss.item(), f"decoder step {step}")
            say(f"decoder step {step}  {100 * progress:.1f} %  loss {loss.item():.5f}")
            current = copy.deepcopy(parts.state_dict())
            parts.load_state_dict(average.state_dict())
            keep(step)
            parts.load_state_dict(current)
            told = time.monotonic()
    parts.load_state_dict(average.state_dict())
    parts.requires_grad_(False)
    reached = psnr(vae, recipe, device)
    require_finite_loss(reached, f"decoder step {step}")
    return {"decoder_steps": step, "psnr_db": reached}


@torch.no_grad()
def psnr(vae: WanVAE, recipe: VAERecipe, device: torch.device) -> float:
    """Peak signal-to-noise ratio in dB of held-out clips after encode and decode."""
    video = recipe.held_out().to(device)
    error = ((vae.decode(vae.encode(video)) - video) / 2).square().mean().item()
    return -10 * math.log10(error)


def _batch(frames: int, count: int, side: int, seed: int) -> Tensor:
    """Clips cut from a random moment of their life, so that bounces are seen too, and from a random place."""
    generator = torch.Generator().manual_seed(seed)
    clips = data.random_clips(count, seed)
    path = data.positions(clips, 96)
    start = torch.randint(0, 96 - frames + 1, (count,), generator=generator)
    index = start[:, None] + torch.arange(frames)
    at = path.gather(1, index[..., None].expand(-1, -1, 2))
    video = data.render(clips, frames, at=at)
    if side == data.FRAME_SIZE:
        return video
    # Most of a frame is background: a smaller view that follows the shape shows as much for less work.
    corner = at.mean(1) - side / 2 + 12 * torch.rand(count, 2, generator=generator) - 6
    columns, rows = corner.round().long().clamp(0, data.FRAME_SIZE - side).unbind(1)
    views = [v[:, :, y : y + side, x : x + side] for v, x, y in zip(video, columns.tolist(), rows.tolist())]
    return torch.stack(views)


def _held_out() -> Tensor:
    return data.render(data.random_clips(12, seed=2**31), 45)


SHAPES = VAERecipe(_batch, _held_out, ((0.1, 1, 32, 64), (0.25, 9, 6, 40), (0.8, 17, 5, 40), (1.01, 17, 2, 64)))


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for kept, new in zip(average.buffers(), model.buffers()):
        kept.copy_(new)
