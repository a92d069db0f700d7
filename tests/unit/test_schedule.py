"""Schedules against published tables."""

import math

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from flowcache_core.errors import SettingError
from flowcache_core.schedule import Schedule, from_sigmas, magi, magi_distill_times, shift_of, shifted, skyreels

quick = settings(max_examples=40, deadline=None)

# SkyReels-V2, 50 steps, shift 8.
SKYREELS_50 = """
999 997 994 991 989 986 983 979 976 973 969 965 961 957 953 948 944 939 934 928 922 916 910 903 896 888 880 871 862 852
841 830 817 804 789 773 756 737 716 692 666 636 603 565 521 470 409 337 249 140
"""
# MAGI-1, 16 steps, to five places.
MAGI_16 = "0 .00131 .00526 .012 .02174 .03482 .05172 .07313 .1 .13366 .17606 .23004 .3 .39302 .52128 .70755 1"


def test_skyreels_golden_timesteps():
    schedule = skyreels(50, 8.0)
    assert schedule.timesteps == tuple(float(word) for word in SKYREELS_50.split())
    assert schedule.sigmas[-1] == 0.0
    assert schedule.sigmas[0] == pytest.approx(8 * 0.999 / (1 + 7 * 0.999), abs=1e-15)


@pytest.mark.parametrize(("steps", "shift"), [(50, 8.0), (30, 8.0), (8, 3.0), (1, 5.0), (40, 1.0)])
def test_skyreels_agrees_with_diffusers(steps, shift):
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(0.999, 0, steps + 1)[:-1])
    schedule = skyreels(steps, shift)
    assert scheduler.sigmas.tolist() == pytest.approx(schedule.sigmas, abs=2e-7)
    assert [float(t) for t in scheduler.timesteps] == list(schedule.timesteps)


def test_magi_golden_times():
    times = [*magi(16).timesteps, 1 - magi(16).sigmas[-1]]
    assert times == pytest.approx([float(word) for word in MAGI_16.split()], abs=5.1e-6)
    assert magi(64).timesteps[48] == float(torch.tensor(0.3)) == pytest.approx(0.3000000119, abs=1e-10)


@pytest.mark.parametrize(("steps", "first"), [(64, 48), (16, 12), (8, 6)])
def test_magi_passes_the_nearly_clean_threshold_at_three_quarters(steps, first):
    assert [t > 0.3 for t in magi(steps).timesteps] == [k >= first for k in range(steps)]


def test_magi_in_twelve_steps_divides_each_quarter_unevenly():
    def times(*thirds):
        return [u * u / (3 - 2 * u * u) for quarter in range(4) for u in (quarter / 4 + third for third in thirds)]

    assert magi(12).timesteps == pytest.approx(times(0, 0.125, 0.1875), abs=1e-7)
    assert magi(12, "16,16,8").timesteps == pytest.approx(times(0, 0.0625, 0.125), abs=1e-7)
    assert magi_distill_times(12) == (4, 8, 8) * 4
    assert magi_distill_times(12, "16,16,8") == (8, 8, 4) * 4
    assert [magi_distill_times(steps)[0] for steps in (64, 16, 8)] == [32, 8, 4]


@quick
@given(st.integers(1, 128))
def test_magi_sigma_and_time_are_two_names_of_one_level(steps):
    schedule = magi(steps)
    assert schedule.steps == steps
    assert schedule.sigmas == (*(1 - t for t in schedule.timesteps), 0.0)
    assert schedule.timesteps[0] == 0
    assert all(float(torch.tensor(t)) == t for t in schedule.timesteps)


def test_shifted_by_arithmetic():
    assert shifted(4, 1.0).sigmas == (1.0, 0.75, 0.5, 0.25, 0.0)
    schedule = shifted(4, 5.0)
    assert schedule.sigmas == pytest.approx((1, 15 / 16, 5 / 6, 5 / 8, 0), abs=1e-15)
    assert schedule.timesteps == pytest.approx((1000, 937.5, 2500 / 3, 625), abs=1e-12)
    assert shifted(2, 3.0, start=0.5).sigmas == pytest.approx((0.75, 0.5, 0), abs=1e-15)


