"""Our SSIM is the one that published figures use."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure as reference

from flowcache_core.report.ssim import ssim


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 1, 11, 11), (3, 3, 17, 40)])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.5])
def test_it_is_torchmetrics(shape, noise):
    draw = torch.Generator().manual_seed(0)
    one = torch.rand(shape, generator=draw)
    other = (one + noise * torch.randn(shape, generator=draw)).clamp(0, 1)
    expected = reference(one, other, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(one, other), expected.reshape(-1), rtol=0, atol=2e-6)


def test_flat_pictures():
    """No variance: only the means count, and rounding takes none of it below zero."""
    grey, white = torch.full((1, 3, 16, 16), 0.5), torch.ones(1, 3, 16, 16)
    assert ssim(grey, grey).item() == pytest.approx(1, abs=1e-4)
    assert ssim(grey, white).item() == pytest.approx((2 * 0.5 + 1e-4) / (1.25 + 1e-4), abs=1e-3)
