"""Reuse in MAGI-1, with and without guidance."""

from __future__ import annotations

import pytest
import torch
from magi_plain import SCALES, Plain, assert_close
from magi_sampled import STEPS, captions, distilled, engine, noise, random_model
from torch import Tensor

from flowcache_core.engine import generate
from flowcache_core.models.common.cached_attention import attending_alone
from flowcache_core.models.magi.denoiser import MagiDenoiser
from flowcache_core.models.magi.layers import attend_grouped
from flowcache_core.models.magi.transformer import MagiTransformer
from flowcache_core.report.events import StepTaken
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import PatchDistance
from flowcache_core.reuse.forecast import Forecast
from flowcache_core.reuse.quantity import Increment, Residual, Velocity
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.schedule import magi


@pytest.fixture(scope="module")
def model() -> MagiTransformer:
    return random_model()


def computed_steps(denoiser, policy, chunks: int = 5) -> dict[int, list[int]]:
    events = []
    generate(denoiser, engine(chunks, policy=policy, quantity=Increment()), noise(chunks), observe=events.append)
    table: dict[int, list[int]] = {}
    for event in events:
        if isinstance(event, StepTaken) and event.action == "compute":
            table.setdefault(event.chunk, []).append(event.step)
    return table


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("always_last", [False, True])
def test_without_a_limit_every_chunk_computes_its_warmup_alone(model, guided, always_last):
    denoiser = MagiDenoiser(model, captions(), guidance=SCALES) if guided else distilled(model)
    policy = Chunkwise(threshold=1e9, warmup_steps=5, distance=PatchDistance(), always_last=always_last)
    expected = [0, 1, 2, 3, 4, 7] if always_last else [0, 1, 2, 3, 4]
    assert computed_steps(denoiser, policy) == {chunk: expected for chunk in range(5)}


@pytest.mark.parametrize("guided", [False, True])
def test_threshold_0_is_no_reuse(model, guided):
    denoiser = MagiDenoiser(model, captions(), guidance=SCALES) if guided else distilled(model)
    policy = Chunkwise(threshold=0.0, distance=PatchDistance())
    assert torch.equal(generate(denoiser, engine(policy=policy), noise()), generate(denoiser, engine(), noise()))


def test_a_reused_step_runs_no_forward(model, monkeypatch):
    calls = []
    forward = MagiTransformer.forward_chunk

    def spy(self, x, t, *args, **options):
        calls.append(round(t[0].item(), 4))
        return forward(self, x, t, *args, **options)

    monkeypatch.setattr(MagiTransformer, "forward_chunk", spy)
    generate(distilled(model), engine(2, policy=StaticSchedule(computed=(0, 5))), noise(2))
    t = [round(value, 4) for value in magi(STEPS).timesteps]
    # Steps 0, 5 and 7 of two chunks, the last of them with its nearly-clean pass, and one clean pass.
    assert sorted(calls) == sorted(2 * [t[0], t[5], t[7], t[7]] + [0.9999])


def test_the_distance_is_relative_l1_of_the_patch_embedding(model):
    events = []
    policy = Chunkwise(threshold=1e9, warmup_steps=2, distance=PatchDistance())
    generate(distilled(model), engine(1, policy=policy), noise(1), observe=events.append)
    plain = Plain(model, distill=True)
    x, t = noise(1), plain.times()
    moved = x + plain.forward(x, t[0], captions()[0], {}, 0, 1) * (t[1] - t[0])
    before, now = model.patch_tokens(x), model.patch_tokens(moved)
    first = next(event for event in events if isinstance(event, StepTaken) and event.step == 1)
    assert first.distance == pytest.approx(((now - before).abs().mean() / before.abs().mean()).item(), rel=1e-4)


@pytest.mark.parametrize("quantity", [Velocity(), Increment(), Forecast(order=1), Residual()])
def test_reuse_with_guidance(model, quantity):
    """Steps 0 and 1 are computed; the rest follows from them under the scales and step sizes of now."""
    policy = StaticSchedule(warmup_steps=2, always_last=False, computed=(0, 1))
    denoiser = MagiDenoiser(model, captions(), guidance=SCALES)
    ours = generate(denoiser, engine(1, policy=policy, quantity=quantity), noise(1))
    plain = Plain(model, scales=SCALES)
    null = (model.y_embedder.null_caption_embedding[None], (torch.arange(60) < 50).float()[None])
    x, t, velocities, residuals, step = noise(1), plain.times(), [], [], torch.zeros(())
    for k in range(STEPS):
        a, b = SCALES.at(t[k])
        if k < 2:
            text = plain.forward(x, t[k], captions()[0], {}, 0, 1)
            previous, alone = (plain.forward(x, t[k], null, {}, 0, 1, dropped=True) for _ in range(2))
            velocities.append((alone, previous, text))
        used = velocities[-1]
        if k >= 2 and quantity.name == "forecast":
            share = (t[k] - t[0]) / (t[1] - t[0])
            used = tuple(old + share * (new - old) for old, new in zip(*velocities, strict=True))
        if k >= 2 and quantity.name == "residual":
            used = tuple(model._head(model.patch_tokens(x) + residual, x) for residual in residuals)
        v = (1 - a) * used[0] + (a - b) * used[1] + b * used[2]
        if k < 2 or quantity.name != "increment":
            step = v * (t[k + 1] - t[k])
        if k == 1:
            residuals = [
                stack_residual(model, x, t[k], caption, dropped)
                for caption, dropped in ((null, True), (null, True), (captions()[0], False))
            ]
        x = x + step
    assert_close(ours, x)


def stack_residual(model, x, t, caption, dropped) -> Tensor:
    options = {
        "first_frame": 0,
        "attention": attending_alone(attend_grouped),
        "dropped": dropped,
        "return_residual": True,
    }
    return model.forward_chunk(x, torch.tensor([t]), *caption, **options)[1]


def test_a_residual_past_the_guidance_has_all_branches(model):
    """From t = 0.3 on the forward alone is not run; a reused residual must not miss it."""
    policy = StaticSchedule(warmup_steps=7, computed=(0,), always_last=False)
    denoiser = MagiDenoiser(model, captions(), guidance=SCALES)
    result = generate(denoiser, engine(2, policy=policy, quantity=Residual()), noise(2))
    assert result.isfinite().all()
    assert (result - generate(denoiser, engine(2), noise(2))).abs().max() > 0
