"""MAGI-1: whole runs against those of the public code on the golden weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from golden_weights import as_recorded, magi_transformer
from safetensors.torch import load_file
from torch import Tensor

from flowcache_core.engine import generate
from flowcache_core.models.magi.transformer import MagiTransformer
from flowcache_core.presets import load_preset
from flowcache_core.report.events import Event, StepTaken
from flowcache_core.video.magi import MagiSettings

GOLDEN = Path(__file__).parents[1] / "golden"
RELEASED = {"ranges": (5, 4, 3, 2)}
RUNS: dict[str, tuple[int, dict[str, Any]]] = {  # given latent frames, settings
    "distilled": (0, {}),
    "image": (1, {}),
    "given": (4, {}),
    "given_range1": (5, {"clean_range": 1}),
    "released": (5, RELEASED),
    "range2": (5, {**RELEASED, "clean_range": 2}),
    "base": (0, {"variant": "base"}),
    "base_released": (5, {"variant": "base", **RELEASED}),
}


@pytest.fixture(scope="module")
def model() -> MagiTransformer:
    return magi_transformer(load_file(GOLDEN / "magi_dit.safetensors"))


@pytest.fixture
def data(monkeypatch) -> dict[str, Tensor]:
    as_recorded(monkeypatch)
    return load_file(GOLDEN / "magi_runs.safetensors")


def run(model: MagiTransformer, data: dict[str, Tensor], name: str, given: int, **settings: Any) -> Tensor:
    """New latents ``[16, f, 4, 4]``; chunks of two latent frames, behind ``given`` frames."""
    observe = settings.pop("observe", lambda event: None)
    new = data[f"{name}.latents"].shape[1]
    made = MagiSettings(**{"frames": 4 * new, "height": 32, "width": 32, "steps": 8, "chunk_frames": 2, **settings})
    engine = made.engine(given)
    assert engine.plan.frames == given + new
    noise, prefix = data["in.noise"][:, :, : given + new], data["in.prefix"][:, :, :given] if given else None
    denoiser = made.denoiser(model, {0: (data["in.caption"], data["in.caption_mask"])})
    return generate(denoiser, engine, noise, prefix=prefix, observe=observe)[0, :, given:]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_original_s(model, data, name):
    given, settings = RUNS[name]
    error = (run(model, data, name, given, **settings) - data[f"{name}.latents"]).abs().max()
    assert error <= (1e-4 if name.startswith("base") else 5e-5)


REUSE: dict[str, tuple[int, dict[str, Any]]] = {  # given latent frames, threshold and settings
    "reuse_all": (0, {"threshold": 1e9}),
    "reuse": (0, {"threshold": 0.04, "steps": 16}),
    "reuse_given": (2, {"threshold": 0.05, "steps": 16, "nearly_clean": True}),
}


@pytest.mark.parametrize("name", REUSE)
def test_the_reference_presets_compute_and_reuse_as_flowcache(model, data, name):
    """At thresholds that mean something on these weights; the run's very last step is computed under any."""
    given, settings = REUSE[name][0], dict(REUSE[name][1])
    preset, events = load_preset("magi-1-4.5b", "reference-slow"), list[Event]()
    policy = replace(preset.policy, threshold=settings.pop("threshold"))  # type: ignore[call-arg]
    chosen = {"policy": policy, "quantity": preset.quantity, "nearly_clean": False, "clean_pass": False, **settings}
    latents = run(model, data, name, given, observe=events.append, **chosen)
    steps = [event for event in events if isinstance(event, StepTaken)]
    computed = sorted((step.chunk, step.step) for step in steps if step.action == "compute")
    assert computed == [tuple(pair) for pair in data[f"{name}.computed"].tolist()]
    assert steps[-1].reason in ("last step", "threshold reached")
    assert (latents - data[f"{name}.latents"]).abs().max() <= 5e-5
