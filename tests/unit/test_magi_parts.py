"""Attention, embeddings, norms and guidance of MAGI-1, each by itself."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
import torch.nn.functional as F
from magi_tiny import assert_close
from torch import Tensor

from flowcache_core.errors import SettingError
from flowcache_core.models.common.operations import LayerNorm1p
from flowcache_core.models.magi.guidance import (
    GuidanceScales,
    guide,
    is_nearly_clean,
    needs_alone,
    visible_chunks,
)
from flowcache_core.models.magi.layers import apply_rope, attend_grouped, rope_table, sinusoid, time_rates
from flowcache_core.schedule import magi_distill_times

# --- parts -------------------------------------------------------------------------------------------------------


def test_grouped_attention_is_attention_with_repeated_heads():
    q, k, v = torch.randn(2, 6, 5, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    expected = F.scaled_dot_product_attention(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))
    assert_close(attend_grouped(q, k, v), expected, 1e-6)
    assert_close(attend_grouped(q, k[:1], v[:1])[1], attend_grouped(q[1:], k[:1], v[:1])[0])
    assert torch.equal(attend_grouped(q, k[:, :, :0], v[:, :, :0]), torch.zeros(2, 6, 5, 8))


def test_time_rates_are_rounded_right_on_every_machine():
    """Against 30 decimal digits: an fp32 exp is one bit off at some of them, at others on another processor."""
    step = torch.tensor(-math.log(10000.0), dtype=torch.float32)
    for count in (8, 128, 160):
        exponents = [Decimal((step * i / count).item()) for i in range(count)]
        with localcontext() as context:
            context.prec = 30
            expected = [exponent.exp() for exponent in exponents]
        rates = time_rates(count)
        for rate, exact in zip(rates, expected, strict=True):
            neighbours = (torch.nextafter(rate, torch.tensor(to)) for to in (0.0, 2.0))
            error = abs(Decimal(rate.item()) - exact)
            assert all(error <= abs(Decimal(other.item()) - exact) for other in neighbours)


def test_an_exp_that_rounds_otherwise_changes_no_embedding(monkeypatch):
    """As on a processor whose fp32 exp is one bit higher."""
    t = torch.tensor([0.0, 0.3, 0.9999, 8.0, 32.0])
    expected = sinusoid(t, 256)
    exp = torch.exp

    def raised(x: Tensor, *args, **options) -> Tensor:
        y = exp(x, *args, **options)
        return torch.nextafter(y, y + 1) if y.dtype == torch.float32 else y

    monkeypatch.setattr(torch, "exp", raised)
    monkeypatch.setattr(Tensor, "exp", raised)
    assert torch.equal(sinusoid(t, 256), expected)


def test_rotary_phases_depend_on_the_distance_in_time():
    bands = torch.tensor([1.0, 0.3])
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def product(a: int, b: int) -> Tensor:
        return (apply_rope(q, rope_table(bands, a, 1, 1, 1)) * apply_rope(k, rope_table(bands, b, 1, 1, 1))).sum()

    assert_close(product(7, 4), product(203, 200), 1e-4)
    assert abs(product(7, 4) - product(7, 2)) > 1e-2
    assert torch.equal(apply_rope(q, rope_table(bands, 5, 1, 1, 1))[..., 12:], q[..., 12:])


def test_rows_and_columns_are_centred_and_scaled():
    _, sin = rope_table(torch.tensor([1e-3]), 0, 1, 32, 32)
    rows = sin[:, 1].view(32, 32) * 1e3
    assert_close(rows[:, 0], rows[:, 31])
    # sqrt(32 * 32 / 256) = 2: the 32 rows span what 16 do at the reference size, -7.5 to 7.5
    assert_close(rows[:, 0], torch.linspace(-7.5, 7.5, 32), 1e-3)


def test_layer_norm_1p_stores_an_offset_from_one():
    norm, x = LayerNorm1p(8, 1e-6), torch.randn(4, 8)
    assert_close(norm(x), F.layer_norm(x, (8,), eps=1e-6), 1e-6)


# --- guidance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "t, expected",
    [(0.0, (1.5, 7.5)), (0.02, (1.5, 7.5)), (0.1, (1.5, 7.5)), (0.2999, (1.5, 7.5)), (0.3, (1, 0)), (0.9999, (1, 0))],
)
def test_guidance_scales(t, expected):
    assert GuidanceScales().at(t) == expected


def test_branches_that_can_be_left_out():
    alone, previous, text = (torch.randn(3) for _ in range(3))
    for scales in ((1.5, 7.5), (1.0, 0.0), (1.0, 4.0), (1.5, 0.0)):
        nan = torch.full((3,), float("nan"))
        given = (alone if needs_alone(scales) else 0 * alone, previous, text)
        assert_close(guide(*given, scales), guide(alone, previous, text, scales), 1e-6)
        assert needs_alone(scales) == guide(nan * 0 + nan, previous, text, scales).isnan().any() or scales[0] == 1
    assert_close(guide(alone, previous, text, (1.0, 1.0)), text, 1e-6)


def test_step_time_of_distilled_weights():
    assert [set(magi_distill_times(steps)) for steps in (64, 32, 16, 8)] == [{32}, {16}, {8}, {4}]
    assert magi_distill_times(12)[:3] == (4, 8, 8) and magi_distill_times(12, "16,16,8")[:3] == (8, 8, 4)


def test_nearly_clean_starts_at_the_last_quarter_in_fp32():
    u = torch.linspace(0, 1, 65)
    t = u * u / 3 / (1 - 2 / 3 * u * u)
    assert not is_nearly_clean(t[47].item())
    assert is_nearly_clean(torch.tensor(0.3).item())


@pytest.mark.parametrize("step, first", [(0, 4), (7, 4), (8, 5), (16, 6), (31, 7)])
def test_visible_chunks(step, first):
    assert visible_chunks(8, step, 32, (5, 4, 3, 2)) == range(first, 9)
    assert visible_chunks(1, step, 32, (5, 4, 3, 2)).start == 0
    assert visible_chunks(8, step, 32, ()) == range(0, 9)


def test_ranges_that_do_not_fit_are_refused():
    with pytest.raises(SettingError, match="divides 12 steps"):
        visible_chunks(3, 0, 12, (5, 4, 3, 2, 1))
    with pytest.raises(SettingError, match="guidance text"):
        GuidanceScales(text=(1.0,))
