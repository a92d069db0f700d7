"""Solvers against diffusers, against an equation whose solution is known, and by arithmetic."""

import math

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler

from flowcache_core.errors import SettingError
from flowcache_core.noise import host_noise
from flowcache_core.schedule import Schedule, from_sigmas, magi, shifted, skyreels
from flowcache_core.solvers import SOLVERS
from flowcache_core.solvers.euler import Euler
from flowcache_core.solvers.renoise import ReNoise
from flowcache_core.solvers.unipc import UniPC

SHAPE = (1, 4, 3, 6, 5)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def no_noise(chunk, step, like):
    raise AssertionError("this solver must not draw noise")


def run(solver, schedule, x, velocities, chunk=0, noise=no_noise):
    state = solver.begin(schedule, chunk, noise)
    return [x := state.step(x, velocity, step) for step, velocity in enumerate(velocities)]


# -- UniPC against diffusers -----------------------------------------------------------------------------------------


def reference(sigmas):
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2, solver_type="bh2", predict_x0=True
    )  # fmt: skip
    scheduler.set_timesteps(sigmas=np.array(sigmas[:-1]))
    return scheduler


def diffusers_grid(steps):
    """The library's own sigmas, from 1 - 1e-6."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(steps)
    return from_sigmas(scheduler.sigmas)


@pytest.mark.parametrize(
    "schedule",
    [
        *(skyreels(steps, shift) for steps, shift in ((50, 8.0), (8, 8.0), (50, 1.0), (8, 3.0), (2, 5.0), (1, 5.0))),
        diffusers_grid(50),
        diffusers_grid(8),
    ],
)
def test_unipc_is_diffusers_unipc_on_the_same_velocities(schedule):
    steps, scheduler = schedule.steps, reference(schedule.sigmas)
    x = expected = randn(*SHAPE)
    velocities = [randn(*SHAPE, seed=1 + k) for k in range(steps)]
    ours = run(UniPC(), schedule, x, velocities)
    for k, velocity in enumerate(velocities):
        expected = scheduler.step(velocity, scheduler.timesteps[k], expected.clone(), return_dict=False)[0]
        assert (ours[k] - expected).abs().max() <= 1e-5, k


def test_unipc_is_diffusers_unipc_when_the_model_sees_the_result():
    schedule = skyreels(50, 8.0)
    scheduler = reference(schedule.sigmas)
    expected = x = randn(*SHAPE)
    state = UniPC().begin(schedule, 0, no_noise)
    for k in range(50):
        x = state.step(x, torch.tanh(2 * x) - 0.3, k)
        expected = scheduler.step(
            torch.tanh(2 * expected) - 0.3, scheduler.timesteps[k], expected.clone(), return_dict=False
        )[0]
    assert (x - expected).abs().max() <= 1e-5


# -- order of convergence --------------------------------------------------------------------------------------------

MEAN, SPREAD = 0.7, 0.4


def spread(sigma):
    return math.sqrt(((1 - sigma) * SPREAD) ** 2 + sigma**2)


def gaussian_velocity(x, sigma):
    """The exact velocity when clean latents are normal with MEAN and SPREAD."""
    slope = (sigma - (1 - sigma) * SPREAD**2) / spread(sigma)
    return -MEAN + slope / spread(sigma) * (x - (1 - sigma) * MEAN)


def gaussian_path(z, sigma):
    """The exact latents at ``sigma`` on the path that belongs to the normal number ``z``."""
    return (1 - sigma) * MEAN + spread(sigma) * z


def error(solver, sigmas):
    schedule, z = from_sigmas(sigmas), randn(64, dtype=torch.float64)
    state, x = solver.begin(schedule, 0, no_noise), gaussian_path(z, sigmas[0])
    for k in range(schedule.steps):
        x = state.step(x, gaussian_velocity(x, sigmas[k]), k)
    return (x - gaussian_path(z, sigmas[-1])).abs().max().item()


def order(solver, steps):
    def even(n):
        return torch.linspace(0.8, 0.2, n + 1, dtype=torch.float64).tolist()

    return math.log2(error(solver, even(steps)) / error(solver, even(2 * steps)))


def test_euler_converges_with_order_one():
    assert order(Euler(), 40) == pytest.approx(1, abs=0.1)


def test_unipc_converges_with_order_two():
    assert order(UniPC(), 40) == pytest.approx(2, abs=0.05)
    assert error(UniPC(), skyreels(40, 3.0).sigmas[:-1]) < 0.5 * error(Euler(), skyreels(40, 3.0).sigmas[:-1])


@pytest.mark.parametrize("sigmas", [shifted(8, 5.0).sigmas, magi(8).sigmas, (0.4, 0.0), (1.0, 0.0), (0.9, 0.2)])
def test_unipc_stays_finite_at_both_ends(sigmas):
    """Sigma 1 and sigma 0 are infinities of the log SNR."""
    velocities = [randn(*SHAPE, seed=1 + k) for k in range(len(sigmas) - 1)]
    assert all(torch.isfinite(x).all() for x in run(UniPC(), from_sigmas(sigmas), randn(*SHAPE), velocities))


def test_unipc_from_pure_noise_by_arithmetic():
    """At sigma 1 the log SNR is minus infinity: the prediction made there drops out of the second-order terms."""
    x = randn(*SHAPE, dtype=torch.float64)
    v = [randn(*SHAPE, seed=1 + k, dtype=torch.float64) for k in range(3)]
    out = run(UniPC(), from_sigmas([1.0, 0.6, 0.3, 0.1]), x, v)
    # (1 - sigma) / sigma is 0, 2/3, 7/3, 9: e^-h is 0, 2/7, 7/27, and (1 - sigma)(1 - e^-h) is 0.4, 0.5, 2/3.
    clean0 = x - v[0]
    torch.testing.assert_close(out[0], 0.6 * x + 0.4 * clean0)
    clean1 = out[0] - 0.6 * v[1]
    corrected = 0.6 * x + 0.4 * (clean0 + clean1) / 2
    torch.testing.assert_close(out[1], 0.5 * corrected + 0.5 * clean1)
    clean2 = out[1] - 0.3 * v[2]
    weight = (1 - (5 / 7) / math.log(7 / 2)) * 7 / 5
    corrected = 0.5 * corrected + 0.5 * (clean1 + weight * (clean2 - clean1))
    torch.testing.assert_close(out[2], corrected / 3 + 2 / 3 * clean2)


@pytest.mark.parametrize("solver", [Euler(), UniPC(), ReNoise()])
def test_the_last_step_to_sigma_zero_is_the_clean_prediction(solver):
    schedule, x = shifted(4, 5.0), randn(*SHAPE)
    velocities = [randn(*SHAPE, seed=step) for step in range(4)]
    *_, before, last = run(solver, schedule, x, velocities, noise=lambda chunk, step, like: torch.zeros_like(like))
    torch.testing.assert_close(last, before - schedule.sigmas[3] * velocities[3], atol=1e-6, rtol=0)


def test_euler_by_arithmetic():
    x, v = torch.tensor([2.0, -1.0]), torch.tensor([4.0, 8.0])
    assert run(Euler(), from_sigmas([0.75, 0.25, 0.0]), x, [v, v])[0].tolist() == [0.0, -5.0]
    assert run(Euler(), from_sigmas([0.75, 0.25, 0.0]), x, [v, v])[1].tolist() == [-1.0, -7.0]


# -- re-noising ------------------------------------------------------------------------------------------------------


def test_renoise_by_arithmetic():
    drawn = []

    def noise(chunk, step, like):
        drawn.append((chunk, step, like.shape))
        return torch.full_like(like, 3.0)

    x, v = torch.tensor([2.0, -1.0]), torch.tensor([4.0, 8.0])
    out = run(ReNoise(), from_sigmas([0.75, 0.25, 0.0]), x, [v, v], chunk=6, noise=noise)
    # clean = 2 - 0.75 * 4 = -1 and -1 - 0.75 * 8 = -7; then 0.75 * clean + 0.25 * 3
    assert out[0].tolist() == [0.0, -4.5]
    assert out[1].tolist() == [0.0 - 0.25 * 4, -4.5 - 0.25 * 8]
    assert drawn == [(6, 0, x.shape)]


def test_renoise_that_ends_above_zero_still_adds_noise():
    out = run(ReNoise(), from_sigmas([1.0, 0.5]), torch.zeros(2), [torch.zeros(2)], noise=lambda c, s, like: like + 1)
    assert out[0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("seed", [0, 1234, 2**63, 2**64 - 5000])
def test_host_noise_is_the_hosts_and_leaves_the_global_state(seed):
    like = torch.empty(1, 16, 3, 8, 6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 4 * 1000 + 2)
        expected = torch.randn_like(like)
    before = torch.get_rng_state()
    assert torch.equal(host_noise(seed)(4, 2, like), expected)
    assert torch.equal(host_noise(seed, prefix_chunks=2)(6, 2, like), expected)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(host_noise(seed)(4, 1, like), expected)


def test_host_noise_follows_the_memory_order_as_the_host_does():
    like = torch.empty(2, 5, 7, 3).permute(0, 3, 1, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        expected = torch.randn_like(like)
    assert torch.equal(host_noise(11)(0, 0, like), expected)


def test_host_noise_wraps_a_seed_the_host_cannot_add_to():
    like = torch.empty(40)
    assert torch.equal(host_noise(2**64 - 1)(1, 0, like), host_noise(999)(0, 0, like))


def test_renoise_repeats_the_hosts_loop_bit_for_bit():
    """The rule of the host's autoregressive sampler, written out with its tensors and global seed."""
    sigmas = torch.tensor(shifted(4, 5.0).sigmas)
    velocities = [randn(*SHAPE, seed=20 + k) for k in range(4)]
    expected = x = randn(*SHAPE)
    with torch.random.fork_rng(devices=[]):
        for k in range(4):
            expected = expected - velocities[k] * sigmas[k]
            if sigmas[k + 1] != 0:
                torch.manual_seed(77 + 3 * 1000 + k)
                expected = (1.0 - sigmas[k + 1]) * expected + sigmas[k + 1] * torch.randn_like(expected)
    assert torch.equal(run(ReNoise(), from_sigmas(sigmas), x, velocities, chunk=3, noise=host_noise(77))[-1], expected)


