"""What sparse attention may gain, against the figures it was derived from."""

from __future__ import annotations

import pytest

from flowcache_core.cost import WanShape
from flowcache_core.cost.sparse_gain import AMPERE, CONSUMER, CPU, HOPPER, SAGE, Card, card_of, expectation

SMALL, LARGE = WanShape(1536, 8960, 30), WanShape(5120, 13824, 40)


@pytest.mark.parametrize(
    ("shape", "tokens", "context", "card", "gains"),
    [
        (SMALL, 51_000, 51_000, CONSUMER, (1.39, 1.81)),
        (SMALL, 10_200, 30_600, CONSUMER, (1.31, 1.61)),
        (SMALL, 10_200, 30_600, HOPPER, (1.17, 1.49)),
        (LARGE, 10_200, 30_600, CONSUMER, (1.21, 1.38)),
        (LARGE, 51_000, 51_000, HOPPER, (1.17, 1.46)),
        (SMALL, 51_000, 51_000, SAGE, (0.69, 0.90)),
    ],
)
def test_gains_at_half_and_at_three_tenths(
    shape: WanShape, tokens: int, context: int, card: Card, gains: tuple[float, float]
) -> None:
    found = [card.gain(shape, tokens, context, density) for density in (0.5, 0.3)]
    assert found == pytest.approx(gains, abs=0.035)


def test_densities_below_which_it_pays() -> None:
    evens = [card.break_even() for card in (CONSUMER, AMPERE, HOPPER, SAGE)]
    assert evens == pytest.approx([0.84, 0.84, 0.65, 0.23], abs=0.02)
    assert CONSUMER.break_even(8) < CONSUMER.break_even(16) < CONSUMER.break_even(10**6)
    for card in (CONSUMER, HOPPER, SAGE):
        assert card.gain(SMALL, 10_200, 51_000, card.break_even()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "sage", "card"),
    [
        ("NVIDIA H100 80GB HBM3", False, HOPPER),
        ("NVIDIA A800-SXM4-80GB", False, AMPERE),
        ("NVIDIA GeForce RTX 4090", False, CONSUMER),
        ("NVIDIA GeForce RTX 4090", True, SAGE),
        ("AMD Radeon RX 7900 XTX", False, CONSUMER),
        ("", False, CPU),
    ],
)
def test_cards_by_the_names_their_drivers_give(name: str, sage: bool, card: Card) -> None:
    assert card_of(name, sage) is card


def test_a_sentence_says_when_it_does_not_pay() -> None:
    assert "no gain" in expectation(SAGE, SMALL, 4680, 14_040, 0.5) and "0.23" in expectation(SAGE, SMALL, 1, 9, 0.5)
    assert "1.21 times as fast" in expectation(CONSUMER, SMALL, 4680, 14_040, 0.5)
