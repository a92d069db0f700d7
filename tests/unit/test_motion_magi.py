"""Token-level reuse in whole MAGI-1 runs: distilled with its nearly-clean pass, base with three branches, mini-MAGI."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_weights import as_recorded, magi_transformer
from safetensors.torch import load_file
from torch import Tensor

from flowcache_core.calibrate.bundled import MiniMagi
from flowcache_core.calibrate.runs import generated
from flowcache_core.engine import generate
from flowcache_core.models.magi.denoiser import MagiDenoiser
from flowcache_core.models.magi.transformer import MagiTransformer
from flowcache_core.presets import load_preset
from flowcache_core.report.events import Event, StepTaken
from flowcache_core.reuse.base import ReusePolicy
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.motion import Motion
from flowcache_core.reuse.never import Never
from flowcache_core.video.magi import MagiSettings

GOLDEN = Path(__file__).parents[1] / "golden"
PARTLY = Motion(threshold=0.05, warmup_steps=1, uniform_updates=0, floor=0.1, vote=None, minimum=0.0, relative=False)
VARIANTS: dict[str, dict[str, Any]] = {
    "distilled": {},
    "distilled, no nearly-clean pass": {"nearly_clean": False},
    "base": {"variant": "base"},
    "base, ranges": {"variant": "base", "ranges": (5, 4, 3, 2)},
}
ALONE = 2


@pytest.fixture(scope="module")
def model() -> MagiTransformer:
    return magi_transformer(load_file(GOLDEN / "magi_dit.safetensors"))


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Tensor]]:
    as_recorded(monkeypatch)
    yield load_file(GOLDEN / "magi_runs.safetensors")


def run(
    model: MagiTransformer, data: dict[str, Tensor], policy: ReusePolicy, given: int = 0, **settings: Any
) -> tuple[Tensor, list[StepTaken]]:
    """Latents and steps; chunks of two latent frames, 16 steps."""
    new, events = 8 - given % 2, list[Event]()  # chunks begin at multiples of two whatever is given
    fields = {"frames": 4 * new, "height": 32, "width": 32, "steps": 16, "chunk_frames": 2, **settings}
    made = MagiSettings(**fields, policy=policy)
    noise, prefix = data["in.noise"][:, :, : given + new], data["in.prefix"][:, :, :given] if given else None
    denoiser = made.denoiser(model, {0: (data["in.caption"], data["in.caption_mask"])})
    latents = generate(denoiser, made.engine(given), noise, prefix=prefix, observe=events.append)
    return latents, [event for event in events if isinstance(event, StepTaken)]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("given", [0, 5])
def test_runs_in_part(model, data, name, given) -> None:
    latents, steps = run(model, data, PARTLY, given, **VARIANTS[name])
    assert latents.isfinite().all()
    part = [step for step in steps if step.action == "part"]
    assert part and all(0 < step.computed_tokens < step.tokens for step in part)
    whole = [step for step in steps if step.reason == "whole only"]
    # Only where the oldest chunk of the window has its nearly-clean pass, whose forward alone has no K/V to be stale.
    assert bool(whole) == (name == "distilled")
    assert all(step.step >= 8 for step in whole)


@pytest.mark.parametrize("name", VARIANTS)
def test_laws(model, data, name) -> None:
    plain = run(model, data, Never(), **VARIANTS[name])[0]
    assert torch.equal(run(model, data, replace(PARTLY, threshold=0.0), **VARIANTS[name])[0], plain)
    chunkwise = run(model, data, Chunkwise(threshold=0.05, warmup_steps=1), **VARIANTS[name])[0]
    assert torch.equal(run(model, data, replace(PARTLY, floor=1.0), **VARIANTS[name])[0], chunkwise)
    assert torch.equal(run(model, data, replace(PARTLY, uniform_steps=16), **VARIANTS[name])[0], chunkwise)


def test_the_base_models_forward_of_a_chunk_alone_is_not_run_for_some_tokens(model, data, monkeypatch) -> None:
    seen: list[tuple[int, bool]] = []
    original = MagiDenoiser.forward

    def watched(self: Any, item: Any, branch: int, cache: Any, keep: bool, rows: Any = None) -> Any:
        seen.append((branch, rows is not None))
        return original(self, item, branch, cache, keep, rows)

    monkeypatch.setattr(MagiDenoiser, "forward", watched)
    run(model, data, PARTLY, variant="base")
    assert {branch for branch, some in seen if some} == {0, 1}
    assert ALONE in {branch for branch, some in seen if not some}


def test_the_reference_preset(model, data) -> None:
    """Its phases: whole chunks to own step 25, tokens from there on, the run's very last tick computed."""
    preset = load_preset("magi-1-4.5b", "reference-motion-slow")
    policy = replace(preset.policy, threshold=0.03)  # of these weights' size  # type: ignore[call-arg]
    settings = {"steps": 32, "quantity": preset.quantity, "nearly_clean": False, "clean_pass": False}
    latents, steps = run(model, data, policy, **settings)
    assert latents.isfinite().all()
    part = [step.step for step in steps if step.action == "part"]
    assert part and min(part) >= 25
    last = max(step.tick for step in steps)
    assert all(step.action == "compute" for step in steps if step.tick == last)


def test_mini_magi_with_motion() -> None:
    mini, events = MiniMagi(), list[Event]()
    setup = replace(mini.default, chunks=3, steps=12)
    pair = [(mini.prompts[0], 3)]
    policy = replace(PARTLY, threshold=0.1)
    latents = generated(mini, setup, pair, observe=events.append, policy=policy)
    steps = [event for event in events if isinstance(event, StepTaken)]
    assert latents.isfinite().all() and any(step.action == "part" for step in steps)
    assert torch.equal(
        generated(mini, setup, pair, policy=replace(policy, threshold=0.0)), generated(mini, setup, pair)
    )
