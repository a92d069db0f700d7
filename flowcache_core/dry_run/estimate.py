"""What a run will cost, said before it begins: steps, FLOPs, K/V, memory. Quick enough to be asked at every change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

from ..calibrate.measured_heads import MeasureHeads
from ..cost import ModelShape, count
from ..cost.shapes import MagiShape, WanShape
from ..denoiser import Denoiser
from ..engine.settings import EngineSettings
from ..kv.settings import KVSettings
from ..kv.size import ahead_bytes, peak_bytes, read_bytes
from ..kv.spec import KVSpec
from ..models.magi.config import MagiConfig
from ..models.magi.denoiser import NULL, MagiDenoiser
from ..models.magi.guidance import GuidanceScales
from ..models.magi.text import NULL_TOKENS
from ..models.magi.transformer import MagiTransformer
from ..models.wan.config import WanConfig
from ..models.wan.denoiser import WanDenoiser
from ..models.wan.transformer import WanTransformer
from ..reuse.base import ReusePolicy
from ..reuse.never import Never
from ..reuse.quantity import Velocity
from ..reuse.schedule import StaticSchedule, spread
from ..schedule import magi, shifted
from ..sparse.expected import density_note, expected, inner_density, mask_memory
from ..sparse.settings import SparseSettings
from .head_forwards import head_forwards
from .models import CAPTION_ROWS, TEXT_TOKENS, made_in
from .probe import Build, largest_forward

FP32 = 4


@dataclass(frozen=True)
class Model:
    """What is known of a model without running it.

    weights: bytes on the device. dtype: that it computes in. branches: guidance forwards of a step. kv_branches: those
    whose K/V is kept.
    """

    config: WanConfig | MagiConfig
    weights: int
    dtype: torch.dtype
    branches: int = 1
    kv_branches: int = 1
    nearly_clean: bool = False

    def shape(self, steps: int) -> ModelShape:
        """What its FLOPs are counted with."""
        if isinstance(self.config, MagiConfig):
            return MagiShape.of(self.config, 3 * steps // 4 if self.nearly_clean else None, CAPTION_ROWS)
        return WanShape.of(self.config, TEXT_TOKENS)

    def spec(self, latents: Sequence[int]) -> KVSpec:
        """Its K/V for latents ``[B, C, F, h, w]``."""
        config, (_, high, wide) = self.config, self.config.patch
        heads = config.kv_heads if isinstance(config, MagiConfig) else config.num_heads
        tokens = -(-latents[3] // high) * -(-latents[4] // wide)
        return KVSpec(
            config.num_layers, heads, config.head_dim, tokens, self.kv_branches, latents[0], self.dtype,
            query_heads=config.num_heads,
        )  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """sure: whether which steps are computed follows from numbers; otherwise ``computed_steps`` is the most, or what
    the preset was published with. kv_bytes: the most that is ever held; whole_kv_bytes: without a budget, in the
    model's own format. kv_device: where it is kept, None for beside the model. memory: the peak on the model's device,
    by part, without text encoder, autoencoder and what kernels take for themselves. kv_choice: what megabytes became.
    density: that self-attention is counted with where it is sparse, None where it is nowhere. attention: sentences on
    how it is counted.
    """

    computed_steps: int
    total_steps: int
    sure: bool
    flops: float
    whole_flops: float
    kv_bytes: int
    whole_kv_bytes: int
    kv_device: str | None
    memory: Mapping[str, int]
    kv_choice: str = ""
    density: float | None = None
    attention: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        return sum(self.memory.values())


def estimate(
    model: Model,
    windows: Sequence[EngineSettings],
    latents: Sequence[int],
    computed: int | None = None,
    measure: MeasureHeads | None = None,
) -> Estimate:
    """For latents ``[B, C, F, h, w]``, made in ``windows``. computed: steps of a chunk where they depend on the video
    and are published. measure: how heads are measured in the run.
    """
    sure = all(one.policy.content_free and not one.policy.reads_model for one in windows)
    shape, spec = model.shape(windows[0].plan.steps), model.spec(latents)
    choices = dict.fromkeys(one.kv.choice(spec, one.plan) for one in windows)
    windows = [replace(one, kv=one.kv.settled(spec, one.plan)) for one in windows]
    counted = [
        replace(one, policy=_known(one.policy, one.plan.steps, computed), quantity=Velocity()) for one in windows
    ]
    counted = [replace(one, kv=_one_budget(one.kv), sparse=_counted(one)) for one in counted]
    plain = [replace(one, policy=Never(), kv=KVSettings(), sparse=None) for one in counted]
    cost, whole = (count(shape, runs, spec.tokens_per_frame, model.branches) for runs in (counted, plain))
    by_chunk = windows[0].attention != "bidirectional"
    kept, most = (
        max(peak_bytes(spec, one.kv, one.plan) for one in runs) if by_chunk else 0 for runs in (windows, plain)
    )
    fullest = max(windows, key=lambda one: one.plan.frames)
    memory = {
        "weights": model.weights,
        "activations": _activations(model, _form(fullest, model), (latents[0], latents[1], latents[3], latents[4])),
        "kept steps": _kept_steps(model, fullest, spec, latents),
        "latents": 3 * latents[0] * latents[1] * latents[2] * latents[3] * latents[4] * FP32,
    }
    device = windows[0].kv.device
    if device is None:
        memory["K/V"] = kept
    if by_chunk:
        memory["K/V unpacked"] = read_bytes(spec, fullest.kv, fullest.plan, fullest.sparse is not None)
        memory["K/V copied ahead"] = ahead_bytes(replace(spec, device="meta"), fullest.kv, fullest.plan)
    sparse = fullest.sparse
    if masks := mask_memory(sparse, spec, fullest.plan, fullest.kv):
        memory["masks"] = masks
    density = None if sparse is None else inner_density(sparse, fullest.plan, fullest.kv, fullest.recache)
    more = None if measure is None else head_forwards(measure, shape, spec, windows[0].kv, counted[0], model.branches)
    said = [
        density_note(sparse, fullest.plan, fullest.kv, fullest.recache) if sparse else "",
        more.note if more else "",
    ]
    batch = latents[0]
    chosen = "; ".join(choice for choice in choices if choice)
    flops = (batch * (cost.flops + (more.flops if more else 0.0)), batch * whole.flops)
    steps = (cost.computed_steps, cost.total_steps)
    return Estimate(*steps, sure, *flops, kept, most, device, memory, chosen, density, tuple(filter(None, said)))


def _one_budget(kv: KVSettings) -> KVSettings:
    """With the mean of the layers' budgets: what attention costs is linear in it."""
    return replace(kv, budget=sum(kv.budgets) / len(kv.budgets)) if len(kv.budgets) > 1 else kv


