"""Rivals by their own rules: barycentric and Chebyshev forecasts, growing intervals, lists by rule and by search,
guidance on a schedule, low frequencies put back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from dummy import DummyDenoiser

from flowcache_core.denoiser import ChunkInput
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.engine.anchor import LowFrequencies
from flowcache_core.errors import SettingError
from flowcache_core.mini import load_mini
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.guidance_refresh import GuidanceRefresh
from flowcache_core.plan import blockwise, staggered
from flowcache_core.plan.base import Chunk
from flowcache_core.report.events import Event, StepTaken
from flowcache_core.reuse.barycentric import Barycentric, barycentric_weights
from flowcache_core.reuse.build import build_policy, build_quantity
from flowcache_core.reuse.chebyshev import Chebyshev, chebyshev_weights
from flowcache_core.reuse.forecast import Forecast, Taylor
from flowcache_core.reuse.front_loaded import FrontLoaded
from flowcache_core.reuse.interval import Interval
from flowcache_core.reuse.never import Never
from flowcache_core.reuse.published import NAMES, Published, published_lists
from flowcache_core.reuse.quantity import Computed, Quantity
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.schedule import shifted

SCHEDULE = shifted(50, 3.0)


def history(steps: list[int], rule: Any) -> tuple[Computed, ...]:
    """Computed steps whose velocity is ``rule(step, sigma)``."""
    found = []
    for step in steps:
        latents = torch.zeros(1, 1, 1, 2, 2)
        one = ChunkInput(Chunk(0, 0, 1), step, SCHEDULE.sigmas[step], SCHEDULE.timesteps[step], latents)
        value = torch.full((1, 1, 1, 1, 2, 2), float(rule(step, one.sigma)), dtype=torch.float64)
        found.append(Computed(one, value, value[0]))
    return tuple(found)


def forecast(quantity: Quantity, steps: list[int], at: int, rule: Any) -> float:
    item = ChunkInput(Chunk(0, 0, 1), at, SCHEDULE.sigmas[at], SCHEDULE.timesteps[at], torch.zeros(1, 1, 1, 2, 2))
    return quantity.velocity(history(steps, rule), item, SCHEDULE.sigmas[at + 1], DummyDenoiser()).flatten()[0].item()


def computed(policy: Any, steps: int = 50, chunks: int = 2) -> list[list[int]]:
    """Computed steps of every chunk."""
    events: list[Event] = []
    settings = EngineSettings(blockwise(chunks, 1, steps), shifted(steps, 3.0), policy=policy)
    generate(DummyDenoiser(), settings, torch.zeros(1, 1, chunks, 2, 2), observe=events.append)
    taken = [event for event in events if isinstance(event, StepTaken)]
    return [[e.step for e in taken if e.chunk == chunk and e.action == "compute"] for chunk in range(chunks)]


# -- barycentric -------------------------------------------------------------------------------------------------------


def test_two_anchors_are_the_straight_line_over_steps() -> None:
    def rule(step: int, sigma: float) -> float:
        return 3.0 - 0.5 * step

    assert forecast(Barycentric(2), [4, 10, 16], 19, rule) == pytest.approx(rule(19, 0))
    assert forecast(Barycentric(2), [10, 16], 19, rule) == pytest.approx(forecast(Taylor(1), [10, 16], 19, rule))


def test_weights_by_hand() -> None:
    # 0.5 / 9, -1 / 6, 0.5 / 3, each to the power of 0.95 with its sign, over their sum
    raw = [(0.5 / 9) ** 0.95, -((1 / 6) ** 0.95), (0.5 / 3) ** 0.95]
    assert barycentric_weights([1, 4, 7], 10) == pytest.approx([one / sum(raw) for one in raw])
    assert barycentric_weights([3], 9) == [1.0]


@pytest.mark.parametrize("anchors", [2, 3, 4])
def test_a_constant_velocity_stays_what_it_is(anchors: int) -> None:
    assert forecast(Barycentric(anchors), [2, 5, 8, 11], 13, lambda step, sigma: 2.5) == pytest.approx(2.5)
    assert forecast(Barycentric(anchors), [2], 4, lambda step, sigma: 2.5) == pytest.approx(2.5)


# -- Chebyshev ---------------------------------------------------------------------------------------------------------


def test_with_hardly_a_ridge_polynomials_of_its_order_are_exact() -> None:
    def rule(step: int, sigma: float) -> float:
        return 1.0 - 2 * sigma + 3 * sigma**2 - sigma**4

    steps = [0, 4, 9, 15, 22, 30]
    assert forecast(Chebyshev(ridge=0.0001, degree=4), steps, 34, rule) == pytest.approx(
        rule(34, SCHEDULE.sigmas[34]), abs=0.02
    )


def test_the_fit_is_the_ridge_regression_it_says_it_is() -> None:
    nodes, values = [0.98, 0.9, 0.7, 0.4], np.array([1.0, 2.0, 0.5, -1.0])
    design = np.stack([np.cos(k * np.arccos(2 * np.array(nodes) - 1)) for k in range(4)], axis=1)
    stacked = np.vstack([design, np.sqrt(0.1) * np.eye(4)])  # ridge as extra rows of least squares
    coefficients = np.linalg.lstsq(stacked, np.concatenate([values, np.zeros(4)]), rcond=None)[0]
    there = np.cos(np.arange(4) * np.arccos(2 * 0.2 - 1))
    assert np.dot(chebyshev_weights(nodes, 0.2, 3, 0.1), values) == pytest.approx(there @ coefficients)


def test_blend_0_is_the_line_through_the_last_two() -> None:
    def rule(step: int, sigma: float) -> float:
        return sigma**3

    line = forecast(Forecast(order=1), [3, 9, 20], 25, rule)
    assert forecast(Chebyshev(blend=0.0), [3, 9, 20], 25, rule) == pytest.approx(line)
    half = forecast(Chebyshev(blend=0.5), [3, 9, 20], 25, rule)
    whole = forecast(Chebyshev(), [3, 9, 20], 25, rule)
    assert half == pytest.approx((line + whole) / 2)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("barycentric", "anchors", 1), ("barycentric", "anchors", 5), ("chebyshev", "degree", 0),
     ("chebyshev", "ridge", 0.0), ("chebyshev", "ridge", float("nan")), ("chebyshev", "blend", 1.5)],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused(name: str, field: str, value: float) -> None:
    with pytest.raises(SettingError, match=field):
        build_quantity({"name": name, field: value})


# -- lists -------------------------------------------------------------------------------------------------------------


def test_intervals_grow() -> None:
    # Warm-up 0..2, then every 2nd; the interval is 2, 2.5, 3, 3.5, ... in whole steps.
    found = computed(Interval(interval=2, growth=0.5, warmup_steps=3), steps=24)
    assert found == [[0, 1, 2, 4, 6, 9, 12, 16, 20, 23]] * 2
    assert computed(Interval(interval=3, warmup_steps=1), steps=10) == [[0, 3, 6, 9]] * 2


@pytest.mark.parametrize("name", NAMES)
def test_published_lists_compute_what_they_say(name: str) -> None:
    table = published_lists()[name]
    assert len(table) == int(name.split()[1]) and table[0] == 0 and table[-1] < 50
    assert computed(Published(steps_of=name, always_last=False)) == [list(table)] * 2


def test_published_lists_are_front_loaded_and_stretch() -> None:
    early = [sum(step < 10 for step in published_lists()[f"{name} 21"]) for name in ("budcache", "meancache")]
    assert early == [8, 10] and sum(step < 10 for step in published_lists()["shared 21"]) == 6
    (first, _) = computed(Published(steps_of="budcache 21"), steps=20)
    assert len(first) == 8 and first[0] == 0 and first[-1] == 19


def test_front_loaded_begins_in_a_row() -> None:
    first, later = computed(FrontLoaded(first_share=0.42, share=0.2, lead=0.4))
    assert len(first) == 21 and first[:8] == list(range(8)) and first[8] > 8 and first[-1] == 49
    gaps = [b - a for a, b in zip(first[7:], first[8:], strict=False)]
    assert max(gaps) - min(gaps) <= 1
    assert len(later) == 10 and max(np.diff(later)) - min(np.diff(later)) <= 2
    assert computed(FrontLoaded(first_share=1.0, share=1.0)) == [list(range(50))] * 2
    assert FrontLoaded(first_share=1.0, share=1.0).note(50)
    assert computed(FrontLoaded(first_share=0.02, share=0.02), steps=4) == [[0, 3]] * 2


@pytest.mark.parametrize(
    "given",
    [{"name": "published", "steps_of": "budcache 22"}, {"name": "front-loaded", "share": 0.0},
     {"name": "front-loaded", "first_share": float("nan")}, {"name": "front-loaded", "lead": 2},
     {"name": "interval", "growth": -1.0}],
)  # fmt: skip
def test_bad_lists_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        build_policy(given)


# -- guidance on a schedule --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini() -> Any:
    return load_mini()


def video(
    mini: Any, kind: Any, policy: Any, observe: Any = lambda event: None, name: str = "blockwise"
) -> torch.Tensor:
    contexts = (mini.encode_prompt("a red circle moving right"), mini.encode_prompt(""))
    plan = blockwise(6, 3, 8) if name == "blockwise" else staggered(6, 3, 8, 4)
    settings = EngineSettings(plan, shifted(8, 3.0), policy=policy, clean_pass=True)
    return generate(kind(mini.transformer, {0: contexts}, 2.0), settings, mini.noise(2, 3), observe=observe)


@pytest.mark.parametrize("plan", ["blockwise", "staggered"])
def test_one_branch_between_refreshes(mini: Any, plan: str) -> None:
    events: list[Event] = []
    policy = StaticSchedule(computed=(0, 1, 2, 3, 5, 7))

    def kind(*given: Any) -> GuidanceRefresh:
        return GuidanceRefresh(*given, every=2)

    made = video(mini, kind, policy, events.append, plan)
    full = video(mini, WanDenoiser, policy, name=plan)
    for chunk in range(2):
        steps = [e for e in events if isinstance(e, StepTaken) and e.chunk == chunk and e.action == "compute"]
        assert [(e.step, e.branches) for e in steps] == [(0, 2), (1, 1), (2, 2), (3, 1), (5, 2), (7, 2)]
    difference = (made - full).abs().mean() / full.abs().mean()
    assert 0 < difference < 0.2


def test_a_refresh_at_every_step_is_the_plain_denoiser(mini: Any) -> None:
    def kind(*given: Any) -> GuidanceRefresh:
        return GuidanceRefresh(*given, every=1)

    assert torch.equal(video(mini, kind, Never()), video(mini, WanDenoiser, Never()))


def test_nothing_to_refresh_without_guidance(mini: Any) -> None:
    contexts = (mini.encode_prompt("a red circle"),)
    with pytest.raises(SettingError, match="guidance_every"):
        GuidanceRefresh(mini.transformer, {0: contexts}, 1.0, every=2)


# -- low frequencies ---------------------------------------------------------------------------------------------------


def test_low_frequencies_are_those_of_the_first_chunk() -> None:
    anchor = LowFrequencies(strength=1.0, cutoff=0.5)
    generator = torch.Generator().manual_seed(0)
    first, later = (torch.randn(1, 4, 3, 8, 8, generator=generator) for _ in range(2))
    put = anchor.apply(later, anchor.low(first))
    assert torch.allclose(anchor.low(put), anchor.low(first), atol=1e-5)
    high_before = later.mean(2, keepdim=True) - anchor.low(later)
    assert torch.allclose(put.mean(2, keepdim=True) - anchor.low(put), high_before, atol=1e-5)
    assert torch.allclose(put - put.mean(2, keepdim=True), later - later.mean(2, keepdim=True), atol=1e-5)
    assert torch.allclose(LowFrequencies(strength=0.0).apply(later, anchor.low(first)), later)


def test_the_engine_puts_them_back_into_later_chunks_only() -> None:
    noise = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"plan": blockwise(4, 2, 4), "schedule": shifted(4, 1.0)}
    plain = generate(DummyDenoiser(), EngineSettings(**settings), noise)
    anchor = LowFrequencies(1.0, 1.0)
    made = generate(DummyDenoiser(), EngineSettings(**settings, anchor=anchor), noise)
    assert torch.equal(made[:, :, :2], plain[:, :, :2])
    assert torch.allclose(made[:, :, 2:].mean(2), plain[:, :, :2].mean(2), atol=1e-5)
    for field in ("strength", "cutoff"):
        with pytest.raises(SettingError, match=field):
            LowFrequencies(**{field: 1.5})
