"""The mini model's language: a few words, their vectors, and `encode_prompt`.

Wan's cross-attention has no sense of word order, so each token carries its word, its position and the sum of the whole
sentence, as the output of a contextual text encoder would. The vectors are fixed and orthogonal; nothing is
learned or stored here, the transformer's own text projection does the rest.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import shown
from .data import COLOURS, DIRECTIONS, SHAPES

TEXT_DIM = 64
TOKENS = 8
FILLERS = ("a", "moving")
VOCABULARY: tuple[str, ...] = (*FILLERS, *COLOURS, *SHAPES, *DIRECTIONS)
DROP_TEXT, DROP_WORD = 0.10, 0.02  # chances, in training, of the null prompt and of leaving out a word


def encode_prompt(text: str) -> Tensor:
    """Embedding [1, 8, 64] of a prompt such as "a red circle moving right"; "" is the null prompt.

    Case, punctuation and repeated blanks do not matter. Words may be left out; what is not said is left to chance.

    Raises:
        ValueError: a word is not in the vocabulary, or there are more words than tokens. The message lists what is
            accepted.
    """
    words = words_of(text, VOCABULARY, TOKENS, "the mini model")
    word_vectors, position_vectors = _vectors()
    tokens = position_vectors.clone()
    if words:
        said = word_vectors[[VOCABULARY.index(word) for word in words]]
        meant = said[[i for i, word in enumerate(words) if word not in FILLERS]]
        tokens[: len(words)] += said
        tokens += meant.sum(0) if len(meant) else 0
    return tokens[None]


def words_of(text: str, vocabulary: Sequence[str], most: int, model: str) -> list[str]:
    """The words of a prompt; case, punctuation and blanks do not count. ValueError: unknown word, or more than `most`.

    model: what it is called in the message.
    """
    words = re.findall(r"[^\s,.;:!?]+", text.lower())
    unknown = [word for word in words if word not in vocabulary]
    if unknown:
        raise ValueError(f"{model} does not know {shown(unknown[0])}; it knows: {', '.join(vocabulary)}")
    if len(words) > most:
        raise ValueError(f"the prompt has {len(words)} words; {model} reads at most {most}")
    return words


def thinned(prompt: str, generator: torch.Generator) -> str:
    """The prompt as a training step sees it: sometimes nothing, sometimes without a word."""
    chances = torch.rand(1 + TOKENS, generator=generator).tolist()
    if chances[0] < DROP_TEXT:
        return ""
    return " ".join(word for word, chance in zip(prompt.split(), chances[1:]) if chance >= DROP_WORD)


@functools.lru_cache(maxsize=1)
def orthogonal_vectors() -> Tensor:
    """The 64x64 Hadamard matrix: 64 orthogonal rows of -1 and 1, the first of ones alone."""
    rows = torch.ones(1, 1)
    while len(rows) < TEXT_DIM:
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    return rows


def _vectors() -> tuple[Tensor, Tensor]:
    """Word vectors and position vectors (half as long)."""
    rows, words = orthogonal_vectors(), len(VOCABULARY)
    return rows[1 : 1 + words], rows[1 + words : 1 + words + TOKENS] / 2