def _counted(settings: EngineSettings) -> SparseSettings | None:
    """Sparse attention as it is counted: at the density that can be expected."""
    return settings.sparse and expected(settings.sparse, settings.plan, settings.kv, settings.recache)


def _known(policy: ReusePolicy, steps: int, computed: int | None) -> ReusePolicy:
    """The policy itself, or what stands for it where its decisions need values."""
    if policy.content_free and not policy.reads_model:
        return policy
    if computed is None:
        return Never()
    return StaticSchedule(warmup_steps=policy.warmup_steps, computed=spread(computed, steps, policy.warmup_steps))


def _kept_steps(model: Model, settings: EngineSettings, spec: KVSpec, latents: Sequence[int]) -> int:
    """What chunks in work keep of their computed steps: velocities of all branches, or the block stack's residual."""
    if isinstance(settings.policy, Never) or settings.reuse_device == "cpu":
        return 0
    frames = max(chunk.frames for chunk in settings.plan.chunks)
    velocity = model.branches * latents[0] * latents[1] * frames * latents[3] * latents[4] * FP32
    if settings.quantity.needs_residual:
        tokens = model.branches * latents[0] * frames * spec.tokens_per_frame
        velocity = tokens * model.config.dim * model.dtype.itemsize
    return settings.quantity.keep * velocity * settings.plan.max_active


def _form(settings: EngineSettings, model: Model) -> EngineSettings:
    """What of a run's settings its largest forward depends on, so that it is measured once for all that share it."""
    steps = settings.plan.steps
    levels = magi(steps) if isinstance(model.config, MagiConfig) else shifted(steps, 5.0)
    return EngineSettings(
        settings.plan, levels, quantity=settings.quantity, kv=settings.kv, attention=settings.attention
    )


@lru_cache(maxsize=64)
def _activations(model: Model, settings: EngineSettings, shape: tuple[int, int, int, int]) -> int:
    return largest_forward(_builder(model), settings, shape)


def _builder(model: Model) -> Build:
    """The model with a layer or two: what a forward holds at its peak does not depend on how many there are."""
    few = replace(model.config, num_layers=min(2, model.config.num_layers))
    if isinstance(few, MagiConfig):
        return _magi(few, model)
    return _wan(few, model)


def _wan(config: WanConfig, model: Model) -> Callable[[str], tuple[nn.Module, Denoiser]]:
    def build(device: str) -> tuple[nn.Module, Denoiser]:
        with made_in(model.dtype), torch.device(device):
            made = WanTransformer(config).eval().requires_grad_(False)
            texts = [torch.empty(1, TEXT_TOKENS, config.text_dim) for _ in range(model.branches)]
        return made, WanDenoiser(made, {0: texts}, 1.0 if model.branches == 1 else 2.0, 24)

    return build


def _magi(config: MagiConfig, model: Model) -> Callable[[str], tuple[nn.Module, Denoiser]]:
    def build(device: str) -> tuple[nn.Module, Denoiser]:
        made = MagiTransformer(config, dtype=model.dtype, device=device).eval().requires_grad_(False)
        caption = torch.empty(1, CAPTION_ROWS, config.text_dim, device=device)
        captions = {0: (caption, torch.ones(caption.shape[:2]))}
        denoiser = MagiDenoiser(made, captions, guidance=GuidanceScales() if model.branches > 1 else None)
        for key, rows in ((0, CAPTION_ROWS), (NULL, NULL_TOKENS)):
            denoiser.rows[key, 1] = [torch.empty(rows, config.dim, dtype=model.dtype, device=device)]
        return made, denoiser

    return build


__all__: Sequence[str] = ("Estimate", "Model", "estimate")