# -- laws of every solver --------------------------------------------------------------------------------------------

every_solver = pytest.mark.parametrize("solver", [kind() for kind in SOLVERS.values()], ids=list(SOLVERS))


@every_solver
def test_nothing_handed_in_or_out_is_held_or_written(solver):
    schedule = skyreels(6, 8.0)
    velocities = [randn(*SHAPE, seed=1 + k) for k in range(6)]
    expected = run(solver, schedule, randn(*SHAPE), velocities, noise=host_noise(5))
    state, x = solver.begin(schedule, 0, host_noise(5)), randn(*SHAPE)
    for k, velocity in enumerate(velocities):
        given_x, given_v = x.clone(), velocity.clone()
        out = state.step(given_x, given_v, k)
        assert torch.equal(given_x, x) and torch.equal(given_v, velocity)
        x = out.clone()
        assert torch.equal(x, expected[k]), k
        for tensor in (given_x, given_v, out):
            tensor.fill_(math.nan)


@every_solver
def test_latents_that_are_a_view_may_be_overwritten_with_the_result(solver):
    """A caller that assigns each result back into the video must not reach into the solver's memory."""
    schedule, velocities = skyreels(8, 8.0), [randn(1, 4, 2, 6, 5, seed=1 + k) for k in range(8)]
    video = randn(*SHAPE)
    expected = run(solver, schedule, video[:, :, 1:].clone(), velocities, noise=host_noise(5))[-1]
    state = solver.begin(schedule, 0, host_noise(5))
    for k, velocity in enumerate(velocities):
        video[:, :, 1:] = state.step(video[:, :, 1:], velocity, k)
    assert torch.equal(video[:, :, 1:], expected)