@quick
@given(st.integers(1, 200), st.floats(0.01, 100), st.floats(1e-3, 1))
def test_shifted_falls_from_start_to_zero(steps, shift, start):
    sigmas = shifted(steps, shift, start).sigmas
    assert sigmas[-1] == 0 and len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(shift * start / (1 + (shift - 1) * start), rel=1e-9)
    assert shifted(steps, shift).sigmas[0] == 1


def test_host_sigmas_are_kept():
    assert from_sigmas(torch.tensor([1.0, 0.75, 0.25])) == Schedule((1.0, 0.75, 0.25), (1000.0, 750.0))


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: shifted(0, 5.0), "steps"),
        (lambda: shifted(-3, 5.0), "steps"),
        (lambda: shifted(4, math.nan), "shift"),
        (lambda: shifted(4, 0.0), "shift"),
        (lambda: shifted(4, -1.0), "shift"),
        (lambda: shifted(4, math.inf), "shift"),
        (lambda: shifted(4, 5.0, start=1.5), "start"),
        (lambda: shifted(4, 5.0, start=0.0), "start"),
        (lambda: skyreels(0, 8.0), "steps"),
        (lambda: skyreels(50, math.nan), "shift"),
        (lambda: magi(0), "steps"),
        (lambda: magi(12, "8,8,8"), "shortcut_mode"),
        (lambda: magi_distill_times(12, ""), "shortcut_mode"),
        (lambda: from_sigmas([]), "sigmas"),
        (lambda: from_sigmas([1.0]), "sigmas"),
        (lambda: from_sigmas([1.0, 0.5, 0.5, 0.0]), "sigmas[2]"),
        (lambda: from_sigmas([1.0, 0.5, 0.6]), "sigmas[2]"),
        (lambda: from_sigmas([14.6, 1.0, 0.0]), "sigmas[0]"),
        (lambda: from_sigmas([1.0, math.nan]), "sigmas[1]"),
        (lambda: from_sigmas([1.0, -0.1]), "sigmas[1]"),
        (lambda: Schedule((1.0, 1.0), (1000.0,)), "schedule.sigmas"),
        (lambda: Schedule((2.0, 1.0), (1000.0,)), "schedule.sigmas"),
        (lambda: Schedule((1.0, 0.0), (1000.0, 0.0)), "schedule.sigmas"),
        (lambda: Schedule((1.0,), ()), "schedule.steps"),
    ],
)
def test_a_setting_that_cannot_work_is_named(call, field):
    with pytest.raises(SettingError) as error:
        call()
    assert error.value.field == field


def test_a_repeated_host_sigma_is_quoted():
    with pytest.raises(SettingError, match=r"sigmas\[2\]: got 0.5, accepted: less than sigmas\[1\] = 0.5"):
        from_sigmas([1.0, 0.5, 0.5])


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("steps", [4, 30, 50])
def test_the_shift_is_read_off_the_sigmas(steps, shift):
    assert shift_of(shifted(steps, shift)) == pytest.approx(shift, rel=1e-9)
    assert shift_of(shifted(steps, shift, start=0.6)) == pytest.approx(shift, rel=1e-9)
    assert shift_of(skyreels(steps, shift)) == pytest.approx(shift, rel=1e-9)
    # as hosts make them: from a table of 1000 levels, in float32
    table = torch.arange(1, 1001) / 1000
    table = shift * table / (1 + (shift - 1) * table)
    simple = [float(table[-(1 + int(k * 1000 / steps))]) for k in range(steps)]
    assert shift_of(from_sigmas([*simple, 0.0])) == pytest.approx(shift, rel=0.01)


def test_other_schedules_have_no_shift():
    assert shift_of(magi(16)) is None
    assert shift_of(from_sigmas(shifted(10, 3.0).sigmas[:-2])) is None  # a run split in two
    assert shift_of(from_sigmas([1.0, 0.9, 0.5, 0.45, 0.1, 0.0])) is None
    assert shift_of(shifted(2, 3.0)) is None
