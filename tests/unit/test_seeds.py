"""What a seed decides: every draw of every chunk and step, and nothing else does."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from dummy import DummyDenoiser

from flowcache_core.engine import EngineSettings, generate
from flowcache_core.mini import load_mini
from flowcache_core.noise import host_noise, seeded_noise, window_noise
from flowcache_core.plan import PLANS, blockwise
from flowcache_core.schedule import shifted
from flowcache_core.solvers.renoise import ReNoise

LIKE = torch.zeros(1, 2, 3, 4, 4)
PLACES = list(product(range(12), range(5)))  # chunks and steps
RULES = [seeded_noise, host_noise]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", [0, 7])
def test_every_chunk_and_step_depends_on_the_seed(rule, seed: int) -> None:
    one, other = rule(seed), rule(seed + 1_000_000)
    for place in PLACES:
        assert torch.equal(one(*place, LIKE), rule(seed)(*place, LIKE))
        assert not torch.equal(one(*place, LIKE), other(*place, LIKE)), place


@pytest.mark.parametrize("rule", RULES)
def test_no_two_chunks_or_steps_draw_alike(rule) -> None:
    draw = rule(3)
    drawn = {draw(*place, LIKE).numpy().tobytes() for place in PLACES}
    assert len(drawn) == len(PLACES)


@pytest.mark.parametrize("rule", RULES)
def test_draws_do_not_depend_on_their_order_or_on_global_state(rule) -> None:
    draw = rule(5)
    forwards = [draw(*place, LIKE) for place in PLACES]
    torch.manual_seed(99)
    backwards = [rule(5)(*place, LIKE) for place in reversed(PLACES)]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert torch.equal(torch.randn(3), torch.randn(3, generator=torch.Generator().manual_seed(99)))


@pytest.mark.parametrize("name", ["blockwise", "staggered", "window"])
@pytest.mark.parametrize("rule", RULES)
def test_every_chunk_of_a_video_depends_on_the_seed(rule, name: str) -> None:
    plan = PLANS[name].abreast(3, 8, 2).plan(15, 8)
    start = torch.randn(1, 2, 15, 2, 2, generator=torch.Generator().manual_seed(0))

    def video(seed: int) -> torch.Tensor:
        settings = EngineSettings(plan, shifted(8, 3.0), solver=ReNoise())
        rule_of = DummyDenoiser(lambda item: item.latents * 0.5)
        return generate(rule_of, settings, start, noise_source=rule(seed))

    one, other, again = video(4), video(5), video(4)
    assert torch.equal(one, again)
    for chunk in plan.chunks:
        frames = slice(chunk.first_frame, chunk.end_frame)
        assert (one[:, :, frames] != other[:, :, frames]).all()


def test_a_prefix_with_noise_is_drawn_by_the_seed_in_every_chunk_and_pass() -> None:
    plan = blockwise(12, 3, 3, prefix_frames=6)
    prefix = torch.ones(1, 2, 6, 2, 2)

    def seen(seed: int, attention: str) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []

        class Watching(DummyDenoiser):
            def compute(self, item, cache, *, keep_residual=False):
                if item.chunk.index < 2:
                    found.append(item.latents.clone())
                return super().compute(item, cache, keep_residual=keep_residual)

            def window(self, latents, timesteps, items):
                found.append(latents[:, :, :6].clone())
                return super().window(latents, timesteps, items)

        settings = EngineSettings(plan, shifted(3, 3.0), prefix_noise=0.25, attention=attention)
        generate(Watching(), settings, torch.zeros(1, 2, 12, 2, 2), prefix=prefix, noise_source=seeded_noise(seed))
        return found

    for attention in ("block-causal", "bidirectional"):
        one, other = seen(1, attention), seen(2, attention)
        assert all((a != b).all() for a, b in zip(one, other, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(one, one[1:], strict=False))
    # three quarters of what is given and a quarter of noise
    noisy = seeded_noise(1)(0, 0, prefix[:, :, :3])
    assert torch.allclose(seen(1, "block-causal")[0], 0.75 + 0.25 * noisy)


def test_noise_to_start_from_depends_on_the_seed_in_every_frame() -> None:
    mini = load_mini()
    one, other = mini.noise(4, 1), mini.noise(4, 2)
    assert (one != other).flatten(3).any(-1).all() and torch.equal(one, mini.noise(4, 1))
    shape = (1, 4, 6, 2, 2)
    for window in range(3):
        assert not torch.equal(window_noise(1, window, shape), window_noise(2, window, shape))
    assert len({window_noise(1, window, shape).numpy().tobytes() for window in range(4)}) == 4