@every_solver
def test_two_chunks_do_not_know_of_each_other(solver):
    schedule = skyreels(6, 8.0)
    inputs = {c: (randn(*SHAPE, seed=100 * c), [randn(*SHAPE, seed=100 * c + 1 + k) for k in range(6)]) for c in (1, 2)}
    alone = {c: run(solver, schedule, x, vs, chunk=c, noise=host_noise(5))[-1] for c, (x, vs) in inputs.items()}
    states = {c: solver.begin(schedule, c, host_noise(5)) for c in inputs}
    latents = {c: x for c, (x, _) in inputs.items()}
    for tick in range(8):  # chunk 2 two ticks behind chunk 1
        for c, k in ((1, tick), (2, tick - 2)):
            if 0 <= k < 6:
                latents[c] = states[c].step(latents[c], inputs[c][1][k], k)
    assert torch.equal(latents[1], alone[1]) and torch.equal(latents[2], alone[2])


@every_solver
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_latents_dtype_is_kept_and_half_precision_is_computed_in_float32(solver, dtype):
    schedule, x, velocity = from_sigmas([0.9, 0.6, 0.0]), randn(*SHAPE).to(dtype), randn(*SHAPE, seed=1).to(dtype)
    zeros = lambda chunk, step, like: torch.zeros_like(like)  # noqa: E731
    out = solver.begin(schedule, 0, zeros).step(x, velocity, 0)
    assert out.dtype == dtype
    exact = solver.begin(schedule, 0, zeros).step(x.double(), velocity.double(), 0)
    torch.testing.assert_close(out.double(), exact, atol=torch.finfo(dtype).eps * 4, rtol=torch.finfo(dtype).eps)


