"""What sparse attention may gain by computation, by class of card: from FLOPs and rates, not measured.

Rates are of published kernels: dense attention against block-sparse attention on the blocks that are kept, and the time
of making a mask. Where the kernels of a card are measured, its row belongs replaced (``bench cuda``).
"""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import ModelShape

STRIDE = 16
"""The stride that :attr:`Card.mask` is for; half of it takes twice as long."""


@dataclass(frozen=True)
class Card:
    """block: TFLOP/s of block-sparse attention on what it computes, over those of dense attention. mask: seconds of a
    mask as a share of the dense attention it is for. other: the rest of a step takes so many times the seconds that its
    FLOPs would take as attention.
    """

    name: str
    block: float
    mask: float
    other: float

    def break_even(self, stride: int = STRIDE) -> float:
        """Density below which a computed step gets faster, whatever the share of attention in it."""
        return max(0.0, (1 - self.mask * STRIDE / stride) * self.block)

    def gain(self, shape: ModelShape, tokens: int, context: int, density: float, stride: int = STRIDE) -> float:
        """How many times as fast a forward of ``tokens`` is that attends to ``context`` tokens at ``density``."""
        attention = shape.attention(tokens, context)
        rest = self.other * (shape.forward(tokens, context) - attention) / attention
        return (1 + rest) / (density / self.block + self.mask * STRIDE / stride + rest)


CONSUMER = Card("RTX 4090 class", 145 / 160, 0.077, 1.145)
AMPERE = Card("A100 class", 180 / 200, 0.077, 1.145)
HOPPER = Card("H100 class", 400 / 560, 0.064, 1.10)
SAGE = Card("RTX 4090 class with SageAttention", 145 / 480, 0.231, 3.435)
CPU = Card("CPU with one thread", 0.73, 0.049, 1.0)
"""Of ``bench sparse``: gather at densities 0.5 and 0.3."""
CARDS = (CONSUMER, AMPERE, HOPPER, SAGE)


def card_of(name: str, sage: bool = False) -> Card:
    """The class of a card by the name its driver gives: a CPU's without one, a consumer card's where it is not
    known.
    """
    if sage:
        return SAGE
    if not name:
        return CPU
    known = {"H100": HOPPER, "H200": HOPPER, "H800": HOPPER, "H20": HOPPER, "GH200": HOPPER, "B200": HOPPER}
    known |= {"A100": AMPERE, "A800": AMPERE}
    return next((card for part, card in known.items() if part in name), CONSUMER)


def expectation(card: Card, shape: ModelShape, tokens: int, context: int, density: float, stride: int = STRIDE) -> str:
    """One sentence before a run; by computation, so it promises nothing."""
    gain, even = card.gain(shape, tokens, context, density, stride), card.break_even(stride)
    share = shape.attention(tokens, context) / shape.forward(tokens, context)
    found = f"attention is {share:.0%} of a computed step with the longest context ({context} tokens)"
    if gain < 1.03:
        return f"{found}; at density {density:.2g} no gain on a {card.name}: it pays below {even:.2f} (computed)"
    return (
        f"{found}; at density {density:.2g} such a step is about {gain:.2f} times as fast on a {card.name} (computed)"
    )