@every_solver
def test_steps_come_in_order_and_a_refused_one_changes_nothing(solver):
    schedule, x, velocities = skyreels(3, 8.0), randn(*SHAPE), [randn(*SHAPE, seed=1 + k) for k in range(3)]
    expected = run(solver, schedule, x, velocities, chunk=4, noise=host_noise(5))
    state = solver.begin(schedule, 4, host_noise(5))
    with pytest.raises(SettingError, match="solver step of chunk 4: got 1, accepted: step 0"):
        state.step(x, velocities[1], 1)
    x = state.step(x, velocities[0], 0)
    with pytest.raises(SettingError, match="got 0, accepted: step 1"):
        state.step(x, velocities[0], 0)
    with pytest.raises(SettingError, match=r"velocity: got .*accepted: the latents' shape"):
        state.step(x, velocities[1][:, :1], 1)
    x = state.step(x, velocities[1], 1)
    assert torch.equal(state.step(x, velocities[2], 2), expected[-1])
    with pytest.raises(SettingError, match="no step: all are taken"):
        state.step(x, velocities[2], 3)


def test_the_registry_names_each_solver():
    assert list(SOLVERS.items()) == [("euler", Euler), ("unipc", UniPC), ("renoise", ReNoise)]
    assert Euler() == Euler() and Euler() != UniPC()


@pytest.mark.parametrize(
    ("arguments", "field"), [((-1,), "seed"), ((2**64,), "seed"), ((1.5,), "seed"), ((1, -1), "prefix_chunks")]
)
def test_a_seed_that_cannot_work_is_named(arguments, field):
    with pytest.raises(SettingError) as error:
        host_noise(*arguments)
    assert error.value.field == field


def test_a_one_step_schedule_works_with_every_solver():
    schedule = Schedule((1.0, 0.0), (1000.0,))
    x, velocity = randn(*SHAPE), randn(*SHAPE, seed=1)
    for kind in SOLVERS.values():
        torch.testing.assert_close(run(kind(), schedule, x, [velocity])[0], x - velocity)
